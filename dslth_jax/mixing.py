"""The sparse mixing matrix of a graph of agents, by its edges. The population's world.

Every generator of `graphs` returns a `Topology`, whether its graph stays as it is or changes from round to round. Here
is what makes one of a matrix, or of a graph of networkx, what gives its edges other weights, and what lets agents hear
few of their neighbours at a time.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, Shaped, UInt8

from dslth_jax.keys import reproducible

Adjacency = Bool[np.ndarray, "agents agents"]

HEARING = 0x68656172  # folded into a round's key for who is heard, so that no graph's own draw decides that too


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


def of_matrix(matrix: Shaped[np.ndarray, "..."], *, directed: bool = False) -> Topology:
    """The graph in which agent i hears agent j where `matrix[i, j]` is not 0.

    A matrix of 0 and 1 counts all that are heard alike, and one's own value as one of them, whether its diagonal is all
    0 or all 1. Any other holds weights, on its diagonal those of own values. Raises a ValueError unless the matrix is
    square, none of its entries is negative or infinite, and, unless `directed`, links go both ways.

    >>> of_matrix(np.array([[0.75, 0.25], [0.5, 0.5]])).graph.weights.tolist()
    [0.25, 0.5]
    """
    if matrix.ndim != 2 or len(set(matrix.shape)) > 1 or not matrix.size:
        raise ValueError(f"a matrix of agents must be square, got {' x '.join(map(str, matrix.shape))}")
    with np.errstate(over="ignore"):  # what is too large for the type of weights is infinite, and refused
        matrix = matrix.astype(jnp.result_type(float))
    fits = np.isfinite(matrix) & (matrix >= 0)
    if not fits.all():
        i, j = np.argwhere(~fits)[0].tolist()
        raise ValueError(
            f"weights must be finite and at least 0, got {matrix[i, j]:g} in row {i}, column {j} (counted from 0)"
        )
    own, heard = matrix.diagonal(), (matrix != 0) & ~np.eye(len(matrix), dtype=bool)
    if not directed and (heard != heard.T).any():
        i, j = np.argwhere(heard != heard.T)[0]
        raise ValueError(f"a graph that is not directed must be symmetric, and rows {i} and {j} (from 0) disagree")
    if not np.isin(matrix, (0, 1)).all():
        return Topology(graph_of(heard, matrix, own))
    if own.any() and not own.all():
        agent, other = np.argmax(own != 0), np.argmax(own == 0)
        raise ValueError(f"a diagonal of 0 and 1 must be all one of them, and agents {agent} and {other} differ in it")
    return Topology(graph_of(heard))


def of_networkx(graph: Any) -> Topology:
    """The graph of one of networkx, whose edge from u to v carries messages from u to v.

    Nodes 0 to agents - 1 are the agents; nodes of other names are numbered in their order, as owners of samples are
    (`partition.owned`): numbers by size, words by their letters. Edges have the weights of their attribute "weight", or
    1; own values those of self loops, or 1 where there is none.
    """
    return of_matrix(matrix_of(graph), directed=graph.is_directed())


def matrix_of(graph: Any) -> Float[np.ndarray, "_ _"]:
    """The mixing matrix of a graph of networkx, as `of_matrix` takes it; see `of_networkx`."""
    import networkx

    whole = all(re.fullmatch(r"-?[0-9]+", str(node)) for node in graph)
    named = {int(str(node)) if whole else str(node): node for node in graph}
    if len(named) < len(graph):
        raise ValueError("nodes must have different names, and some are one word or one number: rename them")
    nodes = [named[name] for name in sorted(named)]
    return with_own(networkx.to_numpy_array(graph, nodelist=nodes, weight="weight").T)


def with_own(matrix: Float[np.ndarray, "_ _"]) -> Float[np.ndarray, "_ _"]:
    """The matrix with 1 on its diagonal for everybody who is not said to hear itself."""
    return matrix + np.diag(matrix.diagonal() == 0)


def mixing_of(graph: Graph) -> Float[np.ndarray, "agents agents"]:
    """The mixing matrix of a graph: weights of those who are heard and, on the diagonal, of own values. Host side."""
    mixing = np.diag(np.asarray(graph.own, float))
    heard = np.asarray(graph.receivers), np.asarray(graph.senders)
    # An absent edge may share its place with one that is there.
    np.add.at(mixing, heard, np.asarray(graph.weights, float))
    return mixing


def adjacency_of(graph: Graph) -> Adjacency:
    """The adjacency matrix of a graph: who hears whom over edges that are present. Host side."""
    adjacency = np.zeros((len(graph.own), len(graph.own)), bool)
    present = np.asarray(graph.weights) != 0
    adjacency[np.asarray(graph.receivers)[present], np.asarray(graph.senders)[present]] = True
    return adjacency


def listeners(graph: Graph) -> Int[Array, "agents"]:
    """How many agents hear each agent: over how many links its message travels."""
    return jnp.zeros(len(graph.own), jnp.int32).at[graph.senders].add((graph.weights != 0).astype(jnp.int32))


def metropolis(topology: Topology) -> Topology:
    """The same graphs with Metropolis weights 1 / (1 + max of both degrees) (Xiao and Boyd 2004).

    Links must go both ways, which is not checked, as a graph may be traced. An agent listens less to one with many
    neighbours. What the weights of an agent's neighbours leave of 1 is the weight of its own value.

    >>> from dslth_jax.graphs import star
    >>> weighted = metropolis(star(4)).graph
    >>> weighted.weights.tolist(), weighted.own.tolist()
    ([0.25, 0.25, 0.25, 0.25, 0.25, 0.25], [0.25, 0.75, 0.75, 0.75])
    """
    return _weighed(topology, _metropolis)


def weighted(topology: Topology, weights: Float[np.ndarray, "agents agents"]) -> Topology:
    """The same graphs, in which agent i hears agent j with `weights[i, j]`, and not at all where that is 0.

    Raises a ValueError unless there is a weight for every two agents, finite as it is kept and at least 0.

    >>> from dslth_jax.graphs import star
    >>> weighted(star(3), np.array([[0, 0.5, 0], [1, 0, 0], [1, 0, 0]])).graph.weights.tolist()
    [0.5, 0.0, 1.0, 1.0]
    """
    agents = len(topology.graph.own)
    given = np.asarray(weights)
    if given.shape != (agents, agents):
        raise ValueError(f"weights must be {agents} x {agents}, got {' x '.join(map(str, given.shape))}")
    with np.errstate(over="ignore"):  # what is too large for its type is refused below
        kept = given.astype(jnp.result_type(float))
    if not (np.isfinite(kept) & (given >= 0)).all():
        raise ValueError(f"weights must be finite in {kept.dtype} and at least 0, and some are not")
    table = jnp.asarray(kept)

    def weigh(graph: Graph) -> Graph:
        return graph._replace(weights=jnp.where(graph.weights != 0, table[graph.receivers, graph.senders], 0))

    return _weighed(topology, weigh)


def hearing_some(topology: Topology, most: int) -> Topology:
    """The same graphs, in which each agent hears at most `most` of its neighbours in a round. Ours.

    In every round each agent draws anew whom it hears, all of its neighbours being as likely. Links that are heard keep
    their weights, as own values do; the others have 0 in that round. The draw goes by the round's key and by who sends
    to whom, never by an edge's place in the array. Raises a ValueError unless `most` is positive.

    >>> from dslth_jax.graphs import complete
    >>> topology = hearing_some(complete(4), 1)
    >>> np.asarray(topology.redraw(jax.random.key(0), topology.graph).weights).reshape(4, 3).sum(1).tolist()
    [1, 1, 1, 1]
    """
    if most < 1:
        raise ValueError(f"an agent must hear at least one of its neighbours, got {most}")

    @reproducible
    def draw(key: Key[Array, ""], graph: Graph) -> Graph:
        whole = topology.redraw(key, graph) if topology.redraw else graph
        senders, receivers, weights, _ = jax.tree.map(jnp.asarray, whole)
        own_key = jax.random.fold_in(key, HEARING)
        of_links = jax.vmap(lambda *link: jax.random.fold_in(jax.random.fold_in(own_key, link[0]), link[1]))
        drawn = jax.vmap(jax.random.uniform)(of_links(senders, receivers))
        # Edges are sorted by receiver. Sort those of each by what was drawn, absent ones last, and take the first.
        order = jnp.lexsort((jnp.where(weights != 0, drawn, 2), receivers))
        place = jnp.arange(receivers.size) - jnp.searchsorted(receivers, receivers)
        heard = jnp.zeros(receivers.size, bool).at[order].set(place < most)
        return whole._replace(weights=jnp.where(heard, weights, jnp.zeros_like(weights)))

    return Topology(topology.graph, draw)


def _weighed(topology: Topology, weigh: Callable[[Graph], Graph]) -> Topology:
    """The same graphs, each with other weights of its edges."""
    graph, redraw = topology
    return Topology(weigh(graph), redraw and (lambda key, graph: weigh(redraw(key, graph))))


def _metropolis(graph: Graph) -> Graph:
    present = (graph.weights != 0).astype(jnp.result_type(float))
    degree = jnp.zeros(len(graph.own), present.dtype).at[graph.receivers].add(present)
    weights = present / (1 + jnp.maximum(degree[graph.senders], degree[graph.receivers]))
    return graph._replace(weights=weights, own=1 - _sum_by_receiver(graph, weights))


def _sum_by_receiver(graph: Graph, weights: Float[Array, "edges"]) -> Float[Array | np.ndarray, "agents"]:
    """What edges weigh together at each receiver. Of a graph that stays it is summed on the host, edge after edge,
    because accelerators add in no fixed order: a graph must be the same, bit for bit, when a run goes on."""
    nobody = np.zeros(len(graph.own), weights.dtype)
    if any(isinstance(array, jax.core.Tracer) for array in (graph.receivers, weights)):
        return jnp.asarray(nobody).at[graph.receivers].add(weights)
    np.add.at(nobody, np.asarray(graph.receivers), np.asarray(weights))
    return nobody
