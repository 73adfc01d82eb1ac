"""Independent masks: the local step of MCE-PL alone, and nothing is sent. One agent's world.

Tian et al., arXiv 2504.17520, without neighbours: m̄ = 0, so that y = z. One round, with the symbols of `mce_pl`:

    local step    z ← z − η (g + wd · z)       } send
                  z ← prox of η λ R            }

The mask in use is Thres(|z|; r). It is, bit for bit, MCE-PL on a graph without links.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, Key, PyTree

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World
from dslth_jax.algorithms import mce_pl
from dslth_jax.algorithms.mce_pl import Agent
from dslth_jax.networks.network import Network


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries to keep, one number a layer: see `retention.kept_by_layer`
    lr: float | Float[Array, ""] = 10.0  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    group_lasso: float | Float[Array, ""] = 0.0  # λ
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


def independent(network: Network, **switches: Any) -> Algorithm:
    """MCE-PL's local step on `network`; `switches` are those of `mce_pl` that need no neighbours: `group_lasso_form`,
    `start_scores`, `mask_rule`, `optimizer`, `mortal`, `smallest_channels` and `tells_squares`."""
    method = mce_pl.mce_pl(network, **switches)

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        return method.init(key, world, among_nobody(hyper))[0], Message()

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        agent, _, _, info = method.send(key, world, among_nobody(hyper), agent, heard, batches)
        return agent, None, Message(), info

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, world, hyper, carry, heard, batches
        return agent, mce_pl.health(agent.scores, switches.get("mortal"))

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        return method.model(world, among_nobody(hyper), agent, heard)

    return method._replace(init=init, send=send, receive=receive, model=model, start_known=False)


def among_nobody(hyper: Hyper) -> mce_pl.Hyper:
    """MCE-PL's settings; those that are added change nothing where nobody is heard."""
    return mce_pl.Hyper(**hyper._asdict(), fine_tune_lr=0.0, amplitude=0.0)
