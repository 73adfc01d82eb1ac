"""The rivals: each against its numpy oracle and what is known of it, and one battery over all algorithms."""

import csv
import functools
import json
import math
from typing import Any, NamedTuple
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import reference_algorithms as oracles
from asked import derivative_of, drawn_batches, unpacked_layers
from fakes import StopAfter
from flax import linen as nn
from tiny import assert_same_numbers, heard_of, rows_of, slow_but, use_tiny_network

from dslth_jax import links, masks, population
from dslth_jax.algorithm import Algorithm, mean_with_own, with_personal_layers
from dslth_jax.algorithms import descent, dis_pfl, dsgd, fedmrn, fedpm, independent, local, mask_mean, score_gossip
from dslth_jax.algorithms.masked import MaskRule
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.codec import Receiver, Sender
from dslth_jax.evaluation import evaluate
from dslth_jax.graphs import Topology, graph_of, metropolis
from dslth_jax.keys import key_of
from dslth_jax.networks.network import Linear, draw_like, network_of
from dslth_jax.population import Shares
from dslth_jax.retention import erk_densities, erk_kept, kept_by_layer
from dslth_jax.study.commands import sweep
from dslth_jax.study.config.algorithms import ALGORITHMS, foreign_to
from dslth_jax.study.config.numbers import population_hyper
from dslth_jax.study.config.resolve import algorithm_of, resolve
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.sweeping.grid import Sweep, axes_of, groups_of, points_of
from dslth_jax.study.training import checkpoint, memory
from dslth_jax.study.training.prepare import members_of
from experiments import cifar, report

AGENTS, BATCH, ROUNDS = 5, 6, 10
SIZES = [9, 6, 3, 1, 12]  # some draw, one uses all, some have fewer than a batch
RETENTION = [0.3, 0.5, 0.2, 1.0, 0.7]
# Agent 3 has no neighbours.
ADJACENCY = np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool)
SYMMETRIC = ADJACENCY & ADJACENCY.T
# What is compared is compiled alike, and what compiles fast need not run fast.
HASTY = {"xla_backend_optimization_level": 0}
AGENT_KEY = population.agent_key


class TwoLayers(nn.Module):
    """As little to compile as a message of several layers takes."""

    @nn.compact
    def __call__(self, values):
        values = jnp.tanh(Linear(5, name="first")(values.reshape(values.shape[0], -1)))
        return Linear(4, name="second")(values)


NETWORK = network_of(TwoLayers(), (3, 3, 1))
ENTRIES, BIASES = 9 * 5 + 5 * 4, 5 + 4


def variables_of(weights, frozen):
    return {"params": weights, "frozen": frozen}


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.array(leaves, jnp.int32), *trees)


def kept_of(name: str, retention=RETENTION):
    """Counts of every agent, for those algorithms that have them."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0))
    if name.startswith("dis-pfl"):
        return stacked([erk_kept(variables_of(*shapes), share) for share in retention])
    return stacked([kept_by_layer(shapes[0], NETWORK.roles, share) for share in retention])


class Rival(NamedTuple):
    """How an algorithm is made for tests: its settings are large enough to show within a few rounds."""

    make: Any  # of an optimizer
    hyper: Any
    settings: dict[str, float]


ALL = {
    "mce-pl": Rival(
        functools.partial(mce_pl, NETWORK),
        Hyper,
        {"lr": 2.0, "fine_tune_lr": 3.0, "weight_decay": 5e-3, "group_lasso": 0.0, "amplitude": 1.0, "force": 1.0},
    ),
    "score-gossip": Rival(
        functools.partial(score_gossip.score_gossip, NETWORK),
        score_gossip.Hyper,
        {"lr": 2.0, "weight_decay": 5e-3, "group_lasso": 1e-3, "mixing_step": 0.5, "follow": 0.3},
    ),
    "independent": Rival(
        functools.partial(independent.independent, NETWORK),
        independent.Hyper,
        {"lr": 2.0, "weight_decay": 5e-3, "group_lasso": 1e-3},
    ),
    "mask-mean": Rival(
        functools.partial(mask_mean.mask_mean, NETWORK), mask_mean.Hyper, {"lr": 2.0, "weight_decay": 5e-3}
    ),
    "dsgd": Rival(functools.partial(dsgd.dsgd, NETWORK), dsgd.Hyper, {"lr": 0.3, "weight_decay": 5e-3}),
    "dis-pfl, random": Rival(
        functools.partial(dis_pfl.dis_pfl, NETWORK, regrow="random"),
        dis_pfl.Hyper,
        {"lr": 0.3, "weight_decay": 5e-3, "prune_rate": 0.5},
    ),
    "dis-pfl, gradient": Rival(
        functools.partial(dis_pfl.dis_pfl, NETWORK, regrow="gradient"),
        dis_pfl.Hyper,
        {"lr": 0.3, "weight_decay": 5e-3, "prune_rate": 0.5},
    ),
    "fedpm": Rival(functools.partial(fedpm.fedpm, NETWORK), fedpm.Hyper, {"lr": 0.2, "clamp": 0.05}),
    "fedmrn": Rival(
        functools.partial(fedmrn.fedmrn, NETWORK),
        fedmrn.Hyper,
        {"lr": 0.3, "weight_decay": 5e-3, "mixing_step": 0.5, "noise": 0.8},
    ),
    "local": Rival(functools.partial(local.local, NETWORK), local.Hyper, {"lr": 0.3, "weight_decay": 5e-3}),
}
OF_ALL = {"label_smoothing": 0.2}  # settings of every algorithm
WITH_COUNTS = [name for name, rival in ALL.items() if "kept" in rival.hyper._fields]


def hyper_of(name: str, **changed):
    """Personal step sizes, so that a mix-up of agents' settings shows."""
    settings = OF_ALL | ALL[name].settings | changed
    factors = jnp.linspace(0.8, 1.2, AGENTS, dtype=jnp.result_type(float))
    traced = {key: value * factors for key, value in settings.items()}
    counts = {"kept": kept_of(name)} if name in WITH_COUNTS else {}
    return ALL[name].hyper(**counts, **traced)


def shares_of(seed=0) -> Shares:
    rng = np.random.default_rng(seed)
    indices = np.zeros((AGENTS, max(SIZES)), np.int32)
    for agent, size in enumerate(SIZES):
        indices[agent, :size] = rng.choice(40, size, replace=False)
    images = jnp.asarray(rng.integers(0, 256, (40, 3, 3, 1)), jnp.uint8)
    labels = jnp.asarray(rng.integers(0, 4, 40), jnp.int32)
    return Shares(images, labels, jnp.asarray(indices), jnp.asarray(SIZES, jnp.int32))


class Programs(NamedTuple):
    """The start and a round, of settings, samples, graph and agents' names: all traced."""

    start: Any
    step: Any
    algorithm: Algorithm
    plain_step: Any  # not compiled
    traces: list[int]  # as many as times a round was traced


@functools.cache  # compiled once for all tests
def built(name: str, *, chunk=1, optimizer=None, switches=(), personal=(), link=None, **settings) -> Programs:
    algorithm, traces = with_personal_layers(ALL[name].make(optimizer=optimizer, **dict(switches)), personal), []

    def world(round, seed):
        return population.world_of(NETWORK, key_of(seed), round, ROUNDS)

    def called(names):
        """Agents draw by these names instead of by their places."""
        return mock.patch.object(population, "agent_key", lambda w, number, phase: AGENT_KEY(w, names[number], phase))

    @functools.partial(jax.jit, compiler_options=HASTY)
    def start(hyper, graph, names, seed=0):
        with called(names):
            return population.init(algorithm, world(0, seed), hyper, graph, agents=AGENTS, chunk=chunk, link=link)

    def step(state, hyper, shares, graph, names, seed=0, every=1):
        traces.append(1)
        with called(names):
            fixed = {"batch_size": BATCH, "chunk": chunk, "link": link, **settings}
            now = world(state.round, seed)
            return population.round(algorithm, now, hyper, state, shares, graph, exchange_every=every, **fixed)

    return Programs(start, jax.jit(step, compiler_options=HASTY), algorithm, step, traces)


NAMES = jnp.arange(AGENTS, dtype=jnp.int32)


@pytest.fixture
def programs():
    """By the name of an algorithm."""
    return built


# One each that sends masks, and floats; the battery of the others is slow.
ALWAYS = ("mask-mean", "dsgd")


def battery(*always):
    """All algorithms, of which all but these are slow."""
    return slow_but([name for name in ALL if name != "dis-pfl, gradient"], *always)


@pytest.fixture(params=battery(*ALWAYS))
def name(request) -> str:
    return request.param


def played(own: Programs, hyper, shares, graph, names=NAMES, rounds=2, state=None, every=1):
    """State and diagnostics after some rounds, as numpy."""
    state, info = own.start(hyper, graph, names) if state is None else state, None
    for _ in range(rounds):
        state, info = own.step(state, hyper, shares, graph, names, every=every)
    return jax.device_get((state, info))


def agent_of(tree, agent):
    return jax.tree.map(lambda leaf: leaf[agent], tree)


# The battery.


def test_the_form_stays_from_round_to_round(name, programs):
    own, hyper, graph = programs(name), hyper_of(name), graph_of(ADJACENCY)
    first = jax.eval_shape(own.start, hyper, graph, NAMES)
    second, info = jax.eval_shape(own.step, first, hyper, shares_of(), graph, NAMES)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    describe = lambda leaf: (leaf.shape, leaf.dtype)  # noqa: E731
    assert jax.tree.map(describe, first) == jax.tree.map(describe, second)
    assert info["loss"].shape == info["listeners"].shape == (AGENTS,)
    assert {leaf.shape[0] for leaf in jax.tree.leaves((second.agents, second.heard, second.sent, info))} == {AGENTS}


def test_the_environment_changes_no_draw(name, programs):
    """What is compiled, as text."""
    own, hyper, graph = programs(name), hyper_of(name), graph_of(ADJACENCY)
    state = jax.eval_shape(own.start, hyper, graph, NAMES)

    def lowered():
        return [
            own.start.lower(hyper, graph, NAMES).as_text(),
            own.step.lower(state, hyper, shares_of(), graph, NAMES).as_text(),
        ]

    plain = lowered()
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        assert lowered() == plain


def test_nan_is_no_way_to_say_none(name, programs):
    """Under JAX_DEBUG_NANS a program that returns one ends the run."""
    own, shares = programs(name), shares_of()
    state, info = played(own, hyper_of(name), shares, graph_of(ADJACENCY))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, info)))
    world = population.world_of(NETWORK, key_of(0), 0, ROUNDS)
    result = jax.eval_shape(lambda state: evaluate(NETWORK, own.algorithm, world, state, shares), state)
    assert (result.density is None) == (result.masks is None)


def test_later_rounds_and_other_settings_compile_nothing(name, programs):
    own, hyper, graph = programs(name), hyper_of(name), graph_of(ADJACENCY)
    state, _ = played(own, hyper, shares_of(), graph)
    other = hyper._replace(lr=hyper.lr / 2)
    if name in WITH_COUNTS:
        other = other._replace(kept=jax.tree.map(lambda kept: jnp.maximum(kept - 1, 1), hyper.kept))
    absent = graph._replace(weights=graph.weights * (np.arange(graph.weights.size) % 2).astype(np.uint8))
    traced = len(own.traces)
    state, info = played(own, other, shares_of(1), absent, state=state)
    assert len(own.traces) == traced
    assert np.isfinite(info["loss"]).all()
    assert state.round == 4


def test_permuting_agents_permutes_results(name, programs):
    own, hyper, shares = programs(name), hyper_of(name), shares_of()
    order = np.array([3, 0, 4, 2, 1])
    inverse = np.argsort(order)
    there = shares._replace(indices=shares.indices[order], sizes=shares.sizes[order])
    here = played(own, hyper, shares, graph_of(ADJACENCY))
    graph = graph_of(ADJACENCY[np.ix_(order, order)])
    permuted = played(own, agent_of(hyper, order), there, graph, names=NAMES[order])
    back = agent_of((permuted[0].agents, permuted[0].sent, permuted[1]), inverse)
    # Floats of neighbours are summed in another order.
    chex.assert_trees_all_close(back, (here[0].agents, here[0].sent, here[1]), rtol=1e-4, atol=1e-5)
    assert len(set(here[1]["loss"].tolist())) == AGENTS


@pytest.mark.slow
def test_all_at_once_give_the_same_rounds_to_rounding(name, programs):
    hyper, graph, start = hyper_of(name), graph_of(ADJACENCY), programs(name).start
    both = programs(name), programs(name, chunk=AGENTS)
    alone, together = (played(own._replace(start=start), hyper, shares_of(), graph) for own in both)
    chex.assert_trees_all_close(alone, together, rtol=1e-4, atol=1e-5)


def test_a_state_that_was_saved_goes_on_as_if_it_had_not_been(name, programs, tmp_path):
    own, hyper, graph = programs(name), hyper_of(name), graph_of(ADJACENCY)
    half, _ = played(own, hyper, shares_of(), graph)
    checkpoint.save(tmp_path, 2, half, {})
    like = jax.eval_shape(own.start, hyper, graph, NAMES)
    restored = checkpoint.restore(checkpoint.latest(tmp_path), like)
    chex.assert_trees_all_equal(
        played(own, hyper, shares_of(), graph, state=restored), played(own, hyper, shares_of(), graph, rounds=4)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", battery(), indirect=True)  # each takes a program of its own
def test_a_member_of_a_sweep_is_its_run_alone(name, programs, as_users_compile):
    """Bit for bit: seeds and settings of several, as one more axis."""
    own, graph, shares = programs(name), graph_of(ADJACENCY), shares_of()
    hypers = [hyper_of(name), hyper_of(name, lr=ALL[name].settings["lr"] / 3)]
    seeds, both = jnp.array([0, 7]), jax.tree.map(lambda *leaves: jnp.stack(leaves), *hypers)

    @functools.partial(jax.jit, compiler_options=HASTY)
    def together(states, hypers, seeds):
        one = lambda state, hyper, seed: own.plain_step(state, hyper, shares, graph, NAMES, seed, jnp.int32(1))  # noqa: E731
        return population.update_agents(one, states, hypers, seeds, chunk=1)

    starts = [own.start(hyper, graph, NAMES, seed) for hyper, seed in zip(hypers, (0, 7), strict=True)]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    for _ in range(2):
        states, infos = together(states, both, seeds)
    for number, (hyper, seed) in enumerate(zip(hypers, (0, 7), strict=True)):
        state = starts[number]
        for _ in range(2):
            state, info = own.step(state, hyper, shares, graph, NAMES, seed)
        chex.assert_trees_all_equal(agent_of((states, infos), number), jax.device_get((state, info)))


def test_nothing_that_others_do_reaches_who_hears_nobody(name, programs):
    """Not a bit of agent 3; of the others something moves."""
    own, hyper, shares, graph = programs(name), hyper_of(name), shares_of(), graph_of(ADJACENCY)
    mine = NAMES == 3
    elsewhere = shares._replace(indices=jnp.where(mine[:, None], shares.indices, shares_of(5).indices))
    changed = hyper._replace(lr=jnp.where(mine, hyper.lr, 3 * hyper.lr))
    one, other = played(own, hyper, shares, graph), played(own, changed, elsewhere, graph)
    chex.assert_trees_all_equal(agent_of((one[0].agents, one[1]), 3), agent_of((other[0].agents, other[1]), 3))
    assert not np.array_equal(one[1]["loss"][:3], other[1]["loss"][:3])


@pytest.mark.parametrize("name", slow_but(WITH_COUNTS, "mce-pl", "mask-mean"))
@pytest.mark.parametrize("all_of_them", [False, True])
def test_one_entry_of_a_layer_and_all_of_them(name, all_of_them, programs):
    own, shares, graph = programs(name), shares_of(), graph_of(ADJACENCY)
    full = kept_of(name, [1.0] * AGENTS)
    kept = full if all_of_them else jax.tree.map(jnp.ones_like, full)
    hyper = hyper_of(name)._replace(kept=kept)
    state, info = played(own, hyper, shares, graph, rounds=3)
    assert np.isfinite(info["loss"]).all()
    world = population.world_of(NETWORK, jax.random.key(0), 2, ROUNDS)
    model = lambda *held: own.algorithm.model(world, *held)[1]  # noqa: E731
    everybody = jax.device_get(jax.jit(jax.vmap(model))(hyper, state.agents, state.heard))
    for agent in range(AGENTS):
        in_use = agent_of(everybody, agent)
        counts = jax.tree.map(lambda leaf: int((np.asarray(leaf) != 0).sum()), in_use)
        wanted = jax.tree.map(int, agent_of(kept, agent))
        if name != "mask-mean" or all_of_them or agent == 3:
            assert counts == wanted
        else:  # majorities of few entries that differ: none may be left
            assert all(count <= 2 for count in jax.tree.leaves(counts))


def test_in_a_silent_round_nothing_is_heard_and_what_was_sent_stays(name, programs):
    own, hyper, shares, graph = programs(name), hyper_of(name), shares_of(), graph_of(ADJACENCY)
    start = jax.device_get(own.start(hyper, graph, NAMES))
    quiet, info = played(own, hyper, shares, graph, rounds=1, every=2)
    chex.assert_trees_all_equal((quiet.sent, quiet.heard), (start.sent, start.heard))
    assert not info["listeners"].any()
    _, info = played(own, hyper, shares, graph, rounds=2, every=2)
    sends = bool(jax.tree.leaves(start.sent))
    np.testing.assert_array_equal(info["listeners"], ADJACENCY.sum(axis=0) * sends)


# Each against its oracle.


def flat(tree) -> dict[str, np.ndarray]:
    """Leaves by their paths."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, float) for path, leaf in paths}


@functools.partial(jax.jit, static_argnames=("phase", "number"))
def uniforms(world, like, phase, number):
    """What every agent draws like a tree in a phase of a round, by its key there or `number` keys split of it."""

    def of_agent(agent):
        key = AGENT_KEY(world, agent, phase)
        keys = key[None] if number is None else jax.random.split(key, number)
        return jax.vmap(lambda key: draw_like(key, like, jax.random.uniform))(keys)

    return jax.vmap(of_agent)(NAMES)


derivative = derivative_of(NETWORK, BATCH)


class Case:
    """The compiled rounds of an algorithm in float64, and all that an oracle asks for."""

    def __init__(self, name, *, weighted=False, optimizer=None, local_steps=2, personal=(), link=None, **switches):
        self.name, self.local_steps, self.shares, self.hyper = name, local_steps, shares_of(), hyper_of(name)
        graph = graph_of(SYMMETRIC)
        self.graph = metropolis(Topology(graph)).graph if weighted else graph
        self.links = (reference.metropolis(SYMMETRIC) if weighted else SYMMETRIC.astype(float)).tolist()
        self.own = oracles.mix(self.links, uniform=not weighted)
        fixed = {"local_steps": local_steps, "optimizer": optimizer, "personal": personal, "link": link}
        programs = built(name, **fixed, switches=tuple(switches.items()))
        self.start = lambda: programs.start(self.hyper, self.graph, NAMES)
        self.step = lambda state, **more: programs.step(state, self.hyper, self.shares, self.graph, NAMES, **more)
        self.world = population.world_of(NETWORK, jax.random.key(0), 0, ROUNDS)
        self.weights, hyper = flat(self.world.weights), jax.device_get(self.hyper)
        self.settings = [
            {key: float(getattr(hyper, key)[i]) for key in OF_ALL | ALL[name].settings}
            | ({"counts": {k: int(v) for k, v in flat(agent_of(hyper.kept, i)).items()}} if name in WITH_COUNTS else {})
            for i in range(AGENTS)
        ]

    def at(self, round):
        return self.world._replace(round=jnp.int32(round))

    def batches(self, round):
        """The samples of every agent's minibatches."""
        return drawn_batches(self.at(round), self.shares, self.local_steps, BATCH)

    def uniform(self, like, round, phase, number=None):
        drawn = jax.device_get(uniforms(self.at(round), like, phase, number))
        return [[flat(agent_of(agent_of(drawn, i), k)) for k in range(number or 1)] for i in range(AGENTS)]

    def gradient(self, like, complete, part):
        """The oracle's `gradient_fn` for parameters of the structure of `like`; `complete` makes variables of them, and
        `part` takes from a derivative by variables that by them."""

        def gradient_fn(parameters, samples, smoothing):
            tree = jax.tree.unflatten(jax.tree.structure(like), map(jnp.asarray, parameters.values()))
            loss, gradient = derivative(complete(tree), self.shares, samples, smoothing)
            return flat(part(gradient)), float(loss)

        return gradient_fn

    def of_weights(self):
        variables = variables_of(self.world.weights, self.world.frozen)
        return self.gradient(variables, lambda variables: variables, lambda gradient: gradient)

    def of_masks(self):
        complete = lambda v: variables_of(v, self.world.frozen)  # noqa: E731
        return self.gradient(self.world.weights, complete, lambda gradient: gradient["params"])

    def all_of(self, stacked):
        stacked = jax.device_get(stacked)
        return [flat(agent_of(stacked, agent)) for agent in range(AGENTS)]

    def unpacked(self, bits, like):
        """Every agent's masks, layers by their names, of a message's bits or of a pytree of bits."""
        return self.all_of(unpacked_layers(bits, like))


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for layer in one:
            np.testing.assert_allclose(one[layer], other[layer], rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("weighted", "personal", "head"),
    [
        pytest.param(False, (), (), id="uniform links", marks=pytest.mark.slow),
        pytest.param(True, (), (), id="metropolis links"),
        pytest.param(True, ("second",), (), id="a personal head", marks=pytest.mark.slow),
        pytest.param(False, ("second",), ("second",), id="the head first"),
    ],
)
def test_dsgd_is_its_formula(weighted, personal, head, x64):
    """With a head of three local steps, of which the first two train it alone."""
    own = {"personal": personal, "head_first": head, "local_steps": 3} if personal else {}
    case = Case("dsgd", weighted=weighted, **own)
    state, gradient_fn = case.start(), case.of_weights()
    xs = [flat(variables_of(case.world.weights, case.world.frozen))] * AGENTS
    for round in range(3):
        arguments = (case.settings, case.batches(round), case.own, case.links, gradient_fn, personal, head)
        xs, losses = oracles.dsgd_round(xs, *arguments)
        state, info = case.step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        assert_close(case.all_of(state.agents.variables), xs)
    assert np.abs(xs[0]["frozen/first/bias"] - flat(case.world.frozen)["first/bias"]).max() > 1e-3  # biases train too


def test_local_training_is_its_formula(x64):
    case = Case("local")
    state, gradient_fn = case.start(), case.of_weights()
    xs = [flat(variables_of(case.world.weights, case.world.frozen))] * AGENTS
    for round in range(3):
        state, info = case.step(state)
        batches = case.batches(round)
        pairs = [oracles.local_training(xs[i], case.settings[i], batches[i], gradient_fn) for i in range(AGENTS)]
        xs = [x for x, _ in pairs]
        np.testing.assert_allclose(info["loss"], [loss for _, loss in pairs], rtol=1e-11)
        assert_close(case.all_of(state.agents.variables), xs)


@pytest.mark.parametrize(
    ("regrow", "weighted", "personal"),
    [
        pytest.param("random", True, (), id="random", marks=pytest.mark.slow),
        pytest.param("gradient", False, (), id="gradient", marks=pytest.mark.slow),
        pytest.param("random", True, ("second",), id="a personal head first"),
    ],
)
def test_dis_pfl_is_its_formulas(regrow, weighted, personal, x64, monkeypatch):
    """Two of them with gradients clipped to so small a norm that it binds."""
    if regrow == "random":
        monkeypatch.setattr(dis_pfl, "GRADIENT_NORM", 0.1)
    case = Case(f"dis-pfl, {regrow}", weighted=weighted, personal=personal, head_first=personal)
    state, gradient_fn = case.start(), case.of_weights()
    like = variables_of(case.world.weights, case.world.frozen)
    ws, kept = case.all_of(state.agents.variables), case.unpacked(state.agents.masks, like)
    for agent in range(AGENTS):
        assert {layer: int(mask.sum()) for layer, mask in kept[agent].items()} == case.settings[agent]["counts"]
        assert_close([ws[agent]], [{layer: w * kept[agent][layer] for layer, w in flat(like).items()}])
    start = kept
    for round in range(4):
        uniform = case.uniform(like, round, population.RECEIVE)

        def growth_fn(agent, w, batch, uniform=uniform):
            if regrow == "random":
                return uniform[agent][0]
            smoothing = case.settings[agent]["label_smoothing"]
            return {layer: np.abs(g) for layer, g in gradient_fn(w, batch, smoothing)[0].items()}

        arguments = (case.settings, case.batches(round), case.own, case.links, gradient_fn)
        clip = dis_pfl.GRADIENT_NORM
        ws, kept, losses = oracles.dis_pfl_round(ws, kept, *arguments, round, ROUNDS, growth_fn, clip, personal)
        state, info = case.step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        for found, expected in zip(case.unpacked(state.agents.masks, like), kept, strict=True):
            chex.assert_trees_all_equal(found, expected)
        assert_close(case.all_of(state.agents.variables), ws)
        # As many entries as at the start, after every round.
        for agent in range(AGENTS):
            assert {layer: int(mask.sum()) for layer, mask in kept[agent].items()} == case.settings[agent]["counts"]
    assert (kept[0]["params/first/kernel"] != start[0]["params/first/kernel"]).any()
    assert (kept[0]["params/first/kernel"] != kept[1]["params/first/kernel"]).any()


def test_independent_masks_are_their_formula(x64):
    case = Case("independent")
    state, gradient_fn = case.start(), case.of_masks()
    zs = case.all_of(state.agents.scores)
    for round in range(3):
        zs, losses = oracles.independent_round(case.weights, zs, case.settings, case.batches(round), gradient_fn)
        state, info = case.step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        assert_close(case.all_of(state.agents.scores), zs)


@pytest.mark.parametrize("mask_sent", ["own", "majority"])
def test_the_mean_of_masks_is_its_formula(mask_sent, x64):
    case = Case("mask-mean", mask_sent=mask_sent)
    state, gradient_fn = case.start(), case.of_masks()
    zs, sent = case.all_of(state.agents.scores), case.unpacked(state.sent.masks, case.world.weights)
    for round in range(4):
        arguments = (case.settings, case.batches(round), case.own, case.links, gradient_fn, mask_sent == "majority")
        zs, sent, losses = oracles.mask_mean_round(case.weights, zs, sent, *arguments)
        state, info = case.step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        for found, expected in zip(case.unpacked(state.sent.masks, case.world.weights), sent, strict=True):
            chex.assert_trees_all_equal(found, expected)
        assert_close(case.all_of(state.agents.scores), zs)


@pytest.mark.parametrize(
    ("modulation", "weighted", "ternary"),
    [("step", False, False), ("adaptive", False, True), pytest.param("adaptive", True, False, marks=pytest.mark.slow)],
)
def test_score_gossip_is_its_formulas(modulation, weighted, ternary, x64):
    """And who replays the messages that were really sent, as a neighbour does, holds ẑ bit for bit, and S."""
    case = Case("score-gossip", weighted=weighted, modulation=modulation, mask_rule=MaskRule(ternary=ternary))
    state, gradient_fn = case.start(), case.of_masks()
    agents = [oracles.gossip_start(z, ternary) for z in case.all_of(state.agents.scores)]
    layers = list(case.weights)
    shapes = [case.weights[layer].shape for layer in layers]
    senders = [Sender(number, shapes) for number in range(AGENTS)]
    receivers = [Receiver(number, shapes) for number in range(AGENTS)]
    replayed = [dict(own["public"]) for own in agents]
    for round, speaks in enumerate((False, True, False, True, False, True)):
        arguments = (case.batches(round), case.links, gradient_fn, modulation == "adaptive", speaks)
        agents, _, losses = oracles.gossip_round(case.weights, agents, case.settings, *arguments, ternary=ternary)
        state, info = case.step(state, every=2)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        for name, field in (("z", "scores"), ("public", "public"), ("neighbours", "neighbours")):
            assert_close(case.all_of(getattr(state.agents, field)), [own[name] for own in agents])
        if not speaks:
            continue
        sent = jax.device_get(state.sent)
        for number in range(AGENTS):
            bits, scales = ([own[layer][number] for layer in layers] for own in (sent.masks, sent.scales))
            senders[number], message = senders[number].send(round, bits, scales)
            receivers[number], came = receivers[number].receive(message)
            for layer, packed, scale in zip(layers, came.layers, came.scales, strict=True):
                up = np.asarray(masks.unpack(jnp.asarray(packed), case.weights[layer].shape)) != 0
                replayed[number][layer] = replayed[number][layer] + np.where(up, scale, -scale)
    for found, expected in zip(case.all_of(state.agents.public), replayed, strict=True):
        chex.assert_trees_all_equal(found, expected)
    for i, own in enumerate(case.all_of(state.agents.neighbours)):
        heard = [j for j in range(AGENTS) if case.links[i][j]]
        for layer in layers if heard else ():
            total = sum(case.links[i][j] * replayed[j][layer] for j in heard)
            np.testing.assert_allclose(own[layer], total / sum(case.links[i]), rtol=0, atol=1e-12)


def test_score_gossip_of_who_holds_every_neighbour_is_its_formula_whatever_is_lost(x64):
    """Means are over the public scores of those who were reached, of all that they have ever told."""
    case = Case("score-gossip", weighted=True, link=links.added_up(0.5), modulation="adaptive")
    state, gradient_fn = case.start(), case.of_masks()
    agents = [oracles.gossip_start(z) for z in case.all_of(state.agents.scores)]
    lost = 0
    for round, speaks in enumerate((False, True, False, True, True, True)):
        key = population.round_key(case.at(round), population.LINKS)
        came, arrived = np.asarray(links.arrivals(key, case.graph, 0.5)), np.zeros((AGENTS, AGENTS))
        weights = np.asarray(case.graph.weights) * came
        arrived[np.asarray(case.graph.receivers), np.asarray(case.graph.senders)] = weights
        lost += speaks * int((~came).sum())
        arguments = (case.batches(round), case.links, gradient_fn, True, speaks, arrived.tolist())
        agents, _, _ = oracles.gossip_round(case.weights, agents, case.settings, *arguments)
        state, _ = case.step(state, every=1 if round >= 4 else 2)
        for name, field in (("z", "scores"), ("public", "public")):
            assert_close(case.all_of(getattr(state.agents, field)), [own[name] for own in agents])
    assert lost > 3


def test_fedpm_is_its_formulas(x64):
    case = Case("fedpm")
    state, gradient_fn = case.start(), case.of_masks()
    ss = case.all_of(state.agents.scores)
    adams = [reference.Optimizer(reference.Switches(optimizer="adam", second_momentum=0.999)) for _ in range(AGENTS)]
    for round in range(3):
        batches, pairs = case.batches(round), []
        uniforms = case.uniform(case.world.weights, round, population.SEND, case.local_steps + 1)
        for i in range(AGENTS):
            arguments = (case.settings[i], batches[i], uniforms[i], adams[i], gradient_fn)
            pairs.append(oracles.fedpm_local(case.weights, ss[i], *arguments))
        sent = [mask for _, mask, _ in pairs]
        ss = oracles.fedpm_average([s for s, *_ in pairs], sent, case.settings, case.own, case.links)
        state, info = case.step(state)
        np.testing.assert_allclose(info["loss"], [loss for *_, loss in pairs], rtol=1e-11)
        for found, expected in zip(case.unpacked(state.sent.masks, case.world.weights), sent, strict=True):
            chex.assert_trees_all_equal(found, expected)
        assert_close(case.all_of(state.agents.scores), ss)
    assert np.unique(ss[0]["first/kernel"]).size <= 4  # means over three agents' masks have four values
    assert np.unique(ss[3]["first/kernel"]).size > 4  # who hears nobody keeps its scores


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_fedmrn_is_its_formulas(weighted, x64):
    """And who replays the bits and sizes that were really sent, and draws the noise, holds x̂ bit for bit, and S."""
    case = Case("fedmrn", weighted=weighted)
    state, gradient_fn = case.start(), case.of_weights()
    like = variables_of(case.world.weights, case.world.frozen)
    agents, replayed = [oracles.mrn_start(flat(like))] * AGENTS, [flat(like)] * AGENTS
    for round, speaks in enumerate((False, True, False, True, False, True)):
        signs, uniform = flat(fedmrn.signs(case.at(round), like)), case.uniform(like, round, population.SEND)
        assert all(set(np.unique(own)) <= {-1, 1} for own in signs.values())
        arguments = (case.batches(round), case.own, case.links, gradient_fn, signs, [own[0] for own in uniform])
        agents, losses = oracles.mrn_round(agents, case.settings, *arguments, speaks)
        state, info = case.step(state, every=2)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        for name, field in (("x", "variables"), ("public", "public"), ("neighbours", "neighbours")):
            assert_close(case.all_of(getattr(state.agents, field)), [own[name] for own in agents])
        if speaks:
            bits, sizes = case.unpacked(state.sent.masks, like), case.all_of(dict(state.sent.scales))
            told = [
                {leaf: signs[leaf] * (2 * b[leaf] - 1) * s[leaf] for leaf in b}
                for b, s in zip(bits, sizes, strict=True)
            ]
            replayed = [{leaf: own[leaf] + new[leaf] for leaf in own} for own, new in zip(replayed, told, strict=True)]
    for found, expected in zip(case.all_of(state.agents.public), replayed, strict=True):
        chex.assert_trees_all_equal(found, expected)
    for i, own in enumerate(case.all_of(state.agents.neighbours)):
        for leaf in own if any(case.links[i]) else ():
            total = sum(link * replayed[j][leaf] for j, link in enumerate(case.links[i]))
            np.testing.assert_allclose(own[leaf], total / sum(case.links[i]), rtol=0, atol=1e-12)


@pytest.mark.slow
def test_fedmrn_without_mixing_is_local_training(programs):
    """To rounding, for it is another program; though neighbours are told everything."""
    arguments = (shares_of(), graph_of(ADJACENCY))
    state, info = played(programs("fedmrn"), hyper_of("fedmrn", mixing_step=0.0), *arguments, rounds=3)
    alone, of_alone = played(programs("local"), hyper_of("local"), *arguments, rounds=3)
    chex.assert_trees_all_close(state.agents.variables, alone.agents.variables, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(info["loss"], of_alone["loss"], rtol=1e-5)
    assert np.abs(state.agents.neighbours["frozen"]["first"]["bias"]).max() > 0


@pytest.mark.slow
def test_fedmrn_without_gradients_finds_the_mean(x64):
    """With doubly stochastic weights linked agents come together, copies settle, and the mean of all stays."""
    case = Case("fedmrn", weighted=True)
    case.hyper = case.hyper._replace(lr=0 * case.hyper.lr, mixing_step=0 * case.hyper.lr + 0.5)
    state, rng, linked = case.start(), np.random.default_rng(0), SYMMETRIC.any(axis=1)
    scattered = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), state.agents.variables)
    state = state._replace(agents=state.agents._replace(variables=scattered))
    for _ in range(150):
        state, _ = case.step(state)
    found = state.agents
    for before, after, public in zip(*map(jax.tree.leaves, (scattered, found.variables, found.public)), strict=True):
        np.testing.assert_allclose(after[linked].mean(axis=0), before[linked].mean(axis=0), atol=1e-12)
        np.testing.assert_array_equal(after[~linked], before[~linked])
        assert np.var(after[linked], axis=0).max() < 0.01  # 1 at the start
        assert np.abs(public - after).max() < 0.2


def test_noise_tells_what_it_covers_without_bias():
    """On average n (2m - 1) is the error, whatever the noise's sign, and where that is larger, as much as n is."""
    error = jnp.array([0.3, -0.9, 0.0, 4.0, -1.0])
    size = fedmrn.size_of(0.5, error)
    for sign in (1.0, -1.0):
        on_average = sign * size * (2 * fedmrn.chance(error, size, jnp.full(5, sign)) - 1)
        np.testing.assert_allclose(on_average, [0.3, -0.62, 0.0, 0.62, -0.62], rtol=1e-6)
    untold = fedmrn.chance(jnp.zeros(2), jnp.zeros(()), jnp.ones(2))  # nothing to tell, and no noise
    assert untold.tolist() == [0.5, 0.5]


def test_independent_masks_are_those_of_agents_without_links(programs):
    """Bit for bit MCE-PL where nobody is linked, and it sends nothing over links that there are."""
    shares, settings = shares_of(), ALL["mce-pl"].settings
    hyper = hyper_of("mce-pl", **settings)
    own = (hyper.lr, hyper.weight_decay, hyper.group_lasso, hyper.label_smoothing)
    fewer = independent.Hyper(hyper.kept, *own)
    linked = graph_of(ADJACENCY)
    apart = linked._replace(weights=np.zeros_like(linked.weights))
    own, by_mce_pl = (
        played(programs("independent"), fewer, shares, linked),
        played(programs("mce-pl"), hyper, shares, apart),
    )
    chex.assert_trees_all_equal(own[0].agents, by_mce_pl[0].agents)
    np.testing.assert_array_equal(own[1]["loss"], by_mce_pl[1]["loss"])
    assert not jax.tree.leaves(own[0].sent)
    assert not own[1]["listeners"].any()


# What is known of each.


def test_a_mean_with_ones_own_value():
    """Of own 4 and three neighbours' 8 it is 7, whether links are counted or weigh as floats; alone it is one's own."""
    own, others = jnp.array([4.0]), jnp.array([24.0])
    for weight in (jnp.int32(3), jnp.float32(3)):
        assert mean_with_own(own, {"": others}, heard_of(weight, values=others)).tolist() == [7.0]
    silence = heard_of(0.0, values=jnp.array([0.0]))
    assert mean_with_own(own, silence.values, silence).tolist() == [4.0]
    nobody_weighs_anything = heard_of(0.0, values=jnp.array([0.0]), own=0.0)
    assert mean_with_own(own, nobody_weighs_anything.values, nobody_weighs_anything).tolist() == [4.0]
    assert mean_with_own(own, {}, silence).tolist() == [4.0]  # a layer that nobody sends


def test_doubly_stochastic_mixing_preserves_the_mean(x64, programs):
    """And moves every agent towards it."""
    case = Case("dsgd", weighted=True)
    case.hyper = jax.tree.map(jnp.zeros_like, case.hyper)
    state = case.start()
    rng = np.random.default_rng(0)
    scattered = jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape), state.agents.variables)
    mixed = case.step(state._replace(agents=state.agents._replace(variables=scattered)))[0].agents.variables
    for before, after in zip(jax.tree.leaves(scattered), jax.tree.leaves(mixed), strict=True):
        np.testing.assert_allclose(after.mean(axis=0), before.mean(axis=0), atol=1e-14)
        linked = SYMMETRIC.any(axis=1)
        assert (np.var(after, axis=0) <= np.var(before, axis=0) + 1e-14).all()
        np.testing.assert_allclose(after[~linked], before[~linked], atol=1e-15)


def test_agents_of_one_data_set_stay_in_consensus(programs):
    shares = shares_of()
    alike = shares._replace(
        indices=jnp.broadcast_to(shares.indices[1], shares.indices.shape), sizes=jnp.full(AGENTS, BATCH, jnp.int32)
    )
    hyper = jax.tree.map(lambda leaf: jnp.full_like(leaf, leaf[0]), hyper_of("dsgd"))
    start = programs("dsgd").start(hyper, graph_of(ADJACENCY), NAMES)
    state, _ = played(programs("dsgd"), hyper, alike, graph_of(ADJACENCY), rounds=4)
    for before, leaf in zip(jax.tree.leaves(start.agents), jax.tree.leaves(state.agents), strict=True):
        np.testing.assert_allclose(leaf, leaf[:1].repeat(AGENTS, 0), atol=1e-6)
        assert np.abs(leaf - before).max() > 1e-3


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5, 0.9, 1.0])
def test_densities_of_layers_are_those_of_the_formula(density):
    """Proportional to sum over product where a layer is not full, and together as dense as is asked."""
    shapes = {"conv1": (5, 5, 3, 64), "conv2": (5, 5, 64, 128), "wide": (1024, 192), "last": (192, 10), "bias": (10,)}
    found = erk_densities(list(shapes.values()), density)
    expected = oracles.density_by_layer(shapes, density)
    np.testing.assert_allclose(found, [expected[layer] for layer in shapes], rtol=1e-12)
    sizes = [math.prod(shape) for shape in shapes.values()]
    assert np.dot(found, sizes) / sum(sizes) == pytest.approx(density, rel=1e-9)
    partial = [
        share * size / sum(shape) for share, size, shape in zip(found, sizes, shapes.values(), strict=True) if share < 1
    ]
    assert max(partial, default=1) == pytest.approx(min(partial, default=1))
    assert found[-1] == 1 or density < 0.1  # biases, of one axis, are full


def test_two_layers_by_hand():
    """Of 64 and 4096 entries, ε/4 and ε/32 are kept: 0.1 · 4160 = ε (16 + 128), so that ε is 2.89 and none is full."""
    np.testing.assert_allclose(erk_densities([(8, 8), (64, 64)], 0.1), [416 / 144 / 4, 416 / 144 / 32])
    # At 0.2 ε would be 5.8, so the small layer is full, and 0.2 · 4096 − 0.8 · 64 = ε 128.
    np.testing.assert_allclose(erk_densities([(8, 8), (64, 64)], 0.2), [1, (0.2 * 4096 - 0.8 * 64) / 4096])
    assert erk_kept({"small": np.zeros((8, 8)), "large": np.zeros((64, 64))}, 0.2) == {
        "large": 768,
        "small": 64,
    }
    for density in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"density must lie in \(0, 1\], got"):
            erk_densities([(8, 8)], density)
    with pytest.raises(ValueError, match="keeps nothing of a layer"):
        erk_kept({"small": np.zeros((8, 8))}, 1e-3)


def test_dis_pfl_prunes_along_half_a_cosine():
    def share(round):
        world = population.world_of(NETWORK, jax.random.key(0), round, 4)
        return float(dis_pfl.prune_share(world, dis_pfl.Hyper(None, prune_rate=jnp.float32(0.5))))

    expected = [0, 0.5, 0.25 * (1 + math.cos(math.pi / 4)), 0.25, 0.25 * (1 + math.cos(3 * math.pi / 4))]
    assert [share(round) for round in range(5)] == pytest.approx(expected, abs=1e-7)


def test_entries_that_were_dropped_may_grow_again_and_others_may():
    """Of four entries of ten half are dropped, weights of zero first; of one more to be kept one more grows."""
    weights = {"layer": jnp.array([0.0, -3, 2, 1, 0, 0, 0, 0, 0, 0])}
    mask = {"layer": jnp.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)}
    growth = {"layer": jnp.array([0.5, 9, 9, 0.3, 0.1, 0, 0.7, 0, 0, 0.2])}
    hyper = dis_pfl.Hyper({"layer": jnp.int32(4)}, prune_rate=jnp.float32(0.5))
    world = population.world_of(NETWORK, jax.random.key(0), 1, 10)
    new = dis_pfl.pruned_and_regrown(world, hyper, weights, mask, growth)["layer"]
    assert np.flatnonzero(new).tolist() == [0, 1, 2, 6]
    more = hyper._replace(kept={"layer": jnp.int32(5)})
    new = dis_pfl.pruned_and_regrown(world, more, weights, mask, growth)["layer"]
    assert np.flatnonzero(new).tolist() == [0, 1, 2, 3, 6]
    fewer = hyper._replace(kept={"layer": jnp.int32(1)})
    new = dis_pfl.pruned_and_regrown(world, fewer, weights, mask, growth)["layer"]
    assert np.flatnonzero(new).tolist() == [1]


def test_an_average_of_entries_that_nobody_has_is_nothing():
    heard = heard_of(jnp.int32(2), jnp.array([0, 2, 1], jnp.uint8), jnp.array([0.0, 6.0, 4.0]))
    found = dis_pfl.average(jnp.array([0.0, 3.0, 0.0]), jnp.array([False, True, False]), heard)
    assert found.tolist() == [0.0, 3.0, 4.0]


def test_drawn_masks_are_unbiased_and_gradients_pass_to_the_probability():
    scores = {"layer": jnp.linspace(-4, 4, 9)}
    theta = jax.nn.sigmoid(scores["layer"])
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: fedpm.drawn(key, scores)["layer"])(keys)
    assert set(np.round(np.unique(drawn), 6).tolist()) == {0, 1}
    assert (np.abs(drawn.mean(0) - theta) < 5 * np.sqrt(theta * (1 - theta) / 4000)).all()
    slope = jax.grad(lambda scores: jnp.sum(jnp.arange(9.0) * fedpm.drawn(keys[0], scores)["layer"]))(scores)["layer"]
    np.testing.assert_allclose(slope, jnp.arange(9.0) * theta * (1 - theta), rtol=1e-6)


def test_nothing_flows_into_what_others_sent():
    """The gradient of what is made of a majority is the own mask's, which is that of the scores' magnitudes."""
    counts, hyper = jnp.array([2.0, 0, 1, 1, 2, 0]), mask_mean.Hyper(jnp.int32(3))

    def total(scores, counts):
        return jnp.sum(jnp.arange(6.0) * mask_mean.majority(hyper, scores, heard_of(jnp.int32(2), counts)))

    scores = jnp.array([-3.0, 2, -1, 0.5, 0.1, -0.2])
    to_scores, to_counts = jax.grad(total, argnums=(0, 1))(scores, counts)
    np.testing.assert_array_equal(to_counts, np.zeros(6))
    np.testing.assert_array_equal(to_scores, np.sign(scores) * np.arange(6))


def test_a_weighted_tie_keeps_the_entry_whoever_keeps_it():
    """Of fourteen agents with Metropolis weights: half of them keep the first entry, the other half the second."""
    each, scores = np.float32(1 / 14), jnp.array([2.0, 1.0])  # of which the first is kept
    counts = jnp.array([sum([each] * times, np.float32(0)) for times in (6, 7)])
    heard = heard_of(jnp.float32(13 / 14), counts)._replace(own=jnp.float32(1 - 13 / 14))
    assert mask_mean.majority(mask_mean.Hyper(jnp.int32(1)), scores, heard).tolist() == [1, 1]


def test_weights_of_which_nothing_weighs_anything_stay():
    """Dis-PFL: an agent whose own weight is 0 keeps what it has, as all others do, in a silent round, or where only it
    has an entry; where a neighbour has it, that counts alone."""
    w, mask = jnp.array([1.0, 2.0, 0.0]), jnp.array([True, True, False])
    silent = heard_of(jnp.zeros(()), jnp.zeros(3), jnp.zeros(3), own=0)
    assert dis_pfl.average(w, mask, silent).tolist() == w.tolist()
    one = heard_of(jnp.ones(()), jnp.array([0.0, 0.5, 0.0]), jnp.array([0.0, 2.5, 0.0]), own=0)
    assert dis_pfl.average(w, mask, one).tolist() == [1.0, 5.0, 0.0]


def test_the_majority_of_eleven_sparse_masks_is_sparser():
    """Of density 0.3 each: at least six of eleven keep an entry with a chance of 0.078."""
    size, rng = 40_000, np.random.default_rng(0)
    hyper = mask_mean.Hyper(jnp.int32(0.3 * size))
    counts = jnp.asarray((rng.uniform(size=(10, size)) < 0.3).sum(axis=0), jnp.uint8)
    scores = jnp.asarray(rng.normal(size=size), jnp.float32)
    found = mask_mean.majority(hyper, scores, heard_of(jnp.int32(10), counts))
    chance = sum(math.comb(11, k) * 0.3**k * 0.7 ** (11 - k) for k in range(6, 12))
    assert chance == pytest.approx(0.08, abs=0.005)
    assert float(found.mean()) == pytest.approx(chance, abs=5 * math.sqrt(chance * (1 - chance) / size))


@pytest.mark.parametrize(
    "rule", [{"smallest_filter": 20}, {"revive": True}, {"across_layers": True}, {"among_living": True}], ids=str
)
def test_a_majority_takes_no_rule_of_what_one_agents_mask_keeps(rule):
    with pytest.raises(
        ValueError, match=f"^mask_rule.{next(iter(rule))} must be left out: a majority does not follow it"
    ):
        mask_mean.mask_mean(NETWORK, mask_rule=MaskRule(**rule))


def test_weights_are_scaled_by_what_the_majority_keeps():
    """And not by what was asked for; nor is a layer of which nothing is left nan."""
    method = mask_mean.mask_mean(NETWORK, mask_rule=MaskRule(scale_by_retention=True))
    world, hyper = population.world_of(NETWORK, jax.random.key(0), 0, 1), agent_of(hyper_of("mask-mean"), 0)
    agent, _ = method.init(jax.random.key(1), world, hyper)
    counts = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.uint8), world.weights)
    model = jax.jit(lambda others: method.model(world, hyper, agent, heard_of(others, counts)))
    for others in (0, 10):  # of whom none keeps anything
        variables, in_use = model(jnp.int32(others))
        for w, scaled, mask in zip(*map(jax.tree.leaves, (world.weights, variables["params"], in_use)), strict=True):
            kept = int(mask.sum())
            assert (kept > 0) == (others == 0)
            np.testing.assert_allclose(scaled, w * mask * math.sqrt(w.size / max(1, kept)), rtol=1e-6)


# What they hold and send.


def test_what_is_sent_is_counted(name, programs):
    _, info = played(programs(name), hyper_of(name), shares_of(), graph_of(ADJACENCY), rounds=1)
    sends = name not in ("local", "independent")
    np.testing.assert_array_equal(info["listeners"], ADJACENCY.sum(axis=0) * sends)
    has_masks = sends and name != "dsgd"
    assert bool(info["kept"]) == (info["flipped"] is not None) == has_masks
    kept = sum(np.asarray(leaf) for leaf in jax.tree.leaves(kept_of("dis-pfl"))).tolist()
    floats = {"dsgd": [ENTRIES + BIASES] * AGENTS, "dis-pfl, random": kept}.get(name)
    assert (None if info["floats"] is None else info["floats"].tolist()) == floats


@pytest.mark.parametrize("devices", [1, 2])
def test_the_footprint_of_floats_is_what_one_counts_by_hand(devices):
    agents = 8
    graph = graph_of(~np.eye(agents, dtype=bool))
    every, kept = 4 * (ENTRIES + BIASES), kept_of("dis-pfl")
    settings = {"agents": agents, "batch_size": BATCH, "devices": devices}
    copies = 2 * agents // devices + (agents if devices > 1 else 0)

    def parts(name, hyper):
        return memory.footprint(NETWORK, ALL[name].make(), hyper, graph, shares_of(), **settings)

    own = agents // devices
    found = parts("dsgd", dsgd.Hyper())
    assert found["variables"] == found["sums"] == own * every
    # The weight of each of four layers, one's own, and whether anybody spoke.
    layers, common = 4, 5
    assert (found["counts"], found["bits"], found["values"]) == (own * (4 * layers + common), 0, copies * every)
    found = parts("dis-pfl, random", dis_pfl.Hyper(agent_of(kept, 0)))
    bits = sum(-(-n // 8) for n in (45, 20, 5, 4))
    assert (found["masks"], found["bits"]) == (own * bits, copies * bits)
    assert found["counts"] == own * (ENTRIES + BIASES + 4 * layers + common)
    assert (found["sums"], found["values"]) == (own * every, copies * every)
    found = parts("local", local.Hyper())
    assert found["variables"] == own * every
    assert (found["counts"], found["bits"]) == (own * common, 0)
    assert not {"sums", "values"} & found.keys()


# Runs by the command.

FEW = ["--dataset", "digits", "--model", "tiny", "--agents", "4", "--topology", "ring", "--rounds", "4"]
TINY_ENTRIES, TINY_BIASES = 3 * 3 * 4 + 3 * 3 * 4 * 10, 10


@pytest.fixture
def tiny(monkeypatch):
    use_tiny_network(monkeypatch)


def run(*flags: str, stop=None) -> int:
    return cifar.main([*FEW, "--eval-every", "2", *flags], stop)


GOING_ON = [pytest.param(name, True, marks=pytest.mark.slow) for name in ("dsgd", "dis-pfl")]


def test_every_algorithm_is_a_method_with_flags_of_its_own():
    assert ALGORITHMS.keys() == set(ALL) - {"dis-pfl, random", "dis-pfl, gradient"} | {"dis-pfl"}
    for name, row in ALGORITHMS.items():
        resolved = resolve(Settings(algorithm=name))
        assert resolve(resolved) == resolved  # so that config.json runs again
        for flag in foreign_to(name):
            assert getattr(resolved, flag) == getattr(Settings(), flag)
        hyper, schedules = population_hyper(resolved, NETWORK)
        assert type(hyper) is type(schedules) is row.hyper
        assert {leaf.shape for leaf in jax.tree.leaves(hyper)} == {(resolved.agents,)}
        algorithm = algorithm_of(resolved, NETWORK)
        assert isinstance(algorithm, Algorithm)
        assert (algorithm.ranked is not None) == (name in ("mce-pl", "independent", "mask-mean", "score-gossip"))


@pytest.mark.parametrize("name", ["dsgd", "dis-pfl"])
def test_personal_layers_are_those_that_are_trained_first(name, monkeypatch):
    asked = []
    factory = lambda network, **given: asked.append(given.get("head_first")) or ALL["local"].make()  # noqa: E731
    monkeypatch.setitem(ALGORITHMS, name, ALGORITHMS[name]._replace(factory=factory))
    for layers, order in (("last", "together"), ("last", "head-first"), ("first", "head-first")):
        own = Settings(algorithm=name, personal_layers=layers, head_order=order, local_steps=2)
        algorithm_of(resolve(own), NETWORK)
    assert asked == [None, ("second",), ("first",)]


@pytest.mark.slow
def test_a_run_whose_agents_hold_every_neighbour_goes_on_bit_for_bit(tiny, tmp_path):
    """On a graph that changes and loses messages, which is refused otherwise; what is caught up is counted."""
    own = ["--algorithm", "score-gossip", "--topology", "changing-regular:2", "--link-drop", "0.5"]
    assert run(*own, "--out", str(tmp_path / "refused")) == 2
    own += ["--keep-neighbours", "--preset", "tuned"]
    assert run(*own, "--out", str(tmp_path / "whole")) == 0
    assert run(*own, "--out", str(tmp_path / "cut"), stop=StopAfter(3)) == 143
    assert run(*own, "--out", str(tmp_path / "cut"), "--resume") == 0
    assert_same_numbers(tmp_path / "whole", tmp_path / "cut")
    shared, scale = TINY_ENTRIES - 3 * 3 * 4 * 10, 32
    messages, rest = divmod(rows_of(tmp_path / "whole")[-1]["bitmap_bits"], shared + scale)
    assert rest == 0
    assert messages > 4 * 4 * 2 * 0.9


def test_a_head_needs_a_step_and_so_does_all_else():
    layers = {"base": jnp.zeros(1), "head": jnp.zeros(1)}
    for steps, turns in ((2, [True, False]), (5, [True, True, True, False, False])):
        of_leaves = descent.in_turn({"params": layers}, ("head",), steps)["params"]
        assert (of_leaves["head"].tolist(), of_leaves["base"].tolist()) == (turns, [not own for own in turns])
    with pytest.raises(ValueError, match="needs at least 2 local steps a round, got 1: take more"):
        descent.in_turn(layers, ("head",), 1)
    assert descent.in_turn(layers, (), 1) is None


def test_a_retention_is_a_density_of_all_parameters_for_dis_pfl():
    hyper, _ = population_hyper(resolve(Settings(algorithm="dis-pfl", agents=2, retention="0.2,0.6")), NETWORK)
    for agent, share in enumerate((0.2, 0.6)):
        wanted = erk_kept(variables_of(*jax.eval_shape(NETWORK.init, jax.random.key(0))), share)
        assert jax.tree.map(int, agent_of(hyper.kept, agent)) == wanted


def test_algorithms_are_programs_of_their_own_and_their_numbers_are_not(tiny):
    def groups(*grid):
        own = Sweep(dataset="digits", model="tiny", agents=4, rounds=4, grid=grid)
        members = members_of(own, points_of(axes_of(own)), own.seeds)
        return len(list(groups_of(members, range(len(members)))))

    assert groups(f"algorithm={','.join(ALGORITHMS)}") == len(ALGORITHMS)
    assert groups("algorithm=dsgd", "lr=0.01,0.1", "weight_decay=0,1e-3") == 1
    assert groups("algorithm=dis-pfl", "retention=0.2,0.5,0.1:0.9", "prune_rate=0.1,0.5") == 1
    assert groups("algorithm=dis-pfl", "regrow=random,gradient") == 2
    assert groups("algorithm=fedpm", "clamp=0.01,0.1") == 1


@pytest.mark.parametrize(("algorithm", "cut"), [("dsgd", False), *GOING_ON])
def test_a_run_counts_floats_and_goes_on_bit_for_bit(algorithm, cut, tiny, tmp_path):
    whole, own = tmp_path / "whole", ["--algorithm", algorithm]
    assert run(*own, "--out", str(whole)) == 0
    if cut:
        assert run(*own, "--out", str(tmp_path / "cut"), stop=StopAfter(3)) == 143
        assert run(*own, "--out", str(tmp_path / "cut"), "--resume") == 0
        assert_same_numbers(whole, tmp_path / "cut")
    rows = rows_of(whole)
    with (whole / "agents.csv").open() as file:
        agents = list(csv.DictReader(file))
    directed, everything = 8, TINY_ENTRIES + TINY_BIASES
    if algorithm == "dsgd":
        bits = 32 * everything
        assert {row["flip_rate"] for row in rows} == {row["density"] for row in rows} == {None}
        assert {row["retention"] for row in agents} == {row["density"] for row in agents} == {""}
    else:
        kept = round(float(agents[0]["density"]) * everything)
        bits = 32 * kept + everything
        assert kept == pytest.approx(0.3 * everything, abs=4)
        assert rows[-1]["density"] == pytest.approx(kept / everything)
        assert rows[-1]["flip_rate"] > 0
    assert (whole / "masks.npz").is_file() == (algorithm == "dis-pfl")
    assert [row["float32_bits"] for row in rows] == [round * directed * bits for round in (0, 2, 4)]
    assert {row["kept_bits"] for row in rows} == {row["bitmap_bits"] for row in rows} == {None}
    assert report.main([str(whole), "--out", str(tmp_path / "report.html")]) == 0


@pytest.mark.slow
def test_a_sweep_over_algorithms_is_their_runs_alone(tiny, tmp_path):
    """Of one that sends floats and two that send nothing, of which one has masks."""
    names = ("dsgd", "local", "independent")
    settings = {"dataset": "digits", "model": "tiny", "agents": 4, "topology": "ring", "rounds": 4, "eval_every": 2}
    grid = (f"algorithm={','.join(names)}",)
    rows = sweep(Sweep(**settings, grid=grid, run_folders=True, out=tmp_path / "all"))
    sent = 4 * 8 * (TINY_ENTRIES + TINY_BIASES) * 4 / 1e6
    found = {row["algorithm"]: row["float32_mb"] for row in rows}
    assert found == pytest.approx({"dsgd": sent, "local": 0, "independent": 0})
    for name in names:
        (own,) = (tmp_path / "all" / "runs").glob(f"*algorithm={name},*")
        assert run("--algorithm", name, "--out", str(tmp_path / name)) == 0
        assert_same_numbers(own, tmp_path / name)
        assert json.loads((own / "config.json").read_text())["settings"]["fine_tune_lr"] is None
    assert report.main([str(tmp_path / "all"), "--out", str(tmp_path / "sweep.html")]) == 0
    assert report.main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "runs.html")]) == 0
