"""Data sets as their makers give them away: every form is read alike, downloads are whole or not there at all.

The files here are small, and of the makers' forms; the host is on this machine.
"""

import gzip
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest

from dslth_jax.study.data import datasets, originals
from dslth_jax.study.data.originals import ORIGINALS

NAMES = pytest.mark.parametrize("name", ORIGINALS)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """No data of this machine, and a cache of the test's own."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "usual"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(name):
    """A few images and labels of a data set, training and test."""
    rng, grey = np.random.default_rng(0), "mnist" in name
    shape = (28, 28, 1) if grey else (32, 32, 3)
    numbers = (10, 3) if name == "cifar10" else (7, 3)
    return [
        (rng.integers(0, 256, (number, *shape), np.uint8), rng.integers(0, ORIGINALS[name].classes, number, np.int32))
        for number in numbers
    ]


def rows(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def cifar(name, train, test, python):
    """The files of either CIFAR by their names, in its Python version or its binary one."""
    parts = {"train": train, "test": test}
    if name == "cifar10":
        batches = {f"data_batch_{number + 1}": tuple(own[2 * number :][:2] for own in train) for number in range(5)}
        parts = batches | {"test_batch": test}
    if python:
        label = b"labels" if name == "cifar10" else b"fine_labels"
        of = {key: {b"data": rows(images), label: labels.tolist()} for key, (images, labels) in parts.items()}
        # The makers' numpy called its module so.
        new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
        return {key: pickle.dumps(batch, protocol=2).replace(new, old) for key, batch in of.items()}
    coarse = 0 if name == "cifar10" else 1  # labels before the one that counts
    records = {
        f"{key}.bin": np.hstack([np.full((len(labels), coarse), 99), labels[:, None], rows(images)])
        for key, (images, labels) in parts.items()
    }
    return {key: record.astype(np.uint8).tobytes() for key, record in records.items()}


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def mat(images, labels):
    from scipy.io import savemat

    file = io.BytesIO()
    savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": np.where(labels == 0, 10, labels)[:, None]})
    return file.getvalue()


def given_away(name, form):
    """The files of a form of a data set, by their names."""
    train, test = pictures(name)
    if name.startswith("cifar"):
        return cifar(name, train, test, python="python" in form.archive)
    if name == "svhn_cropped":
        return {"train_32x32.mat": mat(*train), "test_32x32.mat": mat(*test)}
    each = zip((*originals.MNIST_TRAIN, *originals.MNIST_TEST), (*train, *test), strict=True)
    return {file: idx(array[..., 0] if array.ndim == 4 else array) for file, array in each}


def archived(form, files):
    """A form's archive of its files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{form.folder}/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def assert_is(loaded, name):
    """The data set has exactly the pictures of this name, in their order."""
    (images, labels), (test_images, test_labels) = pictures(name)
    expected = (images, labels, test_images, test_labels, ORIGINALS[name].classes)
    for ours, theirs in zip(loaded[:5], expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.train_labels.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "form", "place"),
    [(name, form, place) for name, own in ORIGINALS.items() for form in own.forms for place in own.folders],
    ids=lambda value: getattr(value, "folder", value),
)
def test_every_form_is_read_wherever_it_lies(name, form, place, tmp_path):
    """Unpacked, packed file by file, and in its archive."""
    files = given_away(name, form)
    put(tmp_path / "plain" / place / form.folder, files)
    put(tmp_path / "packed" / place / form.folder, {f"{key}.gz": gzip.compress(own) for key, own in files.items()})
    ways = ["plain", "packed"]
    if form.archive:
        put(tmp_path / "archive" / place, {form.archive: archived(form, files)})
        ways.append("archive")
    for way in ways:
        assert_is(datasets.load(name, tmp_path / way), name)


def test_an_archive_is_read_beside_a_folder_that_is_not_whole(tmp_path):
    form = ORIGINALS["cifar10"].forms[1]
    files = given_away("cifar10", form)
    put(tmp_path / form.folder, {"data_batch_1": files["data_batch_1"]})
    put(tmp_path, {form.archive: archived(form, files)})
    assert_is(datasets.load("cifar10", tmp_path), "cifar10")


def test_pickles_run_nothing(tmp_path):
    """A data file of a stranger's is data."""
    form = ORIGINALS["cifar10"].forms[1]
    put(tmp_path / form.folder, given_away("cifar10", form) | {"data_batch_3": pickle.dumps(print)})
    with pytest.raises(ValueError, match=r"cifar10 in .* cannot be read \(it holds .*print, and not only arrays\)"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\x1f\x8b torn"])
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    form = ORIGINALS["mnist"].forms[0]
    put(tmp_path / "mnist", given_away("mnist", form) | {originals.MNIST_TEST[1]: damage})
    with pytest.raises(ValueError, match=r"^mnist in \S+ must be as its makers give it away, and [^\n]*$"):
        datasets.load("mnist", tmp_path)


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host that gives files away, breaks off after `most` bytes of each, and counts what it was asked for."""
    folder, asked = tmp_path / "host", []

    class Handler(http.server.SimpleHTTPRequestHandler):
        most = None

        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def copyfile(self, source, target):
            asked.append(self.path)
            target.write(source.read(self.most))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def gives(name):
        """The files of a data set, small ones, with their own hashes."""
        own = ORIGINALS[name]
        form = own.forms[0]
        files = given_away(name, form)
        if form.archive:
            files = {form.archive: archived(form, files)}
        elif "mnist" in name:
            files = {f"{key}.gz": gzip.compress(content) for key, content in files.items()}
        put(folder, files)
        assert set(files) == set(own.digests)
        digests = {key: hashlib.sha256(content).hexdigest() for key, content in files.items()}
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setitem(ORIGINALS, name, own._replace(address=address, digests=digests))
        return asked, Handler

    yield gives
    server.shutdown()
    server.server_close()


@NAMES
@pytest.mark.parametrize("given", [True, False], ids=["a folder given", "the cache folder"])
def test_what_is_not_there_is_downloaded_once(host, name, given, tmp_path, capfd):
    asked, _ = host(name)
    (tmp_path / "data").mkdir()
    data_dir = tmp_path / "data" if given else None
    assert_is(datasets.load(name, data_dir), name)
    files = sorted(f"/{file}" for file in ORIGINALS[name].digests)
    assert sorted(asked) == files
    kept = (data_dir or tmp_path / "cache" / "dslth_jax") / name
    assert {path.name for path in kept.iterdir()} == {*ORIGINALS[name].digests, ".lock"}
    assert capfd.readouterr().err.count(f"downloading {name}: ") == len(files)
    assert_is(datasets.load(name, data_dir), name)
    assert sorted(asked) == files


@pytest.mark.parametrize("fault", ["another file", "breaks off"])
def test_a_file_that_is_not_what_it_was_is_not_kept(host, tmp_path, fault):
    """And what is, at the next time, is."""
    _, handler = host("cifar10")
    whole = ORIGINALS["cifar10"]
    (archive,) = whole.digests
    if fault == "another file":
        ORIGINALS["cifar10"] = whole._replace(digests={archive: "0" * 64})
    else:
        handler.most = 1000
    with pytest.raises(ValueError, match=r"^cifar10 is not in \S+,[^\n]*, and downloading it from[^\n]*failed[^\n]*$"):
        datasets.load("cifar10", tmp_path)
    assert [path.name for path in (tmp_path / "cifar10").iterdir()] == [".lock"]
    ORIGINALS["cifar10"], handler.most = whole, None
    assert_is(datasets.load("cifar10", tmp_path), "cifar10")


def test_of_several_that_share_a_disk_one_downloads(host, tmp_path):
    asked, _ = host("svhn_cropped")
    loaded = []
    threads = [threading.Thread(target=lambda: loaded.append(datasets.load("svhn_cropped"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 3
    for one in loaded:
        assert_is(one, "svhn_cropped")
    assert sorted(asked) == sorted(f"/{file}" for file in ORIGINALS["svhn_cropped"].digests)
