"""Channels that may die: which entries of which layers are one channel, and what becomes of those of a dead one. One
agent's world.

A channel is what one filter, or one row of a linear layer, makes: all entries that feed one output of a layer, and all
entries of the layers behind it that read this output. It is alive while any entry that feeds it has a score other than
0. It dies as a whole: what feeds it and what reads it have scores of exactly 0, which no mask keeps. A dead channel
stays dead: a score of 0 has no sign, so that nothing flows into it; and nobody would hear the channel if only its
filter came to life, nor have anything to hear if only its readers did. Classes are no channels: a head loses none.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from dslth_jax.algorithm import belongs_to, by_name, with_names
from dslth_jax.group_lasso import group_norms
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network


class Channels(NamedTuple):
    """The channels that one layer makes."""

    layer: str  # the name of the leaf, whose last axis are its channels
    readers: tuple[str, ...]  # leaves whose last axis but one counts these channels, once or over and over
    size: int  # how many there are

    @property
    def name(self) -> str:
        """How a user calls the layer: by its module."""
        return self.layer.rpartition("/")[0] or self.layer


class Pressure(NamedTuple):
    """What the group lasso does to one layer."""

    strength: float | Float[Array, "..."]  # λ, relative to the mean norm of the layer's living channels
    smallest: int | Int[Array, "..."]  # how many channels it spares, those of largest norm


def channels_of(network: Network) -> tuple[Channels, ...]:
    """The channels of all layers of a network but its heads, in the order in which these are applied.

    Raises a ValueError if the network does not say its wiring, or if a layer's channels are not its own: where they
    meet those of others in a sum, as in residual networks, or are depthwise, or of attention.

    >>> from dslth_jax.networks.zoo import network_by_name
    >>> [(own.name, own.readers, own.size) for own in channels_of(network_by_name("small", (8, 8, 1), 10))]
    [('conv1', ('conv2/kernel',), 32), ('conv2', ('linear1/kernel',), 64), ('linear1', ('linear2/kernel',), 128)]
    """
    if network.wiring is None:
        raise ValueError(
            "the network does not say which channels its layers share, so none of them can die: give its module a "
            "field `wiring`, as those of dslth_jax.networks.zoo have"
        )
    layers, found = network.wiring.layers, list[Channels]()
    sizes = {name: leaf.shape[-1] for name, leaf in by_name(jax.eval_shape(network.init, key_of(0))[0]).items()}
    for path, layer in layers.items():
        if any(belongs_to(path, head) for head in network.heads):
            continue
        sharing = [own for own, other in layers.items() if layer.writes in (other.writes, other.reads)]
        roles = {network.roles.get(f"{own}/kernel") for own in sharing}  # None of a shortcut
        alone = [own for own in sharing if layers[own].writes == layer.writes] == [path]
        if not alone or not roles <= {"convolution", "linear"} or layer.writes in network.wiring.whole:
            raise ValueError(
                f"the channels of {path} cannot die alone: they are not those of one convolution or linear layer, "
                f"read by such layers"
            )
        readers = tuple(f"{own}/kernel" for own in sharing if own != path)
        found.append(Channels(f"{path}/kernel", readers, sizes[f"{path}/kernel"]))
    return tuple(found)


def lengths_of(scores: PyTree[Float[Array, "..."]], own: Channels) -> Float[Array, "channels"]:
    """The 2-norm of what feeds each channel: 0 of a dead one."""
    return group_norms(by_name(scores)[own.layer])


def alive_of(scores: PyTree[Float[Array, "..."]], own: Channels) -> Bool[Array, "channels"]:
    """Which channels of a layer are alive."""
    kernel = by_name(scores)[own.layer]
    return jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 1)))


def survivors(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> dict[str, Int[Array, ""]]:
    """How many channels of each layer are alive, by the names of its leaves."""
    return {own.layer: jnp.sum(alive_of(scores, own), dtype=jnp.int32) for own in channels}


def shrink(
    scores: PyTree[Float[Array, "..."]],
    pressure: float | Float[Array, ""] | Mapping[str, Pressure],
    channels: tuple[Channels, ...],
    smallest: int = 1,
) -> PyTree[Float[Array, "..."]]:
    """The proximal step of the group lasso over channels, by layers' own scales, after which dead channels are silent.

    The norm of what feeds a channel falls by the strength times the mean norm of the layer's living channels, and one
    that is not larger becomes 0: the channel is dead, and what reads it becomes 0 too. The `smallest` channels of
    largest norm of each layer are spared: they stay as they are. A strength of 0 kills nothing.
    `pressure` is the strength for all layers, or for each layer a strength, and how many it spares.
    Source: the proximal operator as in `group_lasso.proximal_step`; the relative strength is ours.

    >>> own = Channels("a", ("b",), 3)
    >>> shrunk = shrink({"a": jnp.array([[4.0, 1.0, 1.0]]), "b": jnp.ones((3, 1))}, 0.5, (own,))
    >>> shrunk["a"].tolist(), shrunk["b"].tolist()
    ([[4.0, 0.0, 0.0]], [[1.0], [0.0], [0.0]])
    """
    leaves = dict(by_name(scores))
    for own in channels:
        layer = pressure[own.layer] if isinstance(pressure, Mapping) else Pressure(pressure, smallest)
        strength, fewest = layer.strength, jnp.clip(jnp.maximum(layer.smallest, smallest), 1, own.size)
        kernel, lengths = leaves[own.layer], lengths_of(leaves, own)
        cut = strength * jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
        spared = lengths >= jnp.sort(lengths)[own.size - fewest]
        shrunk = jnp.where(lengths > cut, 1 - cut / jnp.where(lengths > 0, lengths, 1), 0)
        factors = jnp.where(spared | (strength <= 0), 1, shrunk).astype(kernel.dtype)
        leaves[own.layer] = kernel * jnp.expand_dims(factors, range(kernel.ndim - 1))
    return silenced(with_names(lambda name, _: leaves[name], scores), channels)


def penalty(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> Float[Array, ""]:
    """The group lasso over channels as a term of the loss: the sum of their norms, each layer's times the mean norm of
    its living channels, into which no gradient flows. A step along it makes norms smaller, and none of them 0."""
    total = jnp.zeros(())
    for own in channels:
        lengths = group_norms(by_name(scores)[own.layer])
        scale = jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
        total += jax.lax.stop_gradient(scale) * jnp.sum(lengths)
    return total


def silenced(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> PyTree[Float[Array, "..."]]:
    """Scores in which all that reads a dead channel is 0."""
    leaves = dict(by_name(scores))
    for own in channels:
        alive = alive_of(leaves, own)
        for reader in own.readers:
            kernel = leaves[reader]
            heard = jnp.tile(alive, kernel.shape[-2] // own.size)[:, None]
            leaves[reader] = jnp.where(jnp.expand_dims(heard, range(kernel.ndim - 2)), kernel, 0)
    return with_names(lambda name, _: leaves[name], scores)


def held_dead(scores: PyTree[Float[Array, "..."]], before: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """Scores, of which those that were 0 before still are.

    >>> held_dead(jnp.array([1.0, 1e-9]), jnp.array([0.5, 0.0])).tolist()
    [1.0, 0.0]
    """
    return jax.tree.map(lambda z, was: jnp.where(was != 0, z, 0), scores, before)


def moving_the_living(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimizer, whose directions are 0 where a score is 0: what it remembers moves no dead channel."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        directions, state = optimizer.update(updates, state, params)
        return held_dead(directions, params), state

    return optax.GradientTransformation(optimizer.init, update)


def living(scores: Float[Array, "*kernel inputs outputs"]) -> tuple[Int[Array, ""], Int[Array, ""]]:
    """How many inputs and how many outputs of a layer are alive, by its scores, or by its mask, alone.

    >>> [count.item() for count in living(jnp.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]))]
    [1, 2]
    """
    used = jnp.any(scores != 0, axis=tuple(range(scores.ndim - 2)))
    return jnp.sum(jnp.any(used, axis=1), dtype=jnp.int32), jnp.sum(jnp.any(used, axis=0), dtype=jnp.int32)


def live_entries(scores: Float[Array, "*kernel inputs outputs"]) -> Int[Array, ""]:
    """How many entries of a layer lie between a living input and a living output."""
    inputs, outputs = living(scores)
    return inputs * outputs * (scores.size // math.prod(scores.shape[-2:]))


def kept_of_living(kept: PyTree[int | Int[Array, ""]], scores: PyTree[Float[Array, "..."]]) -> PyTree[Int[Array, ""]]:
    """How many entries of each layer to keep where so many are to be kept of a layer whose channels are all alive: the
    same share of the entries between living ones, to the nearest, and at least 1. Nothing of a layer of which nothing
    is to be kept.

    >>> kept_of_living({"a": 6}, {"a": jnp.array([[1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [3.0, 1.0, 0.0]])})["a"].item()
    4
    """

    def one(count: Any, z: Array) -> Array:
        count, live = jnp.asarray(count, jnp.int32), live_entries(z)
        share = jnp.rint(count.astype(jnp.result_type(float)) * (live / z.size)).astype(jnp.int32)
        return jnp.where(live == z.size, count, jnp.maximum(share, jnp.minimum(count, 1)))

    return jax.tree.map(one, kept, scores)


def shares_of(alive: Mapping[str, Int[Array, "..."]], channels: tuple[Channels, ...]) -> Float[Array, "..."]:
    """The share of a network's channels that are alive, of how many are in each layer, with or without an agents
    axis."""
    total = sum(own.size for own in channels)
    return sum((alive[own.layer] for own in channels), start=jnp.int32(0)) / total
