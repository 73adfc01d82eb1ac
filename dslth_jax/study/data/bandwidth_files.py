"""Recorded bandwidths: a text file of two columns, seconds and Mbit/s, or a folder of such files."""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from dslth_jax.study.data.lists import cells_of, words_by_line

FORM = "two numbers a line, seconds and Mbit/s"


def read_bandwidths(path: Path) -> list[Float[np.ndarray, "_ 2"]]:
    """The samples of a file, or of every file of a folder in the order of their names.

    A ValueError where one is empty, its seconds do not rise, a bandwidth is negative, or all are 0.
    """
    if not path.is_dir():
        return [read_bandwidth(path)]
    files = sorted(own for own in path.iterdir() if own.is_file() and not own.name.startswith("."))
    if not files:
        raise ValueError(f"the folder of bandwidths {path} must hold files of {FORM}, got none")
    return [read_bandwidth(own) for own in files]


def read_bandwidth(path: Path) -> Float[np.ndarray, "samples 2"]:
    """The samples of one file."""
    file, samples = f"the bandwidth file {path}", list[tuple[float, float]]()
    for line, words in words_by_line(path, file, FORM, cells_of).items():
        try:
            seconds, megabits = map(float, words)
        except ValueError:
            raise ValueError(f"{file} must hold {FORM}, got {' '.join(words)!r} in line {line}") from None
        if not (np.isfinite(seconds) and np.isfinite(megabits) and megabits >= 0):
            raise ValueError(f"{file} must hold Mbit/s of at least 0, got {' '.join(words)!r} in line {line}")
        if samples and seconds <= samples[-1][0]:
            raise ValueError(
                f"{file} must hold rising seconds, got {words[0]} behind {samples[-1][0]:g} in line {line}"
            )
        samples.append((seconds, megabits))
    if not samples or max(rate for _, rate in samples) <= 0:
        got = "no line" if not samples else "0 Mbit/s at all times"
        raise ValueError(f"{file} must hold {FORM}, of which some is sent at some time, got {got}")
    return np.array(samples)
