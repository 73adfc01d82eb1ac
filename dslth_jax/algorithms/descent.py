"""Local descent: the loss of a minibatch, and the local steps of a round by any optimizer. One agent's world."""

from collections.abc import Callable, Collection
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from dslth_jax.algorithm import Batch, belongs_to, by_name, with_names
from dslth_jax.networks.network import Network

Parameters: TypeAlias = PyTree[Float[Array, "..."]]
BINS = 64  # powers of two by which squared gradients are counted
Number: TypeAlias = float | Float[Array, ""]
# (parameters, sample) -> (what is descended, the loss that is reported)
Loss: TypeAlias = Callable[..., tuple[Array, Array]]


def batch_loss(network: Network, variables: Any, batch: Batch, label_smoothing: Number = 0.0) -> Float[Array, ""]:
    """The loss of one minibatch in nats, `cross_entropy` averaged over the samples that are present; of a network with
    exits the mean over these, with what they learn from each other."""
    if network.exits is None:
        losses = cross_entropy(network.apply(variables, batch.images), batch.labels, label_smoothing)
    else:
        logits = network.exits(variables, batch.images)
        own = jax.vmap(cross_entropy, in_axes=(0, None, None))(logits, batch.labels, label_smoothing)
        losses = jnp.mean(own, axis=0) + (distillation(logits) if network.distils else 0)
    return jnp.sum(jnp.where(batch.present, losses, 0)) / jnp.sum(batch.present)


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"], label_smoothing: Number = 0.0
) -> Float[Array, "batch"]:
    """The cross-entropy of each sample in nats.

    With `label_smoothing` ε in [0, 1) every label gives a share ε to all classes alike, those that the agent never
    sees among them (Szegedy et al., CVPR 2016).

    >>> logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    >>> [round(float(cross_entropy(logits, jnp.array([0]), share)[0]), 4) for share in (0.0, 0.3)]
    [0.6931, 0.8318]
    """
    own = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    to_all = jax.nn.logsumexp(logits, axis=-1) - jnp.mean(logits, axis=-1)
    return own + label_smoothing * (to_all - own)


def distillation(logits: Float[Array, "exits batch classes"]) -> Float[Array, "batch"]:
    """What each exit lacks of the others, in nats: the mean over all pairs of KL(p_j || p_k), where k learns from j.

    Mutual distillation among the exits of one network (DepthFL, Kim et al., ICLR 2023). Nothing flows into who is
    learned from; a single exit learns nothing.
    """
    told, own = jax.nn.log_softmax(jax.lax.stop_gradient(logits)), jax.nn.log_softmax(logits)
    apart = jnp.sum(jnp.exp(told[:, None]) * (told[:, None] - own[None]), axis=-1)  # (who tells, who learns, batch)
    pairs = len(logits) * (len(logits) - 1)
    return jnp.sum(apart, axis=(0, 1)) / max(pairs, 1)


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
    trained: PyTree[Bool[Array, "steps"]] | None = None,
) -> tuple[Parameters, Any, Parameters, Float[Array, ""]]:
    """x ← after(x − η (g + wd · x)) for each of `samples`, whose leaves have a leading axis of steps.

    `trained` says of every leaf in which steps it is trained; None trains all in all of them. In the other steps the
    leaf stays as it is, and the optimizer sees a gradient of 0.

    Returns the parameters, the optimizer's state, the last direction and the mean loss.
    """

    def one(carry: tuple[Parameters, Any, Parameters], given: tuple[Any, Any]) -> tuple[Any, Array]:
        (parameters, state, _), (sample, now) = carry, given
        own_loss = loss_fn if now is None else lambda x, sample: loss_fn(only(now, x), sample)
        step, state, loss = direction(own_loss, optimizer, parameters, state, sample)
        moved = jax.tree.map(lambda x, g: x - lr * (g + weight_decay * x), parameters, step)
        moved = moved if now is None else jax.tree.map(jnp.where, now, moved, parameters)
        return (after(moved), state, step), loss

    start = (parameters, state, jax.tree.map(jnp.zeros_like, parameters))
    (parameters, state, step), losses = jax.lax.scan(one, start, (samples, trained))
    return parameters, state, step, jnp.mean(losses)


def only(trained: PyTree[Bool[Array, ""]], parameters: Parameters) -> Parameters:
    """The same parameters, of which only the trained ones have a gradient."""
    return jax.tree.map(lambda now, x: jnp.where(now, x, jax.lax.stop_gradient(x)), trained, parameters)


def in_turn(parameters: Parameters, head: Collection[str], steps: int) -> PyTree[Bool[Array, "steps"]] | None:
    """In which of a round's local steps each leaf is trained, for `local_steps`: the head first, then all else.

    The first ⌈steps / 2⌉ steps train the layers of `head` alone, the others all but these (FedRep: Collins et al., ICML
    2021). Without a head it is None: every step trains everything. A ValueError unless each part has a step.

    >>> turns = in_turn({"base": jnp.zeros(1), "head": jnp.zeros(1)}, ["head"], 3)
    >>> turns["head"].tolist(), turns["base"].tolist()
    ([True, True, False], [False, False, True])
    """
    if not head:
        return None
    if steps < 2:
        raise ValueError(f"a head that is trained first needs at least 2 local steps a round, got {steps}: take more")
    of_head = jnp.arange(steps) < steps - steps // 2

    def one(name: str, leaf: Any) -> Array:
        del leaf
        return of_head if any(belongs_to(name, layer) for layer in head) else ~of_head

    return with_names(one, parameters)


def squares_of(optimizer: optax.OptState, step: Parameters) -> dict[str, Float[Array, "2 bins"]]:
    """The spectrum of squared gradients of each layer, from an optimizer's state and its last direction."""
    squares = optax.tree.get(optimizer, "nu", None)
    squares = jax.tree.map(jnp.square, step) if squares is None else squares
    return {name: spectrum(leaf) for name, leaf in by_name(squares).items()}


def spectrum(squares: Float[Array, "..."]) -> Float[Array, "2 bins"]:
    """How many entries of a layer have a g² between two powers of two, and the sum of these; one agent's world. What is
    below 2^-63 counts in the first bin, and 1 and all above in the last.

    >>> of_layer = spectrum(jnp.array([0.3, 0.25, 2.0, 0.0]))
    >>> of_layer[0, 0].item(), of_layer[0, 61:].tolist(), round(float(of_layer[1, 61]), 3)
    (1.0, [2.0, 0.0, 1.0], 0.55)
    """
    flat = squares.reshape(-1)
    bins = jnp.where(flat > 0, jnp.clip(jnp.frexp(flat)[1] - 1 + BINS - 1, 0, BINS - 1), 0)
    return jax.lax.platform_dependent(flat, bins, cpu=_into_bins, default=_bin_by_bin)


def _into_bins(flat: Float[Array, "size"], bins: Int[Array, "size"]) -> Float[Array, "2 bins"]:
    """Entry after entry into its bin: on accelerators most would wait for the same few, and add in no fixed order."""
    zeros = jnp.zeros(BINS, flat.dtype)
    return jnp.stack([zeros.at[bins].add(1), zeros.at[bins].add(flat)])


def _bin_by_bin(flat: Float[Array, "size"], bins: Int[Array, "size"]) -> Float[Array, "2 bins"]:
    """Every entry looked at for each bin."""
    inside = bins[None] == jnp.arange(BINS)[:, None]
    return jnp.stack([jnp.sum(inside, 1, jnp.int32).astype(flat.dtype), jnp.sum(jnp.where(inside, flat[None], 0), 1)])
