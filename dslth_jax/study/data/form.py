"""The form of a data set: uint8 images, and labels as numbers of classes, whatever the data itself calls them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from dslth_jax.partition import Owners

Images = UInt8[np.ndarray, "samples height width channels"]
Labels = Int32[np.ndarray, "samples"]

CHANNELS = (1, 3, 4)  # of images, as many as there are
MOST_CLASSES = 100_000  # more than that are no labels but something else


class Dataset(NamedTuple):
    """Images of 0..255 and labels of 0..classes-1, split into training and test."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: int
    own_labels: tuple[int | str, ...] = ()  # the data's own word for each class; empty where these are 0..classes-1
    owner: Owners | None = None  # whose each training sample is, where the data says so
    test_owner: Owners | None = None
    source: str = ""  # what it was read from, in words


def resized(dataset: Dataset, side: int) -> Dataset:
    """The data set with images of `side` pixels a side: each pixel is the mean of a square block, halves rounded up.

    Raises a ValueError unless images are square and `side` divides theirs.
    """
    height, width = dataset.train_images.shape[1:3]
    fitting = [one for one in range(1, height + 1) if height % one == 0]
    if height != width:
        raise ValueError(f"only square images can be resized, got {height}x{width} pixels")
    if side not in fitting:
        raise ValueError(f"side must divide the {height} pixels of the images' side, got {side}: be one of {fitting}")
    block = height // side

    def means(images: Images) -> Images:
        blocks = images.reshape(len(images), side, block, side, block, -1)
        return ((blocks.sum(axis=(2, 4), dtype=np.uint32) + block**2 // 2) // block**2).astype(np.uint8)

    return dataset._replace(train_images=means(dataset.train_images), test_images=means(dataset.test_images))


def numbered(train: np.ndarray, test: np.ndarray) -> tuple[Labels, Labels, tuple[int | str, ...]]:
    """Labels of any whole numbers, or of words, as numbers of classes in their order; and the label of each class.

    Raises a ValueError where there are numbers in one part and words in the other, or too many different ones.

    >>> numbered(np.array(["dog", "cat", "dog"]), np.array(["cat"]))
    (array([1, 0, 1], dtype=int32), array([0], dtype=int32), ('cat', 'dog'))
    """
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise ValueError(f"training and test labels must both be words or numbers, got {train.dtype} and {test.dtype}")
    own, numbers = np.unique(np.concatenate([train, test]), return_inverse=True)
    if len(own) > MOST_CLASSES:
        raise ValueError(f"there must be at most {MOST_CLASSES} classes, got {len(own)} different labels")
    first, second = np.split(numbers.astype(np.int32), [len(train)])
    return first, second, tuple(own.tolist())


def checked_images(images: np.ndarray, name: str) -> Images:
    """Images as uint8 with a channels axis, also of floats that are whole numbers; a ValueError if they are none."""
    if images.dtype.kind == "f" and images.size and images.max() > 1:  # else they are shares of the brightest
        images = as_whole_numbers(images, np.uint8)
    if images.ndim == 3:
        images = images[..., None]
    wanted = f"{name} must be uint8 of (samples, height, width, channels)"
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        bare = name.split()[0]
        raise ValueError(f"{wanted}, and have channels first, {images.shape}: save {bare}.transpose(0, 2, 3, 1)")
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        instead = "; scale them to 0..255 and round them" if images.dtype.kind == "f" else ""
        raise ValueError(f"{wanted}, got {images.dtype} of {images.shape}{instead}")
    return images


def checked_labels(labels: np.ndarray, samples: int, name: str) -> np.ndarray:
    """One whole number, or one word, for each of so many samples; a ValueError if they are something else."""
    labels = as_whole_numbers(labels, np.int64)
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} must be words in UTF-8, and are not ({error.reason})") from None
    if labels.dtype.kind == "u":
        if labels.size and labels.max() >= 2**63:
            raise ValueError(f"{name} must be below {2**63}, got {labels.max()}: number the classes from 0")
        labels = labels.astype(np.int64)  # so that it goes with numbers that have signs
    # Not by subclass: spans of time count as integers there.
    if labels.dtype.kind not in "iuU" or labels.shape != (samples,):
        instead = "; of one-hot rows take the argmax" if labels.ndim == 2 else ""
        got = f"{labels.dtype} of {labels.shape}{instead}"
        raise ValueError(f"{name} must be {samples} whole numbers, or words, got {got}")
    if labels.size == 0:
        raise ValueError(f"{name} must not be empty")
    return labels


def as_whole_numbers(values: np.ndarray, kind: type[np.integer]) -> np.ndarray:
    """Floats as whole numbers of a kind, where all of them are such; all else as it is."""
    if values.dtype.kind != "f" or not values.size:
        return values
    bounds = np.iinfo(kind)
    whole = np.isfinite(values).all() and float(values.min()) >= bounds.min and float(values.max()) < bounds.max + 1.0
    return values.astype(kind) if whole and (values == np.floor(values)).all() else values
