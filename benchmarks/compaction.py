"""What compaction saves: a network whole, masked, and cut to what the mask leaves of it.

    python -m benchmarks.compaction [--model alexnet] [--dead 0.5] [--retention 0.3] [--round-to 1] [--batch 1 128]
    python -m benchmarks.compaction --run runs/mine [--agent 0]

Of random weights, the first takes a mask that keeps a share of all entries (unstructured), and one that keeps the same
share of channels that are not dead, whole filters being dead. The second takes an agent's mask of a finished run. Times
are medians of many forward passes on the device and threads that are said. The forms take turns, pass after pass, so
that a busy machine is as busy for all.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, matmul_rate
from dslth_jax.algorithm import by_name, with_names
from dslth_jax.compaction import compact
from dslth_jax.keys import key_of
from dslth_jax.networks.cost import multiply_adds, positions_of, sizes_of
from dslth_jax.networks.network import Network
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.study.results.models import load

IMAGES, CLASSES = (32, 32, 3), 10


class Form(NamedTuple):
    """A network, an agent's variables in it, and the images that it takes."""

    network: Network
    variables: Any
    image_shape: tuple[int, int, int]


def in_jax(form: Form, batch: int) -> Callable[[], Any]:
    """A forward pass compiled by JAX."""
    images = random_images(batch, form.image_shape)
    compiled = jax.jit(form.network.apply).lower(form.variables, images).compile()
    return lambda: jax.block_until_ready(compiled(form.variables, images))


# What makes a network ready to run in each runtime: of a form and a batch, a forward pass that waits for its end.
RUNTIMES: dict[str, Callable[[Form, int], Callable[[], Any]]] = {"JAX": in_jax}


def times_in_turn(runs: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Milliseconds of each pass of each, after one to warm up; they take turns."""
    milliseconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(1 + repeats):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:
                milliseconds[name].append(1e3 * (time.perf_counter() - began))
    return milliseconds


def random_images(batch: int, image_shape: tuple[int, int, int]) -> jax.Array:
    """Pixels of no meaning: no form is faster by what it sees."""
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (batch, *image_shape), np.uint8))


def random_mask(weights: Any, roles: Any, heads: tuple[str, ...], dead: float, retention: float, seed: int = 0) -> Any:
    """A mask that keeps such a share of the entries of channels that live; a share of all channels is dead, but none of
    the logits', and depthwise kernels are kept whole where they live."""
    rng = np.random.default_rng(seed)

    def of_layer(name: str, leaf: jax.Array) -> np.ndarray:
        channels = leaf.shape[-1]
        kept = rng.random(leaf.shape) < (1 if roles[name] == "depthwise" else retention)
        if name.rpartition("/")[0] not in heads:
            kept[..., rng.permutation(channels)[: int(dead * channels)]] = False
        return kept.astype(leaf.dtype)

    return with_names(of_layer, weights)


def random_forms(model: str, dead: float, retention: float, round_to: int) -> dict[str, Form]:
    """The forms of a network of random weights."""
    network = network_by_name(model, IMAGES, CLASSES)
    weights, frozen = jax.jit(network.init)(key_of(0))

    def masked_by(share: float) -> Form:
        mask = random_mask(weights, network.roles, network.heads, share, retention)
        return Form(network, {"params": jax.tree.map(jnp.multiply, weights, mask), "frozen": frozen}, IMAGES)

    masked, alone = masked_by(dead), masked_by(0.0)
    whole = Form(network, {"params": weights, "frozen": frozen}, IMAGES)
    return {
        "dense": whole,
        "masked, unstructured": alone,
        "its compact": compacted(alone, round_to),
        f"masked, {dead:.0%} of channels dead": masked,
        "the compact": compacted(masked, round_to),
    }


def forms_of_run(folder: Path, agent: int, round_to: int) -> dict[str, Form]:
    """The forms of an agent of a finished run."""
    models = load(folder)
    model, world = models.agent(agent), models.world
    masked = Form(models.network, model.variables, models.image_shape)
    return {
        "dense": masked._replace(variables={"params": world.weights, "frozen": world.frozen}),
        "masked": masked,
        "compact": compacted(masked, round_to),
    }


def compacted(form: Form, round_to: int) -> Form:
    """The smaller network, tried: its logits must be those of the masked one."""
    smaller = compact(form.network, form.variables, round_to=round_to)
    found = form._replace(network=smaller.network, variables=jax.tree.map(jnp.asarray, smaller.variables))
    images = random_images(8, form.image_shape)
    logits, expected = (jax.jit(own.network.apply)(own.variables, images) for own in (found, form))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * float(jnp.abs(expected).max()))
    return found


def sizes(form: Form) -> dict[str, Any]:
    """The sizes of one form. Its multiply-adds are those that are computed: zeros cost what others cost."""
    positions = positions_of(form.network, form.image_shape)
    kept = {name: int(np.count_nonzero(leaf)) for name, leaf in by_name(form.variables["params"]).items()}
    parameters = sum(leaf.size for leaf in jax.tree.leaves(form.variables))
    return {
        "parameters": parameters,
        "kept_weights": sum(kept.values()),
        "float32_bytes": 4 * parameters,
        "multiply_adds": int(multiply_adds(positions, sizes_of(form.variables["params"]))),
        "multiply_adds_of_kept": int(multiply_adds(positions, kept)),
    }


def measured(forms: Mapping[str, Form], batches: Sequence[int], repeats: int) -> dict[str, dict[str, Any]]:
    """The figures of all forms; the larger the batch, the fewer passes, but at least three."""
    rows: dict[str, dict[str, Any]] = {
        name: {**sizes(form), "milliseconds": {}, "fastest_milliseconds": {}} for name, form in forms.items()
    }
    for runtime, prepare in RUNTIMES.items():
        for batch in batches:
            runs = {name: prepare(form, batch) for name, form in forms.items()}
            for name, own in times_in_turn(runs, max(3, repeats // max(1, batch // 16))).items():
                rows[name]["milliseconds"][f"{runtime}, batch {batch}"] = statistics.median(own)
                rows[name]["fastest_milliseconds"][f"{runtime}, batch {batch}"] = min(own)
    return rows


def share(word: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := float(word)) <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got {word}")
    return number


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet", choices=sorted(MODULES))
    parser.add_argument("--dead", type=share, default=0.5, help="share of each layer's channels")
    parser.add_argument("--retention", type=share, default=0.3, help="share of entries kept of a live channel")
    parser.add_argument("--round-to", type=int, default=1, help="channels of a layer are a multiple of this")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--repeats", type=int, default=80, help="forward passes; fewer of large batches")
    parser.add_argument("--run", type=Path, help="the folder of a finished run, instead of random masks")
    parser.add_argument("--agent", type=int, default=0, help="of that run, counted from 0")
    flags = parser.parse_args()
    try:
        if flags.run is None:
            forms = random_forms(flags.model, flags.dead, flags.retention, flags.round_to)
        else:
            forms = forms_of_run(flags.run, flags.agent, flags.round_to)
    except ValueError as error:
        parser.error(str(error))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{conditions()}; {threads} threads, float32 matmul {matmul_rate() / 1e9:.0f} GF/s")
    rows = measured(forms, flags.batch, flags.repeats)
    columns = [*next(iter(rows.values()))["milliseconds"]]
    of_times = (f"{name}: median, fastest ms" for name in columns)
    table = Table("form", "parameters", "kept", "MB", "multiply-adds", "of kept", *of_times)
    for name, row in rows.items():
        numbers = (f"{row[key] / 1e6:.3f} M" for key in ("parameters", "kept_weights"))
        work = (f"{row[key] / 1e6:.2f} M" for key in ("multiply_adds", "multiply_adds_of_kept"))
        times = (f"{row['milliseconds'][own]:.2f}, {row['fastest_milliseconds'][own]:.2f}" for own in columns)
        table.add_row(name, *numbers, f"{row['float32_bytes'] / 1e6:.2f}", *work, *times)
    Console().print(table)
    print(
        f"Runtimes: {', '.join(RUNTIMES)}. A mask alone makes nothing faster: zeros are multiplied like other numbers."
    )
    print(json.dumps({"threads": threads, "round_to": flags.round_to, "rows": rows}))


if __name__ == "__main__":
    main()
