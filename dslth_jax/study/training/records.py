"""What a study leaves in its folder, and when: a run folder of a single run, a sweep's folder of many members."""

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from dslth_jax.study.config.stopping import NotFiniteError, Stop
from dslth_jax.study.results import folders, pictures, tables
from dslth_jax.study.results.points import DONE, FAILED, best_first, place_of, summary
from dslth_jax.study.sweeping.grid import Arms, Points
from dslth_jax.study.training import memory
from dslth_jax.study.training.checkpoint import Found
from dslth_jax.study.training.history import History, Outcome
from dslth_jax.study.training.loop import Outcomes, Study
from dslth_jax.study.training.plan import Member, Plan, Prepared
from dslth_jax.study.training.prepare import graph_of_round, members_of, prepare


class Result(NamedTuple):
    """What a single run came to."""

    folder: Path | None  # None in all processes but the first
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


class Run(Study):
    """A single run, in a run folder. One that does not stay finite ends in a NotFiniteError."""

    def prepare(self) -> list[Member]:
        """Check the settings, and load what they name."""
        self.members = [Member({}, None, prepare(self.settings))]
        return self.members

    def claim(self, members: Sequence[Member]) -> folders.Folder:
        """`--out`, or a fresh dated folder under runs/."""
        settings = members[0].prepared.settings
        return folders.open_folder(settings, settings.algorithm)

    def begins(self, planned: Plan, found: Found | None, heading: str, said: Console) -> None:
        """Say what the run is."""
        self.keep(write_config, planned, planned.members[0], found)
        tables.show_population(said, planned, memory.said(planned.footprint))

    def compiles(self, histories: Sequence[History]) -> None:
        """Draw what is known before training."""
        self.keep(pictures.partition_picture, histories[0].prepared)

    def has_rows(self, outcomes: Outcomes) -> None:
        """Write metrics.jsonl."""
        self.keep(folders.write_metrics, outcomes[0].rows)

    def pauses(self, histories: Sequence[History]) -> None:
        """Draw the rows that there are."""
        self.keep(pictures.curves_picture, histories[0].rows, histories[0].chance)

    def ends(
        self, planned: Plan, histories: Sequence[History], outcomes: Outcomes, seconds: float, said: Console
    ) -> None:
        """Write what is known at the end, and say it."""
        (history,) = histories
        if history.failure:
            raise NotFiniteError(history.failure)
        rows, rounds = history.rows, planned.settings.rounds
        self.result = Result(self.path if self.folder else None, rows, leave(self.path, history, bool(self.folder)))
        tables.show_outcome(said, rows[-1], history.chance, rounds, seconds, history.evaluation_seconds)

    def concludes(self, outcomes: Outcomes, said: Console) -> Result:
        """The run has nothing left to do."""
        self.keep(folders.finish)
        said.print(f"run folder: {self.path}", highlight=False, markup=False, soft_wrap=True)
        return self.result


def write_config(folder: Path, planned: Plan, prepared: Prepared, found: Found | None = None) -> None:
    """config.json of one run of a plan."""
    graph, since = prepared.graph_report._asdict(), found.round if found else None
    chosen = {"agent_chunk": planned.chunk, "devices": planned.mesh.size}
    folders.write_config(folder, prepared.settings, graph, since, **chosen)


def leave(folder: Path, history: History, writing: bool = True) -> list[dict[str, Any]]:
    """Write what is known at the end of a run; returns the rows of agents.csv."""
    prepared, evaluation = history.prepared, history.evaluation
    assert evaluation is not None
    last = graph_of_round(prepared.settings, prepared.network, prepared.topology, prepared.settings.rounds - 1)
    agents = history.agent_rows(last)
    if writing:
        folders.write_table(folder / "agents.csv", agents)
        if evaluation.masks is not None:
            folders.write_masks(folder, evaluation.masks, history.maskable)
        pictures.topology_picture(folder, last, np.asarray(evaluation.accuracy))
    return agents


class Sweep(Study):
    """Points of a grid, of a search or of a comparison, each with several seeds, in a sweep's folder."""

    def __init__(self, points: Points, ask: Callable[..., Iterator[None]] | None = None) -> None:
        super().__init__(points.settings)
        self.points, self.members, self.ask = points, points.members, ask  # which adds members, where it is a search

    def prepare(self) -> list[Member]:
        """Check and load every point with every seed; of a search only its corners, to try them."""
        members = members_of(self.settings, self.points.first, self.points.seeds, self.points.arms)
        self.members.extend([] if self.ask else members)
        return members

    def claim(self, members: Sequence[Member]) -> folders.Folder:
        """`--out`, or a fresh dated folder under runs/."""

        def expect(config: dict[str, Any]) -> None:
            if config.get("arms") != written(self.points.arms):
                out = self.settings.out
                raise ValueError(f"{out} compares other arms, or these with other settings: name another --out")

        return folders.open_folder(self.settings, "sweep", "sweep", expect)

    def known(self) -> Outcomes:
        """The outcomes of members that an interrupted sweep had finished, by number; in every process."""
        config = (self.resume and folders.read_config(self.path)) or {}
        outcomes = {int(number): Outcome([], failure) for number, failure in config.get("done", {}).items()}
        path, members = self.path / "metrics.jsonl", config.get("members", [])
        try:
            for line in path.read_text().splitlines() if config else ():
                row = json.loads(line)
                if (number := row.pop("member")) in outcomes:
                    outcomes[number].rows.append(row)
        except (ValueError, KeyError, AttributeError):
            raise ValueError(
                f"{path} must be the rows of a sweep, and is damaged: start anew in another --out"
            ) from None
        rounds = {number: members[number].get("rounds", self.settings.rounds) for number in outcomes}
        return {number: own for number, own in outcomes.items() if self.is_complete(number, own, rounds[number])}

    def is_complete(self, number: int, outcome: Outcome, rounds: int) -> bool:
        """Whether a member failed or everything that it leaves is there. If not, it is trained again."""
        if outcome.failure is not None or not outcome.rows or outcome.rows[-1]["round"] != rounds:
            return outcome.failure is not None
        left = (folders.read_config(path) or {} for path in (self.path / "runs").glob(f"{number:03d}_*"))
        return not self.points.run_folders or any("finished" in config for config in left)

    def batches(self, outcomes: Outcomes, stop: Stop) -> Iterator[None]:
        """All points of a grid at once, or those that a search asks for."""
        write = lambda: self.write_config(outcomes)  # noqa: E731
        if self.ask:
            yield from self.ask(self.points, self.path, outcomes, write, stop)
        else:
            write()
            yield

    def write_config(self, outcomes: Outcomes) -> None:
        """config.json: what all points have in common, the axes, the members, and which of them are done."""
        if self.folder is None:
            return
        earlier, seed = folders.read_config(self.path), self.settings.seed
        config = {
            "kind": "sweep",
            "settings": folders.as_json(self.settings) | {"out": str(self.path.resolve())},
            "axes": self.tried() if self.ask else self.points.axes,
            **({"arms": written(self.points.arms)} if self.points.arms else {}),
            "seeds": [seed + offset for offset in range(self.points.seeds)],
            "members": [{**member.point, "seed": member.seed} for member in self.members],
            "done": {number: outcome.failure for number, outcome in sorted(outcomes.items())},
            **(folders.circumstances() | {"id": uuid.uuid4().hex} if earlier is None else {}),
        }
        folders.save_config(self.path, {**(earlier or {}), **config})

    def tried(self) -> dict[str, list[Any]]:
        """Of a search, the values that each axis has had, in order."""
        return {axis: sorted({own.point[axis] for own in self.members}, key=place_of) for axis in self.points.axes}

    def begins(self, planned: Plan, found: Found | None, heading: str, said: Console) -> None:
        """Say how large the group is."""
        said.print(f"{heading}{len(planned.members)} settings of {planned.settings.agents} agents in one program")

    def has_rows(self, outcomes: Outcomes) -> None:
        """Write metrics.jsonl: the rows of every member, in order."""
        rows = [{"member": number, **row} for number, outcome in sorted(outcomes.items()) for row in outcome.rows]
        self.keep(folders.write_metrics, rows)

    def ends(
        self, planned: Plan, histories: Sequence[History], outcomes: Outcomes, seconds: float, said: Console
    ) -> None:
        """Write down that the group is done, and the run folders of its members."""
        self.has_rows(outcomes)
        self.write_config(outcomes)
        if self.folder is None:
            return
        for history in histories if self.points.run_folders else ():
            # Of characters that every file system takes.
            name = re.sub(r"[^\w=.,-]", "_", f"{history.number:03d}_{history.name}")[:120]
            leave_run(self.path / "runs" / name, history, planned)
        # Remove them only now: a sweep that was killed above goes on from them and writes the missing run folders.
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def concludes(self, outcomes: Outcomes, said: Console) -> list[dict[str, Any]]:
        """Write and show what all members came to; returns the rows of results.csv, best first."""
        by_point: dict[str, list[Outcome]] = {}
        for number, member in enumerate(self.members):
            by_point.setdefault(member.label, []).append(outcomes[number])
        points = {member.label: member.point for member in self.members}
        rows = {label: {**points[label], **summary_of(of_seeds)} for label, of_seeds in by_point.items()}
        results = best_first(list(rows.values()))
        if self.folder is not None:
            folders.write_table(self.path / "results.csv", results)
            finite = {label: [own.rows for own in came if own.failure is None] for label, came in by_point.items()}
            labels = sorted(filter(finite.get, rows), key=lambda label: results.index(rows[label]))
            pictures.points_picture(self.path, [(label or "the one point", finite[label]) for label in labels])
            if self.ask:
                pictures.slices_picture(self.path, self.tried(), results)
            else:
                pictures.heat_maps(self.path, self.points.axes, results)
            folders.finish(self.path)
        tables.show_results(said, results, self.points.axes, self.points.seeds, self.settings.rounds)
        said.print(f"sweep folder: {self.path}", highlight=False, markup=False, soft_wrap=True)
        return results


def summary_of(of_seeds: Sequence[Outcome]) -> dict[str, Any]:
    """What a point came to."""
    return summary([own.rows for own in of_seeds], [FAILED if own.failure else DONE for own in of_seeds])


def written(arms: Arms | None) -> Any:
    """As config.json holds them."""
    return json.loads(json.dumps(arms, default=str))


def leave_run(path: Path, history: History, planned: Plan) -> None:
    """The run folder of one member, as the run of its settings alone leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    write_config(path, planned, history.prepared)
    folders.write_metrics(path, history.rows)
    pictures.partition_picture(path, history.prepared)
    pictures.curves_picture(path, history.rows, history.chance)
    if history.failure is None:
        leave(path, history)
        folders.finish(path)
