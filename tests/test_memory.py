"""What a run holds in memory: by hand, against XLA's own analysis, and what is refused for it."""

import dataclasses
import resource
import types
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from dslth_jax import population
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.codec.entropy import PAST
from dslth_jax.networks.convolution import max_pool
from dslth_jax.networks.network import Conv, Linear, Network, network_of
from dslth_jax.networks.operations import elu
from dslth_jax.population import Shares
from dslth_jax.study import commands
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import topology_of
from dslth_jax.study.training import memory, plan, prepare
from dslth_jax.study.training.prepare import BATCHES
from experiments import cifar

SAMPLES, CAPACITY, BATCH = 500, 40, 16


class OneLayer(nn.Module):
    """36 masked entries and 4 frozen biases, to count by hand."""

    @nn.compact
    def __call__(self, values):
        return Linear(4, name="linear")(values.reshape(values.shape[0], -1))


class WideNet(nn.Module):
    """Its first linear layer holds nearly all entries, so that one agent more is plain to see."""

    @nn.compact
    def __call__(self, values):
        values = max_pool(elu(Conv(8, side=3, padding=1, name="conv")(values)))
        values = elu(Linear(800, name="wide")(values.reshape(values.shape[0], -1)))
        return Linear(4, name="linear")(values)


ONE_LAYER, WIDE = network_of(OneLayer(), (3, 3, 1)), network_of(WideNet(), (8, 8, 1))


def shapes_of(network: Network, agents: int, image_shape: tuple[int, int, int]) -> tuple[Hyper, Shares]:
    """Shapes of the population's settings and samples: nothing of it is ever held."""
    weights, _ = jax.eval_shape(network.init, jax.random.key(0))
    count, number = (jax.ShapeDtypeStruct((agents,), dtype) for dtype in (jnp.int32, jnp.float32))
    shares = Shares(
        jax.ShapeDtypeStruct((SAMPLES, *image_shape), jnp.uint8),
        jax.ShapeDtypeStruct((SAMPLES,), jnp.int32),
        jax.ShapeDtypeStruct((agents, CAPACITY), jnp.int32),
        count,
    )
    return Hyper(jax.tree.map(lambda _: count, weights), *[number] * 7), shares


def footprint(network, agents, image_shape=(3, 3, 1), mixing="uniform", algorithm=None, **settings) -> dict[str, int]:
    hyper, shares = shapes_of(network, agents, image_shape)
    own = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), hyper)
    graph = topology_of("ring", agents, seed=0, mixing=mixing).graph
    algorithm = algorithm or mce_pl(network)
    return memory.footprint(network, algorithm, own, graph, shares, agents=agents, batch_size=BATCH, **settings)


def test_a_footprint_is_what_one_counts_by_hand():
    assert footprint(ONE_LAYER, 8) == {
        "weights": 4 * (36 + 4),
        "scores": 8 * 4 * 36,
        "optimizer": 0,
        "gradient": 8 * 4 * 36,
        "counts": 8 * (36 + 9),  # and nine bytes: of how many, the weight of its own, whether anybody spoke
        "bits": 8 * 6 * 5,  # 36 bits are 5 bytes; what is sent now, what was sent last, and four times before
        "activations": (1 + memory.WORKING_COPIES) * 4 * BATCH * 9,  # the gradient by a kernel needs what came in
        "data": SAMPLES * (9 + 4) + 8 * 4 * (CAPACITY + 1),
    }


@pytest.mark.parametrize(
    ("agents", "settings", "changed"),
    [
        (8, {"mixing": "metropolis"}, {"counts": 8 * (4 * (36 + 1) + 5)}),
        (8, {"chunk": 3}, {"activations": 3 * 6 * 4 * BATCH * 9}),
        (8, {"local_steps": 3}, {}),
        (
            8,
            {"devices": 4, "chunk": 2},
            {
                "scores": 2 * 4 * 36,
                "gradient": 2 * 4 * 36,
                "counts": 2 * (36 + 9),
                "bits": 2 * 6 * 5 + 8 * 5,  # and everybody's, as they come in
                "activations": 2 * 6 * 4 * BATCH * 9,
                "data": SAMPLES * (9 + 4) + 2 * 4 * (CAPACITY + 1),
            },
        ),
        (
            257,  # too many for a byte
            {},
            {
                "scores": 257 * 4 * 36,
                "gradient": 257 * 4 * 36,
                "counts": 257 * (2 * 36 + 9),
                "bits": 257 * 6 * 5,
                "data": SAMPLES * (9 + 4) + 257 * 4 * (CAPACITY + 1),
            },
        ),
    ],
    ids=["weighted links", "chunk", "local steps", "devices", "many agents"],
)
def test_what_changes_a_footprint(agents, settings, changed):
    assert footprint(ONE_LAYER, agents, **settings) == footprint(ONE_LAYER, 8) | changed


@pytest.mark.parametrize(
    ("switches", "changed"),
    [
        ({"optimizer": optax.scale_by_adam()}, {"optimizer": 8 * (2 * 4 * 36 + 4)}),  # two moments and a step count
        ({"optimizer": optax.trace(0.9)}, {"optimizer": 8 * 4 * 36}),
        ({"fine_tune_gradient": "recomputed"}, {"gradient": 0}),  # nothing waits for the exchange
        ({"order": "paper"}, {"gradient": 0}),
    ],
    ids=["adam", "momentum", "recomputed", "paper"],
)
def test_what_agents_carry_is_counted(switches, changed):
    algorithm = mce_pl(ONE_LAYER, **switches)
    assert footprint(ONE_LAYER, 8, algorithm=algorithm) == footprint(ONE_LAYER, 8) | changed


class Analysis:
    """XLA's own of the compiled round, whose state is donated."""

    def __init__(self, agents: int, chunk: int = 1, optimizer: Any = None):
        hyper, shares = shapes_of(WIDE, agents, (8, 8, 1))
        algorithm, graph = mce_pl(WIDE, optimizer=optimizer), topology_of("ring", agents, seed=0).graph

        def world(round):
            return population.world_of(WIDE, jax.random.key(0), round, 10)

        def start(hyper):
            return population.init(algorithm, world(0), hyper, graph, agents=agents, chunk=chunk)

        def step(state, hyper, shares):
            now = world(state.round)
            return population.round(algorithm, now, hyper, state, shares, graph, batch_size=BATCH, chunk=chunk)

        state = jax.eval_shape(start, hyper)
        # What the compiler makes fast decides nothing about memory.
        hasty = {"xla_backend_optimization_level": 0}
        compiled = jax.jit(step, donate_argnums=0).lower(state, hyper, shares).compile(hasty)
        said = compiled.memory_analysis()
        self.parts = footprint(WIDE, agents, (8, 8, 1), algorithm=algorithm, chunk=chunk)
        self.state = memory.bytes_of(state)
        self.new_memory = said.output_size_in_bytes - said.alias_size_in_bytes  # of results, the state's place aside
        self.working = said.temp_size_in_bytes
        self.all = said.argument_size_in_bytes + self.new_memory + self.working


@pytest.fixture(scope="module")
def of_sixteen() -> Analysis:
    return Analysis(16)


@pytest.mark.slow
def test_a_round_works_without_a_second_copy_of_the_population(of_sixteen):
    """With twice the agents the working memory grows by what they carry over the exchange, and no second scores."""
    of_thirty_two = Analysis(32)
    # The new state lies where the old one lay. What is new are diagnostics, and the oldest messages that are
    # remembered: those of the old state are dropped unread, and their place with them.
    for analysis in (of_sixteen, of_thirty_two):
        assert analysis.new_memory < 0.01 * analysis.state + analysis.parts["bits"] / (2 + PAST)
    gradient = of_sixteen.parts["gradient"]
    growth = of_thirty_two.working - of_sixteen.working
    assert gradient <= growth < 1.25 * gradient


def test_a_footprint_is_what_the_compiler_says(of_sixteen):
    """To a sixth: what else the compiler keeps is small next to agents and activations."""
    assert sum(of_sixteen.parts.values()) == pytest.approx(of_sixteen.all, rel=1 / 6)


@pytest.mark.slow
def test_a_footprint_of_chunks_and_moments_is_what_the_compiler_says():
    analysis = Analysis(16, chunk=4, optimizer=optax.scale_by_adam())
    assert sum(analysis.parts.values()) == pytest.approx(analysis.all, rel=1 / 6)


# What a device has left.

GIB = 2**30
CPU = mock.Mock(spec=jax.Device, platform="cpu")


OLD_GROUP = "sys/fs/cgroup/memory"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system with 8 GiB left, and a way to write the files of its control groups."""
    monkeypatch.setattr(memory, "Path", lambda name: tmp_path / name.lstrip("/"))
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: types.SimpleNamespace(available=8 * GIB))

    def write(folder="sys/fs/cgroup", **files):
        for name, text in files.items():
            path = tmp_path / ("proc/self/cgroup" if name == "cgroup" else f"{folder}/memory.{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_a_cpu_has_what_the_system_has_left(system):
    assert memory.available(CPU) == 8 * GIB
    # Four devices that are one CPU share it.
    assert memory.available(CPU, sharing=4) == 2 * GIB


def test_a_control_group_may_have_less_left(system):
    system(max=f"{5 * GIB}\n", current=f"{2 * GIB}\n")
    assert memory.available(CPU) == 3 * GIB
    system(max=f"{50 * GIB}\n")
    assert memory.available(CPU) == 8 * GIB


def test_a_limited_address_space_leaves_what_is_not_reserved_yet(system, monkeypatch):
    taken = types.SimpleNamespace(memory_info=lambda: types.SimpleNamespace(vms=2 * GIB))
    monkeypatch.setattr(memory.psutil, "Process", lambda: taken)
    for limit, left in ((4 * GIB, 2 * GIB - memory.RESERVED), (2 * GIB, 0), (40 * GIB, 8 * GIB)):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        assert memory.available(CPU) == left


def test_a_control_group_without_a_limit_limits_nothing(system):
    system(max="max\n", current=f"{2 * GIB}\n")
    assert memory.available(CPU) == 8 * GIB


def test_pages_of_files_that_nobody_reads_count_as_left(system):
    system(max=f"{5 * GIB}\n", current=f"{4 * GIB}\n", stat=f"file 7\ninactive_file {2 * GIB}\n")
    assert memory.available(CPU) == 3 * GIB


@pytest.mark.parametrize("tight", ["sys/fs/cgroup/a/b", "sys/fs/cgroup/a"])
def test_nested_groups_are_all_asked(tight, system):
    system(cgroup="0::/a/b\n")
    for folder in ("sys/fs/cgroup/a/b", "sys/fs/cgroup/a"):
        system(folder, max=f"{3 * GIB if folder == tight else 7 * GIB}\n", current=f"{GIB}\n")
    assert memory.available(CPU) == 2 * GIB


@pytest.mark.parametrize("seen_at", [OLD_GROUP, f"{OLD_GROUP}/jobs/seven"])
def test_groups_of_the_older_interface_are_asked(seen_at, system):
    """By their path, or at the root where a container sees its own group there."""
    system(cgroup="5:cpu,cpuacct:/jobs/seven\n4:memory:/jobs/seven\n0::/\n")
    numbers = {"limit_in_bytes": f"{3 * GIB}\n", "usage_in_bytes": f"{2 * GIB}\n"}
    system(seen_at, **numbers, stat=f"inactive_file 5\ntotal_inactive_file {GIB}\n")
    assert memory.available(CPU) == 2 * GIB


@pytest.mark.parametrize(
    ("stats", "left"),
    [
        ({"bytes_limit": 80 * GIB, "bytes_in_use": 3 * GIB, "largest_free_block_bytes": 5}, 77 * GIB),
        ({"num_allocs": 3}, None),
        (None, None),
    ],
)
def test_an_accelerator_says_what_it_has_left(stats, left, system):
    system(max="5000\n", current="1000\n")
    device = mock.Mock(spec=jax.Device, platform="gpu")
    device.memory_stats.return_value = stats
    assert memory.available(device) == left


def test_this_machine_has_something_left():
    left = memory.available(jax.local_devices()[0])
    assert left is None or 2**20 < left < 2**50


# What fits.


@pytest.fixture(scope="module")
def prepared() -> plan.Prepared:
    return prepare.prepare(Settings(dataset="digits", agents=8, model="mlp", topology="ring"))


def fitting(prepared, free, platform="gpu", devices=1, members=1, **settings) -> tuple[int, int, dict[str, int]]:
    """`what_fits` on devices of a platform, each with `free` bytes left; None where nobody says."""
    mesh: Any = types.SimpleNamespace(shape={"settings": 1, "agents": devices})
    asked = prepared._replace(settings=dataclasses.replace(prepared.settings, **settings))
    return plan.what_fits(asked, members, mesh, platform, free)


@pytest.fixture(scope="module")
def one_at_a_time(prepared) -> dict[str, int]:
    """What it takes on an accelerator that computes one agent at a time."""
    return fitting(prepared, None, agent_chunk=1)[2]


def test_a_cpu_takes_one_agent_at_a_time(prepared, one_at_a_time):
    """And the compiler's memory, which an accelerator's has no part in; what is as large as weights it does without."""
    own = {"activations": one_at_a_time["activations"] - memory.LIKE_WEIGHTS * one_at_a_time["weights"]}
    need = one_at_a_time | own | {"compiler": fitting(prepared, None, "cpu")[2]["compiler"]}
    least, of_equation, copies = memory.COMPILERS["cpu"]
    equations, rest = divmod(need["compiler"] - least - copies * need["weights"], of_equation)
    assert (equations > 0, rest) == (True, 0)
    for free in (sum(need.values()), 10**12, None):
        assert fitting(prepared, free, "cpu") == (1, 1, need)
    planned = plan.plan([prepared])
    assert (planned.chunk, planned.together, planned.footprint) == (1, 1, need)


def test_an_accelerator_takes_all_that_fit_at_a_time(prepared, one_at_a_time):
    """In four fifths of what is free, as its compiler takes some too, in equal chunks. One agent may take all of
    it."""
    of_one, of_eight = one_at_a_time["activations"], 8 * one_at_a_time["activations"]
    least, chunks = sum(one_at_a_time.values()), []
    for free in np.linspace(least, 1.5 * (least + of_eight), 24).astype(int).tolist():
        chunk, _, parts = fitting(prepared, free)
        need = sum(parts.values())
        assert parts == one_at_a_time | {"activations": chunk * of_one}
        assert need <= (free if chunk == 1 else 0.8 * free)
        assert chunk == 8 or need + chunk * of_one > 0.8 * free  # twice as many do not fit
        chunks.append(chunk)
    assert chunks == sorted(chunks)
    assert set(chunks) == {1, 2, 4, 8}  # which divide all
    assert fitting(prepared, None)[0] == 8
    # No more than one of several devices has.
    assert fitting(prepared, 10**12, devices=4)[0] == 2


def test_several_settings_take_what_each_has_of_its_own(prepared, one_at_a_time):
    """Images and labels are held once; whole populations are computed together where they fit."""
    common = memory.bytes_of([(s.images, s.labels) for s in (prepared.train, prepared.tests)])
    _, together, parts = fitting(prepared, None, members=5)
    assert together == 5
    assert parts["scores"] == 5 * one_at_a_time["scores"]
    assert parts["data"] == 5 * (one_at_a_time["data"] - common) + common
    assert parts["activations"] == 5 * 8 * one_at_a_time["activations"]
    # A device that holds all, and computes one population and a half of them at a time, takes one.
    rest = sum(parts.values()) - parts["activations"]
    tight = (rest + 12 * one_at_a_time["activations"]) * 5 // 4 + 5
    assert fitting(prepared, tight, members=5)[:2] == (8, 1)
    assert fitting(prepared, None, "cpu", members=5)[:2] == (1, 1)
    with pytest.raises(plan.TooLargeError, match=r"^5 settings of 8 agents need about "):
        fitting(prepared, rest, members=5)


def test_tests_and_training_samples_both_count(prepared, one_at_a_time):
    assert one_at_a_time["data"] == memory.bytes_of((prepared.train, prepared.tests))


def test_a_chunk_that_is_asked_for_is_taken_where_it_fits(prepared):
    for platform in ("cpu", "gpu"):
        need = sum(fitting(prepared, None, platform, agent_chunk=3)[2].values())
        assert fitting(prepared, 10**12, platform, agent_chunk=3)[0] == 3
        assert fitting(prepared, need, platform, agent_chunk=3)[0] == 3
        assert fitting(prepared, 10**12, platform, agent_chunk=99)[0] == 8
        with pytest.raises(ValueError, match=r"^8 agents need about .* a smaller --agent-chunk"):
            fitting(prepared, need - 1, platform, agent_chunk=3)


def test_a_batch_beyond_all_samples_costs_no_more_than_they_do_rounded_up(prepared):
    capacity = prepared.train.indices.shape[1]
    rounded = -(-capacity // BATCHES) * BATCHES
    small, all_, whole, beyond = (
        fitting(prepare.prepare(dataclasses.replace(prepared.settings, batch_size=size)), None, "cpu")[2]["activations"]
        for size in (capacity // 2, capacity, rounded, 2**31 - 1)
    )
    assert small < all_ <= whole == beyond


def test_an_evaluation_of_many_samples_may_take_more_than_a_gradient_of_few():
    """Whose one layer's input is what it computes with: 256 samples at once of 9 pixels."""
    one, many = (footprint(ONE_LAYER, 8, test_batch=batch)["activations"] for batch in (16, 256))
    assert one == 6 * 4 * BATCH * 9
    assert many == 2 * 4 * 256 * 9


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_not_even_one_agent_at_a_time_is_refused(prepared, platform):
    need = sum(fitting(prepared, None, platform, agent_chunk=1)[2].values())
    assert fitting(prepared, need, platform)[0] == 1
    for free in (need - 1, 0, -5):
        with pytest.raises(ValueError, match=r"^8 agents need about 0\.\d\d GB.* on each device, and -?0\.\d\d GB are"):
            fitting(prepared, free, platform)


def test_the_command_refuses_what_does_not_fit_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(memory, "available", lambda device, sharing=1: 3 * 10**9)
    monkeypatch.setattr(commands, "train", lambda *_: pytest.fail("it would have been trained"))
    flags = "--dataset digits --model conv4 --agents 1000 --partition iid --topology ring --test-samples 1"
    assert cifar.main([*flags.split(), "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("experiments.cifar: 1000 agents need about ")
    assert "GB (scores " in said
    assert "and 3.00 GB are free: take fewer --agents" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"scores": 12_340_000_000, "bits": 660_000_000}, "13.00 GB (scores 12.34, bits 0.66)"),
        ({"bits": 7_000_000, "scores": 40_000_000}, "0.05 GB (scores 0.04, bits 0.01)"),
        # What rounds to nothing is counted and not named.
        ({"bits": 4_999_999, "data": 4_999_999, "scores": 5_000_000}, "0.01 GB (scores 0.01)"),
        ({"scores": 4_000_000}, "0.00 GB"),
        ({}, "0.00 GB"),
    ],
)
def test_a_footprint_in_words(parts, words):
    assert memory.said(parts) == words
