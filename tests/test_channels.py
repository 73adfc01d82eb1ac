"""Channels that die: who reads whom, the proximal step, counts of what lives, and the strength that finds itself."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn
from tiny import OneBlock, slow_but

from dslth_jax import channels
from dslth_jax.algorithm import by_name
from dslth_jax.channels import Channels
from dslth_jax.compaction import compact
from dslth_jax.keys import key_of
from dslth_jax.networks.convolution import max_pool
from dslth_jax.networks.network import Conv, Linear, network_of
from dslth_jax.networks.operations import elu
from dslth_jax.networks.wiring import IMAGES, Layer, Wiring, chain
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.target_channels import target_channels


class Chain(nn.Module):
    """Two convolutions and two linear layers, in an order that is not that of their names."""

    wiring = chain(("second", "first", "b", "a"), elu)

    @nn.compact
    def __call__(self, values):
        values = max_pool(elu(Conv(4, side=3, padding=1, name="second")(values)))
        values = elu(Conv(6, side=3, padding=1, name="first")(values))
        values = elu(Linear(5, name="b")(values.reshape(values.shape[0], -1)))
        return Linear(3, name="a")(values)


class Ring(nn.Module):
    """A sum in which the channels of two layers meet."""

    wiring = Wiring({"stem": Layer(IMAGES, "sum"), "beside": Layer("sum", "sum"), "head": Layer("sum", "head")})

    @nn.compact
    def __call__(self, values):
        values = elu(Conv(4, side=3, padding=1, name="stem")(values))
        values = values + elu(Conv(4, side=3, padding=1, name="beside")(values))
        return Linear(3, name="head")(values.reshape(values.shape[0], -1))


SHAPE = (6, 6, 2)
CHAIN = network_of(Chain(), SHAPE)
SEEN = (
    Channels("second", ("second/kernel",), (("first/kernel", 4),), 4),
    Channels("first", ("first/kernel",), (("b/kernel", 6),), 6),
    Channels("b", ("b/kernel",), (("a/kernel", 5),), 5),
)
READERS = {own.makers[0]: tuple(leaf for leaf, _ in own.readers) for own in SEEN}


def test_who_reads_whom_is_what_the_wiring_says():
    assert channels.channels_of(CHAIN) == SEEN


def test_channels_that_meet_in_a_sum_are_one_set(x64):
    """Made by both layers, read by one of them and by the head: they shrink by their common norm, and die together."""
    network = network_of(Ring(), SHAPE)
    (own,) = channels.channels_of(network)
    makers = ("stem/kernel", "beside/kernel")
    assert own == Channels("sum", makers, (("beside/kernel", 4), ("head/kernel", 4)), 4)
    rng = np.random.default_rng(0)
    z = {name: rng.normal(size=leaf.shape) for name, leaf in by_name(network.init(key_of(0))[0]).items()}
    for maker in makers:
        z[maker][..., 1] *= 0.1
    norms = np.sqrt(sum((z[maker] ** 2).sum(axis=(0, 1, 2)) for maker in makers))
    shrunk = shrink(on_device(z), 0.5, channels=(own,), smallest=1)
    factors = np.maximum(1 - 0.5 * norms.mean() / norms, 0)
    factors[norms.argmax()] = 1
    assert (factors == 0).tolist() == [False, True, False, False]
    np.testing.assert_allclose(shrunk["stem/kernel"], z["stem/kernel"] * factors, rtol=1e-12)
    heard = np.arange(4)[:, None] != 1
    np.testing.assert_allclose(shrunk["beside/kernel"], z["beside/kernel"] * factors * heard, rtol=1e-12)
    rows = np.tile(heard, (SHAPE[0] * SHAPE[1], 1))
    np.testing.assert_array_equal(shrunk["head/kernel"], z["head/kernel"] * rows)


def test_a_head_dies_as_a_whole_and_hidden_neurons_one_by_one(x64):
    """By the norm of all columns that make its queries, keys and values; the stream of tokens keeps its width."""
    network = network_of(OneBlock(3), (8, 8, 3))
    heads, hidden = channels.channels_of(network)
    makers = ("block1/query/kernel", "block1/key/kernel", "block1/value/kernel")
    assert heads == Channels("block1/value", makers, (("block1/output/kernel", 12),), 3, heads=True)
    assert hidden == Channels("block1/mlp1", ("block1/mlp1/kernel",), (("block1/mlp2/kernel", 48),), 48)
    rng = np.random.default_rng(0)
    z = {
        name: rng.normal(size=leaf.shape) for name, leaf in by_name(jax.eval_shape(network.init, key_of(0))[0]).items()
    }
    for maker in makers[:2]:
        z[maker][:, 4:8] *= 0.1  # of the second head values alone would not die
    z["block1/mlp1/kernel"][:, 7] *= 0.1
    shrunk = shrink(on_device(z), 0.9, channels=(heads, hidden), smallest=2)
    norms = np.sqrt(sum((z[maker].reshape(12, 3, 4) ** 2).sum(axis=(0, 2)) for maker in makers))
    factors = np.where(np.arange(3) == norms.argmin(), np.maximum(1 - 0.9 * norms.mean() / norms, 0), 1)
    assert (factors == 0).tolist() == [False, True, False]
    for maker in makers:
        np.testing.assert_allclose(shrunk[maker], z[maker] * factors.repeat(4), rtol=1e-12)
    rows = np.where(factors == 0, 0, 1).repeat(4)[:, None]
    np.testing.assert_array_equal(shrunk["block1/output/kernel"], z["block1/output/kernel"] * rows)
    assert channels.alive_of(shrunk, heads).tolist() == [True, False, True]
    dead = ~np.asarray(channels.alive_of(shrunk, hidden))
    assert dead[7]
    assert (np.asarray(shrunk["block1/mlp2/kernel"]) == 0).all(axis=1).tolist() == dead.tolist()
    for name in ("patches", "block1/mlp2", "head"):  # who writes to the stream makes all of it
        assert (np.asarray(shrunk[f"{name}/kernel"]) != 0).any(axis=0).all()


def test_heads_stay_that_a_shortcut_hands_on():
    """Then their columns are those of another set, too."""
    wiring = OneBlock(3).wiring
    further = wiring._replace(layers={**wiring.layers, "again": Layer("block1/value", "block1/mlp1")})
    network = network_of(OneBlock(3), (8, 8, 3))
    (hidden,) = channels.channels_of(network._replace(wiring=wiring._replace(whole=("tokens", "block1/key"))))
    assert hidden.name == "block1/mlp1"
    with pytest.raises(ValueError, match=r"^none of the network's channels can die: all are those of its logits"):
        channels.channels_of(network._replace(wiring=further))


@pytest.mark.parametrize("name", slow_but(MODULES, "small"))
def test_dead_channels_of_every_network_can_be_left_out(name):
    """After a step that kills most, masks of all that lives: compaction finds every dead channel, logits stay."""
    narrow = {} if name == "mlp" else {"width": 0.25}
    side = 8 if name in ("small", "mlp", "conv3", "resnet20", "mobilenetv2", "vit-tiny") else 32
    network = network_by_name(name, (side, side, 3), 10, **narrow)
    sets = channels.channels_of(network)
    weights, frozen = jax.jit(network.init)(key_of(0))
    z = shrink(weights, 1.02, channels=sets, smallest=1 if name == "vit-tiny" else 3)  # it has three heads
    left = {own.name: int(channels.survivors(z, sets)[own.name]) for own in sets}
    assert any(left[own.name] < own.size for own in sets)
    variables = {"params": jax.tree.map(lambda w, own: w * (own != 0), weights, z), "frozen": frozen}
    small = compact(network, variables)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8))
    wanted = jax.jit(network.apply)(variables, images)
    found = jax.jit(small.network.apply)(small.variables, images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * max(1.0, float(jnp.abs(wanted).max())))
    for own in sets:
        alive = np.flatnonzero(channels.alive_of(z, own))
        for maker in own.makers:
            if own.heads:
                alive = np.flatnonzero(np.repeat(channels.alive_of(z, own), by_name(z)[maker].shape[-1] // own.size))
            numbers = small.alive.get(maker.removesuffix("/kernel"), np.zeros(0, int))
            assert len(numbers) <= 1 or set(numbers) <= set(alive)  # one is left of what has none


def scores_of(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"second": (3, 3, 2, 4), "first": (3, 3, 4, 6), "b": (4 * 6, 5), "a": (5, 3)}
    return {f"{name}/kernel": rng.normal(size=shape) * rng.uniform(0.3, 2, shape[-1]) for name, shape in shapes.items()}


shrink = jax.jit(channels.shrink, static_argnames=("channels", "smallest"))
on_device = functools.partial(jax.tree.map, jnp.asarray)


@pytest.mark.parametrize("strength", [0.0, 0.6, 5.0])
@pytest.mark.parametrize("smallest", [1, 3])
def test_the_relative_step_meets_its_oracle(x64, strength, smallest):
    """Filters shrink by their layer's own scale; what reads a dead one is 0, and the largest are spared."""
    z, layers = scores_of(), READERS
    for _ in range(2):  # the second step begins with dead channels
        z = reference.relative_step(z, strength, layers, smallest)
    ours = shrink(
        shrink(on_device(scores_of()), strength, channels=SEEN, smallest=smallest),
        strength,
        channels=SEEN,
        smallest=smallest,
    )
    for name, leaf in z.items():
        np.testing.assert_allclose(ours[name], leaf, rtol=1e-12)
        np.testing.assert_array_equal(np.asarray(ours[name]) == 0, leaf == 0)
    left = {name: int(count) for name, count in channels.survivors(ours, SEEN).items()}
    assert left == {own.name: int((reference.groups(z[own.makers[0]]) != 0).any(axis=0).sum()) for own in SEEN}
    assert all(min(smallest, own.size) <= left[own.name] for own in SEEN)
    assert (strength == 0) == (left == {own.name: own.size for own in SEEN})
    assert (z["a/kernel"] != 0).any(axis=0).all()  # classes stay


def test_a_step_without_strength_changes_no_bit():
    z = jax.tree.map(lambda leaf: leaf.astype(np.float32), scores_of())
    z["first/kernel"][..., 2] = 0
    z["b/kernel"].reshape(4, 6, 5)[:, 2] = 0
    ours = shrink(on_device(z), jnp.float32(0), channels=SEEN, smallest=1)
    for name, leaf in z.items():
        np.testing.assert_array_equal(np.asarray(ours[name]).view(np.uint32), leaf.view(np.uint32))


def test_what_is_kept_is_the_share_of_what_lives(x64):
    z = reference.relative_step(scores_of(), 0.9, READERS, 1)
    kept = {name: reference.kept_entries(0.3, leaf.size) for name, leaf in z.items()}
    ours = jax.jit(channels.kept_of_living)(kept, on_device(z))
    for name, leaf in z.items():
        assert ours[name] == reference.kept_of_living(kept[name], leaf)
    assert ours["first/kernel"] < kept["first/kernel"]
    whole = channels.kept_of_living(kept, on_device(scores_of()))
    assert {name: int(count) for name, count in whole.items()} == kept
    nothing = channels.kept_of_living(dict.fromkeys(kept, 0), on_device(z))
    assert all(count == 0 for count in nothing.values())


def test_a_dead_channel_is_silent_and_a_masked_network_is_a_narrower_one(x64):
    """Random biases too: the rows that would read a dead neuron's bias are dead."""
    w, frozen = CHAIN.init(key_of(0))
    z = shrink(on_device(scores_of()), 0.9, channels=SEEN, smallest=1)
    masks = {name: np.asarray(leaf) != 0 for name, leaf in z.items()}
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (4, *SHAPE), np.uint8))
    alive = {own.name: np.asarray(channels.alive_of(z, own)) for own in SEEN}
    assert all(0 < np.sum(live) < live.size for live in alive.values())

    def masked(outputs):
        kernels = {layer: {"kernel": own["kernel"] * masks[f"{layer}/kernel"]} for layer, own in w.items()}
        # What a dead channel says, changed: nobody hears it.
        biases = {"b": {"bias": frozen["b"]["bias"] + outputs * ~alive["b"]}, "a": frozen["a"]}
        return CHAIN.apply({"params": kernels, "frozen": biases}, images)

    np.testing.assert_array_equal(masked(0.0), masked(7.0))


@functools.cache
def updated():
    init, update, _ = target_channels(jnp.array([0.5, 0.25, 1.0]), SEEN, begin=2.0, end=12.0)
    return init, jax.jit(update, static_argnames=("seconds", "axis"))


class Hyper(NamedTuple):
    group_lasso: Any
    lr: Any


HYPER = Hyper(jnp.full(3, 0.01), jnp.full(3, 7.0))


def controlled(rounds, dying):
    """What presses on `first` in each round, of three agents, and how many of its six channels then live;
    `dying(alive, spared, strength)` says how many do."""
    init, update = updated()
    memory, hyper = init(HYPER)
    alive, told = {own.name: np.full(3, own.size) for own in SEEN}, []
    for round in range(rounds):
        for layer, own in hyper.group_lasso.items():
            alive[layer] = dying(alive[layer], np.asarray(own.smallest), np.asarray(own.strength))
        told.append((*(np.asarray(leaf) for leaf in hyper.group_lasso["first"]), alive["first"]))
        info = {"alive": {layer: jnp.asarray(count, jnp.int32) for layer, count in alive.items()}}
        memory, hyper = update(memory, HYPER, jnp.int32(round), info, seconds=None, axis=None)
        np.testing.assert_array_equal(hyper.lr, HYPER.lr)
    return [np.stack(own) for own in zip(*told, strict=True)]


def test_channels_begin_to_die_before_the_last_does():
    with pytest.raises(ValueError, match="got begin 3 and end 3"):
        target_channels(jnp.array([0.5]), (Channels("a", ("a",), (), 8),), begin=3.0, end=3.0)


def test_a_strength_that_kills_falls_and_one_that_does_not_grows():
    def willing(alive, spared, strength):
        return np.where(strength > 0, np.minimum(alive, spared), alive)

    def stubborn(alive, spared, strength):
        return alive

    strengths, spared, alive = controlled(20, willing)
    np.testing.assert_array_equal(spared[[0, 2, 7, 12, 19]], [[6, 6, 6], [6, 6, 6], [5, 4, 6], [3, 2, 6], [3, 2, 6]])
    np.testing.assert_array_equal(alive, spared)
    assert (strengths[:2] == 0).all()  # it has not begun
    assert (strengths[14:] < strengths[13]).all()  # they have died as soon as they were to
    strengths, spared, _ = controlled(60, stubborn)
    assert (np.diff(strengths[2:, 2]) < 0).all()  # nobody presses on an agent that is to keep all
    assert (spared[:, 2] == 6).all()
    assert (strengths[-1, :2] > 10 * strengths[5, :2]).all()
    np.testing.assert_allclose(strengths[-1, :2], 0.01 * np.exp(5), rtol=1e-5)


def test_a_target_bounds_what_a_layer_loses():
    """As much strength as you like: each layer keeps its floor, of its largest."""
    z, floors = on_device(scores_of()), {"first": 4, "second": 3, "b": 2}
    pressed = {layer: channels.Pressure(jnp.float32(9), jnp.int32(floor)) for layer, floor in floors.items()}
    shrunk = jax.jit(lambda z, pressed: channels.shrink(z, pressed, SEEN))(z, pressed)
    assert {layer: int(count) for layer, count in channels.survivors(shrunk, SEEN).items()} == floors
    for own in SEEN:
        lengths, left = channels.lengths_of(z, own), channels.alive_of(shrunk, own)
        assert lengths[left].min() > lengths[~left].max()
