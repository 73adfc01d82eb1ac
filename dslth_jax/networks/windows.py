"""Convolutions with strides, and depthwise ones, as sums over the places of a kernel. One agent's world.

A kernel's place (i, j) sees every stride-th pixel of the padded image, from (i, j) on: a shifted slice. For stock forms
on CPUs see `per_platform`; what was measured stands in benchmarks/README.md.
"""

from collections.abc import Iterator
from functools import lru_cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from dslth_jax.networks.per_platform import Binary, Forms, differentiable


class Window(NamedTuple):
    """How a kernel moves over an image. All static."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    padding: int
    stride: int

    @property
    def answers(self) -> tuple[int, int]:
        """How many rows and columns the output has."""
        rows, columns = (
            (side + 2 * self.padding - taps) // self.stride + 1
            for side, taps in zip(self.image, self.kernel, strict=True)
        )
        return rows, columns

    def places(self) -> Iterator[tuple[int, int]]:
        """Those of the kernel, in reading order."""
        return ((i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1]))

    def padded(self, images: Array) -> Array:
        """Images with zeros around."""
        return jnp.pad(images, ((0, 0), (self.padding,) * 2, (self.padding,) * 2, (0, 0)))

    def seen(self, padded: Array, place: tuple[int, int]) -> Array:
        """What one place of the kernel sees of images: an entry for each answer."""
        rows, columns = (
            slice(first, first + self.stride * (count - 1) + 1, self.stride)
            for first, count in zip(place, self.answers, strict=True)
        )
        return padded[..., rows, columns, :]

    def put_back(self, part: Array, place: tuple[int, int]) -> Array:
        """The transpose of `seen`: entries of answers, at the pixels that one place of the kernel sees of them."""
        ends = [
            (first, side + 2 * self.padding - first - self.stride * (count - 1) - 1, self.stride - 1)
            for first, side, count in zip(place, self.image, self.answers, strict=True)
        ]
        return lax.pad(part, jnp.zeros((), part.dtype), [(0, 0, 0), *ends, (0, 0, 0)])

    def inner(self, padded: Array) -> Array:
        """Images without what `padded` puts around them."""
        rows, columns = (slice(self.padding, self.padding + side) for side in self.image)
        return padded[:, rows, columns]

    def stock(self, images: Array, kernel: Array, groups: int = 1) -> Array:
        """The plain operation."""
        return lax.conv_general_dilated(
            images,
            kernel,
            (self.stride,) * 2,
            [(self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )


def evened(images: Array, kernel: Array) -> tuple[Array, Array]:
    """Images (batch, height, width, inputs) and kernel (rows, columns, inputs, outputs), each with one input channel of
    zeros more if there are 3, 5 or 7 inputs, such as the colours of an image, and 17 to 32 outputs. The convolution
    stays the same, and XLA's on CPUs takes half to a ninth of the time."""
    inputs, outputs = kernel.shape[2:]
    if inputs not in (3, 5, 7) or not 16 < outputs <= 32:
        return images, kernel
    return jnp.pad(images, [(0, 0)] * 3 + [(0, 1)]), jnp.pad(kernel, [(0, 0), (0, 0), (0, 1), (0, 0)])


@lru_cache
def strided(window: Window) -> Binary:
    """The convolution of images with a kernel (rows, columns, inputs, outputs). Its gradients are matrix products."""

    def input_gradient(gradient: Array, kernel: Array) -> Array:
        outputs = gradient.shape[3]
        parts = (gradient.reshape(-1, outputs) @ kernel.reshape(-1, outputs).T).reshape(
            *gradient.shape[:3], *kernel.shape[:3]
        )
        back = [window.put_back(parts[:, :, :, i, j], (i, j)) for i, j in window.places()]
        return window.inner(reduce(jnp.add, back))

    def kernel_gradient(images: Array, gradient: Array) -> Array:
        padded, (inputs, outputs) = window.padded(images), (images.shape[3], gradient.shape[3])
        answers = gradient.reshape(-1, outputs)
        parts = [window.seen(padded, place).reshape(-1, inputs).T @ answers for place in window.places()]
        return jnp.stack(parts).reshape(*window.kernel, inputs, outputs)

    def output(images: Array, kernel: Array) -> Array:
        return window.stock(*evened(images, kernel))

    cpu = Forms(output, input_gradient, kernel_gradient)
    return differentiable(cpu=cpu, default=stock_forms(window, depthwise=False))


@lru_cache
def depthwise(window: Window) -> Binary:
    """The convolution of every channel with its own kernel, of kernels (rows, columns, 1, channels).

    The stock operation takes 20 to 100 times as long as these sums on a CPU.
    """

    def factors(kernel: Array) -> list[Array]:
        return list(kernel.reshape(-1, 1, 1, 1, kernel.shape[3]))

    def output(images: Array, kernel: Array) -> Array:
        # Keep the images apart: fused into the sum, what makes them would be computed anew for each place.
        padded = lax.optimization_barrier(window.padded(images))
        seen = [window.seen(padded, place) for place in window.places()]
        return reduce(jnp.add, map(jnp.multiply, seen, factors(kernel)))

    def input_gradient(gradient: Array, kernel: Array) -> Array:
        parts = [gradient * factor for factor in factors(kernel)]
        return window.inner(reduce(jnp.add, map(window.put_back, parts, window.places())))

    def kernel_gradient(images: Array, gradient: Array) -> Array:
        # Image after image: all in one reduction take three times as long. A sum of many bfloat16 would stand still.
        wide = jnp.promote_types(images.dtype, jnp.float32)

        def add(total: Array, one: tuple[Array, Array]) -> tuple[Array, None]:
            padded, answers = one
            sums = [jnp.sum(window.seen(padded, place) * answers, (0, 1), wide) for place in window.places()]
            return total + jnp.stack(sums), None

        rows, columns = window.kernel
        none = jnp.zeros((rows * columns, images.shape[3]), wide)
        total, _ = lax.scan(add, none, (window.padded(images), gradient))
        return total.astype(images.dtype).reshape(rows, columns, 1, -1)

    cpu = Forms(output, input_gradient, kernel_gradient)
    return differentiable(cpu=cpu, default=stock_forms(window, depthwise=True))


def stock_forms(window: Window, *, depthwise: bool) -> Forms:
    """The plain operation and its transposes."""

    def output(images: Array, kernel: Array) -> Array:
        return window.stock(images, kernel, images.shape[3] if depthwise else 1)

    def input_gradient(gradient: Array, kernel: Array) -> Array:
        inputs = kernel.shape[3] if depthwise else kernel.shape[2]
        images = jax.ShapeDtypeStruct((gradient.shape[0], *window.image, inputs), gradient.dtype)
        return jax.linear_transpose(lambda x: output(x, kernel), images)(gradient)[0]

    def kernel_gradient(images: Array, gradient: Array) -> Array:
        inputs = 1 if depthwise else images.shape[3]
        kernel = jax.ShapeDtypeStruct((*window.kernel, inputs, gradient.shape[3]), gradient.dtype)
        return jax.linear_transpose(lambda k: output(images, k), kernel)(gradient)[0]

    return Forms(output, input_gradient, kernel_gradient)
