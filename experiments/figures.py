"""The pictures of a run folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import networkx
import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from experiments.run import Prepared

MANY_AGENTS = 40  # beyond it pictures leave out agents' numbers


def save(figure: Figure, path: Path) -> None:
    """Write a picture that is readable in a README."""
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


def curves_picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy (mean, and from worst to best agent) and loss over rounds, and accuracy over megabytes sent."""
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    by_round, by_loss, by_megabytes = figure.subplots(1, 3)
    rounds = [row["round"] for row in rows]
    percent = {key: [100 * row[f"accuracy_{key}"] for row in rows] for key in ("mean", "worst", "best")}
    megabytes = [row["bitmap_bits"] / 8e6 for row in rows]

    for axes, positions in ((by_round, rounds), (by_megabytes, megabytes)):
        axes.fill_between(positions, percent["worst"], percent["best"], alpha=0.2, label="worst to best agent")
        axes.plot(positions, percent["mean"], marker="o", markersize=3, label="mean of agents")
        axes.set_ylabel("test accuracy, %")
        axes.legend(frameon=False, loc="lower right")
    by_round.set_xlabel("round")
    by_megabytes.set_xlabel("sent over all links as bitmaps, MB")

    trained = [row for row in rows if row["loss"] is not None]
    by_loss.plot(
        [row["round"] for row in trained], [row["loss"] for row in trained], color="tab:red", marker="o", markersize=3
    )
    by_loss.set_xlabel("round")
    by_loss.set_ylabel("training loss, nats")
    for axes in (by_round, by_loss, by_megabytes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, path)


def partition_picture(prepared: "Prepared", path: Path) -> None:
    """How many training and test samples of each class every agent holds."""
    agents = prepared.settings.agents
    figure = Figure(figsize=(9, min(12, 2 + 0.16 * agents)), layout="constrained")
    for axes, shares, title in zip(
        figure.subplots(1, 2), (prepared.train, prepared.tests), ("training samples", "test samples"), strict=True
    ):
        counts = class_counts(shares, prepared.dataset.classes)
        image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        axes.set(title=title, xlabel="class", ylabel="agent", xticks=range(prepared.dataset.classes))
        if agents <= MANY_AGENTS:
            axes.set_yticks(range(agents))
        figure.colorbar(image, ax=axes, shrink=0.8)
    save(figure, path)


def class_counts(shares: Any, classes: int) -> np.ndarray:
    """How many samples of each class every agent holds: (agents, classes)."""
    own = zip(shares.indices, shares.sizes, strict=True)
    return np.stack([np.bincount(shares.labels[row[:size]], minlength=classes) for row, size in own])


def topology_picture(adjacency: np.ndarray, accuracy: np.ndarray, path: Path) -> None:
    """The graph, its agents coloured by accuracy."""
    agents = len(adjacency)
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axes = figure.subplots()
    angles = 2 * np.pi * np.arange(agents) / agents
    positions = dict(enumerate(np.stack([np.cos(angles), np.sin(angles)], 1)))
    graph = networkx.from_numpy_array(adjacency.astype(int))
    edges = max(graph.number_of_edges(), 1)
    networkx.draw_networkx_edges(graph, positions, ax=axes, alpha=float(np.clip(60 / edges, 0.06, 0.6)))
    colours = np.asarray(accuracy, np.float64) * 100
    scale = matplotlib.colormaps["YlGn"]
    size = 260 if agents <= MANY_AGENTS else 60
    drawn = networkx.draw_networkx_nodes(graph, positions, ax=axes, node_color=colours, cmap=scale, node_size=size)
    if agents <= MANY_AGENTS:
        networkx.draw_networkx_labels(graph, positions, ax=axes, font_size=7)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="test accuracy, %")
    axes.set(title=f"{agents} agents, {graph.number_of_edges()} links", aspect="equal")
    axes.axis("off")
    save(figure, path)
