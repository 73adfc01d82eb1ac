"""One page of HTML for a run folder, several, or the folder of a sweep: `experiments.report`."""

import base64
import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from dslth_jax.study.config import command
from dslth_jax.study.results import plots, similarity, survival, tables
from dslth_jax.study.results.folders import Run, replace
from dslth_jax.study.results.plots import Chart, Lines, Panel, chart, numbers_of, numbers_of_seeds
from dslth_jax.study.results.points import Sweep, best, last_of, ranked_by, read_all
from dslth_jax.study.results.tables import facts, last_row, table
from dslth_jax.study.system import console
from dslth_jax.study.system.console import counted, shown, written
from dslth_jax.study.system.machine import expect_place

BEST_POINTS = 5  # of a sweep, whose curves are drawn
MOST_AGENTS = 256  # of a run that have a row each; of more, half as many at either end
EMPTY: dict[str, Any] = {"table": None, "last": None, "lines": [], "grid": [], "missing": []}  # of a page's parts
PICTURES = {
    "partition.png": "Training and test samples of each class that every agent holds",
    "topology.png": "The graph, its agents coloured by accuracy",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """A page of HTML that shows runs, in one file."""

    folders: tuple[Path, ...]
    """Run folders, a folder that holds some, or one folder of a sweep."""
    out: Path = Path("report.html")
    """File of the page."""


def write(settings: Report) -> str:
    """Write the page; returns where it is, in words."""
    out = settings.out
    # Check before the work, so that a slip of the command overwrites no file of another kind.
    expect_place(out, (".html", ".htm"))
    found = read_all(settings.folders)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment.finalize = lambda value: value if isinstance(value, Markup) else shown(value)
    environment.globals |= {"plots": plots, "words": console}
    view = view_of_sweep(found) if isinstance(found, Sweep) else view_of_runs(found)
    page = environment.get_template("report.html.jinja").render(view)
    replace(out, page.encode("utf-8", "replace"))
    return f"report: {out}"


def view_of_runs(runs: list[Run]) -> dict[str, Any]:
    """What the page says of one run or several."""
    key = ranked_by(map(last_row, runs))
    runs = sorted(runs, key=lambda run: -(last_row(run)[key] or 0))
    shared = [fact for fact in facts(runs[0].config) if all(fact in facts(run.config) for run in runs)]
    lines = {run.name: numbers_of(run.rows) for run in runs}
    several = len(runs) > 1
    return {
        **EMPTY,
        "kind": "runs" if several else "run",
        "title": f"{len(runs)} runs compared" if several else runs[0].name,
        "facts": shared,
        "table": tables.comparison(runs) if several else None,
        "last": None if several else last_row(runs[0]),
        "lines": [*lines] if several else [],
        "curves": curves(lines, "worst to best agent"),
        "runs": [view_of_run(run, shared if several else ()) for run in runs],
    }


def view_of_sweep(sweep: Sweep) -> dict[str, Any]:
    """What the page says of a sweep."""
    swept = {axis: f"swept: {', '.join(values)}" for axis, values in sweep.axes.items()}
    config = sweep.config | {"settings": sweep.config["settings"] | swept}
    shown_first = [point for point in sweep.points if any(point.members)][:BEST_POINTS]
    lines = {str(shown(point.values)): numbers_of_seeds(point.members) for point in shown_first}
    points = [point.result | point.values for point in sweep.points]
    columns, rows = tables.of_settings("point", {axis: axis for axis in sweep.axes}, points)
    return {
        **EMPTY,
        "kind": "sweep",
        "title": f"Sweep {sweep.name}",
        "facts": [
            ("swept", "; ".join(f"{axis}: {', '.join(values)}" for axis, values in sweep.axes.items())),
            ("points", f"{len(sweep.points)}, with {counted(len(sweep.config['members']), 'member')} in all"),
            *facts(config),
        ],
        "table": table(f"Points of the grid, {best(rows)}", [*columns, *tables.OF_A_POINT], rows),
        "lines": [*lines],
        "curves": curves(lines, "lowest to highest seed"),
        "grid": charts_of_axes(sweep),
        "runs": [view_of_run(run) for run in sweep.runs],
        "missing": sweep.missing,
    }


def curves(lines: Lines, band: str) -> list[Chart]:
    """Accuracy over rounds, loss over rounds, accuracy over megabytes, and over simulated time where there is any;
    `band` says what lies inside a band."""
    what = next(iter(lines)) if len(lines) == 1 else f"{len(lines)} runs"
    ends = [float(end) for own in lines.values() if pd.notna(end := own["megabytes"].max())]
    # Weights and masks on one axis, say: the masks would stand on top of each other.
    logarithmic = bool(ends) and min(ends) > 0 and max(ends) > plots.WIDE * min(ends)
    banded = ("Band", len(lines)) if len(lines) <= plots.BANDS else ("Band of the best", 1)
    said = "Masks entropy-coded, weights as float32" + ("; a logarithmic axis." if logarithmic else ".")
    panels = [
        (Panel("round", "accuracy"), "Accuracy over rounds", f"{banded[0]}: {band}."),
        (Panel("round", "loss"), "Loss over rounds", "Mean over agents since the evaluation before."),
        (Panel("megabytes", "accuracy", logarithmic), "Accuracy over megabytes", said),
        (
            Panel("simulated", "accuracy"),
            "Accuracy over simulated time",
            "A round ends when all is sent, or at the deadline, but not before all have computed.",
        ),
    ]
    return [
        chart(title, f"{title} of {what}; band: {band}", plots.draw_lines, lines, panel, banded[1], note=note)
        for panel, title, note in panels
        if any(own[[panel.across, panel.up]].notna().all(axis=1).any() for own in lines.values())
    ]


def charts_of_axes(sweep: Sweep) -> list[Chart]:
    """The accuracies of a sweep over its axes: heat maps of pairs of them, and dots along each."""
    points = [point for point in sweep.points if point.result["accuracy_mean"] is not None]
    rows, charts = [point.result | point.values for point in points], list[Chart]()
    searched, every = bool(sweep.config["settings"].get("search")), sweep.axes if points else {}
    drawn = [axis for axis in every if searched and plots.are_numbers(every[axis])]
    # A search hardly draws a number twice: a heat map over it would have one filled cell in each line.
    stepped = [axis for axis in every if axis not in drawn]
    note = "Mean test accuracy, %" + (", the best along the other axes." if len(every) > 2 else ".")
    for one, other in itertools.combinations(stepped if len(stepped) <= 3 else stepped[:2], 2):
        label = f"Heat map of the accuracy at every {one} and {other}"
        best = plots.best_of_pairs(every, rows, one, other)
        charts.append(chart(f"{one} and {other}", label, plots.draw_heat_map, best, aspect="auto", note=note))
    for axis in every:
        dots = joined = [(row[axis], row["accuracy_mean"]) for row in rows]
        note = "A dot is a point of the grid; the line joins the best."
        if searched:
            joined, note = [], "A dot is a point of the search."
        elif len(every) == 1:
            # With one axis there is room for every seed.
            dots = [(point.values[axis], last) for point in points for last in last_of(point.members, "accuracy_mean")]
            note = "A dot is a seed; the line joins the means."
        what = axis, dots, None if axis in drawn else every[axis], joined
        charts.append(chart(f"Accuracy along {axis}", f"Test accuracy over {axis}", plots.draw_along, *what, note=note))
    return charts


def view_of_run(run: Run, told: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """What the page says of one run, without its curves and without the facts in `told`."""
    missing = list(run.missing)
    if absent := [name for name in ("agents.csv", "masks.npz", *PICTURES) if not (run.folder / name).is_file()]:
        why = "A run writes its last files at its end, and masks only where the algorithm learns masks."
        missing.append(f"Not there, and so left out: {', '.join(absent)}. {why}")
    pictures = []
    for path in (run.folder / name for name in PICTURES if name not in absent):
        content = path.read_bytes()
        if not content.startswith(b"\x89PNG"):
            raise ValueError(f"{path} must be a PNG picture, and is not: remove it, and the report does without")
        pictures.append((PICTURES[path.name], f"data:image/png;base64,{base64.b64encode(content).decode()}"))
    agents, half = sorted(run.agents, key=lambda row: row["accuracy"] or 0), MOST_AGENTS // 2
    whose = "Agents, worst first"
    if len(agents) > MOST_AGENTS:
        whose = f"The worst {half} and the best {half} of {len(agents):,} agents, worst first; agents.csv has all"
        agents = agents[:half] + agents[-half:]
    return run._asdict() | {
        "facts": [fact for fact in facts(run.config) if fact not in told],
        "agents": agents,
        "whose": whose,
        "by_agent": charts_of_agents(run),
        "pictures": pictures,
        "alike": similarity.charts_of_masks(run) if {"agents.csv", "masks.npz"}.isdisjoint(absent) else [],
        "survival": survival.charts_of_survival(run),
        "of_layers": survival.table_of_layers(run.agents),
        "beside_mean": tables.beside_mean(run.agents, run.classes, partial(written, form="percent", unit=" %")),
        "of_classes": table("Accuracy of all agents on their test samples of a class", tables.OF_A_CLASS, run.classes),
        "of_devices": tables.table_of_devices(run.agents),
        "rows": tables.every_row(run.rows),
        "missing": missing,
    }


def charts_of_agents(run: Run) -> list[Chart]:
    """The accuracy of agents, sorted, and over those of their numbers that differ."""
    agents = [row for row in run.agents if row["accuracy"] is not None]
    if not agents:
        return []
    label = f"Test accuracy of each of {len(agents)} agents of {run.name}, sorted"
    fewer = f" {plots.MOST_ROWS:,} of {len(agents):,} agents are drawn." if len(agents) > plots.MOST_ROWS else ""
    note = f"Sorted; the dashed line is the mean.{fewer}"
    drawn = [chart("Accuracy of each agent", label, plots.draw_sorted, agents, note=note)]
    for key, word in (("samples", "training samples"), ("retention", "retention"), ("neighbours", "neighbours")):
        known = [row for row in agents if row[key] is not None]
        if len({row[key] for row in known}) > 1:
            label = f"Test accuracy of agents of {run.name} over their {word}"
            drawn.append(chart(f"Accuracy and {word}", label, plots.draw_against, known, key, word, note=fewer.strip()))
    return drawn


main = partial(command.act, Report, write)  # of a program's name, and of words
