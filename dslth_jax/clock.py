"""A simulated clock: how long a round takes each agent's device and link, and whose message comes too late. Ours.

    τ_i = work_i / speed_i + Σ over its links of bits_i / R_i(t)

An agent works, then sends its message over one link after the other at the bandwidth that its device has at that time.
Bits are an estimate that a compiled program can make: of a layer of n entries n · H2(p), where p is the share of bits
that differ from those sent last; in a key frame, or where listeners may lack what was sent last, the share of ones.
Key frames are the first message and as many more as the ledger has. The ledger counts real messages: those of large
networks that say what differs use what several masks before had, and are about half as long where they come in every
round. A round ends when all messages are sent, or at the deadline, but not before everybody has computed, because all
take the next step together. Who is still sending then is late: neighbours hear its message before. What it sends now
they hear in the next round if it is late again; if not, they hear its next message instead. So algorithms whose
messages add up (`Algorithm.adds_up`) need a deadline that nobody misses, such as infinity. Nothing here is measured:
simulated time is a function of the seed, the round and the settings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dslth_jax.bandwidth import Trace, seconds_to_send

OF_MEDIAN = 0.8  # the deadline that is left out, as a share of the median τ of the first exchange


class Devices(NamedTuple):
    """What agents' devices can do. Leaves carry a leading agents axis."""

    speed: Float[Array | np.ndarray, "agents"]  # multiply-adds a second
    bandwidth: Trace


class Clock(NamedTuple):
    """What takes time in a round. The population's world."""

    work: Callable[[Any], Float[Array, "agents"]]  # multiply-adds of a round, by the settings of that round
    devices: Devices
    # Seconds for which a round waits for messages; infinite: for all, 0: `OF_MEDIAN` of the first exchange's median τ.
    deadline: Float[Array, ""]
    # Whether listeners have what was sent before, so that a message says what has changed since then; else it says all.
    remembered: bool | Bool[Array, ""] = True
    key_every: int = 0  # exchanges from one key frame to the next, which says all; 0 for none but the first


class Times(NamedTuple):
    """What goes from round to round, common to all."""

    now: Float[Array, ""]  # simulated seconds so far
    deadline: Float[Array, ""]  # in force in the next round
    exchanges: Int[Array, ""]  # so far


class Lap(NamedTuple):
    """One round of the clock; leaves with a leading agents axis."""

    seconds: Float[Array, "agents"]  # τ
    idle: Float[Array, "agents"]  # from when an agent was done to the end of the round
    late: Bool[Array, "agents"]
    exchanged: Bool[Array, "agents"]  # whether it was a round of exchange, the same for all
    deadline: Float[Array, "agents"]  # that was in force, the same for all
    length: Float[Array, "agents"]  # of the round, the same for all


def begin(clock: Clock) -> Times:
    """Before the first round."""
    deadline = jnp.asarray(clock.deadline, jnp.result_type(clock.deadline))
    return Times(jnp.zeros_like(deadline), jnp.where(deadline > 0, deadline, jnp.inf), jnp.int32(0))


def told_before(clock: Clock, times: Times, start_known: bool) -> Bool[Array, ""]:
    """Whether a message of the next exchange says only what has changed: it is no key frame, by the ledger's rule, and
    listeners have the one before, which is at first the one that `start_known` says they know.

    >>> [bool(told_before(Clock(None, None, None, key_every=2), Times(0, 0, n), True)) for n in range(4)]
    [False, True, False, True]
    """
    key_frame = (
        times.exchanges % clock.key_every == 0 if clock.key_every else (times.exchanges == 0) & (not start_known)
    )
    return clock.remembered & jnp.logical_not(key_frame)


def lap(
    clock: Clock,
    times: Times,
    hyper: Any,
    bits: Float[Array, "agents"],
    links: Int[Array, "agents"],
    sending: Bool[Array, "agents"],
    exchanging: Bool[Array, ""],
    gather: Callable[[Array], Array] = lambda own: own,
) -> tuple[Times, Lap]:
    """The next round: its times, and how it goes for each agent.

    Args:
        clock: its devices are those of the agents at hand.
        times: from the round before.
        hyper: the settings of the round, which say what there is to do.
        bits: of each agent's message.
        links: over how many each sends it; one over which it is sent again counts once more.
        sending: who of them sends, if it is a round of exchange; others are not late.
        exchanging: whether it is one.
        gather: everybody's numbers, from those of the agents at hand.
    """
    computing = clock.work(hyper).astype(times.now.dtype) / clock.devices.speed
    sending = sending & exchanging
    sent = jnp.where(sending, bits * links, 0).astype(times.now.dtype)
    seconds = computing + jax.vmap(seconds_to_send)(clock.devices.bandwidth, times.now + computing, sent)
    everybody = gather(seconds)
    computed = jnp.max(gather(computing))
    length = jnp.clip(times.deadline, computed, jnp.max(everybody))
    known = (clock.deadline > 0) | ~exchanging | (times.exchanges > 0)
    deadline = jnp.where(known, times.deadline, OF_MEDIAN * jnp.median(everybody))
    own = Lap(
        seconds,
        jnp.maximum(length - seconds, 0),
        sending & (seconds > length),
        *(jnp.broadcast_to(common, seconds.shape) for common in (exchanging, times.deadline, length)),
    )
    return Times(times.now + length, deadline, times.exchanges + exchanging), own
