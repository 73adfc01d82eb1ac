"""Partitions: labels to the samples each agent holds. Host side, numpy; the population's world."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

Indices = Int32[np.ndarray, "_"]  # of one agent's samples; agents differ in how many they have


def draw_classes(agents: int, classes: int, classes_per_agent: int, rng: np.random.Generator) -> list[list[int]]:
    """`classes_per_agent` different classes for every agent, uniformly at random."""
    if not 1 <= classes_per_agent <= classes:
        raise ValueError(f"classes per agent must lie in 1..{classes}, the data's classes, got {classes_per_agent}")
    return [sorted(rng.choice(classes, classes_per_agent, replace=False).tolist()) for _ in range(agents)]


def read_classes(path: Path, agents: int, classes: int) -> list[list[int]]:
    """A text file of one line an agent, its classes separated by blanks."""
    try:
        rows = [[int(word) for word in line.split()] for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"the class file {path} must hold one line of class numbers an agent: {error}") from None
    if len(rows) != agents:
        raise ValueError(f"the class file {path} must have one line for each of {agents} agents, got {len(rows)}")
    for agent, row in enumerate(rows):
        if len(set(row)) != len(row) or not all(0 <= label < classes for label in row):
            raise ValueError(f"agent {agent} in {path} must have different classes in 0..{classes - 1}, got {row}")
    return rows


def split_by_class(
    labels: Int32[np.ndarray, "samples"],
    classes_of: Sequence[Sequence[int]],
    rng: np.random.Generator,
    fraction: float = 1.0,
) -> list[Indices]:
    """Each class's samples, shuffled, split evenly among the agents that hold it; `fraction` of each share is used.

    The authors' way: training samples are disjoint. Every agent gets at least one sample of each of its classes.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data fraction must lie in (0, 1], got {fraction}")
    for agent, row in enumerate(classes_of):
        if not row:
            raise ValueError(f"agent {agent} must have at least one class, got none")
    own: list[list[np.ndarray]] = [[] for _ in classes_of]
    for label in sorted({label for row in classes_of for label in row}):
        holders = [agent for agent, row in enumerate(classes_of) if label in row]
        samples = rng.permutation(np.flatnonzero(labels == label))
        smallest = int(len(samples) // len(holders) * fraction)
        if smallest < 1:
            raise ValueError(
                f"class {label} has {len(samples)} training samples for {len(holders)} agents at a data fraction of "
                f"{fraction:g}: each must get one; take fewer agents or more data"
            )
        for agent, share in zip(holders, np.array_split(samples, len(holders)), strict=True):
            own[agent].append(share[: int(len(share) * fraction)])
    return [np.concatenate(shares).astype(np.int32) for shares in own]


def tests_by_class(
    labels: Int32[np.ndarray, "samples"], classes_of: Sequence[Sequence[int]]
) -> tuple[list[Indices], list[Int32[np.ndarray, "_"]]]:
    """All test samples of each agent's classes, the first of every class first, and each one's rank in its class.

    So the first few of every class are a prefix of an agent's list. Agents of one class share its samples.
    """
    rank = np.empty(len(labels), np.int32)
    for label in np.unique(labels):
        where = np.flatnonzero(labels == label)
        rank[where] = np.arange(len(where))
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


def stack(own: Sequence[Indices]) -> tuple[Int32[np.ndarray, "agents capacity"], Int32[np.ndarray, "agents"]]:
    """Unequal lists of sample indices as one array, padded with 0, and the sizes."""
    sizes = np.array([len(indices) for indices in own], np.int32)
    stacked = np.zeros((len(own), int(sizes.max())), np.int32)
    for row, indices in zip(stacked, own, strict=True):
        row[: len(indices)] = indices
    return stacked, sizes
