"""Norms over live channels, attention and mean pooling, in float64: values by numpy, gradients by JAX's own rules."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from derivatives import assert_same, drawn, value_and_gradients

from dslth_jax.networks.attention import attention, place_code
from dslth_jax.networks.norms import EPSILON, fed, group_norm, groups_of, layer_norm
from dslth_jax.networks.operations import average_pool, global_average_pool, product

# Which of six channels are live: all, some in each of two groups, none of a group, one alone, none.
LIVE = ["111111", "101011", "000110", "010000", "000000"]
lives = pytest.mark.parametrize("live", LIVE)


def as_flags(live):
    return np.array([flag == "1" for flag in live])


def group_norm_by_numpy(images, groups, live):
    """The live channels of each image's groups, cut out and put back."""
    out = np.zeros_like(images)
    for number, part in np.ndindex(len(images), groups):
        own = [c for c in np.array_split(np.arange(images.shape[3]), groups)[part] if live[c]]
        if own:
            cut = images[number][..., own]
            out[number][..., own] = (cut - cut.mean()) / np.sqrt(cut.var() + EPSILON)
    return out


def plain_group_norm(groups, live):
    """The formula by sums over whole arrays, for JAX to differentiate."""

    def operation(images):
        parts = images.reshape(len(images), -1, groups, images.shape[3] // groups)
        counted = jnp.broadcast_to(jnp.asarray(live).reshape(1, 1, groups, -1), parts.shape)
        entries = jnp.maximum(counted.sum((1, 3), keepdims=True), 1)
        mean = jnp.where(counted, parts, 0).sum((1, 3), keepdims=True) / entries
        apart = jnp.where(counted, parts - mean, 0)
        return (apart / jnp.sqrt((apart**2).sum((1, 3), keepdims=True) / entries + EPSILON)).reshape(images.shape)

    return operation


@lives
@pytest.mark.parametrize("groups", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_group_norm_is_that_of_the_live_channels(x64, groups, live):
    flags = as_flags(live)
    images = drawn((2, 3, 4, 6))[0] * 3 + 5  # dead channels hold numbers too, which nobody may see
    actual = value_and_gradients(lambda x: group_norm(x, groups, jnp.asarray(flags)), images)
    assert_same(actual, value_and_gradients(plain_group_norm(groups, flags), images), 1e-11)
    np.testing.assert_allclose(actual[0], group_norm_by_numpy(np.asarray(images), groups, flags), atol=1e-12)
    for array in actual:
        assert (np.asarray(array)[..., ~flags] == 0).all()


@lives
def test_a_layer_norm_is_a_group_norm_of_each_token(x64, live):
    flags = as_flags(live)
    tokens = drawn((2, 5, 6))[0] * 3 + 5

    def by_token(values):
        return plain_group_norm(1, flags)(values.reshape(10, 1, 1, 6)).reshape(values.shape)

    actual = value_and_gradients(lambda x: layer_norm(x, jnp.asarray(flags)), tokens)
    assert_same(actual, value_and_gradients(by_token, tokens), 1e-11)
    expected = group_norm_by_numpy(np.asarray(tokens).reshape(10, 1, 1, 6), 1, flags)
    np.testing.assert_allclose(actual[0].reshape(expected.shape), expected, atol=1e-12)


def test_without_flags_all_channels_are_live(x64):
    images, all_live = drawn((2, 3, 2, 6))[0], jnp.ones(6, bool)
    np.testing.assert_array_equal(group_norm(images, 2), group_norm(images, 2, all_live))
    np.testing.assert_array_equal(layer_norm(images), layer_norm(images, all_live))


@pytest.mark.parametrize("value", [0.0, 7.0, 1e-30, 1e15])
@lives
def test_constant_images_have_finite_gradients(live, value):
    """In float32, where a variance is exactly 0, and one pixel may be all there is."""
    flags = jnp.asarray(as_flags(live))
    for operation in (lambda x: group_norm(x, 2, flags), lambda x: layer_norm(x, flags)):
        for side in (1, 2):
            out, gradient = jax.device_get(value_and_gradients(operation, jnp.full((1, side, side, 6), value)))
            assert np.isfinite(gradient).all()
            assert (abs(out) < 1e-6 * value + 1e-20).all() or value > 1e6
            assert np.isfinite(out).all()


@pytest.mark.parametrize("norm", [lambda x, live: group_norm(x, 3, live), layer_norm], ids=["group", "layer"])
def test_norms_under_maps(x64, norm):
    """Agents differ in which channels live; a sweep is a second axis."""
    images, live = drawn((2, 3, 2, 2, 2, 6))[0], jnp.asarray([as_flags(live) for live in LIVE[:3]])
    mapped = value_and_gradients(jax.vmap(jax.vmap(norm), (0, None)), images, live)[:2]
    cotangent = np.cos(np.arange(images.size)).reshape(images.shape)
    for sweep, agent in np.ndindex(2, 3):
        value, pull = jax.vjp(lambda x, agent=agent: norm(x, live[agent]), images[sweep, agent])
        assert_same([m[sweep, agent] for m in mapped], [value, *pull(jnp.asarray(cotangent[sweep, agent]))])


@pytest.mark.parametrize("norm", [lambda x: group_norm(x, 2), layer_norm], ids=["group", "layer"])
def test_norms_of_bfloat16_have_statistics_of_float32(norm):
    images = jnp.asarray(np.random.default_rng(0).normal(100, 1, (2, 4, 4, 6)), jnp.bfloat16)
    assert norm(images).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm(images).astype(jnp.float32), norm(images.astype(jnp.float32)), rtol=0.01, atol=0.01)


def test_what_a_kernel_feeds_lives_on():
    kernel = np.zeros((3, 3, 3, 4), np.float32)
    kernel[0, 1, 0, 1], kernel[2, 2, 2, 3], kernel[1, 1, 2, 1] = 1, -1, 1
    kernel = jnp.asarray(kernel)
    assert fed(kernel).tolist() == [False, True, False, True]
    assert fed(kernel, jnp.array([True, True, False])).tolist() == [False, True, False, False]


def test_groups_divide_their_channels():
    for channels in range(1, 600):
        groups = groups_of(channels)
        assert channels % groups == 0
        assert groups <= 32
        assert groups == 1 or channels // groups >= 4
    with pytest.raises(ValueError, match="groups must divide the 6 channels, got 4"):
        group_norm(jnp.zeros((1, 1, 1, 6)), 4)


def attention_by_numpy(query, key, value, heads):
    """A loop over images, heads and tokens."""
    out, part = np.zeros_like(value), query.shape[2] // heads
    for image, head, token in np.ndindex(len(query), heads, query.shape[1]):
        own = slice(head * part, (head + 1) * part)
        weights = np.exp(key[image][:, own] @ query[image, token, own] / np.sqrt(part))
        out[image, token, own] = weights / weights.sum() @ value[image][:, own]
    return out


def plain_attention(heads):
    """By one matrix a head."""

    def operation(query, key, value):
        out = []
        for q, k, v in zip(*(jnp.split(part, heads, axis=2) for part in (query, key, value)), strict=True):
            scores = jnp.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[2]))
            out.append(scores / scores.sum(2, keepdims=True) @ v)
        return jnp.concatenate(out, 2)

    return operation


@pytest.mark.parametrize("heads", [1, 3])
def test_attention_meets_its_formula(x64, heads):
    arguments = drawn(*[(2, 5, 6)] * 3)
    actual = value_and_gradients(lambda *parts: attention(*parts, heads), *arguments)
    assert_same(actual, value_and_gradients(plain_attention(heads), *arguments))
    np.testing.assert_allclose(actual[0], attention_by_numpy(*map(np.asarray, arguments), heads), atol=1e-12)


def test_attention_of_several_agents_under_two_maps(x64):
    arguments = drawn((2, 3, 2, 4, 4), (3, 2, 4, 4), (2, 3, 2, 4, 4))
    nested = [
        jax.vmap(jax.vmap(operation), (0, None, 0)) for operation in (lambda *p: attention(*p, 2), plain_attention(2))
    ]
    assert_same(*(value_and_gradients(operation, *arguments) for operation in nested))


def test_attention_is_finite_for_large_scores():
    parts = [jnp.asarray(part, jnp.float32) * 1e4 for part in drawn(*[(1, 3, 4)] * 3)]
    for array in value_and_gradients(lambda *p: attention(*p, 2), *parts):
        assert np.isfinite(np.asarray(array)).all()
    with pytest.raises(ValueError, match="heads must divide the width 4, got 3"):
        attention(*parts, 3)


def test_every_place_has_a_code_of_its_own():
    code = place_code(3, 5, 12)
    assert code.shape == (15, 12)
    row, column = 2, 3
    fast, slow = 1.0, 1e-4
    for at, expected in ((0, np.sin(3 * fast)), (5, np.cos(3 * slow)), (6, np.sin(2 * fast)), (11, np.cos(2 * slow))):
        assert code[row * 5 + column, at] == pytest.approx(expected)
    distances = np.linalg.norm(code[:, None] - code[None], axis=2) + np.eye(15)
    assert distances.min() > 0.1
    with pytest.raises(ValueError, match="width must be a multiple of 4, got 6"):
        place_code(2, 2, 6)


def test_means_over_windows_and_over_all_pixels(x64):
    images = drawn((2, 7, 5, 3))[0]
    pooled, gradient = value_and_gradients(lambda x: average_pool(x, 2), images)
    assert pooled.shape == (2, 3, 2, 3)
    expected, cotangent = np.zeros(images.shape), np.cos(np.arange(36)).reshape(pooled.shape)
    for row, column in np.ndindex(3, 2):
        window = np.s_[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        np.testing.assert_allclose(pooled[:, row, column], np.asarray(images)[window].mean((1, 2)), atol=1e-15)
        expected[window] += cotangent[:, row, column][:, None, None] / 4
    np.testing.assert_allclose(gradient, expected, atol=1e-15)
    value, gradient = value_and_gradients(global_average_pool, images)
    np.testing.assert_allclose(value, np.asarray(images).mean((1, 2)), atol=1e-15)
    np.testing.assert_allclose(gradient, np.broadcast_to(np.cos(np.arange(6)).reshape(2, 1, 1, 3) / 35, images.shape))
    mapped = jax.vmap(jax.vmap(lambda x: average_pool(x, 2)))(images[None, None])
    chex.assert_trees_all_close(mapped[0, 0], pooled)


def test_a_product_is_one_of_the_last_axis(x64):
    values, kernel = drawn((2, 3, 4, 5), (5, 6))
    assert_same(value_and_gradients(product, values, kernel), value_and_gradients(jnp.matmul, values, kernel))
