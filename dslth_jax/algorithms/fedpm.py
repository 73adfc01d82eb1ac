"""FedPM made decentralized: masks drawn at random from learned probabilities. One agent's world.

Isik et al., "Sparse Random Networks for Communication-Efficient Federated Learning", ICLR 2023, where a server averages
the masks that clients draw. That an agent averages its neighbours' masks and its own instead is our adaptation, and so
is evaluation at θ ≥ 1/2. One round, of scores s with θ = sigmoid(s), weights w = ±c and neighbours N:

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
from dslth_jax.algorithm import Algorithm, Batches, Heard, World, mean_with_own
from dslth_jax.algorithms.descent import all_but_last, batch_loss, local_steps
from dslth_jax.algorithms.mce_pl import Agent, Scores, masked_model
from dslth_jax.networks.network import Network, draw_like


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    lr: float | Float[Array, ""] = 0.1  # η
    clamp: float | Float[Array, ""] = 0.01  # how close to 0 and 1 a mean mask may be


def fedpm(network: Network, *, optimizer: optax.GradientTransformation | None = None) -> Algorithm:
    """Decentralized FedPM on `network`; `optimizer` None is Adam, as in the paper."""
    rule = optimizer or optax.scale_by_adam()

    def loss_fn(world: World, scores: Scores, sample: tuple[Array, Batches]) -> tuple[Array, Array]:
        key, batch = sample
        loss = batch_loss(network, masked_model(world, drawn(key, scores)), batch)
        return loss, loss

    def init(key: Key[Array, ""], world: World) -> tuple[Agent, Any]:
        del key
        scores_key, masks_key = jax.random.split(world.key)
        scores = draw_like(scores_key, world.weights, jax.random.normal)
        return Agent(scores, rule.init(scores)), jax.tree.map(masks.pack, drawn(masks_key, scores))

    def send(
        key: Key[Array, ""], world: World, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Any, Any, dict[str, Array]]:
        del heard
        keys = jax.random.split(key, batches.labels.shape[0])
        samples = (keys[:-1], all_but_last(batches))
        objective = lambda scores, sample: loss_fn(world, scores, sample)  # noqa: E731
        scores, state, _, loss = local_steps(objective, rule, *agent, samples, lr=world.hyper.lr)
        message = jax.tree.map(masks.pack, drawn(keys[-1], scores))
        return Agent(scores, state), message, message, {"loss": loss}

    def receive(
        key: Key[Array, ""], world: World, agent: Agent, carry: Any, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, batches
        own = jax.tree.map(lambda bits, s: masks.unpack(bits, s.shape).astype(s.dtype), carry, agent.scores)
        clamp = world.hyper.clamp

        def averaged(share: Array, before: Array) -> Array:
            return jnp.where(heard.degree > 0, jax.scipy.special.logit(jnp.clip(share, clamp, 1 - clamp)), before)

        scores = jax.tree.map(averaged, mean_with_own(own, heard.counts, heard), agent.scores)
        # Masks hide scores that have run away: the loss stays finite, this does not.
        return agent._replace(scores=scores), {"score_magnitude": optax.tree.norm(agent.scores, ord=1)}

    def model(world: World, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        del heard
        likely = jax.tree.map(lambda s: (s >= 0).astype(s.dtype), agent.scores)
        return masked_model(world, likely), likely

    return Algorithm(init, send, receive, model)


def drawn(key: Key[Array, ""], scores: Scores) -> Scores:
    """A mask of every layer, each entry kept with probability sigmoid(s); the gradient is that of the probability."""
    uniform = draw_like(key, scores, jax.random.uniform)

    def one(s: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
        probability = jax.nn.sigmoid(s)
        kept = (u < probability).astype(s.dtype)
        return probability + jax.lax.stop_gradient(kept - probability)

    return jax.tree.map(one, scores, uniform)
