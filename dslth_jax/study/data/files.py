"""A data set of one's own: an .npz file. Host side, numpy."""

from pathlib import Path

import numpy as np

from dslth_jax.study.data.form import MOST_CLASSES, Dataset, checked_images, checked_labels, numbered
from dslth_jax.study.system.machine import expect_file

# What a file must hold, and what other libraries call it.
OTHER_NAMES = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}
PERHAPS = ("classes", "owner", "test_owner")


def load_file(path: Path) -> Dataset:
    """A data set of one's own: an .npz with train_images, train_labels, test_images, test_labels.

    Images are uint8 of (samples, height, width, channels), or without the channels axis for grey ones. Labels are whole
    numbers or words: those of 0..classes-1 are the classes' numbers, where `classes` is given or none of these is
    missing; all others are numbered in their order, and `own_labels` keeps them. Floats that are whole numbers do as
    well, and x_train, y_train, x_test and y_test as names. `owner` may say whose each training sample is, `test_owner`
    whose each test sample is; see `partition.owned`. Raises a ValueError that says what is wrong.
    """
    arrays = read_arrays(path)
    if missing := [key for key in OTHER_NAMES if key not in arrays]:
        raise ValueError(f"the data file {path} must hold {', '.join(OTHER_NAMES)}; it lacks {', '.join(missing)}")
    images = [checked_images(arrays[f"{part}_images"], f"{part}_images in {path}") for part in ("train", "test")]
    train, test = (
        checked_labels(arrays[f"{part}_labels"], len(own), f"{part}_labels in {path}")
        for part, own in zip(("train", "test"), images, strict=True)
    )
    sizes = [own.shape[1:] for own in images]
    if sizes[0] != sizes[1]:
        raise ValueError(f"training and test images in {path} must have one shape, got {sizes[0]} and {sizes[1]}")
    owners = {
        name: checked_labels(arrays[name], len(own), f"{name} in {path}")
        for name, own in zip(("owner", "test_owner"), images, strict=True)
        if name in arrays
    }
    own_labels: tuple[int | str, ...] = ()
    if "classes" in arrays and "U" in (train.dtype.kind, test.dtype.kind):
        raise ValueError(f"classes in {path} goes with labels that are numbers, and there are words: leave it out")
    if "classes" in arrays:
        classes = count_of_classes(arrays["classes"], train, test, path)
        train, test = train.astype(np.int32), test.astype(np.int32)
    else:
        try:
            train, test, own_labels = numbered(train, test)
        except ValueError as error:
            raise ValueError(f"the data file {path}: {error}") from None
        classes = len(own_labels)
    own_labels = () if own_labels == tuple(range(classes)) else own_labels
    return Dataset(images[0], train, images[1], test, classes, own_labels, **owners, source=path.name)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a data file, by our names."""
    known = (*OTHER_NAMES, *OTHER_NAMES.values(), *PERHAPS)
    found, pickled = {}, []
    try:
        expect_file(path)
        # Open it here: numpy leaves a torn file open. What is no array in it comes as bytes.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            for key in (key for key in known if key in file):
                try:
                    found[key] = np.asarray(file[key])
                except ValueError as error:
                    if "allow_pickle" not in str(error):
                        raise
                    pickled.append(key)
    except Exception as error:  # a torn zip archive raises many kinds
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is torn or something else"
        raise ValueError(f"the data file {path} must be a readable .npz: {reason}") from None
    if pickled:
        raise ValueError(f"{pickled[0]} in {path} must be no Python objects: save it with .astype(str), or of numbers")
    return {key: found[other] for key, other in OTHER_NAMES.items() if other in found} | found


def count_of_classes(given: np.ndarray, train: np.ndarray, test: np.ndarray, path: Path) -> int:
    """How many classes there are, as a file says beside labels from 0; a ValueError where that cannot be."""
    both = np.concatenate([train, test])
    least, largest = int(both.min()), int(both.max())
    is_whole = given.shape == () and given.dtype.kind in "iu"
    if not is_whole or not largest < given <= MOST_CLASSES:
        raise ValueError(
            f"classes in {path} must be one whole number above every label, of which {largest} is the largest, "
            f"and at most {MOST_CLASSES}, got {given if is_whole else f'{given.dtype} of {given.shape}'}"
        )
    if least < 0:
        raise ValueError(f"labels in {path} must count from 0 where it gives classes, got {least}: leave classes out")
    return int(given)
