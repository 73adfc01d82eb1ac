"""Files that a user names, such as graphs and classes: each is read whole, or one sentence says why not."""

import contextlib
import errno
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dslth_jax.graphs import Adjacency


def expect_file(path: Path) -> None:
    """Raise an OSError unless `path` can be read to its end: pipes may keep a reader waiting, devices never end."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # whoever opens a folder is told
        raise OSError(errno.EINVAL, "it is no ordinary file")


def words_by_line(path: Path, file: str, lines: str, words: str, fits: Callable[[str], bool]) -> dict[int, list[str]]:
    """The words of each line that has any, by its number counted from 1.

    Raises a ValueError where the file is none, or no text, or where a word does not fit or makes `fits` raise one.
    """
    try:
        expect_file(path)
        text = path.read_text("utf-8-sig")
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except UnicodeDecodeError:
        reason = "it is no text"
    except ValueError:  # a null character
        reason = "no file can have this name"
    else:
        found = {number: line.split() for number, line in enumerate(text.splitlines(), 1) if line.strip()}
        for number, word in ((number, word) for number, row in found.items() for word in row):
            with contextlib.suppress(ValueError):
                if fits(word):
                    continue
            raise ValueError(f"{file} must hold {words}, separated by blanks, got {word!r} in line {number}")
        return found
    raise ValueError(f"{file} must hold {lines}, and cannot be read: {reason}")


def read_adjacency(path: Path, agents: int, directed: bool = False) -> Adjacency:
    """A text file of one row an agent, 0 and 1 separated by blanks: row i says whom agent i hears.

    It must be square, of `agents` rows, with zeros on the diagonal, and symmetric unless `directed`.
    """
    file = f"the adjacency file {path}"
    # In any spelling: numpy writes 1 as 1.000000000000000000e+00.
    lines = words_by_line(path, file, "rows of 0 and 1", "0 and 1 alone", lambda word: float(word) in (0, 1))
    widths = sorted({len(words) for words in lines.values()})
    if widths != [len(lines)]:
        raise ValueError(f"{file} must be square, got {len(lines)} rows of {widths} columns")
    if len(lines) != agents:
        raise ValueError(f"{file} has {len(lines)} agents, expected {agents}: say --agents {len(lines)}")
    adjacency = np.array([*lines.values()], float) != 0
    if not directed and (adjacency != adjacency.T).any():
        i, j = np.argwhere(adjacency != adjacency.T)[0]
        rows = f"rows {i} and {j} disagree (counted from 0)"
        raise ValueError(f"{file} must be symmetric, {rows}: mend it, or say --directed")
    if (selfish := adjacency.diagonal()).any():
        raise ValueError(f"agent {selfish.argmax()} is its own neighbour in {path}: the diagonal must be 0")
    return adjacency


def read_classes(path: Path, agents: int, classes: int) -> list[list[int]]:
    """A text file of one line an agent, its classes (whole numbers from 0) separated by blanks."""
    file, wanted = f"the class file {path}", "one line of class numbers an agent"

    def is_class(word: str) -> bool:
        return word.isascii() and word.isdigit() and len(word) < 10 and int(word) < classes

    lines = words_by_line(path, file, wanted, f"classes in 0..{classes - 1}", is_class)
    if not lines:
        raise ValueError(f"{file} must hold {wanted}, and it is empty")
    if len(lines) != agents:
        instead = f"mend it, or say --agents {len(lines)}"
        raise ValueError(f"{file} must have one line for each of {agents} agents, got {len(lines)}: {instead}")
    for number, words in lines.items():
        if len({*map(int, words)}) != len(words):
            raise ValueError(f"{file} must name a class once a line, got {words} in line {number}")
    return [[*map(int, words)] for words in lines.values()]
