"""Train many settings at once, as one more axis of the same compiled program.

    python -m experiments.sweep --dataset digits --agents 8 --rounds 40 --grid lr=10,20,30 --grid retention=0.3,0.5 \
        --seeds 3

Leaves a folder with `results.csv` (one row a point of the grid, best first, with the spread over seeds),
`metrics.jsonl` (the rows of a run's, each with the number of its `member`), `config.json`, curves and heat maps. From
Python:

    from dslth_jax.study.sweeping.sweep import Sweep, sweep
    results = sweep(Sweep(dataset="digits", agents=8, rounds=40, grid=("lr=10,20", "retention=0.3,0.5"), seeds=2))
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dslth_jax.study.config import command
from dslth_jax.study.config.command import BAD_INPUT, NOT_FINITE
from dslth_jax.study.config.hints import is_of, kinds, refusal
from dslth_jax.study.config.settings import HINTS, check_each, check_resume
from dslth_jax.study.config.stopping import Stop, StoppedError
from dslth_jax.study.results import folders
from dslth_jax.study.sweeping.grid import Member, axes_of, base_of, groups_of, members_of, points_of
from dslth_jax.study.sweeping.search import check_search, corners_of, search, spaces_of
from dslth_jax.study.sweeping.study import (
    Arms,
    Ready,
    Sweep,
    conclude,
    open_folder,
    outcomes_so_far,
    train_members,
    write_config,
)
from dslth_jax.study.training import processes
from dslth_jax.study.training.prepare import identity

__all__ = ["Sweep", "main", "sweep"]
PROGRAM = "experiments.sweep"


def sweep(settings: Sweep, arms: Arms | None = None) -> list[dict[str, Any]]:
    """Check, train and record every point, or the arms of a comparison; returns the rows of results.csv.

    Raises ValueError on bad input and of a finished sweep that is to be resumed.
    """
    begun = ready(settings, arms)
    if begun.finished:
        folders.close(begun.folder)
        raise ValueError(begun.finished)
    return train(begun)


def ready(settings: Sweep, arms: Arms | None = None) -> Ready:
    """Everything but the training itself.

    Points that are no grid come as `arms`, and stand along one axis, "arm".
    """
    check_own(settings)
    check_each(settings)
    check_resume(settings)
    if not 1 <= settings.seeds <= 2**32 - settings.seed:
        raise ValueError(f"--seeds must be at least 1, and --seed with them below 2**32, got {settings.seeds}")
    check_search(settings)
    if settings.search:
        axes: dict[str, list[Any]] = {name: [] for name in spaces_of(settings)}
        points = corners_of(settings)
    elif arms:
        axes = {"arm": [*arms]}
        points = points_of(axes)
    else:
        axes = axes_of(settings.grid, settings)
        points = points_of(axes)

    def identities(members: Sequence[Member]) -> dict[str, str]:
        said = [identity(member.prepared) for member in members]
        return {name: str([own[name] for own in said]) for name in said[0]}

    def prepared() -> list[Member]:
        return members_of(base_of(settings), points, settings.seeds, arms)

    members = processes.in_every_process(prepared, identities)
    list(groups_of(members, range(len(members))))  # refuses what does not fit
    folder = processes.in_every_process(lambda: open_folder(settings, arms) if processes.is_first() else None)
    path, finished = processes.as_first_says([str(folder.path), folder.finished] if folder else ["", ""])
    # The corners of a search were only tried.
    return Ready(settings, axes, [] if settings.search else members, folder, Path(path), finished, arms)


def check_own(settings: Sweep) -> None:
    """Raise a ValueError if a field that only a sweep has is of another type than it says."""
    for name, hint in command.hints_of(Sweep).items():
        value = getattr(settings, name)
        for one in value if isinstance(value, list | tuple) and name in ("grid", "search") else [value]:
            if name not in HINTS and not is_of(one, hint):
                raise ValueError(refusal(name, kinds(hint), one))


def train(begun: Ready, stop: Stop | None = None) -> list[dict[str, Any]]:
    """Train everything and fill the folder; returns the rows of results.csv."""
    console, stop = Console(quiet=begun.folder is None), stop or Stop()
    try:
        outcomes = outcomes_so_far(begun)
        if begun.settings.search:
            search(begun, outcomes, console, stop)
        else:
            write_config(begun, outcomes)
            train_members(begun, range(len(begun.members)), outcomes, console, stop)
        return conclude(begun, outcomes, console)
    finally:
        folders.close(begun.folder)


# The command ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""

    def begin() -> Ready:
        return ready(command.parse(sys.argv[1:] if arguments is None else arguments, Sweep, PROGRAM))

    return conduct(PROGRAM, begin, lambda begun: train(begun, stop))


def conduct(program: str, begin: Callable[[], Ready], finish: Callable[[Ready], list[dict[str, Any]]]) -> int:
    """Begin and finish a sweep as a command does; returns its exit code, and says what is wrong in one line."""

    def complain(sentence: object, code: int) -> int:
        return command.complain(program, sentence, code)

    try:
        begun = begin()
    except (ValueError, OSError) as error:
        return complain(error, BAD_INPUT)
    except StoppedError as stopped:
        return complain(f"stopped by {stopped.name} before the first round", stopped.code)
    if begun.finished:
        folders.close(begun.folder)
        print(begun.finished)
        return 0
    try:
        results = finish(begun)
    except OSError as error:
        return complain(f"the sweep folder {begun.path} cannot be written to any more: {error}", BAD_INPUT)
    except ValueError as error:
        return complain(error, BAD_INPUT)
    except StoppedError as stopped:
        return complain(f"stopped by {stopped.name}; --resume --out {begun.path} goes on", stopped.code)
    if all(row["accuracy_mean"] is None for row in results):
        return complain(f"no setting stayed finite: see {begun.path / 'config.json'}; take smaller steps", NOT_FINITE)
    return 0
