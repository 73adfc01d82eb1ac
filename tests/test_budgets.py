"""Runs and sweeps in simulated time: resumed and swept bit for bit, and what they leave and say."""

import csv
import json
from typing import NamedTuple

import numpy as np
import pytest
from fakes import draw_nothing, use_fakes
from test_resume import stop_after
from test_sweep import assert_alone_as_together, members
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax.bandwidth import constant
from dslth_jax.budgets import Limits
from dslth_jax.clock import Devices
from dslth_jax.study.sweeping.grid import Sweep, groups_of
from dslth_jax.study.training.budget import Budget, Costs, cost_of_entries, little_bought, share_by_retention
from dslth_jax.study.training.history import History, shapes_of
from experiments import cifar, sweep


class Hyper(NamedTuple):
    kept: dict


BASE = {"dataset": "digits", "model": "tiny", "agents": 4, "rounds": 6, "eval_every": 3, "preset": "tuned"}
FLAGS = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--rounds", "8", "--eval-every", "3"]
TIMED = ["--preset", "tuned", "--lr", "0.01", "--bandwidth", "lognormal:0.01:0.5", "--device-speed", "1e6:1e7"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)
    draw_nothing(monkeypatch)


def recorded(folder):
    """A folder of two bandwidths of unlike lengths."""
    folder.mkdir()
    (folder / "one.txt").write_text("0 0.02\n1 0.001\n2 0.03\n")
    (folder / "two.txt").write_text("10.0\t0.01\n")
    return folder


def test_what_entries_cost_is_what_the_round_took_however_many_multiply_adds_it_has():
    """1.5e11 of them, more than an int32 holds: what kept entries take adds up to the computing and the sending."""
    entries, kept = {"a": 1000, "b": 50}, {"a": np.full(2, 300, np.int32), "b": np.full(2, 50, np.int32)}
    costs = Costs({"a": 5 * 10**8, "b": 10**7}, entries, entries, sparse=True, masked=True)
    budget = Budget(Devices(np.full(2, 1e9, np.float32), constant(2, 1.0)), np.float32(np.inf), None)
    seconds = np.float32([152.0, 151.0])  # of which 150.5 to compute
    of_entry = cost_of_entries(budget, costs)(kept, seconds)
    np.testing.assert_allclose(sum(of_entry[name] * kept[name] for name in kept), seconds, rtol=1e-5)


def test_where_retention_buys_no_time_a_run_says_so():
    """By hand: 1000 entries of which a tenth to a half are kept; 1 s of computing where all are, 1000 bits in 1 ms."""
    hyper, entries = Hyper({"a": np.full(2, 300, np.int32)}), {"a": 1000}
    limits = Limits(*(np.full(2, own, np.float32) for own in (0.3, 0.1, 0.5)), np.float32(1), np.float32(1))
    devices = Devices(np.full(2, 1e6, np.float32), constant(2, 1.0))
    budget = Budget(devices, np.float32(np.inf), limits)
    dense, sparse = (Costs({"a": 1000}, entries, entries, own, masked=True) for own in (False, True))
    links = np.array([0, 1])
    entropy = -(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9))
    expected = [0, (1 - entropy) * 1e-3 / (1 + 1e-3)]
    np.testing.assert_allclose(share_by_retention(budget, dense, hyper, links), expected, rtol=1e-3)
    np.testing.assert_allclose(share_by_retention(budget, sparse, hyper, links), 0.8, rtol=1e-5)
    assert "buys next to no time" in " ".join(little_bought(budget, dense, hyper, links))
    assert little_bought(budget, sparse, hyper, links) == little_bought(None, None, hyper, links) == []


def test_a_run_says_so_before_its_first_round():
    """Of agents with as many links as the graph has: a controller of retentions on slow devices."""
    (own,) = members(**BASE, bandwidth="constant:10", device_speed=1e6, controller="deadline")
    assert "buys next to no time here" in " ".join(History(own, shapes_of(own)).warnings)


def test_members_of_a_sweep_over_time_are_one_program_and_runs_of_their_own(tmp_path):
    """Deadlines, gains and bandwidths, drawn or from files, are traced; what is padded to others changes nothing."""
    traces = recorded(tmp_path / "traces")
    grid = (f"bandwidth=constant:0.0005,{traces}", "deadline=None,0.05", "controller_gain=0.5,1")
    settings = {**BASE, "controller": "deadline", "device_sparse": True, "device_speed": "1e6:1e7"}
    settings |= {"retention_jump": 0.5, "grid": grid}
    every = members(**settings)
    assert len(list(groups_of(every, range(len(every))))) == 1
    out = tmp_path / "all"
    sweep.sweep(Sweep(**settings | {"grid": grid[:2]}, run_folders=True, out=out))
    assert_alone_as_together(3, out, tmp_path / "alone")
    own = [[row for row in rows_of(out) if row["member"] == number] for number in range(4)]
    assert len({(rows[-1]["simulated_seconds"], rows[-1]["retention_mean"]) for rows in own}) == 4
    for rows in own:
        assert [rows[0][name] for name in ("simulated_seconds", "idle_seconds")] == [0.0, 0.0]
        assert rows[0]["retention_mean"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    "controller",
    [pytest.param(name, marks=pytest.mark.slow) for name in ("prunefl", "deadline", "balance", "bandit", "period")],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(controller, tmp_path):
    """With all that its clock and its controller remember; masks keep what the controller says, within its jumps."""
    own = [*FLAGS, *TIMED, "--controller", controller]
    jump = [] if controller == "period" else ["--retention-jump", "0.02"]
    own += [*jump, *(["--device-sparse"] if controller == "prunefl" else [])]
    assert cifar.main([*own, "--out", str(tmp_path / "whole")]) == 0
    stop_after(5, tmp_path / "cut", *own[len(FLAGS) :])
    assert cifar.main([*own, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_numbers(tmp_path / "whole", tmp_path / "cut")
    rows = rows_of(tmp_path / "whole")
    times = [row["simulated_seconds"] for row in rows]
    assert times == sorted(set(times))
    with (tmp_path / "whole" / "agents.csv").open() as file:
        agents = list(csv.DictReader(file))
    ends = np.array([float(row["retention_at_end"]) for row in agents])
    assert ends.mean() == pytest.approx(rows[-1]["retention_mean"], abs=1e-5)
    if controller == "period":
        np.testing.assert_allclose(ends, rows[0]["retention_mean"], atol=1e-5)
    elif controller != "bandit":  # which stays for some exchanges where it begins
        assert 0 < np.abs(ends - 0.3).max() <= 7 * 0.02 + 0.01


def test_without_bandwidth_no_time_is_simulated(tmp_path, monkeypatch):
    """Its columns are there, and empty; agents.csv has none of them."""
    use_fakes(monkeypatch)
    assert cifar.main([*FLAGS, "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert {row[name] for row in rows for name in ("simulated_seconds", "idle_seconds", "retention_mean")} == {None}
    assert "idle_seconds" not in (tmp_path / "agents.csv").read_text()


@pytest.mark.slow
def test_agents_who_never_make_the_deadline_are_late_each_time_and_said_so(tmp_path, capsys):
    """Compute alone takes longer: retention buys no time, which is said; all are heard a round late."""
    slow = [*FLAGS, *TIMED, "--device-speed", "1e4", "--controller", "deadline", "--deadline", "0.5"]
    assert cifar.main([*slow, "--out", str(tmp_path)]) == 0
    with (tmp_path / "agents.csv").open() as file:
        assert [int(row["late"]) for row in csv.DictReader(file)] == [8] * 4
    assert rows_of(tmp_path)[-1]["simulated_seconds"] == pytest.approx(8 * 0.5)
    said = capsys.readouterr()
    assert "retention buys no time" in said.out + said.err
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["deadline"] == 0.5
