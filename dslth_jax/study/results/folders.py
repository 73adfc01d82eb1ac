"""Run folders and sweep folders, read and checked: what is damaged or foreign is one sentence that says what to do."""

import argparse
import csv
import io
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

BAD_INPUT = 2
METRICS = (
    "loss", "accuracy_mean", "accuracy_std", "accuracy_worst", "accuracy_best", "density", "flip_rate", "kept_bits",
    "bitmap_bits", "coded_bits", "float32_bits", "busiest_agent_bits", "exchanges", "coded_rounds", "seconds",
)  # fmt: skip
OF_AGENTS = ("samples", "test_samples", "retention", "neighbours", "accuracy", "density")
SIZES = ("bitmap", "coded", "float32")  # in what messages are counted: _bits of a run, _mb of a point
OF_POINTS = (
    "seeds", "accuracy_mean", "accuracy_std", "accuracy_worst", "loss", "density",
    *(f"{size}_mb" for size in SIZES),
)  # fmt: skip
DONE, FAILED, UNFINISHED = "done", "not finite", "not finished"  # statuses of members, and of points
WHAT_TO_DO = "name a folder that experiments.cifar has written"

Row = dict[str, Any]


class Run(NamedTuple):
    """One run. What is null in a file, or no finite number, is None."""

    name: str
    folder: Path
    config: Row
    rows: list[Row]  # of metrics.jsonl
    agents: list[Row]  # of agents.csv; none where the run has not come to its end
    missing: list[str]  # sentences about what is not there


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
    missing: list[str]


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are a sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise ValueError(f"{message}; --help says more")


def complain(command: str, sentence: object) -> int:
    """Say one line on the error stream; returns the exit code of bad input."""
    print(f"experiments.{command}: {' '.join(str(sentence).split())}", file=sys.stderr)
    return BAD_INPUT


def read_all(folders: Sequence[Path]) -> list[Run] | Sweep:
    """The runs of several folders, each once, or the sweep of a single one."""
    distinct = list(dict.fromkeys(folder.resolve() if folder.is_dir() else folder for folder in folders))
    names = short_names(distinct)
    found = [read(folder, name) for folder, name in zip(distinct, names, strict=True)]
    if len(found) == 1 and isinstance(found[0], Sweep):
        return found[0]
    for folder, one in zip(distinct, found, strict=True):
        if isinstance(one, Sweep):
            raise ValueError(f"{folder} is the folder of a sweep, which is read alone: name it without other folders")
    return [run for run in found if isinstance(run, Run)]


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as tell them apart."""
    for parts in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def read(folder: Path, name: str) -> Run | Sweep:
    """What a folder holds."""
    if not folder.is_dir():
        how = "is no folder" if folder.exists() else "does not exist"
        raise ValueError(f"a run folder was expected, and {folder} {how}: {WHAT_TO_DO}")
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"a run folder was expected, and {folder} holds no config.json: {WHAT_TO_DO}")
    config = from_json(read_text(path), str(path))
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        raise ValueError(f"{path} must be an object with an object of settings in it, and is not: {WHAT_TO_DO}")
    return read_sweep(folder, name, config) if config.get("kind") == "sweep" else read_run(folder, name, config)


def read_run(folder: Path, name: str, config: Row) -> Run:
    """A run, whether it has come to its end or not."""
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"a run folder was expected, and {folder} holds no metrics.jsonl: {WHAT_TO_DO}")
    rows, missing = read_metrics(folder / "metrics.jsonl")
    if not rows:
        missing.append("No round has been evaluated yet, so there are no curves.")
    agents = read_agents(folder / "agents.csv") if (folder / "agents.csv").is_file() else []
    return Run(name, folder, config, rows, agents, missing)


def read_metrics(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a metrics.jsonl, and what is missing of it."""
    text = read_text(path)
    lines, rows = text.splitlines(), list[Row]()
    for number, line in enumerate(lines, 1):
        where = f"line {number} of {path}"
        try:
            row = from_json(line, where)
        except ValueError:
            # A run that was killed may have left half a line behind, as the last one.
            if number == len(lines) and not text.endswith("\n"):
                return rows, ["The last line of metrics.jsonl breaks off and is left out."]
            raise
        if not isinstance(row, dict) or not is_whole(row.get("round")):
            raise ValueError(f"{where} must be an object with a whole number as its round, and is not: {WHAT_TO_DO}")
        rows.append(row | {key: finite(row.get(key), f"{key} in {where}") for key in METRICS})
    return rows, []


def read_agents(path: Path) -> list[Row]:
    """The rows of an agents.csv."""
    rows = read_table(path, ("agent", "classes", *OF_AGENTS))
    for row in rows:
        where = f"agent {row['agent']!r} of {path}"
        row["classes"] = row["classes"].split()
        row |= {key: to_number(row[key], f"{key} of {where}") for key in OF_AGENTS}
    return rows


def read_sweep(folder: Path, name: str, config: Row) -> Sweep:
    """A sweep, whether it has come to its end or not."""
    path, axes, members = folder / "config.json", config.get("axes"), config.get("members")
    done = config.get("done", {})
    # Of a search that has only begun they are empty.
    if not isinstance(axes, dict) or not all(isinstance(x, list) and (x or not members) for x in axes.values()):
        raise ValueError(f"the axes in {path} must be an object of lists of values, and are not")
    if not isinstance(done, dict):
        raise ValueError(f"what is done in {path} must be an object of members and their failures, and is not")
    if not isinstance(members, list) or not all(isinstance(x, dict) and axes.keys() <= x.keys() for x in members):
        raise ValueError(f"the members in {path} must be objects with a value for each of {', '.join(axes)}")
    missing: list[str] = []
    spelled_axes = {axis: list(dict.fromkeys(map(spelled, values))) for axis, values in axes.items()}
    curves: dict[tuple[str, ...], list[list[Row]]] = {}
    statuses: dict[tuple[str, ...], list[str]] = {}
    by_member = read_members(folder / "metrics.jsonl", len(members), missing)
    for number, (member, rows) in enumerate(zip(members, by_member, strict=True)):
        point, status = tuple(spelled(member[axis]) for axis in axes), status_of(done, number)
        statuses.setdefault(point, []).append(status)
        # What a member was before it failed is no outcome of its point.
        curves.setdefault(point, []).append([] if status == FAILED else rows)
    if (folder / "results.csv").is_file():
        results = read_results(folder / "results.csv", tuple(axes))
    else:
        missing.append("There is no results.csv yet: the table is of what each member had at its last evaluation.")
        results = [
            dict(zip(axes, point, strict=True)) | outcome(rows, statuses[point]) for point, rows in curves.items()
        ]
        results.sort(key=lambda result: (result["status"].startswith(FAILED + " ("), -(result["accuracy_mean"] or 0)))
    points = []
    for result in results:
        values = {axis: spelled(result[axis]) for axis in axes}
        if wrong := [axis for axis in axes if values[axis] not in spelled_axes[axis]]:
            known = ", ".join(spelled_axes[wrong[0]])
            raise ValueError(f"{wrong[0]} in results.csv of {folder} must be one of {known}, got {values[wrong[0]]!r}")
        points.append(Point(values, result, curves.get(tuple(values.values()), [])))
    inner = sorted(path.parent for path in folder.glob("runs/*/config.json"))
    runs = [run for run in (read(path, path.name) for path in inner) if isinstance(run, Run)]
    return Sweep(name, folder, config, spelled_axes, points, runs, missing)


def read_members(path: Path, members: int, missing: list[str]) -> list[list[Row]]:
    """The rows of each member of a sweep; adds to `missing`."""
    by_member: list[list[Row]] = [[] for _ in range(members)]
    if not path.is_file():
        missing.append("There is no metrics.jsonl: the sweep has no curves.")
        return by_member
    rows, broken = read_metrics(path)
    missing += broken
    for row in rows:
        if not is_whole(row.get("member")) or row["member"] >= members:
            named = str(row.get("member"))[:40]
            raise ValueError(
                f"rows of {path} must name a member below {members}, and round {row['round']} has {named!r}"
            )
        by_member[row["member"]].append(row)
    return by_member


def read_results(path: Path, axes: Sequence[str]) -> list[Row]:
    """The rows of a sweep's results.csv."""
    rows = read_table(path, (*axes, *OF_POINTS, "status"))
    for row in rows:
        row |= {key: to_number(row[key], f"{key} in {path}") for key in OF_POINTS}
    return rows


def status_of(done: Row, number: int) -> str:
    """Whether a member is done, has failed, or neither yet."""
    if str(number) not in done:
        return UNFINISHED
    return DONE if done[str(number)] is None else FAILED


def outcome(members: list[list[Row]], statuses: Sequence[str]) -> Row:
    """A row like those of results.csv, of a point that may still be running; failed members have no rows."""
    failed = statuses.count(FAILED)
    last = [rows[-1] for rows in members if rows]
    accuracies = [row["accuracy_mean"] for row in last if row["accuracy_mean"] is not None]
    worst = [row["accuracy_worst"] for row in last if row["accuracy_worst"] is not None]
    bits = {size: mean([row[f"{size}_bits"] for row in last]) for size in SIZES}
    return {
        "seeds": len(last) + failed,
        "accuracy_mean": mean(accuracies),
        "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "accuracy_worst": min(worst, default=None),
        "loss": mean([row["loss"] for row in last]),
        "density": mean([row["density"] for row in last]),
        **{f"{size}_mb": None if number is None else number / 8e6 for size, number in bits.items()},
        "status": not_finite(failed, len(statuses)) or (UNFINISHED if UNFINISHED in statuses else DONE),
    }


def on_the_wire(row: Row) -> float | None:
    """Bits sent over all links so far: masks as bitmaps, weights as float32."""
    bits = [row[key] for key in ("bitmap_bits", "float32_bits") if row[key] is not None]
    return sum(bits) if bits else None


def not_finite(failed: int, seeds: int) -> str:
    """The status of a point of which seeds have failed; empty where none has."""
    return f"{FAILED} ({failed} of {seeds} seeds)" if failed else ""


def place_of(value: Any) -> tuple[bool, float, str]:
    """Where a value of an axis stands: numbers by size, words behind them."""
    try:
        return False, float(value), ""
    except (TypeError, ValueError):
        return True, 0.0, str(value)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def spelled(value: Any) -> str:
    """One spelling of a value, whether it comes from JSON or from a table: 10, 10.0 and "1e1" are the same."""
    try:
        return f"{float(value):.12g}" if not isinstance(value, bool) else str(value)
    except (TypeError, ValueError, OverflowError):
        return "" if value is None else str(value)


def read_text(path: Path) -> str:
    """The text of a file."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} must be text, and is not: {WHAT_TO_DO}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): {WHAT_TO_DO}") from None


def read_table(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a table with all of these columns."""
    try:
        reader = csv.DictReader(io.StringIO(read_text(path)), strict=True)
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{path} must be a table of comma-separated values, and is not ({error})") from None
    if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise ValueError(f"{path} must have columns {', '.join(columns)}, and lacks {', '.join(lacking)}: {WHAT_TO_DO}")
    if not all(None not in row and None not in row.values() for row in rows):
        raise ValueError(f"every row of {path} must have as many cells as its head: {WHAT_TO_DO}")
    return rows


def from_json(text: str, where: str) -> Any:
    """What a JSON text says, with None for the numbers that are none."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} must be JSON, and is not: {WHAT_TO_DO}") from None


def is_number(text: str) -> bool:
    """Whether a value's spelling is that of a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number that counts something."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def finite(value: Any, where: str) -> float | None:
    """A number or None, which also stands for a number that is not finite."""
    if value is None:
        return None
    # A whole number beyond the largest float is no count of anything.
    if isinstance(value, bool) or not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 1e300):
        raise ValueError(f"{where} must be a number or null, got {str(value)[:40]!r}: {WHAT_TO_DO}")
    return value if math.isfinite(value) else None


def to_number(text: str, where: str) -> float | None:
    """The number that a cell spells; None where it is empty or spells none that is finite."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{where} must be a number, got {text[:40]!r}: {WHAT_TO_DO}") from None
    return value if math.isfinite(value) else None
