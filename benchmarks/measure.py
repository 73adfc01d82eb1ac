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


def timed_in_place(function: Callable[[Any], Any], state: Any, repeats: int = 5) -> Timing:
    """`timed` of a function that makes a new state in the place of the old, each run going on from the last."""
    began = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state).compile()
    compile_seconds = time.perf_counter() - began
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        state = jax.block_until_ready(compiled(state))
        seconds.append(time.perf_counter() - began)
    return Timing(compile_seconds, statistics.median(seconds[1:]), min(seconds[1:]))


def matmul_rate(side: int = 2048, dtype: Any = jnp.float32) -> float:
    """Floating-point operations a second of a matrix product: what this machine can do, measured now."""
    matrix = jnp.ones((side, side), dtype)
    return 2 * side**3 / timed(lambda a: a @ a, matrix, repeats=9).median


def copy_rate(megabytes: int = 256) -> float:
    """Bytes a second that are read and written, of an array beyond all caches and changed in its place."""
    array = jnp.ones(megabytes * 250_000)
    return 2 * array.nbytes / timed_in_place(lambda a: a + 1, array, repeats=9).median


def conditions() -> str:
    """Device, cores and versions, as one line."""
    device = jax.devices()[0]
    return (
        f"{device.platform} {device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"python {platform.python_version()}, jax {jax.__version__}"
    )
