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

    >>> import numpy as np
    >>> graph = Graph(np.array([1, 2]), np.array([0, 0]), np.ones(2, np.uint8))
    >>> sent = jnp.array([[0b000], [0b011], [0b110]], jnp.uint8)  # three agents' masks of three entries
    >>> heard = hear(sent, graph, jnp.int32(0), jnp.zeros(3))
    >>> heard.counts.tolist(), int(heard.degree)
    ([1, 2, 1], 2)
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
    weight = jnp.result_type(graph.weights)
    dtype, degree = (weight, weight) if jnp.issubdtype(weight, jnp.floating) else (counting_dtype(agents), jnp.int32)
    return Heard(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like), jnp.zeros((), degree))


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
