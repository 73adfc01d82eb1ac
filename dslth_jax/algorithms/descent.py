"""Local descent: the loss of a minibatch, and the local steps of a round by any optimizer. One agent's world."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dslth_jax.algorithm import Batch
from dslth_jax.networks.network import Network

Parameters: TypeAlias = PyTree[Float[Array, "..."]]
Number: TypeAlias = float | Float[Array, ""]
# (parameters, sample) -> (what is descended, the loss that is reported)
Loss: TypeAlias = Callable[..., tuple[Array, Array]]


def batch_loss(network: Network, variables: Any, batch: Batch) -> Float[Array, ""]:
    """Cross-entropy of one minibatch in nats, the mean over the samples that are present."""
    logits = network.apply(variables, batch.images)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    return jnp.sum(jnp.where(batch.present, losses, 0)) / jnp.sum(batch.present)


def direction(
    loss_fn: Loss, optimizer: optax.GradientTransformation, parameters: Parameters, state: Any, sample: Any
) -> tuple[Parameters, Any, Array]:
    """What the optimizer makes of the gradient on one sample, its new state, and the loss. Decay is no part of it."""
    gradient, loss = jax.grad(loss_fn, has_aux=True)(parameters, sample)
    step, state = optimizer.update(gradient, state, parameters)
    return step, state, loss


def local_steps(
    loss_fn: Loss,
    optimizer: optax.GradientTransformation,
    parameters: Parameters,
    state: Any,
    samples: Any,
    *,
    lr: Number,
    weight_decay: Number = 0.0,
    after: Callable[[Parameters], Parameters] = lambda parameters: parameters,
) -> tuple[Parameters, Any, Parameters, Float[Array, ""]]:
    """x ← after(x − η (g + wd · x)) for each of `samples`, whose leaves have a leading axis of steps.

    Returns the parameters, the optimizer's state, the last direction and the mean loss.
    """

    def one(carry: tuple[Parameters, Any, Parameters], sample: Any) -> tuple[Any, Array]:
        parameters, state, _ = carry
        step, state, loss = direction(loss_fn, optimizer, parameters, state, sample)
        parameters = jax.tree.map(lambda x, g: x - lr * (g + weight_decay * x), parameters, step)
        return (after(parameters), state, step), loss

    start = (parameters, state, jax.tree.map(jnp.zeros_like, parameters))
    (parameters, state, step), losses = jax.lax.scan(one, start, samples)
    return parameters, state, step, jnp.mean(losses)
