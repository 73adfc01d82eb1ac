"""Layers of packed bits <-> the fewest bytes, exactly. Host side; the only file that imports constriction, where used.

Each layer goes in its cheapest form: a bitmap, or entropy coded with one density, of its bits or of what differs from
the mask before; or what differs is split by what the last masks had, up to four of them, each part in its own cheapest
form. (A mask that keeps a tenth of a layer before and after loses as many entries as it wins, but nine times as large a
share of those that it had; and what has just come or gone is likelier to turn again than what has long been so.) Of two
layers in a row that have no entry in common, as a ternary mask's planes, the second may tell nothing of what the first
has, if that is cheaper. A layer of zeros only, of ones only, or as before costs a byte. Bits lie as `masks.pack` lays
them, and those of padding are 0. The forms are ours; the coder is an asymmetric numeral system (Duda et al., 2015).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

EMPTY, BITMAP, CODED, SPLIT = range(4)  # forms of a layer, to which are added:
INVERTED, FLIPS = 4, 8  # zeros and ones have changed places; the bits are what differs from the mask before
FURTHER = 16  # times how many masks before that one a layer is split by, too
BESIDE = 64  # only what the layer before it lacks is told
PAST = 4  # masks at most that layers are split by
KIND = 3  # what a form is without these
OF_PARTS = {form | flag for form in (EMPTY, BITMAP, CODED) for flag in (0, INVERTED)}
OF_PARTS_BESIDE = {form for form in OF_PARTS if form & KIND != BITMAP}  # whose sizes are not known while they are read
SPLITS = {SPLIT | FLIPS | FURTHER * i for i in range(PAST)}
FORMS = {form | flag for form in OF_PARTS for flag in (0, FLIPS)} | SPLITS
FORMS |= {form | BESIDE for form in {SPLIT, *SPLITS}}
# In row b, the places of the ones of the byte b, from the lowest bit, and then those of its zeros.
NTH_ONE = np.argsort(1 - np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], 1, bitorder="little"), 1, kind="stable")
CODE_END = 32  # bits that the coder spends beyond the entropy, about, once for all layers

Bits = UInt8[np.ndarray, "_"]
Places = Int64[np.ndarray, "_"]


class _Layer(NamedTuple):
    """A layer as it is sent, or a part of one; at most half of its bits are ones, but where it is split."""

    form: int
    size: int
    bits: Bits
    ones: int = 0
    cost: float = 0  # bits on the link
    width: int = 0  # bytes of the count of ones, if it is coded
    parts: tuple["_Layer", ...] = ()  # of a split one: what differs, group after group (see `_groups`)


def shorten(
    layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Sequence[Bits]] = (), *, coded: bool = True
) -> tuple[bytes, int]:
    """The layers as bytes, and how many of the past masks it takes to read them.

    Args:
        layers: what is sent, padding bits 0.
        sizes: entries of each layer.
        past: the layers of earlier masks, the latest first, padding bits 0.
        coded: False leaves entropy coding out.

    Raises an ImportError where constriction is missing and would be used.

    >>> shorten([np.zeros(9, np.uint8), np.array([1, 18], np.uint8)], [70, 10])
    (b'\\x00\\x01\\x01\\x12', 0)
    """
    plan = min((_plan(layers, sizes, past[:PAST], coding) for coding in sorted({False, coded})), key=_cost)
    return _write(plan), max((_takes(layer.form) for layer in plan), default=0)


def restore(body: bytes, sizes: Sequence[int], past: Sequence[Sequence[Bits]] = ()) -> list[Bits]:
    """The layers of which `shorten` made `body`. Bytes that it has not made give other layers, or a ValueError.

    Raises an ImportError where constriction is missing and needed.

    >>> restore(b"\\x00\\x01\\x01\\x12", [70, 10])[1].tolist()
    [1, 18]
    """
    plan, coder = _read(body, sizes, past)
    layers: list[Bits] = []
    for layer, old in zip(plan, _by_layer(past, sizes), strict=True):
        free = full(layer.size) & ~layers[-1] if layer.form & BESIDE else full(layer.size)
        bits = _joined(layer, old, free, coder) if layer.parts else _decoded(layer, coder)
        layers.append((bits ^ old[0] if layer.form & FLIPS else bits) & free)
    if coder is not None and not coder.is_empty():
        raise ValueError("code is left over")
    return layers


def full(size: int) -> Bits:
    """The packed bits of `size` ones: padding lies in the highest bits of the last bytes (see `masks.pack`).

    >>> full(10).tolist()
    [31, 31]
    """
    count = -(-size // 8)
    ones = np.full(count, 255, np.uint8)
    for entry in range(size, 8 * count):
        ones[entry % count] &= 255 - (1 << entry // count)
    return ones


def _plan(layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Sequence[Bits]], coded: bool) -> list[_Layer]:
    """Each layer in its cheapest form, of those that are allowed."""

    def cheapest(bits: Bits, size: int, old: Sequence[Bits], before: Bits | None) -> _Layer:
        best, flips = _form(bits, size, coded, 0), bits ^ old[0] if old else bits
        if old:
            best = min(best, _form(flips, size, coded, FLIPS), key=lambda layer: layer.cost)
        if before is not None:
            best = _split(best, bits, (), before)
        if coded and old:
            best = _split(best, flips, old, None)
        if old and before is not None:
            best = _split(best, flips, old, before)
        return best

    apart = [_apart(layers, sizes, number) if coded else None for number in range(len(layers))]
    return [cheapest(*layer) for layer in zip(layers, sizes, _by_layer(past, sizes), apart, strict=True)]


def _apart(layers: Sequence[Bits], sizes: Sequence[int], number: int) -> Bits | None:
    """The layer before this one, if it has as many entries and none of the same ones."""
    follows = number > 0 and sizes[number - 1] == sizes[number]
    return layers[number - 1] if follows and not np.any(layers[number - 1] & layers[number]) else None


def _form(bits: Bits, size: int, coded: bool, flags: int, among: int | None = None) -> _Layer:
    """Bits in their cheapest form. Of a part `among` so many entries, whose own number a reader does not know yet, no
    bitmap, and its count of ones is as wide as theirs may be."""
    ones = ones_of(bits)
    if 2 * ones > size:
        bits, ones, flags = bits ^ full(size), size - ones, flags | INVERTED
    kind, cost = _cheapest(ones, size, coded, among)
    return _Layer(kind | flags, size, bits, ones, cost, _width(among or size))


def _split(layer: _Layer, bits: Bits, old: Sequence[Bits], before: Bits | None) -> _Layer:
    """The layer, or its bits split by as many of the old masks as make them cheapest, where they take fewer bits. Bits
    are what differs from the first of these, if there are any; of what the layer `before` has none is told."""
    free, among, flags = full(layer.size), None, 0
    if before is not None:
        free, among, flags = free & ~before, layer.size, BESIDE
    groups = _groups(old, free)
    counts = np.stack([_ones_of_each(bits & groups), _ones_of_each(groups)], axis=1)
    costs = {}
    for masks in range(len(old), min(len(old), 1) - 1, -1):
        costs[masks] = 8 * len(counts) + sum(_cheapest(ones, size, True, among)[1] for ones, size in counts.tolist())
        counts = counts[: len(counts) // 2] + counts[len(counts) // 2 :]  # without the oldest mask's distinction
    masks = min(costs, key=lambda number: (costs[number], number))
    if costs[masks] >= layer.cost:
        return layer
    parts = []
    for group in _groups(old[:masks], free):
        ranks, size = _ranks(bits & group, group), ones_of(group)
        parts.append(_form(packed(ranks, size), size, True, 0, among))
    flags |= FLIPS | FURTHER * (masks - 1) if masks else 0
    return _Layer(SPLIT | flags, layer.size, bits, cost=costs[masks], parts=tuple(parts))


def _groups(old: Sequence[Bits], free: Bits) -> UInt8[np.ndarray, "groups bytes"]:
    """Which of these entries of a layer agree in all of its old masks: in group k, bit i of k is that in mask i."""
    groups = free[None]
    for mask in old:
        groups = np.concatenate([groups & ~mask, groups & mask])
    return groups


def _takes(form: int) -> int:
    """How many past masks it takes to read a layer of this form."""
    return 1 + (form & ~BESIDE) // FURTHER if form & FLIPS else 0


def _cheapest(ones: int, size: int, coded: bool, among: int | None = None) -> tuple[int, float]:
    """The cheapest form of so many entries, of which so many are ones, and its bits; `among` as in `_form`. The rarer
    value is coded, and padding as well."""
    ones = min(ones, size - ones)
    if ones == 0:
        return EMPTY, 0.0
    bitmap = 8 * -(-size // 8)
    length = -ones * math.log2(ones / size) - (bitmap - ones) * math.log2(1 - ones / size) + 8 * _width(among or size)
    return (CODED, length) if coded and (among or length < bitmap) else (BITMAP, float(bitmap))


def _ranks(flips: Bits, group: Bits) -> Places:
    """The place of each flip among the entries of its group, in the order of bytes, and in each from the lowest bit."""
    bytes_with = np.flatnonzero(flips != 0)  # few, so that few are unpacked
    at = np.flatnonzero(np.unpackbits(flips[bytes_with], bitorder="little").view(bool))
    byte, bit = bytes_with[at >> 3], (at & 7).astype(np.uint8)
    ones = np.bitwise_count(group)
    before = np.cumsum(ones, dtype=np.int64) - ones
    return before[byte] + np.bitwise_count(group[byte] & ((np.uint8(1) << bit) - np.uint8(1)))


def _at_ranks(ranks: Places, group: Bits) -> Places:
    """The inverse: where in a layer, in the order of bytes and bits, the entries of a group with these ranks lie."""
    ones = np.bitwise_count(group)
    ends = np.cumsum(ones, dtype=np.int64)
    byte = np.searchsorted(ends, ranks, side="right")
    return 8 * byte + NTH_ONE[group[byte], ranks - (ends - ones)[byte]]


def _flat(plan: Sequence[_Layer]) -> Iterator[_Layer]:
    """The layers, each split one before its parts."""
    for layer in plan:
        yield layer
        yield from layer.parts


def _cost(plan: list[_Layer]) -> float:
    coded = any(layer.form & KIND == CODED for layer in _flat(plan))
    return float(sum(layer.cost for layer in plan) + CODE_END * coded)


def _write(plan: list[_Layer]) -> bytes:
    """Each layer's form with its bitmap, count of ones or parts, then one code of all that is coded."""
    parts, coded = [], []
    for layer in _flat(plan):
        parts.append(bytes([layer.form]))
        if layer.form & KIND == BITMAP:
            parts.append(layer.bits.tobytes())
        elif layer.form & KIND == CODED:
            parts.append(layer.ones.to_bytes(layer.width, "little"))
            coded.append((layer.bits.astype(np.int32), _model(layer.ones, layer.size)))
    if coded:
        coder = _constriction().stack.AnsCoder()
        for bits, model in reversed(coded):  # the coder is a stack
            coder.encode_reverse(bits, model)
        # Leave out zero bytes at the end: the last word is never 0, and the reader adds them again.
        parts.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
    return b"".join(parts)


def _read(body: bytes, sizes: Sequence[int], past: Sequence[Sequence[Bits]]) -> tuple[list[_Layer], Any]:
    """What `_write` wrote, and a decoder of what is coded, if anything is. Bytes that it has not written give anything,
    or a ValueError."""
    plan, at = [], 0
    for index, (size, old) in enumerate(zip(sizes, _by_layer(past, sizes), strict=True)):
        layer, at = _begun(body, at, size, FORMS, f"layer {index} of {len(sizes)}")
        takes, beside, parts = _takes(layer.form), layer.form & BESIDE, []
        if takes > len(old):
            raise ValueError(f"layer {index} needs {takes} past masks, got {len(old)}")
        if beside and (index == 0 or sizes[index - 1] != size):
            raise ValueError(f"layer {index} needs one of as many entries before it")
        for group in _groups(old[:takes], full(size)) if layer.form & KIND == SPLIT else ():
            own, forms = (size, OF_PARTS_BESIDE) if beside else (ones_of(group), OF_PARTS)
            part, at = _begun(body, at, own, forms, f"a part of layer {index}")
            parts.append(part)
        plan.append(layer._replace(parts=tuple(parts)))
    if any(layer.form & KIND == CODED for layer in _flat(plan)):
        words = np.frombuffer(body[at:] + bytes(-len(body[at:]) % 4), "<u4").astype(np.uint32)
        return plan, _constriction().stack.AnsCoder(words)
    if at < len(body):
        raise ValueError(f"{len(body) - at} bytes are left over")
    return plan, None


def _by_layer(past: Sequence[Sequence[Bits]], sizes: Sequence[int]) -> list[list[Bits]]:
    """What each layer was in the past masks."""
    return [[mask[layer] for mask in past] for layer in range(len(sizes))]


def _begun(body: bytes, at: int, size: int, forms: set[int], what: str) -> tuple[_Layer, int]:
    """A layer or part with its bitmap or count of ones, read from a place, and the place behind it."""
    if at >= len(body):
        raise ValueError(f"{what} is missing")
    layer, at = _Layer(body[at], size, np.zeros(-(-size // 8), np.uint8)), at + 1
    if layer.form not in forms:
        raise ValueError(f"{what} has the unknown form {layer.form}")
    if layer.form & KIND == BITMAP:
        return layer._replace(bits=np.frombuffer(body, np.uint8, layer.bits.size, at)), at + layer.bits.size
    if layer.form & KIND == CODED:
        width = _width(size)
        return layer._replace(ones=int.from_bytes(body[at : at + width], "little")), at + width
    return layer, at


def _decoded(layer: _Layer, coder: Any) -> Bits:
    """The bits of a layer or part, the next of what is coded if it is; zeros and ones are in their places again."""
    bits = layer.bits
    if layer.form & KIND == CODED:
        bits = coder.decode(_model(layer.ones, layer.size), bits.size).astype(np.uint8)
    return bits ^ full(layer.size) if layer.form & INVERTED else bits


def _joined(layer: _Layer, old: Sequence[Bits], free: Bits, coder: Any) -> Bits:
    """All bits of a split layer, or flips, from those of its parts, which are groups of its free entries."""
    bits = np.zeros(8 * layer.bits.size, np.uint8)
    for part, group in zip(layer.parts, _groups(old[: _takes(layer.form)], free), strict=True):
        if layer.form & BESIDE:  # only now is known how many entries the part has
            size = ones_of(group)
            part = part._replace(size=size, bits=np.zeros(-(-size // 8), np.uint8))
        own = places_of(_decoded(part, coder) & full(part.size))  # of damaged bytes padding may be anything
        bits[_at_ranks(own, group)] = 1
    return np.packbits(bits, bitorder="little")


def ones_of(bits: Bits) -> int:
    """How many of the bits are 1."""
    return int(_ones_of_each(bits[None])[0])


def _ones_of_each(several: UInt8[np.ndarray, "several bytes"]) -> Int64[np.ndarray, "several"]:
    """The same of each row: eight bytes at a time, and what is left."""
    words, rest = np.split(several, [several.shape[1] // 8 * 8], axis=1)
    return np.bitwise_count(words.view(np.uint64)).sum(1, np.int64) + np.bitwise_count(rest).sum(1, np.int64)


def places_of(bits: Bits) -> Places:
    """Which entries of packed bits are 1.

    >>> places_of(np.array([1, 18], np.uint8)).tolist()
    [0, 3, 9]
    """
    return np.flatnonzero(((bits >> np.arange(8, dtype=np.uint8)[:, None]) & 1).view(bool))


def packed(places: Places, size: int) -> Bits:
    """The packed bits of so many entries that are 1 at these places and else 0; see `masks.pack`.

    >>> packed(np.array([0, 3, 9]), 10).tolist()
    [1, 18]
    """
    count = -(-size // 8)
    entries = np.zeros((8, count), np.uint8)
    entries.reshape(-1)[places] = 1
    return np.bitwise_or.reduce(entries << np.arange(8, dtype=np.uint8)[:, None], axis=0)


def _model(ones: int, size: int) -> Any:
    """Probabilities of bytes of independent bits. Bit after bit gives the same length, in over twice the time.

    Sender and receiver must agree to the last digit: dividing integers rounds alike on every machine.
    """
    if not 0 < 2 * ones <= size:
        raise ValueError(f"a count of ones must lie from 1 to {size // 2}, got {ones}")
    table = np.array([ones**k * (size - ones) ** (8 - k) / size**8 for k in range(9)])
    return _constriction().model.Categorical(table[np.bitwise_count(np.arange(256, dtype=np.uint8))], perfect=False)


def _width(size: int) -> int:
    """Bytes for a count of at most `size`."""
    return (size.bit_length() + 7) // 8


def _constriction() -> Any:
    try:
        import constriction
    except ModuleNotFoundError:
        raise ImportError("entropy coding needs constriction: pip install 'dslth-jax[codec]'") from None
    return constriction.stream
