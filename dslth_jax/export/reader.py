"""Reads an agent's .dslth file with numpy alone. A file of its own: copy it to where the model is to run.

    python dslth_reader.py agent_0001.dslth               says what is in it
    python dslth_reader.py agent_0001.dslth images.npy    and gives each uint8 image a label

The file holds no weights. It holds masks, and the random keys of which every masked weight is drawn anew, bit for bit
as `jax.random` draws it. Parameters that no mask selects from, such as biases, are few and lie in it as they are.

    bytes                 what they are
    8                     MAGIC
    4                     the length of the header, little-endian as all numbers
    as it says            the header, JSON: what the model is, `layers` with a mask, `frozen` parameters
    4 each                float32 entries of the frozen parameters, one after another
    256                   the states of the coder's 64 lanes, uint32
    2 each                the code, uint16
    4                     CRC-32 of all before

Each layer's mask is coded bit after bit, with its own density, by an asymmetric numeral system (Duda et al., 2015) of
64 lanes: 64 bits at a time, one a lane, and what a lane lacks it takes from the code. Of a ternary mask the signs of
the kept entries follow.
"""

import json
import math
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"\x89dslth1\n"
LANES, LOWEST = 64, 1 << 16  # a lane's state lies in LOWEST..2**32 - 1
PRECISION, MOST = 14, 1 << 28  # of a density, in bits; masked entries of a model


class Model(NamedTuple):
    """What a file holds."""

    about: dict[str, Any]  # the header
    params: dict[str, np.ndarray]  # masked weights by their names, float32, 0 where the mask is
    frozen: dict[str, np.ndarray]  # all others, float32
    masks: dict[str, np.ndarray]  # 0 and 1, or -1 too, int8


def load(path: str | Path) -> Model:
    """The model in a file. Raises a ValueError where it is no such file, or was damaged."""
    return read(Path(path).read_bytes(), str(path))


def read(content: bytes, name: str = "the content") -> Model:
    """The same of a file's content."""
    if not content.startswith(MAGIC):
        raise ValueError(f"{name} must be a .dslth file of version 1, and begins with {content[:8]!r}")
    if len(content) < 16 or zlib.crc32(content[:-4]) != int.from_bytes(content[-4:], "little"):
        raise ValueError(f"{name} is damaged: its checksum is not that of its content; copy it again")
    at = 12 + int.from_bytes(content[8:12], "little")
    try:
        about, frozen, masks = json.loads(content[12:at]), {}, {}
        for leaf in about["frozen"]:
            size = math.prod(leaf["shape"])
            frozen[leaf["name"]] = np.frombuffer(content, "<f4", size, at).reshape(leaf["shape"]).astype(np.float32)
            at += 4 * size
        decoder = Decoder(np.frombuffer(content[at:-4], "<u2"))
        if sum(abs(math.prod(layer["shape"])) for layer in about["layers"]) > MOST:
            raise ValueError(f"more than {MOST} masked entries")
        for layer in about["layers"]:
            mask = decoder.bits(math.prod(layer["shape"]), layer["ones"]).astype(np.int8)
            if layer["negative"]:
                mask[mask == 1] -= 2 * decoder.bits(layer["ones"], layer["negative"]).astype(np.int8)
            masks[layer["name"]] = mask.reshape(layer["shape"])
        decoder.expect_end()
        params = {layer["name"]: kept(layer, masks[layer["name"]]) for layer in about["layers"]}
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{name} holds no model that this reader knows: {type(error).__name__}, {error}") from None
    return Model(about, params, frozen, masks)


def share(ones: int, size: int) -> int:
    """A density as the coder takes it: of 2**PRECISION parts as many, and neither none nor all."""
    parts = 1 << PRECISION
    return min(max((ones * parts + size // 2) // size, 1), parts - 1)


class Decoder:
    """The bits of a code, in the order in which they were coded."""

    def __init__(self, words: np.ndarray) -> None:
        self.states = words[: 2 * LANES].copy().view("<u4").astype(np.uint64)
        self.words, self.at = words, 2 * LANES

    def bits(self, size: int, ones: int) -> np.ndarray:
        """The next `size` bits, of which so many are ones."""
        found = np.full(size, ones > 0)
        if ones in (0, size):
            return found  # these are not coded
        one, zero = np.uint64(share(ones, size)), np.uint64((1 << PRECISION) - share(ones, size))
        shift, low = np.uint64(PRECISION), np.uint64((1 << PRECISION) - 1)
        for start in range(0, size, LANES):
            states = self.states[: size - start]
            part, whole = states & low, states >> shift
            bit = part < one
            states[:] = np.where(bit, one * whole + part, zero * whole + part - one)
            short = np.flatnonzero(states < LOWEST)
            states[short] = states[short] << np.uint64(16) | self.words[self.at : self.at + len(short)]
            self.at += len(short)
            found[start : start + LANES] = bit
        return found

    def expect_end(self) -> None:
        """Raise a ValueError unless all of the code was read, and no more."""
        if self.at != len(self.words) or (self.states != LOWEST).any():
            raise ValueError("the masks were coded by another version: take the reader that lay beside the file")


def random_bits(key: Sequence[int], size: int) -> np.ndarray:
    """The first `size` words of 32 random bits of a key of two words: threefry2x32 (Salmon et al., 2011) of a counter,
    twenty rounds, the two words that it makes combined, as `jax.random.bits` draws them."""
    keys = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
    left = np.full(size, keys[0])
    right = np.arange(size, dtype=np.uint32) + keys[1]
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            left += right
            right = (right << np.uint32(turn) | right >> np.uint32(32 - turn)) ^ left
        left += keys[(group + 1) % 3]
        right += keys[(group + 2) % 3] + np.uint32(group + 1)
    return left ^ right


def drawn(layer: dict[str, Any], size: int) -> np.ndarray:
    """The first `size` weights of a layer, flat, float32: by its law uniform in ±bound, or ±bound with random signs."""
    bits, bound = random_bits(layer["key"], size), np.float32(layer["bound"])
    if layer["law"] == "signs":
        return np.where(bits >> np.uint32(31), -bound, bound)
    # 23 random bits make a number in [1, 2). Where a product and a sum were fused they were rounded once: so compute
    # both in float64, where they are exact, and round then.
    unit = (bits >> np.uint32(9) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    span = (np.float64 if layer["fused"] else np.float32)(2 * bound)
    return np.maximum((unit * span - bound).astype(np.float32), -bound)


def kept(layer: dict[str, Any], mask: np.ndarray) -> np.ndarray:
    """A layer's weights under its mask, times its scale."""
    weights = drawn(layer, mask.size).reshape(mask.shape)
    return weights * np.float32(layer["scale"]) * mask.astype(np.float32)


def logits(model: Model | str | Path, images: np.ndarray) -> np.ndarray:
    """The logits (images, classes), float32, of uint8 images (images, height, width, channels), grey ones perhaps
    without channels. Raises a ValueError if they are others, or if the network is none of `NETWORKS`."""
    model = model if isinstance(model, Model) else load(model)
    if missing := {"network", "image_shape", "elu_on_logits"} - {*model.about}:
        raise ValueError(f"for logits a file must say its {', '.join(sorted(missing))}; this one gives weights alone")
    network, shape = model.about["network"], tuple(model.about["image_shape"])
    if network not in NETWORKS:
        raise ValueError(f"this reader computes {', '.join(NETWORKS)}; of {network} it gives the weights alone")
    images = images[..., None] if images.ndim == 3 and shape[-1:] == (1,) else images
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise ValueError(f"images must be uint8 of (images, {str(shape)[1:]}, got {images.dtype} of {images.shape}")
    parts = [images[start : start + 64] for start in range(0, max(len(images), 1), 64)]
    answers = np.concatenate([forward(model, NETWORKS[network], part) for part in parts])
    return elu(answers) if model.about["elu_on_logits"] else answers


def forward(model: Model, stages: Sequence[Callable[[np.ndarray], np.ndarray]], images: np.ndarray) -> np.ndarray:
    """Convolutions with an ELU, each with what its stage does next; then two linear layers with an ELU between."""
    values = (images.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    for number, stage in enumerate(stages, 1):
        values = stage(elu(convolve(values, model.params[f"conv{number}/kernel"])))
    values = values.reshape(len(values), math.prod(values.shape[1:]))
    values = elu(values @ model.params["linear1/kernel"] + model.frozen["linear1/bias"])
    return values @ model.params["linear2/kernel"] + model.frozen["linear2/bias"]


def elu(values: np.ndarray) -> np.ndarray:
    """x for x > 0, e^x - 1 below."""
    return np.where(values > 0, values, np.expm1(np.minimum(values, 0)))


def convolve(images: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Cross-correlation with a zero on every side, as one product of patches (height, width, inputs) and a kernel."""
    rows, columns, inputs, outputs = kernel.shape
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (rows, columns), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    answers = patches.reshape(math.prod(patches.shape[:3]), rows * columns * inputs) @ kernel.reshape(-1, outputs)
    return answers.reshape(*patches.shape[:3], outputs)


def max_pool(images: np.ndarray, side: int, padding: int = 0) -> np.ndarray:
    """Maxima of windows of `side` x `side`, 2 apart; a remainder at the far side is left out."""
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::2, ::2].max((4, 5))


def normed_pool(images: np.ndarray, alpha: float, padding: int = 0) -> np.ndarray:
    """Response normalization over channels c-2 to c+1, x / (1 + alpha/4 · Σ x²)^(3/4), and maxima of 3x3."""
    channels = images.shape[3]
    squares = np.pad(images**2, ((0, 0), (0, 0), (0, 0), (2, 1)))
    around = sum(squares[..., place : place + channels] for place in range(4))
    return max_pool(images / (1 + np.float32(alpha / 4) * around) ** np.float32(0.75), 3, padding)


# What follows each convolution.
NETWORKS: dict[str, list[Callable[[np.ndarray], np.ndarray]]] = {
    "alexnet": [partial(normed_pool, alpha=a, padding=p) for a, p in ((2e-5, 0), (1e-4, 0), (1e-4, 1))],
    "conv3": [partial(max_pool, side=2)] * 3,
    "small": [partial(max_pool, side=3, padding=1)] * 2,
}


def described(model: Model) -> str:
    """What is in a file, in lines."""
    lines = [f"{name}: {own}" for name, own in model.about.items() if name not in ("layers", "frozen")]
    for layer in model.about["layers"]:
        ones = f"{layer['ones']} of {math.prod(layer['shape'])} kept"
        lines.append(f"{layer['name']} {tuple(layer['shape'])}: {ones}, {layer['law']}")
    return "\n".join(lines + [f"{leaf['name']} {tuple(leaf['shape'])}: as it is" for leaf in model.about["frozen"]])


def read_images(path: str | Path) -> np.ndarray:
    """The array of a .npy file; an OSError or a ValueError where there is none."""
    with Path(path).open("rb") as file:
        try:
            return np.lib.format.read_array(file)
        except Exception:  # of many kinds, by where the file is damaged
            raise ValueError(f"{path} must hold one array, as numpy.save writes it") from None


def main(words: list[str]) -> int:
    """What the file does as a program; returns its exit code."""
    if len(words) not in (1, 2):
        print("python dslth_reader.py FILE.dslth [IMAGES.npy]", file=sys.stderr)
        return 2
    try:
        model = load(words[0])
        given = [read_images(path) for path in words[1:]]
        names = model.about.get("labels", range(2**31))
        labels = [names[best] for images in given for best in logits(model, images).argmax(-1)]
        print(described(model), *labels, sep="\n")
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
