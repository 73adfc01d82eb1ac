"""Compaction: from a masked network to a smaller one that gives the same answers. One agent's world, host side.

Unstructured masks make no network faster: a product with zeros takes as long as any other. What makes it faster is to
leave out whole channels, and these are the ones that go (ours; what belongs together is what Fang et al., CVPR 2023,
call a dependency graph):

- a channel that nothing feeds: all entries are 0 by which it reads live channels. It is 0, or of a biased layer a
  constant, which goes into the biases of those who read it;
- a channel that nobody reads, unless a norm mixes it into another one that is read. A response norm has it in the
  windows that it was in, a group norm in the group that it was in, among the channels that lived in it;
- after a sum, a channel that is 0 in all summands; of attention, a channel of queries whose keys' channel is 0, and
  whole heads; of a depthwise layer, what it reads goes with it;
- a residual block that adds nothing.

The last channel of a layer stays, fed or not. Networks say how their layers hang together by `Network.wiring`.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Int, Key, PyTree

from dslth_jax.algorithm import by_name
from dslth_jax.networks.liveness import Flags, Whole, added_by_constants, is_of, needed_by, whole_of
from dslth_jax.networks.network import Network, tree_of
from dslth_jax.networks.wiring import Attention, Cut, Wiring

Numbers = Int[np.ndarray, "_"]
WORTH_IT = 0.75  # a layer reads or makes only a part of a set's channels if they are at most such a share of it


class Compact(NamedTuple):
    """A smaller network, and an agent's variables in it."""

    network: Network  # its `apply(variables, images)` gives what the whole network gives, up to the order of sums
    variables: dict[str, Any]  # {"params": ..., "frozen": ...}, of numpy arrays
    alive: Mapping[str, Numbers]  # the outputs left of each layer that is left, by their numbers in the whole network


class Part(NamedTuple):
    """What a layer reads and makes of its sets, by the numbers in the whole network."""

    reads: Numbers | None  # None: all of the images
    makes: Numbers


def compact(network: Network, variables: PyTree[Array | np.ndarray], *, round_to: int = 1) -> Compact:
    """The network without what the zeros in `variables` make idle.

    Args:
        network: one that says its wiring, as all of the zoo do.
        variables: `{"params": w ⊙ m, "frozen": ...}`, as an algorithm's `model` makes them: without an agents axis.
        round_to: keep a multiple of so many channels of each layer, or all that it has: dead ones fill up. Vector units
            like multiples of 4 and 8.

    The smaller network is for these variables alone. Its `init` draws those of the whole network, and cuts them alike.

    Raises a ValueError if `round_to` is not positive, or if `liveness.whole_of` does.
    """
    if round_to < 1:
        raise ValueError(f"round_to must be a positive number of channels, got {round_to}")
    params, frozen = (
        {name: np.asarray(leaf) for name, leaf in by_name(variables[kind]).items()} for kind in ("params", "frozen")
    )
    whole = whole_of(network, params, frozen)
    needed = needed_by(whole)
    absent = [
        block
        for block in (block for stage in network.stages for block in stage[1:])
        if not any(needed[path].any() for path in whole.kernels if is_of(path, [block]))
    ]
    left = sets_left(whole, needed, round_to)
    parts = {
        path: part_of(whole, path, left, needed[path], round_to, f"{path}/bias" in frozen)
        for path in whole.wiring.layers
        if not is_of(path, absent)
    }

    def smaller(leaves: Mapping[str, Any]) -> PyTree:
        cut = {}
        for name, leaf in leaves.items():
            path, _, kind = name.rpartition("/")
            if path not in parts:
                continue
            is_kernel = kind == "kernel"
            cut[name] = (
                kernel_left(whole, path, parts[path], needed[path], leaf) if is_kernel else leaf[parts[path].makes]
            )
        return tree_of(cut)

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        masked, others = network.init(key)
        return smaller(by_name(masked)), smaller(by_name(others))

    folded = {name: with_constants(whole, name.rpartition("/")[0], left, bias) for name, bias in frozen.items()}
    assert network.cut is not None  # it has a wiring
    apply, exits = network.cut({path: cut_of(whole, path, own, left, needed[path]) for path, own in parts.items()})
    roles = {name: role for name, role in network.roles.items() if name.rpartition("/")[0] in parts}
    stages = tuple(tuple(block for block in stage if block not in absent) for stage in network.stages)
    return Compact(
        Network(init, apply, roles, network.heads, stages, exits, network.distils),
        {"params": smaller(params), "frozen": smaller(folded)},
        {path: own.makes for path, own in parts.items() if path in whole.kernels},
    )


def sets_left(whole: Whole, needed: Mapping[str, Flags], round_to: int) -> dict[str, Numbers]:
    """The channels that are left of each set. Those that a shortcut ties to each other have the same ones."""
    wiring = whole.wiring
    kept = {name: np.full(len(own), name in whole.uncut) for name, own in whole.alive_of.items()}
    tied = {name: name for name in kept}
    for path, layer in wiring.layers.items():
        kept[layer.writes] |= needed[path]
        if path not in whole.kernels and len(kept[layer.reads]) == len(kept[layer.writes]):
            old, new = tied[layer.writes], tied[layer.reads]  # several shortcuts may lead into one sum
            tied = {name: new if one == old else one for name, one in tied.items()}
    together = {one: np.any([kept[name] for name in kept if tied[name] == one], axis=0) for one in {*tied.values()}}
    left: dict[str, Numbers] = {}
    for path, layer in wiring.layers.items():
        if layer.writes not in left:
            # A depthwise layer fills up with what it reads.
            among = left.get(layer.reads) if path in whole.depthwise else None
            left[layer.writes] = filled_up(together[tied[layer.writes]], round_to, among)
    for attention in wiring.attentions:
        left |= heads_left(kept, attention, round_to)
    return left


def filled_up(kept: Flags, round_to: int = 1, among: Numbers | None = None) -> Numbers:
    """The numbers of what is kept, at least one, and of so many others that it is a multiple, if there are so many.

    >>> filled_up(np.array([False, True, False, True, True]), 4).tolist()
    [0, 1, 3, 4]
    """
    wanted = -(-max(1, int(kept.sum())) // round_to) * round_to
    return with_others(kept, wanted, np.arange(len(kept)) if among is None else among)


def with_others(kept: Flags, wanted: int, among: Numbers) -> Numbers:
    """The numbers of what is kept, and the first ones of others, until there are as many as wanted."""
    numbers = np.flatnonzero(kept)
    return np.sort(np.concatenate([numbers, np.setdiff1d(among, numbers)[: wanted - len(numbers)]]))


def heads_left(kept: Mapping[str, Flags], attention: Attention, round_to: int) -> dict[str, Numbers]:
    """The channels left of attention: of each head that makes any values, at least one, equally many."""
    values = kept[attention.value].reshape(attention.heads, -1)
    heads, depth = filled_up(np.any(values, axis=1)), values.shape[1]
    left: dict[str, Numbers] = {}
    for names in ((attention.query, attention.key), (attention.value,)):
        parts = kept[names[0]].reshape(attention.heads, -1)[heads]
        most = len(filled_up(np.arange(depth) < np.max(np.sum(parts, axis=1)), round_to))
        each = [
            head * depth + with_others(part, most, np.arange(depth)) for head, part in zip(heads, parts, strict=True)
        ]
        left |= dict.fromkeys(names, np.concatenate(each))
    return left


def part_of(whole: Whole, path: str, left: Mapping[str, Numbers], needed: Flags, round_to: int, biased: bool) -> Part:
    """What a layer reads and makes: of its sets what is left of them, or less where that is worth it."""
    layer, used = whole.wiring.layers[path], whole.used[path]
    inputs, outgoing = left.get(layer.reads), left[layer.writes]
    if path not in whole.kernels:
        return Part(inputs, inputs if inputs is not None else np.arange(len(used)))
    if path in whole.depthwise:
        makes = outgoing if inputs is None else np.intersect1d(outgoing, inputs)
        return Part(makes, makes)
    makes = outgoing
    # What a bias makes of a dead channel must be there, and heads of attention are equally wide.
    if not biased and layer.writes not in in_attention(whole.wiring):
        makes = if_worth_it(filled_up(needed, round_to, outgoing), outgoing)
    if inputs is None:
        return Part(None, makes)
    reads = used[:, makes].any(1) & np.isin(np.arange(len(used)), inputs)
    return Part(if_worth_it(filled_up(reads, round_to, inputs), inputs), makes)


def if_worth_it(few: Numbers, many: Numbers) -> Numbers:
    """The few if they are few enough."""
    return few if len(few) <= WORTH_IT * len(many) else many


def in_attention(wiring: Wiring) -> dict[str, int]:
    """The sets of attention, and how many heads each has."""
    return {name: own.heads for own in wiring.attentions for name in (own.query, own.key, own.value)}


def cut_of(whole: Whole, path: str, part: Part, left: Mapping[str, Numbers], needed: Flags) -> Cut:
    """What the network is told of a layer's part."""
    layer, (inputs, outputs) = whole.wiring.layers[path], whole.used[path].shape
    heads = in_attention(whole.wiring).get(layer.writes)
    if heads is not None:
        heads = len(np.unique(part.makes // (outputs // heads)))
    taken = None
    if path in whole.kernels and layer.reads in left and part.reads is not None:
        taken = places_of(part.reads, left[layer.reads])
        pixels = whole.kernels[path].shape[-2] // inputs  # of a layer that reads them flattened
        if taken is not None and pixels > 1:
            taken = (np.arange(pixels)[:, None] * len(left[layer.reads]) + taken).reshape(-1)
    live = needed[part.makes] if path in whole.kernels else np.ones(len(part.makes), bool)
    return Cut(part.makes, outputs, live, taken, places_of(left[layer.writes], part.makes), heads)


def kernel_left(whole: Whole, path: str, part: Part, needed: Flags, kernel: Any) -> Any:
    """A layer's kernel, cut. What only fills up is made without what it would read, which may be gone."""
    if path in whole.depthwise:
        return kernel[..., part.makes]
    inputs, outputs = whole.used[path].shape
    idle = whole.alive[path] & ~needed
    kept = kernel.reshape(-1, inputs, outputs)
    kept = kept if part.reads is None else kept[:, part.reads]
    kept = kept[..., part.makes] * ~idle[part.makes][None, None]
    return kept.reshape(*kernel.shape[:-2], -1, len(part.makes))


def with_constants(whole: Whole, path: str, left: Mapping[str, Numbers], bias: Any) -> Any:
    """A bias, and what constant channels added that are gone."""
    reads = whole.wiring.layers[path].reads
    if reads not in left:
        return bias
    gone = ~np.isin(np.arange(len(whole.constants[reads])), left[reads])
    return (bias + added_by_constants(whole, path, gone)).astype(bias.dtype)


def places_of(outgoing: Numbers, numbers: Numbers) -> Int[np.ndarray, "outgoing"] | None:
    """For each outgoing channel the place of the one of its number, -1 if there is none; None if they are the same.

    >>> places_of(np.array([1, 4, 6]), np.array([1, 6])).tolist()
    [0, -1, 1]
    """
    if np.array_equal(outgoing, numbers):
        return None
    found = np.minimum(np.searchsorted(numbers, outgoing), len(numbers) - 1)
    return np.where(numbers[found] == outgoing, found, -1)
