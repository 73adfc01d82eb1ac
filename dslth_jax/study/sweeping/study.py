"""Many settings, group after group, each group one program, into one folder: what grids and searches share."""

import dataclasses
import json
import re
import shutil
import signal
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.stopping import Stop, StoppedError
from dslth_jax.study.results import folders, pictures, tables
from dslth_jax.study.results.points import DONE, FAILED, best_first, place_of, summary
from dslth_jax.study.sweeping.grid import Member, groups_of
from dslth_jax.study.training import checkpoint, processes
from dslth_jax.study.training.history import History
from dslth_jax.study.training.loop import checkpoint_of, follow, leave
from dslth_jax.study.training.prepare import Plan, plan
from dslth_jax.study.training.programs import compile_programs
from dslth_jax.study.training.progress import ProgressLine


@dataclasses.dataclass(frozen=True)
class Sweep(Settings):
    """Train every point of a grid of settings, with several seeds, as one more axis of one compiled program.

    All other flags are those of experiments.cifar, and hold for every point.
    """

    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An axis of the grid as NAME=VALUE,VALUE,... where NAME is any other flag; say it once for each axis."""
    seeds: int = 1
    """Seeds of each point: --seed and the numbers behind it."""
    run_folders: bool = False
    """Leave the run folder of each point and seed, under runs/."""
    search: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Instead of a grid, what Optuna searches: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,..."""
    trials: int = 64
    """Points that this command tries in a search."""
    ask: int = 16
    """Points asked of Optuna at a time, which run as one program."""
    study: str = "dslth_jax"
    """Name of the study in its storage."""
    storage: str | None = None
    """Optuna's storage as a URL, which several machines may share (each with an --out of its own); None is a file in
    the sweep's folder."""

    def __post_init__(self) -> None:
        """Take a single axis without a list too."""
        super().__post_init__()
        for name in ("grid", "search"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, (value,))


Arms = Mapping[str, Mapping[str, Any]]  # of a comparison, the settings of each by its name


class Outcome(NamedTuple):
    """What a member came to."""

    rows: list[dict[str, Any]]  # of metrics
    failure: str | None


class Ready(NamedTuple):
    """A sweep that can begin."""

    settings: Sweep
    axes: dict[str, list[Any]]
    members: list[Member]  # a search adds to them
    folder: folders.Folder | None  # where this process writes; None in all but the first
    path: Path
    finished: str  # what to say of a sweep that has nothing left to do, else empty
    arms: Arms | None = None


def open_folder(settings: Sweep, arms: Arms | None = None) -> folders.Folder:
    """`--out`, or a fresh dated folder under runs/."""

    def expect(config: dict[str, Any]) -> None:
        if config.get("arms") != written(arms):
            out = settings.out
            raise ValueError(f"{out} compares other arms, or these with other settings: name another --out")

    return folders.open_folder(settings, "sweep", "sweep", expect)


def train_members(
    begun: Ready, numbers: Sequence[int], outcomes: dict[int, Outcome], console: Console, stop: Stop
) -> None:
    """Train the members of these numbers, and add what they come to; first the group that an interrupted run was at."""
    found, first = interrupted(begun, outcomes)
    left = [number for number in numbers if number not in (*outcomes, *first)]
    groups = [*([first] if first else []), *groups_of(begun.members, left)]
    for number, group in enumerate(groups, 1):
        heading = f"group {number} of {len(groups)}, " if len(groups) > 1 else ""
        agents = begun.members[group[0]].prepared.settings.agents
        console.print(f"{heading}{len(group)} settings of {agents} agents in one program")
        train_group(begun, group, found if number == 1 else None, outcomes, console, heading, stop)


def train_group(
    begun: Ready,
    group: Sequence[int],
    found: checkpoint.Found | None,
    outcomes: dict[int, Outcome],
    console: Console,
    heading: str,
    stop: Stop,
) -> None:
    """Train the members of these numbers as one program, and add what they come to."""
    members = [begun.members[number] for number in group]
    planned = plan([member.prepared for member in members])
    with console.status("compiling"):
        programs = compile_programs(planned)
    histories = [History(own.prepared, number, own.name) for number, own in zip(group, members, strict=True)]

    def write() -> None:
        so_far = {number: Outcome(own.rows, own.failure) for number, own in zip(group, histories, strict=True)}
        write_metrics(begun, outcomes | so_far)

    checkpoints, rounds = begun.path / "checkpoint", members[0].prepared.settings.rounds
    with ProgressLine(console, rounds, found.round if found else 0, heading) as progress:
        follow(planned, programs, histories, found, checkpoints, progress, write, stop)
    outcomes |= {number: Outcome(own.rows, own.failure) for number, own in zip(group, histories, strict=True)}
    write()
    write_config(begun, outcomes)
    if begun.settings.run_folders and begun.folder is not None:
        for number, history in zip(group, histories, strict=True):
            leave_run(begun.path / "runs" / folder_name(number, begun.members[number]), history, planned)
    if begun.folder is not None:
        # Only now: who is killed above goes on from them to the run folders that are missing.
        shutil.rmtree(checkpoints, ignore_errors=True)
    stop_if_asked(stop)


def stop_if_asked(stop: Stop) -> None:
    """Everything is saved: hear a signal that came meanwhile, in every process."""
    stop.later = False
    if processes.anywhere(stop.asked is not None):
        raise StoppedError(stop.asked or signal.SIGTERM)


# The folder ----------------------------------------------------------------------------------------------------------


def write_config(begun: Ready, outcomes: Mapping[int, Outcome]) -> None:
    """config.json: the settings that all points have in common, the axes, the members, and which of them are done."""
    if begun.folder is None:
        return
    earlier = folders.read_config(begun.path)
    config = {
        "kind": "sweep",
        "settings": folders.as_json(begun.settings) | {"out": str(begun.path.resolve())},
        "axes": tried(begun) if begun.settings.search else begun.axes,
        **({"arms": written(begun.arms)} if begun.arms else {}),
        "seeds": [begun.settings.seed + offset for offset in range(begun.settings.seeds)],
        "members": [{**member.point, "seed": member.seed} for member in begun.members],
        "done": {number: outcome.failure for number, outcome in sorted(outcomes.items())},
        **(folders.circumstances() | {"id": uuid.uuid4().hex} if earlier is None else {}),
    }
    folders.save_config(begun.path, {**(earlier or {}), **config})


def written(arms: Arms | None) -> Any:
    """As config.json holds them."""
    return json.loads(json.dumps(arms, default=str))


def tried(begun: Ready) -> dict[str, list[Any]]:
    """Of a search, the values that each axis has had, in order."""
    return {axis: sorted({member.point[axis] for member in begun.members}, key=place_of) for axis in begun.axes}


def write_metrics(begun: Ready, outcomes: Mapping[int, Outcome]) -> None:
    """metrics.jsonl: the rows of every member, in order."""
    if begun.folder is not None:
        rows = [{"member": number, **row} for number, outcome in sorted(outcomes.items()) for row in outcome.rows]
        folders.write_metrics(begun.path, rows)


def outcomes_so_far(begun: Ready) -> dict[int, Outcome]:
    """What the members that an interrupted sweep was done with came to, by number; in every process."""
    if not begun.settings.resume:
        return {}
    config = folders.read_config(begun.path) or {}
    outcomes = {int(number): Outcome([], failure) for number, failure in config.get("done", {}).items()}
    members = config.get("members", [])
    path = begun.path / "metrics.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if (number := row.pop("member")) in outcomes:
                outcomes[number].rows.append(row)
    except (ValueError, KeyError, AttributeError):
        raise ValueError(f"{path} must be the rows of a sweep, and is damaged: start anew in another --out") from None
    rounds = {number: members[number].get("rounds", begun.settings.rounds) for number in outcomes}
    return {number: own for number, own in outcomes.items() if is_complete(begun, number, own, rounds[number])}


def is_complete(begun: Ready, number: int, outcome: Outcome, rounds: int) -> bool:
    """Whether a member failed, or all that it leaves is there, its run folder too; where not, it is trained again."""
    if outcome.failure is not None or not outcome.rows or outcome.rows[-1]["round"] != rounds:
        return outcome.failure is not None
    left = (folders.read_config(path) or {} for path in (begun.path / "runs").glob(f"{number:03d}_*"))
    return not begun.settings.run_folders or any("finished" in config for config in left)


def interrupted(begun: Ready, outcomes: Mapping[int, Outcome]) -> tuple[checkpoint.Found | None, list[int]]:
    """The checkpoint of the group that an interrupted sweep was at, and the numbers of its members."""
    found = checkpoint.latest(begun.path / "checkpoint") if begun.settings.resume else None
    if found is None:
        return None, []
    group = found.notes["numbers"]
    if all(number in outcomes for number in group) or max(group) >= len(begun.members):
        return None, []  # it was done, and killed before its checkpoints were gone
    return checkpoint_of(begun.path / "checkpoint", [begun.members[n].prepared for n in group]), group


def leave_run(path: Path, history: History, planned: Plan) -> None:
    """The run folder of one member, as the run of its settings alone leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    folders.write_config(path, history.prepared, planned)
    folders.write_metrics(path, history.rows)
    pictures.partition_picture(path, history.prepared)
    pictures.curves_picture(path, history.rows, history.symptoms.chance)
    if history.failure is None:
        leave(path, history)
        folders.finish(path)


def folder_name(number: int, member: Member) -> str:
    """A name for a member's run folder, of characters that every file system takes."""
    return re.sub(r"[^\w=.,-]", "_", f"{number:03d}_{member.name}")[:120]


def results_of(begun: Ready, outcomes: Mapping[int, Outcome]) -> list[dict[str, Any]]:
    """A row a point, best first by the mean of accuracy over its seeds; points of which a seed failed come last."""
    by_point: dict[str, list[Outcome]] = {}
    points = {member.label: member.point for member in begun.members}
    for number, member in enumerate(begun.members):
        by_point.setdefault(member.label, []).append(outcomes[number])
    return best_first([{**points[label], **summary_of(of_seeds)} for label, of_seeds in by_point.items()])


def summary_of(of_seeds: Sequence[Outcome]) -> dict[str, Any]:
    """What a point came to."""
    return summary([own.rows for own in of_seeds], [FAILED if own.failure else DONE for own in of_seeds])


def conclude(begun: Ready, outcomes: Mapping[int, Outcome], console: Console) -> list[dict[str, Any]]:
    """Write and show what all members came to; returns the rows of results.csv."""
    results = results_of(begun, outcomes)
    if begun.folder is not None:
        folders.write_table(begun.path / "results.csv", results)
        draw(begun, outcomes, results)
        folders.finish(begun.path)
    tables.show_results(console, results, begun.axes, begun.settings.seeds, begun.settings.rounds)
    console.print(f"sweep folder: {begun.path}", highlight=False, markup=False, soft_wrap=True)
    return results


def draw(begun: Ready, outcomes: Mapping[int, Outcome], results: Sequence[dict[str, Any]]) -> None:
    """curves.png; of a grid a heat map of every two axes, of a search accuracy against each."""
    of_points: dict[str, list[list[dict[str, Any]]]] = {}
    for number, member in enumerate(begun.members):
        if outcomes[number].failure is None:
            of_points.setdefault(member.label, []).append(outcomes[number].rows)
    lines = [(label or "the one point", of_points[label]) for label in labels_of(begun, results, of_points)]
    pictures.points_picture(begun.path, lines)
    if begun.settings.search:
        pictures.slices_picture(begun.path, tried(begun), results)
    else:
        pictures.heat_maps(begun.path, begun.axes, results)


def labels_of(begun: Ready, results: Sequence[dict[str, Any]], known: Mapping[str, Any]) -> list[str]:
    """The points' names in the order of results."""
    labels = {str([member.point[axis] for axis in begun.axes]): member.label for member in begun.members}
    ordered = [labels[str([row[axis] for axis in begun.axes])] for row in results]
    return [label for label in ordered if label in known]
