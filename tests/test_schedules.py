"""Schedules against their formulas in plain Python, and what is said of bad spellings."""

import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax import schedules
from dslth_jax.schedules import at_round, constant
from dslth_jax.study.config.spellings import SCHEDULES, schedule_of

ROUNDS = 40
FORMULAS = {
    "constant": lambda t: 1,
    "cosine": lambda t: (1 + math.cos(math.pi * t / ROUNDS)) / 2,
    "cosine:0.1": lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t / ROUNDS)) / 2,
    "cosine:2": lambda t: 2 - (1 + math.cos(math.pi * t / ROUNDS)) / 2,
    "step:10": lambda t: 0.5 ** (t // 10),
    "step:7:0.1": lambda t: 0.1 ** (t // 7),
    "warm-up:1": lambda t: 1,
    "warm-up:8": lambda t: min((t + 1) / 8, 1),
}


def factors(spelling):
    """The factor of every round, by one compiled program of the traced round."""
    schedule = schedule_of(spelling, ROUNDS)
    return np.array(jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t), float)))(jnp.arange(ROUNDS, dtype=jnp.int32)))


@pytest.mark.parametrize("spelling", FORMULAS)
def test_schedules_follow_their_formulas(x64, spelling):
    np.testing.assert_allclose(factors(spelling), [FORMULAS[spelling](t) for t in range(ROUNDS)], rtol=1e-12)


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.lists(st.sampled_from(sorted(FORMULAS)), min_size=2, max_size=4))
def test_joined_schedules_are_multiplied(spellings):
    expected = [math.prod(FORMULAS[spelling](t) for spelling in spellings) for t in range(ROUNDS)]
    np.testing.assert_allclose(factors("@".join(spellings)), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("spelling", ["", "constant", "constant@constant", "@"])
def test_what_never_changes_costs_nothing(spelling):
    assert schedule_of(spelling, ROUNDS) is constant


def test_each_setting_follows_its_own_schedule(x64):
    values = {"lr": jnp.array([1.0, 2.0]), "kept": {"conv": jnp.array([7, 1, 100_000_001]), "linear": jnp.array([5])}}
    each = {"lr": schedules.step(1, factor=0.25), "kept": {"conv": schedules.step(1), "linear": constant}}
    now = jax.jit(lambda round: at_round(values, each, round))(jnp.int32(1))
    np.testing.assert_allclose(now["lr"], [0.25, 0.5])
    # Counts round to the nearest (halves to even) and keep at least one entry; a constant count is left alone.
    np.testing.assert_array_equal(now["kept"]["conv"], [4, 1, 50_000_000])
    np.testing.assert_array_equal(now["kept"]["linear"], [5])
    assert now["kept"]["conv"].dtype == values["kept"]["conv"].dtype


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("cosin", "must be one of constant, cosine[:END], step:EVERY[:FACTOR], warm-up:OVER, got 'cosin'; did you"),
        ("warmup:3", "did you mean warm-up?"),
        ("step", "step is spelled step:EVERY[:FACTOR], got step"),
        ("step:1:2:3", "step is spelled step:EVERY[:FACTOR], got step:1:2:3"),
        ("warm-up", "warm-up is spelled warm-up:OVER, got warm-up"),
        ("constant:1", "constant takes no number, got constant:1"),
        ("step:ten", "step takes a whole number for EVERY, got 'ten'"),
        ("step:0", "step:0: every must lie in 1..2147483647 rounds, got 0"),
        ("step:2.5", "step takes a whole number for EVERY, got '2.5'"),
        ("step:5:0", "step:5:0: factor must lie in (0, 1], got 0"),
        ("step:5:1.5", "got 1.5"),
        ("warm-up:1e10", "warm-up:1e10: over must lie in 1..2147483647 rounds, got 10000000000"),
        ("cosine:-1", "cosine:-1: end must lie in 0..10, got -1"),
        ("cosine@step:-3", "got -3"),
    ],
)  # fmt: skip
def test_spellings_that_mean_nothing_are_refused(spelling, message):
    with pytest.raises(ValueError, match=f"^schedule .*{re.escape(message)}"):
        schedule_of(spelling, ROUNDS)


def test_a_schedule_counts_rounds_in_the_widest_floats(x64):
    lr = at_round(1.0, schedules.warm_up(3), jnp.int32(0))
    assert float(lr) == 1 / 3


def test_a_schedule_of_ones_own_is_spelled_after_one_line(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "linear", lambda rounds, end=0.0: lambda round: 1 + (end - 1) * round / rounds)
    assert float(schedule_of("linear:0.5", 10)(jnp.int32(5))) == 0.75
    assert float(schedule_of("linear@step:5", 10)(jnp.int32(5))) == 0.25
