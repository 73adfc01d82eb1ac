"""MCE-PL: personal masks over one shared random network (Tian et al., arXiv 2504.17520). One agent's world.

The paper's symbols: w the shared random weights, z an agent's scores, m its mask, m̄ the mean mask of its neighbours,
a the amplitude, y = z + a · sign(z) ⊙ m̄ the fused scores, r the retention, R the group lasso and λ its weight, f the
loss of a minibatch at v = w ⊙ m, η and η' the steps. One round, in the two orders there are:

    order "code", of the authors' program                order "paper", as published

    local step    z ← z − η (g + wd · z)       }         local step    the same                        }
                  z ← prox of η λ R            } send    fine-tuning   the same, m̄ heard last          } send
    threshold     m = Thres(|y|; r)            }         threshold     the same                        }
    exchange      m̄ ← mean of what is sent               exchange      the same
    fine-tuning   z ← z − η' · g' ⊙ m̄            receive

where g = ∂f/∂z at the mask of (z, m̄ heard last), and g' is g again, or the gradient at the scores after the local step.

The paper's fusion is of masks alone: y moves and z does not, so that what was heard is gone as soon as neighbours send
something else. The other fusion, "force", is ours. It moves z itself, and takes y = z and no fine-tuning:

    local step    the same                                                }
    threshold     m = Thres(|z|; r)                                       } send
    exchange      m̄ ← mean of what is sent                                }
    force         f = (m̄ - mean m̄) - (m̂ - mean m̂),  v ← β v + (1 - β) f   } receive
                  z ← s · max(|z| + κ η v, 1e-9) where v is not 0         }

with m̂ the mean of Thres(|z|; r_j) over the retentions r_j of the neighbours, which is m where all retentions are the
same, s = -1 for z < 0 and else 1, β the momentum of the force (0 unless said), κ its strength, and η the sum of the
steps since the last round of exchange, those of all local steps and silent rounds, also where the agent heard nobody in
it. Where exchanges begin late, the first one counts as many steps as any other. See `consensus`.

Each switch has one place: the start in `init`, the order in `send` and `receive`, the gradient of fine-tuning in
`fine_tuned`, its weight in `fine_tune`, the group lasso in `loss_fn` (penalty) and `local_steps` (proximal), the
optimizer in `descent.py`, the fusion in `fused` and `receive`, channels that die in `channels.py`, the filter rule,
`revive` and the scale of kept weights in `masked.py`, schedules in the values of `Hyper`, the random weights in
`networks`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax import channels, group_lasso, masks
from dslth_jax.algorithm import (
    Algorithm,
    Batch,
    Batches,
    Heard,
    Message,
    World,
    heard_anybody,
    mask_of,
    mean_kept,
    neighbour_mean,
    packed,
    with_names,
)
from dslth_jax.algorithms import consensus, descent
from dslth_jax.algorithms.consensus import Scores
from dslth_jax.algorithms.descent import batch_loss
from dslth_jax.algorithms.masked import (
    AS_IN_CODE,
    MaskRule,
    alive,
    masked_model,
    personal_masks,
    personal_model,
    scores_at_start,
    start_mask,
)
from dslth_jax.channels import Channels
from dslth_jax.keys import reproducible
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network, draw_like


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis.

    Defaults are those of the authors' code.
    """

    kept: PyTree[Int[Array, ""]]  # entries to keep, one number a layer: see `retention.kept_by_layer`
    lr: float | Float[Array, ""] = 10.0  # η, the local step
    fine_tune_lr: float | Float[Array, ""] = 10.0  # η', the fine-tuning step
    weight_decay: float | Float[Array, ""] = 5e-4  # wd, part of the local step alone
    group_lasso: float | Float[Array, ""] = 0.0  # λ; where a controller finds it, a `channels.Pressure` for each layer
    amplitude: float | Float[Array, ""] = 1.0  # a factor on the adaptive amplitude a
    force: float | Float[Array, ""] = 1.0  # κ
    label_smoothing: float | Float[Array, ""] = 0.0  # ε, of the loss


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    scores: Scores
    optimizer: optax.OptState
    stepped: Float[Array, ""] | None = None  # the sum of the steps since the last exchange, where a force needs it
    force: Scores | None = None  # v, where the force has a momentum; without one v is f


def mce_pl(
    network: Network,
    *,
    order: Literal["code", "paper"] = "code",
    fine_tune_gradient: Literal["reused", "recomputed"] = "reused",
    fine_tune_weight: Literal["mean", "touched"] = "mean",
    group_lasso_form: Literal["proximal", "penalty"] = "proximal",
    penalty_on: Literal["fused", "scores"] = "fused",
    start_scores: Literal["shared", "personal"] = "shared",
    fusion: Literal["tensor", "force"] = "tensor",
    force_momentum: float = 0.0,
    mask_sent: Literal["fused", "own"] = "fused",
    mask_rule: MaskRule = AS_IN_CODE,
    tells_squares: bool = False,
    optimizer: optax.GradientTransformation | None = None,
    mortal: tuple[Channels, ...] | None = None,
    smallest_channels: int = 1,
) -> Algorithm:
    """MCE-PL on `network`. Defaults are those of the authors' code.

    Args:
        network: whose masked weights get scores.
        order: "code" sends the mask before fine-tuning, "paper" after it.
        fine_tune_gradient: the last local step's again, or computed anew: on the round's last minibatch, at the scores
            after the local steps, with what was heard last.
        fine_tune_weight: entries move by m̄ times the gradient, or fully where any neighbour keeps them.
        group_lasso_form: λR as a proximal step after the local steps, or as a term of the loss.
        penalty_on: what the term of the loss is taken of: the aggregation tensor y (as in the authors' code) or z.
        start_scores: all agents start with common scores, or each with its own.
        fusion: neighbours' masks enter the aggregation tensor, or pull at the scores; a force does not read `amplitude`
            and `fine_tune_lr` of `Hyper`, nor the switches of fine-tuning, and the tensor does not read `force`.
        force_momentum: β, in [0, 1): how much of the force outlasts an exchange, so that what flips to and fro cancels.
        mask_sent: the mask in use, of the fused scores, or that of an agent's own scores, so that neighbours are not
            told their own opinion again; with a force these are the same. Own masks of shared scores start as
            Thres(|z|; r), others at random, both known from the seed.
        mask_rule: see `MaskRule`.
        tells_squares: the diagnostics of `send` hold `squares`, the spectrum of squared gradients of each layer (see
            `descent.spectrum`): of the optimizer's mean of them where it has one, else of the last direction.
        optimizer: makes each gradient a direction; the step size multiplies outside. None is plain descent. A reused
            gradient is the direction of the step; a recomputed one passes through the optimizer like any other.
        mortal: the channels that may die, from `channels.channels_of`. The group lasso is then of these, and λ relative
            to the mean norm of a layer's living channels: the strength of a proximal step is λ times it, whatever η.
            What is dead stays so; masks keep their shares of what lives. Needs binary masks, and no `revive`.
        smallest_channels: how many channels of a layer do not die.
    """
    expect_choice("order", order, ("code", "paper"))
    expect_choice("fine_tune_gradient", fine_tune_gradient, ("reused", "recomputed"))
    expect_choice("fine_tune_weight", fine_tune_weight, ("mean", "touched"))
    expect_choice("group_lasso_form", group_lasso_form, ("proximal", "penalty"))
    expect_choice("penalty_on", penalty_on, ("fused", "scores"))
    expect_choice("start_scores", start_scores, ("shared", "personal"))
    expect_choice("fusion", fusion, ("tensor", "force"))
    expect_choice("mask_sent", mask_sent, ("fused", "own"))
    if not 0 <= force_momentum < 1:
        raise ValueError(f"force_momentum must lie in [0, 1), got {force_momentum}")
    if mortal is not None:
        if mask_rule.ternary or mask_rule.revive:
            raise ValueError("mask_rule must be binary and without revive where channels die: a score of 0 is dead")
        mask_rule = mask_rule._replace(among_living=True)
    rule, roles = optimizer or optax.identity(), network.roles
    rule = rule if mortal is None else channels.moving_the_living(rule)
    by_force = fusion == "force"
    # What the filter rule drops of a mask is not seen in how much it keeps.
    levels = by_force and not mask_rule.ternary and mask_rule.smallest_filter is None
    start_known = start_scores == "shared" and (by_force or mask_sent == "own")

    def fused(hyper: Hyper, scores: Scores, heard: Heard) -> Scores:
        """y, whose mask is in use."""
        return alive(scores, mask_rule) if by_force else fused_scores(hyper, scores, heard, mask_rule)

    def own_masks(hyper: Hyper, scores: Scores) -> Scores:
        return personal_masks(alive(scores, mask_rule), hyper.kept, roles, mask_rule)

    def loss_fn(scores: Scores, world: World, hyper: Hyper, heard: Heard, batch: Batch) -> tuple[Array, Array]:
        variables, _ = personal_model(world, fused(hyper, scores, heard), hyper.kept, roles, mask_rule)
        data_loss = batch_loss(network, variables, batch, hyper.label_smoothing)
        if group_lasso_form == "proximal":
            return data_loss, data_loss
        kernels = scores if penalty_on == "scores" else fused(hyper, scores, heard)
        whole = group_lasso.penalty(kernels) if mortal is None else channels.penalty(kernels, mortal)
        return data_loss + hyper.group_lasso * whole, data_loss

    def local_steps(
        world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Scores, Array]:
        """Descend each minibatch's loss on z, then the proximal step; returns the last direction and the mean loss."""
        objective = lambda scores, batch: loss_fn(scores, world, hyper, heard, batch)  # noqa: E731
        scores, state, step, loss = descent.local_steps(
            objective, rule, *agent[:2], batches.steps, lr=hyper.lr, weight_decay=hyper.weight_decay
        )
        if group_lasso_form == "proximal" and mortal is not None:
            scores = channels.shrink(scores, hyper.group_lasso, mortal, smallest_channels)
        elif group_lasso_form == "proximal":
            strength = hyper.lr * hyper.group_lasso
            scores = jax.tree.map(lambda z: group_lasso.proximal_step(z, strength), scores)
        taken = jnp.where(world.exchanging, batches.steps.labels.shape[0] * hyper.lr, 0)
        stepped = None if agent.stepped is None else agent.stepped + taken
        return agent._replace(scores=scores, optimizer=state, stepped=stepped), step, loss

    def fine_tuned(
        world: World, hyper: Hyper, agent: Agent, carry: Scores | None, heard: Heard, batches: Batches
    ) -> Agent:
        """After fine-tuning, with the direction in `carry` or with one computed anew."""
        step = carry
        if fine_tune_gradient == "recomputed":
            objective = lambda scores, batch: loss_fn(scores, world, hyper, heard, batch)  # noqa: E731
            step, moved, _ = descent.direction(objective, rule, *agent[:2], batches.extra)
            # An agent that heard nobody has nothing to fine-tune, and its optimizer stays as it was.
            anybody = heard_anybody(heard)
            state = jax.tree.map(lambda new, old: jnp.where(anybody, new, old), moved, agent.optimizer)
            agent = agent._replace(optimizer=state)
        return still_dead(agent, agent._replace(scores=fine_tune(hyper, agent.scores, step, heard, fine_tune_weight)))

    def still_dead(before: Agent, agent: Agent) -> Agent:
        """The agent without what has come to life since, where channels that die stay dead."""
        return agent if mortal is None else agent._replace(scores=channels.held_dead(agent.scores, before.scores))

    @reproducible
    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        scores = scores_at_start(key, world, start_scores)
        if start_known:
            start = own_masks(hyper, scores)
        else:
            _, masks_key = jax.random.split(world.key)
            drawn = draw_like(masks_key, world.weights, jax.random.uniform)
            start = jax.tree.map(lambda u, kept: start_mask(u, kept / u.size, mask_rule.ternary), drawn, hyper.kept)
        stepped = jnp.zeros((), jnp.result_type(*jax.tree.leaves(scores))) if by_force else None
        force = jax.tree.map(jnp.zeros_like, scores) if by_force and force_momentum else None
        return Agent(scores, rule.init(scores), stepped, force), packed(start, mask_rule.ternary)

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Any, Message, dict[str, Array]]:
        del key
        agent, step, loss = local_steps(world, hyper, agent, heard, batches)
        told: dict[str, Any] = {"loss": loss}
        if tells_squares:
            told["squares"] = descent.squares_of(agent.optimizer, step)
        if by_force:
            message = packed(own_masks(hyper, agent.scores), mask_rule.ternary)
            return agent, None if levels else message.masks, message, told
        carry = step if fine_tune_gradient == "reused" else None
        if order == "paper":
            agent, carry = fine_tuned(world, hyper, agent, carry, heard, batches), None
        sent = alive(agent.scores, mask_rule) if mask_sent == "own" else fused(hyper, agent.scores, heard)
        message = packed(personal_masks(sent, hyper.kept, roles, mask_rule), mask_rule.ternary)
        return agent, carry, message, told

    def receive(
        key: Key[Array, ""],
        world: World,
        hyper: Hyper,
        agent: Agent,
        carry: Any,
        heard: Heard,
        batches: Batches,
    ) -> tuple[Agent, dict[str, Array]]:
        del key
        if by_force:
            agent = still_dead(agent, pulled(hyper, agent, carry, heard, force_momentum, mask_rule))
        elif order == "code":
            agent = fine_tuned(world, hyper, agent, carry, heard, batches)
        # Masks hide scores that have run away: the loss stays finite, this does not.
        return agent, health(agent.scores, mortal)

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        return personal_model(world, fused(hyper, agent.scores, heard), hyper.kept, roles, mask_rule)

    def of_masks(world: World, kept: PyTree[Int[Array, ""]], personal: Scores) -> dict[str, Any]:
        return masked_model(world, kept, personal, mask_rule)

    ranked = lambda agent: agent.scores  # noqa: E731
    return Algorithm(init, send, receive, model, start_known, ranked, of_masks, levels, mask_rule.ternary)


def fused_scores(hyper: Hyper, scores: Scores, heard: Heard, rule: MaskRule = AS_IN_CODE) -> Scores:
    """y of every layer, from an agent's scores and what it heard last."""
    mean = neighbour_mean(heard, scores)

    def fuse(z: Array, m: Array) -> Array:
        # The mean magnitude of what is alive: dead entries have none.
        more = z.size / jnp.maximum(channels.live_entries(z), 1).astype(z.dtype) if rule.among_living else 1
        return masks.fuse(z, m, hyper.amplitude * more, ternary=rule.ternary)

    return jax.tree.map(fuse, alive(scores, rule), mean)


def health(scores: Scores, mortal: tuple[Channels, ...] | None = None) -> dict[str, Any]:
    """What `receive` tells of an agent's scores; where channels may die, how many of each layer are alive."""
    told: dict[str, Any] = {"score_magnitude": optax.tree.norm(scores, ord=1)}
    return told if mortal is None else told | {"alive": channels.survivors(scores, mortal)}


def fine_tune(
    hyper: Hyper, scores: Scores, step: Scores, heard: Heard, weight: Literal["mean", "touched"] = "mean"
) -> Scores:
    """z ← z − η' · g ⊙ m̄: the more neighbours keep an entry, the further it goes (paper, personalized fine-tuning).

    With the weight "touched" g ⊙ [m̄ > 0]. Where nobody is heard, nothing moves.
    """
    mean = mean_kept(heard, scores)
    if weight == "touched":
        mean = jax.tree.map(lambda m: (m > 0).astype(m.dtype), mean)
    return jax.tree.map(lambda z, g, m: z - hyper.fine_tune_lr * g * m, scores, step, mean)


def pulled(
    hyper: Hyper,
    agent: Agent,
    own: Mapping[str, Array] | None,
    heard: Heard,
    momentum: float = 0.0,
    rule: MaskRule = AS_IN_CODE,
) -> Agent:
    """After the force. `own` is the mask that the agent has sent, if that is what neighbours' are compared with: a
    ternary one, or one that passed through the filter rule; None takes `consensus.own_beside`. In a silent round
    nothing moves and steps add up; where nobody was heard nothing moves, and what lasts of the force waits."""
    assert agent.stepped is not None
    strength = hyper.force * agent.stepped
    if own is None:
        beside = consensus.own_beside(alive(agent.scores, rule), heard)
    else:
        beside = consensus.weighted(with_names(lambda name, z: mask_of(own, name, z), agent.scores), heard)
    living = jax.tree.map(lambda z: z != 0, agent.scores) if rule.among_living else None
    force, lasting = consensus.force(beside, heard, living), agent.force
    if lasting is not None:
        mixed = jax.tree.map(lambda v, f: momentum * v + (1 - momentum) * f, lasting, force)
        lasting = force = consensus.where_heard(heard, mixed, lasting)
    pulls = jax.tree.map(lambda v: strength.astype(v.dtype) * v, force)
    pulls = consensus.where_heard(heard, pulls, jax.tree.map(jnp.zeros_like, pulls))
    stepped = jnp.where(heard.spoke, 0, agent.stepped)
    return agent._replace(scores=consensus.pull(agent.scores, pulls, rule.ternary), stepped=stepped, force=lasting)
