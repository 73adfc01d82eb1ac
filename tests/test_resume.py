"""Runs that are stopped, killed, or whose disk fails: what goes on ends as if nothing had happened."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep import StopAfter
from tiny import TinyNet, assert_same_numbers, rows_of, use_tiny_network

from dslth_jax import checkpoint
from dslth_jax.models import MODULES
from experiments import cifar, record

FLAGS = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--rounds", "8", "--eval-every", "3"]
SWITCHES = {
    "code": [],
    "adam": ["--optimizer", "adam", "--lr", "0.01@cosine", "--fine-tune-lr", "same"],
    "silent rounds": ["--exchange-every", "3", "--mixing", "metropolis"],
    "changing links": ["--order", "paper", "--topology", "changing-erdos-renyi:0.5", "--local-steps", "2"],
}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        assert cifar.main([*FLAGS, "--out", str(out)]) == 0
    return out


def stop_after(rounds: int, out: Path, *flags: str) -> None:
    """A run that a signal asks to stop after so many rounds."""
    assert cifar.main([*FLAGS, *flags, "--out", str(out)], StopAfter(rounds)) == 143


@pytest.mark.parametrize(("name", "rounds"), [("code", 0), *((name, 4) for name in SWITCHES)])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(name, rounds, tmp_path, capsys):
    out, flags = tmp_path / "cut", SWITCHES[name]
    assert cifar.main([*FLAGS, *flags, "--out", str(tmp_path / "whole")]) == 0
    stop_after(rounds, out, *flags)
    said = capsys.readouterr().err
    assert (
        said == f"experiments.cifar: stopped by SIGTERM; what was had is kept in {out}; --resume --out {out} goes on\n"
    )
    assert cifar.main([*FLAGS, *flags, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(tmp_path / "whole", out)


def test_a_run_goes_on_with_other_chunks_and_other_intervals(whole, tmp_path):
    out = tmp_path / "cut"
    stop_after(5, out, "--checkpoint-every", "2", "--agent-chunk", "2")
    assert cifar.main([*FLAGS, "--out", str(out), "--resume", "--checkpoint-every", "3", "--agent-chunk", "1"]) == 0
    assert_same_numbers(whole, out)


def test_a_run_may_be_stopped_again_and_again(whole, tmp_path):
    out = tmp_path / "cut"
    stop_after(2, out)
    for _ in range(2):
        stop_after(2, out, "--resume")
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)
    config = json.loads((out / "config.json").read_text())
    assert [again["from_round"] for again in config["resumed"]] == [2, 4, 6]


def test_without_a_checkpoint_a_run_starts_anew(whole, tmp_path):
    out = tmp_path / "cut"
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)
    # Killed before there was one: what it had written is of no use.
    for name in ("agents.csv", "masks.npz"):
        (out / name).unlink()
    config = json.loads((out / "config.json").read_text())
    config.pop("finished")
    (out / "config.json").write_text(json.dumps(config))
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)


def test_a_finished_run_says_so(tmp_path, capsys):
    out = tmp_path / "run"
    assert cifar.main([*FLAGS, "--out", str(out)]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("nothing is left to do")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_settings_are_refused_by_name(tmp_path, capsys):
    out = tmp_path / "cut"
    stop_after(3, out)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cifar.main([*FLAGS, "--out", str(out), "--resume", "--lr", "3", "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "--lr was 10.0 and is 3" in said
    assert "--seed was 0 and is 1" in said
    assert said.count("was") == 2
    assert cifar.main([*FLAGS, "--out", str(out)]) == 2
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_belongs_to_one_process(tmp_path, capsys):
    out = tmp_path / "run"
    held = record.open_folder(cifar.parse([*FLAGS, "--out", str(out)]))
    for more in ([], ["--resume"]):
        assert cifar.main([*FLAGS, "--out", str(out), *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "another process is at work in the run folder" in said or "holds something" in said
    record.close(held)
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0


def test_a_checkpoint_that_is_not_whole_is_passed_over(whole, tmp_path, capsys):
    out = tmp_path / "cut"
    stop_after(6, out, "--checkpoint-every", "2")
    newest = max((out / "checkpoint").iterdir())
    for path in newest.rglob("*"):
        if path.is_file() and path.stat().st_size > 3:
            path.write_bytes(path.read_bytes()[:-3])
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert f"skipped a checkpoint that is not whole: {newest.name}" in " ".join(capsys.readouterr().out.split())
    assert_same_numbers(whole, out)


@pytest.mark.parametrize("when", ["a row", "a checkpoint"])
def test_a_full_disk_loses_nothing_before_it(when, whole, tmp_path, capsys):
    out, full = tmp_path / "cut", OSError(errno.ENOSPC, "No space left on device")
    real, calls = record.write_metrics, []

    def write(*what):
        calls.append(what)
        if len(calls) == 4:
            raise full
        real(*what)

    def save(*what, **settings):
        raise full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*(record, "write_metrics", write) if when == "a row" else (checkpoint, "save", save))
        assert cifar.main([*FLAGS, "--checkpoint-every", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written to any more" in said
    assert len(rows_of(out)) == (2 if when == "a row" else 1)
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)


# Real signals, in a process of its own.


def command(*flags: str) -> None:
    """The command as a shell runs it, with the tiny network."""
    import runpy

    MODULES["tiny"] = TinyNet
    sys.argv[1:] = flags
    del sys.modules["experiments.cifar"]
    runpy.run_module("experiments.cifar", run_name="__main__", alter_sys=True)


def begin(*flags: str) -> subprocess.Popen:
    here = Path(__file__).parent
    words = "import sys, test_resume as here; here.command(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", words, *FLAGS, *flags],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, what) -> None:
    until = time.monotonic() + 120
    while process.poll() is None and not what() and time.monotonic() < until:
        time.sleep(0.02)


LONG = ["--rounds", "300", "--eval-every", "100"]


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "long"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        assert cifar.main([*FLAGS, *LONG, "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_and_kills_of_a_real_process(number, code, long, tmp_path):
    """It goes on in this one, and ends as a run that was let be: SIGKILL loses the rounds since the last checkpoint."""
    out = tmp_path / "cut"
    process = begin(*LONG, "--out", str(out), "--checkpoint-every", "5")
    wait_for(process, lambda: len(list((out / "checkpoint").glob("round_*[0-9]"))) > 1)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert cifar.main([*FLAGS, *LONG, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(long, out)
    assert json.loads((out / "config.json").read_text())["resumed"][0]["from_round"] > 0


def test_a_second_signal_ends_at_once(tmp_path):
    """While a round, or here a save, takes its time."""
    process = begin("--rounds", "100000", "--eval-every", "100000", "--out", str(tmp_path / "run"))
    wait_for(process, lambda: (tmp_path / "run" / "metrics.jsonl").is_file() and rows_of(tmp_path / "run"))
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
