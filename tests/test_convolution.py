"""The layers' own operations, values and gradients in float64: against JAX's stock ones, loops and plain formulas."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from derivatives import assert_same, drawn, value_and_gradients
from jax import lax

from dslth_jax.networks import convolution
from dslth_jax.networks.convolution import convolve, max_pool
from dslth_jax.networks.operations import elu, local_response_norm, pad_with_lowest

# Images, kernel, padding, and the form the input gradient takes on a CPU. Sides differ, so that mixing them up shows.
FULL, ROWS, SPREAD = "_full_convolution", "_spread_rows", "_spread_product"
CASES = {
    "same size": ((3, 9, 8, 2), (3, 3, 2, 4), 1, FULL),
    "a little smaller": ((2, 9, 11, 3), (2, 3, 3, 2), 0, ROWS),
    "padded and a little smaller": ((6, 12, 11, 3), (5, 4, 3, 2), 1, ROWS),
    "a kernel of one column": ((2, 12, 6, 2), (5, 1, 2, 3), 1, ROWS),
    "larger": ((2, 4, 3, 1), (3, 3, 1, 2), 2, FULL),
    "padding beyond a kernel of one": ((2, 3, 4, 2), (1, 1, 2, 3), 1, FULL),
    "a patch": ((2, 5, 6, 3), (4, 5, 3, 2), 0, SPREAD),
    "a padded patch": ((3, 5, 4, 2), (5, 4, 2, 3), 1, SPREAD),
    "one answer": ((2, 3, 3, 2), (5, 5, 2, 3), 1, SPREAD),
}
shapes = pytest.mark.parametrize(("images", "kernel", "padding", "form"), CASES.values(), ids=CASES.keys())


def stock(padding):
    def operation(images, kernel):
        sides = [(padding, padding)] * 2
        return lax.conv_general_dilated(images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return operation


@shapes
def test_convolution_alone(x64, images, kernel, padding, form):
    arguments = drawn(images, kernel)
    actual = value_and_gradients(lambda i, k: convolve(i, k, padding), *arguments)
    assert_same(actual, value_and_gradients(stock(padding), *arguments))


@shapes
def test_the_cases_reach_all_forms_of_the_input_gradient(monkeypatch, images, kernel, padding, form):
    called = []
    for name in (FULL, ROWS, SPREAD):
        original = getattr(convolution, name)
        monkeypatch.setattr(
            convolution, name, lambda *args, name=name, original=original: called.append(name) or original(*args)
        )
    # Forget the functions that other tests have traced already, with the forms that were there then.
    convolution._differentiable.cache_clear()
    jax.eval_shape(jax.grad(lambda i, k: convolve(i, k, padding).sum()), jnp.zeros(images), jnp.zeros(kernel))
    convolution._differentiable.cache_clear()
    assert set(called) == {form}


# The axes of images and kernels that hold agents: a batch of each, one batch for all, one kernel for all, another axis.
AXES = {"both": (0, 0), "kernels": (None, 0), "images": (0, None), "other axes": (1, 4)}


def along_axes(shapes_, axes):
    return [
        shape if axis is None else (*shape[:axis], 3, *shape[axis:]) for shape, axis in zip(shapes_, axes, strict=True)
    ]


@pytest.mark.parametrize("axes", AXES.values(), ids=AXES.keys())
@pytest.mark.parametrize("case", [pytest.param("same size", marks=pytest.mark.slow), "a padded patch"])
def test_convolution_of_several_agents(x64, case, axes):
    images, kernel, padding, _ = CASES[case]
    arguments = drawn(*along_axes((images, kernel), axes))
    actual = value_and_gradients(jax.vmap(lambda i, k: convolve(i, k, padding), axes), *arguments)
    assert_same(actual, value_and_gradients(jax.vmap(stock(padding), axes), *arguments))


@pytest.mark.parametrize("axes", [(0, 0), (None, 0)], ids=["both", "kernels"])
@pytest.mark.parametrize("case", ["same size", "a padded patch"])
def test_gradients_taken_by_each_agent(x64, case, axes):
    """As training does it: the gradient inside the map, where nothing is summed over agents."""
    images, kernel, padding, _ = CASES[case]
    arguments = drawn(*along_axes((images, kernel), axes))

    def per_agent(operation):
        def loss(images, kernel):
            return jnp.sum(jnp.sin(operation(images, kernel)))

        return jax.jit(jax.vmap(jax.grad(loss, argnums=(0, 1)), axes))(*arguments)

    assert_same(per_agent(lambda i, k: convolve(i, k, padding)), per_agent(stock(padding)))


@pytest.mark.parametrize(
    ("outer", "inner"),
    [((0, 0), (0, 0)), ((0, None), (None, 0)), ((None, 0), (0, 0)), ((None, 0), (None, 0))],
)
def test_convolution_under_nested_maps(x64, outer, inner):
    images, kernel, padding, _ = CASES["a patch"]
    sizes = {"outer": 2, "inner": 3}
    leading = [
        [sizes[name] for name, axes in (("outer", outer), ("inner", inner)) if axes[which] is not None]
        for which in (0, 1)
    ]
    arguments = drawn((*leading[0], *images), (*leading[1], *kernel))

    def nested(operation):
        return jax.vmap(jax.vmap(operation, inner), outer)

    actual = value_and_gradients(nested(lambda i, k: convolve(i, k, padding)), *arguments)
    assert_same(actual, value_and_gradients(nested(stock(padding)), *arguments))


def test_float32_stays_float32():
    images, kernel, padding, _ = CASES["same size"]
    for array in value_and_gradients(lambda i, k: convolve(i, k, padding), *drawn(images, kernel)):
        assert array.dtype == jnp.float32


def test_channels_must_match(monkeypatch):
    """Users have no checked annotations, which would speak up first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match="the kernel expects 3 input channels, the images have 2"):
        convolve(jnp.zeros((1, 5, 5, 2)), jnp.zeros((3, 3, 3, 4)))


def pool_by_loop(images, gradient):
    """Maxima of windows of 3 at stride 2, and `gradient` handed to the first maximum in reading order."""
    batch, height, width, channels = images.shape
    pooled = np.zeros((batch, (height - 3) // 2 + 1, (width - 3) // 2 + 1, channels))
    spread = np.zeros_like(images)
    for b, i, j, c in np.ndindex(*pooled.shape):
        window = images[b, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
        row, column = divmod(int(np.argmax(window)), 3)
        pooled[b, i, j, c] = window[row, column]
        spread[b, 2 * i + row, 2 * j + column, c] += gradient[b, i, j, c]
    return pooled, spread


@jax.jit
def pool_and_spread(images, gradient):
    pooled, pull = jax.vjp(max_pool, images)
    return pooled, pull(gradient)[0]


# Odd sides fit the windows; even ones leave a remainder of one row or column.
@pytest.mark.parametrize(("height", "width"), [(3, 3), (3, 4), (4, 5), (5, 8), (6, 7), (8, 6), (9, 9)])
def test_max_pool_and_its_ties(x64, height, width):
    rng = np.random.default_rng(height * width)
    for values in (1, 2, 1000):
        images = rng.integers(-values, 0, (3, height, width, 2)) * 1.0
        gradient = rng.integers(-9, 10, (3, (height - 3) // 2 + 1, (width - 3) // 2 + 1, 2)) * 1.0
        for ours, expected in zip(pool_and_spread(images, gradient), pool_by_loop(images, gradient), strict=True):
            np.testing.assert_array_equal(ours, expected)


def test_max_pool_of_several_agents(x64):
    rng = np.random.default_rng(8)
    images, gradient = rng.integers(0, 4, (3, 2, 6, 5, 2)) * 1.0, rng.integers(-9, 10, (3, 2, 2, 2, 2)) * 1.0
    pooled, spread = jax.vmap(pool_and_spread)(images, gradient)
    for agent in range(3):
        expected = pool_by_loop(images[agent], gradient[agent])
        np.testing.assert_array_equal(pooled[agent], expected[0])
        np.testing.assert_array_equal(spread[agent], expected[1])


def test_padding_never_wins_a_maximum(x64):
    """Even where all values are negative, and the gradient does not leave the image."""
    images = -1 - np.random.default_rng(9).uniform(size=(2, 5, 4, 3))
    framed = np.full((2, 7, 6, 3), -np.inf)
    framed[:, 1:-1, 1:-1] = images
    expected, spread = pool_by_loop(framed, np.ones((2, 3, 2, 3)))
    np.testing.assert_array_equal(max_pool(pad_with_lowest(jnp.asarray(images), 1)), expected)
    gradient = jax.jit(jax.grad(lambda i: jnp.sum(max_pool(pad_with_lowest(i, 1)))))(images)
    np.testing.assert_array_equal(gradient, spread[:, 1:-1, 1:-1])


def plain_elu(values):
    # Where, not minimum: the gradient of a minimum is shared out at a tie, here at 0.
    return jnp.where(values > 0, values, jnp.exp(jnp.where(values > 0, 0, values)) - 1)


def test_elu_meets_its_formula(x64):
    values = jnp.concatenate([jnp.linspace(-50, 50, 201), jnp.array([-1e-3, 1e-3, -800, 1e6])])
    assert_same(value_and_gradients(elu, values), value_and_gradients(plain_elu, values), 1e-15)
    assert_same(value_and_gradients(jax.vmap(elu), values), value_and_gradients(plain_elu, values), 1e-15)


def test_elu_is_precise_near_zero_and_finite_far_from_it():
    values = jnp.array([-1e-6, 1e-6, -1e30, 1e30], jnp.float32)
    np.testing.assert_allclose(elu(values), [-1e-6, 1e-6, -1, 1e30], rtol=2e-6)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(elu(x)))(values), [1, 1, 0, 1], rtol=2e-6)


def plain_response_norm(alpha):
    """By a table of which channels each channel sees, and a power."""

    def operation(values):
        channel = np.arange(values.shape[-1])
        sees = (channel[:, None] >= channel[None] - 2) & (channel[:, None] <= channel[None] + 1)
        squares = values**2 @ jnp.asarray(sees, values.dtype)
        return values / jnp.power(1 + alpha / 4 * squares, 0.75)

    return operation


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("alpha", [pytest.param(1e-4, marks=pytest.mark.slow), 3.0])
def test_local_response_norm_meets_its_formula(x64, channels, alpha):
    values = drawn((2, 3, 2, channels))[0] * 3
    actual = value_and_gradients(lambda x: local_response_norm(x, alpha), values)
    assert_same(actual, value_and_gradients(plain_response_norm(alpha), values), 1e-13)


def test_local_response_norm_of_several_agents(x64):
    values = drawn((3, 2, 2, 2, 5))[0]
    actual = value_and_gradients(jax.vmap(lambda x: local_response_norm(x, 2.0)), values)
    assert_same(actual, value_and_gradients(plain_response_norm(2.0), values), 1e-13)
