"""Random subset sums: which of n numbers add up nearest to a target, exactly. On the host, in float64, without agents.

Strong lottery tickets stand on them (Lueker 1998; Pensia et al. 2020): of n numbers drawn from [-1, 1], some subset
adds up nearly to any z in [-1, 1], and the error falls exponentially with n. A mask that keeps k of n entries can only
take subsets of k: there are about 2^(n·H2(k/n)) of these, so that the error falls as 2^(-n·H2(r)).

A search meets in the middle (Horowitz and Sahni 1974): it sorts the sums of either half and finds, for each sum of the
first half, the nearest complement of the second. That takes 2^(n/2) numbers, a second at n = 40.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

MOST = 44  # candidates of a search, whose halves have four million sums each
MOST_AT_ONCE = 22  # candidates of which all sums are held
AT_ONCE = 2**20  # complements that are looked up at once

Numbers = Float64[np.ndarray, " candidates"]


class Nearest(NamedTuple):
    """The subset nearest to each target."""

    chosen: Bool[np.ndarray, "targets candidates"]
    errors: Float64[np.ndarray, " targets"]  # how far its sum is from the target


def nearest(candidates: Numbers, targets: Float64[np.ndarray, " targets"], size: int | None = None) -> Nearest:
    """The subset of the candidates whose sum is nearest to each target, of any size or of exactly `size`.

    The empty subset is one too, and its sum is 0. A ValueError if there are more than `MOST` candidates, or fewer than
    `size`.

    >>> best = nearest(np.array([0.5, -0.25, 0.125, 1.0]), np.array([0.3, 0.9]))
    >>> best.chosen.astype(int).tolist(), best.errors.round(3).tolist()
    ([[1, 1, 0, 0], [0, 1, 1, 1]], [0.05, 0.025])
    >>> nearest(np.array([0.5, -0.25, 0.125, 1.0]), np.array([0.3]), size=1).chosen.astype(int).tolist()
    [[0, 0, 1, 0]]
    """
    candidates, targets = np.asarray(candidates, float), np.asarray(targets, float)
    number = len(candidates)
    if number > MOST:
        raise ValueError(f"there must be at most {MOST} candidates, got {number}: their halves have too many sums")
    if size is not None and not 0 <= size <= number:
        raise ValueError(f"size must lie in 0..{number}, the number of candidates, got {size}")
    split = number // 2
    errors = np.full(len(targets), np.inf)
    found = np.zeros((2, len(targets)), np.int64)  # which subset of the first half, which of the second
    for first, second in _halves(candidates, split, size):
        one, other = first[0], second[0]
        for start in range(0, len(targets), step := max(1, AT_ONCE // len(one))):
            here = slice(start, start + step)
            # Complements fall as the sums rise; in rising order they are looked up faster.
            wanted = targets[here, None] - one[::-1]
            above = np.searchsorted(other, wanted.ravel()).reshape(wanted.shape)
            above = np.minimum(above, len(other) - 1)
            below = np.maximum(above - 1, 0)
            up, down = np.abs(other[above] - wanted), np.abs(other[below] - wanted)
            distance = np.minimum(up, down)
            rows = np.arange(len(distance))
            place = distance.argmin(axis=1)
            better = distance[rows, place] < errors[here]
            partner = np.where(up <= down, above, below)[rows, place]
            errors[here] = np.where(better, distance[rows, place], errors[here])
            found[0, here] = np.where(better, first[1][::-1][place], found[0, here])
            found[1, here] = np.where(better, second[1][partner], found[1, here])
    chosen = np.concatenate([_members(found[0], split), _members(found[1], number - split)], axis=1)
    return Nearest(chosen, np.abs(chosen @ candidates - targets))


def worst_error(candidates: Numbers, low: float, high: float) -> float:
    """How far a target in [low, high] can be from the nearest sum of a subset of any size: the supremum, exactly.

    A ValueError if there are more than `MOST_AT_ONCE` candidates, whose sums are all held.

    >>> worst_error(np.array([1.0, 0.5, 0.25]), 0.0, 1.0), worst_error(np.array([0.5]), -1.0, 1.0)
    (0.125, 1.0)
    """
    if len(candidates) > MOST_AT_ONCE:
        raise ValueError(f"there must be at most {MOST_AT_ONCE} candidates, got {len(candidates)}")
    sums = np.sort(sums_of(np.asarray(candidates, float)))
    middles = (sums[1:] + sums[:-1]) / 2
    inside = (low <= middles) & (middles <= high)
    ends = [float(np.abs(sums - end).min()) for end in (low, high)]
    return max(*ends, float(np.diff(sums)[inside].max(initial=0.0)) / 2)


def sums_of(values: Numbers) -> Float64[np.ndarray, " subsets"]:
    """The sums of all subsets; bit j of a sum's index says whether `values[j]` is in it.

    >>> sums_of(np.array([1.0, 10.0])).tolist()
    [0.0, 1.0, 10.0, 11.0]
    """
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def binary_entropy(share: float) -> float:
    """H2: the bits of a coin that falls on one side with this probability.

    >>> binary_entropy(0.5), round(binary_entropy(0.1), 3), binary_entropy(1.0)
    (1.0, 0.469, 0.0)
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share}")
    return sum(-part * math.log2(part) for part in (share, 1 - share) if part > 0)


Sums = tuple[Float64[np.ndarray, " subsets"], Int[np.ndarray, " subsets"]]  # in rising order, and of which subsets


def _halves(candidates: Numbers, split: int, size: int | None) -> Iterator[tuple[Sums, Sums]]:
    """Sums of the first half and of the second that may be added: all, or those of as many as `size` leaves."""
    halves = candidates[:split], candidates[split:]
    sums = [sums_of(half) for half in halves]
    if size is None:
        yield _sorted(sums[0]), _sorted(sums[1])
        return
    counts = [sums_of(np.ones(len(half))) for half in halves]
    for taken in range(max(0, size - len(halves[1])), min(size, split) + 1):
        one, other = (np.flatnonzero(own == wanted) for own, wanted in zip(counts, (taken, size - taken), strict=True))
        yield _sorted(sums[0][one], one), _sorted(sums[1][other], other)


def _sorted(sums: np.ndarray, subsets: np.ndarray | None = None) -> Sums:
    """Sums in rising order, and the subset of each."""
    order = np.argsort(sums)
    return sums[order], order if subsets is None else subsets[order]


def _members(subsets: Int[np.ndarray, " targets"], number: int) -> Bool[np.ndarray, "targets candidates"]:
    """Which of so many candidates are in each subset, by the bits of its index."""
    return (subsets[:, None] >> np.arange(number)) & 1 > 0
