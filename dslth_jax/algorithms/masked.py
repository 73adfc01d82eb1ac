"""From scores to masks to kept weights: what all algorithms share that learn masks by scores. One agent's world.

An entry is kept where its score is large; `MaskRule` says how the authors' code and its variants differ in that.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import World
from dslth_jax.algorithms.consensus import Scores
from dslth_jax.channels import kept_of_living, living
from dslth_jax.keys import reproducible
from dslth_jax.networks.network import Role, draw_like, keep_whole, map_layers, uniform_by_fan_in
from dslth_jax.retention import shared_out


class MaskRule(NamedTuple):
    """How fused scores become masks and kept weights, where the authors' code and its variants differ. Static."""

    smallest_filter: int | None = None  # a convolution's filter of at most so many kept entries is dropped
    # A score of exactly zero counts as a tiny positive number. Else it gets no gradient, takes no part in fusion, and
    # moves by what is older than it is, a reused gradient or an optimizer's memory, or by a force or gossip.
    revive: bool = False
    scale_by_retention: bool = False  # divide kept weights by the root of the share their layer is to keep
    ternary: bool = False  # what is kept has the sign of its score, which is learned, too
    across_layers: bool = False  # one threshold for all layers; shares to keep are those of the mask in use then
    scale_by_mask: bool = False  # divide kept weights by the root of the share that the mask in use keeps
    among_living: bool = False  # shares to keep are of the entries between channels that are alive


AS_IN_CODE = MaskRule()


@reproducible
def scores_at_start(key: Key[Array, ""], world: World, start_scores: Literal["shared", "personal"]) -> Scores:
    """U(±1/√fan_in) by the agent's own `key`, or by one that is common to all agents."""
    common_key, _ = jax.random.split(world.key)
    return draw_like(key if start_scores == "personal" else common_key, world.weights, uniform_by_fan_in)


def start_mask(uniform: Array, share: Array, ternary: bool) -> Array:
    """A random mask that keeps such a share, of numbers drawn from U[0, 1); a ternary one has either sign alike."""
    kept = uniform < share
    return jnp.where(kept, jnp.where(uniform < share / 2, 1, -1), 0) if ternary else kept


def alive(scores: Scores, rule: MaskRule) -> Scores:
    """The scores, and those of exactly zero revived where the rule says so."""
    return jax.tree.map(masks.revive, scores) if rule.revive else scores


def personal_masks(
    fused: Scores, kept: PyTree[Int[Array, ""]], roles: Mapping[str, Role], rule: MaskRule = AS_IN_CODE
) -> Scores:
    """m = Thres(|y|; r) of every layer, or across all; convolutions then pass through the filter rule, if any."""
    kept = kept_of_living(kept, fused) if rule.among_living else kept
    counts = shared_out(fused, kept, roles) if rule.across_layers else kept
    cut = masks.signed_threshold(fused, counts) if rule.ternary else masks.threshold(fused, counts)
    personal = keep_whole(roles, cut, kept)
    smallest = rule.smallest_filter
    if smallest is None:
        return personal
    return map_layers(lambda role, m: masks.drop_filters(m, smallest) if role == "convolution" else m, roles, personal)


def personal_model(
    world: World, fused: Scores, kept: PyTree[Int[Array, ""]], roles: Mapping[str, Role], rule: MaskRule = AS_IN_CODE
) -> tuple[dict[str, Any], Scores]:
    """The variables of v = w ⊙ m, and the masks m, from the fused scores y."""
    personal = personal_masks(fused, kept, roles, rule)
    return masked_model(world, kept, personal, rule), personal


def masked_model(
    world: World, kept: PyTree[Int[Array, ""]] | None, personal: Scores, rule: MaskRule = AS_IN_CODE
) -> dict[str, Any]:
    """The variables of v = w ⊙ m, for masks m that keep so many entries of each layer.

    Only a rule that scales by retention reads `kept`; it may be None for others. A layer that keeps nothing is zeros.
    Where channels have died, `kept` still says what is kept of a whole layer, and a living output has fewer inputs:
    kept weights then have the size of those of a narrower network, ±√(2 / (living fan_in · r)). An input of which the
    mask keeps no entry counts as dead here, as masks say all of a model.
    """
    weights = world.weights
    if rule.scale_by_retention or rule.scale_by_mask:
        # What is left of a layer then has the variance of the whole: ±√(2 / fan_in) becomes ±√(2 / (fan_in · r)).
        by_mask = rule.scale_by_mask or rule.across_layers
        counts = jax.tree.map(in_use, personal) if by_mask else kept
        some = jax.tree.map(lambda count: jnp.maximum(count, 1), counts)
        whole = jax.tree.map(jnp.size, weights)
        if rule.among_living:
            whole = jax.tree.map(lambda mask: size_by_living(mask, by_mask), personal)
        weights = jax.tree.map(lambda w, count, size: w * jnp.sqrt(size / count.astype(w.dtype)), weights, some, whole)
    return {"params": jax.tree.map(jnp.multiply, weights, personal), "frozen": world.frozen}


def size_by_living(mask: Array, by_mask: bool) -> Array:
    """The entries of a layer of which its kept ones would be as many of each living output's inputs, if all inputs were
    alive. Kept ones are those of the mask or, if not `by_mask`, those of a whole layer at the same retention."""
    inputs, outputs = living(mask)
    if by_mask:
        return mask.size // mask.shape[-1] * outputs
    return mask.size * (mask.shape[-2] / jnp.maximum(inputs, 1)).astype(mask.dtype)


def in_use(mask: Array) -> Int[Array, ""]:
    """How many entries a mask keeps."""
    return jnp.sum(jax.lax.stop_gradient(mask) != 0, dtype=jnp.int32)
