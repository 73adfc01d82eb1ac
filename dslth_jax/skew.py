"""Feature skew: every agent sees images its own way, turned or noisy. `see` is of one agent's world.

Images stay as they are in memory; what an agent sees is computed where a batch is drawn. To add a kind of skew, give
`Skew` a field and `see` a line. `rotation` and `noise` make the skew of a population.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, UInt8

from dslth_jax.keys import key_of, reproducible


class Skew(NamedTuple):
    """How one agent sees images; the population's carry a leading agents axis. None leaves a part out."""

    degrees: Float[Array | np.ndarray, "*agents"] | None = None  # how far images are turned, counterclockwise
    noise: Float[Array | np.ndarray, "*agents"] | None = None  # standard deviation, in pixel levels of 0..255


def rotation(agents: int, degrees: float) -> Skew:
    """The population's skew in which agent i sees everything turned by i times `degrees`, in 0..360.

    >>> rotation(5, degrees=90.0).degrees.tolist()
    [0.0, 90.0, 180.0, 270.0, 0.0]
    """
    _expect_within("degrees", degrees, 360.0)
    return Skew(degrees=(np.arange(agents, dtype=np.float32) * degrees % 360).astype(np.float32))


def noise(agents: int, levels: float) -> Skew:
    """The population's skew in which agents see Gaussian noise (Li et al., ICDE 2022).

    Its standard deviation grows evenly from 0 for the first agent to `levels` for the last, in pixel levels 0..255.

    >>> noise(5, levels=40.0).noise.tolist()
    [0.0, 10.0, 20.0, 30.0, 40.0]
    """
    _expect_within("levels", levels, 255.0)
    return Skew(noise=(np.arange(agents, dtype=np.float32) / max(agents - 1, 1) * levels).astype(np.float32))


@reproducible
def see(
    images: UInt8[Array, "batch height width channels"], samples: Int[Array, "batch"], skew: Skew
) -> UInt8[Array, "batch height width channels"]:
    """What an agent with this skew sees of `images`, which have the numbers `samples` in the data set.

    A turned image is interpolated linearly, and black where the original has no pixel. Noise is drawn by the sample,
    not by the round or the agent: a sample looks the same every time, and agents differ in how strong its noise is.
    Ours.
    """
    if skew.degrees is not None:
        images = jax.vmap(_turned, (0, None))(images, jnp.asarray(skew.degrees))
    if skew.noise is not None:
        keys = jax.vmap(lambda sample: jax.random.fold_in(key_of(0), sample))(samples)
        grain = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))(keys)
        images = _to_pixels(images + skew.noise.astype(jnp.float32) * grain)
    return images


def _turned(image: UInt8[Array, "height width channels"], degrees: Float[Array, ""]) -> Array:
    height, width, _ = image.shape
    angle = jnp.deg2rad(degrees).astype(jnp.float32)
    rows, columns = jnp.mgrid[:height, :width]
    down, right = rows - (height - 1) / 2, columns - (width - 1) / 2
    # Ask for each pixel where it came from.
    source = [
        jnp.cos(angle) * down + jnp.sin(angle) * right + (height - 1) / 2,
        jnp.cos(angle) * right - jnp.sin(angle) * down + (width - 1) / 2,
    ]

    def one_channel(channel: Array) -> Array:
        return map_coordinates(channel, source, order=1, mode="constant")

    return _to_pixels(jax.vmap(one_channel, 2, 2)(image.astype(jnp.float32)))


def _to_pixels(values: Array) -> UInt8[Array, "..."]:
    return jnp.clip(jnp.round(values), 0, 255).astype(jnp.uint8)


def _expect_within(name: str, given: float, largest: float) -> None:
    if not 0 <= given <= largest:
        raise ValueError(f"{name} must lie in 0..{largest:g}, got {given:g}")
