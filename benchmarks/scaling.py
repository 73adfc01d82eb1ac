"""From few agents to many: time and peak memory of a round, against the formula of `study.training.memory`.

    python -m benchmarks.scaling [--agents 8 64 256 1024] [--batch 128] [--rounds 2]

Rounds of the main job (AlexNet, `--preset code`, random images, Erdős–Rényi 0.5), through the programs that the command
runs. Every size is a process of its own, so that its peak memory is its own; the last round is the one that counts.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, matmul_rate
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training import memory
from dslth_jax.study.training.plan import plan
from dslth_jax.study.training.prepare import prepare
from dslth_jax.study.training.programs import compile_programs


def random_images(path: Path, samples: int = 50_000) -> None:
    """A file of images in the shape of CIFAR-10's, by default as many."""
    rng = np.random.default_rng(0)

    def images(samples: int) -> np.ndarray:
        return rng.integers(0, 256, (samples, 32, 32, 3), np.uint8)

    def labels(samples: int) -> np.ndarray:
        return rng.permutation(samples).astype(np.int32) % 10

    arrays: Any = {"train_images": images(samples), "train_labels": labels(samples)}
    np.savez(path, **arrays, test_images=images(10), test_labels=labels(10))


def one_size(agents: int, batch: int, rounds: int, data_file: Path) -> dict[str, Any]:
    """Run `rounds` rounds in this process; seconds of the last, and bytes: at most, before, and by the formula."""
    settings = Settings(agents=agents, batch_size=batch, data_file=data_file, partition="iid", compilation_cache=False)
    planned = plan([prepare(settings)])
    before, peak_rate = peak_memory(), matmul_rate()
    programs = compile_programs(planned)
    state = programs.start()
    compile_seconds = programs.compiled()
    for _ in range(rounds):
        began = time.perf_counter()
        state, _ = programs.step(state)
        seconds = time.perf_counter() - began
    return {
        "agents": agents,
        "chunk": planned.chunk,
        "seconds_per_round": seconds,
        "milliseconds_per_agent": 1e3 * seconds / agents,
        "matmul_gflops": max(peak_rate, matmul_rate()) / 1e9,
        "compile_seconds": compile_seconds,
        "peak_bytes": peak_memory(),
        "bytes_before": before,
        "formula_bytes": sum(planned.footprint.values()),
        "formula": memory.said(planned.footprint),
    }


def peak_memory() -> int:
    """Bytes that this process has held at most: on the accelerator if there is one, else in main memory."""
    said = jax.local_devices()[0].memory_stats()
    return said["peak_bytes_in_use"] if said else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[8, 64, 256, 1024])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--here", type=Path, help="(used by itself) measure one size in this process, with this file")
    flags = parser.parse_args()
    if flags.here:
        print(json.dumps(one_size(flags.agents[0], flags.batch, flags.rounds, flags.here)))
        return
    rows = []
    table = Table("agents", "chunk", "seconds a round", "ms an agent", "compile, s", "peak, GB", "formula, GB")
    with tempfile.TemporaryDirectory() as folder:
        for agents in flags.agents:
            # Everybody has a whole batch of its own.
            random_images(Path(folder) / "random.npz", max(50_000, agents * flags.batch))
            again = [sys.executable, "-m", "benchmarks.scaling", "--here", f"{folder}/random.npz"]
            sizes = ["--agents", str(agents), "--batch", str(flags.batch), "--rounds", str(flags.rounds)]
            said = subprocess.run([*again, *sizes], check=True, stdout=subprocess.PIPE, text=True).stdout
            row = json.loads(said.splitlines()[-1])
            rows.append(row)
            times = (f"{row['seconds_per_round']:.2f}", f"{row['milliseconds_per_agent']:.0f}")
            memories = (f"{row['peak_bytes'] / 1e9:.2f} ({row['bytes_before'] / 1e9:.2f} before)", row["formula"])
            table.add_row(str(agents), str(row["chunk"]), *times, f"{row['compile_seconds']:.1f}", *memories)
    # Ask for the device only now, for while the sizes ran it was theirs.
    print(f"{conditions()}; batch {flags.batch}, round {flags.rounds} of each size")
    Console().print(table)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
