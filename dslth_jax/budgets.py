"""Controllers that set each agent's budget by simulated time. The population's world; ours, but for what a name says.

An agent's retention is changed as a whole: r is what convolutions keep, and linear layers scale alike. All of these act
at the end of rounds of exchange alone, keep r within bounds, and change it by at most a set share a round, so that
masks never jump. They get an agent's time τ and the deadline from the clock.

    deadline   r ← r · (deadline / τ)^β, where τ is smoothed and out of a band around the deadline
    balance    r ← r · (mean τ / τ)^β, then all alike so that their mean stays what it was at the start
    bandit     r is the middle of an interval, chosen by what the loss fell by in a second of it
    prunefl    each layer keeps as many entries as serve it best, by squared gradient a second
    period     r stays, and an agent whose τ is p times the deadline sends in every p-th exchange only

One that sets residual blocks stands in `depth_budgets`. To add one, write its factory here and name it in
`study.config.spellings.CONTROLLERS`.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dslth_jax.algorithm import by_name, with_names
from dslth_jax.algorithms.descent import BINS
from dslth_jax.control import Controller
from dslth_jax.population import from_all_devices

INTERVALS, HELD = 8, 5  # of retentions, among which a bandit chooses; exchanges for which it tries one at a time
SMOOTHED = 0.5  # the weight of the newest τ in the mean that a controller goes by
NEAR = 1e-6  # how far a retention may be off what was wanted, by rounding alone
BAND = 0.05  # how far τ may be off the deadline, as a share of it, before anything changes
Entries: TypeAlias = Mapping[str, int]  # of the layers of which a budget keeps more or less, by name
# Of an entry of each layer that is kept, by name, the seconds that it takes of τ: (kept, τ) -> (agents,) each.
Cost: TypeAlias = Callable[[dict[str, Any], Float[Array, "agents"]], dict[str, Float[Array, "agents"]]]


class Limits(NamedTuple):
    """Between what, and how fast, retentions move. Traced; the first three with a leading agents axis."""

    own: Float[Array | np.ndarray, "agents"]  # the retention of the run's own settings
    low: Float[Array | np.ndarray, "agents"]
    high: Float[Array | np.ndarray, "agents"]
    jump: Float[Array | np.ndarray, ""]  # the most that a retention changes in a round
    gain: Float[Array | np.ndarray, ""]  # β


class Going(NamedTuple):
    """What a controller of retentions remembers."""

    retention: Float[Array, "agents"]
    smoothed: Float[Array, "agents"]  # τ; 0 before the first exchange
    elapsed: Float[Array, "agents"]  # what all rounds took since the last exchange
    rest: Any = None


def with_counts(hyper: Any, entries: Entries, wanted: Callable[[str, Array], Array]) -> Any:
    """The settings of agents that keep `wanted(name, kept)` of a layer, where they kept so many; layers without
    `entries` are kept as they are.

    A layer of which something is to be kept keeps one entry at least, and one of which nothing is kept stays so.
    """

    def one(name: str, kept: Array) -> Array:
        if name not in entries:
            return kept
        count = jnp.round(wanted(name, kept)).astype(kept.dtype)
        return jnp.where(kept > 0, jnp.clip(count, 1, entries[name]), 0)

    return hyper._replace(kept=with_names(one, hyper.kept))


def with_retention(hyper: Any, retention: Float[Array, "agents"], limits: Limits, entries: Entries) -> Any:
    """The settings of agents that keep r of their convolutions, and of linear layers as many times what the run's own
    settings say."""
    return with_counts(hyper, entries, lambda _, kept: kept * (retention / limits.own))


def toward(retention: Float[Array, "agents"], wanted: Float[Array, "agents"], limits: Limits) -> Float[Array, "agents"]:
    """As near to what is wanted as bounds and one jump allow."""
    near = jnp.clip(wanted, retention - limits.jump, retention + limits.jump)
    return jnp.clip(near, limits.low, limits.high)


Act: TypeAlias = Callable[[Any, Any, dict[str, Any], str | None], tuple[Any, Any]]


def by_time(init: Callable[..., Any], act: Act, speaks: Callable[..., Any] | None = None) -> Controller:
    """A controller whose update is `act(memory, hyper, info, axis)`: the diagnostics `info` hold those of the clock,
    τ as `seconds`. It needs a clock."""

    def update(
        memory: Any,
        hyper: Any,
        round: Int[Array, ""],
        info: dict[str, Any],
        seconds: Float[Array, "agents"] | None,
        axis: str | None,
    ) -> tuple[Any, Any]:
        del round
        assert seconds is not None, "budgets need a clock"
        return act(memory, hyper, {**info, "seconds": seconds}, axis)

    return Controller(init, update, speaks)


Decide: TypeAlias = Callable[[Going, dict[str, Any], str | None], Going]


def of_retentions(limits: Limits, entries: Entries, decide: Decide, rest: Any = None) -> Controller:
    """A controller that decides after each exchange: `decide(going, info, axis)` with the newest smoothed τ gives a new
    retention. The diagnostics `info` hold those of the clock."""

    def init(hyper: Any) -> tuple[Going, Any]:
        retention = jnp.clip(jnp.asarray(limits.own), limits.low, limits.high)
        going = Going(retention, jnp.zeros_like(retention), jnp.zeros_like(retention), rest)
        return going, with_retention(hyper, retention, limits, entries)

    def act(memory: Going, hyper: Any, info: dict[str, Any], axis: str | None) -> tuple[Going, Any]:
        seconds = info["seconds"]
        smoothed = jnp.where(memory.smoothed > 0, SMOOTHED * seconds + (1 - SMOOTHED) * memory.smoothed, seconds)
        waiting = memory._replace(elapsed=memory.elapsed + seconds)
        decided = decide(waiting._replace(smoothed=smoothed), info, axis)
        retention = toward(memory.retention, decided.retention, limits)
        decided = decided._replace(retention=retention, elapsed=jnp.zeros_like(retention))
        acting = info["exchanged"]
        going = jax.tree.map(lambda new, old: jnp.where(_like(acting, new), new, old), decided, waiting)
        return going, with_retention(hyper, going.retention, limits, entries)

    return by_time(init, act)


def deadline(limits: Limits, entries: Entries, band: float = BAND) -> Controller:
    """r ← r · (deadline / τ)^β, unless τ is within a `band` around the deadline (hysteresis) or there is none yet."""

    def decide(going: Going, info: dict[str, Any], axis: str | None) -> Going:
        del axis
        ratio = info["deadline"] / going.smoothed
        off = jnp.isfinite(ratio) & (jnp.abs(jnp.log(ratio)) > jnp.log1p(band))
        return going._replace(retention=jnp.where(off, going.retention * ratio**limits.gain, going.retention))

    return of_retentions(limits, entries, decide)


def balance(limits: Limits, entries: Entries) -> Controller:
    """r ← r · (mean τ / τ)^β, then times what makes the mean of all retentions that of the run's own settings."""

    def decide(going: Going, info: dict[str, Any], axis: str | None) -> Going:
        del info
        mean = jnp.mean(from_all_devices(going.smoothed, axis))
        wanted = going.retention * (mean / going.smoothed) ** limits.gain
        wanted = jnp.clip(wanted, limits.low, limits.high)
        of_all, own = (jnp.mean(from_all_devices(values, axis)) for values in (wanted, limits.own))
        return going._replace(retention=wanted * own / of_all)

    return of_retentions(limits, entries, decide)


class Arms(NamedTuple):
    """What a bandit remembers of each interval. Leaves with a leading agents axis."""

    pulls: Float[Array, "agents arms"]  # discounted
    gains: Float[Array, "agents arms"]  # their sum, discounted
    arm: Int[Array, "agents"]  # that is tried now
    since: Int[Array, "agents"]  # for so many exchanges at its middle
    loss: Float[Array, "agents"]  # when these began
    seconds: Float[Array, "agents"]  # that they took so far
    largest: Float[Array, "agents"]  # what the loss fell by in a second, at best


def bandit(
    limits: Limits,
    entries: Entries,
    *,
    arms: int = INTERVALS,
    hold: int = HELD,
    discount: float = 0.98,
    explore: float = 0.2,
) -> Controller:
    """Discounted upper confidence bounds over equal intervals of [low, high] (after FedMP, Jiang et al., ICDE 2022).

    The retention goes to the middle of an interval, by as many jumps as it takes, and stays there for `hold` exchanges,
    which alone count. What the interval is worth is how much the loss fell in a second of them, as a share of the
    largest such gain so far of this agent. Then the interval is chosen with the largest mean gain + `explore` · √(ln Σ
    pulls / pulls), of those never tried the nearest: see `best_arm`.
    """
    agents = limits.own.shape[0]
    middles, first = intervals(limits, arms)
    zeros = jnp.zeros((agents, arms), limits.own.dtype)
    none = jnp.zeros(agents, jnp.int32)
    start = Arms(zeros, zeros, first, none, jnp.nan + zeros[:, 0], zeros[:, 0], zeros[:, 0])

    def middle_of(arm: Int[Array, "agents"]) -> Float[Array, "agents"]:
        return jnp.take_along_axis(middles, arm[:, None], axis=1)[:, 0]

    def decide(going: Going, info: dict[str, Any], axis: str | None) -> Going:
        del axis
        own, loss = going.rest, info["loss"]
        there = jnp.abs(going.retention - middle_of(own.arm)) <= NEAR
        began = jnp.where(there & ~jnp.isnan(own.loss), own.loss, loss)
        since, seconds = jnp.where(there, own.since + 1, 0), jnp.where(there, own.seconds + going.elapsed, 0)
        own = own._replace(loss=began, since=since, seconds=seconds)
        over = own.since >= hold
        gain = jnp.where(over, jnp.maximum(began - loss, 0) / jnp.maximum(own.seconds, 1e-9), 0)
        largest = jnp.maximum(own.largest, gain)
        this = jax.nn.one_hot(own.arm, arms, dtype=own.pulls.dtype)
        pulls = discount * own.pulls + this
        gains = discount * own.gains + this * (gain / jnp.where(largest > 0, largest, 1))[:, None]
        best = jax.vmap(partial(best_arm, explore))(pulls, gains, own.arm)
        again = Arms(pulls, gains, best, none, loss, 0.0 * own.seconds, largest)
        own = jax.tree.map(lambda new, old: jnp.where(_like(over, new), new, old), again, own)
        return going._replace(retention=middle_of(own.arm), rest=own)

    return of_retentions(limits, entries, decide, start)


def best_arm(
    explore: float, pulls: Float[Array, "arms"], gains: Float[Array, "arms"], arm: Int[Array, ""]
) -> Int[Array, ""]:
    """The arm of the largest upper confidence bound; of those never pulled the one nearest to `arm`. One agent's world.

    >>> best_arm(0.2, jnp.array([1.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 0.0]), jnp.array(0)).item()
    1
    >>> best_arm(0.2, jnp.array([1.0, 4.0, 1.0]), jnp.array([0.2, 3.2, 0.7]), jnp.array(0)).item()
    2
    """
    places, never = jnp.arange(len(pulls)), pulls <= 0
    nearest = jnp.argmin(jnp.where(never, jnp.abs(places - arm), len(pulls)))
    some = jnp.where(never, 1, pulls)
    bound = gains / some + explore * jnp.sqrt(jnp.log(jnp.maximum(jnp.sum(pulls), 1)) / some)
    return jnp.where(jnp.any(never), nearest, jnp.argmax(bound)).astype(arm.dtype)


def intervals(limits: Limits, arms: int) -> tuple[Float[Array, "agents arms"], Int[Array, "agents"]]:
    """The middles of equal intervals of [low, high], and in which of them a `bandit` begins: the one nearest to r."""
    width = (limits.high - limits.low)[:, None] / arms
    middles = jnp.asarray(limits.low[:, None] + width * (jnp.arange(arms)[None] + 0.5))
    return middles, jnp.argmin(jnp.abs(middles - limits.own[:, None]), axis=1)


def exchanges_to_try(limits: Limits, *, arms: int = INTERVALS, hold: int = HELD) -> Int[np.ndarray, "agents"]:
    """After how many exchanges a `bandit` has tried every interval, with the jumps that lead from one to the next."""

    def of_agent(at: float, middles: Float[np.ndarray, "arms"], arm: int) -> int:
        never, exchanges = set(range(arms)), 0
        while never:
            jumps = max(math.ceil((abs(middles[arm] - at) - NEAR) / float(limits.jump)), 0)
            # The exchange in which an interval is chosen makes the first jump toward it, but for the very first.
            exchanges += hold + (jumps if len(never) == arms else max(jumps - 1, 0))
            never.remove(arm)
            at, arm = middles[arm], min(never, key=lambda other: (abs(other - arm), other), default=arm)
        return exchanges

    start = np.clip(np.asarray(limits.own), limits.low, limits.high)
    return np.array([of_agent(*own) for own in zip(start, *map(np.asarray, intervals(limits, arms)), strict=True)])


def period(longest: int = 16) -> Controller:
    """Who takes p times the deadline sends in every p-th exchange, p at most `longest`, at other times nothing."""

    def init(hyper: Any) -> tuple[Any, Any]:
        agents = jax.tree.leaves(hyper)[0].shape[0]
        return (jnp.ones(agents, jnp.int32), jnp.zeros(agents, jnp.int32)), hyper

    def act(memory: tuple[Array, Array], hyper: Any, info: dict[str, Any], axis: str | None) -> tuple[Any, Any]:
        del axis
        every, since = memory
        spoke = info["exchanged"] & (since + 1 >= every)
        wanted = jnp.clip(jnp.ceil(info["seconds"] / info["deadline"]), 1, longest).astype(jnp.int32)
        since = jnp.where(spoke, 0, since + info["exchanged"])
        return (jnp.where(spoke, wanted, every), since), hyper

    def speaks(memory: tuple[Array, Array], round: Int[Array, ""]) -> Bool[Array, "agents"]:
        del round
        every, since = memory
        return since + 1 >= every

    return by_time(init, act, speaks)


def prunefl(limits: Limits, entries: Entries, cost: Cost, *, every: int = 10) -> Controller:
    """Each layer keeps as many entries as make Σ g² / τ largest (PruneFL, Jiang et al., TNNLS 2022).

    Of all entries, whether they are kept or not, by straight-through gradients g; it decides anew after every so many
    exchanges. The diagnostics hold `squares`, of each layer its `descent.spectrum`. Bounds and jumps are those of a
    layer's own share.
    """

    def init(hyper: Any) -> tuple[Any, Any]:
        kept = by_name(hyper.kept)
        shares = {name: jnp.clip(kept[name] / entries[name], limits.low, limits.high) for name in entries}
        return (shares, jnp.zeros(limits.own.shape, jnp.int32)), with_shares(hyper, shares, entries)

    def act(
        memory: tuple[dict[str, Array], Array], hyper: Any, info: dict[str, Any], axis: str | None
    ) -> tuple[Any, Any]:
        del axis
        shares, since = memory
        since = since + info["exchanged"]
        due = since >= every
        kept = by_name(with_shares(hyper, shares, entries).kept)
        of_entry = cost(kept, info["seconds"])
        rest = info["seconds"] - sum(of_entry[name] * kept[name] for name in entries)
        spectra = {name: info["squares"][name] for name in entries}
        best = jax.vmap(best_counts)(spectra, {name: of_entry[name] for name in entries}, jnp.maximum(rest, 0))
        wanted = {name: toward(own, best[name] / entries[name], limits) for name, own in shares.items()}
        shares = {name: jnp.where(due, wanted[name], own) for name, own in shares.items()}
        return (shares, jnp.where(due, 0, since)), with_shares(hyper, shares, entries)

    return by_time(init, act)


def with_shares(hyper: Any, shares: dict[str, Float[Array, "agents"]], entries: Entries) -> Any:
    """The settings of agents that keep such a share of each layer that has entries."""
    return with_counts(hyper, entries, lambda name, _: shares[name] * entries[name])


def best_counts(
    spectra: dict[str, Float[Array, "2 bins"]], seconds: dict[str, Float[Array, ""]], rest: Float[Array, ""]
) -> dict[str, Int[Array, ""]]:
    """How many entries of each layer to keep so that Σ g² / (rest + Σ seconds) is largest; one agent's world. An entry
    takes so many `seconds` of a layer.

    Bins go in the order of g² a second. The ratio rises as long as what is added has more of it than the ratio has.

    >>> from dslth_jax.algorithms.descent import spectrum
    >>> spectra = {"a": spectrum(jnp.array([1.0, 1.0])), "b": spectrum(jnp.array([0.25]))}
    >>> counts = best_counts(spectra, {"a": jnp.array(1.0), "b": jnp.array(1.0)}, jnp.array(1.0))
    >>> counts["a"].item(), counts["b"].item()
    (2, 0)
    """
    names = [*spectra]
    counts, sums = jnp.stack([spectra[name] for name in names], axis=1).reshape(2, -1)
    of_entry = jnp.repeat(jnp.stack([seconds[name] for name in names]), BINS)
    worth = jnp.where(counts > 0, sums / jnp.maximum(counts, 1) / jnp.maximum(of_entry, 1e-30), -1)
    order = jnp.argsort(-worth, stable=True)
    ratio = jnp.cumsum(sums[order]) / jnp.maximum(rest + jnp.cumsum((counts * of_entry)[order]), 1e-30)
    chosen = jnp.zeros_like(counts).at[order].set(jnp.arange(len(order)) <= jnp.argmax(ratio))
    kept = jnp.sum((chosen * counts).reshape(len(names), BINS), axis=1).astype(jnp.int32)
    return {name: kept[place] for place, name in enumerate(names)}


def _like(these: Bool[Array, "agents"], array: Array) -> Array:
    """The same, to choose between arrays like this one."""
    return these.reshape(-1, *(1,) * (array.ndim - 1))
