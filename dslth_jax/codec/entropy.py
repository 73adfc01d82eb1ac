"""Layers of packed bits <-> the fewest bytes, exactly. Host side; the only file that imports constriction, where used.

Each layer goes in its cheapest form: a bitmap, or entropy coded with one density, of its bits or of what differs from
an earlier mask's. A layer of zeros only, of ones only, or as before costs a byte. Bits lie as `masks.pack` lays them,
and those of padding are 0. The forms are ours; the coder is an asymmetric numeral system (Duda et al., 2015).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt32

EMPTY, BITMAP, CODED = range(3)  # forms of a layer, to which are added:
INVERTED, FLIPS = 4, 8  # zeros and ones have changed places; the bits are what differs from the past
FORMS = {form | flags for form in (EMPTY, BITMAP, CODED) for flags in (0, INVERTED, FLIPS, INVERTED | FLIPS)}
CODE_END = 32  # bits that the coder spends beyond the entropy, about, once for all layers

Bits = UInt8[np.ndarray, "_"]


class _Layer(NamedTuple):
    """A layer as it is sent, at most half of its bits ones."""

    form: int
    bits: Bits
    ones: int = 0
    cost: float = 0  # bits on the link


def shorten(
    layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Bits] | None = None, *, coded: bool = True
) -> tuple[bytes, bool]:
    """The layers as bytes, and whether it takes the past to read them.

    Args:
        layers: what is sent, padding bits 0.
        sizes: entries of each layer.
        past: an earlier mask's layers, or None.
        coded: False leaves entropy coding out.

    Raises an ImportError where constriction is missing and would be used.

    >>> shorten([np.zeros(9, np.uint8), np.array([1, 18], np.uint8)], [70, 10])
    (b'\\x00\\x01\\x01\\x12', False)
    """
    plan = min((_plan(layers, sizes, past, coding) for coding in sorted({False, coded})), key=_cost)
    return _write(plan, sizes), any(layer.form & FLIPS for layer in plan)


def restore(body: bytes, sizes: Sequence[int], past: Sequence[Bits] | None = None) -> list[Bits]:
    """The layers of which `shorten` made `body`. Bytes that it has not made give other layers, or a ValueError.

    Raises an ImportError where constriction is missing and needed.

    >>> restore(b"\\x00\\x01\\x01\\x12", [70, 10])[1].tolist()
    [1, 18]
    """
    layers = []
    for index, (layer, size) in enumerate(zip(_read(body, sizes), sizes, strict=True)):
        bits = layer.bits ^ full(size) if layer.form & INVERTED else layer.bits
        if layer.form & FLIPS and past is None:
            raise ValueError(f"layer {index} needs a past mask, got none")
        layers.append(bits ^ past[index] if layer.form & FLIPS and past is not None else bits)
    return layers


def full(size: int) -> Bits:
    """The packed bits of `size` ones: padding lies in the highest bits of the last bytes (see `masks.pack`).

    >>> full(10).tolist()
    [31, 31]
    """
    ones = np.full(-(-size // 8), 255, np.uint8)
    for entry in range(size, 8 * ones.size):
        ones[entry % ones.size] &= 255 - (1 << entry // ones.size)
    return ones


def _plan(layers: Sequence[Bits], sizes: Sequence[int], past: Sequence[Bits] | None, coded: bool) -> list[_Layer]:
    """Each layer in its cheapest form, of those that are allowed."""
    plan = [_form(bits, size, coded, 0) for bits, size in zip(layers, sizes, strict=True)]
    if past is None:
        return plan
    flips = [_form(bits ^ old, size, coded, FLIPS) for bits, old, size in zip(layers, past, sizes, strict=True)]
    return [min(pair, key=lambda layer: layer.cost) for pair in zip(plan, flips, strict=True)]


def _form(bits: Bits, size: int, coded: bool, flags: int) -> _Layer:
    ones = int(np.bitwise_count(bits).sum())
    if 2 * ones > size:
        bits, ones, flags = bits ^ full(size), size - ones, flags | INVERTED
    if ones == 0:
        return _Layer(EMPTY | flags, bits)
    # Padding is coded as well.
    length = -ones * math.log2(ones / size) - (8 * bits.size - ones) * math.log2(1 - ones / size) + 8 * _width(size)
    form, cost = (CODED, length) if coded and length < 8 * bits.size else (BITMAP, 8 * bits.size)
    return _Layer(form | flags, bits, ones, cost)


def _cost(plan: list[_Layer]) -> float:
    return float(sum(layer.cost for layer in plan) + CODE_END * any(layer.form & CODED for layer in plan))


def _write(plan: list[_Layer], sizes: Sequence[int]) -> bytes:
    """Each layer's form with its bitmap or count of ones, then one code of all coded layers."""
    parts, coded = [], []
    for layer, size in zip(plan, sizes, strict=True):
        parts.append(bytes([layer.form]))
        if layer.form & BITMAP:
            parts.append(layer.bits.tobytes())
        elif layer.form & CODED:
            parts.append(layer.ones.to_bytes(_width(size), "little"))
            coded.append((layer.bits.astype(np.int32), _model(layer.ones, size)))
    if coded:
        coder = _constriction().stack.AnsCoder()
        for bits, model in reversed(coded):  # the coder is a stack
            coder.encode_reverse(bits, model)
        # Leave out zero bytes at the end: the last word is never 0, and the reader adds them again.
        parts.append(coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0"))
    return b"".join(parts)


def _read(body: bytes, sizes: Sequence[int]) -> list[_Layer]:
    """What `_write` wrote. Bytes that it has not written give anything, or a ValueError."""
    plan, at = [], 0
    for index, size in enumerate(sizes):
        if at >= len(body):
            raise ValueError(f"layer {index} of {len(sizes)} is missing")
        layer, at = _Layer(body[at], np.zeros(-(-size // 8), np.uint8)), at + 1
        if layer.form not in FORMS:
            raise ValueError(f"layer {index} has the unknown form {layer.form}")
        if layer.form & BITMAP:
            layer = layer._replace(bits=np.frombuffer(body, np.uint8, layer.bits.size, at))
            at += layer.bits.size
        elif layer.form & CODED:
            layer = layer._replace(ones=int.from_bytes(body[at : at + _width(size)], "little"))
            at += _width(size)
        plan.append(layer)
    if any(layer.form & CODED for layer in plan):
        words = np.frombuffer(body[at:] + bytes(-len(body[at:]) % 4), "<u4").astype(np.uint32)
        return _decoded(plan, sizes, words)
    if at < len(body):
        raise ValueError(f"{len(body) - at} bytes are left over")
    return plan


def _decoded(plan: list[_Layer], sizes: Sequence[int], words: UInt32[np.ndarray, "_"]) -> list[_Layer]:
    """The plan with the bits of coded layers."""
    coder, decoded = _constriction().stack.AnsCoder(words), []
    for layer, size in zip(plan, sizes, strict=True):
        if layer.form & CODED:
            layer = layer._replace(bits=coder.decode(_model(layer.ones, size), layer.bits.size).astype(np.uint8))
        decoded.append(layer)
    if not coder.is_empty():
        raise ValueError("code is left over")
    return decoded


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
