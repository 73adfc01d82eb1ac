"""Words and tables: on the screen while a run starts and ends, and on the page of a report."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dslth_jax.label_shares import label_skew
from dslth_jax.study.results.devices import OF_DEVICES, by_device
from dslth_jax.study.results.folders import Row, Run
from dslth_jax.study.results.metrics import ALIKE, METRICS, PERHAPS, VALIDATION
from dslth_jax.study.results.points import DONE, SIZES, best
from dslth_jax.study.system.console import counted, sent, shown, written

if TYPE_CHECKING:
    from dslth_jax.study.training.history import History
    from dslth_jax.study.training.plan import Plan

Column = tuple[str, str, str]  # of a table: key, head, and how a value is written
ROWS_SHOWN = 30  # of results, on the screen; the file has all
SIDE_BY_SIDE = 3  # settings that have a column each, on a page; more of them share one


def grid(title: str, rows: Iterable[Sequence[str]], heads: Sequence[str] = (), numbers: int = 0) -> Table:
    """A table with its cells as they are, of which the first so many columns are numbers. Where it is wider than the
    terminal, or than the 80 columns of a log, long cells are folded; nothing is cut."""
    how: Any = {"box": box.SIMPLE_HEAD, "collapse_padding": True, "pad_edge": False} if heads else {"box": box.SQUARE}
    table = Table(title=Text(title), show_header=bool(heads), **how)
    cells = [list(map(Text, row)) for row in rows]
    for place, head in enumerate(heads or [""] * len(cells[0])):
        table.add_column(Text(head), justify="right" if place < numbers else "left", overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


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
    anew = "; of its first round:" if prepared.changing else ""
    name = Path(settings.topology).name + ", directed" * settings.directed
    name += f", {counted(settings.hear, 'neighbour')} heard at most" if settings.hear else ""
    name += f", {100 * settings.link_drop:.3g}% of messages lost" if settings.link_drop else ""
    gap = "not found" if graph.spectral_gap is None else f"{graph.spectral_gap:.3f}"
    several = f"{len(devices)} {devices[0].platform} devices, on each " if len(devices) > 1 else ""
    rows += [
        ("graph", f"{name}{anew}"),
        ("one-way links", f"{graph.links:,}"),
        ("neighbours an agent hears", span(prepared.adjacency.sum(axis=1))),
        ("connected, spectral gap", f"{'yes' if graph.connected else 'no'}, {gap}"),
        ("memory", several + memory),
    ]
    console.print(grid(f"{counted(settings.agents, 'agent')} on {source}", rows))


def span(values: np.ndarray, form: str = "") -> str:
    """Smallest to largest, and the mean."""
    numbers = [float(number) for number in (values.min(), values.max(), values.mean())]
    low, high, mean = (f"{x:{form or (',.0f' if x >= 100 or x == int(x) else '.1f')}}" for x in numbers)
    return low if low == high else f"{low} to {high}, mean {mean}"


def show_outcome(console: Console, history: "History", agents: Sequence[Row], compilation: float) -> None:
    """What ends a run that took so many seconds to compile; `agents` are the rows of its agents.csv."""
    row = history.rows[-1]
    rows = [
        ("test accuracy, mean of agents", f"{row['accuracy_mean']:.2%}"),
        ("worst and best agent", f"{row['accuracy_worst']:.2%}, {row['accuracy_best']:.2%}"),
        ("standard deviation over agents", f"{row['accuracy_std']:.2%}"),
        *beside_mean(agents, history.class_rows(), "{:.2%}".format),
        ("chance level (the most frequent class)", f"{history.chance:.2%}"),
    ]
    if row.get("validation_mean") is not None:
        said = f"{row['validation_mean']:.2%}, {row['validation_worst']:.2%}"
        rows.append(("validation accuracy, mean and worst agent", said))
    if row["bitmap_bits"] is not None:
        every = row["coded_rounds"] == row["exchanges"]
        how = "" if every else f" ({row['coded_rounds']} of {row['exchanges']} exchanges, else interpolated)"
        rows.append((f"sent over all links, entropy-coded{how}", sent(row["coded_bits"])))
        rows.append(("the same as bitmaps", sent(row["bitmap_bits"])))
        rows.append(("the same by kept entries alone", sent(row["kept_bits"])))
    else:
        rows.append(("sent over all links, as float32", sent(row["float32_bits"])))
    if row["density"] is not None:
        rows.append(("density of masks", f"{row['density']:.4f}"))
    if row["flip_rate"] is not None:
        rows.append(("mask bits that differ from the mask sent last", f"{row['flip_rate']:.3%}"))
    if isinstance(history.positions, str):
        rows.append(("multiply-adds", history.positions))
    elif agents[0]["multiply_adds"] != "":
        work = np.array([own["multiply_adds"] for own in agents]) / 1e6
        rows.append(("multiply-adds a sample, millions", span(work, ".3g")))
    rounds, evaluation = history.prepared.course.rounds, history.evaluation_seconds
    rows.append(("training", f"{row['seconds']:.1f} s, {row['seconds'] / rounds:.2f} s a round"))
    rows.append(("compile time, evaluation time", f"{compilation:.1f} s, {evaluation:.1f} s"))
    console.print(grid(f"after round {row['round']}", rows))
    if classes := table_of_devices(agents):
        heads = [head.replace(", ", "\n") for _, head, _ in classes["columns"]]
        cells = [[written(own[key], form) for key, _, form in classes["columns"]] for own in classes["rows"]]
        console.print(grid(classes["caption"], cells, heads, len(heads)))


def table_of_devices(agents: Sequence[Row]) -> dict[str, Any] | None:
    """What agents of each retention and depth came to, from the rows of agents.csv; None where all are of one class."""
    rows = by_device(agents)
    columns = [own for own in OF_DEVICES if any(row[own[0]] is not None for row in rows)]
    return table("By class of device, that is by retention and depth", columns, rows) if rows else None


def beside_mean(
    agents: Sequence[Row], classes: Sequence[Row], percent: Callable[[float], str]
) -> list[tuple[str, str]]:
    """What the mean over agents leaves open, in words, from the rows of agents.csv and classes.csv, as far as a run has
    them: the accuracy of agents with more samples, and of classes. `percent` spells a share."""
    said = list[tuple[str, str]]()
    if known := [row for row in agents if row["accuracy"] is not None and row["samples"]]:
        accuracies, samples = ([row[key] for row in known] for key in ("accuracy", "samples"))
        said.append(("mean weighted by training samples", percent(np.average(accuracies, weights=samples))))
    if balanced := [own for row in agents if (own := row.get("balanced_accuracy")) is not None]:
        said.append(("balanced over an agent's classes, mean", percent(np.mean(balanced))))
    if ranked := sorted((row for row in classes if row["accuracy"] is not None), key=lambda row: row["accuracy"]):
        names = [f"{row['class']}: {percent(row['accuracy'])}" for row in (ranked[0], ranked[-1])]
        said.append(("worst and best class", ", ".join(names)))
    return said


def show_results(console: Console, results: Sequence[Row], axes: Iterable[str], seeds: int, rounds: int) -> None:
    """The best rows of results.csv: what came, then of what. What no row has, such as megabytes of weights where masks
    are sent, is no column."""
    rows, validated = results[:ROWS_SHOWN], any(key in row for row in results for key in VALIDATION)
    heads = {"validation_mean": "valid.\n%"} if validated else {}
    heads |= {"accuracy_mean": "accuracy\n%", "accuracy_std": "std\n%", "accuracy_worst": "worst\n%"}
    heads |= {f"{size}_mb": f"{words}\nMB" for size, words in SIZES.items()} | {"density": "density"}
    nothing = {key: (None, 0) if key.endswith("_mb") else (None,) for key in heads}
    heads = {key: head for key, head in heads.items() if any(row[key] not in nothing[key] for row in rows)}
    done = all(row["status"] == DONE for row in rows)
    words = [*axes, *([] if done else ["status"])]

    def number(row: Row, key: str) -> str:
        if row[key] is None:
            return ""
        return f"{100 * row[key]:.2f}" if heads[key].endswith("%") else f"{row[key]:,.4g}"

    def word(row: Row, key: str) -> str:
        return f"{row[key]:.5g}" if isinstance(row[key], float) else str(row[key])

    def table(said: Sequence[str], cells: Callable[[Row], list[str]]) -> Table:
        drawn = ([*(number(row, key) for key in heads), *cells(row)] for row in rows)
        return grid(title, drawn, [*heads.values(), *said], len(heads))

    more = f", the best {len(rows)}" if len(results) > len(rows) else ""
    more += f", {best(results)}" if validated else ""
    points = f"{counted(len(results), 'point')}{', done' * done}, {counted(seeds, 'seed')} each"
    title = f"{points}, after round {rounds}{more}"
    wide = table(words, lambda row: [word(row, key) for key in words])
    # Where there is no room, all axes share a column, whose words are folded.
    folded = table(["point"], lambda row: [" ".join(f"{key}={word(row, key)}" for key in words)])
    fits = console.measure(wide, options=console.options.update(max_width=1000)).maximum <= console.width
    console.print(wide if fits else folded)


def column(key: str, head: str = "") -> Column:
    """A column of numbers, in the unit that its head says."""
    head = head or METRICS.get(key, key)
    return key, head, "percent" if head.endswith("%") else "megabytes" if key.endswith("_bits") else "number"


# Of every row of metrics, in tables that a page has room for.
MASKS = ("density", "flip_rate", *ALIKE)
SENT = ("coded_bits", "float32_bits", "bitmap_bits", "kept_bits", "busiest_agent_bits", "exchanges", "coded_rounds")
EVERY_ROW = {
    "Accuracy and time": [key for key in METRICS if key not in (*MASKS, *SENT)],
    "Masks": MASKS,
    "Sent over all links so far": SENT,
}
FIRST = [column("accuracy_mean"), column("accuracy_worst"), column("sent_bits", "sent, MB"), *map(column, VALIDATION)]
OF_A_POINT = [*FIRST[:2], *(column(f"{size}_mb", METRICS[f"{size}_bits"]) for size in ("coded", "float32"))]
OF_A_POINT += [*map(column, VALIDATION), column("accuracy_std", "std over seeds, %"), column("seeds")]
OF_A_POINT += [column("loss"), column("density"), column("bitmap_mb", METRICS["bitmap_bits"])]
OF_A_POINT += [("status", "status", "shown")]
OF_A_CLASS = [("class", "class", "shown"), column("accuracy", "test accuracy, %"), column("agents", "agents with it")]
OF_A_CLASS += [column("samples", "training samples"), column("test_samples", "test samples")]


def table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """A table without empty columns of what rows may lack, or of bits, and the heads of those of bits that were left
    out."""
    rows = [dict.fromkeys(PERHAPS) | row for row in rows]
    columns = [own for own in columns if own[0] not in PERHAPS or any(row[own[0]] is not None for row in rows)]
    empty = [own for own in columns if own[0].endswith(("_bits", "_mb")) and not any(row[own[0]] for row in rows)]
    kept, left_out = [own for own in columns if own not in empty], [head.removesuffix(", MB") for _, head, _ in empty]
    return {"caption": caption, "columns": kept, "rows": rows, "left_out": left_out}


def every_row(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Tables of all rows of metrics; one without any numbers is left out."""
    known = {
        own: keys for own, keys in EVERY_ROW.items() if any(row.get(key) is not None for row in rows for key in keys)
    }
    round = column("round", "after round")
    return [table(caption, [round, *map(column, keys)], rows) for caption, keys in known.items()]


def last_row(run: Run) -> Row:
    """A run's last row of metrics, or an empty row; what it lacks is None."""
    return dict.fromkeys(("round", *METRICS)) | (run.rows[-1] if run.rows else {})


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """What came of runs, and the settings that differ between them."""
    settings = [run.config["settings"] for run in runs]
    names = [name for name in dict.fromkeys(itertools.chain(*settings)) if name != "out"]
    differing = [name for name in names if len({repr(own.get(name)) for own in settings}) > 1]
    rows = [{name: run.config["settings"].get(name) for name in differing} | last_row(run) for run in runs]
    # Bits as in the charts: of masks entropy-coded, of weights as float32.
    rows = [
        row | {"sent_bits": row["float32_bits"] if row["coded_bits"] is None else row["coded_bits"]} for row in rows
    ]
    rounds = {row["round"] for row in rows}
    which = (
        f"the evaluation after round {rows[0]['round']}" if len(rounds) == 1 and runs[0].rows else "the last evaluation"
    )
    caption = (
        f"{best(rows).capitalize()}: {which}, and the settings that differ; masks entropy-coded, weights as float32"
    )
    columns, rows = of_settings("settings that differ", {name: name.replace("_", " ") for name in differing}, rows)
    return table(caption, [*FIRST, *columns], rows)


def of_settings(together: str, heads: Mapping[str, str], rows: Sequence[Row]) -> tuple[list[Column], list[Row]]:
    """Columns of settings and the rows that have them or, for more settings than a page has room for, a column for all
    of them `together`."""
    if len(heads) <= SIDE_BY_SIDE:
        return [(name, head, "shown") for name, head in heads.items()], [*rows]
    rows = [row | {together: {head: row[name] for name, head in heads.items()}} for row in rows]
    return [(together, together, "shown")], rows


def facts(config: Row) -> list[tuple[str, str]]:
    """What was run, in words; what a configuration does not say is left out."""
    get = config["settings"].get
    graph, device = (own if isinstance(own := config.get(name), dict) else {} for name in ("graph", "device"))

    def said(before: str, value: Any, behind: str = "") -> str | None:
        return None if value is None else f"{before}{shown(value)}{behind}"

    linked = {"True": "connected", "False": "not connected"}.get(str(graph.get("connected")))
    wires = [said("", graph.get("links"), " one-way links"), linked, said("spectral gap ", graph.get("spectral_gap"))]
    wires = [said("neighbours heard at most ", get("hear")), *wires]
    of_device = [said(f"{shown(device.get('count'))} \u00d7 ", device.get("kind"))]
    of_device += [said("a machine of ", device.get("cpu_cores"), " cores"), device.get("machine")]
    varied, whose = said("augmentation ", get("augment")), "of all agents" if get("images") == "pooled" else None
    seen = [whose, varied, said("validation ", get("validation") or None)]
    policy = None if get("retention_policy") in (None, "fixed-linear") else f"policy {get('retention_policy')}"
    unusual = {"width": (None, 1.0), "depth": (None,), "exits": (None, "last")}
    network = [get("model"), *(said(f"{key} ", get(key)) for key, usual in unusual.items() if get(key) not in usual)]
    of_time = own if isinstance(own := config.get("simulated_time"), list) else []
    of_time = [said("bandwidth ", get("bandwidth")), said("controller ", get("controller")), *of_time]
    ternary = "ternary masks" if get("mask") == "ternary" else None
    told: list[tuple[str, list[Any]]] = [
        ("data", [get("data_file") or get("dataset"), get("class_file") or get("partition"), *seen]),
        ("agents", [get("agents"), said("retention ", get("retention")), policy]),
        ("graph", [get("topology"), "directed" if get("directed") is True else None, *wires]),
        ("algorithm", [get("algorithm"), said("preset ", get("preset")), ternary]),
        ("network", network),
        ("step sizes", [get("lr"), said("fine-tuning ", get("fine_tune_lr")), said("by ", get("optimizer"))]),
        ("simulated time", of_time),
        ("rounds", [get("rounds"), said("seed ", get("seed"))]),
        ("device", of_device if device else [config.get("device")]),
        ("versions", [config.get("versions")]),
        ("started", [config.get("started")]),
        ("command", [config.get("command")]),
    ]
    words = [(name, ", ".join(str(shown(part)) for part in parts if part is not None)) for name, parts in told]
    return [(name, sentence) for name, sentence in words if sentence]
