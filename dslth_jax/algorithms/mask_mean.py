"""Masks averaged directly: the ablation of MCE-PL's aggregation tensor. One agent's world.

Tian et al., arXiv 2504.17520: instead of fusing the neighbours' masks into the scores, what is used is the majority of
the masks seen, gradients straight through to the scores. One round, with the symbols of `mce_pl`, of an agent's
neighbours N and what it heard of them last:

    own mask      m = Thres(|z|; r)
    majority      M = [ (m + Σ_N m_j) / (1 + |N|) ≥ 1/2 ]
    local step    z ← z − η (g + wd · z),  g = ∂f/∂z at M     } send
    send          m of the new z, or M of it                   }

The paper does not say which of the two is sent. Where majorities are sent and all agents start with one common mask,
this mask never changes, because the others outvote each agent. From unlike masks, majorities thin out until nothing is
left.

Where links have weights of their own, Σ_N is weighted, and m weighs what the graph says of one's own value. Masks that
differ have few entries in common: the majority of eleven independent masks of density 0.3 has a density of 0.08. Among
an even number of masks a tie keeps the entry, so that the majority of two is their union. Where kept weights are scaled
by retention, the retention is that of the majority.
"""

from typing import Any, Literal, NamedTuple

import jax
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batch, Batches, Heard, Message, World, mean_with_own, packed
from dslth_jax.algorithms.consensus import Scores
from dslth_jax.algorithms.descent import batch_loss, local_steps
from dslth_jax.algorithms.masked import AS_IN_CODE, MaskRule, masked_model, scores_at_start
from dslth_jax.algorithms.mce_pl import Agent
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network

ROUNDING = 1e-5  # of a weighted mean of masks, so that a tie is one whoever keeps the entry


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries that the own mask keeps, one number a layer: see `retention.kept_by_layer`
    lr: float | Float[Array, ""] = 10.0  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


def mask_mean(
    network: Network,
    *,
    mask_sent: Literal["own", "majority"] = "own",
    start_scores: Literal["shared", "personal"] = "shared",
    mask_rule: MaskRule = AS_IN_CODE,
    optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """Masks of `network` averaged by majority.

    Args:
        network: whose masked weights get scores.
        mask_sent: what neighbours get, an agent's own mask or the majority that it uses.
        start_scores: see `mce_pl`, as for `optimizer`. What an agent starts with counts as sent.
        mask_rule: see `MaskRule`, of which a majority follows the scales of kept weights alone.
    """
    expect_choice("mask_sent", mask_sent, ("own", "majority"))
    if mask_rule.ternary:
        raise ValueError("mask_rule must be binary, got ternary: a majority keeps entries or not, and knows no signs")
    for name in ("smallest_filter", "revive", "across_layers", "among_living"):
        if getattr(mask_rule, name) != getattr(AS_IN_CODE, name):
            raise ValueError(f"mask_rule.{name} must be left out: a majority does not follow it")
    expect_choice("start_scores", start_scores, ("shared", "personal"))
    rule = optimizer or optax.identity()
    # Of what its own mask was to keep a majority keeps another number.
    scales = mask_rule.scale_by_retention or mask_rule.scale_by_mask
    scaled_by_mask = mask_rule._replace(scale_by_retention=False, scale_by_mask=scales)

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        scores = scores_at_start(key, world, start_scores)
        return Agent(scores, rule.init(scores)), packed(masks.threshold(scores, hyper.kept))

    def majority_model(world: World, in_use: Scores) -> dict[str, Any]:
        return masked_model(world, None, in_use, scaled_by_mask)

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        del key

        def loss_fn(scores: Scores, batch: Batch) -> tuple[Array, Array]:
            variables = majority_model(world, majority(hyper, scores, heard))
            loss = batch_loss(network, variables, batch, hyper.label_smoothing)
            return loss, loss

        scores, state, _, loss = local_steps(
            loss_fn, rule, *agent[:2], batches.steps, lr=hyper.lr, weight_decay=hyper.weight_decay
        )
        mask = masks.threshold(scores, hyper.kept) if mask_sent == "own" else majority(hyper, scores, heard)
        return Agent(scores, state), None, packed(mask), {"loss": loss}

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, hyper, carry, heard, batches
        return agent, {"score_magnitude": optax.tree.norm(agent.scores, ord=1)}

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        in_use = majority(hyper, agent.scores, heard)
        return majority_model(world, in_use), in_use

    def of_masks(world: World, kept: Any, in_use: Scores) -> dict[str, Any]:
        del kept  # the scale of kept weights is by those that the majority keeps
        return majority_model(world, in_use)

    return Algorithm(init, send, receive, model, ranked=lambda agent: agent.scores, of_masks=of_masks)


def majority(hyper: Hyper, scores: Scores, heard: Heard) -> Scores:
    """M of every layer: where at least half of an agent's own mask and those it heard keep an entry."""
    own = masks.threshold(scores, hyper.kept)
    shares = mean_with_own(own, heard.masks, heard)
    tie = 0.5 - ROUNDING

    # Straight through: the gradient of the own mask is that of the majority.
    def decided(mask: Array, share: Array) -> Array:
        return mask + jax.lax.stop_gradient((share >= tie).astype(mask.dtype) - mask)

    return jax.tree.map(decided, own, shares)
