"""The networks: they fit themselves to images and classes, or say why not; weights are drawn as their names say."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from dslth_jax.networks.network import WEIGHTS, Conv, Linear, draw_like, network_of, to_unit_range
from dslth_jax.networks.operations import max_pool_pairs
from dslth_jax.networks.zoo import MODULES, largest_fitting, network_by_name
from dslth_jax.retention import kept_by_layer

SHAPES = [(32, 32, 3), (28, 28, 1), (21, 40, 2), (8, 8, 1), (4, 5, 3), (1, 1, 1)]
SMALLEST = {"alexnet": 21, "small": 1, "conv3": 8, "conv4": 4, "conv6": 8, "vgg11": 32, "mlp": 1}
SMALLEST |= {"plain2": 4, **{f"plain{depth}": 8 for depth in range(4, 9)}}
SMALLEST |= {"resnet18": 8, "resnet20": 4, "mobilenetv2": 8, "vit-tiny": 8}


def seldom(name, shape):
    """Marks of a network that takes seconds to trace, but for one shape, and of a family but for one of it."""
    is_slow = name in ("resnet18", "resnet20", "mobilenetv2") and min(shape[:2]) >= 4 and shape != (21, 40, 2)
    is_slow |= name.startswith("plain") and (name, shape) != ("plain7", (8, 8, 1))
    return [pytest.mark.slow] * is_slow


def entries(network):
    """How many weights masks choose from."""
    masked, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(masked))


@pytest.mark.parametrize(
    ("name", "shape"), [pytest.param(*case, marks=seldom(*case)) for case in itertools.product(MODULES, SHAPES)]
)
def test_networks_fit_the_image_or_say_why_not(name, shape):
    if min(shape[:2]) < SMALLEST[name]:
        sentence = (
            f"the model {name} needs images of at least {SMALLEST[name]} pixels a side, got {shape[0]}x{shape[1]}"
        )
        with pytest.raises(ValueError, match=sentence):
            network_by_name(name, shape, 7)
        return
    network = network_by_name(name, shape, 7)

    def logits(key, images):
        masked, frozen = network.init(key)
        return network.apply({"params": masked, "frozen": frozen}, images)

    out = jax.eval_shape(logits, jax.random.key(0), jax.ShapeDtypeStruct((5, *shape), jnp.uint8))
    assert out.shape == (5, 7)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "known"),
    [
        ("alexnet", (32, 32, 3), 10, 1_227_328),
        ("conv3", (16, 16, 3), 10, 159_840),
        ("plain2", (16, 16, 3), 10, 9 * (3 * 32 + 32 * 64) + 4 * 4 * 64 * 128 + 1280),
        ("plain8", (16, 16, 3), 10, 9 * (96 + 1024 + 2048 + 2 * 4096 + 8192 + 2 * 16384) + 512 * 128 + 1280),
        ("conv4", (32, 32, 3), 10, 2_425_024),
        ("mlp", (28, 28, 1), 10, 266_200),
    ],
)
def test_networks_have_the_size_that_is_known_of_them(name, shape, classes, known):
    assert entries(network_by_name(name, shape, classes)) == known


def test_more_classes_mean_a_wider_last_layer():
    narrow, wide = (entries(network_by_name("small", (8, 8, 1), classes)) for classes in (10, 100))
    assert wide - narrow == 90 * 128


def test_an_unknown_network_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"model must be one of .*, got 'alexnets'; did you mean alexnet\?"):
        network_by_name("alexnets", (32, 32, 3), 10)


@pytest.mark.parametrize(
    ("shape", "name"), [((32, 32, 3), "alexnet"), ((21, 21, 1), "alexnet"), ((20, 99, 1), "small")]
)
def test_the_authors_network_is_taken_where_it_fits(shape, name):
    assert largest_fitting(shape) == name


@pytest.fixture(scope="module")
def drawn():
    """The kernels of each draw of weights, as numpy, by layer."""

    def kernels(weights):
        masked, _ = jax.jit(network_by_name("small", (8, 8, 1), 10, weights=weights).init)(jax.random.key(3))
        return {layer: np.asarray(leaves["kernel"]) for layer, leaves in masked.items()}

    return {weights: kernels(weights) for weights in WEIGHTS}


@pytest.mark.parametrize("layer", ["conv1", "conv2", "linear1", "linear2"])
def test_weights_are_drawn_as_their_names_say(drawn, layer):
    fan_in = math.prod(drawn["uniform"][layer].shape[:-1])
    spread = 6 / math.sqrt(drawn["uniform"][layer].size)  # of a mean: several standard errors
    by_fan_in, constant, uniform = (drawn[w][layer] for w in ("uniform-by-fan-in", "signed-constant", "uniform"))
    for values, bound in ((by_fan_in, 1 / math.sqrt(fan_in)), (uniform, 1.0)):
        assert 0.9 * bound < np.abs(values).max() <= bound
        assert abs(values.mean()) < spread * bound
        assert np.mean(values**2) == pytest.approx(bound**2 / 3, rel=3 * spread)
    np.testing.assert_allclose(np.abs(constant), math.sqrt(2 / fan_in), rtol=1e-6)
    assert abs(np.mean(constant > 0) - 0.5) < spread


@pytest.mark.parametrize("weights", WEIGHTS)
def test_another_seed_draws_other_weights(weights):
    network = network_by_name("mlp", (3, 3, 1), 3, weights=weights)
    init = jax.jit(network.init)
    first, second = (jax.tree.leaves(init(jax.random.key(seed))[0]) for seed in (0, 1))
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_layer_draws_its_own():
    like = [jnp.zeros((9, 9)), jnp.zeros((9, 9))]
    first, second = draw_like(jax.random.key(0), like, jax.random.normal)
    assert not np.array_equal(first, second)


def test_weights_by_no_name_are_those_of_the_module():
    module, shape, key = MODULES["small"](classes=10), (8, 8, 1), jax.random.key(0)
    own = module.init(key, jnp.zeros((1, *shape)))["params"]
    jax.tree.map(np.testing.assert_array_equal, network_of(module, shape).init(key)[0], own)


def test_biases_are_random_or_zero():
    for zero in (False, True):
        _, frozen = network_by_name("mlp", (4, 4, 1), 3, zero_biases=zero).init(jax.random.key(0))
        biases = [np.asarray(leaf) for leaf in jax.tree.leaves(frozen)]
        assert [bias.shape for bias in biases] == [(300,), (100,), (3,)]
        assert all((bias == 0).all() if zero else np.abs(bias).min() > 0 for bias in biases)


class Scaled(nn.Module):
    """A network of one's own, with a frozen scale that is no bias."""

    @nn.compact
    def __call__(self, values):
        values = Conv(2, side=1, name="conv")(values).reshape(values.shape[0], -1)
        scale = self.variable("frozen", "scale", jnp.ones, (values.shape[-1],))
        return Linear(3, name="linear")(values * scale.value[None])


def test_zero_biases_leave_other_frozen_values_alone():
    _, frozen = network_of(Scaled(), (2, 2, 1), zero_biases=True).init(jax.random.key(0))
    assert (np.asarray(frozen["scale"]) == 1).all()
    assert (np.asarray(frozen["linear"]["bias"]) == 0).all()


# What a module is, from itself.


class Mixed(nn.Module):
    """Leaves of every kind and of one to four axes: what they are is not to be read off their axes."""

    classes: int
    roles = {"mixing": "linear", "line": "convolution"}  # noqa: RUF012

    @nn.compact
    def __call__(self, values):
        values = nn.PReLU()(nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3), name="conv")(values)))
        values = nn.Conv(4, (3, 3), feature_group_count=4, use_bias=False, name="depthwise")(values)
        values = nn.Conv(6, (3, 3), feature_group_count=2, name="grouped")(values).mean(1)
        values = nn.Conv(4, (3,), name="over_rows")(values).mean(1)
        line = self.param("line", nn.initializers.ones, (4,))
        mixing = self.param("mixing", nn.initializers.normal(), (4, 2, 3))
        values = jnp.einsum("bc,cij->bij", values * line[None], mixing).reshape(len(values), -1)
        return nn.Dense(self.classes, dtype=jnp.bfloat16, name="dense")(values)


MIXED = {
    "conv/kernel": "convolution",
    "depthwise/kernel": "depthwise",
    "grouped/kernel": "convolution",
    "over_rows/kernel": "convolution",
    "dense/kernel": "linear",
    "mixing": "linear",
    "line": "convolution",
}


def test_a_layer_is_what_its_module_says_and_what_has_no_role_is_frozen():
    network = network_of(Mixed(classes=5), (6, 6, 1))
    assert network.roles == MIXED
    images = jnp.arange(72, dtype=jnp.uint8).reshape(2, 6, 6, 1)

    @jax.jit
    def drawn(key):
        masked, frozen = network.init(key)
        params = unflatten_dict(flatten_dict(masked) | flatten_dict(frozen))
        steeper = {**frozen, "PReLU_0": {"negative_slope": 0.5}}
        logits = [network.apply({"params": masked, "frozen": leaves}, images) for leaves in (frozen, steeper)]
        return masked, frozen, logits, Mixed(classes=5).apply({"params": params}, to_unit_range(images, jnp.float32))

    masked, frozen, (logits, bent), expected = drawn(jax.random.key(0))
    assert set(flatten_dict(masked, sep="/")) == set(MIXED)
    biases = {f"{name}/bias" for name in ("conv", "grouped", "over_rows", "dense", "GroupNorm_0")}
    assert set(flatten_dict(frozen, sep="/")) == {"GroupNorm_0/scale", "PReLU_0/negative_slope", *biases}
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, expected.astype(jnp.float32), rtol=0.01)
    assert (abs(logits - bent) > 0.02 * abs(logits)).any()


def test_retention_is_that_of_a_layers_role():
    network = network_of(Mixed(classes=5), (6, 6, 1))
    weights, _ = jax.eval_shape(network.init, jax.random.key(0))
    kept = flatten_dict(kept_by_layer(weights, network.roles, 0.5, 1.0), sep="/")
    sizes = {name: leaf.size for name, leaf in flatten_dict(weights, sep="/").items()}
    whole = ("linear", "depthwise")  # this retention is 1, and a depthwise kernel has no other
    assert kept == {name: sizes[name] if role in whole else sizes[name] // 2 for name, role in MIXED.items()}


def module_of(forward, name="Odd"):
    """A module of one number of classes whose forward pass is `forward(module, images)`."""
    fields = {"__annotations__": {"classes": int}, "__call__": nn.compact(forward), "__module__": __name__}
    return type(name, (nn.Module,), fields)


def pooled(values):
    return Linear(5)(values.mean((1, 2)))


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (
            lambda self, x: Linear(3)(x.mean((1, 2))),
            r"must return logits of shape \(2, 5\) for 2 images, got float32 \(2, 3\): let its last layer have one",
        ),
        (lambda self, x: pooled(x)[:, 0], r"must return logits of shape \(2, 5\) for 2 images, got float32 \(2,\)"),
        (
            lambda self, x: (pooled(x), x),
            r"must return one array of logits, as floats, got tuple of float32 \(2, 5\), float32 \(2, 6, 6, 1\)$",
        ),
        (lambda self, x: pooled(x) > 0, r"must return one array of logits, as floats, got \w+ of bool \(2, 5\)$"),
        (lambda self, x: None, "must have a parameter that masks select from, got none: build it of Conv and Linear"),
        (
            lambda self, x: x.mean((1, 2)) @ self.param("w", nn.initializers.ones, (1, 5)),
            'must have a parameter that masks select from, got w: .* a parameter its role, such as roles = {"kernel"',
        ),
        (
            lambda self, x: pooled(x) * self.param("positive", nn.initializers.ones, ()),
            "must not have a parameter positive: planes of masks are called so, rename it",
        ),
        (
            lambda self, x: pooled(nn.BatchNorm(use_running_average=False)(x)),
            r"keeps a state \(batch_stats\), as nn.BatchNorm does, .*: take nn.GroupNorm instead",
        ),
        (
            lambda self, x: nn.Dropout(0.5, deterministic=False)(pooled(x)),
            "draws random numbers when it is applied, as nn.Dropout does, .*: leave that layer out, or make it",
        ),
        (
            lambda self, x: pooled(nn.DenseGeneral((5, 1), name="heads")(x)[..., 0]),
            r"must have kernels whose last axis alone holds outputs, got heads/kernel of shape \(1, 5, 1\): ",
        ),
        (
            lambda self, x: pooled(nn.ConvLocal(5, (3, 3), name="local")(x)),
            r"must have kernels whose last axis alone holds outputs, got local/kernel of shape \(6, 6, 9, 5\): ",
        ),
        (lambda self, x: Linear(5)(x.reshape(1, -1)), "makes parameters of another shape for 2 images than for one"),
        (lambda self, x, train: pooled(x), "must take images and nothing else .*'train'.*: give other arguments"),
    ],
)
def test_a_module_that_cannot_be_a_network_is_refused_in_one_line(forward, sentence):
    with pytest.raises(ValueError, match=f"^the module Odd {sentence}") as refused:
        network_of(module_of(forward)(classes=5), (6, 6, 1))
    assert "\n" not in str(refused.value)
    assert "--" not in str(refused.value)


def test_a_role_that_does_not_exist_is_refused_with_the_nearest():
    class Typo(nn.Module):
        roles = {"w": "liner"}  # noqa: RUF012

        @nn.compact
        def __call__(self, values):
            return values.mean((1, 2)) @ self.param("w", nn.initializers.ones, (1, 5))

    with pytest.raises(ValueError, match=r"the role of w must be one of .*, got 'liner'; did you mean linear\?"):
        network_of(Typo(), (6, 6, 1))


def test_a_class_that_takes_no_number_of_classes_is_refused(monkeypatch):
    monkeypatch.setitem(MODULES, "scaled", Scaled)
    with pytest.raises(ValueError, match=r"the model scaled must be made by its number of classes .*`classes: int`"):
        network_by_name("scaled", (2, 2, 1), 3)


def test_an_elu_on_the_logits_bends_negative_ones_alone():
    plain, bent = (network_of(Scaled(), (2, 2, 1), elu_on_logits=elu) for elu in (False, True))
    masked, frozen = plain.init(jax.random.key(1))
    images = jnp.asarray(np.random.default_rng(0).integers(0, 256, (50, 2, 2, 1)), jnp.uint8)
    logits, elu = (np.asarray(n.apply({"params": masked, "frozen": frozen}, images)) for n in (plain, bent))
    assert (logits < 0).any()
    assert (logits > 0).any()
    np.testing.assert_allclose(elu, np.where(logits > 0, logits, np.expm1(logits)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sides", [(4, 6), (5, 7), (2, 3)])
def test_pairs_are_pooled_and_an_odd_rest_left_out(sides):
    images = np.random.default_rng(0).normal(size=(3, *sides, 2)).astype(np.float32)
    pooled = np.asarray(max_pool_pairs(jnp.asarray(images)))
    assert pooled.shape == (3, sides[0] // 2, sides[1] // 2, 2)
    for row, column in np.ndindex(pooled.shape[1:3]):
        window = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_array_equal(pooled[:, row, column], window.max(axis=(1, 2)))
