"""The loops and operations of PyTorch that the benchmarks compare with compute what the library computes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dslth_jax import masks, population
from dslth_jax.algorithm import with_names
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.graphs import graph_of
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.population import Shares
from dslth_jax.retention import kept_by_layer

torch = pytest.importorskip("torch", reason="PyTorch is needed only for what the library is compared with")

from benchmarks import convolution, operations_in_torch, rivals  # noqa: E402

ROUNDS, AGENTS, BATCH = 2, 4, 8
# Unequal degrees, one link that goes one way, and agent 3 has no neighbours.
ADJACENCY = np.array([[0, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], bool)
NETWORK = network_by_name("alexnet", (32, 32, 3), 10, elu_on_logits=True)
KEY = 3


def minibatches():
    """Images (rounds, agents, batch, 32, 32, 3) and labels (rounds, agents, batch)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (ROUNDS, AGENTS, BATCH, 32, 32, 3), np.uint8)
    return images, rng.integers(0, 10, (ROUNDS, AGENTS, BATCH), np.int32)


@pytest.fixture(scope="module")
def ours():
    """(scores, masks) after each round of the library, each a list of {layer: array}, one an agent."""
    with jax.enable_x64(True):
        weights, _ = jax.eval_shape(NETWORK.init, jax.random.key(KEY))
        kept = jax.tree.map(lambda k: jnp.full(AGENTS, k, jnp.int32), kept_by_layer(weights, NETWORK.roles, 0.3, 0.9))
        hyper = Hyper(kept, *(jnp.full(AGENTS, value) for value in list(Hyper._field_defaults.values())))
        algorithm, graph = mce_pl(NETWORK), graph_of(ADJACENCY)
        world = population.world_of(NETWORK, jax.random.key(KEY), 0, ROUNDS)
        state = population.init(algorithm, world, hyper, graph, agents=AGENTS)
        # Everybody's whole share is one minibatch, so that the driver draws just that.
        indices = jnp.arange(AGENTS * BATCH, dtype=jnp.int32).reshape(AGENTS, BATCH)

        @functools.partial(jax.jit, donate_argnames="state")
        def step(state, images, labels):
            shares = Shares(images, labels, indices, jnp.full(AGENTS, BATCH, jnp.int32))
            return population.round(algorithm, world, hyper, state, shares, graph, batch_size=BATCH)[0]

        after = []
        for images, labels in zip(*minibatches(), strict=True):
            state = step(state, jnp.asarray(images.reshape(-1, 32, 32, 3)), jnp.asarray(labels.reshape(-1)))
            unpacked = lambda name, w: jax.vmap(lambda bits: masks.unpack(bits, w.shape))(state.sent.masks[name])  # noqa: B023, E731
            sent = with_names(unpacked, weights)
            after.append((by_agent(state.agents.scores), by_agent(sent)))
        return after


def by_agent(tree):
    return [{layer: np.array(leaf["kernel"][agent]) for layer, leaf in tree.items()} for agent in range(AGENTS)]


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_a_rival_computes_what_the_library_computes(x64, ours, name):
    rival = rivals.RIVALS[name](rivals.start_of(NETWORK, jax.random.key(KEY), ADJACENCY))
    for images, labels, (scores, sent) in zip(*minibatches(), ours, strict=True):
        rival.round(images, labels)
        for agent in range(AGENTS):
            for layer, mask in rival.masks()[agent].items():
                np.testing.assert_array_equal(mask, sent[agent][layer], strict=True)
            for layer, actual in rival.scores()[agent].items():
                desired = scores[agent][layer]
                np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-9 * np.abs(desired).max(), strict=True)


@pytest.mark.parametrize("kept", [1, 2, 1440, 4799, 4800])
@pytest.mark.parametrize("levels", [3, 50, 2**30])
def test_the_bracketed_selection_is_exact(kept, levels):
    values = np.random.default_rng(levels).integers(0, levels, 4800, np.int32)
    assert int(rivals.kth_largest(torch.from_numpy(values), kept)) == np.sort(values)[-kept]


def test_selection_where_the_sample_misleads():
    values = np.full(100_000, 7, np.int32)
    values[:: 100_000 // 8192] = 0
    for kept in (1, 10_000, 91_000, 100_000):
        assert int(rivals.kth_largest(torch.from_numpy(values), kept)) == np.sort(values)[-kept]


@pytest.mark.parametrize("layer", rivals.LAYERS)
def test_layouts_come_back(layer):
    shape = {"conv2": (5, 5, 64, 128), "linear1": (1024, 192)}.get(layer, (3, 4))
    array = np.random.default_rng(0).random(shape)
    np.testing.assert_array_equal(rivals.from_torch(layer, rivals.to_torch(layer, array)), array)


@pytest.mark.parametrize("name", convolution.OTHERS)
def test_an_operation_of_pytorch_is_the_librarys(x64, name):
    """Every form, forward and its gradients, of two agents whose arrays differ, in float64."""
    own = convolution.OTHERS[name](2)
    arrays = convolution.handed(own, 2, "float64")
    both = jax.jit(lambda *arrays: (jax.vmap(own.ours)(*arrays), convolution.with_gradients(own.ours)(*arrays)))
    outputs, gradients = both(*arrays)
    for form in own.in_torch(operations_in_torch).values():
        stacked = [operations_in_torch.to_torch(*pair) for pair in zip(arrays, form.takes, strict=True)]
        came, by_arguments = operations_in_torch.forward(form, *stacked), operations_in_torch.gradients(form, *stacked)
        if not form.together:
            came, by_arguments = torch.stack(came), [torch.stack(parts) for parts in zip(*by_arguments, strict=True)]
        expect_close(came, form.gives, outputs)
        for actual, layout, desired in zip(by_arguments, form.takes, gradients, strict=True):
            expect_close(actual, layout, desired)


def expect_close(actual, layout, desired):
    actual = operations_in_torch.from_torch(actual, layout).numpy()
    np.testing.assert_allclose(actual, desired, rtol=0, atol=1e-9 * np.abs(desired).max(), strict=True)


@pytest.mark.parametrize("precision", convolution.PRECISIONS)
def test_arrays_reach_pytorch_in_their_precision_and_as_they_shall_lie(precision):
    arrays = [jax.random.normal(jax.random.key(0), shape, precision) for shape in [(2, 3, 5, 5, 4), (2, 3, 3, 4, 6)]]
    layouts = operations_in_torch.CHANNELS_LAST, operations_in_torch.KERNEL
    for array, layout, shape in zip(arrays, layouts, [(3, 4, 5, 5), (6, 4, 3, 3)], strict=True):
        tensor = operations_in_torch.to_torch(array, layout)
        assert tensor.dtype == getattr(torch, precision)
        assert all(own.shape == shape and own.is_contiguous(memory_format=torch.channels_last) for own in tensor)
        np.testing.assert_array_equal(operations_in_torch.from_torch(tensor, layout).float(), array.astype("float32"))
