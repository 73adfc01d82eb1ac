"""The exchange: a sparse mixing matrix times the stacked messages."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, PyTree, UInt8

from dslth_jax.algorithm import Heard
from dslth_jax.masks import unpack
from dslth_jax.topology import Graph


def hear(sent: PyTree[UInt8[Array, "agents _"]], graph: Graph, receiver: Int[Array, ""], like: PyTree[Array]) -> Heard:
    """One row of the product: what `receiver` has of its neighbours' masks.

    One agent's world on the receiving side; map it over receivers. `sent` stacks everybody's packed masks along a
    leading agents axis, `like` gives the layers' shapes. The cost grows with the edges that are present, and masks stay
    bits until the moment they are counted. Edges of weight 0 and 1 in uint8 are counted in the smallest type that holds
    the count, others are summed as floats in the order of the edges.
    """
    agents = jax.tree.leaves(sent)[0].shape[0]
    graph = jax.tree.map(jnp.asarray, graph)
    nothing = silence(like, agents, graph)
    if graph.receivers.shape[0] == 0:
        return nothing
    weighted = jnp.issubdtype(graph.weights.dtype, jnp.floating)
    # Edges lie sorted by receiver, so its own are one stretch of them.
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    end = jnp.searchsorted(graph.receivers, receiver, side="right")

    def count(edge: Array, heard: Heard) -> Heard:
        weight, sender = graph.weights[edge], graph.senders[edge]

        def add(counts: Array, bits: Array) -> Array:
            mask = unpack(bits[sender], counts.shape).astype(counts.dtype)
            return counts + (weight * mask if weighted else mask)

        def listen() -> Heard:
            return Heard(jax.tree.map(add, heard.counts, sent), heard.degree + weight.astype(heard.degree.dtype))

        # Branch, so that an edge that is absent in this round costs nothing.
        return lax.cond(weight != 0, listen, lambda: heard)

    return lax.fori_loop(first, end, count, nothing)


def silence(like: PyTree[Array], agents: int, graph: Graph) -> Heard:
    """What an agent of a population of `agents` has heard over edges like those of `graph` when nobody spoke."""
    weighted = jnp.issubdtype(graph.weights.dtype, jnp.floating)
    dtype, degree = (graph.weights.dtype,) * 2 if weighted else (counting_dtype(agents), jnp.int32)
    return Heard(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like), jnp.zeros((), degree))


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
