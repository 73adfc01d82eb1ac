"""A network: a pure pair of functions that says what its layers are, and how a flax module becomes one.

Every network takes uint8 images, splits its parameters into weights that masks select from and frozen ones, and follows
the weights' dtype. One agent's world.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, PyTree, UInt8

from dslth_jax.keys import reproducible
from dslth_jax.naming import expect_choice
from dslth_jax.networks.convolution import convolve
from dslth_jax.networks.looking import Role, look_at
from dslth_jax.networks.operations import elu
from dslth_jax.networks.wiring import Cut, Wiring, parameter, placed, taken

Said = TypeVar("Said")


class Network(NamedTuple):
    """A pure pair of functions of one agent's world, and what each of its layers is.

    - `init(key) -> masked, frozen`: the random weights that masks select from, and every other parameter;
    - `apply(variables, images) -> logits`, with variables `{"params": masked, "frozen": frozen}` and uint8 images
      (batch, height, width, channels); logits (batch, classes);
    - `roles`: the kind of each masked leaf, by its name: the key path, such as `conv1/kernel`. A parameter without a
      role is never masked, and so it is frozen;
    - `heads`: the modules that make the logits, such as `linear2`, whose outputs are classes;
    - `stages`: the names of its residual blocks, stage by stage, in order. All but the first of a stage may be absent:
      without a kept weight they are the identity. None where there are none;
    - `exits(variables, images) -> logits` of every head of a network that has several, (exits, batch, classes), where
      those of `apply` are of their mean distribution; None of others;
    - `distils`: whether each exit also learns from the others;
    - `wiring`: which layers read and make which channels, where the network can be cut: see `compaction`;
    - `cut(cuts) -> apply, exits`: the same of what `cuts` say is left of its layers, by their modules' paths.
    """

    init: Callable[[Key[Array, ""]], tuple[PyTree, PyTree]]
    apply: Callable[[PyTree, UInt8[Array, "batch height width channels"]], Float[Array, "batch classes"]]
    roles: Mapping[str, Role]
    heads: tuple[str, ...] = ()
    stages: tuple[tuple[str, ...], ...] = ()
    exits: (
        Callable[[PyTree, UInt8[Array, "batch height width channels"]], Float[Array, "exits batch classes"]] | None
    ) = None
    distils: bool = False
    wiring: Wiring | None = None
    cut: Callable[[Mapping[str, Cut]], tuple[Callable[..., Array], Callable[..., Array] | None]] | None = None


def map_layers(function: Callable[..., Any], roles: Mapping[str, Role], masked: PyTree, *rest: PyTree) -> PyTree:
    """`function(role, leaf, ...)` for every leaf of a pytree like a network's masked weights, and of others like it.

    >>> map_layers(lambda role, size: (role, size), {"last/kernel": "linear"}, {"last": {"kernel": 640}})
    {'last': {'kernel': ('linear', 640)}}
    """

    def one(path: Any, *leaves: Any) -> Any:
        return function(roles[jax.tree_util.keystr(path, simple=True, separator="/")], *leaves)

    return jax.tree_util.tree_map_with_path(one, masked, *rest)


def of_role(role: Role, *, convolution: Said, linear: Said, whole: Said) -> Said:
    """What is said of a layer, such as its retention, by whether masks keep it as a convolution, as a linear layer, or
    whole. Depthwise kernels are kept whole: at a retention of 0.3, 2.7 entries of a 3x3 kernel would be left.
    """
    return {"depthwise": whole, "linear": linear, "attention": linear}.get(role, convolution)


def keep_whole(roles: Mapping[str, Role], masks: PyTree[Array], kept: PyTree[Any] = None) -> PyTree[Array]:
    """Masks of a network's weights, with ones for every layer that is kept whole, if `kept` says that any of it is."""

    def one(role: Role, mask: Array, count: Any) -> Array:
        whole = jnp.where(count > 0, jnp.ones_like(mask), 0)
        return of_role(role, convolution=mask, linear=mask, whole=whole)

    return map_layers(one, roles, masks, jax.tree.map(jnp.size, masks) if kept is None else kept)


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


# What signed constants of a role are multiplied by: after queries, keys and values no activation halves the variance.
GAIN: Mapping[Role, float] = {"attention": 1 / math.sqrt(2)}

Draw = Callable[[Key[Array, ""], tuple[int, ...], Any], Array]
WEIGHTS: dict[str, Draw] = {
    "uniform-by-fan-in": uniform_by_fan_in,
    "signed-constant": signed_constant,
    "uniform": unit_uniform,
}


@reproducible
def draw_like(key: Key[Array, ""], like: PyTree[Array], draw: Draw) -> PyTree[Array]:
    """`draw(key, shape, dtype)` for every leaf of `like`, each with a key of its own."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def draw_weights(key: Key[Array, ""], like: PyTree[Array], roles: Mapping[str, Role], weights: str) -> PyTree[Array]:
    """The weights of a network whose masked leaves are `like` these, drawn as a name of `WEIGHTS` says."""
    drawn = draw_like(key, like, WEIGHTS[weights])
    if weights != "signed-constant":
        return drawn
    return map_layers(lambda role, leaf: leaf * GAIN[role] if role in GAIN else leaf, roles, drawn)


class Conv(nn.Module):
    """A convolution of stride 1 without bias."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "convolution"}

    features: int
    side: int
    padding: int = 0

    @nn.compact
    def __call__(self, images: Array) -> Array:
        images = taken(self, images)
        shape = (self.side, self.side, images.shape[-1], self.features)
        kernel = parameter(self, "kernel", uniform_by_fan_in, shape, images.dtype)
        return placed(self, convolve(images, kernel, self.padding))


class Linear(nn.Module):
    """A linear layer whose bias is random and frozen."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "linear"}

    features: int

    @nn.compact
    def __call__(self, values: Array) -> Array:
        values = taken(self, values)
        shape = (values.shape[-1], self.features)
        kernel = parameter(self, "kernel", uniform_by_fan_in, shape, values.dtype)
        bias = self.variable("frozen", "bias", self.draw_bias, shape, values.dtype)
        return placed(self, values @ kernel + bias.value[None])

    def draw_bias(self, shape: tuple[int, int], dtype: Any) -> Array:
        # Draw as a kernel of this fan-in and take its first row: the bound must be the layer's, not the bias's.
        return uniform_by_fan_in(self.make_rng("params"), shape, dtype)[0]


def network_of(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    *,
    weights: str | None = None,
    zero_biases: bool = False,
    elu_on_logits: bool = False,
    precision: str | None = None,
    distils: bool = False,
) -> Network:
    """A `Network` from a flax module, which is traced once, abstractly, to see what its parameters are.

    Masked are the kernels of this file's `Conv` and `Linear`, those of flax's convolutions and dense layers, and the
    parameters to which a module of yours gives a role: `roles = {"kernel": "linear"}` in the class that makes the
    parameter `kernel`. All other parameters (biases, scales of norms, slopes) and the collection "frozen" are frozen.
    The network's heads are those that the module's field `heads` names, else the masked module that is applied last.
    A module that has a field `wiring` can be cut to what masks leave of it, by `compaction`.

    Args:
        module: takes images in [-1, 1] of any dtype, returns logits.
        image_shape: (height, width, channels).
        weights: a key of `WEIGHTS`, by which every masked leaf is drawn; None leaves it to the module.
        zero_biases: frozen leaves called "bias" are 0 instead of random.
        elu_on_logits: put an ELU on the logits, as the authors' code does.
        precision: the dtype of the network's arithmetic, such as "bfloat16"; None is that of the masked weights.
            Logits and gradients are of the weights' dtype either way.
        distils: see `Network`, of a module whose field `exits` says that its logits are of several heads.

    Raises a ValueError if the module has no parameter to mask, keeps a state, draws at random when it is applied, or
    returns anything but logits (batch, classes), with as many classes as its field `classes` says if it has one.
    """
    if weights is not None:
        expect_choice("weights", weights, tuple(WEIGHTS))
    shapes, roles, heads = look_at(module, image_shape)
    unmasked = set(_by_name(shapes["params"])) - set(roles)

    @reproducible
    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        variables = module.init(key, jnp.zeros((1, *image_shape), jnp.result_type(float)))
        params, frozen = _by_name(variables["params"]), _by_name(variables.get("frozen", {}))
        masked = tree_of({name: params[name] for name in roles})
        frozen |= {name: params[name] for name in unmasked}
        if weights is not None:
            masked = draw_weights(key, masked, roles, weights)
        if zero_biases:
            frozen |= {name: jnp.zeros_like(leaf) for name, leaf in frozen.items() if name.split("/")[-1] == "bias"}
        return masked, tree_of(frozen)

    def cut(cuts: Mapping[str, Cut] | None) -> tuple[Callable[..., Array], Callable[..., Array] | None]:
        constants = {"cuts": tree_of({f"{path}/cut": own for path, own in cuts.items()})} if cuts else {}

        def logits_of(
            variables: PyTree, images: UInt8[Array, "batch height width channels"]
        ) -> Float[Array, "*exits batch classes"]:
            dtype = jax.tree.leaves(variables["params"])[0].dtype
            inputs = to_unit_range(images, dtype)
            if precision is not None:
                variables, inputs = jax.tree.map(lambda leaf: leaf.astype(precision), (variables, inputs))
            masked, frozen = _by_name(variables["params"]), _by_name(variables["frozen"])
            params = masked | {name: frozen.pop(name) for name in unmasked}
            logits: Any = module.apply({"params": tree_of(params), "frozen": tree_of(frozen)} | constants, inputs)
            logits = logits.astype(dtype)
            return elu(logits) if elu_on_logits else logits

        def apply(
            variables: PyTree, images: UInt8[Array, "batch height width channels"]
        ) -> Float[Array, "batch classes"]:
            return ensemble(logits_of(variables, images))

        return (apply, logits_of) if getattr(module, "exits", False) else (logits_of, None)

    apply, exits = cut(None)
    stages = tuple(map(tuple, getattr(module, "stages", ())))
    wiring = getattr(module, "wiring", None)
    distils = distils and exits is not None
    return Network(init, apply, roles, heads, stages, exits, distils, wiring, cut if wiring else None)


def ensemble(logits: Float[Array, "exits batch classes"]) -> Float[Array, "batch classes"]:
    """The logits of the mean of the exits' distributions: their logarithm."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(logits.shape[0])


def _by_name(tree: PyTree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def tree_of(leaves: Mapping[str, Any]) -> PyTree:
    """The pytree whose leaves have these names.

    >>> tree_of({"conv/kernel": 1, "linear/kernel": 2})
    {'conv': {'kernel': 1}, 'linear': {'kernel': 2}}
    """
    return unflatten_dict(leaves, sep="/")


def to_unit_range(images: UInt8[Array, "*axes"], dtype: Any) -> Float[Array, "*axes"]:
    """Pixels 0..255 to [-1, 1].

    >>> to_unit_range(jnp.array([0, 255], jnp.uint8), jnp.float32).tolist()
    [-1.0, 1.0]
    """
    return (images.astype(dtype) / 255 - 0.5) / 0.5
