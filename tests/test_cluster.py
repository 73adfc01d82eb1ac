"""Sweeps whose groups are jobs: what is submitted, that it gives the same numbers, how jobs fail and go on; and the
files of `experiments/cluster`. With `pytest -m install` real jobs, by submitit on this machine."""

import pickle
import re
import shlex
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from fakes import StopAfter, use_fakes
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax.study.commands import sweep_of
from dslth_jax.study.config.command import parse
from dslth_jax.study.config.resolve import check_processes
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.sweeping import cluster
from dslth_jax.study.sweeping.grid import Sweep
from dslth_jax.study.system.stopping import Stop, StoppedError
from dslth_jax.study.training.loop import ready, train
from experiments import sweep

ROOT = Path(__file__).parents[1]
TINY = {"dataset": "digits", "model": "tiny", "agents": 2, "topology": "complete", "rounds": 4, "eval_every": 2}
GRID = {**TINY, "grid": ("order=code,paper", "lr=3,10"), "seeds": 2}


class FakeJob:
    """Does its work where it is asked for the result."""

    def __init__(self, job: cluster.Job, number: int) -> None:
        self.job, self.job_id, self.ended = job, str(1000 + number), False

    def done(self) -> bool:
        return True

    def result(self) -> str:
        return pickle.loads(pickle.dumps(self.job))()  # as it comes to another machine

    def cancel(self) -> None:
        self.ended = True


class FakeExecutor:
    """Takes jobs in one batch."""

    def __init__(self) -> None:
        self.jobs: list[FakeJob] = []

    def batch(self):
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        pass

    def submit(self, job: cluster.Job) -> FakeJob:
        self.jobs.append(FakeJob(job, len(self.jobs)))
        return self.jobs[-1]


@pytest.fixture
def executor(monkeypatch) -> FakeExecutor:
    """Takes the jobs of sweeps, which train in this process, with fakes of programs."""
    use_tiny_network(monkeypatch)
    use_fakes(monkeypatch)
    fake = FakeExecutor()
    monkeypatch.setattr(cluster, "find_spec", lambda package: "found")
    monkeypatch.setattr(cluster.shutil, "which", lambda program: program)
    monkeypatch.setattr(cluster, "executor_of", lambda settings, folder: fake)
    monkeypatch.setattr(Stop, "listen", lambda stop: None)
    return fake


def test_jobs_are_the_programs_of_a_sweep_and_give_its_numbers(executor, tmp_path, capsys):
    """In the same files, run folders included."""
    settings = {**GRID, "run_folders": True}
    rows = sweep.sweep(Sweep(**settings, out=tmp_path / "alone"))
    assert sweep.sweep(Sweep(**settings, submit="slurm", out=tmp_path / "jobs")) == rows
    assert [job.job.numbers for job in executor.jobs] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert "2 jobs, one a program: 1000, 1001" in capsys.readouterr().out
    one, other = tmp_path / "alone", tmp_path / "jobs"
    assert rows_of(one) == rows_of(other)
    assert (one / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()} | {"jobs"}
    for path in (one / "runs").iterdir():
        assert_same_numbers(path, other / "runs" / path.name)
    with pytest.raises(ValueError, match="nothing is left to do"):
        sweep.sweep(Sweep(**settings, submit="slurm", resume=True, out=other))


def test_a_job_that_fails_harms_no_other_and_is_submitted_again_alone(executor, tmp_path, monkeypatch):
    """And goes on from its own checkpoint."""
    settings = {**GRID, "seeds": 1, "out": tmp_path / "jobs"}
    work, looks = cluster.Job.__call__, StopAfter(2)

    def stopped(job: cluster.Job) -> str:
        if job.place == 0:
            monkeypatch.setattr(cluster, "Stop", lambda: looks)
            with pytest.raises(StoppedError):
                work(job)
            monkeypatch.setattr(cluster, "Stop", Stop)
            raise RuntimeError("Traceback\n  of the job\nno node is left\n")
        return work(job)

    monkeypatch.setattr(cluster.Job, "__call__", stopped)
    with pytest.raises(ValueError, match=r"1 of 2 jobs failed \(job 1000: no node is left\): mend it, and --resume"):
        sweep.sweep(Sweep(**settings, submit="slurm"))
    assert {row["member"] for row in rows_of(tmp_path / "jobs")} == {2, 3}
    assert list((tmp_path / "jobs" / "jobs").glob("000_*/checkpoint/*"))
    monkeypatch.setattr(cluster.Job, "__call__", work)
    executor.jobs.clear()
    rows = sweep.sweep(Sweep(**settings, submit="slurm", resume=True))
    assert [job.job.place for job in executor.jobs] == [0]
    assert rows == sweep.sweep(Sweep(**{**settings, "out": tmp_path / "alone"}))
    assert rows_of(tmp_path / "jobs") == rows_of(tmp_path / "alone")


def test_whoever_is_stopped_ends_the_jobs(executor, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeJob, "done", lambda job: job.job.place == 0)

    def interrupt(seconds: float) -> None:
        raise StoppedError(2)

    monkeypatch.setattr(cluster.time, "sleep", interrupt)
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs"))))
    assert [job.ended for job in executor.jobs] == [False, True]
    assert {row["member"] for row in rows_of(tmp_path / "jobs")} == {0, 1, 2, 3}


def test_whoever_is_stopped_while_jobs_are_handed_in_ends_them(executor, tmp_path, monkeypatch):
    study, submit = ready(sweep_of(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs"))), executor.submit

    def stopped(job: cluster.Job) -> FakeJob:
        if not executor.jobs:
            study.stop(signal.SIGTERM)
        return submit(job)

    monkeypatch.setattr(executor, "submit", stopped)
    with pytest.raises(StoppedError):
        train(study)
    assert [job.ended for job in executor.jobs] == [True, True]


def test_whoever_is_stopped_with_sbatch_has_been_stopped(executor, tmp_path, monkeypatch):
    """And was not refused: a terminal sends its signal to both."""
    study = ready(sweep_of(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs")))

    def stopped(job: cluster.Job) -> None:
        study.stop(signal.SIGINT)
        raise RuntimeError

    monkeypatch.setattr(executor, "submit", stopped)
    with pytest.raises(StoppedError):
        train(study)


def test_jobs_that_nobody_takes_are_one_sentence(executor, tmp_path, monkeypatch):
    def refuse(job: cluster.Job) -> None:
        raise RuntimeError("sbatch: error: invalid partition\n  specified: gpuu\n")

    monkeypatch.setattr(executor, "submit", refuse)
    with pytest.raises(ValueError, match=r"^--submit slurm: jobs were refused \(sbatch: error: invalid partition spec"):
        sweep.sweep(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs"))


def test_options_that_nobody_knows_leave_no_folder(executor, tmp_path, monkeypatch):
    def refuse(settings: Sweep, folder: Path) -> None:
        raise ValueError("--submit-with: no such option")

    monkeypatch.setattr(cluster, "executor_of", refuse)
    with pytest.raises(ValueError, match=r"^--submit-with: no such option$"):
        sweep.sweep(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs"))
    assert not (tmp_path / "jobs").exists()


def test_what_memory_here_does_not_hold_is_no_matter_of_jobs(executor, tmp_path, monkeypatch):
    """A job's machine is another one: it is the job that refuses."""
    from dslth_jax.study.training import memory

    monkeypatch.setattr(memory, "available", lambda device, sharing=1: 1000)
    with pytest.raises(ValueError, match=r"2 of 2 jobs failed \(job 1000: .* agents need about"):
        sweep.sweep(Sweep(**GRID, submit="slurm", out=tmp_path / "jobs"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--submit slurn", "--submit must be one of slurm, local, got 'slurn'; did you mean slurm?"),
        ("--submit local --search lr=1:2", "--search takes no --submit: start it in several jobs of your own"),
        ("--submit local --coordinator auto", "--submit takes no --coordinator"),
        ("--submit-with timeout_min=3", "--submit-with needs --submit: say it, or leave --submit-with out"),
        ("--submit local --submit-with timeout_min", "must be NAME=VALUE such as slurm_partition=gpu, got 'timeout_m"),
        ("--submit local", "--submit needs submitit, which is not installed: pip install 'dslth-jax[cluster]'"),
        ("--submit slurm --seeds 3", "--submit slurm needs sbatch, and there is none here"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_no_folder(flags, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "find_spec", lambda package: "found" if "slurm " in flags else None)
    monkeypatch.setattr(cluster.shutil, "which", lambda program: None)
    if "--search" in flags:
        pytest.importorskip("optuna", reason="only a search needs Optuna")
    assert sweep.main(["--dataset", "digits", *flags.split()]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


CLUSTER = ROOT / "experiments" / "cluster"


def scripts_of(path: Path) -> list[str]:
    """The scripts in a file for a cluster."""
    if path.suffix == ".slurm":
        return [path.read_text()]
    (found,) = yaml.safe_load_all(path.read_text())
    if "replicatedJobs" not in found.get("spec", {}):
        return [found["setup"], found["run"]]
    (job,) = found["spec"]["replicatedJobs"]
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    return container["args"]


@pytest.mark.parametrize("name", ["run.slurm", "run.sky.yaml", "run.jobset.yaml"])
def test_files_for_clusters_are_what_they_say(name, monkeypatch):
    """Scripts are of bash, and start a run that goes on, of several processes, with flags that this version has."""
    assert {path.name for path in CLUSTER.iterdir()} == {"run.slurm", "run.sky.yaml", "run.jobset.yaml"}
    scripts = scripts_of(CLUSTER / name)
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")
    (line,) = re.findall(r"-m dslth_jax run (.*)", "\n".join(scripts))
    for variable, value in (
        ("first", "10.0.0.1"), ("SKYPILOT_NUM_NODES", "2"), ("SKYPILOT_NODE_RANK", "1"), ("JOB_COMPLETION_INDEX", "1")
    ):  # fmt: skip
        line = line.replace(f"${variable}", value)
    settings = parse(shlex.split(line), Settings, "dslth run")
    check_processes(settings)
    assert settings.resume
    assert settings.checkpoint_every
    assert settings.out
    assert "Not tried: " in (CLUSTER / name).read_text()


@pytest.mark.install
@pytest.mark.skipif(find_spec("submitit") is None, reason="the extra [cluster] is not installed")
@pytest.mark.filterwarnings("default")
def test_real_jobs_on_this_machine(tmp_path, monkeypatch, as_users_compile):
    """The same numbers as one process; an option that submitit does not know is one line."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    settings = {**TINY, "model": "mlp", "agent_chunk": 1, "grid": ("order=code,paper", "lr=3,10")}
    rows = sweep.sweep(Sweep(**settings, submit="local", submit_with="timeout_min=20", out=tmp_path / "jobs"))
    assert [row["status"] for row in rows] == ["done"] * 4
    assert sweep.sweep(Sweep(**settings, out=tmp_path / "alone")) == rows
    assert rows_of(tmp_path / "jobs") == rows_of(tmp_path / "alone")
    with pytest.raises(ValueError, match=r"^--submit-with: "):
        sweep.sweep(Sweep(**settings, submit="local", submit_with="no_such=1", out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
