"""A yardstick: batches drawn from the training images of all agents, as if these lay in one place.

An agent draws classes as often as it holds them, and of each class any agent's images. What training alone gains by it
is what is missing of more images, and so an idea of what collaboration could be worth. It is no method, because images
leave their agents, and no bound, because messages can carry more than images do. Ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, Key

from dslth_jax.keys import reproducible


class Pool(NamedTuple):
    """Which samples of each class there are, of all agents together. Common to all."""

    indices: Int[Array | np.ndarray, "classes capacity"]  # of samples; those of the class come first, then padding
    sizes: Int[Array | np.ndarray, "classes"]  # how many there are


def pool_of(
    labels: Int[np.ndarray, "samples"], own: Sequence[Int32[np.ndarray, "_"]], classes: int | None = None
) -> Pool:
    """The pool of every agent's `own` samples, each once, even where several agents hold it. Host side.

    `labels` are of all samples; `classes` says how many there are, None counts up to the largest label.

    >>> pool = pool_of(np.array([0, 1, 0, 1, 1]), [np.array([0, 3], np.int32), np.array([0, 2], np.int32)])
    >>> pool.indices.tolist(), pool.sizes.tolist()
    ([[0, 2], [3, 0]], [2, 1])
    """
    held = np.unique(np.concatenate(own)).astype(np.int32)
    of_class = [held[labels[held] == one] for one in range(int(labels.max()) + 1 if classes is None else classes)]
    sizes = np.array([len(samples) for samples in of_class], np.int32)
    return Pool(np.stack([np.pad(samples, (0, sizes.max() - len(samples))) for samples in of_class]), sizes)


@reproducible
def draw_pooled(
    key: Key[Array, ""],
    labels: Int[Array | np.ndarray, "samples"],
    indices: Int[Array, "capacity"],
    size: Int[Array, ""],
    pool: Pool,
    batch_size: int,
) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
    """A minibatch of the pool, with replacement; one agent's world.

    Each place takes the class of a sample drawn from the agent's own (`indices`, of which `size` are its own; `labels`
    are of all samples), then a sample drawn from all of this class. Returns sample indices and which of them are real,
    which all are, as in `population.draw`.
    """
    labels, pool = jax.tree.map(jnp.asarray, (labels, pool))
    of_class, of_sample = jax.random.split(key)
    wanted = labels[indices[jax.random.randint(of_class, (batch_size,), 0, size, jnp.int32)]]
    places = jax.random.randint(of_sample, (batch_size,), 0, pool.sizes[wanted], jnp.int32)
    return pool.indices[wanted, places], jnp.ones(batch_size, bool)
