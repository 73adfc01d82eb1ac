"""What arms of a comparison gain over others: scipy's paired t-test as oracle; lost seeds; names of groups."""

import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from dslth_jax.study.results.gains import along_axes, below, gain, over
from dslth_jax.study.results.points import Point


def members(*accuracies):
    """Of each seed its rows; None is a seed that was lost."""
    return [[] if value is None else [{"accuracy_mean": 0.0}, {"accuracy_mean": value}] for value in accuracies]


def point(arm, *accuracies):
    return Point({"arm": arm}, {}, members(*accuracies))


SHARES = st.floats(0, 1)


@hypothesis.given(st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=6))
def test_a_gain_is_that_of_a_paired_t_test(pairs):
    """Its mean and its 95 % interval, in float64."""
    one, other = map(np.array, zip(*pairs, strict=True))
    found = gain(members(*one), members(*other))
    assert found.mean == pytest.approx((one - other).mean(), abs=1e-12)
    if np.ptp(one - other) > 1e-6:
        low, high = scipy.stats.ttest_rel(one, other).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_seeds_are_paired_and_lost_ones_left_out():
    """A seed that either arm has lost tells nothing, and the others keep their partners."""
    found = gain(members(0.5, None, 0.75), members(0.25, 0.9, 0.5))
    assert found == (0.25, 0.25, 0.25, 1)
    assert gain(members(0.5, None), members(None, 0.5)) is None
    assert gain(members(0.5), members(0.25)) == (0.25, -math.inf, math.inf, 0)


def test_rules_that_lose_are_named_with_the_groups_where_they_do():
    """Of an axis from large to small; an interval that holds 0 is no loss."""
    levels = {
        "alone": (0.5, 0.5), "sure": (0.4, 0.41), "perhaps": (0.3, 0.6),
    }  # fmt: skip
    points = [point(f"alpha {alpha}: {rule}", *own) for alpha in ("0.1", "10", "1") for rule, own in levels.items()]
    gains = over(points)
    assert gains["alpha 1: alone"] is None
    assert below(gains) == "Below alone by their whole interval: sure at alpha 10, alpha 1, alpha 0.1."
    assert below(over([point("alone", 0.5, 0.5), point("all", 0.6, 0.7)])) == (
        "Below alone by their whole interval: none."
    )
    assert below(over([point("alone", 0.5), point("all", 0.1)])) == ""
    of_a_file = over([point("a: b: all", 0.75), point("a: b: alone", 0.5)])  # whose name has a colon
    assert of_a_file["a: b: all"] == (0.25, -math.inf, math.inf, 0)
    assert over([point("all", 0.5), point("others: alone", 0.5)]) == {"all": None, "others: alone": None}


def test_points_of_axes_become_a_table_a_rule():
    points = [point("width 2: masks", 0.5, 0.7), point("width 0.5: masks", 0.4, 0.2), point("none: masks", 0.1)]
    (table,) = along_axes(points, {"width 2: masks": {"model_bits": 8}}).values()  # of "none" nothing is known
    assert table["width"].tolist() == [0.5, 2.0]
    assert table["accuracy"].tolist() == pytest.approx([30.0, 60.0])
    assert table["accuracy_low"].tolist() == pytest.approx([20.0, 50.0])
    assert table["model_bits"].tolist()[1] == 8
    assert table[["gain", "alpha", "multiply_adds"]].isna().all(axis=None)
    (table,) = along_axes(points[2:], {"none: masks": {"model_bits": 8}}).values()
    assert table[["model_bits", "accuracy"]].to_numpy().tolist() == [[8, 10.0]]
