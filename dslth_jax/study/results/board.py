"""Event files, which TensorBoard shows, of runs that were not tracked while they ran: `experiments.board`."""

import contextlib
import dataclasses
import datetime
from functools import partial
from pathlib import Path

from dslth_jax.study.config import command
from dslth_jax.study.results import track
from dslth_jax.study.results.points import Sweep, read_all


@dataclasses.dataclass(frozen=True)
class Board:
    """Metrics of run folders as TensorBoard event files."""

    folders: tuple[Path, ...]
    """Run folders."""
    log_dir: Path
    """Gets a folder for each run."""


def write(settings: Board) -> str:
    """Write an event file for each run; returns where they are, in words."""
    track.check("tensorboard")
    runs, logs = read_all(settings.folders), settings.log_dir
    if isinstance(runs, Sweep):
        raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use `dslth report`")
    if taken := [run.name for run in runs if (logs / run.name).exists()]:
        raise ValueError(f"--log-dir {logs} has {', '.join(taken)} already: name another, or remove it")
    for run in runs:
        began = 0.0  # in seconds since 1970; where that is not known, times are those of training
        with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError, OSError):
            began = datetime.datetime.fromisoformat(run.config["started"]).timestamp()
        about = track.Tracked(run.name, None, run.name, track.plain(run.config["settings"]), logs / run.name)
        calls = track.to_tensorboard(about)
        for row in run.rows:
            calls.row(row["round"], began + (row["seconds"] or 0), track.numbers_of(row))
        calls.end(track.FINISHED)
    return f"event files: {logs}"


main = partial(command.act, Board, write)  # of a program's name, and of words
