"""What the paper's experiments share: arms on equal terms (steps, graph, split, seeds, evaluation), a table, a figure.

An experiment is a module that names its arms and the panels of its figure. Its folder is a sweep's, with `table.md` and
`figure.png` beside: it is stopped, resumed and reported like any.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dslth_jax.study.config.hints import flag
from dslth_jax.study.config.methods import FLAGS, OF_SOME
from dslth_jax.study.config.settings import DEFAULTS, Settings
from dslth_jax.study.results import figures, folders
from dslth_jax.study.results.folders import DONE, Point, Row
from dslth_jax.study.sweeping.grid import Arms, Sweep


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """Compare methods on equal terms."""

    agents: int = 8
    """Number of agents."""
    rounds: int = 100
    """Number of rounds."""
    preset: Literal["code", "tuned"] = "tuned"
    """Bundle of switches of those arms that learn masks by scores; that of the paper takes two gradients a round."""
    lr: float | str | None = None
    """Step sizes by algorithm, dsgd=0.0125,mce-pl=0.0005@cosine for example; of those left out their default."""
    seeds: int = 3
    """Seeds of each arm: --seed and the numbers behind it."""


class Panel(NamedTuple):
    """One picture of a figure: a number of a row across, and one upwards."""

    across: Callable[[Row], float | None]
    up: Callable[[Row], float | None]
    words: tuple[str, str]  # under and beside it
    scale: str = "linear"


def megabytes(row: Row) -> float | None:
    """What was sent by a row's round, as short as the method sends it: masks entropy-coded, weights as float32."""
    bits = row["float32_bits"] if row["coded_bits"] is None else row["coded_bits"]
    return None if bits is None else bits / 8e6


def value_of(key: str, factor: float = 1) -> Callable[[Row], float | None]:
    """What a panel shows of a row: its number of this name, times a factor."""
    return lambda row: None if row[key] is None else factor * row[key]


ROUND = value_of("round")
ACCURACY = value_of("accuracy_mean", 100.0)
BY_BITS = (
    Panel(megabytes, ACCURACY, ("sent over all links, MB", "test accuracy, mean of agents, %"), "log"),
    Panel(ROUND, ACCURACY, ("round", "test accuracy, mean of agents, %")),
)


def shared_and_own(settings: Experiment, arms: Arms) -> tuple[Sweep, Arms]:
    """What all arms have in common, and what each has of its own: with its step size, those of the flags said for all
    that mean something to its algorithm. Every message of masks is really encoded, unless it is said otherwise.

    A ValueError if a flag says what the arms are there to say, or means nothing to any.
    """
    differing = {"algorithm"}.union(*arms.values())
    said = {name: getattr(settings, name) for name in DEFAULTS if getattr(settings, name) != DEFAULTS[name]}
    for name in said.keys() & differing:
        raise ValueError(f"{flag(name)} is what arms differ in, or have in common already: leave it out")
    steps = steps_of(settings.lr, {arm["algorithm"] for arm in arms.values()})
    of_some = {name: value for name, value in said.items() if name in OF_SOME - {"lr"}}
    for name in of_some.keys() - set().union(*(FLAGS[arm["algorithm"]] for arm in arms.values())):
        raise ValueError(f"{flag(name)} means nothing to any arm: leave it out")

    def own(arm: Mapping[str, Any]) -> dict[str, Any]:
        flags = {"code_every": 1, **of_some}
        step = {"lr": steps[arm["algorithm"]]} if arm["algorithm"] in steps else {}
        return {name: value for name, value in flags.items() if name in FLAGS[arm["algorithm"]]} | step | {**arm}

    common = {name: value for name, value in said.items() if name not in OF_SOME}
    return Sweep(**common, seeds=settings.seeds), {name: own(arm) for name, arm in arms.items()}


def steps_of(spelled: float | str | None, algorithms: set[str]) -> dict[str, str]:
    """Step sizes by algorithm, from the spelling of `--lr`."""
    steps = {}
    for part in str(spelled).split(",") if spelled is not None else ():
        name, equals, step = part.partition("=")
        if not (equals and step) or name not in algorithms:
            raise ValueError(
                f"--lr must be ALGORITHM=STEP,... of algorithms among {', '.join(sorted(algorithms))}, got {part!r}"
            )
        if name in steps:
            raise ValueError(f"--lr must say one step for {name}, got several: {spelled!r}")
        steps[name] = step
    return steps


def leave(path: Path, panels: Sequence[Panel]) -> None:
    """table.md and figure.png, of a sweep's folder."""
    found = folders.read(path, path.name)
    assert isinstance(found, folders.Sweep)
    (path / "table.md").write_text(table_of(found))
    picture_of(found.points, panels, path / "figure.png")
    print(f"table and figure: {path / 'table.md'}, {path / 'figure.png'}")


COLUMNS: dict[str, Callable[[Point], str]] = {
    "accuracy, %": lambda point: spread(point.result["accuracy_mean"], point.result["accuracy_std"]),
    "worst agent, %": lambda point: number(point.result["accuracy_worst"], 100, ".1f"),
    "loss": lambda point: number(point.result["loss"], 1, ".3f"),
    "density": lambda point: number(point.result["density"], 1, ".3f"),
    "kept entries, MB": lambda point: number(mean_of(point, "kept_bits"), 1 / 8e6, ",.4g"),
    "bitmaps, MB": lambda point: number(mean_of(point, "bitmap_bits"), 1 / 8e6, ",.4g"),
    "coded, MB": lambda point: number(mean_of(point, "coded_bits"), 1 / 8e6, ",.4g"),
    "float32, MB": lambda point: number(mean_of(point, "float32_bits"), 1 / 8e6, ",.4g"),
    "busiest agent, MB": lambda point: number(mean_of(point, "busiest_agent_bits"), 1 / 8e6, ",.4g"),
}


def table_of(found: folders.Sweep) -> str:
    """The table of an experiment in Markdown, arms best first, and what its numbers are."""
    lines = [
        f"`{found.config['command']}`",
        "",
        f"Seeds {', '.join(map(str, found.config['seeds']))}. Accuracy: mean of agents, mean ± standard deviation over "
        "seeds; the worst agent of any seed; of all else the mean over seeds. Megabytes: over all links and rounds, "
        "those of the busiest agent as bitmaps or floats.",
        "",
        f"| arm | {' | '.join(COLUMNS)} |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for point in found.points:
        status = "" if point.result["status"] == DONE else f" ({point.result['status']})"
        cells = [point.values["arm"] + status, *(write(point) for write in COLUMNS.values())]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def mean_of(point: Point, key: str) -> float | None:
    """A number of the last row, the mean of the seeds that stayed finite."""
    known = [rows[-1][key] for rows in point.members if rows and rows[-1][key] is not None]
    return float(np.mean(known)) if known else None


def number(value: float | None, factor: float, form: str) -> str:
    """A cell."""
    return "" if value is None else f"{factor * value:{form}}"


def spread(mean: float | None, deviation: float | None) -> str:
    """An accuracy, and its standard deviation over seeds where there are several."""
    return number(mean, 100, ".1f") + (f" \u00b1 {100 * deviation:.1f}" if deviation is not None else "")


def picture_of(points: Sequence[Point], panels: Sequence[Panel], path: Path) -> None:
    """The panels side by side, one line an arm: the mean of its seeds, and a band from smallest to largest."""
    figure = Figure(figsize=(4.2 * len(panels), 4 + 0.2 * (len(points) // 3)), layout="constrained")
    pictures = figure.subplots(1, len(panels), squeeze=False)[0]
    for number, point in enumerate(points):
        look = {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3], "marker": "o"}
        for axes, panel in zip(pictures, panels, strict=True):
            lines = [line_of(rows, panel) for rows in point.members]
            longest = max(map(len, lines), default=0)
            whole = [line for line in lines if len(line) == longest > 0]  # not of a seed that diverged
            across, up = np.moveaxis(np.array(whole) if whole else np.empty((1, 0, 2)), 2, 0)
            # Those without any numbers are named in the legend all the same.
            axes.plot(across.mean(0), up.mean(0), markersize=3, label=point.values["arm"], **look)
            axes.fill_between(across.mean(0), up.min(0), up.max(0), color=look["color"], alpha=0.15)
    for axes, panel in zip(pictures, panels, strict=True):
        axes.set(xlabel=panel.words[0], ylabel=panel.words[1], xscale=panel.scale)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(*pictures[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figures.save(figure, path)


def line_of(rows: Sequence[Row], panel: Panel) -> list[tuple[float, float]]:
    """Where one seed's rows stand in a panel, of those that have both numbers."""
    both = ((panel.across(row), panel.up(row)) for row in rows)
    return [(x, y) for x, y in both if x is not None and y is not None and (panel.scale != "log" or x > 0)]
