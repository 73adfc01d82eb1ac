"""What a study leaves in its folder, and when: a run folder of a single run, a sweep's folder of many members."""

import functools
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dslth_jax.label_shares import label_skew
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import folders, models, pictures, survival, tables
from dslth_jax.study.results.points import (
    DONE,
    FAILED,
    best_first,
    expect_sweep,
    name_of_member,
    place_of,
    read_members,
    summary,
)
from dslth_jax.study.sweeping.grid import Points
from dslth_jax.study.system.console import counted
from dslth_jax.study.system.stopping import NotFiniteError
from dslth_jax.study.training import memory
from dslth_jax.study.training.checkpoint import Found
from dslth_jax.study.training.foreseen import said_of_time
from dslth_jax.study.training.history import History, Outcome
from dslth_jax.study.training.loop import Study
from dslth_jax.study.training.plan import Plan, Prepared, in_words
from dslth_jax.study.training.prepare import members_of, prepare
from dslth_jax.study.training.sizes import models_of


class Result(NamedTuple):
    """What a single run came to."""

    folder: Path | None  # None in all processes but the first
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


class Run(Study):
    """A single run, in a run folder. One that does not stay finite ends in a NotFiniteError."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def prepare(self) -> list[Prepared]:
        """Check the settings, also beside those of a run that is to go on, and load what they name."""
        folders.expect_as_said(self.settings)
        self.members = [prepare(self.settings)]
        return self.members

    def claim(self, members: Sequence[Prepared]) -> folders.Folder:
        """`--out`, or a fresh dated folder under runs/."""
        settings = members[0].settings
        return folders.open_folder(settings, settings.algorithm)

    def begins(self, planned: Plan, found: Found | None, heading: str) -> None:
        """Say what the run is."""
        self.keep(models.remove)  # those of a shorter run
        self.keep(write_config, planned, planned.members[0], found)
        tables.show_population(self.said, planned, memory.said(planned.footprint))

    def compiles(self, histories: Sequence[History]) -> None:
        """Draw what is known before training."""
        self.keep(pictures.partition_picture, histories[0].prepared)

    def has_rows(self) -> None:
        """Write metrics.jsonl."""
        self.keep(folders.write_metrics, self.outcomes[0].rows)

    def pauses(self, histories: Sequence[History]) -> None:
        """Draw the rows that there are."""
        self.keep(pictures.curves_picture, histories[0].rows, histories[0].chance)
        self.keep(survival.survival_picture, histories[0].rows)

    def pictures(self, number: int) -> list[Path]:
        """All in the folder."""
        return sorted(self.path.glob("*.png"))

    def ends(self, planned: Plan, histories: Sequence[History], seconds: float) -> None:
        """Write what is known at the end, and say it."""
        (history,) = histories
        if history.failure:
            raise NotFiniteError(history.failure)
        rows, agents = history.rows, history.agent_rows()
        self.keep(leave, history, agents)
        self.result = Result(self.path if self.folder else None, rows, agents)
        tables.show_outcome(self.said, history, agents, seconds)

    def concludes(self) -> Result:
        """The run has nothing left to do."""
        self.keep(folders.finish)
        self.said.print(f"run folder: {self.path}", highlight=False, markup=False, soft_wrap=True)
        return self.result


def write_config(folder: Path, planned: Plan, prepared: Prepared, found: Found | None = None) -> None:
    """config.json of one run of a plan."""
    graph, since = prepared.graph_report._asdict(), found.round if found else None
    chosen = {"agent_chunk": planned.chunk, "devices": planned.mesh.size}
    images: dict[str, Any] = {"shape": prepared.train.images.shape[1:], "source": prepared.source}
    images |= {"classes": prepared.classes, "labels": prepared.labels, "owners": prepared.owners}
    skew = label_skew(prepared.held(prepared.train))
    about = {"graph": graph, "images": images, "label_skew": skew, "given": prepared.said}
    about |= {"simulated_time": said_of_time(prepared)} if prepared.budget else {}
    folders.write_config(folder, prepared.settings, about, since, **chosen)


def leave(folder: Path, history: History, agents: Sequence[dict[str, Any]]) -> None:
    """Write what is known at the end of a run; `agents` are the rows of agents.csv."""
    folders.write_table(folder / "agents.csv", agents)
    folders.write_table(folder / "classes.csv", history.class_rows())
    if history.evaluation.masks is not None:
        models.write_masks(folder, history.evaluation.masks, history.maskable)
    if history.wanted is not None:
        models.write_kept(folder, history.wanted)
    if history.variables is not None:
        models.write_variables(folder, history.variables)
    when = " in the last round" if history.redrawn else ""
    pictures.topology_picture(folder, history.prepared.last_adjacency, np.asarray(history.evaluation.accuracy), when)


def leave_run(path: Path, history: History, planned: Plan) -> None:
    """The run folder of one member, as the run of its settings alone leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    write_config(path, planned, history.prepared)
    folders.write_metrics(path, history.rows)
    pictures.partition_picture(path, history.prepared)
    pictures.curves_picture(path, history.rows, history.chance)
    survival.survival_picture(path, history.rows)
    if history.failure is None:
        leave(path, history, history.agent_rows())
        folders.finish(path)


class Sweep(Study):
    """Points of a grid, of a search or of a comparison, each with several seeds, in a sweep's folder."""

    def __init__(
        self,
        points: Points,
        ask: Callable[..., Iterator[None]] | None = None,
        submit: Callable[["Sweep"], None] | None = None,
        try_first: Callable[[], None] = lambda: None,
        leave_more: Callable[[Path], None] = lambda path: None,
    ) -> None:
        self.settings, self.points, self.members = points.settings, points, points.members
        self.seeds, self.run_folders = points.settings.seeds, points.settings.run_folders
        self.leaves_models, self.can_become_longer = self.run_folders, False
        self.ask = ask  # which adds members, where it is a search
        self.submit, self.elsewhere = submit, submit is not None  # which has other processes train them
        self.try_first = try_first  # before there is a folder: whether what all else needs can be had
        self.leave_more = leave_more  # in the folder, beside the table and pictures of any sweep
        self.arms = json.loads(json.dumps(points.arms, default=str))  # as config.json holds them

    @property
    def runs(self) -> Path:
        """Where members' run folders are."""
        return self.path / "runs"

    def prepare(self) -> list[Prepared]:
        """Check and load every point with every seed; of a search only its corners, to try them."""
        members = members_of(self.settings, self.points.first, self.seeds, self.points.arms)
        self.members.extend([] if self.ask else members)
        self.try_first()
        return members

    def claim(self, members: Sequence[Prepared]) -> folders.Folder:
        """`--out`, or a fresh dated folder under runs/."""

        def expect(config: dict[str, Any]) -> None:
            if config.get("arms") != self.arms:
                out = self.settings.out
                raise ValueError(f"{out} compares other arms, or these with other settings: name another --out")

        return folders.open_folder(self.settings, "sweep", "sweep", expect)

    def known(self) -> dict[int, Outcome]:
        """The outcomes of members that an interrupted sweep had finished, by number; in every process. A member whose
        last row or run folder is missing is trained again."""
        config, path, known = folders.read_config(self.path), self.path / "metrics.jsonl", dict[int, Outcome]()
        if config is None:
            return known
        _, members, done = expect_sweep(self.path, config)
        try:
            rows = read_members(path, len(members), [])
        except ValueError:
            raise ValueError(
                f"{path} must be the rows of a sweep, and is damaged: start anew in another --out"
            ) from None
        for number, failure in ((int(word), failure) for word, failure in done.items()):
            rounds = (config["settings"] | members[number])["rounds"]
            left = (folders.read_config(path) or {} for path in self.runs.glob(f"{number:03d}_*"))
            recorded = not self.run_folders or any("finished" in own for own in left)
            if failure is not None or (rows[number] and rows[number][-1]["round"] == rounds and recorded):
                known[number] = Outcome(rows[number], failure)
        return known

    def batches(self) -> Iterator[None]:
        """All points of a grid at once, or those that a search asks for."""
        if self.ask:
            yield from self.ask(self.points, self.path, self.outcomes, self.write_config, self.stop)
        else:
            self.write_config()
            if self.submit:
                self.submit(self)
            yield

    def write_config(self) -> None:
        """config.json: what all points have in common, the axes, the members, and which of them are done."""
        if self.folder is None:
            return
        earlier, seed = folders.read_config(self.path), self.settings.seed
        config = {
            "kind": "sweep",
            "settings": self.settings.as_json() | {"out": str(self.path.resolve())},
            "given": self.points.said if earlier is None else earlier.get("given"),
            "axes": self.tried() if self.ask else self.points.axes,
            **({"arms": self.arms} if self.arms else {}),
            **({"models": self.models} if self.models else {}),
            "seeds": [seed + offset for offset in range(self.seeds)],
            "members": [{**member.point, "seed": member.settings.seed} for member in self.members],
            "done": {number: outcome.failure for number, outcome in sorted(self.outcomes.items())},
            **(folders.circumstances() | {"id": uuid.uuid4().hex} if earlier is None else {}),
        }
        folders.save_config(self.path, {**(earlier or {}), **config})

    @functools.cached_property
    def models(self) -> dict[str, Any]:
        """How large the models of each arm of a comparison are, where networks differ."""
        firsts = self.members[:: self.seeds] if self.arms else []
        if len({id(member.network) for member in firsts}) < 2:
            return {}
        return {member.point["arm"]: own for member, own in zip(firsts, models_of(firsts), strict=True)}

    def tried(self) -> dict[str, list[Any]]:
        """Of a search, the values that each axis has had, in order."""
        return {axis: sorted({own.point[axis] for own in self.members}, key=place_of) for axis in self.points.axes}

    def begins(self, planned: Plan, found: Found | None, heading: str) -> None:
        """Say how large the group is."""
        members = planned.members
        many = f"{counted(len(members), 'setting')} of {counted(members[0].agents, 'agent')}"
        self.said.print(f"{heading}{many} in one program")

    def has_rows(self) -> None:
        """Write metrics.jsonl: the rows of every member, in order."""
        rows = [{"member": number, **row} for number, own in sorted(self.outcomes.items()) for row in own.rows]
        self.keep(folders.write_metrics, rows)

    def pictures(self, number: int) -> list[Path]:
        """Those of the member's run folder, if it has one."""
        return sorted(self.runs.glob(f"{number:03d}_*/*.png"))

    def ends(self, planned: Plan, histories: Sequence[History], seconds: float) -> None:
        """Write down that the group is done, and the run folders of its members."""
        self.write_config()
        if self.folder is None:
            return
        for history in histories if self.run_folders else ():
            leave_run(self.runs / name_of_member(history.number, history.prepared.name), history, planned)
        # Remove them only now: a sweep that was killed above goes on from them and writes the missing run folders.
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def concludes(self) -> list[dict[str, Any]]:
        """Write and show what all members came to; returns the rows of results.csv, best first."""
        axes, seeds, rows, finite = self.points.axes, self.seeds, [], {}
        validated = any(member.validation for member in self.members)
        for first in range(0, len(self.members), seeds):  # the seeds of a point follow one another
            point, came = self.members[first].point, [self.outcomes[first + offset] for offset in range(seeds)]
            statuses = [FAILED if own.failure else DONE for own in came]
            rows.append({**point, **summary([own.rows for own in came], statuses, validated)})
            finite[in_words(point)] = [own.rows for own in came if own.failure is None]
        results = best_first(rows)
        if self.folder is not None:
            folders.write_table(self.path / "results.csv", results)
            labels = [in_words({axis: row[axis] for axis in axes}) for row in results]
            drawn = [(label or "the one point", finite[label]) for label in labels if finite[label]]
            pictures.points_picture(self.path, drawn)
            if self.ask:
                pictures.slices_picture(self.path, self.tried(), results)
            else:
                pictures.heat_maps(self.path, axes, results)
            self.leave_more(self.path)
            folders.finish(self.path)
        tables.show_results(self.said, results, axes, seeds, self.members[0].course.rounds)
        self.said.print(f"sweep folder: {self.path}", highlight=False, markup=False, soft_wrap=True)
        return results
