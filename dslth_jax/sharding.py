"""Agents over devices and hosts, by JAX's own engine. The population's world.

Every device of a mesh axis holds equally many agents, in order. The round runs inside `jax.shard_map` over that axis:
what is an agent's never leaves its device, what is common is everywhere, and messages alone cross, once a round
(`population.from_all_devices`). A mesh may have more axes than this one; these functions leave them alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dslth_jax.population import Shares, State

# The mesh axes over which agents are spread, and settings of a sweep.
AXIS, SETTINGS = "agents", "settings"
SPREAD, EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()
# What of the population's structures is an agent's, and what is common.
_state: dict[str, Any] = {"agents": SPREAD, "heard": SPREAD, "sent": SPREAD, "links": EVERYWHERE, "control": SPREAD}
_state |= {"round": EVERYWHERE, "clock": EVERYWHERE, "earlier": SPREAD}
_shares: dict[str, Any] = {"images": EVERYWHERE, "labels": EVERYWHERE}
_shares |= {"indices": SPREAD, "sizes": SPREAD, "skew": SPREAD, "pool": EVERYWHERE}
STATE, SHARES = State(**_state), Shares(**_shares)


def agents_mesh(agents: int, devices: int | None = None) -> Mesh:
    """A mesh of one axis over `devices` of those that JAX sees; None takes as many as divide `agents` evenly.

    Raises:
        ValueError: there are fewer devices, `agents` is no multiple of `devices`, or a run of several processes does
            not use all devices.
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
    """A mesh of two axes, settings by agents.

    A single population spreads its agents over the devices. Of several populations each lies whole on one device, and
    nothing crosses. `devices` None takes all devices, but no more than `settings`; several processes use all of theirs.
    Raises a ValueError like `agents_mesh`.
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
    """The places of the same things with a leading axis of settings, each of which has common things of its own."""
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
