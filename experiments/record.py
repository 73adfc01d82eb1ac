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
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import dslth_jax
from dslth_jax import masks, memory
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
        unpacked = (masks.unpack(jnp.asarray(row), kernel.shape) for row in packed)
        arrays[name] = np.stack([np.packbits(np.asarray(mask)) for mask in unpacked])
        arrays[f"{name}.shape"] = np.array(kernel.shape)
    np.savez(folder / "masks.npz", **arrays)


def population_table(prepared: "Prepared") -> Table:
    """The table that starts a run: who holds what, training and test apart, and the graph."""
    settings, graph, dataset = prepared.settings, prepared.graph_report, prepared.dataset
    source = settings.data_file.name if settings.data_file else settings.dataset
    table = Table(title=f"{settings.agents} agents on {source}", show_header=False)
    shape = "x".join(map(str, dataset.train_images.shape[1:]))
    table.add_row("images, network", f"{shape} (height, width, channels), {settings.model}")
    sides = (
        (prepared.train, len(dataset.train_labels), "training"),
        (prepared.tests, len(dataset.test_labels), "test"),
    )
    for shares, samples, name in sides:
        held = class_counts(shares, dataset.classes)
        table.add_row(f"{name} samples an agent, of {samples:,}", span(np.asarray(shares.sizes)))
        table.add_row(f"{name} classes an agent, of {dataset.classes}", span((held > 0).sum(axis=1)))
        table.add_row("share of its most frequent class", span(held.max(axis=1) / held.sum(axis=1), ".0%"))
    anew = "; of its first round:" if prepared.topology.redraw else ""
    name = Path(settings.topology).name + (", directed" if settings.directed else "")
    table.add_row("graph", f"{name}{anew}")
    table.add_row("neighbours an agent hears", span(prepared.adjacency.sum(axis=1)))
    table.add_row("connected, spectral gap", f"{'yes' if graph.connected else 'no'}, {graph.spectral_gap:.3f}")
    devices = prepared.mesh.devices.flat
    several = f"{len(devices)} {devices[0].platform} devices, on each " if len(devices) > 1 else ""
    table.add_row("memory", several + memory.said(prepared.footprint))
    return table


def span(values: np.ndarray, form: str = "") -> str:
    """Smallest to largest, and the mean."""
    numbers = [float(number) for number in (values.min(), values.max(), values.mean())]
    low, high, mean = (f"{x:{form or (',.0f' if x >= 100 or x == int(x) else '.1f')}}" for x in numbers)
    return low if low == high else f"{low} to {high}, mean {mean}"


def class_counts(shares: Any, classes: int) -> np.ndarray:
    """How many samples of each class every agent holds: (agents, classes)."""
    own = zip(shares.indices, shares.sizes, strict=True)
    return np.stack([np.bincount(shares.labels[row[:size]], minlength=classes) for row, size in own])


def summary_table(
    row: dict[str, Any], chance: float, rounds: int, compile_seconds: float, evaluation_seconds: float
) -> Table:
    """The table that ends a run, from its last row of metrics; `chance` is the accuracy of a guess."""
    table = Table(title=f"after round {row['round']}", show_header=False)
    table.add_row("accuracy, mean of agents", f"{row['accuracy_mean']:.2%}")
    table.add_row("its standard deviation over agents", f"{row['accuracy_std']:.2%}")
    table.add_row("naming an agent's likeliest class scores", f"{chance:.2%}")
    table.add_row("worst and best agent", f"{row['accuracy_worst']:.2%}, {row['accuracy_best']:.2%}")
    table.add_row("density of masks", f"{row['density']:.4f}")
    if row["flip_rate"] is not None:
        table.add_row("mask bits the last round changed", f"{row['flip_rate']:.3%}")
    table.add_row("sent over all links, as bitmaps", sent(row["bitmap_bits"]))
    table.add_row("the same by kept entries alone", sent(row["kept_bits"]))
    table.add_row("training", f"{row['seconds']:.1f} s, {row['seconds'] / rounds:.2f} s a round")
    table.add_row("compilation, evaluation", f"{compile_seconds:.1f} s, {evaluation_seconds:.1f} s")
    return table


def megabytes(bits: int) -> float:
    """10^6 bytes."""
    return bits / 8e6


def sent(bits: int) -> str:
    """Bits as megabytes, with decimals where they are few."""
    amount = megabytes(bits)
    return f"{amount:,.0f} MB" if amount >= 100 else f"{amount:.2g} MB"
