"""The convolution against the stock one, vmapped over agents, each layer of the AlexNet, forward and with gradients.

python -m benchmarks.convolution [--agents 4] [--batch 128]
"""

import argparse
import json

import jax
import jax.numpy as jnp
from jax import lax
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, matmul_rate, timed
from dslth_jax.convolution import convolve

LAYERS = {"conv1": (32, 3, 64), "conv2": (14, 64, 128), "conv3": (5, 128, 256)}  # side, inputs, outputs; 5x5, pad 1


def stock(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The plain operation that `convolve` replaces."""
    return lax.conv_general_dilated(images, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def ours(images: jax.Array, kernel: jax.Array) -> jax.Array:
    """The library's operation with the padding of these layers."""
    return convolve(images, kernel, 1)


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args()
    peak = matmul_rate()
    print(f"{conditions()}; {flags.agents} agents, batch {flags.batch}, float32 matmul {peak / 1e9:.0f} GF/s")
    table = Table("layer", "form", "forward, GF/s", "with gradients, GF/s", "of matmul")
    result: dict[str, float] = {"matmul_gflops": peak / 1e9}
    for layer, (side, inputs, outputs) in LAYERS.items():
        images = jax.random.normal(jax.random.key(0), (flags.agents, flags.batch, side, side, inputs))
        kernels = jax.random.normal(jax.random.key(1), (flags.agents, 5, 5, inputs, outputs))
        work = 2 * flags.agents * flags.batch * (side - 2) ** 2 * 25 * inputs * outputs
        for name, form in (("vmapped stock", stock), ("ours", ours)):
            forward = timed(jax.vmap(form), images, kernels)
            # Differentiate by the images too, except in the first layer, where nobody needs it.
            wanted = (1,) if layer == "conv1" else (0, 1)
            both = jax.vmap(jax.grad(lambda x, k, form=form: jnp.sum(form(x, k) ** 2), wanted))
            gradient = timed(both, images, kernels)
            rates = work / forward.median, (1 + len(wanted)) * work / gradient.median
            table.add_row(layer, name, *(f"{rate / 1e9:.1f}" for rate in rates), f"{rates[1] / peak:.0%}")
            result[f"{layer}/{name}"] = rates[1] / 1e9
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
