"""The metrics of run folders as event files, which TensorBoard shows.

    python -m experiments.board runs/ONE runs/OTHER --log-dir logs && tensorboard --logdir logs

Needs `pip install -e '.[tensorboard]'`. Every metric is a scalar by round, bits in megabytes; settings are hparams.
"""

import dataclasses
import datetime
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dslth_jax.study.config import command
from dslth_jax.study.config.stopping import Stop
from dslth_jax.study.results.folders import METRICS, Run
from dslth_jax.study.results.points import Sweep, read_all


@dataclasses.dataclass(frozen=True)
class Board:
    """Metrics of run folders as TensorBoard event files."""

    folders: tuple[Path, ...]
    """Run folders."""
    log_dir: Path
    """Gets a folder for each run."""


def main(arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    return command.act("experiments.board", Board, write_all, arguments, stop)


def write_all(settings: Board) -> str:
    """Write an event file for each run; returns where they are, in words."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("event files need tensorboardX: pip install -e '.[tensorboard]'")
    runs, logs = read_all(settings.folders), settings.log_dir
    if isinstance(runs, Sweep):
        raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use experiments.report")
    if taken := [run.name for run in runs if (logs / run.name).exists()]:
        raise ValueError(f"--log-dir {logs} has {', '.join(taken)} already: name another, or remove it")
    for run in runs:
        write(run, logs / run.name)
    return f"event files: {logs}"


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
