"""What networks compute between their layers: activation, pooling, normalization over channels. One agent's world.

Each has a gradient rule or a form that is fast on CPUs too; pooling over windows of 3 stands in
`convolution`, norms of groups and layers in `norms`.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

Images = Float[Array, "batch height width channels"]


@jax.custom_vjp
def elu(values: Array) -> Array:
    """x for x > 0, e^x - 1 below. Its gradient rule reads the output, so no input is kept. Reverse mode only."""
    return jnp.where(values > 0, values, jnp.expm1(jnp.minimum(values, 0)))


def _elu_forward(values: Array) -> tuple[Array, Array]:
    output = elu(values)
    return output, output


def _elu_backward(output: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(output > 0, gradient, gradient * (output + 1)),)


elu.defvjp(_elu_forward, _elu_backward)


def pad_with_lowest(images: Array, padding: int) -> Array:
    """`padding` rows and columns of -inf on every side, which no maximum sees."""
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)


def max_pool_pairs(images: Array) -> Array:
    """Max pooling of 2x2 windows side by side; an odd last row or column is left out, as PyTorch does. The gradient
    goes to the larger of two values in a column and then in a row, and to equal ones in halves."""
    height, width = (side - side % 2 for side in images.shape[1:3])
    rows = jnp.maximum(images[:, 0:height:2], images[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def average_pool(images: Images, side: int) -> Float[Array, "batch new_height new_width channels"]:
    """The mean of each window of `side` x `side` pixels, side by side; a remainder is left out, as PyTorch does.

    A sum of slices, one for each place in a window, in float32 at least: on CPUs its gradient takes six tenths of what
    that of a mean over two axes takes.
    """
    height, width = (size - size % side for size in images.shape[1:3])
    inner = images[:, :height, :width].astype(jnp.promote_types(images.dtype, jnp.float32))
    total = reduce(jnp.add, (inner[:, i::side, j::side] for i in range(side) for j in range(side)))
    return (total / side**2).astype(images.dtype)


def global_average_pool(images: Images) -> Float[Array, "batch channels"]:
    """The mean of every channel over all pixels."""
    return jnp.mean(images, (1, 2))


def product(values: Float[Array, "*axes inputs"], kernel: Float[Array, "inputs outputs"]) -> Array:
    """Each place's channels times a kernel: a 1x1 convolution, or a linear layer of tokens; (*axes, outputs).

    As one plain matrix product. With the axes left apart, the kernel's gradient takes four times as long on CPUs.
    """
    flat = values.reshape(-1, values.shape[-1]) @ kernel
    return flat.reshape(*values.shape[:-1], kernel.shape[1])


def local_response_norm(
    values: Float[Array, "*axes channels"], alpha: float, numbers: Int[np.ndarray, "channels"] | None = None
) -> Float[Array, "*axes channels"]:
    """Local response normalization over channels, size 4, beta 3/4, k 1, as PyTorch defines it.

    x_c / (1 + alpha/4 · Σ x²)^(3/4) over channels c-2 to c+1. Reverse mode only. `numbers` are those that the channels
    had, in ascending order, before others were cut out, which are 0; then there is no fast gradient.
    """
    if numbers is None or numbers[-1] - numbers[0] == len(numbers) - 1:
        return _response_norm(values, alpha / 4)
    root = lax.rsqrt(1 + alpha / 4 * _window_left(values**2, numbers))
    return values * root * jnp.sqrt(root)


def _window_left(values: Array, numbers: np.ndarray) -> Array:
    """For every channel c the sum over those of the channels c-2 to c+1 that are left."""
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(2, 1)])
    gaps = np.pad(numbers, (2, 1), constant_values=-9)
    parts = []
    for place, offset in enumerate(range(-2, 2)):
        apart = gaps[place : place + len(numbers)] - numbers
        seen = (apart >= -2) & (apart <= 1) & (gaps[place : place + len(numbers)] >= 0)
        part = padded[..., place : place + len(numbers)]
        parts.append(part if offset == 0 else jnp.where(seen.reshape(*[1] * (values.ndim - 1), -1), part, 0))
    return reduce(jnp.add, parts)


def _channel_window(values: Array, before: int, after: int) -> Array:
    """For every channel c the sum over channels c-before to c+after."""
    channels = values.shape[-1]
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(before, after)])
    return reduce(jnp.add, [padded[..., i : i + channels] for i in range(before + after + 1)])


def _inverse_root(values: Array, scale: float) -> tuple[Array, Array]:
    """s^(-1/2) and s^(-3/4) of s = 1 + scale · (windowed sum of squares): roots cost a fraction of a power."""
    root = lax.rsqrt(1 + scale * _channel_window(values**2, 2, 1))
    return root, root * jnp.sqrt(root)


def _response_norm_value(values: Array, scale: float) -> Array:
    return values * _inverse_root(values, scale)[1]


def _response_norm_forward(values: Array, scale: float) -> tuple[Array, Array]:
    return _response_norm(values, scale), values


def _response_norm_backward(scale: float, values: Array, gradient: Array) -> tuple[Array]:
    root, factor = _inverse_root(values, scale)
    # Keep these passes apart: fused into the window below, each entry would recompute its neighbours' windows.
    direct, through = lax.optimization_barrier((gradient * factor, gradient * factor * values * root**2))
    return (direct - 1.5 * scale * values * _channel_window(through, 1, 2),)


_response_norm = jax.custom_vjp(_response_norm_value, nondiff_argnums=(1,))
_response_norm.defvjp(_response_norm_forward, _response_norm_backward)
