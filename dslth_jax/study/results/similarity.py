"""How alike the masks of agents are, against how alike their classes are: numbers and their charts."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from dslth_jax.study.results.charts import FAINT, PAPER, SERIES, Chart, bar_beside, chart

MOST_AGENTS = 256  # of more, so many are compared: pairs grow with the square
BLOCK = 2**12  # words of 64 bits: a block of 64 agents, 2 MB, stays in a processor's cache
MOST_DOTS = 1200  # pairs that a chart draws
MOST_STEPS = 12  # similarities of classes that have a mean of their own; more are put together
EDGE = 40  # agents whose numbers stand beside a heat map
DAMAGE = (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error)


class Similarity(NamedTuple):
    """Of every pair of agents. A Jaccard index is what two have in common, as a share of what either has."""

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
    for bits, entries in layers(path, len(agents)):
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


def layers(path: Path, agents: int) -> list[tuple[np.ndarray, int]]:
    """Each layer's packed masks, (agents, bytes), and how many entries one mask has."""
    wrong = f"{path} must hold, for each layer, packed masks of {agents} agents and their shape, and"
    try:
        with np.load(path) as file:
            names = [name for name in file.files if not name.endswith(".shape")]
            found = [(file[name], math.prod(file[f"{name}.shape"].tolist())) for name in names]
    except (*DAMAGE, AttributeError, TypeError):
        raise ValueError(f"{wrong} cannot be read so: name a folder that experiments.cifar has written") from None
    for name, (bits, entries) in zip(names, found, strict=True):
        if bits.dtype != np.uint8 or entries < 1 or bits.shape != (agents, -(-entries // 8)):
            raise ValueError(f"{wrong} {name!r} has {bits.shape} of {bits.dtype} for {entries} entries")
    if not found:
        raise ValueError(f"{wrong} holds none")
    return found


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
    """How alike masks are over how alike classes are: pairs, and means of those whose classes are alike the same."""
    pairs = np.triu_indices(len(similar.agents), 1)
    classes, masks = similar.classes[pairs], similar.masks[pairs]
    rng = np.random.default_rng(0)
    shown = rng.permutation(len(masks))[:MOST_DOTS]

    def draw(axes: Axes) -> None:
        sideways = classes[shown] + rng.uniform(-0.012, 0.012, len(shown))
        axes.plot(sideways, masks[shown], "o", color=SERIES[0], markersize=4, alpha=0.4, markeredgewidth=0)
        places = np.round(classes, 6)
        if len(np.unique(places)) > MOST_STEPS:
            places = np.round(classes * (MOST_STEPS - 1)) / (MOST_STEPS - 1)
        steps = np.unique(places)
        means = [masks[places == step].mean() for step in steps]
        axes.plot(steps, means, "o-", color=SERIES[1], markersize=5, markeredgecolor=PAPER)
        axes.axhline(similar.by_chance, color=FAINT, linestyle=":", linewidth=1.4)
        axes.annotate(
            "by chance", (1, similar.by_chance), xytext=(0, 3), textcoords="offset points", color=FAINT, ha="right"
        )
        axes.set(xlabel="classes in common (Jaccard)", ylabel="mask entries in common (Jaccard)")
        axes.xaxis.set_major_locator(MaxNLocator(6))

    fewer = f" {MOST_DOTS} of {len(masks)} pairs are drawn; means are over all." if len(masks) > MOST_DOTS else ""
    return chart(
        "Masks against classes",
        f"Similarity of masks over similarity of classes, for pairs of agents of {whose}",
        draw,
        note=f"A dot is a pair of agents; the line is the mean. By chance: masks of the same densities.{fewer}",
    )


def heat_map(similar: Similarity, order: np.ndarray, whose: str) -> Chart:
    """How alike the masks of every two agents are, as a heat map in the given order of agents."""

    def draw(axes: Axes) -> None:
        values = similar.masks[np.ix_(order, order)].copy()
        np.fill_diagonal(values, np.nan)
        image = axes.imshow(np.ma.masked_invalid(values), cmap="viridis", interpolation="none")
        axes.set(xlabel="agent", ylabel="agent")
        if len(order) <= EDGE:
            size = 9 if len(order) <= 20 else 6
            axes.set_xticks(range(len(order)), similar.agents[order], fontsize=size, rotation=90)
            axes.set_yticks(range(len(order)), similar.agents[order], fontsize=size)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        bar_beside(axes, image)

    label = f"Heat map of the similarity of masks of every two agents of {whose}"
    return chart("Masks of every two agents", label, draw, height=300,
                 note="Jaccard index of kept entries; agents in the order of their classes.")  # fmt: skip
