"""The convolution against other forms of it, mapped over agents, each layer of the AlexNet, forward and with gradients;
and what other networks are made of (strides, groups, depthwise kernels, pooling, norms, attention) against `vmap` of
the stock operation and against PyTorch.

    python -m benchmarks.convolution [--agents 4] [--batch 128] [--precision float32 bfloat16] [--repeats 5]
                                    [--patience 20] [--only NAME ...]

Precision is that of the operands, and of the matrix product that rates are compared with. Gradients of a form that
would run for more than `--patience` seconds are left out: by its rate in the layer before, and in the second table by
a sixteenth of the batch. That table is of milliseconds of all agents, and its last column says how many times ours a
form takes with gradients. PyTorch's forms (`operations_in_torch`), one agent after another unless they say "one call",
stand in it where PyTorch is installed (`pip install -e '.[rivals]'`) and JAX runs on the CPU. `--only` leaves out the
first table, and of the second all operations but those named. What is being measured is said on standard error.
"""

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Timing, conditions, matmul_rate, timed
from dslth_jax.export.programs import expect_extra
from dslth_jax.networks.attention import attention
from dslth_jax.networks.convolution import convolve
from dslth_jax.networks.norms import group_norm, layer_norm
from dslth_jax.networks.operations import average_pool, global_average_pool, product

LAYERS = {"conv1": (32, 3, 64), "conv2": (14, 64, 128), "conv3": (5, 128, 256)}  # side, inputs, outputs
KERNEL, PADDING = 5, 1
PRECISIONS = ("float32", "bfloat16")

Operation: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]  # of one agent's images and kernel


class Form(NamedTuple):
    """How one agent's convolution is computed, and how it is mapped over agents."""

    operation: Operation
    over: Callable[[Callable[..., Any]], Callable[..., Any]]
    mapped_first: bool = False  # whether gradients are taken of the mapped form, not mapped themselves


def stock(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The plain operation that `convolve` replaces."""
    sides = [(PADDING, PADDING)] * 2
    return lax.conv_general_dilated(images, kernel, (1, 1), sides, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def ours(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The library's operation with the padding of these layers."""
    return convolve(images, kernel, PADDING)


def im2col(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """Every patch copied out as a row, and one matrix product: under `vmap` a batched one."""
    rows, columns, inputs, outputs = kernel.shape
    padded = jnp.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    shifted = [padded[:, i : i + height, j : j + width] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(rows * columns * inputs, outputs)


def one_after_another(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one agent, for a stack of agents, in a loop."""
    return lambda *stacked: lax.map(lambda own: function(*own), stacked)


FORMS = {
    "vmapped stock": Form(stock, jax.vmap),
    "vmapped stock, then its gradient": Form(stock, jax.vmap, mapped_first=True),
    "stock in a loop": Form(stock, one_after_another),
    "im2col": Form(im2col, jax.vmap),
    "ours": Form(ours, jax.vmap),
}


def forward(form: Form) -> Callable[..., jax.Array]:
    """All agents' outputs."""
    return form.over(form.operation)


def gradients(form: Form, wanted: tuple[int, ...]) -> Callable[..., tuple[jax.Array, ...]]:
    """All agents' gradients of a sum of squares, by the arguments that are wanted."""

    def loss(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(form.operation(images, kernel)), dtype=jnp.float32)

    if form.mapped_first:
        return jax.grad(lambda *stacked: jnp.sum(form.over(loss)(*stacked)), wanted)
    return form.over(jax.grad(loss, wanted))


def progress(precision: str, name: str) -> None:
    """Say what is measured now."""
    print(f"measuring {name}, {precision}", file=sys.stderr, flush=True)


def measure(
    agents: int = 4,
    batch: int = 128,
    precisions: Sequence[str] = PRECISIONS,
    repeats: int = 5,
    patience: float = 20.0,
) -> tuple[Table, dict[str, Any]]:
    """The table, and rates in GF/s: of matrix products by precision, and of each layer and form with gradients."""
    table = Table("precision", "layer", "form", "forward, GF/s", "with gradients, GF/s", "of matmul")
    result: dict[str, Any] = {"agents": agents, "batch": batch, "matmul_gflops": {}}
    rates: dict[str, float] = {}  # of each form with gradients in the layer before
    for precision in precisions:
        peak = matmul_rate(dtype=precision)
        result["matmul_gflops"][precision] = peak / 1e9
        table.add_row(precision, "", "matrix product", f"{peak / 1e9:.1f}")
        for layer, (side, inputs, outputs) in LAYERS.items():
            progress(precision, layer)
            images = jax.random.normal(jax.random.key(0), (agents, batch, side, side, inputs), precision)
            kernels = jax.random.normal(jax.random.key(1), (agents, KERNEL, KERNEL, inputs, outputs), precision)
            new_side = side + 2 * PADDING - KERNEL + 1
            work = 2 * agents * batch * new_side**2 * KERNEL**2 * inputs * outputs
            # Differentiate by the images too, except in the first layer, where nobody needs it.
            wanted = (1,) if layer == "conv1" else (0, 1)
            for name, form in FORMS.items():
                once = timed(forward(form), images, kernels, repeats=repeats)
                row = (precision, layer, name, f"{work / once.median / 1e9:.1f}")
                expected = (1 + len(wanted)) * work / rates.get(name, math.inf)
                if expected > patience:
                    table.add_row(*row, f"left out: {expected:.0f} s a run")
                    continue
                both = timed(gradients(form, wanted), images, kernels, repeats=repeats)
                rates[name] = (1 + len(wanted)) * work / both.median
                print(f"{name}: {rates[name] / 1e9:.1f} GF/s with gradients", file=sys.stderr, flush=True)
                table.add_row(*row, f"{rates[name] / 1e9:.1f}", f"{rates[name] / peak:.0%}")
                result[f"{precision}/{layer}/{name}"] = rates[name] / 1e9
    return table, result


class Rivals(NamedTuple):
    """An operation of the library, the stock one, the shapes of what one agent hands to them, and PyTorch's forms."""

    ours: Callable[..., Any]
    stock: Callable[..., Any] | None  # None: ours is the stock one
    shapes: tuple[tuple[int, ...], ...]
    in_torch: Callable[[Any], Any]  # those that the module `operations_in_torch`, which is given to it, has


def windows(side: int, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> Callable[[int], Rivals]:
    """3x3 convolutions, padded by one, of a batch of so many images."""

    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            images,
            kernel,
            (stride, stride),
            [(1, 1)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def of_batch(batch: int) -> Rivals:
        shapes = ((batch, side, side, inputs), (3, 3, inputs // groups, outputs))
        ours = functools.partial(convolve, padding=1, stride=stride, groups=groups)
        return Rivals(ours, plain, shapes, lambda module: module.window(stride, groups))

    return of_batch


def by_heads(tokens: jax.Array) -> jax.Array:
    """Tokens (batch, tokens, width) in three equal parts."""
    return tokens.reshape(*tokens.shape[:2], 3, -1)


def stock_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's own, of three heads."""
    return jax.nn.dot_product_attention(by_heads(query), by_heads(key), by_heads(value)).reshape(query.shape)


OTHERS: dict[str, Callable[[int], Rivals]] = {
    "3x3, stride 2": windows(32, 64, 128, stride=2),
    "3x3, 8 groups": windows(16, 128, 128, groups=8),
    "depthwise": windows(16, 384, 384, groups=384),
    "depthwise, stride 2": windows(32, 144, 144, stride=2, groups=144),
    "1x1": lambda batch: Rivals(product, jnp.matmul, ((batch, 16, 16, 64), (64, 384)), lambda module: module.product()),
    "average pooling, 2x2": lambda batch: Rivals(
        lambda images: average_pool(images, 2),
        lambda images: nn.avg_pool(images, (2, 2), (2, 2)),
        ((batch, 16, 16, 128),),
        lambda module: module.average_pool(2),
    ),
    "global average pooling": lambda batch: Rivals(
        global_average_pool,
        None,
        ((batch, 16, 16, 128),),
        lambda module: module.global_average_pool(),
    ),
    "group norm": lambda batch: Rivals(
        lambda images: group_norm(images, 32),
        lambda images: nn.GroupNorm(32, epsilon=1e-5, use_bias=False, use_scale=False).apply({}, images),
        ((batch, 16, 16, 128),),
        lambda module: module.group_norm(32),
    ),
    "group norm, told which channels live": lambda batch: Rivals(  # as networks tell it; here all of them
        lambda images, told: group_norm(images, 32, told > -10),
        None,
        ((batch, 16, 16, 128), (128,)),
        lambda module: {},
    ),
    "layer norm": lambda batch: Rivals(
        layer_norm,
        lambda tokens: nn.LayerNorm(epsilon=1e-5, use_bias=False, use_scale=False).apply({}, tokens),
        ((batch, 64, 192),),
        lambda module: module.layer_norm(),
    ),
    "attention": lambda batch: Rivals(
        lambda query, key, value: attention(query, key, value, 3),
        stock_attention,
        ((batch, 64, 192),) * 3,
        lambda module: module.attention(3),
    ),
}


def with_gradients(operation: Callable[..., Any]) -> Callable[..., Any]:
    """All agents' gradients of a sum of squares, by every argument."""

    def loss(*arguments: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(operation(*arguments)), dtype=jnp.float32)

    return lambda *arguments: jax.vmap(jax.grad(loss, tuple(range(len(arguments)))))(*arguments)


def handed(rivals: Rivals, agents: int, precision: str) -> list[jax.Array]:
    """What all agents hand to an operation, drawn alike each time."""
    keys = jax.random.split(jax.random.key(0), len(rivals.shapes))
    return [jax.random.normal(key, (agents, *shape), precision) for key, shape in zip(keys, rivals.shapes, strict=True)]


def in_torch() -> Any:
    """The module of PyTorch's operations. None, after a line that says why, where nothing can be compared with it."""
    try:
        expect_extra("rivals", "torch")
    except ImportError as error:
        print(f"PyTorch is left out: {error}")
        return None
    if jax.default_backend() != "cpu":
        print(f"PyTorch is left out: it would run on the CPU, and JAX runs on {jax.default_backend()}")
        return None
    from benchmarks import operations_in_torch

    print(operations_in_torch.conditions())
    return operations_in_torch


class Timings(NamedTuple):
    """Of all agents."""

    forward: Timing
    with_gradients: Timing | float  # seconds a run, expected, where it is left out


def timings_of(
    of_batch: Callable[[int], Rivals],
    agents: int,
    batch: int,
    precision: str,
    repeats: int,
    patience: float,
    module: Any = None,
) -> dict[str, Timings]:
    """Every form of an operation: ours, the stock one if there is one, and PyTorch's if its `module` is given."""
    rivals = of_batch(batch)
    arrays = handed(rivals, agents, precision)

    def timings(operation: Callable[..., Any], expected: float = 0.0) -> Timings:
        once = timed(jax.vmap(operation), *arrays, repeats=repeats)
        left_out = expected > patience
        return Timings(once, expected if left_out else timed(with_gradients(operation), *arrays, repeats=repeats))

    found = {"ours": timings(rivals.ours)}
    if rivals.stock is not None:
        expected = 0.0
        if few := batch // 16:
            less = handed(of_batch(few), agents, precision)
            expected = batch / few * timed(with_gradients(rivals.stock), *less, repeats=1).fastest
        found["vmapped stock"] = timings(rivals.stock, expected)
    for name, form in rivals.in_torch(module).items() if module else ():
        found[name] = Timings(*module.timings(form, arrays, repeats))
    return found


def measure_others(
    agents: int = 4,
    batch: int = 128,
    precisions: Sequence[str] = PRECISIONS,
    repeats: int = 5,
    patience: float = 20.0,
    only: Sequence[str] | None = None,
) -> tuple[Table, dict[str, Any]]:
    """The table, and median milliseconds of each operation and form, forward and with gradients (None: left out)."""
    columns = ("forward: median, fastest", "with gradients: median, fastest")
    table = Table("precision", "operation", "form", *columns, "times ours")
    result: dict[str, Any] = {}
    module = in_torch()
    for precision in precisions:
        for name in only or OTHERS:
            progress(precision, name)
            found = timings_of(OTHERS[name], agents, batch, precision, repeats, patience, module)
            own = result[f"{precision}/{name}"] = {}
            for form, (once, both) in found.items():
                own[form] = {"forward": 1e3 * once.median, "with_gradients": None}
                row = (precision, name, form, f"{1e3 * once.median:.4g}, {1e3 * once.fastest:.4g}")
                if not isinstance(both, Timing):
                    table.add_row(*row, f"left out: {both:.0f} s a run")
                    continue
                own[form]["with_gradients"] = 1e3 * both.median
                times = own[form]["with_gradients"] / own["ours"]["with_gradients"]
                table.add_row(*row, f"{1e3 * both.median:.4g}, {1e3 * both.fastest:.4g}", f"{times:.2f}")
    return table, result


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=20.0)
    parser.add_argument("--only", nargs="+", choices=OTHERS, metavar="NAME", help="; ".join(OTHERS))
    flags = parser.parse_args()
    asked = (flags.agents, flags.batch, flags.precision, flags.repeats, flags.patience)
    print(f"{conditions()}; {flags.agents} agents, batch {flags.batch}", flush=True)
    result: dict[str, Any] = {"agents": flags.agents, "batch": flags.batch}
    if not flags.only:
        table, result = measure(*asked)
        Console().print(table)
    others, milliseconds = measure_others(*asked, flags.only)
    Console().print(others)
    print(json.dumps(result | {"milliseconds": milliseconds}))


if __name__ == "__main__":
    main()
