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


class Heard(NamedTuple):
    """What one agent has of its neighbours, itself never included.

    Of masks: how many of `degree` neighbours keep each entry. Whole numbers sum exactly in any order. Where links have
    weights both are floats: the weight of those that keep the entry, and of all.
    """

    counts: PyTree[Array]
    degree: Int[Array, ""] | Float[Array, ""]


class Algorithm(NamedTuple):
    """Four functions of one agent's world; `info` is diagnostics and never carried.

    - `init(key, world) -> agent, message`: what the agent carries, and the start message, which costs nothing;
    - `send(key, world, agent, heard, batches) -> agent, carry, message, info`: the work before the exchange;
    - `receive(key, world, agent, carry, heard, batches) -> agent, info`: the work after it;
    - `model(world, agent, heard) -> variables, masks`: what the agent predicts with (masks None for weight methods).

    A message is a pytree: uint8 leaves are packed bits of masks, one leaf a layer. `batches` holds (local steps + 1)
    minibatches; the last serves a gradient that is computed anew for fine-tuning.
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
