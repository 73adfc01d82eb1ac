"""Data sets: what ships, one's own files and what is said of bad ones, what is missing, what is cached."""

import io
import os
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dslth_jax
from dslth_jax.study.data import datasets, download, files
from dslth_jax.study.data.originals import ORIGINALS


def arrays(**changed):
    """A small data set of three classes as a file holds it; None leaves a key out."""
    rng = np.random.default_rng(0)
    whole = {
        "train_images": rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.array([0, 1, 2, 0, 1, 2]),
        "test_images": rng.integers(0, 256, (2, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.array([1, 0]),
    } | changed
    return {key: value for key, value in whole.items() if value is not None}


@pytest.fixture
def file_of(tmp_path):
    def write(**changed):
        path = tmp_path / "own.npz"
        np.savez(path, **arrays(**changed))
        return path

    return write


def assert_same(actual, expected):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_digits_are_split_by_fifths_within_every_class():
    digits = datasets.load("digits")
    assert digits.train_images.shape == (1437, 8, 8, 1)
    assert digits.test_images.shape == (360, 8, 8, 1)
    assert digits.train_images.dtype == digits.test_images.dtype == np.uint8
    assert digits.train_labels.dtype == digits.test_labels.dtype == np.int32
    assert digits.classes == 10
    train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
    np.testing.assert_allclose(test, (train + test) / 5, atol=1)


def test_a_data_set_is_loaded_by_name_file_or_folder(file_of, tmp_path, monkeypatch):
    """From the top of the library, which imports no reader before."""
    assert_same(dslth_jax.load_data(file_of()), datasets.load_file(file_of()))
    monkeypatch.setitem(datasets.READERS, "mine", lambda folder: folder)
    assert (dslth_jax.load_data("mine"), dslth_jax.load_data(tmp_path / "mine")) == (None, tmp_path)


def test_digits_use_the_whole_range_and_are_the_same_each_time():
    first, again = datasets.digits(), datasets.digits()
    assert (first.train_images.min(), first.train_images.max()) == (0, 255)
    assert_same(first, again)


def test_digits_keep_each_image_with_its_label():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels_of = {}
    for image, label in zip(bunch.images, bunch.target, strict=True):
        labels_of.setdefault(np.rint(image / 16 * 255).astype(np.uint8).tobytes(), set()).add(label)
    digits = datasets.digits()
    images = np.concatenate([digits.train_images, digits.test_images])
    labels = np.concatenate([digits.train_labels, digits.test_labels])
    assert all(label in labels_of[image.tobytes()] for image, label in zip(images, labels, strict=True))
    # Every sample once: the two parts together are the whole.
    assert sorted(image.tobytes() for image in images) == sorted(
        np.rint(image / 16 * 255).astype(np.uint8).tobytes() for image in bunch.images
    )


def test_ones_own_file(file_of):
    loaded = datasets.load_file(file_of())
    assert_same(loaded[:5], (*arrays().values(), 3))
    assert loaded[5:] == ((), None, None, "own.npz")
    assert loaded.train_labels.dtype == loaded.test_labels.dtype == np.int32


def test_ones_own_file_may_be_grey_and_name_more_classes(file_of):
    grey = {key: arrays()[key][..., 0] for key in ("train_images", "test_images")}
    loaded = datasets.load_file(file_of(**grey, classes=7, test_labels=np.array([1, 0], np.uint8)))
    assert loaded.classes == 7
    for key, images in grey.items():
        np.testing.assert_array_equal(getattr(loaded, key), images[..., None])


@pytest.mark.parametrize("channels", [1, 3])
def test_resized_images_are_means_of_blocks(channels):
    """Rounded, halves up, in both parts; labels and classes stay."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (number, 12, 12, channels), dtype=np.uint8) for number in (5, 2))
    train[0, :2, :2, 0] = [[0, 1], [0, 1]]  # a half
    own = datasets.Dataset(train, np.arange(5, dtype=np.int32), test, np.arange(2, dtype=np.int32), 5)
    for side in (12, 6, 4, 1):
        made, block = datasets.resized(own, side), 12 // side
        for images, original in ((made.train_images, train), (made.test_images, test)):
            assert images.dtype == np.uint8
            assert images.shape == (len(original), side, side, channels)
            for sample, row, column, channel in np.ndindex(images.shape):
                down, right = (slice(place * block, (place + 1) * block) for place in (row, column))
                mean = original[sample, down, right, channel].astype(float).mean()
                assert images[sample, row, column, channel] == np.floor(mean + 0.5)
        assert_same(made[1::2], own[1::2])
    assert datasets.resized(own, 6).train_images[0, 0, 0, 0] == 1


def test_only_a_side_that_divides_a_square_is_taken():
    own = datasets.digits()
    for side in (0, 3, 16, -2):
        with pytest.raises(ValueError, match=rf"must divide the 8 pixels .*, got {side}: be one of \[1, 2, 4, 8\]$"):
            datasets.resized(own, side)
    with pytest.raises(ValueError, match=r"^only square images can be resized, got 8x4 pixels"):
        datasets.resized(own._replace(train_images=own.train_images[:, :, :4]), 4)


@pytest.mark.parametrize(
    ("train", "test", "own"),
    [
        ([1, 2, 3, 1, 2, 3], [2, 1], (1, 2, 3)),
        ([0, 1, 2, 0, 1, 2], [4, 0], (0, 1, 2, 4)),
        ([-1, 1, -1, 1, -1, 1], [1, -1], (-1, 1)),
        ([3, 7, 200, 3, 7, 200], [2**40, 3], (3, 7, 200, 2**40)),
        (["dog", "cat", "a b", "cat", "dog", "dog"], ["cat", "\u00e9mu"], ("a b", "cat", "dog", "\u00e9mu")),
        ([b"no", b"yes", b"no", b"yes", b"no", b"yes"], [b"yes", b"no"], ("no", "yes")),
    ],
    ids=["from 1", "a gap", "signs", "far apart", "words", "bytes"],
)
def test_labels_of_any_kind_are_numbered_in_their_order(file_of, train, test, own):
    """And kept: whoever is shown a class sees its own label."""
    loaded = datasets.load_file(file_of(train_labels=np.array(train), test_labels=np.array(test)))
    assert (loaded.own_labels, loaded.classes) == (own, len(own))
    for given, numbers in ((train, loaded.train_labels), (test, loaded.test_labels)):
        words = [one.decode() if isinstance(one, bytes) else one for one in given]
        assert ([own[number] for number in numbers], numbers.dtype) == (words, np.int32)


def test_numbers_with_and_without_signs_go_together(file_of):
    mixed = {"train_labels": np.array([1, 2, 3, 1, 2, 3], np.uint64), "test_labels": np.array([1, 2], np.int64)}
    assert datasets.load_file(file_of(**mixed)).own_labels == (1, 2, 3)
    mixed["train_labels"] += np.uint64(2**63 - 1)  # which floats would make one class of
    with pytest.raises(ValueError, match=f"train_labels .*must be below {2**63}, got {2**63 + 2}: number the classes"):
        datasets.load_file(file_of(**mixed))


def test_whole_floats_are_no_names_of_classes(file_of):
    for kind in (np.float64, np.float16):
        whole = np.array([0, 1, 2, 0, 1, 2], kind)
        assert datasets.load_file(file_of(train_labels=whole)).own_labels == ()


def test_owners_are_read_beside_the_labels(file_of):
    loaded = datasets.load_file(file_of(owner=np.array([0, 0, 1, 1, -1, 1]), test_owner=np.array(["x", "y"])))
    assert (loaded.owner.tolist(), loaded.test_owner.tolist()) == ([0, 0, 1, 1, -1, 1], ["x", "y"])


def test_floats_of_whole_numbers_and_other_names_are_taken(file_of, tmp_path):
    plain = datasets.load_file(file_of())
    other = {files.OTHER_NAMES[name]: getattr(plain, name).astype(np.float32) for name in files.OTHER_NAMES}
    np.savez(tmp_path / "other.npz", **other)
    assert_same(datasets.load_file(tmp_path / "other.npz")[:5], plain[:5])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": None}, "must hold .*; it lacks train_labels$"),
        ({"train_images": None, "test_labels": None}, "it lacks train_images, test_labels$"),
        (
            {"train_images": np.zeros((6, 5, 4, 3))},
            r"train_images in .* must be uint8 of .*, got float64 of \(6, 5, 4, 3",
        ),
        (
            {"test_images": np.zeros((2, 60), np.uint8)},
            r"test_images in .* must be uint8 of .*, got uint8 of \(2, 60\)",
        ),
        (
            {"train_labels": np.full(6, 0.5)},
            r"train_labels in .* must be 6 whole numbers, or words, got float64 of \(6,\)",
        ),
        ({"train_labels": np.full(6, np.nan)}, "must be 6 whole numbers, or words, got float64"),
        ({"train_images": np.full((6, 5, 4, 3), 300.0)}, "must be uint8 of .*; scale them to 0..255 and round them$"),
        (
            {"train_images": np.zeros((6, 3, 5, 5), np.uint8)},
            r"channels first, \(6, 3, 5, 5\): save train_images\.transpose\(0, 2, 3, 1\)$",
        ),
        ({"train_labels": np.zeros(6, bool)}, "train_labels in .* must be 6 whole numbers, or words, got bool"),
        ({"train_labels": np.zeros(5, int)}, r"must be 6 whole numbers, or words, got int64 of \(5,\)"),
        ({"test_labels": np.zeros((2, 1), int)}, r"must be 2 whole numbers, or words, got int64 of \(2, 1\)"),
        ({"test_labels": np.array([0, -1]), "classes": 5}, "must count from 0 where it gives classes, got -1: leave"),
        ({"test_labels": np.array(["a", "b"])}, "both be words or numbers, got int64 and <U1"),
        ({"test_labels": np.array(["a", "b"]), "classes": 3}, "classes in .* goes with labels that are numbers, and"),
        ({"train_labels": np.array([b"\xff"] * 6)}, "train_labels in .* must be words in UTF-8, and are not"),
        ({"owner": np.zeros(5, int)}, r"owner in .* must be 6 whole numbers, or words, got int64 of \(5,\)"),
        (
            {"test_images": np.zeros((0, 5, 4, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "test_labels in .* must not be empty",
        ),
        ({"test_images": np.zeros((2, 5, 5, 3), np.uint8)}, r"must have one shape, got \(5, 4, 3\) and \(5, 5, 3\)"),
        ({"classes": 2}, "must be one whole number above every label, of which 2 is the largest, .* got 2"),
        ({"train_labels": np.array([None] * 6)}, r"train_labels in .* must be no Python objects: save it with .astype"),
    ],
)
def test_bad_files_are_refused_by_what_is_wrong(file_of, changed, message):
    with pytest.raises(ValueError, match=message):
        datasets.load_file(file_of(**changed))


@pytest.mark.parametrize(
    "changed",
    [
        {"classes": np.array([3, 3])},
        {"classes": np.array("three")},
        {"classes": 3, "train_labels": np.arange(6) + 2**32},
    ],
    ids=["many classes", "a word for classes", "labels beyond int32"],
)
def test_what_does_not_convert_is_refused(file_of, changed):
    with pytest.raises(ValueError, match=r"own.npz"):
        datasets.load_file(file_of(**changed))


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 torn"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"own.npz must be a readable .npz: "):
        datasets.load_file(path)


def test_a_torn_file_is_refused(file_of):
    path = file_of()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"own.npz must be a readable .npz: "):
        datasets.load_file(path)


def test_a_single_array_is_no_data_set(tmp_path):
    path = tmp_path / "own.npy"
    np.save(path, np.zeros(3))
    with pytest.raises(ValueError, match=r"own.npy must be a readable .npz: "):
        datasets.load_file(path)


@pytest.mark.parametrize("name", ["missing.npz", "."])
def test_a_file_that_cannot_be_opened_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"must be a readable .npz: "):
        datasets.load_file(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "hint"), [("imagenet", "$"), ("Digits", "; did you mean digits"), ("cifar", "; did you mean"), ("", "$")]
)
def test_unknown_names_are_refused(name, hint):
    with pytest.raises(ValueError, match=f"dataset must be one of cifar10, .*, digits, got '{name}'{hint}"):
        datasets.load(name)


def test_the_folder_of_the_data_set_itself_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    with pytest.raises(ValueError, match=f"must be the folder that holds mnist, .*: give {tmp_path}$"):
        datasets.load("mnist", tmp_path / "mnist")


@pytest.fixture
def prepare(tmp_path, monkeypatch, cache):
    """Prepares a few made-up samples of a data set as tensorflow-datasets would: images as PNG, in array records."""
    import tensorflow_datasets as tfds
    from PIL import Image

    def png(image):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "png")
        return file.getvalue()

    def write(name):
        builder = tfds.builder(name, data_dir=tmp_path / "tfds")
        shape, classes = builder.info.features["image"].shape, builder.info.features["label"].num_classes
        rng = np.random.default_rng(0)
        splits = {
            split: rng.integers(0, 256, (count, *shape), np.uint8) for split, count in (("train", 7), ("test", 3))
        }

        def examples(images):
            for number, image in enumerate(images):
                others = {key: 0 if key == "coarse_label" else str(number) for key in builder.info.features}
                yield number, others | {"image": png(image), "label": number % classes}

        generators = {split: examples(images) for split, images in splits.items()}
        monkeypatch.setattr(type(builder), "_split_generators", lambda self, manager: generators)
        builder.download_and_prepare(file_format="array_record")
        return splits, classes

    return write


@pytest.mark.filterwarnings("ignore")  # of the preparation, which is not ours
@pytest.mark.parametrize("name", ORIGINALS)
def test_every_data_set_by_name_is_read_as_it_was_prepared(name, prepare, tmp_path):
    splits, classes = prepare(name)
    loaded = datasets.load(name, tmp_path / "tfds")
    # Records lie in an order of their own: compare as sets of images with their labels.
    for split in ("train", "test"):
        images, labels = getattr(loaded, f"{split}_images"), getattr(loaded, f"{split}_labels")
        assert images.shape == splits[split].shape
        assert images.dtype == np.uint8
        expected = {image.tobytes(): number % classes for number, image in enumerate(splits[split])}
        assert {image.tobytes(): label for image, label in zip(images, labels, strict=True)} == expected
    assert loaded.classes == classes == (100 if name == "cifar100" else 10)


def test_a_given_folder_must_exist(tmp_path):
    with pytest.raises(ValueError, match=r"the data folder .*nowhere does not exist"):
        datasets.load("cifar10", tmp_path / "nowhere")


@pytest.mark.parametrize("given", [True, False], ids=["a folder given", "the default folder"])
def test_without_data_and_network_the_way_out_is_named_at_once(tmp_path, monkeypatch, given, cache):
    monkeypatch.setattr(download, "reachable", lambda address: False)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"cifar10 is not in .*, and https.* cannot be reached .*--dataset digits"):
        datasets.load("cifar10", tmp_path if given else None)
    # Retries would take minutes.
    assert time.monotonic() - start < 5
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")


@pytest.fixture
def listener():
    """A socket that is connected to and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_host_that_never_answers_is_given_up(no_proxy, listener):
    start = time.monotonic()
    assert not download.reachable(listener, seconds=0.3)
    assert time.monotonic() - start < 3


def test_a_host_that_refuses_is_out_of_reach(no_proxy):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert not download.reachable(f"http://127.0.0.1:{port}")


@pytest.fixture
def host_that_says():
    """Starts a host on this machine that answers one request with the given bytes; gives its address."""
    threads = []

    def start(answer):
        server = socket.create_server(("127.0.0.1", 0))

        def serve():
            with server, server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        return f"http://127.0.0.1:{server.getsockname()[1]}"

    yield start
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "503 Service Unavailable"])
def test_a_host_that_answers_anything_is_reachable(no_proxy, host_that_says, status):
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    assert download.reachable(host_that_says(answer.encode()))


def test_an_answer_that_is_no_http_makes_no_noise(no_proxy, host_that_says):
    download.reachable(host_that_says(b"nonsense\r\n\r\n"))


class Reader:
    """What `cached` reads through, and how often it had to."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        # Training labels tell the calls apart.
        labels = np.full(6, self.calls - 1, np.int32), np.array([2, 0], np.int32)
        return datasets.Dataset(arrays()["train_images"], labels[0], arrays()["test_images"], labels[1], classes=3)


def cached(prepared, read):
    return datasets.cached("cifar10", sorted(path for path in prepared.rglob("*") if path.is_file()), read)


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "prepared" / "cifar10"
    (folder / "3.0.2").mkdir(parents=True)
    (folder / "3.0.2" / "records").write_text("one")
    return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dslth_jax"


def test_the_same_files_are_read_once(prepared, cache):
    read = Reader()
    first, again = cached(prepared, read), cached(prepared, read)
    assert read.calls == 1
    assert_same(again[:5], first[:5])
    assert again.classes == 3
    # One finished file, and nothing left of writing it.
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def touch(prepared):
    path = prepared / "3.0.2" / "records"
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000))


def grow(prepared):
    path = prepared / "3.0.2" / "records"
    stat = path.stat()
    path.write_text("three")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def add(prepared):
    (prepared / "3.0.2" / "more").write_text("")


def remove(prepared):
    (prepared / "3.0.2" / "records").rename(prepared / "records")


@pytest.mark.parametrize("change", [touch, grow, add, remove])
def test_files_that_changed_are_read_again(prepared, cache, change):
    read = Reader()
    cached(prepared, read)
    change(prepared)
    np.testing.assert_array_equal(cached(prepared, read).train_labels, 1)
    assert read.calls == 2
    cached(prepared, read)
    assert read.calls == 2


def test_another_folder_has_a_cache_of_its_own(prepared, cache):
    read = Reader()
    cached(prepared, read)
    other = prepared.parent.rename(prepared.parent.with_name("moved")) / "cifar10"
    cached(other, read)
    assert read.calls == 2


def test_a_torn_cache_is_read_again_and_mended(prepared, cache):
    read = Reader()
    cached(prepared, read)
    (path,) = cache.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    cached(prepared, read)
    cached(prepared, read)
    assert read.calls == 2


def test_a_cache_that_cannot_be_written_costs_nothing_else(prepared, cache):
    # A file where the folder should be: whoever runs this, root included, cannot write below it.
    cache.parent.write_text("")
    read = Reader()
    for calls in (1, 2):
        np.testing.assert_array_equal(cached(prepared, read).train_labels, calls - 1)
        assert read.calls == calls


def test_nothing_is_cached_of_a_folder_without_files(tmp_path, cache):
    read = Reader()
    for prepared in (tmp_path / "missing", tmp_path):
        cached(prepared, read)
    assert read.calls == 2
    assert not cache.exists()


@pytest.mark.slow
def test_the_real_cifar10(shared, cache):
    """Sixty thousand pictures to decode, so it takes its time the first time and hardly any the second."""
    loaded = datasets.load("cifar10", shared / "tfds")
    assert loaded.train_images.shape == (50_000, 32, 32, 3)
    assert loaded.test_images.shape == (10_000, 32, 32, 3)
    assert loaded.train_images.dtype == np.uint8
    assert loaded.classes == 10
    np.testing.assert_array_equal(np.bincount(loaded.train_labels), np.full(10, 5_000))
    np.testing.assert_array_equal(np.bincount(loaded.test_labels), np.full(10, 1_000))
    assert 110 < loaded.train_images.mean() < 130
    assert_same(datasets.load("cifar10", shared / "tfds"), loaded)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("cache", ["~nobody-of-this-name/x", "here/x", "/dev/null/x", "\udcff" * 300])
def test_without_a_cache_folder_nothing_is_kept_and_nothing_written_here(tmp_path, monkeypatch, cache):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "records").write_text("some")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", cache)
    assert datasets.cache_folder() is datasets.cache_folder(make=False) is None or cache.startswith(("/", "\udcff"))
    assert cached(tmp_path / "prepared", lambda: datasets.Dataset(*arrays().values(), 3)).classes == 3
    assert not list(Path.cwd().iterdir())


def test_a_folder_of_tfds_that_is_nobodys_is_refused(monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "~nobody-of-this-name")
    with pytest.raises(ValueError, match="~nobody-of-this-name cannot be found: give another by --data-dir"):
        datasets.load("mnist")
