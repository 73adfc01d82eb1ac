"""The labels that one agent of a run gives to images of a file: `dslth predict`."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np

from dslth_jax.study.config import command
from dslth_jax.study.config.setting import setting
from dslth_jax.study.results.folders import write_table
from dslth_jax.study.results.models import load
from dslth_jax.study.system.machine import expect_file, expect_place


@dataclasses.dataclass(frozen=True)
class Predict:
    """The labels that one agent of a finished run gives to images."""

    folders: tuple[Path, ...]
    """The run folder, one alone."""
    images: Path
    """A .npy of uint8 images, (images, height, width, channels) or without channels for grey ones; or an .npz that
    holds them as its only array, or under the name images."""
    agent: int = setting(0, bounds="0..1000000")
    """Whose model it is, counted from 0."""
    out: Path = Path("labels.csv")
    """Gets a row for each image, its number and its label; what was in it is replaced."""


def write(settings: Predict) -> str:
    """Write the labels; returns where they are, in words."""
    if len(settings.folders) != 1:
        raise ValueError(f"one run folder was expected, got {len(settings.folders)}: name one")
    expect_place(settings.out)
    if settings.out.resolve() == settings.images.resolve():
        raise ValueError(f"--out {settings.out} is the file of the images, which it would replace: name another")
    images = read_images(settings.images)
    labels = load(settings.folders[0]).agent(settings.agent).predict(images)
    rows = [{"image": number, "label": label} for number, label in enumerate(labels.tolist())]
    write_table(settings.out, rows)
    return f"labels of {len(rows)} images: {settings.out}"


def read_images(path: Path) -> np.ndarray:
    """The images of a file, with a channels axis; a ValueError if it holds none."""
    try:
        expect_file(path)
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.lib.npyio.NpzFile):
            with found:
                name = "images" if "images" in found.files else found.files[0] if len(found.files) == 1 else None
                found = found[name] if name else None
    except Exception as error:  # a torn zip archive raises many kinds
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is torn or something else"
        raise ValueError(f"the images {path} must be a readable .npy or .npz: {reason}") from None
    if not isinstance(found, np.ndarray):
        raise ValueError(f"the images {path} must be one array, or stand under the name images: name it so")
    return found[..., None] if found.ndim == 3 else found


main = partial(command.act, Predict, write)  # of a program's name, and of words
