"""Looking at a flax module: which parameters it has, which of them masks select from, and which modules make logits."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from dslth_jax.keys import key_of
from dslth_jax.masks import PLANES
from dslth_jax.naming import expect_choice

# An "attention" kernel makes queries, keys or values; it is a linear layer in all but the scale of its weights.
Role = Literal["convolution", "depthwise", "linear", "attention"]


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
    params = flatten_dict(shapes.get("params", {}), sep="/")
    for path in (*params, *flatten_dict(shapes.get("frozen", {}), sep="/")):
        if path.split("/")[-1] in PLANES:
            raise ValueError(f"{name} must not have a parameter {path}: planes of masks are called so, rename it")
    roles = {}
    for path, leaf in params.items():
        owner = owners.get(tuple(path.split("/")[:-1]))
        if role := _role_of(owner, path, leaf):
            roles[path] = role
        several = isinstance(owner, nn.DenseGeneral) and np.size(owner.features) > 1  # as in flax's attention
        if role and (several or isinstance(owner, nn.ConvLocal)):
            raise ValueError(
                f"{name} must have kernels whose last axis alone holds outputs, got {path} of shape {leaf.shape}: take "
                f"Conv in the place of ConvLocal, Dense and a reshape in that of a DenseGeneral of several axes, which "
                f"flax's attention has, too"
            )
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
