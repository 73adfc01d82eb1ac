"""Residual networks for small images, with group norms (He et al., CVPR 2016).

A network is a stem, stages and a head. A stage's first block, `stage2/block1`, changes the number of channels and the
resolution, but for the first stage's. Further ones keep both, and their shortcut is the identity: a network without
one of them is the same network, with fewer blocks.
"""

from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from dslth_jax.networks.layers import NormedConv, Stage, Stream, activated, all_live, scaled
from dslth_jax.networks.network import Linear
from dslth_jax.networks.operations import global_average_pool
from dslth_jax.networks.wiring import IMAGES, Layer, Wiring, is_cut, placed


def blocks_of(stage: int, blocks: int) -> tuple[str, ...]:
    """The names of a stage's blocks.

    >>> blocks_of(2, 2)
    ('stage2/block1', 'stage2/block2')
    """
    return tuple(f"stage{stage}/block{number}" for number in range(1, blocks + 1))


def heads_of(stages: int, exits: bool) -> tuple[str, ...]:
    """The names of the layers that make logits: one behind every stage, or the last alone.

    >>> heads_of(3, True)
    ('exit1', 'exit2', 'head')
    """
    return (*(f"exit{number}" for number in range(1, stages) if exits), "head")


class Block(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), of 3x3 convolutions, where x fits the sum."""

    features: int
    stride: int
    projected: bool  # where x does not fit: by a 1x1 convolution, or by every stride-th pixel and further channels of 0

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        inner = activated(NormedConv(self.features, side=3, stride=self.stride, name="conv1")(stream))
        inner = NormedConv(self.features, side=3, name="conv2")(inner)
        shortcut = self.shortcut(stream)
        return activated(Stream(inner.values + shortcut.values, inner.live | shortcut.live))

    def shortcut(self, stream: Stream) -> Stream:
        values, live = stream
        if self.stride == 1 and (is_cut(self) or self.features == values.shape[-1]):
            return stream
        if self.projected:
            return NormedConv(self.features, side=1, stride=self.stride, name="shortcut")(stream)
        fewer = values[:, :: self.stride, :: self.stride]
        if is_cut(self):
            return Stream(placed(self, fewer), placed(self, live))
        further = self.features - values.shape[-1]
        return Stream(jnp.pad(fewer, ((0, 0), (0, 0), (0, 0), (0, further))), jnp.pad(live, (0, further)))


class ResNet(nn.Module):
    """A stem of 3x3 at full resolution, stages, the mean over all pixels, and a linear head.

    With exits there is a head behind every stage, and the logits are of all heads, (exits, batch, classes).
    """

    classes: int
    width: float = 1.0
    exits: bool = False
    channels: ClassVar[tuple[int, ...]]  # of each stage, the stem having those of the first
    blocks: ClassVar[int]  # of each stage
    projected: ClassVar[bool]
    smallest_side: ClassVar[int] = 4

    @nn.compact
    def __call__(self, values: Array) -> Array:
        features = [scaled(channels, self.width, 4) for channels in self.channels]
        stream, logits = activated(NormedConv(features[0], side=3, name="stem")(all_live(values))), []
        for number, own in enumerate(features, 1):
            stride = 1 if number == 1 else 2
            block = partial(Block, own, projected=self.projected)
            stream = Stage(block, self.blocks, stride, name=f"stage{number}")(stream)
            if self.exits or number == len(features):
                head = Linear(self.classes, name=f"exit{number}" if number < len(features) else "head")
                logits.append(head(global_average_pool(stream.values)))
        return jnp.stack(logits) if self.exits else logits[0]

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the blocks of each stage."""
        return tuple(blocks_of(number, self.blocks) for number in range(1, len(self.channels) + 1))

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the layers that make logits."""
        return heads_of(len(self.channels), self.exits)

    @property
    def wiring(self) -> Wiring:
        """Which layers read and make which channels: after each sum of a block there is another set."""
        stream, layers = "stem", {"stem": Layer(IMAGES, "stem", "groups")}
        for number, blocks in enumerate(self.stages, 1):
            for block in blocks:
                projected = self.projected and number > 1 and block == blocks[0]
                layers[f"{block}/conv1"] = Layer(stream, f"{block}/conv1", "groups")
                layers[f"{block}/conv2"] = Layer(f"{block}/conv1", block, "groups")
                if projected:
                    layers[f"{block}/shortcut"] = Layer(stream, block, "groups")
                else:
                    layers[block] = Layer(stream, block)
                stream = block
            if self.exits or number == len(self.stages):
                head = f"exit{number}" if number < len(self.stages) else "head"
                layers[head] = Layer(stream, head)
        return Wiring(layers)


class ResNet18(ResNet):
    """ResNet-18 with the usual stem for 32x32 images: 11,164,352 masked entries for 10 classes."""

    channels: ClassVar[tuple[int, ...]] = (64, 128, 256, 512)
    blocks: ClassVar[int] = 2
    projected: ClassVar[bool] = True
    smallest_side: ClassVar[int] = 8


class ResNet20(ResNet):
    """ResNet-20 of He et al. for CIFAR-10, shortcuts without parameters (their option A): 268,336 masked entries."""

    channels: ClassVar[tuple[int, ...]] = (16, 32, 64)
    blocks: ClassVar[int] = 3
    projected: ClassVar[bool] = False
