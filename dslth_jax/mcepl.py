"""MCE-PL: personal masks over one shared random network (Tian et al., arXiv 2504.17520). One agent's world.

The paper's symbols: w the shared random weights, z an agent's scores, m its mask, m̄ the mean mask of its neighbours,
a the amplitude, y = z + a · sign(z) ⊙ m̄ the fused scores, r the retention, R the group lasso and λ its weight, f the
loss of a minibatch at v = w ⊙ m, η and η' the steps.

One round in the order in which the authors' program runs (the paper fine-tunes before it thresholds and sends):

    local step     z ← z − η (g + wd · z),  g = ∂f/∂z at the mask of (z, m̄ heard last)     }
                   z ← prox of η λ R                                                       } send
    threshold      m = Thres(|z + a · sign(z) ⊙ m̄|; r), sent as bits                        }
    exchange       m̄ ← mean of the neighbours' masks                                          population.round
    fine-tuning    z ← z − η' · g ⊙ m̄                                                       receive

Switches of the method that stand elsewhere or are still to come each have one place: the order and the gradient of
fine-tuning in `send` and `receive`, its weight in `fine_tune`, a filter rule and `revive` in `personal_masks`, an
optimizer as `mce_pl`'s argument, schedules in the values of `Hyper`, the random weights in `models.py`.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax import group_lasso, masks
from dslth_jax.algorithm import Algorithm, Batches, Heard, World, neighbour_mean
from dslth_jax.models import Network, uniform_by_fan_in

Scores: TypeAlias = PyTree[Float[Array, "..."]]


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis.

    Defaults are those of the authors' code.
    """

    kept: PyTree[Int[Array, ""]]  # entries to keep, one number a layer: see `kept_by_layer`
    lr: float | Float[Array | np.ndarray, ""] = 10.0  # η, the local step
    fine_tune_lr: float | Float[Array | np.ndarray, ""] = 10.0  # η', the fine-tuning step
    weight_decay: float | Float[Array | np.ndarray, ""] = 5e-4  # wd, part of the local step alone
    group_lasso: float | Float[Array | np.ndarray, ""] = 0.0  # λ
    amplitude: float | Float[Array | np.ndarray, ""] = 1.0  # a factor on the adaptive amplitude a


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    scores: Scores
    optimizer: optax.OptState


def mce_pl(
    network: Network,
    *,
    group_lasso_form: Literal["proximal", "penalty"] = "proximal",
    penalty_on: Literal["fused", "scores"] = "fused",
    optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """MCE-PL on `network`.

    Args:
        network: whose masked weights get scores.
        group_lasso_form: λR as a proximal step after the local step, or as a term of the loss.
        penalty_on: what the term of the loss is taken of: the aggregation tensor y (as in the authors' code) or z.
        optimizer: gives the local step's direction from g; the step size multiplies outside. None is plain descent.
    """
    if group_lasso_form not in ("proximal", "penalty"):
        raise ValueError(f"group_lasso_form must be 'proximal' or 'penalty', got {group_lasso_form!r}")
    if penalty_on not in ("fused", "scores"):
        raise ValueError(f"penalty_on must be 'fused' or 'scores', got {penalty_on!r}")
    direction = optimizer or optax.identity()

    def loss_fn(scores: Scores, world: World, heard: Heard, batch: Batches) -> tuple[Array, Array]:
        variables, _ = personal_model(world, scores, heard)
        data_loss = batch_loss(network, variables, batch)
        if group_lasso_form == "proximal":
            return data_loss, data_loss
        kernels = scores if penalty_on == "scores" else fused_scores(world, scores, heard)
        return data_loss + world.hyper.group_lasso * group_lasso.penalty(kernels), data_loss

    def local_step(world: World, agent: Agent, heard: Heard, batch: Batches) -> tuple[tuple[Agent, Scores], Array]:
        """Descend the batch's loss on z; returns the direction too: g, or what the optimizer made of it, no decay."""
        hyper = world.hyper
        gradient, loss = jax.grad(loss_fn, has_aux=True)(agent.scores, world, heard, batch)
        step, optimizer_state = direction.update(gradient, agent.optimizer, agent.scores)
        scores = jax.tree.map(lambda z, g: z - hyper.lr * (g + hyper.weight_decay * z), agent.scores, step)
        return (Agent(scores, optimizer_state), step), loss

    def init(key: Key[Array, ""], world: World) -> tuple[Agent, Any]:
        del key  # scores at the start are shared: all agents draw them from the world's key
        scores_key, masks_key = jax.random.split(world.key)
        scores = common_draw(scores_key, world.weights, uniform_by_fan_in)
        message = common_draw(masks_key, world.weights, jax.random.uniform)
        start = jax.tree.map(lambda u, kept: masks.pack(u < kept / u.size), message, world.hyper.kept)
        return Agent(scores, direction.init(scores)), start

    def send(
        key: Key[Array, ""], world: World, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Scores, Any, dict[str, Array]]:
        del key

        def step(carry: tuple[Agent, Scores], batch: Batches) -> tuple[tuple[Agent, Scores], Array]:
            agent, _ = carry
            return local_step(world, agent, heard, batch)

        # Carry the direction along, for it is the last step's that fine-tuning reuses.
        local_batches = jax.tree.map(lambda x: x[:-1], batches)
        start = (agent, jax.tree.map(jnp.zeros_like, agent.scores))
        (agent, gradient), losses = jax.lax.scan(step, start, local_batches)
        if group_lasso_form == "proximal":
            strength = world.hyper.lr * world.hyper.group_lasso
            shrunk = jax.tree.map(lambda z: group_lasso.proximal_step(z, strength), agent.scores)
            agent = agent._replace(scores=shrunk)
        message = jax.tree.map(masks.pack, personal_masks(world, agent.scores, heard))
        return agent, gradient, message, {"loss": jnp.mean(losses)}

    def receive(
        key: Key[Array, ""], world: World, agent: Agent, carry: Scores, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, batches  # the gradient is the local step's, reused
        scores = fine_tune(world, agent.scores, carry, heard)
        # Masks hide scores that have run away: the loss stays finite, this does not.
        return agent._replace(scores=scores), {"score_magnitude": optax.tree.norm(scores, ord=1)}

    def model(world: World, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        return personal_model(world, agent.scores, heard)

    return Algorithm(init, send, receive, model)


def fused_scores(world: World, scores: Scores, heard: Heard) -> Scores:
    """y of every layer, from an agent's scores and what it heard last."""
    mean = neighbour_mean(heard, jax.tree.leaves(scores)[0].dtype)
    return jax.tree.map(lambda z, m: masks.fuse(z, m, world.hyper.amplitude), scores, mean)


def personal_masks(world: World, scores: Scores, heard: Heard) -> Scores:
    """m = Thres(|y|; r) of every layer."""
    return jax.tree.map(masks.threshold, fused_scores(world, scores, heard), world.hyper.kept)


def personal_model(world: World, scores: Scores, heard: Heard) -> tuple[Any, Scores]:
    """The variables of v = w ⊙ m, and the masks m."""
    personal = personal_masks(world, scores, heard)
    kept = jax.tree.map(jnp.multiply, world.weights, personal)
    return {"params": kept, "frozen": world.frozen}, personal


def fine_tune(world: World, scores: Scores, gradient: Scores, heard: Heard) -> Scores:
    """z ← z − η' · g ⊙ m̄: the more neighbours keep an entry, the further it goes (paper, personalized fine-tuning)."""
    mean = neighbour_mean(heard, jax.tree.leaves(scores)[0].dtype)
    return jax.tree.map(lambda z, g, m: z - world.hyper.fine_tune_lr * g * m, scores, gradient, mean)


def batch_loss(network: Network, variables: Any, batch: Batches) -> Float[Array, ""]:
    """Cross-entropy of one minibatch in nats, the mean over the samples that are present."""
    logits = network.apply(variables, batch.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return jnp.sum(jnp.where(batch.present, losses, 0)) / jnp.sum(batch.present)


def common_draw(key: Key[Array, ""], like: PyTree[Array], draw: Any) -> PyTree[Array]:
    """`draw(key, shape, dtype)` for every leaf of `like`, each with a key of its own."""
    leaves, tree = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(tree, [draw(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)])


def kept_by_layer(weights: PyTree[Any], retention: float, linear_retention: float | None = None) -> PyTree[int]:
    """Entries to keep in each layer at a retention in (0, 1], for `Hyper.kept`.

    `weights` gives the layers' shapes. Convolution kernels have four axes, linear ones two; `linear_retention` None
    means the same for both.
    """
    for name, share in (("retention", retention), ("linear retention", linear_retention)):
        if share is not None and not 0 < share <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {share}")
    linear = retention if linear_retention is None else linear_retention
    kept = jax.tree.map(lambda w: masks.kept_entries(linear if w.ndim == 2 else retention, w.size), weights)
    if min(jax.tree.leaves(kept)) < 1:
        raise ValueError(f"a retention of {min(retention, linear)} keeps nothing of a layer: take a larger one")
    return kept
