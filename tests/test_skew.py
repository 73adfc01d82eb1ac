"""What an agent sees: turned like numpy's and scipy's turns, noise that belongs to the sample, and what is refused."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from dslth_jax import skew as skews
from dslth_jax.skew import Skew, see
from dslth_jax.study.config.spellings import SKEWS, skew_of

seen = jax.jit(see)
seen_by_all = jax.jit(jax.vmap(see))

BATCH = (8, 16, 16, 3)  # of most tests of noise, so that few shapes are compiled


def images_of(*shape, seed=0):
    """Every pixel at random: the worst that there is to interpolate."""
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def turned(images, degrees):
    """Images that one agent sees turned."""
    samples = jnp.arange(len(images))
    return np.asarray(seen(jnp.asarray(images), samples, Skew(degrees=jnp.float32(degrees))))


def noisy(images, samples, noise):
    """Images that one agent sees with noise."""
    return np.asarray(seen(jnp.asarray(images), jnp.asarray(samples), Skew(noise=jnp.float32(noise))))


@pytest.mark.parametrize(("side", "channels"), [(1, 1), (7, 1), (7, 3), (8, 1), (8, 3), (32, 3)])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_quarter_turns_are_exact_and_counterclockwise(quarters, side, channels):
    images = images_of(3, side, side, channels)
    np.testing.assert_array_equal(turned(images, 90 * quarters), np.rot90(images, quarters, axes=(1, 2)))


@pytest.mark.parametrize("shape", [(5, 8), (6, 3), (1, 9)])
def test_half_turns_lose_nothing_of_any_shape(shape):
    images = images_of(2, *shape, 3)
    np.testing.assert_array_equal(turned(images, 180), images[:, ::-1, ::-1])
    np.testing.assert_array_equal(turned(images, 0), images)
    np.testing.assert_array_equal(turned(images, 360), images)


@pytest.mark.parametrize("shape", [(7, 7, 1), (8, 8, 3), (5, 9, 1), (32, 32, 1)])
@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(degrees=st.floats(0, 360, width=32), seed=st.integers(0, 99))
def test_any_turn_is_that_of_scipy(shape, degrees, seed):
    images = images_of(2, *shape, seed=seed)
    expected = scipy.ndimage.rotate(
        images.astype(float), degrees, axes=(2, 1), reshape=False, order=1, mode="grid-constant"
    )
    # Half a level by rounding, and a quarter by coordinates in thousandths of a pixel.
    np.testing.assert_allclose(turned(images, degrees), expected, rtol=0, atol=0.76)


def test_what_was_outside_is_black():
    corners = turned(np.full((1, 9, 9, 1), 255, np.uint8), 45)[0, [0, 0, -1, -1], [0, -1, 0, -1], 0]
    assert corners.tolist() == [0] * 4


@pytest.mark.parametrize("noise", [5.0, 20.0])
def test_noise_has_its_standard_deviation_and_no_mean(noise):
    # Six deviations fit between the middle and either end: nothing is clipped.
    grain = noisy(np.full(BATCH, 128, np.uint8), np.arange(8), noise) - 128.0
    # Rounding to whole levels adds the variance of a uniform draw.
    expected = np.sqrt(noise**2 + 1 / 12)
    assert abs(grain.std() - expected) < 5 * expected / np.sqrt(2 * grain.size)
    assert abs(grain.mean()) < 5 * expected / np.sqrt(grain.size)
    # Normal, not only as wide: shares within one and two deviations.
    for deviations, share in ((1, 0.683), (2, 0.954)):
        assert abs((np.abs(grain) <= deviations * noise + 0.5).mean() - share) < 0.05


def test_every_sample_pixel_and_channel_has_noise_of_its_own():
    grain = noisy(np.full(BATCH, 128, np.uint8), np.arange(8), 20.0) - 128.0
    channels = np.moveaxis(grain, -1, 1).reshape(24, -1)
    assert np.abs(np.corrcoef(channels) - np.eye(24)).max() < 5 / 16
    # Nor does one pixel tell of its neighbour.
    for axis in (1, 2):
        assert abs((grain * np.roll(grain, 1, axis)).mean()) < 5 * 20**2 / np.sqrt(grain.size)


def test_a_sample_has_the_same_noise_whenever_it_is_seen():
    images, samples = images_of(*BATCH), np.array([7, 0, 49_999, 3, 12, 8, 50_001, 200])
    together = noisy(images, samples, 30.0)
    np.testing.assert_array_equal(noisy(images, samples, 30.0), together)
    np.testing.assert_array_equal(noisy(images[::-1], samples[::-1], 30.0), together[::-1])
    for place in range(8):
        alone = noisy(images[place : place + 1], samples[place : place + 1], 30.0)
        np.testing.assert_array_equal(alone[0], together[place])
    # Its number decides, not its place in the batch nor its pixels.
    assert (noisy(images, samples + 1, 30.0) != together).any(axis=(1, 2, 3)).all()
    grain = noisy(np.full(BATCH, 128, np.uint8), np.array([7, 8] * 4), 30.0)
    np.testing.assert_array_equal(grain[:2], grain[2:4])
    assert (grain[0] != grain[1]).mean() > 0.9


def test_noise_ends_at_black_and_white():
    """Half of it is clipped there; what came round would be at the other end."""
    white, black = (noisy(np.full(BATCH, level, np.uint8), np.arange(8), 40.0) for level in (255, 0))
    assert 0.4 < (white == 255).mean() < 0.6
    assert white.min() > 255 - 6 * 40
    assert 0.4 < (black == 0).mean() < 0.6
    assert black.max() < 6 * 40


def test_no_noise_changes_nothing():
    levels = np.arange(8 * 16 * 16 * 3).reshape(BATCH).astype(np.uint8)
    np.testing.assert_array_equal(noisy(levels, np.arange(8), 0.0), levels)
    assert (noisy(levels, np.arange(8), 10.0) != levels).mean() > 0.8


def test_images_are_turned_before_they_get_noise():
    images, samples = images_of(*BATCH), jnp.arange(8)
    both = seen(jnp.asarray(images), samples, Skew(degrees=jnp.float32(45), noise=jnp.float32(10)))
    np.testing.assert_array_equal(both, noisy(turned(images, 45), samples, 10.0))
    # Black corners have noise too.
    assert (np.asarray(both)[:, [0, 0, -1, -1], [0, -1, 0, -1]] > 0).any()


@pytest.mark.parametrize("spelling", ["none", "rotation:37", "rotation:90", "noise:40"])
def test_all_agents_at_once_see_what_each_sees(spelling):
    agents, batch = 4, 8
    images = jnp.asarray(images_of(agents, *BATCH))
    samples = jnp.arange(agents * batch).reshape(agents, batch)
    skew = skew_of(spelling, agents)
    together = np.asarray(seen_by_all(images, samples, skew))
    assert together.dtype == np.uint8
    for agent in range(agents):
        own = jax.tree.map(lambda leaf, agent=agent: jnp.asarray(leaf[agent]), skew)
        alone = np.asarray(seen(images[agent], samples[agent], own))
        # Where a value lies between two levels, the order of additions may decide.
        assert np.abs(together[agent].astype(int) - alone).max() <= 1
        assert (together[agent] == alone).mean() > 0.99
        # The first agent of each kind sees what is there, and with a skew nobody else does.
        assert np.array_equal(alone, images[agent]) == (agent == 0 or spelling == "none")


def test_a_skew_that_is_a_numpy_array_is_seen_alike():
    images = images_of(2, 8, 8, 3)
    for skew in (Skew(degrees=np.array(90, np.float32)), Skew(degrees=jnp.float32(90))):
        # Not compiled: a compiled function makes it an array of JAX.
        np.testing.assert_array_equal(see(jnp.asarray(images), jnp.arange(2), skew), np.rot90(images, axes=(1, 2)))


def test_none_leaves_images_as_they_are():
    assert skew_of("none", 3) == Skew(None, None)
    images = images_of(4, 6, 6, 3)
    np.testing.assert_array_equal(seen(jnp.asarray(images), jnp.arange(4), Skew()), images)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.integers(1, 50), st.floats(0, 360))
def test_agents_are_turned_by_multiples(agents, degrees):
    skew = skew_of(f"rotation:{degrees!r}", agents)
    assert skew.noise is None
    assert skew.degrees.dtype == np.float32
    assert skew.degrees.shape == (agents,)
    assert ((skew.degrees >= 0) & (skew.degrees < 360)).all()
    # Compare on the circle: 359.99 is beside 0.
    apart = (skew.degrees - np.arange(agents) * degrees + 180) % 360 - 180
    assert np.abs(apart).max() < 0.01


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(st.integers(2, 50), st.floats(0, 255))
def test_agents_noise_grows_evenly_from_none_to_all(agents, noise):
    skew = skew_of(f"noise:{noise!r}", agents)
    assert skew.degrees is None
    assert skew.noise.dtype == np.float32
    np.testing.assert_allclose(skew.noise, np.linspace(0, noise, agents), rtol=1e-5, atol=1e-30)
    assert skew.noise[0] == 0
    assert skew.noise[-1] == np.float32(noise)


@pytest.mark.parametrize("spelling", ["rotation:77", "noise:77"])
def test_a_single_agent_sees_what_is_there(spelling):
    (levels,) = (leaf for leaf in skew_of(spelling, 1) if leaf is not None)
    np.testing.assert_array_equal(levels, np.zeros(1, np.float32))


def test_skews_by_hand():
    np.testing.assert_array_equal(skew_of("rotation:90", 6).degrees, [0, 90, 180, 270, 0, 90])
    np.testing.assert_array_equal(skew_of("rotation:360", 3).degrees, [0, 0, 0])
    np.testing.assert_array_equal(skew_of("noise:40", 5).noise, [0, 10, 20, 30, 40])


UNKNOWN = "must be one of none, rotation:DEGREES, noise:LEVELS, got "


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("rotate:90", UNKNOWN + "'rotate:90'; did you mean rotation?"),
        ("blur:2", UNKNOWN + "'blur:2'"),
        ("", UNKNOWN + "''"),
        ("none:0", "none takes no number, got none:0"),
        ("rotation", "rotation is spelled rotation:DEGREES, got rotation"),
        ("rotation:x", "rotation takes a number for DEGREES, got 'x'"),
        ("rotation:90:2", "rotation is spelled rotation:DEGREES, got rotation:90:2"),
        ("rotation:360.5", "rotation:360.5: degrees must lie in 0..360, got 360.5"),
        ("noise:inf", "noise:inf: levels must lie in 0..255, got inf"),
    ],
)
def test_bad_spellings_are_refused_by_what_is_wrong(spelling, message):
    with pytest.raises(ValueError, match=f"^--feature-skew {re.escape(message)}$"):
        skew_of(spelling, 4)


def test_arguments_out_of_range_are_refused():
    for make, message in (
        (lambda: skews.rotation(4, degrees=-1.0), "degrees must lie in 0..360, got -1"),
        (lambda: skews.rotation(4, degrees=float("nan")), "degrees must lie in 0..360, got nan"),
        (lambda: skews.noise(4, levels=256.0), "levels must lie in 0..255, got 256"),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            make()


def test_a_skew_of_ones_own_is_spelled_after_one_line(monkeypatch):
    monkeypatch.setitem(SKEWS, "upside-down", lambda agents: Skew(degrees=np.full(agents, 180, np.float32)))
    assert skew_of("upside-down", 2).degrees.tolist() == [180, 180]
