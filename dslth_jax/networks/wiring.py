"""What connects a network's layers, and what is left of a layer that has been cut: see `compaction`. One agent's world.

A network that can be made smaller says which layer reads and which one makes each *set of channels*: an axis that
several layers share. Layers of a cut network find what is left of them in a flax collection of constants, "cuts".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Int

IMAGES = "images"  # the set of channels of what goes in

# Which channels before a layer's norm each channel behind it depends on: itself, its group, or its window.
Mixing = Literal["none", "groups", "window"]


class Layer(NamedTuple):
    """What a layer reads and makes. A linear one may read a set flattened, (height, width, channels) in that order.

    An entry without a kernel is a shortcut, which hands on the first channels of what it reads.
    """

    reads: str  # a set of channels
    writes: str  # a set of channels: the sum of all that write to it
    mixing: Mixing = "none"
    # What a biased layer's outputs pass through, entry by entry; an output that no image moves is a constant behind it.
    activation: Callable[[Array], Array] | None = None


class Attention(NamedTuple):
    """Sets of channels that attention makes one set of, the one of values: equal parts of each are a head."""

    query: str
    key: str
    value: str
    heads: int


class Wiring(NamedTuple):
    """A network's layers by the paths of their modules, in the order in which they are applied."""

    layers: Mapping[str, Layer]
    whole: Collection[str] = ()  # further sets that are never cut, as images and logits are not
    attentions: Sequence[Attention] = ()


def chain(layers: Sequence[str], activation: Callable[[Array], Array], *, windowed: Collection[str] = ()) -> Wiring:
    """The wiring of layers of which each reads the one before, pooled or flattened, and the first reads images.

    Those of `windowed` have a response norm behind them.

    >>> chain(["conv1", "linear1"], jnp.abs).layers["linear1"].reads
    'conv1'
    """
    return Wiring(
        {
            name: Layer(reads, name, "window" if name in windowed else "none", activation)
            for reads, name in zip([IMAGES, *layers], layers, strict=False)
        }
    )


class Cut(NamedTuple):
    """What is left of a layer. All numpy: a network is compiled for it."""

    numbers: Int[np.ndarray, "outputs"]  # the channels that it makes, by their numbers in the whole network, ascending
    of: int  # how many those were
    live: Bool[np.ndarray, "outputs"]  # which ones anything feeds; others fill up
    taken: Int[np.ndarray, "inputs"] | None = None  # which of what comes in it reads; None: everything
    placed: Int[np.ndarray, "outgoing"] | None = None  # which of its outputs goes where, -1 for 0; None: as they are
    heads: int | None = None  # how many heads it has, of attention


def cut_of(module: nn.Module, name: str = "") -> Cut | None:
    """What is left of a module, or of the one called `name` in it; None where the network is whole."""
    cuts: Any = module.variables.get("cuts", {})
    return (cuts.get(name, {}) if name else cuts).get("cut")


def is_cut(module: nn.Module) -> bool:
    """Whether it is a module of a network that has been cut, in which anything is left."""
    return bool(module.variables.get("cuts"))


def parameter(layer: nn.Module, name: str, draw: Callable[..., Array], *shape_and_dtype: Any) -> Array:
    """A layer's own parameter: of the shape that the module says, or as the cut has left it."""
    if cut_of(layer) is None:
        return layer.param(name, draw, *shape_and_dtype)
    return layer.get_variable("params", name)


def taken(layer: nn.Module, values: Array) -> Array:
    """What a layer reads of what comes in."""
    cut = cut_of(layer)
    return values if cut is None or cut.taken is None else values[..., cut.taken]


def placed(layer: nn.Module, values: Array) -> Array:
    """What a layer hands on: its outputs among the channels of the set that it writes to."""
    cut = cut_of(layer)
    if cut is None or cut.placed is None:
        return values
    if (cut.placed >= 0).all():
        return values[..., cut.placed]
    # The channel behind the last one is 0.
    filled = jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, 1)])
    return filled[..., np.where(cut.placed < 0, values.shape[-1], cut.placed)]
