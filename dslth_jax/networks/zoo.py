"""The networks, as `Network(init, apply)`: the only file that imports flax.

Every network takes uint8 images, splits its parameters into masked kernels (collection "params") and frozen biases
(collection "frozen"), and follows the kernels' dtype. One agent's world. To add a network, write its flax module of
`Conv` and `Linear` and name it in `MODULES`.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Key, PyTree, UInt8

from dslth_jax.naming import expect_choice
from dslth_jax.networks.convolution import convolve, max_pool


class Network(NamedTuple):
    """A pure pair of functions of one agent's world.

    - `init(key) -> masked, frozen`: the random kernels that masks select from, and everything else;
    - `apply(variables, images) -> logits`, with variables `{"params": kernels, "frozen": frozen}` and uint8 images
      (batch, height, width, channels); logits (batch, classes).
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, UInt8[Array, "batch height width channels"]], Float[Array, "batch classes"]]


def uniform_by_fan_in(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """U(±1/√fan_in) for a kernel whose last axis is its outputs: the weights and start scores of the authors' code."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def signed_constant(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """±√(2/fan_in), signs at random (Ramanujan et al., CVPR 2020); a rule of masks may scale it by retention."""
    bound = math.sqrt(2 / math.prod(shape[:-1]))
    return jnp.where(jax.random.bernoulli(key, shape=shape), bound, -bound).astype(dtype)


def unit_uniform(key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """U[-1, 1], the weights of the paper's theorem. Sums over many inputs are large: take small steps."""
    return jax.random.uniform(key, shape, dtype, -1, 1)


Draw = Callable[[Key[Array, ""], tuple[int, ...], Any], Array]
WEIGHTS: dict[str, Draw] = {
    "uniform-by-fan-in": uniform_by_fan_in,
    "signed-constant": signed_constant,
    "uniform": unit_uniform,
}


def draw_like(key: Key[Array, ""], like: PyTree[Array], draw: Draw) -> PyTree[Array]:
    """`draw(key, shape, dtype)` for every leaf of `like`, each with a key of its own."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


class Conv(nn.Module):
    """A convolution of stride 1 without bias."""

    features: int
    side: int
    padding: int = 0

    @nn.compact
    def __call__(self, images: Array) -> Array:
        shape = (self.side, self.side, images.shape[-1], self.features)
        kernel = self.param("kernel", uniform_by_fan_in, shape, images.dtype)
        return convolve(images, kernel, self.padding)


class Linear(nn.Module):
    """A linear layer whose bias is random and frozen."""

    features: int

    @nn.compact
    def __call__(self, values: Array) -> Array:
        shape = (values.shape[-1], self.features)
        kernel = self.param("kernel", uniform_by_fan_in, shape, values.dtype)
        bias = self.variable("frozen", "bias", self.draw_bias, shape, values.dtype)
        return values @ kernel + bias.value[None]

    def draw_bias(self, shape: tuple[int, int], dtype: Any) -> Array:
        # Draw as a kernel of this fan-in and take its first row: the bound must be the layer's, not the bias's.
        return uniform_by_fan_in(self.make_rng("params"), shape, dtype)[0]


class AlexNet(nn.Module):
    """The authors' network for 32x32 images: three 5x5 convolutions, two linear layers, 1,227,328 masked entries."""

    classes: int
    smallest_side: ClassVar[int] = 21  # of an image, so that every pooling has a window

    @nn.compact
    def __call__(self, values: Array) -> Array:
        for number, (features, alpha, pool_padding) in enumerate(((64, 2e-5, 0), (128, 1e-4, 0), (256, 1e-4, 1)), 1):
            values = elu(Conv(features, side=5, padding=1, name=f"conv{number}")(values))
            values = max_pool(pad_with_lowest(local_response_norm(values, alpha), pool_padding))
        values = values.reshape(values.shape[0], -1)
        values = elu(Linear(192, name="linear1")(values))
        return Linear(self.classes, name="linear2")(values)


class SmallNet(nn.Module):
    """For small grey images such as scikit-learn's digits: two 3x3 convolutions and two linear layers."""

    classes: int
    smallest_side: ClassVar[int] = 1

    @nn.compact
    def __call__(self, values: Array) -> Array:
        values = max_pool(pad_with_lowest(elu(Conv(32, side=3, padding=1, name="conv1")(values)), 1))
        values = max_pool(pad_with_lowest(elu(Conv(64, side=3, padding=1, name="conv2")(values)), 1))
        values = values.reshape(values.shape[0], -1)
        values = elu(Linear(128, name="linear1")(values))
        return Linear(self.classes, name="linear2")(values)


class Conv4(nn.Module):
    """Conv-4 of the lottery ticket papers (Frankle and Carbin 2019): 3x3 convolutions in pairs, three linear layers."""

    classes: int
    smallest_side: ClassVar[int] = 4

    @nn.compact
    def __call__(self, values: Array) -> Array:
        for number, features in enumerate((64, 128)):
            values = nn.relu(Conv(features, side=3, padding=1, name=f"conv{2 * number + 1}")(values))
            values = nn.relu(Conv(features, side=3, padding=1, name=f"conv{2 * number + 2}")(values))
            values = max_pool_pairs(values)
        values = values.reshape(values.shape[0], -1)
        for number in (1, 2):
            values = nn.relu(Linear(256, name=f"linear{number}")(values))
        return Linear(self.classes, name="linear3")(values)


class MLP(nn.Module):
    """LeNet-300-100: two hidden linear layers, for images of any size."""

    classes: int
    smallest_side: ClassVar[int] = 1

    @nn.compact
    def __call__(self, values: Array) -> Array:
        values = values.reshape(values.shape[0], -1)
        for number, features in enumerate((300, 100), 1):
            values = nn.relu(Linear(features, name=f"linear{number}")(values))
        return Linear(self.classes, name="linear3")(values)


MODULES: dict[str, Callable[..., nn.Module]] = {"alexnet": AlexNet, "small": SmallNet, "conv4": Conv4, "mlp": MLP}


def network_by_name(name: str, image_shape: tuple[int, int, int], classes: int, **settings: Any) -> Network:
    """The network called `name` in `MODULES`, for images of `image_shape` (height, width, channels).

    `settings` are those of `network_of`.
    """
    expect_choice("model", name, tuple(MODULES))
    smallest = getattr(MODULES[name], "smallest_side", 1)
    if min(image_shape[:2]) < smallest:
        raise ValueError(
            f"the model {name} needs images of at least {smallest} pixels a side, "
            f"got {image_shape[0]}x{image_shape[1]}: choose another --model"
        )
    return network_of(MODULES[name](classes=classes), image_shape, **settings)


def largest_fitting(image_shape: tuple[int, int, int]) -> str:
    """The authors' network where images are large enough for it, else the small one."""
    return "alexnet" if min(image_shape[:2]) >= AlexNet.smallest_side else "small"


def network_of(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    weights: str | None = None,
    zero_biases: bool = False,
    elu_on_logits: bool = False,
    precision: str | None = None,
) -> Network:
    """A `Network` from a flax module: its "params" are masked, its "frozen" collection is not.

    Args:
        module: takes images in [-1, 1] of any dtype, returns logits.
        image_shape: (height, width, channels).
        weights: a key of `WEIGHTS`, by which every kernel is drawn; None leaves it to the module.
        zero_biases: frozen leaves called "bias" are 0 instead of random.
        elu_on_logits: put an ELU on the logits, as the authors' code does.
        precision: the dtype of the network's arithmetic, such as "bfloat16"; None is that of the kernels. Logits and
            gradients are of the kernels' dtype either way.
    """
    if weights is not None:
        expect_choice("weights", weights, tuple(WEIGHTS))

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        variables = module.init(key, jnp.zeros((1, *image_shape), jnp.result_type(float)))
        masked, frozen = variables["params"], variables.get("frozen", {})
        if weights is not None:
            masked = draw_like(key, masked, WEIGHTS[weights])
        if zero_biases:
            frozen = jax.tree_util.tree_map_with_path(
                lambda path, leaf: jnp.zeros_like(leaf) if path[-1].key == "bias" else leaf, frozen
            )
        return masked, frozen

    def apply(variables: PyTree, images: UInt8[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        inputs = to_unit_range(images, dtype)
        if precision is not None:
            variables, inputs = jax.tree.map(lambda leaf: leaf.astype(precision), (variables, inputs))
        logits: Any = module.apply(variables, inputs)
        logits = logits.astype(dtype)
        return elu(logits) if elu_on_logits else logits

    return Network(init, apply)


def to_unit_range(images: UInt8[Array, "*axes"], dtype: Any) -> Float[Array, "*axes"]:
    """Pixels 0..255 to [-1, 1].

    >>> to_unit_range(jnp.array([0, 255], jnp.uint8), jnp.float32).tolist()
    [-1.0, 1.0]
    """
    return (images.astype(dtype) / 255 - 0.5) / 0.5


@jax.custom_vjp
def elu(values: Array) -> Array:
    """x for x > 0, e^x - 1 below. Its gradient rule reads the output, so no input is kept. Reverse mode only."""
    return jnp.where(values > 0, values, jnp.expm1(jnp.minimum(values, 0)))


def _elu_forward(values: Array) -> tuple[Array, Array]:
    output = elu(values)
    return output, output


def _elu_backward(output: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(output > 0, gradient, gradient * (output + 1)),)


elu.defvjp(_elu_forward, _elu_backward)


def pad_with_lowest(images: Array, padding: int) -> Array:
    """`padding` rows and columns of -inf on every side, which no maximum sees."""
    return jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-jnp.inf)


def max_pool_pairs(images: Array) -> Array:
    """Max pooling of 2x2 windows side by side; an odd last row or column is left out, as PyTorch does."""
    height, width = (side - side % 2 for side in images.shape[1:3])
    rows = jnp.maximum(images[:, 0:height:2], images[:, 1:height:2])
    return jnp.maximum(rows[:, :, 0:width:2], rows[:, :, 1:width:2])


def local_response_norm(values: Float[Array, "*axes channels"], alpha: float) -> Float[Array, "*axes channels"]:
    """Local response normalization over channels, size 4, beta 3/4, k 1, as PyTorch defines it.

    x_c / (1 + alpha/4 · Σ x²)^(3/4) over channels c-2 to c+1. Reverse mode only.
    """
    return _response_norm(values, alpha / 4)


def _channel_window(values: Array, before: int, after: int) -> Array:
    """For every channel c the sum over channels c-before to c+after."""
    channels = values.shape[-1]
    padded = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(before, after)])
    return reduce(jnp.add, [padded[..., i : i + channels] for i in range(before + after + 1)])


def _inverse_root(values: Array, scale: float) -> tuple[Array, Array]:
    """s^(-1/2) and s^(-3/4) of s = 1 + scale · (windowed sum of squares): roots cost a fraction of a power."""
    root = lax.rsqrt(1 + scale * _channel_window(values**2, 2, 1))
    return root, root * jnp.sqrt(root)


def _response_norm_value(values: Array, scale: float) -> Array:
    return values * _inverse_root(values, scale)[1]


def _response_norm_forward(values: Array, scale: float) -> tuple[Array, Array]:
    return _response_norm(values, scale), values


def _response_norm_backward(scale: float, values: Array, gradient: Array) -> tuple[Array]:
    root, factor = _inverse_root(values, scale)
    # Keep these passes apart: fused into the window below, each entry would recompute its neighbours' windows.
    direct, through = lax.optimization_barrier((gradient * factor, gradient * factor * values * root**2))
    return (direct - 1.5 * scale * values * _channel_window(through, 1, 2),)


_response_norm = jax.custom_vjp(_response_norm_value, nondiff_argnums=(1,))
_response_norm.defvjp(_response_norm_forward, _response_norm_backward)
