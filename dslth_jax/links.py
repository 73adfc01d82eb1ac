"""What happens to messages on their way. The population's world, inside the compiled round.

A `Link` sees everybody's messages after they have crossed devices, alike on all of them. It draws by the round's key
and by who sends to whom, never by an edge's place in the array. Links compose by `chain`. To add one, write its
factory here. Start messages are known from the seed and pass through no link.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dslth_jax.algorithm import Message
from dslth_jax.graphs import Graph, listeners
from dslth_jax.keys import reproducible


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
    """Two functions of the population's world. What arrives may differ in shape and dtype from what was sent; `Heard`
    then has the types of what arrives."""

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
        def arrives(sender: Array, receiver: Array) -> Array:
            own = jax.random.fold_in(jax.random.fold_in(key, sender), receiver)
            return jax.random.bernoulli(own, 1 - jnp.asarray(rate, jnp.float32))

        arrived = jax.vmap(arrives)(jnp.asarray(graph.senders), jnp.asarray(graph.receivers))
        kept = jnp.where(arrived, graph.weights, jnp.zeros_like(graph.weights))
        return memory, graph._replace(weights=kept), messages, listeners(graph)

    return Link(lambda messages: None, transmit)


def chain(*links: Link) -> Link:
    """One link after another, as messages pass through them; the first says how many were sent."""

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
