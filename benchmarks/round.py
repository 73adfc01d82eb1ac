"""One training round of the main job: seconds, compile time, and the share of the machine's matmul rate.

    python -m benchmarks.round [--agents 8 64] [--batch 128] [--repeats 3] [--precision float32] [--chunk 1]

A round is everybody's local step, thresholds, exchange and fine-tuning, AlexNet, random images, `--preset code`. Where
PyTorch is installed (`pip install -e '.[rivals]'`) two loops of it over the fewest agents run beside. Where there is an
accelerator, every precision and several chunks are tried, the largest first, and the other benchmarks' forms after
them. What is measured is said on standard error as it comes.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Timing, conditions, copy_rate, matmul_rate, timed_in_place
from dslth_jax import graphs, population
from dslth_jax.algorithms.mce_pl import mce_pl
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.population import Shares
from dslth_jax.study.config.numbers import population_hyper
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.settings import Settings

# Multiply-adds of a forward pass of one sample, and of the part whose input gradient is not needed (conv1).
FORWARD, FIRST = 41_359_104, 4_320_000
SAMPLES = 5_000


def round_timing(
    agents: int, batch: int, repeats: int, precision: str = "float32", chunk: int | None = None
) -> tuple[Timing, float]:
    """The timing of one round of `agents`, and its floating-point operations in the network alone."""
    rng = np.random.default_rng(0)
    network = network_by_name("alexnet", (32, 32, 3), 10, elu_on_logits=True, precision=precision)
    algorithm, key = mce_pl(network), jax.random.key(0)
    capacity = max(50_000 // agents, batch)
    shares = Shares(
        rng.integers(0, 256, (SAMPLES, 32, 32, 3), np.uint8),
        rng.integers(0, 10, SAMPLES, np.int32),
        rng.integers(0, SAMPLES, (agents, capacity), np.int32),
        np.full(agents, capacity, np.int32),
    )
    graph = graphs.erdos_renyi(agents).graph
    hyper, shares, graph = jax.device_put(
        (population_hyper(resolve(Settings(agents=agents)), network)[0], shares, graph)
    )
    drawn = jax.jit(lambda key: population.draw_weights(network, key))(key)

    def world_at(round: Any) -> Any:
        return population.world_of(network, key, round, 1, drawn)

    def one_round(state: population.State) -> population.State:
        world = world_at(state.round)
        return population.round(algorithm, world, hyper, state, shares, graph, batch_size=batch, chunk=chunk)[0]

    state = jax.jit(lambda: population.init(algorithm, world_at(0), hyper, graph, agents=agents, chunk=chunk))()
    return timed_in_place(one_round, state, repeats), 2 * agents * batch * (3 * FORWARD - FIRST)


def rivals(agents: int, batch: int, repeats: int) -> dict[str, float | None]:
    """Seconds a round of the two loops of PyTorch, None where it is not installed or an accelerator is at work."""
    names = ("authors_structure", "torch_loop")
    if importlib.util.find_spec("torch") is None or jax.default_backend() != "cpu":
        return dict.fromkeys(names)
    from benchmarks.rivals import RIVALS, rival_seconds

    return {name: rival_seconds(rival, agents, batch, repeats) for name, rival in zip(names, RIVALS, strict=True)}


def variants(precisions: Sequence[str] | None, chunks: Sequence[int] | None, agents: int) -> list[tuple[str, int]]:
    """What is measured of `agents`: on a CPU the default alone, on an accelerator whatever may be fastest there."""
    on_cpu = jax.default_backend() == "cpu"
    precisions = precisions or (["float32"] if on_cpu else ["float32", "bfloat16"])
    chunks = chunks or ([1] if on_cpu else [1, 8, 64, agents])
    # What is likely to be fastest first, for whoever has little time.
    sizes = sorted({min(chunk, agents) for chunk in chunks}, reverse=True)
    return [(precision, chunk) for precision in precisions for chunk in sizes]


def main() -> None:
    """Print conditions, the tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"])
    parser.add_argument("--chunk", type=int, nargs="+", help="agents computed at once")
    flags = parser.parse_args()
    console, rows = Console(), []
    print(f"{conditions()}; batch {flags.batch}, copying {copy_rate() / 1e9:.0f} GB/s")
    table = Table("agents", "precision", "chunk", "seconds a round", "fastest", "compile, s", "matmul, GF/s", "of it")
    for agents in flags.agents:
        for precision, chunk in variants(flags.precision, flags.chunk, agents):
            # What the machine can do drifts: ask it before and after.
            peak = matmul_rate()
            timing, work = round_timing(agents, flags.batch, flags.repeats, precision, chunk)
            peak = max(peak, matmul_rate())
            rows.append(
                {
                    "agents": agents,
                    "precision": precision,
                    "chunk": chunk,
                    "seconds_per_round": timing.median,
                    "fastest_seconds": timing.fastest,
                    "compile_seconds": timing.compile,
                    "matmul_gflops": peak / 1e9,
                    "fraction_of_matmul": work / timing.median / peak,
                }
            )
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # in case nobody waits for the end
            cells = (f"{timing.median:.2f}", f"{timing.fastest:.2f}", f"{timing.compile:.1f}", f"{peak / 1e9:.0f}")
            table.add_row(str(agents), precision, str(chunk), *cells, f"{rows[-1]['fraction_of_matmul']:.0%}")
    console.print(table)

    fewest = min((row for row in rows if row["agents"] == min(flags.agents)), key=lambda row: row["seconds_per_round"])
    seconds = rivals(fewest["agents"], flags.batch, flags.repeats)
    speedups = {f"speedup_over_{name}": s and s / fewest["seconds_per_round"] for name, s in seconds.items()}
    for name, s in seconds.items():
        said = "not measured: PyTorch is not installed, or not on this device" if s is None else f"{s:.2f} s a round"
        print(f"{name} (PyTorch), {fewest['agents']} agents: {said}")
    most = min((row for row in rows if row["agents"] == max(flags.agents)), key=lambda row: row["seconds_per_round"])
    # The loops run among the fewest agents, and are compared with the library's round among as many.
    compared = {**speedups, "rivals_agents": fewest["agents"]}
    print(json.dumps({**most, **compared, "rows": rows, **other_forms()}))


def other_forms() -> dict[str, Any]:
    """On an accelerator, what the other benchmarks say of forms that could be chosen there."""
    if jax.default_backend() == "cpu":
        return {}
    from benchmarks import convolution, exchange, threshold

    found = {}
    for benchmark in (convolution, threshold, exchange):
        name = benchmark.__name__.rpartition(".")[2]
        table, found[name] = benchmark.measure()
        Console().print(name, table)
    return found


if __name__ == "__main__":
    main()
