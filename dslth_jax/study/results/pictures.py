"""The pictures of run folders and sweep folders. One that cannot be drawn or written costs a line of warning."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from dslth_jax.study.results import plots
from dslth_jax.study.results.folders import Row, replace
from dslth_jax.study.results.plots import FAINT, MOST_ROWS, Lines, Panel, best_of_pairs, numbers_of, numbers_of_seeds
from dslth_jax.study.system.console import warn

if TYPE_CHECKING:
    from dslth_jax.study.training.plan import Prepared

MOST_LINES = 8  # of a sweep's points, in one picture
MOST_NODES, MOST_LINKS = 80, 320  # of a graph that is drawn as nodes and lines


def save(path: Path, width: float, height: float, draw: Callable[..., None], *what: Any) -> None:
    """Write what `draw` draws of some things into a figure of so many inches, whole or not at all."""
    try:
        with plots.new_figure(width, height) as figure:
            draw(figure, *what)
            figure.savefig(out := io.BytesIO(), format="png", dpi=110, bbox_inches="tight", facecolor="white")
        replace(path, out.getvalue())
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warn(f"the picture {path} is left out ({reason[:200]})")


def lines_picture(
    path: Path, lines: Lines, panels: Sequence[Panel], title: str = "", chance: float | None = None
) -> None:
    """The panels side by side, of lines that are named below; `chance` is the accuracy of a guess."""

    def draw(figure: "plots.Figure") -> None:
        pictures = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(pictures, panels, strict=True):
            plots.draw_lines(axes, lines, panel)
            if chance is not None and panel.up == "accuracy":
                axes.axhline(100 * chance, color=FAINT, linestyle=":", label="a guess")
        if lines:
            figure.legend(*pictures[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
        figure.suptitle(title, fontsize=9)

    save(path, 5 * len(panels), 4 + 0.2 * (len(lines) // 3), draw)


def curves_picture(folder: Path, rows: Sequence[Row], chance: float) -> None:
    """curves.png: accuracy (mean, and from worst to best agent) and loss over rounds, and accuracy over megabytes."""
    lines = {"mean of agents; band: worst to best": numbers_of(rows)}
    panels = (Panel("round", "accuracy"), Panel("round", "loss"), Panel("megabytes", "accuracy"))
    lines_picture(folder / "curves.png", lines, panels, chance=chance)


def points_picture(folder: Path, points: Sequence[tuple[str, Sequence[Sequence[Row]]]]) -> None:
    """curves.png of a sweep: accuracy and loss of the best `points`, which are names and the rows of each seed."""
    more = f"the best {MOST_LINES} of {len(points)} points, " if len(points) > MOST_LINES else ""
    seeds = len(points[0][1]) if points else 0
    title = f"{more}mean of {seeds} seeds, bands from smallest to largest" if seeds > 1 else more.removesuffix(", ")
    lines = {name: numbers_of_seeds(members) for name, members in points[:MOST_LINES]}
    lines_picture(folder / "curves.png", lines, (Panel("round", "accuracy"), Panel("round", "loss")), title)


def partition_picture(folder: Path, prepared: "Prepared") -> None:
    """partition.png: how many training and test samples of each class every agent holds; of more than a thousand agents
    the means of some that stand beside each other."""

    def draw(figure: "plots.Figure") -> None:
        sides = {"training samples": prepared.train, "test samples": prepared.tests}
        for axes, (title, shares) in zip(figure.subplots(1, 2), sides.items(), strict=True):
            table = pd.DataFrame(prepared.held(shares), columns=[*prepared.labels])
            table = table.rename_axis(index="agent", columns="class")
            each = -(-len(table) // MOST_ROWS)
            if each > 1:
                table = table.groupby(np.arange(len(table)) // each).mean().rename_axis(f"means of {each} agents a row")
            plots.draw_heat_map(axes, table, words="samples", cmap="Blues", vmin=0, aspect="auto")
            axes.set_title(title)

    save(folder / "partition.png", 9, min(12, 2 + 0.16 * prepared.settings.agents), draw)


def topology_picture(folder: Path, adjacency: sparse.csr_array, accuracy: np.ndarray, when: str = "") -> None:
    """topology.png: who hears whom, `when` it was so if that changes, and in colours the accuracy of agents. It is a
    drawing of nodes and lines or, where so many lines would hide each other, a matrix."""
    links, agents = int(adjacency.sum()), adjacency.shape[0]
    drawing = agents <= MOST_NODES and links <= MOST_LINKS

    def draw(figure: "plots.Figure") -> None:
        axes = figure.subplots()
        (plots.draw_graph if drawing else plots.draw_matrix)(axes, adjacency, 100 * np.asarray(accuracy, float))
        axes.set_title(f"{agents:,} agents, {links:,} one-way links{when}")

    size = 5.2 if drawing else float(np.clip(0.11 * agents, 6, 11))
    save(folder / "topology.png", size + 1.3, size, draw)


def heat_maps(folder: Path, axes: Mapping[str, Sequence[Any]], results: Sequence[Row]) -> None:
    """heat_map_ONE_OTHER.png for every two axes of a sweep: the accuracy of the best point that has both values."""

    def draw(figure: "plots.Figure", table: pd.DataFrame) -> None:
        plots.draw_heat_map(figure.subplots(), table, aspect="auto")

    for one, other in itertools.combinations(axes, 2):
        table = best_of_pairs(axes, results, one, other)
        size = 2.2 + 0.9 * len(table.columns), 1.6 + 0.6 * len(table)
        save(folder / f"heat_map_{one}_{other}.png", *size, draw, table)


def slices_picture(folder: Path, axes: Mapping[str, Sequence[Any]], results: Sequence[Row]) -> None:
    """slices.png: of all points of a search, accuracy against the value of each searched setting."""
    known = [row for row in results if row["accuracy_mean"] is not None]

    def draw(figure: "plots.Figure") -> None:
        pictures = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
        for drawn, (name, values) in zip(pictures, axes.items(), strict=True):
            dots, steps = [(str(row[name]), row["accuracy_mean"]) for row in known], list(map(str, values))
            plots.draw_along(drawn, name, dots, None if plots.are_numbers(steps) else steps)

    save(folder / "slices.png", 1 + 2.8 * len(axes), 3.2, draw)
