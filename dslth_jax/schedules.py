"""Schedules: factors on traced settings as functions of the traced round, counted from 0.

`constant` is one; `cosine`, `step` and `warm_up` make one, and `product` multiplies several. `at_round` takes a
setting's values through its schedule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Round = int | Int[Array, ""] | Float[Array, ""]  # from 0
Schedule = Callable[[Round], Float[Array, ""] | float]


def constant(round: Round) -> float:
    """The factor 1."""
    del round
    return 1.0


def cosine(rounds: int, end: float = 0.0) -> Schedule:
    """From 1 in the first of `rounds` rounds along half a cosine to the factor `end`, in 0..10, after the last."""
    _expect(0 <= end <= 10, f"end must lie in 0..10, got {end:g}")
    return optax.cosine_decay_schedule(1.0, rounds, alpha=end)


def step(every: int, factor: float = 0.5) -> Schedule:
    """Times `factor`, in (0, 1], after every stretch of `every` rounds."""
    _expect_count("every", every)
    _expect(0 < factor <= 1, f"factor must lie in (0, 1], got {factor:g}")
    return optax.exponential_decay(1.0, every, factor, staircase=True)


def warm_up(over: int) -> Schedule:
    """Evenly up to 1 over the first `over` rounds, the first of which already moves."""
    _expect_count("over", over)
    return lambda round: jnp.minimum((round + 1) / over, 1.0)


def product(*factors: Schedule) -> Schedule:
    """The product of schedules; `constant` itself where none of them moves.

    >>> float(product(warm_up(4), step(10, factor=0.5))(jnp.int32(1)))
    0.5
    """
    moving = [factor for factor in factors if factor is not constant]
    if not moving:
        return constant

    def of_all(round: Round) -> Float[Array, ""]:
        # Whole rounds divide in float32 even where floats have 64 bits: count them in floats.
        count = jnp.asarray(round, jnp.result_type(float))
        return jnp.prod(jnp.stack([jnp.asarray(factor(count)) for factor in moving]), axis=0)

    return of_all


def at_round(values: PyTree[Any], schedules: PyTree[Any], round: int | Int[Array, ""]) -> PyTree[Any]:
    """`values` as they are in `round`: each times the factor of its own schedule.

    `schedules` has the structure of `values`. Whole numbers, such as counts of entries to keep, round to the nearest
    and do not fall below 1; of nothing to keep nothing becomes.

    >>> now = at_round({"lr": 8.0, "kept": 5}, {"lr": step(1, factor=0.5), "kept": constant}, 1)
    >>> float(now["lr"]), now["kept"]
    (4.0, 5)
    """

    def one(value: Any, schedule: Schedule) -> Any:
        if schedule is constant:
            return value
        value, factor = jnp.asarray(value), jnp.asarray(schedule(jnp.asarray(round, jnp.result_type(float))))
        if jnp.issubdtype(value.dtype, jnp.integer):
            return jnp.maximum(jnp.rint(value * factor), jnp.minimum(value, 1)).astype(value.dtype)
        return value * factor.astype(value.dtype)

    return jax.tree.map(one, values, schedules)


def _expect_count(name: str, given: int) -> None:
    _expect(1 <= given < 2**31, f"{name} must lie in 1..{2**31 - 1} rounds, got {given}")


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
