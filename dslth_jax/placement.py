"""Agents over devices and hosts, by JAX's own engine. The population's world.

Every device of a mesh axis holds equally many agents, in order. The round runs inside `jax.shard_map` over that axis:
what is an agent's never leaves its device, what is common is everywhere, and messages alone cross, once a round
(`population.from_all_devices`). A mesh may have more axes than this one; these functions leave them alone.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dslth_jax.population import Shares, State

Result = TypeVar("Result")
# Bytes of a complaint, and of a digest, that processes tell each other, and how many digests they compare.
COMPLAINT, DIGEST, MOST_COMPARED = 1000, 8, 128

# The mesh axes over which agents are spread, and settings of a sweep.
AXIS, SETTINGS = "agents", "settings"
SPREAD, EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()
# What of the population's structures is an agent's, and what is common.
_state: dict[str, Any] = {"agents": SPREAD, "heard": SPREAD, "sent": SPREAD, "round": EVERYWHERE}
_shares: dict[str, Any] = {"images": EVERYWHERE, "labels": EVERYWHERE}
_shares |= {"indices": SPREAD, "sizes": SPREAD, "skew": SPREAD}
STATE, SHARES = State(**_state), Shares(**_shares)


def start_processes(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Join a run of several processes, on one host or many, before anything else asks for a device.

    Args:
        coordinator: "ADDRESS:PORT" of process 0, the same for all; or "auto", where the environment of a cluster
            (Slurm, Open MPI, Kubernetes, a TPU pod) says everything.
        processes: how many there are.
        process: which of them this one is, from 0.

    Raises:
        ValueError: where the environment is of no cluster that JAX knows, or the others are not to be reached.
    """
    if jax.distributed.is_initialized():
        return
    spelled = (None, None, None) if coordinator == "auto" else (coordinator, processes, process)
    # Leave SIGTERM to whoever listens: JAX's own service would take it, and tell nobody.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(*spelled)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"this process cannot join the others by --coordinator {coordinator}: {str(error).splitlines()[0]}"
        ) from None


def is_first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def agents_mesh(agents: int, devices: int | None = None) -> Mesh:
    """A mesh of one axis over `devices` of those that JAX sees; None takes as many as divide `agents` evenly.

    Raises:
        ValueError: more devices than there are, devices that `agents` is no multiple of, or in a run of several
            processes not all of them.
    """
    present = jax.devices()
    if devices is None:
        devices = max(number for number in range(1, len(present) + 1) if agents % number == 0)
    expect_devices(devices)
    if agents % devices:
        fitting = [number for number in range(1, len(present) + 1) if agents % number == 0]
        raise ValueError(f"agents must be a multiple of devices, got {agents} and {devices}: devices can be {fitting}")
    if jax.process_count() > 1 and devices != len(present):
        raise ValueError(
            f"several processes must use all of their {len(present)} devices, got {devices} for {agents} agents: "
            f"take agents that are a multiple of {len(present)}"
        )
    return Mesh(np.array(present[:devices]), (AXIS,))


def settings_mesh(settings: int, agents: int, devices: int | None = None) -> Mesh:
    """A mesh of two axes, settings by agents: one population spreads its agents, several spread as wholes.

    So nothing crosses between devices where there are several. None takes all devices, and no more than `settings`;
    several processes use all of theirs. Raises a ValueError like `agents_mesh`.
    """
    if settings == 1:
        return Mesh(agents_mesh(agents, devices).devices[None], (SETTINGS, AXIS))
    present = jax.devices()
    devices = len(present) if devices is None else devices
    expect_devices(devices)
    if jax.process_count() > 1 and devices != len(present):
        raise ValueError(f"several processes must use all of their {len(present)} devices, got {devices}")
    used = devices if jax.process_count() > 1 else min(devices, settings)
    return Mesh(np.array(present[:used])[:, None], (SETTINGS, AXIS))


def expect_devices(devices: int) -> None:
    """Raise a ValueError if JAX does not see so many devices."""
    present = jax.devices()
    if not 1 <= devices <= len(present):
        kind = present[0].platform
        pretend = ": XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of a CPU" if kind == "cpu" else ""
        raise ValueError(f"devices must be in 1..{len(present)}, as many as JAX sees of {kind}, got {devices}{pretend}")


def of_several(where: Any) -> Any:
    """Where the same things belong that have a leading axis of settings: what was everywhere is every setting's own."""
    return jax.tree.map(
        lambda spec: PartitionSpec(SETTINGS, *spec), where, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )


def over_devices(function: Callable[..., Any], mesh: Mesh, arguments: Sequence[Any], result: Any) -> Callable[..., Any]:
    """`function` on every device at once, each with its own agents.

    `arguments` and `result` say for every argument, and for what is returned, what is an agent's (`SPREAD`) and what
    common (`EVERYWHERE`), as pytrees that may stop early: `STATE` and `SHARES` are such.
    """
    # Not every operation inside carries the types that say what varies between devices.
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(arguments), out_specs=result, check_vma=False)


def put(tree: Any, where: Any, mesh: Mesh) -> Any:
    """Arrays of this host, the same in every process, on the devices where they belong."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return _map_with_place(one, tree, where, mesh)


def placed_shapes(tree: Any, where: Any, mesh: Mesh) -> Any:
    """Shapes and types of arrays that will lie where they belong, to compile for."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return _map_with_place(one, tree, where, mesh)


def _map_with_place(function: Callable[..., Any], tree: Any, where: Any, mesh: Mesh) -> Any:
    def place(spec: PartitionSpec, subtree: Any) -> Any:
        return jax.tree.map(lambda leaf: function(leaf, NamedSharding(mesh, spec)), subtree)

    return jax.tree.map(place, where, tree, is_leaf=lambda node: isinstance(node, PartitionSpec))


def fetch(tree: Any) -> Any:
    """The whole of arrays that lie over all devices, as numpy arrays in every process; all must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def in_every_process(
    work: Callable[[], Result], identity: Callable[[Result], Mapping[str, str]] | None = None
) -> Result:
    """What `work` returns, once it has succeeded in every process; all must call it.

    Args:
        work: done by each process by itself.
        identity: of a result, what must be the same everywhere: names and values.

    Raises:
        ValueError: the first complaint of any other process, or what the processes differ in; whatever `work` raises,
            in the process where it does. No process is left waiting.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    compare = error is None and jax.distributed.is_initialized()
    same = identity(cast(Result, result)) if identity and compare else {}
    complaint = agree(None if error is None else str(error) or type(error).__name__, same)
    if error is not None:
        raise error
    if complaint:
        raise ValueError(complaint)
    return cast(Result, result)


def agree(complaint: str | None, same: Mapping[str, str] | None = None) -> str | None:
    """The first complaint of any process, or what of `same` differs between them, or None: in every process the same.

    All must call it. Names and values of `same` are compared by what they hash to.
    """
    # Ask no device how many processes there are: whoever has not joined others may have none that works.
    if not jax.distributed.is_initialized():
        return complaint
    said = np.zeros(COMPLAINT + DIGEST * MOST_COMPARED, np.uint8)
    words = (complaint or "").encode()[:COMPLAINT]
    said[: len(words)] = np.frombuffer(words, np.uint8)
    names = sorted(same or {})
    for place, name in enumerate(names[:MOST_COMPARED]):
        digest = hashlib.blake2b(f"{name}={(same or {})[name]}".encode(), digest_size=DIGEST).digest()
        said[COMPLAINT + place * DIGEST :][:DIGEST] = np.frombuffer(digest, np.uint8)
    everybody = np.asarray(multihost_utils.process_allgather(said)).reshape(-1, said.size)
    complaints = [row[row != 0].tobytes().decode(errors="ignore") for row in everybody[:, :COMPLAINT]]
    if any(complaints):
        return next(filter(None, complaints))
    different = (everybody != everybody[0])[:, COMPLAINT:].reshape(len(everybody), -1, DIGEST).any((0, 2))
    if not different.any():
        return None
    listed = ", ".join(name for name, differs in zip(names, different, strict=False) if differs)
    return f"all processes must be started alike, and they differ in {listed or 'what they compare'}"


def least(number: int | None) -> int | None:
    """The smallest number of any process, None where none has one, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return number
    # In units of a thousand, for JAX gathers whole numbers of 32 bits.
    thousands = np.int32(-1 if number is None else min(number // 1000, 2**31 - 1))
    said = np.asarray(multihost_utils.process_allgather(thousands)).reshape(-1)
    return 1000 * int(said[said >= 0].min()) if (said >= 0).any() else None


def anywhere(holds: bool) -> bool:
    """Whether something holds in any process, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return holds
    return bool(np.asarray(multihost_utils.process_allgather(np.int32(holds))).any())


def together(action: Callable[[], Any], kind: type[Exception], sentence: str, *, first_alone: bool = False) -> Any:
    """What `action` returns; all processes must call it, and where one of them fails, all do.

    Args:
        action: done in every process; what it raises is the reason, in its first line.
        kind: the kind of exception that all raise then.
        sentence: what it says before the reason.
        first_alone: only the first process acts; None is returned in the others.
    """
    result, error, complaint = None, None, None
    try:
        if is_first() or not first_alone:
            result = action()
    except Exception as caught:
        words = str((isinstance(caught, OSError) and caught.strerror) or caught).strip() or type(caught).__name__
        error, complaint = caught, words.splitlines()[0]
    if complaint := agree(complaint):
        raise kind(f"{sentence}: {complaint}") from error
    return result


def as_first_says(value: Any) -> Any:
    """The value of the first process, of JSON's types, in every process; all must call it."""
    if not jax.distributed.is_initialized():
        return value
    words = np.frombuffer(json.dumps(value).encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(words.size)))
    return json.loads(multihost_utils.broadcast_one_to_all(np.resize(words, length)).tobytes())
