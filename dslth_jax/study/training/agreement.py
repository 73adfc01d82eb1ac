"""How much the masks of agents agree, beyond chance, how far their scores are apart, and whether it matters what these
have to tell apart. Host side."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8

MOST_AGENTS = 64  # of more, so many are compared: pairs grow with the square
BLOCK = 2**12  # words of 64 bits: a block of 64 agents, 2 MB, stays in a processor's cache


def agreement_row(masks: Any, maskable: Any, held: Int[np.ndarray, "agents classes"]) -> dict[str, float | None]:
    """The mean agreement of pairs of agents: of all, of those that hold a class in common, and of those that hold none.

    `masks` are packed bits with an agents axis, `maskable` the shapes of one agent's masks, of the same structure; None
    stands for no masks, and a mean over no pairs. Ours.
    """
    if masks is None:
        return of_pairs("agreement", None, held)
    chosen = compared(len(held))
    layers = zip(jax.tree.leaves(masks), jax.tree.leaves(maskable), strict=True)
    agree = correlations((np.asarray(bits)[chosen], leaf.size) for bits, leaf in layers)
    return of_pairs("agreement", agree, held[chosen])


def spread_row(magnitudes: Any, maskable: Any, held: Int[np.ndarray, "agents classes"]) -> dict[str, float | None]:
    """How far the scores of two agents are apart, mean over the same pairs: 1 less the rank correlation of their
    magnitudes, layer by layer, by the layers' entries. It is 0 where both rank all entries alike, as a threshold sees
    them, and 1 where they have nothing to do with each other.

    `magnitudes` are those of some entries of each layer, the same for all, with an agents axis; else as above. Ours.
    """
    if magnitudes is None:
        return of_pairs("score_spread", None, held)
    chosen, total, sizes = compared(len(held)), np.zeros(()), [leaf.size for leaf in jax.tree.leaves(maskable)]
    for own, size in zip(jax.tree.leaves(magnitudes), sizes, strict=True):
        # Twice the place from the middle: whole numbers, so that products sum exactly in any order.
        places = pd.DataFrame(np.asarray(own)[chosen]).rank(axis=1).to_numpy()
        ranks = (2 * places).astype(np.int64) - own.shape[1] - 1
        products = ranks @ ranks.T
        scale = np.sqrt(np.outer(np.diag(products).astype(float), np.diag(products)))
        # A layer in which all entries count alike says nothing.
        total = total + size * np.divide(products, scale, out=np.zeros(scale.shape), where=scale > 0)
    return of_pairs("score_spread", np.maximum(1 - total / sum(sizes), 0), held[chosen])


def compared(agents: int) -> Int[np.ndarray, "_"]:
    """The agents that are compared with each other: all, or some of many."""
    return np.linspace(0, agents - 1, min(agents, MOST_AGENTS)).astype(int)


def of_pairs(
    name: str, values: Float[np.ndarray, "agents agents"] | None, held: Int[np.ndarray, "agents classes"]
) -> dict[str, float | None]:
    """The mean over pairs of agents: of all, of those that hold a class in common, of those that hold none."""
    names = (name, f"{name}_common", f"{name}_apart")
    if values is None:
        return dict.fromkeys(names)
    own = (held > 0).astype(np.int64)
    pairs, common = np.triu(np.ones(values.shape, bool), 1), own @ own.T > 0
    return dict(zip(names, (mean_of(values, where) for where in (pairs, pairs & common, pairs & ~common)), strict=True))


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
