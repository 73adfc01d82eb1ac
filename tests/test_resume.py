"""Runs that are stopped, killed, or whose disk fails: what goes on ends as if nothing had happened."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import optimized
from fakes import draw_nothing, use_fakes
from jax.sharding import NamedSharding, PartitionSpec
from test_sweep import StopAfter
from tiny import TinyNet, assert_same_numbers, rows_of, use_tiny_network

from dslth_jax import sharding
from dslth_jax.networks.zoo import MODULES
from dslth_jax.study.config.command import parse
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.data import datasets
from dslth_jax.study.results import folders
from dslth_jax.study.training import checkpoint
from dslth_jax.study.training.loop import restored
from experiments import cifar
from experiments.cifar import run

FLAGS = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--rounds", "8", "--eval-every", "3"]
SWITCHES = {
    "code": [],
    "adam": ["--optimizer", "adam", "--lr", "0.01@cosine", "--fine-tune-lr", "same"],
    "silent rounds": ["--exchange-every", "3", "--mixing", "metropolis"],
    "changing links": ["--order", "paper", "--topology", "changing-erdos-renyi:0.5", "--hear", "2", "--local-steps=2"],
}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)
    draw_nothing(monkeypatch)


@pytest.fixture
def fakes(monkeypatch):
    """What is stopped and resumed are fakes of compiled programs, whose whole state is in their checkpoints."""
    use_fakes(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run, with fakes, that nothing stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        use_fakes(patch)
        assert cifar.main([*FLAGS, "--out", str(out)]) == 0
    return out


def stop_after(rounds: int, out: Path, *flags: str) -> None:
    """A run that a signal asks to stop after so many rounds."""
    assert cifar.main([*FLAGS, *flags, "--out", str(out)], StopAfter(rounds)) == 143


@pytest.mark.parametrize(
    ("name", "rounds"),
    [
        pytest.param("code", 0, marks=pytest.mark.slow),
        pytest.param("code", 4, marks=pytest.mark.slow),
        pytest.param("adam", 4, marks=pytest.mark.slow),
        pytest.param("silent rounds", 4, marks=pytest.mark.slow),
        pytest.param("changing links", 4, marks=pytest.mark.slow),
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(name, rounds, tmp_path, capsys):
    out, flags = tmp_path / "cut", SWITCHES[name]
    with optimized() if name == "code" else contextlib.nullcontext():
        assert cifar.main([*FLAGS, *flags, "--out", str(tmp_path / "whole")]) == 0
        stop_after(rounds, out, *flags)
        said = capsys.readouterr().err
        went_on = f"; what was had is kept in {out}; --resume --out {out} goes on\n"
        assert said == f"experiments.cifar: stopped by SIGTERM{went_on}"
        assert cifar.main([*FLAGS, *flags, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(tmp_path / "whole", out)


@pytest.mark.slow
def test_a_run_goes_on_with_other_chunks_and_other_intervals(tmp_path):
    """And ends as one that nothing stopped."""
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert cifar.main([*FLAGS, "--out", str(whole)]) == 0
    stop_after(5, out, "--checkpoint-every", "2", "--agent-chunk", "2")
    assert cifar.main([*FLAGS, "--out", str(out), "--resume", "--checkpoint-every", "3", "--agent-chunk", "1"]) == 0
    assert_same_numbers(whole, out)


def test_a_run_may_be_stopped_again_and_again(whole, tmp_path, fakes):
    out = tmp_path / "cut"
    stop_after(2, out)
    for _ in range(2):
        stop_after(2, out, "--resume")
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)
    config = json.loads((out / "config.json").read_text())
    assert [again["from_round"] for again in config["resumed"]] == [2, 4, 6]


def test_without_a_checkpoint_a_run_starts_anew(whole, tmp_path, fakes):
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


@pytest.mark.parametrize(
    ("flags", "rounds"),
    [
        pytest.param([], ("6", "8"), id="evaluated", marks=pytest.mark.slow),
        # Its last exchange, of 6, closes it.
        pytest.param(["--exchange-every", "3", "--eval-every", "4"], ("8", "13"), id="silent at the end"),
        pytest.param(["--exchange-every", "2", "--exchange-from", "3"], ("7", "12"), id="late", marks=pytest.mark.slow),
        pytest.param(["--algorithm", "dsgd", "--eval-every", "5"], ("7", "9"), id="floats"),
        pytest.param(["--exchange-every", "3", "--eval-every", "25"], ("10", "11"), id="closed twice"),
    ],
)
def test_a_finished_run_becomes_longer_as_if_it_had_been_so_from_the_start(flags, rounds, tmp_path, capsys, fakes):
    """Its last row gives way to what a longer run has there: fewer test images, or nothing; and so do its bits."""
    shorter, longer = ([*FLAGS, *flags, "--rounds", number] for number in rounds)
    out = tmp_path / "run"
    assert cifar.main([*longer, "--out", str(tmp_path / "whole")]) == 0
    assert cifar.main([*shorter, "--checkpoint-every", "4", "--out", str(out)]) == 0
    assert cifar.main([*longer, "--resume", "--out", str(out)]) == 0
    assert_same_numbers(tmp_path / "whole", out)
    config = json.loads((out / "config.json").read_text())
    assert [again["from_round"] for again in config["resumed"]] == [int(rounds[0])]
    assert config["settings"]["rounds"] == int(rounds[1])
    assert cifar.main([*shorter, "--resume", "--out", str(out)]) == 2  # it cannot become shorter
    assert f"--rounds was {rounds[1]} and is {rounds[0]}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--preset tuned --lr 0.001 --force-momentum 0.5 --exchange-every 3",
        "--algorithm dsgd",
        "--algorithm score-gossip --preset tuned --lr 0.001 --topology changing-regular:2 --keep-neighbours",
    ],
    ids=["force", "weights", "gossip"],
)
def test_a_real_run_becomes_longer_with_all_that_it_holds(flags, tmp_path):
    own, out = [*FLAGS, *flags.split()], tmp_path / "run"
    assert cifar.main([*own, "--rounds", "11", "--out", str(tmp_path / "whole")]) == 0
    assert cifar.main([*own, "--checkpoint-every", "4", "--out", str(out)]) == 0
    assert cifar.main([*own, "--rounds", "11", "--resume", "--out", str(out)]) == 0
    assert_same_numbers(tmp_path / "whole", out)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lr", "10@cosine", "--checkpoint-every", "2"], "because --lr 10@cosine depends on --rounds"),
        (["--algorithm", "dis-pfl", "--lr", "0.05", "--checkpoint-every", "2"], "because --algorithm dis-pfl depends"),
        (
            ["--preset", "tuned", "--lr", "0.01", "--target-channels", "0.5", "--checkpoint-every", "2"],
            "because --target-channels 0.5 depends on --rounds",
        ),
        ([], "kept no checkpoint from which more rounds can go on, for it had no --checkpoint-every"),
    ],
    ids=["a schedule", "an algorithm", "a target", "no checkpoint"],
)
def test_what_depends_on_the_number_of_rounds_cannot_become_longer(flags, said, tmp_path, capsys, fakes):
    out = ["--out", str(tmp_path / "run")]
    assert cifar.main([*FLAGS, *flags, *out]) == 0
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert cifar.main([*FLAGS, *flags, *out, "--resume", "--rounds", "20"]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_says_so(tmp_path, capsys, fakes):
    out = tmp_path / "run"
    assert cifar.main([*FLAGS, "--out", str(out)]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("nothing is left to do")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_other_settings_and_other_data_are_refused_by_name(tmp_path, capsys, monkeypatch, fakes):
    out = tmp_path / "cut"
    stop_after(3, out)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cifar.main([*FLAGS, "--out", str(out), "--resume", "--lr", "3", "--seed", "1"]) == 2
    said = capsys.readouterr().err
    assert "--lr was 10.0 and is 3" in said
    assert "--seed was 0 and is 1" in said
    assert said.count("was") == 2
    with monkeypatch.context() as nothing_is_loaded:
        nothing_is_loaded.setattr(datasets, "named", None)
        assert cifar.main([*FLAGS, "--out", str(out), "--resume", "--lr", "3"]) == 2
    assert "--lr was 10.0 and is 3" in capsys.readouterr().err
    assert cifar.main([*FLAGS, "--out", str(out)]) == 2
    assert "it holds something: say --resume to go on with that run, or name another" in capsys.readouterr().err
    # The same settings, but what is behind a name has changed.
    load = datasets.named
    monkeypatch.setattr(datasets, "named", lambda *source: turned(load(*source)))
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 2
    assert "other data, and the images and labels have changed: put back" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_other_kinds_of_numbers_are_refused_by_name(tmp_path, capsys, fakes):
    """What of JAX's environment changes them: how exact products of matrices are, and whether there are 64 bits."""
    out = tmp_path / "cut"
    stop_after(3, out)
    assert json.loads((out / "config.json").read_text())["numerics"]["JAX_DEFAULT_MATMUL_PRECISION"] == "None"
    capsys.readouterr()
    with jax.default_matmul_precision("highest"):
        assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 2
    said = capsys.readouterr().err
    assert "other JAX settings: JAX_DEFAULT_MATMUL_PRECISION was None and is highest: restore them" in said


def turned(dataset):
    """The same data set with one pixel changed."""
    images = dataset.train_images.copy()
    images[0, 0, 0] ^= 1
    return dataset._replace(train_images=images)


@pytest.mark.parametrize("rows", [2, 5])
def test_other_devices_pad_members_to_another_number(rows, tmp_path):
    """Three members, saved as four rows for two devices, then on one device that holds fewer or many that hold more."""
    mesh = sharding.agents_mesh(1)
    spread = NamedSharding(mesh, PartitionSpec(None, sharding.AXIS))
    saved = {"scores": jnp.arange(8.0).reshape(4, 2), "round": jnp.arange(4)}
    checkpoint.save(tmp_path, 7, saved, {"rows": 4})
    like = {
        "scores": jax.ShapeDtypeStruct((rows, 2), jnp.float32, sharding=spread),
        "round": jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec(None))),
    }
    came = restored(checkpoint.latest(tmp_path), like)
    chosen = np.minimum(np.arange(rows), 3)
    chex.assert_trees_all_equal(came, jax.tree.map(lambda leaf: leaf[chosen], saved))
    assert came["scores"].sharding == spread


def test_a_finished_run_is_not_kept_from_others(tmp_path, fakes):
    settings = Settings(dataset="digits", model="tiny", agents=2, rounds=1, out=tmp_path / "run")
    run(settings)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing is left to do"):
            run(dataclasses.replace(settings, resume=True))
    assert config["settings"]["resume"] is False


def test_a_folder_belongs_to_one_process(tmp_path, capsys, fakes):
    out = tmp_path / "run"
    held = folders.open_folder(parse([*FLAGS, "--out", str(out)], Settings, "experiments.cifar"), "held")
    for more in ([], ["--resume"]):
        assert cifar.main([*FLAGS, "--out", str(out), *more]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "another process is at work in the run folder" in said or "holds something" in said
    folders.close(held)
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0


def test_a_checkpoint_that_is_not_whole_is_passed_over(whole, tmp_path, capsys, fakes):
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
def test_a_full_disk_loses_nothing_before_it(when, whole, tmp_path, capsys, fakes):
    out, full = tmp_path / "cut", OSError(errno.ENOSPC, "No space left on device")
    real, calls = folders.write_metrics, []

    def write(*what):
        calls.append(what)
        if len(calls) == 4:
            raise full
        real(*what)

    def save(*what, **settings):
        raise full

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*(folders, "write_metrics", write) if when == "a row" else (checkpoint, "save", save))
        assert cifar.main([*FLAGS, "--checkpoint-every", "2", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written to any more" in said
    assert len(rows_of(out)) == (2 if when == "a row" else 1)
    assert cifar.main([*FLAGS, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(whole, out)


# Real signals, in a process of its own.


def command(*flags: str) -> None:
    """The command as a shell runs it, with the tiny network, and with fakes of its programs if so is said first."""
    import runpy

    MODULES["tiny"] = TinyNet
    if faked := flags[0] == "fakes":
        use_fakes(pytest.MonkeyPatch())
    sys.argv[1:] = flags[faked:]
    del sys.modules["experiments.cifar"]
    runpy.run_module("experiments.cifar", run_name="__main__", alter_sys=True)


def begin(*flags: str, fakes: bool = False) -> subprocess.Popen:
    here = Path(__file__).parent
    words = "import sys, test_resume as here; here.command(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", words, *(["fakes"] * fakes), *FLAGS, *flags],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "DSLTH_ANNOTATIONS": "unchecked"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen, what) -> None:
    until = time.monotonic() + 120
    while process.poll() is None and not what() and time.monotonic() < until:
        time.sleep(0.02)


LONG = ["--rounds", "120", "--eval-every", "60"]


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "long"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        draw_nothing(patch)
        assert cifar.main([*FLAGS, *LONG, "--out", str(out)]) == 0
    return out


OTHERS = ["--agent-chunk", "2", "--checkpoint-every", "50"]


@pytest.mark.parametrize(
    ("number", "code", "flags"),
    [pytest.param(signal.SIGTERM, 143, [], marks=pytest.mark.slow), (signal.SIGKILL, -9, OTHERS)],
)
def test_signals_and_kills_of_a_real_process(number, code, flags, long, tmp_path):
    """It goes on in this one, with other chunks and other intervals, and ends as a run that was let be: SIGKILL loses
    the rounds since the last checkpoint."""
    out = tmp_path / "cut"
    process = begin(*LONG, "--out", str(out), "--checkpoint-every", "5")
    wait_for(process, lambda: len(list((out / "checkpoint").glob("round_*[0-9]"))) > 1)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert cifar.main([*FLAGS, *LONG, *flags, "--out", str(out), "--resume"]) == 0
    assert_same_numbers(long, out)
    assert json.loads((out / "config.json").read_text())["resumed"][0]["from_round"] > 0


def test_a_second_signal_ends_at_once(tmp_path):
    """While a round, or here a save, takes its time."""
    process = begin("--rounds", "100000", "--eval-every", "100000", "--out", str(tmp_path / "run"), fakes=True)
    wait_for(process, lambda: (tmp_path / "run" / "metrics.jsonl").is_file() and rows_of(tmp_path / "run"))
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
