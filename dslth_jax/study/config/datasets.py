"""Data sets: a name or a file to uint8 images and labels, split into training and test. Host side, numpy.

To read takes no TensorFlow; tensorflow-datasets needs it to prepare what it downloads. Heavy readers are imported where
they are used, and what they read is cached as one file.
"""

import contextlib
import functools
import hashlib
import http.client
import logging
import os
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from dslth_jax.naming import expect_choice
from dslth_jax.study.config.machine import cache_folder, expect_file

Images = UInt8[np.ndarray, "samples height width channels"]
Labels = Int32[np.ndarray, "samples"]


class Dataset(NamedTuple):
    """Images of 0..255 and labels of 0..classes-1."""

    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels
    classes: int


# What other libraries call the arrays of a file.
OTHER_NAMES = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}
CHANNELS = (1, 3, 4)  # of images, as many as there are
MOST_CLASSES = 100_000  # more than that are no labels but something else

# What tensorflow-datasets prepares, with the host its download comes from.
TFDS_HOSTS = {
    "cifar10": "https://www.cs.toronto.edu",
    "cifar100": "https://www.cs.toronto.edu",
    "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    "mnist": "https://storage.googleapis.com",
    "svhn_cropped": "http://ufldl.stanford.edu",
}


def named(name: str, file: Path | None, folder: Path | None, side: int | None = None) -> Dataset:
    """The data set that the settings name: in a file, or by its name; with images of their size."""
    dataset = load_file(file) if file else load(name, folder)
    if side is None:
        return dataset
    try:
        return resized(dataset, side)
    except ValueError as error:
        raise ValueError(f"--resize {side}: {error}; --resize None leaves them as they are") from None


def load(name: str | Path, data_dir: Path | None = None) -> Dataset:
    """The data set of a name in `READERS`, of an .npz file, or of a folder that tensorflow-datasets has prepared.

    For a file see `load_file`; a folder's path ends in such a name (".../cifar10"). `data_dir` is where
    tensorflow-datasets keeps its data, None its own default. A ValueError where the name is unknown, the folder does
    not exist, or the data is neither there nor to be had.
    """
    path = Path(name)
    if path.suffix == ".npz":
        return load_file(path)
    if path.name in READERS and len(path.parts) > 1:  # a name alone is no folder, whatever lies in the current one
        name, data_dir = path.name, path.parent
    expect_choice("dataset", str(name), list(READERS))
    return READERS[str(name)](data_dir)


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


def of_tfds(name: str, data_dir: Path | None) -> Dataset:
    """A data set that tensorflow-datasets has prepared, or prepares."""
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    try:
        folder = folder.expanduser().resolve()
        exists = folder.is_dir()
    except (OSError, RuntimeError, ValueError):  # a name too long, somebody unknown's home, a loop of links
        if data_dir is None:
            raise ValueError(f"the data folder {folder} cannot be found: give another by --data-dir") from None
        exists = False
    if data_dir is not None and not exists:
        raise ValueError(f"the data folder {folder} does not exist or is no folder: create it, or leave --data-dir out")
    if folder.name == name and not (folder / name).is_dir():
        raise ValueError(f"--data-dir must be the folder that holds {name}, got {folder} itself: give {folder.parent}")
    return cached(folder / name, lambda: read_tfds(name, folder))


def digits() -> Dataset:
    """scikit-learn's 8x8 handwritten digits (1,797 samples); a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return Dataset._make([*parts[::2], *parts[1::2], 10])  # of either array the training part stands first


# By name; a script may add to them.
READERS: dict[str, Callable[[Path | None], Dataset]] = {
    **{name: functools.partial(of_tfds, name) for name in TFDS_HOSTS},
    "digits": lambda _: digits(),
}


def read_tfds(name: str, folder: Path) -> Dataset:
    """Read with tensorflow-datasets from `folder`, downloading first where the network allows it."""
    import tensorflow_datasets as tfds

    # Its warnings (a faster decoder, folders that are not there yet) do not help a user of this library.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with readable(name, folder):
        builder = tfds.builder(name, data_dir=folder)
    # Ask this first: to read data that is not prepared ends in minutes of retries or a misleading error.
    if not builder.is_prepared():
        obstacle = ""
        if find_spec("tensorflow") is None:
            obstacle = "tensorflow-datasets prepares it with TensorFlow, which is not installed (to read it needs none)"
        elif not reachable(TFDS_HOSTS[name]):
            obstacle = f"{TFDS_HOSTS[name]} cannot be reached to download it"
        if obstacle:
            raise ValueError(
                f"{name} is not prepared in {folder} (no {name}/VERSION there) and {obstacle}: "
                f"give --data-dir a prepared folder, or use --dataset digits, which needs no download"
            )
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # of many kinds: no disk, no mirror, a broken archive
            raise ValueError(f"{name} could not be downloaded into {folder}: {error}") from error
    with readable(name, folder):
        train, test = (read_split(builder.as_data_source(split)) for split in ("train", "test"))
        return Dataset(*train, *test, classes=builder.info.features["label"].num_classes)


@contextlib.contextmanager
def readable(name: str, folder: Path) -> Iterator[None]:
    """Whatever is raised of data that cannot be read is a ValueError."""
    try:
        yield
    except NotImplementedError:
        raise ValueError(
            f"{name} in {folder} is prepared in a format that only TensorFlow reads: "
            f"give --data-dir another folder, into which it is prepared anew as array_record"
        ) from None
    except Exception as error:  # of many kinds, one for each thing that files can lack, and the readers' own
        raise ValueError(
            f"{name} in {folder} must be as tensorflow-datasets prepared it, and cannot be read "
            f"({' '.join(str(error.__cause__ or error).split())}): mend it, or give another --data-dir"
        ) from error


def read_split(source: Any, batch: int = 1000) -> tuple[Images, Labels]:
    """All images and labels of one split, in the order of its records."""
    images, labels = [], []
    for start in range(0, len(source), batch):
        records = source.__getitems__(range(start, min(start + batch, len(source))))
        images.append(np.stack([record["image"] for record in records]))
        labels.append(np.array([record["label"] for record in records], np.int32))
    return np.concatenate(images), np.concatenate(labels)


def reachable(address: str, seconds: float = 2.0) -> bool:
    """Whether a host answers within `seconds`, name look-up included (which has no limit of its own)."""
    answered = threading.Event()

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            with contextlib.suppress(urllib.request.HTTPError):  # an answer, too
                urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=seconds).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def cached(prepared: Path, read: Callable[[], Dataset]) -> Dataset:
    """What `read` returns, kept in the user's cache folder for as long as the files under `prepared` stay the same.

    Where there is no such folder, or it cannot be written to, that costs the cache and nothing else.
    """
    files = sorted(path for path in prepared.rglob("*") if path.is_file()) if prepared.is_dir() else []
    cache = cache_folder(make=False)
    if not files or cache is None:
        return read()
    signature = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(signature).encode()).hexdigest()[:16]
    path = cache / f"{prepared.name}-{digest}.npz"
    with contextlib.suppress(ValueError):
        return load_file(path)
    dataset = read()
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        # Write beside and rename, so that nobody ever reads half a file.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(folder) / "part.npz"
            np.savez(part, **dataset._asdict())
            part.replace(path)
    return dataset


def load_file(path: Path) -> Dataset:
    """A data set of one's own: an .npz with train_images, train_labels, test_images, test_labels.

    Images are uint8 of (samples, height, width, channels), or without the channels axis for grey ones; labels are whole
    numbers from 0. Floats that are whole numbers in these ranges do as well, and x_train, y_train, x_test and y_test as
    names. `classes` may be given; otherwise it is the largest label plus one.
    """
    wanted, known = tuple(OTHER_NAMES), (*OTHER_NAMES, *OTHER_NAMES.values(), "classes")
    try:
        expect_file(path)
        # Open it here: numpy leaves a torn file open. What is no array in it comes as bytes.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {key: np.asarray(file[key]) for key in known if key in file}
    except Exception as error:  # a torn zip archive raises many kinds
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is torn or something else"
        raise ValueError(f"the data file {path} must be a readable .npz: {reason}") from None
    arrays = {key: found[other] for key, other in OTHER_NAMES.items() if other in found} | found
    if missing := [key for key in wanted if key not in arrays]:
        raise ValueError(f"the data file {path} must hold {', '.join(wanted)}; it lacks {', '.join(missing)}")
    train, test = (
        _checked_split(path, split, arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")
    )
    sizes = [images.shape[1:] for images, _ in (train, test)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"training and test images in {path} must have one shape, got {sizes[0]} and {sizes[1]}")
    largest = int(max(labels.max() for _, labels in (train, test)))
    classes = arrays.get("classes", np.array(largest + 1))
    is_whole = classes.shape == () and classes.dtype.kind in "iu"
    if not is_whole or not largest < classes <= MOST_CLASSES:
        raise ValueError(
            f"classes in {path} must be one whole number above every label, of which {largest} is the largest, "
            f"and at most {MOST_CLASSES}, got {classes if is_whole else f'{classes.dtype} of {classes.shape}'}"
        )
    return Dataset(*train, *test, int(classes))


def as_whole_numbers(values: np.ndarray, kind: type[np.integer]) -> np.ndarray:
    """Floats as whole numbers of a kind, where all of them are such; all else as it is."""
    if values.dtype.kind != "f" or not values.size:
        return values
    bounds = np.iinfo(kind)
    whole = np.isfinite(values).all() and values.min() >= bounds.min and values.max() < bounds.max + 1.0
    return values.astype(kind) if whole and (values == np.floor(values)).all() else values


def _checked_split(path: Path, split: str, images: np.ndarray, labels: np.ndarray) -> tuple[Images, Labels]:
    if images.dtype.kind == "f" and images.size and images.max() > 1:  # else they are shares of the brightest
        images = as_whole_numbers(images, np.uint8)
    labels = as_whole_numbers(labels, np.int64)
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        raise ValueError(
            f"{split}_images in {path} must be uint8 of (samples, height, width, channels), and have channels first, "
            f"{images.shape}: save {split}_images.transpose(0, 2, 3, 1)"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            f"{split}_images in {path} must be uint8 of (samples, height, width, channels), "
            f"got {images.dtype} of {images.shape}"
            + ("; scale them to 0..255 and round them" if images.dtype.kind == "f" else "")
        )
    # Not by subclass: spans of time count as integers there.
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{split}_labels in {path} must be {len(images)} whole numbers, got {labels.dtype} of {labels.shape}"
            + ("; of one-hot rows take the argmax" if labels.ndim == 2 else "")
        )
    if labels.size == 0 or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise ValueError(f"{split}_labels in {path} must not be empty, count from 0 and stay below {MOST_CLASSES}")
    return images, labels.astype(np.int32)
