"""Convolutions with strides and groups, in float64: against a loop over places in numpy, and JAX's stock operation."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from derivatives import assert_same, drawn, value_and_gradients
from jax import lax
from tiny import slow_but

from dslth_jax.networks.convolution import convolve, max_pool

# Images, kernel, padding, stride, groups. Sides differ, so that mixing them up shows; some leave a remainder.
CASES = {
    "strided": ((2, 8, 7, 3), (3, 3, 3, 4), 1, 2, 1),
    "a remainder of two": ((2, 9, 7, 2), (2, 1, 2, 3), 0, 3, 1),
    "a shortcut": ((3, 6, 5, 2), (1, 1, 2, 4), 0, 2, 1),
    "patches": ((2, 8, 12, 2), (4, 4, 2, 5), 0, 4, 1),
    "depthwise": ((2, 5, 6, 4), (3, 3, 1, 4), 1, 1, 4),
    "strided depthwise": ((2, 8, 7, 3), (3, 2, 1, 3), 1, 2, 3),
    "groups": ((2, 5, 6, 4), (3, 3, 2, 6), 1, 1, 2),
    "colours, in which one channel more is put": ((2, 5, 4, 3), (3, 3, 3, 17), 1, 1, 1),
    "strided colours, too": ((2, 6, 5, 3), (3, 3, 3, 17), 1, 2, 1),
    "strided groups": ((2, 5, 6, 4), (3, 3, 1, 8), 1, 2, 4),
    "all channels feed two each": ((2, 4, 3, 1), (3, 3, 1, 2), 1, 1, 1),
}


def operations(case):
    """Ours and the stock one, and the shapes of images and kernel."""
    images, kernel, padding, stride, groups = CASES[case]

    def stock(images, kernel):
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    return lambda i, k: convolve(i, k, padding, stride, groups), stock, (images, kernel)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("inputs", "outputs", "taken"), [(3, 17, 4), (5, 32, 6), (7, 24, 8), (3, 16, 3), (3, 33, 3), (4, 24, 4)]
)
def test_convolutions_take_one_channel_more_where_that_is_faster(inputs, outputs, taken, stride):
    images, kernel = jnp.ones((1, 4, 4, inputs)), jnp.ones((3, 3, inputs, outputs))
    program = jax.jit(lambda i, k: convolve(i, k, 1, stride)).lower(images, kernel).as_text()
    assert f"tensor<3x3x{taken}x{outputs}xf32>) -> tensor" in program


def by_numpy(images, kernel, padding, stride, groups):
    """A loop over answers and groups."""
    rows, columns, inputs, outputs = kernel.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = ((side - taps) // stride + 1 for side, taps in zip(padded.shape[1:3], (rows, columns), strict=True))
    answers = np.zeros((len(images), height, width, outputs))
    own = outputs // groups
    for i, j, group in np.ndindex(height, width, groups):
        seen = padded[:, stride * i : stride * i + rows, stride * j : stride * j + columns]
        fed = slice(group * own, (group + 1) * own)
        part = seen[..., group * inputs : (group + 1) * inputs]
        answers[:, i, j, fed] = np.tensordot(part, kernel[..., fed], axes=([1, 2, 3], [0, 1, 2]))
    return answers


@pytest.mark.parametrize("case", CASES)
def test_the_value_is_that_of_a_loop(x64, case):
    ours, _, shapes = operations(case)
    images, kernel = drawn(*shapes)
    expected = by_numpy(np.asarray(images), np.asarray(kernel), *CASES[case][2:])
    assert_same([jax.jit(ours)(images, kernel)], [expected])


@pytest.mark.parametrize("case", slow_but(CASES, "strided", "strided depthwise", "strided groups"))
def test_gradients_are_those_of_the_stock_operation(x64, case):
    ours, stock, shapes = operations(case)
    arguments = drawn(*shapes)
    assert_same(value_and_gradients(ours, *arguments), value_and_gradients(stock, *arguments))


@pytest.mark.parametrize("axes", [(0, 0), pytest.param((None, 0), marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", slow_but(("strided", "depthwise", "groups"), "strided", "depthwise"))
def test_each_agent_takes_its_own_gradients(x64, case, axes):
    """As training does it: the gradient inside the map, where nothing is summed over agents."""
    ours, stock, shapes = operations(case)
    leading = [() if axis is None else (3,) for axis in axes]
    arguments = drawn(*((*own, *shape) for own, shape in zip(leading, shapes, strict=True)))

    def per_agent(operation):
        gradient = jax.grad(lambda images, kernel: jnp.sum(jnp.sin(operation(images, kernel))), argnums=(0, 1))
        return jax.jit(jax.vmap(gradient, axes))(*arguments)

    assert_same(per_agent(ours), per_agent(stock))


@pytest.mark.parametrize("case", slow_but(("strided", "depthwise", "groups"), "depthwise"))
def test_maps_nest(x64, case):
    ours, stock, (images, kernel) = operations(case)
    arguments = drawn((2, *images), (2, 3, *kernel))

    def nested(operation):
        return jax.vmap(jax.vmap(operation, (None, 0)))

    assert_same(value_and_gradients(nested(ours), *arguments), value_and_gradients(nested(stock), *arguments))


@pytest.mark.parametrize(
    ("images", "kernel", "stride", "groups", "sentence"),
    [
        ((1, 5, 5, 4), (3, 3, 1, 4), 1, 2, "the kernel expects 2 input channels, the images have 4"),
        ((1, 5, 5, 4), (3, 3, 2, 3), 1, 2, "groups must divide the kernel's 3 output channels, got 2"),
        ((1, 2, 5, 4), (3, 3, 4, 3), 2, 1, "a kernel of 3x3 must fit images of 2x5$"),
        ((1, 5, 2, 4), (3, 3, 4, 3), 1, 1, "a kernel of 3x3 must fit images of 5x2$"),
    ],
)
def test_what_does_not_fit_is_refused(monkeypatch, images, kernel, stride, groups, sentence):
    """Users have no checked annotations, which would speak up first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=sentence):
        convolve(jnp.zeros(images), jnp.zeros(kernel), stride=stride, groups=groups)


def test_padding_is_named_and_pools_must_fit_too():
    with pytest.raises(ValueError, match=r"^a kernel of 9x9 must fit images of 4x4 with 2 zeros on every side$"):
        convolve(jnp.zeros((1, 4, 4, 1)), jnp.zeros((9, 9, 1, 1)), padding=2)
    with pytest.raises(ValueError, match=r"^windows of 3x3 must fit the images, got 2x4"):
        max_pool(jnp.zeros((1, 2, 4, 1)))


def test_a_depthwise_gradient_adds_up_many_images_in_bfloat16():
    """A sum in bfloat16 itself stands still after some hundred: 15 % were lost at 512 images."""
    rng = np.random.default_rng(0)
    images, weights = (rng.uniform(0, 1, (512, 4, 4, 8)) for _ in range(2))

    def gradient(dtype):
        def total(kernel):
            answers = convolve(jnp.asarray(images, dtype), kernel, 1, 1, 8)
            return jnp.sum((answers * jnp.asarray(weights, dtype)).astype(jnp.float32))

        return np.asarray(jax.jit(jax.grad(total))(jnp.ones((3, 3, 1, 8), dtype)), float)

    np.testing.assert_allclose(gradient(jnp.bfloat16), gradient(jnp.float32), rtol=0.01)
