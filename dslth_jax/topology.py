"""Graphs of agents, and their sparse mixing matrix by its edges. Host side, numpy; the population's world."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

Adjacency = Bool[np.ndarray, "agents agents"]


class Graph(NamedTuple):
    """A sparse mixing matrix as its directed edges, sorted by receiver. Edges have a static number.

    Leaves are arrays over edges; a weight of 0 is an edge that is absent.
    """

    senders: Int32[np.ndarray | Array, "edges"]
    receivers: Int32[np.ndarray | Array, "edges"]
    weights: Float32[np.ndarray | Array, "edges"]


def graph_of(adjacency: Adjacency) -> Graph:
    """The graph in which agent i hears agent j where `adjacency[i, j]`, every edge of weight 1."""
    receivers, senders = np.nonzero(adjacency)
    return Graph(senders.astype(np.int32), receivers.astype(np.int32), np.ones(senders.shape, np.float32))


def adjacency_by_name(topology: str, agents: int, seed: int) -> Adjacency:
    """The adjacency matrix of a spelling such as "ring", "erdos-renyi:0.5" or the path of an adjacency text file."""
    if agents < 1:
        raise ValueError(f"agents must be at least 1, got {agents}")
    name, _, number = topology.partition(":")
    if name in GRAPHS:
        return GRAPHS[name](agents, number, seed)
    if Path(topology).is_file():
        return read_adjacency(Path(topology), agents)
    raise ValueError(f"topology must be one of {', '.join(GRAPHS)} or an adjacency file that exists, got {topology!r}")


def ring(agents: int, number: str, seed: int) -> Adjacency:
    """Agent i beside i - 1 and i + 1."""
    del seed
    _expect_no_number("ring", number)
    adjacency = np.zeros((agents, agents), bool)
    index = np.arange(agents)
    adjacency[index, (index + 1) % agents] = adjacency[(index + 1) % agents, index] = True
    np.fill_diagonal(adjacency, False)
    return adjacency


def complete(agents: int, number: str, seed: int) -> Adjacency:
    """Everybody beside everybody."""
    del seed
    _expect_no_number("complete", number)
    return ~np.eye(agents, dtype=bool)


def erdos_renyi(agents: int, number: str, seed: int) -> Adjacency:
    """Each pair of agents joined with the probability `number`, independently."""
    try:
        probability = float(number or "0.5")
    except ValueError:
        probability = -1.0
    if not 0 <= probability <= 1:
        raise ValueError(f"erdos-renyi needs a probability in [0, 1], such as erdos-renyi:0.5, got {number!r}")
    import networkx  # imported where it is used: no import of the library pays for it

    drawn = networkx.gnp_random_graph(agents, probability, seed=seed)
    return networkx.to_numpy_array(drawn, nodelist=range(agents)) != 0


GRAPHS: dict[str, Callable[[int, str, int], Adjacency]] = {
    "erdos-renyi": erdos_renyi,
    "ring": ring,
    "complete": complete,
}


def read_adjacency(path: Path, agents: int) -> Adjacency:
    """A text file of one row an agent, 0 and 1 separated by blanks: square, symmetric, of `agents` rows."""
    try:
        rows = [[float(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except (ValueError, OSError) as error:
        raise ValueError(f"the adjacency file {path} must hold rows of 0 and 1: {error}") from None
    if any(len(row) != len(rows) for row in rows) or not rows:
        widths = sorted({len(row) for row in rows})
        raise ValueError(f"the adjacency file {path} must be square, got {len(rows)} rows of {widths} columns")
    matrix = np.array(rows)
    if not np.isin(matrix, (0, 1)).all():
        raise ValueError(
            f"the adjacency file {path} must hold 0 and 1 alone, got {matrix[~np.isin(matrix, (0, 1))][0]}"
        )
    if len(matrix) != agents:
        raise ValueError(
            f"the adjacency file {path} has {len(matrix)} agents, expected {agents}: say --agents {len(matrix)}"
        )
    if (matrix != matrix.T).any():
        i, j = np.argwhere(matrix != matrix.T)[0]
        raise ValueError(f"the adjacency file {path} must be symmetric, rows {i} and {j} disagree (counted from 0)")
    if matrix.diagonal().any():
        raise ValueError(
            f"agent {int(np.argmax(matrix.diagonal()))} is its own neighbour in {path}: the diagonal must be 0"
        )
    return matrix != 0


def _expect_no_number(name: str, number: str) -> None:
    if number:
        raise ValueError(f"{name} takes no number, got {name}:{number}")
