"""The run folder: every file that a run leaves, and the words of its table."""

import csv
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

import dslth_jax
from dslth_jax import masks
from dslth_jax.topology import GraphReport
from experiments.settings import Settings

if TYPE_CHECKING:
    from experiments.run import Prepared

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def create_folder(settings: Settings) -> Path:
    """`--out`, or a fresh dated folder under runs/; made only once everything that can be checked has been."""
    name = settings.data_file.stem if settings.data_file else settings.dataset
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = settings.out or Path("runs") / f"{stamp}_{name}_{settings.algorithm}_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Claim the folder: of two runs that were started with one, the second fails here.
        (folder / "metrics.jsonl").touch(exist_ok=False)
    except OSError as error:
        raise ValueError(
            f"the run folder {folder} cannot be written to ({error.strerror}): name another --out"
        ) from None
    return folder


def write_config(folder: Path, settings: Settings, resolved: dict[str, Any], graph: GraphReport) -> None:
    """config.json: every setting as resolved, the graph, versions, device, seed and command."""
    device = jax.devices()[0]
    config = {
        "settings": {**dataclasses.asdict(settings), **resolved, "out": folder.resolve()},
        "graph": graph._asdict(),
        "seed": settings.seed,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "machine": platform.platform(),
            "cpu_cores": os.cpu_count(),
        },
        "versions": {
            "python": platform.python_version(),
            "dslth_jax": dslth_jax.__version__,
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """One line of metrics.jsonl, on disk before the run goes on."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def write_agents(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """agents.csv: one row an agent."""
    with (folder / "agents.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_masks(folder: Path, bits: Any, weights: Any) -> None:
    """masks.npz: for each layer `numpy.packbits` of its flattened masks, (agents, bytes), and its shape."""
    arrays: dict[str, Any] = {}
    for (path, packed), kernel in zip(jax.tree_util.tree_leaves_with_path(bits), jax.tree.leaves(weights), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Users of the file expect numpy's order of bits, not the one that the exchange is fast with.
        arrays[name] = np.stack([np.packbits(np.asarray(masks.unpack(row, kernel.shape))) for row in packed])
        arrays[f"{name}.shape"] = np.array(kernel.shape)
    np.savez(folder / "masks.npz", **arrays)


def population_table(prepared: "Prepared") -> Table:
    """The table that starts a run: who holds what, training and test apart, and the graph."""
    settings, graph, dataset = prepared.settings, prepared.graph_report, prepared.dataset
    source = settings.data_file.name if settings.data_file else settings.dataset
    table = Table(title=f"{settings.agents} agents on {source}", show_header=False)
    sides = (
        (prepared.train, len(dataset.train_labels), "training"),
        (prepared.tests, len(dataset.test_labels), "test"),
    )
    for shares, samples, name in sides:
        held = class_counts(shares, dataset.classes)
        table.add_row(f"{name} samples an agent, of {samples:,}", span(np.asarray(shares.sizes)))
        table.add_row(f"{name} classes an agent, of {dataset.classes}", span((held > 0).sum(axis=1)))
        table.add_row("share of its most frequent class", span(held.max(axis=1) / held.sum(axis=1), ".0%"))
    anew = ", first of a new one every round" if prepared.topology.redraw else ""
    table.add_row("graph", f"{settings.topology}{', directed' if settings.directed else ''}{anew}")
    degrees = f"{graph.smallest_degree} to {graph.largest_degree}, mean {graph.mean_degree:.1f}"
    table.add_row("neighbours an agent hears", degrees)
    table.add_row("connected, spectral gap", f"{'yes' if graph.connected else 'no'}, {graph.spectral_gap:.3f}")
    return table


def span(values: np.ndarray, form: str = ",.4g") -> str:
    """Smallest to largest, and the mean."""
    low, high, mean = (f"{float(value):{form}}" for value in (values.min(), values.max(), values.mean()))
    return f"{low} to {high}, mean {mean}"


def class_counts(shares: Any, classes: int) -> np.ndarray:
    """How many samples of each class every agent holds: (agents, classes)."""
    own = zip(shares.indices, shares.sizes, strict=True)
    return np.stack([np.bincount(shares.labels[row[:size]], minlength=classes) for row, size in own])


def summary_table(row: dict[str, Any], rounds: int, compile_seconds: float, evaluation_seconds: float) -> Table:
    """The table that ends a run, from its last row of metrics."""
    table = Table(title=f"after round {row['round']}", show_header=False)
    table.add_row("accuracy, mean of agents", f"{row['accuracy_mean']:.2%} ± {row['accuracy_std']:.2%}")
    table.add_row("worst and best agent", f"{row['accuracy_worst']:.2%}, {row['accuracy_best']:.2%}")
    table.add_row("density of masks", f"{row['density']:.4f}")
    if row["flip_rate"] is not None:
        table.add_row("mask bits the last round changed", f"{row['flip_rate']:.3%}")
    table.add_row("sent over all links, as bitmaps", f"{megabytes(row['bitmap_bits']):,.1f} MB")
    table.add_row("the same by kept entries alone", f"{megabytes(row['kept_bits']):,.1f} MB")
    table.add_row("training", f"{row['seconds']:.1f} s, {row['seconds'] / rounds:.2f} s a round")
    table.add_row("compilation, evaluation", f"{compile_seconds:.1f} s, {evaluation_seconds:.1f} s")
    return table


def megabytes(bits: int) -> float:
    """10^6 bytes."""
    return bits / 8e6
