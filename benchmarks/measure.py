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
    timing = timed_calls(lambda: jax.block_until_ready(compiled(*arguments)), repeats)
    return timing._replace(compile=compile_seconds)


def timed_calls(call: Callable[[], Any], repeats: int = 5, warm_up: int = 1) -> Timing:
    """Call what compiles nothing and waits for its end: `warm_up` times apart, then `repeats` times.

    The time in which a result's memory is given back counts, for it is dropped before the clock is read.
    """
    for _ in range(warm_up):
        call()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return Timing(0.0, statistics.median(seconds), min(seconds))


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


def matmul_rate(side: int | None = None, dtype: Any = jnp.float32) -> float:
    """Floating-point operations a second of a matrix product: what this machine can do, measured now. None takes a side
    of 2,048 on CPUs and 8,192 elsewhere, where a smaller one takes hardly longer than its launch; numbers are random,
    for constants draw less power."""
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
    return 2 * side**3 / timed(lambda a: a @ a, matrix, repeats=9).median


def copy_rate(megabytes: int | None = None) -> float:
    """Bytes a second that are read and written, of an array beyond all caches and changed in its place. None takes 256
    megabytes on CPUs and 4,096 elsewhere."""
    megabytes = megabytes or (256 if jax.default_backend() == "cpu" else 4096)
    array = jnp.ones(megabytes * 250_000)
    return 2 * array.nbytes / timed_in_place(lambda a: a + 1, array, repeats=9).median


def threads() -> int:
    """How many threads this process may use at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def conditions() -> str:
    """Device, cores and versions, as one line."""
    device = jax.devices()[0]
    return (
        f"{device.platform} {device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"python {platform.python_version()}, jax {jax.__version__}"
    )
