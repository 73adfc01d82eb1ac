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
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import Heard, by_name, least_of_levels, planes_of, weight_of, with_names

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


def force(beside: Scores, heard: Heard, living: PyTree[Bool[Array, "..."]] | None = None) -> Scores:
    """f = (m̄ - mean m̄) - (m̂ - mean m̂) of each layer; 0 in layers that the agent heard nobody of.

    `beside` is m̂, the mask of its own that an agent compares its neighbours' mean mask m̄ with, times the weight of all
    whom it heard: `own_beside`, or for ternary masks and behind the filter rule `weighted`. Means are over the layer's
    entries; where some are dead, over those that `living` says are not. They take out that neighbours keep more, or
    less, of a layer than the agent does: only which entries they prefer counts. Ternary masks have both signs and need
    no centring: f = m̄ - m̂.

    >>> heard = Heard({"w": jnp.array([2, 2, 0, 0], jnp.uint8)}, {}, {"w": jnp.int32(2)}, jnp.ones(()), jnp.array(True))
    >>> force({"w": jnp.array([2.0, 0.0, 0.0, 0.0])}, heard)["w"].tolist()
    [-0.25, 0.75, -0.25, -0.25]
    """

    alive = by_name(living)

    def one(name: str, m: Array) -> Array:
        weight = weight_of(heard, name)
        if weight is None:
            return jnp.zeros_like(m)
        counts = [heard.masks[plane] for plane in planes_of(heard.masks, name)]
        # Whole numbers sum exactly: where all agree, nothing is left that would move a score.
        whole = jnp.int32 if jnp.issubdtype(counts[0].dtype, jnp.integer) else counts[0].dtype
        more = reduce(jnp.subtract, [plane.astype(whole) for plane in counts]) - m.astype(whole)
        apart: Array = more.astype(m.dtype)
        entries: int | Array = m.size
        if name in alive:
            more = jnp.where(alive[name], more, 0)
            entries = jnp.maximum(jnp.sum(alive[name]), 1).astype(m.dtype)
        if len(counts) == 1:
            apart = apart - whole_sum(more).astype(m.dtype) / entries
        return jnp.where(weight > 0, apart / jnp.where(weight > 0, weight, 1).astype(m.dtype), 0)

    return with_names(one, beside)


def whole_sum(numbers: Array) -> Array:
    """Σ of a layer's numbers, of whole ones a float of two exact parts: it then depends on no order, and may be beyond
    int32, but not what a single output comes to."""
    outputs = jnp.sum(numbers, axis=tuple(range(max(numbers.ndim - 1, 1))), dtype=numbers.dtype)
    if not jnp.issubdtype(numbers.dtype, jnp.integer):
        return jnp.sum(outputs)
    high, low = (jnp.sum(part, dtype=numbers.dtype).astype(float) for part in (outputs >> 16, outputs & 0xFFFF))
    return high * 65536 + low


def own_beside(scores: Scores, heard: Heard) -> Scores:
    """What neighbours' masks are compared with, layer by layer: Σ_j a_j Thres(|z|; k_j), where neighbour j keeps k_j
    entries, and a_j is the weight of its link. Ours.

    So an agent of a small retention does not learn from one of a large retention that it should keep more, but which
    entries this one ranks otherwise than itself: with equal scores nothing moves, whatever the retentions are. Where
    all keep as many, this is their weight times the agent's own mask. Neighbours of nearly the same retention, in one
    interval of `Heard.levels`, are taken for one with the mean of their counts, halves rounded up.

    >>> levels = jnp.zeros((2, 4)).at[0, 1].set(1.0).at[0, 3].set(2.0)  # 1 of 4 entries, and twice 3 of 4
    >>> heard = Heard({}, {}, {}, jnp.ones(()), jnp.array(True), levels={"w": levels})
    >>> own_beside({"w": jnp.array([-5.0, 1.0, 3.0, 4.0])}, heard)["w"].tolist()
    [3.0, 0.0, 2.0, 2.0]
    """
    layers = {name: z for name, z in by_name(scores).items() if name in heard.levels}
    weights, counts, slots = {}, {}, jnp.int32(0)
    for name in layers:
        weight, times = heard.levels[name]
        taken = jnp.argsort(weight <= 0, stable=True)  # levels of somebody come first
        mean = jnp.floor(times / jnp.where(weight > 0, weight, 1) + 0.5).astype(jnp.int32)  # halves up
        mean = mean + jnp.asarray(least_of_levels(layers[name].size, len(weight)))
        weights[name], counts[name] = weight[taken], mean[taken]
        slots = jnp.maximum(slots, jnp.sum(weight > 0))

    def add(slot: Array, totals: dict[str, Array]) -> dict[str, Array]:
        kept = masks.threshold(layers, {name: counts[name][slot] for name in layers})
        return {name: total + weights[name][slot].astype(total.dtype) * kept[name] for name, total in totals.items()}

    nothing = jax.tree.map(jnp.zeros_like, layers)
    beside = lax.fori_loop(0, slots, add, nothing) if layers else nothing
    return with_names(lambda name, z: beside.get(name, jnp.zeros_like(z)), scores)


def weighted(own: Scores, heard: Heard) -> Scores:
    """An agent's own masks times the weight of all neighbours that were heard of each layer."""

    def one(name: str, m: Array) -> Array:
        weight = weight_of(heard, name)
        return m if weight is None else m * weight.astype(m.dtype)

    return with_names(one, own)


def where_heard(heard: Heard, layers: Scores, otherwise: Scores) -> Scores:
    """The layers of which somebody was heard in this round, and the others of `otherwise`."""

    def one(name: str, own: Array, other: Array) -> Array:
        weight = weight_of(heard, name)
        return other if weight is None else jnp.where(heard.spoke & (weight > 0), own, other)

    return with_names(one, layers, otherwise)
