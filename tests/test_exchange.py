"""The exchange against a matrix product in numpy: counts exactly, weighted sums as the floats they are."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import slow_but

from dslth_jax import exchange, graphs, masks, population
from dslth_jax.algorithm import Message
from dslth_jax.graphs import Graph, adjacency_of, graph_of, metropolis

# Layers whose bits fill whole bytes, and some that do not.
SHAPES = {"conv/kernel": jnp.zeros((3, 2, 2, 3)), "linear/kernel": jnp.zeros((8, 4))}
LIKE = Message(SHAPES)
AGENTS = 6
COMPLETE = graph_of(~np.eye(AGENTS, dtype=bool))


def drawn_masks(agents, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 2, (agents, *leaf.shape), dtype=np.uint8) for name, leaf in SHAPES.items()}


@jax.jit
def packed(stacked):
    return Message(jax.tree.map(jax.vmap(masks.pack), stacked))


def hear_all(sent, graph, agents, over=jax.vmap):
    receivers = jnp.arange(agents, dtype=jnp.int32)
    return over(lambda receiver: exchange.hear(sent, graph, receiver, LIKE))(receivers)


hear_six = jax.jit(lambda sent, graph: hear_all(sent, graph, AGENTS))


def mixing_of(graph, agents):
    """The mixing matrix without its diagonal, of whole numbers where weights are."""
    mixing = np.zeros((agents, agents), np.float64 if np.issubdtype(graph.weights.dtype, np.floating) else int)
    np.add.at(mixing, (graph.receivers, graph.senders), np.asarray(graph.weights))
    return mixing


def on_all_edges(graph):
    """The same graph as weights on the edges of the complete one, so that it shares a program with others."""
    weights = mixing_of(graph, AGENTS)[COMPLETE.receivers, COMPLETE.senders].astype(graph.weights.dtype)
    return COMPLETE._replace(weights=weights, own=graph.own)


def assert_heard(heard, mixing, stacked, rtol=0.0):
    """Counts are the mixing matrix times the masks, degrees its row sums."""

    def check(counts, leaf):
        expected = np.tensordot(mixing.astype(float), leaf.astype(float), axes=1)
        np.testing.assert_allclose(counts, expected, rtol=rtol, atol=0)

    jax.tree.map(check, heard.masks, stacked)
    assert heard.weight.keys() == stacked.keys()
    for weight in heard.weight.values():
        np.testing.assert_allclose(weight, mixing.sum(1), rtol=rtol, atol=0)


@pytest.mark.parametrize(
    "topology",
    [
        graphs.ring(AGENTS),
        graphs.erdos_renyi(AGENTS, 0.3, 2),
        pytest.param(graphs.complete(AGENTS), marks=pytest.mark.slow),
        pytest.param(graphs.erdos_renyi(AGENTS, 0.6, 2), marks=pytest.mark.slow),
    ],
)
def test_agents_hear_their_neighbours(topology):
    graph, stacked = topology.graph, drawn_masks(AGENTS)
    assert_heard(hear_six(packed(stacked), graph), adjacency_of(graph), stacked)


def test_the_receiver_hears_the_sender_and_not_the_other_way():
    adjacency = np.zeros((AGENTS, AGENTS), bool)
    adjacency[2, [0, 5]] = adjacency[4, 2] = True
    stacked = drawn_masks(AGENTS, seed=1)
    assert_heard(hear_six(packed(stacked), graph_of(adjacency)), adjacency, stacked)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(present=hnp.arrays(bool, (AGENTS, AGENTS)), seed=st.integers(0, 2**32 - 1))
def test_an_edge_of_weight_zero_is_absent(dtype, present, seed):
    """Every graph of six agents as weights on the edges of the complete one, so that all share one program."""
    graph = COMPLETE._replace(weights=present[COMPLETE.receivers, COMPLETE.senders].astype(dtype))
    stacked = drawn_masks(AGENTS, seed)
    # Whole numbers are exact as floats too.
    assert_heard(hear_six(packed(stacked), graph), present & ~np.eye(AGENTS, dtype=bool), stacked)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    hnp.arrays(np.float32, len(COMPLETE.senders), elements=st.just(0.0) | st.floats(2**-10, 4, width=32)),
    st.integers(0, 2**32 - 1),
)
def test_weights_weigh_what_is_heard(weights, seed):
    graph, stacked = COMPLETE._replace(weights=weights), drawn_masks(AGENTS, seed)
    # Four additions of positive numbers, each wrong by half a unit in the last place at most.
    assert_heard(hear_six(packed(stacked), graph), mixing_of(graph, AGENTS), stacked, rtol=4 * 2.0**-24)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_sums_follow_float64(seed, x64):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(size=len(COMPLETE.senders)) * (rng.uniform(size=len(COMPLETE.senders)) < 0.7)
    graph, stacked = COMPLETE._replace(weights=weights), drawn_masks(AGENTS, seed)
    heard = hear_six(packed(stacked), graph)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((heard.masks, heard.weight))} == {"float64"}
    assert_heard(heard, mixing_of(graph, AGENTS), stacked, rtol=1e-15)


def test_metropolis_weights_mix_masks_that_all_keep_into_one_less_ones_own_weight(x64):
    graph = on_all_edges(metropolis(graphs.erdos_renyi(AGENTS, 0.6, seed=2)).graph)
    stacked = drawn_masks(AGENTS)
    heard = hear_six(packed(stacked), graph)
    assert_heard(heard, mixing_of(graph, AGENTS), stacked, rtol=1e-15)
    everything = hear_six(packed(jax.tree.map(np.ones_like, stacked)), graph)
    for name, counts in everything.masks.items():
        weight = heard.weight[name]
        np.testing.assert_array_equal(counts.reshape(AGENTS, -1), np.tile(weight, (counts[0].size, 1)).T)
        np.testing.assert_allclose(weight + heard.own, 1, rtol=1e-15)
        assert (weight < 1).all()


def test_weights_are_summed_in_the_order_of_the_edges():
    """One and two halves of its last place: behind it each is rounded off, before it both together are not."""
    tiny = 2.0**-24
    everything = jnp.ones(3)
    sent, like = Message({"layer": jnp.tile(masks.pack(everything)[None], (4, 1))}), Message({"layer": everything})
    for weights, expected in (([1, tiny, tiny], 1), ([tiny, tiny, 1], 1 + 2 * tiny)):
        edges = Graph(np.int32([1, 2, 3]), np.int32([0, 0, 0]), np.float32(weights), np.ones(4, np.float32))
        heard = exchange.hear(sent, edges, jnp.int32(0), like)
        np.testing.assert_array_equal(heard.masks["layer"], np.full(3, expected, np.float32))
        assert heard.weight["layer"] == np.float32(expected)


@pytest.mark.parametrize("directed", [False, True])
def test_graphs_that_change_are_heard_as_they_are_drawn(directed):
    """Their senders lie in no order, and of two pairings of the same two one is absent."""
    start, redraw = graphs.changing_regular(AGENTS, 4, directed)
    stacked = drawn_masks(AGENTS)
    sent = packed(stacked)
    hear_drawn = jax.jit(lambda key: (redraw(key, start), hear_all(sent, redraw(key, start), AGENTS)))
    for key in jax.random.split(jax.random.key(1), 10):
        graph, heard = jax.device_get(hear_drawn(key))
        assert_heard(heard, adjacency_of(graph), stacked)


def test_who_has_no_neighbours_hears_nothing():
    adjacency = ~np.eye(AGENTS, dtype=bool)
    adjacency[3] = False
    stacked = jax.tree.map(np.ones_like, drawn_masks(AGENTS))
    heard = hear_six(packed(stacked), graph_of(adjacency))
    assert {int(weight[3]) for weight in heard.weight.values()} == {0}
    assert not any(np.any(counts[3]) for counts in heard.masks.values())
    assert heard.spoke.all()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_without_any_edge_nobody_hears_anything(dtype):
    nothing, stacked = np.zeros((AGENTS, AGENTS), bool), drawn_masks(AGENTS)
    graph = graph_of(nothing)
    assert_heard(hear_six(packed(stacked), graph._replace(weights=graph.weights.astype(dtype))), nothing, stacked)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_alone_is_silent(dtype):
    stacked, graph = drawn_masks(1), graph_of(np.zeros((1, 1), bool))
    graph = graph._replace(weights=graph.weights.astype(dtype))
    heard = exchange.hear(packed(stacked), graph, jnp.int32(0), LIKE)
    silence = exchange.silence(LIKE, 1, graph)
    jax.tree.map(np.testing.assert_array_equal, heard, silence._replace(spoke=True))
    assert [leaf.dtype for leaf in jax.tree.leaves(heard)] == [leaf.dtype for leaf in jax.tree.leaves(silence)]


@pytest.mark.parametrize("weighted", [False, True])
def test_all_at_once_is_one_after_another(weighted):
    """Bit for bit, floats too."""
    graph = on_all_edges(graphs.erdos_renyi(AGENTS, seed=4).graph)
    if weighted:
        random = np.random.default_rng(0).uniform(size=len(graph.senders)).astype(np.float32)
        graph = graph._replace(weights=graph.weights * random)
    sent = packed(drawn_masks(AGENTS))
    together = hear_six(sent, graph)
    apart = jax.jit(lambda sent, graph: hear_all(sent, graph, AGENTS, over=lambda f: lambda r: jax.lax.map(f, r)))
    jax.tree.map(np.testing.assert_array_equal, together, apart(sent, graph))
    one = jax.jit(lambda sent, graph, receiver: exchange.hear(sent, graph, receiver, LIKE))
    for agent in range(AGENTS):
        alone = one(sent, graph, jnp.int32(agent))
        jax.tree.map(lambda all_, own, agent=agent: np.testing.assert_array_equal(all_[agent], own), together, alone)


@pytest.mark.parametrize(("agents", "dtype"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65_536, "uint16")])
def test_counts_take_the_smallest_type_that_holds_all_neighbours(agents, dtype):
    silence = exchange.silence(LIKE, agents, COMPLETE)
    assert jnp.dtype(exchange.counting_dtype(agents)) == dtype
    assert {leaf.dtype.name for leaf in silence.masks.values()} == {dtype}
    assert {leaf.dtype.name for leaf in silence.weight.values()} == {"int32"}
    assert_silent(silence)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weighted_sums_are_of_the_type_of_the_weights(dtype, x64):
    graph = COMPLETE._replace(weights=COMPLETE.weights.astype(dtype))
    silence = exchange.silence(LIKE, AGENTS, graph)
    heard = hear_six(packed(drawn_masks(AGENTS)), graph)
    assert {leaf.dtype.name for leaf in jax.tree.leaves([own[:3] for own in (silence, heard)])} == {dtype}
    assert_silent(silence)


def assert_silent(silence):
    assert jax.tree.map(np.shape, silence.masks) == jax.tree.map(np.shape, SHAPES)
    assert {leaf.shape for leaf in silence.weight.values()} == {()}
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((silence.masks, silence.weight, silence.spoke)))


def test_what_is_heard_is_of_the_type_of_silence():
    heard = hear_six(packed(drawn_masks(AGENTS)), COMPLETE)
    silence = exchange.silence(LIKE, AGENTS, COMPLETE)
    assert jax.tree.map(lambda leaf: leaf.dtype, heard) == jax.tree.map(lambda leaf: leaf.dtype, silence)


def test_a_population_beyond_sixteen_bits_counts_in_thirty_two():
    assert jnp.dtype(exchange.counting_dtype(65_537)) == "uint32"


@pytest.mark.parametrize("chunk", slow_but([1, 4, 30], 4))
@pytest.mark.parametrize("share", slow_but([0.1, 0.4, 0.9], 0.4))
def test_few_and_many_neighbours_are_heard_in_the_place_of_the_last(share, chunk):
    """Up to thirty, some absent: none, fewer than are counted together, as many, and several times more."""
    agents = 30
    rng = np.random.default_rng(int(10 * share))
    adjacency = rng.uniform(size=(agents, agents)) < share * rng.uniform(size=(agents, 1))
    adjacency[0], adjacency[1] = False, np.arange(agents) < exchange.AT_ONCE
    present = rng.uniform(size=(agents, agents)) < 0.8
    graph = graph_of(adjacency)
    graph = graph._replace(weights=present[graph.receivers, graph.senders].astype(np.uint8))
    stacked = drawn_masks(agents)
    last = exchange.silence(LIKE, agents, graph)
    last = jax.tree.map(lambda leaf: jnp.full((agents, *leaf.shape), 7).astype(leaf.dtype), last)
    receivers = jnp.arange(agents, dtype=jnp.int32)
    heard = jax.jit(population.exchange, static_argnums=4)(packed(stacked), graph, receivers, last, chunk)
    assert_heard(heard, adjacency & present, stacked)
    assert jax.tree.map(lambda leaf: leaf.dtype, heard) == jax.tree.map(lambda leaf: leaf.dtype, last)


@pytest.mark.parametrize("agents", [256, 257])
def test_a_count_of_all_neighbours_does_not_wrap(agents):
    """Everybody keeps everything and says so to agent 0: the count is as large as it can be."""
    adjacency = np.zeros((agents, agents), bool)
    adjacency[0, 1:] = True
    everything = jnp.ones(11)
    sent = Message({"layer": jnp.tile(masks.pack(everything)[None], (agents, 1))})
    hear = jax.jit(lambda sent, graph: exchange.hear(sent, graph, jnp.int32(0), Message({"layer": everything})))
    heard = hear(sent, graph_of(adjacency))
    np.testing.assert_array_equal(heard.masks["layer"], agents - 1)
    assert heard.weight["layer"] == agents - 1


def test_a_layer_that_a_message_lacks_counts_for_nobody():
    """Neither among masks nor in the weight of the mean; other layers of the same message are heard."""
    stacked, lacking = drawn_masks(AGENTS), np.array([True, False, True, False, True, True])
    has = {"conv/kernel": ~lacking, "linear/kernel": np.ones(AGENTS, bool)}
    heard = hear_six(packed(stacked)._replace(has=has), COMPLETE)
    adjacency = adjacency_of(COMPLETE).astype(float)
    for name, mixing in (("conv/kernel", adjacency * ~lacking), ("linear/kernel", adjacency)):
        np.testing.assert_array_equal(heard.masks[name], np.tensordot(mixing, stacked[name].astype(float), 1))
        np.testing.assert_array_equal(heard.weight[name], mixing.sum(1))
