"""From settings to a simulated clock and a controller: their traced numbers, and what they are built of."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dslth_jax import control
from dslth_jax.algorithm import by_masked_name, by_name
from dslth_jax.budgets import Cost, Limits, prunefl, with_retention, with_shares
from dslth_jax.clock import Clock, Devices
from dslth_jax.control import Controller
from dslth_jax.depth import depths_of_layers, further_blocks
from dslth_jax.depth_budgets import with_depths
from dslth_jax.keys import key_of
from dslth_jax.message_sizes import binary_entropy
from dslth_jax.networks.cost import positions_of, sizes_of
from dslth_jax.networks.network import Network
from dslth_jax.sharding import EVERYWHERE, SPREAD
from dslth_jax.study.config.budget import GO_BY_DEADLINE, NOT_OF_RETENTIONS, bounds_of, speeds_of
from dslth_jax.study.config.numbers import depths_of, numbers_of
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.spellings import CONTROLLERS, bandwidth_of

LITTLE = 0.1  # a share of a round's time that is hardly worth a controller
TRAINING = 3  # forward passes that a training step takes as long as


class Budget(NamedTuple):
    """The traced numbers of one run's clock and controller."""

    devices: Devices
    deadline: Any  # seconds, as `Clock` has it
    limits: Limits | None  # None where nothing sets retentions
    fewest: Int[np.ndarray, "agents"] | None = None  # residual blocks of an agent, where something sets depths


def places_of(budget: Budget | None) -> Any:
    """Where these numbers lie: what is an agent's, and what is common."""
    spread: Any = SPREAD
    common: Any = EVERYWHERE
    limits = Limits(spread, spread, spread, common, common)
    return budget and Budget(spread, common, budget.limits and limits, None if budget.fewest is None else spread)


def with_steps(budget: Budget, steps: int) -> Budget:
    """The same numbers, with traces of so many steps: those they lack end where they begin. Host side."""
    trace = budget.devices.bandwidth
    more = [(0, 0), (0, steps - trace.ends.shape[1])]
    longer = trace._replace(ends=np.pad(trace.ends, more, mode="edge"), rates=np.pad(trace.rates, more))
    return budget._replace(devices=budget.devices._replace(bandwidth=longer))


class Costs(NamedTuple):
    """What takes time in a run, static: how often a round multiplies by each entry of a layer, and how many it has."""

    passes: dict[str, int]  # multiply-adds of a round by an entry
    entries: dict[str, int]
    movable: dict[str, int]  # entries of the layers that are not always kept whole
    sparse: bool  # whether entries that are not kept take no time
    masked: bool  # whether agents say how many they keep
    needs: Mapping[str, int] = MappingProxyType({})  # from which depth on agents have layers that they may lack


def costs_of(settings: Settings, network: Network, image_shape: tuple[int, int, int], batch_size: int) -> Costs:
    """The costs of resolved settings; a ValueError where a layer's multiply-adds cannot be seen."""
    try:
        positions = positions_of(network, image_shape)
    except ValueError as error:
        raise ValueError(f"--bandwidth simulates what devices compute, and {error}: leave it out") from None
    masked, _ = jax.eval_shape(network.init, key_of(0))
    grows = settings.algorithm == "dis-pfl" and settings.regrow == "gradient"
    steps = settings.local_steps + (settings.fine_tune_gradient == "recomputed" or grows)
    passes = {name: TRAINING * batch_size * steps * number for name, number in positions.items()}
    entries = sizes_of(masked)
    movable = {name: size for name, size in entries.items() if network.roles[name] != "depthwise"}
    needs = depths_of_layers(network.stages, entries)
    return Costs(passes, entries, movable, settings.device_sparse, bool(numbers_of(settings).get("retention")), needs)


def budget_of(settings: Settings, network: Network) -> Budget | None:
    """The traced numbers of resolved settings; None where no time is simulated. A ValueError on bad input."""
    if settings.bandwidth is None:
        return None
    agents, own = settings.agents, numbers_of(settings).get("retention")
    trace = bandwidth_of(settings.bandwidth, agents, settings.seed)
    devices = Devices(speeds_of(settings).astype(np.float32), trace)
    needed = 0.0 if settings.controller in GO_BY_DEADLINE else np.inf
    deadline = np.float32(needed if settings.deadline is None else settings.deadline)
    if settings.controller == "depth":
        return Budget(devices, deadline, None, fewest_blocks(settings, network))
    if settings.controller in NOT_OF_RETENTIONS or own is None:
        return Budget(devices, deadline, None)
    low, high = bounds_of(settings)
    several = [own.values, np.full(agents, low), np.full(agents, high), settings.retention_jump]
    limits = Limits(*(np.array(one, np.float32) for one in [*several, settings.controller_gain]))
    return Budget(devices, deadline, limits)


def fewest_blocks(settings: Settings, network: Network) -> Int[np.ndarray, "agents"]:
    """How many residual blocks each agent has at least under the controller of depths; a ValueError if the network has
    none that an agent may lack."""
    if not further_blocks(network.stages):
        raise ValueError(
            f"--controller depth sets how many residual blocks agents have, and --model {settings.model} has none that "
            f"they may lack: name another, such as resnet20, or leave the controller out"
        )
    return np.array(depths_of(settings) or [len(network.stages)] * settings.agents, np.int32)


def work_of(costs: Costs, kept: Mapping[str, Any]) -> Any:
    """The multiply-adds of a round, in floats, for an int32 does not hold them; `kept` says how many entries of a layer
    agents are to keep. Of a layer that an agent lacks it computes nothing; one that `kept` does not name is whole."""
    total: Any = 0.0
    for name, passes in costs.passes.items():
        entries: Any = costs.entries[name]
        if name in kept:
            entries = kept[name] if costs.sparse else jnp.where(kept[name] > 0, entries, 0)
        total = total + float(passes) * entries
    return total


def clock_of(budget: Budget, costs: Costs) -> Clock:
    """The clock of one run. Inside a compiled program, with the budget's numbers traced."""

    def work(hyper: Any) -> Float[Array, "agents"]:
        return jnp.zeros(budget.devices.speed.shape) + work_of(
            costs, by_masked_name(hyper.kept) if costs.masked else {}
        )

    return Clock(work, budget.devices, jnp.asarray(budget.deadline))


def controller_of(name: str | None, schedules: Any, budget: Budget | None, costs: Costs | None) -> Controller:
    """The controller of one run: its schedules, and behind them what sets budgets by time, if anything does."""
    scheduled = control.scheduled(schedules)
    if name is None or budget is None or costs is None:
        return scheduled
    makes: Any = CONTROLLERS[name]
    if budget.fewest is not None:
        return control.chain(scheduled, makes(budget.fewest, costs.needs))
    if budget.limits is None:
        return control.chain(scheduled, makes())
    given: dict[str, Any] = {"limits": budget.limits, "entries": costs.movable}
    if makes is prunefl:
        given["cost"] = cost_of_entries(budget, costs)
    return control.chain(scheduled, makes(**given))


def cost_of_entries(budget: Budget, costs: Costs) -> Cost:
    """What an entry of each layer takes of a round: what the device computes with it, if that is so, and its part of
    what is not computing, which all kept entries share alike."""

    def cost(kept: dict[str, Any], seconds: Float[Array, "agents"]) -> dict[str, Float[Array, "agents"]]:
        speed = jnp.asarray(budget.devices.speed)
        sending = jnp.maximum(seconds - work_of(costs, kept) / speed, 0)
        total = jnp.maximum(sum(kept[name] for name in costs.movable), 1)
        computing = {name: float(costs.sparse * costs.passes[name]) / speed for name in costs.movable}
        return {name: computing[name] + sending / total for name in costs.movable}

    return cost


def kept_at(hyper: Any, retention: Any, budget: Budget, costs: Costs, by_layer: bool) -> Any:
    """The settings of agents to whom a controller gives a retention, within whose limits it sets each layer's own share
    (`by_layer`, as prunefl does) or that of convolutions, with which linear layers go."""
    assert budget.limits is not None, "a controller of retentions has limits"
    if by_layer:
        return with_shares(hyper, dict.fromkeys(costs.movable, retention), costs.movable)
    return with_retention(hyper, retention, budget.limits, costs.movable)


def least_seconds(budget: Budget, costs: Costs, hyper: Any, by_layer: bool = False) -> Float[np.ndarray, "agents"]:
    """What each agent's device computes for in a round at the least, whatever it sends; `hyper` are the run's own
    settings, and `by_layer` as `kept_at` has it. Host side."""
    if budget.fewest is not None:
        hyper = with_depths(hyper, jnp.asarray(budget.fewest), costs.needs)
    if costs.sparse and budget.limits is not None:
        hyper = kept_at(hyper, jnp.asarray(budget.limits.low), budget, costs, by_layer)
    return np.asarray(clock_of(budget, costs).work(hyper)) / np.asarray(budget.devices.speed)


def share_by_retention(
    budget: Budget, costs: Costs, hyper: Any, links: Int[np.ndarray, "agents"], by_layer: bool = False
) -> Float[np.ndarray, "agents"]:
    """The largest share of τ that its retention can change, of each agent, within a controller's limits, `by_layer` as
    `kept_at` has it. Host side.

    τ is what it computes, and a message over its `links` at its mean bandwidth; of a message it is known that it takes
    between nothing and a mask's whole entropy, and of these two the one counts in which retention changes more.
    """
    assert budget.limits is not None, "a controller of retentions has limits"
    limits, trace = budget.limits, budget.devices.bandwidth
    lasting = np.diff(np.asarray(trace.ends, np.float64), axis=1, prepend=0)
    rate = 1e6 * np.sum(lasting * trace.rates, axis=1) / np.sum(lasting, axis=1)
    computing, sending = [], []
    for of_range in np.linspace(0, 1, 9):
        retention = jnp.asarray(limits.low + of_range * (limits.high - limits.low), np.float32)
        own = kept_at(hyper, retention, budget, costs, by_layer)
        kept = by_name(own.kept)
        bits = sum(size * binary_entropy(kept[name] / size) for name, size in costs.movable.items())
        computing.append(np.asarray(clock_of(budget, costs).work(own)) / np.asarray(budget.devices.speed))
        sending.append(np.asarray(bits) * links / rate)
    both = [np.array(computing), np.array(computing) + np.array(sending)]
    return np.max([np.ptp(seconds, axis=0) / np.max(seconds, axis=0) for seconds in both], axis=0)


def little_bought(
    budget: Budget | None, costs: Costs | None, hyper: Any, links: Int[np.ndarray, "agents"], by_layer: bool = False
) -> list[str]:
    """A sentence if a controller is to set retentions, and for most agents these change next to no time."""
    if budget is None or costs is None or budget.limits is None:
        return []
    share = float(np.median(share_by_retention(budget, costs, hyper, links, by_layer)))
    if share >= LITTLE:
        return []
    return [
        f"retention alone can change {share:.1%} of a round's simulated time at most (of the median agent): it buys "
        f"next to no time here, unlike --controller period or depth, or --device-sparse for devices that skip what is "
        f"not kept"
    ]
