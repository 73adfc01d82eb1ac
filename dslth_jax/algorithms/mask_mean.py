"""Masks averaged directly: the ablation of MCE-PL's aggregation tensor. One agent's world.

Tian et al., arXiv 2504.17520: instead of fusing the neighbours' masks into the scores, what is used is the majority of
the masks seen, gradients straight through to the scores. One round, with the symbols of `mcepl`, of an agent's
neighbours N and what it heard of them last:

    own mask      m = Thres(|z|; r)
    majority      M = [ (m + Σ_N m_j) / (1 + |N|) ≥ 1/2 ]
    local step    z ← z − η (g + wd · z),  g = ∂f/∂z at M     } send
    send          m of the new z, or M of it                   }

The paper does not say which of the two is sent. Where majorities are, one that agents start with in common never
changes, since the others outvote each; from unlike masks they thin out until none is left.

Where links have weights of their own, Σ_N is weighted and m has what they leave of 1. Masks that differ have few
entries in common: the majority of eleven independent masks of density 0.3 has one of 0.08. Of an even number of masks a
tie keeps the entry, so that of two the union is left. Where kept weights are scaled by retention, it is that of the
majority.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batches, Heard, World, mean_with_own
from dslth_jax.algorithms.descent import all_but_last, batch_loss, local_steps
from dslth_jax.algorithms.mce_pl import AS_IN_CODE, Agent, MaskRule, Scores, masked_model, mce_pl
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries that the own mask keeps, one number a layer: see `mcepl.kept_by_layer`
    lr: float | Float[Array, ""] = 10.0  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd


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
        start_scores: as MCE-PL's, and `mask_rule` and `optimizer` as well. What an agent starts with counts as sent.
    """
    expect_choice("mask_sent", mask_sent, ("own", "majority"))
    start = mce_pl(network, start_scores=start_scores, optimizer=optimizer).init
    rule = optimizer or optax.identity()

    def init(key: Key[Array, ""], world: World) -> tuple[Agent, Any]:
        agent, _ = start(key, world)
        return agent, jax.tree.map(masks.pack, masks.threshold(agent.scores, world.hyper.kept))

    def majority_model(world: World, in_use: Scores) -> dict[str, Any]:
        # A layer of which nothing is left is one of zeros, whatever it is scaled by.
        kept = jax.tree.map(lambda mask: jnp.maximum(1, jax.lax.stop_gradient(mask).sum().astype(jnp.int32)), in_use)
        return masked_model(world._replace(hyper=world.hyper._replace(kept=kept)), in_use, mask_rule)

    def send(
        key: Key[Array, ""], world: World, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Any, dict[str, Array]]:
        del key

        def loss_fn(scores: Scores, batch: Batches) -> tuple[Array, Array]:
            loss = batch_loss(network, majority_model(world, majority(world, scores, heard)), batch)
            return loss, loss

        steps = {"lr": world.hyper.lr, "weight_decay": world.hyper.weight_decay}
        scores, state, _, loss = local_steps(loss_fn, rule, *agent, all_but_last(batches), **steps)
        mask = masks.threshold(scores, world.hyper.kept) if mask_sent == "own" else majority(world, scores, heard)
        message = jax.tree.map(masks.pack, mask)
        return Agent(scores, state), None, message, {"loss": loss}

    def receive(
        key: Key[Array, ""], world: World, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, carry, heard, batches
        return agent, {"score_magnitude": optax.tree.norm(agent.scores, ord=1)}

    def model(world: World, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        in_use = majority(world, agent.scores, heard)
        return majority_model(world, in_use), in_use

    return Algorithm(init, send, receive, model)


def majority(world: World, scores: Scores, heard: Heard) -> Scores:
    """M of every layer: where at least half of an agent's own mask and those it heard keep an entry."""
    own = masks.threshold(scores, world.hyper.kept)
    shares = mean_with_own(own, heard.counts, heard)

    # Straight through: the gradient of the own mask is that of the majority.
    def decided(mask: Array, share: Array) -> Array:
        return mask + jax.lax.stop_gradient((share >= 0.5).astype(mask.dtype) - mask)

    return jax.tree.map(decided, own, shares)
