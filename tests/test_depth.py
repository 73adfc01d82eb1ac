"""Depth: agents without some residual blocks are the smaller network. Exits: their ensemble, and how they learn from
each other."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import draw_nothing, use_fakes
from flax import linen as nn

from dslth_jax.algorithm import Batch, by_name, with_names
from dslth_jax.algorithms.descent import batch_loss, distillation
from dslth_jax.depth import absent, kept_without
from dslth_jax.keys import key_of
from dslth_jax.networks import residual, zoo
from dslth_jax.networks.layers import through
from dslth_jax.networks.mobilenet import MobileNetV2
from dslth_jax.networks.network import ensemble, network_of
from dslth_jax.networks.transformer import Block as TransformerBlock
from dslth_jax.study.config.numbers import depths_of, population_hyper
from dslth_jax.study.config.resolve import resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results.devices import by_device
from dslth_jax.study.results.folders import read_run
from experiments import cifar

SIDE = (8, 8, 3)


class TwoStages(residual.ResNet):
    """Two blocks, then two."""

    channels = (4, 8)
    blocks = 2
    projected = False


class OneEach(TwoStages):
    """The same without all that may be absent."""

    blocks = 1


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, *SIDE)), jnp.uint8)


def test_further_blocks_come_stage_by_stage_in_turn():
    stages = [["a1", "a2", "a3"], ["b1"], ["c1", "c2"]]
    assert [absent(stages, depth) for depth in (3, 4, 5, 6)] == [("a2", "c2", "a3"), ("c2", "a3"), ("a3",), ()]
    for depth in (2, 7):
        with pytest.raises(ValueError, match=rf"depth must be in 3\.\.6 residual blocks, got {depth}"):
            absent(stages, depth)
    with pytest.raises(ValueError, match="the network has none"):
        absent([], 1)


@pytest.mark.parametrize(
    ("deep", "shallow"),
    [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((TwoStages(4), OneEach(4)), [MobileNetV2(4, 0.05)] * 2)],
)
def test_an_agent_without_blocks_is_the_smaller_network(deep, shallow, images, x64):
    """Its logits, and the gradients of what it has; there is none by what it lacks. One by one, and several at once."""
    network = network_of(deep, SIDE, weights="signed-constant")
    lacks = absent(network.stages, len(network.stages))
    masked, frozen = jax.jit(network.init)(key_of(0))
    kept = kept_without(jax.tree.map(lambda leaf: 1, masked), lacks)
    fewer = jax.tree.map(jnp.multiply, masked, kept)

    def loss(weights, apply=network.apply):
        return jnp.sum(jnp.cos(apply({"params": weights, "frozen": frozen}, images)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(fewer)
    assert not any(leaf.any() for name, leaf in by_name(gradient).items() if name.startswith(tuple(lacks)))
    if shallow is not deep:
        small = network_of(shallow, SIDE)
        like = jax.eval_shape(small.init, key_of(0))[0]
        own = with_names(lambda name, _: by_name(fewer)[name], like)
        expected, small_gradient = jax.jit(jax.value_and_grad(functools.partial(loss, apply=small.apply)))(own)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        for name, leaf in by_name(small_gradient).items():
            np.testing.assert_allclose(by_name(gradient)[name], leaf, rtol=1e-9, atol=1e-12)
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), masked, fewer)
    together, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(both)
    np.testing.assert_allclose(together[1], value, rtol=1e-12)
    for found, leaf in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(found[1], leaf, rtol=1e-9, atol=1e-12)


class TwoBlocks(nn.Module):
    """Of a transformer, the second of which may be absent."""

    @nn.compact
    def __call__(self, tokens):
        return through(self, [TransformerBlock(heads=3, name=f"block{number}") for number in (1, 2)], tokens)


def test_an_absent_block_is_a_branch_of_one_agent_and_a_choice_for_several():
    """One agent at a time does not compute it, forward or back; of several at once it is computed and left out."""
    tokens = jnp.zeros((2, 4, 12))
    params = TwoBlocks().init(key_of(0), tokens)["params"]

    def loss(params):
        return TwoBlocks().apply({"params": params}, tokens).sum()

    several = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    assert str(jax.make_jaxpr(jax.grad(loss))(params)).count(" cond[") == 2  # forward and back
    assert " cond[" not in str(jax.make_jaxpr(jax.vmap(jax.grad(loss)))(several))


def test_a_block_that_lacks_one_kernel_alone_is_there(x64):
    """Masks may keep nothing of a block's keys, the first of its kernels: the other ones are still used."""
    tokens = jax.random.normal(key_of(1), (2, 4, 12))
    params = TwoBlocks().init(key_of(0), tokens)["params"]
    own = params["block2"]
    without_keys = own | {"key": jax.tree.map(jnp.zeros_like, own["key"])}
    before = TransformerBlock(heads=3).apply({"params": params["block1"]}, tokens)
    expected = TransformerBlock(heads=3).apply({"params": without_keys}, before)
    found = TwoBlocks().apply({"params": params | {"block2": without_keys}}, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.slow
def test_exits_predict_together_and_learn_from_each_other(images, x64):
    """By the formulas, in numpy: the ensemble, the mean loss, and the mean divergence over pairs of exits."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 4, 5))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(ensemble(jnp.asarray(logits))), shares.mean(0), rtol=1e-12)
    apart = [(shares[j] * np.log(shares[j] / shares[k])).sum(-1) for j in range(3) for k in range(3) if j != k]
    np.testing.assert_allclose(distillation(jnp.asarray(logits)), np.mean(apart, axis=0), rtol=1e-12)
    # Only who learns is moved: exit k by the mean over the others of (p_k - p_j).
    slope = jax.grad(lambda own: distillation(own).sum())(jnp.asarray(logits))
    expected = [sum(shares[k] - shares[j] for j in range(3) if j != k) / 6 for k in range(3)]
    np.testing.assert_allclose(slope, expected, atol=1e-12)

    plain = network_of(TwoStages(4, exits=True), SIDE)
    distilled = network_of(TwoStages(4, exits=True), SIDE, distils=True)
    assert plain.heads == ("exit1", "head")
    weights, frozen = jax.jit(plain.init)(key_of(0))
    variables = {"params": weights, "frozen": frozen}
    batch = Batch(images, jnp.array([0, 1, 2, 3]), jnp.array([True, True, True, False]))
    found = np.asarray(plain.exits(variables, images))
    likely = np.log(np.exp(found) / np.exp(found).sum(-1, keepdims=True))
    losses = -np.mean([[own[i, i] for i in range(3)] for own in likely])
    np.testing.assert_allclose(batch_loss(plain, variables, batch), losses, rtol=1e-12)
    smoothed = 0.9 * losses - 0.1 * likely[:, :3].mean()  # a tenth of each label is of all classes alike
    np.testing.assert_allclose(batch_loss(plain, variables, batch, 0.1), smoothed, rtol=1e-12)
    more = np.mean(distillation(jnp.asarray(found))[:3])
    np.testing.assert_allclose(batch_loss(distilled, variables, batch), losses + more, rtol=1e-12)
    np.testing.assert_allclose(batch_loss(distilled, variables, batch, 0.1), smoothed + more, rtol=1e-12)


@pytest.fixture
def two_stages(monkeypatch):
    monkeypatch.setitem(zoo.MODULES, "two-stages", TwoStages)
    draw_nothing(monkeypatch)


FLAGS = ["--dataset", "digits", "--model", "two-stages", "--agents", "4", "--topology", "complete", "--rounds", "2"]
FLAGS += ["--preset", "tuned", "--lr", "0.01", "--eval-every", "1"]


def test_what_an_agent_lacks_is_nothing_to_keep(two_stages):
    """Whatever its retention; all else is as for agents who have everything."""
    given = {"dataset": "digits", "model": "two-stages", "agents": 4, "preset": "tuned", "retention": "0.2:0.5"}
    network = network_of(TwoStages(10), (8, 8, 1))
    (hyper, _), (full, _) = (population_hyper(resolve(Settings(**given, depth=own)), network) for own in ("2:4", None))
    whole = by_name(full.kept)
    for name, counts in by_name(hyper.kept).items():
        lacking = [any(name.startswith(block) for block in absent(network.stages, depth)) for depth in (2, 3, 3, 4)]
        np.testing.assert_array_equal(counts, np.where(lacking, 0, whole[name]))


def test_a_run_says_who_has_which_depth_and_what_each_depth_came_to(two_stages, monkeypatch, tmp_path, capsys):
    """Of fakes: a depth may be dealt, and then nothing else says whose it is."""
    use_fakes(monkeypatch)
    settings = {"dataset": "digits", "model": "two-stages", "agents": 4, "rounds": 1, "depth": "dealt:2,4"}
    cifar.run(Settings(**settings, out=tmp_path / "run"))
    assert "By class of device, that is by retention and depth" in capsys.readouterr().out
    run = read_run(tmp_path / "run", "run", json.loads((tmp_path / "run" / "config.json").read_text()))
    assert [row["depth"] for row in run.agents] == depths_of(Settings(**settings))
    rows = by_device(run.agents)
    assert [(own["depth"], own["agents"], own["retention"]) for own in rows] == [(2, 2, "0.3"), (4, 2, "0.3")]
    agents = [row | {"retention": 0.1 * number} for number, row in enumerate(run.agents, 1)]
    assert len(by_device(agents)) == 4


@pytest.mark.slow
def test_shallow_agents_keep_and_send_less(two_stages, tmp_path):
    """A run of unlike depths, with exits: what agents lack is in no count, and no other layer is thinned out for it."""
    flags = [*FLAGS, "--retention", "0.5", "--linear-retention", "same"]
    assert cifar.main([*flags, "--depth", "2:4", "--exits", "distilled", "--out", str(tmp_path / "run")]) == 0
    run = read_run(tmp_path / "run", "run", json.loads((tmp_path / "run" / "config.json").read_text()))
    network = network_of(TwoStages(10, exits=True), (8, 8, 1))
    weights, _ = jax.eval_shape(network.init, key_of(0))
    sizes, entries = {name: leaf.size for name, leaf in by_name(weights).items()}, []
    for row, depth in zip(run.agents, (2, 3, 3, 4), strict=True):
        lacks = absent(network.stages, depth)
        had = {name: size for name, size in sizes.items() if not name.startswith(tuple(lacks))}
        kept = sum(-(-size // 2) for size in had.values())
        assert float(row["density"]) == pytest.approx(kept / sum(sizes.values()), abs=1e-6)
        entries.append(sum(size for name, size in had.items() if not name.startswith(network.heads)))
    assert run.rows[-1]["bitmap_bits"] == 2 * 3 * sum(entries)  # rounds, links
    sent = [float(row["sent_bits"]) for row in run.agents]
    assert sent[0] < min(sent[1:3]) < max(sent[1:3]) < sent[3]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--depth", "1"], "--model two-stages: depth must be in 2..4 residual blocks, got 1"),
        (["--depth", "2.5"], "--depth must be whole numbers of residual blocks, got 2.5"),
        (["--depth", "dealt:2.5,4"], "--depth must be whole numbers of residual blocks, got 2.5"),
        (["--depth", "inf"], "--depth must be whole numbers of residual blocks, got inf"),
        (["--depth", "1e30"], "--depth must be in 1..2147483647, got 1e+30"),
        (
            ["--depth", "2", "--model", "small"],
            "--model small: depth is a number of residual blocks, and the network ha",
        ),
        (["--depth", "2,3"], "--depth must give one number for each of 4 agents, got 2"),
        (
            ["--exits", "each-stage", "--model", "small"],
            "exits are behind the stages of resnet18, resnet20, mobilenetv2, two-stages",
        ),
        (["--revive", "--mask", "ternary"], "--revive needs --mask binary: say it, or leave --revive out"),
    ],
)
def test_what_no_network_has_is_refused(flags, sentence, two_stages, capsys):
    assert cifar.main([*FLAGS, *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_flax_modules_of_ones_own_may_have_blocks_that_are_absent():
    """By a property `stages`; without one a network has none."""

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, values):
            return nn.Dense(3)(values.reshape(len(values), -1))

    assert network_of(Plain(), SIDE).stages == ()
    assert network_of(TwoStages(4), SIDE).stages[1] == ("stage2/block1", "stage2/block2")
