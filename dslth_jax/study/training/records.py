"""What a study leaves in its folder, and when: a run folder of a single run, a sweep's folder of many members."""

import csv
import json
import re
import shutil
import statistics
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.stopping import NotFiniteError, Stop
from dslth_jax.study.results import figures, record
from dslth_jax.study.results.folders import DONE, SIZES, not_finite, place_of
from dslth_jax.study.sweeping.grid import Arms, Points
from dslth_jax.study.training.checkpoint import Found
from dslth_jax.study.training.history import History, Outcome
from dslth_jax.study.training.plan import Member, Plan, as_json
from dslth_jax.study.training.prepare import graph_of_round, members_of, prepare
from dslth_jax.study.training.progress import megabytes

ROWS_SHOWN = 30  # of results, on the screen; the file has all
COLUMNS = (
    "accuracy", "± over seeds", "worst agent", "density", "bitmaps, MB", "coded, MB", "float32, MB", "status",
)  # fmt: skip


class Result(NamedTuple):
    """What a single run came to."""

    folder: Path | None  # None in all processes but the first
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


class Recorded:
    """Members, and the folder in which they are recorded."""

    folder: record.Folder | None = None
    path = Path()
    finished = ""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.resume, self.members = settings, settings.resume, list[Member]()

    def keep(self, write: Callable[..., None], *what: Any) -> None:
        """Write into the folder, in the process that has it."""
        if self.folder is not None:
            write(self.path, *what)


class Run(Recorded):
    """A single run, in a run folder. One that does not stay finite ends in a NotFiniteError."""

    def prepare(self) -> list[Member]:
        """Check the settings, and load what they name."""
        self.members = [Member({}, None, prepare(self.settings))]
        return self.members

    def claim(self, members: Sequence[Member]) -> record.Folder:
        """`--out`, or a fresh dated folder under runs/."""
        return record.open_folder(members[0].prepared.settings)

    def known(self) -> dict[int, Outcome]:
        """Nothing: the folder of a run that has come to its end is finished."""
        return {}

    def batches(self, outcomes: Mapping[int, Outcome], stop: Stop) -> Iterator[None]:
        """The one member."""
        yield

    def begins(self, planned: Plan, found: Found | None, heading: str, said: Console) -> None:
        """Say what the run is."""
        self.keep(record.write_config, planned.members[0], planned, found)
        said.print(record.population_table(planned))

    def compiles(self, histories: Sequence[History]) -> None:
        """Draw what is known before training."""
        self.keep(figures.partition_picture, histories[0].prepared)

    def has_rows(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write metrics.jsonl."""
        self.keep(record.write_metrics, outcomes[0].rows)

    def pauses(self, histories: Sequence[History]) -> None:
        """Draw the rows that there are."""
        self.keep(figures.curves_picture, histories[0].rows, histories[0].chance)

    def ends(
        self,
        planned: Plan,
        histories: Sequence[History],
        outcomes: Mapping[int, Outcome],
        seconds: float,
        said: Console,
    ) -> None:
        """Write what is known at the end, and say it."""
        (history,) = histories
        if history.failure:
            raise NotFiniteError(history.failure)
        rows, rounds = history.rows, planned.settings.rounds
        self.result = Result(self.path if self.folder else None, rows, leave(self.path, history, bool(self.folder)))
        said.print(record.summary_table(rows[-1], history.chance, rounds, seconds, history.evaluation_seconds))

    def concludes(self, outcomes: Mapping[int, Outcome], said: Console) -> Result:
        """The run has nothing left to do."""
        self.keep(record.finish)
        said.print(f"run folder: {self.path}", highlight=False, soft_wrap=True)
        return self.result


def leave(folder: Path, history: History, writing: bool = True) -> list[dict[str, Any]]:
    """Write what is known at the end of a run; returns the rows of agents.csv."""
    prepared, evaluation = history.prepared, history.evaluation
    assert evaluation is not None
    last = graph_of_round(prepared.settings, prepared.network, prepared.topology, prepared.settings.rounds - 1)
    agents = history.agent_rows(last)
    if writing:
        record.write_agents(folder, agents)
        if evaluation.masks is not None:
            record.write_masks(folder, evaluation.masks, history.maskable)
        figures.topology_picture(folder, last, np.asarray(evaluation.accuracy))
    return agents


class Sweep(Recorded):
    """Points of a grid, of a search or of a comparison, each with several seeds, in a sweep's folder."""

    def __init__(self, points: Points, ask: Callable[..., Iterator[None]] | None = None) -> None:
        super().__init__(points.settings)
        self.points, self.members, self.ask = points, points.members, ask  # which adds members, where it is a search

    def prepare(self) -> list[Member]:
        """Check and load every point with every seed; of a search its corners, which are only tried."""
        members = members_of(self.settings, self.points.first, self.points.seeds, self.points.arms)
        self.members.extend([] if self.ask else members)
        return members

    def claim(self, members: Sequence[Member]) -> record.Folder:
        """`--out`, or a fresh dated folder under runs/."""
        path = self.settings.out or record.fresh_folder(self.settings, "sweep")

        def expect(config: dict[str, Any]) -> None:
            if config.get("kind") != "sweep":
                raise ValueError(f"the run folder {path} holds a single run, no sweep: name another --out")
            record.expect_same(self.settings, config["settings"], f"the sweep in {path}")
            if config.get("arms") != written(self.points.arms):
                raise ValueError(f"{path} compares other arms, or these with other settings: name another --out")

        return record.claim(path, self.resume, expect)

    def known(self) -> dict[int, Outcome]:
        """What the members that an interrupted sweep was done with came to, by number; in every process."""
        config = (self.resume and record.read_config(self.path)) or {}
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
        """Whether a member failed, or all that it leaves is there; where not, it is trained again."""
        if outcome.failure is not None or not outcome.rows or outcome.rows[-1]["round"] != rounds:
            return outcome.failure is not None
        left = (record.read_config(path) or {} for path in (self.path / "runs").glob(f"{number:03d}_*"))
        return not self.points.run_folders or any("finished" in config for config in left)

    def batches(self, outcomes: dict[int, Outcome], stop: Stop) -> Iterator[None]:
        """All points of a grid at once, or those that a search asks for."""
        write = lambda: self.write_config(outcomes)  # noqa: E731
        if self.ask:
            yield from self.ask(self.points, self.path, outcomes, write, stop)
        else:
            write()
            yield

    def write_config(self, outcomes: Mapping[int, Outcome]) -> None:
        """config.json: what all points have in common, the axes, the members, and which of them are done."""
        if self.folder is None:
            return
        earlier, seed = record.read_config(self.path), self.settings.seed
        config = {
            "kind": "sweep",
            "settings": as_json(self.settings) | {"out": str(self.path.resolve())},
            "axes": self.tried() if self.ask else self.points.axes,
            **({"arms": written(self.points.arms)} if self.points.arms else {}),
            "seeds": [seed + offset for offset in range(self.points.seeds)],
            "members": [{**member.point, "seed": member.seed} for member in self.members],
            "done": {number: outcome.failure for number, outcome in sorted(outcomes.items())},
            **(record.circumstances() | {"id": uuid.uuid4().hex} if earlier is None else {}),
        }
        text = json.dumps({**(earlier or {}), **config}, indent=2, default=str) + "\n"
        record.replace(self.path / "config.json", text)

    def tried(self) -> dict[str, list[Any]]:
        """Of a search, the values that each axis has had, in order."""
        return {axis: sorted({own.point[axis] for own in self.members}, key=place_of) for axis in self.points.axes}

    def begins(self, planned: Plan, found: Found | None, heading: str, said: Console) -> None:
        """Say how large the group is."""
        said.print(f"{heading}{len(planned.members)} settings of {planned.settings.agents} agents in one program")

    def compiles(self, histories: Sequence[History]) -> None:
        """Nothing is left meanwhile."""

    def has_rows(self, outcomes: Mapping[int, Outcome]) -> None:
        """Write metrics.jsonl: the rows of every member, in order."""
        rows = [{"member": number, **row} for number, outcome in sorted(outcomes.items()) for row in outcome.rows]
        self.keep(record.write_metrics, rows)

    def pauses(self, histories: Sequence[History]) -> None:
        """Nothing is drawn before the end."""

    def ends(
        self,
        planned: Plan,
        histories: Sequence[History],
        outcomes: Mapping[int, Outcome],
        seconds: float,
        said: Console,
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
        # Only now: who is killed above goes on from them to the run folders that are missing.
        shutil.rmtree(self.path / "checkpoint", ignore_errors=True)

    def concludes(self, outcomes: Mapping[int, Outcome], said: Console) -> list[dict[str, Any]]:
        """Write and show what all members came to; returns the rows of results.csv, best first."""
        by_point: dict[str, list[Outcome]] = {}
        for number, member in enumerate(self.members):
            by_point.setdefault(member.label, []).append(outcomes[number])
        points = {member.label: member.point for member in self.members}
        rows = {label: {**points[label], **summary(of_seeds)} for label, of_seeds in by_point.items()}
        place = lambda label: (rows[label]["status"] != DONE, -(rows[label]["accuracy_mean"] or 0.0))  # noqa: E731
        labels = sorted(rows, key=place)
        results = [rows[label] for label in labels]
        if self.folder is not None:
            write_results(self.path, results)
            finite = {label: [own.rows for own in by_point[label] if own.failure is None] for label in labels}
            figures.sweep_picture(self.path, [(label, finite[label]) for label in labels if finite[label]])
            if self.ask:
                figures.slices_picture(self.path, list(self.points.axes), results)
            else:
                figures.heat_maps(self.path, self.points.axes, results)
            record.finish(self.path)
        said.print(results_table(self.points, results))
        said.print(f"sweep folder: {self.path}", highlight=False, soft_wrap=True)
        return results


def written(arms: Arms | None) -> Any:
    """As config.json holds them."""
    return json.loads(json.dumps(arms, default=str))


def leave_run(path: Path, history: History, planned: Plan) -> None:
    """The run folder of one member, as the run of its settings alone leaves it."""
    path.mkdir(parents=True, exist_ok=True)
    record.write_config(path, history.prepared, planned)
    record.write_metrics(path, history.rows)
    figures.partition_picture(path, history.prepared)
    figures.curves_picture(path, history.rows, history.chance)
    if history.failure is None:
        leave(path, history)
        record.finish(path)


def summary(of_seeds: Sequence[Outcome]) -> dict[str, Any]:
    """What a point came to: means over the seeds that stayed finite, the spread of accuracy, the worst agent of all."""
    last = [outcome.rows[-1] for outcome in of_seeds if outcome.failure is None]
    failed = len(of_seeds) - len(last)

    def mean(key: str) -> float | None:
        known = [row[key] for row in last if row[key] is not None]
        return statistics.fmean(known) if known else None

    def in_megabytes(key: str) -> float | None:
        bits = mean(key)
        return None if bits is None else megabytes(bits)

    return {
        "seeds": len(of_seeds),
        "accuracy_mean": mean("accuracy_mean"),
        "accuracy_std": statistics.stdev(row["accuracy_mean"] for row in last) if len(last) > 1 else None,
        "accuracy_worst": min((row["accuracy_worst"] for row in last), default=None),
        "loss": mean("loss"),
        "density": mean("density"),
        **{f"{size}_mb": in_megabytes(f"{size}_bits") for size in SIZES},
        "status": not_finite(failed, len(of_seeds)) or DONE,
    }


def write_results(folder: Path, results: Sequence[dict[str, Any]]) -> None:
    """results.csv."""
    part = folder / "results.csv.part"
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
        writer.writeheader()
        writer.writerows(results)
    part.replace(folder / "results.csv")


def results_table(points: Points, results: Sequence[dict[str, Any]]) -> Table:
    """The best of results.csv for the screen."""
    shown = results[:ROWS_SHOWN]
    more = f", the best {len(shown)}" if len(results) > len(shown) else ""
    table = Table(title=f"{len(results)} points, {points.seeds} seeds each, after round {points.settings.rounds}{more}")
    for axis in points.axes:
        table.add_column(axis)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "status" else "right")

    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.2%}"

    for row in shown:
        accuracies = (percent(row[f"accuracy_{key}"]) for key in ("mean", "std", "worst"))
        density = "" if row["density"] is None else f"{row['density']:.4f}"
        sizes = ("" if row[f"{size}_mb"] is None else f"{row[f'{size}_mb']:,.4g}" for size in SIZES)
        axes = (f"{row[axis]:.5g}" if isinstance(row[axis], float) else str(row[axis]) for axis in points.axes)
        table.add_row(*axes, *accuracies, density, *sizes, row["status"])
    return table
