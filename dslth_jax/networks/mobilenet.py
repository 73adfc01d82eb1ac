"""MobileNetV2 for small images, with group norms (Sandler et al., CVPR 2018).

Its 3x3 kernels are depthwise, and no mask thins them out. Named as the residual networks are: a stage's first block is
always there, and the shortcut of further ones is the identity.
"""

from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from dslth_jax.networks.layers import NormedConv, NormedDepthwise, Stage, Stream, all_live, scaled
from dslth_jax.networks.network import Linear
from dslth_jax.networks.operations import global_average_pool
from dslth_jax.networks.residual import blocks_of, heads_of
from dslth_jax.networks.wiring import IMAGES, Layer, Wiring, cut_of, is_cut

# The paper's table 2: expansion, channels, blocks, stride of the first. For 32x32 pixels the stem, and the stage whose
# stride would follow it, keep the resolution.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def clipped(stream: Stream) -> Stream:
    """After a ReLU6."""
    return stream._replace(values=nn.relu(stream.values).clip(max=6))


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 in each of them, 1x1 to few again without activation; added to the input if it fits."""

    features: int
    expansion: int
    stride: int

    @nn.compact
    def __call__(self, stream: Stream) -> Stream:
        channels, inner = stream.values.shape[-1], stream
        if self.expansion > 1:
            inner = clipped(NormedConv(self.expansion * channels, side=1, name="expand")(inner))
        inner = clipped(NormedDepthwise(self.stride, name="depthwise")(inner))
        inner = NormedConv(self.features, side=1, name="project")(inner)
        added = cut_of(self) is not None if is_cut(self) else self.stride == 1 and channels == self.features
        return Stream(inner.values + stream.values, inner.live | stream.live) if added else inner


class MobileNetV2(nn.Module):
    """MobileNetV2 with the usual strides for 32x32 images: 2,202,560 masked entries for 10 classes.

    With exits there is a head behind every stage, the last one behind one convolution more, and the logits are of all
    heads, (exits, batch, classes).
    """

    classes: int
    width: float = 1.0
    exits: bool = False
    smallest_side: ClassVar[int] = 8
    stages: ClassVar[tuple[tuple[str, ...], ...]] = tuple(blocks_of(n, own[2]) for n, own in enumerate(STAGES, 1))

    @nn.compact
    def __call__(self, values: Array) -> Array:
        stream, logits = clipped(NormedConv(scaled(32, self.width, 4), side=3, name="stem")(all_live(values))), []
        for number, (expansion, channels, blocks, stride) in enumerate(STAGES, 1):
            block = partial(InvertedResidual, scaled(channels, self.width, 4), expansion)
            stream = Stage(block, blocks, stride, name=f"stage{number}")(stream)
            if self.exits and number < len(STAGES):
                logits.append(Linear(self.classes, name=f"exit{number}")(global_average_pool(stream.values)))
        stream = clipped(NormedConv(scaled(1280, self.width, 4), side=1, name="last")(stream))
        logits.append(Linear(self.classes, name="head")(global_average_pool(stream.values)))
        return jnp.stack(logits) if self.exits else logits[0]

    @property
    def heads(self) -> tuple[str, ...]:
        """The names of the layers that make logits."""
        return heads_of(len(STAGES), self.exits)

    @property
    def wiring(self) -> Wiring:
        """Which layers read and make which channels: after each block there is another set."""
        stream, channels, layers = "stem", scaled(32, self.width, 4), {"stem": Layer(IMAGES, "stem", "groups")}
        for number, (blocks, (expansion, wide, _, stride)) in enumerate(zip(self.stages, STAGES, strict=True), 1):
            for block in blocks:
                inner, features = stream, scaled(wide, self.width, 4)
                for name in ("expand", "depthwise") if expansion > 1 else ("depthwise",):
                    layers[f"{block}/{name}"] = Layer(inner, f"{block}/{name}", "groups")
                    inner = f"{block}/{name}"
                layers[f"{block}/project"] = Layer(inner, block, "groups")
                if features == channels and (stride == 1 or block != blocks[0]):
                    layers[block] = Layer(stream, block)
                stream, channels = block, features
            if self.exits and number < len(STAGES):
                layers[f"exit{number}"] = Layer(stream, f"exit{number}")
        return Wiring(layers | {"last": Layer(stream, "last", "groups"), "head": Layer("last", "head")})
