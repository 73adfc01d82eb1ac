"""One page of HTML for a run folder, several, or the folder of a sweep: everything in one file, no network needed.

    python -m experiments.report runs/ONE runs/OTHER --out report.html

Two seconds for a run of 16 agents on two cores. Open the file in any browser, or send it; it needs nothing else.
"""

import base64
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from dslth_jax.study.results import charts, similarity
from dslth_jax.study.results.charts import Chart, Line
from dslth_jax.study.results.folders import Parser, Point, Run, Sweep, complain, is_number, mean, on_the_wire, read_all
from dslth_jax.study.results.tables import (
    EVERY_ROW,
    OF_A_POINT,
    OF_AN_AGENT,
    comparison,
    facts,
    last_row,
    shown,
    table,
    tiles,
    written,
)

MOST_AGENTS_OF_MAP = 100  # beyond it there is no heat map of agents
OF_A_SEARCH = "A dot is a point of the search."
BEST_POINTS = 5  # of a sweep, whose curves are drawn
PICTURES = {
    "partition.png": "Training and test samples of each class that every agent holds",
    "topology.png": "The graph, its agents coloured by accuracy",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (those of the process by default); returns its exit code."""
    parser = Parser("python -m experiments.report", description="A page of HTML that shows runs, in one file.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="run folders, or one folder of a sweep")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file of the page (%(default)s)")
    try:
        given = parser.parse_args(arguments)
        # Look before the work, and let nobody lose a file of another kind by a slip of the command.
        if given.out.suffix.lower() not in (".html", ".htm") or not given.out.parent.is_dir() or given.out.is_dir():
            raise ValueError(f"--out must be a file *.html in a folder that exists, got {given.out}: name another")
        write(render(read_all(given.folders)), given.out)
    except (ValueError, OSError) as error:
        return complain("report", error)
    print(f"report: {given.out}")
    return 0


def write(page: str, path: Path) -> None:
    """Write the page whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # Names of files may hold what is no text.
        partial.write_bytes(page.encode("utf-8", "replace"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def render(found: list[Run] | Sweep) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else shown(value),
    )
    environment.globals |= {"written": written, "colours": charts.COLOURS}
    view = view_of_sweep(found) if isinstance(found, Sweep) else view_of_runs(found)
    return environment.get_template("report.html.jinja").render(view)


def view_of_runs(runs: list[Run]) -> dict[str, Any]:
    """What the page says of one run or several."""
    runs = sorted(runs, key=lambda run: -(last_row(run)["accuracy_mean"] or 0))
    shared = [fact for fact in facts(runs[0].config) if all(fact in facts(run.config) for run in runs)]
    lines = [line_of_run(run) for run in runs]
    several = len(runs) > 1
    drawn = any(line.rounds for line in lines)
    return {
        "kind": "runs" if several else "run",
        "title": f"{len(runs)} runs compared" if several else runs[0].name,
        "facts": shared,
        "table": comparison(runs) if several else None,
        "tiles": [] if several else tiles(last_row(runs[0]), megabytes_sent(last_row(runs[0]))),
        "lines": lines if several else [],
        "named": charts.named(len(lines)),
        "grid": [],
        "curves": charts.curves(lines, said(lines), "worst to best agent") if drawn else [],
        "runs": [view_of_run(run, f"run-{place}", shared if several else []) for place, run in enumerate(runs, 1)],
        "missing": [],
    }


def view_of_sweep(sweep: Sweep) -> dict[str, Any]:
    """What the page says of a sweep."""
    swept = {axis: f"swept: {', '.join(values)}" for axis, values in sweep.axes.items()}
    config = sweep.config | {"settings": sweep.config["settings"] | swept}
    best = [line_of_point(point) for point in sweep.points if any(point.members)][:BEST_POINTS]
    finite = [point for point in sweep.points if point.result["accuracy_mean"] is not None]
    # A search hardly draws a number twice: a heat map over it would be empty but for a cell in each line.
    stepped = [axis for axis in sweep.axes if not is_drawn(sweep, axis)]
    pairs = list(itertools.combinations(stepped, 2)) if len(stepped) <= 3 else [tuple(stepped)[:2]]
    columns = [(axis, axis, "shown") for axis in sweep.axes] + OF_A_POINT
    rows = [point.result | point.values for point in sweep.points]
    return {
        "kind": "sweep",
        "title": f"Sweep {sweep.name}",
        "facts": [
            ("swept", "; ".join(f"{axis}: {', '.join(values)}" for axis, values in sweep.axes.items())),
            ("points", f"{len(sweep.points)}, with {len(sweep.config['members'])} members in all"),
            *facts(config),
        ],
        "table": {"caption": "Points of the grid, best first", "columns": columns, "rows": rows, "left_out": []},
        "tiles": [],
        "lines": best,
        "named": len(best),
        "curves": charts.curves(best, said(best), "lowest to highest seed") if best else [],
        "grid": [grid(sweep, finite, pair) for pair in pairs if finite]
        + [along(sweep, finite, axis) for axis in sweep.axes if finite],
        "runs": [view_of_run(run, f"run-{place}", []) for place, run in enumerate(sweep.runs, 1)],
        "missing": sweep.missing,
    }


def grid(sweep: Sweep, points: list[Point], pair: Sequence[str]) -> Chart:
    """The heat map of two axes of a sweep."""
    one, other = pair
    best: dict[tuple[str, str], float] = {}
    for point in points:
        cell = point.values[one], point.values[other]
        best[cell] = max(best.get(cell, 0), point.result["accuracy_mean"])
    rest = len(sweep.axes) > 2
    note = "Mean test accuracy, %" + (", the best along the other axes." if rest else ".")
    return charts.heat_map((one, other), (sweep.axes[one], sweep.axes[other]), best, note)


def is_drawn(sweep: Sweep, axis: str) -> bool:
    """Whether an axis is of numbers that a search has drawn."""
    return bool(sweep.config["settings"].get("search")) and all(is_number(value) for value in sweep.axes[axis])


def along(sweep: Sweep, points: list[Point], axis: str) -> Chart:
    """The dots of one axis of a sweep."""
    found = [(point.values[axis], point.result["accuracy_mean"]) for point in points]
    if is_drawn(sweep, axis):
        return charts.scatter(axis, [(float(value), accuracy) for value, accuracy in found], OF_A_SEARCH)
    if sweep.config["settings"].get("search"):
        return charts.marginal(axis, sweep.axes[axis], found, [], OF_A_SEARCH)
    note = "A dot is a point of the grid; the line joins the best."
    if len(sweep.axes) == 1:
        # With one axis there is room for every seed.
        seeds = [(point.values[axis], rows[-1]["accuracy_mean"]) for point in points for rows in point.members if rows]
        return charts.marginal(axis, sweep.axes[axis], seeds, found, "A dot is a seed; the line joins the means.")
    return charts.marginal(axis, sweep.axes[axis], found, found, note)


def said(lines: Sequence[Line]) -> str:
    """Whose curves they are, in words."""
    return lines[0].name if len(lines) == 1 else f"{len(lines)} runs"


def line_of_run(run: Run) -> Line:
    """A run's curves."""
    rows = [row for row in run.rows if row["accuracy_mean"] is not None]
    return Line(
        run.name,
        [row["round"] for row in rows],
        [row["accuracy_mean"] for row in rows],
        [row["accuracy_worst"] for row in rows],
        [row["accuracy_best"] for row in rows],
        [row["loss"] for row in rows],
        [megabytes_sent(row) for row in rows],
    )


def line_of_point(point: Point) -> Line:
    """The curves of a point of a sweep: means over its seeds."""
    name = ", ".join(f"{axis} {shown(value)}" for axis, value in point.values.items())
    by_round: dict[int, list[dict[str, Any]]] = {}
    for row in itertools.chain(*point.members):
        if row["accuracy_mean"] is not None:
            by_round.setdefault(row["round"], []).append(row)
    rows = [by_round[round] for round in sorted(by_round)]
    accuracies = [[row["accuracy_mean"] for row in same] for same in rows]
    return Line(
        name,
        sorted(by_round),
        [mean(values) for values in accuracies],
        [min(values) for values in accuracies],
        [max(values) for values in accuracies],
        [mean([row["loss"] for row in same]) for same in rows],
        [mean([megabytes_sent(row) for row in same]) for same in rows],
    )


def megabytes_sent(row: dict[str, Any]) -> float | None:
    """What was on the wire so far: masks as bitmaps, and weights."""
    bits = on_the_wire(row)
    return None if bits is None else bits / 8e6


def view_of_run(run: Run, anchor: str, told: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the page says of one run beside its curves, and beside the facts that are told already."""
    missing = list(run.missing)
    if absent := [name for name in ("agents.csv", "masks.npz", *PICTURES) if not (run.folder / name).is_file()]:
        missing.append(
            f"Not there, and so left out: {', '.join(absent)}. A run writes its last files at its end, and masks only "
            f"where the algorithm learns masks."
        )
    pictures = [(PICTURES[name], data_address(run.folder / name)) for name in PICTURES if name not in absent]
    return {
        "name": run.name,
        "anchor": anchor,
        "facts": [fact for fact in facts(run.config) if fact not in told],
        "settings": run.config["settings"],
        "agents": sorted(run.agents, key=lambda row: row["accuracy"] or 0),
        "agent_columns": OF_AN_AGENT,
        "by_agent": charts_of_agents(run),
        "pictures": pictures,
        "alike": charts_of_masks(run) if {"agents.csv", "masks.npz"}.isdisjoint(absent) else [],
        "rows": table("Every evaluated round; bits are cumulative", EVERY_ROW, run.rows),
        "missing": missing,
    }


def charts_of_agents(run: Run) -> list[Chart]:
    """The accuracy of agents, sorted, and over those of their numbers that differ."""
    agents = [row for row in run.agents if row["accuracy"] is not None]
    if not agents:
        return []
    drawn = [charts.ranked([row["accuracy"] for row in agents], run.name)]
    for key, word in (("samples", "training samples"), ("retention", "retention"), ("neighbours", "neighbours")):
        known = [row for row in agents if row[key] is not None]
        if len({row[key] for row in known}) > 1:
            drawn.append(charts.against(known, key, word, run.name))
    return drawn


def charts_of_masks(run: Run) -> list[Chart]:
    """How alike the masks of agents are."""
    similar = similarity.similarity(run.folder / "masks.npz", run.agents)
    drawn = [similarity.dots(similar, run.name)] if len(run.agents) > 1 else []
    if 1 < len(run.agents) <= MOST_AGENTS_OF_MAP:
        order = np.array(sorted(range(len(run.agents)), key=lambda agent: run.agents[agent]["classes"]))
        drawn.append(similarity.heat_map(similar, order, run.name))
    return drawn


def data_address(path: Path) -> str:
    """A picture as an address that holds it."""
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG"):
        raise ValueError(f"{path} must be a PNG picture, and is not: remove it, and the report does without")
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
