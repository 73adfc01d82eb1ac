"""The networks: they fit themselves to images and classes, or say why not; weights are drawn as their names say."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from dslth_jax.networks.zoo import (
    MODULES,
    WEIGHTS,
    Conv,
    Linear,
    draw_like,
    largest_fitting,
    max_pool_pairs,
    network_by_name,
    network_of,
)

SHAPES = [(32, 32, 3), (28, 28, 1), (21, 40, 2), (8, 8, 1), (4, 5, 3), (1, 1, 1)]
SMALLEST = {"alexnet": 21, "small": 1, "conv4": 4, "mlp": 1}


def entries(network):
    """How many weights masks choose from."""
    masked, _ = jax.eval_shape(network.init, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(masked))


@pytest.mark.parametrize(("name", "shape"), list(itertools.product(MODULES, SHAPES)))
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
        masked, _ = network_by_name("small", (8, 8, 1), 10, weights=weights).init(jax.random.key(3))
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
    first, second = (jax.tree.leaves(network.init(jax.random.key(seed))[0]) for seed in (0, 1))
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
