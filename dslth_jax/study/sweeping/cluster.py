"""A sweep on a cluster: each group of members that share a program is one job, by submitit, on Slurm or here.

A job trains its members in a folder of its own, under `jobs` in the sweep's, and always goes on with what is there: so
it may be queued again. The command that has submitted the jobs waits for them, and gathers their rows into the sweep's
folder, as if it had trained all members itself.
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from dslth_jax.study.config.algorithms import with_own_settings
from dslth_jax.study.results import folders
from dslth_jax.study.sweeping.grid import Points, Sweep, programs_of
from dslth_jax.study.system.console import counted
from dslth_jax.study.system.stopping import Stop
from dslth_jax.study.training import records
from dslth_jax.study.training.loop import ready, train

SECONDS_BETWEEN_LOOKS = 1.0  # at jobs
MINUTES = 240  # of a job, unless --submit-with timeout_min says others


class Part(records.Sweep):
    """The members of a sweep that share a program, with their numbers there, in a folder of their own."""

    numbers: Sequence[int]

    def __init__(self, points: Points, place: int, numbers: Sequence[int], whole: Path) -> None:
        own = whole / "jobs" / f"{place:03d}_{zlib.crc32(repr([*numbers]).encode()):08x}"  # of these members alone
        settings = dataclasses.replace(points.settings, out=own, resume=True, submit=None, submit_with=())
        super().__init__(dataclasses.replace(points, settings=settings, members=[]))
        self.numbers, self.path, self.whole, self.name = numbers, own, whole, whole.name

    @property
    def runs(self) -> Path:
        """Those of the whole sweep."""
        return self.whole / "runs"

    def concludes(self) -> list[dict[str, Any]]:
        """Nothing is left to do; what all came to is for the whole sweep to say."""
        self.keep(folders.finish)
        return []


class Job(NamedTuple):
    """What is pickled: how to make a part of a sweep anew, and to train it."""

    settings: Mapping[str, Any]  # of the sweep, as JSON has them
    points: Mapping[str, Any]  # the other fields of `Points`
    place: int
    numbers: Sequence[int]
    whole: Path

    def __call__(self) -> str:
        """Train, in the job; returns what is wrong, empty if nothing is. On this machine a signal saves and ends it."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in self.settings.items()
        }
        points = Points(with_own_settings(Sweep)(**known), **self.points)
        stop = Stop()
        if "SLURM_JOB_ID" not in os.environ:  # whose signals submitit answers, by `checkpoint`
            stop.listen()
        try:
            study = ready(Part(points, self.place, self.numbers, self.whole))
            if not study.finished:
                train(study, stop)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    def checkpoint(self) -> Any:
        """Before Slurm ends the job, submitit asks what to queue: the same again, which goes on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def check(settings: Sweep) -> None:
    """Raise a ValueError if jobs are asked for in a way that makes no sense here."""
    if settings.submit is None:
        if settings.submit_with:
            raise ValueError("--submit-with needs --submit: say it, or leave --submit-with out")
        return
    if settings.search:
        raise ValueError("--search takes no --submit: start it in several jobs of your own, with one --storage")
    if settings.coordinator:
        raise ValueError("--submit takes no --coordinator: each job is a process of its own")
    options_of(settings)
    if find_spec("submitit") is None:
        raise ValueError("--submit needs submitit, which is not installed: pip install 'dslth-jax[cluster]'")
    if settings.submit == "slurm" and shutil.which("sbatch") is None:
        raise ValueError("--submit slurm needs sbatch, and there is none here: start it where jobs are submitted")


def check_options(settings: Sweep) -> None:
    """Raise a ValueError if jobs are to have options that nobody knows."""
    with tempfile.TemporaryDirectory() as folder:
        executor_of(settings, Path(folder))


def options_of(settings: Sweep) -> dict[str, Any]:
    """What --submit-with says to submitit; a ValueError where it is no NAME=VALUE."""
    options: dict[str, Any] = {"name": "dslth", "timeout_min": MINUTES}
    for spelled in settings.submit_with:
        name, equals, value = spelled.partition("=")
        if not (equals and name.isidentifier() and value):
            raise ValueError(f"--submit-with must be NAME=VALUE such as slurm_partition=gpu, got {spelled!r}")
        options[name] = int(value) if value.isdecimal() else value
    return options


def executor_of(settings: Sweep, folder: Path) -> Any:
    """Who takes jobs; a ValueError where it does not know an option."""
    import submitit

    executor = submitit.AutoExecutor(folder, cluster=settings.submit)
    try:
        executor.update_parameters(**options_of(settings))
    except (NameError, TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"--submit-with: {str(error).splitlines()[0]}") from None
    return executor


def submit(study: records.Sweep) -> None:
    """Have all members trained by jobs, and gather what they came to. A ValueError if a job failed; if the command is
    stopped, it stops its jobs."""
    settings, whole = study.points.settings, study.path.resolve()
    groups = programs_of(study.members, range(len(study.members)))
    parts = [Part(study.points, place, numbers, whole) for place, numbers in enumerate(groups)]
    waiting: list[tuple[Part, Any]] = []
    for place, part in enumerate(parts):
        if not gather(study, part):
            rest = {name: getattr(study.points, name) for name in ("axes", "first", "arms", "spaces", "said")}
            waiting.append((part, Job(settings.as_json(), rest, place, part.numbers, whole)))
    if not waiting:
        return
    jobs = handed_in(study, executor_of(settings, whole / "jobs" / "log"), [job for _, job in waiting])
    say = partial(study.said.print, highlight=False, markup=False, soft_wrap=True)
    names = ", ".join(job.job_id for job in jobs)
    say(f"{counted(len(jobs), 'job')}, one a program: {names}; logs in {whole / 'jobs' / 'log'}")
    open_ones, wrong = dict(enumerate(zip(waiting, jobs, strict=True), 1)), list[str]()
    try:
        study.stop.obey(lambda here: here)  # a signal that came meanwhile
        while open_ones:
            for number in [number for number, (_, job) in open_ones.items() if job.done()]:
                (part, _), job = open_ones.pop(number)
                complaint = complaint_of(job)
                if not (whole_part := gather(study, part)):
                    wrong.append(f"job {job.job_id}: {complaint or 'it ended before its members did'}")
                say(f"job {number} of {len(jobs)} {'is done' if whole_part else 'failed'}")
            time.sleep(SECONDS_BETWEEN_LOOKS if open_ones else 0)
    finally:
        for _, job in open_ones.values():
            with contextlib.suppress(Exception):  # one that cannot be ended keeps none of the others running
                end(job, settings)
    if wrong:
        what = f"{len(wrong)} of {len(jobs)} jobs failed ({wrong[0]})"
        raise ValueError(f"{what}: mend it, and --resume --out {study.path} goes on with what is left")


def handed_in(study: records.Sweep, executor: Any, jobs: Sequence[Job]) -> list[Any]:
    """What the executor knows the jobs by, once it has taken them all. A signal waits until then, so that whoever
    obeys it can end them. A ValueError if the executor takes none."""
    study.stop.later = True
    try:
        with executor.batch():
            return [executor.submit(job) for job in jobs]
    except RuntimeError as error:  # of submitit's kinds: sbatch took none, or was stopped with this command
        study.stop.obey(lambda here: here)
        why, submit = " ".join(str(error).split())[:300], study.points.settings.submit
        raise ValueError(f"--submit {submit}: jobs were refused ({why}): mend it, and say --resume") from None


def gather(study: records.Sweep, part: Part) -> bool:
    """Take what a part has come to; returns whether all of its members have."""
    came = part.known() if (part.path / "config.json").is_file() else {}
    if came.keys() - study.outcomes.keys():
        study.outcomes |= came
        study.has_rows()
        study.write_config()
    return study.outcomes.keys() >= {*part.numbers}


def complaint_of(job: Any) -> str:
    """What was wrong with a job that has ended, in one line; empty if nothing was."""
    try:
        return job.result()
    except Exception as error:  # of submitit's kinds, with the job's own traceback in it
        return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]


def end(job: Any, settings: Sweep) -> None:
    """Ask a job to save and to leave."""
    if settings.submit == "slurm":
        job.cancel()
    else:
        os.kill(int(job.job_id), signal.SIGTERM)  # which submitit hands on to the process that trains
