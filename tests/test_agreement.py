"""How much masks agree: against numpy's correlation, and which pairs count where."""

import numpy as np
import pytest

from dslth_jax.study.training.agreement import agreement_row, correlations


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
    row = agreement_row({"layer": packed(kept)}, shape, held)
    assert row == {"agreement": pytest.approx(1 / 3), "agreement_common": pytest.approx(1), "agreement_apart": 0}
    assert set(agreement_row(None, None, held).values()) == {None}
    alone = agreement_row({"layer": packed(kept[:1])}, shape, held[:1])
    assert set(alone.values()) == {None}
