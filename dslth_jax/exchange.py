"""The exchange: a sparse mixing matrix times the stacked messages, which are masks, floats, or both."""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped, UInt8

from dslth_jax.algorithm import LEVELS, Heard, Message, World, by_name, layer_of, least_of_levels
from dslth_jax.mixing import Graph

AT_ONCE = 8  # neighbours that are counted together: at most 15, which is what half a byte holds
SUMMED_AT_ONCE = 8  # neighbours whose weights are summed together, by measurement


def hear(
    messages: Message,
    graph: Graph,
    receiver: Int[Array, ""],
    like: Message,
    weights: Mapping[str, Array] | None = None,
    kept: Mapping[str, Array] | None = None,
) -> Heard:
    """One row of the product: what `receiver` has of its neighbours' masks and values, in a round of exchange.

    One agent's world on the receiving side; map it over receivers. The cost grows with the edges, and masks stay bits
    until the moment they are counted: in the smallest type that holds the count where edges weigh 0 or 1 in uint8 and
    bits have no scale, else as sums of floats in the order of the edges, as values always are.

    Args:
        messages: everybody's, stacked along a leading agents axis.
        graph: its edges lie sorted by receiver.
        receiver: an agent's number.
        like: one message with its masks unpacked, to give the layers' shapes.
        weights: of the edges, layer by layer, from `edge_weights`; None computes them.
        kept: how many entries each agent keeps of every layer, from
            `message_sizes.kept_of_layers`; None says no levels.

    >>> import numpy as np
    >>> graph = Graph(np.array([1, 2]), np.array([0, 0]), np.ones(2, np.uint8), np.ones(3, np.float32))
    >>> sent = jnp.array([[0b000], [0b011], [0b110]], jnp.uint8)  # three agents' masks of three entries
    >>> heard = hear(Message({"w": sent}), graph, jnp.int32(0), Message({"w": jnp.zeros(3)}))
    >>> heard.masks["w"].tolist(), int(heard.weight["w"])
    ([1, 2, 1], 2)
    """
    agents = jax.tree.leaves(messages)[0].shape[0]
    graph = jax.tree.map(jnp.asarray, graph)
    nothing = silence(like, agents, graph, levels=kept is not None)._replace(
        own=graph.own[receiver], spoke=jnp.array(True)
    )
    if graph.receivers.shape[0] == 0:
        return nothing
    weights = edge_weights(messages, graph) if weights is None else weights
    # Edges lie sorted by receiver, so its own are one stretch of them.
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    end = jnp.searchsorted(graph.receivers, receiver, side="right")
    edges = Edges(jnp.asarray(graph.senders), weights, first, end)
    scaled = edges._replace(weights={**weights, **scaled_weights(messages, graph, weights)})
    counted = {name: zeros for name, zeros in nothing.masks.items() if jnp.issubdtype(zeros.dtype, jnp.integer)}
    summed = {name: zeros for name, zeros in nothing.masks.items() if name not in counted}
    return nothing._replace(
        masks=(count(counted, messages.masks, edges) if counted else {}) | weighted_sum(summed, messages.masks, scaled),
        values=sum_of_values(nothing.values, messages.values, edges) if messages.values else nothing.values,
        weight=total_weight(nothing.weight, edges),
        scales=total_weight(nothing.scales, scaled),
        levels=levels_of(
            nothing.levels, kept or {}, edges, {layer_of(name): leaf.size for name, leaf in like.masks.items()}
        ),
    )


def levels_of(
    zeros: Mapping[str, Float[Array, "2 levels"]],
    kept: Mapping[str, Int[Array, "agents"]],
    edges: "Edges",
    sizes: Mapping[str, int],
) -> dict[str, Float[Array, "2 levels"]]:
    """`Heard.levels` of one receiver, in arrays like `zeros`; layers have `sizes` entries."""

    def add_neighbours(step: Array, totals: dict[str, Array]) -> dict[str, Array]:
        senders, weights = edges.several(step)
        of_layer = {layer_of(name): weight for name, weight in weights.items()}

        def add_layer(name: str, total: Array) -> Array:
            weight, count = of_layer[name].astype(total.dtype), kept[name][senders].astype(total.dtype)
            level = jnp.minimum((count * (LEVELS / sizes[name])).astype(jnp.int32), LEVELS - 1)
            # Float32 holds sums of what is beyond the least exactly up to 2**24: all of them where a layer has at most
            # half a billion entries divided by the number of neighbours.
            beyond = (kept[name][senders] - jnp.asarray(least_of_levels(sizes[name]))[level]).astype(total.dtype)
            return total.at[:, level].add(jnp.stack([weight, weight * beyond]))

        return {name: add_layer(name, total) for name, total in totals.items()}

    return lax.fori_loop(0, edges.steps(), add_neighbours, dict(zeros)) if zeros else {}


class Edges(NamedTuple):
    """The edges that lead to one receiver: those from `first` to `end`."""

    senders: Int[Array, "edges"]
    weights: Mapping[str, Shaped[Array, "edges"]]  # 0 where the sender lacks the layer
    first: Int[Array, ""]
    end: Int[Array, ""]

    def several(
        self, step: Int[Array, ""], at_once: int = AT_ONCE
    ) -> tuple[Int[Array, "at_once"], dict[str, Shaped[Array, "at_once"]]]:
        """The senders and weights of the edges of one step, `at_once` of them; beyond the end the weight is 0."""
        edges = self.first + step * at_once + lax.iota(jnp.int32, at_once)
        inside = jnp.minimum(edges, self.end - 1)
        weights = {name: jnp.where(edges < self.end, weight[inside], 0) for name, weight in self.weights.items()}
        return self.senders[inside], weights

    def steps(self, at_once: int = AT_ONCE) -> Int[Array, ""]:
        """How many steps take all edges."""
        return (self.end - self.first + at_once - 1) // at_once


def edge_weights(messages: Message, graph: Graph) -> dict[str, Shaped[Array, "edges"]]:
    """The weight of every edge, layer by layer: that of the graph, or 0 where the sender's message lacks the layer."""
    names = [*messages.masks, *(name for name in messages.values if name not in messages.masks)]
    weights = jnp.asarray(graph.weights)
    if messages.has is None:
        return dict.fromkeys(names, weights)
    return {name: jnp.where(messages.has[name][graph.senders], weights, 0).astype(weights.dtype) for name in names}


def scaled_weights(
    messages: Message, graph: Graph, weights: Mapping[str, Shaped[Array, "edges"]]
) -> dict[str, Float[Array, "edges"]]:
    """The weight of every edge times its sender's scale, of the layers that have scales."""
    return {name: weights[name].astype(own.dtype) * own[graph.senders] for name, own in messages.scales.items()}


def count(
    zeros: Mapping[str, Integer[Array, "..."]], sent: Mapping[str, UInt8[Array, "agents _"]], edges: Edges
) -> dict[str, Integer[Array, "..."]]:
    """How many senders of the edges keep each entry of the layers of `zeros`, in arrays like these.

    Several neighbours at a time. The first several stand outside of the loop, so that the counts of few neighbours are
    written once, to where they belong.
    """
    sent = {name: sent[name] for name in zeros}
    hears_any, hears_more = edges.first < edges.end, edges.end - edges.first > AT_ONCE

    def add_neighbours(step: Array, planes: dict[str, Array]) -> dict[str, Array]:
        senders, weights = edges.several(step)
        halves = {name: in_halves(bits, senders, weights[name], hears_any) for name, bits in sent.items()}
        return {name: plane + in_planes(halves[name]).astype(plane.dtype) for name, plane in planes.items()}

    nothing = {name: jnp.zeros((8, sent[name].shape[1]), leaf.dtype) for name, leaf in zeros.items()}
    more = lax.cond(hears_more, lambda: lax.fori_loop(1, edges.steps(), add_neighbours, nothing), lambda: nothing)
    # Ask once more, so that the compiler reads no zeros where there were no more neighbours.
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

    The pattern 00010001 picks two entries of a byte, four bits apart. The sums of these over up to 15 neighbours fit in
    the two halves of a byte. So a neighbour costs four passes over its packed mask, instead of eight.
    """
    shape = (4, bits.shape[1])

    def counted() -> Array:
        shifts = lax.broadcasted_iota(jnp.uint8, shape, 0)
        apart = weights * jnp.uint8(0b00010001)
        return reduce(jnp.add, [(bits[senders[i]][None] >> shifts) & apart[i] for i in range(AT_ONCE)])

    # Put this behind a branch. Otherwise the compiler makes one loop of this and `in_planes`, and counts twice.
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


def total_weight(zeros: Mapping[str, Array], edges: Edges) -> dict[str, Array]:
    """The weights of the edges, layer by layer, added to `zeros`."""

    def add_weights(step: Array, totals: dict[str, Array]) -> dict[str, Array]:
        _, weights = edges.several(step)
        return {name: total + jnp.sum(weights[name], dtype=total.dtype) for name, total in totals.items()}

    return lax.fori_loop(0, edges.steps(), add_weights, dict(zeros))


def weighted_sum(
    zeros: Mapping[str, Float[Array, "..."]], sent: Mapping[str, UInt8[Array, "agents _"]], edges: Edges
) -> dict[str, Float[Array, "..."]]:
    """The weight of the senders that keep each entry of the layers of `zeros`, in arrays like these.

    Several neighbours at a time. As in `count`, the first several stand outside of the loop and are added last.
    """
    sent = {name: sent[name] for name in zeros}
    hears_more = edges.first + SUMMED_AT_ONCE < edges.end

    def add_several(step: Array, totals: dict[str, Array]) -> dict[str, Array]:
        senders, weights = edges.several(step, SUMMED_AT_ONCE)

        def add_layer(name: str, total: Array) -> Array:
            own = weights[name].astype(total.dtype)
            return reduce(jnp.add, [where_ones(sent[name][senders[i]], own[i]) for i in range(SUMMED_AT_ONCE)], total)

        return {name: add_layer(name, total) for name, total in totals.items()}

    nothing = {name: jnp.zeros((8, sent[name].shape[1]), leaf.dtype) for name, leaf in zeros.items()}
    steps = edges.steps(SUMMED_AT_ONCE)
    more = lax.cond(hears_more, lambda: lax.fori_loop(1, steps, add_several, nothing), lambda: nothing)
    more = jax.tree.map(lambda leaf: jnp.where(hears_more, leaf, 0), more)
    planes = add_several(jnp.int32(0), more)
    return jax.tree.map(lambda leaf, plane: plane.reshape(-1)[: leaf.size].reshape(leaf.shape), zeros, planes)


def where_ones(bits: UInt8[Array, "bytes"], weight: Float[Array, ""]) -> Float[Array, "8 bytes"]:
    """The weight where packed bits are 1, and 0 elsewhere; eight entries a byte, in the order of packed bits.

    A bit is spread over all bits of an integer as wide as the weight, and the two are joined bit by bit: on CPUs faster
    than a choice between floats by bytes.
    """
    width = 8 * weight.dtype.itemsize
    whole = jnp.dtype(f"int{width}")
    places = width - 1 - lax.broadcasted_iota(whole, (8, bits.shape[0]), 0)
    spread = lax.shift_right_arithmetic(bits[None].astype(whole) << places, jnp.full_like(places, width - 1))
    return lax.bitcast_convert_type(spread & lax.bitcast_convert_type(weight, whole), weight.dtype)


def sum_of_values(
    zeros: Mapping[str, Float[Array, "..."]], sent: Mapping[str, Float[Array, "agents ..."]], edges: Edges
) -> dict[str, Float[Array, "..."]]:
    """The weighted sum of the senders' values, edge after edge; several of them at a time, so that sums are written
    once for all of these."""

    def add_several(step: Array, totals: dict[str, Array]) -> dict[str, Array]:
        senders, weights = edges.several(step)

        def add_layer(name: str, total: Array) -> Array:
            for i in range(AT_ONCE):
                total = total + weights[name][i].astype(total.dtype) * sent[name][senders[i]]
            return total

        return {name: add_layer(name, total) for name, total in totals.items()}

    return lax.fori_loop(0, edges.steps(), add_several, dict(zeros))


def present_first(graph: Graph, agents: int) -> Graph:
    """The same graph with its absent edges last, with receiver index `agents`, so that no agent visits them."""
    graph = jax.tree.map(jnp.asarray, graph)
    receivers = jnp.where(graph.weights != 0, graph.receivers, agents)
    order = jnp.argsort(receivers, stable=True)
    return graph._replace(senders=graph.senders[order], receivers=receivers[order], weights=graph.weights[order])


def silence(like: Message, senders: int, graph: Graph, levels: bool = False) -> Heard:
    """What an agent has heard of `senders` agents, over edges like those of `graph`, in a round without exchange.

    `like` is a message with its masks unpacked: only its shapes count, and of values and scales their types. With
    `levels` it says how much neighbours keep, too.
    """
    dtype = jnp.result_type(graph.weights)
    floats = jnp.issubdtype(dtype, jnp.floating)
    counts, weight = (dtype, dtype) if floats else (counting_dtype(senders), jnp.int32)
    return Heard(
        masks={
            name: jnp.zeros(leaf.shape, jnp.result_type(like.scales[name]) if name in like.scales else counts)
            for name, leaf in like.masks.items()
        },
        values={name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in like.values.items()},
        weight={name: jnp.zeros((), weight) for name in {**like.masks, **like.values}},
        own=jnp.ones((), jnp.result_type(graph.own)),
        spoke=jnp.array(False),
        scales=jax.tree.map(jnp.zeros_like, dict(like.scales)),
        levels={
            layer_of(name): jnp.zeros((2, LEVELS), jnp.result_type(graph.own))
            for name in like.masks
            if levels and name not in like.scales
        },
    )


def unpacked(message: Message, world: World) -> Message:
    """Arrays of the shapes of one agent's message: bits are of the entries of the values of the same name, else of the
    shared weights or, where a method trains everything, of the network's variables."""
    variables = {"params": world.weights, "frozen": world.frozen}
    shapes = {**by_name(world.weights), **by_name(variables), **message.values}
    return message._replace(masks={name: shapes[layer_of(name)] for name in message.masks})


def counting_dtype(agents: int) -> Any:
    """The smallest unsigned type that holds the count of all neighbours an agent can have."""
    return jnp.uint8 if agents <= 2**8 else jnp.uint16 if agents <= 2**16 else jnp.uint32
