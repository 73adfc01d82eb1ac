"""The metrics of run folders as event files, which TensorBoard shows.

    python -m experiments.board runs/ONE runs/OTHER --log-dir logs && tensorboard --logdir logs

Needs `pip install -e '.[tensorboard]'`. Every metric is a scalar by round, bits in megabytes; settings are hparams.
"""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dslth_jax.study.config.command import BAD_INPUT, complain
from dslth_jax.study.results.folders import METRICS, Run
from dslth_jax.study.results.points import Sweep, read_all
from dslth_jax.study.results.report import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    parser = Parser("python -m experiments.board", description="Metrics of run folders as TensorBoard event files.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="run folders")
    parser.add_argument("--log-dir", type=Path, required=True, metavar="LOGS", help="gets a folder for each run")
    try:
        given = parser.parse_args(arguments)
        runs = read_all(given.folders)
        if isinstance(runs, Sweep):
            raise ValueError(f"{runs.folder} is the folder of a sweep: name run folders, or use experiments.report")
        taken = [run.name for run in runs if (given.log_dir / run.name).exists()]
        if taken:
            raise ValueError(f"--log-dir {given.log_dir} has {', '.join(taken)} already: name another, or remove it")
        for run in runs:
            write(run, given.log_dir / run.name)
    except ModuleNotFoundError as error:
        return complain(
            "experiments.board", f"event files need {error.name}: pip install -e '.[tensorboard]'", BAD_INPUT
        )
    except (ValueError, OSError) as error:
        return complain("experiments.board", error, BAD_INPUT)
    print(f"event files: {given.log_dir}")
    return 0


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
