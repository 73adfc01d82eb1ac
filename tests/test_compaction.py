"""Compaction: the smaller network gives the masked one's logits to 1e-12 in float64, and is as small as it can be."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits
from test_depth import TwoStages
from tiny import OneBlock, TinyNet, slow_but

from dslth_jax.algorithm import World, by_name, with_names
from dslth_jax.algorithms.masked import MaskRule, personal_model
from dslth_jax.channels import alive_of, channels_of, shrink
from dslth_jax.compaction import compact, filled_up, places_of
from dslth_jax.keys import key_of
from dslth_jax.networks.attention import attention
from dslth_jax.networks.cost import multiply_adds, positions_of, sizes_of
from dslth_jax.networks.layers import NormedConv, activated, all_live, through
from dslth_jax.networks.liveness import mixed_into
from dslth_jax.networks.mobilenet import InvertedResidual, MobileNetV2
from dslth_jax.networks.network import Conv, Linear, draw_like, network_of, uniform_by_fan_in
from dslth_jax.networks.norms import EPSILON, group_norm, groups_left, groups_of
from dslth_jax.networks.operations import elu, global_average_pool, local_response_norm
from dslth_jax.networks.wiring import IMAGES, Layer, Wiring, chain
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.retention import kept_by_layer

pytestmark = pytest.mark.usefixtures("x64")

# Widths at which compilers have little to do, and the sides of images.
TINY = {
    "alexnet": (0.125, 32),
    "small": (0.5, 8),
    "conv3": (0.5, 8),
    **{f"plain{depth}": (0.25, 8) for depth in (2, 4, 5, 6, 7, 8)},
    "conv4": (0.25, 8),
    "conv6": (0.125, 8),
    "vgg11": (0.125, 32),
    "mlp": (0.2, 8),
    "resnet18": (0.125, 8),
    "resnet20": (0.5, 8),
    "mobilenetv2": (0.1, 8),
    "vit-tiny": (0.25, 8),
}
CLASSES = 5


@functools.cache
def digits(side, channels=3):
    """Four handwritten digits as large images in false colours."""
    grey = load_digits().images[:4].repeat(side // 8, 1).repeat(side // 8, 2) * 15.9
    return jnp.asarray(np.stack([grey, 255 - grey, np.roll(grey, 2, 1)][:channels], -1), jnp.uint8)


@functools.cache
def network_and_weights(name, exits=False):
    """The network, its forward pass, and variables of float64."""
    width, side = TINY[name]
    network = network_by_name(name, (side, side, 3), CLASSES, width=width, weights="signed-constant", exits=exits)
    masked, frozen = jax.jit(network.init)(key_of(0))
    return network, jax.jit(network.apply), jax.tree.map(lambda leaf: np.asarray(leaf, float), (masked, frozen))


def thinned(weights, rng, *, dead=0.0, kept=1.0, layers=lambda name: True):
    """Weights of which a share of entries is kept, and a share of the channels of some layers is dead."""

    def one(name, leaf):
        flags = rng.random(leaf.shape) < kept
        if not name.startswith(("head", "exit")) and layers(name):
            flags &= rng.random(leaf.shape[-1]) >= dead
        return leaf * flags

    return with_names(one, weights)


def assert_same_logits(network, variables, images, *, whole=None, round_to=1, run=jax.jit):
    """Of the masked network and the one that is cut, which is returned."""
    small = compact(network, variables, round_to=round_to)
    expected = np.asarray((whole or jax.jit(network.apply))(variables, images))
    actual = np.asarray(run(small.network.apply)(small.variables, images))
    assert np.abs(actual - expected).max() <= 1e-12 * np.abs(expected).max()
    assert {leaf.dtype for leaf in jax.tree.leaves(small.variables)} == {np.dtype(float)}
    return small


def entries(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# The share of dead channels, and that of kept entries: none dead, half dead, nearly nothing.
STRENGTHS = [(0.0, 0.3), (0.5, 0.5), (0.8, 0.1)]


@pytest.mark.parametrize("name", slow_but(MODULES, "mlp"))
@pytest.mark.parametrize("strength", slow_but(STRENGTHS, (0.5, 0.5)))
def test_logits_are_those_of_the_masked_network(name, strength):
    dead, kept = strength
    network, whole, (weights, frozen) = network_and_weights(name)
    variables = {"params": thinned(weights, np.random.default_rng(5), dead=dead, kept=kept), "frozen": frozen}
    images = digits(TINY[name][1])
    small = assert_same_logits(network, variables, images, whole=whole)
    if dead < 0.8:  # the logits are not all biases
        logits = np.asarray(whole(variables, images))
        assert np.ptp(logits, axis=0).max() > 1e-4 * np.abs(logits).max()
    assert entries(small.variables) < (0.5 if dead else 1.001) * entries(variables)
    like = jax.eval_shape(small.network.init, key_of(0))
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, (*small.variables.values(),))
    assert {*small.network.roles} == {*by_name(small.variables["params"])}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_logits_are_the_same_with_channels_in_fours(name):
    network, whole, (weights, frozen) = network_and_weights(name)
    for dead in (0.5, 1.0):
        variables = {"params": thinned(weights, np.random.default_rng(4), dead=dead, kept=0.5), "frozen": frozen}
        small = assert_same_logits(network, variables, digits(TINY[name][1]), whole=whole, round_to=4)
        for path, numbers in small.alive.items():
            channels = weights_of(weights, path).shape[-1]
            # With heads of attention a multiple of each head's.
            assert len(numbers) % 4 == 0 or len(numbers) == channels or "vit" in name


def weights_of(weights, path):
    return by_name(weights)[f"{path}/kernel"]


@pytest.mark.parametrize("name", slow_but(("small", "resnet18", "resnet20", "mobilenetv2")))
def test_exits_are_cut_too(name):
    network, whole, (weights, frozen) = (
        network_and_weights(name, True) if name != "small" else small_and_weights("exits")
    )
    variables = {"params": thinned(weights, np.random.default_rng(5), dead=0.5, kept=0.5), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8), whole=whole)
    each = jax.jit(small.network.exits)(small.variables, digits(8))
    np.testing.assert_allclose(each, jax.jit(network.exits)(variables, digits(8)), rtol=0, atol=1e-12)


class Windowed(nn.Module):
    """As AlexNet, in small: response norms, a pooling, biased layers."""

    classes: int
    wiring = chain(("conv1", "conv2", "linear1", "linear2"), elu, windowed=("conv1", "conv2"))

    @nn.compact
    def __call__(self, values):
        for name, features in (("conv1", 9), ("conv2", 7)):
            values = elu(Conv(features, side=3, name=name)(values))
            left = self.variables.get("cuts", {}).get(name, {}).get("cut")
            values = local_response_norm(values, 5.0, left and left.numbers)[:, ::2, ::2]
        values = values.reshape(values.shape[0], -1)
        return Linear(self.classes, name="linear2")(elu(Linear(6, name="linear1")(values)))


class Inverted(nn.Module):
    """As MobileNetV2, in small: two blocks, of which the second one may be absent."""

    classes: int
    wiring = Wiring(
        {
            "stem": Layer(IMAGES, "stem", "groups"),
            "first/depthwise": Layer("stem", "first/depthwise", "groups"),
            "first/project": Layer("first/depthwise", "first", "groups"),
            "second/expand": Layer("first", "second/expand", "groups"),
            "second/depthwise": Layer("second/expand", "second/depthwise", "groups"),
            "second/project": Layer("second/depthwise", "second", "groups"),
            "second": Layer("first", "second"),
            "head": Layer("second", "head"),
        }
    )
    stages = (("first", "second"),)

    @nn.compact
    def __call__(self, values):
        stream = activated(NormedConv(12, side=3, stride=2, name="stem")(all_live(values)))
        blocks = [InvertedResidual(8, 1, 1, name="first"), InvertedResidual(8, 2, 1, name="second")]
        stream = through(self, blocks, stream)
        return Linear(self.classes, name="head")(global_average_pool(stream.values))


SMALL = {
    "windowed": Windowed(3),
    "residual": TwoStages(3),
    "inverted": Inverted(3),
    "exits": TwoStages(3, exits=True),
    "attention": OneBlock(3),
}


@functools.cache
def small_and_weights(name):
    network = network_of(SMALL[name], (8, 8, 3))
    weights, frozen = jax.jit(network.init)(key_of(1))
    return network, jax.jit(network.apply), jax.tree.map(lambda leaf: np.asarray(leaf, float), (weights, frozen))


# How masks leave a layer: as it is, without some channels, or some thirds of them (heads), with one alone, without any;
# entries at random.
LEAVES = st.sampled_from(["whole", "some", "thirds", "one", "none", "sparse"])


def left_by(leaf, how, rng):
    channels = np.ones(leaf.shape[-1], bool)
    if how in ("some", "sparse"):
        channels = rng.random(leaf.shape[-1]) < 0.5
    if how == "thirds":
        channels = np.repeat(rng.random(3) < 0.5, -(-leaf.shape[-1] // 3))[: leaf.shape[-1]]
    if how == "one":
        channels = np.arange(leaf.shape[-1]) == rng.integers(leaf.shape[-1])
    return leaf * (channels & (how != "none")) * (rng.random(leaf.shape) < (0.15 if how == "sparse" else 1))


@pytest.mark.parametrize("name", slow_but(("windowed", "residual", "inverted", "attention"), "residual"))
@hypothesis.settings(max_examples=8, deadline=None)  # each compiles anew
@hypothesis.given(st.lists(LEAVES, min_size=12, max_size=12), st.integers(0, 99), st.sampled_from([1, 4]))
def test_any_mask_leaves_the_same_logits(name, leaves, seed, round_to):
    network, whole, (weights, frozen) = small_and_weights(name)
    rng, how = np.random.default_rng(seed), iter(leaves)
    masked = with_names(lambda name, leaf: left_by(leaf, next(how), rng), weights)
    small = assert_same_logits(network, {"params": masked, "frozen": frozen}, digits(8), whole=whole, round_to=round_to)
    assert min(map(len, small.alive.values())) >= 1
    for path, numbers in small.alive.items():
        assert (np.diff(numbers) > 0).all()
        assert numbers[-1] < weights_of(weights, path).shape[-1]


@pytest.mark.slow
def test_every_agents_model_is_cut():
    """As algorithms make them: masks of fused scores, after the filter rule."""
    network, whole, (weights, frozen) = network_and_weights("conv3")
    kept = jax.tree.map(jnp.int32, kept_by_layer(weights, network.roles, 0.1, 0.5))
    world = World(weights, frozen, key_of(0), jnp.int32(0), jnp.int32(1))
    for agent in range(3):
        fused = draw_like(key_of(agent), jax.tree.map(jnp.asarray, weights), uniform_by_fan_in)
        # Later channels have larger scores, so that masks leave out early ones.
        fused = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf) * np.linspace(0, 1, leaf.shape[-1])), fused)
        variables, _ = personal_model(world, fused, kept, network.roles, MaskRule(smallest_filter=4))
        small = assert_same_logits(network, variables, digits(8), whole=whole)
        assert entries(small.variables) < 0.8 * entries(variables)


def test_a_dead_neurons_constant_goes_into_the_next_bias():
    """By hand: ELU(b) of the dead one, times what it is multiplied by; and so on through a layer that is all dead."""
    network = network_of(Windowed(3), (8, 8, 3))
    weights, frozen = jax.tree.map(lambda leaf: np.array(leaf, float), jax.jit(network.init)(key_of(2)))
    weights["linear1"]["kernel"][:, [1, 4]] = 0
    small = compact(network, {"params": weights, "frozen": frozen})
    bias = np.where(frozen["linear1"]["bias"] > 0, frozen["linear1"]["bias"], np.expm1(frozen["linear1"]["bias"]))
    folded = frozen["linear2"]["bias"] + bias[[1, 4]] @ weights["linear2"]["kernel"][[1, 4]]
    np.testing.assert_allclose(small.variables["frozen"]["linear2"]["bias"], folded, rtol=1e-14)
    assert small.alive["linear1"].tolist() == [0, 2, 3, 5]
    assert small.variables["params"]["linear2"]["kernel"].shape == (4, 3)
    # An image changes nothing any more; one channel of each layer stays.
    weights["conv1"]["kernel"][:] = 0
    small = assert_same_logits(network, {"params": weights, "frozen": frozen}, digits(8))
    assert [len(numbers) for numbers in small.alive.values()] == [1, 1, 1, 3]


def test_what_only_dead_channels_fed_and_what_nobody_reads_goes():
    network, whole, (weights, frozen) = network_and_weights("conv3")
    kernels = {name: leaf.copy() for name, leaf in by_name(weights).items()}
    kernels["conv1/kernel"][..., [2, 3]] = 0
    kernels["conv2/kernel"][..., 5] = 0  # the third layer's last channel reads 5 alone
    kernels["conv3/kernel"][:, :, :5, -1] = 0
    kernels["conv3/kernel"][:, :, 6:, -1] = 0
    kernels["conv3/kernel"][:, :, 7] = 0  # nobody reads the second layer's channel 7
    variables = {"params": with_names(lambda name, leaf: kernels[name], weights), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8), whole=whole)
    gone = {path: {*range(weights_of(weights, path).shape[-1])} - {*own.tolist()} for path, own in small.alive.items()}
    last = weights_of(weights, "conv3").shape[-1] - 1
    assert gone == {"conv1": {2, 3}, "conv2": {5, 7}, "conv3": {last}, "linear1": set(), "linear2": set()}


def test_what_a_norm_mixes_into_others_stays():
    """A channel that nobody reads, but which is in the windows or the group of one that is read."""
    flags = np.arange(8) == 5
    assert np.flatnonzero(mixed_into("window", flags)).tolist() == [3, 4, 5, 6]
    assert np.flatnonzero(mixed_into("groups", flags)).tolist() == [4, 5, 6, 7]
    assert np.flatnonzero(mixed_into("none", flags)).tolist() == [5]
    network, whole, (weights, frozen) = small_and_weights("windowed")
    kernels = {name: leaf.copy() for name, leaf in by_name(weights).items()}
    kernels["conv2/kernel"][:, :, :-3] = 0  # the second layer reads the last three of nine channels
    variables = {"params": with_names(lambda name, leaf: kernels[name], weights), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8), whole=whole)
    assert small.alive["conv1"].tolist() == [4, 5, 6, 7, 8]
    assert small.variables["params"]["conv2"]["kernel"].shape == (3, 3, 3, 7)


def test_blocks_that_add_nothing_go():
    network = network_of(TwoStages(4), (8, 8, 3))
    weights, frozen = jax.tree.map(lambda leaf: np.array(leaf, float), jax.jit(network.init)(key_of(0)))
    weights["stage1"]["block2"]["conv2"]["kernel"][:] = 0
    weights["stage2"]["block1"]["conv1"]["kernel"][:] = 0  # the first of a stage stays
    small = assert_same_logits(network, {"params": weights, "frozen": frozen}, digits(8))
    assert small.network.stages == (("stage1/block1",), ("stage2/block1", "stage2/block2"))
    assert not any(name.startswith("stage1/block2") for name in small.network.roles)


@pytest.mark.slow
def test_a_mobile_network_whose_stages_are_equally_wide():
    """Then the input is added to the first block of a stage, too; and depthwise layers die with what they read."""
    network = network_of(MobileNetV2(4, 0.05), (8, 8, 3))
    assert Layer("stage2/block2", "stage3/block1") not in network.wiring.layers.values()  # it has a stride
    assert network.wiring.layers["stage5/block1"] == Layer("stage4/block4", "stage5/block1")
    weights, frozen = jax.tree.map(lambda leaf: np.array(leaf, float), jax.jit(network.init)(key_of(0)))
    variables = {"params": thinned(weights, np.random.default_rng(0), dead=0.3), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8))
    for path, numbers in small.alive.items():
        if path.endswith("/depthwise") and path.replace("depthwise", "expand") in small.alive:
            assert {*numbers} <= {*small.alive[path.replace("depthwise", "expand")]}


def test_heads_and_hidden_neurons_that_training_has_killed_go():
    """The scores' zeros are those of the mask. The stream of tokens keeps its width."""
    network, whole, (weights, frozen) = small_and_weights("attention")
    heads, hidden = channels_of(network)
    z = shrink(jax.tree.map(jnp.asarray, weights), 1.0, (heads, hidden), smallest=2)
    variables = {"params": jax.tree.map(lambda w, own: w * np.asarray(own != 0), weights, z), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8), whole=whole)
    alive = np.asarray(alive_of(z, heads))
    assert alive.sum() == 2
    for name in ("query", "key", "value"):
        assert small.alive[f"block1/{name}"].tolist() == np.flatnonzero(alive.repeat(4)).tolist()
    assert small.alive["block1/mlp1"].tolist() == np.flatnonzero(alive_of(z, hidden)).tolist()
    assert small.variables["params"]["block1"]["output"]["kernel"].shape == (8, 12)
    assert len(small.alive["block1/output"]) == len(small.alive["patches"]) == 12


@pytest.mark.slow
def test_whole_heads_go_and_others_are_equally_wide():
    network, whole, (weights, frozen) = network_and_weights("vit-tiny")
    kernels = {name: leaf.copy() for name, leaf in by_name(weights).items()}
    width = weights_of(weights, "block1/value").shape[1]
    depth = width // 3
    kernels["block1/value/kernel"][:, :depth] = 0  # the first head has no values
    kernels["block1/query/kernel"][:, depth : depth + 5] = 0  # the second has five channels of queries less
    kernels["block1/key/kernel"][:, 2 * depth : 2 * depth + 7] = (
        0  # the third seven of keys, of which two are other ones
    )
    variables = {"params": with_names(lambda name, leaf: kernels[name], weights), "frozen": frozen}
    small = assert_same_logits(network, variables, digits(8), whole=whole)
    assert small.alive["block1/value"].tolist() == [*range(depth, 3 * depth)]
    assert small.alive["block1/query"].tolist() == small.alive["block1/key"].tolist()
    assert len(small.alive["block1/query"]) == 2 * (depth - 5)
    assert len(small.alive["block2/query"]) == width


def test_a_smaller_network_costs_less_as_it_says():
    """Its multiply-adds are seen as those of any network: as many positions, of the entries that are left."""
    network, _, (weights, frozen) = network_and_weights("conv3")
    variables = {"params": thinned(weights, np.random.default_rng(0), dead=0.5), "frozen": frozen}
    small, whole = compact(network, variables), positions_of(network, (8, 8, 3))
    assert positions_of(small.network, (8, 8, 3)) == whole
    assert multiply_adds(whole, sizes_of(small.variables["params"])) < 0.4 * multiply_adds(whole, sizes_of(weights))


def test_a_group_norm_of_unequal_groups_is_that_of_what_is_left():
    numbers, live = np.array([0, 2, 3, 6, 8, 9, 10, 11]), np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)
    images = np.random.default_rng(0).normal(2, 3, (2, 3, 4, 8))
    groups = groups_left(numbers, 12)
    assert (groups_of(12), groups) == (3, (0, 0, 0, 1, 2, 2, 2, 2))
    expected = np.zeros_like(images)
    for number, group in np.ndindex(2, 3):
        own = np.flatnonzero(live & (np.array(groups) == group))
        cut = images[number][..., own]
        expected[number][..., own] = (cut - cut.mean()) / np.sqrt(cut.var() + EPSILON)
    actual = jax.jit(lambda x: group_norm(x, groups, jnp.asarray(live)))(images)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match="must say the group of each of the 8 channels, got 2"):
        group_norm(jnp.asarray(images), (0, 1))


@pytest.mark.parametrize("numbers", [[0], [3, 4, 5], [0, 2, 3, 7], [1, 4, 7], [0, 1, 2, 3, 4, 5, 6, 7]], ids=str)
def test_a_response_norm_keeps_its_window_by_numbers(numbers):
    values = np.zeros((2, 3, 8))
    values[..., numbers] = np.random.default_rng(0).normal(0, 3, (2, 3, len(numbers)))
    whole = np.asarray(local_response_norm(jnp.asarray(values), 5.0))[..., numbers]
    cut = local_response_norm(jnp.asarray(values[..., numbers]), 5.0, np.array(numbers))
    np.testing.assert_allclose(cut, whole, rtol=1e-14)


def test_attention_of_cut_heads_keeps_its_scale():
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(part) for part in rng.normal(size=(3, 2, 4, 6)))
    query = query.at[..., [1, 4]].set(0)
    left = jnp.array([0, 2, 3, 5])
    cut = attention(query[..., left], key[..., left], value, 2, 3)
    np.testing.assert_allclose(cut, attention(query, key, value, 2), rtol=1e-12)


def test_places():
    assert filled_up(np.zeros(3, bool)).tolist() == [0]
    assert filled_up(np.array([False] * 5 + [True]), 4).tolist() == [0, 1, 2, 5]
    assert filled_up(np.ones(6, bool), 4).tolist() == [0, 1, 2, 3, 4, 5]
    assert places_of(np.arange(3), np.arange(3)) is None
    assert places_of(np.array([2, 5, 9]), np.array([5])).tolist() == [-1, 0, -1]


class Unnamed(TinyNet):
    """Its wiring lacks a layer."""

    wiring = chain(("conv",), elu)


class Reversed(TinyNet):
    wiring = Wiring({"linear": Layer("conv", "linear"), "conv": Layer(IMAGES, "conv")})


class Skipping(TinyNet):
    wiring = Wiring({"conv": Layer(IMAGES, "conv"), "linear": Layer("pixels", "linear")})


class Constant(nn.Module):
    """A convolution reads what a biased layer makes."""

    classes: int
    wiring = chain(("linear", "conv"), elu)

    @nn.compact
    def __call__(self, values):
        hidden = Linear(6, name="linear")(values.reshape(len(values), -1))
        return Conv(self.classes, side=1, name="conv")(elu(hidden)[:, None, None])[:, 0, 0]


class Undeclared(TinyNet):
    """It does not say its wiring."""

    wiring = None


class OfImages(nn.Module):
    """A shortcut hands on the images."""

    classes: int
    wiring = Wiring({"conv": Layer(IMAGES, "sum"), "skip": Layer(IMAGES, "sum"), "head": Layer("sum", "head")})

    @nn.compact
    def __call__(self, values):
        return Linear(self.classes, name="head")(jnp.mean(values + Conv(1, side=1, name="conv")(values), (1, 2)))


class MixedConstants(nn.Module):
    """A response norm behind a bias."""

    classes: int
    wiring = chain(("first", "second"), elu, windowed=("first",))

    @nn.compact
    def __call__(self, values):
        hidden = elu(Linear(6, name="first")(values.reshape(len(values), -1)))
        return Linear(self.classes, name="second")(local_response_norm(hidden, 1.0))


REFUSED = {
    "of images": (OfImages(3), r"^the wiring's skip hands on channels of the images, and none of these can be cut$"),
    "mixed": (MixedConstants(3), r"^first has a bias, so that its dead channels are constant, and a norm behind it"),
    "undeclared": (Undeclared(3), r"^the network does not say which channels .* field `wiring`"),
    "unnamed": (Unnamed(3), r"lacks those of linear/bias, linear/kernel: add them"),
    "skipping": (Skipping(3), r"^the wiring's linear must read and write sets that layers write, got \('pixels'"),
    "constant": (Constant(3), r"^conv reads channels that are constant and not 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_network_that_cannot_be_cut_is_refused_in_a_sentence(case):
    module, said = REFUSED[case]
    network = network_of(module, (8, 8, 1))
    weights, frozen = jax.tree.map(np.asarray, jax.jit(network.init)(key_of(0)))
    for dead in {"linear", "first"} & {*weights}:
        weights = {**weights, dead: {"kernel": weights[dead]["kernel"] * 0}}
    with pytest.raises(ValueError, match=said):
        compact(network, {"params": weights, "frozen": frozen})


def test_channels_are_kept_in_positive_numbers():
    network, _, (weights, frozen) = network_and_weights("mlp")
    with pytest.raises(ValueError, match=r"^round_to must be a positive number of channels, got 0$"):
        compact(network, {"params": weights, "frozen": frozen}, round_to=0)
    small = compact(network, {"params": weights, "frozen": frozen})
    with pytest.raises(ValueError, match="field `wiring`"):  # once is enough
        compact(small.network, small.variables)


class TwoShortcuts(nn.Module):
    """Two layers and a convolution of one of them are added up."""

    classes: int
    wiring = Wiring(
        {"a": Layer(IMAGES, "a"), "b": Layer("a", "b"), "c": Layer("b", "sum")}
        | {"a_on": Layer("a", "sum"), "b_on": Layer("b", "sum"), "head": Layer("sum", "head")}
    )

    @nn.compact
    def __call__(self, values):
        a = nn.relu(Conv(4, side=3, padding=1, name="a")(values))
        b = nn.relu(Conv(4, side=3, padding=1, name="b")(a))
        return Linear(self.classes, name="head")(jnp.mean(a + b + Conv(4, side=1, name="c")(b), (1, 2)))


@pytest.mark.parametrize("dead", [1, 3])
def test_channels_that_two_shortcuts_add_up_are_cut_together(dead):
    """What is dead in all three goes; what lives in one of them stays in all."""
    network = network_of(TwoShortcuts(3), (8, 8, 3))
    weights, frozen = jax.tree.map(lambda leaf: np.array(leaf, float), jax.jit(network.init)(key_of(0)))
    for name in ("a", "b", "c"):
        weights[name]["kernel"][..., :dead] = 0
    small = assert_same_logits(network, {"params": weights, "frozen": frozen}, digits(8))
    assert [len(small.alive[name]) for name in ("a", "b", "c")] == [4 - dead] * 3
    weights["b"]["kernel"][..., :dead] = 0.1
    small = assert_same_logits(network, {"params": weights, "frozen": frozen}, digits(8))
    assert len(small.alive["b"]) == 4


class OneLayer(nn.Module):
    """A norm that is by itself in a module of one's own."""

    classes: int
    wiring = Wiring({"conv": Layer(IMAGES, "conv", "groups"), "head": Layer("conv", "head")})

    @nn.compact
    def __call__(self, values):
        stream = NormedConv(12, side=3, name="conv")(all_live(values))
        return Linear(self.classes, name="head")(jnp.mean(nn.relu(stream.values), (1, 2)))


def test_a_network_of_ones_own_is_cut_by_one_declaration():
    network = network_of(OneLayer(3), (8, 8, 3))
    weights, frozen = jax.tree.map(lambda leaf: np.array(leaf, float), jax.jit(network.init)(key_of(0)))
    weights["conv"]["kernel"][..., [0, 1, 2, 6]] = 0
    weights["head"]["kernel"][8:] = 0  # nobody reads the third group
    small = assert_same_logits(network, {"params": weights, "frozen": frozen}, digits(8))
    assert small.alive["conv"].tolist() == [3, 4, 5, 7]
