"""Simulated time: what is sent when, who is late, and what controllers make of it; against numpy, and closed forms."""

import functools
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from asked import drawn_batches, unpacked_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_population import ADJACENCY, AGENTS, BATCH, NETWORK, RETENTION, agent_of, drawn_by, gradients_of, layers
from test_population import setting as population_of

from dslth_jax import bandwidth, budgets, control, population
from dslth_jax.algorithm import Message, World, by_name, with_personal_layers
from dslth_jax.algorithms import descent
from dslth_jax.algorithms.descent import spectrum
from dslth_jax.algorithms.independent import Hyper as OfAlone
from dslth_jax.algorithms.independent import independent
from dslth_jax.algorithms.mce_pl import mce_pl
from dslth_jax.algorithms.score_gossip import signs
from dslth_jax.clock import Clock, Devices, begin, lap
from dslth_jax.links import added_up, perfect
from dslth_jax.message_sizes import message_bits
from dslth_jax.mixing import Graph, listeners

PARTS = st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 4)), min_size=1, max_size=5)
sent_in = jax.jit(bandwidth.seconds_to_send)


@settings(max_examples=60, deadline=None)
@given(PARTS, st.floats(0, 30), st.floats(0, 2e7))
def test_what_is_sent_in_the_time_it_takes_is_what_was_to_be_sent(parts, at, bits):
    """The integral of the step function, repeated, over that time; and not earlier, where nothing could be sent."""
    lasting, rates = np.array(parts).T
    if rates.max() < 0.01:
        return
    with jax.enable_x64(True):
        ends = np.pad(np.cumsum(lasting), (0, 5 - len(lasting)), mode="edge")  # one shape, one program
        trace = bandwidth.Trace(*map(jnp.asarray, (ends, np.pad(rates, (0, 5 - len(rates))), 0.25)))
        seconds = float(sent_in(trace, jnp.asarray(at), jnp.asarray(bits)))
    begins = np.append(0, np.cumsum(lasting))[:-1]
    capacity = np.sum(lasting * rates)

    def sent_until(time):
        periods, rest = np.divmod(time, np.sum(lasting))
        return periods * capacity + np.sum(rates * np.clip(rest - begins, 0, lasting))

    assert sent_until(at + 0.25 + seconds) - sent_until(at + 0.25) == pytest.approx(bits / 1e6, rel=1e-9, abs=1e-9)


def test_what_takes_little_time_late_in_a_long_period_takes_that_time():
    """In float32, where a difference of seconds, or of what was sent so far, would be too coarse; and what fills a
    period to the last bit ends with its last bandwidth above 0, not with the period."""
    late = bandwidth.collapse(1, megabits=10.0, seconds=60.0, then=1.0)
    seconds = sent_in(agent_of(late, 0), jnp.float32(30000.3), jnp.float32(50.0))
    assert float(seconds) == pytest.approx(5e-5, rel=1e-6)
    falling = bandwidth.Trace(jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0]), jnp.array(0.0))
    assert [float(sent_in(falling, jnp.float32(0), jnp.float32(bits))) for bits in (2e6, 4e6)] == [1.0, 4.0]


@pytest.mark.parametrize(
    "make",
    [
        lambda: bandwidth.constant(2, 1e-50),
        lambda: bandwidth.constant(2, 1e39),
        lambda: bandwidth.lognormal(2, 0, np.inf, 1.0),
        lambda: bandwidth.markov(2, 0, 1e-40, 0.0, 0.5, 0.5),
        lambda: bandwidth.collapse(2, 1.0, 1e37, 1.0),
        lambda: bandwidth.recorded(2, [np.array([[1e17, 1.0]])]),
    ],
)
def test_bandwidths_that_float32_does_not_hold_are_refused(make):
    """They would make seconds that are no numbers."""
    with pytest.raises(ValueError, match="as float32 holds"):
        make()


def test_bits_of_a_message_are_the_entropy_of_what_changed():
    """Against numpy, from unpacked bits: masks, the first message, signs with a scale, values, a layer lacked."""
    rng = np.random.default_rng(0)
    old, new = (rng.random((3, 40)) < 0.3 for _ in range(2))
    masks = {"w": jnp.asarray(np.packbits(new, axis=1, bitorder="little"))}
    before = Message({"w": jnp.asarray(np.packbits(old, axis=1, bitorder="little"))})

    def entropy(share):
        return -40 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))

    changed, kept = (old != new).mean(axis=1), new.mean(axis=1)
    values, has = {"w": jnp.zeros((3, 40))}, {"w": jnp.array([True, False, True])}
    cases = {
        "known": (Message(masks), True, entropy(changed)),
        "first": (Message(masks), False, entropy(kept)),
        "signs": (Message(masks, scales={"w": jnp.ones(3)}), True, np.full(3, 40 + 32)),
        "sparse values": (Message(masks, values), True, entropy(changed) + 32 * 40 * kept),
        "values": (Message({}, values), True, np.full(3, 32 * 40)),
        "lacked": (Message(masks, has=has), True, entropy(changed) * [1, 0, 1]),
    }
    for name, (message, known, wanted) in cases.items():
        bits = message_bits(message, before, {"w": 40}, jnp.array(known))
        np.testing.assert_allclose(bits, wanted, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("remembered", [True, False])
def test_where_listeners_may_lack_the_last_message_one_says_all(remembered):
    """A mask of which nothing has changed takes no time where it is known, and its entropy where it may not be."""
    sent = Message({"w": jnp.full((2, 5), 0b11, jnp.uint8)})
    clock = clock_at(jnp.inf)._replace(remembered=jnp.array(remembered))
    times = begin(clock)._replace(exchanges=jnp.int32(3))
    state = population.State(jnp.zeros(2), None, sent, None, None, jnp.int32(3), times)
    world = World({"w": jnp.zeros(40)}, {}, None, jnp.int32(3), jnp.int32(9))
    _, own = population.timed_lap(clock, state, None, sent, None, jnp.ones(2, int), world, False, jnp.array(True), None)
    entropy = 40 * (0.5 + 0.75 * np.log2(4 / 3))
    expected = np.array([1.0, 0.5]) + (0 if remembered else entropy / 1e6 / np.array([8.0, 4.0]))
    np.testing.assert_allclose(own.seconds, expected, rtol=1e-6)


def traces(kind):
    """Traces of a kind for four agents, as numpy."""
    return {
        "lognormal": lambda: bandwidth.lognormal(4, seed=1, megabits=2.0, spread=0.5),
        "markov": lambda: bandwidth.markov(4, seed=1, good=4.0, bad=0.5, leave=0.1, back=0.3),
        "recorded": lambda: bandwidth.recorded(4, [np.array([[5.0, 1.0], [6.0, 2.0], [8.0, 0.0]]), np.ones((1, 2))]),
    }[kind]()


def test_traces_are_drawn_as_they_say():
    drawn, chain, files = map(traces, ("lognormal", "markov", "recorded"))
    assert np.log(drawn.rates).std() == pytest.approx(0.5, abs=0.05)
    assert (chain.rates == 4.0).mean() == pytest.approx(0.75, abs=0.05)  # back / (leave + back)
    assert ((chain.rates[:, :-1] == 4.0) & (chain.rates[:, 1:] == 0.5)).sum() / (chain.rates == 4.0).sum() < 0.13
    # The last of three samples lasts as long as the median of the others, 1.5 s, and agents begin at their own shares.
    np.testing.assert_allclose(files.ends[0], [1, 3, 4.5])
    np.testing.assert_allclose(files.ends[1], [1, 1, 1])
    np.testing.assert_allclose(files.start, [0, 0.25, 2.25, 0.75])


def clock_at(deadline, rates=(8.0, 4.0), speed=(1e6, 2e6), work=1e6):
    trace = bandwidth.Trace(jnp.ones((2, 1)), jnp.asarray(rates)[:, None], jnp.zeros(2))
    return Clock(lambda hyper: jnp.full(2, work), Devices(jnp.asarray(speed), trace), jnp.asarray(deadline))


def test_a_round_waits_for_all_who_compute_and_for_messages_until_the_deadline(x64):
    """By hand: 1 and 0.5 s of work; 2 Mbit over 2 links at 8 Mbit/s and over 1 at 4."""
    bits, links, all_send = jnp.full(2, 2e6), jnp.array([2, 1]), jnp.array([True, True])
    clock = clock_at(jnp.inf)
    times, own = lap(clock, begin(clock), None, bits, links, all_send, jnp.array(True))
    np.testing.assert_allclose(own.seconds, [1.5, 1.0])
    np.testing.assert_allclose(own.idle, [0.0, 0.5])
    assert (float(times.now), own.late.tolist()) == (1.5, [False, False])
    clock = clock_at(1.2)
    times, own = lap(clock, begin(clock), None, bits, links, all_send, jnp.array(True))
    assert (float(times.now), own.late.tolist()) == (1.2, [True, False])
    clock = clock_at(0.6)  # before the first has computed: the second, done by then, is in time
    times, own = lap(clock, begin(clock), None, bits, links, all_send, jnp.array(True))
    assert (float(times.now), own.late.tolist(), own.idle.tolist()) == (1.0, [True, False], [0.0, 0.0])
    assert float(own.deadline[0]) == 0.6  # by which controllers still go
    clock = clock_at(0.0)  # left out: nobody is late in the first exchange, which says what it is
    times, own = lap(clock, begin(clock), None, bits, links, all_send, jnp.array(False))  # a silent round says nothing
    assert (float(times.now), float(times.deadline), own.seconds.tolist()) == (1.0, np.inf, [1.0, 0.5])
    times, own = lap(clock, times, None, bits, links, all_send, jnp.array(True))
    assert (float(times.now), float(times.deadline)) == (2.5, pytest.approx(0.8 * 1.25))
    assert lap(clock, times, None, bits, links, all_send, jnp.array(True))[1].late.tolist() == [True, False]


BOTH = Graph(np.array([0, 1]), np.array([1, 0]), np.ones(2, np.uint8), np.ones(2, np.float32))


def timed(clock, message, *, before=None, graph=BOTH, times=None, due=True):
    """The times and the lap of a round in which two agents send such messages after `before`, which nobody knows to be
    a start message."""
    times = begin(clock) if times is None else times
    sent = jax.tree.map(jnp.zeros_like, message) if before is None else before
    state = population.State(jnp.zeros(2), None, sent, None, None, jnp.int32(0), times)
    world = World({"a": jnp.zeros(40), "b": jnp.zeros(24)}, {}, None, jnp.int32(0), jnp.int32(9))
    links = listeners(graph)
    return population.timed_lap(clock, state, None, message, None, links, world, False, jnp.array(due), None)


def packed_of(rows):
    return jnp.asarray(np.packbits(np.array(rows, bool), axis=1, bitorder="little"))


def entropy_of(count, size):
    share = np.array([count, size - count]) / size
    return -size * np.sum(share * np.log2(share, where=share > 0, out=np.zeros(2)))


def test_layers_that_stay_with_an_agent_take_no_time(x64):
    """By hand: 40 entries of which 10 are kept; the personal layer's 24 are in no message."""
    masks = {"a": packed_of([[1] * 10 + [0] * 30] * 2), "b": packed_of([[1] * 12 + [0] * 12] * 2)}
    whole = mce_pl(NETWORK)._replace(init=lambda key, world, hyper: (None, Message(masks)))
    world = World({}, {}, jax.random.key(0), jnp.int32(0), jnp.int32(9))
    seconds = []
    for personal in (["b"], ["a", "b"]):
        _, message = with_personal_layers(whole, personal).init(jax.random.key(0), world, None)
        seconds.append(timed(clock_at(jnp.inf), message)[1].seconds)
    bits = entropy_of(10, 40)
    np.testing.assert_allclose(seconds, [[1 + bits / 8e6, 0.5 + bits / 4e6], [1, 0.5]], rtol=1e-12)


def test_gossip_takes_a_bit_an_entry_and_a_float_a_layer(x64):
    """Whatever its bits are, and whatever they were before: 40 + 24 and twice 32, as the ledger counts."""
    drawn = np.random.default_rng(0).normal(size=(3, 2, 64))
    first, second = (
        jax.vmap(signs)({"a": own[:, :40], "b": own[:, 40:]}, {"a": zero[:, :40], "b": zero[:, 40:]}, steps)
        for own, zero, steps in ((now, np.zeros((2, 64)), {"a": np.ones(2), "b": np.ones(2)}) for now in drawn[:2])
    )
    for message, before in ((first, None), (second, first), (first, first)):
        own = timed(clock_at(jnp.inf), message, before=before)[1]
        np.testing.assert_allclose(own.seconds, [1 + 128 / 8e6, 0.5 + 128 / 4e6], rtol=1e-12)


def test_agents_whom_nobody_hears_send_for_no_time(x64):
    """Not even while their bandwidth is 0; an absent edge is no link. Who is heard waits for bandwidth."""
    message = Message({"a": packed_of([[1] * 10 + [0] * 30] * 2)})
    falling = bandwidth.Trace(jnp.array([[0.25, 5.0]] * 2), jnp.array([[0.0, 8.0]] * 2), jnp.array([4.1, 4.6]))
    clock = clock_at(jnp.inf)._replace(devices=Devices(jnp.array([1e6, 2e6]), falling))
    lonely = BOTH._replace(weights=np.array([0, 1], np.uint8))
    none = Graph(*(np.zeros(0, np.int32),) * 2, np.zeros(0, np.uint8), np.ones(2, np.float32))
    np.testing.assert_array_equal(timed(clock, message, graph=none)[1].seconds, [1, 0.5])
    own = timed(clock, message, graph=lonely)[1]
    np.testing.assert_allclose(own.seconds, [1, 0.5 + 0.15 + entropy_of(10, 40) / 8e6], rtol=1e-12)


def test_silent_rounds_take_what_computing_takes(x64):
    """Ten rounds of which every fifth exchanges: ten times computing, a whole mask, and what two entries changed."""
    clock = clock_at(jnp.inf, rates=(1e-4, 1e-4), speed=(1e6, 1e6))
    first, later = (Message({"a": packed_of([[0] * lost + [1] * 10 + [0] * (30 - lost)] * 2)}) for lost in (0, 1))
    times, sent, seconds = begin(clock), first, []
    for round in range(10):
        due, message = (round + 1) % 5 == 0, later if round > 4 else first
        times, own = timed(clock, message, before=sent, times=times, due=due)
        sent = message if due else sent
        seconds.append(float(own.seconds[0]))
    sending = {4: entropy_of(10, 40) / 100, 9: entropy_of(2, 40) / 100}
    np.testing.assert_allclose(seconds, [1 + sending.get(round, 0) for round in range(10)], rtol=1e-12)
    assert float(times.now) == pytest.approx(10 + sum(sending.values()), rel=1e-12)
    assert int(times.exchanges) == 2


def test_nobody_is_late_in_a_silent_round(x64):
    """Where computing takes longer than the deadline, it waits for that alone; to be late takes something to send."""
    clock, message = clock_at(0.75), Message({"a": packed_of([[1] * 10 + [0] * 30] * 2)})
    times, silent = timed(clock, message, due=False)
    assert (silent.late.tolist(), silent.idle.tolist(), float(times.now)) == ([False, False], [0, 0.5], 1.0)
    assert timed(clock, message)[1].late.tolist() == [True, False]
    assert timed(clock, Message({}))[1].late.tolist() == [False, False]


# Controllers ---------------------------------------------------------------------------------------------------------

ENTRIES = {"w": 10**9}  # so many that a count is nearly a share


def limits(own, low=0.05, high=0.9, jump=1.0, gain=0.5):
    own = jnp.asarray(own)
    return budgets.Limits(own, jnp.full_like(own, low), jnp.full_like(own, high), jnp.asarray(jump), jnp.asarray(gain))


def steered(controller, hyper, seconds_of, rounds, fall_of=jnp.zeros_like, deadline=jnp.inf):
    """The memories of so many exchanges in which agents of retentions r take `seconds_of(r)`, and lose `fall_of(r)`."""

    @jax.jit
    def step(carry, t):
        memory, loss = carry
        r = memory.retention
        loss = loss - fall_of(r)
        info = {"seconds": seconds_of(r), "exchanged": jnp.ones(r.shape, bool), "loss": loss}
        info |= {"deadline": jnp.full(r.shape, deadline)}
        memory, _ = controller.update(memory, hyper, t, info, info["seconds"], None)
        return (memory, loss), memory

    memory, _ = controller.init(hyper)
    return jax.lax.scan(step, (memory, jnp.full(memory.retention.shape, 100.0)), jnp.arange(rounds))[1]


class Hyper(NamedTuple):
    kept: dict


def hyper_of(own):
    return Hyper({"w": jnp.round(jnp.asarray(own) * ENTRIES["w"]).astype(jnp.int32)})


def test_a_deadline_is_met_where_retention_buys_time(x64):
    """The fixed point of r <- r (deadline / τ)^β at τ = c + k r is (deadline - c) / k; at a bound if beyond."""
    own, c, k = jnp.full(4, 0.3), jnp.array([0.5, 0.2, 0.98, 0.0]), jnp.array([2.0, 4.0, 1.0, 0.5])
    controller = budgets.deadline(limits(own), ENTRIES, band=0.0)
    memory = steered(controller, hyper_of(own), lambda r: c + k * r, 300, deadline=1.0)
    np.testing.assert_allclose(memory.retention[-1], [0.25, 0.2, 0.05, 0.9], rtol=1e-6)
    # No jump is larger than it may be, and nothing moves inside the band.
    slow = budgets.deadline(limits(own, jump=0.01), ENTRIES)
    path = np.asarray(steered(slow, hyper_of(own), lambda r: c + k * r, 300, deadline=1.0).retention)
    assert np.abs(np.diff(path, axis=0)).max() <= 0.01 + 1e-12
    assert np.abs(c + k * path[-1] - 1)[:2].max() <= 0.05 + 1e-9


def test_balanced_agents_take_equally_long_and_keep_as_much_as_before(x64):
    """At τ = k r retentions end in proportion to 1 / k, their mean where it was."""
    own, k = jnp.full(3, 0.3), jnp.array([1.0, 2.0, 4.0])
    memory = steered(budgets.balance(limits(own), ENTRIES), hyper_of(own), lambda r: k * r, 200)
    wanted = 0.9 * (1 / k) / jnp.sum(1 / k)
    np.testing.assert_allclose(memory.retention[-1], wanted, rtol=1e-6)


def test_a_bandit_finds_the_interval_of_the_largest_gain_in_a_second(x64):
    """Losses fall by r (1 - r) in an exchange of r + 0.1 s: best at r = 0.23, whose interval is the second of eight."""
    own = jnp.full(1, 0.7)
    controller = budgets.bandit(limits(own, low=0.05, high=0.95), ENTRIES, hold=2, discount=0.99, explore=0.1)

    memory = steered(controller, hyper_of(own), lambda r: r + 0.1, 600, lambda r: r * (1 - r))
    chosen = np.bincount(np.asarray(memory.rest.arm)[-300:, 0], minlength=8)
    assert len(np.unique(memory.rest.arm)) == 8  # all were tried
    assert chosen[1:3].sum() > 0.6 * chosen.sum()


def test_a_bandit_counts_exchanges_at_the_middle_of_an_interval_alone(x64):
    """By jumps of 0.03 it takes up to four exchanges from one middle to the next. Agents for which unlike retentions
    are quick end in unlike intervals."""
    own = jnp.full(2, 0.3)
    controller = budgets.bandit(limits(own, jump=0.03), ENTRIES, hold=3)
    memory = steered(controller, hyper_of(own), lambda r: jnp.stack([r[0], 1 / r[1]]), 200, jnp.sqrt)
    ran, arms = (np.asarray(found)[:-1] for found in (memory.retention, memory.rest.arm))
    there = np.abs(ran - (0.05 + 0.85 / 8 * (arms + 0.5))) < 1e-6
    counted, over = (np.asarray(own)[1:] for own in (memory.rest.since > 0, memory.rest.pulls.sum(axis=2)))
    over = np.diff(over, axis=0, prepend=over[:1]) > 0  # an interval has been tried
    assert not there.all()
    assert (counted[~over] == there[~over]).all()
    late = memory.rest.arm[-60:]
    assert np.median(late[:, 0]) < np.median(late[:, 1])


def test_a_bandit_has_tried_all_intervals_after_as_many_exchanges_as_foreseen():
    """Not one earlier or later; where it starts between two intervals, beyond a bound, and where there is one alone."""
    own = jnp.array([0.3, 0.3, 0.95, 0.05, 0.4])
    low, high = jnp.array([0.05, 0.1, 0.1, 0.1, 0.4]), jnp.array([0.9, 0.9, 0.9, 0.9, 0.4])
    for jump in (0.02, 0.05, 1.0):
        bounds = budgets.Limits(own, low, high, jnp.asarray(jump), jnp.asarray(0.5))
        memory = steered(budgets.bandit(bounds, ENTRIES), hyper_of(own), lambda r: r, 120)
        tried = np.asarray((memory.rest.pulls > 0).all(axis=2))
        assert tried[-1].all()
        assert (tried.argmax(axis=0) + 1).tolist() == budgets.exchanges_to_try(bounds).tolist()


def test_a_period_grows_with_the_time_that_an_agent_takes():
    """Who takes 2.5 deadlines sends in every third exchange; all send in the first."""
    controller, sends = budgets.period(longest=4), []
    memory, _ = controller.init({"lr": jnp.zeros(3)})
    for round in range(10):  # the fifth is none of exchange
        speaks = controller.speaks(memory, round)
        sends += [speaks.tolist()] * (round != 4)
        info = {"exchanged": jnp.full(3, round != 4), "deadline": jnp.ones(3)}
        memory, _ = controller.update(memory, None, round, info, jnp.array([0.5, 2.5, 99.0]), None)
    assert np.array(sends).T.astype(int).tolist() == [[1] * 9, [1, 0, 0] * 3, [1, 0, 0, 0] * 2 + [1]]


def test_accelerators_come_to_the_same_spectrum_bin_by_bin():
    flat = jnp.asarray(np.exp(12 * np.random.default_rng(0).normal(size=400)) * ([1, 0] * 200), jnp.float32)
    counted, summed = descent._bin_by_bin(flat, bins := jnp.arange(400) ** 2 % descent.BINS)
    wanted = descent._into_bins(flat, bins)
    np.testing.assert_array_equal(counted, wanted[0])
    np.testing.assert_allclose(summed, wanted[1], rtol=1e-6)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(-8, 0), st.integers(0, 1)), min_size=1, max_size=7), st.floats(0.05, 4))
def test_the_counts_of_prunefl_are_the_best_of_all(entries, rest):
    """Against all subsets, for squares of distinct bins, of two layers of unlike costs."""
    entries, costs = sorted(set(entries)), (1.0, 3.0)
    squares = [jnp.array([2.0**e for e, layer in entries if layer == own] + [0.0] * 8) for own in (0, 1)]
    spectra = {str(own): spectrum(squares[own][squares[own] > 0]) for own in (0, 1)}
    counts = budgets.best_counts(spectra, {"0": jnp.array(costs[0]), "1": jnp.array(costs[1])}, jnp.asarray(rest))

    def ratio(chosen):
        return sum(2.0 ** entries[i][0] for i in chosen) / (rest + sum(costs[entries[i][1]] for i in chosen))

    subsets = product((False, True), repeat=len(entries))
    best = max(ratio(np.flatnonzero(subset)) for subset in subsets if any(subset))
    mine = []
    for own in (0, 1):  # the largest squares of each layer, as many as it keeps
        places = [place for place, entry in enumerate(entries) if entry[1] == own]
        mine += places[::-1][: int(counts[str(own)])]
    assert ratio(mine) == pytest.approx(best, rel=1e-5)


# In the loop ---------------------------------------------------------------------------------------------------------

SPEED, RATES, DEADLINE = np.array([2e5, 1e5, 4e4, 2e5, 1.5e5]), np.array([2e-2, 4e-3, 2e-2, 2e-2, 8e-3]), 0.03
PASSES = {"conv/kernel": 64.0, "linear/kernel": 1.0}  # multiply-adds of a kept entry in a round


def clock_of(speed):
    """The clock of a population of these devices, whose compute falls with what they keep, at `RATES` by `DEADLINE`."""

    def work(hyper):
        return sum(PASSES[name] * kept for name, kept in by_name(hyper.kept).items()).astype(float)

    trace = bandwidth.Trace(jnp.ones((AGENTS, 1)), jnp.asarray(RATES)[:, None], jnp.zeros(AGENTS))
    return Clock(work, Devices(jnp.asarray(speed), trace), jnp.asarray(DEADLINE))


def twice(*told):
    """A link over which every message is sent two times."""
    *arriving, sent = perfect().transmit(*told)
    return *arriving, 2 * sent


def test_who_sends_nothing_needs_no_link():
    """Agents alone have no message, and links nothing to remember."""
    s = population_of()
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    ways = {"clock": clock_of(SPEED), "link": added_up(), "chunk": 1}
    alone, hyper = independent(NETWORK), OfAlone(**{name: getattr(s.hyper, name) for name in OfAlone._fields})

    def rounds():
        state = population.init(alone, world, hyper, s.graph, agents=AGENTS, **ways)
        return population.round(alone, world, hyper, state, s.shares, s.graph, batch_size=BATCH, **ways)[1]

    assert jax.eval_shape(rounds)["seconds"].shape == (AGENTS,)


class Timed(reference.Population):
    """The numpy loops, with a clock: messages are sent twice, and who is late is heard with what it sent before."""

    late, before = np.zeros(AGENTS, bool), None

    def hear(self, mixing):
        if self.before is None:
            return super().hear(mixing)
        sent, links = self.sent, 2 * (np.asarray(mixing) != 0).sum(axis=0)
        bits = np.zeros(AGENTS)
        for agent, (old, new) in enumerate(zip(self.before, sent, strict=True)):
            for layer, mask in new.items():
                share = (mask != old[layer]).mean() if self.exchanges else mask.mean()
                terms = [p * np.log2(p) for p in (share, 1 - share) if p > 0]
                bits[agent] -= mask.size * sum(terms)
        computing = self.work / SPEED
        self.seconds = computing + bits * links / 1e6 / RATES
        self.length = min(max(DEADLINE, computing.max()), self.seconds.max())
        self.late, self.exchanges = self.seconds > self.length, self.exchanges + 1
        self.sent = [self.before[i] if self.late[i] else sent[i] for i in range(AGENTS)]
        super().hear(mixing)
        self.sent = sent


def test_rounds_by_a_deadline_equal_the_numpy_loops(x64):
    """Compute that falls with retention, late messages, which a link sends again, the deadline's controller behind a
    schedule; one program."""
    s, rounds = population_of(), 5
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    entries = {name: leaf.size for name, leaf in by_name(world.weights).items()}
    clock = clock_of(SPEED)
    own = limits(RETENTION, low=0.05, high=1.0, jump=0.1)
    halved = jax.tree.map(lambda _: lambda round: 1.0, s.hyper)._replace(lr=lambda round: 0.5**round)
    controller = control.chain(control.scheduled(halved), budgets.deadline(own, entries))
    algorithm = mce_pl(NETWORK)
    ways = {"clock": clock, "controller": controller, "chunk": 1, "link": perfect()._replace(transmit=twice)}
    state = jax.jit(lambda: population.init(algorithm, world, s.hyper, s.graph, agents=AGENTS, **ways))()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state):
        now = world._replace(round=state.round)
        return population.round(algorithm, now, s.hyper, state, s.shares, s.graph, batch_size=BATCH, **ways)

    def unpacked(sent):
        stacked = jax.tree.map(np.float64, unpacked_layers(sent.masks, world.weights))
        return [{name.removesuffix("/kernel"): own[i] for name, own in stacked.items()} for i in range(AGENTS)]

    scores = [layers(agent_of(jax.device_get(state.agents.scores), i)) for i in range(AGENTS)]
    switches = reference.Switches()
    oracle = Timed(layers(world.weights), scores, unpacked(state.sent), ADJACENCY, gradients_of(s, world), switches)
    oracle.exchanges = 0
    hyper, retention = jax.device_get(s.hyper), np.array(RETENTION)
    smoothed, late, now = np.zeros(AGENTS), 0, 0.0
    for number in range(rounds):
        counts = []
        for i in range(AGENTS):
            of_agent = {layer: int(k[i]) for layer, k in layers(hyper.kept).items()}
            factor = retention[i] / RETENTION[i]
            size = {layer: entries[f"{layer}/kernel"] for layer in of_agent}
            counts.append({layer: int(np.clip(np.round(k * factor), 1, size[layer])) for layer, k in of_agent.items()})
        oracle.before, oracle.work = (
            oracle.sent,
            sum(PASSES[f"{layer}/kernel"] * np.array([own[layer] for own in counts], float) for layer in counts[0]),
        )
        traced = [
            {name: float(getattr(hyper, name)[i]) for name in hyper._fields[1:]} | {"counts": counts[i]}
            for i in range(AGENTS)
        ]
        for own in traced:
            own["lr"] *= 0.5**number
        batches = drawn_batches(world._replace(round=jnp.int32(number)), s.shares, 1, BATCH)
        oracle.round(batches, traced, ADJACENCY)
        state, info = step(state)
        np.testing.assert_allclose(info["seconds"], oracle.seconds, rtol=1e-10)
        assert info["late"].tolist() == oracle.late.tolist()
        late, now = late + oracle.late.sum(), now + oracle.length
        for i in range(AGENTS):
            for layer, z in layers(agent_of(jax.device_get(state.agents.scores), i)).items():
                np.testing.assert_allclose(z, oracle.scores[i][layer], rtol=0, atol=1e-10 * np.abs(z).max())
        smoothed = oracle.seconds if number == 0 else 0.5 * oracle.seconds + 0.5 * smoothed
        ratio = DEADLINE / smoothed
        wanted = np.where(np.abs(np.log(ratio)) > np.log1p(0.05), retention * np.sqrt(ratio), retention)
        retention = np.clip(np.clip(wanted, retention - 0.1, retention + 0.1), 0.05, 1.0)
    assert 0 < late < rounds * AGENTS  # both happened
    assert float(state.clock.now) == pytest.approx(now)
    assert step._cache_size() == 1
