"""The exchange against a matrix product in numpy."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax import exchange, masks
from dslth_jax.topology import adjacency_by_name, graph_of

# Layers whose bits fill whole bytes, and some that do not.
LIKE = {"conv": {"kernel": jnp.zeros((3, 2, 2, 3))}, "linear": {"kernel": jnp.zeros((8, 4))}}
AGENTS = 6


def drawn_masks(agents, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.integers(0, 2, (agents, *leaf.shape), dtype=np.uint8), LIKE)


@jax.jit
def packed(stacked):
    return jax.tree.map(jax.vmap(masks.pack), stacked)


def hear_all(sent, graph, agents, over=jax.vmap):
    receivers = jnp.arange(agents, dtype=jnp.int32)
    return over(lambda receiver: exchange.hear(sent, graph, receiver, LIKE))(receivers)


hear_six = jax.jit(lambda sent, graph: hear_all(sent, graph, AGENTS))


def assert_heard(heard, adjacency, stacked):
    """Counts are the adjacency matrix times the masks, degrees its row sums."""

    def check(counts, leaf):
        expected = np.tensordot(adjacency.astype(int), leaf.astype(int), axes=1)
        np.testing.assert_array_equal(counts, expected)

    jax.tree.map(check, heard.counts, stacked)
    np.testing.assert_array_equal(heard.degree, adjacency.sum(1))


@pytest.mark.parametrize("name", ["ring", "complete", "erdos-renyi:0.3", "erdos-renyi:0.6"])
def test_agents_hear_their_neighbours(name):
    adjacency, stacked = adjacency_by_name(name, AGENTS, seed=2), drawn_masks(AGENTS)
    assert_heard(hear_six(packed(stacked), graph_of(adjacency)), adjacency, stacked)


def test_the_receiver_hears_the_sender_and_not_the_other_way():
    adjacency = np.zeros((AGENTS, AGENTS), bool)
    adjacency[2, [0, 5]] = adjacency[4, 2] = True
    stacked = drawn_masks(AGENTS, seed=1)
    assert_heard(hear_six(packed(stacked), graph_of(adjacency)), adjacency, stacked)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(hnp.arrays(bool, (AGENTS, AGENTS)), st.integers(0, 2**32 - 1))
def test_an_edge_of_weight_zero_is_absent(present, seed):
    """Every graph of six agents as weights on the edges of the complete one, so that all share one program."""
    complete = ~np.eye(AGENTS, dtype=bool)
    graph = graph_of(complete)
    graph = graph._replace(weights=present[graph.receivers, graph.senders].astype(np.float32))
    stacked = drawn_masks(AGENTS, seed)
    assert_heard(hear_six(packed(stacked), graph), present & complete, stacked)


def test_who_has_no_neighbours_hears_nothing():
    adjacency = ~np.eye(AGENTS, dtype=bool)
    adjacency[3] = False
    stacked = jax.tree.map(np.ones_like, drawn_masks(AGENTS))
    heard = hear_six(packed(stacked), graph_of(adjacency))
    assert heard.degree[3] == 0
    assert not any(np.any(counts[3]) for counts in jax.tree.leaves(heard.counts))


def test_without_any_edge_nobody_hears_anything():
    nothing, stacked = np.zeros((AGENTS, AGENTS), bool), drawn_masks(AGENTS)
    assert_heard(hear_six(packed(stacked), graph_of(nothing)), nothing, stacked)


def test_alone_is_silent():
    stacked = drawn_masks(1)
    heard = exchange.hear(packed(stacked), graph_of(np.zeros((1, 1), bool)), jnp.int32(0), LIKE)
    jax.tree.map(np.testing.assert_array_equal, heard, exchange.silence(LIKE, 1))


def test_all_at_once_is_one_after_another():
    adjacency = adjacency_by_name("erdos-renyi:0.5", AGENTS, seed=4)
    sent, graph = packed(drawn_masks(AGENTS)), graph_of(adjacency)
    together = hear_six(sent, graph)
    apart = jax.jit(lambda sent, graph: hear_all(sent, graph, AGENTS, over=lambda f: lambda r: jax.lax.map(f, r)))
    jax.tree.map(np.testing.assert_array_equal, together, apart(sent, graph))
    one = jax.jit(lambda sent, graph, receiver: exchange.hear(sent, graph, receiver, LIKE))
    for agent in range(AGENTS):
        alone = one(sent, graph, jnp.int32(agent))
        jax.tree.map(lambda all_, own, agent=agent: np.testing.assert_array_equal(all_[agent], own), together, alone)


@pytest.mark.parametrize(("agents", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16")])
def test_counts_take_the_smallest_type_that_holds_all_neighbours(agents, dtype):
    silence = exchange.silence(LIKE, agents)
    assert jnp.dtype(exchange.counting_dtype(agents)) == dtype
    assert {leaf.dtype.name for leaf in jax.tree.leaves(silence.counts)} == {dtype}
    assert jax.tree.map(np.shape, silence.counts) == jax.tree.map(np.shape, LIKE)
    assert silence.degree.dtype == jnp.int32
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(silence))


def test_a_population_beyond_sixteen_bits_counts_in_thirty_two():
    assert jnp.dtype(exchange.counting_dtype(65_537)) == "uint32"


@pytest.mark.parametrize("agents", [256, 257])
def test_a_count_of_all_neighbours_does_not_wrap(agents):
    """Everybody keeps everything and says so to agent 0: the count is as large as it can be."""
    adjacency = np.zeros((agents, agents), bool)
    adjacency[0, 1:] = True
    everything = jnp.ones(11)
    sent = jnp.tile(masks.pack(everything)[None], (agents, 1))
    heard = exchange.hear(sent, graph_of(adjacency), jnp.int32(0), everything)
    np.testing.assert_array_equal(heard.counts, agents - 1)
    assert heard.degree == agents - 1
