"""Whole masked networks are their twins in plain numpy, in float64: logits, and their derivatives by the masks."""

import functools
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_networks as twins
from test_depth import TwoStages
from tiny import slow_but

from dslth_jax.algorithm import by_name
from dslth_jax.depth import absent, kept_without
from dslth_jax.keys import key_of
from dslth_jax.networks.network import network_of, tree_of
from dslth_jax.networks.zoo import MODULES, network_by_name

CLASSES, BATCH, DIRECTIONS = 3, 2, 3
WIDTHS = {"resnet20": 0.5, "mobilenetv2": 0.25, "vit-tiny": 0.0625}  # of others 0.125
HEIGHTS = {"alexnet": 21, "vgg11": 32}  # of others 8 pixels; all images are wider than high
NORMED = ("two-stages", "resnet18", "resnet20", "mobilenetv2")  # by norms over live channels
TWINS = {**twins.NETWORKS, "two-stages": functools.partial(twins.residual_network, stages=2, blocks=2, projected=False)}


@functools.cache
def made(name):
    """A small network, and the shape of its images."""
    shape = (HEIGHTS.get(name, 8), HEIGHTS.get(name, 8) + 4, 3)
    if name == "two-stages":
        return network_of(TwoStages(CLASSES, width=2.0), shape), shape
    return network_by_name(name, shape, CLASSES, width=WIDTHS.get(name, 0.125)), shape


def binary_masks(name, shapes, rng):
    """Masks that keep half of all entries, and depthwise kernels whole. In convolutions there are further rules:

    - Channels 1, 5, 9 ... keep nothing, and so they are dead.
    - Channels 2, 6, 10 ... read only such channels. Behind the stem they are dead, too, though they keep entries.
    - Channels 7, 15 ... read only those. They are dead unless a shortcut keeps the channels alive that they read.
    """
    masks = {layer: np.where(rng.random(shape) < 0.5, 1.0, 0.0) for layer, shape in shapes.items()}
    for layer, role in made(name)[0].roles.items():
        if role == "depthwise":
            masks[layer][:] = 1
        elif role == "convolution":
            reads = np.arange(shapes[layer][2]) % 4
            masks[layer][..., 1::4] = 0
            masks[layer][..., reads != 1, 2::4] = 0
            masks[layer][..., reads != 2, 7::8] = 0
    return masks


def agents_of(name, shapes, rng):
    """The masks of three agents: binary ones, ternary ones, and binary ones that lack half of the blocks that an agent
    may lack. Of a network without such blocks there are two agents."""
    binary, stages = binary_masks(name, shapes, rng), made(name)[0].stages
    agents = {"binary": binary}
    agents["ternary"] = {layer: mask * rng.choice([-1, 1], mask.shape) for layer, mask in binary.items()}
    if stages:
        depth = len(stages) + (sum(map(len, stages)) - len(stages)) // 2
        has = by_name(kept_without(tree_of(dict.fromkeys(binary, 1)), absent(stages, depth)))
        agents["lacking"] = {layer: mask * has[layer] for layer, mask in binary.items()}
    return agents


def logits_and_gradients(network, agents, weights, *others, together):
    """Each agent's logits by the library, and the gradient of their sum, weighted by a cotangent, with respect to its
    masks. Agents are computed one after another, or all together."""

    def one(masks, weights, frozen, pixels, cotangent):
        def weighted(masks):
            variables = {"params": tree_of(jax.tree.map(jnp.multiply, weights, masks)), "frozen": tree_of(frozen)}
            logits = network.apply(variables, pixels)
            return jnp.sum(logits * cotangent), logits

        (_, logits), gradient = jax.value_and_grad(weighted, has_aux=True)(masks)
        return logits, gradient

    if together:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *agents.values())
        found = jax.device_get(jax.jit(jax.vmap(one, (0, None, None, None, None)))(stacked, weights, *others))
        return {agent: jax.tree.map(itemgetter(n), found) for n, agent in enumerate(agents)}
    alone = jax.jit(one)
    return {agent: jax.device_get(alone(masks, weights, *others)) for agent, masks in agents.items()}


def by_layer(leaves):
    return {name.rpartition("/")[0]: leaf for name, leaf in leaves.items()}


def assert_as_its_twin(name, *, together):
    """Logits agree to 1e-9 of their size, and so do derivatives along random directions of all entries, kept or not.

    Gradients are finite. They are exactly 0 in absent blocks, and, where norms are over live channels, at the entries
    that make a dead channel and at those that read it.
    """
    (network, shape), rng = made(name), np.random.default_rng(0)
    masked, frozen = (
        {layer: leaf.shape for layer, leaf in by_name(tree).items()} for tree in jax.eval_shape(network.init, key_of(0))
    )
    # Where half of them are kept, what comes out of a layer is about as large as what goes in.
    weights = {layer: rng.normal(size=own) * 2 / np.sqrt(np.prod(own[:-1])) for layer, own in masked.items()}
    biases = {layer: rng.normal(size=own) for layer, own in frozen.items()}
    pixels, cotangent = rng.integers(0, 256, (BATCH, *shape), np.uint8), rng.normal(size=(BATCH, CLASSES))
    agents = agents_of(name, masked, rng)
    found = logits_and_gradients(network, agents, weights, biases, pixels, cotangent, together=together)
    for agent, masks in agents.items():
        logits, gradient = found[agent]
        kernels = by_layer({layer: weights[layer] * mask for layer, mask in masks.items()})
        for _ in range(DIRECTIONS):
            direction = {layer: rng.normal(size=own) for layer, own in masked.items()}
            moved = by_layer({layer: weights[layer] * own for layer, own in direction.items()})
            expected, slopes = twins.logits_and_derivative(TWINS[name], kernels, moved, by_layer(biases), pixels)
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=agent)
            along = sum(np.sum(gradient[layer] * own) for layer, own in direction.items())
            np.testing.assert_allclose(along, np.sum(slopes * cotangent), rtol=1e-9, err_msg=agent)
        for layer, own in gradient.items():
            assert np.isfinite(own).all()
            assert own.any() == masks[layer].any(), (agent, layer)  # only the layers of absent blocks keep nothing
            if name in NORMED:
                role = network.roles[layer]
                assert role == "linear" or not own[..., 1::4].any()
                assert role == "depthwise" or layer == "stem/kernel" or not own[..., 1::4, :].any()


def test_every_network_of_the_zoo_has_a_twin():
    assert set(twins.NETWORKS) == set(MODULES)


@pytest.mark.parametrize("name", slow_but(TWINS, "two-stages", "vit-tiny", "alexnet"))
def test_a_masked_network_is_its_twin_in_numpy(name, x64):
    """Logits and gradients, of binary and of ternary masks, with dead channels, and of an agent that lacks blocks."""
    assert_as_its_twin(name, together=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", TWINS)
def test_agents_computed_together_are_each_its_twin(name, x64):
    """The same of all agents under one `vmap`, where an absent block is computed with those of others and left out."""
    assert_as_its_twin(name, together=True)
