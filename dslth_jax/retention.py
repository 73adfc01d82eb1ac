"""Retention: how many entries of each layer an agent's masks keep. One agent's world.

An agent has one retention, a share. A policy makes numbers of entries of it, layer by layer:

    fixed-linear   convolutions keep the share, linear layers one of their own
    uniform        every layer keeps the share
    erk            layers keep in proportion to Σ shape / Π shape, and the share of all together: see `erk_densities`
    global         as many entries in all as uniform keeps, by one threshold for all layers: see `shared_out`

A depthwise kernel has few entries a filter, and keeps them all; a share is of what the other layers have.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import by_name, with_names
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Role, map_layers, of_role

Policy = Literal["fixed-linear", "uniform", "erk", "global"]
POLICIES: tuple[str, ...] = get_args(Policy)


def kept_by_policy(
    weights: PyTree[Any],
    roles: Mapping[str, Role],
    policy: Policy,
    retention: float,
    linear_retention: float | None = None,
) -> PyTree[int]:
    """Entries to keep in each layer at a retention in (0, 1], for `Hyper.kept`.

    `linear_retention` is read by the policy "fixed-linear" alone. Those of the policy "global" say how many there are
    in all; `MaskRule.across_layers` then finds in which layers they lie. All else is as in `kept_by_layer`.

    >>> weights = {"conv": jnp.zeros((3, 3, 8, 8)), "linear": jnp.zeros((64, 4))}
    >>> kept_by_policy(weights, {"conv": "convolution", "linear": "linear"}, "erk", 0.25)
    {'conv': 50, 'linear': 157}
    """
    expect_choice("policy", policy, POLICIES)
    if policy == "erk":
        rest = {name: leaf for name, leaf in by_name(weights).items() if roles[name] != "depthwise"}
        kept = erk_kept(rest, retention) if rest else {}
        return with_names(lambda name, w: kept.get(name, w.size), weights)
    return kept_by_layer(weights, roles, retention, linear_retention if policy == "fixed-linear" else None)


def kept_by_layer(
    weights: PyTree[Any], roles: Mapping[str, Role], retention: float, linear_retention: float | None = None
) -> PyTree[int]:
    """Entries to keep in each layer at a retention in (0, 1], for `Hyper.kept`.

    `weights` gives the layers' shapes, `roles` their kinds, as `Network` has them. `linear_retention` is that of linear
    layers, those of attention too; None means the same for all. Depthwise kernels are kept whole. A retention outside
    (0, 1], or one that keeps nothing of a layer, is a ValueError.

    >>> weights = {"conv": jnp.zeros((5, 5, 3, 64)), "linear": jnp.zeros((192, 10))}
    >>> kept_by_layer(weights, {"conv": "convolution", "linear": "linear"}, 0.3, 0.9)
    {'conv': 1440, 'linear': 1729}
    """
    for name, share in (("retention", retention), ("linear retention", linear_retention)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {share}")
    linear = retention if linear_retention is None else linear_retention
    own_share = partial(of_role, convolution=retention, linear=linear, whole=1.0)
    kept = map_layers(lambda role, w: masks.kept_entries(own_share(role), w.size), roles, weights)
    if min(jax.tree.leaves(kept)) < 1:
        raise ValueError(f"a retention of {min(retention, linear)} keeps nothing of a layer: take a larger one")
    return kept


def shared_out(
    fused: PyTree[Float[Array, "..."]], kept: PyTree[int | Int[Array, ""]], roles: Mapping[str, Role]
) -> PyTree[Int[Array, ""]]:
    """How many entries of each layer lie above one threshold for all layers: the counts for `masks.threshold`.

    The sum of `kept` is kept in all, of the largest |y| · √fan_in, so that layers are compared as if their scores had
    been drawn alike. Ties go to the first layer, and zeros are never kept, as in `masks.threshold`. The largest entry
    of every layer stands before all others, so that no layer is empty; a layer of which nothing is to be kept has no
    entries at all, and a depthwise one keeps its own count.

    >>> fused = {"conv": jnp.array([[4.0], [3.0]]), "head": jnp.array([[1.0, 0.5, 0.25]])}
    >>> counts = shared_out(fused, {"conv": 1, "head": 2}, {"conv": "convolution", "head": "linear"})
    >>> counts["conv"].item(), counts["head"].item()
    (2, 1)
    """
    layers = {name: lax.stop_gradient(leaf) for name, leaf in by_name(fused).items() if roles[name] != "depthwise"}
    counts = {name: jnp.asarray(count, jnp.int32) for name, count in by_name(kept).items()}

    def ranked(name: str, y: Array) -> Array:
        y = jnp.abs(y.reshape(-1).astype(jnp.promote_types(y.dtype, jnp.float32)))
        alive = (y >= jnp.finfo(y.dtype).smallest_normal) & (counts[name] > 0)
        scaled = jnp.where(alive, y * math.sqrt(math.prod(layers[name].shape[:-1])), 0)
        places = lax.iota(jnp.int32, y.size)
        # Two plain reductions: on CPUs an argmax takes several times as long.
        first = jnp.min(jnp.where(scaled == jnp.max(scaled), places, y.size))
        return jnp.where(alive & (places == first), jnp.inf, jnp.minimum(scaled, jnp.finfo(y.dtype).max))

    if not layers:
        return kept
    total = sum((counts[name] for name in layers), start=jnp.int32(0))
    chosen = masks.largest(jnp.concatenate([ranked(name, y) for name, y in layers.items()]), total)
    start = 0
    for name, y in layers.items():
        counts[name] = jnp.sum(chosen[start : start + y.size], dtype=jnp.int32)
        start += y.size
    return with_names(lambda name, _: counts[name], fused)


def erk_densities(shapes: list[tuple[int, ...]], density: float) -> list[float]:
    """The share of each layer's entries that is kept, so that `density` is kept of all together (Mocanu et al. 2018).

    A layer keeps in proportion to Σ shape / Π shape: small layers keep larger shares than large ones. A layer that
    would keep more than all of its entries keeps all. Host side.

    >>> [round(share, 3) for share in erk_densities([(8, 8), (64, 64), (8,)], 0.25)]
    [1.0, 0.237, 1.0]
    """
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], got {density}")
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / size for shape, size in zip(shapes, sizes, strict=True)]
    dense: set[int] = set()
    while len(dense) < len(shapes):
        rest = [layer for layer in range(len(shapes)) if layer not in dense]
        left = density * sum(sizes[layer] for layer in rest) - (1 - density) * sum(sizes[layer] for layer in dense)
        scale = left / sum(raw[layer] * sizes[layer] for layer in rest)
        full = {layer for layer in rest if scale * raw[layer] > 1}
        if not full:
            return [1.0 if layer in dense else scale * raw[layer] for layer in range(len(shapes))]
        dense |= full
    return [1.0] * len(shapes)


def erk_kept(variables: PyTree[Any], density: float) -> PyTree[int]:
    """Entries to keep of every parameter, for `Hyper.kept`; `variables` gives the shapes.

    A density outside (0, 1], or one that keeps nothing of a parameter, is a ValueError.
    """
    leaves, tree = jax.tree.flatten(variables)
    densities = erk_densities([leaf.shape for leaf in leaves], density)
    kept = [int(share * math.prod(leaf.shape)) for share, leaf in zip(densities, leaves, strict=True)]
    if min(kept) < 1:
        raise ValueError(f"a retention of {density} keeps nothing of a layer: take a larger one")
    return jax.tree.unflatten(tree, kept)
