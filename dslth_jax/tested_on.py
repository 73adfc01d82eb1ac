"""Which samples agents are tested on, and which they hold back to be validated on. Host side, numpy; the population's
world.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

Labels = Int[np.ndarray, "_"]  # of samples: whole numbers from 0
Indices = Int32[np.ndarray, "_"]  # of one agent's samples; agents differ in how many they have
Ranks = Float[np.ndarray, "_"]


def tests_by_class(labels: Labels, classes_of: Sequence[Sequence[int]]) -> tuple[list[Indices], list[Ranks]]:
    """All test samples of each agent's classes, the first of every class first, and each one's rank in its class."""
    rank = rank_in_class(labels)
    indices, ranks = [], []
    for agent, row in enumerate(classes_of):
        own = np.flatnonzero(np.isin(labels, row))
        if own.size == 0:
            raise ValueError(
                f"agent {agent} has no test samples of its classes {list(row)}: take other classes or more data"
            )
        own = own[np.argsort(rank[own], kind="stable")].astype(np.int32)
        indices.append(own)
        ranks.append(rank[own])
    return indices, ranks


def tests_in_proportion(
    labels: Labels, held: Int32[np.ndarray, "agents classes"], rng: np.random.Generator
) -> tuple[list[Indices], list[Ranks]]:
    """For each agent test samples in the proportions of its row of `held`, as many as there are, and their ranks.

    Drawn without replacement for one agent; two agents may get the same sample.
    """
    pools = [np.flatnonzero(labels == label) for label in range(held.shape[1])]
    available = np.array([len(pool) for pool in pools])
    indices, ranks = [], []
    for agent, counts in enumerate(held):
        proportions = np.where(available > 0, counts, 0) / counts.sum()
        has = proportions > 0
        if not has.any():
            classes = np.flatnonzero(counts).tolist()
            raise ValueError(f"agent {agent} has no test samples of its classes {classes}: take more data")
        # The class that runs out first sets how many there are.
        total = (available[has] / proportions[has]).min()
        wanted = np.minimum(np.rint(proportions * total).astype(int), available)
        drawn = [rng.choice(pools[label], wanted[label], replace=False) for label in np.flatnonzero(wanted)]
        # Spread each class evenly over the ranks of the most frequent one.
        rank = np.concatenate([np.arange(count) * (wanted.max() / count) for count in wanted[wanted > 0]])
        order = np.argsort(rank, kind="stable")
        indices.append(np.concatenate(drawn)[order].astype(np.int32))
        ranks.append(rank[order])
    return indices, ranks


def hold_back(
    train: Sequence[Indices], labels: Labels, share: float, seed: Any = 0
) -> tuple[list[Indices], list[Indices]]:
    """Split every agent's training samples, in the order they have, into those it trains on and those held back. Ours.

    Each agent draws `share` of its samples, in (0, 1), of each of its classes in proportion. All who hold a sample that
    is drawn hold it back, so that nobody trains on it. A ValueError where an agent would have none on either side.

    >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    >>> train, validation = hold_back([np.arange(8, dtype=np.int32)], labels, 0.25)
    >>> len(train[0]), labels[validation[0]].tolist()
    (6, [0, 1])
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie in (0, 1), got {share:g}")
    rng = np.random.default_rng(seed)
    # Agents draw along one order of all samples. Those that hold the same samples then draw much the same of them.
    order, drawn = rng.permutation(len(labels)), np.zeros(len(labels), bool)
    for own in train:
        mixed = own[np.argsort(order[own])]
        _, of_class, counts = np.unique(labels[mixed], return_inverse=True, return_counts=True)
        # Spread each class evenly over 0 to 1, from a random start. The first samples are then a part of each class.
        place = (rank_in_class(labels[mixed]) + rng.random(len(counts))[of_class]) / counts[of_class]
        drawn[mixed[np.argsort(place, kind="stable")[: round(share * len(own))]]] = True
    held = [own[drawn[own]] for own in train]
    for agent, (own, back) in enumerate(zip(train, held, strict=True)):
        if len(back) in (0, len(own)):
            raise ValueError(
                f"a share of {share:g} would hold back {len(back)} of the {len(own)} training samples of agent "
                f"{agent}, and at least one must stay on either side: take another share, fewer agents or more data"
            )
    return [own[~drawn[own]] for own in train], held


def rank_in_class(labels: Labels) -> Float[np.ndarray, "samples"]:
    """0 for the first sample of every class, 1 for the second, and so on."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    rank = np.empty(len(labels))
    rank[order] = np.arange(len(labels)) - starts
    return rank
