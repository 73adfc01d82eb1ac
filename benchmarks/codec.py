"""Masks as bytes and back: how long messages are, against their entropy, and how long that takes.

    python -m benchmarks.codec [--entries 4800 204800 819200 196608 1920] [--densities 0.3 0.3 0.3 0.9 0.9]
                               [--flips 0.05 0.0005] [--repeats 9]

Random masks of exactly these densities, fresh, after such shares of every layer have flipped, and with four masks
before it between any two of which the same tenth of the entries flipped half of the time and the rest hardly. The
library's message stands beside a bitmap in the same frame and beside forms without any frame, to which what must be
known beforehand is given: constriction with one density a layer, bit after bit; with a probability for every bit; zlib.
For flips those forms code what differs from the last mask, and so does the entropy. Every form gives back exactly what
went in, else it is an error. Host code of one core.
"""

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import constriction
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions
from benchmarks.threshold import ALEXNET
from dslth_jax.codec import SentMask, decode, encode
from dslth_jax.codec.entropy import PAST

DENSITIES = (0.3, 0.3, 0.3, 0.9, 0.9)

Layers: TypeAlias = list[np.ndarray]  # bool, each layer a vector


class Case(NamedTuple):
    """A mask, and those that were sent before, the latest first."""

    mask: Layers
    past: list[Layers]

    def differing(self) -> Layers:
        """What is new in the mask."""
        if not self.past:
            return self.mask
        return [layer ^ old for layer, old in zip(self.mask, self.past[0], strict=True)]


class Form(NamedTuple):
    """How a case becomes bytes, and these what they must give back. Both are made of a case outside the clock."""

    encoder: Callable[[Case], Callable[[], bytes]]
    decoder: Callable[[Case, bytes], Callable[[], Layers]]
    given_back: Callable[[Case], Layers]


def pack(layer: np.ndarray) -> np.ndarray:
    """`masks.pack` in numpy."""
    planes = np.pad(layer.astype(np.uint8), (0, -layer.size % 8)).reshape(8, -1)
    return np.bitwise_or.reduce(planes << np.arange(8, dtype=np.uint8)[:, None], axis=0)


def packed(layers: Layers) -> list[np.ndarray]:
    return list(map(pack, layers))


def messages(coded: bool) -> Form:
    """The library's messages, entropy coded or not."""

    def parts(case: Case) -> tuple[SentMask, list[tuple[int, ...]], list[SentMask]]:
        rounds = range(len(case.past), -1, -1)
        mask, *past = [SentMask(0, *one) for one in zip(rounds, map(packed, [case.mask, *case.past]), strict=True)]
        return mask, [layer.shape for layer in case.mask], past

    def encoder(case: Case) -> Callable[[], bytes]:
        mask, shapes, past = parts(case)
        return lambda: encode(mask, shapes, past=past, coded=coded)

    def decoder(case: Case, message: bytes) -> Callable[[], Layers]:
        _, shapes, past = parts(case)
        return lambda: list(decode(message, shapes, past=past).layers)

    return Form(encoder, decoder, lambda case: packed(case.mask))


def bits(everyone_its_own: bool) -> Form:
    """constriction's coder with a probability for every bit, or one for all bits of a layer."""
    family = constriction.stream.model.Bernoulli(perfect=False)

    def models(case: Case) -> list[tuple[Any, ...]]:
        layers = case.differing()
        if everyone_its_own:
            return [(family, np.full(layer.size, layer.mean())) for layer in layers]
        return [(constriction.stream.model.Bernoulli(float(layer.mean()), perfect=False),) for layer in layers]

    def encoder(case: Case) -> Callable[[], bytes]:
        layers, given = case.differing(), models(case)

        def code() -> bytes:
            coder = constriction.stream.stack.AnsCoder()
            for layer, model in zip(reversed(layers), reversed(given), strict=True):
                coder.encode_reverse(layer.astype(np.int32), *model)
            return coder.get_compressed().tobytes()

        return code

    def decoder(case: Case, code: bytes) -> Callable[[], Layers]:
        given, sizes = models(case), [layer.size for layer in case.mask]

        def restore() -> Layers:
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(code, np.uint32))
            amounts = [() if everyone_its_own else (size,) for size in sizes]
            return [coder.decode(*model, *amount) for model, amount in zip(given, amounts, strict=True)]

        return restore

    return Form(encoder, decoder, Case.differing)


def deflated() -> Form:
    """What the standard library makes of a bitmap."""

    def bitmap_of(case: Case) -> bytes:
        return b"".join(layer.tobytes() for layer in packed(case.differing()))

    def encoder(case: Case) -> Callable[[], bytes]:
        bitmap = bitmap_of(case)
        return lambda: zlib.compress(bitmap)

    def decoder(case: Case, code: bytes) -> Callable[[], Layers]:
        return lambda: [np.frombuffer(zlib.decompress(code), np.uint8)]

    return Form(encoder, decoder, lambda case: [np.frombuffer(bitmap_of(case), np.uint8)])


FORMS = {
    "message": messages(coded=True),
    "bitmap": messages(coded=False),
    "bit after bit": bits(everyone_its_own=False),
    "a probability a bit": bits(everyone_its_own=True),
    "zlib": deflated(),
}


def cases(entries: Sequence[int], densities: Sequence[float], flips: Sequence[float]) -> dict[str, Case]:
    """A fresh mask, for every share of flips the mask and what it was before, and the mask with a longer past."""
    rng = np.random.default_rng(0)
    mask = [rng.permutation(size) < round(share * size) for size, share in zip(entries, densities, strict=True)]
    found = {"fresh": Case(mask, [])}
    for rate in flips:
        past = [layer ^ (rng.permutation(layer.size) < round(rate * layer.size)) for layer in mask]
        found[f"flips of {100 * rate:g} %"] = Case(mask, [past])
    often = [rng.choice([0.5, 0.001], size, p=[0.1, 0.9]) for size in entries]
    masks: list[Layers] = [mask]
    for _ in range(PAST):
        masks.append([layer ^ (rng.random(layer.size) < share) for layer, share in zip(masks[-1], often, strict=True)])
    return found | {"unsteady": Case(mask, masks[1:])}


def entropy_bytes(layers: Layers) -> float:
    """The fewest bytes for independent entries whose density is known for every layer."""
    total = 0.0
    for layer in layers:
        shares = np.array([share for share in (layer.mean(), 1 - layer.mean()) if share > 0])
        total -= layer.size * float(np.sum(shares * np.log2(shares)))
    return total / 8


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    """The median, after one call to warm up."""
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[1:])


def measured(form: Form, case: Case, repeats: int) -> dict[str, float]:
    """Bytes and milliseconds; an AssertionError where other entries come out than went in."""
    encoder = form.encoder(case)
    message = encoder()
    decoder = form.decoder(case, message)
    if not all(map(np.array_equal, decoder(), form.given_back(case))):
        raise AssertionError("other entries came out than went in")
    times = {
        "encode_milliseconds": milliseconds(encoder, repeats),
        "decode_milliseconds": milliseconds(decoder, repeats),
    }
    return {"bytes": len(message), **times}


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="+", default=ALEXNET, help="of each layer")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES, help="of each layer")
    parser.add_argument("--flips", type=float, nargs="*", default=[0.05, 0.0005], help="shares of all entries")
    parser.add_argument("--repeats", type=int, default=9)
    flags = parser.parse_args()
    print(f"{conditions()}; layers of {list(flags.entries)} entries, densities {list(flags.densities)}")
    table, rows = Table("mask", "form", "bytes", "beyond entropy", "encode, ms", "decode, ms"), []
    for name, case in cases(flags.entries, flags.densities, flags.flips).items():
        limit = entropy_bytes(case.differing())
        for form in FORMS:
            numbers = measured(FORMS[form], case, flags.repeats)
            times = f"{numbers['encode_milliseconds']:.2f}", f"{numbers['decode_milliseconds']:.2f}"
            table.add_row(name, form, f"{numbers['bytes']:,}", f"{numbers['bytes'] - limit:,.0f}", *times)
            rows.append({"mask": name, "form": form, "entropy_bytes": limit, **numbers})
    Console().print(table)
    print(json.dumps({"entries": list(flags.entries), "densities": list(flags.densities), "rows": rows}))


if __name__ == "__main__":
    main()
