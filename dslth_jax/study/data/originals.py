"""Data sets as their makers give them away: archives, or the folders that torchvision makes of these. Host side, numpy.

A row of `ORIGINALS` says in which forms a data set may lie, and what of them is downloaded. All forms hold the same
images in the same order.
"""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dslth_jax.study.data.form import Dataset, Images, Labels

Part = tuple[Images, Labels]  # training, or test
MNIST_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
MNIST_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR_PIXELS = 3 * 32 * 32


class Form(NamedTuple):
    """A form in which a data set lies in a folder: files side by side, each perhaps with .gz behind its name, in a
    folder of their own or in an archive that holds this folder."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[Sequence[bytes]], Part]  # what files hold
    folder: str = ""
    archive: str = ""


class Original(NamedTuple):
    """A data set of a maker."""

    classes: int
    forms: tuple[Form, ...]
    folders: tuple[str, ...]  # of the data folder, in which it may lie
    address: str  # from where it is downloaded
    digests: dict[str, str]  # the files that are, and the SHA-256 of each


class Unpickler(pickle.Unpickler):
    """Makes nothing but arrays and what Python has built in: a file may come from anywhere."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, or the function, of a name."""
        of_arrays = module.partition(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype")
        if of_arrays or (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and not only arrays")


def cifar_bytes(files: Sequence[bytes], labels: int) -> Part:
    """The binary form of CIFAR (Krizhevsky 2009): records of so many `labels`, of which the last counts, and pixels."""
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, labels + CIFAR_PIXELS)
    return cifar_images(records[:, labels:]), records[:, labels - 1].astype(np.int32)


def cifar_pickles(files: Sequence[bytes], label: bytes) -> Part:
    """The Python form of CIFAR: dictionaries of rows of pixels, and of labels under a name."""
    batches = [Unpickler(io.BytesIO(file), encoding="bytes").load() for file in files]
    pixels = np.concatenate([np.asarray(batch[b"data"], np.uint8) for batch in batches])
    return cifar_images(pixels), np.concatenate([np.asarray(batch[label], np.int32) for batch in batches])


def cifar_images(pixels: np.ndarray) -> Images:
    """Images of rows of pixels, which have the channels first."""
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def idx(files: Sequence[bytes]) -> Part:
    """The form of MNIST (LeCun et al. 1998): images, labels; each a head of its shape, and bytes."""
    images, labels = (
        np.frombuffer(file, np.uint8, offset=4 + 4 * file[3]).reshape(np.frombuffer(file, ">u4", file[3], 4))
        for file in files
    )
    return images[..., None], labels.astype(np.int32)


def matlab(files: Sequence[bytes]) -> Part:
    """The form of SVHN (Netzer et al. 2011): samples last, and 10 for the digit 0."""
    from scipy.io import loadmat

    (found,) = (loadmat(io.BytesIO(file)) for file in files)
    return np.ascontiguousarray(found["X"].transpose(3, 0, 1, 2)), found["y"].reshape(-1).astype(np.int32) % 10


def binary(names: Sequence[str]) -> tuple[str, ...]:
    """The names of files in the binary form of CIFAR."""
    return tuple(f"{name}.bin" for name in names)


CIFAR10_FORMS = (
    Form(
        binary(CIFAR_TRAIN), binary(["test_batch"]), partial(cifar_bytes, labels=1), "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
    ),
    Form(
        CIFAR_TRAIN, ("test_batch",), partial(cifar_pickles, label=b"labels"), "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
    ),
)  # fmt: skip
CIFAR100_FORMS = (
    Form(
        binary(["train"]), binary(["test"]), partial(cifar_bytes, labels=2), "cifar-100-binary",
        "cifar-100-binary.tar.gz",
    ),
    Form(
        ("train",), ("test",), partial(cifar_pickles, label=b"fine_labels"), "cifar-100-python",
        "cifar-100-python.tar.gz",
    ),
)  # fmt: skip
MNIST_FORMS = (Form(MNIST_TRAIN, MNIST_TEST, idx),)
SVHN_FORMS = (Form(("train_32x32.mat",), ("test_32x32.mat",), matlab),)

ORIGINALS = {
    "cifar10": Original(
        10, CIFAR10_FORMS, ("", "cifar10"), "https://www.cs.toronto.edu/~kriz",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
    "cifar100": Original(
        100, CIFAR100_FORMS, ("", "cifar100"), "https://www.cs.toronto.edu/~kriz",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
    ),
    "fashion_mnist": Original(
        10, MNIST_FORMS, ("fashion_mnist", "FashionMNIST/raw", "FashionMNIST"),
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "mnist": Original(
        10, MNIST_FORMS, ("mnist", "MNIST/raw", "MNIST"), "https://storage.googleapis.com/cvdf-datasets/mnist",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
    ),
    "svhn_cropped": Original(
        10, SVHN_FORMS, ("", "svhn_cropped"), "http://ufldl.stanford.edu/housenumbers",
        {
            "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        },
    ),
}  # fmt: skip


def find(name: str, folder: Path) -> tuple[Form, list[Path]] | None:
    """The form in which a data set lies in a data folder, and its files, training first; None where it does not."""
    own = ORIGINALS[name]
    for place in (folder / inner for inner in own.folders):
        for form in own.forms:
            names = [*form.train, *form.test]
            spelled = [(place / form.folder / one, place / form.folder / f"{one}.gz") for one in names]
            files = [next(filter(Path.is_file, both), None) for both in spelled]
            found = [file for file in files if file is not None]
            if len(found) == len(names):
                return form, found
            if form.archive and (place / form.archive).is_file():
                return form, [place / form.archive]
    return None


def read(name: str, form: Form, files: Sequence[Path]) -> Dataset:
    """A data set of these files, as `find` has found them; a ValueError where they cannot be read."""
    try:
        if form.archive and files[0].name == form.archive:
            with tarfile.open(files[0]) as archive:
                contents = [member(archive, f"{form.folder}/{one}") for one in (*form.train, *form.test)]
        else:
            whole = (file.read_bytes() for file in files)
            contents = [gzip.decompress(own) if own[:2] == b"\x1f\x8b" else own for own in whole]
        train, test = form.read(contents[: len(form.train)]), form.read(contents[len(form.train) :])
        classes = ORIGINALS[name].classes
        for images, labels in (train, test):
            if len(images) != len(labels) or not len(labels) or labels.min() < 0 or labels.max() >= classes:
                raise ValueError(f"{len(images)} images go with {len(labels)} labels, which must be below {classes}")
        return Dataset(*train, *test, classes)
    except Exception as error:  # of many kinds, one for each thing that files can lack
        where = files[0] if len(files) == 1 else files[0].parent
        # What tar files may be compressed by is all said where one is none.
        reason = "it is no tar file" if isinstance(error, tarfile.ReadError) else " ".join(str(error).split())
        raise ValueError(
            f"{name} in {where} must be as its makers give it away, and cannot be read "
            f"({reason or type(error).__name__}): remove it, or mend it"
        ) from error


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """What a file in an archive holds."""
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()
