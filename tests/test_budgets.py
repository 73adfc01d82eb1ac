"""Runs and sweeps in simulated time: resumed and swept bit for bit, and what they leave and say."""

import csv
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import StopAfter, draw_nothing, use_fakes
from test_depth import TwoStages
from test_resume import stop_after
from test_sweep import assert_alone_as_together, members
from tiny import assert_same_numbers, rows_of, use_tiny_network

from dslth_jax.algorithm import by_name
from dslth_jax.algorithms.descent import BINS
from dslth_jax.bandwidth import constant
from dslth_jax.budgets import Limits
from dslth_jax.clock import Devices
from dslth_jax.depth import depths_of_layers
from dslth_jax.depth_budgets import with_depths
from dslth_jax.networks.network import network_of
from dslth_jax.networks.zoo import MODULES
from dslth_jax.study.config.budget import NOT_OF_RETENTIONS
from dslth_jax.study.config.numbers import population_hyper
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import CONTROLLERS
from dslth_jax.study.sweeping.grid import Sweep, groups_of, programs_of
from dslth_jax.study.training.budget import (
    Budget,
    Costs,
    clock_of,
    controller_of,
    cost_of_entries,
    little_bought,
    share_by_retention,
)
from dslth_jax.study.training.foreseen import out_of_reach, said_of_time
from dslth_jax.study.training.history import History, shapes_of
from dslth_jax.study.training.plan import fingerprints, plan
from dslth_jax.study.training.records import write_config
from dslth_jax.study.training.sizes import models_of
from experiments import cifar, sweep


class Hyper(NamedTuple):
    kept: dict


BASE = {"dataset": "digits", "model": "tiny", "agents": 4, "rounds": 6, "eval_every": 3, "preset": "tuned"}
FLAGS = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--rounds", "8", "--eval-every", "3"]
TIMED = ["--preset", "tuned", "--lr", "0.01", "--bandwidth", "lognormal:0.01:0.5", "--device-speed", "1e6:1e7"]


DEEP = ["--dataset", "digits", "--model", "two-stages", "--agents", "4", "--rounds", "6", "--eval-every", "3"]
BY_DEPTH = ["--preset", "tuned", "--lr", "0.01", "--bandwidth", "constant:10", "--device-speed", "2e6:2e7"]


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)
    monkeypatch.setitem(MODULES, "two-stages", TwoStages)
    draw_nothing(monkeypatch)


def depths_in(folder):
    """Of each agent of a run in the last round."""
    with (folder / "agents.csv").open() as file:
        return [int(row["depth"]) for row in csv.DictReader(file)]


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
    # Two layers, one that keeps three times as much: from 0.1 and 0.3 to 0.5 and all; each by itself from 0.1 to 0.5.
    both = Costs({"a": 1000, "b": 1000}, {"a": 1000, "b": 1000}, {"a": 1000, "b": 1000}, sparse=True, masked=True)
    unlike = Hyper({"a": np.full(2, 300, np.int32), "b": np.full(2, 900, np.int32)})
    for by_layer, expected in ((False, 1 - 0.4 / 1.5), (True, 0.8)):
        np.testing.assert_allclose(share_by_retention(budget, both, unlike, 0 * links, by_layer), expected, rtol=1e-5)
    assert "buys next to no time" in " ".join(little_bought(budget, dense, hyper, links))
    assert little_bought(budget, sparse, hyper, links) == little_bought(None, None, hyper, links) == []


def test_weights_that_are_sparse_take_the_time_of_what_they_keep_and_of_gradients_that_grow_some():
    """By hand: of every layer as many entries as are kept; the same at the end, and of what a model is said to cost."""
    settings = {**BASE, "algorithm": "dis-pfl", "lr": 0.05, "retention": 0.2, "bandwidth": "constant:1"}
    (dense,), (sparse, grown) = (
        members(**settings),
        members(**settings, device_sparse=True, grid=("regrow=random,gradient",)),
    )
    kept = {name: np.asarray(own) for name, own in by_name(sparse.hyper.kept["params"]).items()}

    def work_of(member):
        return np.asarray(clock_of(member.budget, member.costs).work(member.hyper))

    def passes_of(entries):
        return sum(sparse.costs.passes[name] * own for name, own in entries.items())

    np.testing.assert_allclose(work_of(sparse), passes_of(kept), rtol=1e-6)
    np.testing.assert_allclose(work_of(dense), passes_of(sparse.costs.entries), rtol=1e-6)
    np.testing.assert_allclose(work_of(grown), 2 * work_of(sparse), rtol=1e-6)
    convolution = kept["conv/kernel"] / sparse.costs.entries["conv/kernel"]
    np.testing.assert_allclose(History(sparse, shapes_of(sparse)).retentions(), convolution)
    batches, forward = 3 * sparse.batch_size, models_of([sparse])[0]["multiply_adds"]
    assert forward == pytest.approx(passes_of(kept).mean() / batches)


def test_recorded_bandwidths_are_among_what_a_run_may_not_change():
    slow, fast = (fingerprints(members(**BASE, bandwidth=f"constant:{rate}"))[0] for rate in (1, 100))
    assert [name for name, digest in slow.items() if digest != fast[name]] == ["the bandwidths"]


def test_a_run_says_so_before_its_first_round():
    """Of agents with as many links as the graph has: a controller of retentions on slow devices."""
    (own,) = members(**BASE, bandwidth="constant:10", device_speed=1e6, controller="deadline")
    assert "buys next to no time here" in " ".join(History(own, shapes_of(own)).warnings)


def whatever(rounds, agents=3):
    """Of each round, what controllers are told, at random; nothing of a silent one may move anybody."""
    rng = np.random.default_rng(0)
    shares, tides = rng.dirichlet(np.ones(BINS)), 2 * np.sin(np.arange(rounds)[:, None] / 20 + np.arange(agents))
    counts = {name: rng.multinomial(size, shares, (rounds, agents)) for name, size in SIZES.items()}
    powers = 2.0 ** np.arange(1 - BINS, 1)
    common = {"exchanged": rng.random(rounds) < 0.8, "deadline": np.where(rng.random(rounds) < 0.1, np.inf, 1.0)}
    return {
        "seconds": np.exp(tides + rng.normal(0, 0.3, (rounds, agents))).astype(np.float32),
        "loss": rng.random((rounds, agents)).astype(np.float32),
        "squares": {name: np.stack([own, own * powers], axis=2).astype(np.float32) for name, own in counts.items()},
        **{name: np.repeat(own[:, None], agents, axis=1) for name, own in common.items()},
    }


SIZES = {"stem": 2000, "block3": 900, "block4": 800, "linear": 300}
OWN, LOW, HIGH, JUMP, BLOCKS = np.float32([0.3, 0.1, 0.8]), 0.05, 0.85, 0.07, {"block3": 3, "block4": 4}


@pytest.mark.parametrize("name", CONTROLLERS)
def test_no_controller_changes_more_in_a_round_than_it_may(name):
    """Whatever rounds take and losses are: counts move by the set share at most, or by one block, and stay within
    bounds; in silent rounds nothing moves. Who sets neither retentions nor blocks moves nothing."""
    kept = {layer: np.int32(np.round(size * OWN * (0.9 if layer == "linear" else 1))) for layer, size in SIZES.items()}
    bounds = Limits(OWN, *(np.full(3, own, np.float32) for own in (LOW, HIGH)), np.float32(JUMP), np.float32(1))
    devices = Devices(np.full(3, 1e4, np.float32), constant(3, 1.0))
    fewest = np.full(3, 2, np.int32) if name == "depth" else None
    budget = Budget(devices, np.float32(1), None if name in NOT_OF_RETENTIONS else bounds, fewest)
    controller = controller_of(name, None, budget, Costs(dict.fromkeys(SIZES, 1), SIZES, SIZES, True, True, BLOCKS))
    told, hyper = whatever(300), Hyper(jax.tree.map(jnp.asarray, kept))

    def step(carry, given):
        t, info = given
        return controller.update(carry[0], hyper, t, info, info["seconds"], None), carry[1].kept

    found = jax.jit(lambda: jax.lax.scan(step, controller.init(hyper), (jnp.arange(300), told))[1])()
    counts = {layer: np.asarray(own, np.int64) for layer, own in found.items()}
    moved = {layer: np.abs(np.diff(own, axis=0)) for layer, own in counts.items()}
    assert not any(own[~told["exchanged"][:-1]].any() for own in moved.values())
    assert any(own.any() for own in moved.values()) == (name != "period")
    if name in NOT_OF_RETENTIONS:
        assert all(((own == kept[layer]) | ((own == 0) & (layer in BLOCKS))).all() for layer, own in counts.items())
        steps = np.diff(sum((counts[layer] > 0).astype(int) for layer in BLOCKS), axis=0)
        assert {*np.unique(steps)} == ({-1, 0, 1} if name == "depth" else {0})
        return
    for layer, size in SIZES.items():
        of_share = size if name == "prunefl" else kept[layer] / OWN  # how many entries a retention of 1 would keep
        assert (moved[layer] <= JUMP * of_share + 1.01).all()
        assert (np.clip(counts[layer], LOW * of_share - 0.51, HIGH * of_share + 0.51) == counts[layer]).all()


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
    if controller == "period":  # of what a silent agent would have sent, nothing is told of others
        assert rows[-1]["coded_rounds"] == rows[-1]["exchanges"]
        np.testing.assert_allclose(ends, rows[0]["retention_mean"], atol=1e-5)
    elif controller != "bandit":  # which stays for some exchanges where it begins
        assert 0 < np.abs(ends - 0.3).max() <= 7 * 0.02 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["fixed-linear", "global"])
def test_a_run_of_depths_that_was_stopped_ends_as_if_it_had_not_been(policy, tmp_path):
    """Stopped behind the round in which slow agents have lost their first block, and before they lose another."""
    own = [*DEEP, *BY_DEPTH, "--controller", "depth", "--retention-policy", policy]
    assert cifar.main([*own, "--out", str(tmp_path / "whole")]) == 0
    assert cifar.main([*own, "--out", str(tmp_path / "cut")], StopAfter(2)) == 143
    assert cifar.main([*own, "--out", str(tmp_path / "cut"), "--resume"]) == 0
    assert_same_numbers(tmp_path / "whole", tmp_path / "cut")
    assert depths_in(tmp_path / "whole") == [2, 2, 4, 4]


def depths_of_a_sweep(**more):
    return {**BASE, "model": "two-stages", "lr": 0.01, "bandwidth": "constant:10", "device_speed": "2e6:2e7", **more}


@pytest.mark.parametrize("policy", ["fixed-linear", "uniform", "erk", "global"])
def test_agents_that_came_to_a_depth_keep_what_those_of_this_depth_keep(policy):
    """By every policy, that of one threshold for all layers too: what masks are cut by is the same, layer by layer."""
    network = network_of(TwoStages(10), (8, 8, 1))
    settings = {"dataset": "digits", "model": "two-stages", "agents": 4, "preset": "tuned", "retention": "0.2:0.5"}
    settings |= {"retention_policy": policy, "bandwidth": "constant:1"}
    (always, _), (begun, _) = (
        population_hyper(resolve(Settings(**settings, **own)), network)
        for own in ({"depth": "2,3,4,3"}, {"controller": "depth"})
    )
    needs = depths_of_layers(network.stages, by_name(begun.kept))
    came = with_depths(begun, jnp.array([2, 3, 4, 3]), needs)
    for name, own in by_name(came.kept).items():
        np.testing.assert_array_equal(own, by_name(always.kept)[name])


def test_fewest_blocks_are_traced():
    """Unlike numbers of them are one program, with the controller also where they are left out; without it what has
    all blocks is another program, whose messages say nothing of layers."""
    for controller, programs in (("depth", 1), (None, 2)):
        every = members(**depths_of_a_sweep(controller=controller, grid=("depth=None,3,2:4",)))
        assert len(programs_of(every, range(len(every)))) == programs


@pytest.mark.slow
def test_members_of_a_sweep_over_fewest_blocks_are_runs_of_their_own(tmp_path):
    """Whose slow agents go down to as many as they are to have at least."""
    grid = ("depth=None,3,2:4",)
    sweep.sweep(Sweep(**depths_of_a_sweep(controller="depth", grid=grid), run_folders=True, out=tmp_path / "all"))
    assert_alone_as_together(2, tmp_path / "all", tmp_path / "alone")
    found = [depths_in(own) for own in sorted((tmp_path / "all" / "runs").iterdir())]
    assert found == [[2, 2, 4, 4], [3, 3, 4, 4], [2, 3, 4, 4]]


def test_what_is_known_of_time_at_the_start_stands_in_the_run_folder(tmp_path):
    """Before a round has run, for the page of a report to say; of a run in no simulated time nothing."""
    for bandwidth, said in (("constant:10", 1), (None, None)):
        timed = {"bandwidth": bandwidth, "controller": bandwidth and "deadline"}
        timed |= {"device_speed": 1e6} if bandwidth else {}
        (own,) = members(**BASE, **timed)
        write_config(tmp_path, plan([own]), own)
        config = json.loads((tmp_path / "config.json").read_text())
        assert config.get("simulated_time") == (said and said_of_time(own))
        assert said is None or "buys next to no time here" in config["simulated_time"][0]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"controller": "deadline"}, "no retention brings them below it"),
        ({"controller": "prunefl"}, None),  # of each layer a twentieth, where others keep three times that of some
        (
            {"retention": 0.9, "linear_retention": "0.9@step:5:0.2"},
            "4 of 4 agents more than the deadline of 0.0275: rounds wait for them while they keep as much as in the "
            "first",
        ),
        (
            {"retention": 0.9, "linear_retention": "same"},
            "rounds wait for them while they keep as much as in the first",
        ),
        ({"retention": 0.1, "linear_retention": "same"}, None),
        ({"linear_retention": "0.9@step:5:0.2", "device_sparse": False}, "no retention brings them below it"),
    ],
    ids=str,
)
def test_nobody_is_said_to_miss_a_deadline_that_it_can_make(settings, said):
    timed = {"bandwidth": "constant:1000", "device_sparse": True, "device_speed": 1e8, "deadline": 0.0275}
    (own,) = members(**BASE | {"model": "mlp"} | timed | settings)
    found = out_of_reach(own)
    assert [said in sentence for sentence in found] == [True] * (said is not None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"controller": "bandit", "rounds": 59}, "after 59 exchanges, and there are 59 in this run: for 4 of 4 agents"),
        ({"controller": "bandit", "rounds": 60}, None),
        ({"controller": "balance", "algorithm": "score-gossip", "device_sparse": False}, "buys next to no time here"),
        ({"controller": "balance", "device_sparse": False}, None),
    ],
    ids=str,
)
def test_what_a_controller_cannot_do_is_said(settings, said):
    """A sign an entry costs a bit whatever is kept, where masks that keep less take fewer."""
    timed = {"bandwidth": "constant:0.001", "device_sparse": True, "device_speed": 1e8}
    (own,) = members(**BASE | timed | settings)
    assert [said in sentence for sentence in said_of_time(own)] == [True] * (said is not None)


def test_without_bandwidth_no_time_is_simulated(tmp_path, monkeypatch):
    """Its columns are there, and empty; agents.csv has none of them."""
    use_fakes(monkeypatch)
    assert cifar.main([*FLAGS, "--out", str(tmp_path)]) == 0
    rows = rows_of(tmp_path)
    assert {row[name] for row in rows for name in ("simulated_seconds", "idle_seconds", "retention_mean")} == {None}
    assert "idle_seconds" not in (tmp_path / "agents.csv").read_text()


@pytest.mark.slow
def test_rounds_wait_for_agents_whose_computing_exceeds_the_deadline_which_is_said(tmp_path, capsys):
    """And no longer than for that: late is who has something to send then, which nobody has whose mask stays."""
    slow = [*FLAGS, *TIMED, "--device-speed", "1e4", "--controller", "deadline", "--deadline", "0.5"]
    assert cifar.main([*slow, "--out", str(tmp_path)]) == 0
    with (tmp_path / "agents.csv").open() as file:
        assert all(0 < int(row["late"]) <= 8 for row in csv.DictReader(file))
    said = capsys.readouterr()
    said = " ".join((said.out + said.err).split())
    computing = float(re.search(r"computing alone takes agent \d ([\d.]+) simulated seconds a round", said)[1])
    assert computing > 0.5
    assert "no retention brings them below it" in said
    assert rows_of(tmp_path)[-1]["simulated_seconds"] == pytest.approx(8 * computing, rel=0.01)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["deadline"] == 0.5
