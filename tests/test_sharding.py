"""Agents over devices and processes: the same numbers bit for bit, packed bits alone cross, one process writes.

What needs four devices, or two processes, runs in processes of its own, which are started with a function of this file.
Most of them compile without LLVM's optimization: it takes half the time, and all that is compared is compiled alike.
"""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import draw_nothing
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from tiny import TinyNet, assert_same_numbers, rows_of, use_tiny_network

from dslth_jax import population, sharding
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.networks.network import Linear, Network, network_of
from dslth_jax.networks.zoo import MODULES, network_by_name
from dslth_jax.population import Shares, State
from dslth_jax.retention import kept_by_layer
from dslth_jax.sharding import AXIS, EVERYWHERE, SHARES, SPREAD, STATE, over_devices
from dslth_jax.study import commands as training_commands
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import topology_of
from dslth_jax.study.training import prepare, processes
from experiments import cifar, sweep

FOUR = "--xla_force_host_platform_device_count=4"
PROGRAMS = {"draw", "start", "step", "score"}
HASTY = "--xla_backend_optimization_level=0"
TINY_LAYERS = (3 * 3 * 1 * 4, 3 * 3 * 4 * 10)  # entries, for digits
PATIENCE = 300  # seconds for a process, on a machine where others compile too


class OneLayer(nn.Module):
    """Even less to compile than the tiny network."""

    @nn.compact
    def __call__(self, values):
        return Linear(4, name="linear")(values.reshape(values.shape[0], -1))


def begin(function, *arguments: str, flags: Sequence[str] = ()) -> subprocess.Popen:
    """Start a function of a test file in a process of its own, where a warning is an error as in tests."""
    here = Path(__file__).parent
    words = f"import conftest, sys, {function.__module__} as here; here.{function.__name__}(*sys.argv[1:])"
    # Keep no programs: of several processes one would read what another is writing.
    own = {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    own["DSLTH_ANNOTATIONS"] = "unchecked"
    own["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(HASTY in flags).lower()
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", words, *arguments],
        cwd=here.parent,
        env={**os.environ, "PYTHONPATH": f"{here}:{here.parent}", **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(*processes: subprocess.Popen) -> list[tuple[int, str, str]]:
    """Exit code, output and error stream of each; none is left behind."""
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *words) for process, words in zip(processes, said, strict=True)]


def succeed(*processes: subprocess.Popen) -> None:
    for code, _, said in end(*processes):
        assert code == 0, said


# Runs of the command.

RUN = ["--dataset", "digits", "--model", "tiny", "--agents", "8", "--rounds", "4", "--eval-every", "2"]
WEIGHTED = [*RUN, "--mixing", "metropolis", "--retention", "0.1:0.8"]
CHANGING = [*RUN, "--topology", "changing-erdos-renyi:0.5", "--exchange-every", "2", "--validation", "0.2"]
# What all must know alike: the mean and the slowest of simulated times.
TIMED = ["--bandwidth", "lognormal:0.01:1", "--device-speed", "1e6:1e7", "--controller", "balance"]


def commands(*words: str) -> None:
    """Run the command once for each list of flags, with the tiny network as one of its models.

    Beside each run folder the compiled text of its programs is left.
    """
    MODULES["tiny"] = TinyNet
    draw_nothing(pytest.MonkeyPatch())
    compile_for_real, texts = jax.stages.Lowered.compile, {}

    def compile_and_keep(lowered, options=None):
        compiled = compile_for_real(lowered, options)
        texts[re.match(r"HloModule jit_(\w+)", compiled.as_text())[1]] = compiled.as_text()
        return compiled

    jax.stages.Lowered.compile = compile_and_keep
    for flags in map(json.loads, words):
        assert cifar.main(flags) == 0
        Path(flags[-1] + ".json").write_text(json.dumps(texts))


def command(*flags: str) -> None:
    """The command as it is run from a shell, which leaves without the interpreter's own shutdown."""
    MODULES["tiny"] = TinyNet
    draw_nothing(pytest.MonkeyPatch())
    sys.argv[1:] = flags
    del sys.modules["experiments.cifar"]
    runpy.run_module("experiments.cifar", run_name="__main__", alter_sys=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same files, and the same numbers bit for bit."""
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    # They learned something, or there would be nothing to see.
    assert len({row["loss"] for row in rows_of(one)}) == len({row["flip_rate"] for row in rows_of(one)}) == 3
    assert_same_numbers(one, other)


def collectives(text: str) -> list[tuple[str, str, int]]:
    """Of a compiled program, the kind, type and entries of whatever any of its collectives leaves on a device."""
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-|ragged-|send|recv|infeed|outfeed"
    found = []
    for types, kind in re.findall(rf"= (.+?) ((?:{kinds})[a-z-]*)\(", text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", types):
            found.append((kind, dtype, int(np.prod([int(side) for side in shape.split(",") if side]))))
    return found


def assert_packed_bits_cross(programs: Path) -> None:
    """Among four devices, and nothing else: each layer's bits of all agents once, in whole bytes; none where agents are
    tested."""
    texts, per_mask = json.loads(programs.read_text()), sum(-(-entries // 8) for entries in TINY_LAYERS)
    crossing = {name: collectives(text) for name, text in texts.items() if name in (*PROGRAMS, "validate")}
    assert crossing.keys() >= PROGRAMS
    assert all(crossing[name] == [] for name in crossing.keys() - {"start", "step"})
    for found in (crossing["start"], crossing["step"]):
        assert {(kind, dtype) for kind, dtype, _ in found} == {("all-gather", "u8")}
        assert sum(entries for _, _, entries in found) == 8 * per_mask


def devices_of(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["settings"]["devices"]


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def begin_two(flags: Sequence[str], outs: Sequence[Path], of_the_second: Sequence[str] = ()) -> list[subprocess.Popen]:
    """Start the command in two processes of one device each."""
    joint = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2"]
    return [
        begin(command, *flags, *joint, "--process", number, "--out", str(out), *own, flags=[HASTY])
        for number, out, own in zip("01", outs, [(), of_the_second], strict=True)
    ]


def sweeps(*words: str) -> None:
    """Run a sweep once for each list of flags."""
    MODULES["tiny"] = TinyNet
    draw_nothing(pytest.MonkeyPatch())
    for flags in map(json.loads, words):
        assert sweep.main(flags) == 0


def on_one_and_on_four(flags: Sequence[str], folder: Path) -> list[str]:
    """Words for `commands`: the same run on one device and on four."""
    return [json.dumps([*flags, "--devices", name, "--out", str(folder / name)]) for name in "14"]


@pytest.fixture(scope="module")
def one_and_four(tmp_path_factory) -> Path:
    """The folders of one run on one device and on four; in the process that has four, all else that needs them."""
    folder = tmp_path_factory.mktemp("devices")
    succeed(begin(on_four_devices, *on_one_and_on_four(WEIGHTED, folder), flags=[FOUR, HASTY]))
    return folder


def assert_four_are_as_one(folder: Path) -> None:
    """Sums of floats must not depend on how many agents share a device."""
    assert [devices_of(folder / name) for name in "14"] == [1, 4]
    assert_same_run(folder / "1", folder / "4")
    assert_packed_bits_cross(folder / "4.json")


def test_four_devices_leave_the_folder_that_one_leaves(one_and_four):
    """And meshes of four, what lies on them, and what lowers for more."""
    assert_four_are_as_one(one_and_four)


@pytest.mark.slow
def test_four_devices_leave_the_folder_that_one_leaves_as_users_compile(tmp_path):
    succeed(begin(commands, *on_one_and_on_four(WEIGHTED, tmp_path), flags=[FOUR]))
    assert_four_are_as_one(tmp_path)


@pytest.mark.slow
def test_two_processes_leave_one_folder_and_it_is_that_of_one(one_and_four, tmp_path):
    """Only the first process writes."""
    succeed(*begin_two(WEIGHTED, [tmp_path / "first", tmp_path / "second"]))
    assert {path.name for path in tmp_path.iterdir()} == {"first"}
    assert devices_of(tmp_path / "first") == 2
    assert_same_run(one_and_four / "1", tmp_path / "first")


@pytest.mark.slow
def test_two_processes_over_links_that_change_leave_what_one_leaves(tmp_path, monkeypatch):
    """And silent rounds, in simulated time."""
    use_tiny_network(monkeypatch)
    draw_nothing(monkeypatch)
    together = begin_two([*CHANGING, *TIMED], [tmp_path / "first", tmp_path / "second"])
    assert cifar.main([*CHANGING, *TIMED, "--out", str(tmp_path / "1")]) == 0
    succeed(*together)
    assert_same_run(tmp_path / "1", tmp_path / "first")


@pytest.mark.slow
def test_four_devices_over_links_that_change_leave_what_one_leaves(tmp_path):
    """And silent rounds."""
    succeed(begin(commands, *on_one_and_on_four(CHANGING, tmp_path), flags=[FOUR, HASTY]))
    assert_same_run(tmp_path / "1", tmp_path / "4")
    assert_packed_bits_cross(tmp_path / "4.json")


@pytest.mark.slow
def test_a_sweep_spreads_its_settings_over_devices(tmp_path):
    """Six on four devices, which is two each and two that count for nothing; and each as the run of it alone."""
    grid = ["--grid", "lr=3,10,20", "--seeds", "2", "--run-folders"]
    succeed(begin(sweeps, *on_one_and_on_four([*RUN, *grid], tmp_path), flags=[FOUR, HASTY]))
    assert rows_of(tmp_path / "1") == rows_of(tmp_path / "4")
    assert len(rows_of(tmp_path / "4")) == 6 * 3
    for one, other in zip(*(sorted((tmp_path / name / "runs").iterdir()) for name in "14"), strict=True):
        assert_same_numbers(one, other)
    assert (tmp_path / "1" / "results.csv").read_bytes() == (tmp_path / "4" / "results.csv").read_bytes()


def test_what_one_process_is_refused_ends_all_in_the_same_line(tmp_path):
    """The second alone cannot read its graph, which it finds out after they have joined."""
    together = begin_two(RUN, [tmp_path / "first", tmp_path / "second"], ["--topology", str(tmp_path / "missing.txt")])
    for code, _, said in end(*together):
        assert code == 2
        assert said.count("\n") == 1
        assert "a graph's file that exists, got" in said


@pytest.mark.parametrize(
    ("complaints", "heard"),
    [
        ([None, None], None),
        (["first", None], "first"),
        ([None, "second"], "second"),
        (["first", "second"], "first"),
        # However long it is.
        ([None, "\u00fc" + "x\u00fc" * 500], "\u00fc" + "x\u00fc" * 500),
    ],
)
def test_all_hear_the_first_complaint(complaints, heard, monkeypatch):
    rows = []

    def gather(said):
        if said.ndim == 0:  # how long the words are
            return np.int32([9000])
        rows.append(said)
        return np.stack(rows)

    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    assert [processes.agree(complaint) for complaint in complaints][-1] == heard


# What else must hold of compiled programs.


def test_collectives_are_seen_in_compiled_text():
    """The reading above, on lines as compilers write them."""
    text = """
      %all-gather.1 = (u8[8,5]{1,0}, u8[8,45]{1,0}) all-gather(%one, %two), channel_id=1, dimensions={0}
      ROOT %all-reduce.3 = f32[] all-reduce(%mean), to_apply=%add, metadata={op_name="jit(step)/psum"}
      %all-gather-start = (f32[2,3]{1,0}, f32[8,3]{1,0}) all-gather-start(%scores)
      %collective-permute = u32[7]{0} collective-permute(%words)
      %sum = f32[4]{0} add(%all-gather.7, %collective-permute)
    """
    assert collectives(text) == [
        ("all-gather", "u8", 40),
        ("all-gather", "u8", 360),
        ("all-reduce", "f32", 1),
        ("all-gather-start", "f32", 6),
        ("all-gather-start", "f32", 24),
        ("collective-permute", "u32", 7),
    ]


# The round by itself, without the command.


def hyper_of(network: Network, agents: int) -> Hyper:
    """Settings that differ from agent to agent."""
    weights, _ = jax.eval_shape(network.init, jax.random.key(0))
    kept = [kept_by_layer(weights, network.roles, retention) for retention in np.linspace(0.2, 0.8, agents)]
    values = {"lr": 2.0, "fine_tune_lr": 3.0, "weight_decay": 5e-3, "group_lasso": 0.0, "amplitude": 1.0, "force": 1.0}
    values |= {"label_smoothing": 0.2}
    own = {name: value * np.linspace(0.8, 1.2, agents, dtype=np.float32) for name, value in values.items()}
    return Hyper(jax.tree.map(lambda *counts: np.array(counts, np.int32), *kept), **own)


def shares_of(agents: int, image_shape: tuple[int, int, int], samples: int = 60) -> Shares:
    rng = np.random.default_rng(0)
    return Shares(
        rng.integers(0, 256, (samples, *image_shape), np.uint8),
        rng.integers(0, 4, samples).astype(np.int32),
        rng.integers(0, samples, (agents, 9)).astype(np.int32),
        rng.integers(1, 10, agents).astype(np.int32),
    )


def programs(network: Network, agents: int, on_device: int, chunk: int, axis: str | None) -> tuple[Any, Any]:
    """The start and the round from a seed, of a device that holds `on_device` of the agents."""
    algorithm, graph = mce_pl(network), topology_of("erdos-renyi:0.6", agents, seed=1).graph

    def world(seed: Any, round: Any) -> Any:
        return population.world_of(network, jax.random.key(seed), round, 10)

    def start(seed: Any, hyper: Hyper) -> State:
        return population.init(algorithm, world(seed, 0), hyper, graph, agents=on_device, chunk=chunk, axis=axis)

    def step(state: State, seed: Any, hyper: Hyper, shares: Shares) -> tuple[State, Any]:
        now = world(seed, state.round)
        return population.round(algorithm, now, hyper, state, shares, graph, batch_size=6, chunk=chunk, axis=axis)

    return start, step


def a_second_axis_is_left_open() -> None:
    """Four seeds over one axis of the mesh, four agents over the other: each seed is as it is alone, bit for bit."""
    network, seeds = network_of(OneLayer(), (3, 3, 1)), np.arange(4, dtype=np.uint32)
    hyper, shares = hyper_of(network, 4), shares_of(4, (3, 3, 1))
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("settings", AXIS))
    start, alone = programs(network, 4, 4, 1, None)
    _, spread = programs(network, 4, 2, 1, AXIS)

    def of_every_seed(state: State, seeds: Any, hyper: Hyper, shares: Shares) -> tuple[State, Any]:
        return jax.lax.map(lambda own: spread(*own, hyper, shares), (state, seeds))

    both, across = PartitionSpec("settings", AXIS), PartitionSpec("settings")
    states = State(agents=both, heard=both, sent=both, links=across, control=both, round=across, earlier=both)
    together = jax.jit(over_devices(of_every_seed, mesh, (states, across, SPREAD, SHARES), (states, both)))
    start, alone = jax.jit(start), jax.jit(alone)
    own = [start(seed, hyper) for seed in seeds]
    all_states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    for _ in range(2):
        all_states, all_info = together(all_states, seeds, hyper, shares)
        pairs = [alone(state, seed, hyper, shares) for state, seed in zip(own, seeds, strict=True)]
        own = [state for state, _ in pairs]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)
        chex.assert_trees_all_equal(jax.device_get((all_states, all_info)), stacked)
    assert len({loss.tobytes() for loss in all_info["loss"]}) == 4


@pytest.mark.slow
def test_a_second_axis_of_the_mesh_is_left_open():
    succeed(begin(a_second_axis_is_left_open, flags=[FOUR, HASTY]))


def lowered_for_accelerators(chunk: int, mesh: Mesh | None = None, name: str = "small") -> jax.export.Exported:
    """The round of eight agents with a network of the zoo."""
    network, agents, axis = network_by_name(name, (32, 32, 3), 10), 8, AXIS if mesh else None
    start, step = programs(network, agents, agents // (mesh.size if mesh else 1), chunk, axis)
    if mesh:
        start = over_devices(start, mesh, (EVERYWHERE, SPREAD), STATE)
        step = over_devices(step, mesh, (STATE, EVERYWHERE, SPREAD, SHARES), (STATE, SPREAD))
    own = np.uint32(0), hyper_of(network, agents), shares_of(agents, (32, 32, 3))
    state = jax.eval_shape(start, *own[:2])
    lowered = jax.export.export(jax.jit(step, donate_argnums=0), platforms=["cuda", "tpu"])(state, *own)
    assert lowered.platforms == ("cuda", "tpu")
    return lowered


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "name"), [(4, "small"), (8, "alexnet")])
def test_the_whole_round_lowers_for_accelerators(chunk, name):
    """Nothing in it is of the CPU alone, with the agents in chunks or all together; of four devices above, too."""
    assert "all_gather" not in lowered_for_accelerators(chunk, name=name).mlir_module()


# Meshes, and what lies on them.


def test_one_process_agrees_with_itself():
    assert processes.agree(None) is None
    assert processes.agree("no") == "no"
    assert processes.is_first()


def test_one_device_is_a_mesh():
    mesh = sharding.agents_mesh(7)
    assert (mesh.axis_names, mesh.size) == ((AXIS,), 1)
    with pytest.raises(ValueError, match=r"^devices must be in 1\.\.1, .* of cpu, got 2: XLA_FLAGS=--xla_force_host"):
        sharding.agents_mesh(8, 2)


def meshes_of_four() -> None:
    for agents, devices in ((8, 4), (6, 3), (9, 3), (2, 2), (7, 1), (1, 1), (400, 4)):
        mesh = sharding.agents_mesh(agents)
        assert (mesh.axis_names, list(mesh.devices)) == ((AXIS,), jax.devices()[:devices])
    assert sharding.agents_mesh(8, 2).size == 2
    for agents, devices, sentence in (
        (8, 3, r"^agents must be a multiple of devices, got 8 and 3: devices can be \[1, 2, 4\]$"),
        (9, 2, r"got 9 and 2: devices can be \[1, 3\]$"),
        (10, 5, r"^devices must be in 1\.\.4, as many as JAX sees of cpu, got 5: XLA_FLAGS=--xla_force_host"),
        (10, 0, r"^devices must be in 1\.\.4, .* got 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            sharding.agents_mesh(agents, devices)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(jax, "process_count", lambda: 2)
        assert sharding.agents_mesh(8).size == 4
        for agents, devices, taken in ((6, None, 3), (8, 2, 2)):
            with pytest.raises(
                ValueError, match=rf"all of their 4 devices, got {taken} for {agents} .* multiple of 4$"
            ):
                sharding.agents_mesh(agents, devices)


def arrays_on_four() -> None:
    mesh = sharding.agents_mesh(8)
    tree = {"own": (np.arange(24, dtype=np.int16).reshape(8, 3), np.ones(8, bool)), "common": np.float32([1, 2])}
    tree["round"] = np.int32(3)
    where = {"own": SPREAD, "common": EVERYWHERE, "round": EVERYWHERE}
    placed = sharding.put(tree, where, mesh)
    chex.assert_trees_all_equal(sharding.fetch(placed), tree)
    for leaf in placed["own"]:
        assert len(leaf.addressable_shards) == 4
        for number, shard in enumerate(leaf.addressable_shards):
            assert shard.device == mesh.devices[number]
            np.testing.assert_array_equal(shard.data, leaf[2 * number : 2 * number + 2])
    for name in ("common", "round"):
        assert placed[name].sharding.is_fully_replicated
        assert len(placed[name].addressable_shards) == 4
    shapes = sharding.placed_shapes(tree, where, mesh)
    describe = lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding)  # noqa: E731
    assert jax.tree.map(describe, shapes) == jax.tree.map(describe, placed)


def accelerators_in_fours(chunk: str = "2") -> None:
    lowered = lowered_for_accelerators(int(chunk), sharding.agents_mesh(8))
    assert lowered.nr_devices == 4
    assert "all_gather" in lowered.mlir_module()


@pytest.mark.slow
def test_one_agent_at_a_time_lowers_for_four_accelerators():
    succeed(begin(accelerators_in_fours, "1", flags=[FOUR, HASTY]))


def on_four_devices(*words: str) -> None:
    meshes_of_four()
    arrays_on_four()
    accelerators_in_fours()
    commands(*words)


# Flags that are wrong together.


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--processes 2", "--processes and --process need --coordinator ADDRESS:PORT: say it, or leave them out"),
        ("--process 0", "--processes and --process need --coordinator ADDRESS:PORT: say it, or leave them out"),
        ("--coordinator auto --processes 2 --process 0", "--processes and --process need --coordinator ADDRESS:PORT"),
        ("--coordinator host --processes 2 --process 0", "must be ADDRESS:PORT of process 0, or auto, got 'host'"),
        ("--coordinator host: --processes 2 --process 0", "must be ADDRESS:PORT of process 0, or auto, got 'host:'"),
        ("--coordinator host:x --processes 2 --process 0", "must be ADDRESS:PORT of process 0, or auto, got 'host:x'"),
        ("--coordinator host:0 --processes 2 --process 0", "must be ADDRESS:PORT of process 0, or auto, got 'host:0'"),
        ("--coordinator host:7000 --processes 2", "needs --processes and --process: say both, or --coordinator auto"),
        ("--coordinator host:7000 --process 0", "needs --processes and --process: say both, or --coordinator auto"),
        ("--coordinator host:7000 --processes 2 --process 2", "--process must be below --processes, got 2 of 2"),
        ("--coordinator host:7000 --processes 1 --process 5", "--process must be below --processes, got 5 of 1"),
        ("--devices 3", "devices must be in 1..1, as many as JAX sees of cpu, got 3"),
    ],
)
def test_flags_of_several_devices_and_processes_are_refused_together(flags, said, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "start_processes", lambda *_: pytest.fail("it would have waited for the others"))
    monkeypatch.setattr(training_commands, "train", lambda *_: pytest.fail("it would have been trained"))
    start = ["--dataset", "digits", "--agents", "8", "--out", str(tmp_path / "run")]
    assert cifar.main([*start, *flags.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("experiments.cifar: ")
    assert shown.err.count("\n") == 1
    assert said in shown.err
    assert shown.out == ""
    assert not (tmp_path / "run").exists()


def test_processes_are_joined_as_the_flags_say(monkeypatch):
    """And before anything else is asked of JAX, for it would start alone."""
    joined = []

    def join(*said):
        joined.append(said)
        raise ValueError("enough")

    monkeypatch.setattr(processes, "start_processes", join)
    monkeypatch.setattr(jax, "devices", lambda *_: pytest.fail("devices were asked for before all have joined"))
    for settings in (
        Settings(dataset="digits", coordinator="host:7000", processes=3, process=1),
        Settings(dataset="digits", coordinator="auto"),
    ):
        with pytest.raises(ValueError, match="enough"):
            prepare.prepare(settings)
    assert joined == [("host:7000", 3, 1), ("auto", None, None)]


def test_a_cluster_that_is_none_is_said_in_one_line(monkeypatch):
    """JAX itself is asked, outside of any cluster."""
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "TPU_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=r"^this process cannot join the others by --coordinator auto: .+$") as refused:
        processes.start_processes("auto")
    assert "\n" not in str(refused.value)
