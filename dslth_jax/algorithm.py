"""The form every algorithm takes: four pure functions of one agent's world, and what they exchange.

An algorithm is a factory that checks and closes over what is static and returns an `Algorithm`. Its functions see one
agent; `population.round` maps them over all.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8


class World(NamedTuple):
    """What an agent knows beside its own state and what it heard.

    In the population's world `hyper` carries a leading agents axis; everything else is common to all.
    """

    weights: PyTree[Float[Array, "..."]]  # random, shared, never trained, never sent: known from the seed
    frozen: PyTree[Float[Array, "..."]]  # biases and the like, as fixed as the weights, but not masked
    hyper: Any  # this round's values of all traced settings
    key: Key[Array, ""]  # common to all agents
    round: Int[Array, ""]
    rounds: Int[Array, ""]  # how many the run is to have


class Batches(NamedTuple):
    """Minibatches of one agent. Leading axes: steps, batch (or batch alone)."""

    images: UInt8[Array, "*axes height width channels"]
    labels: Int[Array, "*axes"]
    present: Bool[Array, "*axes"]  # False where an agent with fewer samples than the batch has none


class Message(NamedTuple):
    """What one agent sends where it is not masks alone; those go as they are, a pytree of packed bits.

    Bits beside values are masks of these values, entry by entry; else they are masks of the shared weights. Sending
    nothing is None, or neither.
    """

    masks: PyTree[UInt8[Array, "..."]] = None  # packed bits, one leaf a layer
    values: PyTree[Float[Array, "..."]] = None


class Heard(NamedTuple):
    """What one agent has of its neighbours, itself never included.

    Of masks: how many of `degree` neighbours keep each entry. Whole numbers sum exactly in any order. Of values: their
    sum over neighbours, edge after edge. Where links have weights of their own all are floats: the weight of those that
    keep the entry, and of all, and the weighted sum of values. What nobody sends is None.
    """

    counts: PyTree[Array]
    degree: Int[Array, ""] | Float[Array, ""]
    sums: PyTree[Float[Array, "..."]] = None


class Algorithm(NamedTuple):
    """Four functions of one agent's world; `info` is diagnostics and never carried.

    - `init(key, world) -> agent, message`: what the agent carries, and the start message, which costs nothing;
    - `send(key, world, agent, heard, batches) -> agent, carry, message, info`: the work before the exchange;
    - `receive(key, world, agent, carry, heard, batches) -> agent, info`: the work after it;
    - `model(world, agent, heard) -> variables, masks`: what the agent predicts with (masks None for weight methods).

    A message is a pytree of packed bits of masks, one uint8 leaf a layer, or a `Message` where values go with them or
    instead, or None where nothing is sent; always of one structure. `batches` holds (local steps + 1) minibatches; the
    last serves a gradient that is computed anew, for fine-tuning or for growing entries.
    """

    init: Callable[..., tuple[Any, Any]]
    send: Callable[..., tuple[Any, Any, Any, dict[str, Array]]]
    receive: Callable[..., tuple[Any, dict[str, Array]]]
    model: Callable[..., tuple[Any, Any]]


def neighbour_mean(heard: Heard, dtype: Any = jnp.float32) -> PyTree[Float[Array, "..."]]:
    """m̄ = counts / degree, entry by entry, in `dtype`; 0 where nobody was heard.

    >>> neighbour_mean(Heard(jnp.array([0, 1, 2], jnp.uint8), jnp.int32(2))).tolist()
    [0.0, 0.5, 1.0]
    """
    degree = jnp.where(heard.degree > 0, heard.degree, 1).astype(dtype)
    return jax.tree.map(lambda counts: counts.astype(dtype) / degree, heard.counts)


def parts_of(message: Any) -> Message:
    """A message as masks and values, whichever of the three forms it has."""
    return message if isinstance(message, Message) else Message(masks=message)


def own_weight(heard: Heard, dtype: Any = jnp.float32) -> Float[Array, ""]:
    """The weight of one's own value in a mean over neighbours and oneself, that of all together being more by `degree`.

    1 as every neighbour's, or where links have weights of their own what these leave of 1.

    >>> float(own_weight(Heard(None, jnp.int32(3)))), float(own_weight(Heard(None, jnp.float32(0.75))))
    (1.0, 0.25)
    """
    degree = heard.degree.astype(dtype)
    return 1 - degree if jnp.issubdtype(heard.degree.dtype, jnp.floating) else jnp.ones_like(degree)


def mean_with_own(own: PyTree[Array], of_others: PyTree[Array], heard: Heard) -> PyTree[Float[Array, "..."]]:
    """The mean over neighbours and oneself, of values (`heard.sums` are of others) or of masks (`heard.counts`).

    >>> mean_with_own(jnp.array([4.0]), jnp.array([8.0]), Heard(None, jnp.int32(2))).tolist()
    [4.0]
    """
    dtype = jax.tree.leaves(own)[0].dtype
    weight = own_weight(heard, dtype)
    whole = weight + heard.degree.astype(dtype)
    return jax.tree.map(lambda one, others: (weight * one + others.astype(dtype)) / whole, own, of_others)
