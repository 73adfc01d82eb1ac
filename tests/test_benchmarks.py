"""The benchmarks: all forms of an operation give what numpy gives, and every command ends in its JSON object."""

import functools
import importlib.util
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import codec, compaction, convolution, exchange, round, scaling, threshold
from dslth_jax.graphs import adjacency_of, graph_of, ring
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training import memory
from dslth_jax.study.training.prepare import prepare
from experiments import cifar

# Scores of seven agents in two layers of odd sizes, and how many each keeps: none, more than there are, all, some.
SIZES = (257, 61)
COUNTS = np.array([[0, 1], [1, 0], [257, 61], [300, 99], [77, 20], [128, 55], [250, 3]], np.int32)


def scores():
    """Few values, so that most tie, among them zeros and infinities; the last two agents' are all different."""
    rng = np.random.default_rng(0)
    values = np.array([0, -0.0, 1, -1, 2, np.finfo(np.float32).tiny, np.inf, -np.inf, 0, -3], np.float32)
    layers = [rng.choice(values, (len(COUNTS), size)) for size in SIZES]
    for layer in layers:
        layer[-2:] = rng.normal(size=layer[-2:].shape)
    layers[1][0] = 0
    return tuple(layers)


@pytest.mark.parametrize("name", threshold.forms(SIZES))
def test_every_form_of_the_threshold_keeps_what_a_stable_sort_keeps(name):
    layers = scores()
    kept = jax.jit(jax.vmap(threshold.forms(SIZES)[name]))(layers, tuple(COUNTS.T))
    for layer, masks, counts in zip(layers, kept, COUNTS.T, strict=True):
        assert masks.dtype == np.float32
        np.testing.assert_array_equal(masks, list(map(threshold.kept_by_sorting, layer, counts)))
        np.testing.assert_array_equal(masks.sum(1), np.minimum(counts, np.count_nonzero(layer, axis=1)))


def test_the_threshold_tries_its_forms(monkeypatch):
    monkeypatch.setattr(threshold, "forms", lambda most: {"all": lambda layers, counts: layers})
    with pytest.raises(AssertionError, match="stable sort"):
        threshold.expect_exact("all")


AGENTS, ENTRIES = 7, (411, 3)
COMPLETE = graph_of(~np.eye(AGENTS, dtype=bool))


def some_present(seed):
    """The complete graph with half its edges absent; agent 2 hears nobody, nobody hears agent 4."""
    present = np.random.default_rng(seed).integers(0, 2, len(COMPLETE.senders), np.uint8)
    return COMPLETE._replace(weights=present * (COMPLETE.receivers != 2) * (COMPLETE.senders != 4))


def lonely():
    """A graph without the edges that are absent, of unequal degrees, with links that go one way."""
    return graph_of(adjacency_of(some_present(1)))


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(some_present(0), id="absent edges"),
        pytest.param(lonely(), id="lonely", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", exchange.FORMS)
def test_every_form_of_the_exchange_counts_the_neighbours(name, graph, monkeypatch):
    # Many blocks of columns, the last of which overlaps the one before.
    monkeypatch.setitem(exchange.BUDGET, "cpu", 1)
    exchange.expect_equal(name, graph, AGENTS, ENTRIES)


@pytest.mark.parametrize("name", exchange.FORMS)
def test_counts_beyond_a_byte(name):
    """Agent 0 hears 259 others that all keep everything, who hear nobody."""
    agents = 260
    adjacency = np.zeros((agents, agents), bool)
    adjacency[0, 1:] = True
    graph = graph_of(adjacency)
    sent = [jnp.full((agents, 2), 255, jnp.uint8)]
    case = exchange.case_of(graph, agents, [11])
    (counts,) = jax.jit(functools.partial(exchange.FORMS[name].function, case))(sent, graph)
    assert counts.dtype == (np.float32 if exchange.IN_PLACE.get(name) else np.uint16)  # sums of scales are floats
    np.testing.assert_array_equal(counts, np.outer(np.arange(agents) == 0, np.full(11, 259)))


def test_the_exchange_tries_its_forms(monkeypatch):
    graph = ring(AGENTS).graph
    wrong = exchange.Form(lambda *given: [counts + 1 for counts in exchange.half_bytes(*given)])
    monkeypatch.setitem(exchange.FORMS, "wrong", wrong)
    with pytest.raises(AssertionError, match="matrix product"):
        exchange.expect_equal("wrong", graph, AGENTS)


def convolution_by_numpy(images, kernel):
    """One agent's output, and the gradients of the sum of its squares by images and kernel."""
    rows, columns = kernel.shape[:2]
    side = convolution.PADDING
    padded = np.pad(images, ((0, 0), (side, side), (side, side), (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1
    places = [(i, j, np.s_[:, i : i + height, j : j + width]) for i in range(rows) for j in range(columns)]
    output = sum(padded[where] @ kernel[i, j] for i, j, where in places)
    to_padded, to_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for i, j, where in places:
        to_padded[where] += 2 * output @ kernel[i, j].T
        to_kernel[i, j] = np.tensordot(padded[where], 2 * output, axes=([0, 1, 2], [0, 1, 2]))
    return output, to_padded[:, side:-side, side:-side], to_kernel


@pytest.mark.parametrize("name", convolution.FORMS)
def test_every_form_of_the_convolution_is_one(name, x64):
    rng = np.random.default_rng(0)
    images, kernels = rng.normal(size=(3, 2, 7, 6, 2)), rng.normal(size=(3, 5, 4, 2, 3))
    form = convolution.FORMS[name]
    outputs = jax.jit(convolution.forward(form))(images, kernels)
    both = jax.jit(convolution.gradients(form, (0, 1)))(images, kernels)
    for agent, expected in enumerate(map(convolution_by_numpy, images, kernels)):
        for ours, theirs in zip((outputs, *both), expected, strict=True):
            np.testing.assert_allclose(ours[agent], theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def last_line(benchmark, flags, monkeypatch, capsys):
    """What a benchmark's last line says, run with these flags."""
    monkeypatch.setattr(sys, "argv", [benchmark.__name__, *flags.split()])
    benchmark.main()
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(said, dict)
    return said


@pytest.mark.slow
def test_the_threshold_says_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(threshold, "copy_rate", lambda: 1e9)
    said = last_line(threshold, "--agents 1 --entries 99 7 --repeats 1", monkeypatch, capsys)
    assert said["entries"] == [99, 7]
    assert said["copy_gigabytes_per_second"] == 1
    assert not said["left_out"]
    measured = [(row["agents"], row["mapped"], row["form"]) for row in said["rows"]]
    assert measured == [(1, "vmap", form) for form in threshold.forms(SIZES)]
    for row in said["rows"]:
        assert row["compile_seconds"] > 0
        # A millisecond is a million bytes, of which 106 scores are 848 read and written.
        assert row["times_floor"] == pytest.approx(1e6 * row["milliseconds_an_agent"] / 848)


def test_agents_are_mapped_in_chunks_and_all_at_once_where_that_differs():
    assert list(threshold.mappings(1)) == ["vmap"]
    assert list(threshold.mappings(2)) == ["vmap", "chunks of 1"]


@pytest.mark.slow
def test_the_exchange_says_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(exchange, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(exchange, "ALEXNET", (83,))
    said = last_line(exchange, "--agents 6 --topology regular:2 --repeats 1", monkeypatch, capsys)
    assert said["copy_gigabytes_per_second"] == 1
    assert not said["left_out"]
    measured = [(row["agents"], row["entries"], row["graph"], row["edges"], row["form"]) for row in said["rows"]]
    assert measured == [(6, 83, "regular:2", 12, form) for form in exchange.FORMS]
    for row in said["rows"]:
        assert row["microseconds_an_edge"] == pytest.approx(1e3 * row["milliseconds"] / 12)
        # Twelve times eleven bytes are read, six times 83 counts of a byte written.
        assert row["times_floor"] == pytest.approx(1e6 * row["milliseconds"] / (12 * 11 + 6 * 83))


def test_without_patience_everything_known_to_be_slow_is_left_out(monkeypatch, capsys):
    flags = "--agents 2 --topology complete complete --repeats 1 --patience 0"
    monkeypatch.setattr(exchange, "copy_rate", lambda: 1e9)
    monkeypatch.setattr(exchange, "ALEXNET", (83,))
    monkeypatch.setattr(exchange, "FORMS", {"gather": exchange.FORMS["gather"]})
    said = last_line(exchange, flags, monkeypatch, capsys)
    assert len(said["rows"]) == len(said["left_out"]) == 1
    assert said["left_out"][0]["expected_seconds"] > 0


@pytest.mark.parametrize(("agents", "entries"), [(8, 1_227_328), (64, 1_227_328), (1024, 76_708)])
def test_a_large_population_has_a_share_of_the_entries(agents, entries):
    assert sum(exchange.shared_sizes(agents, None)) == entries
    assert sum(exchange.shared_sizes(agents, 1)) == 1_227_328


def test_the_convolution_says_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(convolution, "LAYERS", {"conv1": (6, 2, 3)})
    monkeypatch.setattr(convolution, "OTHERS", {"strided": convolution.windows(4, 2, 3, stride=2)})
    monkeypatch.setattr(convolution, "matmul_rate", lambda dtype: 1e9)
    said = last_line(convolution, "--agents 2 --batch 2 --repeats 1", monkeypatch, capsys)
    assert said["matmul_gflops"] == dict.fromkeys(convolution.PRECISIONS, 1)
    torch = ["PyTorch", "PyTorch, one call"] * (importlib.util.find_spec("torch") is not None)
    for precision in convolution.PRECISIONS:
        assert all(said[f"{precision}/conv1/{form}"] > 0 for form in convolution.FORMS)
        found = said["milliseconds"][f"{precision}/strided"]
        assert [*found] == ["ours", "vmapped stock", *torch]
        assert all(min(ways.values()) > 0 for ways in found.values())


def test_operations_do_without_pytorch_and_without_what_would_take_long(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))
    _, said = convolution.measure_others(1, 16, ["float32"], repeats=1, patience=0, only=["1x1"])
    assert [*said["float32/1x1"]] == ["ours", "vmapped stock"]
    assert said["float32/1x1"]["ours"]["with_gradients"] > 0
    assert said["float32/1x1"]["vmapped stock"]["with_gradients"] is None
    missing = "torch must be installed first: pip install 'dslth-jax[rivals]'"
    told = capsys.readouterr()
    assert told.out == f"PyTorch is left out: {missing}\n"
    assert told.err == "measuring 1x1, float32\n"


def test_operations_do_without_pytorch_beside_an_accelerator(monkeypatch, capsys):
    monkeypatch.setattr(convolution, "expect_extra", lambda extra, module: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert convolution.in_torch() is None
    assert capsys.readouterr().out == "PyTorch is left out: it would run on the CPU, and JAX runs on gpu\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, of_batch in convolution.OTHERS.items() if of_batch(1).stock])
def test_our_operations_are_the_stock_ones(name):
    rivals = convolution.OTHERS[name](2)
    arguments = [array[0] for array in convolution.handed(rivals, 1, "float32")]
    ours, stock = (jax.jit(operation)(*arguments) for operation in rivals[:2])
    np.testing.assert_allclose(ours, stock, rtol=0, atol=2e-5 * np.abs(stock).max())


def test_the_codec_says_what_it_measured(monkeypatch, capsys):
    said = last_line(codec, "--entries 903 77 --densities 0.2 0.9 --flips 0.02 --repeats 1", monkeypatch, capsys)
    assert (said["entries"], said["densities"]) == ([903, 77], [0.2, 0.9])
    measured = [(row["mask"], row["form"]) for row in said["rows"]]
    assert measured == [(mask, form) for mask in ("fresh", "flips of 2 %", "unsteady") for form in codec.FORMS]
    # 181 of 903 entries and 69 of 77 are kept, 18 and 2 have flipped.
    entropies = {"fresh": 86.2, "flips of 2 %": 17.6}
    for row in said["rows"]:
        if row["mask"] in entropies:
            assert row["entropy_bytes"] == pytest.approx(entropies[row["mask"]], abs=0.1)
            assert row["bytes"] > row["entropy_bytes"]
        assert min(row["encode_milliseconds"], row["decode_milliseconds"]) > 0
    assert {row["bytes"] for row in said["rows"] if row["form"] == "bitmap"} == {32 + 8 + 2 + 113 + 10}


def test_the_codec_tries_its_forms():
    case = codec.cases([99], [0.3], [])["fresh"]
    wrong = codec.FORMS["message"]._replace(given_back=lambda case: [~codec.pack(layer) for layer in case.mask])
    with pytest.raises(AssertionError, match="other entries came out"):
        codec.measured(wrong, case, repeats=1)


def test_compaction_says_what_it_measured(monkeypatch, capsys):
    monkeypatch.setattr(compaction, "matmul_rate", lambda: 1e9)
    said = last_line(compaction, "--model mlp --dead 0.5 --retention 0.9 --batch 2 --repeats 1", monkeypatch, capsys)
    rows = said["rows"]
    dense, _, unstructured, masked, small = rows.values()
    assert [*rows][-2] == "masked, 50% of channels dead"
    weights = 3072 * 300 + 300 * 100 + 100 * 10
    assert dense["multiply_adds"] == masked["multiply_adds"] == unstructured["multiply_adds"] == weights
    assert small["multiply_adds"] == 3072 * 150 + 150 * 50 + 50 * 10
    assert small["float32_bytes"] == 4 * (small["multiply_adds"] + 150 + 50 + 10)
    assert masked["multiply_adds_of_kept"] == masked["kept_weights"] == pytest.approx(0.9 * 3072 * 150, rel=0.1)
    assert all(row["milliseconds"]["JAX, batch 2"] > 0 for row in rows.values())
    expect_what_is_installed(said)


def expect_what_is_installed(said):
    """ONNX Runtime's times stand beside JAX's where it is installed, and its logits are JAX's."""
    installed = all(map(importlib.util.find_spec, ("jax2onnx", "onnxruntime")))
    for row in said["rows"].values():
        assert [*row["milliseconds"]] == ["JAX, batch 2", *["onnxruntime, batch 2"] * installed]
        assert [*row["off"]] == ["onnxruntime"] * installed
        assert all(off < 1e-4 for off in row["off"].values())


def test_compaction_does_without_a_runtime_unless_it_is_asked_for(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "onnx" in name else found(name))
    assert [*compaction.chosen(None)] == ["JAX"]
    missing = "jax2onnx, onnxruntime must be installed first: pip install 'dslth-jax[onnx]'"
    assert capsys.readouterr().out == f"onnxruntime is left out: {missing}\n"
    with pytest.raises(SystemExit) as ended:
        last_line(compaction, "--model mlp --runtime JAX onnxruntime", monkeypatch, capsys)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: for --runtime onnxruntime {missing}")


@pytest.mark.install
def test_compaction_finds_out_a_runtime_that_errs(monkeypatch, capsys):
    pytest.importorskip("jax2onnx", reason="pip install 'dslth-jax[onnx]'")
    monkeypatch.setattr(compaction, "matmul_rate", lambda: 1e9)
    said = last_line(compaction, "--model mlp --batch 2 --repeats 1 --runtime onnxruntime", monkeypatch, capsys)
    assert [*said["rows"]["dense"]["milliseconds"]] == ["onnxruntime, batch 2"]
    monkeypatch.setattr(compaction, "may_be_off", lambda *_: -1.0)
    with pytest.raises(SystemExit):
        last_line(compaction, "--model mlp --batch 2 --repeats 1 --runtime onnxruntime", monkeypatch, capsys)
    assert "ONNX Runtime's logits must be JAX's to -1, and are" in capsys.readouterr().err


def test_photographs_have_any_shape():
    assert compaction.photographs(3, (8, 9, 1)).shape == (3, 8, 9, 1)
    colours = compaction.photographs(3, (32, 32, 3))
    assert (colours.shape, colours.dtype) == ((3, 32, 32, 3), np.uint8)
    assert np.ptp(colours, axis=(1, 2)).min() > 0


@pytest.mark.slow
def test_compaction_of_a_runs_agent(monkeypatch, capsys, tmp_path):
    run = f"--dataset digits --model mlp --agents 2 --topology ring --rounds 1 --out {tmp_path / 'run'}"
    assert cifar.main(run.split()) == 0
    monkeypatch.setattr(compaction, "matmul_rate", lambda: 1e9)
    said = last_line(compaction, f"--run {tmp_path / 'run'} --agent 1 --batch 2 --repeats 1", monkeypatch, capsys)
    assert [*said["rows"]] == ["dense", "masked", "compact"]
    dense, masked, small = said["rows"].values()
    assert small["multiply_adds"] <= masked["multiply_adds"] == dense["multiply_adds"]
    assert masked["kept_weights"] < dense["kept_weights"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--dead 1.5", "argument --dead: must be a share from 0 to 1, got 1.5"),
        ("--run nowhere", "a run folder was expected"),
        ("--batch 1 0", "argument --batch: must be at least 1, got 0"),
        ("--model mlp --round-to 0", "round_to must be a positive number of channels, got 0"),
    ],
)
def test_compaction_refuses_in_a_line(flags, said, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        last_line(compaction, flags, monkeypatch, capsys)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_the_round_says_what_it_measured(monkeypatch, capsys):
    said = last_line(round, "--agents 2 --batch 2 --repeats 1", monkeypatch, capsys)
    assert said["agents"] == 2
    assert said["seconds_per_round"] > 0
    assert 0 < said["fraction_of_matmul"] < 1
    assert {"speedup_over_authors_structure", "speedup_over_torch_loop"} <= set(said)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A run of four agents on random images, before anything is compiled."""
    path = tmp_path_factory.mktemp("random") / "images.npz"
    scaling.random_images(path, 40, (8, 8, 1))
    settings = {"model": "mlp", "topology": "ring", "partition": "iid", "batch_size": 4, "data_file": path}
    return prepare(Settings(agents=4, **settings))


@pytest.mark.parametrize(("agents", "devices"), [(10**6, 1), (12 * 10**5, 4)])
def test_scaling_takes_the_formula_of_memory_apart(prepared, agents, devices):
    """States of a device's agents, everybody's messages where there are several, and what is common add up to it."""
    parts = scaling.parts_of(prepared)
    whole = memory.footprint(
        prepared.network,
        prepared.algorithm,
        jax.tree.map(lambda leaf: leaf[0], prepared.hyper),
        prepared.topology.graph,
        prepared.train._replace(
            indices=jax.ShapeDtypeStruct((agents, 10), np.int32), sizes=jax.ShapeDtypeStruct((agents,), np.int32)
        ),
        agents=agents,
        batch_size=4,
        chunk=scaling.AT_ONCE,
        devices=devices,
    )
    gathered = agents if devices > 1 else 0
    assert sum(whole.values()) == agents // devices * parts.state + gathered * parts.message + parts.common


def test_beyond_this_machine_every_device_holds_what_it_is_given():
    """As few devices as that takes; none are enough where everybody's messages do not fit into one."""
    parts = scaling.Parts(state=7, message=2, common=30)
    for agents, neighbours, device in [(4, 3, 58), (5, 3, 58), (1_000, 4, 2_100), (1_000, 4, 2_029), (9, 30, 60)]:
        found = scaling.beyond(parts, agents, neighbours, device)

        def fits(devices, each, received, agents=agents, device=device):
            return -(-agents // devices) * each + received + 30 <= device

        if fits(1, 7, 0):
            assert found == (1, 0, 1, 0)
            continue
        for devices, each, received in (
            (found.gathered, 7, 2 * agents),
            (found.by_links, 7 + 2 * neighbours, 0),
        ):
            if devices is None:
                assert not fits(agents, each, received)
            else:
                assert fits(devices, each, received)
                assert not fits(devices - 1, each, received)
        assert found.gathered is None or found.bytes_gathered == (found.gathered - 1) * agents * 2
        assert found.by_links is None or found.bytes_by_links == neighbours * agents * 2


def test_scaling_says_what_it_measured(prepared, monkeypatch, capsys):
    """Of each size by a row, and beyond by the last row's formula and time an agent."""
    parts, asked = scaling.parts_of(prepared)._asdict(), []

    def measured(flags):
        asked.append((flags.model, flags.batch, flags.topology))
        times = dict.fromkeys(
            ("prepare_seconds", "compile_seconds", "seconds_per_round", "milliseconds_per_agent"), 1.0
        )
        sizes = dict.fromkeys(("peak_bytes", "bytes_before", "formula_bytes"), 10**9)
        alone = {"milliseconds_alone": 500.0, "alone": "of a core"}
        return [{"agents": agents, "parts": parts} | times | sizes | alone for agents in flags.agents]

    monkeypatch.setattr(scaling, "measured", measured)
    said = last_line(scaling, "--small --beyond 1000 --device-memory 4 --speed-up 10", monkeypatch, capsys)
    assert [row["agents"] for row in said["rows"]] == [100, 1000, 10_000]
    assert said["beyond"] == [
        {"agents": 1000, "gathered": 1, "bytes_gathered": 0, "by_links": 1, "bytes_by_links": 0, "seconds": 50.0}
    ]
    said = last_line(scaling, "--agents 20 --beyond", monkeypatch, capsys)
    assert ([row["agents"] for row in said["rows"]], said["beyond"]) == ([20], [])
    assert asked == [("small", 16, "regular:8"), ("alexnet", 128, "erdos-renyi:0.5")]
