"""A convolution and a max pooling that stay fast under `vmap` over kernels. One agent's world.

Each of the convolution's three operations (output, input gradient, kernel gradient) has a form per platform, and a
batching rule: see `per_platform`. Here are those of stride 1; with strides, or depthwise, they stand in `windows`. What
was measured stands in benchmarks/README.md.
"""

from functools import lru_cache, reduce

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from dslth_jax.networks import windows
from dslth_jax.networks.per_platform import Binary, Forms, differentiable

Images = Float[Array, "batch height width inputs"]
Kernel = Float[Array, "kernel_height kernel_width inputs_of_group outputs"]


def convolve(
    images: Images, kernel: Kernel, padding: int = 0, stride: int = 1, groups: int = 1
) -> Float[Array, "batch new_height new_width outputs"]:
    """Convolution (cross-correlation) with `padding` zeros on every side.

    The kernel has as many inputs as a group of channels: of `groups` equal parts, one after another, each of inputs and
    outputs. With as many groups as inputs and outputs it is depthwise, a kernel (rows, columns, 1, channels).

    Has reverse-mode derivatives only: it carries its own gradient rule, so `jax.jvp` and `jax.hessian` raise. A
    ValueError where shapes do not go together.
    """
    inputs, (*sides, inputs_of_group, outputs) = images.shape[-1], kernel.shape
    if inputs != groups * inputs_of_group:
        raise ValueError(f"the kernel expects {groups * inputs_of_group} input channels, the images have {inputs}")
    if outputs % groups:
        raise ValueError(f"groups must divide the kernel's {outputs} output channels, got {groups}")
    window = windows.Window((images.shape[1], images.shape[2]), (sides[0], sides[1]), padding, stride)
    if min(window.answers) < 1:
        around = f" with {padding} zeros on every side" if padding else ""
        of = f"{images.shape[1]}x{images.shape[2]}"
        raise ValueError(f"a kernel of {sides[0]}x{sides[1]} must fit images of {of}{around}")
    if (stride, groups) == (1, 1):
        return _differentiable(padding)(images, kernel)
    if groups == 1:
        return windows.strided(window)(images, kernel)
    if groups == inputs == outputs:
        return windows.depthwise(window)(images, kernel)
    apart = images.reshape(*images.shape[:3], groups, -1), kernel.reshape(*kernel.shape[:3], groups, -1)
    of_group = jax.vmap(lambda images, kernel: convolve(images, kernel, padding, stride), (3, 3), 3)
    together = of_group(*apart)
    return together.reshape(*together.shape[:3], outputs)


@lru_cache
def _differentiable(padding: int) -> Binary:
    """The convolution of one padding and stride 1, with the three operations as its value and its gradient."""

    def output(images: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            images, kernel, (1, 1), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def images_like(gradient: Array, kernel: Array) -> tuple[int, ...]:
        sides = (g + k - 1 - 2 * padding for g, k in zip(gradient.shape[1:3], kernel.shape[:2], strict=True))
        return (gradient.shape[0], *sides, kernel.shape[2])

    def stock_input_gradient(gradient: Array, kernel: Array) -> Array:
        images = jax.ShapeDtypeStruct(images_like(gradient, kernel), gradient.dtype)
        return jax.linear_transpose(lambda x: output(x, kernel), images)(gradient)[0]

    def cpu_input_gradient(gradient: Array, kernel: Array) -> Array:
        _, height, width, _ = images_like(gradient, kernel)
        # Choose by work: the forms multiply zeros around the gradient on all sides, on two sides or nowhere, and the
        # fewer zeros one multiplies, the more parts it adds up.
        if height * width > 2 * gradient.shape[1] * gradient.shape[2]:
            return _spread_product(gradient, kernel, padding)
        form = _spread_rows if height > gradient.shape[1] else _full_convolution
        return form(gradient, kernel, padding)

    def kernel_shape(images: Array, gradient: Array) -> tuple[int, ...]:
        sides = (x + 2 * padding - g + 1 for x, g in zip(images.shape[1:3], gradient.shape[1:3], strict=True))
        return (*sides, images.shape[3], gradient.shape[3])

    def stock_kernel_gradient(images: Array, gradient: Array) -> Array:
        kernel = jax.ShapeDtypeStruct(kernel_shape(images, gradient), gradient.dtype)
        return jax.linear_transpose(lambda k: output(images, k), kernel)(gradient)[0]

    def cpu_kernel_gradient(images: Array, gradient: Array) -> Array:
        # Let batch and channels change places, by transposes of their own: then it is a plain convolution.
        return output(images.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3)).transpose(1, 2, 0, 3)

    def cpu_output(images: Array, kernel: Array) -> Array:
        return output(*windows.evened(images, kernel))

    return differentiable(
        cpu=Forms(cpu_output, cpu_input_gradient, cpu_kernel_gradient),
        default=Forms(output, stock_input_gradient, stock_kernel_gradient),
    )


def _full_convolution(gradient: Array, kernel: Array, padding: int) -> Array:
    """The input gradient as a convolution with the flipped, transposed kernel."""
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    sides = [(side - 1 - padding,) * 2 for side in kernel.shape[:2]]
    return lax.conv_general_dilated(gradient, flipped, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _spread_product(gradient: Array, kernel: Array, padding: int) -> Array:
    """The input gradient as one matrix product whose parts are added up at each kernel position (col2im)."""
    batch, height, width, outputs = gradient.shape
    rows, columns, inputs, _ = kernel.shape
    parts = (gradient.reshape(-1, outputs) @ kernel.reshape(-1, outputs).T).reshape(
        batch, height, width, rows, columns, inputs
    )

    total = _add_up([_add_up([parts[:, :, :, i, j] for j in range(columns)], 2) for i in range(rows)], 1)
    inner = slice(padding, -padding if padding else None)
    return total[:, inner, inner]


def _spread_rows(gradient: Array, kernel: Array, padding: int) -> Array:
    """The input gradient as convolutions along rows only, one for each row of the kernel, whose parts are added up."""
    rows, columns, inputs, outputs = kernel.shape
    flipped = kernel[:, ::-1].transpose(1, 3, 0, 2).reshape(1, columns, outputs, rows * inputs)
    sides = [(0, 0), (columns - 1 - padding,) * 2]
    parts = lax.conv_general_dilated(gradient, flipped, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    total = _add_up([parts[..., i * inputs : (i + 1) * inputs] for i in range(rows)], 1)
    return total[:, padding : -padding if padding else None]


def _add_up(shifted: list[Array], axis: int) -> Array:
    """The sum of equally large parts, each one position further along `axis`."""
    last = len(shifted) - 1
    ends = [[(i, last - i) if a == axis else (0, 0) for a in range(4)] for i in range(last + 1)]
    return reduce(jnp.add, map(jnp.pad, shifted, ends))


@jax.custom_vjp
def max_pool(images: Images) -> Float[Array, "batch new_height new_width inputs"]:
    """Max pooling, window 3 and stride 2, no padding; a remainder at the far side is left out.

    Along rows, then along columns, each as the maximum of three strided slices: the gradient of `reduce_window` is
    several times slower on CPUs. Among equal values the gradient goes to the first in reading order, as in PyTorch;
    this matters, because masked kernels answer different patches with equal values. Reverse mode only. A ValueError for
    images of fewer than 3 x 3.
    """
    if min(images.shape[1:3]) < 3:
        raise ValueError(f"windows of 3x3 must fit the images, got {images.shape[1]}x{images.shape[2]}")
    return _pool_axis(_pool_axis(images, 2), 1)


def _max_pool_forward(images: Array) -> tuple[Array, Array]:
    return max_pool(images), images


def _max_pool_backward(images: Array, gradient: Array) -> tuple[Array]:
    # Keep the passes apart: fused into one, each entry would recompute the maxima around it.
    rows = lax.optimization_barrier(_pool_axis(images, 2))
    gradient = lax.optimization_barrier(_pool_axis_gradient(rows, gradient, 1))
    return (lax.optimization_barrier(_pool_axis_gradient(images, gradient, 2)),)


max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _window_slices(values: Array, axis: int) -> list[Array]:
    """The first, middle and last entry of every window along `axis`."""
    windows = (values.shape[axis] - 3) // 2 + 1
    return [lax.slice_in_dim(values, i, i + 2 * windows - 1, stride=2, axis=axis) for i in range(3)]


def _pool_axis(values: Array, axis: int) -> Array:
    return reduce(jnp.maximum, _window_slices(values, axis))


def _pool_axis_gradient(values: Array, gradient: Array, axis: int) -> Array:
    """Hand each window's gradient to the first of its maxima.

    Even entries lie in two windows, odd ones in one: the two kinds are computed apart and interleaved.
    """
    first, middle, last = _window_slices(values, axis)
    to_first = (first >= middle) & (first >= last)
    to_middle = ~to_first & (middle >= last)

    def pad(part: Array, low: int, high: int) -> Array:
        return jnp.pad(part, [(low, high) if a == axis else (0, 0) for a in range(part.ndim)])

    even = pad(jnp.where(to_first, gradient, 0), 0, 1) + pad(jnp.where(to_first | to_middle, 0, gradient), 1, 0)
    odd = pad(jnp.where(to_middle, gradient, 0), 0, 1)
    shape = [2 * size if a == axis else size for a, size in enumerate(even.shape)]
    spread = jnp.stack([even, odd], axis + 1).reshape(shape)
    size = values.shape[axis]
    if size <= shape[axis]:
        return lax.slice_in_dim(spread, 0, size, axis=axis)
    return pad(spread, 0, size - shape[axis])
