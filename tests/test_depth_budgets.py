"""Depth that follows simulated time: fixed points in closed form, bounds and hysteresis, and rounds against numpy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from asked import unpacked_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clock import DEADLINE, PASSES, RATES, clock_of
from test_population import ADJACENCY, AGENTS, BATCH, NETWORK, drawn_by
from test_population import setting as population_of

from dslth_jax import bandwidth, population
from dslth_jax.algorithm import Message, World, by_name
from dslth_jax.algorithms.mce_pl import mce_pl
from dslth_jax.clock import Clock, Devices, Times
from dslth_jax.depth import depths_of_layers, with_layers_had
from dslth_jax.depth_budgets import depth
from dslth_jax.message_sizes import message_bits

NEEDS = {f"block{number}": number for number in range(3, 10)}  # nine blocks, the first two of all


class Hyper(NamedTuple):
    kept: dict


@functools.partial(jax.jit, static_argnames="rounds")
def walked(fewest, c, k, until, exchanged, rounds):
    """Depths of agents that take c + k · d seconds, and what they keep, round after round; numbers a round in `c`."""
    controller = depth(fewest, NEEDS)
    hyper = Hyper({"stem": jnp.full_like(fewest, 7)} | {name: jnp.full_like(fewest, 5) for name in NEEDS})

    def step(carry, t):
        memory, now = carry
        seconds = c[t] + k * memory.depth
        common = {"exchanged": exchanged[t], "deadline": until}
        info = {name: jnp.broadcast_to(own, seconds.shape) for name, own in common.items()}
        memory, following = controller.update(memory, hyper, t, info, seconds, None)
        return (memory, following), (carry[0].depth, now.kept, carry[0].wait)

    return jax.lax.scan(step, controller.init(hyper), jnp.arange(rounds))[1]


def test_an_agent_ends_at_the_most_blocks_that_make_the_deadline(x64):
    """From all blocks down to floor((1.05 D - c) / k), or its bounds, one at a time; then nothing moves."""
    fewest, k = jnp.array([2, 2, 4, 2, 2]), jnp.array([0.2, 0.1, 1.0, 0.05, 0.17])
    c = jnp.broadcast_to(jnp.array([0.0, 0.5, 0.5, 0.1, 0.3]), (30, 5))
    depths, kept, _ = walked(fewest, c, k, 1.0, jnp.ones(30, bool), rounds=30)
    expected = np.clip(np.floor((1.05 - np.asarray(c[0])) / k), fewest, 9)
    np.testing.assert_array_equal(depths[-1], expected)
    np.testing.assert_array_equal(depths, np.maximum(9 - np.arange(30)[:, None], expected))
    for name, need in NEEDS.items():
        np.testing.assert_array_equal(kept[name], 5 * (depths >= need))
    np.testing.assert_array_equal(kept["stem"], 7)


def test_blocks_come_back_when_there_is_time_again(x64):
    """At τ = k · d up to floor(D / k), three exchanges a block; without deadline, or in silent rounds, none."""
    fewest, rounds = jnp.array([2]), 60
    k = jnp.array([0.15])
    c = jnp.where(jnp.arange(rounds)[:, None] < 12, 0.7, 0.0)  # a load that ends
    depths = np.asarray(walked(fewest, c, k, 1.0, jnp.ones(rounds, bool), rounds=rounds)[0][:, 0])
    assert (depths[11], depths[-1]) == (2, 6)  # floor(0.35 / 0.15), floor(1 / 0.15)
    rising = [int(np.argmax(depths[12:] == d)) for d in range(3, 7)]
    assert np.diff(rising).tolist() == [3, 3, 3]
    still = walked(fewest, c, k, jnp.inf, jnp.ones(rounds, bool), rounds=rounds)[0]
    silent = walked(fewest, c, k, 1.0, jnp.zeros(rounds, bool), rounds=rounds)[0]
    assert np.unique(still).tolist() == np.unique(silent).tolist() == [9]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0, 5), min_size=40, max_size=40),
    st.floats(0, 2),
    st.integers(2, 9),
    st.lists(st.booleans(), min_size=40, max_size=40),
)
def test_whatever_rounds_take_depth_moves_by_one_at_most_and_within_bounds(c, k, fewest, exchanged):
    """Not at all behind a silent round; and an agent that takes ever longer, whatever it has, stays at its fewest."""
    depths, _, wait = walked(
        jnp.array([fewest]), jnp.array(c)[:, None], jnp.array([k]), 1.0, jnp.array(exchanged), rounds=40
    )
    steps = np.diff(np.asarray(depths)[:, 0])
    assert np.abs(steps).max() <= 1
    assert fewest <= np.min(depths) <= np.max(depths) <= 9
    assert not steps[~np.array(exchanged)[:-1]].any()
    assert np.all(np.diff(np.asarray(wait)[:, 0]) >= 0)


def test_an_agent_that_loses_what_it_gained_waits_twice_as_long(x64):
    """The sixth block takes far longer than those before: tried after 3 exchanges, then after 6, 12, 24."""
    controller = depth(jnp.array([2]), NEEDS)
    hyper, depths = Hyper({"stem": jnp.ones(1)}), []
    memory, _ = controller.init(hyper)
    for t in range(70):
        depths.append(int(memory.depth[0]))
        seconds = jnp.array([0.1 * depths[-1] + 2.0 * (depths[-1] > 5)])
        info = {"exchanged": jnp.ones(1, bool), "deadline": jnp.ones(1)}
        memory, _ = controller.update(memory, hyper, t, info, seconds, None)
    tries = np.flatnonzero(np.array(depths) == 6)[1:]  # the first is on the way down
    assert np.diff(tries).tolist() == [7, 13, 25]


def test_a_message_that_holds_a_layer_anew_stands_alone():
    """As the ledger encodes it: who sent the layer before says what has changed, who did not says all of all layers."""
    rng = np.random.default_rng(0)
    old, new = (rng.random((2, 40)) < 0.3 for _ in range(2))
    packed = [jnp.asarray(np.packbits(bits, axis=1, bitorder="little")) for bits in (old, new)]
    both = jnp.array([True, True])
    before = Message({"a": packed[0], "b": packed[0]}, has={"a": both, "b": jnp.array([True, False])})
    message = Message({"a": packed[1], "b": packed[1]}, has={"a": both, "b": both})

    def entropy(share):
        return -40 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))

    bits = message_bits(message, before, {"a": 40, "b": 40}, jnp.array(True))
    expected = [2 * entropy((old != new)[0].mean()), 2 * entropy(new[1].mean())]
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


def test_key_frames_take_their_whole_length():
    """A mask of which nothing has changed takes no time, but in every second exchange that of its entropy."""
    sent = Message({"w": jnp.full((2, 5), 0b11, jnp.uint8)})
    trace = bandwidth.Trace(jnp.ones((2, 1)), jnp.full((2, 1), 8.0), jnp.zeros(2))
    clock = Clock(lambda hyper: jnp.zeros(2), Devices(jnp.ones(2), trace), jnp.asarray(jnp.inf), key_every=2)
    links, whole = jnp.ones(2, int), 40 * (0.5 + 0.75 * np.log2(4 / 3)) / 8e6
    for exchanges in range(4):
        times = Times(jnp.zeros(()), jnp.asarray(jnp.inf), jnp.int32(exchanges))
        state = population.State(jnp.zeros(2), None, sent, None, None, jnp.int32(exchanges), times)
        world = World({"w": jnp.zeros(40)}, {}, None, jnp.int32(exchanges), jnp.int32(9))
        _, own = population.timed_lap(clock, state, None, sent, None, links, world, True, jnp.array(True), None)
        np.testing.assert_allclose(own.seconds, [whole if exchanges % 2 == 0 else 0] * 2, rtol=1e-6)


SPEED = np.array([2e4, 1e5, 4e4, 2e5, 1.5e5])  # multiply-adds a second; one is slow


def test_rounds_with_the_controller_in_the_loop_equal_numpy(x64):
    """Its convolution is what an agent may lack: depths, times and what is late by numpy, from the masks that were
    sent; who lacks it keeps, sends and computes nothing of it. One program."""
    s, rounds = population_of(), 6
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    entries = {name: leaf.size for name, leaf in by_name(world.weights).items()}
    clock = clock_of(SPEED)
    controller = depth(jnp.array([1, 1, 2, 1, 1]), {"conv/kernel": 2})
    algorithm, ways = with_layers_had(mce_pl(NETWORK)), {"clock": clock, "controller": controller, "chunk": 1}
    state = jax.jit(lambda: population.init(algorithm, world, s.hyper, s.graph, agents=AGENTS, **ways))()

    @jax.jit
    def step(state):
        now = world._replace(round=state.round)
        return population.round(algorithm, now, s.hyper, state, s.shares, s.graph, batch_size=BATCH, **ways)

    def unpacked(sent):
        return {name: np.float64(own) for name, own in by_name(unpacked_layers(sent.masks, world.weights)).items()}

    links, kept = (np.asarray(ADJACENCY) != 0).sum(axis=0), {n: np.asarray(k) for n, k in by_name(s.hyper.kept).items()}
    deep, smoothed, since = np.full(AGENTS, 2), np.zeros(AGENTS), np.zeros(AGENTS, int)
    seen, had = [], np.ones(AGENTS, bool)
    for number in range(rounds):
        before, (state, info) = state.sent, step(state)
        has = {"conv/kernel": deep >= 2, "linear/kernel": np.ones(AGENTS, bool)}
        stands_alone = np.full(AGENTS, number == 0) | (has["conv/kernel"] & ~had)
        had, bits, done = has["conv/kernel"], np.zeros(AGENTS), np.zeros(AGENTS)
        for name, size in entries.items():
            old, new = (masks[name].reshape(AGENTS, -1) for masks in (unpacked(before), unpacked(state.sent)))
            np.testing.assert_array_equal(new.sum(axis=1), np.where(has[name], kept[name], 0))
            share = np.where(stands_alone, new.mean(axis=1), (old != new).mean(axis=1))
            with np.errstate(divide="ignore", invalid="ignore"):
                entropy = -np.nan_to_num(share * np.log2(share)) - np.nan_to_num((1 - share) * np.log2(1 - share))
            bits += np.where(has[name], size * entropy, 0)
            done += np.where(has[name], PASSES[name] * kept[name], 0)
        seconds = done / SPEED + bits * links / 1e6 / RATES
        np.testing.assert_allclose(info["seconds"], seconds, rtol=1e-9)
        assert info["late"].tolist() == (seconds > max(DEADLINE, (done / SPEED).max())).tolist()
        smoothed, since = np.where(smoothed > 0, 0.5 * (seconds + smoothed), seconds), since + 1
        fewer = (smoothed > 1.05 * DEADLINE) & (deep > [1, 1, 2, 1, 1])
        more = (smoothed * (deep + 1) <= DEADLINE * deep) & (since >= 3) & (deep < 2)
        deep = deep + more - fewer
        smoothed, since = np.where(fewer | more, 0, smoothed), np.where(fewer | more, 0, since)
        assert state.control.memory.depth.tolist() == deep.tolist()
        seen += deep.tolist()
    assert {1, 2} == {*seen}
    assert step._cache_size() == 1


def test_layers_need_as_many_blocks_as_come_before_them():
    stages = [["s1/b1", "s1/b2"], ["s2/b1", "s2/b2", "s2/b3"]]
    names = ["stem/kernel", "s1/b2/kernel", "s2/b2/kernel", "s2/b3/kernel", "s2/b1/kernel"]
    assert depths_of_layers(stages, names) == {"s1/b2/kernel": 3, "s2/b2/kernel": 4, "s2/b3/kernel": 5}
    assert depths_of_layers([["only"]], names) == {}
