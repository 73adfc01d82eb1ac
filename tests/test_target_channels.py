"""Runs whose channels die: they meet their target, say who lived, go on bit for bit, and are members of sweeps."""

import csv

import jax.numpy as jnp
import numpy as np
import pytest
from fakes import StopAfter
from tiny import OneBlock, assert_same_numbers, rows_of, use_tiny_network

import dslth_jax
from dslth_jax.algorithms.score_gossip import Agent, opinion
from dslth_jax.channels import Channels
from dslth_jax.compaction import compact
from dslth_jax.networks.zoo import MODULES
from dslth_jax.study.commands import sweep
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.sweeping.grid import Sweep, axes_of, groups_of, points_of
from dslth_jax.study.training.prepare import members_of
from experiments import cifar, report

SETTINGS = {"dataset": "digits", "model": "tiny", "agents": 4, "topology": "ring", "rounds": 12, "eval_every": 4}
SETTINGS |= {"preset": "tuned", "lr": "0.01@cosine", "augment": "none"}
DYING = {"target_channels": "0.5*3,1*1", "group_lasso": 0.2}


@pytest.fixture(autouse=True)
def tiny_network(monkeypatch):
    use_tiny_network(monkeypatch)


def run(out, stop=None, **settings):
    flags = [word for name, value in (SETTINGS | settings).items() for word in (f"--{name.replace('_', '-')}", value)]
    return cifar.main([*map(str, flags), "--out", str(out)], **({} if stop is None else {"stop": stop}))


FUSED = {"algorithm": "mce-pl", "fusion": "tensor"}  # whose fine-tuning has a direction from before channels die
GOING_ON = [
    pytest.param(name, True, marks=pytest.mark.slow)
    for name in ({"algorithm": "independent"}, {"algorithm": "mce-pl"}, {"algorithm": "score-gossip"}, FUSED)
]


@pytest.mark.parametrize(("rule", "cut"), [(FUSED, False), *GOING_ON], ids=str)
def test_a_run_is_left_with_its_target_and_goes_on_bit_for_bit(rule, cut, tmp_path):
    assert run(tmp_path / "whole", **rule, **DYING) == 0
    with (tmp_path / "whole" / "agents.csv").open() as file:
        agents = list(csv.DictReader(file))
    # Nobody loses a channel because neighbours lose it whose target is lower.
    assert [float(row["alive"]) for row in agents] == [0.5, 0.5, 0.5, 1]
    assert [row["alive/conv"] for row in agents] == [row["alive"] for row in agents]
    alive = [row["alive"] for row in rows_of(tmp_path / "whole")]
    assert alive[0] == 1
    assert alive[-1] == 0.625
    assert alive == sorted(alive, reverse=True)
    assert (tmp_path / "whole" / "survival.png").is_file()

    models = dslth_jax.load(tmp_path / "whole")
    for agent, (left, row) in enumerate(zip((2, 2, 2, 4), agents, strict=True)):
        conv, linear = (np.asarray(models.agent(agent).masks[layer]["kernel"]) for layer in ("conv", "linear"))
        # The same retention of what lives: 3x3 kernels, and 3x3 places of each channel.
        assert conv.sum() == round((36 - int(0.7 * 36)) * left / 4)
        assert linear.sum() == round((360 - int((1 - 0.9) * 360)) * left / 4)
        assert (linear.reshape(9, 4, 10).any(axis=(0, 2)) <= conv.any(axis=(0, 1, 2))).all()
        assert float(row["multiply_adds"]) == 64 * conv.sum() + linear.sum()

    if cut:
        assert run(tmp_path / "cut", StopAfter(6), **rule, **DYING) == 143
        assert (
            cifar.main(["--config", str(tmp_path / "cut" / "config.json"), "--out", str(tmp_path / "cut"), "--resume"])
            == 0
        )
        assert_same_numbers(tmp_path / "whole", tmp_path / "cut")
    assert report.main([str(tmp_path / "whole"), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Channels alive over rounds" in page
    assert "Channels alive at the end" in page


def test_who_gossips_tells_what_it_hears_of_entries_that_it_has_lost():
    """So that an estimate of what is dead follows those of neighbours, in the place of drawing them to 0."""
    scores = {"conv": jnp.array([0.0, -2.0, 3.0, 0.0])}
    heard, public = {"conv": jnp.array([5.0, 6.0, 7.0, 0.5])}, {"conv": jnp.ones(4)}
    agent = Agent(scores, None, jnp.zeros(()), public, heard, {})
    mortal = (Channels("conv", ("conv",), (), 4),)
    assert opinion(agent, mortal=mortal)["conv"].tolist() == [5, 2, 3, 0.5]
    assert opinion(agent)["conv"].tolist() == [0, 2, 3, 0]


@pytest.mark.slow
def test_a_transformer_is_left_with_its_share_of_heads_and_of_hidden_neurons(tmp_path, monkeypatch):
    """Two of three heads are the next above a half. What writes to the stream of tokens makes all of it."""
    monkeypatch.setitem(MODULES, "tiny", OneBlock)
    assert run(tmp_path / "run", algorithm="independent", group_lasso=0.2, target_channels=0.5, rounds=20) == 0
    last = {"patches": 1, "output": 1, "mlp2": 1, "mlp1": 0.5} | dict.fromkeys(("query", "key", "value"), 2 / 3)
    with (tmp_path / "run" / "agents.csv").open() as file:
        for row in csv.DictReader(file):
            alive = {name.rpartition("/")[2]: float(share) for name, share in row.items() if name.startswith("alive/")}
            assert alive == pytest.approx(last)
    models = dslth_jax.load(tmp_path / "run")
    small = compact(models.network, models.agent(0).variables)
    assert [len(small.alive[f"block1/{name}"]) for name in ("query", "value", "mlp1")] == [8, 8, 24]


@pytest.mark.slow
def test_targets_are_an_axis_of_a_sweep(tmp_path):
    own = SETTINGS | {"algorithm": "independent", "group_lasso": 0.2}
    grid = ("target_channels=0.25,0.75",)
    sweep(Sweep(**own, grid=grid, run_folders=True, out=tmp_path / "all"))
    for target in ("0.25", "0.75"):
        (member,) = (tmp_path / "all" / "runs").glob(f"*target_channels={target},*")
        assert run(tmp_path / target, algorithm="independent", group_lasso=0.2, target_channels=target) == 0
        assert_same_numbers(member, tmp_path / target)
        assert rows_of(member)[-1]["alive"] == float(target)


def test_targets_and_strengths_are_numbers_of_one_program():
    def groups(*grid):
        own = Sweep(**SETTINGS, algorithm="independent", grid=grid)
        members = members_of(own, points_of(axes_of(own)), own.seeds)
        return len(list(groups_of(members, range(len(members)))))

    assert groups("target_channels=0.5,0.75", "group_lasso=0.1,0.2") == 1
    assert groups("group_lasso=0,0.1") == 2  # without a lasso nothing is as much as looked at
    assert groups("target_channels=None,0.5", "group_lasso=0.1") == 2


def test_a_lasso_is_relative_where_it_should_be():
    def strength(**own):
        resolved = resolve(Settings(**own))
        assert resolve(resolved) == resolved
        return resolved.group_lasso_strength, resolved.group_lasso

    assert strength() == ("absolute", 0)
    assert strength(preset="paper") == ("absolute", 1e-4)
    assert strength(preset="tuned") == ("absolute", 0)
    assert strength(preset="tuned", group_lasso=0.1) == ("relative", 0.1)
    assert strength(preset="tuned", group_lasso=0.1, group_lasso_strength="absolute") == ("absolute", 0.1)
    assert strength(target_channels=0.5) == ("relative", 0.05)
    assert strength(algorithm="dsgd") == (None, None)
