"""Operations of two arrays with a form for each platform and a gradient rule of their own. One agent's world.

Vmapping a stock convolution over agents makes a grouped one, and the stock gradients fall to naive code on CPUs. So an
operation has a form for CPUs, whose agents go one after another, and one for elsewhere, where the stock operation is
vmapped. `jax.vmap` over agents is all a user writes, and it nests. Converters that read a traced program know neither
such choices nor rules of batching: for these there is `stock_forms`.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jaxtyping import Array

Binary = Callable[[Array, Array], Array]
_stock_alone: ContextVar[bool] = ContextVar("stock_alone", default=False)


@contextlib.contextmanager
def stock_forms() -> Iterator[None]:
    """Trace operations, within this block, in their form for platforms other than CPUs alone: plain operations of `lax`
    that any converter knows. The numbers are the same but for rounding.

    JAX remembers what it has traced: what is to be traced in this form must be a function that never was before.
    """
    token = _stock_alone.set(True)
    try:
        yield
    finally:
        _stock_alone.reset(token)


class Forms(NamedTuple):
    """The three operations of one that is linear in either argument, such as a convolution."""

    output: Binary  # of (images, kernel)
    input_gradient: Binary  # of (gradient, kernel)
    kernel_gradient: Binary  # of (images, gradient)


def differentiable(*, cpu: Forms, default: Forms) -> Binary:
    """`output` with the two gradients as its derivative: reverse mode only, so `jax.jvp` and `jax.hessian` raise."""
    output, input_gradient, kernel_gradient = (
        per_platform(cpu=own, default=stock) for own, stock in zip(cpu, default, strict=True)
    )
    operation = jax.custom_vjp(output)

    def forward(images: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return operation(images, kernel), (images, kernel)

    def backward(residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        images, kernel = residuals
        return input_gradient(gradient, kernel), kernel_gradient(images, gradient)

    operation.defvjp(forward, backward)
    return operation


def per_platform(*, cpu: Callable[..., Array], default: Callable[..., Array]) -> Binary:
    """One operation of two arrays: `cpu` on CPUs, vmapped as a loop; `default` elsewhere, vmapped as such."""

    @custom_vmap
    def operation(left: Array, right: Array) -> Array:
        return lax.platform_dependent(left, right, cpu=cpu, default=default)

    @operation.def_vmap
    def batching_rule(size: int, batched: list[bool], left: Array, right: Array) -> tuple[Array, bool]:
        axes = [0 if is_batched else None for is_batched in batched]

        def one_after_another(left: Array, right: Array) -> Array:
            def at(index: Array) -> Array:
                picked = (x if axis is None else x[index] for x, axis in zip((left, right), axes, strict=True))
                return operation(*picked)

            return lax.map(at, jnp.arange(size))

        together: Any = jax.vmap(default, in_axes=axes)
        return lax.platform_dependent(left, right, cpu=one_after_another, default=together), True

    def chosen(left: Array, right: Array) -> Array:
        return default(left, right) if _stock_alone.get() else operation(left, right)

    return chosen
