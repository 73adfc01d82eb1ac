"""Evaluation: every agent's accuracy on its own test samples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, PyTree, UInt8

from dslth_jax import masks
from dslth_jax.algorithm import Algorithm, Heard, World
from dslth_jax.networks.network import Network
from dslth_jax.over_agents import over_agents
from dslth_jax.population import Shares, State
from dslth_jax.skew import Skew, see

BATCH = 64  # test samples an agent and forward pass: what one pass makes stays in the caches of a CPU
SAMPLED = 1024  # scores of a layer by which agents are compared


class Evaluation(NamedTuple):
    """What every agent is like; leading agents axis."""

    accuracy: Float[Array | np.ndarray, "agents"]  # share of its test samples that it labels right
    density: Float[Array | np.ndarray, "agents"] | None  # share of maskable entries it keeps; None without masks
    masks: PyTree[UInt8[Array | np.ndarray, "agents _"]]  # those it predicts with, as packed bits; or None
    # The magnitudes of some scores of each layer, the same ones of all agents (of ternary masks with signs); None where
    # masks are not of scores.
    magnitudes: PyTree[Float[Array | np.ndarray, "agents _"]] = None
    right: Int[Array | np.ndarray, "agents classes"] | None = None  # test samples of each class that it labels right


def evaluate(
    network: Network,
    algorithm: Algorithm,
    world: World,
    state: State,
    tests: Shares,
    *,
    batch_size: int = BATCH,
    chunk: int | None = None,
) -> Evaluation:
    """The population's accuracies, masks and some scores, by what agents carry, what they heard last, and the settings
    of the last round.

    Args:
        network: whose `apply` predicts with what the algorithm's `model` gives.
        algorithm: whose agents these are.
        world: of any round.
        state: of the population.
        tests: test samples; only the first `sizes` of each agent count, and sizes may be traced.
        batch_size: test samples a forward pass; static.
        chunk: see `over_agents`.
    """
    tests = jax.tree.map(jnp.asarray, tests)

    def one(hyper: Any, agent: Any, heard: Heard, indices: Array, size: Array, skew: Skew) -> Evaluation:
        variables, masks_in_use = algorithm.model(world, hyper, agent, heard)
        capacity = indices.shape[0]

        def logits(samples: Array) -> Array:
            return network.apply(variables, see(tests.images[samples], samples, skew))

        classes = jnp.arange(jax.eval_shape(logits, indices[:1]).shape[-1])

        def count(step: Array, right: Array) -> Array:
            positions = step * batch_size + jnp.arange(batch_size)
            samples = indices[jnp.minimum(positions, capacity - 1)]
            guess = jnp.argmax(logits(samples), axis=-1)
            is_right = (guess == tests.labels[samples]) & (positions < size)
            return right + jnp.sum(is_right[:, None] & (guess[:, None] == classes[None]), axis=0, dtype=jnp.int32)

        right = lax.fori_loop(0, (size + batch_size - 1) // batch_size, count, jnp.zeros(classes.shape, jnp.int32))
        density = None if masks_in_use is None else masks.density(masks_in_use)
        scores = sampled(algorithm.ranked(agent)) if algorithm.ranked else None
        magnitudes = scores if algorithm.ternary else jax.tree.map(jnp.abs, scores)
        packed = jax.tree.map(
            masks.pack, jax.tree.map(masks.planes, masks_in_use) if algorithm.ternary else masks_in_use
        )
        return Evaluation(right.sum() / size, density, packed, magnitudes, right)

    own = (tests.indices, tests.sizes, tests.skew)
    return over_agents(one, state.control.used, state.agents, state.heard, *own, chunk=chunk)


def sampled(scores: PyTree[Float[Array, "..."]]) -> PyTree[Float[Array, "_"]]:
    """At most 1,024 scores of each layer, of entries drawn once and for all."""

    def of_layer(own: Array) -> Array:
        draw, few = np.random.default_rng(0), min(own.size, SAMPLED)
        drawn = draw.choice(own.size, few, replace=False, shuffle=False)
        return own.reshape(-1)[np.sort(drawn)]

    return jax.tree.map(of_layer, scores)
