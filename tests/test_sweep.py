"""Sweeps: each setting is, bit for bit, the run of it alone; failures stay apart; interruptions lose nothing."""

import contextlib
import csv
import json
import re
import shutil
import signal
import sqlite3
import threading
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from fakes import StopAfter, draw_nothing, use_fakes
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax.study.commands import sweep_of
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results.points import place_of
from dslth_jax.study.sweeping.grid import Sweep, axes_of, groups_of, points_of
from dslth_jax.study.system.stopping import Stop, StoppedError
from dslth_jax.study.training import memory, records
from dslth_jax.study.training.loop import ready, train
from dslth_jax.study.training.plan import Prepared, plan
from dslth_jax.study.training.prepare import members_of
from dslth_jax.study.training.programs import compile_programs
from experiments import cifar, sweep

BASE = {"dataset": "digits", "model": "tiny", "agents": 4, "rounds": 4, "eval_every": 2}
GRID = ("lr=3,1e38", "partition=classes:4,dirichlet:0.5", "topology=ring,erdos-renyi:0.6")

OF_ALL = {**BASE, "fine_tune_lr": 1, "retention": "0.1:0.8", "grid": GRID, "seeds": 2}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


@pytest.fixture
def fakes(monkeypatch):
    """Sweeps and searches are of fakes of compiled programs."""
    use_fakes(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of a sweep over seeds, step sizes, partitions and graphs, of which half diverge."""
    out = tmp_path_factory.mktemp("sweeps") / "all"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        draw_nothing(patch)
        sweep.sweep(Sweep(**OF_ALL, run_folders=True, out=out))
    return out


@pytest.fixture(scope="module")
def results(folder) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def members(**settings) -> list[Prepared]:
    own = Sweep(**{**BASE, **settings})
    return members_of(own, points_of(axes_of(own)), own.seeds)


def assert_alone_as_together(number: int, folder: Path, alone: Path) -> None:
    """A member of a sweep comes to the numbers and files of the run of its settings."""
    (own,) = (folder / "runs").glob(f"{number:03d}_*")
    settings = json.loads((own / "config.json").read_text())["settings"]
    cifar.run(Settings(**{**settings, "out": alone}))
    assert_same_numbers(own, alone)
    assert {path.name for path in own.iterdir()} == {path.name for path in alone.iterdir()}
    assert [row for row in rows_of(folder) if row.pop("member") == number] == rows_of(own)


def test_a_member_is_the_run_of_its_settings_alone(folder, tmp_path, monkeypatch):
    """Whose edges and samples are not padded to those of others."""
    draw_nothing(monkeypatch)
    assert_alone_as_together(3, folder, tmp_path / "alone")


@pytest.mark.slow
def test_members_are_runs_of_their_settings_as_users_compile(tmp_path, monkeypatch, as_users_compile):
    draw_nothing(monkeypatch)
    sweep.sweep(Sweep(**OF_ALL, run_folders=True, out=tmp_path / "all"))
    for number in (0, 3, 6):
        assert_alone_as_together(number, tmp_path / "all", tmp_path / str(number))


def test_settings_that_fail_are_marked_and_harm_no_others(folder, results):
    assert [row["status"] for row in results] == ["done"] * 4 + ["not finite (2 of 2 seeds)"] * 4
    assert [row["lr"] for row in results] == ["3"] * 4 + ["1e+38"] * 4
    assert all(row["accuracy_mean"] == "" for row in results[4:])
    accuracies = [float(row["accuracy_mean"]) for row in results[:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    config = json.loads((folder / "config.json").read_text())
    failures = [config["done"][str(number)] for number in range(16)]
    assert failures[:8] == [None] * 8
    assert all("take smaller step sizes" in failure for failure in failures[8:])


def test_a_row_is_the_mean_over_seeds_and_their_spread(folder, results):
    config, best = json.loads((folder / "config.json").read_text()), results[0]
    numbers = [
        number
        for number, member in enumerate(config["members"])
        if all(str(member[axis]) == best[axis] for axis in config["axes"])
    ]
    last = [[row for row in rows_of(folder) if row["member"] == number][-1]["accuracy_mean"] for number in numbers]
    assert [config["members"][number]["seed"] for number in numbers] == [0, 1]
    assert float(best["accuracy_mean"]) == pytest.approx(np.mean(last))
    assert float(best["accuracy_std"]) == pytest.approx(np.std(last, ddof=1))
    assert best["seeds"] == "2"


def test_a_sweep_leaves_its_pictures(folder):
    pairs = {f"heat_map_{one}.png" for one in ("lr_partition", "lr_topology", "partition_topology")}
    wanted = {"config.json", "metrics.jsonl", "results.csv", "curves.png", "runs"} | pairs
    assert {path.name for path in folder.iterdir()} == wanted


@pytest.mark.parametrize(
    ("grid", "programs"),
    [
        (("lr=1,2,3", "weight_decay=0,1e-3", "amplitude=0.5,1", "group_lasso=0,1e-4"), 1),
        (("retention=0.1,0.2:0.5", "linear_retention=0.5,same", "data_fraction=0.5,1"), 1),
        (("mixing=uniform,metropolis",), 2),  # counts are whole numbers, weights are not
        (("lr=1,2@cosine,3@cosine,3@step:2",), 3),
        (("batch_size=16,32",), 2),
        (("batch_size=1000,2000", "partition=iid,classes:2"), 2),  # nobody has so many; each partition its own most
        (("order=code,paper", "lr=1,2"), 2),
        (("topology=ring,star,complete,erdos-renyi:0.5", "link_drop=0,0.2,1"), 1),
        (("topology=changing-erdos-renyi:0.5,changing-regular:2",), 2),
        (("hear=None,1,2",), 3),
        (("retention=0.2:0.6@cosine,0.1@cosine", "lr=3,10"), 1),
        (("feature_skew=none,rotation:90,rotation:45",), 2),
        (("validation=0,0.2,0.4", "partition=classes:4,dirichlet:0.5"), 2),  # what holds nothing back validates nothing
        (("preset=code,tuned",), 2),
        (("augment=none,crop,flip-crop", "resize=8,4"), 6),
        (("algorithm=independent", "images=own,pooled", "lr=1,2"), 2),
        (("local_steps=1,2", "start_scores=shared,personal"), 4),
        (("retention=dealt:0.1,0.7;0.1,0.2,0.3,0.4;0.4", "lr=1,2"), 1),  # values with commas of their own
    ],
)
def test_what_is_traced_is_one_program(grid, programs):
    all_of_them = members(grid=grid)
    groups = list(groups_of(all_of_them, range(len(all_of_them))))
    assert sorted(number for group in groups for number in group) == list(range(len(all_of_them)))
    assert len(groups) == programs


def test_what_memory_does_not_hold_at_once_runs_in_turn(monkeypatch, tmp_path, fakes):
    """With the same numbers."""
    settings = {**BASE, "grid": ("lr=3,10,20",), "seeds": 2}
    sweep.sweep(Sweep(**settings, out=tmp_path / "together"))
    all_of_them = members(grid=settings["grid"], seeds=2)
    need = sum(plan([max(all_of_them, key=lambda one: one.train.indices.size)] * 3).footprint.values()) + 1000
    monkeypatch.setattr(memory, "available", lambda device, sharing=1: need)
    assert list(groups_of(members(grid=settings["grid"], seeds=2), range(6))) == [[0, 1, 2], [3, 4, 5]]
    sweep.sweep(Sweep(**settings, out=tmp_path / "in turn"))
    assert rows_of(tmp_path / "together") == rows_of(tmp_path / "in turn")
    monkeypatch.setattr(memory, "available", lambda device, sharing=1: 1000)
    with pytest.raises(ValueError, match=r"4 agents need about .* GB"):
        sweep.sweep(Sweep(**settings, out=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_whole_populations_computed_together_give_the_same_to_rounding(monkeypatch):
    """As accelerators compute them: three settings of four at once, each with all of its agents, and the one left. A
    round without an exchange skips it, in the three and in the one: members share the condition."""
    own = members(grid=("lr=3,10",), seeds=2, exchange_every=2, model="mlp")
    lower, lowered = jax.stages.Traced.lower, list[str]()

    def noted(traced, *arguments, **options):
        program = lower(traced, *arguments, **options)
        lowered.append(program.as_text())
        return program

    one_at_a_time, came = plan(own), []
    for planned in (one_at_a_time, one_at_a_time._replace(together=3, chunk=4)):
        lowered.clear()
        monkeypatch.setattr(jax.stages.Traced, "lower", noted)
        programs = compile_programs(planned)
        monkeypatch.undo()
        state, info = programs.step(programs.step(programs.start())[0])
        came.append((info, programs.evaluate(state, np.stack([np.asarray(one.tests.sizes) for one in own]))))
    # The exchange of the three, that of the one left, and the branch that is always taken in `update_agents`.
    assert max(lowered, key=len).count("stablehlo.case") == 3
    chex.assert_trees_all_close(*came, rtol=1e-6, atol=1e-6)  # an entry of a score may be near 0
    chex.assert_trees_all_equal(came[0][1].masks, came[1][1].masks)
    assert len(set(came[0][0]["loss"].mean(axis=1).tolist())) == 4


@pytest.mark.parametrize("looks", [pytest.param(1, marks=pytest.mark.slow), 8])
def test_an_interrupted_sweep_goes_on_where_it_was(looks, tmp_path, fakes):
    """In either of two groups, behind the first evaluation or between two."""
    settings = {**BASE, "grid": ("order=code,paper", "lr=3,10"), "rounds": 4}
    sweep.sweep(Sweep(**settings, out=tmp_path / "whole"))
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**settings, out=tmp_path / "cut"))), StopAfter(looks))
    assert list((tmp_path / "cut" / "checkpoint").iterdir())
    assert not (tmp_path / "cut" / "results.csv").exists()
    sweep.sweep(Sweep(**settings, out=tmp_path / "cut", resume=True))
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert (tmp_path / "cut" / "results.csv").read_bytes() == (tmp_path / "whole" / "results.csv").read_bytes()
    assert not (tmp_path / "cut" / "checkpoint").exists()
    for _ in range(2):  # the first lets go of the folder
        with pytest.raises(ValueError, match="nothing is left to do"):
            sweep.sweep(Sweep(**settings, out=tmp_path / "cut", resume=True))


def test_a_signal_while_run_folders_are_written_is_heard_behind_them(tmp_path, monkeypatch, fakes):
    """Before the next group. What is missing all the same, a run folder or rows, is made again."""
    grid = ("order=code,paper", "lr=3,10,20")
    settings = {**BASE, "agents": 2, "rounds": 2, "grid": grid, "run_folders": True, "out": tmp_path / "cut"}
    stop, leave_run, left = Stop(), records.leave_run, []

    def signal_and_leave(path, *rest) -> None:
        if not left:
            stop(signal.SIGTERM)
        left.append(path.name)
        leave_run(path, *rest)

    monkeypatch.setattr(records, "leave_run", signal_and_leave)
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**settings))), stop)
    assert len(left) == 3
    rows, lines = rows_of(tmp_path / "cut"), (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [(row["member"], row["round"]) for row in rows] == [
        (number, round) for number in range(3) for round in (0, 2)
    ]
    shutil.rmtree(tmp_path / "cut" / "runs" / left[1])
    (tmp_path / "cut" / "metrics.jsonl").write_text("".join(lines[:5]))
    sweep.sweep(Sweep(**settings, resume=True))
    assert left[3:5] == left[1:3]
    assert rows_of(tmp_path / "cut")[: len(rows)] == rows
    assert sorted(path.parent.name for path in tmp_path.glob("cut/runs/*/masks.npz")) == [*left[:3], *left[5:]]


def test_a_sweep_is_resumed_with_its_own_settings_alone(tmp_path, fakes):
    settings = {**BASE, "grid": ("lr=3,10",), "out": tmp_path / "cut"}
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**settings))), StopAfter(1))
    other = {**settings, "grid": ("lr=3,11",), "batch_size": 64, "resume": True}
    differing = r"--batch-size was 128 and is 64; --grid was \['lr=3,10'\] and is \['lr=3,11'\]"
    with pytest.raises(ValueError, match=differing):
        sweep.sweep(Sweep(**other))
    with pytest.raises(ValueError, match="holds a sweep, no single run"):
        cifar.run(Settings(**{**BASE, "out": tmp_path / "cut", "resume": True}))
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    for damage in ({"members": [3]}, {"done": {"9": None}}, {"axes": []}):
        (tmp_path / "cut" / "config.json").write_text(json.dumps(config | damage))
        with pytest.raises(ValueError, match=r"config\.json must hold the axes of a sweep, .* and does not: put back"):
            sweep.sweep(Sweep(**settings, resume=True))


REFUSED = [
    (["--grid", "lr"], "--grid must be NAME=VALUE,VALUE,... such as lr=3,10,30, got 'lr'"),
    (["--grid", "lr="], "--grid must be NAME=VALUE,VALUE,... such as lr=3,10,30, got 'lr='"),
    (["--grid", "retentoin=0.1,0.2"], "got 'retentoin'; did you mean retention?"),
    (["--grid", "devices=1,2"], "--grid takes names of flags that change a run, got 'devices'"),
    (["--grid", "seeds=1,2"], "--grid takes names of flags that change a run, got 'seeds'"),  # the sweep's own
    (["--search", "trials=1:3"], "--search takes names of flags that change a run, got 'trials'"),
    (["--grid", "seed=1,2"], "--grid takes no seeds: say --seeds, how many there are of each point"),
    (["--grid", "lr=3", "--grid", "lr=4"], "--grid names lr twice: give all its values at once"),
    (["--grid", "lr=3,4,3"], "--grid gives lr one value twice, in '3,4,3': leave one of them out"),
    (["--grid", "lr=3,3.0"], "--grid gives lr one value twice, in '3,3.0': leave one of them out"),
    (["--grid", "lr=;"], "--grid gives lr no value, in ';': say one at least"),
    (
        ["--search", "lr=1:3", "--storage", "sqlite:////no/such/place.db"],
        "--storage sqlite:////no/such/place.db cannot be used: ",
    ),
    (["--search", "retention=dealt:0.1,0.7"], "got retention=dealt:0.1,0.7, put semicolons between values"),
    (["--search", "lr=3,3.0"], "--search gives lr one value twice, in '3,3.0': leave one of them out"),
    (["--search", "lr=;"], "--search gives lr no value, in ';': say one at least"),
    (["--grid", "lr=3,4", "--lr", "5"], "--lr and --grid lr=... contradict each other: leave one of them out"),
    (["--grid", "rounds=few"], "--rounds must be a whole number, got 'few'"),
    (["--grid", "order=kode"], "--order must be one of code, paper, got 'kode'; did you mean code?"),
    (["--grid", "retention=0.3,1.5"], "at retention=1.5: --retention must be in (0, 1], got 1.5 for agent 0"),
    (["--resume"], "--resume needs --out, the run folder to go on in: say it, or leave --resume out"),
    (["--seeds", "0"], "--seeds must be at least 1, and --seed with them below 2**32, got 0"),
    (["--seeds", "2", "--seed", "4294967295"], "--seeds must be at least 1, and --seed with them below 2**32, got 2"),
    (["--sedes", "2"], "there is no flag --sedes; did you mean --seeds?"),
    (["--grid", "lr=1,2", "--search", "lr=1:2"], "--grid and --search contradict each other: leave one of them out"),
    (["--search", "lr=2:1"], "--search lr must be LOW:HIGH with LOW below HIGH"),
    (["--search", "lr=0:1:log"], "or LOW:HIGH:log with LOW above 0, got '0:1:log'"),
    (["--search", "lr=1:2:linear"], "--search lr must be LOW:HIGH"),
    (["--search", "retention=0.1:1.2"], "at retention=1.2: --retention must be in (0, 1], got 1.2 for agent 0"),
    (["--search", "lr=1:2", "--trials", "0"], "--trials must be in 1..2147483647, got 0"),
    (["--search", "lr=1:2", "--ask", "0"], "--ask must be in 1..2147483647, got 0"),
    (["--search", "lr=1:2", "--coordinator", "auto"], "--search takes no --coordinator"),
    (["--search", "class_file=a.txt,b.txt"], "a.txt"),
    (["--trials", "3"], "--trials needs --search: say it, or leave --trials out"),
    (["--storage", "sqlite:///study.db"], "--storage needs --search: say it, or leave --storage out"),
]


@pytest.mark.parametrize(("flags", "said"), REFUSED)
def test_bad_sweeps_are_one_line(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if any(flag.startswith("--search") for flag in flags):
        pytest.importorskip("optuna", reason="only a search needs Optuna")
    assert sweep.main(["--dataset", "digits", "--model", "tiny", "--agents", "4", *flags]) == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"seeds": "3"}, "--seeds must be a whole number, got '3'"),
        ({"grid": (3,)}, "--grid must be a word, got 3"),
        ({"grid": "lr=3,many"}, "at lr=many: --lr must be a number, or one with a schedule such as 10@cosine"),
    ],
)
def test_what_is_no_field_of_a_sweep_is_one_sentence(field, said):
    """And a single axis needs no list."""
    with pytest.raises(ValueError, match="^" + re.escape(said)):
        sweep_of(Sweep(**BASE, **field)).prepare()


@pytest.mark.parametrize("field", [{"grid": "lr=1,2"}, {"search": "lr=1:2"}])
def test_arms_are_the_only_axis_of_a_comparison(field):
    with pytest.raises(ValueError, match="arms of a comparison are its points: leave --grid and --search out"):
        sweep_of(Sweep(**BASE, **field), {"one": {}, "other": {}})


def test_axes_of_a_search_are_kept_as_json_and_numbers_stand_in_order():
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    from dslth_jax.study.sweeping import search

    space = search.spaces_of(Sweep(**BASE, search="class_file=a.txt,b.txt"))["class_file"]
    assert space == {"choices": ["a.txt", "b.txt"]}
    dealt = search.spaces_of(Sweep(**BASE, search=("retention=dealt:0.1,0.7;0.4",)))["retention"]
    assert dealt == {"choices": ["dealt:0.1,0.7", 0.4]}
    assert sorted([10, "same", 9.5, "0.1:0.8", 100], key=place_of) == [9.5, 10, 100, "0.1:0.8", "same"]


def test_a_sweep_of_which_nothing_stays_finite_ends_with_3(tmp_path, capsys, fakes):
    flags = ["--dataset", "digits", "--model", "tiny", "--rounds", "3", "--grid", "lr=1e38", "--grid", "agents=2"]
    assert sweep.main([*flags, "--out", str(tmp_path / "run")]) == 3
    came = capsys.readouterr()
    assert "no setting stayed finite" in came.err
    assert "1 setting of 2 agents" in came.out


# Searches.

SEARCH = {**BASE, "agents": 2, "rounds": 2, "search": ("lr=1:100:log", "order=code,paper"), "trials": 6, "ask": 3}


def study_in(folder: Path):
    optuna = pytest.importorskip("optuna", reason="only a search needs Optuna")
    return optuna.load_study(study_name="dslth_jax", storage=f"sqlite:///{folder / 'study.db'}")


def trials_of(folder: Path) -> list:
    return study_in(folder).trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """The folder of a search."""
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    out = tmp_path_factory.mktemp("searches") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        use_tiny_network(patch)
        use_fakes(patch)
        sweep.sweep(Sweep(**SEARCH, out=out))
    return out


def test_a_search_tells_every_trial(searched, tmp_path, fakes):
    trials = trials_of(searched)
    with (searched / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 6
    assert max(trial.value for trial in trials) == float(rows[0]["accuracy_mean"])
    assert {(t.params["lr"], t.params["order"]) for t in trials} == {(float(r["lr"]), r["order"]) for r in rows}
    assert (searched / "slices.png").is_file()
    # Each number told is that of a run alone.
    one = trials[-1]
    alone = cifar.run(Settings(**{**BASE, "agents": 2, "rounds": 2, **one.params, "out": tmp_path / "alone"}))
    assert alone.metrics[-1]["accuracy_mean"] == one.value


def test_trials_that_diverge_are_told_as_failed(tmp_path, fakes):
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    sweep.sweep(Sweep(**{**SEARCH, "search": ("lr=1,1e38",), "rounds": 3}, out=tmp_path / "search"))
    states = {trial.params["lr"]: trial.state.name for trial in trials_of(tmp_path / "search")}
    assert states == {1: "COMPLETE", 1e38: "FAIL"}


def test_a_search_leaves_out_what_makes_no_sense_together(tmp_path, fakes, capsys, monkeypatch):
    """A pair that no point tried before has, and that a trial asks for."""
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    from dslth_jax.study.sweeping import search

    monkeypatch.setattr(search, "MOST_CORNERS", 1)
    settings = {name: value for name, value in SEARCH.items() if name != "rounds"}
    settings |= {"search": ("exchange_every=1,3,2", "rounds=4,2,3"), "trials": 9, "out": tmp_path / "search"}
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**settings))), StopAfter(9))
    assert "FAIL" in {trial.state.name for trial in trials_of(tmp_path / "search")}
    sweep.sweep(Sweep(**settings, resume=True))
    trials = trials_of(tmp_path / "search")
    pairs = [(trial.params["exchange_every"], trial.params["rounds"]) for trial in trials]
    assert len(pairs) == 9
    assert [trial.state.name for trial in trials] == ["FAIL" if pair == (3, 2) else "COMPLETE" for pair in pairs]
    said = "warning: the search leaves a point out: at exchange_every=3, rounds=2: --exchange-every must be at most"
    assert said in capsys.readouterr().err


def test_an_interrupted_search_asks_for_what_it_would_have_asked_for(searched, tmp_path, fakes):
    """In a folder that was moved, and with a trial that a kill had cut off in the asking."""
    settings = {**SEARCH, "out": tmp_path / "search"}
    with pytest.raises(StoppedError):
        train(ready(sweep_of(Sweep(**settings))), StopAfter(4))
    assert len(trials_of(tmp_path / "search")) == 3
    study_in(tmp_path / "search").ask()
    settings["out"] = (tmp_path / "search").rename(tmp_path / "moved")
    sweep.sweep(Sweep(**settings, resume=True))
    states = [trial.state.name for trial in trials_of(tmp_path / "moved")]
    assert states == [*["COMPLETE"] * 3, "FAIL", *["COMPLETE"] * 3]
    came = [(t.params, t.value) for t in trials_of(tmp_path / "moved") if t.state.name == "COMPLETE"]
    assert came == [(t.params, t.value) for t in trials_of(searched)]
    assert (tmp_path / "moved" / "results.csv").read_bytes() == (searched / "results.csv").read_bytes()


def test_what_a_search_draws_twice_is_trained_once_and_its_trials_are_known_in_a_moved_folder(tmp_path, fakes):
    optuna = pytest.importorskip("optuna", reason="only a search needs Optuna")
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    shared = optuna.create_study(study_name="dslth_jax", storage=storage, direction="maximize")
    shared.ask()  # by another machine
    settings = {**SEARCH, "search": ("lr=3,10",), "seeds": 2, "storage": storage, "out": tmp_path / "search"}
    rows = sweep.sweep(Sweep(**settings))
    config = json.loads((tmp_path / "search" / "config.json").read_text())
    lrs = list(dict.fromkeys(member["lr"] for member in config["members"]))
    assert [(member["lr"], member["seed"]) for member in config["members"]] == [
        (lr, seed) for lr in lrs for seed in (0, 1)
    ]
    assert {row["lr"]: row["seeds"] for row in rows} == dict.fromkeys(lrs, 2)
    accuracies = {row["lr"]: row["accuracy_mean"] for row in rows}
    others, *trials = shared.trials
    assert others.state.name == "RUNNING"
    assert [trial.value for trial in trials] == [accuracies[trial.params["lr"]] for trial in trials]
    assert len(trials) == 6
    # As if it had been interrupted before its end.
    moved = (tmp_path / "search").rename(tmp_path / "moved")
    del config["finished"]
    (moved / "config.json").write_text(json.dumps(config))
    assert sweep.sweep(Sweep(**{**settings, "out": moved, "resume": True})) == rows
    assert len(shared.trials) == 7
    config["members"][0]["lr"] = config["members"][1]["lr"] = 5
    (moved / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="only one of the two has lr=5: give it the storage it began with"):
        sweep.sweep(Sweep(**{**settings, "out": moved, "resume": True}))


def test_two_searches_may_make_their_storage_at_the_same_moment(monkeypatch, tmp_path):
    """The slower one finds tables that are there already, and tries again."""
    optuna = pytest.importorskip("optuna", reason="only a search needs Optuna")
    from dslth_jax.study.sweeping import search

    make, tried = optuna.create_study, []

    def make_too_late(**how):
        tried.append(how)
        if len(tried) == 1:
            raise RuntimeError("(sqlite3.OperationalError) table studies already exists")
        return make(**how)

    monkeypatch.setattr(optuna, "create_study", make_too_late)
    assert search.study_of(f"sqlite:///{tmp_path / 's.db'}", "s").study_name == "s"
    with pytest.raises(ValueError, match=r"^--storage nowhere cannot be used: "):
        search.study_of("nowhere", "s")
    assert len(tried) == 3


def test_a_storage_in_the_sweeps_own_folder_is_made_with_it(tmp_path):
    """Any other is tried before there is a folder."""
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    from dslth_jax.study.sweeping import search

    out = tmp_path / "out"
    for kind in ("sqlite:///", "journal:"):
        search.check_storage(Sweep(search="lr=1:2", storage=f"{kind}{out / 'own.db'}", out=out))
        with pytest.raises(ValueError, match=r"^--storage .* cannot be used: "):
            search.check_storage(Sweep(search="lr=1:2", storage=f"{kind}{tmp_path / 'other' / 'own.db'}", out=out))
    assert not out.exists()


def test_machines_that_share_a_study_wait_for_each_other(monkeypatch, tmp_path):
    """A file of SQLite that another one has locked for a moment, and not those that are not so patient; a journal
    without any lock of a data base."""
    pytest.importorskip("optuna", reason="only a search needs Optuna")
    from dslth_jax.study.sweeping import search

    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    search.study_of(storage, "s")
    for patience, waits in ((0.01, False), (search.PATIENCE, True)):
        monkeypatch.setattr(search, "PATIENCE", patience)
        study = search.study_of(storage, "s")
        other = sqlite3.connect(tmp_path / "shared.db", check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(1, other.rollback)
        release.start()
        refused = pytest.raises(Exception, match=r"during the commit")
        with contextlib.nullcontext() if waits else refused:
            study.ask()
        release.join()
        other.close()
    journal = [search.study_of(f"journal:{tmp_path / 'shared.log'}", "s") for _ in range(2)]
    asked = [study.ask().number for study in (*journal, *journal)]
    assert asked == [0, 1, 2, 3]
