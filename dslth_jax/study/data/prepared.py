"""Data sets as tensorflow-datasets has prepared them. To read them takes no TensorFlow. Host side, numpy."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dslth_jax.study.data.form import Dataset, Images, Labels
from dslth_jax.study.system.console import warn


def versions(name: str, folder: Path) -> list[Path]:
    """The folders of the versions in which a data set is prepared in a data folder, the oldest first."""
    # A preparation that was killed leaves a folder incomplete.NAME.
    found = [path.parent for path in (folder / name).glob("[0-9]*/dataset_info.json")]
    return sorted(found, key=lambda path: [int(part) if part.isdecimal() else -1 for part in path.name.split(".")])


def read(name: str, prepared: Path) -> Dataset:
    """Read a data set from the folder of one of its versions; a ValueError where that cannot be."""
    import tensorflow_datasets as tfds

    # Its warnings (a faster decoder, folders that are not there yet) do not help a user of this library.
    logging.getLogger("absl").setLevel(logging.ERROR)
    with readable(name, prepared.parent.parent):
        builder = tfds.builder_from_directory(prepared)
        train, test = (read_split(builder.as_data_source(split)) for split in ("train", "test"))
        dataset = Dataset(*train, *test, classes=builder.info.features["label"].num_classes)
        if (known := str(tfds.builder(name, data_dir=prepared.parent.parent).version)) != prepared.name:
            warn(f"{name} is read as version {prepared.name}, which is prepared; tensorflow-datasets knows {known}")
    return dataset


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
