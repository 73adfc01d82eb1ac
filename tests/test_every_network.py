"""One battery over all networks: whole rounds of three agents, with masks that are heard, as of the small ones."""

import functools
from typing import Any, NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_zoo import NEW, TINY

from dslth_jax import population
from dslth_jax.algorithms.masked import MaskRule
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.graphs import graph_of
from dslth_jax.keys import key_of
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.population import Shares
from dslth_jax.retention import kept_by_layer
from dslth_jax.study.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("name", NEW)]
AGENTS, CLASSES = 3, 4
NAMES = jnp.arange(AGENTS)
LINE = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], bool)
AGENT_KEY = population.agent_key
HASTY = {"xla_backend_optimization_level": 0}  # what is compared is compiled alike


class Built(NamedTuple):
    """The start and a round of graph, samples and agents' names, and how often a round was traced."""

    start: Any
    step: Any
    traces: list[int]


@functools.cache
def built(name: str, chunk: int) -> Built:
    shape, traces = shape_of(name), []
    network = network_by_name(name, shape, CLASSES, width=TINY[name], weights="signed-constant")
    rule = MaskRule(scale_by_retention=True)
    algorithm = mce_pl(network, fusion="force", mask_sent="own", mask_rule=rule)
    kept = kept_by_layer(jax.eval_shape(network.init, jax.random.key(0))[0], network.roles, 0.5, 0.7)
    own = Hyper(kept, lr=0.02, fine_tune_lr=0.0, force=1.0)
    hyper = jax.tree.map(lambda value: np.full(AGENTS, value), own)

    def world(round):
        return population.world_of(network, key_of(0), round, 4)

    def called(names):
        """Agents draw by these names in the place of their numbers."""
        return mock.patch.object(population, "agent_key", lambda w, number, phase: AGENT_KEY(w, names[number], phase))

    @functools.partial(jax.jit, compiler_options=HASTY)
    def start(graph, names):
        with called(names):
            return population.init(algorithm, world(0), hyper, graph, agents=AGENTS, chunk=chunk)

    @functools.partial(jax.jit, compiler_options=HASTY)
    def step(state, graph, samples, names):
        traces.append(1)
        with called(names):
            now = world(state.round)
            return population.round(algorithm, now, hyper, state, samples, graph, batch_size=4, chunk=chunk)

    return Built(start, step, traces)


def shape_of(name: str) -> tuple[int, int, int]:
    side = 32 if name == "vgg11" else 8
    return side, side, 3


def shares_of(name: str, order=(0, 1, 2)) -> Shares:
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (18, *shape_of(name))), jnp.uint8)
    indices = np.arange(18).reshape(AGENTS, 6)[list(order)]
    return Shares(images, jnp.asarray(rng.integers(0, CLASSES, 18)), jnp.asarray(indices), jnp.full(AGENTS, 6))


def played(own: Built, samples: Shares, *, rounds: int = 2, links=LINE, names=NAMES, state=None):
    """State and diagnostics after some rounds, as numpy."""
    graph, info = graph_of(links), None
    state = own.start(graph, names) if state is None else state
    for _ in range(rounds):
        state, info = own.step(state, graph, samples, names)
    return jax.device_get((state, info))


def test_agents_together_are_as_one_by_one(name):
    """To rounding, which in a round turns few bits of masks, and so moves few scores by a force."""
    alone, together = (played(built(name, chunk), shares_of(name), rounds=1) for chunk in (1, AGENTS))
    chex.assert_trees_all_close(alone[1]["loss"], together[1]["loss"], rtol=1e-4)
    start = jax.device_get(built(name, 1).start(graph_of(LINE), NAMES)).agents.scores
    for before, one, other in zip(
        *map(jax.tree.leaves, (start, alone[0].agents.scores, together[0].agents.scores)), strict=True
    ):
        moved = np.abs(one - before).max()
        assert moved > 0
        assert np.mean(np.abs(one - other) > 1e-3 * moved) < 0.01


def test_permuting_agents_permutes_results(name):
    order = [2, 0, 1]
    here = played(built(name, 1), shares_of(name), rounds=1)
    there = played(
        built(name, 1), shares_of(name, order), rounds=1, links=LINE[np.ix_(order, order)], names=NAMES[np.array(order)]
    )
    back = jax.tree.map(lambda leaf: leaf[np.argsort(order)], (there[0].agents, there[0].sent, there[1]))
    chex.assert_trees_all_close(back, (here[0].agents, here[0].sent, here[1]), rtol=1e-5, atol=1e-6)
    assert len(set(here[1]["loss"].tolist())) == AGENTS


def test_a_state_that_was_saved_goes_on_and_compiles_nothing(name, tmp_path):
    own, samples = built(name, 1), shares_of(name)
    half, _ = played(own, samples)
    traced = len(own.traces)
    checkpoint.save(tmp_path, 2, half, {})
    restored = checkpoint.restore(checkpoint.latest(tmp_path), jax.eval_shape(own.start, graph_of(LINE), NAMES))
    chex.assert_trees_all_equal(played(own, samples, state=restored), played(own, samples, rounds=4))
    assert len(own.traces) == traced
