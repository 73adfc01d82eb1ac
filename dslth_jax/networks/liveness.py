"""Which channels of a network with an agent's weights are of use: what feeds them, and who reads them. Host side.

One agent's world. Layers go by the paths of their modules, sets of channels by their names: see `wiring`.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dslth_jax.networks.network import Network
from dslth_jax.networks.norms import groups_of
from dslth_jax.networks.wiring import IMAGES, Mixing, Wiring

Flags = Bool[np.ndarray, "_"]


class Whole(NamedTuple):
    """A network before it is cut, and which of its channels live."""

    wiring: Wiring
    kernels: Mapping[str, np.ndarray]  # of each layer that has one; shortcuts have none
    depthwise: Collection[str]  # layers
    uncut: Collection[str]  # sets that stay as they are
    used: dict[str, Bool[np.ndarray, "inputs outputs"]]  # of a layer, the inputs by which it makes each output
    alive: dict[str, Flags]  # of a layer's outputs, those that live inputs feed
    alive_of: Mapping[str, Flags]  # the same of a set
    constants: Mapping[str, np.ndarray]  # of a set, what those are that do not live; others count as 0


def whole_of(network: Network, params: Mapping[str, np.ndarray], frozen: Mapping[str, np.ndarray]) -> Whole:
    """A network with an agent's weights, followed from its images on.

    Args:
        network: one that says its wiring.
        params: its masked weights by their names, zeros where masks keep nothing.
        frozen: its other parameters by their names.

    Raises a ValueError if the network does not say its wiring, if the wiring is not that of these parameters, or if a
    constant other than 0 goes into a layer without a bias.
    """
    wiring = network.wiring
    if wiring is None:
        raise ValueError(
            "the network does not say which channels its layers share, so it cannot be made smaller: give its module a "
            "field `wiring`, as those of dslth_jax.networks.zoo have"
        )
    unsaid = sorted({*params, *frozen} - {f"{path}/{kind}" for path in wiring.layers for kind in ("kernel", "bias")})
    if unsaid:
        raise ValueError(
            f"the network's wiring must name the layers of all its parameters, and lacks those of {', '.join(unsaid)}: "
            f"add them to the field `wiring` of its module, or do without these parameters"
        )
    kernels = {path: params[f"{path}/kernel"] for path in wiring.layers if f"{path}/kernel" in params}
    depthwise = {path for path in kernels if network.roles[f"{path}/kernel"] == "depthwise"}
    logits = {layer.writes for path, layer in wiring.layers.items() if is_of(path, network.heads)}
    sizes = {layer.writes: kernels[path].shape[-1] for path, layer in wiring.layers.items() if path in kernels}
    whole = Whole(
        wiring,
        kernels,
        depthwise,
        {IMAGES, *wiring.whole, *logits},
        used={},
        alive={},
        alive_of={name: np.full(size, name in wiring.whole) for name, size in sizes.items()},
        constants={name: np.zeros(size) for name, size in sizes.items()},
    )
    for path, layer in wiring.layers.items():
        whole.used[path] = uses(whole, path)
        inputs = whole.alive_of.get(layer.reads, np.ones(len(whole.used[path]), bool))
        whole.alive[path] = (whole.used[path] & inputs[:, None]).any(0)
        whole.alive_of[layer.writes][:] |= whole.alive[path]
        whole.constants[layer.writes][:] += constants_behind(whole, path, frozen.get(f"{path}/bias"))
        whole.constants[layer.writes][whole.alive_of[layer.writes]] = 0
    for own in wiring.attentions:
        both = whole.alive_of[own.query] & whole.alive_of[own.key]
        whole.alive_of[own.query][:] = whole.alive_of[own.key][:] = both
    return whole


def is_of(path: str, modules: Collection[str]) -> bool:
    """Whether a layer is one of these modules, or in one of them."""
    return f"{path}/".startswith(tuple(f"{module}/" for module in modules))


def uses(whole: Whole, path: str) -> Bool[np.ndarray, "inputs outputs"]:
    """By which channels of the set that it reads a layer makes which of its outputs; a ValueError if it cannot."""
    layer, kernel = whole.wiring.layers[path], whole.kernels.get(path)
    inputs, outputs = (len(whole.alive_of[name]) if name in whole.alive_of else 0 for name in layer[:2])
    if not outputs or (layer.reads != IMAGES and not inputs):
        raise ValueError(f"the wiring's {path} must read and write sets that layers write, got {layer[:2]}")
    if kernel is None and layer.reads == IMAGES:
        raise ValueError(f"the wiring's {path} hands on channels of the images, and none of these can be cut")
    if kernel is None:
        return np.eye(inputs, outputs, dtype=bool)
    if layer.reads == IMAGES:
        inputs = kernel.shape[-1] if path in whole.depthwise else kernel.shape[-2]
    expected = 1 if path in whole.depthwise else inputs
    if kernel.shape[-2] % expected or (kernel.ndim > 2 and kernel.shape[-2] != expected) or kernel.shape[-1] != outputs:
        raise ValueError(
            f"the wiring's {path} must have a kernel of {inputs} channels and {outputs} outputs, got {kernel.shape}"
        )
    if path in whole.depthwise:
        return np.diag((kernel != 0).any((0, 1, 2)))
    return (kernel.reshape(-1, inputs, outputs) != 0).any(0)


def constants_behind(whole: Whole, path: str, bias: np.ndarray | None) -> np.ndarray:
    """What a layer hands on of each output, if no image moves it: 0 but behind a bias."""
    layer, kernel = whole.wiring.layers[path], whole.kernels.get(path)
    summed = added_by_constants(whole, path)
    if summed.any() and (bias is None or kernel is None or kernel.ndim > 2):
        raise ValueError(
            f"{path} reads channels that are constant and not 0, and only a linear layer with a bias can take these "
            f"up: let {layer.reads!r} be among the sets that the network's wiring keeps whole"
        )
    if bias is None:
        return summed
    values = jnp.asarray((bias + summed).astype(bias.dtype))
    constants = np.asarray(values if layer.activation is None else layer.activation(values), float)
    if layer.mixing != "none" and layer.writes not in whole.uncut and constants[~whole.alive[path]].any():
        raise ValueError(
            f"{path} has a bias, so that its dead channels are constant, and a norm behind it, which mixes these into "
            f"others: let {layer.writes!r} be among the sets that the network's wiring keeps whole"
        )
    return constants


def added_by_constants(whole: Whole, path: str, gone: Flags | None = None) -> np.ndarray:
    """What the constants of a set add to each output of a layer that reads it; of those channels that are `gone`."""
    reads, kernel = whole.wiring.layers[path].reads, whole.kernels.get(path)
    outputs = whole.used[path].shape[1]
    if reads == IMAGES:
        return np.zeros(outputs)
    constants = whole.constants[reads] if gone is None else np.where(gone, whole.constants[reads], 0)
    if not constants.any():
        return np.zeros(outputs)
    if kernel is None:
        return np.concatenate([constants, np.zeros(outputs - len(constants))])
    return constants @ kernel.reshape(-1, len(constants), outputs).sum(0, dtype=float)


def needed_by(whole: Whole) -> dict[str, Flags]:
    """Of each layer's outputs those that live and are read, and those that a norm mixes into such ones."""
    wiring, needed = whole.wiring, dict[str, Flags]()
    read = {name: np.full(len(own), name in whole.uncut) for name, own in whole.alive_of.items()}
    pairs = {name: own for own in wiring.attentions for name in (own.query, own.key)}
    for path, layer in reversed([*wiring.layers.items()]):
        if layer.writes in pairs:
            own = pairs[layer.writes]
            heads = (read[own.value] & whole.alive_of[own.value]).reshape(own.heads, -1).any(1)
            read[layer.writes] = whole.alive_of[layer.writes] & np.repeat(heads, len(read[layer.writes]) // own.heads)
        alive = whole.alive[path]
        needed[path] = alive & mixed_into(layer.mixing, alive & read[layer.writes][: len(alive)])
        if layer.reads != IMAGES:
            read[layer.reads] |= (whole.used[path] & needed[path]).any(1)
    return needed


def mixed_into(mixing: Mixing, read: Flags) -> Flags:
    """The channels that a norm mixes into those that are read.

    >>> mixed_into("window", np.arange(7) == 3).astype(int).tolist()
    [0, 1, 1, 1, 1, 0, 0]
    """
    if mixing == "groups":
        return np.repeat(read.reshape(groups_of(len(read)), -1).any(1), len(read) // groups_of(len(read)))
    if mixing == "window":  # channel c has c-2 to c+1 in its window
        padded = np.pad(read, (1, 2))
        return np.any([padded[place : place + len(read)] for place in range(4)], axis=0)
    return read
