"""Trackers: what they are told and in which order, of runs and sweeps; that none of them can end a run; and, with
`pytest -m install`, what the real ones hold afterwards, without a network."""

import json
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import StopAfter, use_fakes
from tiny import rows_of, use_tiny_network

from dslth_jax.study.commands import sweep_of
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.results import pictures, track
from dslth_jax.study.sweeping.grid import Sweep
from dslth_jax.study.system.stopping import StoppedError
from dslth_jax.study.training.loop import ready, train
from dslth_jax.study.training.records import Run
from experiments import cifar, sweep

pytestmark = pytest.mark.filterwarnings("default")  # of other packages
TINY = {"dataset": "digits", "model": "tiny", "agents": 4, "rounds": 4, "eval_every": 2}


@pytest.fixture(autouse=True)
def fakes(monkeypatch):
    """Of compiled programs."""
    use_tiny_network(monkeypatch)
    use_fakes(monkeypatch)


@pytest.fixture
def calls(monkeypatch) -> list[tuple]:
    """All that the tracker `fake` is told: what, of which run, and with what."""
    told: list[tuple] = []

    def start(run: track.Tracked) -> track.Calls:
        told.append(("start", run.name, run))
        return track.Calls(
            lambda round, when, numbers: told.append(("row", run.name, round, numbers)),
            lambda round, path: told.append(("picture", run.name, round, path.name)),
            lambda how: told.append(("end", run.name, how)),
        )

    monkeypatch.setitem(track.TRACKERS, "fake", track.Tracker("json", start))
    return told


def rounds(told: list[tuple], run: str) -> list[int]:
    return [call[2] for call in told if call[:2] == ("row", run)]


def test_a_run_is_started_told_row_by_row_and_ended(calls, tmp_path):
    """With the numbers of its own file, by names with groups, and settings that any tracker takes."""
    cifar.run(Settings(**TINY, track="fake", out=tmp_path / "run"))
    assert [call[0] for call in calls] == ["start", *["row"] * 3, *["picture"] * 3, "end"]
    assert {call[1] for call in calls} == {"run"}
    began, first, last = calls[0][2], calls[1], calls[3]
    assert began.settings["agents"] == 4
    assert all(isinstance(value, bool | int | float | str) for value in began.settings.values())
    assert [row["round"] for row in rows_of(tmp_path / "run")] == rounds(calls, "run") == [0, 2, 4]
    row = rows_of(tmp_path / "run")[-1]
    assert last[3]["accuracy/mean"] == row["accuracy_mean"]
    assert last[3]["megabytes/coded"] == row["coded_bits"] / 8e6
    assert "loss" in last[3]
    assert "loss" not in first[3]
    assert [call[2:] for call in calls[4:]] == [
        (4, "curves.png"), (4, "partition.png"), (4, "topology.png"), ("finished",)
    ]  # fmt: skip


def test_a_tracker_is_told_simulated_time_and_which_channels_live():
    """Where a row says so."""
    timed = {"simulated_seconds": 2.5, "idle_seconds": 0.5, "retention_mean": 0.25}
    alive = {"alive": 0.75, "alive/conv1": 0.5}
    assert track.numbers_of({"round": 1, "accuracy_mean": None, **timed, **alive}) == timed | alive


def test_each_member_of_a_sweep_is_a_tracked_run_of_its_group(calls, tmp_path):
    """One that diverges ends as failed, and its last row was the last it had."""
    settings = {**TINY, "grid": ("lr=3,1e38",), "seeds": 2, "run_folders": True}
    sweep.sweep(Sweep(**settings, track="fake", out=tmp_path / "sweep"))
    members = ("000_lr=3,seed=0", "001_lr=3,seed=1", "002_lr=1e_38,seed=0", "003_lr=1e_38,seed=1")
    names = [f"sweep/{member}" for member in members]
    started = [call[2] for call in calls if call[0] == "start"]
    assert [run.name for run in started] == names
    assert {run.group for run in started} == {"sweep"}
    assert len({run.id for run in started}) == 4
    for number, name in enumerate(names):
        own = [call for call in calls if call[1] == name]
        assert rounds(own, name) == [row["round"] for row in rows_of(tmp_path / "sweep") if row["member"] == number]
        assert own[-1][2] == ("finished" if number < 2 else "failed")
        assert ("picture", name, own[-2][2], "partition.png") in own


def test_what_goes_on_repeats_no_row_and_keeps_its_name(calls, tmp_path):
    """Of a run, and of a sweep that is stopped in the first of two groups."""
    for kind, study, name in (
        (Settings, Run, "run"),
        (lambda **own: Sweep(**own, grid=("order=code,paper",)), sweep_of, "sweep/000_order=code,seed=0"),
    ):
        own = {**TINY, "track": "fake", "out": tmp_path / name.partition("/")[0]}
        with pytest.raises(StoppedError):
            train(ready(study(kind(**own))), StopAfter(1 if kind is Settings else 2))
        assert calls[-1] == ("end", name, "stopped")
        cut = rounds(calls, name)
        assert cut
        train(ready(study(kind(**own, resume=True))))
        first, again = (call[2] for call in calls if call[:2] == ("start", name))
        assert first.id == again.id
        assert rounds(calls, name) == [0, 2, 4] != cut
        assert [call for call in calls if call[0] == "end"][-1][2] == "finished"
        calls.clear()


def test_another_tracker_of_a_run_that_goes_on_gets_every_row(calls, tmp_path, monkeypatch):
    own = {**TINY, "out": tmp_path / "run"}
    with pytest.raises(StoppedError):
        train(ready(Run(Settings(**own, track="fake"))), StopAfter(1))
    monkeypatch.setitem(track.TRACKERS, "other", track.TRACKERS["fake"])
    calls.clear()
    cifar.run(Settings(**own, track="other", resume=True))
    assert rounds(calls, "run") == [0, 2, 4]
    assert json.loads((tmp_path / "run" / "tracked.json").read_text()).keys() == {"fake", "other"}


@pytest.mark.parametrize("when", ["start", "row", "picture", "end"])
def test_a_tracker_that_raises_costs_one_line(when, tmp_path, monkeypatch, capsys):
    """Whatever raises, even an exit; what could not be told is tried again."""
    failed, told = [], []

    def call(what: str, value: object = None) -> None:
        if what == when and len(failed) < 2:
            failed.append(what)
            raise (OSError("the line is\ndead") if len(failed) == 1 else SystemExit(1))
        told.append((what, value))

    def start(run: track.Tracked) -> track.Calls:
        call("start")
        return track.Calls(
            lambda round, *_: call("row", round), lambda *_: call("picture"), lambda how: call("end", how)
        )

    monkeypatch.setitem(track.TRACKERS, "bad", track.Tracker("json", start))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cifar.main([*flags, "--track", "bad", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: --track bad failed (OSError: the line is dead): the run goes on")
    assert [value for what, value in told if what == "row"] == [0, 2, 4]
    assert (when == "end") or told[-1] == ("end", "finished")
    assert (tmp_path / "run" / "masks.npz").is_file()


def test_a_tracker_that_hangs_up_costs_one_line(tmp_path, monkeypatch, capsys):
    """The run does not wait for it, but for a while at its end."""
    answer = threading.Event()

    def start(run: track.Tracked) -> track.Calls:
        answer.wait(60)
        raise OSError("too late to be told")

    monkeypatch.setattr(track, "WAIT", 0.2)
    monkeypatch.setitem(track.TRACKERS, "bad", track.Tracker("json", start))
    assert cifar.run(Settings(**TINY, track="bad", out=tmp_path / "run")).metrics[-1]["round"] == 4
    answer.set()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: --track bad gave no answer for 0 s: the run goes on")


def test_what_was_told_is_damaged(tmp_path, calls, capsys):
    """Nothing is told twice for that."""
    with pytest.raises(StoppedError):
        train(ready(Run(Settings(**TINY, track="fake", out=tmp_path / "run"))), StopAfter(1))
    calls.clear()
    (tmp_path / "run" / "tracked.json").write_text("{")
    cifar.run(Settings(**TINY, track="fake", out=tmp_path / "run", resume=True))
    assert calls == []
    assert "tracked.json must say what has been tracked, and does not: remove it" in capsys.readouterr().err


def test_a_tracker_that_is_not_there_is_one_line_and_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track, "find_spec", lambda package: None)
    monkeypatch.chdir(tmp_path)
    for command in (cifar, sweep):
        for name, said in (
            ("mlflow", "mlflow needs mlflow, which is not installed: pip install 'dslth-jax[mlflow]'"),
            ("tensorboard", "needs tensorboardX, which is not installed: pip install 'dslth-jax[tensorboard]'"),
            ("wand", "--track must be one of wandb, mlflow, trackio, tensorboard, got 'wand'; did you mean wandb?"),
        ):
            assert command.main(["--dataset", "digits", "--track", name]) == 2
            line = capsys.readouterr().err
            assert said in line
            assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_trackers_are_those_of_the_documents():
    """And each has an extra of its name."""
    root = Path(__file__).parents[1]
    extras = (root / "pyproject.toml").read_text()
    words = (root / "experiments" / "README.md").read_text()
    for name in track.TRACKERS:
        assert f"\n{name} = [" in extras
        assert f"`{name}`" in words
    assert "track" in SETTINGS


# The real ones, on this machine alone.


def needs(name: str) -> pytest.MarkDecorator:
    absent = find_spec(track.TRACKERS[name].package) is None
    return pytest.mark.skipif(absent, reason=f"the extra [{name}] is not installed")


def study_with(name: str, folder: Path) -> list[dict]:
    """Train with a tracker: a run that is stopped and goes on, and a sweep of two members, of which one diverges.
    Returns the rows of the run."""
    own = {**TINY, "track": name, "out": folder / "one"}
    with pytest.raises(StoppedError):
        train(ready(Run(Settings(**own))), StopAfter(1))
    time.sleep(1)  # wandb names its folders by the second
    cifar.run(Settings(**own, resume=True))
    sweep.sweep(Sweep(**TINY, grid=("lr=3,1e38",), track=name, out=folder / "many"))
    return rows_of(folder / "one")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, in which trackers keep what is theirs; pictures are drawn."""
    monkeypatch.undo()
    use_tiny_network(monkeypatch)
    save = pictures.save
    use_fakes(monkeypatch)
    monkeypatch.setattr(pictures, "save", save)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wandb_records(path: Path) -> Iterator[Any]:
    """What a file of wandb's says: records in blocks of 32 KB, each part with a checksum, its length and its kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), 7, b""
    while place < len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record, place = record + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # all of it, or its last part
            yield Record.FromString(record)
            record = b""


@pytest.mark.install
@needs("wandb")
def test_wandb_offline(here, monkeypatch, capsys):
    """Its own files hold every row once, the pictures, and how each run ended."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    rows = study_with("wandb", here)
    assert "warning: --track" not in capsys.readouterr().err
    told, pictured, ends = dict[str, dict](), set[str](), list[tuple]()
    for path in sorted(here.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        records = [*wandb_records(path)]
        name, group = next((one.run.display_name, one.run.run_group) for one in records if one.HasField("run"))
        for item in (one.history for one in records if one.HasField("history")):
            values = {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in item.item}
            if "accuracy/mean" in values:
                assert item.step.num not in told.setdefault(name, {})
                told[name][item.step.num] = values["accuracy/mean"]
            pictured |= {key.partition("/")[0] for key in values}
        ends.append((name, group, next(one.exit.exit_code for one in records if one.HasField("exit"))))
    assert told["one"] == {row["round"]: row["accuracy_mean"] for row in rows}
    assert {"curves", "topology"} <= pictured
    assert ends[:2] == [("one", "", 0)] * 2
    assert {*ends[2:]} == {("many/000_lr=3,seed=0", "many", 0), ("many/001_lr=1e_38,seed=0", "many", 1)}


@pytest.mark.install
@needs("mlflow")
@pytest.mark.parametrize("store", ["sqlite:///{here}/mlflow.db", "file:{here}/mlruns"])
def test_mlflow_on_this_machine(store, here, monkeypatch, capsys):
    """Every row once, the settings, the pictures, and how each run ended."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(store.format(here=here))
    rows = study_with("mlflow", here)
    assert "warning: --track" not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("dslth_jax").experiment_id
    found = {run.info.run_name: run for run in client.search_runs([experiment])}
    ends = {name: run.info.status for name, run in found.items()}
    assert ends == {"one": "FINISHED", "many/000_lr=3,seed=0": "FINISHED", "many/001_lr=1e_38,seed=0": "FAILED"}
    assert found["one"].data.params["agents"] == "4"
    assert found["many/000_lr=3,seed=0"].data.tags["group"] == "many"
    told = client.get_metric_history(found["one"].info.run_id, "accuracy/mean")
    assert [(one.step, one.value) for one in told] == [(row["round"], row["accuracy_mean"]) for row in rows]
    kept = {artifact.path for artifact in client.list_artifacts(found["one"].info.run_id)}
    assert kept == {"curves.png", "partition.png", "topology.png"}


@pytest.mark.install
@needs("trackio")
def test_trackio_on_this_machine(here, monkeypatch, capsys):
    """Every row once, and the pictures."""
    monkeypatch.setenv("TRACKIO_DIR", str(here / "trackio"))  # read when it is imported
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    rows = study_with("trackio", here)
    assert "warning: --track" not in capsys.readouterr().err
    names = {run.name.partition(" ")[0]: run.name for run in trackio.Api().runs("dslth_jax")}
    assert names.keys() == {"one", "many/000_lr=3,seed=0", "many/001_lr=1e_38,seed=0"}
    told = SQLiteStorage.get_logs("dslth_jax", names["one"])
    means = [(one["step"], one["accuracy/mean"]) for one in told if "accuracy/mean" in one]
    assert means == [(row["round"], row["accuracy_mean"]) for row in rows]
    assert {"curves", "topology"} <= set().union(*told)


@pytest.mark.install
@needs("tensorboard")
def test_tensorboard_event_files(here, capsys):
    """Every row once, the pictures and the settings."""
    from test_report import events_in

    rows = study_with("tensorboard", here)
    assert "warning: --track" not in capsys.readouterr().err
    found, tags = events_in(*(here / "one" / "tensorboard").iterdir())
    for row in rows:
        assert found["accuracy/mean", row["round"]] == [pytest.approx(row["accuracy_mean"])]
    assert {"_hparams_/session_start_info", "curves", "topology"} <= tags
    assert len([*(here / "many" / "tensorboard").iterdir()]) == 2
