"""An agent's masks, and the keys of its random weights, as a .dslth file. `reader` says what lies where, and reads it.

Masked weights are never written: the file says of which key and by which law each layer is drawn. How a network comes
to its keys is looked up, not assumed: a key is taken only if what the reader draws of it are the weights, bit for bit.
"""

import itertools
import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from dslth_jax.algorithm import by_name
from dslth_jax.export.reader import LANES, LOWEST, MAGIC, MOST, PRECISION, drawn, kept, share
from dslth_jax.networks.layer_keys import layer_keys

FIRST = 64  # entries by which a key is told from others
INSTEAD = "export it as safetensors, onnx or jax"
Bits = tuple[np.ndarray, int]  # bits, flat, and how many of them are ones


def as_dslth(
    key: Key[Array, ""],
    weights: PyTree[Array | np.ndarray],
    variables: PyTree[Array | np.ndarray],
    masks: PyTree[Array | np.ndarray],
    about: Mapping[str, Any],
) -> bytes:
    """An agent's variables as a file of its masks.

    Args:
        key: what the network's `init` had, `population.weights_key(key_of(seed))` in a run.
        weights: the random ones, as `init` made them of it, float32.
        variables: `{"params": ..., "frozen": ...}`, where masked weights are random ones under a mask, each layer times
            a number of its own.
        masks: of the weights' shapes, 0 and 1, or -1 too.
        about: what else the file is to say, in JSON's types; a reader that computes logits looks for `network`,
            `image_shape`, `elu_on_logits` and `labels`.

    Raises a ValueError where the variables are anything else, for then no key and masks say them.
    """
    random, own = _arrays(weights), _arrays(masks)
    params, frozen = _arrays(variables["params"]), _arrays(variables["frozen"])
    if odd := [f"{name} of {leaf.dtype}" for name, leaf in (params | frozen).items() if leaf.dtype != np.float32]:
        raise ValueError(f"a .dslth file holds float32 alone, got {', '.join(odd)}: {INSTEAD}")
    if (size := sum(mask.size for mask in own.values())) > MOST:
        raise ValueError(f"a .dslth file holds at most {MOST} masked entries, got {size}: {INSTEAD}")
    layers, coded = [], list[Bits]()
    for place, (name, layer) in enumerate(random.items()):
        mask, ones = own[name], int(np.count_nonzero(own[name]))
        law = _law(name, layer, layer_keys(key, name, place, len(random)))
        counts = {"ones": ones, "negative": int(np.count_nonzero(mask < 0))}
        layers.append({"name": name, "shape": [*layer.shape], **law, "scale": 1.0, **counts})
        layers[-1]["scale"] = _scale(layers[-1], mask, params[name])
        coded.append((mask.reshape(-1) != 0, ones))
        coded.append(((mask[mask != 0] < 0), layers[-1]["negative"]))
    leaves = [{"name": name, "shape": [*leaf.shape]} for name, leaf in frozen.items()]
    header = json.dumps({**about, "layers": layers, "frozen": leaves}, allow_nan=False).encode()
    parts = [MAGIC, len(header).to_bytes(4, "little"), header]
    parts += [leaf.astype("<f4").tobytes() for leaf in frozen.values()] + [coded_bits(coded)]
    content = b"".join(parts)
    return content + zlib.crc32(content).to_bytes(4, "little")


def coded_bits(layers: list[Bits]) -> bytes:
    """The code that `reader.Decoder` reads: the lanes' states, then words of 16 bits."""
    states, words = np.full(LANES, LOWEST, np.uint64), list[np.ndarray]()
    shift = np.uint64(PRECISION)
    for bits, ones in reversed(layers):  # what is coded last is decoded first
        if ones in (0, bits.size):
            continue
        one = share(ones, bits.size)
        parts = np.array([(1 << PRECISION) - one, one], np.uint64)  # of a zero, and of a one
        begins = np.array([one, 0], np.uint64)
        for start in range((bits.size - 1) // LANES * LANES, -1, -LANES):
            bit = bits[start : start + LANES].astype(np.intp)
            part, lanes = parts[bit], states[: bit.size]
            # A state that would outgrow 32 bits hands its lower half over first.
            full = np.flatnonzero(lanes >> np.uint64(32 - PRECISION) >= part)
            words.append(lanes[full].astype("<u2"))
            lanes[full] >>= np.uint64(16)
            lanes[:] = (lanes // part << shift) + lanes % part + begins[bit]
    return b"".join([states.astype("<u4").tobytes(), *(word.tobytes() for word in reversed(words))])


def _arrays(tree: PyTree) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in by_name(tree).items()}


def _law(name: str, weights: np.ndarray, keys: Iterator[Key[Array, ""]]) -> dict[str, Any]:
    """By which law a layer is drawn, and of which key."""
    fan_in, flat = math.prod(weights.shape[:-1]), weights.reshape(-1)
    laws = [("uniform", 1 / math.sqrt(fan_in)), ("uniform", 1.0), ("signs", abs(float(flat[0])))]
    for key, (law, bound), fused in itertools.product(keys, laws, (True, False)):
        words = jax.random.key_data(key).tolist()
        found = {"key": words, "law": law, "bound": float(np.float32(bound)), "fused": fused}
        # Look at a few first: they tell a key from others, and nearly always whether compilers have fused.
        if all(np.array_equal(drawn(found, size), flat[:size]) for size in (min(FIRST, flat.size), flat.size)):
            return found
    raise ValueError(
        f"a .dslth file says of which key weights are drawn, and those of {name} are drawn by no law of "
        f"networks.network.WEIGHTS: {INSTEAD}"
    )


def _scale(layer: Mapping[str, Any], mask: np.ndarray, params: np.ndarray) -> float:
    """What a layer's kept weights are multiplied by, to the last bit."""
    plain = kept({**layer, "scale": 1.0}, mask)
    place = int(np.argmax(np.abs(plain)))
    scale = np.float32(params.flat[place] / plain.flat[place]) if plain.flat[place] else np.float32(1)
    up, down = np.float32(np.inf), np.float32(0)
    near = [scale, np.nextafter(scale, up), np.nextafter(scale, down)]
    for one in near:
        if np.array_equal(kept({**layer, "scale": float(one)}, mask), params):
            return float(one)
    raise ValueError(
        f"a .dslth file holds random weights under a mask, and those of {layer['name']} are trained: {INSTEAD}"
    )
