"""Agents over devices and hosts, by JAX's own engine. The population's world.

Every device of a mesh axis holds equally many agents, in order. The round runs inside `jax.shard_map` over that axis:
what is an agent's never leaves its device, what is common is everywhere, and packed masks alone cross, once a round
(`population.from_all_devices`). A mesh may have more axes than this one; these functions leave them alone.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dslth_jax.population import Shares, State

AXIS = "agents"  # the mesh axis over which agents are spread
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
    if not 1 <= devices <= len(present):
        kind = present[0].platform
        pretend = ": XLA_FLAGS=--xla_force_host_platform_device_count=N makes N of a CPU" if kind == "cpu" else ""
        raise ValueError(f"devices must be in 1..{len(present)}, as many as JAX sees of {kind}, got {devices}{pretend}")
    if agents % devices:
        fitting = [number for number in range(1, len(present) + 1) if agents % number == 0]
        raise ValueError(f"agents must be a multiple of devices, got {agents} and {devices}: devices can be {fitting}")
    if jax.process_count() > 1 and devices != len(present):
        raise ValueError(
            f"several processes must use all of their {len(present)} devices, got {devices} for {agents} agents: "
            f"take agents that are a multiple of {len(present)}"
        )
    return Mesh(np.array(present[:devices]), (AXIS,))


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


def agree(complaint: str | None) -> str | None:
    """The first complaint of any process, or None, in every process; all must call it."""
    # Ask no device how many processes there are: whoever has not joined others may have none that works.
    if not jax.distributed.is_initialized():
        return complaint
    said = np.zeros(1000, np.uint8)
    words = (complaint or "").encode()[: said.size]
    said[: len(words)] = np.frombuffer(words, np.uint8)
    everybody = np.asarray(multihost_utils.process_allgather(said)).reshape(-1, said.size)
    return next((row[row != 0].tobytes().decode(errors="ignore") for row in everybody if row.any()), None)


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
