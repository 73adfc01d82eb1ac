"""The commands that train: a single run, a sweep, a comparison of the paper. Each is a study, on one path.

A command reads flags (without `arguments` those of the process), trains the study that they mean, and returns an exit
code. From Python, `run` and `sweep` take settings, return what the study came to, and raise what is wrong.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from dslth_jax.study.config.command import conduct, leave, parse
from dslth_jax.study.config.resolve import check_each, check_folder
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import compared
from dslth_jax.study.results.plots import Panel
from dslth_jax.study.sweeping import cluster
from dslth_jax.study.sweeping.comparison import (
    Experiment,
    Proxy,
    at_step,
    interval,
    listed,
    shared_and_own,
    steps_of,
    ways,
)
from dslth_jax.study.sweeping.grid import Arms, Points, Sweep, axes_of, points_of
from dslth_jax.study.sweeping.search import check_search, check_storage, corners_of, ends_of, search, spaces_of
from dslth_jax.study.system.stopping import NotFiniteError, Stop
from dslth_jax.study.training import records
from dslth_jax.study.training.loop import Study, ready, train
from dslth_jax.study.training.records import Result

# What a script needs.
__all__ = ["Arms", "Experiment", "Panel", "Proxy", "Settings", "Sweep"]
__all__ += ["at_step", "compare", "interval", "leave", "listed", "run", "single", "steps_of", "sweep", "sweeping"]
__all__ += ["ways"]


def run(settings: Settings) -> Result:
    """Check, load, train, evaluate and record a single run.

    Raises ValueError on bad input or if a finished run is to be resumed, NotFiniteError if training diverges.
    """
    return whole(records.Run(settings))


def sweep(settings: Sweep, arms: Arms | None = None) -> list[dict[str, Any]]:
    """Check, train and record every point, or the arms of a comparison; returns the rows of results.csv.

    Raises ValueError on bad input or if a finished sweep is to be resumed.
    """
    return whole(sweep_of(settings, arms))


def whole(study: Study) -> Any:
    """Make a study ready and train it; returns what it came to."""
    if ready(study).finished:
        raise ValueError(study.finished)
    return train(study)


def sweep_of(settings: Sweep, arms: Arms | None = None, said: Experiment | None = None) -> records.Sweep:
    """The study of a sweep's settings. Where points are the `arms` of a comparison, they form one axis, "arm", and what
    was `said` are the settings of the comparison, which has a table and a figure besides."""
    for check in (check_each, check_folder, check_search, cluster.check):
        check(settings)
    if not 1 <= settings.seeds <= 2**32 - settings.seed:
        raise ValueError(f"--seeds must be at least 1, and --seed with them below 2**32, got {settings.seeds}")
    if arms and (settings.grid or settings.search):
        raise ValueError("the arms of a comparison are its points: leave --grid and --search out")
    spaces = spaces_of(settings)
    axes = {"arm": [*arms]} if arms else ends_of(spaces) or axes_of(settings)
    first = corners_of(axes) if spaces else points_of(axes)
    points = Points(settings, axes, first, arms, spaces, (said or settings).as_given())
    further: dict[str, Any] = {"ask": search, "try_first": partial(check_storage, settings)} if spaces else {}
    if settings.submit:
        further |= {"submit": cluster.submit, "try_first": partial(cluster.check_options, settings)}
    if said is not None:
        further["leave_more"] = partial(compared.leave, panels=said.panels, baseline=said.baseline)
    return records.Sweep(points, **further)


def single(program: str, arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Train a single run."""
    return conduct(program, lambda: ready(records.Run(parse(arguments, Settings, program))), train, stop)


def sweeping(program: str, arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Train a sweep."""
    return conduct(program, lambda: ready(sweep_of(parse(arguments, Sweep, program))), train_some, stop)


def compare(
    program: str, kind: type[Experiment], arguments: Sequence[str] | None = None, stop: Stop | None = None
) -> int:
    """Train the arms of a comparison, and leave a table of them and a figure."""

    def begin() -> Study:
        settings = parse(arguments, kind, program)
        return ready(sweep_of(*shared_and_own(settings, settings.arms()), settings))

    return conduct(program, begin, train_some, stop)


def train_some(study: Study, stop: Stop) -> None:
    """Train a sweep; a NotFiniteError if no point stays finite."""
    results = train(study, stop)
    if all(row["accuracy_mean"] is None for row in results):
        raise NotFiniteError("no setting stayed finite: take smaller steps")
