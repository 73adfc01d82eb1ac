"""What the paper's experiments share: arms on equal terms (steps, graph, split, seeds, evaluation), a table, a figure.

An experiment is a module that names its arms and the panels of its figure. Its folder is a sweep's, with `table.md` and
`figure.png` beside: it is stopped, resumed and reported like any.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from matplotlib.figure import Figure

from experiments import command, figures, folders
from experiments.folders import Point, Row
from experiments.settings import Settings
from experiments.stopping import Stop
from experiments.study import Ready, Sweep
from experiments.sweep import Arms, conduct, ready, train


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """Compare methods on equal terms."""

    agents: int = 8
    """Number of agents."""
    rounds: int = 100
    """Number of rounds."""
    preset: Literal["code", "paper", "tuned"] = "tuned"
    """Bundle of switches of those arms that learn masks by scores."""
    seeds: int = 3
    """Seeds of each arm: --seed and the numbers behind it."""


class Panel(NamedTuple):
    """One picture of a figure: a number of a row across, and one upwards."""

    across: Callable[[Row], float | None]
    up: Callable[[Row], float | None]
    words: tuple[str, str]  # under and beside it
    scale: str = "linear"


Kind = TypeVar("Kind", bound=Experiment)


def megabytes(row: Row) -> float | None:
    """What was sent by a row's round, as short as the method sends it: masks entropy-coded, weights as float32."""
    bits = row["float32_bits"] if row["coded_bits"] is None else row["coded_bits"]
    return None if bits is None else bits / 8e6


def value_of(key: str, factor: float = 1) -> Callable[[Row], float | None]:
    """What a panel shows of a row: its number of this name, times a factor."""
    return lambda row: None if row[key] is None else factor * row[key]


ROUND = value_of("round")
ACCURACY = value_of("accuracy_mean", 100)


def main(
    kind: type[Kind],
    program: str,
    arms_of: Callable[[Kind], Arms],
    panels: Sequence[Panel],
    arguments: Sequence[str] | None,
    stop: Stop | None,
) -> int:
    """Run the command of an experiment; returns its exit code."""

    def begin() -> Ready:
        settings = command.parse(sys.argv[1:] if arguments is None else arguments, kind, program)
        shared = {name: getattr(settings, name) for name in (*fields_of(Settings), "seeds")}
        return ready(Sweep(**shared), arms_of(settings))

    def finish(begun: Ready) -> list[dict[str, Any]]:
        results = train(begun, stop)
        if begun.folder is not None:
            leave(begun.path, panels)
        return results

    return conduct(program, begin, finish)


def fields_of(kind: type) -> list[str]:
    """The names of a dataclass's fields."""
    return [field.name for field in dataclasses.fields(kind)]


def leave(path: Path, panels: Sequence[Panel]) -> None:
    """table.md and figure.png, of a sweep's folder."""
    found = folders.read(path, path.name)
    assert isinstance(found, folders.Sweep)
    (path / "table.md").write_text(table_of(found))
    picture_of(found.points, panels, path / "figure.png")
    print(f"table and figure: {path / 'table.md'}, {path / 'figure.png'}")


COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "accuracy, %": lambda point, _: spread(point["accuracy_mean"], point["accuracy_std"]),
    "worst agent, %": lambda point, _: number(point["accuracy_worst"], 100, ".1f"),
    "loss": lambda point, _: number(point["loss"], 1, ".3f"),
    "density": lambda point, _: number(point["density"], 1, ".3f"),
    "kept entries, MB": lambda _, row: number(row["kept_bits"], 1 / 8e6, ",.4g"),
    "bitmaps, MB": lambda point, _: number(point["bitmap_mb"], 1, ",.4g"),
    "coded, MB": lambda point, _: number(point["coded_mb"], 1, ",.4g"),
    "float32, MB": lambda point, _: number(point["float32_mb"], 1, ",.4g"),
    "busiest agent, MB": lambda _, row: number(row["busiest_agent_bits"], 1 / 8e6, ",.4g"),
}


def table_of(found: folders.Sweep) -> str:
    """The table of an experiment in Markdown: arms best first, mean and standard deviation over seeds, megabytes over
    all links; two columns are of the last seed alone."""
    lines = [f"`{found.config['command']}`", "", f"| arm | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for point in found.points:
        last = next((rows[-1] for rows in reversed(point.members) if rows), None)
        cells = [write(point.result, last) if last else "" for write in COLUMNS.values()]
        lines.append(f"| {' | '.join([point.values['arm'], *cells])} |")
    return "\n".join(lines) + "\n"


def number(value: float | None, factor: float, form: str) -> str:
    """A cell."""
    return "" if value is None else f"{factor * value:{form}}"


def spread(mean: float | None, deviation: float | None) -> str:
    """An accuracy, and its standard deviation over seeds where there are several."""
    return number(mean, 100, ".1f") + (f" \u00b1 {100 * deviation:.1f}" if deviation is not None else "")


def picture_of(points: Sequence[Point], panels: Sequence[Panel], path: Path) -> None:
    """The panels side by side, one line an arm: the mean of its seeds, and a band from smallest to largest."""
    figure = Figure(figsize=(4.2 * len(panels), 4), layout="constrained")
    pictures = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(pictures, panels, strict=True):
        for point in points:
            lines = [line_of(rows, panel) for rows in point.members]
            if lines and min(map(len, lines)) > 0 and len(set(map(len, lines))) == 1:
                across, up = np.moveaxis(np.array(lines), 2, 0)
                axes.plot(across.mean(0), up.mean(0), marker="o", markersize=3, label=point.values["arm"])
                axes.fill_between(across.mean(0), up.min(0), up.max(0), alpha=0.15)
        axes.set(xlabel=panel.words[0], ylabel=panel.words[1], xscale=panel.scale)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(*pictures[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, path)


def line_of(rows: Sequence[Row], panel: Panel) -> list[tuple[float, float]]:
    """Where one seed's rows stand in a panel, of those that have both numbers."""
    both = ((panel.across(row), panel.up(row)) for row in rows)
    return [(x, y) for x, y in both if x is not None and y is not None and (panel.scale != "log" or x > 0)]
