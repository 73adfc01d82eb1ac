"""A trained target: what its accuracy suffers from perturbed weights, and in a random network. Rows of measurements.

The network is a convolution of eight filters, a ReLU, max pooling and a linear layer, both with biases; in the form of
`tickets`, whose last kernel is as large as the pooled image. Weights are scaled, layer by layer, so that the largest is
1/2: for a ReLU that turns all logits by one factor, and no label changes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from jax import lax

from dslth_jax import tickets
from dslth_jax.keys import key_of, reproducible
from dslth_jax.study.data.form import Dataset
from dslth_jax.tickets import Form

FILTERS, STEPS, BATCH = 8, 1500, 64
MOST_TESTED = 2000
FORM = Form(pool=2, constant=True)
LEVELS = (0.3, 0.1, 0.03, 0.01, 0.003)


class Target(NamedTuple):
    """A trained network, and its test images."""

    kernels: list[np.ndarray]
    biases: list[np.ndarray]
    images: np.ndarray
    labels: np.ndarray


@reproducible
def train(seed: int, dataset: Dataset) -> Target:
    """Train the network by Adam on all training images; its weights are scaled."""
    side, inputs = dataset.train_images.shape[1], dataset.train_images.shape[3]
    rest = (side - 2) // FORM.pool
    shapes = [(3, 3, inputs, FILTERS), (rest, rest, FILTERS, dataset.classes)]
    keys = jax.random.split(key_of(seed), 3)
    start = [
        jax.random.normal(key, own) * np.sqrt(2 / np.prod(own[:3])) for key, own in zip(keys, shapes, strict=False)
    ]
    variables = [(kernel, jnp.zeros(kernel.shape[-1])) for kernel in start]
    optimizer = optax.adam(optax.cosine_decay_schedule(0.005, STEPS))
    images, labels = jnp.asarray(dataset.train_images / np.float32(255)), jnp.asarray(dataset.train_labels)

    def loss(variables: Any, chosen: Any) -> Any:
        (kernel, bias), (head, head_bias) = variables
        hidden = lax.conv_general_dilated(
            images[chosen], kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        window = (1, FORM.pool, FORM.pool, 1)
        pooled = lax.reduce_window(
            jax.nn.relu(hidden + bias[None, None, None]), -jnp.inf, lax.max, window, window, "VALID"
        )
        logits = jnp.tensordot(pooled, head, 3) + head_bias[None]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()

    def step(carry: Any, key: Any) -> Any:
        variables, memory = carry
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        updates, memory = optimizer.update(jax.grad(loss)(variables, chosen), memory)
        return (optax.apply_updates(variables, updates), memory), None

    run = jax.jit(lambda *carry: lax.scan(step, carry, jax.random.split(keys[2], STEPS)))
    ((kernel, bias), (head, head_bias)), _ = run(variables, optimizer.init(variables))[0]
    first, second = (np.asarray(own, float) for own in (kernel, head))
    scale = 2 * max(np.abs(first).max(), np.abs(bias).max())
    lifted = np.asarray(head_bias, float) / scale
    last = 2 * max(np.abs(second).max(), np.abs(lifted).max())
    tested = slice(MOST_TESTED)
    return Target(
        [first / scale, second / last],
        [np.asarray(bias, float) / scale, lifted / last],
        dataset.test_images[tested] / 255.0,
        dataset.test_labels[tested],
    )


def accuracy(target: Target, answers: np.ndarray) -> float:
    """The share of test images whose largest logit is their label's."""
    return float((answers[:, 0, 0].argmax(axis=1) == target.labels).mean())


def exact(target: Target) -> float:
    """The accuracy of the target itself."""
    return accuracy(target, tickets.answers(target.kernels, target.images, target.biases, FORM))


def perturbed(rng: np.random.Generator, target: Target, draws: int) -> pd.DataFrame:
    """The accuracy with a number from U[-ε, ε] added to every weight and bias, or ±ε: median and worst of draws."""
    rows = []
    for level in LEVELS:
        for law in ("uniform", "signs"):

            def moved(values: np.ndarray, law: str = law, level: float = level) -> np.ndarray:
                drawn = rng.uniform(-1, 1, values.shape)
                return values + level * (drawn if law == "uniform" else np.sign(drawn))

            found = []
            for _ in range(draws):
                kernels, biases = [moved(own) for own in target.kernels], [moved(own) for own in target.biases]
                found.append(accuracy(target, tickets.answers(kernels, target.images, biases, FORM)))
            rows.append({"ε": level, "law": law, "median": np.median(found), "worst": min(found)})
    return pd.DataFrame(rows)


def in_random_networks(rng: np.random.Generator, target: Target, draws: int, widths: Sequence[int]) -> pd.DataFrame:
    """The accuracy of the target as a mask of random networks: median and worst of draws, by n, with the largest error
    of an entry of a kernel, and its root mean square."""
    shapes = [(len(kernel), kernel.shape[2], kernel.shape[3]) for kernel in target.kernels]
    rows = []
    for width in widths:
        found, errors = [], []
        for _ in range(draws):
            network = tickets.random_network(rng, shapes, width, FORM)
            masks = tickets.masks_for(
                network, [own[None] for own in target.kernels], [own[None] for own in target.biases], FORM
            )
            found.append(accuracy(target, tickets.masked_answers(network, masks, 0, target.images, FORM)))
            for pair, own, kernel in zip(network, masks, target.kernels, strict=True):
                reached = (pair.odd * own.odd) @ (pair.even * own.even[0])
                errors.append((reached[:, :, : kernel.shape[2]] - kernel).ravel())
        every = np.concatenate(errors)
        largest = np.median([np.abs(own).max() for own in errors])
        numbers = {"median": np.median(found), "worst": min(found)}
        rows.append({"n": width, **numbers, "largest": largest, "rms": np.sqrt(np.mean(every**2))})
    return pd.DataFrame(rows)
