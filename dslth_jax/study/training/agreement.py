"""How much the masks of agents agree, beyond chance, how far their scores are apart, and whether it matters what these
have to tell apart. Host side."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, UInt8

from dslth_jax.algorithm import by_name, layer_of

MOST_AGENTS = 64  # of more, so many are compared: pairs grow with the square
BLOCK = 2**12  # words of 64 bits: a block of 64 agents, 2 MB, stays in a processor's cache


class Pairs(NamedTuple):
    """The pairs of agents that are compared with each other, and which of them hold a class in common."""

    agents: Int[np.ndarray, "chosen"]  # all, or some of many
    of_all: Bool[np.ndarray, "chosen chosen"]  # each pair once
    common: Bool[np.ndarray, "chosen chosen"]

    def means(self, name: str, values: Float[np.ndarray, "chosen chosen"] | None) -> dict[str, float | None]:
        """The mean over all pairs, over those that hold a class in common, and over those that hold none; None of no
        values, or of no pairs."""
        where = {name: self.of_all, f"{name}_common": self.of_all & self.common}
        where[f"{name}_apart"] = self.of_all & ~self.common
        return {
            key: float(values[own].mean()) if values is not None and own.any() else None for key, own in where.items()
        }


def pairs_of(held: Int[np.ndarray, "agents classes"]) -> Pairs:
    """The pairs of agents that hold so many samples of each class."""
    chosen = np.linspace(0, len(held) - 1, min(len(held), MOST_AGENTS)).astype(int)
    own = (held[chosen] > 0).astype(np.int64)
    return Pairs(chosen, np.triu(np.ones((len(own), len(own)), bool), 1), own @ own.T > 0)


def agreement_row(masks: Any, maskable: Any, pairs: Pairs) -> dict[str, float | None]:
    """How much masks agree, mean over pairs of agents.

    `masks` are packed bits with an agents axis, of ternary masks by planes, `maskable` the shapes of one agent's masks;
    None stands for no masks. Ours.
    """
    if masks is None:
        return pairs.means("agreement", None)
    sizes = {name: leaf.size for name, leaf in by_name(maskable).items()}
    agree = correlations(
        (np.asarray(bits)[pairs.agents], sizes[layer_of(name)]) for name, bits in by_name(masks).items()
    )
    return pairs.means("agreement", agree)


def spread_row(magnitudes: Any, maskable: Any, pairs: Pairs) -> dict[str, float | None]:
    """How far scores are apart, mean over pairs of agents: 1 less the rank correlation of their magnitudes (of ternary
    masks: of the scores), layer by layer, by the layers' entries. It is 0 where both rank all entries alike, as a
    threshold sees them, and 1 where they have nothing to do with each other.

    `magnitudes` are those of some entries of each layer, the same for all, with an agents axis; `maskable` are the
    shapes of one agent's masks, of the same structure; None stands for agents whose masks are not of scores. Ours.
    """
    if magnitudes is None:
        return pairs.means("score_spread", None)

    def layer(own: Any, entries: int) -> tuple[int, Any, Any]:
        places = pd.DataFrame(np.asarray(own)[pairs.agents]).rank(axis=1).to_numpy()
        # Twice the place from the middle: whole numbers, so that products sum exactly in any order.
        ranks = 2 * places - own.shape[1] - 1
        products = ranks @ ranks.T
        return entries, products, np.sqrt(np.outer(np.diag(products), np.diag(products)))

    layers = zip(jax.tree.leaves(magnitudes), jax.tree.leaves(maskable), strict=True)
    alike = mean_over_layers(layer(own, leaf.size) for own, leaf in layers)
    return pairs.means("score_spread", np.maximum(1 - alike, 0))


def correlations(
    layers: Iterable[tuple[UInt8[np.ndarray, "agents bytes"], int]],
) -> Float[np.ndarray, "agents agents"]:
    """The correlation of every two agents' masks, layer by layer, and the mean of these by the layers' entries. It is 1
    for masks that are the same, and 0 for those that have nothing to do with each other.

    >>> correlations([(np.packbits([[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0]], axis=1), 4)]).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    def layer(bits: UInt8[np.ndarray, "agents bytes"], entries: int) -> tuple[int, Any, Any]:
        common = intersections(bits) / entries
        kept = np.diag(common)
        spread = np.sqrt(kept * (1 - kept))
        return entries, common - np.outer(kept, kept), np.outer(spread, spread)

    return mean_over_layers(layer(*own) for own in layers)


def mean_over_layers(layers: Iterable[tuple[int, Any, Any]]) -> Float[np.ndarray, "agents agents"]:
    """The correlation of every two agents, product / scale of each layer, and the mean of these by the layers' entries.

    A layer whose scale is 0, because an agent has all of its entries alike, says nothing of this agent; where no layer
    says anything, the correlation is 1.
    """
    total, weight = np.zeros(()), np.zeros(())
    for entries, products, scale in layers:
        alike = np.divide(products, scale, out=np.zeros(scale.shape), where=scale > 0)
        total, weight = total + entries * alike, weight + entries * (scale > 0)
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
