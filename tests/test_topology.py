"""Graphs: who is beside whom, the edges in order, adjacency files and what is said of bad ones."""

import networkx
import numpy as np
import pytest

from dslth_jax.topology import adjacency_by_name, graph_of

NAMES = ["ring", "complete", "erdos-renyi", "erdos-renyi:0.2", "erdos-renyi:0", "erdos-renyi:1"]


@pytest.mark.parametrize("agents", [1, 2, 3, 17])
@pytest.mark.parametrize("name", NAMES)
def test_every_graph_is_symmetric_without_self(name, agents):
    adjacency = adjacency_by_name(name, agents, seed=3)
    assert adjacency.shape == (agents, agents)
    assert adjacency.dtype == bool
    np.testing.assert_array_equal(adjacency, adjacency.T)
    assert not adjacency.diagonal().any()


@pytest.mark.parametrize("agents", [1, 2, 3, 4, 9])
def test_on_a_ring_agents_stand_between_two(agents):
    adjacency = adjacency_by_name("ring", agents, seed=0)
    beside = {(i, (i + step) % agents) for i in range(agents) for step in (-1, 1)}
    expected = {(i, j) for i, j in beside if i != j}
    assert set(zip(*(axis.tolist() for axis in np.nonzero(adjacency)), strict=True)) == expected


@pytest.mark.parametrize("agents", [1, 2, 9])
@pytest.mark.parametrize("name", ["complete", "erdos-renyi:1"])
def test_in_a_complete_graph_everybody_has_everybody(name, agents):
    adjacency = adjacency_by_name(name, agents, seed=0)
    np.testing.assert_array_equal(adjacency, np.ones((agents, agents)) - np.eye(agents))


def test_a_random_graph_depends_on_its_seed_alone():
    first, again, other = (adjacency_by_name("erdos-renyi:0.4", 30, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(("name", "probability"), [("erdos-renyi:0.2", 0.2), ("erdos-renyi", 0.5)])
def test_a_random_graph_joins_its_share_of_pairs(name, probability):
    agents = 120
    pairs = agents * (agents - 1) / 2
    joined = adjacency_by_name(name, agents, seed=1).sum() / 2
    assert abs(joined - probability * pairs) < 5 * np.sqrt(pairs * probability * (1 - probability))


@pytest.mark.parametrize("seed", range(5))
def test_edges_lie_by_receiver_and_make_the_adjacency_again(seed):
    # Without symmetry, senders and receivers cannot be mixed up unseen.
    adjacency = np.random.default_rng(seed).uniform(size=(9, 9)) < 0.4
    adjacency[4] = False
    graph = graph_of(adjacency)
    assert (np.diff(graph.receivers) >= 0).all()
    again = np.zeros_like(adjacency)
    again[graph.receivers, graph.senders] = True
    np.testing.assert_array_equal(again, adjacency)
    assert len(graph.senders) == len(graph.receivers) == len(graph.weights) == adjacency.sum()
    np.testing.assert_array_equal(graph.weights, 1)
    assert [leaf.dtype for leaf in graph] == [np.int32, np.int32, np.float32]


def test_a_graph_may_have_no_edges():
    assert [leaf.shape for leaf in graph_of(np.zeros((3, 3), bool))] == [(0,)] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torus", "one of erdos-renyi, ring, complete or an adjacency file that exists, got 'torus'"),
        ("missing.txt", "an adjacency file that exists, got 'missing.txt'"),
        ("ring:2", "ring takes no number, got ring:2"),
        ("complete:3", "complete takes no number, got complete:3"),
        ("erdos-renyi:1.1", r"a probability in \[0, 1\], such as erdos-renyi:0.5, got '1.1'"),
        ("erdos-renyi:-0.1", "got '-0.1'"),
        ("erdos-renyi:nan", "got 'nan'"),
        ("erdos-renyi:half", "got 'half'"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        adjacency_by_name(name, 4, seed=0)


@pytest.mark.parametrize("agents", [0, -1])
def test_a_population_has_an_agent(agents):
    with pytest.raises(ValueError, match=f"agents must be at least 1, got {agents}"):
        adjacency_by_name("ring", agents, seed=0)


@pytest.fixture
def adjacency_file(tmp_path):
    def write(content):
        path = tmp_path / "adjacency.txt"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
        return str(path)

    return write


def test_a_file_is_read_row_by_row(adjacency_file):
    path = adjacency_file("0 1 0\n1 0 1.0\n\n  0\t1 0  \n")
    np.testing.assert_array_equal(adjacency_by_name(path, 3, seed=0), [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0 one\n1 0", "must hold rows of 0 and 1: could not convert string to float: 'one'"),
        (b"\xff\xfe\x00", "must hold rows of 0 and 1"),
        ("", r"must be square, got 0 rows of \[\] columns"),
        ("0 1\n1 0\n0 0", r"must be square, got 3 rows of \[2\] columns"),
        ("0 1\n1", r"must be square, got 2 rows of \[1, 2\] columns"),
        ("0 2\n2 0", "must hold 0 and 1 alone, got 2.0"),
        ("0 nan\nnan 0", "must hold 0 and 1 alone, got nan"),
        ("0 1 0\n1 0 0\n0 0 0", "has 3 agents, expected 2: say --agents 3"),
        ("0 1\n0 0", r"must be symmetric, rows 0 and 1 disagree \(counted from 0\)"),
        ("0 1\n1 1", "agent 1 is its own neighbour in .*: the diagonal must be 0"),
    ],
)
def test_bad_files_are_refused_by_what_is_wrong(adjacency_file, content, message):
    with pytest.raises(ValueError, match=message):
        adjacency_by_name(adjacency_file(content), 2, seed=0)


def test_the_papers_graph(shared):
    """104 undirected edges, degrees from 2 to 14, connected."""
    adjacency = adjacency_by_name(str(shared / "paper_setup" / "adjacency_20.txt"), 20, seed=0)
    degrees = adjacency.sum(1)
    assert (adjacency.sum(), degrees.min(), degrees.max()) == (2 * 104, 2, 14)
    assert networkx.is_connected(networkx.from_numpy_array(adjacency))
