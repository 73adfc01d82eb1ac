"""The compiled population round: against the numpy oracle, and the invariants that any driver must keep."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from asked import derivative_of, drawn_batches, unpacked_layers
from conftest import optimized
from flax import linen as nn
from tiny import heard_of

from dslth_jax import control, links, masks, population
from dslth_jax.algorithm import Algorithm, Batch, Batches, Message, by_name, planes_of, with_personal_layers
from dslth_jax.algorithms.masked import MaskRule, personal_masks, personal_model
from dslth_jax.algorithms.mce_pl import Hyper, batch_loss, fused_scores, mce_pl
from dslth_jax.channels import channels_of
from dslth_jax.codec.entropy import PAST
from dslth_jax.depth import with_layers_had
from dslth_jax.evaluation import SAMPLED, evaluate
from dslth_jax.graphs import (
    Topology,
    adjacency_of,
    changing_erdos_renyi,
    changing_regular,
    graph_of,
    metropolis,
)
from dslth_jax.networks.convolution import max_pool
from dslth_jax.networks.network import Conv, Linear, network_of
from dslth_jax.networks.operations import elu
from dslth_jax.networks.wiring import chain
from dslth_jax.over_agents import default_chunk
from dslth_jax.population import Shares
from dslth_jax.retention import kept_by_layer
from dslth_jax.skew import Skew
from dslth_jax.study.config.spellings import schedule_of

AGENTS = 5
BATCH = 6
SIZES = [9, 6, 3, 1, 12]  # some draw, one uses all, some have fewer than a batch
RETENTION = [0.3, 0.5, 0.1, 1.0, 0.7]
# Agent 3 has no neighbours.
ADJACENCY = np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool)


class TinyNet(nn.Module):
    """One of each kind of layer: what the driver does not depend on the network's size, but compile time does."""

    wiring = chain(("conv", "linear"), elu)

    @nn.compact
    def __call__(self, values):
        values = max_pool(elu(Conv(4, side=3, padding=1, name="conv")(values)))
        return Linear(4, name="linear")(values.reshape(values.shape[0], -1))


NETWORK = network_of(TinyNet(), (8, 8, 1))


class Setting(NamedTuple):
    hyper: Hyper
    shares: Shares
    graph: object


def setting(seed=0, adjacency=ADJACENCY, **hyper):
    """A population of unequal agents with random images; `hyper` overrides traced settings."""
    rng = np.random.default_rng(seed)
    samples, capacity = 40, max(SIZES)
    indices = np.zeros((AGENTS, capacity), np.int32)
    for agent, size in enumerate(SIZES):
        indices[agent, :size] = rng.choice(samples, size, replace=False)
    shares = Shares(
        jnp.asarray(rng.integers(0, 256, (samples, 8, 8, 1)), jnp.uint8),
        jnp.asarray(rng.integers(0, 4, samples), jnp.int32),
        jnp.asarray(indices),
        jnp.asarray(SIZES, jnp.int32),
    )
    weights, _ = jax.eval_shape(NETWORK.init, jax.random.key(0))
    kept = [kept_by_layer(weights, NETWORK.roles, r, 0.9) for r in RETENTION]
    dtype = jnp.result_type(float)
    # Personal step sizes, so that a mix-up of agents' settings shows.
    defaults = {
        "lr": 2.0,
        "fine_tune_lr": 3.0,
        "weight_decay": 5e-3,
        "group_lasso": 0.0,
        "amplitude": 1.0,
        "force": 1.0,
        "label_smoothing": 0.2,
    }
    defaults |= {"force": 1.0, **hyper}
    traced = {name: value * jnp.linspace(0.8, 1.2, AGENTS, dtype=dtype) for name, value in defaults.items()}
    return Setting(
        Hyper(jax.tree.map(lambda *k: jnp.array(k, jnp.int32), *kept), **traced), shares, graph_of(adjacency)
    )


drawn_by = jax.jit(
    functools.partial(population.draw_weights, NETWORK)
)  # programs that are handed weights compile faster


@functools.cache  # what starts alike is compiled once for all tests
def starter(algorithm, redraw, **ways):
    @jax.jit
    def start(hyper, graph, key, drawn):
        world = population.world_of(NETWORK, key, 0, 10, drawn)
        first = population.graph_in(world, Topology(graph, redraw))
        return population.init(algorithm, world, hyper, first, agents=AGENTS, **ways)

    return start


@functools.cache
def made(optimizer=reference.Switches.optimizer):
    """MCE-PL with one optimizer, on which alone its start depends, but for personal scores."""
    return mce_pl(NETWORK, optimizer=optimizer_of(reference.Switches(optimizer=optimizer)))


@functools.cache  # so are rounds
def stepper(algorithm, redraw, **settings):
    @functools.partial(jax.jit, donate_argnames="state")
    def step(state, hyper, shares, graph, key, drawn, every=None):
        world = population.world_of(NETWORK, key, state.round, 10, drawn)
        now = population.graph_in(world, Topology(graph, redraw))
        fixed = {"batch_size": BATCH, **settings} | ({} if every is None else {"exchange_every": every})
        return population.round(algorithm, world, hyper, state, shares, now, **fixed)

    return step


def programs(algorithm, s, *, chunk=None, key=0, redraw=None, starts=None, every=None, **settings):
    """The compiled start, that of the algorithm `starts` where it is said, and round of one setting; `settings` are
    those of `population.round`, of which `every` is traced as its `exchange_every`."""
    key, chunk = jax.random.key(key), chunk or default_chunk(AGENTS)
    drawn = drawn_by(key)
    ways = {name: settings[name] for name in ("link", "controller") if name in settings}
    start = starter(starts or algorithm, redraw, chunk=chunk, **ways)
    step, every = stepper(algorithm, redraw, chunk=chunk, **settings), every and jnp.int32(every)
    return (
        lambda: start(s.hyper, s.graph, key, drawn),
        lambda state: step(state, s.hyper, s.shares, s.graph, key, drawn, every),
    )


WORLD = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))


def layers(tree):
    """{layer: kernel} of a pytree of kernels, as numpy."""
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def agent_of(tree, agent):
    return jax.tree.map(lambda leaf: leaf[agent], tree)


derivative = derivative_of(NETWORK, BATCH)


def gradients_of(s, world):
    """The derivative that the oracle asks for: by the masked layers' kernels, on samples of the data set."""

    def gradient_fn(v, samples, smoothing):
        nested = {layer: {"kernel": jnp.asarray(kernel)} for layer, kernel in v.items()}
        loss, gradient = derivative({"params": nested, "frozen": world.frozen}, s.shares, samples, smoothing)
        return layers(gradient["params"]), float(loss)

    return gradient_fn


def optimizer_of(switches):
    """What optax calls the optimizer that the oracle writes out."""
    return {
        "sgd": None,
        "momentum": optax.trace(switches.momentum),
        "adam": optax.scale_by_adam(switches.momentum, switches.second_momentum),
    }[switches.optimizer]


def assert_rounds_equal(
    s, switches, *, rounds=4, local_steps=1, factors=None, mixing=None, arrived=lambda round: 1, **ways
):
    """The compiled rounds, and the numpy loops, with the same start, minibatches and settings.

    `factors(name, round)` is what a schedule makes of a setting, `mixing` the weight of every link, `arrived(round)` a
    matrix of 0 and 1 that says over which links messages arrive; `ways` are the link and the controller.
    """
    algorithm = mce_pl(
        NETWORK,
        **{name: getattr(switches, name) for name in ALGORITHM_SWITCHES},
        mask_rule=MaskRule(**{name: getattr(switches, name) for name in MaskRule._fields}),
        optimizer=optimizer_of(switches),
        mortal=channels_of(NETWORK) if switches.among_living else None,
        smallest_channels=switches.smallest_channels,
    )
    algorithm = with_layers_had(algorithm) if switches.lacking else algorithm
    algorithm = with_personal_layers(algorithm, switches.personal)
    plain = switches.fusion == "tensor" and switches.mask_sent == "fused"
    plain &= not switches.personal and not switches.ternary and not switches.lacking
    settings = {"local_steps": local_steps, **ways}
    settings |= {name: getattr(switches, name) for name in ("exchange_every", "exchange_from")}
    start, step = programs(algorithm, s, starts=made(switches.optimizer) if plain else None, **settings)
    # In float64, where the test asks for it.
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    state, hyper = start(), jax.device_get(s.hyper)

    def unpacked(sent):
        stacked = jax.tree.map(np.float64, unpacked_layers(sent.masks, world.weights))
        return [{name.removesuffix("/kernel"): own[i] for name, own in stacked.items()} for i in range(AGENTS)]

    def settings_of(agent, number):
        scale = lambda name: factors(name, number) if factors else 1.0  # noqa: E731
        numbers = {name: float(getattr(hyper, name)[agent]) * scale(name) for name in Hyper._fields[1:]}
        counts = {layer: int(k) for layer, k in layers(agent_of(hyper.kept, agent)).items()}
        kept = {layer: max(round(k * scale("kept")), min(k, 1)) for layer, k in counts.items()}
        return {**numbers, "counts": kept}

    mixing = ADJACENCY if mixing is None else mixing
    oracle = reference.Population(
        layers(world.weights),
        [layers(agent_of(jax.device_get(state.agents.scores), i)) for i in range(AGENTS)],
        unpacked(state.sent),
        mixing,
        gradients_of(s, world),
        switches,
    )
    for number in range(rounds):
        batches = drawn_batches(world._replace(round=jnp.int32(number)), s.shares, local_steps, BATCH)
        losses = oracle.round(batches, [settings_of(i, number) for i in range(AGENTS)], mixing * arrived(number))
        state, info = step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-11)
        scores = jax.device_get(state.agents.scores)
        for i, sent in enumerate(unpacked(state.sent)):
            for layer, mask in sent.items():
                np.testing.assert_array_equal(mask, oracle.sent[i][layer])
            for layer, z in layers(agent_of(scores, i)).items():
                np.testing.assert_allclose(z, oracle.scores[i][layer], rtol=0, atol=1e-11 * max(np.abs(z).max(), 1e-9))
    return state, oracle


ALGORITHM_SWITCHES = ("order", "fine_tune_gradient", "fine_tune_weight", "group_lasso_form", "penalty_on", "fusion")
ALGORITHM_SWITCHES += ("mask_sent", "force_momentum")
# Every switch of the method, alone or where two meet; what else a case sets are traced settings. Those of the authors'
# code are the cases of schedules, weights and links that drop below.
CASES = {
    "proximal group lasso": {"group_lasso": 0.02, "local_steps": 2},
    "penalty on the fused scores, momentum": {
        "group_lasso_form": "penalty",
        "group_lasso": 1e-3,
        "optimizer": "momentum",
        "lr": 0.3,
        "fine_tune_lr": 0.2,
        "local_steps": 2,
    },
    "penalty on the scores, own masks sent, the last layer personal": {
        "group_lasso_form": "penalty",
        "penalty_on": "scores",
        "group_lasso": 1e-3,
        "local_steps": 3,
        "mask_sent": "own",
        "personal": ("linear",),
    },
    "as published": {"order": "paper", "fine_tune_gradient": "recomputed", "group_lasso": 0.02},
    "recomputed in the code's order": {"fine_tune_gradient": "recomputed", "local_steps": 2},
    "fine-tuning what is touched, filter rule, scaled by retention": {
        "fine_tune_weight": "touched",
        "exchange_every": 2,
        "smallest_filter": 3,
        "scale_by_retention": True,
    },
    "one threshold for all layers, filter rule, scaled by the masks in use": {
        "across_layers": True,
        "scale_by_mask": True,
        "smallest_filter": 4,
        "local_steps": 2,
    },
    "dead scores": {"group_lasso": 0.15},
    "revived scores": {"group_lasso": 0.15, "revive": True},
    "adam, recomputed, silent rounds": {
        "optimizer": "adam",
        "lr": 0.01,
        "fine_tune_lr": 0.02,
        "fine_tune_gradient": "recomputed",
        "exchange_every": 3,
    },
    "the paper's order, exchange every second round": {"order": "paper", "exchange_every": 2},
    "force, silent rounds, several steps": {
        "fusion": "force",
        "optimizer": "adam",
        "lr": 0.01,
        "force": 2.0,
        "force_momentum": 0.5,
        "exchange_every": 2,
        "exchange_from": 3,
        "local_steps": 2,
    },
    "ternary, as published, touched, own masks sent, the last layer personal": {
        "ternary": True,
        "order": "paper",
        "fine_tune_gradient": "recomputed",
        "fine_tune_weight": "touched",
        "group_lasso": 0.02,
        "mask_sent": "own",
        "smallest_filter": 3,
        "personal": ("linear",),
    },
    "ternary, a penalty on the fused scores": {
        "ternary": True,
        "group_lasso_form": "penalty",
        "group_lasso": 1e-3,
        "scale_by_retention": True,
    },
    "ternary, force with momentum, every second round, one threshold for all layers": {
        "ternary": True,
        "across_layers": True,
        "fusion": "force",
        "force_momentum": 0.5,
        "exchange_every": 2,
        "scale_by_retention": True,
    },
    "channels die, tensor, reused": {"among_living": True, "group_lasso": 0.9, "smallest_channels": 2},
    "channels die, as published, scaled by the masks in use, several steps": {
        "among_living": True,
        "order": "paper",
        "fine_tune_gradient": "recomputed",
        "optimizer": "adam",
        "lr": 0.02,
        "fine_tune_lr": 0.02,
        "group_lasso": 0.8,
        "scale_by_mask": True,
        "local_steps": 2,
    },
    "channels die, force, one threshold for all layers, scaled by retention": {
        "among_living": True,
        "fusion": "force",
        "force_momentum": 0.5,
        "optimizer": "adam",
        "lr": 0.02,
        "group_lasso": 0.9,
        "across_layers": True,
        "scale_by_retention": True,
        "exchange_every": 2,
    },
    "channels die, a relative penalty": {"among_living": True, "group_lasso_form": "penalty", "group_lasso": 0.1},
    "force on revived scores, from the third round on": {
        "fusion": "force",
        "group_lasso": 0.15,
        "revive": True,
        "personal": ("linear",),
        "exchange_from": 3,
    },
}
# Slow, for each of their switches is in another case, too.
AGAIN = ("proximal group lasso", "recomputed in the code's order", "dead scores", "adam, recomputed, silent rounds")
AGAIN += (
    "channels die, tensor, reused",
    "channels die, a relative penalty",
    "channels die, as published, scaled by the masks in use, several steps",
)
AGAIN += ("the paper's order, exchange every second round", "force on revived scores, from the third round on")
AGAIN += (
    "one threshold for all layers, filter rule, scaled by the masks in use",
    "ternary, a penalty on the fused scores",
    "ternary, force with momentum, every second round, one threshold for all layers",
)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name, marks=[pytest.mark.slow] * (name in AGAIN)) for name, case in CASES.items()]
)
def test_several_rounds_equal_the_numpy_loops(x64, case):
    names = {field.name for field in dataclasses.fields(reference.Switches)}
    switches = reference.Switches(**{name: value for name, value in case.items() if name in names})
    s = setting(**{name: value for name, value in case.items() if name in Hyper._fields})
    state, oracle = assert_rounds_equal(s, switches, local_steps=case.get("local_steps", 1))
    assert int(state.heard.weight[planes_of(state.heard.masks, "conv/kernel")[0]][3]) == 0
    zeros = sum(int((z == 0).sum()) for own in oracle.scores for z in own.values())
    if switches.ternary:
        assert {*np.unique([own["conv"] for own in oracle.sent])} == {-1, 0, 1}
    if case.get("group_lasso", 0) > 0.1 and "group_lasso_form" not in case:
        assert zeros > 0
    if "smallest_filter" in case:
        filters = [np.abs(own["conv"]).reshape(-1, own["conv"].shape[-1]).sum(0) for own in oracle.sent]
        assert any((kept == 0).any() for kept in filters)


@pytest.mark.parametrize("fusion", [pytest.param("tensor", marks=pytest.mark.slow), "force"])
def test_who_lacks_a_layer_neither_sends_it_nor_counts_in_its_mean(fusion, x64):
    """As agents of fewer residual blocks do, in every round: schedules leave nothing of nothing."""
    s, (controller, factors) = setting(lr=0.5), scheduled(setting())
    lacking = ((1, "conv"), (2, "conv"), (4, "linear"))
    counts = {layer: np.array(count) for layer, count in layers(s.hyper.kept).items()}
    for agent, layer in lacking:
        counts[layer][agent] = 0
    kept = {layer: {"kernel": jnp.asarray(count)} for layer, count in counts.items()}
    s = s._replace(hyper=s.hyper._replace(kept=kept))
    switches = reference.Switches(fusion=fusion, lacking=lacking, scale_by_retention=True)
    state, _ = assert_rounds_equal(s, switches, rounds=3, factors=factors, controller=controller)
    weights = {layer: state.heard.weight[f"{layer}/kernel"].tolist() for layer in counts}
    assert weights == {"conv": [0, 2, 1, 0, 0], "linear": [2, 2, 2, 0, 1]}


def scheduled(s):
    """A controller of another schedule for each setting, and what these make of them by name and round."""
    spelled = {"kept": "cosine:0.5", "lr": "warm-up:3", "fine_tune_lr": "step:2:0.1", "weight_decay": "cosine:2"}
    spelled |= {
        "group_lasso": "warm-up:2@cosine",
        "amplitude": "step:1:0.5",
        "force": "constant",
        "label_smoothing": "step:1:0.8",
    }

    def factors(name, round):
        cosine = (1 + np.cos(np.pi * round / 10)) / 2
        return {
            "kept": 0.5 + 0.5 * cosine,
            "lr": min((round + 1) / 3, 1),
            "fine_tune_lr": 0.1 ** (round // 2),
            "weight_decay": 2 - cosine,
            "group_lasso": min((round + 1) / 2, 1) * cosine,
            "amplitude": 0.5**round,
            "force": 1.0,
            "label_smoothing": 0.8**round,
        }[name]

    factor = {name: schedule_of(spelling, 10) for name, spelling in spelled.items()}
    schedules = Hyper(**{**factor, "kept": jax.tree.map(lambda _: factor["kept"], s.hyper.kept)})
    return control.scheduled(schedules), factors


@pytest.mark.slow
def test_scheduled_rounds_equal_the_numpy_loops(x64):
    s = setting(group_lasso=0.01)
    controller, factors = scheduled(s)
    assert_rounds_equal(s, reference.Switches(), factors=factors, controller=controller)


@pytest.mark.slow
def test_weighted_rounds_equal_the_numpy_loops(x64):
    s, weights = weighted(setting())
    assert_rounds_equal(s, reference.Switches(), mixing=weights)


def weighted(s):
    """Of metropolis links, and their weights by the oracle."""
    symmetric = ADJACENCY & ADJACENCY.T
    return s._replace(graph=metropolis(Topology(graph_of(symmetric))).graph), reference.metropolis(symmetric)


def test_scheduled_weighted_rounds_over_links_that_drop_equal_the_numpy_loops(x64):
    """All three at once, as one program; each alone is slow."""
    (s, weights), rate = weighted(setting(group_lasso=0.01)), 0.4
    controller, factors = scheduled(s)
    ways = {"link": links.dropped(jnp.float32(rate)), "arrived": lambda number: arrivals(rate, number)}
    ways |= {"controller": controller, "factors": factors, "mixing": weights}
    state, _ = assert_rounds_equal(s, reference.Switches(order="paper", exchange_every=2), **ways)
    heard = (weights * arrivals(rate, 3)).sum(axis=1)
    np.testing.assert_allclose(state.heard.weight["conv/kernel"], heard, rtol=1e-15)
    np.testing.assert_allclose(state.heard.own, 1 - weights.sum(axis=1), rtol=1e-15)
    # What is evaluated is the round that ran last, and what comes next is there already.
    for settings, number in ((state.control.used, 3), (state.control.next, 4)):
        np.testing.assert_allclose(settings.lr, s.hyper.lr * factors("lr", number), rtol=1e-12)


def arrivals(rate, round):
    """Over which links messages arrive, as agent i hears agent j: drawn by who sends to whom, and in which round."""
    key = population.round_key(WORLD._replace(round=round), population.LINKS)
    arrived = np.zeros((AGENTS, AGENTS))
    for receiver, sender in np.ndindex(AGENTS, AGENTS):
        own = jax.random.fold_in(jax.random.fold_in(key, sender), receiver)
        arrived[receiver, sender] = jax.random.uniform(own, dtype=jnp.float32) < np.float32(1 - rate)
    return arrived


@pytest.mark.slow
@pytest.mark.parametrize("case", [{}, {"order": "paper", "exchange_every": 2}], ids=["every round", "silent rounds"])
def test_rounds_over_links_that_drop_equal_the_numpy_loops(case, x64):
    """Each directed link on its own, with a rate that is traced; what was lost was sent all the same."""
    s, rate = setting(), 0.4
    lost = [int((ADJACENCY * (1 - arrivals(rate, number))).sum()) for number in range(4)]
    assert min(lost) > 0
    assert len({arrivals(rate, number).tobytes() for number in range(4)}) == 4
    ways = {"link": links.dropped(jnp.float32(rate)), "arrived": lambda number: arrivals(rate, number)}
    state, _ = assert_rounds_equal(s, reference.Switches(**case), **ways)
    heard = (ADJACENCY * arrivals(rate, 3)).sum(axis=1)
    np.testing.assert_array_equal(state.heard.weight["linear/kernel"], heard)
    np.testing.assert_array_equal(state.heard.own, np.ones(AGENTS))


def test_links_that_drop_nothing_are_perfect():
    graph, messages = graph_of(ADJACENCY), Message({"layer": jnp.zeros((AGENTS, 2), jnp.uint8)})
    for rate in (0.0, jnp.float32(0.0)):
        through = [link.transmit(WORLD.key, None, graph, messages) for link in (links.perfect(), links.dropped(rate))]
        chex.assert_trees_all_equal(*through)


def test_a_graph_drawn_anew_is_heard_in_its_own_round(x64):
    """What agents heard last is the mean of what was sent over the links of the last round, and of no other."""
    topology = changing_regular(AGENTS, 2, directed=True)
    s = setting()._replace(graph=topology.graph)
    start, step = programs(made(), s, redraw=topology.redraw)
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    state, seen = start(), set()
    for number in range(4):
        state, info = step(state)
        graph = population.graph_in(world._replace(round=jnp.int32(number)), topology)
        adjacency = adjacency_of(graph)
        seen.add(adjacency.tobytes())
        np.testing.assert_array_equal(info["listeners"], adjacency.sum(axis=0))
        counts = state.heard.masks["conv/kernel"]
        sent = np.stack([masks.unpack(bits, counts.shape[1:]) for bits in state.sent.masks["conv/kernel"]])
        np.testing.assert_array_equal(counts, np.tensordot(adjacency.astype(int), sent, 1))
    assert len(seen) > 1


def bits_of(sent):
    """All layers' bits of every agent, one row each."""
    return np.concatenate([np.unpackbits(leaf, axis=1) for leaf in jax.tree.leaves(jax.device_get(sent))], 1)


def test_nothing_is_sent_in_a_silent_round():
    s = setting()
    _, always = programs(made(), s, every=1)
    start, step = programs(made(), s, every=2)
    would_be = always(start())[0].sent
    state = start()
    before = jax.device_get((state.heard, state.sent))
    state, info = step(state)
    chex.assert_trees_all_equal(jax.device_get((state.heard, state.sent)), before)
    assert not info["listeners"].any()
    # What is counted is the mask that the round made, against the one that was sent last.
    chex.assert_trees_all_equal(info["kept"], by_name(s.hyper.kept))
    np.testing.assert_array_equal(info["flipped"], (bits_of(would_be) != bits_of(before[1])).sum(1))
    assert info["flipped"].all()
    state, info = step(state)
    np.testing.assert_array_equal(info["listeners"], ADJACENCY.sum(axis=0))
    assert not np.array_equal(state.sent.masks["conv/kernel"], before[1].masks["conv/kernel"])


def test_a_state_remembers_what_each_agent_told_last():
    """Some agents speak in some exchanges; the start message stands for what there is not yet."""

    def message(round, number):
        return Message({"often": (jnp.stack([round, number]) + 1).astype(jnp.uint8)})

    def send(key, world, number, agent, heard, batches):
        return agent, None, message(world.round, number), {}

    def receive(key, world, number, agent, carry, heard, batches):
        return agent, {}

    def speaks(memory, round):
        return (jnp.arange(AGENTS) + round // 2) % 3 != 0

    algorithm = Algorithm(lambda key, world, number: (None, message(-1, number)), send, receive, None)
    controller = control.constant()._replace(speaks=speaks)
    told = [[(0, agent + 1)] * (1 + PAST) for agent in range(AGENTS)]
    for round, (state, _) in enumerate(rounds_of(algorithm, 20, exchange_every=2, controller=controller)):
        for agent in np.flatnonzero(speaks(None, round)) if round % 2 else ():
            told[agent].insert(0, (round + 1, agent + 1))
        found = np.stack([one.masks["often"] for one in (state.sent, *state.earlier)], axis=1)
        np.testing.assert_array_equal(found, [own[: 1 + PAST] for own in told])


def test_how_often_agents_exchange_may_be_traced():
    s = setting()
    states = []
    for ways in ({"exchange_every": 3}, {"every": 3}):
        start, step = programs(made(), s, **ways)
        state = start()
        for _ in range(3):
            state, _ = step(state)
        states.append(jax.device_get(state))
    chex.assert_trees_all_equal(*states)


def shouting(seldom):
    """An algorithm of messages whose bits are no mask in use: of ones, and of two layers, of which a message lacks the
    second in rounds and of agents where `seldom(round, number)` is False."""

    def message(world, number):
        has = {"often": jnp.array(True), "seldom": jnp.asarray(seldom(world.round, number))}
        return Message({name: masks.pack(jnp.ones(9)) for name in has}, has=has)

    def send(key, world, number, agent, heard, batches):
        return agent, None, message(world, number), {}

    def receive(key, world, number, agent, carry, heard, batches):
        return agent, {"spoke": heard.spoke, **{f"heard {name}": weight for name, weight in heard.weight.items()}}

    return Algorithm(lambda key, world, number: (None, message(world, number)), send, receive, None)


def rounds_of(algorithm, number, **ways):
    """State and diagnostics after each of so many rounds of an algorithm of layers "often" and "seldom"."""
    world, numbers = WORLD._replace(weights={"often": jnp.ones(9), "seldom": jnp.ones((3, 3))}), jnp.arange(AGENTS)
    graph, shares = graph_of(ADJACENCY), setting().shares
    start = functools.partial(population.init, algorithm, world, agents=AGENTS, link=ways.get("link"))
    state = jax.jit(start)(numbers, graph)

    @jax.jit
    def step(state):
        now = world._replace(round=state.round)
        return population.round(algorithm, now, numbers, state, shares, graph, batch_size=1, **ways)

    for _ in range(number):
        state, info = step(state)
        yield state, info


def test_what_is_heard_says_whether_anybody_spoke_and_of_which_layers():
    """Even agents lack a layer in odd rounds, and every second round is silent."""
    odd, algorithm = np.arange(AGENTS) % 2, shouting(lambda round, number: (round % 2 == 0) | (number % 2 == 1))
    for number, (state, info) in enumerate(rounds_of(algorithm, 4, exchange_every=2)):
        speaks = number % 2
        assert (info["spoke"] == speaks).all()
        np.testing.assert_array_equal(info["heard often"], speaks * ADJACENCY.sum(axis=1))
        np.testing.assert_array_equal(info["heard seldom"], speaks * (ADJACENCY @ odd))
        holds = odd if number % 2 else 1
        np.testing.assert_array_equal(info["kept"]["often"], np.full(AGENTS, 9))
        np.testing.assert_array_equal(info["kept"]["seldom"], np.full(AGENTS, 9) * holds)
        np.testing.assert_array_equal(info["has"]["seldom"], np.full(AGENTS, True) * holds)
        assert state.heard.spoke.all()  # of the last round in which anybody spoke


def test_messages_are_counted_as_sent_whether_they_arrive_or_not():
    link = links.chain(links.dropped(1.0), links.perfect())
    ((state, info),) = rounds_of(shouting(lambda round, number: True), 1, link=link)
    np.testing.assert_array_equal(info["listeners"], ADJACENCY.sum(axis=0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((state.heard.masks, state.heard.weight)))
    assert info["spoke"].all()  # hearing nobody is no silent round


def test_messages_that_add_up_need_agents_who_all_speak():
    """What a silent agent said before would be added once more."""
    some = control.constant()._replace(speaks=lambda memory, round: jnp.arange(AGENTS) % 2 == 0)
    algorithm = shouting(lambda round, number: True)
    assert len([*rounds_of(algorithm, 1, controller=some)]) == 1
    with pytest.raises(ValueError, match=r"^controller must let everybody speak: messages of this algorithm add up"):
        next(rounds_of(algorithm._replace(adds_up=True), 1, controller=some))


def permuted(s, order):
    """The same population with its agents in another order."""
    inverse = np.argsort(order)
    shares = s.shares._replace(indices=s.shares.indices[order], sizes=s.shares.sizes[order])
    return Setting(agent_of(s.hyper, order), shares, graph_of(ADJACENCY[np.ix_(order, order)])), inverse


def test_permuting_agents_permutes_results(x64):
    """With shares that are used whole: which samples an agent draws from more does depend on its number."""
    s = setting()
    s = s._replace(shares=s.shares._replace(sizes=jnp.minimum(s.shares.sizes, BATCH)))
    order = np.array([3, 0, 4, 2, 1])
    t, inverse = permuted(s, order)
    start, step = programs(made(), s)
    start_permuted, step_permuted = programs(made(), t)
    state, other = start(), start_permuted()
    for _ in range(2):
        (state, info), (other, other_info) = step(state), step_permuted(other)
    chex.assert_trees_all_equal(agent_of(other.sent, inverse), state.sent)
    chex.assert_trees_all_equal(agent_of(other.heard, inverse), state.heard)
    # Samples lie in another order in the batch, so sums differ by rounding.
    chex.assert_trees_all_close(agent_of(other.agents, inverse), state.agents, atol=1e-12)
    np.testing.assert_allclose(other_info["loss"][inverse], info["loss"], rtol=1e-12)


def test_an_agents_loss_has_zero_gradient_to_others():
    """Even where the neighbours' masks are differentiable functions of their scores, nothing flows into them."""
    s = setting()
    algorithm = made()
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    scores = programs(algorithm, s)[0]().agents.scores
    batch = Batch(s.shares.images[:BATCH], s.shares.labels[:BATCH], jnp.ones(BATCH, bool))
    adjacency = jnp.asarray(ADJACENCY, jnp.float32)

    @jax.jit
    @jax.jacrev
    def derivative(scales):
        """Rows: whose loss; columns: whose scores are scaled."""
        scaled = jax.tree.map(lambda z: z * scales.reshape(-1, *[1] * (z.ndim - 1)), scores)
        sent = jax.tree.map(jax.vmap(masks.threshold), scaled, s.hyper.kept)
        counts, degrees = jax.tree.map(lambda m: jnp.tensordot(adjacency, m, 1), sent), jnp.sum(adjacency, axis=1)

        def loss(hyper, own, counts, degree):
            return batch_loss(
                NETWORK,
                personal_model(world, fused_scores(hyper, own, heard_of(degree, counts)), hyper.kept, NETWORK.roles)[0],
                batch,
            )

        return population.over_agents(loss, s.hyper, scaled, counts, degrees)

    jacobian = np.asarray(derivative(jnp.ones(AGENTS)))
    assert (np.abs(np.diag(jacobian)) > 0).all()
    assert (jacobian[~np.eye(AGENTS, dtype=bool)] == 0).all()


def without_others(s, agent, others):
    """The population with other agents' data and settings changed, `agent`'s own left alone and unlinked."""
    rng = np.random.default_rng(99)
    mine = np.arange(AGENTS) == agent
    indices = jnp.where(
        mine[:, None], s.shares.indices, jnp.asarray(rng.integers(0, 40, s.shares.indices.shape), jnp.int32)
    )
    hyper = s.hyper._replace(lr=jnp.where(mine, s.hyper.lr, others * s.hyper.lr))
    return s._replace(hyper=hyper, shares=s.shares._replace(indices=indices))


def test_one_at_a_time_is_bit_for_bit_whatever_runs_beside():
    """Agent 3 hears nobody: nothing that other agents do may move a bit of it."""
    s = setting()
    results = []
    for variant in (s, without_others(s, 3, 5.0)):
        start, step = programs(made(), variant, chunk=1)
        state = start()
        for _ in range(3):
            state, _ = step(state)
        results.append(jax.device_get((state.agents, state.sent)))
    chex.assert_trees_all_equal(agent_of(results[0], 3), agent_of(results[1], 3))
    # The others did move, so the comparison means something.
    assert not np.array_equal(*(layers(r[0].scores)["conv"][0] for r in results))


@pytest.mark.slow
def test_one_at_a_time_is_bit_for_bit_in_a_smaller_population():
    """The first two agents alone, linked to each other only, are the same as beside three more."""
    pair = np.zeros_like(ADJACENCY)
    pair[0, 1] = pair[1, 0] = True
    s = setting(adjacency=pair)
    start, step = programs(made(), s, chunk=1)
    few = jax.tree.map(lambda leaf: leaf[:2], (s.hyper, s.shares.indices, s.shares.sizes))
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    shares, graph = Shares(s.shares.images, s.shares.labels, few[1], few[2]), graph_of(pair[:2, :2])
    algorithm = made()
    small = jax.jit(lambda: population.init(algorithm, world, few[0], graph, agents=2, chunk=1))()
    advance = jax.jit(
        lambda state: population.round(
            algorithm, world._replace(round=state.round), few[0], state, shares, graph, batch_size=BATCH, chunk=1
        )
    )
    large = start()
    with optimized():
        for _ in range(2):
            large, _ = step(large)
            small, _ = advance(small)
    chex.assert_trees_all_equal(agent_of((large.agents, large.sent), slice(0, 2)), (small.agents, small.sent))


@pytest.mark.parametrize(
    "chunk", [pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow), AGENTS]
)
def test_any_chunk_gives_the_same_round_in_float64(x64, chunk):
    s = setting()
    states = []
    for size in (1, chunk):
        start, step = programs(made(), s, chunk=size)
        states.append(step(start())[0])
    chex.assert_trees_all_equal(states[0].sent, states[1].sent)
    chex.assert_trees_all_close(states[0].agents, states[1].agents, rtol=0, atol=1e-12)


def test_the_second_round_compiles_nothing():
    """Nor do other step sizes, counts or samples: they are traced."""
    s, key = setting(), jax.random.key(0)
    step, fixed = stepper(made(), None, chunk=1), (s.graph, key, drawn_by(key))
    others = s.hyper._replace(lr=s.hyper.lr / 2, kept=jax.tree.map(lambda kept: kept - 1, s.hyper.kept))
    smaller = s.shares._replace(sizes=jnp.ones_like(s.shares.sizes))
    state, _ = step(programs(made(), s)[0](), s.hyper, s.shares, *fixed)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    state, _ = step(state, s.hyper, s.shares, *fixed)
    state, _ = step(state, others, smaller, *fixed)
    jax.block_until_ready(state)
    jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_rounds_do_not_repeat_their_minibatches():
    s = setting()
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    everybody = [drawn_batches(world._replace(round=jnp.int32(r)), s.shares, 1, BATCH) for r in (0, 1)]
    drawn = [of_round[agent][0].tolist() for of_round in everybody for agent in (0, 4)]
    assert len({tuple(batch) for batch in drawn}) == 4
    for agent, batch in zip((0, 4, 0, 4), drawn, strict=True):
        own = np.asarray(s.shares.indices[agent, : SIZES[agent]]).tolist()
        assert len(set(batch)) == BATCH
        assert set(batch) <= set(own)


def test_all_agents_start_alike():
    """Common scores and a common random order of entries, of which each keeps its own number."""
    s = setting()
    state = programs(made(), s)[0]()
    for z in layers(state.agents.scores).values():
        assert (z == z[:1]).all()
        assert np.abs(z).max() <= 1 / np.sqrt(np.prod(z.shape[1:-1]))
    shape = state.agents.scores["conv"]["kernel"].shape[1:]
    start = np.stack([masks.unpack(bits, shape) for bits in state.sent.masks["conv/kernel"]])
    by_retention = np.argsort(RETENTION)
    for fewer, more in itertools.pairwise(by_retention):
        assert (start[fewer] <= start[more]).all()
    np.testing.assert_allclose(start.mean(axis=(1, 2, 3, 4)), RETENTION, atol=0.25)


def test_agents_start_with_scores_of_their_own_where_that_is_asked():
    state = programs(mce_pl(NETWORK, start_scores="personal"), setting())[0]()
    for z in layers(state.agents.scores).values():
        assert len({own.tobytes() for own in z}) == AGENTS
        assert np.abs(z).max() <= 1 / np.sqrt(np.prod(z.shape[1:-1]))


def test_the_filter_rule_is_for_convolutions_alone():
    s = setting()
    world, hyper, silent = WORLD, agent_of(s.hyper, 0), heard_of(0)
    # One entry of the linear layer's first row is large, all others of its output are small.
    scores = jax.tree.map(lambda w: jnp.linspace(1, 2, w.size).reshape(w.shape), world.weights)
    scores["linear"]["kernel"] = scores["linear"]["kernel"].at[:, 0].mul(1e-3).at[0, 0].set(9.0)
    scores["conv"]["kernel"] = scores["conv"]["kernel"].at[..., 0].mul(1e-3).at[0, 0, 0, 0].set(9.0)
    y = fused_scores(hyper, scores, silent)
    both = jax.jit(lambda y: [personal_masks(y, hyper.kept, NETWORK.roles, MaskRule(rule)) for rule in (None, 2)])
    plain, ruled = both(y)
    assert plain["conv"]["kernel"][..., 0].sum() == 1
    assert ruled["conv"]["kernel"][..., 0].sum() == 0
    np.testing.assert_array_equal(ruled["linear"]["kernel"], plain["linear"]["kernel"])
    assert plain["linear"]["kernel"][:, 0].sum() <= plain["linear"]["kernel"].shape[0] - 2


TURNED = Skew(degrees=np.full(AGENTS, 180, np.float32))


def test_agents_learn_from_what_they_see(x64):
    """Images that agents see upside down are the same as images that are, to the rounding of two programs."""
    s = setting()
    flipped = jnp.asarray(s.shares.images)[:, ::-1, ::-1]
    results = []
    for shares in (s.shares._replace(skew=TURNED), s.shares._replace(images=flipped), s.shares):
        start, step = programs(made(), s._replace(shares=shares))
        state, info = step(start())
        results.append(jax.device_get((info["loss"], state)))
    chex.assert_trees_all_close(results[0], results[1], rtol=0, atol=1e-12)
    assert (np.abs(results[0][0] - results[2][0]) > 1e-6).all()


def test_agents_are_evaluated_on_what_they_see():
    """With a network that names the quarter of the range in which the first pixel lies."""
    s, algorithm = setting(), made()
    named = NETWORK._replace(apply=lambda variables, images: jax.nn.one_hot(images[:, 0, 0, 0] // 64, 4))
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    state = programs(algorithm, s)[0]()
    tests = s.shares._replace(labels=jnp.asarray(s.shares.images[:, -1, -1, 0] // 64, jnp.int32))
    score = jax.jit(lambda tests: evaluate(named, algorithm, world, state, tests).accuracy)
    np.testing.assert_array_equal(score(tests._replace(skew=TURNED)), 1)
    assert score(tests).mean() < 0.7


def test_evaluation_counts_each_agents_own_samples():
    s = setting()
    algorithm = made()
    world = population.world_of(NETWORK, jax.random.key(0), 0, 10, drawn_by(jax.random.key(0)))
    state = programs(algorithm, s)[0]()
    score = jax.jit(lambda tests: evaluate(NETWORK, algorithm, world, state, tests, batch_size=4))

    def of_agent(held):
        variables, kept = algorithm.model(world, *held)
        return jnp.argmax(NETWORK.apply(variables, s.shares.images), -1), kept

    each = jax.jit(functools.partial(jax.lax.map, of_agent))((s.hyper, state.agents, state.heard))
    guesses, kept = jax.device_get(each)
    for sizes in (SIZES, [1, 2, 3, 1, 5]):
        tests = s.shares._replace(sizes=jnp.asarray(sizes, jnp.int32))
        # A batch that divides no size, so that the last one is only partly counted.
        evaluation = jax.device_get(score(tests))
        for i, size in enumerate(sizes):
            own = np.asarray(s.shares.indices)[i, :size]
            labels, right = np.asarray(s.shares.labels)[own], guesses[i, own] == np.asarray(s.shares.labels)[own]
            assert float(evaluation.accuracy[i]) == pytest.approx(float(np.mean(right)))
            counts = np.bincount(labels[right], minlength=evaluation.right.shape[1])
            np.testing.assert_array_equal(evaluation.right[i], counts)
            leaves = jax.tree.leaves(agent_of(kept, i))
            density = sum(float(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
            assert float(evaluation.density[i]) == pytest.approx(density)
        # Layers of few entries are looked at whole.
        assert max(leaf.size for leaf in jax.tree.leaves(agent_of(state.agents.scores, 0))) <= SAMPLED
        whole = jax.tree.map(lambda z: jnp.abs(z.reshape(len(z), -1)), state.agents.scores)
        chex.assert_trees_all_equal(evaluation.magnitudes, whole)


def test_diagnostics_count_kept_and_flipped_entries():
    s = setting()
    start, step = programs(made(), s)
    state = start()
    before = jax.device_get(state.sent)
    state, info = step(state)
    chex.assert_trees_all_equal(info["kept"], by_name(s.hyper.kept))
    np.testing.assert_array_equal(info["listeners"], ADJACENCY.sum(axis=0))
    np.testing.assert_array_equal(info["flipped"], (bits_of(before) != bits_of(state.sent)).sum(1))


# Agents in chunks.

MANY = 7


def carried(number=MANY):
    """What agents carry, and what is their own: pytrees of whole numbers, also as floats, whose sums are exact."""
    rng = np.random.default_rng(3)
    whole = lambda *shape: rng.integers(-9, 10, (number, *shape))  # noqa: E731
    agents = {"count": whole().astype(np.int32), "scores": [whole(3).astype(np.float32), whole(2, 2).astype(np.int8)]}
    return agents, (whole(3).astype(np.float32), whole().astype(np.int32))


def one_agents_work(agent, own, factor):
    scores = [agent["scores"][0] * factor + own, agent["scores"][1]]
    new = {"count": agent["count"] + factor, "scores": scores}
    return new, (agent["scores"][0].sum() * factor, {"none": None, "odd": agent["count"] % 2 == 1}, agent["count"])


def by_a_loop(agents, *own):
    """The same, agent after agent."""
    number = len(own[-1])
    pairs = [one_agents_work(*jax.tree.map(lambda leaf, i=i: leaf[i], (agents, *own))) for i in range(number)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *pairs)


CHUNKS = [(MANY, chunk) for chunk in (None, *range(1, MANY + 2))] + [(1, None), (1, 1), (1, 5)]


@pytest.mark.parametrize(("number", "chunk"), CHUNKS)
def test_any_chunk_of_agents_is_a_loop_over_them(number, chunk):
    """Also of a single one, and where the last chunk is smaller."""
    agents, own = carried(number)

    @jax.jit
    def both(agents, own):
        results_alone = population.over_agents(lambda *one: one_agents_work(*one)[1], agents, *own, chunk=chunk)
        return population.update_agents(one_agents_work, agents, *own, chunk=chunk), results_alone

    found, alone = both(agents, own)
    expected = by_a_loop(agents, *own)
    chex.assert_trees_all_equal(jax.device_get((found, alone)), (expected, expected[1]))
    assert jax.tree.map(lambda leaf: leaf.dtype, found[0]) == jax.tree.map(lambda leaf: leaf.dtype, agents)


@pytest.mark.parametrize("chunk", [1, 3, MANY])
def test_agents_who_have_nothing_to_say_are_updated(chunk):
    agents, own = carried()
    silent = lambda *one: (one_agents_work(*one)[0], None)  # noqa: E731
    found = jax.jit(lambda agents, own: population.update_agents(silent, agents, *own, chunk=chunk))(agents, own)
    chex.assert_trees_all_equal(jax.device_get(found), (by_a_loop(agents, *own)[0], None))


@pytest.mark.parametrize("chunk", [1, 3, MANY])
def test_populations_are_mapped_over_like_anything_else(chunk):
    """Several at once, under one `vmap`: agents of each stay its own."""
    several = [jax.tree.map(lambda leaf, seed=seed: leaf + seed, carried()) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves).astype(leaves[0].dtype), *several)
    found = jax.jit(jax.vmap(lambda agents, own: population.update_agents(one_agents_work, agents, *own, chunk=chunk)))
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *[by_a_loop(agents, *own) for agents, own in several])
    chex.assert_trees_all_equal(jax.device_get(found(*stacked)), expected)


def test_one_program_serves_all_rounds_silent_or_not_over_links_that_change():
    """With settings, samples and the rounds between exchanges of another value in each."""
    topology = changing_erdos_renyi(AGENTS)
    s, key, algorithm = setting()._replace(graph=topology.graph), jax.random.key(0), made()
    drawn, traces = drawn_by(key), []

    # Only how often it is compiled is of interest, so it need not be made fast.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def step(state, hyper, shares, every):
        traces.append(1)
        world = population.world_of(NETWORK, key, state.round, 10, drawn)
        graph = population.graph_in(world, topology)
        settings = {"batch_size": BATCH, "exchange_every": every}
        return population.round(algorithm, world, hyper, state, shares, graph, **settings)

    state = starter(algorithm, topology.redraw, chunk=1)(s.hyper, s.graph, key, drawn)
    spoke, over, now = [], set(), s.hyper
    for number in range(4):
        hyper = s.hyper._replace(
            lr=s.hyper.lr / (1 + number), kept=jax.tree.map(lambda k, n=number: k - n, s.hyper.kept)
        )
        shares = s.shares._replace(sizes=jnp.maximum(s.shares.sizes - number, 1))
        state, info = step(state, hyper, shares, jnp.int32(2 if number < 3 else 4))
        # Settings that are said in a round hold from the next one on.
        chex.assert_trees_all_equal(info["kept"], by_name(now.kept))
        now = hyper
        spoke.append(bool(info["listeners"].any()))
        over.add(np.asarray(info["listeners"]).tobytes())
    assert spoke == [False, True, False, True]
    assert len(over) == 3
    assert len(traces) == step._cache_size() == 1


# Arithmetic of half the bits.

BFLOAT16 = network_of(TinyNet(), (8, 8, 1), precision="bfloat16")
UNIT = 2.0**-8  # by which rounding to bfloat16 is wrong at most, of a number of 1


def test_logits_in_bfloat16_are_those_of_float32_but_for_its_rounding():
    weights, frozen = NETWORK.init(jax.random.key(1))
    images = setting().shares.images
    for scale in (1, 100):
        variables = {"params": jax.tree.map(lambda w, scale=scale: w * scale, weights), "frozen": frozen}
        exact, rounded = (network.apply(variables, images) for network in (NETWORK, BFLOAT16))
        assert rounded.dtype == exact.dtype == jnp.float32
        error = np.abs(rounded - exact).max() / np.abs(exact).max()
        # Pixels, two layers' kernels and outputs, and the bias are rounded once each.
        assert UNIT / 8 < error < 5 * UNIT


def test_agents_of_a_bfloat16_network_keep_float32_scores_and_exact_counts():
    s = setting()
    world, hyper, silent = WORLD, agent_of(s.hyper, 0), heard_of(0)
    batch = Batch(s.shares.images[:BATCH], s.shares.labels[:BATCH], jnp.ones(BATCH, bool))
    batches = Batches(jax.tree.map(lambda leaf: leaf[None], batch), batch)
    gradients = []
    for network in (NETWORK, BFLOAT16):
        algorithm = mce_pl(network)
        agent, _ = algorithm.init(jax.random.key(0), world, hyper)
        new, gradient, message, _ = jax.jit(algorithm.send)(jax.random.key(0), world, hyper, agent, silent, batches)
        assert {leaf.dtype.name for leaf in jax.tree.leaves((new.scores, gradient))} == {"float32"}
        kept = jax.tree.map(lambda bits: int(np.bitwise_count(np.asarray(bits)).sum()), message.masks)
        assert kept == jax.tree.map(int, by_name(hyper.kept))
        gradients.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
    # Rounded, a pooling may choose another winner.
    error = np.linalg.norm(gradients[1] - gradients[0]) / np.linalg.norm(gradients[0])
    assert UNIT / 8 < error < 0.2
