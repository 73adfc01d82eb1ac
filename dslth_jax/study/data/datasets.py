"""Data sets by name: what is there is read, what is not is downloaded. Host side, numpy.

Heavy readers are imported where they are used, and what they read is cached as one file.
"""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dslth_jax.naming import expect_choice
from dslth_jax.study.data import originals, prepared
from dslth_jax.study.data.download import download
from dslth_jax.study.data.files import load_file
from dslth_jax.study.data.form import Dataset, resized
from dslth_jax.study.data.originals import ORIGINALS
from dslth_jax.study.system.machine import cache_folder


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
    """The data set of a name in `READERS`, of an .npz file, or of a folder that holds it.

    For a file see `load_file`; a folder's path ends in such a name (".../cifar10"). `data_dir` is where data sets lie:
    prepared by tensorflow-datasets, as their makers give them away, or as torchvision keeps them; None is the usual
    folder of tensorflow-datasets. What is not there is downloaded into `data_dir`, or into the user's cache folder. A
    ValueError where the name is unknown, the folder does not exist, or the data is neither there nor to be had.
    """
    path = Path(name)
    if path.suffix == ".npz":
        return load_file(path)
    if path.name in READERS and len(path.parts) > 1:  # a name alone is no folder, whatever lies in the current one
        name, data_dir = path.name, path.parent
    expect_choice("dataset", str(name), list(READERS))
    return READERS[str(name)](data_dir)


def of_name(name: str, data_dir: Path | None) -> Dataset:
    """A data set of `ORIGINALS`, from where it lies, or else downloaded."""
    folder = data_folder(data_dir)
    if versions := prepared.versions(name, folder):
        files = sorted(path for path in versions[-1].rglob("*") if path.is_file())
        source = f"{name} {versions[-1].name}, prepared by tensorflow-datasets"
        return cached(name, files, lambda: prepared.read(name, versions[-1]))._replace(source=source)
    kept = folder if data_dir else cache_folder(make=False)
    places = (originals.find(name, place) for place in (folder, kept) if place)
    if found := next(filter(None, places), None):
        form, files = found
        source = f"{form.folder or name}, as its makers give it away"
        return cached(name, files, lambda: originals.read(name, form, files))._replace(source=source)
    if folder.name == name:
        raise ValueError(f"--data-dir must be the folder that holds {name}, got {folder} itself: give {folder.parent}")
    missing = f"{name} is not in {folder}, neither prepared by tensorflow-datasets nor as its makers give it away"
    instead = "give --data-dir a folder that has it, or use --dataset digits, which needs no download"
    if kept is None:
        raise ValueError(f"{missing}, and there is no cache folder to download it into: {instead}")
    try:
        download(name, ORIGINALS[name].address, ORIGINALS[name].digests, kept / name)
    except ValueError as error:
        raise ValueError(f"{missing}, and {error}: {instead}") from None
    return of_name(name, data_dir)


def data_folder(data_dir: Path | None) -> Path:
    """The folder in which data sets lie, as it is given or the usual one; a ValueError where a given one does not
    exist."""
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
    return folder


def digits() -> Dataset:
    """scikit-learn's 8x8 handwritten digits (1,797 samples); a fixed stratified fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int32)
    parts = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    return Dataset(parts[0], parts[2], parts[1], parts[3], 10, source="scikit-learn")  # parts: training, test


# By name; a script may add to them.
READERS: dict[str, Callable[[Path | None], Dataset]] = {
    **{name: functools.partial(of_name, name) for name in ORIGINALS},
    "digits": lambda _: digits(),
}


def cached(name: str, files: Sequence[Path], read: Callable[[], Dataset]) -> Dataset:
    """What `read` returns, kept in the user's cache folder for as long as the `files` that it reads stay the same.

    Where there is no such folder, or it cannot be written to, that costs the cache and nothing else.
    """
    cache = cache_folder(make=False)
    if not files or cache is None:
        return read()
    signature = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    digest = hashlib.sha256(repr(signature).encode()).hexdigest()[:16]
    path = cache / f"{name}-{digest}.npz"
    with contextlib.suppress(ValueError):
        return load_file(path)
    dataset = read()
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        # Write beside and rename, so that nobody ever reads half a file.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(folder) / "part.npz"
            arrays: dict[str, Any] = dict(zip(Dataset._fields[:5], dataset, strict=False))  # all that such data has
            np.savez(part, **arrays)
            part.replace(path)
    return dataset
