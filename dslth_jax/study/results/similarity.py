"""How alike the masks of agents are, against how alike their classes are: numbers and their charts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dslth_jax.study.results import plots
from dslth_jax.study.results.folders import Row, Run
from dslth_jax.study.results.models import read_masks
from dslth_jax.study.training.agreement import intersections

MOST_AGENTS = 256  # of more, so many are compared: pairs grow with the square
MOST_AGENTS_OF_MAP = 100  # beyond it there is no heat map of agents
MOST_DOTS = 1200  # pairs that a chart draws
MOST_STEPS = 12  # similarities of classes that have a mean of their own; more are put together


class Similarity(NamedTuple):
    """Jaccard indices of every pair of agents: what two have in common, as a share of what either has."""

    agents: np.ndarray  # which agents are compared: rows of agents.csv
    masks: np.ndarray  # Jaccard index of the entries that two masks keep, over all layers: (agents, agents)
    classes: np.ndarray  # that of the classes that two agents hold
    by_chance: float  # mean over pairs of what masks of as many entries, drawn at random, would have


def similarity(path: Path, agents: Sequence[Row]) -> Similarity:
    """The similarity of the masks in a masks.npz; `agents` are the rows of agents.csv."""
    chosen = np.linspace(0, len(agents) - 1, min(len(agents), MOST_AGENTS)).astype(int)
    packed = read_masks(path, len(agents)).values()
    layers = [(intersections(bits[chosen]), math.prod(shape)) for bits, shape in packed]
    common = np.sum([shared for shared, _ in layers], axis=0)
    expected = np.sum([np.outer(np.diag(shared), np.diag(shared)) / entries for shared, entries in layers], axis=0)
    by_chance = jaccard(expected, np.diag(common))
    pairs = np.triu_indices(len(chosen), 1)
    classes = [{*agents[agent]["classes"]} for agent in chosen.tolist()]
    held = np.array([[name in own for name in set().union(*classes)] for own in classes], np.int64)
    mean = float(by_chance[pairs].mean()) if len(chosen) > 1 else 1.0
    of_classes = jaccard(held @ held.T, held.sum(axis=1))
    return Similarity(chosen, jaccard(common, np.diag(common)), of_classes, mean)


def jaccard(common: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Jaccard indices from the sizes of intersections and of sets; two empty sets are alike."""
    union = sizes[:, None] + sizes[None, :] - common
    return np.divide(common, union, out=np.ones(common.shape), where=union > 0)


def charts_of_masks(run: Run) -> list[plots.Chart]:
    """How alike the masks of a run's agents are: over how alike their classes are, and as a heat map."""
    similar = similarity(run.folder / "masks.npz", run.agents)
    if len(similar.agents) < 2:
        return []
    pairs = np.triu_indices(len(similar.agents), 1)
    table = pd.DataFrame({"classes": similar.classes[pairs], "masks": similar.masks[pairs]})
    fewer = f" {MOST_DOTS} of {len(table)} pairs are drawn; means are over all." if len(table) > MOST_DOTS else ""
    note = f"A dot is a pair of agents; the line is the mean. By chance: masks of the same densities.{fewer}"
    label = f"Similarity of masks over similarity of classes, for pairs of agents of {run.name}"
    charts = [plots.chart("Masks against classes", label, draw_dots, table, similar.by_chance, note=note)]
    if len(run.agents) <= MOST_AGENTS_OF_MAP:
        order = sorted(range(len(run.agents)), key=lambda agent: run.agents[agent]["classes"])
        masks = np.where(np.eye(len(order)), np.nan, similar.masks[np.ix_(order, order)])
        table = pd.DataFrame(masks, order, order).rename_axis(index="agent", columns="agent")
        label = f"Heat map of the similarity of masks of every two agents of {run.name}"
        how: Any = {"note": "Jaccard index of kept entries; agents in the order of their classes.", "height": 300}
        charts.append(plots.chart("Masks of every two agents", label, plots.draw_heat_map, table, words="", **how))
    return charts


def draw_dots(axes: "plots.Axes", pairs: pd.DataFrame, by_chance: float) -> None:
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
