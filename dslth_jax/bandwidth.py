"""Bandwidth over simulated time: step functions of seconds, repeated at their end. Ours.

One function makes the traces of a kind for a whole population; what is random is drawn from a seed, once. To add a
kind, write its function here and name it in `study.config.spellings.BANDWIDTHS`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

DRAWN = 1000  # seconds that are drawn of a random trace before it repeats


class Trace(NamedTuple):
    """Bandwidth of one agent's device; a population's leaves carry a leading agents axis.

    Between two of `ends` its bandwidth is constant; the last is the period. A step that ends where it begins is none:
    traces of unlike lengths are padded by such.
    """

    ends: Float[Array | np.ndarray, "*agents steps"]  # in seconds, not falling, the last above 0
    rates: Float[Array | np.ndarray, "*agents steps"]  # in Mbit/s, at least one step's above 0
    start: Float[Array | np.ndarray, "*agents"]  # where in the period simulated time begins, in seconds


def seconds_to_send(trace: Trace, at: Float[Array, ""], bits: Float[Array, ""]) -> Float[Array, ""]:
    """How long it takes to send so many bits from the simulated time `at` on. One agent's world.

    Exact for step functions: what the step at hand does not send goes on behind it, where the capacity of whole periods
    and of steps is summed up, and the step found in which the rest is sent. Nothing is sent while the bandwidth is 0.
    No bits take no time.

    >>> trace = Trace(jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0]), jnp.array(0.0))  # 2 Mbit in each 3 seconds
    >>> [float(seconds_to_send(trace, jnp.array(0.5), jnp.array(bits))) for bits in (0.0, 1e6, 2e6, 5e6)]
    [0.0, 0.5, 3.0, 6.5]
    """
    megabits = bits / 1e6
    begins = jnp.concatenate([jnp.zeros_like(trace.ends[:1]), trace.ends[:-1]])
    capacity = jnp.cumsum(trace.rates * (trace.ends - begins))
    before, period, whole = capacity - trace.rates * (trace.ends - begins), trace.ends[-1], capacity[-1]
    position = (trace.start + at) % period
    step = jnp.minimum(jnp.sum(position >= trace.ends), len(trace.ends) - 1)
    # What this step sends takes what it takes alone: late in a long period differences of sums are too coarse for it.
    now, left = trace.rates[step], trace.rates[step] * (trace.ends[step] - position)
    at_once = megabits / jnp.where(now > 0, now, 1)
    sent = before[step] + now * (position - begins[step])  # since the period began
    periods = jnp.maximum(jnp.ceil(megabits / whole) - 1, 0)
    wanted = sent + megabits - periods * whole
    further = wanted > whole  # the rest goes on behind the end of this period
    periods, wanted = periods + further, wanted - jnp.where(further, whole, 0)
    last = jnp.minimum(jnp.sum(capacity < wanted), len(trace.ends) - 1)
    rate = jnp.where(trace.rates[last] > 0, trace.rates[last], 1)
    later = periods * period + begins[last] + (wanted - before[last]) / rate - position
    seconds = jnp.where(megabits <= left, at_once, jnp.maximum(later, 0))
    return jnp.where(megabits > 0, seconds, 0)


def constant(agents: int, megabits: float) -> Trace:
    """The same bandwidth at all times, in Mbit/s; a ValueError unless it is above 0.

    >>> constant(2, 8.0).rates.tolist()
    [[8.0], [8.0]]
    """
    return steps(agents, [(1.0, megabits)])


def collapse(agents: int, megabits: float, seconds: float, then: float) -> Trace:
    """Bandwidth that falls, or rises, to `then` Mbit/s after so many seconds, and stays there for a thousand times as
    long."""
    return steps(agents, [(seconds, megabits), (1001 * seconds, then)])


def lognormal(agents: int, seed: int, megabits: float, spread: float) -> Trace:
    """Every second another bandwidth, drawn for each agent: its median in Mbit/s, and the deviation of its logarithm.

    >>> trace = lognormal(2, seed=0, megabits=4.0, spread=0.5)
    >>> trace.rates.shape, abs(float(np.median(trace.rates)) - 4) < 0.2
    ((2, 1000), True)
    """
    expect(megabits > 0, f"megabits must be above 0, got {megabits:g}")
    expect(0 <= spread <= 10, f"spread must lie in 0..10, got {spread:g}")
    drawn = np.random.default_rng([seed, 4]).standard_normal((agents, DRAWN))
    return every_second(megabits * np.exp(spread * drawn))


def markov(agents: int, seed: int, good: float, bad: float, leave: float, back: float) -> Trace:
    """Two bandwidths in Mbit/s: each second an agent's device leaves the good one by the probability `leave`, and comes
    `back` from the bad one by another. It begins in either as often as it is there in the long run."""
    for name, rate in (("good", good), ("bad", bad)):
        expect(rate >= 0, f"{name} must be at least 0, got {rate:g}")
    for name, chance in (("leave", leave), ("back", back)):
        expect(0 < chance <= 1, f"{name} must lie in (0, 1], got {chance:g}")
    expect(max(good, bad) > 0, "good or bad must be above 0, got 0 both")
    drawn = np.random.default_rng([seed, 4]).random((DRAWN, agents))
    is_good = [drawn[0] < back / (leave + back)]
    for second in drawn[1:]:
        is_good.append(np.where(is_good[-1], second >= leave, second < back))
    rates = np.where(np.array(is_good).T, good, bad)
    rates[rates.max(axis=1) == 0, 0] = max(good, bad)  # whoever is always in a bad one of 0 has a good second
    return every_second(rates)


def every_second(rates: Float[np.ndarray, "agents seconds"]) -> Trace:
    """Traces that begin at their begin and have another rate each second."""
    agents, seconds = rates.shape
    return traced(np.broadcast_to(np.arange(1.0, seconds + 1), rates.shape), rates, np.zeros(agents))


def steps(agents: int, parts: Sequence[tuple[float, float]]) -> Trace:
    """The same trace for all agents, of steps that end after so many seconds and have so many Mbit/s."""
    ends, rates = (np.array([column], np.float64).repeat(agents, axis=0) for column in zip(*parts, strict=True))
    rising = np.isfinite(ends).all() and np.all(np.diff(ends, prepend=0) > 0)
    expect(rising, f"seconds must rise from above 0, got {ends[0].tolist()}")
    there = rates.min() >= 0 and np.isfinite(rates).all()
    expect(there, f"Mbit/s must be finite and at least 0, got {rates[0].tolist()}")
    expect(rates.max() > 0, "Mbit/s must be above 0 at some time, got 0 at all times: nothing would ever be sent")
    return traced(ends, rates, np.zeros(agents))


def recorded(agents: int, files: Sequence[Float[np.ndarray, "_ 2"]]) -> Trace:
    """Recorded bandwidths, dealt to agents in turn: samples of seconds and Mbit/s, each of which holds until the next.

    The last one holds as long as the median of the others, and then the trace repeats. So that agents do not move in
    step, agent i begins at the share i / agents of its trace.

    >>> recorded(2, [np.array([[0.0, 1.0], [2.0, 3.0]])]).ends.tolist()
    [[2.0, 4.0], [2.0, 4.0]]
    """
    longest = max(len(samples) for samples in files)
    ends, rates, start = np.zeros((agents, longest)), np.zeros((agents, longest)), np.zeros(agents)
    for agent in range(agents):
        seconds, rate = files[agent % len(files)].T
        lasting = np.diff(seconds)
        last = seconds[-1] + (np.median(lasting) if len(lasting) else 1.0)
        own = np.append(seconds[1:], last) - seconds[0]
        ends[agent], rates[agent] = np.pad(own, (0, longest - len(own)), mode="edge"), np.resize(rate, longest)
        start[agent] = own[-1] * agent / agents
    return traced(ends, rates, start)


def traced(
    ends: Float[np.ndarray, "agents steps"],
    rates: Float[np.ndarray, "agents steps"],
    start: Float[np.ndarray, "agents"],
) -> Trace:
    """Traces in float32; a ValueError where that, or what one sends in a period, holds nothing of them, or too much."""
    tiny = np.finfo(np.float32).tiny  # compiled programs take what is smaller for 0
    with np.errstate(over="ignore", invalid="ignore"):
        trace = Trace(
            ends.astype(np.float32), np.where(rates < tiny, 0, rates).astype(np.float32), start.astype(np.float32)
        )
        capacity = np.sum(trace.rates * np.diff(trace.ends, axis=1, prepend=np.float32(0)), axis=1)
    for agent in np.flatnonzero(~((capacity >= tiny) & (capacity < np.inf)))[:1]:
        raise ValueError(
            f"bandwidths must send so many Mbit in a period as float32 holds, got rates of {rates[agent].min():g} to "
            f"{rates[agent].max():g} Mbit/s, and a period of {ends[agent, -1]:g} s, for agent {agent}"
        )
    return trace


def expect(condition: bool | np.bool, sentence: str) -> None:
    """Raise a ValueError with this sentence unless the condition holds."""
    if not condition:
        raise ValueError(sentence)
