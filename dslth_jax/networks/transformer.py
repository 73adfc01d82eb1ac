"""A small vision transformer (Dosovitskiy et al. 2021), without trained norms, biases or codes of places.

As in Beyer et al. 2022, places have a fixed code, and the mean over all tokens goes to the head: no token of its own
stands for the class. Masked are the kernels of patches, queries, keys, values, outputs, both layers of each MLP, and
the head. The code of places lets every channel of the stream live, so norms take all of them.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from dslth_jax.networks.attention import attention, place_code
from dslth_jax.networks.layers import AttentionProjection, Projection, scaled, through
from dslth_jax.networks.network import Linear
from dslth_jax.networks.norms import layer_norm
from dslth_jax.networks.wiring import IMAGES, Attention, Layer, Wiring, cut_of

HEADS = 3


def patches_of(images: Array, side: int) -> Array:
    """Squares of `side` x `side` pixels in reading order, (batch, rows, columns, values); a remainder is left out."""
    batch, (rows, columns), channels = images.shape[0], (size // side for size in images.shape[1:3]), images.shape[3]
    inner = images[:, : rows * side, : columns * side].reshape(batch, rows, side, columns, side, channels)
    return inner.swapaxes(2, 3).reshape(batch, rows, columns, side * side * channels)


class Block(nn.Module):
    """x + attention(norm x), and then x + MLP(norm x)."""

    heads: int

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        width, normed = tokens.shape[-1], layer_norm(tokens)
        query, key, value = (AttentionProjection(width, name=name)(normed) for name in ("query", "key", "value"))
        left = cut_of(self, "value")
        mixed = attention(query, key, value, (left and left.heads) or self.heads, width // self.heads)
        tokens = tokens + Projection(width, name="output")(mixed)
        inner = nn.gelu(Projection(4 * width, name="mlp1")(layer_norm(tokens)))
        return tokens + Projection(width, name="mlp2")(inner)


class ViTTiny(nn.Module):
    """Patches of 4x4 pixels, six blocks of width 192 with three heads: 2,665,344 masked entries for 10 classes. A
    subclass may have another number of blocks, by its `stages`."""

    classes: int
    width: float = 1.0
    smallest_side: ClassVar[int] = 8
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (tuple(f"block{number}" for number in range(1, 7)),)

    @nn.compact
    def __call__(self, values: Array) -> Array:
        width = scaled(192, self.width, 12)  # for three heads, and a code of places in quarters
        patches = patches_of(values, 4)
        batch, rows, columns, _ = patches.shape
        tokens = Projection(width, name="patches")(patches.reshape(batch, rows * columns, -1))
        tokens = tokens + jnp.asarray(place_code(rows, columns, width), tokens.dtype)[None]
        tokens = through(self, [Block(heads=HEADS, name=name) for name in self.stages[0]], tokens)
        return Linear(self.classes, name="head")(jnp.mean(layer_norm(tokens), 1))

    @property
    def wiring(self) -> Wiring:
        """Which layers read and make which channels. Those of tokens are whole, as each place has a code."""
        layers, attentions = {"patches": Layer(IMAGES, "tokens")}, []
        for block in self.stages[0]:
            query, key, value = (f"{block}/{name}" for name in ("query", "key", "value"))
            layers |= {name: Layer("tokens", name) for name in (query, key, value)}
            layers[f"{block}/output"] = Layer(value, "tokens")
            layers[f"{block}/mlp1"] = Layer("tokens", f"{block}/mlp1")
            layers[f"{block}/mlp2"] = Layer(f"{block}/mlp1", "tokens")
            attentions.append(Attention(query, key, value, HEADS))
        return Wiring(layers | {"head": Layer("tokens", "head")}, ("tokens",), attentions)
