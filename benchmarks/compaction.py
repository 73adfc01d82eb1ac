"""What compaction saves: a network whole, masked, and cut to what the mask leaves of it.

    python -m benchmarks.compaction [--model alexnet] [--dead 0.5] [--retention 0.3] [--round-to 1] [--batch 1 128]
    python -m benchmarks.compaction --run runs/mine [--agent 0] [--runtime JAX onnxruntime]

Of random weights, the first takes a mask that keeps a share of all entries (unstructured), and one that keeps the same
share of channels that are not dead, whole filters being dead. The second takes an agent's mask of a finished run. Times
are medians of many forward passes on the device and threads that are said. The forms take turns, pass after pass, so
that a busy machine is as busy for all; runtimes go one after another, for threads of one wait actively for a while.

ONNX Runtime is measured where the extra onnx is installed: on the CPU, in this process, with as many threads as JAX may
use. Its logits must be JAX's to 1e-5, or to four times what JAX rounds them by, on real images: pieces of
photographs that scikit-learn brings. The largest difference is printed.
"""

import argparse
import functools
import json
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
from sklearn.datasets import load_sample_images

from benchmarks.measure import conditions, matmul_rate, threads
from dslth_jax.algorithm import by_name, with_names
from dslth_jax.compaction import compact
from dslth_jax.export.programs import as_onnx, expect_extra, farthest, may_be_off
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


class Ready(NamedTuple):
    """A network that is ready to run in some runtime."""

    pass_of: Callable[[np.ndarray], Callable[[], Any]]  # of images: a forward pass that waits for its end
    off: float | None = None  # the largest difference of its logits from JAX's on real images; None of JAX itself


class Runtime(NamedTuple):
    """What runs networks."""

    ready: Callable[[Form], Ready]
    needs: tuple[str, ...] = ()  # modules of the extra onnx


def in_jax(form: Form) -> Ready:
    """Forward passes compiled by JAX."""

    def pass_of(images: np.ndarray) -> Callable[[], Any]:
        pixels = jnp.asarray(images)
        compiled = jax.jit(form.network.apply).lower(form.variables, pixels).compile()
        return lambda: jax.block_until_ready(compiled(form.variables, pixels))

    return Ready(pass_of)


def in_onnxruntime(form: Form) -> Ready:
    """Forward passes of the exported model; a ValueError if its logits on real images are not those of JAX."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads(), 3
    content = as_onnx(form.network, form.variables, form.image_shape, {})
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def logits_of(images: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["logits"], {"images": images})[0])

    images = photographs(128, form.image_shape)
    wanted = np.asarray(jax.jit(form.network.apply)(form.variables, images))
    off = farthest(logits_of(images), wanted)
    if off > (allowed := may_be_off(form.network, form.variables, images, wanted, off)):
        raise ValueError(f"ONNX Runtime's logits must be JAX's to {allowed:g}, and are {off:g} off")
    return Ready(lambda images: lambda: logits_of(images), off)


RUNTIMES = {"JAX": Runtime(in_jax), "onnxruntime": Runtime(in_onnxruntime, ("jax2onnx", "onnxruntime"))}


def chosen(asked: Sequence[str] | None) -> dict[str, Runtime]:
    """The runtimes that were asked for, or all that are installed; a ValueError if one that was asked for is not."""
    found = {}
    for name in asked or RUNTIMES:
        try:
            expect_extra("onnx", *RUNTIMES[name].needs)
        except ImportError as error:
            if asked:
                raise ValueError(f"for --runtime {name} {error}") from None
            print(f"{name} is left out: {error}")
        else:
            found[name] = RUNTIMES[name]
    return found


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


def photographs(batch: int, image_shape: tuple[int, int, int]) -> np.ndarray:
    """Pieces of photographs, (batch, height, width, channels) of uint8; without colours where there is one channel."""
    rng, (height, width, channels) = np.random.default_rng(0), image_shape
    pieces = []
    for number in range(batch):
        whole = load_whole()[number % 2]
        top, left = (rng.integers(size - side + 1) for size, side in zip(whole.shape, (height, width), strict=False))
        pieces.append(whole[top : top + height, left : left + width])
    found = np.stack(pieces)
    return found if channels == 3 else found.mean(3, keepdims=True).repeat(channels, 3).astype(np.uint8)


@functools.cache
def load_whole() -> list[np.ndarray]:
    """Two photographs of 427 x 640 pixels."""
    return list(load_sample_images().images)


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
    images = photographs(8, form.image_shape)
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


def measured(
    forms: Mapping[str, Form], runtimes: Mapping[str, Runtime], batches: Sequence[int], repeats: int
) -> dict[str, dict[str, Any]]:
    """The figures of all forms; the larger the batch, the fewer passes, but at least three."""
    rows: dict[str, dict[str, Any]] = {
        name: {**sizes(form), "milliseconds": {}, "fastest_milliseconds": {}, "off": {}} for name, form in forms.items()
    }
    for runtime, kind in runtimes.items():
        ready = {name: kind.ready(form) for name, form in forms.items()}
        for name, one in ready.items():
            rows[name]["off"] |= {} if one.off is None else {runtime: one.off}
        for batch in batches:
            runs = {name: ready[name].pass_of(photographs(batch, form.image_shape)) for name, form in forms.items()}
            for name, own in times_in_turn(runs, max(3, repeats // max(1, batch // 16))).items():
                rows[name]["milliseconds"][f"{runtime}, batch {batch}"] = statistics.median(own)
                rows[name]["fastest_milliseconds"][f"{runtime}, batch {batch}"] = min(own)
    return rows


def share(word: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (number := float(word)) <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got {word}")
    return number


def positive(word: str) -> int:
    """A whole number above 0."""
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {word}")
    return number


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="alexnet", choices=sorted(MODULES))
    parser.add_argument("--dead", type=share, default=0.5, help="share of each layer's channels")
    parser.add_argument("--retention", type=share, default=0.3, help="share of entries kept of a live channel")
    parser.add_argument("--round-to", type=int, default=1, help="channels of a layer are a multiple of this")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1, 128])
    parser.add_argument("--repeats", type=positive, default=80, help="forward passes; fewer of large batches")
    parser.add_argument("--run", type=Path, help="the folder of a finished run, instead of random masks")
    parser.add_argument("--agent", type=int, default=0, help="of that run, counted from 0")
    parser.add_argument("--runtime", nargs="+", choices=[*RUNTIMES], help="all that are installed, unless said")
    flags = parser.parse_args()
    try:
        runtimes = chosen(flags.runtime)
        if flags.run is None:
            forms = random_forms(flags.model, flags.dead, flags.retention, flags.round_to)
        else:
            forms = forms_of_run(flags.run, flags.agent, flags.round_to)
        print(f"{conditions()}; {threads()} threads, float32 matmul {matmul_rate() / 1e9:.0f} GF/s")
        rows = measured(forms, runtimes, flags.batch, flags.repeats)
    except ValueError as error:
        parser.error(str(error))
    columns = [*next(iter(rows.values()))["milliseconds"]]
    of_sizes = Table("form", "parameters", "kept", "MB", "multiply-adds", "of kept")
    of_times = Table("median, fastest ms", *columns)
    for name, row in rows.items():
        numbers = (f"{row[key] / 1e6:.3f} M" for key in ("parameters", "kept_weights"))
        work = (f"{row[key] / 1e6:.2f} M" for key in ("multiply_adds", "multiply_adds_of_kept"))
        times = (f"{row['milliseconds'][own]:.2f}, {row['fastest_milliseconds'][own]:.2f}" for own in columns)
        of_sizes.add_row(name, *numbers, f"{row['float32_bytes'] / 1e6:.2f}", *work)
        of_times.add_row(name, *times)
    Console().print(of_sizes)
    Console().print(of_times)
    print("A mask alone makes nothing faster: zeros are multiplied like other numbers.")
    for runtime in runtimes:
        if differences := [row["off"][runtime] for row in rows.values() if runtime in row["off"]]:
            print(f"{runtime}: logits of 128 photographs are at most {max(differences):.1e} off those of JAX")
    print(json.dumps({"threads": threads(), "round_to": flags.round_to, "rows": rows}))


if __name__ == "__main__":
    main()
