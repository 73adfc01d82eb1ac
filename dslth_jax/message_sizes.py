"""What is in everybody's messages, counted inside the compiled program. The population's world."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float, Int, UInt8

from dslth_jax.algorithm import Message, layer_of
from dslth_jax.over_agents import count_of


def holds_anything(message: Message) -> bool:
    """Whether messages of this form have any layer at all."""
    return bool(message.masks or message.values)


def holds_bits_alone(message: Message) -> bool:
    """Whether messages of this form have layers of bits, and no values: those are coded."""
    return bool(message.masks) and not message.values


def chosen(these: Bool[Array, "agents"], messages: Message, others: Message) -> Message:
    """The messages of these agents, and the other messages of all others."""

    def one(own: Array, other: Array) -> Array:
        return jnp.where(these.reshape(-1, *(1,) * (own.ndim - 1)), own, other)

    return jax.tree.map(one, messages, others)


def sizes_of(message: Message, before: Message) -> dict[str, Any]:
    """How much is in everybody's messages, and how many of their bits differ from those sent before.

    `kept` counts by layer how many of each agent's bits are 1 (of a ternary mask those of both planes), `flipped` how
    many differ from those that the agent sent last, and `floats` the values (where bits go with values, those that the
    bits keep). `flipped` and `floats` are None where no message has any. A layer that a message lacks does not count;
    `has` says which it holds, None all of them.
    """

    kept = kept_of_layers(message)
    flips = [held(message, name, ones(bits ^ before.masks[name])) for name, bits in message.masks.items()]
    floats = [kept.get(name, held(message, name, every(values))) for name, values in message.values.items()]
    return {
        "kept": kept,
        "flipped": reduce(jnp.add, flips) if flips else None,
        "floats": reduce(jnp.add, floats) if floats else None,
        "has": message.has,
    }


def kept_of_layers(message: Message) -> dict[str, Int[Array, "agents"]]:
    """How many of each agent's bits are 1, layer by layer: of a ternary mask those of both planes, of a layer that its
    message lacks 0."""
    kept: dict[str, Array] = {}
    for name, bits in message.masks.items():
        kept[layer_of(name)] = kept.get(layer_of(name), 0) + held(message, name, ones(bits))
    return kept


def held(message: Message, name: str, counts: Array) -> Array:
    """What is counted of one name in everybody's messages, and 0 for agents whose message lacks it."""
    return counts if message.has is None else jnp.where(message.has[name], counts, 0)


def message_bits(message: Message, before: Message, sizes: Mapping[str, int], known: Any) -> Float[Array, "agents"]:
    """How many bits each agent's message takes, about. Real ones of large networks that say what differs are shorter,
    by a fifth or so where they come every ten rounds, by almost half in every round: they use what several masks before
    had. So are those of ternary masks that keep much, whose planes count here as if they knew nothing of each other (by
    a third where they keep nine tenths). Those of small networks are longer, by a header.

    A mask's by the entropy of what differs from the one `before`, or of itself where no other is `known` to listeners,
    or the one before lacks any of the layers (as after a block has come to an agent: such a message stands alone);
    a plane of signs that has a scale one an entry, and 32 for the scale; values 32 each, of those that bits keep where
    a name has bits. `sizes` says how many entries each name has.

    >>> old, new = jnp.array([[0b0000], [0b1111]], jnp.uint8), jnp.array([[0b0011], [0b1111]], jnp.uint8)
    >>> message_bits(Message({"w": new}), Message({"w": old}), {"w": 4}, jnp.array(True)).tolist()
    [4.0, 0.0]
    """
    total: Any = jnp.zeros(count_of(message))
    if message.has is not None and before.has is not None:
        lacked = [message.has[name] & ~before.has[name] for name in message.masks]
        known = known & ~reduce(jnp.logical_or, lacked, jnp.zeros(total.shape, bool))
    for name in {**message.masks, **message.values}:
        bits: Any = jnp.zeros_like(total)
        if name in message.masks:
            now, entries = message.masks[name], sizes[name]
            if name in message.scales:
                bits = bits + entries + 32.0
            else:
                changed = jnp.where(known, ones(now ^ before.masks[name]), ones(now))
                bits = bits + entries * binary_entropy(changed.astype(total.dtype) / entries)
        if name in message.values:
            values = ones(message.masks[name]) if name in message.masks else sizes[name]
            bits = bits + 32.0 * values
        total = total + held(message, name, bits)
    return total


def binary_entropy(share: Float[Array, "..."]) -> Float[Array, "..."]:
    """H2(p) in bits, 0 for shares of 0 and 1."""
    return (entr(share) + entr(1 - share)) / jnp.log(2.0)


def every(values: Array) -> Int[Array, "agents"]:
    """How many entries each agent has in an array with a leading agents axis."""
    return jnp.full(values.shape[0], values[0].size, jnp.int32)


def ones(bits: UInt8[Array, "agents bytes"]) -> Int[Array, "agents"]:
    """How many ones each agent's packed bits hold.

    >>> ones(jnp.array([[0b101, 0b1], [0, 0b11]], jnp.uint8)).tolist()
    [3, 2]
    """
    return jnp.sum(jnp.bitwise_count(bits), axis=1, dtype=jnp.int32)
