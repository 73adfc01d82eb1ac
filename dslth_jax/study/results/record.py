"""The run folder: every file that a run leaves, and the words of its table."""

import csv
import datetime
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import dslth_jax
from dslth_jax import masks
from dslth_jax.study.config.hints import flag
from dslth_jax.study.config.settings import OF_THE_MACHINE, PACKAGES, Settings
from dslth_jax.study.training import memory
from dslth_jax.study.training.checkpoint import Found
from dslth_jax.study.training.plan import Plan, Prepared, as_json, class_counts
from dslth_jax.study.training.progress import sent

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class Folder(NamedTuple):
    """A run folder that no other process works in, for as long as this one lives."""

    path: Path
    lock: int | None  # what holds it: the open folder; None where the system has no such locks
    finished: str  # what to say of a run that was finished before, else empty


def open_folder(settings: Settings) -> Folder:
    """`--out`, or a fresh dated folder under runs/; made only once everything that can be checked has been.

    A ValueError where it cannot be written to, another process is at work in it, or, to be resumed, it holds a run of
    other settings.
    """
    path = settings.out or fresh_folder(settings, settings.algorithm)

    def expect(config: dict[str, Any]) -> None:
        if "kind" in config:
            raise ValueError(f"the run folder {path} holds a {config['kind']}, no single run: name another --out")
        expect_same(settings, config["settings"], f"the run in {path}")

    return claim(path, settings.resume, expect)


def fresh_folder(settings: Settings, what: str) -> Path:
    """A name under runs/ that says when, on which data, and what."""
    name = settings.data_file.stem if settings.data_file else settings.dataset
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path("runs") / f"{stamp}_{name}_{what}_{os.getpid()}"


def claim(path: Path, resume: bool, expect: Callable[[dict[str, Any]], None]) -> Folder:
    """Make a folder this process's own: a new one, or to be resumed one whose config.json is as expected."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
    except OSError as error:
        raise ValueError(f"the run folder {path} cannot be written to ({error.strerror}): name another --out") from None
    folder = Folder(path, lock, "")
    try:
        config = read_config(path)
        if config is not None and not resume:
            raise ValueError(f"the run folder {path} holds a run already: name another --out, or say --resume")
        if config is not None:
            expect(config)
            if when := config.get("finished"):
                return folder._replace(finished=f"the run in {path} was finished at {when}: nothing is left to do")
        try:
            (path / "metrics.jsonl").touch()
        except OSError as error:
            raise ValueError(
                f"the run folder {path} cannot be written to ({error.strerror}): name another --out"
            ) from None
    except BaseException:
        close(folder)
        raise
    return folder


def _lock(path: Path) -> int | None:
    """Hold the folder itself: the system lets go of it when this process ends, however it does."""
    if fcntl is None:
        return None
    opened = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(f"another process is at work in the run folder {path}: wait, or name another --out") from None
    except OSError:  # the file system has no locks
        os.close(opened)
        return None
    return opened


def close(folder: Folder | None) -> None:
    """Let others work in a folder again."""
    if folder is not None and folder.lock is not None:
        os.close(folder.lock)


def read_config(folder: Path) -> dict[str, Any] | None:
    """config.json; None where there is none, a ValueError where it is of no run."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config["settings"], dict):
            raise TypeError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{folder / 'config.json'} must be the configuration of a run, and is none that can be read: "
            f"name another --out"
        ) from None
    return config


def expect_same(settings: Settings, other: dict[str, Any], whose: str) -> None:
    """Raise a ValueError that names every field in which settings as config.json has them differ."""
    own = as_json(settings)
    differing = [
        f"{flag(name)} was {other.get(name)} and is {own[name]}"
        for name in own
        if name not in OF_THE_MACHINE and other.get(name) != own[name]
    ]
    if differing:
        raise ValueError(f"{whose} has other settings: {'; '.join(differing)}: say the same, or name another --out")


def write_config(folder: Path, prepared: Prepared, plan: Plan, found: Found | None = None) -> None:
    """config.json of a run: every setting as resolved, the graph, versions, device, seed and command; and of one
    that goes on, since which rounds it did."""
    settings = prepared.settings
    # Whoever runs these settings again starts anew.
    resolved = {"agent_chunk": plan.chunk, "devices": plan.mesh.size, "out": folder.resolve(), "resume": False}
    config = {
        "settings": {**as_json(settings), **resolved},
        "graph": prepared.graph_report._asdict(),
        "seed": settings.seed,
        **circumstances(),
    }
    earlier = read_config(folder)
    if earlier and found:
        again = {"from_round": found.round, **{name: config[name] for name in ("command", "started")}}
        config |= {name: earlier[name] for name in ("command", "started")}
        config["resumed"] = [*earlier.get("resumed", []), again]
    replace(folder / "config.json", json.dumps(config, indent=2, default=str) + "\n")


def circumstances() -> dict[str, Any]:
    """How, when, on what and with what versions a command runs."""
    device = jax.devices()[0]
    return {
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "started": now(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "machine": platform.platform(),
            "cpu_cores": os.cpu_count(),
        },
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of Python, this library, and those it computes with."""
    own = {"python": platform.python_version(), "dslth_jax": dslth_jax.__version__}
    return own | {package: importlib.metadata.version(package) for package in PACKAGES}


def now() -> str:
    """The time, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def finish(folder: Path) -> None:
    """Say in config.json that a run, or a sweep, has nothing left to do."""
    config = read_config(folder)
    replace(folder / "config.json", json.dumps({**(config or {}), "finished": now()}, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """metrics.jsonl with these rows: whole or, where it cannot be written, as it was."""
    replace(folder / "metrics.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def write_agents(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """agents.csv: one row an agent."""
    with (folder / "agents.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_masks(folder: Path, bits: Any, maskable: Any) -> None:
    """masks.npz: for each layer `numpy.packbits` of its flattened masks, (agents, bytes), and its shape."""
    arrays: dict[str, Any] = {}
    for (path, packed), kernel in zip(
        jax.tree_util.tree_leaves_with_path(bits), jax.tree.leaves(maskable), strict=True
    ):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        # Users of the file expect numpy's order of bits, not the one that the exchange is fast with.
        unpacked = (masks.unpack(jnp.asarray(row), kernel.shape) for row in packed)
        arrays[name] = np.stack([np.packbits(np.asarray(mask)) for mask in unpacked])
        arrays[f"{name}.shape"] = np.array(kernel.shape)
    np.savez(folder / "masks.npz", **arrays)


def population_table(plan: Plan) -> Table:
    """The table that starts a run: who holds what, training and test apart, and the graph; of a plan's first member."""
    prepared = plan.members[0]
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
    devices = plan.mesh.devices.flat
    several = f"{len(devices)} {devices[0].platform} devices, on each " if len(devices) > 1 else ""
    table.add_row("memory", several + memory.said(plan.footprint))
    return table


def span(values: np.ndarray, form: str = "") -> str:
    """Smallest to largest, and the mean."""
    numbers = [float(number) for number in (values.min(), values.max(), values.mean())]
    low, high, mean = (f"{x:{form or (',.0f' if x >= 100 or x == int(x) else '.1f')}}" for x in numbers)
    return low if low == high else f"{low} to {high}, mean {mean}"


def summary_table(
    row: dict[str, Any], chance: float, rounds: int, compile_seconds: float, evaluation_seconds: float
) -> Table:
    """The table that ends a run, from its last row of metrics; `chance` is the accuracy of a guess."""
    table = Table(title=f"after round {row['round']}", show_header=False)
    table.add_row("accuracy, mean of agents", f"{row['accuracy_mean']:.2%}")
    table.add_row("its standard deviation over agents", f"{row['accuracy_std']:.2%}")
    table.add_row("naming an agent's likeliest class scores", f"{chance:.2%}")
    table.add_row("worst and best agent", f"{row['accuracy_worst']:.2%}, {row['accuracy_best']:.2%}")
    if row["density"] is not None:
        table.add_row("density of masks", f"{row['density']:.4f}")
    if row["flip_rate"] is not None:
        table.add_row("mask bits the last round changed", f"{row['flip_rate']:.3%}")
    if row["bitmap_bits"] is not None:
        table.add_row("sent over all links, as bitmaps", sent(row["bitmap_bits"]))
        table.add_row(f"the same, entropy-coded ({how_coded(row)})", sent(row["coded_bits"]))
        table.add_row("the same by kept entries alone", sent(row["kept_bits"]))
    else:
        table.add_row("sent over all links, as float32", sent(row["float32_bits"]))
    table.add_row("training", f"{row['seconds']:.1f} s, {row['seconds'] / rounds:.2f} s a round")
    table.add_row("compilation, evaluation", f"{compile_seconds:.1f} s, {evaluation_seconds:.1f} s")
    return table


def how_coded(row: dict[str, Any]) -> str:
    """How many of the exchanges until a row were really encoded."""
    every = row["coded_rounds"] == row["exchanges"]
    return "every exchange" if every else f"{row['coded_rounds']} of {row['exchanges']} exchanges, else interpolated"
