"""Partitions: labels to the samples each agent holds. Host side, numpy; the population's world.

    classes      a few classes an agent, drawn at random; `of_classes` where they are given
    dirichlet    labels skewed
    quantity     sizes skewed
    iid          neither

Every one takes `labels` of the training samples, each of which at most one agent gets, and `agents`, how many there
are; further `seed`, whatever `numpy.random.default_rng` takes (a Generator goes on from its state), and by name alone:

    test_labels  labels of the test samples; None tests nobody
    fraction     in (0, 1], the share of its training samples that each agent uses

A request that cannot be met raises a ValueError. `hold_back` takes training samples away again, to validate with, and
`stack` makes lists of samples the arrays of `population.Shares`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Int32

Labels = Int[np.ndarray, "_"]  # of samples: whole numbers from 0
Indices = Int32[np.ndarray, "_"]  # of one agent's samples; agents differ in how many they have
Ranks = Float[np.ndarray, "_"]

DRAWS = 1000  # of random shares, before a request counts as one that cannot be met


class Partition(NamedTuple):
    """Which samples each agent holds: lists over agents."""

    train: list[Indices]  # disjoint
    tests: list[Indices]  # in the order of `ranks`; agents may share test samples; empty without test labels
    # A quick evaluation takes the samples of rank below k: the first k of each class or, where tests follow the agent's
    # proportions, k of its most frequent class and proportionally fewer of the others.
    ranks: list[Ranks]


def classes(
    labels: Labels,
    agents: int,
    per_agent: int = 4,
    seed: Any = 0,
    *,
    test_labels: Labels | None = None,
    fraction: float = 1.0,
    among: int | None = None,
) -> Partition:
    """`per_agent` different classes an agent, drawn at random; each class split evenly among those that hold it.

    `among` says how many classes there are; None counts up to the largest of `labels`.
    """
    _expect_request(agents, fraction)
    among = _count_of(labels) if among is None else among
    if per_agent not in range(1, among + 1):
        raise ValueError(f"per_agent must lie in 1..{among}, the classes that there are, got {per_agent}")
    # Refuse millions of agents before drawing their classes one by one.
    if agents > len(labels):
        _expect_enough(len(labels), agents, fraction)
    rng = np.random.default_rng(seed)
    classes_of = draw_classes(agents, among, per_agent, rng)
    return of_classes(labels, classes_of, rng, test_labels=test_labels, fraction=fraction)


def of_classes(
    labels: Labels,
    classes_of: Sequence[Sequence[int]],
    seed: Any = 0,
    *,
    test_labels: Labels | None = None,
    fraction: float = 1.0,
) -> Partition:
    """Each class split evenly among the agents that hold it; everybody is tested on all samples of its classes.

    The authors' way. `classes_of` lists every agent's classes.
    """
    train = split_by_class(labels, classes_of, np.random.default_rng(seed), fraction)
    return Partition(train, *([], []) if test_labels is None else tests_by_class(test_labels, classes_of))


def dirichlet(
    labels: Labels,
    agents: int,
    alpha: float = 0.5,
    seed: Any = 0,
    *,
    test_labels: Labels | None = None,
    fraction: float = 1.0,
) -> Partition:
    """Each class shared out by a Dirichlet draw of concentration `alpha` over agents (Li et al., ICDE 2022).

    The smaller `alpha`, the fewer classes an agent has most of its samples of; sizes differ too. Each agent is tested
    on samples drawn in the label proportions of its own training samples, as many as the test set has in them.

    >>> labels = np.repeat(np.arange(3), 20)
    >>> held = dirichlet(labels, agents=4, alpha=0.3, seed=0, test_labels=labels)
    >>> sum(map(len, held.train)), len(held.tests)
    (60, 4)
    """
    rng = np.random.default_rng(seed)
    _expect_enough(len(labels), agents, fraction)
    # Only classes that are there: a data file may claim thousands that are not.
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    counts = _dirichlet_counts(rng, agents, alpha, np.array([len(pool) for pool in pools]), fraction)
    pieces = [np.split(pool, bounds) for pool, bounds in zip(pools, np.cumsum(counts, 1)[:, :-1], strict=True)]
    # Mix an agent's classes, so that a part of its share has them all.
    shares = [rng.permutation(np.concatenate(own)) for own in zip(*pieces, strict=True)]
    train = [_part(share, fraction) for share in shares]
    if test_labels is None:
        return Partition(train, [], [])
    held = np.stack([np.bincount(labels[own], minlength=_count_of(labels)).astype(np.int32) for own in train])
    return Partition(train, *tests_in_proportion(test_labels, held, rng))


def quantity(
    labels: Labels,
    agents: int,
    alpha: float = 0.5,
    seed: Any = 0,
    *,
    test_labels: Labels | None = None,
    fraction: float = 1.0,
) -> Partition:
    """All classes alike, but sizes by a Dirichlet draw of concentration `alpha` (Li et al., ICDE 2022).

    Everybody is tested on everything.
    """
    rng = np.random.default_rng(seed)
    _expect_enough(len(labels), agents, fraction)
    (counts,) = _dirichlet_counts(rng, agents, alpha, np.array([len(labels)]), fraction)
    pieces = np.split(rng.permutation(len(labels)), np.cumsum(counts)[:-1])
    return Partition([_part(piece, fraction) for piece in pieces], *_all_tests(labels, test_labels, agents))


def iid(
    labels: Labels, agents: int, seed: Any = 0, *, test_labels: Labels | None = None, fraction: float = 1.0
) -> Partition:
    """All samples, shuffled and split evenly; everybody is tested on everything.

    >>> labels = np.array([0, 0, 1, 1, 2, 2])
    >>> held = iid(labels, agents=2, test_labels=labels)
    >>> [len(own) for own in held.train], [len(own) for own in held.tests]
    ([3, 3], [6, 6])
    """
    _expect_enough(len(labels), agents, fraction)
    pieces = np.array_split(np.random.default_rng(seed).permutation(len(labels)), agents)
    return Partition([_part(piece, fraction) for piece in pieces], *_all_tests(labels, test_labels, agents))


def draw_classes(agents: int, classes: int, classes_per_agent: int, rng: np.random.Generator) -> list[list[int]]:
    """`classes_per_agent` different classes for every agent, uniformly at random."""
    return [sorted(rng.choice(classes, classes_per_agent, replace=False).tolist()) for _ in range(agents)]


def split_by_class(
    labels: Labels, classes_of: Sequence[Sequence[int]], rng: np.random.Generator, fraction: float = 1.0
) -> list[Indices]:
    """Each class's samples, shuffled, split evenly among the agents that hold it; `fraction` of each share is used.

    Every agent gets at least one sample of each of its classes.
    """
    _expect_request(len(classes_of), fraction)
    for agent, row in enumerate(classes_of):
        if not row:
            raise ValueError(f"agent {agent} must have at least one class, got none")
    own: list[list[np.ndarray]] = [[] for _ in classes_of]
    for label in sorted({label for row in classes_of for label in row}):
        holders = [agent for agent, row in enumerate(classes_of) if label in row]
        samples = rng.permutation(np.flatnonzero(labels == label))
        _expect_enough(len(samples), len(holders), fraction, f"class {label}: ")
        for agent, share in zip(holders, np.array_split(samples, len(holders)), strict=True):
            own[agent].append(_part(share, fraction))
    return [np.concatenate(shares) for shares in own]


def tests_by_class(labels: Labels, classes_of: Sequence[Sequence[int]]) -> tuple[list[Indices], list[Ranks]]:
    """All test samples of each agent's classes, the first of every class first, and each one's rank in its class."""
    rank = _rank_in_class(labels)
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
        place = (_rank_in_class(labels[mixed]) + rng.random(len(counts))[of_class]) / counts[of_class]
        drawn[mixed[np.argsort(place, kind="stable")[: round(share * len(own))]]] = True
    held = [own[drawn[own]] for own in train]
    for agent, (own, back) in enumerate(zip(train, held, strict=True)):
        if len(back) in (0, len(own)):
            raise ValueError(
                f"a share of {share:g} would hold back {len(back)} of the {len(own)} training samples of agent "
                f"{agent}, and at least one must stay on either side: take another share, fewer agents or more data"
            )
    return [own[~drawn[own]] for own in train], held


def stack(own: Sequence[Indices]) -> tuple[Int32[np.ndarray, "agents capacity"], Int32[np.ndarray, "agents"]]:
    """Unequal lists of sample indices as one array, padded with 0, and the sizes."""
    sizes = np.array([len(indices) for indices in own], np.int32)
    stacked = np.zeros((len(own), int(sizes.max())), np.int32)
    for row, indices in zip(stacked, own, strict=True):
        row[: len(indices)] = indices
    return stacked, sizes


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


def _expect_request(agents: int, fraction: float) -> None:
    if agents < 1:
        raise ValueError(f"agents must be at least 1, got {agents}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")


def _expect_enough(samples: int, agents: int, fraction: float, whose: str = "") -> None:
    """Raise a ValueError unless an even split of `samples` leaves everybody one."""
    _expect_request(agents, fraction)
    if int(samples // agents * fraction) < 1:
        raise ValueError(
            f"{whose}{samples} training samples for {agents} agents at a data fraction of {fraction:g} are too few, "
            f"each must get one: take fewer agents or more data"
        )


def _part(samples: np.ndarray, fraction: float) -> Indices:
    return samples[: int(len(samples) * fraction)].astype(np.int32)


def _all_tests(labels: Labels, test_labels: Labels | None, agents: int) -> tuple[list[Indices], list[Ranks]]:
    """Everybody is tested on everything."""
    if test_labels is None:
        return [], []
    tests, ranks = tests_by_class(test_labels, [range(_count_of(labels, test_labels))])
    return tests * agents, ranks * agents


def _count_of(*labels: Labels) -> int:
    """How many classes there are, up to the largest label."""
    return 1 + max(int(some.max(initial=-1)) for some in labels)


def _rank_in_class(labels: Labels) -> Float[np.ndarray, "samples"]:
    """0 for the first sample of every class, 1 for the second, and so on."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    rank = np.empty(len(labels))
    rank[order] = np.arange(len(labels)) - starts
    return rank


def _dirichlet_counts(
    rng: np.random.Generator, agents: int, alpha: float, sizes: np.ndarray, fraction: float
) -> np.ndarray:
    """The first draw of everybody's part of each of `sizes`, (sizes, agents), that leaves every agent a sample."""
    if not 1e-6 <= alpha <= 1e6:
        raise ValueError(f"alpha must lie in 1e-06..1e+06, got {alpha:g}")
    for _ in range(DRAWS):
        counts = _whole_shares(rng.dirichlet(np.full(agents, alpha), size=len(sizes)), sizes)
        if int(counts.sum(axis=0).min() * fraction) >= 1:
            return counts
    raise ValueError(
        f"none of {DRAWS} draws at alpha {alpha:g} gave each of {agents} agents a training sample: "
        f"take a larger alpha or fewer agents"
    )


def _whole_shares(shares: Float[np.ndarray, "rows agents"], sizes: np.ndarray) -> np.ndarray:
    """Shares of `sizes` as whole numbers that add up to them, by largest remainders."""
    exact = shares * sizes[:, None]
    counts = np.floor(exact).astype(int)
    rank = np.argsort(np.argsort(counts - exact, axis=1), axis=1)
    return counts + (rank < (sizes - counts.sum(axis=1))[:, None])
