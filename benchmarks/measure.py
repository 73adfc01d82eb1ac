"""What every benchmark shares: timing with warm-up and compilation apart, and the conditions it ran under."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Timing(NamedTuple):
    """Seconds."""

    compile: float
    median: float
    fastest: float


def timed(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> Timing:
    """Compile `function` ahead of time, run it once to warm up, then `repeats` times."""
    began = time.perf_counter()
    compiled = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    jax.block_until_ready(compiled(*arguments))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        seconds.append(time.perf_counter() - began)
    return Timing(compile_seconds, statistics.median(seconds), min(seconds))


def matmul_rate(side: int = 2048) -> float:
    """Floating-point operations a second of a float32 matrix product: what this machine can do, measured now."""
    matrix = jnp.ones((side, side))
    return 2 * side**3 / timed(lambda a: a @ a, matrix, repeats=9).median


def conditions() -> str:
    """Device, cores and versions, as one line."""
    device = jax.devices()[0]
    return (
        f"{device.platform} {device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"python {platform.python_version()}, jax {jax.__version__}"
    )
