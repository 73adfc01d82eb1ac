"""Dis-PFL: sparse personal weights, averaged where neighbours have them, pruned and regrown. One agent's world.

Dai et al., "DisPFL: Towards Communication-Efficient Personalized Federated Learning via Decentralized Sparse Training",
ICML 2022. One round t of T, of an agent's weights and biases w, trained under its mask m', and its neighbours N with
theirs; every parameter is masked, biases too:

    send          w and m', 32 bits a kept entry and the bits of the mask, a link
    prune         from m' drop the ⌈f · nnz⌉ smallest |w| of a layer, f = α/2 (1 + cos(π (t−1)/T))        }
    regrow        as many entries that m' has no more: m, at random or by |∂f/∂w| of a minibatch          } receive
    average       w ← m ⊙ (w + Σ_N w_j) / (m' + Σ_N m'_j), 0 where nobody has the entry                   }
    local steps   w ← m ⊙ (w − η (g + wd · w)), g clipped to a norm of 10                                 }

In the authors' program an agent prunes and regrows at the end of a round, and uses the new mask from the next round on.
Here it does so at the beginning of that next round, which comes to the same; an evaluation takes w under the mask with
which it was trained. Nothing is pruned before the first training. Layers' densities are those of Erdős–Rényi kernels,
see `retention.erk_densities`; each agent draws a start mask of its own at random, as in the authors' scripts. Where
links have weights of their own, sums are weighted, an agent's own part by its own weight.
"""

from collections.abc import Collection
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt8

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Batch, Batches, Heard, Message, World, by_name, with_names
from dslth_jax.algorithms.descent import batch_loss, direction, in_turn, local_steps
from dslth_jax.algorithms.local import start_variables
from dslth_jax.naming import expect_choice
from dslth_jax.networks.network import Network, draw_like

GRADIENT_NORM = 10.0  # to which gradients are clipped


class Hyper(NamedTuple):
    """The traced settings of one agent in one round; the population's carry a leading agents axis."""

    kept: PyTree[Int[Array, ""]]  # entries that masks keep of every parameter: see `retention.erk_kept`
    lr: float | Float[Array, ""] = 0.1  # η
    weight_decay: float | Float[Array, ""] = 5e-4  # wd
    prune_rate: float | Float[Array, ""] = 0.5  # α
    label_smoothing: float | Float[Array, ""] = 0.0  # ε


class Agent(NamedTuple):
    """What one agent carries from round to round."""

    variables: PyTree[Float[Array, "..."]]  # weights and biases, 0 where they are masked
    masks: PyTree[UInt8[Array, "_"]]  # under which they were trained, as packed bits
    optimizer: optax.OptState


def dis_pfl(
    network: Network,
    *,
    regrow: Literal["random", "gradient"] = "random",
    head_first: Collection[str] = (),
    optimizer: optax.GradientTransformation | None = None,
) -> Algorithm:
    """Dis-PFL on `network`.

    Args:
        network: whose weights and biases are trained.
        regrow: entries at random, as in the authors' scripts, or those of largest gradient on the last minibatch.
        head_first: layers that are trained before all others in every round, as in `local.local`. A gradient is
            clipped by the norm of what is trained.
        optimizer: makes each clipped gradient a direction, the step size multiplies outside; None is plain descent.
    """
    expect_choice("regrow", regrow, ("random", "gradient"))
    rule = optax.chain(optax.clip_by_global_norm(GRADIENT_NORM), optimizer or optax.identity())

    def loss_fn(hyper: Hyper, variables: Any, batch: Batch) -> tuple[Array, Array]:
        loss = batch_loss(network, variables, batch, hyper.label_smoothing)
        return loss, loss

    def init(key: Key[Array, ""], world: World, hyper: Hyper) -> tuple[Agent, Message]:
        start = start_variables(world)
        mask = masks.largest(above_zero(draw_like(key, start, jax.random.uniform)), hyper.kept)
        bits, variables = jax.tree.map(masks.pack, mask), jax.tree.map(jnp.multiply, start, mask)
        return Agent(variables, bits, rule.init(variables)), Message(by_name(bits), by_name(variables))

    def send(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, heard: Heard, batches: Batches
    ) -> tuple[Agent, None, Message, dict[str, Array]]:
        del key, world, hyper, heard, batches
        return agent, None, Message(by_name(agent.masks), by_name(agent.variables)), {}

    def growth(key: Key[Array, ""], hyper: Hyper, agent: Agent, batches: Batches) -> PyTree[Array]:
        """Numbers of which the largest say where entries grow."""
        if regrow == "random":
            return draw_like(key, agent.variables, jax.random.uniform)
        gradient, *_ = direction(
            partial(loss_fn, hyper), optax.identity(), agent.variables, optax.EmptyState(), batches.extra
        )
        return jax.tree.map(jnp.abs, gradient)

    def receive(
        key: Key[Array, ""], world: World, hyper: Hyper, agent: Agent, carry: None, heard: Heard, batches: Batches
    ) -> tuple[Agent, dict[str, Array]]:
        del carry
        trained = jax.tree.map(lambda bits, w: masks.unpack(bits, w.shape) != 0, agent.masks, agent.variables)
        mask = pruned_and_regrown(world, hyper, agent.variables, trained, growth(key, hyper, agent, batches))
        averaged = where_kept(average(agent.variables, trained, heard), mask)
        variables, state, _, loss = local_steps(
            partial(loss_fn, hyper),
            rule,
            averaged,
            agent.optimizer,
            batches.steps,
            lr=hyper.lr,
            weight_decay=hyper.weight_decay,
            after=lambda w: where_kept(w, mask),
            trained=in_turn(averaged, head_first, len(batches.steps.labels)),
        )
        info = {"loss": loss, "weight_magnitude": optax.tree.norm(variables, ord=1)}
        return Agent(variables, jax.tree.map(masks.pack, mask), state), info

    def model(world: World, hyper: Hyper, agent: Agent, heard: Heard) -> tuple[Any, Any]:
        del world, hyper, heard
        return agent.variables, jax.tree.map(lambda bits, w: masks.unpack(bits, w.shape), agent.masks, agent.variables)

    return Algorithm(init, send, receive, model)


def prune_share(world: World, hyper: Hyper) -> Float[Array, ""]:
    """f, the share of a mask's entries that is dropped and regrown before this round's training; 0 in the first."""
    trained = world.round - 1
    dtype = jnp.result_type(float)
    falling = 1 + jnp.cos(jnp.pi * trained.astype(dtype) / world.rounds.astype(dtype))
    return jnp.where(trained >= 0, hyper.prune_rate / 2 * falling, 0).astype(dtype)


def pruned_and_regrown(
    world: World, hyper: Hyper, variables: PyTree[Array], mask: PyTree[Bool[Array, "..."]], growth: PyTree[Array]
) -> PyTree[Bool[Array, "..."]]:
    """The mask after each layer has dropped its smallest weights, and then grown where `growth` is largest, until it
    has as many entries as it is to keep. Entries that were just dropped may grow again."""
    share, kept = prune_share(world, hyper), hyper.kept

    def staying(kept: Array, mask: Array) -> Array:
        before = jnp.sum(mask, dtype=jnp.int32)
        return jnp.minimum(before - jnp.ceil(share * before.astype(share.dtype)).astype(jnp.int32), kept)

    counts = jax.tree.map(staying, kept, mask)
    magnitudes = jax.tree.map(jnp.where, mask, above_zero(jax.tree.map(jnp.abs, variables)), zeros(variables))
    stay = masks.largest(magnitudes, counts)
    candidates = jax.tree.map(jnp.where, stay, zeros(growth), above_zero(growth))
    grown = masks.largest(candidates, jax.tree.map(jnp.subtract, kept, counts))
    return jax.tree.map(jnp.logical_or, stay, grown)


def average(variables: PyTree[Array], mask: PyTree[Bool[Array, "..."]], heard: Heard) -> PyTree[Array]:
    """Each entry's mean over those among an agent and its neighbours that have the entry. Where nobody who weighs
    anything has it, it stays as it is, which is 0 if the agent has not got it either."""

    def one(name: str, w: Array, m: Array) -> Array:
        if name not in heard.values:
            return w
        own = heard.own.astype(w.dtype)
        have = own * m.astype(w.dtype) + heard.masks[name].astype(w.dtype)
        return jnp.where(have > 0, (own * w + heard.values[name]) / jnp.where(have > 0, have, 1), w)

    return with_names(one, variables, mask)


def where_kept(variables: PyTree[Array], mask: PyTree[Bool[Array, "..."]]) -> PyTree[Array]:
    """Variables, and 0 where the mask keeps nothing."""
    return jax.tree.map(lambda w, m: jnp.where(m, w, 0), variables, mask)


def above_zero(magnitudes: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "..."]]:
    """Magnitudes, raised to the smallest number that a mask can keep."""
    return jax.tree.map(lambda leaf: jnp.maximum(leaf, jnp.finfo(leaf.dtype).smallest_normal), magnitudes)


def zeros(like: PyTree[Array]) -> PyTree[Array]:
    """Zeros of the same shapes."""
    return jax.tree.map(jnp.zeros_like, like)
