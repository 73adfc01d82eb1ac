"""Depth: agents that have only some of a network's residual blocks. One agent's world.

A residual block whose masks keep nothing adds nothing: it is the identity. So an agent that lacks a block keeps 0
entries of its layers, which are in none of its messages, and which networks do not compute: see `layers.unless_absent`.
Of such a layer neighbours hear those who have it, and nobody else counts.

Each stage's first block is always there, as it changes the size of what passes through. Further ones come stage by
stage in turn: first the second block of every stage, then the third. (DepthFL, Kim et al., ICLR 2023, gives agents the
first stages instead, and exits.)
"""

from collections.abc import Collection, Sequence
from itertools import zip_longest
from typing import Any

from jaxtyping import Array, Bool, Int, Key, PyTree

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, belongs_to, by_name, layer_of, with_names

Stages = Sequence[Sequence[str]]  # the names of a network's residual blocks, stage by stage, in order


def absent(stages: Stages, depth: int) -> tuple[str, ...]:
    """The blocks that an agent lacks which has `depth` of them.

    Raises a ValueError unless it has the first of every stage, and no more than there are.

    >>> absent([["a1", "a2", "a3"], ["b1", "b2"]], 3)
    ('b2', 'a3')
    """
    further = further_blocks(stages)
    if not stages:
        raise ValueError(
            "depth is a number of residual blocks, and the network has none: name another, such as resnet20"
        )
    if not len(stages) <= depth <= len(stages) + len(further):
        raise ValueError(f"depth must be in {len(stages)}..{len(stages) + len(further)} residual blocks, got {depth}")
    return tuple(further[depth - len(stages) :])


def further_blocks(stages: Stages) -> list[str]:
    """The blocks that an agent may lack, in the order in which they come.

    >>> further_blocks([["a1", "a2", "a3"], ["b1", "b2"]])
    ['a2', 'b2', 'a3']
    """
    return [block for turn in zip_longest(*(stage[1:] for stage in stages)) for block in turn if block is not None]


def depths_of_layers(stages: Stages, names: Collection[str]) -> dict[str, int]:
    """From which depth on an agent has each of these layers, of those that it may lack.

    >>> depths_of_layers([["a1", "a2", "a3"], ["b1", "b2"]], ["a1/kernel", "a3/kernel", "b2/kernel", "head"])
    {'b2/kernel': 4, 'a3/kernel': 5}
    """
    further = enumerate(further_blocks(stages), len(stages) + 1)
    return {name: depth for depth, block in further for name in names if belongs_to(name, block)}


def kept_without(kept: PyTree[int | Int[Array, "..."]], blocks: Collection[str]) -> PyTree[int | Int[Array, "..."]]:
    """The entries to keep of every layer, 0 in those of `blocks`.

    >>> kept_without({"a1": {"kernel": 5}, "a2": {"kernel": 7}}, ["a2"])
    {'a1': {'kernel': 5}, 'a2': {'kernel': 0}}
    """
    return with_names(lambda name, own: 0 * own if any(belongs_to(name, block) for block in blocks) else own, kept)


def with_layers_had(algorithm: Algorithm) -> Algorithm:
    """The same algorithm, whose messages hold only layers of which an agent is to keep something: its `hyper.kept`."""

    def had(hyper: Any, message: Message) -> Message:
        if not message.masks:
            return message
        of_layer = {name: count > 0 for name, count in by_name(hyper.kept).items()}
        before: dict[str, Bool[Array, ""]] = dict(message.has or {})
        names = [*message.masks, *(name for name in message.values if name not in message.masks)]
        return message._replace(has={name: of_layer[layer_of(name)] & before.get(name, True) for name in names})

    def init(key: Key[Array, ""], world: World, hyper: Any) -> tuple[Any, Message]:
        agent, message = algorithm.init(key, world, hyper)
        return agent, had(hyper, message)

    def send(
        key: Key[Array, ""], world: World, hyper: Any, agent: Any, heard: Heard, batches: Batches
    ) -> tuple[Any, Any, Message, dict[str, Array]]:
        agent, carry, message, info = algorithm.send(key, world, hyper, agent, heard, batches)
        return agent, carry, had(hyper, message), info

    return algorithm._replace(init=init, send=send)
