"""Points of sweeps: the summary of a point over its seeds, and how a sweep's folder is read."""

import itertools
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dslth_jax.study.config.setting import spelled
from dslth_jax.study.results.folders import (
    WHAT_TO_DO,
    Row,
    Run,
    read_config,
    read_metrics,
    read_run,
    read_table,
)
from dslth_jax.study.results.metrics import VALIDATION
from dslth_jax.study.system.console import warn

# In what messages are counted (_bits of a run, _mb of a point), and in words.
SIZES = {"bitmap": "bitmaps", "coded": "coded", "float32": "float32"}
DONE, FAILED, UNFINISHED = "done", "not finite", "not finished"  # statuses of members, and of points


def name_of_member(number: int, name: str) -> str:
    """What a member's run folder is called: of characters that every file system takes."""
    return re.sub(r"[^\w=.,-]", "_", f"{number:03d}_{name}")[:120]


class Point(NamedTuple):
    """One point of a sweep's grid."""

    values: dict[str, str]  # of each axis
    result: Row  # its row of results.csv
    members: list[list[Row]]  # the rows of each of its seeds


class Sweep(NamedTuple):
    """A sweep over a grid of settings."""

    name: str
    folder: Path
    config: Row
    axes: dict[str, list[str]]
    points: list[Point]  # best first
    runs: list[Run]  # ordinary run folders inside it
    missing: list[str]  # sentences about what is not there


def last_of(members: Sequence[Sequence[Row]], key: str) -> list[float]:
    """A number of each member's last row, of those that have it."""
    return [rows[-1][key] for rows in members if rows and rows[-1].get(key) is not None]


def mean_of(members: Sequence[Sequence[Row]], key: str) -> float | None:
    """Its mean over members, of bits in megabytes."""
    known = last_of(members, key)
    return statistics.fmean(known) / (8e6 if key.endswith("_bits") else 1) if known else None


def reached(members: Sequence[Sequence[Row]], seconds: float, key: str = "accuracy_mean") -> list[float | None]:
    """A number of each member after so many simulated seconds, between evaluations on a straight line; None where a
    member has no such number, or simulated no time."""

    def of_member(rows: Sequence[Row]) -> float | None:
        timed = [row for row in rows if row.get("simulated_seconds") is not None and row.get(key) is not None]
        times = [row["simulated_seconds"] for row in timed]
        return float(np.interp(seconds, times, [row[key] for row in timed])) if timed else None

    return [of_member(rows) for rows in members]


def mean_at(members: Sequence[Sequence[Row]], seconds: float, key: str = "accuracy_mean") -> float | None:
    """The mean over those members that have such a number; None where none has."""
    known = [number for number in reached(members, seconds, key) if number is not None]
    return statistics.fmean(known) if known else None


def summary(members: Sequence[Sequence[Row]], statuses: Sequence[str], validated: bool = False) -> Row:
    """What a point comes to over the seeds that stay finite, from the rows of each in `members`, and its status; with
    numbers of what is held back if it is `validated`, or any point of its sweep."""
    finite = [rows for rows, status in zip(members, statuses, strict=True) if rows and status != FAILED]
    failed = statuses.count(FAILED)
    accuracies = last_of(finite, "accuracy_mean")
    mean, worst = VALIDATION
    validation = mean_of(finite, mean), min(last_of(finite, worst), default=None)
    unfinished = UNFINISHED if UNFINISHED in statuses else DONE
    return {
        "seeds": len(finite) + failed,
        "accuracy_mean": mean_of(finite, "accuracy_mean"),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracy_worst": min(last_of(finite, "accuracy_worst"), default=None),
        **(dict(zip(VALIDATION, validation, strict=True)) if validated else {}),
        **{key: mean_of(finite, key) for key in ("loss", "density")},
        **{f"{size}_mb": mean_of(finite, f"{size}_bits") for size in SIZES},
        "status": f"{FAILED} ({failed} of {len(statuses)} seeds)" if failed else unfinished,
    }


OF_POINTS = tuple(summary([], []))[:-1]  # its numbers


def ranked_by(rows: Iterable[Row]) -> str:
    """Which accuracy runs, or points, are ranked by: that on what is held back if it is there in all, else the test
    accuracy. `rows` are their last rows of metrics, or those of results.csv."""
    known, validation = [row for row in rows if row["accuracy_mean"] is not None], VALIDATION[0]
    return validation if known and all(row.get(validation) is not None for row in known) else "accuracy_mean"


def best(rows: Iterable[Row]) -> str:
    """How tables say that the best of these rows come first."""
    return "best first" + (" by validation accuracy" if ranked_by(rows) in VALIDATION else "")


def best_first(results: Sequence[Row]) -> list[Row]:
    """Rows of results.csv by the accuracy that ranks them; points of which a seed failed come last."""
    key = ranked_by(results)
    return sorted(results, key=lambda row: (row["status"].startswith(FAILED), -(row[key] or 0.0)))


def place_of(value: Any) -> tuple[bool, float, str]:
    """Where a value of an axis stands: numbers by size, words behind them."""
    try:
        return False, float(value), ""
    except (TypeError, ValueError):
        return True, 0.0, str(value)


def read_all(folders: Sequence[Path]) -> list[Run] | Sweep:
    """The runs of several folders, each once, and of folders that hold run folders, or the sweep of a single one."""
    if not folders:
        raise ValueError(f"at least one folder was expected, got none: {WHAT_TO_DO}")
    folders = [inner for folder in folders for inner in runs_in(folder)]
    distinct = list(dict.fromkeys(folder.resolve() if folder.is_dir() else folder for folder in folders))
    # The last part of each path, with as many parts before it as tell them apart.
    names = (["/".join(folder.parts[-parts:]) for folder in distinct] for parts in itertools.count(1))
    found = list(map(read, distinct, next(own for own in names if len(set(own)) == len(own))))
    sweeps = [one for one in found if isinstance(one, Sweep)]
    if sweeps and len(found) > 1:
        sentence = "is the folder of a sweep, which is read alone: name it without other folders"
        raise ValueError(f"{sweeps[0].folder} {sentence}")
    return sweeps[0] if sweeps else [run for run in found if isinstance(run, Run)]


def runs_in(folder: Path) -> list[Path]:
    """The run folders in one that holds some, and is itself no run's and no sweep's; else the folder."""
    inner = [] if (folder / "config.json").exists() else sorted(path.parent for path in folder.glob("*/config.json"))
    runs = [path for path in inner if (read_config(path) or {}).get("kind") != "sweep"]
    for path in inner:
        if path not in runs:
            warn(f"{path} is the folder of a sweep, which is read alone, and is left out")
    return runs or [folder]


def read(folder: Path, name: str) -> Run | Sweep:
    """What a folder holds."""
    config = read_config(folder) if folder.is_dir() else None
    if config is None:
        missing = "holds no config.json, and no run folders"
        what = missing if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"a run folder was expected, and {folder} {what}: {WHAT_TO_DO}")
    return read_sweep(folder, name, config) if config.get("kind") == "sweep" else read_run(folder, name, config)


def expect_sweep(folder: Path, config: Row) -> tuple[Row, list[Row], Row]:
    """The axes, members and outcomes of a sweep's configuration; a ValueError where it is damaged."""
    axes, members, done = config.get("axes", ()), config.get("members", ()), config.get("done", {})
    fits = isinstance(axes, dict) and isinstance(done, dict) and isinstance(members, list)
    # The axes of a search that has only begun are empty.
    fits = fits and all(isinstance(values, list) and (values or not members) for values in axes.values())
    fits = fits and all(isinstance(member, dict) and axes.keys() <= member.keys() for member in members)
    if not fits or not {*done} <= {*map(str, range(len(members)))}:
        what = "the axes of a sweep, lists of values, its members, a value of each axis, and which of them are done"
        raise ValueError(f"{folder / 'config.json'} must hold {what}, and does not: {WHAT_TO_DO}")
    return axes, members, done


def read_sweep(folder: Path, name: str, config: Row) -> Sweep:
    """A sweep, whether it has come to its end or not."""
    axes, members, done = expect_sweep(folder, config)
    by_member = read_members(folder / "metrics.jsonl", len(members), missing := list[str]())
    points: dict[tuple[str, ...], tuple[list[list[Row]], list[str]]] = {}  # rows and statuses of their members
    for number, (member, rows) in enumerate(zip(members, by_member, strict=True)):
        of_seeds, statuses = points.setdefault(tuple(spelled(member[axis]) for axis in axes), ([], []))
        status = UNFINISHED if str(number) not in done else DONE if done[str(number)] is None else FAILED
        # What a member was before it failed is no outcome of its point.
        of_seeds.append([] if status == FAILED else rows)
        statuses.append(status)
    if (folder / "results.csv").is_file():
        results = read_table(folder / "results.csv", (*axes, "status"), OF_POINTS, VALIDATION)
    else:
        missing.append("There is no results.csv yet: the table is of what each member had at its last evaluation.")
        came = [dict(zip(axes, own, strict=True)) | summary(*came, validated=True) for own, came in points.items()]
        results = best_first(came)
    known = {axis: list(dict.fromkeys(map(spelled, values))) for axis, values in axes.items()}
    found = []
    for result in results:
        values = {axis: spelled(result[axis]) for axis in axes}
        if wrong := [axis for axis in axes if values[axis] not in known[axis]]:
            among = f"one of {', '.join(known[wrong[0]])}, got {values[wrong[0]]!r}"
            raise ValueError(f"{wrong[0]} in results.csv of {folder} must be {among}")
        found.append(Point(values, result, points.get(tuple(values.values()), ([], []))[0]))
    inner = sorted(path.parent for path in folder.glob("runs/*/config.json"))
    runs = [run for run in (read(path, path.name) for path in inner) if isinstance(run, Run)]
    return Sweep(name, folder, config, known, found, runs, missing)


def read_members(path: Path, members: int, missing: list[str]) -> list[list[Row]]:
    """The rows of each member of a sweep, from its metrics.jsonl; adds to `missing` what that lacks."""
    by_member: list[list[Row]] = [[] for _ in range(members)]
    rows, lacking = list[Row](), ["There is no metrics.jsonl: the sweep has no curves."]
    if path.is_file():
        rows, lacking = read_metrics(path)
    missing += lacking
    for row in rows:
        number = row.pop("member", None)
        if type(number) is not int or not 0 <= number < members:
            had = f"round {row['round']} has {str(number)[:40]!r}"
            raise ValueError(f"rows of {path} must name a member below {members}, and {had}")
        by_member[number].append(row)
    return by_member
