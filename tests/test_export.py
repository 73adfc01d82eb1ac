"""Exported agents: what a file holds, read and computed elsewhere, is what the library has; what cannot be exported is
one sentence."""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import types
import venv
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import draw_nothing, use_fakes
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import dslth_jax
from dslth_jax.algorithm import by_name
from dslth_jax.export import as_dslth, as_jax, as_onnx, programs, reader, seeded
from dslth_jax.keys import key_of
from dslth_jax.networks.network import WEIGHTS, network_of
from dslth_jax.networks.per_platform import stock_forms
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.population import draw_weights
from dslth_jax.study.results import export
from dslth_jax.study.results.models import write_variables
from experiments import cifar

FLAGS = ["--dataset", "digits", "--model", "conv3", "--width", "0.25", "--agents", "2", "--rounds", "2"]
FLAGS += ["--topology", "complete", "--elu-on-logits"]
MASKS = ["--preset", "tuned", "--retention", "0.3"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of masks over random signs; what made the masks is a fake."""
    folder = tmp_path_factory.mktemp("run") / "masks"
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch)
        assert cifar.main([*FLAGS, *MASKS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def images():
    return dslth_jax.load_data("digits").test_images[:70]  # more than the reader computes at once


def exported(run, folder, *words):
    assert export.main("dslth export", [str(run), "--to", str(folder), *words]) == 0
    return folder


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * max(1, float(np.abs(wanted).max())))


def kept_at_random(like, share, negative=0.0):
    """Masks of random entries."""
    random = np.random.default_rng(0)

    def one(leaf):
        uniform = random.random(leaf.shape, np.float32)
        return np.where(uniform < share * negative, -1, uniform < share).astype(np.float32)

    return jax.tree.map(one, like)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        *(pytest.param("alexnet", law, marks=pytest.mark.slow) for law in (None, *WEIGHTS)),
        *(("conv3", law) for law in (None, *WEIGHTS)),
        pytest.param("resnet20", "uniform", marks=pytest.mark.slow),
    ],
)
def test_weights_of_a_key_and_masks_are_read_bit_for_bit(name, weights):
    """However a network draws them: of keys by flax, or by a law, in modules within modules too."""
    network, key = network_by_name(name, (32, 32, 3), 10, width=0.1, weights=weights), key_of(5)
    random, frozen = jax.jit(lambda: draw_weights(network, key))()
    masks = kept_at_random(random, 0.3, negative=0.4)
    scale = np.float32(math.sqrt(1 / 0.3))
    params = jax.tree.map(lambda leaf, mask: np.asarray(leaf) * scale * mask, random, masks)
    about = {"network": name, "image_shape": [32, 32, 3], "labels": [*range(10)], "elu_on_logits": False}
    variables = {"params": params, "frozen": frozen}
    model = reader.read(as_dslth(jax.random.split(key)[0], random, variables, masks, about))
    for found, wanted in ((model.params, params), (model.frozen, frozen), (model.masks, masks)):
        assert {*found} == {*by_name(wanted)}
        for leaf in by_name(wanted):
            np.testing.assert_array_equal(found[leaf], by_name(wanted)[leaf], strict=found is not model.masks)
    if name in reader.NETWORKS:
        pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
        assert_close(reader.logits(model, pixels), np.asarray(jax.jit(network.apply)(variables, pixels)))
    else:
        with pytest.raises(ValueError, match="of resnet20 it gives the weights alone"):
            reader.logits(model, np.zeros((1, 32, 32, 3), np.uint8))


def test_the_authors_network_takes_an_eighth_of_a_megabyte():
    """4.9 MB of float32: the entropy of its masks, and less than 3 kB beside it."""
    network, key = network_by_name("alexnet", (32, 32, 3), 10), key_of(0)
    random, frozen = jax.jit(lambda: draw_weights(network, key))()
    random = jax.device_get(random)
    masks = {name: kept_at_random(leaf, 0.9 if name.startswith("linear") else 0.3) for name, leaf in random.items()}
    variables = {"params": jax.tree.map(np.multiply, random, masks), "frozen": frozen}
    content = as_dslth(jax.random.split(key)[0], random, variables, masks, {})
    with pytest.raises(ValueError, match=r"^for logits a file must say its elu_on_logits, image_shape, network; this"):
        reader.logits(reader.read(content), np.zeros((1, 8, 8, 1), np.uint8))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(random)) == 4_909_312
    shares = [(leaf.mean(), leaf.size) for leaf in jax.tree.leaves(masks)]
    entropy = sum(-size * (p * math.log2(p) + (1 - p) * math.log2(1 - p)) / 8 for p, size in shares)
    assert entropy < len(content) < entropy + 3000 < 130_000


@pytest.mark.slow
def test_weights_are_read_as_users_compile_them(as_users_compile):
    """Compilers may fuse a product and a sum, and then weights differ in their last bits: a file says which it is."""
    test_weights_of_a_key_and_masks_are_read_bit_for_bit("conv3", None)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), max_size=4), st.integers(0, 2**32 - 1))
def test_bits_are_decoded_as_they_were_coded(layers, seed):
    """Of any sizes and densities, one layer after another; at about the length of their entropy."""
    random = np.random.default_rng(seed)
    bits = [random.random(size) < share for size, share in layers]
    code = seeded.coded_bits([(own, int(own.sum())) for own in bits])
    decoder = reader.Decoder(np.frombuffer(code, "<u2"))
    for own in bits:
        np.testing.assert_array_equal(decoder.bits(own.size, int(own.sum())), own)
    decoder.expect_end()
    entropy = sum(math.log2(math.comb(own.size, int(own.sum()))) for own in bits) / 8
    assert len(code) <= 4 * seeded.LANES + 1.01 * entropy + 4 * len(bits) + 1


def test_a_layer_that_is_kept_nowhere_or_everywhere_costs_nothing():
    assert len(seeded.coded_bits([(np.zeros(1000, bool), 0), (np.ones(1000, bool), 1000)])) == 4 * seeded.LANES


def test_random_bits_are_those_of_jax():
    for seed in (0, 7, 2**32 - 1):
        key = jax.random.split(key_of(seed))[1]
        found = reader.random_bits(jax.random.key_data(key).tolist(), 1001)
        np.testing.assert_array_equal(found, jax.random.bits(key, (1001,)))


def assert_files_are_the_agents(run, folder, images):
    """Weights bit for bit, logits to 1e-5, and the labels that the agent gives."""
    models = dslth_jax.load(run)
    for number in range(2):
        own, model = models.agent(number), reader.load(folder / f"agent_{number:04d}.dslth")
        assert model.about["agent"] == number
        for name, leaf in by_name(own.variables["params"]).items():
            np.testing.assert_array_equal(model.params[name], leaf)
        for name, leaf in by_name(own.masks).items():
            np.testing.assert_array_equal(model.masks[name], leaf)
        assert_close(reader.logits(model, images), own.logits(images))
        labels = np.array(model.about["labels"])[reader.logits(model, images).argmax(-1)]
        np.testing.assert_array_equal(labels, own.predict(images))


def test_every_agents_file_is_the_agent(run, images, tmp_path, capsys):
    folder = exported(run, tmp_path, "--agent", "all")
    assert capsys.readouterr().out.startswith("2 agents, each about ")
    assert_files_are_the_agents(run, folder, images)
    assert reader.logits(folder / "agent_0001.dslth", images[:0]).shape == (0, 10)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["mce-pl", "mask-mean", "fedpm", "score-gossip", "independent"])
def test_every_algorithm_of_masks_is_exported(algorithm, images, tmp_path, monkeypatch):
    """Really trained, with masks that turn signs where they can."""
    draw_nothing(monkeypatch)
    words = ["--mask", "ternary"] if algorithm in ("mce-pl", "score-gossip") else []
    words += ["--algorithm", algorithm, *MASKS, "--out", str(tmp_path / "run")]
    assert cifar.main([*FLAGS, *words]) == 0
    folder = exported(tmp_path / "run", tmp_path / "files", "--agent", "all")
    assert_files_are_the_agents(tmp_path / "run", folder, images)
    negative = [layer["negative"] for layer in reader.load(folder / "agent_0000.dslth").about["layers"]]
    assert all(negative) if "ternary" in words else not any(negative)


ALONE = """
import sys
for name in ("jax", "flax", "scipy", "dslth_jax"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{name} is there")
sys.path.insert(0, sys.argv[1])
import dslth_reader
sys.exit(dslth_reader.main(sys.argv[2:]))
"""


def said_alone(python, folder, images, tmp_path, path=None):
    """What the exported reader says of an agent and images, in a process that has numpy alone."""
    np.save(tmp_path / "images.npy", images)
    words = [*python, "-c", ALONE, str(folder), str(folder / "agent_0001.dslth"), str(tmp_path / "images.npy")]
    known = {"PYTHONPATH": str(path)} if path else {}
    ended = subprocess.run(words, cwd=tmp_path, env=known, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


def test_a_process_that_sees_numpy_alone_reads_it(run, images, tmp_path):
    folder, path = exported(run, tmp_path / "files", "--agent", "1"), tmp_path / "packages"
    path.mkdir()
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs"):
        if (installed / name).is_dir():
            (path / name).symlink_to(installed / name)
    # Without site-packages, and in a folder of no packages.
    lines = said_alone([sys.executable, "-S"], folder, images, tmp_path, path)
    assert "network: conv3" in lines
    assert lines[-len(images) :] == [str(label) for label in dslth_jax.load(run).agent(1).predict(images)]


@pytest.mark.slow
def test_an_environment_of_numpy_alone_reads_it(run, images, tmp_path):
    venv.create(tmp_path / "own", with_pip=True)
    python = [str(tmp_path / "own" / "bin" / "python"), "-I"]
    version = f"numpy=={np.__version__}"
    installing = [*python, "-m", "pip", "install", "-q", version]
    if subprocess.run(installing, env=dict(os.environ), capture_output=True).returncode:
        pytest.skip("pip reaches no index")
    lines = said_alone(python, exported(run, tmp_path / "files", "--agent", "1"), images, tmp_path)
    assert lines[-len(images) :] == [str(label) for label in dslth_jax.load(run).agent(1).predict(images)]


def test_the_reader_is_short_and_imports_numpy_alone():
    source = Path(reader.__file__).read_text()
    assert source.count("\n") <= 250
    imported = {line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert imported - {*sys.stdlib_module_names} == {"numpy"}


def sealed(header: bytes) -> bytes:
    """A file of such a header, and of a code that holds nothing; its checksum is right."""
    body = reader.MAGIC + len(header).to_bytes(4, "little") + header + bytes(256)
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_damaged_files_are_one_sentence(run, tmp_path, capsys):
    content = bytearray((exported(run, tmp_path) / "agent_0000.dslth").read_bytes())
    for place in (*range(0, len(content), 97), len(content) - 1):
        torn = content.copy()
        torn[place] ^= 4
        with pytest.raises(ValueError, match=r"is damaged|must be a \.dslth file"):
            reader.read(bytes(torn))
    for length in (0, 8, 12, 15, 100, len(content) - 1):
        with pytest.raises(ValueError, match=r"is damaged|must be a \.dslth file"):
            reader.read(bytes(content[:length]))
    whole = reader.read(bytes(content)).about
    layers = [whole["layers"][0] | {"shape": [size]} for size in (1 << 40, -1 << 40)]
    many = [layers[:1], layers]
    unlike = ({"frozen": 3}, {"layers": [{}]}, *({"layers": layers} for layers in many))
    for about in ([], {}, {"frozen": []}, *(whole | other for other in unlike)):
        with pytest.raises(ValueError, match=r"^it holds no model that this reader knows: "):
            reader.read(sealed(json.dumps(about).encode()), "it")
    with pytest.raises(ValueError, match=r"^it holds no model that this reader knows: RecursionError"):
        reader.read(sealed(b"[" * 100_000), "it")
    with pytest.raises(ValueError, match=r"images must be uint8 of \(images, 8, 8, 1\), got float64 of \(1, 8, 8, 1\)"):
        reader.logits(tmp_path / "agent_0000.dslth", np.zeros((1, 8, 8)))
    np.savez(tmp_path / "images.npz", np.zeros((1, 8, 8, 1), np.uint8))
    (tmp_path / "empty.npy").touch()
    (tmp_path / "torn.npy").write_bytes(b"PK\x03\x04 no archive of arrays either")
    np.save(tmp_path / "header.npy", np.zeros((2, 3)))
    content = (tmp_path / "header.npy").read_bytes().replace(b"(2, 3)", b"(2, 3 ")
    (tmp_path / "header.npy").write_bytes(content)
    names = ("images.npz", "empty.npy", "torn.npy", "header.npy")
    no_images = [[str(tmp_path / "agent_0000.dslth"), str(tmp_path / name)] for name in names]
    capsys.readouterr()
    assert [reader.main(words) for words in ([], [str(tmp_path / "none")], *no_images)] == [2] * 6
    assert capsys.readouterr().err.count("\n") == 6


def test_masked_weights_as_safetensors(run, tmp_path):
    """Float32 by the names that a run's own weights have, with what is said of the agent."""
    from safetensors import safe_open

    folder = exported(run, tmp_path, "--as", "safetensors", "--agent", "1", "--compact", "False")
    wanted = by_name(dslth_jax.load(run).agent(1).variables)
    with safe_open(folder / "agent_0001.safetensors", "numpy") as file:
        assert {*file.keys()} == {*wanted}
        assert {name: json.loads(value) for name, value in file.metadata().items()}["network"] == "conv3"
        for name, leaf in wanted.items():
            np.testing.assert_array_equal(file.get_tensor(name), leaf, strict=True)
    assert [path.name for path in folder.iterdir()] == ["agent_0001.safetensors"]  # no reader, and nothing half written


def test_what_masks_make_idle_is_left_out(run, images):
    """Of an agent that lost half of its filters: fewer entries, the same logits; not where all is asked for."""
    models = dslth_jax.load(run)
    model = models.agent(0)
    params = jax.tree.map(np.array, model.variables["params"])
    params["conv2"]["kernel"][..., ::2] = 0
    lossy = types.SimpleNamespace(variables={"params": params, "frozen": model.variables["frozen"]})
    network, variables = export.form_of_agent(models, lossy, export.Export((run,)))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(own)) for own in (variables, model.variables)]
    assert sizes[0] < 0.7 * sizes[1]
    some = jnp.asarray(images[:9])
    wanted = jax.jit(models.network.apply)(lossy.variables, some)
    assert_close(np.asarray(jax.jit(network.apply)(variables, some)), np.asarray(wanted))
    whole = export.form_of_agent(models, lossy, export.Export((run,), compact=False))
    assert whole == (models.network, lossy.variables)
    _, fours = export.form_of_agent(models, lossy, export.Export((run,), round_to=4))
    assert fours["params"]["conv2"]["kernel"].shape[-1] % 4 == 0


def test_a_program_of_jax_takes_batches_of_any_size(run, images, tmp_path):
    pytest.importorskip("flatbuffers", reason="pip install 'dslth-jax[export]'")
    path = exported(run, tmp_path, "--as", "jax") / "agent_0000.jax"
    program = jax.export.deserialize(bytearray(path.read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    model = dslth_jax.load(run).agent(0)
    for batch in (1, 5):
        assert_close(np.asarray(program.call(jnp.asarray(images[:batch]))), model.logits(images[:batch]))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_every_network_becomes_a_program_of_jax(name):
    pytest.importorskip("flatbuffers", reason="pip install 'dslth-jax[export]'")
    network, variables, pixels = drawn(name)
    program = jax.export.deserialize(bytearray(as_jax(network, variables, (32, 32, 3))))
    for batch in (1, 3):
        assert_close(
            np.asarray(program.call(pixels[:batch])), np.asarray(jax.jit(network.apply)(variables, pixels[:batch]))
        )


def drawn(name):
    network = network_by_name(name, (32, 32, 3), 10, width=0.25)
    params, frozen = jax.jit(network.init)(key_of(0))
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    return network, {"params": params, "frozen": frozen}, pixels


def logits_of_onnx(content, pixels):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": np.asarray(pixels)})[0]


@pytest.mark.install
def test_onnx_runtime_computes_what_the_agent_does(run, images, tmp_path):
    """On real images, to 1e-5, for batches of any size."""
    pytest.importorskip("jax2onnx", reason="pip install 'dslth-jax[onnx]'")
    path = exported(run, tmp_path, "--as", "onnx", "--agent", "1") / "agent_0001.onnx"
    model = dslth_jax.load(run).agent(1)
    for batch in (1, 5, 70):
        assert_close(logits_of_onnx(path.read_bytes(), images[:batch]), model.logits(images[:batch]))


@pytest.mark.install
@pytest.mark.parametrize("name", MODULES)
def test_every_network_becomes_a_model_of_onnx(name):
    """On the CPU the network itself was traced before, in its other form."""
    pytest.importorskip("jax2onnx", reason="pip install 'dslth-jax[onnx]'")
    network, variables, pixels = drawn(name)
    wanted = np.asarray(jax.jit(network.apply)(variables, pixels))
    content = as_onnx(network, variables, (32, 32, 3), {"network": name})
    for batch in (1, 3):
        assert_close(logits_of_onnx(content, pixels[:batch]), wanted[:batch])


class Foreign(nn.Module):
    """Its kernels are drawn as flax draws them."""

    @nn.compact
    def __call__(self, values):
        return nn.Dense(3)(values.reshape(values.shape[0], -1))


def test_what_no_key_and_masks_say_is_one_sentence(monkeypatch):
    network, key = network_of(Foreign(), (4, 4, 1)), key_of(0)
    random, frozen = network.init(key)
    masks, variables = kept_at_random(random, 0.5), {"params": random, "frozen": frozen}
    with pytest.raises(ValueError, match=r"those of Dense_0/kernel are drawn by no law of networks\.network\.WEIGHTS"):
        as_dslth(key, random, variables, masks, {})
    network = network_of(Foreign(), (4, 4, 1), weights="uniform")
    random, _ = network.init(key)
    with pytest.raises(ValueError, match="those of Dense_0/kernel are trained: export it as safetensors"):
        as_dslth(key, random, variables, masks, {})
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    with pytest.raises(ValueError, match=r"holds float32 alone, got Dense_0/kernel of float64"):
        as_dslth(key, random, wide, masks, {})
    monkeypatch.setattr(seeded, "MOST", 10)
    with pytest.raises(ValueError, match=r"holds at most 10 masked entries, got \d+: export it as safetensors"):
        as_dslth(key, random, variables, masks, {})


def absent(patch, *names):
    """Let packages not be installed from here on."""
    there = importlib.util.find_spec
    patch.setattr(programs.importlib.util, "find_spec", lambda name: None if name in names else there(name))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--agent", "2"], "agent must be in 0..1, got 2"),
        (["--agent", "one"], "--agent must be a whole number or one of all, got 'one'"),
        (["--as", "dslt"], "--as must be some of dslth, safetensors, onnx, jax, joined by commas, got 'dslt'; did you "
         "mean dslth?"),
        (["--as", ""], "--as must be some of dslth, safetensors, onnx, jax, joined by commas, got ''"),
        (["--as", "dslth,onnx"], "for --as onnx jax2onnx, onnxruntime must be installed first: pip install "
         "'dslth-jax[onnx]'"),
        (["--as", "jax"], "for --as jax flatbuffers must be installed first: pip install 'dslth-jax[export]'"),
        (["--round-to", "0"], "--round-to must be in 1..1024, got 0"),
        (["--round-to", "8"], "--compact and --round-to mean nothing to --as dslth, which cuts nothing: leave them "
         "out"),
        (["--as", "safetensors", "--round-to", "8", "--compact", "False"], "--round-to means nothing with --compact "
         "False, which cuts nothing: leave it out"),
        (["--to", ""], "--to must be a path, got ''"),
        (["--to", "{file}"], "--to {file} must be a folder, and is a file: name another"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(words, said, run, tmp_path, monkeypatch, capsys):
    absent(monkeypatch, "jax2onnx", "onnxruntime", "flatbuffers")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    known = {"file": str(tmp_path / "file")}
    words = [word.format(**known) for word in words]
    assert export.main("dslth export", [str(run), *words]) == 2
    assert capsys.readouterr().err == f"dslth export: {said.format(**known)}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_weights_that_are_trained_are_no_masks(tmp_path, capsys):
    """Of dsgd safetensors hold what was trained, and there is no .dslth."""
    with pytest.MonkeyPatch.context() as patch:
        use_fakes(patch)
        assert cifar.main([*FLAGS, "--algorithm", "dsgd", "--out", str(tmp_path / "run")]) == 0
    world = dslth_jax.load(tmp_path / "run").world
    variables = {"params": world.weights, "frozen": world.frozen}
    write_variables(tmp_path / "run", jax.tree.map(lambda leaf: np.stack([leaf, 2 * leaf]), variables))
    capsys.readouterr()
    assert export.main("dslth export", [str(tmp_path / "run"), "--to", str(tmp_path / "files")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dslth export: --as dslth is for masks over shared random weights, and dsgd trains weights")
    assert not (tmp_path / "files").exists()
    file = exported(tmp_path / "run", tmp_path / "files", "--as", "safetensors", "--agent", "1")
    found = load_file(file / "agent_0001.safetensors")
    np.testing.assert_array_equal(found["params/conv1/kernel"], 2 * world.weights["conv1"]["kernel"])


@pytest.mark.install
def test_a_converter_that_errs_is_found_out(monkeypatch):
    """What ONNX Runtime computes is compared before any file is written; loggers are as they were."""
    onnx = pytest.importorskip("onnxruntime", reason="pip install 'dslth-jax[onnx]'")
    jax2onnx = pytest.importorskip("jax2onnx", reason="pip install 'dslth-jax[onnx]'")

    class Wrong:
        def __init__(self, *_, **__):
            pass

        def run(self, *_):
            return [np.zeros((3, 3), np.float32)]

    class Converted:
        metadata_props: list = []  # noqa: RUF012

        def SerializeToString(self):  # noqa: N802
            return b""

    network = network_of(Foreign(), (4, 4, 1))
    params, frozen = network.init(key_of(0))
    monkeypatch.setattr(onnx, "InferenceSession", Wrong)
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda *_, **__: Converted())
    level = logging.getLogger("onnx_ir").level
    with pytest.raises(ValueError, match="jax2onnx has converted this network wrongly"):
        as_onnx(network, {"params": params, "frozen": frozen}, (4, 4, 1), {})
    assert logging.getLogger("onnx_ir").level == level
    monkeypatch.setattr(jax2onnx, "to_onnx", lambda *_, **__: 1 / 0)
    with pytest.raises(ValueError, match=r"cannot convert this network \(division by zero\): export it as jax"):
        as_onnx(network, {"params": params, "frozen": frozen}, (4, 4, 1), {})


def test_logits_may_be_as_far_off_as_float32_rounds_them():
    network, variables, pixels = drawn("small")
    images = np.asarray(pixels)
    wanted = np.asarray(jax.jit(network.apply)(variables, images))
    close = CLOSE * max(1, float(np.abs(wanted).max()))
    assert programs.may_be_off(network, variables, images, wanted, close) == close
    assert programs.may_be_off(network, variables, images, wanted, 1.0) == close  # of a network that rounds little
    assert programs.may_be_off(network, variables, images, wanted + 1e-3, 1.0) == pytest.approx(4e-3, rel=1e-2)
    assert programs.farthest(wanted * np.nan, wanted) == np.inf


def test_stock_forms_compute_the_same():
    """The form that converters are given, and that it ends with its block."""
    network, variables, pixels = drawn("conv3")

    def traced():
        return str(jax.make_jaxpr(lambda own: network.apply(variables, own))(pixels))

    before = traced()
    with stock_forms():
        within, stock = traced(), jax.jit(lambda own: network.apply(variables, own))(pixels)
    assert "platform_index" in before
    assert "platform_index" not in within
    assert "custom_vmap" not in within
    assert traced() == before
    assert_close(np.asarray(stock), np.asarray(jax.jit(network.apply)(variables, pixels)))
