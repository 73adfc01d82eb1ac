"""DSGD: decentralized SGD, weights averaged over neighbours and then trained. One agent's world.

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017, in the order of later
programs, such as D-PSGD in that of Dai et al.: gradients are taken at the average, where Lian et al. take them at the
agent's own x while that travels. One round, of an agent's weights and biases x, its neighbours N and the links' weights
a, if they have any of their own (Metropolis weights are doubly stochastic, as the theory asks):

    send          x, 32 bits an entry and link
    average       x ← (x + Σ_N x_j) / (1 + |N|),  or  (1 − Σ_N a_j) x + Σ_N a_j x_j     } receive
    local steps   x ← x − η (∂f/∂x + wd · x), as in `local`                             }

All agents start from the shared random weights and biases.
"""

from typing import Any

import optax
from jaxtyping import Array, Key

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, mean_with_own
from dslth_jax.algorithms.local import Agent, Hyper, local
from dslth_jax.networks.network import Network

__all__ = ["Agent", "Hyper", "dsgd"]


def dsgd(network: Network, *, optimizer: optax.GradientTransformation | None = None) -> Algorithm:
    """DSGD of all weights and biases of `network`; `optimizer` as in `local`, its state is nobody else's."""
    alone = local(network, optimizer=optimizer)

    def init(key: Key[Array, ""], world: World) -> tuple[Agent, Message]:
        agent, _ = alone.init(key, world)
        return agent, Message(values=agent.variables)

    def send(
        key: Key[Array, ""], world: World, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        del key, world, heard, batches
        return agent, None, Message(values=agent.variables), {}

    def receive(
        key: Key[Array, ""], world: World, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        averaged = agent._replace(variables=mean_with_own(agent.variables, heard.sums, heard))
        return alone.receive(key, world, averaged, carry, heard, batches)

    def model(world: World, agent: Agent, heard: Heard) -> tuple[Any, None]:
        return alone.model(world, agent, heard)

    return Algorithm(init, send, receive, model)
