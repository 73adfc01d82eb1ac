"""Graphs of agents, and their sparse mixing matrix by its edges. The population's world.

A spelling such as "ring", "regular:8" or "erdos-renyi:0.5" names a graph; a file can hold any other. To add a kind of
graph, write its function and name it in `GRAPHS` (one graph for the whole run, as an adjacency matrix) or in `CHANGING`
(a new one in every round).
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt8
from scipy.sparse.csgraph import connected_components

from dslth_jax.files import words_by_line
from dslth_jax.naming import expect_choice, nearest

Adjacency = Bool[np.ndarray, "agents agents"]


class Graph(NamedTuple):
    """A sparse mixing matrix: its directed edges, sorted by receiver, and its diagonal. Edges have a static number.

    A weight of 0 is an edge that is absent. Weights of 0 and 1 in uint8 are counted exactly, floats are summed.
    """

    senders: Int32[np.ndarray | Array, "edges"]
    receivers: Int32[np.ndarray | Array, "edges"]
    weights: UInt8[np.ndarray | Array, "edges"] | Float[np.ndarray | Array, "edges"]
    own: Float[np.ndarray | Array, "agents"]  # of own values in means; 1 where all neighbours count alike


class Topology(NamedTuple):
    """Who hears whom, in every round.

    `redraw(key, graph)` is the graph of the round that `key` belongs to, as a pure function; None where the graph
    stays as it is. `graph` sets the number of edges either way.
    """

    graph: Graph
    redraw: Callable[[Key[Array, ""], Graph], Graph] | None = None


class GraphReport(NamedTuple):
    """What a graph is like. Degrees count the neighbours that an agent hears."""

    links: int  # directed ones: an undirected link counts twice
    smallest_degree: int
    mean_degree: float
    largest_degree: int
    connected: bool  # a directed graph: every agent's masks reach every other in time
    isolated: list[int]  # agents that hear nobody
    spectral_gap: float  # 1 - |second eigenvalue| of the mixing matrix, self included; 0 where not connected


def topology_by_name(
    spelling: str, agents: int, seed: int, *, directed: bool = False, weighting: str = "uniform"
) -> Topology:
    """The graph of a spelling such as "ring", "regular:8", "changing-regular:4", or of an adjacency text file.

    Args:
        spelling: a key of `GRAPHS` or `CHANGING` with its numbers behind colons, or a path.
        agents: how many.
        seed: of what is drawn at random; graphs that change draw from the keys they are given.
        directed: whether an agent may hear another that does not hear it.
        weighting: "uniform" counts every neighbour alike, "metropolis" gives edges the weights of `metropolis`.

    Raises:
        ValueError: a spelling that means nothing, or a graph that cannot be.

    >>> topology_by_name("star", 3, seed=0).graph.receivers.tolist()
    [0, 0, 1, 2]
    """
    if agents < 1:
        raise ValueError(f"agents must be at least 1, got {agents}")
    expect_choice("weighting", weighting, ("uniform", "metropolis"))
    if weighting == "metropolis" and directed:
        raise ValueError("metropolis weights need an undirected graph: take uniform ones, or leave --directed out")
    topology = _unweighted(spelling, agents, seed, directed)
    return topology if weighting == "uniform" else _weighted(topology)


def _unweighted(spelling: str, agents: int, seed: int, directed: bool) -> Topology:
    name, *numbers = spelling.split(":")
    if name in CHANGING:
        return CHANGING[name](agents, numbers, directed)
    if name in GRAPHS:
        return Topology(graph_of(GRAPHS[name](agents, numbers, seed, directed)))
    # Where the name is too long for a file, asking raises.
    with contextlib.suppress(OSError):
        if Path(spelling).is_file():
            return Topology(graph_of(read_adjacency(Path(spelling), agents, directed)))
    known = (*GRAPHS, *CHANGING)
    raise ValueError(
        f"topology must be one of {', '.join(known)} or an adjacency file that exists, "
        f"got {spelling!r}{nearest(name, known)}"
    )


def _weighted(topology: Topology) -> Topology:
    """The same graphs with Metropolis weights."""
    redraw, start = topology.redraw, metropolis(topology.graph)
    return Topology(start, redraw and (lambda key, graph: metropolis(redraw(key, graph))))


def graph_of(
    adjacency: Adjacency,
    weights: Float[np.ndarray, "agents agents"] | None = None,
    own: Float[np.ndarray, "agents"] | None = None,
) -> Graph:
    """The graph in which agent i hears agent j where `adjacency[i, j]`.

    Edges have the weights `weights[i, j]`, or 1 where these are left out; own values have the weights `own`, or 1.

    >>> graph_of(np.array([[False, True], [True, False]])).senders.tolist()
    [1, 0]
    >>> mixing = np.array([[0.75, 0.25], [0.5, 0.5]])
    >>> graph_of(~np.eye(2, dtype=bool), mixing, own=mixing.diagonal()).weights.tolist()
    [0.25, 0.5]
    """
    receivers, senders = np.nonzero(adjacency)
    real = jnp.result_type(float)
    of_edges = np.ones(senders.shape, np.uint8) if weights is None else weights[receivers, senders].astype(real)
    of_own = np.ones(len(adjacency), np.float32) if own is None else own.astype(real)
    return Graph(senders.astype(np.int32), receivers.astype(np.int32), of_edges, of_own)


def with_edges(graph: Graph, edges: int) -> Graph:
    """The same graph with `edges` edges: those it lacks are absent ones, behind all others. Host side.

    >>> with_edges(graph_of(np.array([[False, True], [True, False]])), 3).weights.tolist()
    [1, 1, 0]
    """
    more = (0, edges - len(graph.senders))
    return graph._replace(
        senders=np.pad(graph.senders, more),
        receivers=np.pad(graph.receivers, more, constant_values=len(graph.own) - 1),
        weights=np.pad(graph.weights, more),
    )


def adjacency_of(graph: Graph) -> Adjacency:
    """The matrix again: who hears whom over edges that are present. Host side."""
    adjacency = np.zeros((len(graph.own), len(graph.own)), bool)
    present = np.asarray(graph.weights) != 0
    adjacency[np.asarray(graph.receivers)[present], np.asarray(graph.senders)[present]] = True
    return adjacency


def listeners(graph: Graph) -> Int[Array, "agents"]:
    """How many agents hear each agent: over how many links its message travels."""
    return jnp.zeros(len(graph.own), jnp.int32).at[graph.senders].add((graph.weights != 0).astype(jnp.int32))


def metropolis(graph: Graph) -> Graph:
    """The same edges with Metropolis weights 1 / (1 + max of both degrees) (Xiao and Boyd 2004), of undirected graphs.

    An agent listens less to one with many neighbours. What the weights leave of 1 is the weight of its own value.
    """
    present = (graph.weights != 0).astype(jnp.result_type(float))
    nobody = jnp.zeros(len(graph.own), present.dtype)
    degree = nobody.at[graph.receivers].add(present)
    weights = present / (1 + jnp.maximum(degree[graph.senders], degree[graph.receivers]))
    return graph._replace(weights=weights, own=1 - nobody.at[graph.receivers].add(weights))


def report(adjacency: Adjacency, *, weighting: str = "uniform") -> GraphReport:
    """Degrees, connectedness and spectral gap, for weights that are "uniform" or "metropolis". Host side.

    The gap is that of averaging over one's neighbours and oneself: the larger, the faster news spread.

    >>> ring = adjacency_of(topology_by_name("ring", 4, seed=0).graph)
    >>> report(ring).mean_degree, round(report(ring).spectral_gap, 3)
    (2.0, 0.667)
    """
    expect_choice("weighting", weighting, ("uniform", "metropolis"))
    degrees = adjacency.sum(axis=1)
    components, _ = connected_components(adjacency, directed=True, connection="strong")
    connected = components == 1
    if weighting == "metropolis":
        mixing = adjacency / (1 + np.maximum(degrees[:, None], degrees[None]))
        mixing += np.diag(1 - mixing.sum(axis=1))
    else:
        mixing = (adjacency + np.eye(len(adjacency))) / (1 + degrees[:, None])
        if (adjacency == adjacency.T).all():
            # The symmetric matrix of the same eigenvalues, which are found several times faster.
            mixing *= np.sqrt((1 + degrees[:, None]) / (1 + degrees[None]))
    symmetric = np.allclose(mixing, mixing.T, rtol=0, atol=1e-12)
    moduli = np.sort(np.abs(np.linalg.eigvalsh(mixing) if symmetric else np.linalg.eigvals(mixing)))
    # In parts that do not hear each other no news spread at all, whatever rounding makes of the eigenvalues.
    gap = 1 - float(moduli[-2]) if connected and len(moduli) > 1 else float(connected)
    return GraphReport(
        links=int(degrees.sum()),
        smallest_degree=int(degrees.min()),
        mean_degree=float(degrees.mean()),
        largest_degree=int(degrees.max()),
        connected=connected,
        isolated=np.flatnonzero(degrees == 0).tolist(),
        spectral_gap=max(gap, 0.0),
    )


def ring(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """Agent i beside i - 1 and i + 1; directed, it hears i - 1 alone."""
    del seed
    _expect_numbers("ring", numbers, 0)
    return _both_ways(np.roll(np.eye(agents, dtype=bool), -1, axis=1), directed)


def torus(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """Agents on a grid of ROWS rows whose edges are joined, beside four others; directed, each hears two.

    Without a number the grid is as square as the agents' number allows.
    """
    del seed
    _expect_numbers("torus", numbers, 1, "torus:ROWS")
    divisors = [rows for rows in range(1, agents + 1) if agents % rows == 0]
    squarest = min(divisors, key=lambda rows: abs(rows - agents / rows))
    rows = _whole_number("torus", numbers[0]) if numbers else squarest
    if rows not in divisors:
        raise ValueError(f"torus:{rows} needs agents that fill {rows} rows, got {agents}: rows can be {divisors}")
    grid = np.arange(agents).reshape(rows, -1)
    left, above = np.roll(grid, 1, axis=1), np.roll(grid, 1, axis=0)
    adjacency = np.zeros((agents, agents), bool)
    adjacency[grid, left] = adjacency[grid, above] = True
    return _both_ways(adjacency, directed)


def star(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """Agent 0 beside all others, which are beside nobody else."""
    del seed
    _expect_numbers("star", numbers, 0)
    _expect_undirected("star", directed)
    adjacency = np.zeros((agents, agents), bool)
    adjacency[0, 1:] = adjacency[1:, 0] = True
    return adjacency


def complete(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """Everybody beside everybody."""
    del seed
    _expect_numbers("complete", numbers, 0)
    _expect_undirected("complete", directed)
    return ~np.eye(agents, dtype=bool)


def regular(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """A random graph in which everybody has DEGREE neighbours; directed, everybody hears DEGREE others."""
    degree = _degree("regular", numbers, agents)
    if directed:
        return _hearing_others(np.random.default_rng(seed), agents, degree)
    if degree * agents % 2:
        raise ValueError(f"regular:{degree} needs an even number of agents, or an even degree, got {agents} agents")
    import networkx  # imported where it is used: no import of the library pays for it

    # Draw who is not beside whom where that is fewer: dense graphs are found by trial after trial.
    dense = degree > agents // 2
    fewer = agents - 1 - degree if dense else degree
    adjacency = _matrix(networkx.random_regular_graph(fewer, agents, seed=seed), agents)
    return ~adjacency & ~np.eye(agents, dtype=bool) if dense else adjacency


def small_world(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """A ring of DEGREE nearest neighbours, each link rewired with the given PROBABILITY (Watts and Strogatz 1998)."""
    _expect_numbers("small-world", numbers, 2, "small-world:DEGREE:PROBABILITY")
    _expect_undirected("small-world", directed)
    degree = _degree("small-world", numbers[:1], agents)
    if degree % 2:
        raise ValueError(f"small-world needs an even degree, half of it on either side, got {degree}")
    probability = _probability("small-world:4", numbers[1]) if len(numbers) > 1 else 0.1
    import networkx

    return _matrix(networkx.watts_strogatz_graph(agents, degree, probability, seed=seed), agents)


def erdos_renyi(agents: int, numbers: Sequence[str], seed: int, directed: bool) -> Adjacency:
    """Each pair of agents joined with PROBABILITY, independently; directed, each of both ways by itself."""
    _expect_numbers("erdos-renyi", numbers, 1, "erdos-renyi:PROBABILITY")
    probability = _probability("erdos-renyi", numbers[0] if numbers else "0.5")
    import networkx

    return _matrix(networkx.gnp_random_graph(agents, probability, seed=seed, directed=directed), agents)


def changing_erdos_renyi(agents: int, numbers: Sequence[str], directed: bool) -> Topology:
    """`erdos_renyi` drawn anew in every round."""
    _expect_numbers("changing-erdos-renyi", numbers, 1, "changing-erdos-renyi:PROBABILITY")
    probability = _probability("changing-erdos-renyi", numbers[0] if numbers else "0.5")

    def redraw(key: Key[Array, ""], graph: Graph) -> Graph:
        drawn = jax.random.uniform(key, (agents, agents))
        first, second = graph.receivers, graph.senders
        if not directed:
            first, second = jnp.minimum(first, second), jnp.maximum(first, second)
        return graph._replace(weights=(drawn[first, second] < probability).astype(jnp.uint8))

    return Topology(graph_of(~np.eye(agents, dtype=bool)), redraw)


def changing_regular(agents: int, numbers: Sequence[str], directed: bool) -> Topology:
    """In every round DEGREE random pairings of all agents, or directed, everybody hears DEGREE random others.

    Two agents that are paired twice in a round share one link, and of an odd number one sits out each pairing: so an
    undirected degree is DEGREE at most.
    """
    degree = _degree("changing-regular", numbers, agents)
    own = np.repeat(np.arange(agents, dtype=np.int32), degree)

    def hear_others(key: Key[Array, ""], graph: Graph) -> Graph:
        # Order all others by random numbers, oneself behind them, and take the first.
        drawn = jax.random.uniform(key, (agents, agents)) + 2 * jnp.eye(agents)
        others = jnp.argsort(drawn, axis=1)[:, :degree].astype(jnp.int32)
        return graph._replace(senders=others.reshape(-1))

    def pair_up(key: Key[Array, ""], graph: Graph) -> Graph:
        orders = jax.vmap(lambda key: jax.random.permutation(key, agents))(jax.random.split(key, degree))
        pairs = orders[:, : agents - agents % 2].reshape(degree, -1, 2)
        pairing = jnp.arange(degree)[:, None, None]
        # Whoever is left over is paired with itself, and that is no link.
        partner = jnp.tile(jnp.arange(agents), (degree, 1)).at[pairing, pairs].set(pairs[..., ::-1]).T
        again = jnp.tril(partner[:, :, None] == partner[:, None, :], -1).any(axis=2)
        present = (partner != jnp.arange(agents)[:, None]) & ~again
        return graph._replace(
            senders=partner.reshape(-1).astype(jnp.int32), weights=present.reshape(-1).astype(jnp.uint8)
        )

    # Which edges there are before the first draw is of no account.
    start = Graph((own + 1) % agents, own, np.ones(own.shape, np.uint8), np.ones(agents, np.float32))
    return Topology(start, hear_others if directed else pair_up)


GRAPHS: dict[str, Callable[[int, Sequence[str], int, bool], Adjacency]] = {
    "erdos-renyi": erdos_renyi,
    "ring": ring,
    "torus": torus,
    "star": star,
    "complete": complete,
    "regular": regular,
    "small-world": small_world,
}

CHANGING: dict[str, Callable[[int, Sequence[str], bool], Topology]] = {
    "changing-erdos-renyi": changing_erdos_renyi,
    "changing-regular": changing_regular,
}


def read_adjacency(path: Path, agents: int, directed: bool = False) -> Adjacency:
    """A text file of one row an agent, 0 and 1 separated by blanks: row i says whom agent i hears.

    It must be square, of `agents` rows, with zeros on the diagonal, and symmetric unless `directed`.
    """
    lines = words_by_line(path, f"the adjacency file {path} must hold rows of 0 and 1")
    for number, words in lines:
        for word in words:
            if not _is_zero_or_one(word):
                raise ValueError(
                    f"the adjacency file {path} must hold 0 and 1 alone, separated by blanks, "
                    f"got {word!r} in line {number}"
                )
    widths = sorted({len(words) for _, words in lines})
    if widths != [len(lines)]:
        raise ValueError(f"the adjacency file {path} must be square, got {len(lines)} rows of {widths} columns")
    if len(lines) != agents:
        raise ValueError(
            f"the adjacency file {path} has {len(lines)} agents, expected {agents}: say --agents {len(lines)}"
        )
    adjacency = np.array([words for _, words in lines], float) != 0
    if not directed and (adjacency != adjacency.T).any():
        i, j = np.argwhere(adjacency != adjacency.T)[0]
        raise ValueError(
            f"the adjacency file {path} must be symmetric, rows {i} and {j} disagree (counted from 0): "
            f"mend it, or say --directed"
        )
    if adjacency.diagonal().any():
        raise ValueError(
            f"agent {int(np.argmax(adjacency.diagonal()))} is its own neighbour in {path}: the diagonal must be 0"
        )
    return adjacency


def _hearing_others(rng: np.random.Generator, agents: int, degree: int) -> Adjacency:
    """Everybody hears `degree` others, drawn at random."""
    drawn = rng.random((agents, agents)) + 2 * np.eye(agents)
    adjacency = np.zeros((agents, agents), bool)
    np.put_along_axis(adjacency, np.argsort(drawn, axis=1)[:, :degree], True, axis=1)
    return adjacency


def _is_zero_or_one(word: str) -> bool:
    """Spelled in any way, for numpy writes 1 as 1.000000000000000000e+00."""
    try:
        return float(word) in (0, 1)
    except ValueError:
        return False


def _both_ways(adjacency: Adjacency, directed: bool) -> Adjacency:
    """Nobody hears itself, and unless `directed` whoever is heard hears too."""
    heard = adjacency if directed else adjacency | adjacency.T
    return heard & ~np.eye(len(heard), dtype=bool)


def _matrix(drawn: Any, agents: int) -> Adjacency:
    import networkx

    return (networkx.to_numpy_array(drawn, nodelist=range(agents)) != 0).T


def _expect_numbers(name: str, numbers: Sequence[str], most: int, spelling: str | None = None) -> None:
    if len(numbers) > most:
        wanted = f"is spelled {spelling}" if spelling else "takes no number"
        raise ValueError(f"{name} {wanted}, got {':'.join((name, *numbers))}")


def _expect_undirected(name: str, directed: bool) -> None:
    if directed:
        raise ValueError(f"{name} has no directed form: leave --directed out")


def _whole_number(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ValueError(f"{name} needs a whole number, such as {name}:4, got {text!r}")
    return int(text)


def _degree(name: str, numbers: Sequence[str], agents: int) -> int:
    _expect_numbers(name, numbers, 1, f"{name}:DEGREE")
    if agents < 2:
        raise ValueError(f"{name} needs 2 agents or more, got {agents}")
    degree = _whole_number(name, numbers[0] if numbers else str(min(4, agents - 1)))
    if not 1 <= degree < agents:
        raise ValueError(f"{name} needs a degree in 1..{agents - 1}, below the {agents} agents, got {degree}")
    return degree


def _probability(name: str, text: str) -> float:
    try:
        probability = float(text)
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} needs a probability in [0, 1], such as {name}:0.5, got {text!r}")
    return probability
