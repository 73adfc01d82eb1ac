"""DSGD: decentralized SGD, weights averaged over neighbours and then trained. One agent's world.

Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?", NeurIPS 2017. Gradients are taken at the
average, as later programs do (D-PSGD in that of Dai et al.); Lian et al. take them at the agent's own x, while x
travels to neighbours. One round, of an agent's weights and biases x, its neighbours N, the links' weights a and its own
weight a_0 (1 where links are uniform, 1 − Σ_N a_j for Metropolis weights, which are doubly stochastic as the theory
asks):

    send          x, 32 bits an entry and link
    average       x ← (a_0 x + Σ_N a_j x_j) / (a_0 + Σ_N a_j)      } receive
    local steps   x ← x − η (∂f/∂x + wd · x), as in `local`        }

All agents start from the shared random weights and biases. With a personal head (`with_personal_layers`), which is
neither sent nor averaged, the local steps are those of FedPer (Arivazhagan et al. 2019), which train head and base
together, or of FedRep (Collins et al., ICML 2021), which train the head first; both have a server.
"""

from collections.abc import Collection
from typing import Any

import optax
from jaxtyping import Array, Key

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, by_name, mean_with_own
from dslth_jax.algorithms.local import Agent, Hyper, local
from dslth_jax.networks.network import Network

__all__ = ["Agent", "Hyper", "dsgd"]


def dsgd(
    network: Network, *, head_first: Collection[str] = (), optimizer: optax.GradientTransformation | None = None
) -> Algorithm:
    """DSGD of all weights and biases of `network`. Arguments as in `local`; an optimizer's state is never sent."""
    alone = local(network, head_first=head_first, optimizer=optimizer)

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        agent, _ = alone.init(key, world, hyper)
        return agent, Message(values=by_name(agent.variables))

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        del key, world, hyper, heard, batches
        return agent, None, Message(values=by_name(agent.variables)), {}

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        averaged = agent._replace(variables=mean_with_own(agent.variables, heard.values, heard))
        return alone.receive(key, world, hyper, averaged, carry, heard, batches)

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, None]:
        return alone.model(world, hyper, agent, heard)

    return Algorithm(init, send, receive, model)
