"""Random keys and draws that no setting of the environment changes.

JAX_DEFAULT_PRNG_IMPL, JAX_THREEFRY_PARTITIONABLE and JAX_RANDOM_SEED_OFFSET change what `jax.random` draws from a seed.
So the library makes its keys by `key_of`, and what draws or traces draws is `reproducible`.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, Key

IMPLEMENTATION = "threefry2x32"
P = ParamSpec("P")
R = TypeVar("R")


def key_of(seed: int | Integer[Array | np.ndarray | np.integer, ""]) -> Key[Array, ""]:
    """The key of a seed in 0..2**32 - 1, which may be traced: that of `jax.random.key(seed)` in JAX as it comes.

    A seed of Python outside these bounds is a ValueError.

    >>> bool(key_of(7) == jax.random.key(7))
    True
    """
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"a seed must lie in 0..{2**32 - 1}, got {seed}")
    return jax.random.wrap_key_data(jnp.array([0, seed], jnp.uint32), impl=IMPLEMENTATION)


def reproducible(function: Callable[P, R]) -> Callable[P, R]:
    """`function` whose random draws, at once or in what it traces, are those of JAX as it comes."""

    @wraps(function)
    def drawing(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.threefry_partitionable(True):
            return function(*args, **kwargs)

    return drawing


def expect_key(key: Key[Array, ""]) -> None:
    """Raise a ValueError unless `key` is of the kind that `key_of` makes. Keys of another kind draw other numbers, and
    some draw the same numbers for all agents that are computed together."""
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or jax.random.key_impl(key) != IMPLEMENTATION:
        raise ValueError(f"a key must be of {IMPLEMENTATION}, got {key.dtype}: make it by dslth_jax.keys.key_of(seed)")
