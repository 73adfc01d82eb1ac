"""A network: a pure pair of functions that says what its layers are, and how a flax module becomes one.

Every network takes uint8 images, splits its parameters into weights that masks select from and frozen ones, and follows
the weights' dtype. One agent's world.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, PyTree, UInt8

from dslth_jax.keys import key_of, reproducible
from dslth_jax.masks import PLANES
from dslth_jax.naming import expect_choice
from dslth_jax.networks.convolution import convolve
from dslth_jax.networks.operations import elu

# An "attention" kernel makes queries, keys or values; it is a linear layer in all but the scale of its weights.
Role = Literal["convolution", "depthwise", "linear", "attention"]
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
    - `distils`: whether each exit also learns from the others.
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
        shape = (self.side, self.side, images.shape[-1], self.features)
        kernel = self.param("kernel", uniform_by_fan_in, shape, images.dtype)
        return convolve(images, kernel, self.padding)


class Linear(nn.Module):
    """A linear layer whose bias is random and frozen."""

    roles: ClassVar[Mapping[str, Role]] = {"kernel": "linear"}

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
        masked = _tree_of({name: params[name] for name in roles})
        frozen |= {name: params[name] for name in unmasked}
        if weights is not None:
            masked = draw_weights(key, masked, roles, weights)
        if zero_biases:
            frozen |= {name: jnp.zeros_like(leaf) for name, leaf in frozen.items() if name.split("/")[-1] == "bias"}
        return masked, _tree_of(frozen)

    def logits_of(variables: PyTree, images: UInt8[Array, "batch height width channels"]) -> Float[Array, "..."]:
        dtype = jax.tree.leaves(variables["params"])[0].dtype
        inputs = to_unit_range(images, dtype)
        if precision is not None:
            variables, inputs = jax.tree.map(lambda leaf: leaf.astype(precision), (variables, inputs))
        masked, frozen = _by_name(variables["params"]), _by_name(variables["frozen"])
        params = masked | {name: frozen.pop(name) for name in unmasked}
        logits: Any = module.apply({"params": _tree_of(params), "frozen": _tree_of(frozen)}, inputs)
        logits = logits.astype(dtype)
        return elu(logits) if elu_on_logits else logits

    def apply(variables: PyTree, images: UInt8[Array, "batch height width channels"]) -> Float[Array, "batch classes"]:
        return ensemble(logits_of(variables, images))

    stages = tuple(map(tuple, getattr(module, "stages", ())))
    if not getattr(module, "exits", False):
        return Network(init, logits_of, roles, heads, stages)
    return Network(init, apply, roles, heads, stages, logits_of, distils)


def ensemble(logits: Float[Array, "exits batch classes"]) -> Float[Array, "batch classes"]:
    """The logits of the mean of the exits' distributions: their logarithm."""
    return jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - math.log(logits.shape[0])


def look_at(
    module: nn.Module, image_shape: tuple[int, int, int]
) -> tuple[dict[str, Any], dict[str, Role], tuple[str, ...]]:
    """The shapes of a module's variables, the roles of its parameters and its heads, seen by abstract evaluation:
    nothing is computed. A ValueError says why the module cannot be a network."""
    name = f"the module {type(module).__name__}"
    owners: dict[tuple[str, ...], nn.Module] = {}

    def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        owners.pop(context.module.path, None)  # in the order in which modules are applied last
        owners[context.module.path] = context.module
        return call(*args, **kwargs)

    def images_of(batch: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *image_shape), jnp.result_type(float))

    try:
        inspect.signature(type(module).__call__).bind(module, images_of(1))
    except TypeError as error:
        raise ValueError(f"{name} must take images and nothing else ({error}): give other arguments defaults") from None
    with nn.intercept_methods(note):
        shapes = jax.eval_shape(module.init, key_of(0), images_of(1))
    states = ", ".join(sorted(set(shapes) - {"params", "frozen"}))
    if states:
        raise ValueError(
            f"{name} keeps a state ({states}), as nn.BatchNorm does, and a network has parameters alone: take "
            f"nn.GroupNorm instead, and keep constants in the collection frozen"
        )
    params = _by_name(shapes.get("params", {}))
    for path in (*params, *_by_name(shapes.get("frozen", {}))):
        if path.split("/")[-1] in PLANES:
            raise ValueError(f"{name} must not have a parameter {path}: planes of masks are called so, rename it")
    roles = {}
    for path, leaf in params.items():
        if role := _role_of(owners.get(tuple(path.split("/")[:-1])), path, leaf):
            roles[path] = role
    if not roles:
        raise ValueError(
            f"{name} must have a parameter that masks select from, got {', '.join(params) or 'none'}: build it of Conv "
            f'and Linear, or give the class that makes a parameter its role, such as roles = {{"kernel": "linear"}}'
        )
    _check_logits(module, shapes, images_of(2))
    return shapes, roles, _heads_of(module, list(owners), roles)


def _heads_of(module: nn.Module, applied: list[tuple[str, ...]], roles: Mapping[str, Role]) -> tuple[str, ...]:
    """The heads that a module names, else its masked module that is applied last; a ValueError if it has none such."""
    masked = {name.rpartition("/")[0] for name in roles}
    heads = getattr(module, "heads", None) or tuple([path for path in map("/".join, applied) if path in masked][-1:])
    for head in heads:
        if not any(name == head or name.startswith(f"{head}/") for name in masked):
            raise ValueError(f"the heads of {type(module).__name__} must be among {', '.join(masked)}, got {head!r}")
    return tuple(heads)


def _check_logits(module: nn.Module, variables: Any, images: jax.ShapeDtypeStruct) -> None:
    """Raise a ValueError unless the module makes logits of images, of its parameters and these alone."""
    name, batch = f"the module {type(module).__name__}", images.shape[0]
    try:
        logits: Any = jax.eval_shape(module.apply, variables, images)
    except flax.errors.InvalidRngError:
        raise ValueError(
            f"{name} draws random numbers when it is applied, as nn.Dropout does, and a network is a function of "
            f"parameters and images alone: leave that layer out, or make it deterministic"
        ) from None
    except flax.errors.ScopeParamShapeError:
        raise ValueError(
            f"{name} makes parameters of another shape for {batch} images than for one: keep the first axis, the "
            f"batch, apart from all others"
        ) from None
    classes = getattr(module, "classes", None)
    got = ", ".join(f"{leaf.dtype} {leaf.shape}" for leaf in jax.tree.leaves(logits)) or "nothing"
    if not isinstance(logits, jax.ShapeDtypeStruct) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"{name} must return one array of logits, as floats, got {type(logits).__name__} of {got}")
    exits = logits.shape[:1] if getattr(module, "exits", False) else ()
    if logits.shape != (*exits, batch, logits.shape[-1] if classes is None and logits.shape else classes):
        raise ValueError(
            f"{name} must return logits of shape ({batch}, {classes or 'classes'}) for {batch} images, got {got}: let "
            f"its last layer have one output for each class, and keep the batch as the first axis"
        )


def _role_of(owner: nn.Module | None, path: str, leaf: Any) -> Role | None:
    """The role that the module which made a parameter gives it, if any."""
    name = path.split("/")[-1]
    if isinstance(owner, nn.Conv | nn.ConvTranspose | nn.ConvLocal | nn.Dense | nn.DenseGeneral):
        if name != "kernel":
            return None
        if isinstance(owner, nn.Dense | nn.DenseGeneral):
            return "linear"
        return "depthwise" if getattr(owner, "feature_group_count", 1) > 1 and leaf.shape[-2] == 1 else "convolution"
    role = getattr(owner, "roles", {}).get(name)
    if role is not None:
        expect_choice(f"the role of {path}", role, get_args(Role))
    return role


def _by_name(tree: PyTree) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")


def _tree_of(leaves: dict[str, Any]) -> PyTree:
    return unflatten_dict(leaves, sep="/")


def to_unit_range(images: UInt8[Array, "*axes"], dtype: Any) -> Float[Array, "*axes"]:
    """Pixels 0..255 to [-1, 1].

    >>> to_unit_range(jnp.array([0, 255], jnp.uint8), jnp.float32).tolist()
    [-1.0, 1.0]
    """
    return (images.astype(dtype) / 255 - 0.5) / 0.5
