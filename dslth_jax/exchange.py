"""The exchange: a sparse mixing matrix times the stacked messages, which are masks, floats, or both."""

import math
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, PyTree, Shaped, UInt8

from dslth_jax.algorithm import Heard, Message, parts_of
from dslth_jax.graphs import Graph
from dslth_jax.masks import unpack

AT_ONCE = 8  # neighbours that are counted together: at most 15, which is what half a byte holds


def hear(sent: Any, graph: Graph, receiver: Int[Array, ""], like: Any) -> Heard:
    """One row of the product: what `receiver` has of its neighbours' masks and values.

    One agent's world on the receiving side; map it over receivers. `sent` stacks everybody's messages along a leading
    agents axis, `like` is one of them with masks unpacked, to give the layers' shapes. The cost grows with the edges,
    and masks stay bits until the moment they are counted. Over edges of weight 0 and 1 in uint8 masks are counted, in
    the smallest type that holds the count; over others, as values always, they are summed as floats in the order of the
    edges.

    >>> import numpy as np
    >>> graph = Graph(np.array([1, 2]), np.array([0, 0]), np.ones(2, np.uint8), np.ones(3, np.float32))
    >>> sent = jnp.array([[0b000], [0b011], [0b110]], jnp.uint8)  # three agents' masks of three entries
    >>> heard = hear(sent, graph, jnp.int32(0), jnp.zeros(3))
    >>> heard.counts.tolist(), int(heard.degree)
    ([1, 2, 1], 2)
    """
    agents = jax.tree.leaves(sent)[0].shape[0]
    bits, values = parts_of(sent)
    graph = jax.tree.map(jnp.asarray, graph)
    nothing = silence(like, agents, graph)
    if graph.receivers.shape[0] == 0:
        return nothing
    # Edges lie sorted by receiver, so its own are one stretch of them.
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    end = jnp.searchsorted(graph.receivers, receiver, side="right")
    form = weighted_sum if jnp.issubdtype(graph.weights.dtype, jnp.floating) else count
    return Heard(
        None if bits is None else form(nothing.counts, bits, graph, first, end),
        degree(nothing.degree, graph, first, end),
        None if values is None else sum_of_values(nothing.sums, values, graph, first, end),
    )


def count(
    zeros: PyTree[Integer[Array, "..."]],
    sent: PyTree[UInt8[Array, "agents _"]],
    graph: Graph,
    first: Int[Array, ""],
    end: Int[Array, ""],
) -> PyTree[Integer[Array, "..."]]:
    """How many senders of the edges from `first` to `end` keep each entry, in arrays like `zeros`.

    Several neighbours at a time, all but the first of them in a loop: so what few neighbours keep is written once, to
    where it belongs.
    """
    hears_any, hears_more = first < end, end - first > AT_ONCE

    def add_neighbours(step: Array, planes: PyTree) -> PyTree:
        senders, weights = several_edges(graph, first, end, step)
        halves = jax.tree.map(lambda bits: in_halves(bits, senders, weights, hears_any), sent)
        return jax.tree.map(lambda plane, half: plane + in_planes(half).astype(plane.dtype), planes, halves)

    nothing = jax.tree.map(lambda leaf, bits: jnp.zeros((8, bits.shape[1]), leaf.dtype), zeros, sent)
    steps = steps_of(first, end)
    more = lax.cond(hears_more, lambda: lax.fori_loop(1, steps, add_neighbours, nothing), lambda: nothing)
    # Asked once more, so that what is nothing is not even read.
    more = jax.tree.map(lambda leaf: jnp.where(hears_more, leaf, 0), more)
    planes = add_neighbours(jnp.int32(0), more)
    return jax.tree.map(lambda leaf, plane: plane.reshape(-1)[: leaf.size].reshape(leaf.shape), zeros, planes)


def in_halves(
    bits: UInt8[Array, "agents bytes"],
    senders: Int[Array, "at_once"],
    weights: UInt8[Array, "at_once"],
    hears_any: Bool[Array, ""],
) -> UInt8[Array, "4 bytes"]:
    """How many of `senders` whose weight is 1, not 0, keep each entry, two entries a byte.

    Of a byte of bits four entries apart, 00010001, the sums over up to 15 neighbours fit in its two halves. So a
    neighbour costs four passes over its packed mask, instead of eight.
    """
    shape = (4, bits.shape[1])

    def counted() -> Array:
        shifts = lax.broadcasted_iota(jnp.uint8, shape, 0)
        apart = weights * jnp.uint8(0b00010001)
        return reduce(jnp.add, [(bits[senders[i]][None] >> shifts) & apart[i] for i in range(AT_ONCE)])

    # Behind a branch, for the compiler would make one loop of this and `in_planes`, which counts everything twice.
    return lax.cond(hears_any, counted, lambda: jnp.zeros(shape, jnp.uint8))


def in_planes(halves: UInt8[Array, "4 bytes"]) -> UInt8[Array, "8 bytes"]:
    """One entry a byte, in the order of packed bits, of `halves`."""
    shifts = lax.broadcasted_iota(jnp.uint8, (2, *halves.shape), 0) * 4
    return ((halves[None] >> shifts) & 15).reshape(8, -1)


def as_planes(counts: Shaped[Array, "agents *shape"]) -> Shaped[Array, "agents *planes"]:
    """Everybody's counts of one layer as (agents, 8, bytes), in the order of packed bits, if they fill whole bytes."""
    agents, *shape = counts.shape
    size = math.prod(shape)
    return counts if size % 8 else counts.reshape(agents, 8, size // 8)


def degree(zero: Array, graph: Graph, first: Int[Array, ""], end: Int[Array, ""]) -> Array:
    """The weights of the edges from `first` to `end`, added to `zero`."""

    def add_weights(step: Array, total: Array) -> Array:
        return total + jnp.sum(several_edges(graph, first, end, step)[1], dtype=zero.dtype)

    return lax.fori_loop(0, steps_of(first, end), add_weights, zero)


def steps_of(first: Int[Array, ""], end: Int[Array, ""]) -> Int[Array, ""]:
    """How many steps take all edges from `first` to `end`, `AT_ONCE` at a time."""
    return (end - first + AT_ONCE - 1) // AT_ONCE


def several_edges(
    graph: Graph, first: Int[Array, ""], end: Int[Array, ""], step: Int[Array, ""]
) -> tuple[Int[Array, "at_once"], Shaped[Array, "at_once"]]:
    """The senders and weights of the edges of one step; beyond the end the weight is 0."""
    edges = first + step * AT_ONCE + lax.iota(jnp.int32, AT_ONCE)
    inside = jnp.minimum(edges, end - 1)
    return graph.senders[inside], jnp.where(edges < end, graph.weights[inside], 0)


def weighted_sum(
    zeros: PyTree[Float[Array, "..."]],
    sent: PyTree[UInt8[Array, "agents _"]],
    graph: Graph,
    first: Int[Array, ""],
    end: Int[Array, ""],
) -> PyTree[Float[Array, "..."]]:
    """The weight of the senders that keep each entry, edge after edge."""

    def add(edge: Array, totals: PyTree) -> PyTree:
        sender, weight = graph.senders[edge], graph.weights[edge]

        def add_layer(total: Array, bits: Array) -> Array:
            return total + weight * unpack(bits[sender], total.shape).astype(total.dtype)

        return jax.tree.map(add_layer, totals, sent)

    return lax.fori_loop(first, end, add, zeros)


def sum_of_values(
    zeros: PyTree[Float[Array, "..."]],
    sent: PyTree[Float[Array, "agents ..."]],
    graph: Graph,
    first: Int[Array, ""],
    end: Int[Array, ""],
) -> PyTree[Float[Array, "..."]]:
    """The weighted sum of the senders' values, edge after edge; several of them at a time, so that sums are written
    once for all of these."""

    def add_several(step: Array, totals: PyTree) -> PyTree:
        senders, weights = several_edges(graph, first, end, step)

        def add_layer(total: Array, values: Array) -> Array:
            for i in range(AT_ONCE):
                total = total + weights[i].astype(total.dtype) * values[senders[i]]
            return total

        return jax.tree.map(add_layer, totals, sent)

    return lax.fori_loop(0, steps_of(first, end), add_several, zeros)


def present_first(graph: Graph, agents: int) -> Graph:
    """The same graph with its absent edges behind all others, under a receiver that nobody is: they cost nothing."""
    graph = jax.tree.map(jnp.asarray, graph)
    receivers = jnp.where(graph.weights != 0, graph.receivers, agents)
    order = jnp.argsort(receivers, stable=True)
    return graph._replace(senders=graph.senders[order], receivers=receivers[order], weights=graph.weights[order])


def silence(like: Any, agents: int, graph: Graph) -> Heard:
    """What an agent of a population of `agents` has heard over edges like those of `graph` when nobody spoke.

    `like` is a message with masks unpacked: only its shapes count, and of values their types.
    """
    masks, values = parts_of(like)
    weight = jnp.result_type(graph.weights)
    dtype, degree = (weight, weight) if jnp.issubdtype(weight, jnp.floating) else (counting_dtype(agents), jnp.int32)
    return Heard(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, dtype), masks),
        jnp.zeros((), degree),
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), values),
    )


def unpacked_like(message: Any, weights: PyTree[Array]) -> Message:
    """What gives the shapes of one agent's message: bits are masks of the values beside them, else of the weights."""
    bits, values = parts_of(message)
    return Message(None if bits is None else weights if values is None else values, values)


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
