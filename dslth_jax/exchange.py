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
    leading agents axis, `like` gives the layers' shapes. The cost grows with the edges, and masks stay bits until the
    moment they are counted.
    """
    agents = jax.tree.leaves(sent)[0].shape[0]
    if graph.receivers.shape[0] == 0:
        return silence(like, agents)
    graph = jax.tree.map(jnp.asarray, graph)
    # Edges lie sorted by receiver, so its own are one stretch of them.
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    end = jnp.searchsorted(graph.receivers, receiver, side="right")

    def count(edge: Array, heard: Heard) -> Heard:
        present = graph.weights[edge] != 0
        sender = graph.senders[edge]

        def add(counts: Array, bits: Array) -> Array:
            mask = unpack(jnp.where(present, bits[sender], 0), counts.shape)
            return counts + mask.astype(counts.dtype)

        return Heard(jax.tree.map(add, heard.counts, sent), heard.degree + present)

    return lax.fori_loop(first, end, count, silence(like, agents))


def silence(like: PyTree[Array], agents: int) -> Heard:
    """What an agent of a population of `agents` has heard when nobody spoke."""
    dtype = counting_dtype(agents)
    return Heard(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like), jnp.int32(0))


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
