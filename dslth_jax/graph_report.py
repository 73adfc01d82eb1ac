"""What a graph of agents is like: degrees, connectedness, spectral gap. The population's world, host side.

A graph of many agents is a matrix of scipy that holds its edges alone: `sparse_adjacency_of`, `sparse_mixing_of`.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import sparse
from scipy.sparse import linalg
from scipy.sparse.csgraph import connected_components

from dslth_jax.mixing import Adjacency, Graph
from dslth_jax.naming import expect_choice

MOST_WHOLE = 1_024  # agents of which all eigenvalues are computed; the time grows with the cube
TOLERANCE, BASIS, RESTARTS = 1e-4, 100, 10  # of Lanczos's and Arnoldi's methods, which find the largest two of more


class GraphReport(NamedTuple):
    """What a graph is like. Degrees count the neighbours that an agent hears."""

    links: int  # directed ones: an undirected link counts twice
    smallest_degree: int
    mean_degree: float
    largest_degree: int
    connected: bool  # a directed graph: every agent's masks reach every other in time
    isolated: list[int]  # agents that hear nobody
    spectral_gap: float | None  # 1 - |second eigenvalue| of the mixing matrix, self included; 0 where not connected


def sparse_adjacency_of(graph: Graph) -> sparse.csr_array:
    """Who hears whom over edges that are present, (agents, agents) booleans, by its edges. Host side."""
    present = np.asarray(graph.weights) != 0
    return _by_edges(graph, np.ones(int(present.sum()), bool), present)


def sparse_mixing_of(graph: Graph) -> sparse.csr_array:
    """`mixing_of`, by the edges and the diagonal. Host side."""
    present = np.asarray(graph.weights) != 0
    edges = _by_edges(graph, np.asarray(graph.weights, float)[present], present)
    return sparse.csr_array(edges + sparse.diags_array(np.asarray(graph.own, float)))


def report(
    adjacency: Adjacency | sparse.csr_array,
    *,
    weighting: str = "uniform",
    weights: Float[np.ndarray, "agents agents"] | sparse.csr_array | None = None,
) -> GraphReport:
    """Degrees, connectedness and spectral gap, for weights that are "uniform" or "metropolis", or for a mixing matrix
    of `weights` of one's own, whose rows need not add up to 1. Host side.

    The gap is that of averaging over one's neighbours and oneself: the larger, the faster news spread. For more than
    1,024 agents it is found by Lanczos's method (one-way links: Arnoldi's), to about a thousandth, and None where that
    does not come to an end in time, as for a long ring of one-way links.

    >>> from dslth_jax.graphs import adjacency_of, ring
    >>> said = report(adjacency_of(ring(4).graph))
    >>> said.mean_degree, round(said.spectral_gap, 3)
    (2.0, 0.667)
    """
    expect_choice("weighting", weighting, ("uniform", "metropolis"))
    heard = sparse.csr_array(adjacency)
    degrees = heard.sum(axis=1)
    components, _ = connected_components(heard, directed=True, connection="strong")
    connected, agents = components == 1, len(degrees)
    if not connected or agents == 1:
        # A graph in parts spreads no news between them, whatever rounding makes of its eigenvalues.
        gap: float | None = float(connected)
    else:
        gap = (_gap if agents <= MOST_WHOLE else _gap_of_many)(_averaging(heard, degrees, weighting, weights))
    return GraphReport(
        links=int(degrees.sum()),
        smallest_degree=int(degrees.min()),
        mean_degree=float(degrees.mean()),
        largest_degree=int(degrees.max()),
        connected=connected,
        isolated=np.flatnonzero(degrees == 0).tolist(),
        spectral_gap=gap,
    )


def _by_edges(graph: Graph, values: np.ndarray, present: np.ndarray) -> sparse.csr_array:
    places = np.asarray(graph.receivers)[present], np.asarray(graph.senders)[present]
    return sparse.csr_array((values, places), shape=(len(graph.own), len(graph.own)))


def _averaging(
    heard: sparse.csr_array, degrees: np.ndarray, weighting: str, weights: np.ndarray | sparse.csr_array | None
) -> sparse.csr_array:
    """The matrix of averaging, or one of the same eigenvalues."""
    if weights is not None:
        own = sparse.csr_array(weights)
        return _scaled(1 / np.maximum(own.sum(axis=1), np.finfo(float).tiny), own)
    if weighting == "metropolis":
        receivers, senders = heard.nonzero()
        of_edges = 1 / (1 + np.maximum(degrees[receivers], degrees[senders]))
        mixing = sparse.csr_array((of_edges, (receivers, senders)), shape=heard.shape)
        return sparse.csr_array(mixing + sparse.diags_array(1 - mixing.sum(axis=1)))
    both = sparse.csr_array(heard.astype(float) + sparse.eye_array(len(degrees)))
    if (heard != heard.T).nnz == 0:
        # The symmetric matrix of the same eigenvalues, which are found several times faster.
        root = 1 / np.sqrt(1.0 + degrees)
        return sparse.csr_array(_scaled(root, both) @ sparse.diags_array(root))
    return _scaled(1 / (1.0 + degrees), both)


def _scaled(rows: np.ndarray, matrix: sparse.csr_array) -> sparse.csr_array:
    """The matrix with each of its rows times a number."""
    return sparse.csr_array(sparse.diags_array(rows) @ matrix)


def _is_symmetric(mixing: sparse.csr_array) -> bool:
    return bool(abs(mixing - mixing.T).max() <= 1e-12)


def _gap(mixing: sparse.csr_array) -> float:
    """1 less the second largest modulus of all eigenvalues."""
    whole = mixing.toarray()
    moduli = np.sort(np.abs(np.linalg.eigvalsh(whole) if _is_symmetric(mixing) else np.linalg.eigvals(whole)))
    return max(1 - float(moduli[-2]), 0.0)


def _gap_of_many(mixing: sparse.csr_array) -> float | None:
    """The same, to about a thousandth, from the two eigenvalues of largest modulus; None where they are not found."""
    find = linalg.eigsh if _is_symmetric(mixing) else linalg.eigs
    start = np.random.default_rng(0).standard_normal(mixing.shape[0])  # the same in every run
    how = {"which": "LM", "tol": TOLERANCE, "ncv": BASIS, "maxiter": RESTARTS, "v0": start}
    try:
        found = find(mixing, k=2, return_eigenvectors=False, **how)
    except linalg.ArpackNoConvergence:
        return None
    return max(round(1 - float(np.abs(found).min()), 4), 0.0)
