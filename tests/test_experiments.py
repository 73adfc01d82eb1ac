"""The main command: what it leaves, that it repeats itself, and how it ends."""

import csv
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from fakes import draw_nothing, use_fakes
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax.over_agents import default_chunk
from dslth_jax.study.config.numbers import numbers_of
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training.prepare import prepare
from experiments import cifar

KEYS = [
    "round", "loss", "accuracy_mean", "accuracy_std", "accuracy_worst", "accuracy_best", "density", "flip_rate",
    "simulated_seconds", "idle_seconds", "retention_mean",
    "agreement", "agreement_common", "agreement_apart", "score_spread", "score_spread_common", "score_spread_apart",
    "kept_bits", "bitmap_bits", "coded_bits", "float32_bits", "busiest_agent_bits", "exchanges", "coded_rounds",
    "seconds",
]  # fmt: skip
FILES = {
    "config.json", "metrics.jsonl", "agents.csv", "curves.png", "partition.png", "topology.png", "masks.npz",
    "kept.npz", "classes.csv",
}  # fmt: skip
CONVOLUTION, LINEAR = 3 * 3 * 4, 3 * 3 * 4 * 10  # entries of the tiny network for digits
SMALL = ["--dataset", "digits", "--agents", "4", "--topology", "ring", "--rounds", "5", "--eval-every", "2"]
TINY = [*SMALL, "--model", "tiny"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The run folder of one small run by the command."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        assert cifar.main([*TINY, "--retention", "0.1:0.4", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def agents(folder) -> list[dict]:
    with (folder / "agents.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_folder_holds_every_file(folder):
    assert {path.name for path in folder.iterdir()} == FILES
    for picture in folder.glob("*.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_configuration_says_every_setting(folder):
    config = json.loads((folder / "config.json").read_text())
    assert set(config["settings"]) == {field.name for field in dataclasses.fields(Settings)}
    assert config["settings"]["model"] == "tiny"
    assert config["versions"]["jax"] == jax.__version__
    assert config["device"]["platform"] == jax.default_backend()
    assert config["seed"] == 0


def test_the_configuration_runs_again(folder):
    config = json.loads((folder / "config.json").read_text())
    again = resolve(Settings(**{**config["settings"], "out": None}))
    first = {"dataset": "digits", "agents": 4, "topology": "ring", "rounds": 5, "eval_every": 2, "retention": "0.1:0.4"}
    assert again == dataclasses.replace(resolve(Settings(**first, model="tiny")), agent_chunk=1, devices=1)


def test_metrics_have_a_row_before_training_at_intervals_and_at_the_end(rows):
    assert [row["round"] for row in rows] == [0, 2, 4, 5]
    assert all(list(row) == KEYS for row in rows)
    assert rows[0]["score_spread"] == 0  # all start with the same scores
    assert 0 < rows[-1]["score_spread"] < 2
    assert rows[0]["loss"] is None
    assert rows[0]["flip_rate"] is None
    for row in rows[1:]:
        assert row["loss"] > 0
        assert 0 < row["flip_rate"] < 1
        assert 0 <= row["accuracy_worst"] <= row["accuracy_mean"] <= row["accuracy_best"] <= 1
        assert row["kept_bits"] < row["bitmap_bits"]
        assert row["coded_bits"] > 0  # of so few entries, a message's frame weighs more than a code saves
        assert row["busiest_agent_bits"] == row["bitmap_bits"] // 4
        assert row["float32_bits"] == 0


def test_bits_are_what_crossed_the_links(rows):
    kept = [
        CONVOLUTION - int((1 - r) * CONVOLUTION) + LINEAR - int((1 - 0.9) * LINEAR)
        for r in numbers_of(resolve(Settings(agents=4, retention="0.1:0.4")))["retention"].values
    ]
    for row in rows:
        # Four agents on a ring: each message travels two links.
        assert row["bitmap_bits"] == row["round"] * 8 * (CONVOLUTION + LINEAR)
        assert row["kept_bits"] == row["round"] * 2 * sum(kept)


def test_agents_are_listed_with_what_they_hold(agents, rows):
    assert [row["agent"] for row in agents] == list("0123")
    assert [float(row["retention"]) for row in agents] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert all(len(row["classes"].split()) == 4 for row in agents)
    assert all(int(row["neighbours"]) == 2 for row in agents)
    assert np.mean([float(row["accuracy"]) for row in agents]) == pytest.approx(rows[-1]["accuracy_mean"], abs=1e-6)
    # At the end all test samples count: 36 of a class, or 35 of a few.
    assert all(4 * 35 <= int(row["test_samples"]) <= 4 * 36 + 4 for row in agents)


def test_masks_are_those_in_use(folder, agents):
    with np.load(folder / "masks.npz") as file:
        layers = {name: file[name] for name in file if not name.endswith(".shape")}
        shapes = {name: tuple(file[f"{name}.shape"]) for name in layers}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == CONVOLUTION + LINEAR
    for agent, row in enumerate(agents):
        kept = sum(int(np.unpackbits(bits[agent], count=np.prod(shapes[name])).sum()) for name, bits in layers.items())
        assert kept / (CONVOLUTION + LINEAR) == pytest.approx(float(row["density"]), abs=1e-6)


@pytest.fixture
def faked(tmp_path, monkeypatch) -> Path:
    """The run folder of the same run by the command, of fakes."""
    use_fakes(monkeypatch)
    assert cifar.main([*TINY, "--retention", "0.1:0.4", "--out", str(tmp_path / "faked")]) == 0
    return tmp_path / "faked"


def test_the_same_run_from_python_gives_the_same_numbers(faked, tmp_path):
    settings = Settings(
        dataset="digits",
        model="tiny",
        agents=4,
        topology="ring",
        rounds=5,
        eval_every=2,
        retention="0.1:0.4",
        out=tmp_path / "again",
    )
    assert_same_numbers(cifar.run(settings).folder, faked)


def test_evaluating_more_often_changes_no_training(faked, tmp_path):
    assert cifar.main([*TINY, "--eval-every", "5", "--retention", "0.1:0.4", "--out", str(tmp_path / "rarely")]) == 0
    often, rarely = rows_of(faked)[-1], rows_of(tmp_path / "rarely")[-1]
    for key in ("accuracy_mean", "flip_rate", "density", "kept_bits"):
        assert often[key] == rarely[key]


def test_given_test_samples_hold_at_the_end_too(tmp_path):
    prepared = prepare(Settings(dataset="digits", agents=4, test_samples=7))
    # Those that never count are not even listed.
    assert prepared.tests.indices.shape[1] == prepared.tests.sizes.max()
    assert prepared.tests.sizes.tolist() == [28] * 4
    prepared = prepare(Settings(dataset="digits", agents=4))
    assert (prepared.tests.sizes >= 4 * 35).all()


def test_scores_that_run_away_end_with_3_and_keep_what_was_had(tmp_path, capsys, monkeypatch):
    use_fakes(monkeypatch)
    out = tmp_path / "diverged"
    assert cifar.main([*SMALL, "--lr", "1e38", "--out", str(out)]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) >= 1
    assert (out / "config.json").is_file()


def test_an_agent_without_neighbours_and_one_alone_run(tmp_path, monkeypatch):
    """The real programs of one agent alone."""
    draw_nothing(monkeypatch)
    few = ["--dataset", "digits", "--model", "tiny", "--rounds", "1", "--test-samples", "2"]
    assert cifar.main([*few, "--agents", "1", "--topology", "ring", "--out", str(tmp_path / "one")]) == 0


def test_a_file_of_ones_own_runs(tmp_path, monkeypatch):
    use_fakes(monkeypatch)
    rng = np.random.default_rng(0)
    arrays = {
        f"{split}_{kind}": rng.integers(0, 256, (60, 12, 10, 3), np.uint8) if kind == "images" else np.arange(60) % 3
        for split in ("train", "test")
        for kind in ("images", "labels")
    }
    np.savez(tmp_path / "own.npz", **arrays)
    flags = ["--agents", "2", "--rounds", "1", "--classes-per-agent", "2", "--topology", "complete"]
    out = tmp_path / "run"
    assert cifar.main(["--data-file", str(tmp_path / "own.npz"), *flags, "--out", str(out)]) == 0


def test_a_graphs_file_that_is_not_square(tmp_path, capsys):
    (tmp_path / "graph.txt").write_text("0 1 0\n1 0 1\n")
    assert cifar.main(["--dataset", "digits", "--agents", "3", "--topology", str(tmp_path / "graph.txt")]) == 2
    assert "must give edges weights above 0, got 0 in line 1" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(folder, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert cifar.main([*SMALL, "--out", str(folder)]) == 2
    assert "must be a new or empty folder" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cifar.main([*SMALL, "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def in_a_process(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Python in a process of its own, in the project's folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_data_that_is_neither_there_nor_to_be_had(tmp_path):
    """In a process of its own, with a proxy that refuses, so that no network is asked."""
    (tmp_path / "data").mkdir()
    nowhere = {"https_proxy": "http://127.0.0.1:9", "XDG_CACHE_HOME": str(tmp_path)}
    ended = in_a_process("-m", "experiments.cifar", "--data-dir", str(tmp_path / "data"), **nowhere)
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "--dataset digits" in ended.stderr
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "code", "when"),
    [
        pytest.param(signal.SIGINT, 130, "compiling", marks=pytest.mark.slow),
        (signal.SIGTERM, 143, "training"),
    ],
)
def test_a_signal_ends_the_command_in_one_line(number, code, when, tmp_path):
    """While its real programs compile; and, of fakes, while it trains as one of several processes, which JAX's own
    services must not keep from hearing it."""
    out, here = tmp_path / "run", Path(__file__).parent
    flags = [*TINY, "--rounds", "1000000", "--out", str(out)]
    words = ["-c", "import sys, test_resume as here; here.command(*sys.argv[1:])"]
    if when == "training":
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        flags += ["--coordinator", f"localhost:{port}", "--processes", "1", "--process", "0"]
        words += ["fakes"]
    process = subprocess.Popen(
        [sys.executable, *words, *flags],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", "DSLTH_ANNOTATIONS": "unchecked"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # The picture is drawn right before compilation, the first row is written right before training.
    sign = out / "partition.png" if when == "compiling" else out / "metrics.jsonl"
    while process.poll() is None and not (sign.is_file() and sign.stat().st_size):
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.count("\n") == 1
    assert signal.Signals(number).name in said


def test_importing_the_library_brings_in_neither_the_engine_nor_heavy_extras():
    heavy = {"tensorflow_datasets", "sklearn", "networkx", "matplotlib", "rich", "tensorflow", "orbax"}
    heavy |= {"constriction", "pandas", "dslth_jax.study"}
    # Flax itself brings in rich and orbax for its printing and checkpoints.
    words = "import sys, flax.linen, optax; known = {*sys.modules}; import dslth_jax; print(*{*sys.modules} - known)"
    ended = in_a_process("-c", words)
    assert ended.returncode == 0, ended.stderr
    assert "dslth_jax" in ended.stdout.split()
    assert heavy.isdisjoint(ended.stdout.split())


def test_help_shows_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit) as stop:
        cifar.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert "--" + field.name.replace("_", "-") in shown
    assert shown.count("(default:") + shown.count("(default: \n") >= len(dataclasses.fields(Settings)) - 5


def test_a_population_of_one_chunk_setting_is_what_the_command_uses():
    assert default_chunk(64) == (1 if jax.default_backend() == "cpu" else 64)
