"""The pictures of a run folder."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import networkx
import numpy as np
from matplotlib.figure import Figure

from dslth_jax.study.results.folders import on_the_wire
from dslth_jax.study.training.plan import Prepared, class_counts

MOST_CURVES = 8  # of a sweep's points, in one picture
MANY_AGENTS = MANY_CLASSES = 40  # beyond it pictures leave out their numbers


def save(figure: Figure, path: Path) -> None:
    """Write a picture that is readable in a README."""
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


def curves_picture(folder: Path, rows: Sequence[dict[str, Any]], chance: float) -> None:
    """curves.png: accuracy (mean, and from worst to best agent) and loss over rounds, and accuracy over megabytes sent.

    `chance` is the accuracy of a guess.
    """
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    by_round, by_loss, by_megabytes = figure.subplots(1, 3)
    rounds = [row["round"] for row in rows]
    percent = {key: [100 * row[f"accuracy_{key}"] for row in rows] for key in ("mean", "worst", "best")}
    megabytes = [(on_the_wire(row) or 0) / 8e6 for row in rows]

    for axes, positions in ((by_round, rounds), (by_megabytes, megabytes)):
        axes.fill_between(positions, percent["worst"], percent["best"], alpha=0.2, label="worst to best agent")
        axes.plot(positions, percent["mean"], marker="o", markersize=3, label="mean of agents")
        axes.axhline(100 * chance, color="grey", linestyle=":", label="a guess")
        axes.set_ylabel("test accuracy, %")
        axes.legend(frameon=False, loc="lower right")
    by_round.set_xlabel("round")
    floats = any(row["bitmap_bits"] is None for row in rows)
    by_megabytes.set_xlabel(f"sent over all links as {'float32' if floats else 'bitmaps'}, MB")

    trained = [row for row in rows if row["loss"] is not None]
    by_loss.plot(
        [row["round"] for row in trained], [row["loss"] for row in trained], color="tab:red", marker="o", markersize=3
    )
    by_loss.set_xlabel("round")
    by_loss.set_ylabel("training loss, nats")
    for axes in (by_round, by_loss, by_megabytes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    save(figure, folder / "curves.png")


def partition_picture(folder: Path, prepared: Prepared) -> None:
    """partition.png: how many training and test samples of each class every agent holds."""
    agents = prepared.settings.agents
    figure = Figure(figsize=(9, min(12, 2 + 0.16 * agents)), layout="constrained")
    for axes, shares, title in zip(
        figure.subplots(1, 2), (prepared.train, prepared.tests), ("training samples", "test samples"), strict=True
    ):
        counts = class_counts(shares, prepared.dataset.classes)
        image = axes.imshow(counts, aspect="auto", cmap="Blues", vmin=0, interpolation="nearest")
        axes.set(title=title, xlabel="class", ylabel="agent")
        if prepared.dataset.classes <= MANY_CLASSES:
            axes.set_xticks(range(prepared.dataset.classes))
        if agents <= MANY_AGENTS:
            axes.set_yticks(range(agents))
        figure.colorbar(image, ax=axes, shrink=0.8, label="samples")
    save(figure, folder / "partition.png")


def topology_picture(folder: Path, adjacency: np.ndarray, accuracy: np.ndarray) -> None:
    """topology.png: the graph, its agents coloured by accuracy."""
    agents = len(adjacency)
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axes = figure.subplots()
    angles = 2 * np.pi * np.arange(agents) / agents
    positions = dict(enumerate(np.stack([np.cos(angles), np.sin(angles)], 1)))
    directed = bool((adjacency != adjacency.T).any())
    # An arrow of the picture goes from who is heard to who hears.
    kind = networkx.DiGraph if directed else networkx.Graph
    graph = networkx.from_numpy_array(adjacency.T.astype(int), create_using=kind)
    links = graph.number_of_edges()
    faint = float(np.clip(60 / max(links, 1), 0.06, 0.6))
    arrows = {"arrows": True, "arrowsize": 7} if directed else {}
    networkx.draw_networkx_edges(graph, positions, ax=axes, alpha=faint, **arrows)
    colours = np.asarray(accuracy, np.float64) * 100
    scale = matplotlib.colormaps["YlGn"]
    size = 260 if agents <= MANY_AGENTS else 60
    drawn = networkx.draw_networkx_nodes(graph, positions, ax=axes, node_color=colours, cmap=scale, node_size=size)
    if agents <= MANY_AGENTS:
        networkx.draw_networkx_labels(graph, positions, ax=axes, font_size=7)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="test accuracy, %")
    axes.set(title=f"{agents} agents, {links} {'one-way ' * directed}links", aspect="equal")
    axes.axis("off")
    save(figure, folder / "topology.png")


def sweep_picture(folder: Path, points: Sequence[tuple[str, Sequence[Sequence[dict[str, Any]]]]]) -> None:
    """curves.png of a sweep: of the best points accuracy and loss over rounds, mean of the seeds and their spread.

    `points`, best first, are their names and the rows of each seed.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    by_round, by_loss = figure.subplots(1, 2)
    for label, of_seeds in points[:MOST_CURVES]:
        for axes, key, scale in ((by_round, "accuracy_mean", 100), (by_loss, "loss", 1)):
            rounds = [row["round"] for row in of_seeds[0] if row[key] is not None]
            values = np.array([[row[key] for row in rows if row[key] is not None] for rows in of_seeds]) * scale
            axes.plot(rounds, values.mean(0), marker="o", markersize=3, label=label or "the one point")
            axes.fill_between(rounds, values.min(0), values.max(0), alpha=0.15)
    by_round.set_ylabel("test accuracy, mean of agents, %")
    by_loss.set_ylabel("training loss, nats")
    for axes in (by_round, by_loss):
        axes.set_xlabel("round")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    if points:
        figure.legend(
            *by_round.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
        )
        more = f"the best {MOST_CURVES} of {len(points)} points, " if len(points) > MOST_CURVES else ""
        figure.suptitle(f"{more}mean of {len(points[0][1])} seeds, bands from smallest to largest", fontsize=9)
    save(figure, folder / "curves.png")


def heat_maps(folder: Path, axes: Mapping[str, Sequence[Any]], results: Sequence[dict[str, Any]]) -> None:
    """heat_map_ONE_OTHER.png for every two axes of a sweep: the accuracy of the best point that has both values."""
    for one, other in itertools.combinations(axes, 2):
        best = np.full((len(axes[one]), len(axes[other])), np.nan)
        for row in results:
            if row["accuracy_mean"] is not None:
                place = axes[one].index(row[one]), axes[other].index(row[other])
                best[place] = np.nanmax([best[place], 100 * row["accuracy_mean"]])
        size = (2.2 + 0.9 * len(axes[other]), 1.6 + 0.6 * len(axes[one]))
        figure = Figure(figsize=size, layout="constrained")
        drawn = figure.subplots()
        image = drawn.imshow(np.ma.masked_invalid(best), cmap="viridis", aspect="auto")
        drawn.set_xticks(range(len(axes[other])), list(map(str, axes[other])))
        drawn.set_yticks(range(len(axes[one])), list(map(str, axes[one])))
        drawn.set(xlabel=other, ylabel=one)
        middle = np.nanmean(best) if np.isfinite(best).any() else 0
        for row_number, column in itertools.product(*map(range, best.shape)):
            value = best[row_number, column]
            words, colour = ("not finite", "black") if np.isnan(value) else (f"{value:.1f}", "white")
            colour = "black" if value > middle else colour
            drawn.text(column, row_number, words, ha="center", va="center", color=colour, fontsize=8)
        figure.colorbar(image, ax=drawn, label="accuracy, %")
        save(figure, folder / f"heat_map_{one}_{other}.png")


def slices_picture(folder: Path, names: Sequence[str], results: Sequence[dict[str, Any]]) -> None:
    """slices.png: of all points of a search, accuracy against the value of each searched setting."""
    figure = Figure(figsize=(1 + 2.8 * len(names), 3.2), layout="constrained")
    known = [row for row in results if row["accuracy_mean"] is not None]
    for axes, name in zip(np.ravel(figure.subplots(1, len(names), sharey=True)), names, strict=True):
        numbers = [row[name] for row in known if isinstance(row[name], (int, float))]
        values = numbers if len(numbers) == len(known) else [str(row[name]) for row in known]
        axes.scatter(values, [100 * row["accuracy_mean"] for row in known], s=16, alpha=0.7)
        if values is numbers and known and min(numbers) > 0 and max(numbers) > 20 * min(numbers):
            axes.set_xscale("log")
        axes.set_xlabel(name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("test accuracy, mean of agents, %")
    save(figure, folder / "slices.png")
