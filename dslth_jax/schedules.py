"""Schedules: factors on traced settings as functions of the traced round.

A spelling such as "cosine", "step:100:0.5" or "warm-up:20@cosine:0.1" names a schedule; what "@" joins is multiplied.
To add a kind of schedule, write its function and name it in `SCHEDULES`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from dslth_jax.naming import expect_choice

Schedule = Callable[[Int[Array, ""]], Float[Array, ""] | float]


def constant(round: Int[Array, ""]) -> float:
    """The factor 1."""
    del round
    return 1.0


def cosine(numbers: Sequence[float], rounds: int) -> Schedule:
    """From 1 in the first round along half a cosine to END (0 where left out) after the last."""
    (end,) = numbers or (0.0,)
    _expect(0 <= end <= 10, f"cosine ends at a factor in 0..10, got {end:g}")
    return optax.cosine_decay_schedule(1.0, rounds, alpha=end)


def step(numbers: Sequence[float], rounds: int) -> Schedule:
    """Times FACTOR (0.5 where left out) after every stretch of EVERY rounds."""
    del rounds
    every, factor = (*numbers, 0.5)[:2]
    _expect(_is_count(every), f"step needs a whole number of rounds, such as step:100:0.5, got {every:g}")
    _expect(0 < factor <= 1, f"step needs a factor in (0, 1], got {factor:g}")
    return optax.exponential_decay(1.0, int(every), factor, staircase=True)


def warm_up(numbers: Sequence[float], rounds: int) -> Schedule:
    """Evenly up to 1 over the first ROUNDS rounds, the first of which already moves."""
    del rounds
    (over,) = numbers
    _expect(_is_count(over), f"warm-up needs a whole number of rounds, such as warm-up:20, got {over:g}")
    return lambda round: jnp.minimum((round + 1) / int(over), 1.0)


# Each with how few and how many numbers it takes.
SCHEDULES: dict[str, tuple[Callable[[Sequence[float], int], Schedule], int, int]] = {
    "constant": (lambda numbers, rounds: constant, 0, 0),
    "cosine": (cosine, 0, 1),
    "step": (step, 1, 2),
    "warm-up": (warm_up, 1, 1),
}


def schedule_by_name(spelling: str, rounds: int) -> Schedule:
    """The schedule of a spelling, for a run of `rounds` rounds; "" is constant.

    >>> float(schedule_by_name("warm-up:4@step:10:0.5", rounds=100)(jnp.int32(1)))
    0.5
    """
    factors = [_one(part, rounds) for part in spelling.split("@") if part]
    moving = [factor for factor in factors if factor is not constant]
    if not moving:
        return constant

    def product(round: Int[Array, ""]) -> Float[Array, ""]:
        # Whole rounds divide in float32 even where floats have 64 bits: count them in floats.
        count = jnp.asarray(round, jnp.result_type(float))
        return jnp.prod(jnp.stack([jnp.asarray(factor(count)) for factor in moving]), axis=0)

    return product


def at_round(values: PyTree[Any], schedules: PyTree[Any], round: int | Int[Array, ""]) -> PyTree[Any]:
    """`values` as they are in `round`: each times the factor of its own schedule.

    `schedules` has the structure of `values`. Whole numbers, such as counts of entries to keep, round to the nearest
    and do not fall below 1.

    >>> halved = schedule_by_name("step:1:0.5", rounds=10)
    >>> at_round({"lr": 8.0, "kept": 5}, {"lr": halved, "kept": constant}, 1)["kept"]
    5
    """

    def one(value: Any, schedule: Schedule) -> Any:
        if schedule is constant:
            return value
        value, factor = jnp.asarray(value), jnp.asarray(schedule(jnp.asarray(round)))
        if jnp.issubdtype(value.dtype, jnp.integer):
            return jnp.maximum(jnp.rint(value * factor), 1).astype(value.dtype)
        return value * factor.astype(value.dtype)

    return jax.tree.map(one, values, schedules)


def _one(part: str, rounds: int) -> Schedule:
    name, *words = part.split(":")
    expect_choice("schedule", name, tuple(SCHEDULES))
    make, fewest, most = SCHEDULES[name]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise ValueError(f"the schedule {name} takes numbers behind colons, got {part!r}") from None
    wanted = {(0, 0): "no number", (1, 1): "one number"}.get((fewest, most), f"{fewest} to {most} numbers")
    _expect(fewest <= len(numbers) <= most, f"the schedule {name} takes {wanted}, got {part!r}")
    return make(numbers, rounds)


def _is_count(number: float) -> bool:
    return 1 <= number < 2**31 and number == int(number)


def _expect(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
