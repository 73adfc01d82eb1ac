"""What the numpy oracles ask of the library: the driver's minibatches, derivatives of the network, masks unpacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from dslth_jax import population
from dslth_jax.algorithm import by_name, mask_of, planes_of


@functools.partial(jax.jit, static_argnames=("local_steps", "batch"))
def draws(world, shares, local_steps, batch):
    """The minibatches that the driver draws for all agents in a round, and which of their samples are real."""

    def of_agent(number, indices, size):
        keys = jax.random.split(population.agent_key(world, number, population.DRAW), local_steps + 1)
        return jax.vmap(lambda key: population.draw(key, indices, size, batch))(keys)

    return jax.vmap(of_agent)(jnp.arange(len(shares.sizes)), shares.indices, shares.sizes)


def drawn_batches(world, shares, local_steps, batch):
    """The same as lists, without what only fills a batch up: of each agent, of each of its steps."""
    drawn, real = jax.device_get(draws(world, shares, local_steps, batch))
    return [[own[kept] for own, kept in zip(*steps, strict=True)] for steps in zip(drawn, real, strict=True)]


def derivative_of(network, batch):
    """The mean cross-entropy of samples of a data set to smoothed labels, and its derivative by the variables. One
    program serves all numbers of samples up to `batch`, because they are filled up."""

    @jax.jit
    @jax.value_and_grad
    def loss_and_derivative(variables, images, labels, real, smoothing):
        likely = jax.nn.log_softmax(network.apply(variables, images))
        losses = -(1 - smoothing) * likely[jnp.arange(batch), labels] - smoothing * jnp.mean(likely, axis=1)
        return jnp.sum(losses * real) / jnp.sum(real)

    def of_samples(variables, shares, samples, smoothing):
        chosen, real = np.resize(samples, batch), np.arange(batch) < len(samples)
        images, labels = np.asarray(shares.images)[chosen], np.asarray(shares.labels)[chosen]
        return loss_and_derivative(variables, images, labels, real, smoothing)

    return of_samples


@jax.jit
def unpacked_layers(bits, like):
    """Everybody's masks, layers by their names, of a message's bits or of a pytree of bits."""
    bits = by_name(bits)
    return {
        name: jax.vmap(lambda own, name=name, leaf=leaf: mask_of(own, name, leaf))(bits)
        for name, leaf in by_name(like).items()
        if planes_of(bits, name)
    }
