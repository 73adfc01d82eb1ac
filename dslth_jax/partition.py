"""Partitions: labels to the samples each agent holds. Host side, numpy; the population's world.

A spelling such as "classes:4", "dirichlet:0.3" or "iid" names a partition. To add one, write its function and name it
in `PARTITIONS`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, Int32

from dslth_jax.files import words_by_line
from dslth_jax.naming import nearest

Labels = Int32[np.ndarray, "_"]  # of samples
Indices = Int32[np.ndarray, "_"]  # of one agent's samples; agents differ in how many they have


class Partition(NamedTuple):
    """Which samples each agent holds: lists over agents."""

    train: list[Indices]  # disjoint
    tests: list[Indices]  # in the order of `ranks`; agents may share test samples
    # A position in 0, 1, ...: the tests of rank below k are the first k of each class, or where tests are drawn in the
    # agent's proportions, k of its most frequent class and as many of the others as keeps them. So what is evaluated
    # quickly is a prefix of an agent's list.
    ranks: list[Float[np.ndarray, "_"]]


class Request(NamedTuple):
    """What a partition is asked for; see `partition_by_name`."""

    numbers: list[str]  # behind the name
    train_labels: Labels
    test_labels: Labels
    classes: int
    agents: int
    rng: np.random.Generator
    fraction: float

    def part(self, samples: np.ndarray) -> Indices:
        """What an agent uses of its share."""
        return _part(samples, self.fraction)

    def expect_enough(self) -> None:
        """Raise a ValueError unless an even split leaves everybody a sample."""
        _expect_enough(len(self.train_labels), self.agents, self.fraction)


DRAWS = 1000  # of random shares, before a request counts as one that cannot be met


def partition_by_name(
    spelling: str,
    train_labels: Labels,
    test_labels: Labels,
    classes: int,
    agents: int,
    rng: np.random.Generator,
    *,
    fraction: float = 1.0,
) -> Partition:
    """The partition of a spelling such as "classes:4", "dirichlet:0.3", "quantity:0.5", "iid".

    Args:
        spelling: a key of `PARTITIONS` with its number behind a colon.
        train_labels: of the training samples, each of which at most one agent gets.
        test_labels: of the test samples.
        classes: how many there are; labels lie below.
        agents: how many.
        rng: of everything that is drawn.
        fraction: in (0, 1], the share of its training samples that each agent uses.

    Raises:
        ValueError: a spelling that means nothing, or a request that cannot be met.

    >>> labels = np.array([0, 0, 1, 1, 2, 2], np.int32)
    >>> held = partition_by_name("iid", labels, labels, 3, 2, np.random.default_rng(0))
    >>> [len(own) for own in held.train], [len(own) for own in held.tests]
    ([3, 3], [6, 6])
    """
    if agents < 1:
        raise ValueError(f"agents must be at least 1, got {agents}")
    _expect_share(fraction)
    name, *numbers = spelling.split(":")
    if name not in PARTITIONS:
        raise ValueError(
            f"partition must be one of {', '.join(PARTITIONS)}, got {spelling!r}{nearest(name, PARTITIONS)}"
        )
    return PARTITIONS[name](Request(numbers, train_labels, test_labels, classes, agents, rng, fraction))


def by_classes(asked: Request) -> Partition:
    """NUMBER different classes an agent, drawn at random; each class split evenly among those that hold it."""
    wanted = _number("classes", asked.numbers, "4")
    if wanted not in range(1, asked.classes + 1):
        raise ValueError(
            f"classes per agent must be a whole number in 1..{asked.classes}, the data's classes, got {wanted:g}"
        )
    # Say so of millions of agents before their classes are drawn one by one.
    if asked.agents > len(asked.train_labels):
        asked.expect_enough()
    classes_of = draw_classes(asked.agents, asked.classes, int(wanted), asked.rng)
    return of_classes(classes_of, asked.train_labels, asked.test_labels, asked.rng, asked.fraction)


def dirichlet(asked: Request) -> Partition:
    """Each class shared out by a Dirichlet draw of concentration ALPHA over agents (Li et al., ICDE 2022).

    The smaller ALPHA, the fewer classes an agent has most of its samples of; sizes differ too. Each agent is tested on
    samples drawn in the label proportions of its own training samples, as many as the test set has in them.
    """
    labels, rng = asked.train_labels, asked.rng
    # Only classes that are there: a data file may claim thousands that are not.
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    counts = _dirichlet_counts("dirichlet", asked, np.array([len(pool) for pool in pools]))
    pieces = [np.split(pool, bounds) for pool, bounds in zip(pools, np.cumsum(counts, 1)[:, :-1], strict=True)]
    # Mix an agent's classes, so that a part of its share has them all.
    shares = [rng.permutation(np.concatenate(own)) for own in zip(*pieces, strict=True)]
    train = [asked.part(share) for share in shares]
    held = np.stack([np.bincount(labels[own], minlength=asked.classes).astype(np.int32) for own in train])
    return Partition(train, *tests_in_proportion(asked.test_labels, held, rng))


def quantity(asked: Request) -> Partition:
    """All classes alike, but sizes by a Dirichlet draw of concentration ALPHA (Li et al., ICDE 2022)."""
    samples = len(asked.train_labels)
    counts = _dirichlet_counts("quantity", asked, np.array([samples]))[0]
    pieces = np.split(asked.rng.permutation(samples), np.cumsum(counts)[:-1])
    return Partition([asked.part(piece) for piece in pieces], *_all_tests(asked))


def iid(asked: Request) -> Partition:
    """All samples, shuffled and split evenly."""
    if asked.numbers:
        raise ValueError(f"iid takes no number, got iid:{':'.join(asked.numbers)}")
    asked.expect_enough()
    pieces = np.array_split(asked.rng.permutation(len(asked.train_labels)), asked.agents)
    return Partition([asked.part(piece) for piece in pieces], *_all_tests(asked))


PARTITIONS: dict[str, Callable[[Request], Partition]] = {
    "classes": by_classes,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "iid": iid,
}


def of_classes(
    classes_of: Sequence[Sequence[int]],
    train_labels: Labels,
    test_labels: Labels,
    rng: np.random.Generator,
    fraction: float = 1.0,
) -> Partition:
    """Each class split evenly among the agents that hold it; everybody is tested on all samples of its classes.

    The authors' way. `classes_of` lists every agent's classes.
    """
    return Partition(split_by_class(train_labels, classes_of, rng, fraction), *tests_by_class(test_labels, classes_of))


def draw_classes(agents: int, classes: int, classes_per_agent: int, rng: np.random.Generator) -> list[list[int]]:
    """`classes_per_agent` different classes for every agent, uniformly at random."""
    return [sorted(rng.choice(classes, classes_per_agent, replace=False).tolist()) for _ in range(agents)]


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


def split_by_class(
    labels: Labels, classes_of: Sequence[Sequence[int]], rng: np.random.Generator, fraction: float = 1.0
) -> list[Indices]:
    """Each class's samples, shuffled, split evenly among the agents that hold it; `fraction` of each share is used.

    Every agent gets at least one sample of each of its classes.
    """
    _expect_share(fraction)
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


def tests_by_class(
    labels: Labels, classes_of: Sequence[Sequence[int]]
) -> tuple[list[Indices], list[Float[np.ndarray, "_"]]]:
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
) -> tuple[list[Indices], list[Float[np.ndarray, "_"]]]:
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


def stack(own: Sequence[Indices]) -> tuple[Int32[np.ndarray, "agents capacity"], Int32[np.ndarray, "agents"]]:
    """Unequal lists of sample indices as one array, padded with 0, and the sizes."""
    sizes = np.array([len(indices) for indices in own], np.int32)
    stacked = np.zeros((len(own), int(sizes.max())), np.int32)
    for row, indices in zip(stacked, own, strict=True):
        row[: len(indices)] = indices
    return stacked, sizes


def _expect_share(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"data fraction must lie in (0, 1], got {fraction}")


def _expect_enough(samples: int, agents: int, fraction: float, whose: str = "") -> None:
    """Raise a ValueError unless an even split of `samples` leaves everybody one."""
    if int(samples // agents * fraction) < 1:
        raise ValueError(
            f"{whose}{samples} training samples for {agents} agents at a data fraction of {fraction:g} are too few, "
            f"each must get one: take fewer agents or more data"
        )


def _part(samples: np.ndarray, fraction: float) -> Indices:
    return samples[: int(len(samples) * fraction)].astype(np.int32)


def _all_tests(asked: Request) -> tuple[list[Indices], list[Float[np.ndarray, "_"]]]:
    """Everybody is tested on everything."""
    tests, ranks = tests_by_class(asked.test_labels, [range(asked.classes)])
    return tests * asked.agents, ranks * asked.agents


def _rank_in_class(labels: Labels) -> Float[np.ndarray, "samples"]:
    """0 for the first sample of every class, 1 for the second, and so on."""
    order = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[order], labels[order], side="left")
    rank = np.empty(len(labels))
    rank[order] = np.arange(len(labels)) - starts
    return rank


def _dirichlet_counts(name: str, asked: Request, sizes: np.ndarray) -> np.ndarray:
    """The first draw of everybody's part of each of `sizes`, (sizes, agents), that leaves every agent a sample."""
    alpha = _number(name, asked.numbers, "0.5")
    if not 1e-6 <= alpha <= 1e6:
        raise ValueError(f"{name} needs a concentration in 1e-06..1e+06, got {alpha:g}")
    asked.expect_enough()
    for _ in range(DRAWS):
        counts = _whole_shares(asked.rng.dirichlet(np.full(asked.agents, alpha), size=len(sizes)), sizes)
        if int(counts.sum(axis=0).min() * asked.fraction) >= 1:
            return counts
    raise ValueError(
        f"none of {DRAWS} draws of {name}:{alpha:g} gave each of {asked.agents} agents a training sample: "
        f"take a larger concentration or fewer agents"
    )


def _whole_shares(shares: Float[np.ndarray, "rows agents"], sizes: np.ndarray) -> np.ndarray:
    """Shares of `sizes` as whole numbers that add up to them, by largest remainders."""
    exact = shares * sizes[:, None]
    counts = np.floor(exact).astype(int)
    rank = np.argsort(np.argsort(counts - exact, axis=1), axis=1)
    return counts + (rank < (sizes - counts.sum(axis=1))[:, None])


def _number(name: str, numbers: Sequence[str], default: str) -> float:
    try:
        (text,) = numbers or [default]
        return float(text)
    except ValueError:
        raise ValueError(
            f"{name} takes one number, such as {name}:{default}, got {':'.join((name, *numbers))}"
        ) from None


def class_counts(
    labels: Int[Array | np.ndarray, "samples"],
    indices: Int[Array | np.ndarray, "agents capacity"],
    sizes: Int[Array | np.ndarray, "agents"],
    classes: int,
) -> Int[np.ndarray, "agents _"]:
    """How many samples of each class every agent holds, whose own samples are the first of its row of `indices`."""
    own = zip(np.asarray(indices), np.asarray(sizes), strict=True)
    return np.stack([np.bincount(np.asarray(labels)[row[:size]], minlength=classes) for row, size in own])
