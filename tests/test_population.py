"""The compiled population round: against the numpy oracle, and the invariants that any driver must keep."""

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
from flax import linen as nn

from dslth_jax import masks, population
from dslth_jax.algorithm import Batches, Heard
from dslth_jax.convolution import max_pool
from dslth_jax.evaluation import evaluate
from dslth_jax.mcepl import Hyper, batch_loss, kept_by_layer, mce_pl, personal_model
from dslth_jax.models import Conv, Linear, elu, network_of
from dslth_jax.population import Shares
from dslth_jax.topology import graph_of

AGENTS = 5
BATCH = 6
SIZES = [9, 6, 3, 1, 12]  # some draw, one uses all, some have fewer than a batch
RETENTION = [0.3, 0.5, 0.1, 1.0, 0.7]
# Agent 3 has no neighbours.
ADJACENCY = np.array([[0, 1, 1, 0, 0], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool)


class TinyNet(nn.Module):
    """One of each kind of layer: what the driver does not depend on the network's size, but compile time does."""

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
    kept = [kept_by_layer(weights, r, 0.9) for r in RETENTION]
    dtype = jnp.result_type(float)
    # Personal step sizes, so that a mix-up of agents' settings shows.
    defaults = {"lr": 2.0, "fine_tune_lr": 3.0, "weight_decay": 5e-3, "group_lasso": 0.0, "amplitude": 1.0, **hyper}
    traced = {name: value * jnp.linspace(0.8, 1.2, AGENTS, dtype=dtype) for name, value in defaults.items()}
    return Setting(
        Hyper(jax.tree.map(lambda *k: jnp.array(k, jnp.int32), *kept), **traced), shares, graph_of(adjacency)
    )


def programs(algorithm, s, *, local_steps=1, chunk=None, key=0):
    """The compiled start and round of one setting."""
    key = jax.random.key(key)

    @jax.jit
    def start(hyper):
        world = population.world_of(NETWORK, key, hyper, 0, 10)
        return population.init(algorithm, world, s.graph, agents=AGENTS, chunk=chunk)

    @functools.partial(jax.jit, donate_argnames="state")
    def step(state, hyper, shares):
        world = population.world_of(NETWORK, key, hyper, state.round, 10)
        return population.round(
            algorithm, world, state, shares, s.graph, batch_size=BATCH, local_steps=local_steps, chunk=chunk
        )

    return lambda: start(s.hyper), lambda state: step(state, s.hyper, s.shares)


def layers(tree):
    """{layer: kernel} of a pytree of kernels, as numpy."""
    return {name: np.asarray(layer["kernel"]) for name, layer in tree.items()}


def agent_of(tree, agent):
    return jax.tree.map(lambda leaf: leaf[agent], tree)


def drawn_batches(world, shares, agent, local_steps):
    """The minibatches that the driver draws for one agent, without those that only fill a batch up."""
    keys = jax.random.split(population.agent_key(world, jnp.int32(agent), population.DRAW), local_steps + 1)
    batches = []
    for key in keys[:local_steps]:
        drawn, present = population.draw(key, shares.indices[agent], shares.sizes[agent], BATCH)
        batches.append(np.asarray(drawn)[np.asarray(present)])
    return batches


@pytest.mark.parametrize(
    ("form", "on", "group_lasso", "local_steps"),
    [
        ("proximal", "fused", 0.0, 1),
        ("proximal", "fused", 0.02, 2),
        ("penalty", "fused", 1e-3, 1),
        ("penalty", "scores", 1e-3, 3),
    ],
)
def test_several_rounds_equal_the_numpy_loops(x64, form, on, group_lasso, local_steps):
    s = setting(group_lasso=group_lasso)
    start, step = programs(mce_pl(NETWORK, group_lasso_form=form, penalty_on=on), s, local_steps=local_steps)
    world = population.world_of(NETWORK, jax.random.key(0), s.hyper, 0, 10)
    state = start()

    @jax.jit
    def derivative(v, images, labels):
        def loss(v):
            logits = NETWORK.apply({"params": v, "frozen": world.frozen}, images)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

        return jax.value_and_grad(loss)(v)

    def gradient_fn(v, samples):
        nested = {layer: {"kernel": jnp.asarray(kernel)} for layer, kernel in v.items()}
        loss, dv = derivative(nested, s.shares.images[samples], s.shares.labels[samples])
        return layers(dv), float(loss)

    shapes = {name: kernel.shape for name, kernel in layers(world.weights).items()}

    def unpacked(bits, agent):
        return {name: np.float64(masks.unpack(bits[name]["kernel"][agent], shape)) for name, shape in shapes.items()}

    numbers = {name: np.asarray(getattr(s.hyper, name)) for name in Hyper._fields[1:]}
    oracle = reference.Population(
        layers(world.weights),
        [layers(agent_of(state.agents.scores, i)) for i in range(AGENTS)],
        [unpacked(state.sent, i) for i in range(AGENTS)],
        ADJACENCY,
        [{k: int(v) for k, v in layers(agent_of(s.hyper.kept, i)).items()} for i in range(AGENTS)],
        [{"form": form, "on": on, **{name: float(v[i]) for name, v in numbers.items()}} for i in range(AGENTS)],
        gradient_fn,
    )

    for number in range(3):
        batches = [drawn_batches(world._replace(round=number), s.shares, i, local_steps) for i in range(AGENTS)]
        losses = oracle.round(batches)
        state, info = step(state)
        np.testing.assert_allclose(info["loss"], losses, rtol=1e-12)
        for i in range(AGENTS):
            for layer, mask in unpacked(state.sent, i).items():
                np.testing.assert_array_equal(mask, oracle.sent[i][layer])
            for layer, z in layers(agent_of(state.agents.scores, i)).items():
                np.testing.assert_allclose(z, oracle.scores[i][layer], rtol=0, atol=1e-12 * np.abs(z).max())
    assert int(state.heard.degree[3]) == 0


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
    start, step = programs(mce_pl(NETWORK), s)
    start_permuted, step_permuted = programs(mce_pl(NETWORK), t)
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
    algorithm = mce_pl(NETWORK)
    world = population.world_of(NETWORK, jax.random.key(0), s.hyper, 0, 10)
    scores = programs(algorithm, s)[0]().agents.scores
    batch = Batches(s.shares.images[:BATCH], s.shares.labels[:BATCH], jnp.ones(BATCH, bool))
    adjacency = jnp.asarray(ADJACENCY, jnp.float32)

    @jax.jit
    @jax.jacrev
    def derivative(scales):
        """Rows: whose loss; columns: whose scores are scaled."""
        scaled = jax.tree.map(lambda z: z * scales.reshape(-1, *[1] * (z.ndim - 1)), scores)
        sent = jax.tree.map(jax.vmap(masks.threshold), scaled, s.hyper.kept)
        heard = Heard(jax.tree.map(lambda m: jnp.tensordot(adjacency, m, 1), sent), jnp.sum(adjacency, axis=1))

        def loss(hyper, own, heard):
            return batch_loss(NETWORK, personal_model(world._replace(hyper=hyper), own, heard)[0], batch)

        return population.over_agents(loss, s.hyper, scaled, heard)

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
        start, step = programs(mce_pl(NETWORK), variant, chunk=1)
        state = start()
        for _ in range(3):
            state, _ = step(state)
        results.append(jax.device_get((state.agents, state.sent)))
    chex.assert_trees_all_equal(agent_of(results[0], 3), agent_of(results[1], 3))
    # The others did move, so the comparison means something.
    assert not np.array_equal(*(layers(r[0].scores)["conv"][0] for r in results))


def test_one_at_a_time_is_bit_for_bit_in_a_smaller_population():
    """The first two agents alone, linked to each other only, are the same as beside three more."""
    pair = np.zeros_like(ADJACENCY)
    pair[0, 1] = pair[1, 0] = True
    s = setting(adjacency=pair)
    start, step = programs(mce_pl(NETWORK), s, chunk=1)
    few = jax.tree.map(lambda leaf: leaf[:2], (s.hyper, s.shares.indices, s.shares.sizes))
    world = population.world_of(NETWORK, jax.random.key(0), few[0], 0, 10)
    shares, graph = Shares(s.shares.images, s.shares.labels, few[1], few[2]), graph_of(pair[:2, :2])
    algorithm = mce_pl(NETWORK)
    small = jax.jit(lambda: population.init(algorithm, world, graph, agents=2, chunk=1))()
    advance = jax.jit(
        lambda state: population.round(
            algorithm, world._replace(round=state.round), state, shares, graph, batch_size=BATCH, chunk=1
        )
    )
    large = start()
    for _ in range(2):
        large, _ = step(large)
        small, _ = advance(small)
    chex.assert_trees_all_equal(agent_of((large.agents, large.sent), slice(0, 2)), (small.agents, small.sent))


@pytest.mark.parametrize("chunk", [2, 3, AGENTS])
def test_any_chunk_gives_the_same_round_in_float64(x64, chunk):
    s = setting()
    states = []
    for size in (1, chunk):
        start, step = programs(mce_pl(NETWORK), s, chunk=size)
        states.append(step(start())[0])
    chex.assert_trees_all_equal(states[0].sent, states[1].sent)
    chex.assert_trees_all_close(states[0].agents, states[1].agents, rtol=0, atol=1e-12)


def test_the_second_round_compiles_nothing():
    """Nor do other step sizes, counts or samples: they are traced."""
    s = setting()
    key, algorithm = jax.random.key(0), mce_pl(NETWORK)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, hyper, shares):
        world = population.world_of(NETWORK, key, hyper, state.round, 10)
        return population.round(algorithm, world, state, shares, s.graph, batch_size=BATCH)

    chex.clear_trace_counter()
    state = programs(algorithm, s)[0]()
    others = s.hyper._replace(lr=s.hyper.lr / 2, kept=jax.tree.map(lambda kept: kept - 1, s.hyper.kept))
    smaller = s.shares._replace(sizes=jnp.ones_like(s.shares.sizes))
    state, _ = step(state, s.hyper, s.shares)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: compiled.append(name))
    state, _ = step(state, s.hyper, s.shares)
    state, _ = step(state, others, smaller)
    jax.block_until_ready(state)
    jax.monitoring.clear_event_listeners()
    assert compiled == []


def test_rounds_do_not_repeat_their_minibatches():
    s = setting()
    world = population.world_of(NETWORK, jax.random.key(0), s.hyper, 0, 10)
    drawn = [drawn_batches(world._replace(round=r), s.shares, agent, 1)[0].tolist() for r in (0, 1) for agent in (0, 4)]
    assert len({tuple(batch) for batch in drawn}) == 4
    for agent, batch in zip((0, 4, 0, 4), drawn, strict=True):
        own = np.asarray(s.shares.indices[agent, : SIZES[agent]]).tolist()
        assert len(set(batch)) == BATCH
        assert set(batch) <= set(own)


def test_all_agents_start_alike():
    """Common scores and a common random order of entries, of which each keeps its own number."""
    s = setting()
    state = programs(mce_pl(NETWORK), s)[0]()
    for z in layers(state.agents.scores).values():
        assert (z == z[:1]).all()
        assert np.abs(z).max() <= 1 / np.sqrt(np.prod(z.shape[1:-1]))
    shape = state.agents.scores["conv"]["kernel"].shape[1:]
    start = np.stack([masks.unpack(bits, shape) for bits in state.sent["conv"]["kernel"]])
    by_retention = np.argsort(RETENTION)
    for fewer, more in itertools.pairwise(by_retention):
        assert (start[fewer] <= start[more]).all()
    np.testing.assert_allclose(start.mean(axis=(1, 2, 3, 4)), RETENTION, atol=0.25)


def test_evaluation_counts_each_agents_own_samples():
    s = setting()
    algorithm = mce_pl(NETWORK)
    world = population.world_of(NETWORK, jax.random.key(0), s.hyper, 0, 10)
    state = programs(algorithm, s)[0]()
    model = jax.jit(lambda hyper, agent, heard: algorithm.model(world._replace(hyper=hyper), agent, heard))
    score = jax.jit(lambda tests: evaluate(NETWORK, algorithm, world, state, tests, batch_size=4))
    for sizes in (SIZES, [1, 2, 3, 1, 5]):
        tests = s.shares._replace(sizes=jnp.asarray(sizes, jnp.int32))
        # A batch that divides no size, so that the last one is only partly counted.
        evaluation = score(tests)
        for i, size in enumerate(sizes):
            own = jnp.asarray(s.shares.indices[i, :size])
            variables, kept = model(agent_of(s.hyper, i), *agent_of((state.agents, state.heard), i))
            guesses = jnp.argmax(NETWORK.apply(variables, s.shares.images[own]), -1)
            assert float(evaluation.accuracy[i]) == pytest.approx(float(jnp.mean(guesses == s.shares.labels[own])))
            leaves = jax.tree.leaves(kept)
            density = sum(float(leaf.sum()) for leaf in leaves) / sum(leaf.size for leaf in leaves)
            assert float(evaluation.density[i]) == pytest.approx(density)


def test_diagnostics_count_kept_and_flipped_entries():
    s = setting()
    start, step = programs(mce_pl(NETWORK), s)
    state = start()
    before = jax.device_get(state.sent)
    state, info = step(state)
    kept = np.sum([np.asarray(leaf) for leaf in jax.tree.leaves(s.hyper.kept)], axis=0)
    np.testing.assert_array_equal(info["kept"], kept)
    bits = lambda sent: np.concatenate([np.unpackbits(leaf, axis=1) for leaf in jax.tree.leaves(sent)], 1)  # noqa: E731
    np.testing.assert_array_equal(info["flipped"], (bits(before) != bits(jax.device_get(state.sent))).sum(1))
