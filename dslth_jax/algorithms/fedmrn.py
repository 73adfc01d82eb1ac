"""FedMRN made decentralized: weights that neighbours learn from masks of random noise. One agent's world.

Li et al., "Masked Random Noise for Communication-Efficient Federated Learning", ACM MM 2024. There a client codes the
change of its weights as noise times a mask, one bit an entry, and the server draws the same noise from a seed. Here is
no server, and nobody has the weights that have changed. So every agent has a public copy x̂ of its weights, which its
neighbours know from its messages alone, and codes x − x̂, as in CHOCO-SGD (Koloskova et al., ICML 2019). This is our
adaptation. All start from the shared random weights and biases, x̂ too. S is the weighted mean of the neighbours'
copies, which an agent keeps up from their bits. One round, with the symbols of `dsgd`, the noise n, its size ν and the
strength γ of the mixing:

    local steps   x ← x − η (∂f/∂x + wd · x), as in `local`                          }
    noise         n = ±ν mean |x − x̂| of the layer                                   }
    mask          m ~ Bernoulli((1 + (x − x̂) / n) / 2), clipped to [0, 1]            } send m and |n| by layer
    copies        x̂ ← x̂ + n (2m − 1),  S ← S + Σ_N a_j n_j (2m_j − 1) / Σ_N a_j      }
    mixing        x ← x + γ (x̄ − x̂),  x̄ = (a_0 x̂ + Σ_N a_j S) / (a_0 + Σ_N a_j)      } receive

With γ = 1 and copies that are exact this is DSGD that averages after its local steps. In a silent round only these
happen. S holds what neighbours have ever sent: links must lose nothing and stay as they are.

FedMRN's masks are of 0 and 1 or of −1 and 1, its noise has one magnitude or uniform ones. Here masks are of −1 and 1,
and a layer has one magnitude; signs are drawn anew in every round, alike for all agents, so that bits of neighbours can
be summed. Of the square of a normal x − x̂ this leaves 0.45 behind each message (at ν = 0.8), masks of 0 and 1 leave
0.63, uniform noise 0.60 and 0.72, each at its best ν. An entry is told without bias where |x − x̂| ≤ |n|; a ν that
makes this so nearly everywhere, such as 2, adds more noise than it tells, and copies run away. FedMRN's noise is of one
size for a whole run; here it follows x − x̂, or copies would never settle. Masks are drawn for sending alone, not in
training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, by_name, own_signs, sum_of_signs, with_names
from dslth_jax.algorithms import local
from dslth_jax.keys import reproducible
from dslth_jax.networks.network import Network, draw_like

NOISE = 2**31 + 3  # sets the key of the noise apart from those that `population` makes of the same key


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    lr: float | Float[Array, ""] = 0.05  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    mixing_step: float | Float[Array, ""] = 0.5  # γ
    noise: float | Float[Array, ""] = 0.8  # ν
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    variables: PyTree[Float[Array, "..."]]  # weights and biases, as `Network.apply` takes them
    optimizer: optax.OptState
    public: PyTree[Float[Array, "..."]]  # x̂
    neighbours: PyTree[Float[Array, "..."]]  # S


def fedmrn(network: Network, *, optimizer: optax.GradientTransformation | None = None) -> Algorithm:
    """Decentralized FedMRN of all weights and biases of `network`; `optimizer` as in `local`."""
    alone = local.local(network, optimizer=optimizer)

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        (variables, state), _ = alone.init(key, world, learning(hyper))
        nothing = by_name(jax.tree.map(jnp.zeros_like, variables))
        bits = {name: masks.pack(zeros) for name, zeros in nothing.items()}
        sizes = {name: jnp.zeros((), zeros.dtype) for name, zeros in nothing.items()}
        return Agent(variables, state, variables, variables), Message(bits, scales=sizes)

    @reproducible
    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, Message, Message, dict[str, Array]]:
        before = local.Agent(agent.variables, agent.optimizer)
        trained, info = alone.receive(key, world, learning(hyper), before, None, heard, batches)
        agent = agent._replace(**trained._asdict())
        error = jax.tree.map(jnp.subtract, agent.variables, agent.public)
        sizes = jax.tree.map(lambda e: size_of(hyper.noise, e), error)
        uniform = draw_like(key, error, jax.random.uniform)

        chances = jax.tree.map(chance, error, sizes, signs(world, error))
        bits = jax.tree.map(lambda u, p: masks.pack(u < p), uniform, chances)
        message = Message(by_name(bits), scales=by_name(sizes))
        return agent, message, message, info

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: Message, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del key, batches

        def told(name: str, known: Array, sign: Array) -> Array:
            return jnp.where(heard.spoke, known + sign * own_signs(carry, name, known.shape), known)

        def told_by_all(name: str, known: Array, sign: Array) -> Array:
            if name not in heard.masks:
                return known
            weight = heard.weight[name].astype(known.dtype)
            return known + sign * sum_of_signs(heard, name) / jnp.where(weight > 0, weight, 1)

        def mixed(name: str, x: Array, public: Array, neighbours: Array) -> Array:
            if name not in heard.masks:
                return x
            weight = heard.weight[name].astype(x.dtype)
            whole = heard.own.astype(x.dtype) + weight
            share = weight / jnp.where(whole > 0, whole, 1)  # 0 in a silent round
            return x + hyper.mixing_step * share * (neighbours - public)

        common = signs(world, agent.variables)
        public = with_names(told, agent.public, common)
        neighbours = with_names(told_by_all, agent.neighbours, common)
        variables = with_names(mixed, agent.variables, public, neighbours)
        agent = agent._replace(variables=variables, public=public, neighbours=neighbours)
        return agent, {"weight_magnitude": optax.tree.norm(variables, ord=1)}

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, None]:
        del world, hyper, heard
        return agent.variables, None

    return Algorithm(init, send, receive, model, adds_up=True)


def learning(hyper: Hyper) -> local.Hyper:
    """The settings of the local steps."""
    return local.Hyper(hyper.lr, hyper.weight_decay, hyper.label_smoothing)


@reproducible
def signs(world: World, like: PyTree[Array]) -> PyTree[Float[Array, "..."]]:
    """The signs of this round's noise, -1 and 1, which all agents draw alike; nobody sends them."""
    key = jax.random.fold_in(jax.random.fold_in(world.key, NOISE), world.round)
    return draw_like(key, like, jax.random.rademacher)


def chance(
    error: Float[Array, "*shape"], size: Float[Array, ""], sign: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """How likely the mask is 1, so that n (2m − 1) is x − x̂ on average, for n = sign · size; 1/2 where n is 0.

    >>> chance(jnp.array([0.5, 0.5, -3.0]), jnp.array(1.0), jnp.array([1.0, -1.0, 1.0])).tolist()
    [0.75, 0.25, 0.0]
    """
    return jnp.clip((1 + sign * error / jnp.where(size > 0, size, 1)) / 2, 0, 1)


def size_of(noise: float | Float[Array, ""], error: Float[Array, "..."]) -> Float[Array, ""]:
    """|n|, as it is sent: in float32."""
    return (noise * jnp.mean(jnp.abs(error))).astype(jnp.float32).astype(error.dtype)
