"""What a forward pass costs: multiply-adds as closed forms have them, or a sentence that says what cannot be seen."""

import re
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from dslth_jax.keys import key_of
from dslth_jax.networks.cost import multiply_adds, positions_of, sizes_of
from dslth_jax.networks.network import Conv, Linear, network_of
from dslth_jax.networks.zoo import network_by_name


def entries(network):
    """How many entries each masked layer has."""
    return sizes_of(jax.eval_shape(network.init, key_of(0))[0])


def seen(forward, shape=(6, 6, 4), **fields):
    """The positions and the sizes of a module's layers."""
    space = {"__annotations__": {"classes": int}, "__call__": nn.compact(forward), "__module__": __name__, **fields}
    network = network_of(type("Odd", (nn.Module,), space)(classes=5), shape)
    return positions_of(network, shape), entries(network)


def test_the_papers_alexnet_takes_41_4_million_multiply_adds():
    network = network_by_name("alexnet", (32, 32, 3), 10)
    positions, sizes = positions_of(network, (32, 32, 3)), entries(network)
    # 5x5 kernels, padding 1: outputs of 30x30, 12x12 and 3x3 pixels.
    assert positions == {
        "conv1/kernel": 900, "conv2/kernel": 144, "conv3/kernel": 9, "linear1/kernel": 1, "linear2/kernel": 1
    }  # fmt: skip
    whole = 900 * 25 * 3 * 64 + 144 * 25 * 64 * 128 + 9 * 25 * 128 * 256 + 1024 * 192 + 192 * 10
    assert multiply_adds(positions, sizes) == whole == 41_382_528
    # Of masks only what they keep counts; of several agents each has its own number.
    kept = {name: np.array([size, size // 2, 0]) for name, size in sizes.items()}
    assert multiply_adds(positions, kept).tolist() == [whole, whole // 2, 0]


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_every_operation_of_flax_counts_as_its_closed_form(precision):
    """Strides, groups, depthwise kernels, a shared kernel, attention-like heads, each at an image of 6x6x4."""

    def forward(module, images):
        values = nn.Conv(8, (3, 3), name="same")(images)  # 36 positions
        values = nn.Conv(8, (3, 3), strides=2, padding="VALID", name="strided")(values)  # 2x2
        values = nn.Conv(8, (2, 2), feature_group_count=8, name="depthwise")(values)  # 4
        values = nn.Conv(4, (1, 1), feature_group_count=2, name="grouped")(values)  # 4
        twice = nn.Dense(4, name="twice")
        values = twice(nn.GroupNorm(2)(nn.relu(twice(values))))  # 4 tokens, two times
        values = nn.DenseGeneral(6, name="heads")(values.reshape(values.shape[0], 4, 4))  # 4 tokens
        values = nn.Dense(5, name="dense")(values.reshape(values.shape[0], -1))
        return values

    shape = (6, 6, 4)
    module = type("Odd", (nn.Module,), {"__call__": nn.compact(forward), "__module__": __name__})
    network = network_of(module(), shape, precision=precision)
    assert positions_of(network, shape) == {
        "same/kernel": 36, "strided/kernel": 4, "depthwise/kernel": 4, "grouped/kernel": 4, "twice/kernel": 8,
        "heads/kernel": 4, "dense/kernel": 1,
    }  # fmt: skip
    sizes = {"depthwise/kernel": 2 * 2 * 8, "grouped/kernel": 8 // 2 * 4}  # of one group's inputs each
    assert sizes.items() <= entries(network).items()


class ByTaps(nn.Module):
    """A depthwise convolution, tap by tap, as products of shifted images."""

    roles: ClassVar[dict[str, str]] = {"kernel": "depthwise"}

    @nn.compact
    def __call__(self, images):
        kernel = self.param("kernel", nn.initializers.ones, (3, 3, 1, images.shape[-1]))
        height, width = (side - 2 for side in images.shape[1:3])
        parts = [
            images[:, i : i + height, j : j + width] * kernel[None, None, i, j] for i in range(3) for j in range(3)
        ]
        return sum(parts)


class Standardized(nn.Module):
    """A kernel that is centred and scaled before it multiplies, in a block that may be absent."""

    roles: ClassVar[dict[str, str]] = {"kernel": "linear"}

    @nn.compact
    def __call__(self, values):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (values.shape[-1],) * 2)
        alive = jnp.any(kernel != 0, axis=0)
        scaled = 2 * (kernel - kernel.mean(0, keepdims=True)) / (1e-5 + kernel.std(0, keepdims=True))
        present = jnp.any(kernel != 0)
        return lax.cond(present, lambda own: own + jnp.where(alive, own @ scaled, 0), lambda own: own, values)


class InTurn(nn.Module):
    """Kernels of several layers in one array, taken in turn."""

    roles: ClassVar[dict[str, str]] = {"kernel": "linear"}

    @nn.compact
    def __call__(self, values):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (3, values.shape[-1], values.shape[-1]))
        return lax.scan(lambda own, one: (own @ one, None), values, kernel)[0]


def test_kernels_are_followed_through_what_moves_or_scales_them():
    def forward(module, images):
        values = ByTaps(name="taps")(images)  # 4x4 positions
        values = InTurn(name="turns")(Standardized(name="standardized")(values))
        return Linear(5, name="head")(Conv(8, side=4, name="conv")(values).reshape(values.shape[0], -1))

    positions, sizes = seen(forward)
    assert positions == {
        "taps/kernel": 16, "standardized/kernel": 16, "turns/kernel": 16, "conv/kernel": 1, "head/kernel": 1
    }  # fmt: skip
    assert sizes["taps/kernel"] == 36
    assert sizes["turns/kernel"] == 48


class Hidden(nn.Module):
    """A kernel whose use nobody can see."""

    way: str
    roles: ClassVar[dict[str, str]] = {"kernel": "linear"}

    @nn.compact
    def __call__(self, values):
        kernel = self.param("kernel", nn.initializers.ones, (values.shape[-1],) * 2)
        if self.way == "fourier":
            return values @ jnp.fft.fft(kernel).real
        if self.way == "another kernel":
            return values @ (kernel @ self.param("other", nn.initializers.ones, kernel.shape))
        if self.way == "half":
            return values @ jnp.concatenate([kernel[:2], jnp.sort(kernel[2:])])
        if self.way == "a loop":
            return lax.while_loop(lambda own: jnp.any(own < 3), lambda own: own @ kernel + 1, values)
        return values


@pytest.mark.parametrize("way", ["fourier", "another kernel", "half", "a loop", "nothing"])
def test_a_layer_that_cannot_be_seen_is_named(way):
    def forward(module, images):
        return Linear(5, name="head")(Hidden(way, name="hidden")(images.mean((1, 2))))

    with pytest.raises(ValueError, match=re.escape("the multiply-adds of hidden/kernel cannot be seen")):
        seen(forward)
