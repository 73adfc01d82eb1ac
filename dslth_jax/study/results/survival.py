"""Which channels lived, layer by layer: over the rounds of a run, and of its agents at the end."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dslth_jax.study.results import pictures, plots
from dslth_jax.study.results.folders import Row, Run
from dslth_jax.study.results.metrics import ALIVE
from dslth_jax.study.results.tables import table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OF_A_LAYER = [
    ("layer", "layer", "shown"),
    ("mean", "channels alive, mean of agents, %", "percent"),
    ("fewest", "fewest, %", "percent"),
    ("most", "most, %", "percent"),
]


def alive_by_round(rows: Sequence[Row]) -> pd.DataFrame:
    """The percentage of channels that live after each evaluated round, mean over agents: a column a layer, in the order
    of rows, and one of all layers. Without columns where no row says any."""
    said = [{"round": row["round"]} | shares_in(row) for row in rows]
    every = pd.DataFrame([row for row in said if len(row) > 1])
    return every.set_index("round") * 100 if len(every) else pd.DataFrame()


def shares_in(row: Row) -> dict[str, float]:
    """What a row of metrics, or of agents, says of channels: by layer, and of all layers."""
    numbers = {key: value for key, value in row.items() if type(value) in (int, float)}
    layers = {key.removeprefix(f"{ALIVE}/"): own for key, own in numbers.items() if key.startswith(f"{ALIVE}/")}
    return ({"all layers": numbers[ALIVE]} if ALIVE in numbers else {}) | layers


def draw_alive(axes: "Axes", alive: pd.DataFrame) -> None:
    """A line for each layer."""
    for place, name in enumerate(alive.columns):
        look: dict[str, Any] = plots.look_of(place, len(alive.columns))
        axes.plot(alive.index, alive[name], label=plots.shortened(str(name), 24), **look)
    axes.set(xlabel="round", ylabel="channels alive, %", ylim=(0, 102))
    axes.locator_params("x", nbins=6, integer=True)


def survival_picture(folder: Path, rows: Sequence[Row]) -> None:
    """survival.png: the same in a run folder; nothing where rows say nothing of channels."""
    alive = alive_by_round(rows)
    if alive.empty:
        return

    def draw(figure: "plots.Figure") -> None:
        axes = figure.subplots()
        draw_alive(axes, alive)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=9)

    pictures.save(folder / "survival.png", 7, 4, draw)


def charts_of_survival(run: Run) -> list[plots.Chart]:
    """The same for a page."""
    alive = alive_by_round(run.rows)
    if alive.empty:
        return []

    def draw(axes: "Axes") -> None:
        draw_alive(axes, alive)
        axes.legend(fontsize=8, ncols=2)

    label = f"Percentage of the channels of each layer of {run.name} that live, over rounds, mean of agents"
    return [plots.chart("Channels alive over rounds", label, draw, note="Mean of agents, layer by layer.")]


def table_of_layers(agents: Sequence[Row]) -> dict[str, Any] | None:
    """How many channels of each layer live in agents' models at the end; None where agents.csv does not say."""
    every = pd.DataFrame([shares_in(row) for row in agents])
    if every.empty or not len(every.columns):
        return None
    rows = [
        {"layer": str(name), "mean": own.mean(), "fewest": own.min(), "most": own.max()} for name, own in every.items()
    ]
    return table("Channels alive at the end", OF_A_LAYER, rows)
