"""The run folder, written and read in one place: who works in it, its configuration, metrics and tables. What agents
have come to is in `models`.

Whatever is damaged, foreign or missing is a ValueError of one sentence that says what to do.
"""

import csv
import datetime
import importlib.metadata
import io
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

import dslth_jax
from dslth_jax.study.config.algorithms import ALGORITHMS
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.setting import flag
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import asks_for_rounds
from dslth_jax.study.results.metrics import METRICS, PERHAPS, is_of_channels
from dslth_jax.study.system.machine import PACKAGES, lock, numerics

OF_AGENTS = ("samples", "test_samples", "retention", "neighbours", "accuracy", "density")
VALIDATION_OF_AGENTS = ("validation_samples", "validation_accuracy")  # where samples are held back
SIZE_OF_AGENTS = ("depth", "multiply_adds", "sent_bits")  # since 0.7; depth where it is said
OF_CLASSES = ("agents", "samples", "test_samples", "accuracy")
RUN_EXPECTED = "name a folder that dslth run, or experiments.cifar, has written"
WHAT_TO_DO = "put back what dslth run, or experiments.cifar, had written there, or name another run folder"

Row = dict[str, Any]


class Folder(NamedTuple):
    """A run folder in which no other process works, for as long as this one lives."""

    path: Path
    lock: int | None  # what holds it: the open folder; None where the system has no such locks
    finished: str  # what to say of a run that was finished before, else empty


def fresh(what: str) -> Path:
    """A dated folder under runs/ that says `what` it holds, and that no other process takes."""
    return Path("runs") / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}_{what}_{os.getpid()}"


def open_folder(
    settings: Settings, what: str, kind: str | None = None, expect: Callable[[Row], None] | None = None
) -> Folder:
    """Make `--out`, or a fresh dated folder under runs/ that says `what` it holds, this process's own, after all else.
    A ValueError if it cannot be written to, if another process works in it, or if it holds a run and is not to be
    resumed, another `kind` of thing (None is a single run), other settings, or what `expect` refuses."""
    data = settings.data_file.stem if settings.data_file else settings.dataset
    path, folder = settings.out or fresh(f"{data}_{what}"), None
    try:
        path.mkdir(parents=True, exist_ok=True)
        folder = Folder(path, _lock(path), "")
        config = read_config(path)
        if config is not None:
            if not settings.resume:
                raise ValueError(f"the run folder {path} holds a run already: name another --out, or say --resume")
            held, wanted = config.get("kind", "single run"), kind or "single run"
            if held != wanted:
                raise ValueError(f"the run folder {path} holds a {held}, no {wanted}: name another --out")
            expect_same(settings, config["settings"], f"the {kind or 'run'} in {path}", longer=kind is None)
            if expect is not None:
                expect(config)
            if (when := config.get("finished")) and config["settings"]["rounds"] == settings.rounds:
                return folder._replace(finished=f"the run in {path} was finished at {when}: nothing is left to do")
            if when and not any((path / "checkpoint").glob("round_*[0-9]")):
                kept = "kept no checkpoint from which more rounds can go on, for it had no --checkpoint-every"
                raise ValueError(f"the run in {path} was finished at {when} and {kept}: name another --out")
        (path / "metrics.jsonl").touch()
    except BaseException as error:
        close(folder)
        if not isinstance(error, OSError):
            raise
        raise ValueError(f"the run folder {path} cannot be written to ({error.strerror}): name another --out") from None
    return folder


def _lock(path: Path) -> int | None:
    """Lock the folder itself; a ValueError where another process works in it."""
    try:
        return lock(path)
    except BlockingIOError:
        sentence = f"another process is at work in the run folder {path}: wait, or name another --out"
        raise ValueError(sentence) from None


def close(folder: Folder | None) -> None:
    """Let others work in a folder again."""
    if folder is not None and folder.lock is not None:
        os.close(folder.lock)


def replace(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        # A sweep's table may hold names of files, and these need not be text.
        part.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def expect_as_said(settings: Settings) -> None:
    """Raise a ValueError where the run that is to go on had another value of what is said, before any data is looked
    for. All of its settings are compared when the folder is opened."""
    config = read_config(settings.out) if settings.resume and settings.out else None
    if config and "kind" not in config:
        said = [name for name in settings.given if name != "rounds"]
        expect_same(resolve(settings), config["settings"], f"the run in {settings.out}", among=said)


def expect_same(
    settings: Settings, other: Row, whose: str, *, among: Sequence[str] | None = None, longer: bool = False
) -> None:
    """Raise a ValueError that names every field, `among` these if they are given, in which settings as config.json has
    them differ. A run may become `longer`, where nothing in it depends on the number of its rounds."""
    own, known = settings.as_json(), settings.known
    compared = [name for name in (own if among is None else among) if not known[name].machine]
    differing = [name for name in compared if other.get(name) != own[name]]
    if longer and differing == ["rounds"] and type(other.get("rounds")) is int and settings.rounds > other["rounds"]:
        if because := by_rounds(settings):
            raise ValueError(f"{whose} cannot become longer, because {because} depends on --rounds: name another --out")
        return
    if differing:
        said = "; ".join(f"{flag(name)} was {other.get(name)} and is {own[name]}" for name in differing)
        raise ValueError(f"{whose} has other settings: {said}: say the same, or name another --out")


def by_rounds(settings: Settings) -> str:
    """What of resolved settings depends on how many rounds there are to be, in words; empty if nothing does."""
    if ALGORITHMS[settings.algorithm].by_rounds:
        return f"--algorithm {settings.algorithm}"
    if settings.target_channels is not None:
        return f"--target-channels {settings.target_channels}"
    known, values = settings.known, vars(settings)
    scheduled = [name for name in known if known[name].scheduled and asks_for_rounds(str(values[name]))]
    return ", ".join(f"{flag(name)} {values[name]}" for name in scheduled)


def write_config(
    folder: Path, settings: Settings, about: Mapping[str, Any], from_round: int | None = None, **planned: int
) -> None:
    """config.json of a run: settings as resolved and `planned`, what else is said `about` it, circumstances, and where
    it was resumed."""
    # A run of these settings again must start anew.
    resolved = {**settings.as_json(), **planned, "out": folder.resolve(), "resume": False}
    config = {"settings": resolved, **about, "seed": settings.seed, **circumstances()}
    earlier = read_config(folder)
    if earlier and from_round is not None:
        again = {"from_round": from_round, "command": config["command"], "started": config["started"]}
        config |= {"command": earlier["command"], "started": earlier["started"]}
        config["resumed"] = [*earlier.get("resumed", []), again]
    save_config(folder, config)


def save_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write config.json."""
    replace(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")


def finish(folder: Path) -> None:
    """Say in config.json that a run, or a sweep, has nothing left to do."""
    save_config(folder, {**(read_config(folder) or {}), "finished": now()})


def circumstances() -> Row:
    """How, when, on what and with what versions a command runs."""
    device, command = jax.devices()[0], shlex.join(spelled_command(sys.orig_argv))
    on: Row = {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()}
    on |= {"machine": platform.platform(), "cpu_cores": os.cpu_count()}
    return {"command": command, "started": now(), "device": on, "versions": versions(), "numerics": numerics()}


def spelled_command(words: Sequence[str]) -> list[str]:
    """The words of a process as a user says them, wherever Python and the command lie.

    >>> spelled_command(["/env/bin/python3", "/env/bin/dslth", "run", "--agents", "4"])
    ['dslth', 'run', '--agents', '4']
    >>> spelled_command(["/env/bin/python3", "-m", "experiments.cifar"])
    ['python', '-m', 'experiments.cifar']
    """
    words = list(words)
    return ["dslth", *words[2:]] if len(words) > 1 and Path(words[1]).stem == "dslth" else ["python", *words[1:]]


def versions() -> dict[str, str]:
    """Of Python, this library, and those it computes with."""
    own = {"python": platform.python_version(), "dslth_jax": dslth_jax.__version__}
    return own | {package: importlib.metadata.version(package) for package in PACKAGES}


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def write_metrics(folder: Path, rows: Sequence[Row]) -> None:
    """metrics.jsonl with these rows: whole or, where it cannot be written, as it was."""
    replace(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A table of comma-separated values, such as agents.csv; None is an empty cell."""
    replace(path, pd.DataFrame(rows, dtype=object).to_csv(index=False, lineterminator="\r\n"))


class Run(NamedTuple):
    """One run. What is null in a file, or no finite number, is None."""

    name: str
    folder: Path
    config: Row
    rows: list[Row]  # of metrics.jsonl
    agents: list[Row]  # of agents.csv; none where the run has not come to its end
    classes: list[Row]  # of classes.csv; runs have it since 0.5
    missing: list[str]  # sentences about what is not there


def read_run(folder: Path, name: str, config: Row) -> Run:
    """A run, whether it has come to its end or not."""
    if not (folder / "metrics.jsonl").is_file():
        raise ValueError(f"a run folder was expected, and {folder} holds no metrics.jsonl: {RUN_EXPECTED}")
    rows, missing = read_metrics(folder / "metrics.jsonl")
    if not rows:
        missing.append("No round has been evaluated yet, so there are no curves.")
    path = folder / "agents.csv"
    perhaps = (*VALIDATION_OF_AGENTS, "balanced_accuracy", *SIZE_OF_AGENTS, *alive_in(path))
    agents = read_table(path, ("agent", "classes"), OF_AGENTS, perhaps) if path.is_file() else []
    for row in agents:
        row["classes"] = classes_in(row["classes"], path)
    path = folder / "classes.csv"
    classes = read_table(path, ("class",), OF_CLASSES) if path.is_file() else []
    return Run(name, folder, config, rows, agents, classes, missing)


def classes_in(cell: str, path: Path) -> list[str]:
    """The classes that an agent holds, from their cell in agents.csv."""
    try:
        return shlex.split(cell)
    except ValueError:
        raise ValueError(f"{path} must name each agent's classes, got {cell!r}: {WHAT_TO_DO}") from None


def alive_in(path: Path) -> list[str]:
    """The columns of an agents.csv that say which channels live."""
    head = read_text(path, "surrogateescape").partition("\n")[0].rstrip("\r") if path.is_file() else ""
    return [column for column in head.split(",") if is_of_channels(column)]


def read_config(folder: Path) -> Row | None:
    """config.json; None where there is none, a ValueError where it is of no run."""
    path = folder / "config.json"
    if not path.exists():
        return None
    config = from_json(read_text(path), str(path))
    if not isinstance(config, dict) or not isinstance(config.get("settings"), dict):
        wanted = "the configuration of a run, with its settings"
        raise ValueError(f"{path} must be {wanted}, and is not: name another folder")
    return config


def read_metrics(path: Path) -> tuple[list[Row], list[str]]:
    """The rows of a metrics.jsonl, and what is missing of it. They get no number of validation that they lack: a sweep
    that goes on writes them again as they were."""
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
        if not isinstance(row, dict) or type(row.get("round")) is not int:
            raise ValueError(f"{where} must be an object with a whole number as its round, and is not: {WHAT_TO_DO}")
        for key in (*METRICS, *filter(is_of_channels, row)):
            value = row.get(key)
            # A whole number beyond the largest float is no count of anything.
            if type(value) not in (int, float, type(None)) or (type(value) is int and abs(value) > 1e300):
                wanted = f"must be a number or null, got {str(value)[:40]!r}"
                raise ValueError(f"{key} in {where} {wanted}: {WHAT_TO_DO}")
            if key in row or key not in PERHAPS:
                row[key] = value if value is not None and math.isfinite(value) else None
        rows.append(row)
    return rows, []


def read_table(path: Path, words: Sequence[str], numbers: Sequence[str], perhaps: Sequence[str] = ()) -> list[Row]:
    """The rows of a table that has columns of words, and of numbers: None where a cell is empty, or not finite. So are
    all cells of a column of numbers that is only `perhaps` there, and is not."""
    text = io.StringIO(read_text(path, "surrogateescape"), newline="")
    try:
        head, *rows = filter(None, csv.reader(text, strict=True))  # pandas would fill up rows that break off
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} must be a table of comma-separated values, and is not ({error})") from None
    if lacking := [column for column in (*words, *numbers) if column not in head]:
        raise ValueError(f"{path} must have columns {', '.join((*words, *numbers))}, and lacks {', '.join(lacking)}")
    if any(len(row) != len(head) for row in rows) or len(set(head)) < len(head):
        raise ValueError(f"every row of {path} must have as many cells as its head has names: {WHAT_TO_DO}")
    table = pd.DataFrame(rows, columns=head, dtype=object)
    for key in perhaps:
        table[key] = table.get(key, "")
    for key in (*numbers, *perhaps):
        try:
            values = table[key].str.strip().replace("", "nan").astype(float)
        except ValueError as error:
            raise ValueError(f"{key} in {path} must be numbers ({error}): {WHAT_TO_DO}") from None
        table[key] = values.astype(object).where(np.isfinite(values), None)
    return table.to_dict("records")


def read_text(path: Path, undecodable: str = "strict") -> str:
    """The text of a file."""
    try:
        return path.read_text("utf-8-sig", undecodable)
    except (OSError, UnicodeDecodeError) as error:
        how = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else "must be text, and is not"
        raise ValueError(f"{path} {how}: {WHAT_TO_DO}") from None


def from_json(text: str, where: str) -> Any:
    """What a JSON text holds, with None for nan and infinities."""
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise ValueError(f"{where} must be JSON, and is not: {WHAT_TO_DO}") from None
