"""Files of graphs of agents: matrices and lists of edges, as text or as numpy and networkx write them."""

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dslth_jax.mixing import Topology, matrix_of, of_matrix, with_own
from dslth_jax.study.data.lists import words_by_line
from dslth_jax.study.system.machine import expect_file

Line = tuple[int, Sequence[float]]  # the number of a line, and its numbers


def read_graph(path: Path, agents: int, directed: bool = False) -> Topology:
    """The graph of a file, by the end of its name: .npy (a matrix), .gml, .graphml, or else text.

    A text has numbers with blanks or commas between them, and # or % before comments. It is a matrix of a row an agent,
    as `mixing.of_matrix` takes it; or else edges, one a line: two agents' numbers from 0, and perhaps a weight, behind
    a first line of how many agents there are, or without one. An edge carries messages from its first agent to its
    second and, unless `directed`, back. Nodes of GML and GraphML that have names are numbered as in
    `mixing.of_networkx`. An edge from an agent to itself is the weight of its own value, which is 1 where there is no
    such edge. A ValueError says what is wrong.
    """
    file = f"the graph file {path}"
    if path.suffix in (".npy", ".gml", ".graphml"):
        matrix = of_libraries(path, file)
    else:
        matrix = of_text(path, file, agents, directed)
    if matrix.ndim == 2 and len(matrix) != agents:
        raise ValueError(f"{file} has {len(matrix)} agents, expected {agents}: say --agents {len(matrix)}")
    try:
        return of_matrix(matrix, directed=directed)
    except ValueError as error:
        raise ValueError(f"{file}: {error}: mend it{', or say --directed' * ('symmetric' in str(error))}") from None


def of_libraries(path: Path, file: str) -> np.ndarray:
    """The matrix of a file that numpy or networkx has written."""
    try:
        expect_file(path)
        if path.suffix == ".npy":
            matrix = np.load(path, allow_pickle=False)
            if matrix.dtype.kind not in "biuf":
                raise ValueError(f"it holds {matrix.dtype}")
            return matrix
        import networkx

        if path.suffix == ".graphml":
            return matrix_of(networkx.read_graphml(path))
        with contextlib.suppress(networkx.NetworkXError):  # nodes may have no labels
            return matrix_of(networkx.read_gml(path))
        return matrix_of(networkx.read_gml(path, label="id"))
    except Exception as error:  # each reader raises many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} must be what its name {path.suffix} says, and cannot be read: {reason}") from None


def of_text(path: Path, file: str, agents: int, directed: bool) -> np.ndarray:
    """The matrix of a text file: of its rows, or of its edges."""
    lines = words_by_line(path, file, "rows of numbers, or edges", words_of)
    rows = [(number, numbers_of(words, file, number)) for number, words in lines.items()]
    widths = [len(row) for _, row in rows]
    if not widths:
        raise ValueError(f"{file} must hold rows of numbers, or edges, and is empty")
    if {*widths} == {len(widths)}:
        return of_square(rows, file, agents, directed)
    if widths[:1] == [1]:
        ((_, (count,)), *rows) = rows
        if count != agents:
            raise ValueError(f"{file} has {count:g} agents, expected {agents}: say --agents {count:g}")
    if not {len(row) for _, row in rows} <= {2, 3}:
        got = f"got {len(widths)} rows of {sorted({*widths})} columns"
        raise ValueError(f"{file} must be square, or hold edges of two agents and perhaps a weight, {got}")
    try:
        return of_edges(rows, file, agents, directed)
    except ValueError as error:
        nearly_square = len({*widths}) > 1 and max(widths) == len(widths) and widths[0] > 1
        also = f" (read as edges, for a matrix would have {len(widths)} numbers in every line)" if nearly_square else ""
        raise ValueError(f"{error}{also}") from None


def of_square(rows: Sequence[Line], file: str, agents: int, directed: bool) -> np.ndarray:
    """The matrix of a text that has as many rows as columns. Two or three such rows may be edges as well: if only one
    reading makes sense it is taken, and if both do, a ValueError asks which is meant."""
    matrix, edges = np.array([row for _, row in rows]), None
    # Who lists edges seldom tells agents that they hear themselves, and 0 and 1 of a matrix may look so.
    if len(rows) in (2, 3) and (matrix[:, 0] != matrix[:, 1]).all():
        with contextlib.suppress(ValueError):
            edges = of_edges(rows, file, agents, directed)
    if edges is None or (len(rows) != agents and agents - 1 not in matrix[:, :2]):  # edges name the last agent
        return matrix
    if len(rows) != agents or np.array_equal(with_own(matrix), edges):
        return edges
    wanted = f"give edges a first line that says {agents}, or a matrix as .npy"
    raise ValueError(f"{file} may be a matrix of {agents} agents, or {len(rows)} edges: {wanted}")


def words_of(line: str) -> list[str]:
    """The words of a line without its comment; of the attributes that networkx writes of an edge its weight alone."""
    bare, brace, attributes = re.split("[#%]", line)[0].partition("{")
    weight = re.search(r"'weight': ([^,}]*)", attributes) if brace else None
    return [*bare.replace(",", " ").split(), *([weight[1]] if weight else [])]


def numbers_of(words: Sequence[str], file: str, line: int) -> list[float]:
    """The numbers that words spell."""
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            wanted = "must hold numbers, separated by blanks or commas"
            raise ValueError(f"{file} {wanted}, got {word!r} in line {line}") from None
    return numbers


def of_edges(edges: Sequence[Line], file: str, agents: int, directed: bool) -> Float[np.ndarray, "agents agents"]:
    """The matrix of edges, each with the number of its line: sender, receiver, and perhaps a weight."""
    matrix = np.zeros((agents, agents))
    for line, (sender, receiver, *weights) in edges:
        for end in (sender, receiver):
            if not (0 <= end < agents and end.is_integer()):
                more = f": mend it, or say --agents {end + 1:g}" if end >= agents and end.is_integer() else ""
                raise ValueError(f"{file} must name agents in 0..{agents - 1}, got {end:g} in line {line}{more}")
        place, weight = (int(receiver), int(sender)), weights[0] if weights else 1.0
        if not 0 < weight < math.inf:
            raise ValueError(f"{file} must give edges weights above 0, got {weight:g} in line {line}")
        if matrix[place]:
            raise ValueError(f"{file} must name an edge once, got {sender:g} {receiver:g} again in line {line}")
        matrix[place] = weight
    return with_own(matrix if directed else np.where(matrix == 0, matrix.T, matrix))
