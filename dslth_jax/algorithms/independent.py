"""Independent masks: the local step of MCE-PL alone, and nothing is sent. One agent's world.

Tian et al., arXiv 2504.17520, without neighbours: m̄ = 0, so that y = z. One round, with the symbols of `mcepl`:

    local step    z ← z − η (g + wd · z)       } send
                  z ← prox of η λ R            }

The mask in use is Thres(|z|; r). It is, bit for bit, MCE-PL on a graph without links.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax.algorithm import Algorithm, Batches, Heard, World
from dslth_jax.algorithms import mce_pl as mcepl
from dslth_jax.algorithms.mce_pl import Agent, mce_pl
from dslth_jax.networks.network import Network


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries to keep, one number a layer: see `mcepl.kept_by_layer`
    lr: float | Float[Array, ""] = 10.0  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    group_lasso: float | Float[Array, ""] = 0.0  # λ


def independent(network: Network, **switches: Any) -> Algorithm:
    """MCE-PL's local step on `network`; `switches` are those of `mce_pl` that need no neighbours: `group_lasso_form`,
    `start_scores`, `mask_rule` and `optimizer`."""
    method = mce_pl(network, **switches)

    def init(key: Key[Array, ""], world: World) -> tuple[Agent, None]:
        return method.init(key, world)[0], None

    def send(
        key: Key[Array, ""], world: World, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, None, dict[str, Array]]:
        agent, _, _, info = method.send(key, alone(world), agent, nobody(world), batches)
        return agent, None, None, info

    def receive(
        key: Key[Array, ""], world: World, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, carry, heard, batches
        return agent, {"score_magnitude": optax.tree.norm(agent.scores, ord=1)}

    def model(world: World, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        return method.model(alone(world), agent, nobody(world))

    return Algorithm(init, send, receive, model)


def alone(world: World) -> World:
    """The world as MCE-PL knows it; where nobody is heard, its other settings decide nothing."""
    return world._replace(hyper=mcepl.Hyper(**world.hyper._asdict(), fine_tune_lr=0.0, amplitude=0.0))


def nobody(world: World) -> Heard:
    """What is heard where there is nobody."""
    return Heard(jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.uint8), world.weights), jnp.int32(0))
