"""From the command to the first computation: without and with compiled programs of an earlier run.

    python -m benchmarks.start [--agents 64] [--repeats 3]

Random images in CIFAR-10's shape; every run is a process of its own, and its clock starts when that process is asked
for. "computing" is when the population's first program runs (start scores, start masks and their exchange), "training"
when the first round could run: in a run of the command it follows the evaluation of round 0, behind which the round's
program still compiles, and which is left out here.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

MOMENTS = ("imported", "prepared", "computing", "training")


def one_start(agents: int, data_file: Path, asked_at: float) -> dict[str, float]:
    """Start a run in this process; seconds since `asked_at` at each of `MOMENTS`."""
    passed = {}

    def note(moment: str) -> None:
        passed[moment] = time.time() - asked_at

    import jax

    from dslth_jax.study.config.settings import Settings
    from dslth_jax.study.training.plan import plan
    from dslth_jax.study.training.prepare import prepare
    from dslth_jax.study.training.programs import compile_programs

    note("imported")
    planned = plan([prepare(Settings(agents=agents, data_file=data_file))])
    note("prepared")
    programs = compile_programs(planned)
    state = programs.start()
    note("computing")
    jax.block_until_ready(state)
    programs.compiled()
    note("training")
    return passed


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--here", type=Path, help="(used by itself) start in this process, with this file")
    parser.add_argument("--asked-at", type=float, help="(used by itself) when the process was asked for")
    flags = parser.parse_args()
    if flags.here:
        print(json.dumps(one_start(flags.agents, flags.here, flags.asked_at)))
        return
    from benchmarks.measure import conditions
    from benchmarks.scaling import random_images

    medians: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.npz"
        random_images(file)
        for kind in ("cold", "warm"):
            runs = []
            for repeat in range(flags.repeats):
                cache = Path(folder) / (f"cold{repeat}" if kind == "cold" else "cold0")
                runs.append(in_a_process(flags.agents, file, cache))
            medians[kind] = {moment: statistics.median(run[moment] for run in runs) for moment in MOMENTS}
    print(f"{conditions()}; {flags.agents} agents, median of {flags.repeats} starts")
    table = Table("compilation cache", *(f"{moment}, s" for moment in MOMENTS))
    for kind, moments in medians.items():
        table.add_row(kind, *(f"{moments[moment]:.1f}" for moment in MOMENTS))
    Console().print(table)
    print(json.dumps(medians))


def in_a_process(agents: int, file: Path, cache: Path) -> dict[str, float]:
    """One start, with compiled programs kept in `cache`."""
    command = [sys.executable, "-m", "benchmarks.start", "--agents", str(agents), "--here", str(file)]
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    asked = ["--asked-at", str(time.time())]
    said = subprocess.run([*command, *asked], check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    return json.loads(said.splitlines()[-1])


if __name__ == "__main__":
    main()
