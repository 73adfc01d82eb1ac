"""What happens to messages on their way. The population's world, inside the compiled round.

A `Link` sees everybody's messages after they have crossed devices, alike on all of them. It draws by the round's key
and by who sends to whom, never by an edge's place in the array. Links compose by `chain`. To add one, write its
factory here. Start messages are known from the seed and pass through no link.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from dslth_jax.algorithm import Message, own_signs
from dslth_jax.keys import reproducible
from dslth_jax.mixing import Graph, listeners
from dslth_jax.over_agents import default_chunk, over_agents


class Remember(Protocol):
    """What a link begins with."""

    def __call__(self, messages: Message) -> Any:
        """Its memory, from everybody's start messages. Each device holds all of it."""
        ...


class Transmit(Protocol):
    """What a link does in a round of exchange."""

    def __call__(
        self, key: Key[Array, ""], memory: Any, graph: Graph, messages: Message
    ) -> tuple[Any, Graph, Message, Int[Array, "agents"]]:
        """Its memory anew, the graph and the messages as they arrive, and over how many links each sender sent.

        Args:
            key: of this round, the same on all devices.
            memory: from the exchange before.
            graph: who sends to whom.
            messages: everybody's, leaves with a leading agents axis.
        """
        ...


class Link(NamedTuple):
    """Two functions of the population's world. What arrives may differ in form, shape and dtype from what was sent;
    `Heard` is then of what arrives, and where other layers have bits or values, agents start without any."""

    init: Remember
    transmit: Transmit


def perfect() -> Link:
    """Everything arrives as it was sent."""

    def transmit(
        key: Key[Array, ""], memory: None, graph: Graph, messages: Message
    ) -> tuple[None, Graph, Message, Int[Array, "agents"]]:
        del key
        return memory, graph, messages, listeners(graph)

    return Link(lambda messages: None, transmit)


def dropped(rate: float | Float[Array, ""]) -> Link:
    """Each directed link fails with probability `rate`, on its own in each round, and the receiver knows it.

    A lost message counts as sent. An agent averages over the neighbours that it heard. `rate` may be traced.
    """

    @reproducible
    def transmit(
        key: Key[Array, ""], memory: None, graph: Graph, messages: Message
    ) -> tuple[None, Graph, Message, Int[Array, "agents"]]:
        kept = jnp.where(arrivals(key, graph, rate), graph.weights, jnp.zeros_like(graph.weights))
        return memory, graph._replace(weights=kept), messages, listeners(graph)

    return Link(lambda messages: None, transmit)


class Backlog(NamedTuple):
    """What senders keep, and what receivers lack of it."""

    messages: Message  # the last ones of everybody, the newest first: leaves (keep · agents, ...)
    owed: Bool[Array, "agents agents keep"]  # whether the first agent has yet to hear this message of the second


def resent(rate: float | Float[Array, ""], *, keep: int = 16) -> Link:
    """Each message that a link carries is lost with probability `rate`, and sent again beside the next one. Ours.

    It is for messages that add up, in any order, so that none may be lost. A sender keeps its last `keep` messages; a
    receiver asks for those that it lacks, and each counts as sent again. All that arrives in a round is heard at once,
    as if from several senders. A link that is absent in between does not carry that exchange's message, and still owes
    what it has lost before. What a receiver still lacks after `keep` exchanges is lost for good: see `loses_for_good`.
    """

    def init(messages: Message) -> Backlog:
        agents = jax.tree.leaves(messages)[0].shape[0]
        kept = jax.tree.map(lambda leaf: jnp.zeros((keep * agents, *leaf.shape[1:]), leaf.dtype), messages)
        return Backlog(kept, jnp.zeros((agents, agents, keep), bool))

    @reproducible
    def transmit(
        key: Key[Array, ""], memory: Backlog, graph: Graph, messages: Message
    ) -> tuple[Backlog, Graph, Message, Int[Array, "agents"]]:
        senders, receivers, weights, _ = jax.tree.map(jnp.asarray, graph)
        agents = memory.owed.shape[0]

        def arrive(sender: Array, receiver: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, sender), receiver)
            return jax.random.bernoulli(own, 1 - jnp.asarray(rate, jnp.float32), (keep,))

        kept = jax.tree.map(lambda new, old: jnp.concatenate([new, old[:-agents]]), messages, memory.messages)
        aged = jnp.pad(memory.owed[:, :, :-1], ((0, 0), (0, 0), (1, 0)))  # every message is an exchange older now
        present = weights != 0
        owed = aged.at[:, :, 0].set(True)[receivers, senders] & present[:, None]
        heard = owed & jax.vmap(arrive)(senders, receivers)
        # Edges stay sorted by receiver.
        again = Graph(
            (jnp.arange(keep)[None] * agents + senders[:, None]).reshape(-1),
            jnp.repeat(receivers, keep),
            jnp.where(heard, weights[:, None], 0).astype(weights.dtype).reshape(-1),
            jnp.asarray(graph.own),
        )
        # Absent edges share their places with others: they must not overwrite these.
        arrived = jnp.zeros_like(aged).at[receivers, senders].max(heard)
        carried = jnp.zeros((agents, agents), bool).at[receivers, senders].max(present)
        rest = aged.at[:, :, 0].set(carried) & ~arrived
        sent = jnp.zeros(agents, jnp.int32).at[senders].add(jnp.sum(owed, axis=1, dtype=jnp.int32))
        return Backlog(kept, rest), again, kept, sent

    return Link(init, transmit)


class Told(NamedTuple):
    """What everybody has told so far, and how much of it receivers lack."""

    sums: Mapping[str, Float[Array, "agents entries"]]  # entries in the order of packed bits, filled up to whole bytes
    lacks: Int[Array, "agents agents"]  # how many of the second agent's messages the first one lacks


WHOLE = 32  # messages of a bit an entry that cost what their sum costs in floats


def added_up(rate: float | Float[Array, ""] = 0.0) -> Link:
    """Receivers hold, of every other agent, the sum of all that it has told; what arrives is these sums. Ours.

    It is for signs that add up, on links that fail and graphs that change. A message is lost with probability `rate`,
    on its own on each directed link. An agent that hears another again asks for the messages that it lacks; where these
    are 32 or more, for their sum in floats, which costs as much as 32 of them. All of that counts as sent, lost or not.
    As the sums at all receivers that lack nothing are the same, they are held once. `Heard` has them as values.
    """

    def init(messages: Message) -> Told:
        agents = jax.tree.leaves(messages)[0].shape[0]
        nothing = {
            name: jnp.zeros((agents, 8 * bits.shape[1]), messages.scales[name].dtype)
            for name, bits in messages.masks.items()
        }
        return Told(nothing, jnp.zeros((agents, agents), jnp.int32))

    @reproducible
    def transmit(
        key: Key[Array, ""], memory: Told, graph: Graph, messages: Message
    ) -> tuple[Told, Graph, Message, Int[Array, "agents"]]:
        agents = memory.lacks.shape[0]
        senders, receivers, weights, _ = jax.tree.map(jnp.asarray, graph)
        own = jax.vmap(own_signs, in_axes=(0, None, None))
        sums = {name: old + own(messages, name, old.shape[1:]) for name, old in memory.sums.items()}
        # Absent edges share their places with others: they must not overwrite these.
        present, arrived = weights != 0, (weights != 0) & arrivals(key, graph, rate)
        reached = jnp.zeros((agents, agents), bool).at[receivers, senders].max(arrived)
        lacks = memory.lacks + 1
        asked = jnp.where(present, jnp.minimum(lacks[receivers, senders], WHOLE), 0)
        sent = jnp.zeros(agents, jnp.int32).at[senders].add(asked)
        heard = jnp.where(arrived, weights, jnp.zeros_like(weights))
        arriving = Message(values=sums, has=messages.has)
        return Told(sums, jnp.where(reached, 0, lacks)), graph._replace(weights=heard), arriving, sent

    return Link(init, transmit)


def arrivals(key: Key[Array, ""], graph: Graph, rate: float | Float[Array, ""]) -> Bool[Array, "edges"]:
    """Whether the one message of each edge arrives, if each is lost with probability `rate`, by who sends to whom."""

    def arrives(sender: Array, receiver: Array) -> Array:
        own = jax.random.fold_in(jax.random.fold_in(key, sender), receiver)
        return jax.random.bernoulli(own, 1 - jnp.asarray(rate, jnp.float32))

    return jax.vmap(arrives)(jnp.asarray(graph.senders), jnp.asarray(graph.receivers))


@reproducible
def loses_for_good(link: Link, graph: Graph, keys: Key[Array, "exchanges"]) -> bool:
    """Whether a link that `resent` makes loses anything for good, in exchanges that draw by these keys."""
    nothing = Message({"": jnp.zeros((len(graph.own), 0), jnp.uint8)})

    def exchange(memory: Backlog, key: Array) -> tuple[Backlog, Array]:
        given_up = memory.owed[:, :, -1].any()
        return link.transmit(key, memory, graph, nothing)[0], given_up

    return bool(jax.jit(lambda keys: jax.lax.scan(exchange, link.init(nothing), keys)[1].any())(keys))


def by_similarity() -> Link:
    """Each link weighs as much as the masks at its two ends agree, in floats, in place of 1. Ours.

    The agreement of a layer is the correlation of its bits, (n₁₁/d − p q) / √(p (1 − p) q (1 − q)) of the densities p
    and q, which is 0 for masks that have nothing to do with each other; that of a link is the mean over layers, by
    their entries. Masks that disagree do not hear each other. A layer that either end lacks, keeps whole or drops whole
    does not count; where none does, the weight is 1. Layers are taken as filled up to whole bytes with zeros.
    """

    def transmit(
        key: Key[Array, ""], memory: None, graph: Graph, messages: Message
    ) -> tuple[None, Graph, Message, Int[Array, "agents"]]:
        del key
        senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
        has = messages.has or {name: jnp.ones(bits.shape[0], bool) for name, bits in messages.masks.items()}
        density = {name: over_agents(share_of_ones, bits) for name, bits in messages.masks.items()}

        def agreement(one: Int[Array, ""], other: Int[Array, ""]) -> Array:
            sums = [jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)]
            for name, bits in messages.masks.items():
                both, p, q = share_of_ones(bits[one] & bits[other]), density[name][one], density[name][other]
                spread = jnp.sqrt(p * (1 - p) * q * (1 - q))
                counts = (has[name][one] & has[name][other] & (spread > 0)) * jnp.float32(8 * bits.shape[1])
                sums[0] += counts * (both - p * q) / jnp.where(spread > 0, spread, 1)
                sums[1] += counts
            return jnp.where(sums[1] > 0, jnp.maximum(sums[0] / jnp.where(sums[1] > 0, sums[1], 1), 0), 1)

        # Edge by edge on CPUs; elsewhere as many at a time as there are agents, for which there is memory.
        agreements = over_agents(agreement, senders, receivers, chunk=default_chunk(len(graph.own)))
        return memory, graph._replace(weights=graph.weights * agreements), messages, listeners(graph)

    return Link(lambda messages: None, transmit)


def share_of_ones(bits: UInt8[Array, "bytes"]) -> Float[Array, ""]:
    """What share of a layer's entries packed bits keep; one agent's world."""
    return jnp.sum(jnp.bitwise_count(bits), dtype=jnp.int32).astype(jnp.float32) / (8 * bits.shape[0])


def chain(*links: Link) -> Link:
    """One link after another, as messages pass through them; the first says how many were sent. None is perfect.

    All begin with the start messages as they were sent, so one with memory cannot stand behind one that changes their
    form: `added_up` comes last. What an earlier link loses is for a later one a link that is absent: `resent` owes it
    nothing.
    """
    if len(links) < 2:
        return links[0] if links else perfect()

    def init(messages: Message) -> tuple[Any, ...]:
        return tuple(link.init(messages) for link in links)

    def transmit(
        key: Key[Array, ""], memory: tuple[Any, ...], graph: Graph, messages: Message
    ) -> tuple[tuple[Any, ...], Graph, Message, Int[Array, "agents"]]:
        sent, memories = listeners(graph), []
        for number, (link, own) in enumerate(zip(links, memory, strict=True)):
            own, graph, messages, said = link.transmit(jax.random.fold_in(key, number), own, graph, messages)
            memories.append(own)
            sent = said if number == 0 else sent
        return tuple(memories), graph, messages, sent

    return Link(init, transmit)
