"""What `experiments.all` does: chooses by the budget, runs each experiment as its own command, and leaves claims.md."""

import dataclasses
import functools
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dslth_jax
from dslth_jax.naming import expect_choice
from dslth_jax.study.claims import children, page, table
from dslth_jax.study.claims.page import Line
from dslth_jax.study.claims.table import CLAIMS
from dslth_jax.study.config import command
from dslth_jax.study.config.resolve import check_each, obstacle_to_folder
from dslth_jax.study.config.setting import flag, setting
from dslth_jax.study.config.spellings import GRAPHS
from dslth_jax.study.results.folders import Row, fresh, now, replace, spelled_command
from dslth_jax.study.system import machine
from dslth_jax.study.system.console import Stream, counted
from dslth_jax.study.system.stopping import Stop

RECORD = "claims.json"  # what has been done, for --resume
DONE, STOPPED, FAILED = "done", "stopped", "failed"
ON_DIGITS = "Digits in small networks: that says whether commands work, and little of the claims."
MOST_ROUNDS, MOST_SEEDS = 10**6, 1000
SAME = (*table.WHOLE_DATA, "rounds", "seeds")  # of a command that goes on


@dataclasses.dataclass(frozen=True)
class All:
    """Run a reduced version of every claim's experiment, as many as a budget of time holds, and leave one page."""

    budget: str = "2h"
    """Time for all experiments, such as 2h, 30m or 90s; what does not fit is left out, and said."""
    only: str | None = None
    """Experiments by their names in the page, separated by commas; None is all."""
    dataset: str = "cifar10"
    """Data set of all experiments: cifar10, cifar100, svhn_cropped, or digits, which makes all of them small."""
    data_dir: Path | None = None
    """Folder that has the data set, or gets it; None is the usual folder of tensorflow-datasets."""
    topology: str | None = None
    """Graph of the population's experiments (20 agents; 4 with digits), as for experiments.cifar."""
    class_file: Path | None = None
    """File of each agent's classes, as for experiments.cifar."""
    rounds: int | None = setting(None, bounds=f"10..{MOST_ROUNDS}")
    """Rounds of every population; None is what each row says."""
    seeds: int | None = setting(None, bounds=f"1..{MOST_SEEDS}")
    """Seeds of every population; None is one."""
    out: Path | None = None
    """Folder of the page, and of a folder for each experiment; None is a fresh dated one under runs/."""
    resume: bool = False
    """Go on with the experiments in --out: those that are done are kept, one that was stopped goes on."""


class Work:
    """A command that is ready to begin: its folder, what is recorded there, and what the budget holds."""

    def __init__(self, settings: All, path: Path, records: dict[str, Row], held: int | None) -> None:
        self.settings, self.path, self.records = settings, path, records
        self.held = held  # the lock on its folder
        self.budget = table.seconds_of(settings.budget)
        self.data = {name: getattr(settings, name) for name in table.WHOLE_DATA}
        names = table.named(settings.only)
        left = {name: self.minutes(name) for name in names if self.status(name) not in (DONE, FAILED)}
        again = {name: self.minutes(name) for name in names if self.status(name) == FAILED}
        taken = table.chosen(left | again, self.budget / 60)
        self.names = [name for name in names if name in taken]
        self.kept = [name for name in names if self.status(name) == DONE]
        self.left_out = [name for name in names if name not in (*self.names, *self.kept)]
        if not self.names and self.left_out:
            shortest = min(self.left_out, key=self.minutes)
            raise ValueError(
                f"--budget {settings.budget} holds no experiment: the shortest that is left, {shortest}, takes about "
                f"{60 * self.minutes(shortest):.0f} s; say more time"
            )
        self.finished = "" if self.names else f"all experiments in {path} are done: see {path / 'claims.md'}"

    def close(self) -> None:
        """Let other processes work in the folder again."""
        if self.held is not None:
            os.close(self.held)

    def status(self, name: str) -> str | None:
        """How an experiment ended in this folder; None where it has not begun."""
        return self.records[name]["status"] if name in self.records else None

    def minutes(self, name: str) -> float:
        """How long an experiment is estimated to take, less what it has taken already where it goes on."""
        own = self.settings
        whole = table.minutes_of(CLAIMS[name], own.dataset == "digits", own.rounds, own.seeds or 1)
        goes_on = CLAIMS[name].resumes and self.status(name) == STOPPED
        return max(0.0, whole - self.records[name]["seconds"] / 60) if goes_on else whole

    def words(self, name: str) -> list[str]:
        """The words of an experiment's command behind Python's."""
        claim = CLAIMS[name]
        flags = table.flags_of(claim, self.data, self.settings.rounds, self.settings.seeds)
        out = ["--out", str(self.path / name)] if claim.takes else []  # what takes no data only prints
        return ["-m", claim.module, *shlex.split(flags), *out, *(["--resume"] if claim.resumes else [])]

    def line(self, name: str) -> Line:
        """An experiment's row of the page."""
        whole = shlex.join(["python", "-m", CLAIMS[name].module]) + " " + table.whole_of(CLAIMS[name], self.data)
        return Line(
            name,
            CLAIMS[name],
            self.records.get(name),
            shlex.join(["python", *self.words(name)]),
            whole.strip(),
            self.minutes(name),
        )

    def note(self, name: str, status: str, seconds: float, reason: str) -> None:
        """Record how an experiment ended, and write the page anew."""
        earlier = self.records.get(name, {"seconds": 0.0})["seconds"] if CLAIMS[name].resumes else 0.0
        self.records[name] = {"status": status, "seconds": earlier + seconds, "reason": reason}
        self.write()

    def write(self) -> None:
        """claims.json and claims.md."""
        said = {name: _plain(getattr(self.settings, name)) for name in SAME}
        replace(self.path / RECORD, json.dumps({"settings": said, "records": self.records}, indent=2) + "\n")
        shown = [name for name in CLAIMS if name in {*self.names, *self.kept, *self.records}]
        others = [name for name in self.left_out if name not in shown]
        spent = sum(record["seconds"] for record in self.records.values()) / 60
        head = [
            f"`{' '.join(spelled_command(sys.orig_argv))}`",
            f"Version {dslth_jax.__version__}{commit()}, {now()}. {spent:.1f} minutes so far; a budget of "
            f"{self.settings.budget} a command.",
        ]
        if self.data["dataset"] == "digits":
            head.append(ON_DIGITS)
        text = page.page_of([*map(self.line, shown)], [*map(self.line, others)], head, self.path)
        replace(self.path / "claims.md", text)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    return str(value) if isinstance(value, Path) else value


@functools.cache
def commit() -> str:
    """The commit of the clone in which this library lies, as a part of a sentence; empty where it lies in none."""
    root = Path(dslth_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    asked = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(asked, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f", commit {found.stdout.strip()}" if found.returncode == 0 else ""


# The command ---------------------------------------------------------------------------------------------------------


def check(settings: All) -> None:
    """Raise a ValueError if a setting cannot be."""
    table.seconds_of(settings.budget)
    table.named(settings.only)
    expect_choice("--dataset", settings.dataset, table.DATASETS)
    check_each(settings)
    if settings.dataset == "digits" and settings.data_dir is not None:
        raise ValueError("--data-dir is for data sets that are downloaded, digits needs none: leave it out")
    if settings.class_file is not None and not settings.class_file.is_file():
        raise ValueError(f"--class-file must be a file of each agent's classes, got {settings.class_file}")
    graph = settings.topology
    if graph is not None and graph.partition(":")[0] not in GRAPHS and not os.path.isfile(graph):  # noqa: PTH113
        raise ValueError(f"--topology must be one of {', '.join(GRAPHS)} or a graph's file that exists, got {graph!r}")
    if settings.resume and settings.out is None:
        raise ValueError("--resume needs --out: say which folder is to go on")


def begin(settings: All) -> Work:
    """Check everything, and open the folder. A ValueError if it holds something else, or other settings."""
    check(settings)
    out = settings.out or fresh("claims")
    goes_on = settings.resume and (out / RECORD).is_file()
    if not goes_on and (obstacle := obstacle_to_folder(out, resume=False)):
        again = ", or say --resume" if (out / RECORD).is_file() else ""
        raise ValueError(f"--out {out} must be a new or empty folder, and {obstacle}: name another{again}")
    records = recorded(out, settings) if goes_on else {}
    Work(settings, out, dict(records), None)  # a budget that holds nothing leaves no folder
    out.mkdir(parents=True, exist_ok=True)
    try:
        held = machine.lock(out)
    except BlockingIOError:
        raise ValueError(f"another process is at work in {out}: wait, or name another --out") from None
    work = Work(settings, out, records, held)
    if work.finished:
        work.close()
    return work


def recorded(out: Path, settings: All) -> dict[str, Row]:
    """What claims.json says of each experiment; a ValueError where it is torn, or of other settings."""
    try:
        found = json.loads((out / RECORD).read_text())
        earlier, records = found["settings"], found["records"]
        fits = all({"status", "seconds", "reason"} <= {*record} for record in records.values())
    except (ValueError, TypeError, LookupError, AttributeError):
        fits = False
    if not fits:
        raise ValueError(f"{out / RECORD} must be what this command has written, and is not: name another --out")
    for name in SAME:
        if (value := _plain(getattr(settings, name))) != earlier.get(name):
            told = f"{flag(name)} was {earlier.get(name)} and is {value}"
            raise ValueError(f"the experiments in {out} have other settings: {told}: say the same, or name another")
    return {name: record for name, record in records.items() if name in CLAIMS}


def finish(work: Work, stop: Stop) -> None:
    """Run what the budget holds, and let others work in the folder again. Raises a ValueError at the end if any
    experiment failed, and a StoppedError if a signal came."""
    try:
        failed = in_turn(work, stop)
    finally:
        work.close()
    stop.obey(lambda here: here)
    if failed:
        names = ", ".join(failed)
        raise ValueError(f"{counted(len(failed), 'experiment')} failed: {names}; their logs are in {work.path}")


def in_turn(work: Work, stop: Stop) -> list[str]:
    """Run what the budget holds, one after another, until its end or a signal; returns the names of what failed."""
    ends, say = time.monotonic() + work.budget, functools.partial(print, file=Stream(sys.stdout, stop), flush=True)
    say(f"{counted(len(work.names), 'experiment')} in {work.settings.budget}: {', '.join(work.names)}")
    if work.left_out:
        say(f"left out for lack of time: {', '.join(work.left_out)}")
    stop.later = True
    work.write()
    failed = []
    for place, name in enumerate(work.names, 1):
        if stop.asked is not None or time.monotonic() >= ends:
            break
        minutes = (ends - time.monotonic()) / 60
        say(f"{place} of {len(work.names)}, {name}: about {work.minutes(name):.1f} minutes, {minutes:.1f} are left")
        status, reason = one(work, name, ends, stop, functools.partial(say, end=""))
        if status == FAILED:
            failed.append(name)
        say(f"{name}: {status}{f': {reason}' if reason else ''}")
    say(f"page: {work.path / 'claims.md'}")
    return failed


def one(work: Work, name: str, ends: float, stop: Stop, say: Callable[[str], None]) -> tuple[str, str]:
    """Run one experiment, and record how it ended; returns that, and why."""
    log = work.path / f"{name}.log"
    if name == "theorem" and (work.path / name / "table.md").is_file():
        work.note(name, DONE, 0.0, "")  # it came to its end, and this command did not
        return DONE, ""
    ended = children.run([sys.executable, *work.words(name)], log, ends, stop, say)
    if ended.stopped:
        status, reason = STOPPED, ended.stopped
    elif ended.code:
        status, reason = FAILED, f"code {ended.code}, {children.last_line(log)[:500]}"
    else:
        status, reason = DONE, ""
    work.note(name, status, ended.seconds, reason)
    return status, reason


def main(program: str, arguments: Sequence[str] | None = None, stop: Stop | None = None) -> int:
    """Run the claims' experiments."""
    return command.conduct(program, lambda: begin(command.parse(arguments, All, program)), finish, stop)
