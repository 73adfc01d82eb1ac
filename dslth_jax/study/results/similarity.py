"""How alike the masks of agents are, against how alike their classes are: numbers and their charts."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dslth_jax.study.results import plots
from dslth_jax.study.results.folders import read_masks
from dslth_jax.study.results.plots import Chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_AGENTS = 256  # of more, so many are compared: pairs grow with the square
BLOCK = 2**12  # words of 64 bits: a block of 64 agents, 2 MB, stays in a processor's cache
MOST_DOTS = 1200  # pairs that a chart draws
MOST_STEPS = 12  # similarities of classes that have a mean of their own; more are put together


class Similarity(NamedTuple):
    """Jaccard indices of every pair of agents: what two have in common, as a share of what either has."""

    agents: np.ndarray  # which agents are compared: rows of agents.csv
    masks: np.ndarray  # Jaccard index of the entries that two masks keep, over all layers: (agents, agents)
    classes: np.ndarray  # that of the classes that two agents hold
    by_chance: float  # mean over pairs of what masks of as many entries, drawn at random, would have


def similarity(path: Path, agents: Sequence[dict[str, Any]]) -> Similarity:
    """The similarity of the masks in a masks.npz; `agents` are the rows of agents.csv."""
    chosen = np.arange(len(agents))
    if len(agents) > MOST_AGENTS:
        chosen = np.linspace(0, len(agents) - 1, MOST_AGENTS).astype(int)
    common = np.zeros((len(chosen), len(chosen)), np.int64)
    expected = np.zeros(common.shape)
    for bits, entries in read_masks(path, len(agents)):
        shared = intersections(bits[chosen])
        common += shared
        kept = np.diag(shared).astype(float)
        expected += np.outer(kept, kept) / entries
    by_chance = jaccard(expected, np.diag(common))
    pairs = np.triu_indices(len(chosen), 1)
    return Similarity(
        chosen,
        jaccard(common, np.diag(common)),
        of_classes([agents[agent]["classes"] for agent in chosen.tolist()]),
        float(by_chance[pairs].mean()) if len(chosen) > 1 else 1.0,
    )


def intersections(bits: np.ndarray) -> np.ndarray:
    """How many ones every two rows of packed bits have in common; on the diagonal, how many each has."""
    agents, length = bits.shape
    words = np.zeros((agents, -(-length // 8)), np.uint64)
    words.view(np.uint8)[:, :length] = bits
    counts = np.zeros((agents, agents), np.int64)
    for start in range(0, words.shape[1], BLOCK):
        block = words[:, start : start + BLOCK]
        for agent in range(agents):
            counts[agent, agent:] += np.bitwise_count(block[agent] & block[agent:]).sum(axis=1, dtype=np.int64)
    return counts + np.triu(counts, 1).T


def jaccard(common: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Jaccard indices from the sizes of intersections and of sets; two empty sets are alike."""
    union = sizes[:, None] + sizes[None, :] - common
    return np.divide(common, union, out=np.ones(common.shape), where=union > 0)


def of_classes(classes: Sequence[Sequence[str]]) -> np.ndarray:
    """The Jaccard indices of lists of classes."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(name for own in classes for name in own))}
    held = np.zeros((len(classes), len(numbers)), np.int64)
    for row, own in zip(held, classes, strict=True):
        row[[numbers[name] for name in own]] = 1
    return jaccard(held @ held.T, held.sum(axis=1))


def dots(similar: Similarity, whose: str) -> Chart:
    """How alike masks are over how alike classes are: pairs, and means over pairs whose classes are equally alike."""
    pairs = np.triu_indices(len(similar.agents), 1)
    table = pd.DataFrame({"classes": similar.classes[pairs], "masks": similar.masks[pairs]})
    fewer = f" {MOST_DOTS} of {len(table)} pairs are drawn; means are over all." if len(table) > MOST_DOTS else ""
    return plots.chart(
        "Masks against classes",
        f"Similarity of masks over similarity of classes, for pairs of agents of {whose}",
        draw_dots,
        table,
        similar.by_chance,
        note=f"A dot is a pair of agents; the line is the mean. By chance: masks of the same densities.{fewer}",
    )


def draw_dots(axes: "Axes", pairs: pd.DataFrame, by_chance: float) -> None:
    """A part of the pairs, and means of all along the classes in common."""
    rng = np.random.default_rng(0)
    shown = pairs.iloc[rng.permutation(len(pairs))[:MOST_DOTS]]
    sideways = shown["classes"] + rng.uniform(-0.012, 0.012, len(shown))
    axes.plot(sideways, shown["masks"], "o", color=plots.SERIES[0], markersize=4, alpha=0.4, markeredgewidth=0)
    steps = pairs["classes"].round(6)
    if steps.nunique() > MOST_STEPS:
        steps = (pairs["classes"] * (MOST_STEPS - 1)).round() / (MOST_STEPS - 1)
    means = pairs["masks"].groupby(steps).mean()
    axes.plot(means.index, means, "o-", color=plots.SERIES[1], markersize=5)
    axes.axhline(by_chance, color=plots.FAINT, linestyle=":", linewidth=1.4)
    beside: Any = {"xytext": (0, 3), "textcoords": "offset points", "color": plots.FAINT, "ha": "right"}
    axes.annotate("by chance", (1, by_chance), **beside)
    axes.set(xlabel="classes in common (Jaccard)", ylabel="mask entries in common (Jaccard)")


def heat_map(similar: Similarity, order: np.ndarray, whose: str) -> Chart:
    """How alike the masks of every two agents are, as a heat map in the given order of agents."""
    values = similar.masks[np.ix_(order, order)].copy()
    np.fill_diagonal(values, np.nan)
    agents = similar.agents[order]
    table = pd.DataFrame(values, agents, agents).rename_axis(index="agent", columns="agent")
    return plots.chart(
        "Masks of every two agents",
        f"Heat map of the similarity of masks of every two agents of {whose}",
        plots.draw_heat_map,
        table,
        words="",
        height=300,
        note="Jaccard index of kept entries; agents in the order of their classes.",
    )
