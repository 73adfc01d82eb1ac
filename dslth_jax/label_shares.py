"""How agents' labels are shared out: counts of classes, and what two agents, or one and all, have in common.

Host side, numpy; the population's world.
"""

import numpy as np
from jaxtyping import Array, Float, Int


def class_counts(
    labels: Int[Array | np.ndarray, "samples"],
    indices: Int[Array | np.ndarray, "agents capacity"],
    sizes: Int[Array | np.ndarray, "agents"],
    classes: int,
) -> Int[np.ndarray, "agents _"]:
    """How many samples of each class every agent holds, whose own samples are the first of its row of `indices`."""
    own = zip(np.asarray(indices), np.asarray(sizes), strict=True)
    return np.stack([np.bincount(np.asarray(labels)[row[:size]], minlength=classes) for row, size in own])


def overlap(counts: Int[np.ndarray, "agents classes"]) -> Float[np.ndarray, "agents _"]:
    """How much of their label shares every two agents have in common, in [0, 1], from `class_counts`. Ours.

    >>> overlap(np.array([[2, 2, 0], [0, 1, 1], [0, 0, 3]])).tolist()
    [[1.0, 0.5, 0.0], [0.5, 1.0, 0.5], [0.0, 0.5, 1.0]]
    """
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.minimum(shares[:, None], shares[None]).sum(axis=2)


def label_skew(counts: Int[np.ndarray, "agents classes"]) -> float:
    """How far agents' label shares are from those of all agents together, in [0, 1], from `class_counts`: the mean
    total variation distance. 0 where everybody has the same shares. Ours.

    >>> label_skew(np.array([[2, 0], [0, 2]])), label_skew(np.array([[3, 1], [3, 1]]))
    (0.5, 0.0)
    """
    shares, common = counts / counts.sum(axis=1, keepdims=True), counts.sum(axis=0) / counts.sum()
    return float(np.abs(shares - common).sum(axis=1).mean() / 2)
