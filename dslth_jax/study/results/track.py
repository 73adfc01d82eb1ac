"""Live elsewhere: a tracker is told, row by row, what a study writes into its folder; beside the files, never instead.
If a run becomes longer later, the tracker keeps the row of its old end, which the files no longer have, or have anew.

A tracker is one function and a row of TRACKERS. To call the function starts a tracked run, or goes on with it, and
returns the three calls that are left: for a row of metrics, for a picture, and for the end. A single run is one tracked
run; in a sweep each member is one, in the group of the sweep.
"""

import contextlib
import json
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from dslth_jax.study.config.setting import refusal
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results.folders import Row, from_json, read_text, replace
from dslth_jax.study.results.metrics import METRICS, is_of_channels
from dslth_jax.study.results.points import name_of_member
from dslth_jax.study.system.console import warn
from dslth_jax.study.system.stopping import StoppedError

PROJECT = "dslth_jax"  # unless the tracker's own variable in the environment names another
FILE = "tracked.json"  # of a run folder: the id of its tracked runs, and the round of the last row that each has
WAIT = 30.0  # seconds, at the end of a study, for what a tracker has not taken yet
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"  # how a tracked run ends


class Tracked(NamedTuple):
    """A run as its tracker gets to know it."""

    name: str
    group: str | None  # the sweep that it is a member of
    id: str  # the same whenever the run goes on
    settings: Mapping[str, Any]
    folder: Path  # for a tracker that keeps files beside the run's own


class Calls(NamedTuple):
    """What a tracker does with a run that it has started."""

    row: Callable[[int, float, Mapping[str, float]], None]  # a round, when it was (seconds since 1970), its numbers
    picture: Callable[[int, Path], None]  # the round after which it was drawn, and its file
    end: Callable[[str], None]  # FINISHED, FAILED or STOPPED


class Tracker(NamedTuple):
    """A row of TRACKERS."""

    package: str  # by the name under which it is imported; the extra that brings it has the tracker's name
    start: Callable[[Tracked], Calls]


def numbers_of(row: Row) -> dict[str, float]:
    """The numbers of a row of metrics, by names in which a slash makes groups; bits as megabytes."""

    def shown(key: str) -> tuple[str, float]:
        if key.endswith("_bits"):
            return f"megabytes/{key.removesuffix('_bits')}", float(row[key]) / 8e6
        return key.replace("_", "/") if key.startswith(("accuracy_", "validation_")) else key, float(row[key])

    return dict(shown(key) for key in (*METRICS, *filter(is_of_channels, row)) if row.get(key) is not None)


# One function a tracker ----------------------------------------------------------------------------------------------


def to_wandb(run: Tracked) -> Calls:
    """Weights & Biases; WANDB_MODE=offline keeps everything on this machine."""
    import wandb

    began = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        group=run.group,
        id=run.id,
        resume="allow",
        reinit="create_new",  # several members of a sweep are open at a time
        config=dict(run.settings),
        settings=wandb.Settings(console="off"),  # what the run prints stays its own
    )
    return Calls(
        lambda round, _, numbers: began.log({**numbers}, step=round),
        lambda round, path: began.log({path.stem: wandb.Image(str(path))}, step=round),
        lambda how: began.finish(exit_code=int(how == FAILED)),
    )


def to_mlflow(run: Tracked) -> Calls:
    """MLflow, at MLFLOW_TRACKING_URI; it finds a run that goes on by a tag."""
    import mlflow

    client, name = mlflow.MlflowClient(), os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(name)
    experiment = known.experiment_id if known else client.create_experiment(name)
    if before := client.search_runs([experiment], f"tags.dslth_id = '{run.id}'"):
        own = before[0].info.run_id
        client.update_run(own, status="RUNNING")
    else:
        tags = {"dslth_id": run.id, **({"group": run.group} if run.group else {})}
        own = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
        client.log_batch(own, params=[mlflow.entities.Param(key, str(value)) for key, value in run.settings.items()])

    def row(round: int, when: float, numbers: Mapping[str, float]) -> None:
        metric = mlflow.entities.Metric
        client.log_batch(own, [metric(key, value, int(1000 * when), round) for key, value in numbers.items()])

    ends = {FINISHED: "FINISHED", FAILED: "FAILED", STOPPED: "KILLED"}
    return Calls(
        row, lambda _, path: client.log_artifact(own, str(path)), lambda how: client.set_terminated(own, ends[how])
    )


def to_trackio(run: Tracked) -> Calls:
    """Trackio, on this machine or where its own variables say; it finds a run that goes on by its name."""
    import trackio

    began = trackio.init(
        project=os.environ.get("TRACKIO_PROJECT", PROJECT),
        name=f"{run.name} {run.id}",
        group=run.group,
        config=dict(run.settings),
        resume="allow",
        embed=False,
        auto_log_cpu=False,
        auto_log_gpu=False,
    )
    # The next init would end the run that it takes for the current one.
    trackio.context_vars.current_run.set(None)
    return Calls(
        lambda round, _, numbers: began.log({**numbers}, step=round),
        lambda round, path: began.log({path.stem: trackio.Image(str(path))}, step=round),
        lambda _: began.finish(),
    )


def to_tensorboard(run: Tracked) -> Calls:
    """Event files in the run's folder, which TensorBoard shows; those of a run that goes on add up."""
    import numpy as np
    from PIL import Image
    from tensorboardX import SummaryWriter
    from tensorboardX.summary import hparams

    writer = SummaryWriter(str(run.folder))
    for summary in hparams(dict(run.settings), {"accuracy/mean": None, "loss": None}):
        writer.file_writer.add_summary(summary)

    def row(round: int, when: float, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, round, walltime=when)
        writer.flush()

    def picture(round: int, path: Path) -> None:
        writer.add_image(path.stem, np.asarray(Image.open(path).convert("RGB")), round, dataformats="HWC")

    return Calls(row, picture, lambda _: writer.close())


TRACKERS = {
    "wandb": Tracker("wandb", to_wandb),
    "mlflow": Tracker("mlflow", to_mlflow),
    "trackio": Tracker("trackio", to_trackio),
    "tensorboard": Tracker("tensorboardX", to_tensorboard),
}


def check(name: Any) -> None:
    """Raise a ValueError if there is no such tracker, or its package is not installed."""
    if name is None:
        return
    if name not in [*TRACKERS]:
        raise ValueError(refusal("track", f"one of {', '.join(TRACKERS)}", name, TRACKERS))
    package = TRACKERS[name].package
    found = find_spec(package)
    if found is None or found.origin is None:  # some trackers leave a folder of their name, which is no package
        raise ValueError(f"{name} needs {package}, which is not installed: pip install 'dslth-jax[{name}]'")


# A study that is tracked ---------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """A run of a study, with its rows so far."""

    number: int
    name: str  # empty for a single run
    settings: Settings
    rows: Sequence[Row]


class Tracking:
    """Tells a tracker of the members of a study, in a thread of its own: whatever the tracker does, the study goes on.

    What it could not tell it tries again with the next row. `pictures` are those of a member, by its number.
    """

    def __init__(self, tracker: str, folder: Path, name: str, pictures: Callable[[int], Sequence[Path]]) -> None:
        self.tracker, self.folder, self.name, self.pictures = tracker, folder, name or folder.resolve().name, pictures
        self.warned = False
        self.answers = 0  # of the tracker, so far
        self.open: dict[int, Calls] = {}  # of members that the tracker has started
        self.not_ended: set[int] = set()  # members of which it has been told
        self.kept: dict[str, Any] | None = None  # the content of FILE
        self.jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self.work, daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """End what is still open, as the study ends, and wait a while for the tracker."""
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        how = FINISHED if error is None else STOPPED if stopped else FAILED
        for number in sorted(self.not_ended):
            self.end(number, how)
        self.jobs.put(None)
        answers = -1
        while self.thread.is_alive() and answers != self.answers:  # it may have much to take, one after the other
            answers = self.answers
            self.thread.join(WAIT)
        if self.thread.is_alive():
            self.complain(f"gave no answer for {WAIT:.0f} s")

    def tell(self, members: Sequence[Member]) -> None:
        """Let the tracker have the rows that are new to it."""
        self.not_ended.update(member.number for member in members)
        self.jobs.put(partial(self.rows, members))

    def end(self, number: int, how: str) -> None:
        """Let it have the pictures of a member, and that this has come to its end."""
        self.not_ended.discard(number)
        self.jobs.put(partial(self.close, number, how, self.pictures(number)))

    # What the thread does.

    def work(self) -> None:
        """Do one thing after the other."""
        for job in iter(self.jobs.get, None):
            try:
                job()
            except (Exception, SystemExit) as error:  # of whatever kind the tracker raises
                self.complain(f"failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})")

    def rows(self, members: Sequence[Member]) -> None:
        """Tell rows that are behind the last one told, and keep which one is the last now."""
        if self.kept is None:
            self.kept = read(self.folder / FILE)
        own = self.kept.setdefault(self.tracker, {"id": uuid.uuid4().hex[:12], "rounds": {}})
        self.keep()
        rounds = own["rounds"]
        for member in members:
            number = str(member.number)
            try:
                for row in (row for row in member.rows if row["round"] > rounds.get(number, -1)):
                    self.started(member, own["id"]).row(row["round"], time.time(), numbers_of(row))
                    rounds[number] = row["round"]
                    self.answers += 1
            finally:
                self.keep()

    def keep(self) -> None:
        """Write down what has been told."""
        replace(self.folder / FILE, json.dumps(self.kept) + "\n")

    def started(self, member: Member, id: str) -> Calls:
        """The tracked run of a member."""
        if member.number not in self.open:
            name, beside = name_of_member(member.number, member.name), self.folder / "tensorboard"
            settings = plain(member.settings.as_json())
            about = Tracked(self.name, None, id, settings, beside)
            if member.name:
                about = Tracked(f"{self.name}/{name}", self.name, f"{id}-{member.number}", settings, beside / name)
            self.open[member.number] = TRACKERS[self.tracker].start(about)
            self.answers += 1
        return self.open[member.number]

    def close(self, number: int, how: str, pictures: Sequence[Path]) -> None:
        """End the tracked run of a member, if the tracker has started it."""
        if calls := self.open.pop(number, None):
            try:
                for path in pictures:
                    calls.picture((self.kept or {})[self.tracker]["rounds"][str(number)], path)
                    self.answers += 1
            finally:
                calls.end(how)
                self.answers += 1

    def complain(self, what: str) -> None:
        """Warn that something went wrong; once, for it may be so with every row."""
        if not self.warned:
            self.warned = True
            warn(f"--track {self.tracker} {what}: the run goes on, and its folder has every row")


def tracking(
    tracker: str | None, folder: Path, name: str, pictures: Callable[[int], Sequence[Path]]
) -> contextlib.AbstractContextManager[Tracking | None]:
    """Who tells a tracker of the study in a folder, which without a `name` has the folder's, in a `with` statement;
    None where there is no tracker."""
    return Tracking(tracker, folder, name, pictures) if tracker else contextlib.nullcontext()


def plain(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Settings as every tracker takes them: without those that are open, and lists in words."""
    said = {key: value for key, value in settings.items() if value is not None}
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in said.items()}


def read(path: Path) -> dict[str, Any]:
    """What an earlier command has told; nothing where there was none."""
    try:
        kept = from_json(read_text(path), str(path)) if path.is_file() else {}
    except ValueError:
        kept = None
    if not isinstance(kept, dict):
        raise ValueError(f"{path} must say what has been tracked, and does not: remove it")
    return kept
