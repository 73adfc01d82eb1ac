"""Files that a user names, such as graphs and classes: each is read whole, or one sentence says why not."""

import errno
import stat
from pathlib import Path

import numpy as np

from dslth_jax.graphs import Adjacency


def expect_file(path: Path) -> None:
    """Raise an OSError unless `path` can be read to its end: pipes may keep a reader waiting, devices never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "Is a directory")
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no ordinary file")


def words_by_line(path: Path, should: str) -> list[tuple[int, list[str]]]:
    """The words of each line that has any, with its number counted from 1.

    Raises a ValueError, "`should`, and cannot be read: ...", where the file is none, or no text.
    """
    try:
        expect_file(path)
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except UnicodeDecodeError:
        reason = "it is no text"
    except ValueError:  # a null character
        reason = "no file can have this name"
    else:
        return [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    raise ValueError(f"{should}, and cannot be read: {reason}")


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


def read_classes(path: Path, agents: int, classes: int) -> list[list[int]]:
    """A text file of one line an agent, its classes (whole numbers from 0) separated by blanks."""
    lines = words_by_line(path, f"the class file {path} must hold one line of class numbers an agent")
    if not lines:
        raise ValueError(f"the class file {path} must hold one line of class numbers an agent, and it is empty")
    if len(lines) != agents:
        raise ValueError(
            f"the class file {path} must have one line for each of {agents} agents, got {len(lines)}: "
            f"mend it, or say --agents {len(lines)}"
        )
    for number, words in lines:
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 10 and int(word) < classes):
                raise ValueError(
                    f"the class file {path} must hold classes in 0..{classes - 1}, separated by blanks, "
                    f"got {word!r} in line {number}"
                )
        if len({int(word) for word in words}) != len(words):
            raise ValueError(f"the class file {path} must name a class once a line, got {words} in line {number}")
    return [[int(word) for word in words] for _, words in lines]


def _is_zero_or_one(word: str) -> bool:
    """A whole number in any spelling: numpy writes 1 as 1.000000000000000000e+00."""
    try:
        return float(word) in (0, 1)
    except ValueError:
        return False
