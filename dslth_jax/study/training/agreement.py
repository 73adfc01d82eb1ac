"""How much the masks of agents agree, beyond chance, and whether it matters what they have to tell apart. Host side."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MOST_AGENTS = 64  # of more, so many are compared: pairs grow with the square
BLOCK = 2**12  # words of 64 bits: a block of 64 agents, 2 MB, stays in a processor's cache


def agreement_row(masks: Any, maskable: Any, held: Int[np.ndarray, "agents classes"]) -> dict[str, float | None]:
    """The mean agreement of pairs of agents: of all, of those that hold a class in common, and of those that hold none.

    `masks` are packed bits with an agents axis, `maskable` the shapes of one agent's masks, of the same structure; None
    stands for no masks, and a mean over no pairs. Ours.
    """
    names = ("agreement", "agreement_common", "agreement_apart")
    if masks is None:
        return dict.fromkeys(names)
    chosen = np.linspace(0, len(held) - 1, min(len(held), MOST_AGENTS)).astype(int)
    layers = zip(jax.tree.leaves(masks), jax.tree.leaves(maskable), strict=True)
    agree = correlations((np.asarray(bits)[chosen], leaf.size) for bits, leaf in layers)
    own = (held[chosen] > 0).astype(np.int64)
    pairs, common = np.triu(np.ones(agree.shape, bool), 1), own @ own.T > 0
    return dict(zip(names, (mean_of(agree, where) for where in (pairs, pairs & common, pairs & ~common)), strict=True))


def mean_of(values: Float[np.ndarray, "agents agents"], where: Bool[np.ndarray, "agents agents"]) -> float | None:
    """The mean of some values, None of none."""
    return float(values[where].mean()) if where.any() else None


def correlations(
    layers: Iterable[tuple[UInt8[np.ndarray, "agents bytes"], int]],
) -> Float[np.ndarray, "agents agents"]:
    """The correlation of every two agents' masks, layer by layer, and the mean of these by the layers' entries. It is 1
    for masks that are the same, and 0 for those that have nothing to do with each other.

    >>> correlations([(np.packbits([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], axis=1), 4)]).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    total, weight = np.zeros(()), np.zeros(())
    for bits, entries in layers:
        common = intersections(bits) / entries
        kept = np.diag(common)
        spread = np.sqrt(kept * (1 - kept))
        scale = np.outer(spread, spread)
        # Masks that keep all, or nothing, of a layer say nothing of it.
        agree = np.divide(common - np.outer(kept, kept), scale, out=np.zeros(common.shape), where=scale > 0)
        total, weight = total + entries * agree, weight + entries * (scale > 0)
    return np.divide(total, weight, out=np.ones(np.shape(total)), where=weight > 0)


def intersections(bits: UInt8[np.ndarray, "agents bytes"]) -> Int[np.ndarray, "agents agents"]:
    """How many ones every two rows of packed bits have in common; on the diagonal, how many each has."""
    agents, length = bits.shape
    words = np.zeros((agents, -(-length // 8)), np.uint64)
    words.view(np.uint8)[:, :length] = bits
    counts = np.zeros((agents, agents), np.int64)
    for start in range(0, words.shape[1], BLOCK):
        block = words[:, start : start + BLOCK]
        for agent in range(agents):
            counts[agent, agent:] += np.bitwise_count(block[agent] & block[agent:]).sum(axis=1, dtype=np.int64)
    return counts + np.triu(counts, 1).T
