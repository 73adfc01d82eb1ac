"""A trace of the authors' own layers, replayed through the library's functions and driver in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from asked import unpacked_layers

from dslth_jax import masks, population
from dslth_jax.algorithm import Heard, Message, World, by_name
from dslth_jax.algorithms.mce_pl import Agent, Hyper, mce_pl
from dslth_jax.control import Control
from dslth_jax.graphs import graph_of
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.population import Shares, State
from dslth_jax.retention import kept_by_layer

# The trace's names of the masked layers, and ours.
LAYERS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "fc1": "linear1", "fc2": "linear2"}


def from_torch(layer, array):
    """PyTorch's O,I,H,W or O,I to ours; what feeds the first linear layer was flattened as C,H,W there, H,W,C here."""
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    if layer == "fc1":
        array = array.reshape(-1, 256, 2, 2).transpose(0, 2, 3, 1).reshape(array.shape)
    return array.T


def to_torch(layer, array):
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    array = array.T
    if layer == "fc1":
        array = array.reshape(-1, 2, 2, 256).transpose(0, 3, 1, 2).reshape(array.shape)
    return array


def tree_of(read):
    return {ours: {"kernel": from_torch(theirs, read(theirs))} for theirs, ours in LAYERS.items()}


def assert_close(actual, desired, of):
    """To 1e-9 of the largest magnitude in the array that the values were taken from."""
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-9 * np.abs(of).max())


def stacked(values):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *values)


def replay(trace):
    """The network, algorithm, world and first state of the trace's run."""
    network = network_by_name("alexnet", (32, 32, 3), 10, elu_on_logits=True)
    algorithm = mce_pl(network)
    adjacency = trace["adjacency"] != 0
    weights = tree_of(lambda layer: trace[f"w/{layer}"].astype(np.float64))
    frozen = {LAYERS[layer]: {"bias": trace[f"b/{layer}"].astype(np.float64)} for layer in ("fc1", "fc2")}
    kept = [jax.tree.map(np.int32, kept_by_layer(weights, network.roles, float(r), 0.9)) for r in trace["keep_conv"]]
    hyper = stacked([Hyper(k) for k in kept])
    world = World(weights, frozen, jax.random.key(0), jnp.int32(0), jnp.int32(3))

    def unpacked(layer):
        shape = trace[f"w/{layer}"].shape
        return np.unpackbits(trace[f"m0/{layer}"], count=np.prod(shape)).reshape(shape)

    start, scores = tree_of(unpacked), tree_of(lambda layer: trace[f"z0/0/{layer}"].astype(np.float64))
    degree, always = adjacency.sum(1, dtype=np.int32), np.ones(len(adjacency))
    counts = {name: np.multiply.outer(degree, m).astype(np.uint8) for name, m in by_name(start).items()}
    heard = Heard(counts, {}, dict.fromkeys(counts, degree), always.astype(np.float32), always.astype(bool))
    packed = jax.jit(lambda start: jax.tree.map(masks.pack, start))(start)
    one = Agent(scores, optax.EmptyState()), Message(by_name(jax.device_get(packed)))
    agents, sent = stacked([one] * len(adjacency))
    state = State(agents, heard, sent, None, Control(None, hyper, hyper), jnp.int32(0))
    return network, algorithm, world, hyper, state, graph_of(adjacency)


def shares_of(images, labels):
    """One round's minibatches as everybody's whole share, so that the driver draws just these."""
    agents, batch = labels.shape
    indices = jnp.arange(agents * batch, dtype=jnp.int32).reshape(agents, batch)
    flat = jnp.asarray(images.reshape(-1, *images.shape[2:])), jnp.asarray(labels.reshape(-1), jnp.int32)
    return Shares(*flat, indices, jnp.full(agents, batch, jnp.int32))


def test_the_authors_layers_step_by_step(x64, shared, as_users_compile):
    trace = np.load(shared / "golden" / "trace_a.npz")
    network, algorithm, world, hyper, state, graph = replay(trace)
    batch = trace["labels"].shape[2]

    def receive(key, world, hyper, agent, gradient, *rest):
        """What it does, with the gradient of the local step, which is carried over the exchange, as a diagnostic."""
        agent, info = algorithm.receive(key, world, hyper, agent, gradient, *rest)
        return agent, {**info, "gradient": gradient}

    telling = algorithm._replace(receive=receive)

    @jax.jit
    def step(state, shares):
        return population.round(telling, world, hyper, state, shares, graph, batch_size=batch)

    @jax.jit
    def probe(state):
        def one(hyper, agent, heard):
            variables, _ = algorithm.model(world, hyper, agent, heard)
            return network.apply(variables, jnp.asarray(trace["probe_images"]))

        return population.over_agents(one, hyper, state.agents, state.heard)

    for r, (images, labels) in enumerate(zip(trace["images"], trace["labels"], strict=True)):
        shares = shares_of(images, labels)
        state, info = step(state, shares)
        logits, kept = probe(state), unpacked_layers(state.sent.masks, world.weights)
        gradients, own, kept = jax.device_get((info["gradient"], state.agents.scores, kept))
        assert_close(info["loss"], trace["loss"][r], trace["loss"][r])
        for i in range(len(labels)):
            assert_close(logits[i], trace[f"logits/{r}/{i}"], trace[f"logits/{r}/{i}"])
            for theirs, ours in LAYERS.items():
                suffix = f"{r}/{i}/{theirs}"
                mask = to_torch(theirs, kept[f"{ours}/kernel"][i])
                np.testing.assert_array_equal(np.packbits(mask != 0), trace[f"mask/{suffix}"])
                scores, gradient = (to_torch(theirs, tree[ours]["kernel"][i]) for tree in (own, gradients))
                where = trace[f"sample_index/{theirs}"]
                assert_close(scores.reshape(-1)[where], trace[f"z/{suffix}"], scores)
                assert_close(gradient.reshape(-1)[where], trace[f"grad/{suffix}"], gradient)
                assert_close(scores.sum(), trace[f"zsum/{suffix}"], trace[f"zabs/{suffix}"])
                assert_close(np.abs(scores).sum(), trace[f"zabs/{suffix}"], trace[f"zabs/{suffix}"])


@pytest.mark.slow
def test_float32_agrees_in_the_first_round(shared, as_users_compile):
    """Later rounds part in float32, for a step of 10 amplifies rounding."""
    trace = np.load(shared / "golden" / "trace_a.npz")
    _, algorithm, world, hyper, state, graph = replay(trace)
    shares = shares_of(trace["images"][0], trace["labels"][0])
    step = jax.jit(lambda state: population.round(algorithm, world, hyper, state, shares, graph, batch_size=16))
    state, info = step(state)
    np.testing.assert_allclose(info["loss"], trace["loss"][0], rtol=1e-5)
    for i in range(len(trace["adjacency"])):
        differing = 0
        for theirs, ours in LAYERS.items():
            mask = np.asarray(masks.unpack(state.sent.masks[f"{ours}/kernel"][i], world.weights[ours]["kernel"].shape))
            theirs_unpacked = np.unpackbits(trace[f"mask/0/{i}/{theirs}"], count=mask.size)
            differing += int((to_torch(theirs, mask).reshape(-1) != theirs_unpacked).sum())
        assert differing <= 1_227_328 // 10_000
