"""One training round of the main job: seconds, compile time, and the share of the machine's matmul rate.

    python -m benchmarks.round [--agents 8 64] [--batch 128] [--repeats 3]

A round is everybody's local step, thresholds, exchange and fine-tuning, AlexNet, random images, `--preset code`.
"""

import argparse
import json

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Timing, conditions, matmul_rate, timed
from dslth_jax import population, topology
from dslth_jax.mcepl import mce_pl
from dslth_jax.models import network_by_name
from dslth_jax.population import Shares
from experiments.run import population_hyper
from experiments.settings import Settings, resolve

# Multiply-adds of a forward pass of one sample, and of the part whose input gradient is not needed (conv1).
FORWARD, FIRST = 41_359_104, 4_320_000
SAMPLES = 5_000


def round_timing(agents: int, batch: int, repeats: int) -> tuple[Timing, float]:
    """The timing of one round of `agents`, and its floating-point operations in the network alone."""
    rng = np.random.default_rng(0)
    network = network_by_name("alexnet", (32, 32, 3), 10, elu_on_logits=True)
    algorithm, key = mce_pl(network), jax.random.key(0)
    capacity = 50_000 // agents
    shares = Shares(
        rng.integers(0, 256, (SAMPLES, 32, 32, 3), np.uint8),
        rng.integers(0, 10, SAMPLES, np.int32),
        rng.integers(0, SAMPLES, (agents, capacity), np.int32),
        np.full(agents, capacity, np.int32),
    )
    graph = topology.topology_by_name("erdos-renyi:0.5", agents, 0).graph
    hyper, shares, graph = jax.device_put(
        (population_hyper(resolve(Settings(agents=agents)), network)[0], shares, graph)
    )
    world = population.world_of(network, key, hyper, 0, 1)
    state = jax.jit(lambda: population.init(algorithm, world, graph, agents=agents))()

    def one_round(state: population.State) -> population.State:
        world = population.world_of(network, key, hyper, state.round, 1)
        return population.round(algorithm, world, state, shares, graph, batch_size=batch)[0]

    return timed(one_round, state, repeats=repeats), 2 * agents * batch * (3 * FORWARD - FIRST)


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    peak = matmul_rate()
    print(f"{conditions()}; batch {flags.batch}, float32 matmul {peak / 1e9:.0f} GF/s")
    table = Table("agents", "seconds a round", "fastest", "compile, s", "of matmul rate")
    result: dict[str, float] = {}
    for agents in flags.agents:
        timing, work = round_timing(agents, flags.batch, flags.repeats)
        share = work / timing.median / peak
        table.add_row(
            str(agents), f"{timing.median:.2f}", f"{timing.fastest:.2f}", f"{timing.compile:.1f}", f"{share:.0%}"
        )
        result = {"agents": agents, "seconds_per_round": timing.median, "fraction_of_matmul": share}
        result["compile_seconds"] = timing.compile
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
