"""Layers of packed bits <-> the fewest bytes, exactly. Host side; the only file that imports constriction, where used.

Each layer goes in its cheapest form: a bitmap, or entropy coded with one density, of its bits or of what differs from
an earlier mask's; or what differs is split into what the earlier mask keeps and what it does not, each part in its own
cheapest form. (A mask that keeps a tenth of a layer before and after loses as many entries as it wins, but nine times
as large a share of those that it had.) A layer of zeros only, of ones only, or as before costs a byte. Bits lie as
`masks.pack` lays them, and those of padding are 0. The forms are ours; the coder is an asymmetric numeral system (Duda
et al., 2015).
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

EMPTY, BITMAP, CODED, SPLIT = range(4)  # forms of a layer, to which are added:
INVERTED, FLIPS = 4, 8  # zeros and ones have changed places; the bits are what differs from the past
KIND = 3  # what a form is without these
OF_PARTS = {form | flag for form in (EMPTY, BITMAP, CODED) for flag in (0, INVERTED)}
FORMS = {form | flag for form in OF_PARTS for flag in (0, FLIPS)} | {SPLIT | FLIPS}
PARTS = 2  # of a split layer, each with a byte for its form
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
    parts: tuple["_Layer", ...] = ()  # of a split one: what differs where the past is 0, and where it is 1


def shorten(
    layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Bits] | None = None, *, coded: bool = True
) -> tuple[bytes, bool]:
    """The layers as bytes, and whether it takes the past to read them.

    Args:
        layers: what is sent, padding bits 0.
        sizes: entries of each layer.
        past: an earlier mask's layers, padding bits 0, or None.
        coded: False leaves entropy coding out.

    Raises an ImportError where constriction is missing and would be used.

    >>> shorten([np.zeros(9, np.uint8), np.array([1, 18], np.uint8)], [70, 10])
    (b'\\x00\\x01\\x01\\x12', False)
    """
    plan = min((_plan(layers, sizes, past, coding) for coding in sorted({False, coded})), key=_cost)
    return _write(plan), any(layer.form & FLIPS for layer in plan)


def restore(body: bytes, sizes: Sequence[int], past: Sequence[Bits] | None = None) -> list[Bits]:
    """The layers of which `shorten` made `body`. Bytes that it has not made give other layers, or a ValueError.

    Raises an ImportError where constriction is missing and needed.

    >>> restore(b"\\x00\\x01\\x01\\x12", [70, 10])[1].tolist()
    [1, 18]
    """
    layers = []
    for layer, old in zip(_read(body, sizes, past), _each(past, sizes), strict=True):
        if layer.form & FLIPS and old is not None:
            bits = _joined(layer.parts, old) if layer.parts else _upright(layer)
            layers.append(bits ^ old)
        else:
            layers.append(_upright(layer))
    return layers


def full(size: int) -> Bits:
    """The packed bits of `size` ones: padding lies in the highest bits of the last bytes (see `masks.pack`).

    >>> full(10).tolist()
    [31, 31]
    """
    ones = np.full(-(-size // 8), 255, np.uint8)
    for place in padding(size).tolist():
        ones[place >> 3] &= 255 - (1 << (place & 7))
    return ones


def padding(size: int) -> Places:
    """The places of a layer's padding, counted in the order of bytes, and in each from the lowest bit.

    >>> padding(13).tolist()
    [7, 14, 15]
    """
    count = -(-size // 8)
    return np.sort(np.array([entry % count * 8 + entry // count for entry in range(size, 8 * count)], np.int64))


def _plan(layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Bits] | None, coded: bool) -> list[_Layer]:
    """Each layer in its cheapest form, of those that are allowed."""
    plan = [_form(bits, size, coded, 0) for bits, size in zip(layers, sizes, strict=True)]
    if past is None:
        return plan
    flips = [bits ^ old for bits, old in zip(layers, past, strict=True)]
    by_flips = [_form(own, size, coded, FLIPS) for own, size in zip(flips, sizes, strict=True)]
    plan = [min(pair, key=lambda layer: layer.cost) for pair in zip(plan, by_flips, strict=True)]
    return [_split(*given) for given in zip(plan, flips, past, strict=True)] if coded else plan


def _form(bits: Bits, size: int, coded: bool, flags: int) -> _Layer:
    ones = ones_of(bits)
    if 2 * ones > size:
        bits, ones, flags = bits ^ full(size), size - ones, flags | INVERTED
    kind, cost = _cheapest(ones, size, coded)
    return _Layer(kind | flags, size, bits, ones, cost)


def _split(layer: _Layer, flips: Bits, old: Bits) -> _Layer:
    """The layer, or its flips in two parts where these take fewer bits."""
    lost, kept = ones_of(flips & old), ones_of(old)
    ones, sizes = (ones_of(flips) - lost, lost), (layer.size - kept, kept)  # of the parts
    cost = 8 * PARTS + sum(_cheapest(*part, True)[1] for part in zip(ones, sizes, strict=True))
    if cost >= layer.cost:
        return layer
    places = _ranks(flips, old, layer.size)
    parts = tuple(_form(packed(own, size), size, True, 0) for own, size in zip(places, sizes, strict=True))
    return _Layer(SPLIT | FLIPS, layer.size, flips, cost=cost, parts=parts)


def _cheapest(ones: int, size: int, coded: bool) -> tuple[int, float]:
    """The cheapest form of so many entries, of which so many are ones, and its bits. The rarer value is coded, and
    padding as well."""
    ones = min(ones, size - ones)
    if ones == 0:
        return EMPTY, 0.0
    bitmap = 8 * -(-size // 8)
    length = -ones * math.log2(ones / size) - (bitmap - ones) * math.log2(1 - ones / size) + 8 * _width(size)
    return (CODED, length) if coded and length < bitmap else (BITMAP, float(bitmap))


def _ranks(flips: Bits, old: Bits, size: int) -> tuple[Places, Places]:
    """The places of flips among the entries that the past lacks, and among those that it keeps. Entries are counted in
    the order of bytes, and in each from the lowest bit, without padding."""
    at = np.flatnonzero(np.unpackbits(flips, bitorder="little"))
    byte, bit = at >> 3, (at & 7).astype(np.uint8)
    ones = np.bitwise_count(old)
    before = (np.cumsum(ones, dtype=np.int64) - ones)[byte]
    before += np.bitwise_count(old[byte] & ((np.uint8(1) << bit) - np.uint8(1)))
    kept = (old[byte] >> bit) & 1 == 1
    lacked = at[~kept]
    return lacked - before[~kept] - np.searchsorted(padding(size), lacked), before[kept]


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
            parts.append(layer.ones.to_bytes(_width(layer.size), "little"))
            coded.append((layer.bits.astype(np.int32), _model(layer.ones, layer.size)))
    if coded:
        coder = _constriction().stack.AnsCoder()
        for bits, model in reversed(coded):  # the coder is a stack
            coder.encode_reverse(bits, model)
        # Leave out zero bytes at the end: the last word is never 0, and the reader adds them again.
        parts.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
    return b"".join(parts)


def _read(body: bytes, sizes: Sequence[int], past: Sequence[Bits] | None) -> list[_Layer]:
    """What `_write` wrote. Bytes that it has not written give anything, or a ValueError."""
    plan, at = [], 0
    for index, (size, old) in enumerate(zip(sizes, _each(past, sizes), strict=True)):
        layer, at = _begun(body, at, size, FORMS, f"layer {index} of {len(sizes)}")
        if layer.form & FLIPS and old is None:
            raise ValueError(f"layer {index} needs a past mask, got none")
        if layer.form & KIND == SPLIT and old is not None:
            kept, parts = ones_of(old), []
            for number in (size - kept, kept):
                part, at = _begun(body, at, number, OF_PARTS, f"a part of layer {index}")
                parts.append(part)
            layer = layer._replace(parts=tuple(parts))
        plan.append(layer)
    if any(layer.form & KIND == CODED for layer in _flat(plan)):
        words = np.frombuffer(body[at:] + bytes(-len(body[at:]) % 4), "<u4").astype(np.uint32)
        return _decoded(plan, words)
    if at < len(body):
        raise ValueError(f"{len(body) - at} bytes are left over")
    return plan


def _each(past: Sequence[Bits] | None, sizes: Sequence[int]) -> list[Bits | None]:
    """The past of each layer; None of all where there is none."""
    return [None] * len(sizes) if past is None else [*past]


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


def _decoded(plan: list[_Layer], words: UInt32[np.ndarray, "_"]) -> list[_Layer]:
    """The plan with the bits of all that is coded."""
    coder = _constriction().stack.AnsCoder(words)

    def decoded(layer: _Layer) -> _Layer:
        if layer.form & KIND == CODED:
            layer = layer._replace(bits=coder.decode(_model(layer.ones, layer.size), layer.bits.size).astype(np.uint8))
        return layer._replace(parts=tuple(map(decoded, layer.parts)))

    plan = list(map(decoded, plan))
    if not coder.is_empty():
        raise ValueError("code is left over")
    return plan


def _upright(layer: _Layer) -> Bits:
    """The bits of a layer or part as they were before zeros and ones may have changed places."""
    return layer.bits ^ full(layer.size) if layer.form & INVERTED else layer.bits


def _joined(parts: Sequence[_Layer], old: Bits) -> Bits:
    """All flips of a layer, from those where the past is 0 and those where it is 1."""
    entries, flips = np.unpackbits(old, bitorder="little"), np.zeros(8 * old.size, np.uint8)
    entries[padding(sum(part.size for part in parts))] = len(parts)
    for value, part in enumerate(parts):
        own = places_of(_upright(part) & full(part.size))  # of damaged bytes padding may be anything
        flips[np.flatnonzero(entries == value)[own]] = 1
    return np.packbits(flips, bitorder="little")


def ones_of(bits: Bits) -> int:
    """How many of the bits are 1."""
    return int(np.bitwise_count(bits).sum())


def places_of(bits: Bits) -> Places:
    """Which entries of packed bits are 1.

    >>> places_of(np.array([1, 18], np.uint8)).tolist()
    [0, 3, 9]
    """
    return np.flatnonzero((bits >> np.arange(8, dtype=np.uint8)[:, None]) & 1)


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
