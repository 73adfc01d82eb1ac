"""Augmentation: each image of a minibatch is moved at random, anew every time it is drawn. One agent's world.

`crop` and `flip_crop` are what `population.round` takes as `augment`. Each draws `Moves` from its key and applies them
by `moved`, which draws nothing. The usual augmentation of CIFAR (He et al. 2016), but filled by reflection. To add a
kind, write a function of a key and a batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32, Key, UInt8

from dslth_jax.keys import reproducible

Images = UInt8[Array, "batch height width channels"]
Augment = Callable[[Key[Array, ""], Images], Images]  # of a batch's own key
REACH = 8  # images are moved by up to one of so many parts of their side


class Moves(NamedTuple):
    """How each image of a batch is moved: first flipped, then seen through a frame that is so many pixels off."""

    down: Int32[Array, "batch"]
    right: Int32[Array, "batch"]
    flipped: Bool[Array, "batch"] | None = None  # left to right; None flips no image


@reproducible
def crop(key: Key[Array, ""], images: Images) -> Images:
    """Images seen through a frame that is off by up to an eighth of their side, rounded down, in both directions."""
    return moved(images, offsets(key, images))


@reproducible
def flip_crop(key: Key[Array, ""], images: Images) -> Images:
    """The same of images of which every second one, by chance, is flipped left to right before."""
    flips, frames = jax.random.split(key)
    return moved(images, offsets(frames, images)._replace(flipped=jax.random.bernoulli(flips, shape=images.shape[:1])))


def offsets(key: Key[Array, ""], images: Images) -> Moves:
    """Offsets of a frame, drawn uniformly for each image and direction from -side // 8 to side // 8."""
    reach = [side // REACH for side in images.shape[1:3]]
    each = zip(jax.random.split(key), reach, strict=True)
    return Moves(*(jax.random.randint(own, images.shape[:1], -most, most + 1, jnp.int32) for own, most in each))


def moved(images: Images, moves: Moves) -> Images:
    """Images moved as `moves` says; what lies outside of an image is its reflection, its edge not repeated, as
    `numpy.pad` has it in mode "reflect". Offsets must be smaller than the side.

    >>> row = jnp.arange(4, dtype=jnp.uint8).reshape(1, 1, 4, 1)
    >>> moved(row, Moves(jnp.array([0]), jnp.array([2]))).ravel().tolist()
    [2, 3, 2, 1]
    >>> moved(row, Moves(jnp.array([0]), jnp.array([2]), jnp.array([True]))).ravel().tolist()
    [1, 0, 1, 2]
    """
    number, height, width, _ = images.shape
    rows, columns = _reflected(moves.down, height), _reflected(moves.right, width)
    if moves.flipped is not None:
        columns = jnp.where(moves.flipped[:, None], width - 1 - columns, columns)
    # Ask for each pixel where it came from, all at once.
    return images[jnp.arange(number)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflected(offsets: Int32[Array, "batch"], side: int) -> Int32[Array, "batch side"]:
    """The place that each place of a side takes its pixel from."""
    places = jnp.abs(jnp.add.outer(offsets, jnp.arange(side, dtype=jnp.int32)))
    return jnp.minimum(places, 2 * (side - 1) - places)
