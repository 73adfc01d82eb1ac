"""The words and tables of a report: what was run, what came of it, and how values are written."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from dslth_jax.study.results.folders import Row, Run

# Columns of tables: key, head, and how a value is written.
Column = tuple[str, str, str]
OUTCOME: list[Column] = [
    ("round", "after round", "whole"),
    ("accuracy_mean", "mean accuracy, %", "percent"),
    ("accuracy_worst", "worst agent, %", "percent"),
    ("accuracy_std", "spread (std), %", "percent"),
    ("loss", "loss, nats", "number"),
    ("density", "density", "number"),
    ("bitmap_bits", "sent as bitmaps, MB", "megabytes"),
    ("kept_bits", "kept entries (the authors' count), MB", "megabytes"),
    ("coded_bits", "entropy-coded, MB", "megabytes"),
    ("float32_bits", "sent as float32, MB", "megabytes"),
    ("seconds", "training, s", "number"),
]
EVERY_ROW: list[Column] = [
    *OUTCOME[:3],
    ("accuracy_best", "best agent, %", "percent"),
    *OUTCOME[3:6],
    ("flip_rate", "bits changed, %", "percent"),
    *OUTCOME[6:10],
    ("busiest_agent_bits", "busiest agent, MB", "megabytes"),
    ("exchanges", "exchanges", "whole"),
    ("coded_rounds", "of them really coded", "whole"),
    OUTCOME[10],
]
OF_A_POINT: list[Column] = [
    ("seeds", "seeds", "whole"),
    ("accuracy_mean", "mean accuracy, %", "percent"),
    ("accuracy_std", "std over seeds, %", "percent"),
    ("accuracy_worst", "worst agent, %", "percent"),
    ("loss", "loss, nats", "number"),
    ("density", "density", "number"),
    ("bitmap_mb", "sent as bitmaps, MB", "number"),
    ("coded_mb", "entropy-coded, MB", "number"),
    ("float32_mb", "sent as float32, MB", "number"),
    ("status", "status", "shown"),
]
OF_AN_AGENT: list[Column] = [
    ("samples", "training samples", "whole"),
    ("test_samples", "test samples", "whole"),
    ("retention", "retention", "number"),
    ("neighbours", "neighbours", "whole"),
    ("density", "density", "number"),
]
NOTHING = "\u2013"


def shown(value: Any) -> Any:
    """A value of a file as a reader likes it; text, and what is markup already, stays as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(str(shown(part)) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items())
    return NOTHING if value in (None, "") else value


def written(value: Any, form: str, unit: str = "") -> str:
    """A number as its column writes it."""
    if value is None:
        return NOTHING
    if form == "shown":
        return str(shown(value))
    if form == "percent":
        return f"{100 * value:.1f}{unit}"
    if form == "megabytes":
        value = value / 8e6
    return f"{value:,.0f}{unit}" if form == "whole" or abs(value) >= 1000 else f"{value:.3g}{unit}"


def table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """A table without those columns of bits that nothing is in, and the heads of these."""
    kept = [column for column in columns if not column[0].endswith("_bits") or any(row[column[0]] for row in rows)]
    empty = [head.removesuffix(", MB") for key, head, form in columns if (key, head, form) not in kept]
    return {"caption": caption, "columns": kept, "rows": rows, "left_out": empty}


def last_row(run: Run) -> Row:
    """A run's last row of metrics; of nothing where there is none."""
    return run.rows[-1] if run.rows else dict.fromkeys(key for key, *_ in EVERY_ROW)


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
    caption = f"Best first: the settings that differ, and {which}; std: standard deviation over agents"
    return table(caption, [*columns, *outcome], rows)


def tiles(row: Row, megabytes: float | None) -> list[tuple[str, str]]:
    """What is said of one run in large figures, from its last row of metrics."""
    rate = row["seconds"] / row["round"] if row["round"] and row["seconds"] is not None else None
    worst, best = written(row["accuracy_worst"], "percent"), written(row["accuracy_best"], "percent", " %")
    return [
        ("mean accuracy", written(row["accuracy_mean"], "percent", " %")),
        ("worst, best agent", f"{worst}, {best}"),
        ("training loss", written(row["loss"], "number", " nats")),
        ("density of masks", written(row["density"], "number")),
        ("sent over all links", written(megabytes, "number", " MB")),
        ("training a round", written(rate, "number", " s")),
    ]


def facts(config: Row) -> list[tuple[str, str]]:
    """What was run, in words; what a configuration does not say is left out."""
    get = config["settings"].get
    graph, device, versions = (as_object(config.get(name)) for name in ("graph", "device", "versions"))

    def called(word: str, value: Any) -> str | None:
        return None if value is None else f"{word} {shown(value)}"

    told: list[tuple[str, list[Any]]] = [
        ("data", [get("data_file") or get("dataset"), get("class_file") or get("partition")]),
        ("agents", [get("agents"), called("retention", get("retention"))]),
        ("graph", [get("topology"), "directed" if get("directed") is True else None, *of_graph(graph)]),
        ("algorithm", [get("algorithm"), called("preset", get("preset"))]),
        ("network", [get("model")]),
        ("step sizes", [get("lr"), called("fine-tuning", get("fine_tune_lr")), called("by", get("optimizer"))]),
        ("rounds", [get("rounds"), called("seed", get("seed"))]),
        ("device", of_device(device) if device else [config.get("device")]),
        ("versions", [called(name, version) for name, version in versions.items()]),
        ("started", [config.get("started")]),
        ("command", [config.get("command")]),
    ]
    words = [(name, ", ".join(str(shown(part)) for part in parts if part is not None)) for name, parts in told]
    return [(name, said) for name, said in words if said]


def as_object(value: Any) -> Mapping[str, Any]:
    """A value that should be an object, or an empty one."""
    return value if isinstance(value, dict) else {}


def of_graph(graph: Mapping[str, Any]) -> list[str]:
    """What is said of a graph."""
    said = [f"{shown(graph['links'])} one-way links"] if "links" in graph else []
    if "connected" in graph:
        said.append("connected" if graph["connected"] is True else "not connected")
    gap = graph.get("spectral_gap")
    return [*said, f"spectral gap {gap:.3g}"] if isinstance(gap, float) else said


def of_device(device: Mapping[str, Any]) -> list[str]:
    """What is said of the device of a run."""
    said = [f"{shown(device.get('count'))} \u00d7 {shown(device.get('kind'))}"]
    if "cpu_cores" in device:
        said.append(f"a machine of {shown(device['cpu_cores'])} cores")
    return [*said, str(shown(device["machine"]))] if "machine" in device else said
