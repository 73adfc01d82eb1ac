"""Checkpoints: bit for bit what was saved, whole or not at all, whatever fails or kills the run in between."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from test_sharding import FOUR, PATIENCE, begin, free_port, succeed

from dslth_jax import sharding
from dslth_jax.algorithm import Heard, Message
from dslth_jax.algorithms.mce_pl import Agent
from dslth_jax.control import Control
from dslth_jax.population import State
from dslth_jax.sharding import EVERYWHERE, SPREAD, STATE
from dslth_jax.study.training import checkpoint, processes

NOTES = {"settings": {"agents": 8, "lr": 0.1 + 0.2, "out": None}, "bits": 2**70, "rows": [1, 2.5, "ü", True], "": {}}


def bits(dtype: Any, *shape: int, seed: int = 0) -> jax.Array:
    """Any bits there are: NaNs of all kinds, minus zero, subnormal numbers."""
    random = np.random.default_rng([seed, *shape])
    if dtype is bool:
        return jnp.asarray(random.integers(0, 2, shape).astype(bool))
    kind = jnp.dtype(dtype)
    array = np.frombuffer(random.bytes(int(np.prod(shape)) * kind.itemsize), kind).reshape(shape).copy()
    array.reshape(-1)[:1] = np.asarray(-0.0).astype(kind)
    return jnp.asarray(array)


def state_of(agents: int = 8, seed: int = 0) -> State:
    """All that a state is made of: parts without leaves, parts of optax's, layers with bold names."""
    scores = {
        "conv": {"kernel": bits(np.float32, agents, 5, 3, seed=seed)},
        "a/b.c['d'] ü": bits("bfloat16", agents, 7),
    }
    small = {"uint16": bits(np.uint16, agents, 9), "uint8": bits(np.uint8, agents, 4), "bool": bits(bool, agents, 3)}
    zeros = {"zeros": jnp.zeros((agents, 2)), "of no entries": jnp.zeros((agents, 0))}
    adam = optax.ScaleByAdamState(bits(np.int32, agents), mu=small, nu=zeros)
    agent = Agent(scores, (optax.EmptyState(), adam, optax.TraceState([bits(np.float16, agents, 2), None])))
    weight, own = {"conv": bits(np.uint16, agents)}, bits(np.float32, agents)
    heard = Heard({"conv": bits(np.uint8, agents, 30)}, {}, weight, own, bits(bool, agents))
    sent = Message({"conv": bits(np.uint8, agents, 11)})
    return State(agent, heard, sent, None, Control(None, bits(np.float32, agents), ()), jnp.int32(50))


def shapes(state: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for left, right in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert np.asarray(left).tobytes() == np.asarray(right).tobytes()


def small_state(value: int = 0) -> dict[str, jax.Array]:
    return {"scores": jnp.full((4, 6), value, jnp.float32), "round": jnp.int32(value)}


def save(folder: Path, *rounds: int, **settings: Any) -> None:
    for round in rounds:
        checkpoint.save(folder, round, small_state(round), {"round": round}, **settings)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_restores(folder: Path, round: int) -> checkpoint.Found:
    """The latest of a folder is of `round`, and holds what was saved there."""
    found = checkpoint.latest(folder)
    assert (found.round, found.notes) == (round, {"round": round})
    assert_same_bits(checkpoint.restore(found, shapes(small_state())), small_state(round))
    return found


# Bit for bit.


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    state, folder = state_of(), tmp_path / "run 1%20ü#?" / "checkpoint"
    checkpoint.save(folder, 50, state, NOTES)
    found = checkpoint.latest(folder)
    assert found == (folder / "round_00000050", 50, NOTES, ())
    restored = checkpoint.restore(found, shapes(state))
    assert_same_bits(restored, state)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
    deadline = time.monotonic() + PATIENCE
    while threading.enumerate() != [threading.main_thread()]:
        assert time.monotonic() < deadline


def test_64_bits_come_back_where_jax_has_them_and_are_missed_where_not(tmp_path, x64):
    state = {"scores": bits(np.float64, 4, 3), "count": bits(np.int64, 4), "number": 2**40, "array": np.float64(0.1)}
    like = {**shapes({**state, "number": jnp.asarray(2**40)})}
    checkpoint.save(tmp_path, 1, state, {})
    found = checkpoint.latest(tmp_path)
    assert_same_bits(checkpoint.restore(found, like), jax.tree.map(np.asarray, state))
    with jax.enable_x64(False):
        narrow = jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, like))
        for wanted, said in (
            (narrow, r"must be \w+32 of .*, and is \w+64 of"),
            (like, "is .*64, which JAX has only with"),
        ):
            with pytest.raises(ValueError, match=rf"cannot be restored: \['\w+'\] {said}"):
                checkpoint.restore(found, wanted)


def test_what_is_restored_may_be_donated(tmp_path):
    """Nothing else lies in its memory: not what a second restore gives, and not what was saved."""
    state = {"scores": bits(np.float32, 64, 1000), "round": jnp.int32(3)}
    checkpoint.save(tmp_path, 3, state, {})
    kept = jax.tree.map(np.array, state)
    one, other = (checkpoint.restore(checkpoint.latest(tmp_path), shapes(state)) for _ in range(2))
    doubled = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 + 7, tree), donate_argnums=0)(one)
    assert one["scores"].is_deleted()
    assert np.isin(doubled["round"], [7])
    assert_same_bits(other, kept)
    assert_same_bits(state, kept)


def test_anybody_reads_it_with_orbax_alone(tmp_path):
    save(tmp_path, 1)
    read = orbax.checkpoint.PyTreeCheckpointHandler().restore(
        orbax.checkpoint.path.step.epath.Path(tmp_path / "round_00000001" / "state"),
        args=orbax.checkpoint.args.PyTreeRestore(
            restore_args=dict.fromkeys(("['round']", "['scores']"), orbax.checkpoint.RestoreArgs(np.ndarray))
        ),
    )
    np.testing.assert_array_equal(read["['scores']"], small_state(1)["scores"])


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("runs/checkpoint"), 1)
    assert_restores(Path("runs/checkpoint"), 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": (4, 7)}, r"\['scores'\] must be float32 of \(4, 7\), and is float32 of \(4, 6\)"),
        ({"scores": (6, 4)}, r"\['scores'\] must be float32 of \(6, 4\), and is float32 of \(4, 6\)"),
        ({"round": np.uint32}, r"\['round'\] must be uint32 of \(\), and is int32 of \(\)"),
        ({"more": (3,)}, r"\['more'\] must be float32 of \(3,\), and is absent"),
        ({"round": None}, r"\['round'\] must be absent, and is int32 of \(\)"),
    ],
)
def test_what_does_not_fit_is_named(change, said, tmp_path):
    save(tmp_path, 1)
    like = shapes(small_state())
    for name, value in change.items():
        shape, dtype = (value, np.float32) if isinstance(value, tuple) else ((), value)
        like[name] = value and jax.ShapeDtypeStruct(shape, dtype)
    with pytest.raises(ValueError, match=rf"^the checkpoint {tmp_path}/round_00000001 cannot be restored: {said}$"):
        checkpoint.restore(checkpoint.latest(tmp_path), like)


def test_what_can_be_no_checkpoint_is_refused_before_anything_is_written(tmp_path):
    for notes in ({"round": np.int64(3)}, {"path": tmp_path}):
        with pytest.raises(ValueError, match=r"^notes must be in JSON's types: .* is not JSON serializable$"):
            checkpoint.save(tmp_path / "new", 1, small_state(), notes)
    for keep, round in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match=f"^keep must be .* got {keep} and {round}$"):
            checkpoint.save(tmp_path / "new", round, small_state(), {}, keep=keep)
    with pytest.raises(TypeError, match="'scores'"):
        checkpoint.save(tmp_path / "new", 1, {"text": "scores"}, {})
    assert names(tmp_path) == []


# Which are there.


def test_where_there_is_none_there_is_none(tmp_path):
    assert checkpoint.latest(tmp_path / "missing") is None
    assert checkpoint.latest(tmp_path) is None
    (tmp_path / "round_00000005.part" / "state").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) is None


@pytest.mark.parametrize(("keep", "kept"), [(1, [9]), (2, [7, 9]), (3, [5, 7, 9])])
def test_the_newest_are_kept(keep, kept, tmp_path):
    for round in (3, 5, 7, 9):
        save(tmp_path, round, keep=keep)
        assert_restores(tmp_path, round)
    assert names(tmp_path) == [f"round_{round:08d}" for round in kept]


def test_what_is_not_ours_stays_and_what_was_left_half_written_goes(tmp_path):
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "round_00000001", tmp_path / "round_00000002.part")
    for name in ("round_of_golf", "notes", "round_3"):
        (tmp_path / name).mkdir()
    (tmp_path / "round_00000001" / ".DS_Store").write_text("not ours")
    (tmp_path / "todo.part").write_text("not ours")
    assert_restores(tmp_path, 1)
    save(tmp_path, 3)
    ours = ["round_00000001", "round_00000003"]
    assert names(tmp_path) == sorted([*ours, "notes", "round_3", "round_of_golf", "todo.part"])


def test_a_round_may_be_saved_again_and_later_ones_are_given_up(tmp_path):
    save(tmp_path, 10, 20, 30, keep=3)
    flip(tmp_path / "round_00000030" / "manifest.json", 40)
    assert assert_restores(tmp_path, 20).damaged == ("round_00000030: its manifest is damaged",)
    for again in ("-1", "-2"):
        checkpoint.save(tmp_path, 20, small_state(7), {"again": again})
        assert names(tmp_path) == ["round_00000010", f"round_00000020{again}"]
        assert checkpoint.latest(tmp_path).notes == {"again": again}
        # Both are there for a moment, and the later one counts.
        shutil.copytree(tmp_path / "round_00000010", tmp_path / "round_00000020")
        assert checkpoint.latest(tmp_path).notes == {"again": again}
    save(tmp_path, 100_000_000)
    assert_restores(tmp_path, 100_000_000)


@pytest.mark.parametrize("file", ["manifest.json", "state/_METADATA"])
def test_a_torn_one_takes_no_other_place(file, tmp_path):
    save(tmp_path, 1, 2)
    (tmp_path / "round_00000002" / file).write_text("{")
    save(tmp_path, 3)
    assert names(tmp_path) == ["round_00000001", "round_00000003"]


# Damage.


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def truncate(path: Path, _: int) -> None:
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path, _: int) -> None:
    path.write_bytes(b"")


def remove(path: Path, _: int) -> None:
    path.unlink()


def replace_by_a_folder(path: Path, _: int) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [flip, truncate, empty, remove, replace_by_a_folder])
def test_damage_to_any_file_is_seen_and_the_one_before_is_taken(damage, tmp_path):
    save(tmp_path, 1, 2)
    newest, sound = tmp_path / "round_00000002", tmp_path / "sound"
    shutil.copytree(newest, sound)
    files = [path.relative_to(newest) for path in newest.rglob("*") if path.is_file()]
    assert len(files) > 5
    for file in files:
        damage(newest / file, (sound / file).stat().st_size // 2)
        (reason,) = assert_restores(tmp_path, 1).damaged
        assert reason.startswith("round_00000002: ")
        assert file.as_posix() in reason or file.name == "manifest.json"
        shutil.rmtree(newest)
        shutil.copytree(sound, newest)
    assert assert_restores(tmp_path, 2).damaged == ()


def test_no_bit_of_a_manifest_may_change(tmp_path):
    save(tmp_path, 1, 2)
    path = tmp_path / "round_00000002" / "manifest.json"
    sound = path.read_bytes()
    for place in range(0, len(sound), 3):
        flip(path, place)
        assert checkpoint.latest(tmp_path).round == 1
        path.write_bytes(sound)
    assert checkpoint.latest(tmp_path).round == 2


def test_a_checkpoint_of_another_version_is_refused_in_one_line(tmp_path):
    """Its states were other ones, and no older checkpoint would be better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 4)  # as version 0.6 had it
        save(tmp_path, 1, 2)
    path = tmp_path / "round_00000002"
    formats = f"format 4, this one reads {checkpoint.FORMAT}"
    sentence = f"the checkpoint {path} is of another version of dslth_jax ({formats}): go on with that version, or "
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}start anew in another folder$"):
        checkpoint.latest(tmp_path)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda text: text[:-1], "its manifest cannot be read"),
        (lambda text: "", "its manifest cannot be read"),
        (lambda text: "[1]", "its manifest cannot be read"),
        (lambda text: "null", "its manifest cannot be read"),
        (lambda text: '{"seal": 1}', "its manifest cannot be read"),
        (lambda text: '{"seal": "", "format": 2}', "its manifest is damaged"),
        (lambda text: text.replace('"round": 1', '"round": 9'), "its manifest is damaged"),
    ],
)
def test_where_none_is_whole_a_sentence_says_why(write, reason, tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "round_00000001" / "manifest.json"
    path.write_text(write(path.read_text()))
    (tmp_path / "round_00000002").mkdir()
    sentence = (
        f"no checkpoint in {tmp_path} is whole, put back a copy of one or remove them all to start anew: "
        f"round_00000002: it has no manifest; round_00000001: {reason}"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        checkpoint.latest(tmp_path)


def test_what_goes_between_finding_and_restoring_is_said(tmp_path):
    save(tmp_path, 1)
    found = checkpoint.latest(tmp_path)
    for path in (found.path / "state").rglob("*"):
        if path.is_file() and path.stat().st_size > 100 and path.parent.name == "d":
            flip(path, 60)
    with pytest.raises(ValueError, match=r"^the checkpoint .*round_00000001 cannot be restored: .+$"):
        checkpoint.restore(found, shapes(small_state()))
    shutil.rmtree(found.path / "state")
    with pytest.raises(ValueError, match=r"^the checkpoint .* cannot be restored: state/\S+ is missing$"):
        checkpoint.restore(found, shapes(small_state()))


# Failures in the middle of a save.


def run_apart(script: str, folder: Path) -> subprocess.Popen:
    """Start a script on a folder in a process of its own, with nothing in it that tests bring."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", script, str(folder)],
        cwd=Path(__file__).parents[1],
        # Keep no programs: of several processes one would read what another is writing.
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fail(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def half_done(function):
    def then_fail(*arguments, **settings):
        function(*arguments, **settings)
        fail()

    return then_fail


handler = orbax.checkpoint.PyTreeCheckpointHandler
STAGES = {
    "before the folder": (Path, "mkdir", fail),
    "before orbax writes": (handler, "save", fail),
    "when orbax has written": (handler, "save", half_done(handler.save)),
    "before orbax finishes": (handler, "finalize", fail),
    "when orbax has finished": (handler, "finalize", half_done(handler.finalize)),
    "before the manifest": (checkpoint, "seal", fail),
    "in the manifest": (Path, "write_text", fail),
    "when it is sealed": (checkpoint, "seal", half_done(checkpoint.seal)),
    "before the rename": (Path, "rename", fail),
}


@pytest.mark.parametrize("stage", STAGES)
def test_what_fails_before_the_rename_leaves_what_was_there(stage, tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(*STAGES[stage])
    sentence = (
        f"the checkpoint of round 3 cannot be written into {tmp_path}, where earlier ones are untouched: No space"
    )
    with pytest.raises(OSError, match=f"^{re.escape(sentence)} left on device$"):
        save(tmp_path, 3, keep=1)
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == ["round_00000001", "round_00000002"]
    assert_restores(tmp_path, 2)
    save(tmp_path, 3)
    assert_restores(tmp_path, 3)


def test_what_fails_after_the_rename_leaves_the_new_one(tmp_path, monkeypatch):
    save(tmp_path, 1)
    for round, place in ((2, (checkpoint, "is_whole", fail)), (3, (Path, "rename", half_done(Path.rename)))):
        with monkeypatch.context() as patched:
            patched.setattr(*place)
            with pytest.raises(OSError, match="No space left"):
                save(tmp_path, round)
        assert_restores(tmp_path, round)


def test_all_is_on_the_disk_before_it_is_seen(tmp_path, monkeypatch):
    """A machine that loses its power has it too."""
    synced, missed, really_sync, really_rename = set(), [], os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        really_sync(descriptor)

    def rename(path: Path, to: Path) -> None:
        missed.append([file for file in (path, *path.rglob("*")) if file.stat().st_ino not in synced])
        synced.clear()
        really_rename(path, to)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, 1)
    assert missed == [[]]
    assert synced == {tmp_path.stat().st_ino}


def test_what_cannot_be_removed_fails_no_save(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rmdir", fail)
    save(tmp_path, 1, 2, 3)
    assert_restores(tmp_path, 3)
    monkeypatch.undo()
    save(tmp_path, 4)
    assert names(tmp_path) == ["round_00000003", "round_00000004"]


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=rf"written into {tmp_path}/file, where .* untouched: Not a directory$"):
        save(tmp_path / "file", 1)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=rf"round 1 cannot be written into {tmp_path}, where .* untouched: Permission"):
        save(tmp_path, 1)


SAVE_TOO_MUCH = """
import gc, sys
from pathlib import Path
import jax.numpy as jnp
from dslth_jax.study.training import checkpoint
large = {f"layer {number}": jnp.ones((100, 300)) for number in range(6)}
for round in range(3, 11):
    try:
        checkpoint.save(Path(sys.argv[1]), round, large, {})
    except OSError as error:
        print(error)
gc.collect()
"""


def test_a_disk_that_is_really_full_is_said_and_leaves_the_earlier_ones(tmp_path):
    """In one sentence each time, and nothing that was under way just then complains later."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "none", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        save(tmp_path, 1, 2)
        tried = run_apart(SAVE_TOO_MUCH, tmp_path)
        said, complaints = tried.communicate(timeout=PATIENCE)
        assert (tried.returncode, complaints) == (0, "")
        where = f"written into {tmp_path}, where earlier ones are untouched: No space left on device"
        assert said.splitlines() == [f"the checkpoint of round {round} cannot be {where}" for round in range(3, 11)]
        assert names(tmp_path) == ["round_00000001", "round_00000002"]
        assert assert_restores(tmp_path, 2).damaged == ()
        save(tmp_path, 3)
        assert_restores(tmp_path, 3)
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


SAVE_FOREVER = """
import sys
from itertools import count
from pathlib import Path
import jax.numpy as jnp
from dslth_jax.study.training import checkpoint
assert "orbax" not in sys.modules and "orbax.checkpoint" not in sys.modules
folder = Path(sys.argv[1])
found = checkpoint.latest(folder)
for round in count(found.round + 1 if found else 0):
    state = {"scores": jnp.full((4, 6), round, jnp.float32), "round": jnp.int32(round)}
    checkpoint.save(folder, round, state, {"round": round})
"""


@pytest.mark.slow
def test_whenever_it_is_killed_a_whole_one_is_there(tmp_path):
    """Five times, each at another moment of saves that follow upon each other; nothing is ever said on the way."""
    reached, folder = -1, tmp_path / "checkpoint"
    for kill in range(5):
        process = run_apart(SAVE_FOREVER, folder)
        deadline = time.monotonic() + PATIENCE
        while max((path.name for path in folder.glob("round_????????")), default="") < f"round_{reached + 2:08d}":
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(0.007 * kill)
        process.send_signal(signal.SIGKILL)
        assert process.communicate() == ("", "")
        assert process.returncode == -signal.SIGKILL
        found = checkpoint.latest(folder)
        assert found.round > reached
        assert found.damaged == ()
        reached = assert_restores(folder, found.round).round


# Devices and processes.


def on_four_devices(folder: str) -> None:
    """What one device has written goes onto four, and what four write comes back, also onto two or one."""
    state, mesh = state_of(), sharding.agents_mesh(8)
    saved = checkpoint.restore(checkpoint.latest(Path(folder)), sharding.placed_shapes(state, STATE, mesh))
    assert_same_bits(saved, state)
    for leaf, place in ((saved.agents.scores["conv"]["kernel"], SPREAD), (saved.round, EVERYWHERE)):
        assert leaf.sharding == jax.sharding.NamedSharding(mesh, place)
    checkpoint.save(Path(folder), 51, saved, {})
    for devices in (4, 2):
        like = sharding.placed_shapes(state, STATE, sharding.agents_mesh(8, devices))
        assert_same_bits(checkpoint.restore(checkpoint.latest(Path(folder)), like), state)
    # Each device writes the common round into memory of its own.
    replaced = jax.jit(lambda tree: tree._replace(round=tree.round + 1), donate_argnums=0)(saved)
    assert saved.round.is_deleted()
    assert [int(shard.data) for shard in replaced.round.addressable_shards] == [51] * 4


def test_one_device_four_and_one_again(tmp_path):
    state = state_of()
    checkpoint.save(tmp_path, 50, state, {})
    succeed(begin(on_four_devices, str(tmp_path), flags=[FOUR]))
    found = checkpoint.latest(tmp_path)
    assert found.round == 51
    assert_same_bits(checkpoint.restore(found, shapes(state)), state)


def in_two_processes(port: str, process: str, folder: str) -> None:
    processes.start_processes(f"127.0.0.1:{port}", 2, int(process))
    state, mesh, folder = state_of(), sharding.agents_mesh(8), Path(folder)
    like, placed = sharding.placed_shapes(state, STATE, mesh), sharding.put(state, STATE, mesh)
    found = checkpoint.latest(folder)
    assert (found.path, found.notes) == (folder / "round_00000050", NOTES)
    assert_same_bits(sharding.fetch(checkpoint.restore(found, like)), sharding.fetch(placed))
    # What the second alone cannot write, none does, and both say so.
    with pytest.MonkeyPatch.context() as patched:
        if process == "1":
            patched.setattr(orbax.checkpoint.PyTreeCheckpointHandler, "save", fail)
        with pytest.raises(OSError, match=r"round 51 cannot be written .* untouched: No space left on device$"):
            checkpoint.save(folder, 51, placed, {})
    for round in (52, 53):
        checkpoint.save(folder, round, placed, {"process": process})
    found = checkpoint.latest(folder)
    assert (found.round, found.notes, found.damaged) == (53, {"process": "0"}, ())
    assert_same_bits(sharding.fetch(checkpoint.restore(found, like)), sharding.fetch(placed))
    # What only the first can see to be damaged, both hear.
    if process == "0":
        for name in ("round_00000052", "round_00000053"):
            shutil.move(folder / name / "manifest.json", folder / f"{name}.json")
    with pytest.raises(ValueError, match=r"53: it has no manifest; round_00000052: it has no manifest$"):
        checkpoint.latest(folder)
    if process == "0":
        shutil.move(folder / "round_00000053.json", folder / "round_00000053" / "manifest.json")


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    """One process wrote what two read; two write what one reads."""
    state, port = state_of(), str(free_port())
    checkpoint.save(tmp_path, 50, state, NOTES)
    succeed(*[begin(in_two_processes, port, number, str(tmp_path)) for number in "01"])
    found = checkpoint.latest(tmp_path)
    assert (found.round, found.damaged) == (53, ())
    assert_same_bits(checkpoint.restore(found, shapes(state)), state)
    assert not list(tmp_path.glob("*.part"))
