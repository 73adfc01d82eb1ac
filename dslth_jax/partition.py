"""Partitions: labels to the samples each agent holds. Host side, numpy; the population's world.

    classes      a few classes an agent, drawn at random; `of_classes` where they are given
    overlapping  a few classes an agent, so many of them the next agent's too
    dirichlet    labels skewed
    quantity     sizes skewed
    iid          neither
    owned        as the data says whose each sample is

Every one takes `labels` of the training samples, each of which at most one agent gets, and `agents`, how many there
are; further `seed`, whatever `numpy.random.default_rng` takes (a Generator goes on from its state), and by name alone:

    test_labels  labels of the test samples; None tests nobody
    fraction     in (0, 1], the share of its training samples that each agent uses

A request that cannot be met raises a ValueError. `hold_back` takes training samples away again, to validate with, and
`stack` makes lists of samples the arrays of `population.Shares`. `label_shares` says what came of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from dslth_jax.class_lists import draw_classes, window_classes
from dslth_jax.owners import Owners, expect_owners, owners
from dslth_jax.tested_on import Indices, Labels, Ranks, hold_back, rank_in_class, tests_by_class, tests_in_proportion

__all__ = [
    "Indices", "Labels", "Owners", "Partition", "classes", "dirichlet", "draw_classes", "hold_back", "iid",
    "of_classes", "overlapping", "owned", "owners", "quantity", "split_by_class", "stack", "tests_by_class",
    "tests_in_proportion", "window_classes",
]  # fmt: skip

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
    among = _expect_a_few_classes(labels, agents, fraction, among)
    if per_agent not in range(1, among + 1):
        raise ValueError(f"per_agent must lie in 1..{among}, the classes that there are, got {per_agent}")
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
    parts: int | None = None,
) -> Partition:
    """Each class split evenly among the agents that hold it; everybody is tested on all samples of its classes.

    The authors' way. `classes_of` lists every agent's classes; `parts` as in `split_by_class`.
    """
    train = split_by_class(labels, classes_of, np.random.default_rng(seed), fraction, parts)
    return Partition(train, *([], []) if test_labels is None else tests_by_class(test_labels, classes_of))


def overlapping(
    labels: Labels,
    agents: int,
    overlap: float = 0.5,
    per_agent: int = 4,
    seed: Any = 0,
    *,
    test_labels: Labels | None = None,
    fraction: float = 1.0,
    among: int | None = None,
) -> Partition:
    """`per_agent` classes an agent, of which it shares `overlap` with the next agent on a ring: see `window_classes`.

    Each class is split into as many parts as there are agents, and whoever holds it has one part. So agents have as
    many samples whatever they share, and only what they share differs. `among` as in `classes`.
    """
    among = _expect_a_few_classes(labels, agents, fraction, among)
    rng = np.random.default_rng(seed)
    classes_of = window_classes(agents, among, per_agent, overlap, rng)
    return of_classes(labels, classes_of, rng, test_labels=test_labels, fraction=fraction, parts=agents)


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
    return Partition(train, *tests_in_proportion(test_labels, _held(labels, train), rng))


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


def owned(
    labels: Labels,
    agents: int,
    seed: Any = 0,
    *,
    owner: Owners | None = None,
    test_labels: Labels | None = None,
    test_owner: Owners | None = None,
    fraction: float = 1.0,
) -> Partition:
    """Everybody has the samples that are its own: `owner` says whose each training sample is.

    Owners are agents' numbers, with -1 for nobody. Other numbers, or words, of which "" is nobody, are numbered in
    their order, and must be as many as the agents. Each agent is tested on its own test samples where `test_owner` says
    whose they are, and otherwise on samples in the label proportions of its training samples, as in `dirichlet`. Raises
    a ValueError where owners are neither whole numbers nor words, or not as many as the labels.

    >>> held = owned(np.array([0, 1, 1]), agents=2, owner=np.array(["me", "you", "me"]))
    >>> [sorted(own.tolist()) for own in held.train]
    [[0, 2], [1]]
    """
    _expect_request(agents, fraction)
    if owner is None:
        raise ValueError("owner must say whose each training sample is, and the data has none: give it one")
    expect_owners("owner", owner, labels)
    names = owners(owner, agents)
    rng = np.random.default_rng(seed)
    # Mix an agent's classes, so that a part of its share has them all.
    train = [_part(rng.permutation(np.flatnonzero(owner == name)), fraction) for name in names]
    for agent, own in enumerate(train):
        if not own.size:
            raise ValueError(f"agent {agent} owns too few training samples, each must use one: take fewer agents")
    if test_labels is None:
        return Partition(train, [], [])
    if test_owner is None:
        return Partition(train, *tests_in_proportion(test_labels, _held(labels, train), rng))
    expect_owners("test_owner", test_owner, test_labels)
    if (test_owner.dtype.kind == "U") != (owner.dtype.kind == "U"):
        raise ValueError(f"owner and test_owner must both be words or numbers, got {owner.dtype}, {test_owner.dtype}")
    tests, ranks = list[Indices](), list[Ranks]()
    for agent, name in enumerate(names):
        own = np.flatnonzero(test_owner == name)
        if not own.size:
            raise ValueError(f"agent {agent} owns no test sample: leave test_owner out, or give it some")
        rank = rank_in_class(test_labels[own])  # among its own: others have theirs
        order = np.argsort(rank, kind="stable")
        tests.append(own[order].astype(np.int32))
        ranks.append(rank[order])
    return Partition(train, tests, ranks)


def split_by_class(
    labels: Labels,
    classes_of: Sequence[Sequence[int]],
    rng: np.random.Generator,
    fraction: float = 1.0,
    parts: int | None = None,
) -> list[Indices]:
    """Each class's samples, shuffled, split evenly among the agents that hold it; `fraction` of each share is used.

    With `parts` it is split into so many, at least as many as hold it, and the parts that are left are nobody's. Every
    agent gets at least one sample of each of its classes.
    """
    _expect_request(len(classes_of), fraction)
    for agent, row in enumerate(classes_of):
        if not row:
            raise ValueError(f"agent {agent} must have at least one class, got none")
    own: list[list[np.ndarray]] = [[] for _ in classes_of]
    for label in sorted({label for row in classes_of for label in row}):
        holders = [agent for agent, row in enumerate(classes_of) if label in row]
        samples = rng.permutation(np.flatnonzero(labels == label))
        if not samples.size:
            some = f"agents {', '.join(map(str, holders[:5]))}{' and others' * (len(holders) > 5)} hold it"
            raise ValueError(f"class {label} has no training samples, and {some}: name other classes, or more data")
        into = parts or len(holders)
        _expect_enough(len(samples), into, fraction, f"class {label}: ")
        for agent, share in zip(holders, np.array_split(samples, into)[: len(holders)], strict=True):
            own[agent].append(_part(share, fraction))
    return [np.concatenate(shares) for shares in own]


def stack(own: Sequence[Indices]) -> tuple[Int32[np.ndarray, "agents capacity"], Int32[np.ndarray, "agents"]]:
    """Unequal lists of sample indices as one array, padded with 0, and the sizes."""
    sizes = np.array([len(indices) for indices in own], np.int32)
    stacked = np.zeros((len(own), int(sizes.max())), np.int32)
    for row, indices in zip(stacked, own, strict=True):
        row[: len(indices)] = indices
    return stacked, sizes


def _expect_request(agents: int, fraction: float) -> None:
    if agents < 1:
        raise ValueError(f"agents must be at least 1, got {agents}")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")


def _expect_a_few_classes(labels: Labels, agents: int, fraction: float, among: int | None) -> int:
    """How many classes there are, of which every agent is to hold a few. Millions of agents are refused here, before
    their classes are listed one by one."""
    _expect_request(agents, fraction)
    if agents > len(labels):
        _expect_enough(len(labels), agents, fraction)
    return _count_of(labels) if among is None else among


def _held(labels: Labels, train: Sequence[Indices]) -> Int32[np.ndarray, "agents classes"]:
    """How many samples of each class every agent has."""
    return np.stack([np.bincount(labels[own], minlength=_count_of(labels)).astype(np.int32) for own in train])


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
