"""The metrics of run folders as event files, which TensorBoard shows: `experiments.board`."""

import contextlib
import dataclasses
import datetime
import importlib.util
import itertools
from functools import partial
from pathlib import Path

from dslth_jax.study.config import command
from dslth_jax.study.results.folders import METRICS
from dslth_jax.study.results.points import Sweep, read_all

# A slash makes groups.
TAGS = {key: key.replace("_", "/") for key in METRICS if key.startswith(("accuracy_", "validation_"))}


@dataclasses.dataclass(frozen=True)
class Board:
    """Metrics of run folders as TensorBoard event files."""

    folders: tuple[Path, ...]
    """Run folders."""
    log_dir: Path
    """Gets a folder for each run."""


def write(settings: Board) -> str:
    """Write an event file for each run; returns where they are, in words."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ValueError("event files need tensorboardX: pip install 'dslth-jax[tensorboard]'")
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    runs, logs = read_all(settings.folders), settings.log_dir
    if isinstance(runs, Sweep):
        raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use `dslth report`")
    if taken := [run.name for run in runs if (logs / run.name).exists()]:
        raise ValueError(f"--log-dir {logs} has {', '.join(taken)} already: name another, or remove it")
    for run in runs:
        began = 0.0  # in seconds since 1970; where that is not known, times are those of training
        with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError, OSError):
            began = datetime.datetime.fromisoformat(run.config["started"]).timestamp()
        said = {key: value for key, value in run.config["settings"].items() if value is not None}
        said = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in said.items()}
        with SummaryWriter(str(logs / run.name)) as writer:
            for summary in hparams(said, {"accuracy/mean": None, "loss": None}):
                writer.file_writer.add_summary(summary)
            for row, key in itertools.product(run.rows, METRICS):
                if row.get(key) is not None:
                    bits, when = key.endswith("_bits"), began + (row["seconds"] or 0)
                    tag = f"megabytes/{key.removesuffix('_bits')}" if bits else TAGS.get(key, key)
                    writer.add_scalar(tag, row[key] / (8e6 if bits else 1), row["round"], walltime=when)
    return f"event files: {logs}"


main = partial(command.act, Board, write)  # of a program's name, and of words
