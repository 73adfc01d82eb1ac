"""Masks <-> the messages that a link carries, exactly. One agent's world, on the host: numpy, no JAX.

A mask is a sequence of layers of packed bits, as `masks.pack` makes them (`jax.tree.leaves` of one agent's message on
the host), and comes with the layers' shapes. A message is, integers with the lowest byte first:

    b"DM", or b"DS" where layers have scales, version (1 byte), sender (4), round (4)
    how many of the sender's last masks it takes to read it (1); of a key frame, and what else can be read alone, 0
    round of the last of these, which flips are against (4); its own where it takes none
    digests of shapes and the run's name (4), of the masks that it takes (4; zeros of none), of this mask (8)
    scales, one float32 a layer, where there are any
    layers, as `entropy.shorten` writes them
    checksum of everything before (8)

Eight bytes of BLAKE2b: after random damage CRC32 lets one message in 4e9 pass, these one in 2e19, and CRC32 lets more
pass where damage has a pattern. A mask's digest is over sender, round, shapes, run and bits, and compared with what was
decoded, so that not even a coder that rounds otherwise gives a wrong mask. Digests find accidents; they are no
signatures, and stop no liar. The format is ours.
"""

import math
import struct
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from operator import index
from typing import NamedTuple, SupportsIndex

import numpy as np

from dslth_jax.codec.entropy import PAST, Bits, full, restore, shorten

MAGIC, SCALED, VERSION = b"DM", b"DS", 4  # what is written in another way is not read
HEADER = struct.Struct("<2sBIIBI4s4s8s")
CHECKSUM = 8  # bytes

Shapes = Sequence[tuple[SupportsIndex, ...]]
Received = bytes | bytearray | memoryview  # as a link delivers it


class CodecError(ValueError):
    """A message, or what one should be made of, is not as it must be."""


class MissingPastError(CodecError):
    """The receiver lacks masks that it takes to read a message: only another key frame helps."""


class SentMask(NamedTuple):
    """The mask that an agent sent in a round, each layer of one byte for every eight entries begun."""

    sender: int
    round: int
    layers: Sequence[Bits]
    scales: Sequence[float] = ()  # where bits are signs: what those of each layer stand for, as float32


def encode(
    mask: SentMask, shapes: Shapes, *, past: Sequence[SentMask] = (), coded: bool = True, run: bytes = b""
) -> bytes:
    """The message of a mask, which says what differs from those before where that is cheaper, and else all.

    Args:
        mask: sender and round from 0 to 2**32 - 1. Padding bits, beyond a layer's entries, do not matter.
        shapes: of the layers.
        past: masks that the sender sent before and every receiver has, the latest first, of which four are of use. A
            message made without any is a key frame.
        coded: False leaves entropy coding out, for which a library is needed.
        run: what tells this run from others whose messages might come by, such as a digest of its settings.

    Raises:
        CodecError: the mask does not fit the shapes, or the past not the mask: of its sender, of ever earlier rounds.
        ImportError: the library, constriction, is missing.

    >>> layer = np.packbits(np.arange(80) % 20 == 0)
    >>> message = encode(SentMask(3, 12, [layer]), [(8, 10)])
    >>> mask = decode(message, [(8, 10)])
    >>> len(message), mask.sender, mask.round, bool(np.all(mask.layers[0] == layer))
    (48, 3, 12, True)
    """
    kind, mask, past = _kind(shapes, run), _cleaned(mask, shapes), _cleaned_past(past, shapes)
    for later, earlier in pairwise([mask, *past]):
        if earlier.sender != mask.sender or earlier.round >= later.round:
            raise CodecError(f"an earlier mask than {_named(later)} was expected before it, got {_named(earlier)}")
    body, takes = shorten(mask.layers, _sizes(shapes), [one.layers for one in past], coded=coded)
    header = _Header(
        mask.sender,
        mask.round,
        takes,
        past[0].round if takes else mask.round,
        _hash(kind, 4),
        _digest_of_past(past[:takes], kind),
        _digest(mask, kind),
    )
    scales = np.array(mask.scales, "<f4").tobytes()
    message = HEADER.pack(SCALED if scales else MAGIC, VERSION, *header) + scales + body
    return message + _hash(message)


def decode(message: Received, shapes: Shapes, *, past: Sequence[SentMask] = (), run: bytes = b"") -> SentMask:
    """The mask that `encode` made a message of, bit for bit; padding bits are 0. Its arrays are read-only.

    Args:
        message: as it came.
        shapes: of the layers, as the receiver knows them.
        past: the last masks that came from the sender, the latest first; a key frame needs none.
        run: as the sender names it.

    Raises:
        CodecError: the message is damaged, of another version, of other shapes or another run.
        MissingPastError: it takes other masks to read it than `past`, or more.
        ImportError: constriction is missing, and the message is entropy coded.
    """
    header, scales, body = _open(message, shapes, run)
    needed = _past_of(header, shapes, past, run)
    try:
        layers = restore(body, _sizes(shapes), [one.layers for one in needed])
    except ValueError as error:
        raise CodecError(
            f"layers were expected, got other bytes ({error}): drop it, and give both ends one release of constriction"
        ) from None
    mask = _cleaned(SentMask(header.sender, header.round, layers, scales), shapes)
    if _digest(mask, _kind(shapes, run)) != header.digest:
        raise CodecError("the decoded mask is not the one sent: drop it, and use one constriction release at both ends")
    return mask


class Sender(NamedTuple):
    """What a sending agent remembers. Nothing changes in place: methods return the next state.

    A key frame goes first, then whenever `key_every` rounds have passed since the last (0: never), and where a receiver
    has asked for one; messages after it take no mask from before it. Now and then one in between can be read alone,
    too, because that is cheapest; those after it may still take masks from before it.
    """

    number: int  # the agent's
    shapes: Shapes
    key_every: int = 0
    coded: bool = True  # see `encode`
    run: bytes = b""  # see `encode`
    past: tuple[SentMask, ...] = ()  # sent since the last key frame, and that one: the latest first, no more than help
    key_round: int | None = None  # of the last key frame

    def send(self, round: int, layers: Sequence[Bits], scales: Sequence[float] = ()) -> tuple["Sender", bytes]:
        """The state after a round, and its message; a CodecError as in `encode`, or where rounds do not rise."""
        if self.past and round <= self.past[0].round:
            raise CodecError(f"a round after {self.past[0].round}, which was sent, was expected, got {round}")
        mask = _cleaned(SentMask(self.number, round, layers, scales), self.shapes)
        due = self.key_round is None or 0 < self.key_every <= round - self.key_round
        past = () if due else self.past
        message = encode(mask, self.shapes, past=past, coded=self.coded, run=self.run)
        return self._replace(past=(mask, *past)[:PAST], key_round=round if due else self.key_round), message

    def resynchronised(self) -> "Sender":
        """The state whose next message is a key frame, as a receiver has asked."""
        return self._replace(key_round=None)


class Receiver(NamedTuple):
    """What the other end remembers of one sender, in one run of it. Nothing changes in place."""

    sender: int
    shapes: Shapes
    run: bytes = b""  # as its sender names it
    past: tuple[SentMask, ...] = ()  # that came last, the latest first, no more than help

    def receive(self, message: Received) -> tuple["Receiver", SentMask]:
        """The state after a message, and its mask.

        Raises a CodecError as `decode` does, and where another agent sent the message or it is no newer than the last.
        This state can then be used further. After a MissingPastError, ask the sender for a key frame.
        """
        header, *_ = _open(message, self.shapes, self.run)
        if header.sender != self.sender:
            raise CodecError(f"a mask of agent {self.sender} was expected, got {_named(header)}: drop it")
        if self.past and header.round <= self.past[0].round:
            raise CodecError(f"a later mask than {_named(self.past[0])} was expected, got {_named(header)}: drop it")
        mask = decode(message, self.shapes, past=self.past, run=self.run)
        return self._replace(past=(mask, *self.past)[:PAST]), mask


class _Header(NamedTuple):
    sender: int
    round: int
    takes: int  # past masks
    past_round: int
    shapes: bytes
    past: bytes
    digest: bytes


def _open(message: Received, shapes: Shapes, run: bytes) -> tuple[_Header, list[float], bytes]:
    """The header, the scales, and the layers yet to be read, of a message that came whole and is of these shapes and
    this run."""
    message, least = memoryview(message).tobytes(), HEADER.size + CHECKSUM
    if len(message) < least:
        raise CodecError(f"a message of at least {least} bytes was expected, got {len(message)}: ask for it again")
    body, checksum = message[:-CHECKSUM], message[-CHECKSUM:]
    if checksum != _hash(body):
        raise CodecError(f"a whole message was expected, got {len(message)} damaged or other bytes: ask for it again")
    magic, version, *fields = HEADER.unpack_from(message)
    if magic not in (MAGIC, SCALED):
        raise CodecError(f"a message that starts with {MAGIC!r} was expected, got {magic!r}: drop it, it is no mask")
    if version != VERSION:
        raise CodecError(f"a message of format {VERSION} was expected, got {version}: both ends need one release")
    header = _Header(*fields)
    if header.takes > PAST:
        raise CodecError(f"a message that takes up to {PAST} masks was expected, got one of {header.takes}: drop it")
    if header.shapes != _hash(_kind(shapes, run), 4):
        raise CodecError(
            f"layers of shapes {list(shapes)} were expected, got others: both ends need one network, and one run's name"
        )
    end = HEADER.size + (4 * len(shapes) if magic == SCALED else 0)
    if len(body) < end:
        raise CodecError(f"scales of {len(shapes)} layers were expected, got {len(body)} bytes in all: drop it")
    return header, np.frombuffer(body[HEADER.size : end], "<f4").tolist(), body[end:]


def _past_of(header: _Header, shapes: Shapes, past: Sequence[SentMask], run: bytes) -> list[SentMask]:
    """The masks that it takes to read a message. Half a digest is enough: the decoded mask's own is whole."""
    if header.takes == 0:
        return []
    wanted = f"flips since round {header.past_round} of {_named(header)} need"
    if not past:
        raise MissingPastError(f"{wanted} that mask, got none: ask for a key frame")
    past = _cleaned_past(past, shapes)
    if (past[0].sender, past[0].round) != (header.sender, header.past_round):
        raise MissingPastError(f"{wanted} that mask, got {_named(past[0])}: ask for a key frame")
    if len(past) < header.takes:
        raise MissingPastError(f"{wanted} the last {header.takes} masks, got {len(past)}: ask for a key frame")
    if _digest_of_past(past[: header.takes], _kind(shapes, run)) != header.past:
        raise MissingPastError(f"{wanted} the masks until then, got others: ask for a key frame")
    return past[: header.takes]


def _cleaned_past(past: Sequence[SentMask], shapes: Shapes) -> list[SentMask]:
    """As many of the masks as are of use, cleaned."""
    return [_cleaned(mask, shapes) for mask in past[:PAST]]


def _cleaned(mask: SentMask, shapes: Shapes) -> SentMask:
    """The mask in read-only arrays of its own, padding bits 0; a CodecError if it does not fit the shapes."""
    sizes = _sizes(shapes)
    mask = mask._replace(sender=int(index(mask.sender)), round=int(index(mask.round)))
    if not all(0 <= number < 2**32 for number in mask[:2]):
        raise CodecError(f"sender and round from 0 to 2**32 - 1 were expected, got {_named(mask)}")
    if len(mask.layers) != len(sizes):
        raise CodecError(f"{len(sizes)} layers were expected, got {len(mask.layers)}")
    if len(mask.scales) not in (0, len(sizes)):
        raise CodecError(f"a scale for each of {len(sizes)} layers was expected, or none, got {len(mask.scales)}")
    mask = mask._replace(scales=np.array(mask.scales, np.float32).tolist())
    layers = []
    for number, (bits, size) in enumerate(zip(map(np.asarray, mask.layers), sizes, strict=True)):
        if bits.dtype != np.uint8 or bits.shape != (-(-size // 8),):
            raise CodecError(
                f"{-(-size // 8)} bytes of uint8 were expected for the {size} entries of layer {number}, "
                f"got {bits.dtype} of {bits.shape}: pack the mask"
            )
        layers.append(bits & full(size))
        layers[-1].flags.writeable = False
    return mask._replace(layers=layers)


def _sizes(shapes: Shapes) -> list[int]:
    return [math.prod(map(int, shape)) for shape in shapes]


def _digest(mask: SentMask, kind: bytes) -> bytes:
    digest = blake2b(b"%d %d %b" % (mask.sender, mask.round, kind), digest_size=8)
    digest.update(np.array(mask.scales, "<f4").tobytes())
    for bits in mask.layers:
        digest.update(bits.data)
    return digest.digest()


def _digest_of_past(past: Sequence[SentMask], kind: bytes) -> bytes:
    """Of the masks that it takes to read a message, half as long as a mask's own; zeros of none."""
    return _hash(b"".join(_digest(mask, kind) for mask in past), 4) if past else bytes(4)


def _hash(content: bytes, size: int = CHECKSUM) -> bytes:
    return blake2b(content, digest_size=size).digest()


def _kind(shapes: Shapes, run: bytes) -> bytes:
    """What both ends of a link must agree on before the first message."""
    return str([tuple(int(side) for side in shape) for shape in shapes]).encode() + run


def _named(mask: SentMask | _Header) -> str:
    return f"agent {mask.sender}'s mask of round {mask.round}"
