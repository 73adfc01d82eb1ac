"""A controller that finds the strength of the group lasso at which a given share of the channels is left. The
population's world. Ours.

In every layer the number of channels is to fall evenly between two points of the run, to the target's share of them:

    p(t) = channels · (1 − (1 − target) · clip((t − begin) / (end − begin), 0, 1)).

In round t the ⌈p(t)⌉ of largest norm are spared: nothing shrinks them, and no layer falls below the target. The others,
few at a time, are pressed until they die. How hard, the layer's λ, grows from round to round while more are alive than
are to be, and falls where not one more is:

    x ← clip(x + gain · (alive − ⌈p⌉) / (channels · (1 − target)) − ease, −limit, limit),    λ ← λ₀ · exp(x)

λ₀ is the run's own, with its schedule. An agent follows its own target, whatever its neighbours' are: nothing that is
heard makes a score 0, and who gossips tells of what it has lost only what it hears of it. Dead channels do not come
back. Sparing most while a few die is what keeps the others' masks as they are: where all that are to go shrink at once,
the others take their entries long before.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dslth_jax.channels import Channels, Pressure
from dslth_jax.control import Controller

GAIN, EASE, LIMIT = 1.0, 0.02, 5.0  # of x, whose limit keeps λ between 1/148 and 148 times what it starts with


class Memory(NamedTuple):
    """What the controller remembers."""

    x: dict[str, Float[Array, "agents"]]  # the logarithm of the factor on λ, layer by layer


def left_of(target: float | Float[Array, "..."], size: int) -> Float[Array, "..."]:
    """How many of so many channels of a layer are to be left, at least one.

    >>> left_of(0.5, 3).item()
    2.0
    """
    # Without the last bits of a product: a half of 64 is 32.
    return jnp.maximum(jnp.ceil(target * size - 1e-3), 1)


def target_channels(
    target: Float[Array, "agents"], channels: tuple[Channels, ...], *, begin: float, end: float
) -> Controller:
    """Press on each agent's channels, by `hyper.group_lasso`, until it is left with its `target` share of each layer's.

    Channels die between the rounds `begin` and `end`, counted from 0. The algorithm tells in its diagnostics how many
    of each layer are `alive`: see `channels.survivors`. A ValueError unless `begin` comes before `end`.
    """
    if not begin < end:
        raise ValueError(f"channels must begin to die before the last does, got begin {begin:g} and end {end:g}")

    def spared(own: Channels, round: Any) -> Int[Array, "agents"]:
        lost = (own.size - left_of(target, own.size)) * jnp.clip((round - begin) / (end - begin), 0, 1)
        return jnp.ceil(own.size - lost - 1e-3).astype(jnp.int32)

    def pressed(hyper: Any, factors: dict[str, Any], round: Any) -> Any:
        def one(own: Channels) -> Pressure:
            strength = (hyper.group_lasso * factors[own.name]).astype(jnp.float32)
            return Pressure(strength, spared(own, round))

        return hyper._replace(group_lasso={own.name: one(own) for own in channels})

    def init(hyper: PyTree[Array]) -> tuple[Memory, PyTree[Array]]:
        nothing = {own.name: jnp.zeros_like(target) for own in channels}
        return Memory(nothing), pressed(hyper, nothing, 0)

    def update(
        memory: Memory,
        hyper: PyTree[Array],
        round: Int[Array, ""],
        info: dict[str, Any],
        seconds: Float[Array, "agents"] | None,
        axis: str | None,
    ) -> tuple[Memory, PyTree[Array]]:
        del seconds, axis
        found, factors, begun = dict[str, Any](), dict[str, Any](), round + 1 >= begin
        for own in channels:
            to_go = jnp.maximum(own.size - left_of(target, own.size), 1)
            behind = (info["alive"][own.name] - spared(own, round + 1)) / to_go
            x = jnp.where(begun, jnp.clip(memory.x[own.name] + GAIN * behind - EASE, -LIMIT, LIMIT), 0)
            found[own.name] = x.astype(target.dtype)
            factors[own.name] = jnp.where(begun, jnp.exp(x), 0)
        return Memory(found), pressed(hyper, factors, round + 1)

    return Controller(init, update)
