"""Masks <-> the messages that a link carries, exactly. One agent's world, on the host: numpy, no JAX.

A mask is a sequence of layers of packed bits, as `masks.pack` makes them (`jax.tree.leaves` of one agent's message on
the host), and comes with the layers' shapes. A message is, integers with the lowest byte first:

    b"DM", or b"DS" where layers have scales, version (1 byte), sender (4), round (4)
    round of the mask that flips are against (4); a key frame has no flips and names its own round
    digests of shapes and the run's name (4), of the mask that flips are against (4; zeros), of this mask (8)
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
from operator import index
from typing import NamedTuple, SupportsIndex

import numpy as np

from dslth_jax.codec.entropy import Bits, full, restore, shorten

MAGIC, SCALED, VERSION = b"DM", b"DS", 2  # what is written in another way is not read
HEADER = struct.Struct("<2sBIII4s4s8s")
CHECKSUM = 8  # bytes

Shapes = Sequence[tuple[SupportsIndex, ...]]
Received = bytes | bytearray | memoryview  # as a link delivers it


class CodecError(ValueError):
    """A message, or what one should be made of, is not as it must be."""


class MissingPastError(CodecError):
    """A message's flips are against a mask that the receiver lacks: only another key frame helps."""


class SentMask(NamedTuple):
    """The mask that an agent sent in a round, each layer of one byte for every eight entries begun."""

    sender: int
    round: int
    layers: Sequence[Bits]
    scales: Sequence[float] = ()  # where bits are signs: what those of each layer stand for, as float32


def encode(
    mask: SentMask, shapes: Shapes, *, past: SentMask | None = None, coded: bool = True, run: bytes = b""
) -> bytes:
    """The message of a mask: a key frame, unless flips against `past` are cheaper.

    Args:
        mask: sender and round from 0 to 2**32 - 1. Padding bits, beyond a layer's entries, do not matter.
        shapes: of the layers.
        past: an earlier mask of the sender, which every receiver has.
        coded: False leaves entropy coding out, for which a library is needed.
        run: what tells this run from others whose messages might come by, such as a digest of its settings.

    Raises:
        CodecError: the mask does not fit the shapes, or the past not the mask.
        ImportError: the library, constriction, is missing.

    >>> layer = np.packbits(np.arange(80) % 20 == 0)
    >>> message = encode(SentMask(3, 12, [layer]), [(8, 10)])
    >>> mask = decode(message, [(8, 10)])
    >>> len(message), mask.sender, mask.round, bool(np.all(mask.layers[0] == layer))
    (47, 3, 12, True)
    """
    kind, mask, past = _kind(shapes, run), _cleaned(mask, shapes), past and _cleaned(past, shapes)
    if past and (past.sender != mask.sender or past.round >= mask.round):
        raise CodecError(f"an earlier mask than {_named(mask)} was expected as its past, got {_named(past)}")
    body, takes_past = shorten(mask.layers, _sizes(shapes), past and past.layers, coded=coded)
    against = past if takes_past else None
    header = _Header(
        mask.sender,
        mask.round,
        against.round if against else mask.round,
        _hash(kind, 4),
        _digest(against, kind)[:4] if against else bytes(4),
        _digest(mask, kind),
    )
    scales = np.array(mask.scales, "<f4").tobytes()
    message = HEADER.pack(SCALED if scales else MAGIC, VERSION, *header) + scales + body
    return message + _hash(message)


def decode(message: Received, shapes: Shapes, *, past: SentMask | None = None, run: bytes = b"") -> SentMask:
    """The mask that `encode` made a message of, bit for bit; padding bits are 0. Its arrays are read-only.

    Args:
        message: as it came.
        shapes: of the layers, as the receiver knows them.
        past: the last mask that came from the sender; key frames need none.
        run: as the sender names it.

    Raises:
        CodecError: the message is damaged, of another version, of other shapes or another run.
        MissingPastError: its flips are against another mask than `past`.
        ImportError: constriction is missing, and the message is entropy coded.
    """
    header, scales, body = _open(message, shapes, run)
    against = _past_of(header, shapes, past, run)
    try:
        layers = restore(body, _sizes(shapes), against and against.layers)
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
    has asked for one; flips go in between.
    """

    number: int  # the agent's
    shapes: Shapes
    key_every: int = 0
    coded: bool = True  # see `encode`
    run: bytes = b""  # see `encode`
    past: SentMask | None = None  # sent last
    key_round: int | None = None  # of the last key frame

    def send(self, round: int, layers: Sequence[Bits], scales: Sequence[float] = ()) -> tuple["Sender", bytes]:
        """The state after a round, and its message; a CodecError as in `encode`, or where rounds do not rise."""
        if self.past and round <= self.past.round:
            raise CodecError(f"a round after {self.past.round}, which was sent, was expected, got {round}")
        mask = _cleaned(SentMask(self.number, round, layers, scales), self.shapes)
        due = self.key_round is None or 0 < self.key_every <= round - self.key_round
        message = encode(mask, self.shapes, past=None if due else self.past, coded=self.coded, run=self.run)
        return self._replace(past=mask, key_round=round if due else self.key_round), message

    def resynchronised(self) -> "Sender":
        """The state whose next message is a key frame, as a receiver has asked."""
        return self._replace(key_round=None)


class Receiver(NamedTuple):
    """What the other end remembers of one sender, in one run of it. Nothing changes in place."""

    sender: int
    shapes: Shapes
    run: bytes = b""  # as its sender names it
    past: SentMask | None = None  # came last

    def receive(self, message: Received) -> tuple["Receiver", SentMask]:
        """The state after a message, and its mask.

        Raises a CodecError as `decode` does, and where another agent sent the message or it is no newer than the last.
        This state can then be used further. After a MissingPastError, ask the sender for a key frame.
        """
        header, *_ = _open(message, self.shapes, self.run)
        if header.sender != self.sender:
            raise CodecError(f"a mask of agent {self.sender} was expected, got {_named(header)}: drop it")
        if self.past and header.round <= self.past.round:
            raise CodecError(f"a later mask than {_named(self.past)} was expected, got {_named(header)}: drop it")
        mask = decode(message, self.shapes, past=self.past, run=self.run)
        return self._replace(past=mask), mask


class _Header(NamedTuple):
    sender: int
    round: int
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
    if header.shapes != _hash(_kind(shapes, run), 4):
        raise CodecError(
            f"layers of shapes {list(shapes)} were expected, got others: both ends need one network, and one run's name"
        )
    end = HEADER.size + (4 * len(shapes) if magic == SCALED else 0)
    if len(body) < end:
        raise CodecError(f"scales of {len(shapes)} layers were expected, got {len(body)} bytes in all: drop it")
    return header, np.frombuffer(body[HEADER.size : end], "<f4").tolist(), body[end:]


def _past_of(header: _Header, shapes: Shapes, past: SentMask | None, run: bytes) -> SentMask | None:
    """The mask that a message's flips are against. Half a digest is enough: the decoded mask's own is whole."""
    if header.past_round == header.round:
        return None
    wanted = f"flips since round {header.past_round} of {_named(header)} need that mask, got"
    if past is None:
        raise MissingPastError(f"{wanted} none: ask for a key frame")
    past = _cleaned(past, shapes)
    if (past.sender, past.round) != (header.sender, header.past_round):
        raise MissingPastError(f"{wanted} {_named(past)}: ask for a key frame")
    if _digest(past, _kind(shapes, run))[:4] != header.past:
        raise MissingPastError(f"{wanted} one with other bits: ask for a key frame")
    return past


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


def _hash(content: bytes, size: int = CHECKSUM) -> bytes:
    return blake2b(content, digest_size=size).digest()


def _kind(shapes: Shapes, run: bytes) -> bytes:
    """What both ends of a link must agree on before the first message."""
    return str([tuple(int(side) for side in shape) for shape in shapes]).encode() + run


def _named(mask: SentMask | _Header) -> str:
    return f"agent {mask.sender}'s mask of round {mask.round}"
