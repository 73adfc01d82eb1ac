"""Consensus: what neighbours keep moves an agent's own scores, for good. One agent's world. Ours.

Only magnitudes decide what a mask keeps, so only they are pulled: of an entry with score z, z keeps its sign and |z|
grows where neighbours keep what the agent drops, and shrinks where they drop what it keeps. A pull that is measured in
the steps with which the agent learns fades as they do; a constant one would not let masks settle.

Of ternary masks signs are learned, too: then scores themselves are pulled, whose signs may change.
"""

from functools import reduce
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dslth_jax.algorithm import Heard, planes_of, weight_of, with_names

Scores: TypeAlias = PyTree[Float[Array, "..."]]
SMALLEST = 1e-9  # a pull leaves no score below it, so that the next one can raise it again


def told(scores: Scores, ternary: bool) -> Scores:
    """What neighbours learn of scores, and pull at: |z|, or z where masks are ternary."""
    return scores if ternary else jax.tree.map(jnp.abs, scores)


def pull(scores: Scores, by: Scores, ternary: bool = False) -> Scores:
    """z ← s · max(|z| + p, 1e-9), where s is -1 for z < 0 and else 1; entries whose pull p is 0 stay as they are.

    Where masks are ternary z ← z + p.

    >>> pull(jnp.array([1.0, -1.0, 0.0, 0.0]), jnp.array([0.5, -3.0, 0.25, 0.0])).tolist()
    [1.5, -9.999999717180685e-10, 0.25, 0.0]
    """

    def one(z: Array, p: Array) -> Array:
        pulled = z + p if ternary else jnp.where(z < 0, -1, 1) * jnp.maximum(jnp.abs(z) + p, SMALLEST)
        return jnp.where(p != 0, pulled, z).astype(z.dtype)

    return jax.tree.map(one, scores, by)


def force(own: Scores, heard: Heard) -> Scores:
    """f = (m̄ - mean m̄) - (m - mean m) of each layer, for an agent's own masks m; 0 in layers that it heard nobody of.

    Means are over the layer's entries. They take out that neighbours keep more, or less, of a layer than the agent
    does: only which entries they prefer counts, so that agents of unlike retentions do not push each other's scores
    off the scale. Ternary masks have both signs and need no centring: f = m̄ - m.

    >>> heard = Heard({"w": jnp.array([2, 2, 0, 0], jnp.uint8)}, {}, {"w": jnp.int32(2)}, jnp.ones(()), jnp.array(True))
    >>> force({"w": jnp.array([1.0, 0.0, 0.0, 0.0])}, heard)["w"].tolist()
    [-0.25, 0.75, -0.25, -0.25]
    """

    def one(name: str, m: Array) -> Array:
        weight = weight_of(heard, name)
        if weight is None:
            return jnp.zeros_like(m)
        counts = [heard.masks[plane] for plane in planes_of(heard.masks, name)]
        # Whole numbers sum exactly: where all agree, nothing is left that would move a score.
        whole = jnp.int32 if jnp.issubdtype(counts[0].dtype, jnp.integer) else counts[0].dtype
        more = reduce(jnp.subtract, [plane.astype(whole) for plane in counts]) - weight.astype(whole) * m.astype(whole)
        apart = more.astype(m.dtype)
        if len(counts) == 1:
            apart = apart - jnp.sum(more, dtype=whole).astype(m.dtype) / m.size
        return jnp.where(weight > 0, apart / jnp.where(weight > 0, weight, 1).astype(m.dtype), 0)

    return with_names(one, own)


def where_heard(heard: Heard, layers: Scores, otherwise: Scores) -> Scores:
    """The layers of which somebody was heard in this round, and the others of `otherwise`."""

    def one(name: str, own: Array, other: Array) -> Array:
        weight = weight_of(heard, name)
        return other if weight is None else jnp.where(heard.spoke & (weight > 0), own, other)

    return with_names(one, layers, otherwise)
