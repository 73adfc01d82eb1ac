"""FedPM made decentralized: masks drawn at random from learned probabilities. One agent's world.

Isik et al., "Sparse Random Networks for Communication-Efficient Federated Learning", ICLR 2023, where a server averages
the masks that clients draw. Here an agent averages its neighbours' masks and its own instead; this is our adaptation,
and so is evaluation at θ ≥ 1/2. One round, of scores s with θ = sigmoid(s), weights w = ±c and neighbours N:

    local step    s ← s − η Adam(∂f/∂s) at w ⊙ m,  m ~ Bernoulli(θ) anew     } send
    send          m ~ Bernoulli(θ) once more                                  }
    average       s ← logit of clamp((m + Σ_N m_j) / (1 + |N|))                 receive, where anybody is heard

Gradients pass straight through the draw to θ. All agents start from common scores, N(0, 1) as in the authors' code; an
agent's optimizer goes on from round to round. An average over few neighbours is coarse: several local steps a round, or
fewer exchanges, leave more of what was learned.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batch, Batches, Heard, Message, World, mean_with_own, packed, with_names
from dslth_jax.algorithms.consensus import Scores
from dslth_jax.algorithms.descent import batch_loss, local_steps
from dslth_jax.algorithms.masked import masked_model
from dslth_jax.algorithms.mce_pl import Agent
from dslth_jax.keys import reproducible
from dslth_jax.networks.network import Network, draw_like, keep_whole


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    lr: float | Float[Array, ""] = 0.1  # η
    clamp: float | Float[Array, ""] = 0.01  # how close to 0 and 1 a mean mask may be
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


def fedpm(network: Network, *, optimizer: optax.GradientTransformation | None = None) -> Algorithm:
    """Decentralized FedPM on `network`; `optimizer` None is Adam, as in the paper."""
    rule = optimizer or optax.scale_by_adam()

    def mask_of(key: Key[Array, ""], scores: Scores) -> Scores:
        return keep_whole(network.roles, drawn(key, scores))

    def loss_fn(world: World, hyper: Hyper, scores: Scores, sample: tuple[Array, Batch]) -> tuple[Array, Array]:
        key, batch = sample
        loss = batch_loss(network, masked_model(world, None, mask_of(key, scores)), batch, hyper.label_smoothing)
        return loss, loss

    @reproducible
    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        del key, hyper
        scores_key, masks_key = jax.random.split(world.key)
        scores = draw_like(scores_key, world.weights, jax.random.normal)
        return Agent(scores, rule.init(scores)), packed(mask_of(masks_key, scores))

    @reproducible
    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Any, Message, dict[str, Array]]:
        del heard
        keys = jax.random.split(key, batches.steps.labels.shape[0] + 1)
        samples = (keys[:-1], batches.steps)
        objective = lambda scores, sample: loss_fn(world, hyper, scores, sample)  # noqa: E731
        scores, state, _, loss = local_steps(objective, rule, *agent[:2], samples, lr=hyper.lr)
        message = packed(mask_of(keys[-1], scores))
        return Agent(scores, state), message.masks, message, {"loss": loss}

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: Any, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, batches
        own = with_names(lambda name, s: masks.unpack(carry[name], s.shape).astype(s.dtype), agent.scores)
        clamp = hyper.clamp

        def averaged(name: str, share: Array, before: Array) -> Array:
            if name not in heard.weight:
                return before
            after = jax.scipy.special.logit(jnp.clip(share, clamp, 1 - clamp))
            return jnp.where(heard.weight[name] > 0, after, before)

        scores = with_names(averaged, mean_with_own(own, heard.masks, heard), agent.scores)
        # Masks hide scores that have run away: the loss stays finite, this does not.
        return agent._replace(scores=scores), {"score_magnitude": optax.tree.norm(agent.scores, ord=1)}

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        del hyper, heard
        likely = keep_whole(network.roles, jax.tree.map(lambda s: (s >= 0).astype(s.dtype), agent.scores))
        return masked_model(world, None, likely), likely

    def of_masks(world: World, kept: None, likely: Scores) -> dict[str, Any]:
        return masked_model(world, kept, likely)

    return Algorithm(init, send, receive, model, of_masks=of_masks)


def drawn(key: Key[Array, ""], scores: Scores) -> Scores:
    """A mask of every layer, each entry kept with probability sigmoid(s); the gradient is that of the probability."""
    uniform = draw_like(key, scores, jax.random.uniform)

    def one(s: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
        probability = jax.nn.sigmoid(s)
        kept = (u < probability).astype(s.dtype)
        return probability + jax.lax.stop_gradient(kept - probability)

    return jax.tree.map(one, scores, uniform)
