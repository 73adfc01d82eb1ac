"""Words and tables: on the screen while a run starts and ends, and on the page of a report."""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dslth_jax.label_shares import label_skew
from dslth_jax.study.config.console import sent, shown
from dslth_jax.study.results.folders import ALIKE, METRICS, VALIDATION, Row, Run
from dslth_jax.study.results.points import SIZES, best

if TYPE_CHECKING:
    from dslth_jax.study.training.plan import Plan

Column = tuple[str, str, str]  # of a table: key, head, and how a value is written
ROWS_SHOWN = 30  # of results, on the screen; the file has all


def show(console: Console, title: str, rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> None:
    """Print a table with its cells as they are. Nothing is cut; in a log the table is as wide as its cells need."""
    table = Table(title=Text(title), show_header=bool(heads))
    cells = [list(map(Text, row)) for row in rows]
    for place, head in enumerate(heads or [""] * len(cells[0])):
        numbers = bool(heads) and any(row[place].plain[:1].isdigit() for row in cells)
        table.add_column(Text(head), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = max(console.width, console.measure(table, options=wide).maximum)
    console.print(table)


def show_population(console: Console, plan: "Plan", memory: str) -> None:
    """What starts a run, of a plan's first member: who holds what, the graph, and in words what memory it takes."""
    prepared, devices = plan.members[0], plan.mesh.devices.flat
    settings, graph = prepared.settings, prepared.graph_report
    source = settings.data_file.name if settings.data_file else settings.dataset
    shape = "x".join(map(str, prepared.train.images.shape[1:]))
    rows = [("images, network", f"{shape} (height, width, channels), {settings.model}")]
    rows += [("minibatches of", "all agents' images, a yardstick")] if settings.images == "pooled" else []
    rows += [("augmentation", str(settings.augment))] if settings.augment != "none" else []
    kinds = [(prepared.train, "training"), (prepared.tests, "test")]
    for shares, name in kinds + ([(prepared.validation, "validation")] if prepared.validation else []):
        held = prepared.held(shares)
        rows.append((f"{name} samples an agent, of {len(shares.labels):,}", span(np.asarray(shares.sizes))))
        rows.append((f"{name} classes an agent, of {prepared.classes}", span((held > 0).sum(axis=1))))
        rows.append(("share of its most frequent class", span(held.max(axis=1) / held.sum(axis=1), ".0%")))
    words = ", ".join(map(str, prepared.labels[:10])) + " ..." * bool(prepared.labels[10:])
    rows += [("classes by their labels", words)] if prepared.labels != tuple(range(prepared.classes)) else []
    rows.append(("label skew, total variation", f"{label_skew(prepared.held(prepared.train)):.2f}"))
    anew = "; of its first round:" if prepared.topology.redraw else ""
    name = Path(settings.topology).name + ", directed" * settings.directed
    name += f", {settings.link_drop:.0%} of messages lost" if settings.link_drop else ""
    several = f"{len(devices)} {devices[0].platform} devices, on each " if len(devices) > 1 else ""
    rows += [
        ("graph", f"{name}{anew}"),
        ("neighbours an agent hears", span(prepared.adjacency.sum(axis=1))),
        ("connected, spectral gap", f"{'yes' if graph.connected else 'no'}, {graph.spectral_gap:.3f}"),
        ("memory", several + memory),
    ]
    show(console, f"{settings.agents} agents on {source}", rows)


def span(values: np.ndarray, form: str = "") -> str:
    """Smallest to largest, and the mean."""
    numbers = [float(number) for number in (values.min(), values.max(), values.mean())]
    low, high, mean = (f"{x:{form or (',.0f' if x >= 100 or x == int(x) else '.1f')}}" for x in numbers)
    return low if low == high else f"{low} to {high}, mean {mean}"


def show_outcome(console: Console, row: Row, chance: float, rounds: int, compilation: float, evaluation: float) -> None:
    """What ends a run, from its last row of metrics; `chance` is the accuracy of a guess, times are seconds."""
    rows = [
        ("test accuracy, mean of agents", f"{row['accuracy_mean']:.2%}"),
        ("its standard deviation over agents", f"{row['accuracy_std']:.2%}"),
        ("chance level (the most frequent class)", f"{chance:.2%}"),
        ("worst and best agent", f"{row['accuracy_worst']:.2%}, {row['accuracy_best']:.2%}"),
    ]
    if row.get("validation_mean") is not None:
        said = f"{row['validation_mean']:.2%}, {row['validation_worst']:.2%}"
        rows.append(("validation accuracy, mean and worst agent", said))
    if row["density"] is not None:
        rows.append(("density of masks", f"{row['density']:.4f}"))
    if row["flip_rate"] is not None:
        rows.append(("mask bits the last round changed", f"{row['flip_rate']:.3%}"))
    if row["bitmap_bits"] is not None:
        every = row["coded_rounds"] == row["exchanges"]
        how = "every exchange" if every else f"{row['coded_rounds']} of {row['exchanges']} exchanges, else interpolated"
        rows.append(("sent over all links, as bitmaps", sent(row["bitmap_bits"])))
        rows.append((f"the same, entropy-coded ({how})", sent(row["coded_bits"])))
        rows.append(("the same by kept entries alone", sent(row["kept_bits"])))
    else:
        rows.append(("sent over all links, as float32", sent(row["float32_bits"])))
    rows.append(("training", f"{row['seconds']:.1f} s, {row['seconds'] / rounds:.2f} s a round"))
    rows.append(("compile time, evaluation time", f"{compilation:.1f} s, {evaluation:.1f} s"))
    show(console, f"after round {row['round']}", rows)


def show_results(console: Console, results: Sequence[Row], axes: Iterable[str], seeds: int, rounds: int) -> None:
    """The best rows of results.csv."""
    rows, validated = results[:ROWS_SHOWN], any(key in row for row in results for key in VALIDATION)
    columns = [(axis, axis, "") for axis in axes]
    columns += [("validation_mean", "validation", ".2%")] if validated else []
    columns += [("accuracy_mean", "accuracy", ".2%"), ("accuracy_std", "± over seeds", ".2%")]
    columns += [("accuracy_worst", "worst agent", ".2%"), ("density", "density", ".4f")]
    columns += [(f"{size}_mb", f"{words}, MB", ",.4g") for size, words in SIZES.items()] + [("status", "status", "")]

    def cell(value: Any, form: str) -> str:
        if not form:
            return f"{value:.5g}" if isinstance(value, float) else str(value)
        return "" if value is None else f"{value:{form}}"

    more = f", the best {len(rows)}" if len(results) > len(rows) else ""
    more += f", {best(results)}" if validated else ""
    title = f"{len(results)} points, {seeds} seeds each, after round {rounds}{more}"
    cells = ([cell(row[key], form) for key, _, form in columns] for row in rows)
    show(console, title, cells, [head for _, head, _ in columns])


def column(key: str, head: str = "") -> Column:
    """A column of numbers, in the unit that its head says."""
    head = head or METRICS.get(key, key)
    return key, head, "percent" if head.endswith("%") else "megabytes" if key.endswith("_bits") else "number"


EVERY_ROW = [column("round", "after round"), *map(column, METRICS)]
IN_DETAIL = ("accuracy_best", "flip_rate", *ALIKE, "busiest_agent_bits", "exchanges", "coded_rounds")
OUTCOME = [of_row for of_row in EVERY_ROW if of_row[0] not in IN_DETAIL]
OF_A_POINT = [column("seeds"), column("accuracy_mean"), column("accuracy_std", "std over seeds, %")]
OF_A_POINT += [column(key) for key in ("accuracy_worst", *VALIDATION, "loss", "density")]
OF_A_POINT += [column(f"{size}_mb", METRICS[f"{size}_bits"]) for size in SIZES] + [("status", "status", "shown")]


def table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """A table without empty columns of validation, of what agents have in common, or of bits, and the heads of those of
    bits that were left out."""
    rows, some = [dict.fromkeys((*VALIDATION, *ALIKE)) | row for row in rows], (*VALIDATION, *ALIKE)
    columns = [own for own in columns if own[0] not in some or any(row[own[0]] is not None for row in rows)]
    empty = [own for own in columns if own[0].endswith("_bits") and not any(row[own[0]] for row in rows)]
    kept, left_out = [own for own in columns if own not in empty], [head.removesuffix(", MB") for _, head, _ in empty]
    return {"caption": caption, "columns": kept, "rows": rows, "left_out": left_out}


def last_row(run: Run) -> Row:
    """A run's last row of metrics, or an empty row; what it lacks is None."""
    return dict.fromkeys(("round", *METRICS)) | (run.rows[-1] if run.rows else {})


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """The settings that differ between runs, and what came of them."""
    settings = [run.config["settings"] for run in runs]
    names = [name for name in dict.fromkeys(itertools.chain(*settings)) if name != "out"]
    differing = [name for name in names if len({repr(own.get(name)) for own in settings}) > 1]
    columns: list[Column] = [(name, name.replace("_", " "), "shown") for name in differing]
    rows = [{name: run.config["settings"].get(name) for name in differing} | last_row(run) for run in runs]
    outcome, which = OUTCOME, "each run's last evaluation"
    if len({row["round"] for row in rows}) == 1 and runs[0].rows:
        outcome, which = OUTCOME[1:], f"the evaluation after round {rows[0]['round']}"
    caption = f"{best(rows).capitalize()}: the settings that differ, and {which}; std: standard deviation over agents"
    return table(caption, [*columns, *outcome], rows)


def facts(config: Row) -> list[tuple[str, str]]:
    """What was run, in words; what a configuration does not say is left out."""
    get = config["settings"].get
    graph, device = (own if isinstance(own := config.get(name), dict) else {} for name in ("graph", "device"))

    def said(before: str, value: Any, behind: str = "") -> str | None:
        return None if value is None else f"{before}{shown(value)}{behind}"

    linked = {"True": "connected", "False": "not connected"}.get(str(graph.get("connected")))
    wires = [said("", graph.get("links"), " one-way links"), linked, said("spectral gap ", graph.get("spectral_gap"))]
    of_device = [said(f"{shown(device.get('count'))} \u00d7 ", device.get("kind"))]
    of_device += [said("a machine of ", device.get("cpu_cores"), " cores"), device.get("machine")]
    varied, whose = said("augmentation ", get("augment")), "of all agents" if get("images") == "pooled" else None
    seen = [whose, varied, said("validation ", get("validation") or None)]
    told: list[tuple[str, list[Any]]] = [
        ("data", [get("data_file") or get("dataset"), get("class_file") or get("partition"), *seen]),
        ("agents", [get("agents"), said("retention ", get("retention"))]),
        ("graph", [get("topology"), "directed" if get("directed") is True else None, *wires]),
        ("algorithm", [get("algorithm"), said("preset ", get("preset"))]),
        ("network", [get("model")]),
        ("step sizes", [get("lr"), said("fine-tuning ", get("fine_tune_lr")), said("by ", get("optimizer"))]),
        ("rounds", [get("rounds"), said("seed ", get("seed"))]),
        ("device", of_device if device else [config.get("device")]),
        ("versions", [config.get("versions")]),
        ("started", [config.get("started")]),
        ("command", [config.get("command")]),
    ]
    words = [(name, ", ".join(str(shown(part)) for part in parts if part is not None)) for name, parts in told]
    return [(name, sentence) for name, sentence in words if sentence]
