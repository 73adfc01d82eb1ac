"""Local training: each agent trains all weights on its own samples, and nothing is sent. One agent's world.

One round, of an agent's weights and biases x, the loss f of a minibatch, the step η and the decay wd:

    local steps   x ← x − η (∂f/∂x + wd · x)     receive

All agents start from the shared random weights and biases.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

import optax
from jaxtyping import Array, Float, Key, PyTree

from dslth_jax.algorithm import Algorithm, Batch, Batches, Heard, Message, World
from dslth_jax.algorithms.descent import batch_loss, in_turn, local_steps
from dslth_jax.networks.network import Network


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    lr: float | Float[Array, ""] = 0.05  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    variables: PyTree[Float[Array, "..."]]  # weights and biases, as `Network.apply` takes them
    optimizer: optax.OptState


def local(
    network: Network, *, head_first: Collection[str] = (), optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """Local training of `network`; biases, frozen where masks are learned, are trained too.

    Args:
        network: whose weights and biases are trained.
        head_first: layers that are trained before all others in every round, see `descent.in_turn`; none are by
            default, and all layers train together. `with_personal_layers` says how a layer goes by its name.
        optimizer: makes each gradient a direction, the step size multiplies outside; None is plain descent.
    """
    rule = optimizer or optax.identity()

    def loss_fn(hyper: Hyper, variables: Any, batch: Batch) -> tuple[Array, Array]:
        loss = batch_loss(network, variables, batch, hyper.label_smoothing)
        return loss, loss

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        del key, hyper
        variables = start_variables(world)
        return Agent(variables, rule.init(variables)), Message()

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        del key, world, hyper, heard, batches
        return agent, None, Message(), {}

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, carry, heard
        variables, state, _, loss = local_steps(
            partial(loss_fn, hyper),
            rule,
            *agent,
            batches.steps,
            lr=hyper.lr,
            weight_decay=hyper.weight_decay,
            trained=in_turn(agent.variables, head_first, len(batches.steps.labels)),
        )
        return Agent(variables, state), {"loss": loss, "weight_magnitude": optax.tree.norm(variables, ord=1)}

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, None]:
        del world, hyper, heard
        return agent.variables, None

    return Algorithm(init, send, receive, model)


def start_variables(world: World) -> dict[str, Any]:
    """All that a weight method trains, as it starts: the shared weights and the biases."""
    return {"params": world.weights, "frozen": world.frozen}
