"""Which channels live: of every layer but the heads, how many filters or rows keep any entry. Host side."""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dslth_jax.algorithm import belongs_to, by_name, layer_of
from dslth_jax.study.results.metrics import ALIVE

Shares = dict[str, Float[np.ndarray, "agents"]]


def shares_alive(masks: Any, maskable: Any, heads: Collection[str]) -> Shares:
    """The share of its channels that live in each agent's model: of all layers but the heads together, under "alive",
    and of each layer, under "alive/conv1". A channel lives if its filter, or its row of a linear layer, keeps an entry.

    `masks` are packed bits with an agents axis, of ternary masks by planes; `maskable` has the shapes of one agent's.
    Empty where there are no masks, or heads alone.
    """
    planes = by_name(masks)
    alive: dict[str, np.ndarray] = {}
    shapes = {name: leaf.shape for name, leaf in by_name(maskable).items()}
    for name, bits in planes.items():
        layer = layer_of(name)
        if any(belongs_to(layer, head) for head in heads):
            continue
        fed = np.stack([outputs_fed(own, shapes[layer]) for own in np.asarray(bits)])
        alive[layer] = fed if layer not in alive else alive[layer] | fed
    if not alive:
        return {}
    every = np.concatenate([*alive.values()], axis=1)
    of_layers = {f"{ALIVE}/{layer.rpartition('/')[0] or layer}": fed.mean(axis=1) for layer, fed in alive.items()}
    return {ALIVE: every.mean(axis=1), **of_layers}


def outputs_fed(bits: UInt8[np.ndarray, "bytes"], shape: tuple[int, ...]) -> np.ndarray:
    """Which outputs of a layer keep an entry, by one agent's bits as `masks.pack` makes them.

    >>> outputs_fed(np.array([0b100], np.uint8), (2, 2)).tolist()
    [True, False]
    """
    planes = (bits[None] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return planes.reshape(-1)[: int(np.prod(shape))].reshape(-1, shape[-1]).max(axis=0) > 0
