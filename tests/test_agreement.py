"""How much masks agree, and how far scores are apart: against stock correlations, and which pairs count where."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dslth_jax.evaluation import SAMPLED, sampled
from dslth_jax.study.training.agreement import agreement_row, correlations, pairs_of, spread_row


def packed(kept):
    return np.packbits(kept, axis=1, bitorder="little")


def test_agreement_is_the_correlation_of_bits_layer_by_layer():
    rng = np.random.default_rng(0)
    layers = [rng.random((5, 70)) < 0.3, rng.random((5, 200)) < 0.8]
    layers[0][1], layers[1][1] = layers[0][0], layers[1][0]
    full = np.ones((5, 500), bool)  # a layer that all keep whole says nothing
    found = correlations([(packed(own), own.shape[1]) for own in [*layers, full]])
    wanted = (70 * np.corrcoef(layers[0]) + 200 * np.corrcoef(layers[1])) / 270
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    assert found[0, 1] == pytest.approx(1)


def test_pairs_are_told_apart_by_the_classes_that_they_hold():
    """Of three agents the first two hold a class in common and keep the same; the third has nothing to do with them."""
    kept = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], bool)
    held = np.array([[5, 1, 0], [0, 2, 0], [0, 0, 9]])
    shape = {"layer": np.zeros((2, 2))}
    row = agreement_row({"layer": packed(kept)}, shape, pairs_of(held))
    assert row == {"agreement": pytest.approx(1 / 3), "agreement_common": pytest.approx(1), "agreement_apart": 0}
    assert set(agreement_row(None, None, pairs_of(held)).values()) == {None}
    alone = agreement_row({"layer": packed(kept[:1])}, shape, pairs_of(held[:1]))
    assert set(alone.values()) == {None}


def test_spread_is_one_less_the_rank_correlation_of_magnitudes_layer_by_layer():
    rng = np.random.default_rng(0)
    shapes = {"first": np.zeros(70), "second": np.zeros((20, 10))}
    scores = {name: rng.random((3, shape.size)) for name, shape in shapes.items()}
    pairs = pairs_of(np.array([[5, 1, 0], [0, 2, 0], [0, 0, 9]]))
    scores["first"][0, :20] = 0  # which share their place
    alike = {name: scipy.stats.spearmanr(own, axis=1).statistic for name, own in scores.items()}
    apart = 1 - (70 * alike["first"] + 200 * alike["second"]) / 270
    wanted = {"": apart[[0, 0, 1], [1, 2, 2]].mean(), "_common": apart[0, 1], "_apart": apart[[0, 1], 2].mean()}
    assert spread_row(scores, shapes, pairs) == {f"score_spread{of}": pytest.approx(v) for of, v in wanted.items()}
    same = {name: np.repeat(own[:1], 3, axis=0) for name, own in scores.items()}
    assert spread_row(same, shapes, pairs)["score_spread"] == pytest.approx(0, abs=1e-12)
    # A layer in which all entries count alike says nothing, beside another one or alone.
    of_first = 1 - alike["first"][[0, 0, 1], [1, 2, 2]].mean()
    beside = {**scores, "second": np.zeros((3, 200))}
    assert spread_row(beside, shapes, pairs)["score_spread"] == pytest.approx(of_first)
    assert spread_row({name: np.ones_like(own) for name, own in scores.items()}, shapes, pairs)["score_spread"] == 0
    assert set(spread_row(None, None, pairs).values()) == {None}


def test_sampled_scores_are_of_entries_that_all_agents_have_in_common():
    few, many = np.linspace(-1, 1, 12).reshape(3, 4), np.arange(-5000.0, 5000.0).reshape(100, 100)
    np.testing.assert_allclose(sampled(jnp.asarray(few)), few.ravel(), atol=1e-6)
    drawn = np.asarray(sampled(jnp.asarray(many)))
    assert len(drawn) == SAMPLED
    assert set(drawn) <= set(many.ravel())
    np.testing.assert_array_equal(sampled(jnp.asarray(-2 * many)), -2 * drawn)
