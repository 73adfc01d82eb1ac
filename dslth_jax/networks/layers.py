"""What networks with norms are built of: convolutions that say which channels live, stages of blocks of which some may
be absent, and layers of tokens."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from dslth_jax.networks.convolution import convolve
from dslth_jax.networks.network import Role, uniform_by_fan_in
from dslth_jax.networks.norms import fed, group_norm, groups_left, groups_of
from dslth_jax.networks.operations import product
from dslth_jax.networks.wiring import cut_of, is_cut, parameter, placed, taken

Flow = TypeVar("Flow")  # what flows through a block: a `Stream`, or tokens


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Channels times a factor, rounded to a multiple: at least one.

    >>> [scaled(channels, 0.3, 4) for channels in (2, 16, 64)]
    [4, 4, 20]
    """
    return multiple * max(1, int(channels * width / multiple + 0.5))


class Stream(NamedTuple):
    """What flows through a network with norms."""

    values: Array  # (batch, height, width, channels); a dead channel is 0 everywhere
    live: Array  # (channels,) of bool: which ones anything feeds, by the kernels in use up to here


def all_live(images: Array) -> Stream:
    """The stream that begins with images."""
    return Stream(images, jnp.ones(images.shape[-1], bool))


def activated(stream: Stream) -> Stream:
    """After a ReLU, which leaves dead channels at 0."""
    return stream._replace(values=nn.relu(stream.values))


def through(stage: nn.Module, blocks: Sequence[nn.Module], stream: Flow) -> Flow:
    """The stream after all blocks of a stage, of which the first one is always there."""
    first, *further = blocks
    stream = first(stream)
    for block in further:
        stream = unless_absent(stage, block, stream)
    return stream


class Stage(nn.Module):
    """Blocks of one resolution; the first one has the stride, and is always there."""

    block: Callable[..., nn.Module]  # of a stride and a name
    blocks: int
    stride: int

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        strides = [self.stride] + [1] * (self.blocks - 1)
        return through(self, [self.block(stride, name=f"block{n}") for n, stride in enumerate(strides, 1)], stream)


def unless_absent(stage: nn.Module, block: nn.Module, stream: Flow) -> Flow:
    """The stream after a block of a stage, whose shortcut is the identity; a block without kept weights is absent.

    The block has masked kernels alone, and no frozen parameters such as biases. Where agents go one after another, as
    on CPUs, nobody computes an absent block. Where several are computed at once, it is computed with those of the
    others, and then left out.
    """
    own = stage.variables.get("params", {}).get(str(block.name))
    if is_cut(stage):
        return stream if own is None else block(stream)
    if own is None:  # the parameters are being made
        return block(stream)
    alone: Any = block.clone(parent=None)
    # Look at all kernels: without its keys a block of a transformer still adds something.
    present = jnp.any(jnp.stack([jnp.any(kernel != 0) for kernel in jax.tree.leaves(own)]))
    return lax.cond(present, lambda stream: alone.apply({"params": own}, stream), lambda stream: stream, stream)


def normed(layer: nn.Module, values: Array, channels: int, live: Callable[[], Array]) -> Stream:
    """What a layer of so many channels hands on, after a group norm over the live ones. Of a cut layer, channels have
    the groups that they had, and it is known which ones live."""
    if (cut := cut_of(layer)) is None:
        alive = live()
        return Stream(group_norm(values, groups_of(channels), alive), alive)
    alive = jnp.asarray(cut.live)
    values = group_norm(values, groups_left(cut.numbers, cut.of), alive)
    return Stream(placed(layer, values), placed(layer, alive))


class NormedConv(nn.Module):
    """A convolution without bias, padded to keep its images' sides but for the stride, and a group norm behind it."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "convolution"}

    features: int
    side: int  # odd
    stride: int = 1

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        values, live = taken(self, stream.values), taken(self, stream.live)
        shape = (self.side, self.side, values.shape[-1], self.features)
        kernel = parameter(self, "kernel", uniform_by_fan_in, shape, values.dtype)
        if self.side == 1:
            values = product(values[:, :: self.stride, :: self.stride], kernel[0, 0])
        else:
            values = convolve(values, kernel, self.side // 2, self.stride)
        return normed(self, values, self.features, lambda: fed(kernel, live))


class NormedDepthwise(nn.Module):
    """A 3x3 convolution of each channel by itself, and a group norm behind it."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "depthwise"}

    stride: int = 1

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        values, live = taken(self, stream.values), taken(self, stream.live)
        channels = values.shape[-1]
        kernel = parameter(self, "kernel", uniform_by_fan_in, (3, 3, 1, channels), values.dtype)
        values = convolve(values, kernel, 1, self.stride, groups=channels)
        return normed(self, values, channels, lambda: live & fed(kernel))


class Projection(nn.Module):
    """A linear layer without bias, of each token by itself."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "linear"}

    features: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        tokens = taken(self, tokens)
        shape = (tokens.shape[-1], self.features)
        kernel = parameter(self, "kernel", uniform_by_fan_in, shape, tokens.dtype)
        return placed(self, product(tokens, kernel))


class AttentionProjection(Projection):
    """One that makes queries, keys or values."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "attention"}
