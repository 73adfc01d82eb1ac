"""How near subset sums come to their targets: by the number of candidates, the retention, and for all targets at once.

Every function returns one row a measurement.
"""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dslth_jax.masks import kept_entries
from dslth_jax.subset_sums import MOST_AT_ONCE, binary_entropy, nearest, worst_error

NUMBERS = (8, 12, 16, 20, 24, 28, 32, 36, 40)
RETENTIONS = (None, 0.1, 0.25, 0.5)  # None: subsets of any size
LARGE = 28  # candidates, from where draws are few because each takes long


def errors(rng: np.random.Generator, draws: int, numbers: Sequence[int], retention: float | None) -> pd.DataFrame:
    """The error of the best subset for z ~ U[-1, 1] and candidates U[-1, 1]: its quartiles over draws, 2^(-n·H2(k/n))
    beside. With a retention subsets have exactly as many members as a layer of n entries keeps."""
    rows = []
    for number in numbers:
        size = None if retention is None else kept_entries(retention, number)
        # Every four further candidates take four times as long; a few targets then share the sorting.
        networks, targets = (draws, 1) if number <= LARGE else (max(1, draws >> (number - LARGE) // 2), 3)
        drawn = ((rng.uniform(-1, 1, number), rng.uniform(-1, 1, targets)) for _ in range(networks))
        found = np.concatenate([nearest(own, wanted, size).errors for own, wanted in drawn])
        share = 0.5 if size is None else size / number
        bits = math.log2(2**number if size is None else math.comb(number, size))
        law = {"law": 2 ** (-number * binary_entropy(share)), "bits": bits, "entropy": number * binary_entropy(share)}
        rows.append({"n": number, "kept": size, "draws": len(found), **quartiles(found), **law})
    return pd.DataFrame(rows)


def quartiles(values: np.ndarray) -> dict[str, float]:
    """The median of values, and between which half of them lie."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"low": float(low), "median": float(middle), "high": float(high)}


def slope(table: pd.DataFrame, across: str) -> float:
    """By how many bits the median falls for each bit of a column: least squares over the rows."""
    return -float(np.polyfit(table[across], np.log2(table["median"]), 1)[0])


def products(rng: np.random.Generator, count: int) -> np.ndarray:
    """What one entry of a kernel is a sum of, at the theorem's shape: of 2·`count` channels those with v > 0, and the
    products v·u."""
    odd, even = rng.uniform(-1, 1, (2, 2 * count))
    return (odd * even)[odd > 0]


def of_an_entry(rng: np.random.Generator, draws: int, widths: Sequence[int], all_targets: bool) -> np.ndarray:
    """The errors of one entry of a kernel in random networks of each n, (widths, draws): for a target from
    U[-1/2, 1/2], or the worst over all of these at once."""

    def one(count: int) -> float:
        own = products(rng, count)
        if all_targets:
            return worst_error(own[:MOST_AT_ONCE], -0.5, 0.5)
        return float(nearest(own, rng.uniform(-0.5, 0.5, 1)).errors[0])

    return np.array([[one(count) for _ in range(draws)] for count in widths])
