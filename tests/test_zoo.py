"""The networks of many layers: sizes by hand, roles and heads, masks that learn."""

import functools
import inspect
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny import use_tiny_network

from dslth_jax.algorithm import World
from dslth_jax.algorithms.fedpm import fedpm
from dslth_jax.algorithms.masked import MaskRule, personal_masks, personal_model
from dslth_jax.algorithms.mce_pl import Agent
from dslth_jax.networks.layers import scaled
from dslth_jax.networks.network import Conv, Linear, Network, draw_like, draw_weights, map_layers, uniform_by_fan_in
from dslth_jax.networks.network import network_of as make_network
from dslth_jax.networks.operations import elu, max_pool_pairs
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.retention import kept_by_layer
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training.prepare import prepare
from dslth_jax.study.training.sizes import models_of
from experiments import cifar

NEW = ("resnet18", "resnet20", "vgg11", "conv6", "mobilenetv2", "vit-tiny")
ROLES = ("convolution", "depthwise", "linear", "attention")
IMAGES, CLASSES = (32, 32, 3), 10
network_of = functools.cache(lambda name, **settings: network_by_name(name, IMAGES, CLASSES, **settings))


def shapes_of(network):
    """Of each masked leaf, by its name."""
    masked, _ = jax.eval_shape(network.init, jax.random.key(0))
    named = jax.tree_util.tree_flatten_with_path(masked)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in named}


def entries(network):
    return sum(map(math.prod, shapes_of(network).values()))


def resnet18(a, b, c, d, classes):
    """Two blocks of two 3x3 convolutions a stage, and a 1x1 shortcut where channels change."""
    stem, first = 9 * 3 * a, 4 * 9 * a * a
    later = sum(9 * i * o + 3 * 9 * o * o + i * o for i, o in ((a, b), (b, c), (c, d)))
    return stem + first + later + classes * d


def resnet20(a, b, c, classes):
    return 9 * 3 * a + 6 * 9 * a * a + sum(9 * i * o + 5 * 9 * o * o for i, o in ((a, b), (b, c))) + classes * c


def mobilenetv2(channels, classes):
    """Of the channels of stem, seven stages and last layer; blocks of each stage as in the paper's table."""
    stem, *stages, last = channels
    total, before = 9 * 3 * stem, stem
    for features, blocks, expansion in zip(stages, (1, 2, 3, 4, 3, 3, 1), (1, 6, 6, 6, 6, 6, 6), strict=True):
        for _ in range(blocks):
            inner = expansion * before
            total += (before * inner if expansion > 1 else 0) + 9 * inner + inner * features
            before = features
    return total + before * last + last * classes


def vit(width, classes):
    return 4 * 4 * 3 * width + 6 * (4 * width**2 + 2 * 4 * width**2) + classes * width


SIZES = {
    ("resnet18", 1.0): (resnet18(64, 128, 256, 512, 10), 11_164_352),
    ("resnet20", 1.0): (resnet20(16, 32, 64, 10), 268_336),
    ("resnet20", 0.3): (resnet20(4, 8, 20, 10), None),  # 4.8, 9.6 and 19.2 channels, to multiples of 4
    ("mobilenetv2", 1.0): (mobilenetv2((32, 16, 24, 32, 64, 96, 160, 320, 1280), 10), 2_202_560),
    ("mobilenetv2", 0.25): (mobilenetv2((8, 4, 8, 8, 16, 24, 40, 80, 320), 10), None),
    ("vit-tiny", 1.0): (vit(192, 10), 2_665_344),
    ("vit-tiny", 0.25): (vit(48, 10), None),
    ("conv6", 1.0): (9 * (192 + 4096 + 8192 + 16384 + 32768 + 65536) + 4096 * 256 + 256 * 256 + 2560, 2_261_184),
    ("vgg11", 1.0): (9 * (192 + 8192 + 32768 + 65536 + 131072 + 3 * 262144) + 5120, 9_222_848),
    ("vgg11", 1 / 64): (9 * (3 + 2 + 8 + 16 + 32 + 3 * 64) + 80, None),
    ("mlp", 0.01): (3072 * 3 + 3 * 1 + 10, None),
    ("alexnet", 0.5): (25 * (3 * 32 + 32 * 64 + 64 * 128) + 4 * 128 * 96 + 960, None),
}


@pytest.mark.parametrize(("name", "width"), SIZES)
def test_sizes_are_those_counted_by_hand(name, width):
    counted, known = SIZES[name, width]
    assert entries(network_of(name, width=width)) == counted
    assert known in (None, counted)


def test_a_width_is_a_factor_on_channels():
    assert [scaled(64, width) for width in (1.0, 0.5, 0.001)] == [64, 32, 1]
    assert [scaled(channels, 0.5, 4) for channels in (24, 10, 2)] == [12, 4, 4]
    for name in ("alexnet", "small", "conv3", "conv4", "mlp"):
        assert network_of(name).roles == network_of(name, width=0.5).roles
        assert entries(network_of(name, width=0.5)) < entries(network_of(name))
    assert all("width" in inspect.signature(MODULES[name]).parameters for name in (*NEW, "alexnet"))


def test_a_network_without_a_width_refuses_another_than_1(monkeypatch):
    monkeypatch.setitem(MODULES, "fixed", lambda classes: MODULES["small"](classes=classes))
    assert network_by_name("fixed", (8, 8, 1), 3).heads == ("linear2",)
    with pytest.raises(ValueError, match=r"^width must be 1 for the model fixed, whose .* `width: float`, got 0.5$"):
        network_by_name("fixed", (8, 8, 1), 3, width=0.5)
    with pytest.raises(ValueError, match=r"^width must be above 0, got nan$"):
        network_by_name("small", (8, 8, 1), 3, width=float("nan"))


def test_roles_and_heads():
    assert network_of("vgg11").heads == ("linear",)
    assert network_of("conv6").heads == ("linear3",)
    for name in ("resnet18", "resnet20", "mobilenetv2", "vit-tiny"):
        network = network_of(name)
        assert network.heads == ("head",)
        assert network.roles["head/kernel"] == "linear"
    by_role = {name: {r: [*network_of(name).roles.values()].count(r) for r in ROLES} for name in NEW}
    assert by_role == {
        "resnet18": dict(zip(ROLES, (20, 0, 1, 0), strict=True)),
        "resnet20": dict(zip(ROLES, (19, 0, 1, 0), strict=True)),
        "vgg11": dict(zip(ROLES, (8, 0, 1, 0), strict=True)),
        "conv6": dict(zip(ROLES, (6, 0, 3, 0), strict=True)),
        "mobilenetv2": dict(zip(ROLES, (35, 17, 1, 0), strict=True)),
        "vit-tiny": dict(zip(ROLES, (0, 0, 20, 18), strict=True)),
    }
    assert all(role == "attention" for name, role in network_of("vit-tiny").roles.items() if "/query/" in name)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "mobilenetv2"])
def test_further_blocks_are_named_and_have_no_shortcut(name):
    """So that an agent may do without them."""
    names = {leaf.rpartition("/")[0] for leaf in network_of(name).roles}
    blocks = {"/".join(leaf.split("/")[:2]) for leaf in names if leaf.startswith("stage")}
    assert {"stage2/block1", "stage2/block2"} <= blocks
    inner = {"conv1", "conv2"} if name != "mobilenetv2" else {"expand", "depthwise", "project"}
    for block in blocks:
        if not block.endswith("block1"):
            assert {leaf.split("/")[2] for leaf in names if leaf.startswith(f"{block}/")} == inner


SHARE = {"convolution": 0.25, "depthwise": 1.0, "linear": 0.5, "attention": 0.5}


def test_masks_keep_depthwise_kernels_whole_and_attention_as_linear_layers():
    for name in ("mobilenetv2", "vit-tiny"):
        network = network_of(name, width=0.25)
        weights, _ = jax.eval_shape(network.init, jax.random.key(0))
        kept = kept_by_layer(weights, network.roles, 0.25, 0.5)
        assert kept == map_layers(
            lambda role, leaf: leaf.size - int((1 - SHARE[role]) * leaf.size), network.roles, weights
        )


def test_scores_of_zero_leave_a_depthwise_kernel_whole():
    """As a proximal step of the group lasso makes them; they must not take part, and get no gradient."""
    roles, kept = {"taps": "depthwise", "conv": "convolution"}, {"taps": jnp.int32(4), "conv": jnp.int32(4)}
    scores = {"taps": jnp.array([0.0, 0.0, 1.0, -1.0]), "conv": jnp.array([0.0, 0.0, 1.0, -1.0])}
    masks, pull = jax.vjp(lambda z: personal_masks(z, kept, roles), scores)
    assert masks["taps"].tolist() == [1, 1, 1, 1]
    assert masks["conv"].tolist() == [0, 0, 1, 1]
    (gradient,) = pull(jax.tree.map(jnp.ones_like, masks))
    assert gradient["taps"].tolist() == [0, 0, 0, 0]
    assert gradient["conv"].tolist() == [0, 0, 1, -1]


def test_masks_that_are_drawn_keep_depthwise_kernels_whole():
    roles, scores = {"taps": "depthwise", "conv": "convolution"}, {"taps": jnp.full(9, -5.0), "conv": jnp.full(9, -5.0)}
    world = World(jax.tree.map(jnp.ones_like, scores), {}, jax.random.key(0), jnp.int32(0), jnp.int32(1))
    algorithm = fedpm(Network(lambda key: (scores, {}), lambda variables, images: images, roles))
    for masks in algorithm.model(world, None, Agent(scores, ()), None):
        masks = masks.get("params", masks)
        assert masks["taps"].tolist() == [1] * 9
        assert masks["conv"].tolist() == [0] * 9


def test_signed_constants_have_the_gain_of_their_role():
    roles = {"query": "attention", "linear": "linear", "conv": "convolution"}
    like = {"query": jnp.zeros((48, 5)), "linear": jnp.zeros((48, 5)), "conv": jnp.zeros((3, 4, 4, 5))}
    drawn = draw_weights(jax.random.key(0), like, roles, "signed-constant")

    for name, gain in (("query", 1), ("linear", math.sqrt(2)), ("conv", math.sqrt(2))):
        np.testing.assert_allclose(np.abs(drawn[name]), gain / math.sqrt(48), rtol=1e-6)
    by_fan_in = draw_weights(jax.random.key(0), like, roles, "uniform-by-fan-in")
    assert np.abs(by_fan_in["query"]).max() > 0.9 / math.sqrt(48)


# At small sizes, so that compilers have little to do.
TINY = {"resnet18": 0.0625, "resnet20": 0.25, "vgg11": 0.125, "conv6": 0.125, "mobilenetv2": 0.05, "vit-tiny": 0.125}


@functools.cache
def learner(name, precision=None):
    """One agent's step on masks of its scores, and what two agents start from."""
    side = 32 if name == "vgg11" else 8
    network = network_by_name(
        name, (side, side, 3), 4, width=TINY[name], weights="signed-constant", precision=precision
    )
    masked, _ = jax.eval_shape(network.init, jax.random.key(0))
    kept = jax.tree.map(jnp.int32, kept_by_layer(masked, network.roles, 0.5, 0.7))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (2, 8, side, side, 3)), jnp.uint8)
    labels = jnp.asarray(rng.integers(0, 4, (2, 8)))

    def start(key):
        weights, frozen = network.init(key)
        scores = draw_like(key, weights, uniform_by_fan_in)
        return World(weights, frozen, key, jnp.int32(0), jnp.int32(1)), scores

    def loss(scores, world, images, labels):
        variables, _ = personal_model(world, scores, kept, network.roles, MaskRule(scale_by_retention=True))
        logits = network.apply(variables, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def step(scores, world, images, labels, lr):
        value, gradient = jax.value_and_grad(loss)(scores, world, images, labels)
        norm = optax.tree.norm(gradient)
        return jax.tree.map(lambda z, g: z - lr * g / norm, scores, gradient), value

    world, scores = jax.jit(start)(jax.random.key(1))
    both = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf * 0.9]), scores)
    return step, (both, world, images, labels, 0.1)


AXES = (0, None, 0, 0, None)  # of a step's arguments, those of agents
together = functools.cache(lambda name, **settings: jax.jit(jax.vmap(learner(name, **settings)[0], AXES)))


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_masks_learn(name):
    scores, *others = learner(name)[1]
    losses = []
    for _ in range(12):
        scores, loss = together(name)(scores, *others)
        losses.append(loss)
    assert np.isfinite(losses).all()
    assert (np.min(losses[6:], axis=0) < 0.8 * losses[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NEW)
def test_bfloat16_runs(name):
    stepped, losses = together(name, precision="bfloat16")(*learner(name, precision="bfloat16")[1])
    assert {leaf.dtype for leaf in jax.tree.leaves(stepped)} == {jnp.dtype("float32")}
    assert losses.dtype == jnp.float32
    assert np.isfinite(losses).all()


def test_the_command_refuses_a_width_that_its_network_has_not(monkeypatch, tmp_path, capsys):
    use_tiny_network(monkeypatch)
    flags = f"--dataset digits --model tiny --width 0.5 --agents 2 --topology ring --out {tmp_path / 'run'}"
    assert cifar.main(flags.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "width must be 1 for the model tiny, whose class has no field `width: float`, got 0.5" in said[0]


class ThreeConvolutions(nn.Module):
    """Written out, what `conv3` is."""

    classes: int
    width: float = 1.0

    @nn.compact
    def __call__(self, values):
        for number, features in enumerate((32, 64, 128), 1):
            values = Conv(scaled(features, self.width), side=3, padding=1, name=f"conv{number}")(values)
            values = max_pool_pairs(elu(values))
        values = elu(Linear(scaled(128, self.width), name="linear1")(values.reshape(values.shape[0], -1)))
        return Linear(self.classes, name="linear2")(values)


def test_conv3_is_one_of_a_family_and_stays_what_it_was_bit_for_bit():
    shape = (8, 8, 3)
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (2, *shape)), jnp.uint8)
    networks = (network_by_name("conv3", shape, 5, width=0.25), make_network(ThreeConvolutions(5, 0.25), shape))
    ours, written_out = (network.init(jax.random.key(3)) for network in networks)
    chex.assert_trees_all_equal(ours, written_out)
    assert networks[0].roles == networks[1].roles
    variables = {"params": ours[0], "frozen": ours[1]}
    logits = [jax.jit(network.apply)(variables, images) for network in networks]
    np.testing.assert_array_equal(*logits)
    chain_of_all = MODULES["plain4"](classes=5).wiring
    assert [*chain_of_all.layers] == ["conv1", "conv2", "conv3", "conv4", "linear1", "linear2"]


def test_models_of_members_are_as_large_as_counted_by_hand():
    """A mask has a bit an entry, weights have 32; multiply-adds are of kept entries where masks are learned."""
    flags = {"dataset": "digits", "agents": 2, "topology": "ring", "model": "conv3", "width": 0.25, "rounds": 2}
    flags |= {"retention": 0.5, "linear_retention": 0.5, "preset": "tuned"}
    sizes = [(9 * 8, 64), (9 * 8 * 16, 16), (9 * 16 * 32, 4), (32 * 32, 1), (32 * 10, 1)]  # entries and positions
    algorithms = {"independent": flags, "local": {k: v for k, v in flags.items() if "retention" not in k}}
    members = [prepare(Settings(**own, algorithm=name)) for name, own in algorithms.items()]
    masks, weights = models_of(members)
    entries = sum(size for size, _ in sizes)
    assert masks == {"model_bits": entries, "multiply_adds": sum(size // 2 * times for size, times in sizes)}
    assert weights == {"model_bits": 32 * entries, "multiply_adds": sum(size * times for size, times in sizes)}
