"""The metrics of run folders as event files, which TensorBoard shows.

    python -m experiments.board runs/ONE runs/OTHER --log-dir logs && tensorboard --logdir logs

Needs `pip install -e '.[tensorboard]'`. Every metric is a scalar by round, bits in megabytes; settings are hparams.
"""

import dataclasses
import datetime
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dslth_jax.study.config.command import conduct, parse
from dslth_jax.study.config.console import console
from dslth_jax.study.config.stopping import Stop
from dslth_jax.study.results.folders import METRICS, Run
from dslth_jax.study.results.points import Sweep, read_all

PROGRAM = "experiments.board"


@dataclasses.dataclass(frozen=True)
class Board:
    """Metrics of run folders as TensorBoard event files."""

    folders: tuple[Path, ...]
    """Run folders."""
    log_dir: Path
    """Gets a folder for each run."""


class Asked(NamedTuple):
    """What is asked for and has been read."""

    folder: Path  # of all event files
    runs: list[Run]
    finished: str = ""
    path: None = None  # nothing is kept that could go on


def main(arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""

    def begin() -> Asked:
        settings = parse(sys.argv[1:] if arguments is None else arguments, Board, PROGRAM)
        if importlib.util.find_spec("tensorboardX") is None:
            raise ValueError("event files need tensorboardX: pip install -e '.[tensorboard]'")
        runs = read_all(settings.folders)
        if isinstance(runs, Sweep):
            raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use experiments.report")
        if taken := [run.name for run in runs if (settings.log_dir / run.name).exists()]:
            raise ValueError(f"--log-dir {settings.log_dir} has {', '.join(taken)} already: name another, or remove it")
        return Asked(settings.log_dir, runs)

    def finish(asked: Asked, stop: Stop) -> None:
        for run in asked.runs:
            write(run, asked.folder / run.name)
        console(stop).print(f"event files: {asked.folder}", highlight=False, markup=False, soft_wrap=True)

    return conduct(PROGRAM, begin, finish, stop)


def write(run: Run, folder: Path) -> None:
    """One run's event file."""
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    began = start_of(run)
    with SummaryWriter(str(folder)) as writer:
        settings = {name: value if isinstance(value, bool | int | float) else str(value)
                    for name, value in run.config["settings"].items() if value is not None}  # fmt: skip
        for summary in hparams(settings, {"accuracy/mean": None, "loss": None}):
            writer.file_writer.add_summary(summary)
        for row in run.rows:
            for key in (key for key in METRICS if row[key] is not None):
                value = row[key] / 8e6 if key.endswith("_bits") else row[key]
                writer.add_scalar(tag(key), value, row["round"], walltime=began + (row["seconds"] or 0))


def tag(key: str) -> str:
    """A metric's name on the board, where a slash makes groups."""
    if key.endswith("_bits"):
        return f"megabytes/{key.removesuffix('_bits')}"
    return key.replace("accuracy_", "accuracy/")


def start_of(run: Run) -> float:
    """When a run started, in seconds since 1970; 0 where that is not known, so that times are those of training."""
    said: Any = run.config.get("started")
    try:
        return datetime.datetime.fromisoformat(said).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0
