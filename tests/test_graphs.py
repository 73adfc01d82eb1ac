"""Graphs: every spelling, fixed and changing, their weights and their report, files, and what is said of bad ones."""

import functools
import re
from pathlib import Path

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import networkx
import numpy as np
import pytest

from dslth_jax import graph_report, graphs
from dslth_jax.graph_report import report, sparse_adjacency_of, sparse_mixing_of
from dslth_jax.graphs import Topology, adjacency_of, graph_of, listeners, metropolis
from dslth_jax.mixing import weighted
from dslth_jax.partition import owners
from dslth_jax.study.config.spellings import GRAPHS, topology_of
from dslth_jax.study.data.graph_files import read_graph

CHANGING = [name for name in GRAPHS if name.startswith("changing")]
SEEDS = st.integers(0, 2**31 - 1)
PROBABILITIES = st.sampled_from([0, 1]) | st.floats(0, 1)

# What can stand behind each name, for a number of agents and for whether the graph is directed.
NUMBERS = {
    "erdos-renyi": lambda agents, directed: st.tuples(PROBABILITIES),
    "ring": lambda agents, directed: st.just(()),
    "torus": lambda agents, directed: st.sampled_from([(rows,) for rows in range(1, agents + 1) if agents % rows == 0]),
    "star": lambda agents, directed: st.just(()),
    "complete": lambda agents, directed: st.just(()),
    "regular": lambda agents, directed: st.tuples(
        st.sampled_from([degree for degree in range(1, agents) if directed or degree * agents % 2 == 0])
    ),
    "small-world": lambda agents, directed: st.tuples(st.sampled_from(range(2, agents, 2)), PROBABILITIES),
    "changing-erdos-renyi": lambda agents, directed: st.tuples(PROBABILITIES),
    "changing-regular": lambda agents, directed: st.tuples(st.integers(1, agents - 1)),
}
FEWEST_AGENTS = {"regular": 2, "small-world": 3, "changing-regular": 2}
WITHOUT_DIRECTED_FORM = ["star", "complete", "small-world"]
every_graph = pytest.mark.parametrize(
    ("name", "directed"),
    [
        (name, directed)
        for name in GRAPHS
        if name not in CHANGING
        for directed in {False, name not in WITHOUT_DIRECTED_FORM}
    ],
)
both_directions = pytest.mark.parametrize("directed", [False, True])
examples = hypothesis.settings(max_examples=25, deadline=None)


@st.composite
def spellings(draw, name, directed):
    """A graph of the kind that can be: its spelling and number of agents."""
    agents = draw(st.integers(FEWEST_AGENTS.get(name, 1), 24))
    return ":".join(map(str, (name, *draw(NUMBERS[name](agents, directed))))), agents


def matrix(spelling, agents, seed=0, directed=False):
    """The adjacency of a graph that stays as it is."""
    graph, redraw = topology_of(spelling, agents, seed, directed=directed)
    assert redraw is None
    return adjacency_of(graph)


def with_and_without(directed):
    """All small adjacencies, symmetric unless directed."""
    sides = st.integers(1, 8)
    drawn = sides.flatmap(lambda agents: hnp.arrays(bool, (agents, agents)))
    return drawn.map(lambda heard: (heard if directed else heard | heard.T) & ~np.eye(len(heard), dtype=bool))


def test_every_kind_of_graph_is_tested():
    assert set(NUMBERS) == set(GRAPHS)


@every_graph
@examples
@hypothesis.given(st.data(), SEEDS)
def test_nobody_hears_itself_and_links_go_both_ways_unless_directed(name, directed, data, seed):
    spelling, agents = data.draw(spellings(name, directed))
    adjacency = matrix(spelling, agents, seed, directed)
    assert adjacency.shape == (agents, agents)
    assert not adjacency.diagonal().any()
    if not directed:
        np.testing.assert_array_equal(adjacency, adjacency.T)


@every_graph
@examples
@hypothesis.given(st.data(), SEEDS)
def test_edges_lie_by_receiver_each_once_and_of_weight_one(name, directed, data, seed):
    spelling, agents = data.draw(spellings(name, directed))
    graph = topology_of(spelling, agents, seed, directed=directed).graph
    assert (np.diff(graph.receivers) >= 0).all()
    assert len(set(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))) == len(graph.senders)
    np.testing.assert_array_equal(graph.weights, np.ones(len(graph.senders)))
    assert [leaf.dtype for leaf in graph] == [np.int32, np.int32, np.uint8, np.float32]


@every_graph
@examples
@hypothesis.given(st.data(), SEEDS)
def test_a_seed_always_gives_the_same_graph(name, directed, data, seed):
    spelling, agents = data.draw(spellings(name, directed))
    first, again = (matrix(spelling, agents, seed, directed) for _ in range(2))
    np.testing.assert_array_equal(first, again)


RANDOM = [
    ("erdos-renyi:0.4", False),
    ("erdos-renyi:0.4", True),
    ("regular:4", False),
    ("regular:20", False),
    ("regular:4", True),
    ("small-world:4:0.5", False),
]


@pytest.mark.parametrize(("spelling", "directed"), RANDOM)
def test_every_seed_gives_another_graph(spelling, directed):
    drawn = {matrix(spelling, 30, seed, directed).tobytes() for seed in range(20)}
    assert len(drawn) == 20


@pytest.mark.parametrize(
    ("spelling", "directed", "share"),
    [
        ("erdos-renyi:0.3", False, 0.3),
        ("erdos-renyi:0.3", True, 0.3),
        ("regular:2", False, 2 / 7),
        ("regular:5", False, 5 / 7),
        ("regular:2", True, 2 / 7),
    ],
)
def test_over_many_seeds_all_pairs_are_linked_alike(spelling, directed, share):
    """Also the two ways of a directed pair are drawn each by itself."""
    seeds = 600
    drawn = np.array([matrix(spelling, 8, seed, directed) for seed in range(seeds)])
    assert_shares(drawn.mean(axis=0), share, seeds)
    if directed:
        assert_shares((drawn & drawn.swapaxes(1, 2)).mean(axis=0), share**2, seeds)


def assert_shares(measured, share, draws):
    """The share of draws that hold it is, for every two agents, the expected one within five deviations."""
    off_diagonal = measured[~np.eye(len(measured), dtype=bool)]
    np.testing.assert_allclose(off_diagonal, share, rtol=0, atol=5 * np.sqrt(share * (1 - share) / draws))


@pytest.mark.parametrize("agents", [1, 2, 3, 4, 9])
def test_on_a_ring_agents_stand_between_two(agents):
    adjacency = matrix("ring", agents)
    beside = {(i, (i + step) % agents) for i in range(agents) for step in (-1, 1)}
    assert links_of(adjacency) == {(i, j) for i, j in beside if i != j}


@pytest.mark.parametrize("agents", [1, 2, 3, 9])
def test_on_a_directed_ring_news_go_round_one_way(agents):
    heard = {(i, (i - 1) % agents) for i in range(agents)}
    assert links_of(matrix("ring", agents, directed=True)) == {(i, j) for i, j in heard if i != j}


def links_of(adjacency):
    """Pairs of receiver and sender."""
    return set(zip(*(axis.tolist() for axis in np.nonzero(adjacency)), strict=True))


@examples
@hypothesis.given(st.integers(1, 6), st.integers(1, 6))
def test_a_torus_is_the_periodic_grid_of_networkx(rows, columns):
    grid = networkx.grid_2d_graph(rows, columns, periodic=True)
    places = [(row, column) for row in range(rows) for column in range(columns)]
    expected = networkx.to_numpy_array(grid, nodelist=places) != 0
    np.testing.assert_array_equal(matrix(f"torus:{rows}", rows * columns), expected)


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_on_a_torus_everybody_has_four_neighbours_and_directed_hears_two(rows):
    np.testing.assert_array_equal(matrix(f"torus:{rows}", rows * 4).sum(axis=1), 4)
    directed = matrix(f"torus:{rows}", rows * 4, directed=True)
    np.testing.assert_array_equal(directed.sum(axis=1), 2)
    np.testing.assert_array_equal(directed.sum(axis=0), 2)
    np.testing.assert_array_equal(directed | directed.T, matrix(f"torus:{rows}", rows * 4))
    assert not (directed & directed.T).any()


@pytest.mark.parametrize(("agents", "rows"), [(1, 1), (7, 1), (12, 3), (16, 4), (18, 3), (64, 8), (100, 10)])
def test_a_torus_without_a_number_is_as_square_as_can_be(agents, rows):
    np.testing.assert_array_equal(matrix("torus", agents), matrix(f"torus:{rows}", agents))


@pytest.mark.parametrize("agents", [1, 2, 9])
def test_a_star_has_agent_0_in_its_middle(agents):
    outer = range(1, agents)
    assert links_of(matrix("star", agents)) == {(0, i) for i in outer} | {(i, 0) for i in outer}


@pytest.mark.parametrize("agents", [1, 2, 9])
@pytest.mark.parametrize("spelling", ["complete", "erdos-renyi:1"])
def test_in_a_complete_graph_everybody_has_everybody(spelling, agents):
    np.testing.assert_array_equal(matrix(spelling, agents), np.ones((agents, agents)) - np.eye(agents))


@both_directions
@hypothesis.settings(examples, max_examples=50)
@hypothesis.given(st.data(), SEEDS)
def test_in_a_regular_graph_everybody_hears_exactly_as_many(directed, data, seed):
    """From pairs to all others."""
    spelling, agents = data.draw(spellings("regular", directed))
    degree = int(spelling.partition(":")[2])
    np.testing.assert_array_equal(matrix(spelling, agents, seed, directed).sum(axis=1), degree)


@pytest.mark.parametrize(("degree", "agents"), [(4, 64), (31, 64), (32, 64), (33, 64), (60, 64), (63, 64), (62, 65)])
def test_regular_graphs_of_every_density_are_found(degree, agents):
    adjacency = matrix(f"regular:{degree}", agents, seed=1)
    np.testing.assert_array_equal(adjacency.sum(axis=1), degree)
    assert not adjacency.diagonal().any()


@pytest.mark.parametrize(("agents", "degree"), [(8, 3), (9, 4), (60, 29), (1000, 500)])
def test_dense_graphs_of_many_are_drawn_by_switching_and_soon(agents, degree, monkeypatch):
    monkeypatch.setattr(graphs, "MOST_NEIGHBOURS", min(graphs.MOST_NEIGHBOURS, degree - 1))
    monkeypatch.setattr(networkx, "random_regular_graph", None)
    first, again, other = (matrix(f"regular:{degree}", agents, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    for drawn in (first, other):
        np.testing.assert_array_equal(drawn.sum(axis=1), degree)
        np.testing.assert_array_equal(drawn, drawn.T)
        assert not drawn.diagonal().any()
    # Two draws share as many links as chance has it.
    share, pairs = degree / (agents - 1), agents * (agents - 1)
    assert abs((first & other).sum() / pairs - share**2) < 5 * share / np.sqrt(pairs)


MANY = 10_000
OF_MANY = [
    ("ring", False, lambda degrees: set(degrees) == {2}),
    ("ring", True, lambda degrees: set(degrees) == {1}),
    ("torus", False, lambda degrees: set(degrees) == {4}),
    ("star", False, lambda degrees: max(degrees) == MANY - 1),
    ("regular:4", False, lambda degrees: set(degrees) == {4}),
    ("regular:8", False, lambda degrees: set(degrees) == {8}),
    ("small-world:4:0.1", False, lambda degrees: sum(degrees) == 4 * MANY and min(degrees) >= 2),
    ("erdos-renyi:0.002", False, lambda degrees: abs(np.mean(degrees) - 20) < 5 * np.sqrt(20 * 2 / MANY)),
]


@pytest.mark.parametrize(("spelling", "directed", "fits"), OF_MANY)
def test_graphs_of_ten_thousand_hold_their_edges_alone(spelling, directed, fits, monkeypatch):
    """Degrees as promised, each edge once, both ways unless directed, nobody itself; connected, as all of these are;
    and no matrix of all pairs is made on the way, nor for the report."""
    monkeypatch.setattr(graphs, "graph_of", None)
    monkeypatch.setattr(graphs, "adjacency_of", None)
    graph = topology_of(spelling, MANY, seed=0, directed=directed).graph
    edges = graph.receivers.astype(np.int64) * MANY + graph.senders
    back = graph.senders.astype(np.int64) * MANY + graph.receivers
    assert (np.diff(edges) > 0).all()
    assert (graph.receivers != graph.senders).all()
    assert directed or np.array_equal(np.sort(back), edges)
    assert fits(np.bincount(graph.receivers, minlength=MANY).tolist())
    said = report(sparse_adjacency_of(graph))
    assert (said.connected, said.links, said.isolated) == (True, len(edges), [])


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("agents", [1, 2, 7, 40])
def test_an_erdos_renyi_graph_is_that_of_networkx(agents, directed, monkeypatch):
    """Of the same seed, also where its random numbers are drawn in several parts."""
    monkeypatch.setattr(graphs, "AT_ONCE", 100)
    drawn = networkx.gnp_random_graph(agents, 0.3, seed=5, directed=directed)
    expected = networkx.to_numpy_array(drawn, nodelist=range(agents)).T
    np.testing.assert_array_equal(matrix("erdos-renyi:0.3", agents, 5, directed), expected)


def test_a_directed_regular_graph_is_the_same_drawn_in_parts(monkeypatch):
    whole = matrix("regular:3", 30, 2, directed=True)
    monkeypatch.setattr(graphs, "AT_ONCE", 90)
    np.testing.assert_array_equal(matrix("regular:3", 30, 2, directed=True), whole)


def test_a_pair_that_was_drawn_twice_stays_in_the_mixing_matrix():
    """Its second edge is absent, and must not take the first one out."""
    changing = graphs.changing_regular(5, degree=3)
    for number in range(5):
        drawn = changing.redraw(jax.random.key(number), changing.graph)
        mixing = graphs.mixing_of(drawn)
        np.testing.assert_array_equal(mixing != 0, adjacency_of(drawn) | np.eye(5, dtype=bool))
        np.testing.assert_array_equal(mixing, mixing_of(drawn))


@pytest.mark.parametrize(
    "graph",
    [graphs.regular(60, 4), graphs.torus(64), graphs.star(50), graphs.small_world(60), graphs.regular(60, 5, 1, True)],
    ids=["regular", "torus", "star", "small world", "one-way"],
)
@pytest.mark.parametrize("weighting", ["uniform", "metropolis", "own"])
def test_the_spectral_gap_of_many_agents_is_that_of_all_eigenvalues(graph, weighting, monkeypatch):
    """Lanczos's and Arnoldi's largest two, against all of them; by edges as by a matrix."""
    if weighting == "own":
        rng, adjacency = np.random.default_rng(0), adjacency_of(graph.graph)
        graph = graphs.of_matrix(
            adjacency * rng.random(adjacency.shape) + np.diag(rng.random(len(adjacency))), directed=True
        )
        how = {"weights": graphs.mixing_of(graph.graph)}, {"weights": sparse_mixing_of(graph.graph)}
    else:
        how = ({"weighting": weighting},) * 2
    whole = report(adjacency_of(graph.graph), **how[0])
    monkeypatch.setattr(graph_report, "MOST_WHOLE", 20)
    monkeypatch.setattr(graph_report, "BASIS", 30)
    many = report(sparse_adjacency_of(graph.graph), **how[1])
    assert many[:6] == whole[:6]
    assert many.spectral_gap == pytest.approx(whole.spectral_gap, abs=1e-3)


def test_a_spectral_gap_that_is_not_found_in_time_is_none(monkeypatch):
    """All eigenvalues of a ring of one-way links lie on a circle."""
    monkeypatch.setattr(graph_report, "RESTARTS", 2)
    ring = sparse_adjacency_of(graphs.ring(1_500, directed=True).graph)
    assert report(ring).spectral_gap is None
    assert report(ring).connected


def test_switching_leaves_no_trace_of_the_circle():
    """Of neighbours on a circle one of any two is a neighbour of the other; of random ones as many as by chance."""
    agents, degree = 60, 20
    triangles = []
    for seed in range(20):
        one, other = graphs._by_switching(np.random.default_rng(seed), agents, degree).T
        drawn = np.zeros((agents, agents), int)
        drawn[one, other] = drawn[other, one] = 1
        triangles.append(np.trace(drawn @ drawn @ drawn) / (agents * degree * (degree - 1)))
    by_pairing = [
        np.trace(np.linalg.matrix_power(matrix("regular:20", agents, seed).astype(int), 3))
        / (agents * degree * (degree - 1))
        for seed in range(20)
    ]
    assert abs(np.mean(triangles) - np.mean(by_pairing)) < 5 * np.std(by_pairing) / np.sqrt(20)


@examples
@hypothesis.given(st.data(), SEEDS)
def test_rewiring_keeps_the_number_of_links_of_a_small_world(data, seed):
    spelling, agents = data.draw(spellings("small-world", False))
    degree = int(spelling.split(":")[1])
    adjacency = matrix(spelling, agents, seed)
    assert adjacency.sum() == 2 * agents * degree // 2
    # One end of each link stays where it was.
    assert adjacency.sum(axis=1).min() >= degree // 2


def test_a_small_world_rewires_its_share_of_a_ring_of_nearest_neighbours():
    agents = 400
    away = np.abs(np.subtract.outer(np.arange(agents), np.arange(agents)))
    nearest = (np.minimum(away, agents - away) <= 3) & (away > 0)
    np.testing.assert_array_equal(matrix("small-world:6:0", agents), nearest)
    left = (matrix("small-world:6:0.3", agents) & nearest).sum() / nearest.sum()
    assert abs(left - 0.7) < 0.07  # five deviations of 1200 links


@pytest.mark.parametrize(("spelling", "probability"), [("erdos-renyi:0.2", 0.2), ("erdos-renyi", 0.5)])
@both_directions
def test_an_erdos_renyi_graph_joins_its_share_of_pairs(spelling, probability, directed):
    agents = 120
    pairs = agents * (agents - 1) / (1 if directed else 2)
    joined = matrix(spelling, agents, 1, directed).sum() / (1 if directed else 2)
    assert abs(joined - probability * pairs) < 5 * np.sqrt(pairs * probability * (1 - probability))


@pytest.mark.parametrize("agents", [1, 2, 3, 17])
@both_directions
def test_a_probability_of_zero_links_nobody(agents, directed):
    assert not matrix("erdos-renyi:0", agents, 0, directed).any()


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("erdos-renyi", "erdos-renyi:0.5"),
        ("regular", "regular:4"),
        ("small-world", "small-world:4:0.1"),
        ("small-world:6", "small-world:6:0.1"),
    ],
)
def test_numbers_that_are_left_out_have_defaults(short, full):
    np.testing.assert_array_equal(matrix(short, 20, seed=2), matrix(full, 20, seed=2))


def test_the_usual_degree_is_less_of_few_agents():
    np.testing.assert_array_equal(matrix("regular", 4), matrix("complete", 4))


CHANGES = [
    ("changing-erdos-renyi:0.3", 7),
    ("changing-erdos-renyi", 1),
    ("changing-regular:1", 2),
    ("changing-regular:3", 7),
    ("changing-regular:7", 8),
]
changing = pytest.mark.parametrize(("spelling", "agents"), CHANGES)
ROUNDS = 64


@functools.cache
def compiled(spelling, agents, directed):
    """The graphs of many rounds as one compiled function of a seed."""
    start, redraw = topology_of(spelling, agents, seed=0, directed=directed)
    keys_of = functools.partial(jax.random.split, num=ROUNDS)
    return jax.jit(lambda seed: jax.vmap(redraw, (0, None))(keys_of(jax.random.key(seed)), start))


def drawn_graphs(spelling, agents, directed, seed):
    return jax.device_get(compiled(spelling, agents, directed)(seed))


def links_by_round(graphs, agents):
    """How many edges that are present lead from each agent to each in every round: rounds, receivers, senders."""
    links = np.zeros((ROUNDS, agents, agents), int)
    np.add.at(links, (np.arange(ROUNDS)[:, None], graphs.receivers, graphs.senders), graphs.weights)
    return links


@both_directions
@changing
@hypothesis.settings(examples, max_examples=10)
@hypothesis.given(seed=SEEDS)
def test_in_every_round_nobody_hears_itself_or_anybody_twice(spelling, agents, directed, seed):
    links = links_by_round(drawn_graphs(spelling, agents, directed, seed), agents)
    assert links.max(initial=0) <= 1
    assert not links[:, np.arange(agents), np.arange(agents)].any()
    if not directed:
        np.testing.assert_array_equal(links, links.swapaxes(1, 2))


@both_directions
@changing
@hypothesis.settings(examples, max_examples=10)
@hypothesis.given(seed=SEEDS)
def test_changing_edges_stay_sorted_by_receiver_and_name_agents(spelling, agents, directed, seed):
    graphs = drawn_graphs(spelling, agents, directed, seed)
    assert (np.diff(graphs.receivers, axis=1) >= 0).all()
    assert ((graphs.senders >= 0) & (graphs.senders < agents)).all()
    assert set(np.unique(graphs.weights)) <= {0, 1}


@pytest.mark.parametrize("name", CHANGING)
@both_directions
@examples
@hypothesis.given(st.data())
def test_a_changing_graph_has_the_same_number_of_edges_in_every_round(name, directed, data):
    """Of 24 agents at most; shapes need no compilation. Types stay in float64 too, where random numbers are longer."""
    spelling, agents = data.draw(spellings(name, directed))
    start, redraw = topology_of(spelling, agents, seed=0, directed=directed)
    edges = agents * (agents - 1 if "erdos" in name else int(spelling.partition(":")[2]))
    for wide in (False, True):
        with jax.enable_x64(wide):
            after = jax.eval_shape(redraw, jax.random.key(0), start)
        for graph in (start, after):
            assert [leaf.shape for leaf in graph] == [(edges,)] * 3 + [(agents,)]
            assert [leaf.dtype for leaf in graph] == [np.int32, np.int32, np.uint8, np.float32]


@pytest.mark.parametrize("spelling", ["star", "regular:4", "changing-erdos-renyi:0.5"])
def test_an_agent_hears_a_few_of_its_neighbours_and_each_as_often(spelling):
    """As many as it may, or all that it has; never an agent that is no neighbour; and each neighbour equally often."""
    agents, most = 6, 2
    whole = topology_of(spelling, agents, seed=0)
    some = graphs.hearing_some(whole, most)
    keys = jax.random.split(jax.random.key(1), 3000)
    drawn = jax.device_get(jax.jit(jax.vmap(some.redraw, (0, None)))(keys, some.graph))
    present = np.asarray(whole.graph.weights) * np.ones_like(drawn.weights)
    if whole.redraw:
        present = jax.device_get(jax.jit(jax.vmap(whole.redraw, (0, None)))(keys, whole.graph)).weights
    of_agents = np.asarray(whole.graph.receivers) == np.arange(agents)[:, None]
    degrees, heard = present @ of_agents.T, drawn.weights @ of_agents.T
    np.testing.assert_array_equal(heard, np.minimum(degrees, most))
    assert (drawn.weights <= present).all()
    np.testing.assert_array_equal(drawn.receivers, np.broadcast_to(whole.graph.receivers, drawn.receivers.shape))
    shares = (np.minimum(degrees, most) / np.maximum(degrees, 1)) @ of_agents * present
    # Five standard deviations of a share of so many rounds.
    np.testing.assert_allclose(drawn.weights.mean(0), shares.mean(0), atol=5 * 0.5 / len(keys) ** 0.5)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (np.full((2, 2), 0.5), "weights must be 3 x 3, got 2 x 2"),
        (-np.ones((3, 3)), "weights must be finite in float32 and at least 0"),
        (np.full((3, 3), 1e300), "weights must be finite in float32 and at least 0"),
    ],
)
def test_weights_of_links_that_cannot_be_are_refused(weights, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        weighted(graphs.star(3), weights)


def test_who_is_heard_goes_by_who_sends_to_whom_and_links_keep_their_weights():
    """A graph of which edges are left out draws the same order of those that stay; and weights are what they were."""
    table = np.arange(1.0, 26).reshape(5, 5) * (1 - np.eye(5))
    all_links, key = weighted(graphs.complete(5), table), jax.random.key(3)
    heard = graphs.hearing_some(all_links, 1)
    once = heard.redraw(key, heard.graph)
    first = np.zeros((5, 5))
    first[once.receivers, once.senders] = once.weights
    assert ((first == table) | (first == 0)).all()
    assert ((first > 0).sum(1) == 1).all()
    fewer = weighted(graphs.complete(5), np.where(first > 0, table, 0) + np.eye(5, k=1))
    again = graphs.hearing_some(fewer, 1).redraw(key, fewer.graph)
    second = np.zeros((5, 5))
    second[again.receivers, again.senders] = again.weights
    np.testing.assert_array_equal(second > 0, first > 0)


def test_to_hear_nobody_is_refused():
    with pytest.raises(ValueError, match="an agent must hear at least one of its neighbours, got 0"):
        graphs.hearing_some(graphs.complete(3), 0)


@pytest.mark.parametrize(("spelling", "edges"), [("changing-regular", 9 * 4), ("changing-erdos-renyi", 9 * 8)])
def test_changing_graphs_have_defaults(spelling, edges):
    assert len(topology_of(spelling, 9, seed=0).graph.senders) == edges


@pytest.mark.parametrize(("spelling", "agents"), [("changing-erdos-renyi:0.3", 7), ("changing-regular:3", 7)])
@both_directions
def test_a_round_has_its_own_graph_by_its_key(spelling, agents, directed):
    first, again, other = (drawn_graphs(spelling, agents, directed, seed) for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    rounds = np.concatenate([links_by_round(graphs, agents) for graphs in (first, other)])
    assert len(np.unique(rounds, axis=0)) > 0.98 * len(rounds)


@pytest.mark.parametrize(
    ("spelling", "agents", "directed", "share"),
    [
        ("changing-erdos-renyi:0.3", 7, False, 0.3),
        ("changing-erdos-renyi:0.3", 7, True, 0.3),
        ("changing-regular:3", 7, True, 3 / 6),
        ("changing-regular:7", 8, True, 1),
        # Of an odd number an agent is paired with each other, or with nobody, with equal chances.
        ("changing-regular:3", 7, False, 1 - (1 - 1 / 7) ** 3),
        ("changing-regular:7", 8, False, 1 - (1 - 1 / 7) ** 7),
    ],
)
def test_over_many_rounds_all_pairs_are_linked_alike(spelling, agents, directed, share):
    """Also the two ways of a directed pair are drawn each by itself."""
    links = np.concatenate(
        [links_by_round(drawn_graphs(spelling, agents, directed, seed), agents) for seed in range(40)]
    )
    assert_shares(links.mean(axis=0), share, len(links))
    assert_shares((links & links.swapaxes(1, 2)).mean(axis=0), share**2 if directed else share, len(links))


@pytest.mark.parametrize(("spelling", "agents"), CHANGES[2:])
@hypothesis.settings(examples, max_examples=10)
@hypothesis.given(seed=SEEDS)
def test_directed_and_changing_everybody_hears_exactly_as_many(spelling, agents, seed):
    degree = int(spelling.partition(":")[2])
    links = links_by_round(drawn_graphs(spelling, agents, True, seed), agents)
    np.testing.assert_array_equal(links.sum(axis=2), degree)


@pytest.mark.parametrize(("spelling", "agents"), CHANGES[2:])
@hypothesis.settings(examples, max_examples=10)
@hypothesis.given(seed=SEEDS)
def test_pairings_link_nobody_more_often_than_there_are_pairings(spelling, agents, seed):
    degree = int(spelling.partition(":")[2])
    degrees = links_by_round(drawn_graphs(spelling, agents, False, seed), agents).sum(axis=2)
    assert degrees.max() <= degree
    if agents % 2 == 0:
        assert degrees.min() >= 1
    if agents > degree + 1:
        # No link is lost but those drawn twice.
        assert (degrees == degree).any()


def test_one_pairing_leaves_one_of_an_odd_number_over_each_in_turn():
    links = np.concatenate(
        [links_by_round(drawn_graphs("changing-regular:1", 5, False, seed), 5) for seed in range(10)]
    )
    alone = links.sum(axis=2) == 0
    np.testing.assert_array_equal(alone.sum(axis=1), 1)
    np.testing.assert_allclose(alone.mean(axis=0), 1 / 5, atol=5 * np.sqrt(0.16 / len(links)))


@both_directions
@pytest.mark.parametrize(("probability", "links"), [(0, 0), (1, 4 * 3)])
def test_changing_probabilities_of_zero_and_one_link_nobody_and_everybody(probability, links, directed):
    start, redraw = topology_of(f"changing-erdos-renyi:{probability}", 4, seed=0, directed=directed)
    assert redraw(jax.random.key(0), start).weights.sum() == links


@hypothesis.settings(examples, max_examples=50)
@hypothesis.given(st.integers(0, 9).flatmap(lambda agents: hnp.arrays(bool, (agents, agents))))
def test_edges_lie_by_receiver_and_make_the_adjacency_again(adjacency):
    """Without symmetry, senders and receivers cannot be mixed up unseen."""
    graph = graph_of(adjacency)
    assert (np.diff(graph.receivers) >= 0).all()
    assert links_of(adjacency) == set(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True))
    np.testing.assert_array_equal(adjacency_of(graph), adjacency)
    assert len(graph.senders) == len(graph.receivers) == len(graph.weights) == adjacency.sum()
    np.testing.assert_array_equal(graph.weights, np.ones(adjacency.sum()))
    assert [leaf.dtype for leaf in graph] == [np.int32, np.int32, np.uint8, np.float32]


def test_own_values_count_as_much_as_a_neighbours_unless_said_otherwise():
    """Also in every round of a graph that changes."""
    start, redraw = topology_of("changing-regular:2", 5, seed=0)
    for graph in (start, redraw(jax.random.key(0), start), graph_of(np.zeros((5, 5), bool))):
        np.testing.assert_array_equal(graph.own, np.ones(5, np.float32))


@examples
@hypothesis.given(hnp.arrays(np.float32, (4, 4), elements=st.floats(-4, 4, width=32)))
def test_any_mixing_matrix_is_a_graph(mixing):
    """Weights that sum to more than 1 too, and own weights of 0."""
    graph = graph_of((mixing != 0) & ~np.eye(4, dtype=bool), mixing, own=mixing.diagonal())
    np.testing.assert_array_equal(mixing_of(graph), mixing)
    assert graph.weights.dtype == graph.own.dtype == np.float32


def test_a_graph_may_have_no_edges():
    assert [leaf.shape for leaf in graph_of(np.zeros((3, 3), bool))] == [(0,)] * 3 + [(3,)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@examples
@hypothesis.given(present=hnp.arrays(bool, (6, 6)))
def test_edges_of_weight_zero_are_in_no_matrix_and_heard_by_nobody(dtype, present):
    graph = graph_of(~np.eye(6, dtype=bool))
    graph = graph._replace(weights=present[graph.receivers, graph.senders].astype(dtype))
    adjacency = present & ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(adjacency_of(graph), adjacency)
    np.testing.assert_array_equal(listeners(graph), adjacency.sum(axis=0))


def test_a_message_travels_to_whoever_listens():
    """A count of links, whatever their weights."""
    graph = graph_of(np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], bool))
    for weights in (graph.weights, np.array([0.25, 0.5, 0.125], np.float32)):
        heard_by = jax.jit(listeners)(graph._replace(weights=weights))
        assert heard_by.tolist() == [0, 1, 2]
        assert heard_by.dtype == np.int32


AGENTS = 6
metropolis_of_six = jax.jit(lambda graph: metropolis(Topology(graph)).graph)


def mixing_of(graph):
    """The twin of `graphs.mixing_of`, edge after edge."""
    mixing = np.diag(np.asarray(graph.own, float))
    for receiver, sender, weight in zip(graph.receivers, graph.senders, np.asarray(graph.weights), strict=True):
        mixing[receiver, sender] += weight
    return mixing


def metropolis_by_definition(adjacency):
    """Loop after loop."""
    agents = len(adjacency)
    degrees = [sum(map(bool, row)) for row in adjacency]
    mixing = np.zeros((agents, agents))
    for i in range(agents):
        for j in range(agents):
            if adjacency[i, j]:
                mixing[i, j] = 1 / (1 + max(degrees[i], degrees[j]))
        mixing[i, i] = 1 - mixing[i].sum()
    return mixing


def six_with(present, dtype=np.uint8):
    """Any undirected graph of six as weights on the edges of the complete one, so that all share one program."""
    graph = graph_of(~np.eye(AGENTS, dtype=bool))
    adjacency = (present | present.T) & ~np.eye(AGENTS, dtype=bool)
    return graph._replace(weights=adjacency[graph.receivers, graph.senders].astype(dtype)), adjacency


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@hypothesis.settings(examples, max_examples=40)
@hypothesis.given(present=hnp.arrays(bool, (AGENTS, AGENTS)))
def test_metropolis_weights_are_those_of_their_definition(dtype, present):
    graph, adjacency = six_with(present, dtype)
    weighted = metropolis_of_six(graph)
    assert weighted.weights.dtype == weighted.own.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(weighted.weights) != 0, graph.weights != 0)
    np.testing.assert_array_equal([weighted.senders, weighted.receivers], [graph.senders, graph.receivers])
    np.testing.assert_allclose(mixing_of(weighted), metropolis_by_definition(adjacency), rtol=0, atol=3e-7)


def test_metropolis_weights_on_the_host_are_those_of_a_program_bit_for_bit():
    """Of graphs that stay own weights are summed on the host, of those that change inside the compiled round."""
    for seed in range(5):
        graph, _ = six_with(np.random.default_rng(seed).uniform(size=(AGENTS, AGENTS)) < 0.5)
        chex.assert_trees_all_equal(metropolis(Topology(graph)).graph, jax.device_get(metropolis_of_six(graph)))


@pytest.mark.parametrize("seed", range(5))
def test_metropolis_weights_follow_float64(seed, x64):
    graph, adjacency = six_with(np.random.default_rng(seed).uniform(size=(AGENTS, AGENTS)) < 0.3)
    weighted = metropolis_of_six(graph)
    assert weighted.weights.dtype == weighted.own.dtype == np.float64
    np.testing.assert_allclose(mixing_of(weighted), metropolis_by_definition(adjacency), rtol=0, atol=1e-15)


@hypothesis.settings(examples, max_examples=40)
@hypothesis.given(hnp.arrays(bool, (AGENTS, AGENTS)))
def test_metropolis_mixing_is_doubly_stochastic(present):
    mixing = mixing_of(metropolis_of_six(six_with(present)[0]))
    np.testing.assert_allclose(mixing.sum(axis=0), 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(np.triu(mixing), np.tril(mixing).T)
    # Everybody listens to itself too: at least as much as to all of as many as it could have.
    assert mixing.diagonal().min() >= 1 / AGENTS - 1e-6


def test_metropolis_weights_of_a_changing_graph_leave_absent_edges_out():
    """A second pairing of the same two is absent, and counts in no degree."""
    agents = 5
    start, redraw = topology_of("changing-regular:4", agents, seed=0)
    weighted_start, weighted_redraw = metropolis(Topology(start, redraw))
    weigh = jax.jit(lambda key: (redraw(key, start), weighted_redraw(key, weighted_start)))
    absent = 0
    for key in jax.random.split(jax.random.key(0), 20):
        drawn, weighted = jax.device_get(weigh(key))
        absent += (drawn.weights == 0).sum()
        np.testing.assert_array_equal(weighted.weights != 0, drawn.weights != 0)
        expected = metropolis_by_definition(adjacency_of(drawn))
        np.testing.assert_allclose(mixing_of(weighted), expected, rtol=0, atol=3e-7)
    assert absent > 0


def test_weights_of_a_changing_graph_are_those_of_the_edges_that_there_are():
    """One that stays away before the first draw, and is worth nothing then, takes nobody's weight with it."""
    table = np.ones((4, 4))
    table[0, 1] = 0
    start, redraw = weighted(graphs.changing_regular(4, 2, directed=True), table)
    for key in jax.random.split(jax.random.key(0), 5):
        start = redraw(key, start)
        np.testing.assert_array_equal(start.weights, table[start.receivers, start.senders])


def second_modulus(mixing):
    """Of the eigenvalues, the largest modulus but one: numpy's for general matrices."""
    return np.sort(np.abs(np.linalg.eigvals(mixing)))[-2]


@both_directions
@hypothesis.settings(examples, max_examples=100)
@hypothesis.given(st.data())
def test_the_report_agrees_with_networkx(directed, data):
    adjacency = data.draw(with_and_without(directed))
    graph = networkx.from_numpy_array(adjacency, create_using=networkx.DiGraph if directed else networkx.Graph)
    said = report(adjacency)
    heard = [len(set(np.flatnonzero(row))) for row in adjacency]
    assert said.connected == (networkx.is_strongly_connected if directed else networkx.is_connected)(graph)
    assert said.links == graph.number_of_edges() * (1 if directed else 2)
    assert (said.smallest_degree, said.largest_degree) == (min(heard), max(heard))
    assert said.mean_degree == pytest.approx(sum(heard) / len(heard), rel=1e-15)
    assert said.isolated == [agent for agent, degree in enumerate(heard) if degree == 0]


@both_directions
@hypothesis.settings(examples, max_examples=100)
@hypothesis.given(st.data())
def test_the_spectral_gap_is_that_of_averaging_over_oneself_and_neighbours(directed, data):
    adjacency = data.draw(with_and_without(directed))
    agents = len(adjacency)
    mixing = np.zeros((agents, agents))
    for i in range(agents):
        group = [j for j in range(agents) if j == i or adjacency[i, j]]
        mixing[i, group] = 1 / len(group)
    said = report(adjacency)
    expected = (1 - second_modulus(mixing) if agents > 1 else 1) if said.connected else 0
    assert said.spectral_gap == pytest.approx(expected, abs=1e-10)
    assert 0 <= said.spectral_gap <= 1


@hypothesis.settings(examples, max_examples=100)
@hypothesis.given(with_and_without(directed=False))
def test_the_spectral_gap_of_metropolis_weights_is_that_of_their_matrix(adjacency):
    said = report(adjacency, weighting="metropolis")
    expected = second_modulus(metropolis_by_definition(adjacency)) if len(adjacency) > 1 else 0
    assert said.spectral_gap == pytest.approx(1 - expected if said.connected else 0, abs=1e-10)
    assert said._replace(spectral_gap=0) == report(adjacency)._replace(spectral_gap=0)


def ring_gap(agents):
    return 1 - max(abs(1 + 2 * np.cos(2 * np.pi * k / agents)) / 3 for k in range(1, agents))


@pytest.mark.parametrize(
    ("spelling", "agents", "directed", "weighting", "gap"),
    [
        ("complete", 2, False, "uniform", 1),
        ("complete", 9, False, "uniform", 1),
        ("complete", 9, False, "metropolis", 1),
        ("ring", 5, False, "uniform", ring_gap(5)),
        ("ring", 16, False, "uniform", ring_gap(16)),
        ("ring", 16, False, "metropolis", ring_gap(16)),
        # Eigenvalues (1 + w) / 2 of the roots w of unity.
        ("ring", 9, True, "uniform", 1 - np.cos(np.pi / 9)),
        # Two of the outer agents that differ lose half of it a round, or one part in all agents.
        ("star", 7, False, "uniform", 1 / 2),
        ("star", 7, False, "metropolis", 1 / 7),
        ("erdos-renyi:0", 5, False, "uniform", 0),
        ("erdos-renyi:0", 5, True, "metropolis", 0),
        ("ring", 1, False, "uniform", 1),
        ("ring", 1, False, "metropolis", 1),
    ],
)
def test_spectral_gaps_that_are_known(spelling, agents, directed, weighting, gap):
    said = report(matrix(spelling, agents, directed=directed), weighting=weighting)
    assert said.spectral_gap == pytest.approx(gap, abs=1e-12)


def test_news_that_go_to_and_fro_count_by_their_modulus():
    """Two camps of four, each beside all of the other and none of its own: the eigenvalues are 1, 1 / 5 and -3 / 5."""
    camps = np.kron([[0, 1], [1, 0]], np.ones((4, 4))).astype(bool)
    assert report(camps).spectral_gap == pytest.approx(2 / 5, abs=1e-12)


def test_a_report_of_who_is_alone():
    adjacency = np.zeros((5, 5), bool)
    # 3 is heard and hears nobody.
    adjacency[[0, 2, 4], [2, 0, 3]] = True
    assert report(adjacency) == (3, 0, 3 / 5, 1, False, [1, 3], 0.0)


def test_a_report_of_one_agent():
    assert report(np.zeros((1, 1), bool)) == (0, 0, 0.0, 0, True, [0], 1.0)


def test_a_report_of_two_halves_that_never_meet():
    halves = np.kron(np.eye(2), np.ones((3, 3))).astype(bool) & ~np.eye(6, dtype=bool)
    assert report(halves) == (12, 2, 2.0, 2, False, [], 0.0)


def test_the_papers_graph(shared):
    """104 undirected edges, degrees from 2 to 14, connected."""
    adjacency = matrix(str(shared / "paper_setup" / "adjacency_20.txt"), 20)
    degrees = adjacency.sum(1)
    assert (adjacency.sum(), degrees.min(), degrees.max()) == (2 * 104, 2, 14)
    assert networkx.is_connected(networkx.from_numpy_array(adjacency))
    said = report(adjacency)
    assert (said.links, said.smallest_degree, said.largest_degree) == (2 * 104, 2, 14)
    assert (said.connected, said.isolated) == (True, [])


KNOWN = (
    "erdos-renyi[:PROBABILITY], ring, torus[:ROWS], star, complete, regular[:DEGREE], "
    "small-world[:DEGREE[:PROBABILITY]], changing-erdos-renyi[:PROBABILITY], changing-regular[:DEGREE]"
)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("moebius", f"--topology must be one of {KNOWN} or a graph's file that exists, got 'moebius'"),
        ("missing.txt", "a graph's file that exists, got 'missing.txt'"),
        ("", "a graph's file that exists, got ''"),
        (".", "a graph's file that exists, got '.'"),
        ("rings", "got 'rings'; did you mean ring?"),
        ("Erdos-Renyi:0.5", "got 'Erdos-Renyi:0.5'; did you mean erdos-renyi?"),
        ("changing-regulr:4", "got 'changing-regulr:4'; did you mean changing-regular?"),
        ("ring:2", "--topology ring takes no number, got ring:2"),
        ("ring:", "--topology ring takes no number, got ring:"),
        ("torus:2:4", "--topology torus is spelled torus[:ROWS], got torus:2:4"),
        ("torus:3", "--topology torus:3: rows must divide the 8 agents, so be one of [1, 2, 4, 8], got 3"),
        ("torus:0", "--topology torus:0: rows must divide the 8 agents, so be one of [1, 2, 4, 8], got 0"),
        ("torus:two", "--topology torus takes a whole number for ROWS, got 'two'"),
        ("torus:", "--topology torus takes a whole number for ROWS, got ''"),
        ("regular:2:2", "--topology regular is spelled regular[:DEGREE], got regular:2:2"),
        ("regular:-2", "--topology regular:-2: degree must lie in 1..7, below the 8 agents, got -2"),
        ("regular:2.5", "--topology regular takes a whole number for DEGREE, got '2.5'"),
        ("regular:²", "--topology regular takes a whole number for DEGREE, got '²'"),
        ("regular:8", "--topology regular:8: degree must lie in 1..7, below the 8 agents, got 8"),
        ("small-world:4:0.1:2", "is spelled small-world[:DEGREE[:PROBABILITY]], got small-world:4:0.1:2"),
        ("small-world:0.1", "--topology small-world takes a whole number for DEGREE, got '0.1'"),
        ("small-world:3", "--topology small-world:3: degree must be even, half of it on either side, got 3"),
        ("small-world:4:", "--topology small-world takes a number for PROBABILITY, got ''"),
        ("erdos-renyi:1.1", "--topology erdos-renyi:1.1: probability must lie in [0, 1], got 1.1"),
        ("erdos-renyi:nan", "--topology erdos-renyi takes a number for PROBABILITY, got 'nan'"),
        ("changing-erdos-renyi:inf", "--topology changing-erdos-renyi:inf: probability must lie in [0, 1], got inf"),
        ("changing-regular:some", "--topology changing-regular takes a whole number for DEGREE, got 'some'"),
    ],
)
def test_spellings_that_mean_nothing_are_refused(spelling, message):
    with pytest.raises(ValueError, match=re.escape(message) + "$"):
        topology_of(spelling, 8, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: graphs.ring(0), "agents must be at least 1, got 0"),
        (lambda: graphs.complete(-1), "agents must be at least 1, got -1"),
        (lambda: graphs.changing_regular(1), "agents must be at least 2, got 1"),
        (lambda: graphs.torus(8, rows=3), "rows must divide the 8 agents, so be one of [1, 2, 4, 8], got 3"),
        (lambda: graphs.regular(8, degree=9), "degree must lie in 1..7, below the 8 agents, got 9"),
        (lambda: graphs.regular(4), "degree must lie in 1..3, below the 4 agents, got 4"),
        (lambda: graphs.changing_regular(8, degree=0), "degree must lie in 1..7, below the 8 agents, got 0"),
        (lambda: graphs.small_world(8, degree=8), "degree must lie in 1..7, below the 8 agents, got 8"),
        (lambda: graphs.small_world(8, degree=3), "degree must be even, half of it on either side, got 3"),
        (lambda: graphs.small_world(8, probability=-0.5), "probability must lie in [0, 1], got -0.5"),
        (lambda: graphs.erdos_renyi(8, probability=float("nan")), "probability must lie in [0, 1], got nan"),
        (lambda: graphs.changing_erdos_renyi(8, probability=2.0), "probability must lie in [0, 1], got 2"),
    ],
)
def test_arguments_that_make_no_graph_are_refused(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_a_regular_graph_of_an_odd_number_with_odd_degree_cannot_be():
    message = "degree 3 needs an even number of agents, or take an even degree, got 7 agents"
    with pytest.raises(ValueError, match=f"^{message}$"):
        graphs.regular(7, degree=3)
    # Directed it can.
    np.testing.assert_array_equal(matrix("regular:3", 7, directed=True).sum(axis=1), 3)


@pytest.mark.parametrize("name", WITHOUT_DIRECTED_FORM)
def test_some_graphs_have_no_directed_form(name):
    with pytest.raises(ValueError, match=f"^{name} has no directed form: leave --directed out$"):
        topology_of(name, 8, seed=0, directed=True)


def test_metropolis_weights_need_links_that_go_both_ways():
    with pytest.raises(ValueError, match=r"^metropolis weights need an undirected graph: .* leave --directed out$"):
        topology_of("ring", 8, seed=0, directed=True, mixing="metropolis")


def test_a_graph_of_ones_own_is_spelled_after_one_line(monkeypatch):
    """Its numbers are its arguments; seed and directed it gets where it takes them."""

    def sparse(agents: int, every: int, share: float = 0.5, directed: bool = False) -> Topology:
        assert (every, share, directed) == (2, 0.25, True)
        return Topology(graph_of(np.eye(agents, k=every, dtype=bool)))

    monkeypatch.setitem(GRAPHS, "sparse", sparse)
    monkeypatch.setitem(GRAPHS, "nobody", lambda agents: Topology(graph_of(np.zeros((agents, agents), bool))))
    assert links_of(matrix("sparse:2:0.25", 4, directed=True)) == {(0, 2), (1, 3)}
    assert links_of(matrix("nobody", 4)) == set()
    with pytest.raises(ValueError, match=r"^--topology sparse is spelled sparse:EVERY\[:SHARE\], got sparse$"):
        matrix("sparse", 4, directed=True)


@pytest.fixture
def adjacency_file(tmp_path):
    def write(content):
        path = tmp_path / "adjacency.txt"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return str(path)

    return write


def test_a_file_is_read_row_by_row(adjacency_file):
    path = adjacency_file("0 1 0\n1 0 1.0\n\n  0.0\t1 0  \n")
    np.testing.assert_array_equal(matrix(path, 3), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_in_a_directed_file_row_i_says_whom_agent_i_hears(adjacency_file):
    graph = topology_of(adjacency_file("0 1 1\r\n0 0 0\r\n0 1 0"), 3, seed=0, directed=True).graph
    edges = zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True)
    assert list(edges) == [(0, 1), (0, 2), (2, 1)]


@examples
@hypothesis.given(with_and_without(directed=True))
def test_what_numpy_writes_as_whole_numbers_is_read_again(tmp_path_factory, adjacency):
    path = tmp_path_factory.getbasetemp() / "written.txt"
    np.savetxt(path, adjacency, fmt="%d")
    np.testing.assert_array_equal(adjacency_of(read_graph(path, len(adjacency), directed=True).graph), adjacency)


def by_networkx(kind, matrix, path):
    """Write the graph of a mixing matrix as networkx does: an edge from u to v carries messages from u to v."""
    undirected = (matrix == matrix.T).all()
    graph = networkx.from_numpy_array(matrix.T, create_using=networkx.Graph if undirected else networkx.DiGraph)
    {"edges": networkx.write_weighted_edgelist, "edgelist": networkx.write_edgelist}.get(
        kind, getattr(networkx, f"write_{kind}", None)
    )(graph, path)


def by_numpy(kind, matrix, path):
    np.save(path, matrix) if kind == "npy" else np.savetxt(path, matrix, delimiter="," if kind == "csv" else " ")


@pytest.mark.parametrize(
    ("kind", "write"),
    [("npy", by_numpy), ("csv", by_numpy), ("txt", by_numpy)]
    + [(kind, by_networkx) for kind in ("edges", "edgelist", "gml", "graphml")],
)
@pytest.mark.parametrize("directed", [False, True], ids=["both ways", "directed"])
@pytest.mark.parametrize("weighted", [False, True], ids=["0 and 1", "weights"])
def test_files_that_numpy_and_networkx_write_are_read_again(tmp_path, kind, write, directed, weighted):
    """Whom each agent hears, with what weight, and what its own value counts: as the matrix says."""
    rng = np.random.default_rng(3)
    matrix = (rng.random((7, 7)) < 0.5) * (rng.integers(1, 9, (7, 7)) / 16 if weighted else 1.0)
    matrix = matrix if directed else np.triu(matrix) + np.triu(matrix, 1).T
    np.fill_diagonal(matrix, rng.integers(1, 9, 7) / 16 if weighted else 1)
    path = tmp_path / f"graph.{kind}"
    write(kind, matrix, path)
    graph = read_graph(path, 7, directed).graph
    found = np.diag(graph.own)
    found[graph.receivers, graph.senders] = graph.weights
    np.testing.assert_array_equal(found, matrix)
    assert graph.weights.dtype == (np.float32 if weighted else np.uint8)


@pytest.mark.parametrize("kind", ["gml", "graphml"])
def test_named_nodes_are_numbered_as_owners_of_samples(tmp_path, kind):
    graph = networkx.Graph([("joe", "ann"), ("ann", "zed"), ("zed", "bob")])  # in order: ann, bob, joe, zed
    getattr(networkx, f"write_{kind}")(graph, tmp_path / f"graph.{kind}")
    assert owners(np.array(["joe", "ann", "zed", "bob"]), 4) == ["ann", "bob", "joe", "zed"]
    assert links_of(matrix(str(tmp_path / f"graph.{kind}"), 4)) == {(0, 2), (2, 0), (0, 3), (3, 0), (1, 3), (3, 1)}


@pytest.mark.parametrize("count", ["6\n", "", "# six agents\n6  # that is all\n"], ids=["counted", "not", "commented"])
@pytest.mark.parametrize("back", [True, False], ids=["each way", "one way"])
def test_edges_are_read_with_and_without_a_count(adjacency_file, count, back):
    """And, unless the graph is directed, whether a link stands there once or twice."""
    edges = [(0, other) for other in range(1, 6)] + [(other, 0) for other in range(1, 6) if back]
    path = adjacency_file(count + "".join(f"{sender} {receiver}\n" for sender, receiver in edges))
    np.testing.assert_array_equal(matrix(path, 6), matrix("star", 6))


def test_a_directed_edge_carries_messages_to_its_second_agent(adjacency_file):
    graph = topology_of(adjacency_file("3\n0 1 0.5\n0,2,0.25\n1 1 0.75"), 3, seed=0, directed=True).graph
    assert list(zip(graph.receivers.tolist(), graph.senders.tolist(), strict=True)) == [(1, 0), (2, 0)]
    assert (graph.weights.tolist(), graph.own.tolist()) == ([0.5, 0.25], [1, 0.75, 1])


@pytest.mark.parametrize(
    ("content", "agents", "links"),
    [("0 1\n1 2", 3, [(0, 1), (1, 2)]), ("0 1 0.5\n1 2 0.5\n2 3 0.5", 4, [(0, 1), (1, 2), (2, 3)])],
    ids=["two edges", "three edges with weights"],
)
def test_as_many_edges_as_columns_are_edges(adjacency_file, content, agents, links):
    both = {*links, *((other, one) for one, other in links)}
    assert links_of(matrix(adjacency_file(content), agents)) == both


def test_what_may_be_a_matrix_or_edges_is_not_guessed(adjacency_file):
    path = adjacency_file("0 1 0.5\n1 2 0.5\n2 0 0.5")
    with pytest.raises(
        ValueError, match="may be a matrix of 3 agents, or 3 edges: give edges a first line that says 3"
    ):
        topology_of(path, 3, seed=0, directed=True)
    counted = adjacency_file("3\n0 1 0.5\n1 2 0.5\n2 0 0.5")
    assert topology_of(counted, 3, seed=0, directed=True).graph.senders.tolist() == [2, 0, 1]
    assert matrix(adjacency_file("0 1 1\n1 0 1\n1 1 0"), 3).sum() == 6


def test_networkx_may_write_other_attributes_of_edges(adjacency_file):
    path = adjacency_file("0 1 {'color': 'red', 'weight': 0.5}\n1 2 {'color': 'blue'}\n2 3 {}\n0 3 {}\n")
    assert topology_of(path, 4, seed=0).graph.weights.tolist() == [0.5, 1, 0.5, 1, 1, 1, 1, 1]


def test_a_graph_with_weights_is_reported_with_them():
    """By the second eigenvalue of its own mixing matrix."""
    mixing = np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0, 0.1, 0.9]])
    made = graphs.of_matrix(mixing).graph
    np.testing.assert_allclose(graphs.mixing_of(made), mixing, rtol=1e-6)
    assert report(adjacency_of(made), weights=graphs.mixing_of(made)).spectral_gap == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("diagonal", [0, 1])
def test_a_diagonal_of_one_kind_says_nothing(adjacency_file, diagonal):
    path = adjacency_file(f"{diagonal} 1\n1 {diagonal}")
    graph = topology_of(path, 2, seed=0).graph
    assert (graph.weights.tolist(), graph.weights.dtype, graph.own.tolist()) == ([1, 1], np.uint8, [1, 1])


def test_a_matrix_or_a_graph_of_ones_own():
    """From Python; nodes are numbered by size or by letters, in whatever order they come: as owners of samples are."""
    matrix = np.array([[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0.5, 0.5]])
    for made in (
        graphs.of_matrix(matrix),
        graphs.of_networkx(networkx.from_numpy_array(matrix.T, create_using=networkx.DiGraph)),
    ):
        assert made.redraw is None
        assert (made.graph.receivers.tolist(), made.graph.senders.tolist()) == ([0, 1, 1, 2], [1, 0, 2, 1])
        assert (made.graph.weights.tolist(), made.graph.own.tolist()) == ([0.5, 0.25, 0.25, 0.5], [0.5] * 3)
    named, shuffled = networkx.Graph([("b", "a"), ("a", "c")]), networkx.Graph([(2, 0), (0, 1)])
    assert links_of(adjacency_of(graphs.of_networkx(named).graph)) == {(0, 1), (1, 0), (0, 2), (2, 0)}
    assert links_of(adjacency_of(graphs.of_networkx(shuffled).graph)) == {(0, 1), (1, 0), (0, 2), (2, 0)}
    for alike in ("1", "01"):
        with pytest.raises(ValueError, match="nodes must have different names, and some are one word or one number"):
            graphs.of_networkx(networkx.Graph([(1, alike), (1, 2)]))


@pytest.mark.parametrize("mixing", ["metropolis", "similarity", "overlap"])
def test_weights_of_a_file_stand_alone(adjacency_file, mixing):
    path = adjacency_file("0.5 0.5\n0.5 0.5")
    with pytest.raises(ValueError, match=f"--mixing {mixing} weighs neighbours itself, and {path} has weights: leave"):
        topology_of(path, 2, seed=0, mixing=mixing)


BAD_WORD = "must hold numbers, separated by blanks or commas, got"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 one\n1 0", f"{BAD_WORD} 'one' in line 1"),
        ("0 nan\nnan 0", "weights must be finite and at least 0, got nan in row 0, column 1 (counted from 0): mend it"),
        ("0 1\n-1 0", "weights must be finite and at least 0, got -1 in row 1, column 0 (counted from 0): mend it"),
        (b"\xff\xfe\x00", "must hold rows of numbers, or edges, and cannot be read: it is no text"),
        ("", "must hold rows of numbers, or edges, and is empty"),
        (" \n# nothing\n", "must hold rows of numbers, or edges, and is empty"),
        ("0 1 0 1\n1", "or hold edges of two agents and perhaps a weight, got 2 rows of [1, 4] columns"),
        ("0 1 0\n1 0 0\n0 0 0", "has 3 agents, expected 2: say --agents 3"),
        ("0", "has 1 agents, expected 2: say --agents 1"),
        ("3\n0 1\n1 2", "has 3 agents, expected 2: say --agents 3"),
        ("0 1\n1 2\n0 2", "must name agents in 0..1, got 2 in line 2: mend it, or say --agents 3"),
        ("2\n0 1\n0 0.5", "must name agents in 0..1, got 0.5 in line 3"),
        ("2\n0 1 1\n0 1 2", "must name an edge once, got 0 1 again in line 3"),
        ("2\ninf 1", "must name agents in 0..1, got inf in line 2"),
        ("0 1\n0 0", "must be symmetric, and rows 0 and 1 (from 0) disagree: mend it, or say --directed"),
        ("0 1\n1 1", "a diagonal of 0 and 1 must be all one of them, and agents 1 and 0 differ in it: mend it"),
        (
            "1 0\n0 1",
            "may be a matrix of 2 agents, or 2 edges: give edges a first line that says 2, or a matrix as .npy",
        ),
        (
            "0 1 0\n1 0 1\n0 1",
            "must give edges weights above 0, got 0 in line 1 (read as edges, for a matrix would have 3 numbers in "
            "every line)",
        ),
        (
            "0 1e300\n1e300 0",
            "weights must be finite and at least 0, got inf in row 0, column 1 (counted from 0): mend it",
        ),
        ("0 1\n0 0.5", "must be symmetric, and rows 0 and 1 (from 0) disagree: mend it, or say --directed"),
    ],
)
def test_bad_files_are_refused_by_what_is_wrong(adjacency_file, content, message):
    path = adjacency_file(content)
    with pytest.raises(ValueError, match=re.escape(message) + "$") as refused:
        topology_of(path, 2, seed=0)
    assert path in str(refused.value)


@pytest.mark.parametrize("suffix", ["npy", "gml", "graphml"])
@pytest.mark.parametrize("content", [b"", b"torn \xff"])
def test_bad_files_of_libraries_are_refused_in_one_line(tmp_path, suffix, content):
    path = tmp_path / f"graph.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^the graph file \S+ must be what its name \.{suffix} says, and [^\n]+$"):
        read_graph(path, 3)


@pytest.mark.parametrize("shape", [(3,), (3, 4), (0, 0), (2, 2, 2)])
def test_what_is_no_square_matrix_is_refused(tmp_path, shape):
    np.save(tmp_path / "graph.npy", np.zeros(shape))
    with pytest.raises(ValueError, match=r"must be square, got|has 0 agents, expected 3"):
        read_graph(tmp_path / "graph.npy", 3)


@pytest.mark.parametrize(("place", "reason"), [("", "Is a directory"), ("missing.txt", "No such file or directory")])
def test_what_cannot_be_read_is_told_why(tmp_path, place, reason):
    message = f"the graph file {tmp_path / place} must hold rows of numbers, or edges, and cannot be read: {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        read_graph(tmp_path / place, 2)


def test_a_file_that_is_there_and_cannot_be_read_is_told_why(adjacency_file, monkeypatch):
    def refuse(path, encoding):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        ValueError, match=r"must hold rows of numbers, or edges, and cannot be read: Permission denied$"
    ):
        topology_of(adjacency_file("0 1\n1 0"), 2, seed=0)


def test_a_name_is_no_file(adjacency_file, monkeypatch):
    """Whoever names a graph gets it, whatever lies in the folder."""
    path = Path(adjacency_file("0 1 0\n1 0 0\n0 0 0"))
    path.rename(path.with_name("ring"))
    monkeypatch.chdir(path.parent)
    assert matrix("ring", 3).sum() == 6
    assert matrix("./ring", 3).sum() == 2
