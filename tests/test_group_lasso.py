"""The group lasso against its closed form in numpy, and against what it claims to minimise."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dslth_jax import group_lasso

# A convolution's kernel and a linear layer's: groups share an index of the last axis.
SHAPES = [(3, 3, 2, 5), (7, 5)]

proximal_step = jax.jit(group_lasso.proximal_step)


def norms_by_loop(kernel):
    return np.array([np.sqrt((kernel[..., group] ** 2).sum()) for group in range(kernel.shape[-1])])


def shrunk_by_loop(kernel, strength):
    """The closed form, group by group: the norm falls by `strength`, the direction stays."""
    shrunk = np.zeros_like(kernel)
    for group, norm in enumerate(norms_by_loop(kernel)):
        if norm > strength:
            shrunk[..., group] = kernel[..., group] * (norm - strength) / norm
    return shrunk


def kernel_with_a_dead_group(shape, seed=0):
    kernel = np.random.default_rng(seed).normal(size=shape)
    kernel[..., 1] = 0
    kernel[..., 2] *= 0.01
    return kernel


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_and_penalty_sum_over_all_but_the_outputs(x64, shape):
    kernel = kernel_with_a_dead_group(shape)
    np.testing.assert_allclose(group_lasso.group_norms(jnp.asarray(kernel)), norms_by_loop(kernel), rtol=1e-14)
    kernels = {"one": jnp.asarray(kernel), "two": {"kernel": jnp.ones((4, 3))}}
    np.testing.assert_allclose(group_lasso.penalty(kernels), norms_by_loop(kernel).sum() + 3 * 2, rtol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("strength", [0.3, 2.0, 100.0])
def test_the_proximal_step_meets_its_closed_form(x64, shape, strength):
    kernel = kernel_with_a_dead_group(shape)
    landed = np.asarray(proximal_step(jnp.asarray(kernel), strength))
    np.testing.assert_allclose(landed, shrunk_by_loop(kernel, strength), rtol=1e-13)
    dead = norms_by_loop(kernel) <= strength
    assert dead.any()
    np.testing.assert_array_equal(landed[..., dead], 0)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32, allow_subnormal=False)),
    st.floats(0.0625, 4, width=32),
)
def test_groups_die_whole_or_lose_the_strength_in_norm(kernel, strength):
    landed = np.asarray(proximal_step(jnp.asarray(kernel), strength))
    before, after = norms_by_loop(kernel.astype(np.float64)), norms_by_loop(landed.astype(np.float64))
    np.testing.assert_allclose(after, np.maximum(before - strength, 0), atol=3e-6)
    below = before < strength * (1 - 1e-6)
    np.testing.assert_array_equal(landed[:, below], 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_proximal_step_minimises_its_objective(x64, shape):
    kernel, strength = kernel_with_a_dead_group(shape), 0.8
    landed = np.asarray(proximal_step(jnp.asarray(kernel), strength))

    def objective(candidate):
        return 0.5 * ((candidate - kernel) ** 2).sum() + strength * norms_by_loop(candidate).sum()

    rng = np.random.default_rng(1)
    # Strongly convex with constant 1: leaving the minimum costs at least half the square of the way.
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(50):
            moved = size * rng.normal(size=shape) * rng.integers(0, 2, shape[-1])
            assert objective(landed + moved) >= objective(landed) + 0.5 * (moved**2).sum() - 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_no_strength_changes_nothing_bit_for_bit(shape):
    kernel = kernel_with_a_dead_group(shape).astype(np.float32)
    # Squares that overflow, and a group whose squares all underflow, so that its norm is 0 and the group is not.
    kernel[0] *= 1e30
    kernel[..., 3] = 1e-30
    for strength in (0.0, jnp.float32(0)):
        np.testing.assert_array_equal(
            np.asarray(proximal_step(jnp.asarray(kernel), strength)).view(np.uint32), kernel.view(np.uint32)
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_the_penalty_has_gradient_zero_at_a_dead_group(x64, shape):
    kernel = kernel_with_a_dead_group(shape)
    gradient = np.asarray(jax.grad(group_lasso.penalty)(jnp.asarray(kernel)))
    norms = norms_by_loop(kernel)
    np.testing.assert_array_equal(gradient[..., 1], 0)
    np.testing.assert_allclose(gradient, kernel / np.where(norms > 0, norms, 1), rtol=1e-12)


def test_kernels_keep_their_dtype():
    kernel = jnp.ones((2, 3), jnp.float32)
    with jax.enable_x64(True):
        assert group_lasso.proximal_step(kernel, 0.5).dtype == jnp.float32
        assert group_lasso.proximal_step(kernel, jnp.float64(0.5)).dtype == jnp.float32


def test_agents_shrink_each_by_its_own_strength():
    kernels = np.random.default_rng(2).normal(size=(3, 7, 5)).astype(np.float32)
    strengths = jnp.array([0.0, 1.0, 3.0])
    together = jax.vmap(group_lasso.proximal_step)(kernels, strengths)
    for kernel, strength, landed in zip(kernels, strengths, together, strict=True):
        np.testing.assert_allclose(landed, shrunk_by_loop(kernel, float(strength)), rtol=1e-5, atol=1e-6)


def test_in_a_chain_parameters_land_on_the_proximal_step(x64):
    rng = np.random.default_rng(3)
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in zip("ab", SHAPES, strict=True)}
    gradients = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    lr, strength = 0.5, 3.0
    chain = optax.chain(optax.sgd(lr), group_lasso.proximal_group_lasso(strength))
    updates, _ = jax.jit(chain.update)(gradients, chain.init(params), params)
    landed = optax.apply_updates(params, updates)
    dead = 0
    for name in params:
        stepped = np.asarray(params[name]) - lr * np.asarray(gradients[name])
        expected = shrunk_by_loop(stepped, strength)
        np.testing.assert_allclose(landed[name], expected, rtol=1e-12, atol=1e-14)
        # A dead group must be exactly so after the update is added, or it would come to life again.
        np.testing.assert_array_equal(np.asarray(landed[name])[expected == 0], 0)
        dead += (expected == 0).sum()
    assert dead > 0


def test_the_chain_needs_parameters():
    link = group_lasso.proximal_group_lasso(0.1)
    gradients = {"kernel": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="needs the parameters"):
        link.update(gradients, link.init(gradients))
