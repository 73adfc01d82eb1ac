"""How an operation's value and gradients are drawn, taken and compared."""

import jax
import jax.numpy as jnp
import numpy as np


def drawn(*shapes_, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes_]


def value_and_gradients(operation, *arguments):
    """The value, and every argument's gradient for a cotangent that differs in every entry."""

    @jax.jit
    def both(*arguments):
        value, pull = jax.vjp(operation, *arguments)
        return value, pull(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))

    value, gradients = both(*arguments)
    return value, *gradients


def assert_same(actual, expected, tolerance=1e-12):
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(1, np.abs(theirs).max()))
