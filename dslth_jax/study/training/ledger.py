"""What crosses directed links so far: a message costs its length on each link over which it is sent, lost or not. Ours.

How long a message is as a bitmap is known. How long a coded one is (`dslth_jax.codec`: a key frame, later what has
flipped) is known by encoding it, which happens in some rounds; between two of them an agent's messages are taken to
grow or shrink evenly. Key frames and the few after them, which are longer because they know less of a past, stand apart
from that.
"""

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dslth_jax.algorithm import Message
from dslth_jax.codec import SentMask, encode
from dslth_jax.codec.entropy import PAST


class Course(NamedTuple):
    """In which rounds of a run what happens, as the settings of these names say."""

    rounds: int
    eval_every: int
    exchange_every: int
    exchange_from: int
    key_every: int
    code_every: int | None = None
    checkpoint_every: int | None = None

    def is_evaluated(self, round: int) -> bool:
        """Whether there is an evaluation behind a round."""
        return round % self.eval_every == 0 or round == self.rounds

    def is_saved(self, round: int) -> bool:
        """Whether a checkpoint is asked for behind a round."""
        return self.checkpoint_every is not None and round % self.checkpoint_every == 0

    def has_exchange(self, round: int) -> bool:
        """Whether messages are sent in a round."""
        return round % self.exchange_every == 0 and round >= self.exchange_from

    def exchanges(self, rounds: int) -> int:
        """How many exchanges there are in the first so many rounds."""
        return max(rounds // self.exchange_every - (self.exchange_from - 1) // self.exchange_every, 0)

    def since_key_frame(self, round: int) -> int:
        """How many exchanges a round's lies behind the last one of key frames, and 0 if it is one: the first is, and as
        many more as are asked for."""
        before = self.exchanges(round) - 1
        return before % self.key_every if self.key_every else before

    def is_encoded(self, round: int) -> bool:
        """Whether the messages of a round are really encoded: key frames and the four after them, the last before every
        evaluation, those asked for, and the 8th, 16th, 32nd..., for flips grow fewer as if over the logarithm of time.
        """
        return self.is_closing(round) or (self.has_exchange(round) and self._is_due(round))

    def is_closing(self, round: int) -> bool:
        """Whether messages are encoded only because no later round of the run exchanges: a longer run would not."""
        return self.has_exchange(round) and round + self.exchange_every > self.rounds and not self._is_due(round)

    def _is_due(self, round: int) -> bool:
        number, next_row = self.exchanges(round), -(-round // self.eval_every) * self.eval_every
        as_asked = self.code_every is not None and number % self.code_every == 0
        last = round + self.exchange_every > next_row
        return self.since_key_frame(round) <= PAST or number.bit_count() == 1 or last or as_asked


@dataclasses.dataclass
class Ledger:
    """The bits of one run so far, in Python's numbers, because those of one round may exceed 32 bits."""

    entries: dict[str, int]  # of the bits of each layer of a message
    scaled: list[str] = dataclasses.field(default_factory=list)  # layers with a scale, sent as a float; no masks
    masks_alone: bool = True  # whether messages hold no values; bits of masks are counted of no others
    kept_bits: int = 0  # kept entries, the authors' rule, which no code achieves
    bitmap_bits: int = 0
    float32_bits: int = 0
    coded_bits: float = 0.0
    exchanges: int = 0  # so far
    coded_rounds: int = 0  # those whose messages were really encoded
    sent_bits: list[int] = dataclasses.field(default_factory=list)  # of each agent, as bitmaps and floats
    coded_of_each: list[float] = dataclasses.field(default_factory=list)  # coded bits of each agent
    lengths: list[int] = dataclasses.field(default_factory=list)  # bits of each agent's flips, when last encoded
    links: list[int] = dataclasses.field(default_factory=list)  # that each agent's messages have taken since then
    moments: list[int] = dataclasses.field(default_factory=list)  # the same, each times the exchanges since then
    since: int = 0  # exchanges

    def add(self, info: dict[str, Any]) -> None:
        """Count the bitmaps and floats of one round; `info` is that of `population.round`."""
        listeners = info["listeners"].astype(np.int64)
        of_each = (self.entries_of_each(info) + held(dict.fromkeys(self.scaled, 32), info)) * listeners
        if self.masks_alone:
            self.kept_bits += sum(int(kept @ listeners) for kept in info["kept"].values())
            self.bitmap_bits += int(of_each.sum())
        elif info["floats"] is not None:
            of_each += 32 * info["floats"].astype(np.int64) * listeners
            self.float32_bits += int(of_each.sum())
        self.sent_bits = added(self.sent_bits, of_each)

    def entries_of_each(self, info: dict[str, Any]) -> Int[np.ndarray, "agents"]:
        """How many bits, 0 and 1, each agent's message of a round holds, whether it is sent or not."""
        return held(self.entries, info)

    def add_coded(self, listeners: Int[np.ndarray, "agents"], lengths: Sequence[int] | None, known: int) -> None:
        """Count the coded messages of one exchange: of these lengths, bits, or of lengths to be interpolated. Those
        before which less than a whole past is `known` are always encoded, and no part of an even change."""
        listeners = listeners.astype(np.int64)
        self.exchanges += 1
        if lengths is not None:
            self.coded_rounds += 1
        if known < PAST:
            assert lengths is not None, "messages with less than a whole past are always encoded"
            self.spend(np.array(lengths, np.float64) * listeners)
            return
        self.since += 1
        self.links, self.moments = added(self.links, listeners), added(self.moments, self.since * listeners)
        if lengths is not None:
            before = np.array(self.lengths or lengths, np.float64)
            growth = (np.array(lengths, np.float64) - before) / self.since
            self.spend(before * np.array(self.links) + growth * np.array(self.moments))
            self.lengths, self.links, self.moments, self.since = [*lengths], [], [], 0

    def spend(self, of_each: Float[np.ndarray, "agents"]) -> None:
        """Count so many coded bits of each agent."""
        self.coded_bits += float(of_each.sum())
        self.coded_of_each = (np.array(self.coded_of_each or np.zeros(len(of_each))) + of_each).tolist()

    def row(self) -> dict[str, Any]:
        """What a row of metrics says of it."""
        row = {
            "kept_bits": self.kept_bits,
            "bitmap_bits": self.bitmap_bits,
            "coded_bits": round(self.coded_bits),
            "float32_bits": self.float32_bits,
            "busiest_agent_bits": max(self.sent_bits, default=0),
            "exchanges": self.exchanges,
            "coded_rounds": self.coded_rounds,
        }
        of_all = ("float32_bits", "busiest_agent_bits")
        unknown = {"kept_bits"} if self.scaled else set()
        return {
            name: own if name in of_all or (self.masks_alone and name not in unknown) else None
            for name, own in row.items()
        }

    def sent_by(self, agent: int) -> int:
        """The bits that an agent has sent: coded where messages hold bits alone, else as bitmaps and floats."""
        own = self.coded_of_each if self.masks_alone else self.sent_bits
        return round(own[agent]) if own else 0

    @property
    def on_the_wire(self) -> int:
        """Bits sent so far, of masks as bitmaps and of values."""
        return self.bitmap_bits + self.float32_bits


def held(bits: dict[str, int], info: dict[str, Any]) -> Int[np.ndarray, "agents"]:
    """How many of these bits of layers are in each agent's message of a round: those of the layers that it has."""
    total = np.zeros(len(info["listeners"]), np.int64)
    for name, own in bits.items():
        total += own * (1 if info["has"] is None else info["has"][name])
    return total


def added(total: list[int], more: Int[np.ndarray, "agents"]) -> list[int]:
    """The sum for each agent, as a list, because it goes into a checkpoint's notes."""
    return [a + int(b) for a, b in zip(total or [0] * len(more), more, strict=True)]


def lengths_of(sent: Sequence[Message], like: Message, round: int) -> list[int]:
    """The bits of every agent's message of a round, encoded by what it sent before, as far back as that has all of the
    message's layers. `sent` are the messages of this round and of those before, the latest first, each of everybody;
    `like` has the layers' shapes."""

    def layers_of(messages: Message, agent: int) -> list[str]:
        return [name for name in like.masks if messages.has is None or messages.has[name][agent]]

    def length(agent: int) -> int:
        names = layers_of(sent[0], agent)
        known = list(takewhile(lambda messages: {*names} <= {*layers_of(messages, agent)}, sent))
        masks = [
            SentMask(
                agent,
                # The codec counts from 0, and a start message may stand for several that were not sent.
                round + len(sent) - age,
                [np.asarray(messages.masks[name][agent]) for name in names],
                [float(messages.scales[name][agent]) for name in names if name in messages.scales],
            )
            for age, messages in enumerate(known)
        ]
        return 8 * len(encode(masks[0], [like.masks[name].shape for name in names], past=masks[1:]))

    with ThreadPoolExecutor() as several:  # much of it is numpy's, which lets others work
        return [*several.map(length, range(len(next(iter(sent[0].masks.values())))))]
