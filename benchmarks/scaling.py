"""From few agents to many: time and peak memory of a round, against the formula of `study.training.memory`, and by the
same formula what agents beyond this machine take.

    python -m benchmarks.scaling [--agents 20 64 256 1024] [--batch 128]     # AlexNets
    python -m benchmarks.scaling --small [--agents 100 1000 10000]           # small networks, on a sparse graph
    python -m benchmarks.scaling --beyond 100000 1000000 --device-memory 80  # GiB, of the devices that it is to run on

Rounds of the main job (`--preset code`, random images), through the programs that the command runs: AlexNets on
Erdős–Rényi 0.5, or with `--small` networks for images like those of digits on a random regular graph. Every size is a
process of its own, so that its peak memory is its own; the last round is the one that counts. The second table is a
formula, not a measurement; what it takes for granted stands below it.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, matmul_rate
from dslth_jax.networks.zoo import MODULES
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training import memory
from dslth_jax.study.training.plan import Prepared, plan
from dslth_jax.study.training.prepare import prepare
from dslth_jax.study.training.programs import compile_programs

SAMPLES = 50_000  # of the data set, at least: as many as CIFAR-10 has
MILLION = 10**6
AT_ONCE = 64  # agents computed at once on each device beyond this machine
# What is measured where nothing else is said: sizes, network, samples a minibatch, graph, and the images' shape.
USUAL: dict[str, Any] = {"agents": [20, 64, 256, 1024], "model": "alexnet", "batch": 128, "topology": "erdos-renyi:0.5"}
SMALL: dict[str, Any] = {"agents": [100, 1000, 10_000], "model": "small", "batch": 16, "topology": "regular:8"}
SHAPES = {"small": (8, 8, 1)}  # of other networks that of CIFAR-10


def random_images(path: Path, samples: int = SAMPLES, shape: tuple[int, ...] = (32, 32, 3)) -> None:
    """A file of images, by default as many and of the shape of CIFAR-10's."""
    rng = np.random.default_rng(0)

    def images(samples: int) -> np.ndarray:
        return rng.integers(0, 256, (samples, *shape), np.uint8)

    def labels(samples: int) -> np.ndarray:
        return rng.permutation(samples).astype(np.int32) % 10

    arrays: Any = {"train_images": images(samples), "train_labels": labels(samples)}
    np.savez(path, **arrays, test_images=images(10), test_labels=labels(10))


class Parts(NamedTuple):
    """Bytes of a population of any size, by the formula."""

    state: int  # of an agent, with the list of its samples
    message: int  # what an agent sends
    common: int  # to all agents, on every device: images, weights, and what AT_ONCE agents compute with


def parts_of(prepared: Prepared) -> Parts:
    """How the formula of memory grows with agents, from a million on, and with devices. Counts of neighbours have four
    bytes there, and one or two in smaller populations."""
    each = prepared.train.indices.shape[1]

    def on_each(agents: int, devices: int) -> int:
        shapes = {"indices": (agents, each), "sizes": (agents,)}
        shares: dict[str, Any] = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        found = memory.footprint(
            prepared.network,
            prepared.algorithm,
            jax.tree.map(lambda leaf: leaf[0], prepared.hyper),
            prepared.topology.graph,
            prepared.train._replace(**shares),
            agents=agents,
            batch_size=prepared.batch_size,
            chunk=AT_ONCE,
            devices=devices,
        )
        return sum(found.values())

    million = on_each(MILLION, 1)
    state = (on_each(2 * MILLION, 1) - million) // MILLION
    message = (on_each(2 * MILLION, 2) - million) // (2 * MILLION)
    return Parts(state, message, million - MILLION * state)


class Beyond(NamedTuple):
    """What so many agents take, in all."""

    gathered: int | None  # devices, each of which receives everybody's messages, as now; None where these are too large
    bytes_gathered: int | None  # that all of them receive in a round
    by_links: int | None  # devices, if each received over every link what comes from other devices: the worst case
    bytes_by_links: int | None


def beyond(parts: Parts, agents: int, neighbours: int, device: float) -> Beyond:
    """Devices of so many bytes for so many agents, and the bytes that cross between them in a round.

    >>> beyond(Parts(state=10, message=1, common=50), agents=100, neighbours=4, device=350)
    Beyond(gathered=5, bytes_gathered=400, by_links=5, bytes_by_links=400)
    """

    def devices(room: float, each: int) -> int | None:
        return math.ceil(agents / (room // each)) if room >= each else None

    room = device - parts.common
    if agents * parts.state <= room:
        return Beyond(1, 0, 1, 0)
    gathered = devices(room - agents * parts.message, parts.state)
    by_links = devices(room, parts.state + neighbours * parts.message)
    crossing = None if gathered is None else (gathered - 1) * agents * parts.message
    return Beyond(gathered, crossing, by_links, by_links and neighbours * agents * parts.message)


def one_size(settings: Settings, rounds: int) -> dict[str, Any]:
    """Run `rounds` rounds in this process; seconds of the last, and bytes: at most, before, and by the formula."""
    began = time.perf_counter()
    prepared = prepare(settings)
    planned = plan([prepared])
    prepare_seconds = time.perf_counter() - began
    before, peak_rate, on_cpu = peak_memory(), matmul_rate(), jax.default_backend() == "cpu"
    programs = compile_programs(planned)
    state = programs.start()
    compile_seconds = programs.compiled()
    for _ in range(rounds):
        began, busy = time.perf_counter(), time.process_time()
        state, _ = programs.step(state)
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - busy
    return {
        "agents": settings.agents,
        "chunk": planned.chunk,
        "prepare_seconds": prepare_seconds,
        "seconds_per_round": seconds,
        "cpu_seconds_per_round": cpu_seconds,
        "milliseconds_per_agent": 1e3 * seconds / settings.agents,
        # Of one core's time where that is known: other programs do not count in it.
        "alone": "of a core" if on_cpu else "of a device",
        "milliseconds_alone": 1e3 * (cpu_seconds if on_cpu else seconds) / settings.agents,
        "matmul_gflops": max(peak_rate, matmul_rate()) / 1e9,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak_memory(),
        "bytes_before": before,
        "formula_bytes": sum(planned.footprint.values()),
        "formula": memory.said(planned.footprint),
        "parts": parts_of(prepared)._asdict(),
    }


def peak_memory() -> int:
    """Bytes that this process has held at most: on the accelerator if there is one, else in main memory."""
    said = jax.local_devices()[0].memory_stats()
    return said["peak_bytes_in_use"] if said else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measured(flags: argparse.Namespace) -> list[dict[str, Any]]:
    """`one_size` of every size, each in a process of its own."""
    rows, shape = [], SHAPES.get(flags.model, (32, 32, 3))
    with tempfile.TemporaryDirectory() as folder:
        for agents in flags.agents:
            # Everybody has a whole batch of its own.
            random_images(Path(folder) / "random.npz", max(SAMPLES, agents * flags.batch), shape)
            again = [sys.executable, "-m", "benchmarks.scaling", "--here", f"{folder}/random.npz"]
            again += ["--agents", str(agents), "--batch", str(flags.batch), "--rounds", str(flags.rounds)]
            again += ["--model", flags.model, "--topology", flags.topology]
            said = subprocess.run(again, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows.append(json.loads(said.splitlines()[-1]))
    return rows


def show(console: Console, flags: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """What was measured."""
    heads = ("agents", "prepare\ns", "compile\ns", "a round\ns", "an agent\nms", f"{rows[0]['alone']}\nms", "peak\nGB")
    table = Table(*heads, "before\nGB", "formula\nGB", title=f"{flags.model}, {flags.topology}", box=box.SIMPLE_HEAD)
    for row in rows:
        numbers = [row["prepare_seconds"], row["compile_seconds"], row["seconds_per_round"]]
        numbers += [row["milliseconds_per_agent"], row["milliseconds_alone"]]
        numbers += [row[size] / 1e9 for size in ("peak_bytes", "bytes_before", "formula_bytes")]
        table.add_row(f"{row['agents']:,}", *(f"{number:,.3g}" for number in numbers))
    console.print(table)


def show_beyond(console: Console, flags: argparse.Namespace, row: dict[str, Any]) -> list[dict[str, Any]]:
    """What agents beyond this machine take, by the formula and by the time an agent that a row measured."""
    parts, device = Parts(**row["parts"]), flags.device_memory * 2**30
    heads = (
        "agents",
        "state\nGB",
        "devices\ngathered",
        "a round\nGB",
        "devices\nby links",
        "a round\nGB",
        "a round\ns",
    )
    table = Table(*heads, title=f"By formula: devices of {flags.device_memory:g} GiB", box=box.SIMPLE_HEAD)
    rows = []
    for agents in flags.beyond:
        found = beyond(parts, agents, flags.neighbours, device)
        seconds = None
        if found.by_links:
            seconds = row["milliseconds_alone"] / 1e3 * math.ceil(agents / found.by_links) / flags.speed_up
        rows.append({"agents": agents, **found._asdict(), "seconds": seconds})
        sizes = [own and f"{own / 1e9:,.4g}" for own in (found.bytes_gathered, found.bytes_by_links)]
        cells = [found.gathered, sizes[0], found.by_links, sizes[1], seconds and f"{seconds:,.4g}"]
        said = ["too large" if cell is None else str(cell) for cell in cells]
        table.add_row(f"{agents:,}", f"{agents * parts.state / 1e9:,.4g}", *said)
    console.print(table)
    console.print(
        f"An agent: {parts.state:,} bytes of state, {parts.message:,} of message; on every device {parts.common:,} of "
        f"images, weights and what {AT_ONCE} agents compute with. Taken for granted: all agents' images come from one "
        f"data set that every device holds; agents lie in equal blocks; every agent hears {flags.neighbours} others; "
        "'gathered' is what the library does, each device receives everybody's bits; 'by links' is what it does not do "
        "yet, each device would receive what its own agents hear, at worst all of it from other devices; seconds are "
        f"of computing alone, by {row['milliseconds_alone']:.4g} ms {row['alone']} for an agent here, on devices "
        f"{flags.speed_up:g} times as fast, as many as 'by links'.",
        highlight=False,
    )
    return rows


def main() -> None:
    """Print conditions, the tables and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+")
    parser.add_argument("--model", choices=list(MODULES))
    parser.add_argument("--batch", type=int)
    parser.add_argument("--topology")
    parser.add_argument("--small", action="store_true", help="small networks: other defaults of the four above")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--beyond", type=int, nargs="*", default=[10**5, 10**6], help="agents, by formula")
    parser.add_argument("--device-memory", type=float, default=80, help="GiB of a device, of which all can be used")
    parser.add_argument("--neighbours", type=int, default=8, help="that an agent hears, by formula")
    parser.add_argument("--speed-up", type=float, default=1, help="of a device over this machine: measure it there")
    parser.add_argument("--here", type=Path, help="(used by itself) measure one size in this process, with this file")
    flags = parser.parse_args()
    for name, usual in (SMALL if flags.small else USUAL).items():
        if getattr(flags, name) is None:
            setattr(flags, name, usual)
    if flags.here:
        own: dict[str, Any] = {"batch_size": flags.batch, "data_file": flags.here, "partition": "iid"}
        own |= {"model": flags.model, "topology": flags.topology, "compilation_cache": False}
        print(json.dumps(one_size(Settings(agents=flags.agents[0], **own), flags.rounds)))
        return
    rows, console = measured(flags), Console()
    # Ask for the device only now, for while the sizes ran it was theirs.
    print(f"{conditions()}; batch {flags.batch}, round {flags.rounds} of each size")
    show(console, flags, rows)
    formula = show_beyond(console, flags, rows[-1]) if flags.beyond else []
    print(json.dumps({"rows": rows, "beyond": formula}))


if __name__ == "__main__":
    main()
