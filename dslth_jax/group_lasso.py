"""Group lasso over output filters (convolutions) and output rows (linear layers). One agent's world.

A group is everything that feeds one output: all entries of a kernel that share an index of its last axis.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree


def group_norms(*kernels: Float[Array, "..."]) -> Float[Array, "outputs"]:
    """The 2-norm of each group, over all kernels that feed its output: those with fewer outputs feed the first ones.

    Its gradient at a group of zeros is 0, not nan.

    >>> group_norms(jnp.array([[3.0, 0.0], [4.0, 0.0]]), jnp.array([[12.0]])).tolist()
    [13.0, 0.0]
    """
    each = [jnp.sum(kernel**2, axis=tuple(range(kernel.ndim - 1))) for kernel in kernels]
    outputs = max(own.size for own in each)
    squares = reduce(jnp.add, [jnp.pad(own, (0, outputs - own.size)) for own in each])
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def penalty(kernels: PyTree[Float[Array, "..."]]) -> Float[Array, ""]:
    """R, the sum of all group norms of all layers (paper, the loss's λR term, without λ)."""
    return sum((jnp.sum(group_norms(kernel)) for kernel in jax.tree.leaves(kernels)), start=jnp.zeros(()))


def proximal_step(
    kernel: Float[Array, "*inputs outputs"], strength: float | Float[Array, ""]
) -> Float[Array, "*inputs outputs"]:
    """The proximal map of `strength` · R: every group's norm shrinks by `strength`, and a smaller group becomes zeros.

    Source: the closed form of the group lasso's proximal operator (Yuan and Lin 2006). To take the paper's
    λR in this way is one of the variants here.

    >>> proximal_step(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0).tolist()
    [[2.4000000953674316, 0.0], [3.200000047683716, 0.0]]
    """
    norms = group_norms(kernel)
    shrunk = jnp.where(norms > strength, 1 - strength / jnp.where(norms > 0, norms, 1), 0)
    # A strength of zero must change nothing, not even where a group is all zeros.
    factors = jnp.where(strength > 0, shrunk, 1).astype(kernel.dtype)
    return kernel * jnp.expand_dims(factors, range(kernel.ndim - 1))


def proximal_group_lasso(strength: float | Float[Array, ""]) -> optax.GradientTransformation:
    """The last element of an `optax.chain`: it takes the parameters after a step through `proximal_step`.

    `strength` is the step size times λ. `update` needs `params`. Ours, for users who train kernels with optax.
    """

    def init(params: Any) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("proximal_group_lasso needs the parameters: call update(updates, state, params)")
        landed = jax.tree.map(lambda p, u: proximal_step(p + u, strength) - p, params, updates)
        return landed, state

    return optax.GradientTransformation(init, update)
