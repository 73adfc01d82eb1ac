"""The metrics of run folders as event files, which TensorBoard shows: `experiments.board`."""

import dataclasses
import datetime
import importlib.util
import itertools
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
    return command.act("experiments.board", Board, write, arguments, stop)


def write(settings: Board) -> str:
    """Write an event file for each run; returns where they are, in words."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("event files need tensorboardX: pip install -e '.[tensorboard]'")
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    runs, logs = read_all(settings.folders), settings.log_dir
    if isinstance(runs, Sweep):
        raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use experiments.report")
    if taken := [run.name for run in runs if (logs / run.name).exists()]:
        raise ValueError(f"--log-dir {logs} has {', '.join(taken)} already: name another, or remove it")
    for run in runs:
        began, said = start_of(run), {key: value for key, value in run.config["settings"].items() if value is not None}
        said = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in said.items()}
        with SummaryWriter(str(logs / run.name)) as writer:
            for summary in hparams(said, {"accuracy/mean": None, "loss": None}):
                writer.file_writer.add_summary(summary)
            for row, key in itertools.product(run.rows, METRICS):
                if row[key] is not None:
                    when = {"global_step": row["round"], "walltime": began + (row["seconds"] or 0)}
                    writer.add_scalar(*scalar(key, row[key]), **when)
    return f"event files: {logs}"


def scalar(key: str, value: float) -> tuple[str, float]:
    """A metric's name on the board, where a slash makes groups, and its value, of bits in megabytes."""
    if key.endswith("_bits"):
        return f"megabytes/{key.removesuffix('_bits')}", value / 8e6
    return key.replace("accuracy_", "accuracy/"), value


def start_of(run: Run) -> float:
    """When a run started, in seconds since 1970; 0 where that is not known, so that times are those of training."""
    said: Any = run.config.get("started")
    try:
        return datetime.datetime.fromisoformat(said).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return 0.0
