"""The exchange: a sparse mixing matrix times the stacked messages."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree, UInt8

from dslth_jax.algorithm import Heard
from dslth_jax.masks import unpack
from dslth_jax.topology import Graph

AT_ONCE = 8  # neighbours that are counted together: at most 15, which is what half a byte holds


def hear(sent: PyTree[UInt8[Array, "agents _"]], graph: Graph, receiver: Int[Array, ""], like: PyTree[Array]) -> Heard:
    """One row of the product: what `receiver` has of its neighbours' masks.

    One agent's world on the receiving side; map it over receivers. `sent` stacks everybody's packed masks along a
    leading agents axis, `like` gives the layers' shapes. The cost grows with the edges, and masks stay bits until the
    moment they are counted. Edges of weight 0 and 1 in uint8 are counted in the smallest type that holds the count,
    others are summed as floats in the order of the edges.

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
    # Edges lie sorted by receiver, so its own are one stretch of them.
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    end = jnp.searchsorted(graph.receivers, receiver, side="right")
    form = weighted_sum if jnp.issubdtype(graph.weights.dtype, jnp.floating) else count
    counts = jax.tree.map(lambda zeros, bits: form(zeros, bits, graph, first, end), nothing.counts, sent)
    return Heard(counts, degree(nothing.degree, graph, first, end))


def count(
    zeros: Integer[Array, "*shape"],
    bits: UInt8[Array, "agents bytes"],
    graph: Graph,
    first: Int[Array, ""],
    end: Int[Array, ""],
) -> Integer[Array, "*shape"]:
    """How many senders of the edges from `first` to `end` keep each entry of one layer, added to `zeros`.

    Several neighbours at a time, and two entries a byte: of a byte of bits four entries apart, 00010001, the sums over
    up to 15 neighbours fit in its two halves. So a neighbour costs four passes over its packed mask, instead of one
    over a whole layer of counts.
    """

    def add_neighbours(step: Array, counts: Array) -> Array:
        edges, present = several_edges(graph, first, end, step)
        rows = [jnp.where(present[i], bits[graph.senders[edges[i]]], 0) for i in range(AT_ONCE)]

        def in_halves(shift: Array) -> Array:
            return reduce(jnp.add, [(row >> shift) & jnp.uint8(0b00010001) for row in rows])

        # Loop over the shifts, for the compiler makes vector code of shifting all bytes alike.
        halves = lax.map(in_halves, lax.iota(jnp.uint8, 4))
        return counts + jnp.concatenate([halves & 15, halves >> 4]).astype(counts.dtype)

    planes = jnp.zeros((8, bits.shape[1]), zeros.dtype)
    counted = lax.fori_loop(0, steps_of(first, end), add_neighbours, planes).reshape(-1)
    return zeros + counted[: zeros.size].reshape(zeros.shape)


def degree(zero: Array, graph: Graph, first: Int[Array, ""], end: Int[Array, ""]) -> Array:
    """The weights of the edges from `first` to `end`, added to `zero`."""

    def add_weights(step: Array, total: Array) -> Array:
        edges, present = several_edges(graph, first, end, step)
        return total + jnp.sum(jnp.where(present, graph.weights[edges], 0), dtype=zero.dtype)

    return lax.fori_loop(0, steps_of(first, end), add_weights, zero)


def steps_of(first: Int[Array, ""], end: Int[Array, ""]) -> Int[Array, ""]:
    """How many steps take all edges from `first` to `end`, `AT_ONCE` at a time."""
    return (end - first + AT_ONCE - 1) // AT_ONCE


def several_edges(
    graph: Graph, first: Int[Array, ""], end: Int[Array, ""], step: Int[Array, ""]
) -> tuple[Int[Array, "at_once"], Bool[Array, "at_once"]]:
    """The edges of one step, and which of them are there: some are absent in this round, some beyond the end."""
    edges = first + step * AT_ONCE + lax.iota(jnp.int32, AT_ONCE)
    inside = jnp.minimum(edges, end - 1)
    return inside, (edges < end) & (graph.weights[inside] != 0)


def weighted_sum(
    zeros: Float[Array, "*shape"],
    bits: UInt8[Array, "agents bytes"],
    graph: Graph,
    first: Int[Array, ""],
    end: Int[Array, ""],
) -> Float[Array, "*shape"]:
    """The weight of the senders that keep each entry of one layer, edge after edge."""

    def add(edge: Array, total: Array) -> Array:
        mask = unpack(bits[graph.senders[edge]], zeros.shape)
        return total + graph.weights[edge] * mask.astype(zeros.dtype)

    return lax.fori_loop(first, end, add, zeros)


def present_first(graph: Graph, agents: int) -> Graph:
    """The same graph with its absent edges behind all others, under a receiver that nobody is: they cost nothing."""
    graph = jax.tree.map(jnp.asarray, graph)
    receivers = jnp.where(graph.weights != 0, graph.receivers, agents)
    order = jnp.argsort(receivers, stable=True)
    return Graph(graph.senders[order], receivers[order], graph.weights[order])


def silence(like: PyTree[Array], agents: int, graph: Graph) -> Heard:
    """What an agent of a population of `agents` has heard over edges like those of `graph` when nobody spoke."""
    weight = jnp.result_type(graph.weights)
    dtype, degree = (weight, weight) if jnp.issubdtype(weight, jnp.floating) else (counting_dtype(agents), jnp.int32)
    return Heard(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), like), jnp.zeros((), degree))


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
