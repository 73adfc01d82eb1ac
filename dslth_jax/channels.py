"""Channels that may die: which entries of which layers are one channel, and what becomes of those of a dead one. One
agent's world.

A channel is what one filter, or one row of a linear layer, makes: all entries that feed one output of a layer, and all
entries of the layers behind it that read this output. It is alive while any entry that feeds it has a score other than
0. It dies as a whole: what feeds it and what reads it have scores of exactly 0, which no mask keeps. A dead channel
stays dead: a score of 0 has no sign, so that nothing flows into it; and nobody would hear the channel if only its
filter came to life, nor have anything to hear if only its readers did. Classes are no channels: a head loses none.

A head of attention is one channel, too, of all columns that make its queries, keys and values: it dies as a whole, with
the rows that read its values. The stream of tokens that a transformer's blocks add to keeps its width.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from dslth_jax.algorithm import belongs_to, by_name, with_names
from dslth_jax.group_lasso import group_norms
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Network
from dslth_jax.networks.wiring import IMAGES, Wiring


class Channels(NamedTuple):
    """One set of channels: those that a layer makes or, where layers' outputs are summed, that all of these make."""

    name: str  # of the set in the network's wiring; of sets that are tied to each other, of the first
    makers: tuple[str, ...]  # leaves whose last axis are these channels, or the first of them
    readers: tuple[tuple[str, int], ...]  # leaves whose last axis but one counts so many of them, once or over and over
    size: int  # how many there are
    heads: bool = False  # whether each is a head of attention: an equal part of what a maker makes, side by side


class Pressure(NamedTuple):
    """What the group lasso does to one layer."""

    strength: float | Float[Array, "..."]  # λ, relative to the mean norm of the layer's living channels
    smallest: int | Int[Array, "..."]  # how many channels it spares, those of largest norm


def channels_of(network: Network) -> tuple[Channels, ...]:
    """The sets of channels of a network that can die, in the order in which they are made.

    Layers that write to one sum make its channels together, and those in front of and behind an identity shortcut, or a
    depthwise layer, are the same channels. Of attention, heads are channels, under the name of the set of values; they
    stay where a shortcut hands on a part of them. Sets that the wiring keeps whole stay, and the network's logits.
    Raises a ValueError if the network does not say its wiring, or none of its channels can die.

    >>> from dslth_jax.networks.zoo import network_by_name
    >>> for own in channels_of(network_by_name("small", (8, 8, 1), 10)):
    ...     print(own.name, own.makers, own.readers, own.size)
    conv1 ('conv1/kernel',) (('conv2/kernel', 32),) 32
    conv2 ('conv2/kernel',) (('linear1/kernel', 64),) 64
    linear1 ('linear1/kernel',) (('linear2/kernel', 128),) 128
    """
    wiring = network.wiring
    if wiring is None:
        raise ValueError(
            "the network does not say which channels its layers share, so none of them can die: give its module a "
            "field `wiring`, as those of dslth_jax.networks.zoo have"
        )
    shapes = {name: leaf.shape for name, leaf in by_name(jax.eval_shape(network.init, key_of(0))[0]).items()}
    own_kernel = {path for path in wiring.layers if network.roles.get(f"{path}/kernel", "depthwise") != "depthwise"}
    sizes = {layer.writes: shapes[f"{path}/kernel"][-1] for path, layer in wiring.layers.items() if path in own_kernel}
    first = tied_sets(wiring, own_kernel)
    attentions = {first[name]: one for one in wiring.attentions for name in (one.query, one.key, one.value)}
    logits = [
        layer.writes for path, layer in wiring.layers.items() if any(belongs_to(path, one) for one in network.heads)
    ]
    stay = {first[name] for name in (IMAGES, *wiring.whole, *logits)}
    ends = [(f"{path}/kernel", layer) for path, layer in wiring.layers.items() if path in own_kernel]
    found = dict[str, Channels]()
    for name in dict.fromkeys(first.values()):
        attention = attentions.get(name)
        together = {name} if attention is None else {first[own] for own in attention[:3]}
        inside = {own for own, one in first.items() if one in together}
        if together & stay or (attention is not None and inside > {*attention[:3]}):
            continue
        makers = tuple(leaf for leaf, layer in ends if layer.writes in inside)
        sizes |= {own: sizes.get(own, max(sizes[one] for one in inside if one in sizes)) for own in inside}
        readers = tuple((leaf, sizes[layer.reads]) for leaf, layer in ends if layer.reads in inside)
        if attention is None:
            found[name] = Channels(name, makers, readers, max(sizes[own] for own in inside))
        else:
            found[attention.value] = Channels(attention.value, makers, readers, attention.heads, heads=True)
    if not found:
        raise ValueError("none of the network's channels can die: all are those of its logits, or kept whole")
    return tuple(found.values())


def tied_sets(wiring: Wiring, own_kernel: Collection[str]) -> dict[str, str]:
    """For each set of channels the first of those that are the same channels: those that layers without a kernel of
    their own, shortcuts and depthwise ones, hand on."""
    first = {name: name for layer in wiring.layers.values() for name in (layer.reads, layer.writes)}
    first |= {name: name for name in wiring.whole}
    for path, layer in wiring.layers.items():
        if path not in own_kernel:
            old, new = first[layer.writes], first[layer.reads]
            first = {name: new if one == old else one for name, one in first.items()}
    return first


def by_channel(kernel: Float[Array, "*inputs outputs"], own: Channels) -> Float[Array, "*fed channels"]:
    """A maker's kernel with the channels that it makes as its last axis: what feeds a head lies side by side.

    >>> by_channel(jnp.arange(6.0).reshape(1, 6), Channels("a", ("a",), (), 3, heads=True))[..., 1].tolist()
    [[2.0, 3.0]]
    """
    if not own.heads:
        return kernel
    return kernel.reshape(*kernel.shape[:-1], own.size, -1).swapaxes(-1, -2)


def lengths_of(scores: PyTree[Float[Array, "..."]], own: Channels) -> Float[Array, "channels"]:
    """The 2-norm of all that feeds each channel: 0 of a dead one."""
    kernels = by_name(scores)
    return group_norms(*(by_channel(kernels[maker], own) for maker in own.makers))


def alive_of(scores: PyTree[Float[Array, "..."]], own: Channels) -> Bool[Array, "channels"]:
    """Which channels of a set are alive."""
    kernels, alive = by_name(scores), jnp.zeros(own.size, bool)
    for maker in own.makers:
        kernel = by_channel(kernels[maker], own)
        fed = jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 1)))
        alive = alive | jnp.pad(fed, (0, own.size - fed.size))
    return alive


def survivors(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> dict[str, Int[Array, ""]]:
    """How many channels of each set are alive, by its name."""
    return {own.name: jnp.sum(alive_of(scores, own), dtype=jnp.int32) for own in channels}


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

    >>> own = Channels("a", ("a",), (("b", 3),), 3)
    >>> shrunk = shrink({"a": jnp.array([[4.0, 1.0, 1.0]]), "b": jnp.ones((3, 1))}, 0.5, (own,))
    >>> shrunk["a"].tolist(), shrunk["b"].tolist()
    ([[4.0, 0.0, 0.0]], [[1.0], [0.0], [0.0]])
    """
    leaves = dict(by_name(scores))
    for own in channels:
        layer = pressure[own.name] if isinstance(pressure, Mapping) else Pressure(pressure, smallest)
        strength, fewest = layer.strength, jnp.clip(jnp.maximum(layer.smallest, smallest), 1, own.size)
        lengths = lengths_of(leaves, own)
        cut = strength * jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
        spared = lengths >= jnp.sort(lengths)[own.size - fewest]
        shrunk = jnp.where(lengths > cut, 1 - cut / jnp.where(lengths > 0, lengths, 1), 0)
        factors = jnp.where(spared | (strength <= 0), 1, shrunk)
        for maker in own.makers:
            kernel = leaves[maker]
            each = jnp.repeat(factors, kernel.shape[-1] // own.size) if own.heads else factors[: kernel.shape[-1]]
            own_factors = each.astype(kernel.dtype)
            leaves[maker] = kernel * jnp.expand_dims(own_factors, range(kernel.ndim - 1))
    return silenced(with_names(lambda name, _: leaves[name], scores), channels)


def penalty(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> Float[Array, ""]:
    """The group lasso over channels as a term of the loss: the sum of their norms, each layer's times the mean norm of
    its living channels, into which no gradient flows. A step along it makes norms smaller, and none of them 0."""
    total = jnp.zeros(())
    for own in channels:
        lengths = lengths_of(scores, own)
        scale = jnp.sum(lengths) / jnp.maximum(jnp.sum(lengths > 0), 1)
        total += jax.lax.stop_gradient(scale) * jnp.sum(lengths)
    return total


def silenced(scores: PyTree[Float[Array, "..."]], channels: tuple[Channels, ...]) -> PyTree[Float[Array, "..."]]:
    """Scores in which all that reads a dead channel is 0."""
    leaves = dict(by_name(scores))
    for own in channels:
        alive = alive_of(leaves, own)
        for reader, size in own.readers:
            kernel = leaves[reader]
            each = jnp.repeat(alive, size // own.size) if own.heads else alive[:size]
            heard = jnp.tile(each, kernel.shape[-2] // size)[:, None]
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
