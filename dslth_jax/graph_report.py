"""What a graph of agents is like: degrees, connectedness, spectral gap. The population's world, host side."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.sparse.csgraph import connected_components

from dslth_jax.mixing import Adjacency
from dslth_jax.naming import expect_choice


class GraphReport(NamedTuple):
    """What a graph is like. Degrees count the neighbours that an agent hears."""

    links: int  # directed ones: an undirected link counts twice
    smallest_degree: int
    mean_degree: float
    largest_degree: int
    connected: bool  # a directed graph: every agent's masks reach every other in time
    isolated: list[int]  # agents that hear nobody
    spectral_gap: float  # 1 - |second eigenvalue| of the mixing matrix, self included; 0 where not connected


def report(
    adjacency: Adjacency, *, weighting: str = "uniform", weights: Float[np.ndarray, "agents agents"] | None = None
) -> GraphReport:
    """Degrees, connectedness and spectral gap, for weights that are "uniform" or "metropolis", or for a mixing matrix
    of `weights` of one's own, whose rows need not add up to 1. Host side.

    The gap is that of averaging over one's neighbours and oneself: the larger, the faster news spread.

    >>> from dslth_jax.graphs import adjacency_of, ring
    >>> said = report(adjacency_of(ring(4).graph))
    >>> said.mean_degree, round(said.spectral_gap, 3)
    (2.0, 0.667)
    """
    expect_choice("weighting", weighting, ("uniform", "metropolis"))
    degrees = adjacency.sum(axis=1)
    components, _ = connected_components(adjacency, directed=True, connection="strong")
    connected = components == 1
    if weights is not None:
        mixing = weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    elif weighting == "metropolis":
        mixing = adjacency / (1 + np.maximum(degrees[:, None], degrees[None]))
        mixing += np.diag(1 - mixing.sum(axis=1))
    else:
        mixing = (adjacency + np.eye(len(adjacency))) / (1 + degrees[:, None])
        if (adjacency == adjacency.T).all():
            # The symmetric matrix of the same eigenvalues, which are found several times faster.
            mixing *= np.sqrt((1 + degrees[:, None]) / (1 + degrees[None]))
    symmetric = np.allclose(mixing, mixing.T, rtol=0, atol=1e-12)
    moduli = np.sort(np.abs(np.linalg.eigvalsh(mixing) if symmetric else np.linalg.eigvals(mixing)))
    # A graph in parts spreads no news between them, whatever rounding makes of its eigenvalues.
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
