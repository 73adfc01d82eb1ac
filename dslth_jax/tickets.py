"""Strong lottery tickets by construction: a target convolutional network as a masked random one of twice the depth.

The theorem (da Cunha, Natale and Viennot 2022, after Pensia et al. 2020; the paper's Theorem 1): targets

    f(X) = K^(l) * σ(... σ(K^(1) * X)),   X in [0, 1],   norms of kernels at most 1,   σ the ReLU

and a random network of 2·l layers, entries U[-1, 1], whose odd layers are 1 x 1 with 2·n·c_in channels, and whose even
layers have the targets' kernel size. With n of the order of log(c_in c_out d² l / min(ε, δ)) some masks bring it within
ε of every target at once, with probability 1 - δ. The masks, layer by layer:

    odd     2·n channels see one input channel x alone, and of these the ones whose entry v is positive are kept. Since
            x is not negative, σ(v·x) = v·x. This mask is the same for all targets, hence for all agents.
    even    an entry of the target's kernel is the sum of a subset of the products v·u of these channels: the nearest
            one, `subset_sums.nearest`. An agent's mask says which.

A `Form` says what the theorem leaves out: stride, pooling, padding, biases, ELU, residual sums, inputs in [-1, 1]. On
the host, in float64. Kernels of targets have a leading axis of agents where `masks_for` takes them.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from dslth_jax.subset_sums import nearest

MOST = 24  # candidates for an entry of a kernel, among which the nearest subset is searched

Images = Float64[np.ndarray, "images _height _width _channels"]
Kernel = Float64[np.ndarray, "_side _side _inputs _outputs"]
Channels = Literal["positive", "both", "lifted"]


class Form(NamedTuple):
    """What targets have beside kernels, and which channels of odd layers masks keep for it."""

    activation: Literal["relu", "elu"] = "relu"
    stride: int = 1  # of the first layer
    pool: int = 1  # side of the windows of a max pooling behind the first activation
    padding: bool = False  # with zeros, so that images keep their size
    residual: bool = False  # every layer behind the first adds its input to its output; needs padding
    constant: bool = False  # every layer has a further input channel of ones, by which it takes biases (Burkholz 2022)
    channels: Channels = "positive"
    """Positive: v > 0, for inputs that are not negative. Both: v > 0 passes on the positive part of an input, v < 0 the
    negative one, and each needs a subset of its own, since x = ReLU(x) - ReLU(-x) (Pensia et al. 2020). Lifted (ours):
    the channel also takes b times the constant channel, with b >= abs(v), so that v·x + b is not negative for x in
    [-1, 1], where ELU too is linear; subsets of the constant channel's own, which has as many channels for it as all
    inputs have together, take away again what the b add up to. The first layer of such a form lifts nothing: its images
    are in [0, 1]."""


class Pair(NamedTuple):
    """The two random layers that stand for one of the targets'."""

    odd: Float64[np.ndarray, "inputs hidden"]  # 1 x 1
    even: Float64[np.ndarray, "side side hidden outputs"]


class PairMasks(NamedTuple):
    """Which entries of a pair are kept."""

    odd: Bool[np.ndarray, "inputs hidden"]
    even: Bool[np.ndarray, "*agents side side hidden outputs"]


def random_network(
    rng: np.random.Generator, shapes: Sequence[tuple[int, int, int]], candidates: int, form: Form | None = None
) -> list[Pair]:
    """A random network for targets whose layers have these (side, inputs, outputs): 2·`candidates` channels for each
    input channel, all entries U[-1, 1]."""
    network = []
    for side, inputs, outputs in shapes:
        blocks = blocks_of(inputs, form)
        hidden = 2 * candidates * sum(blocks)
        odd = rng.uniform(-1, 1, (len(blocks), hidden))
        network.append(Pair(odd, rng.uniform(-1, 1, (side, side, hidden, outputs))))
    return network


def blocks_of(inputs: int, form: Form | None) -> list[int]:
    """How many channels of an odd layer each of its inputs has, in multiples of 2·n."""
    if form is None or not form.constant:
        return [1] * inputs
    return [1] * inputs + [inputs if form.channels == "lifted" else 1]


def masks_for(
    network: Sequence[Pair],
    kernels: Sequence[Float64[np.ndarray, "agents _side _side _inputs _outputs"]],
    biases: Sequence[Float64[np.ndarray, "agents _outputs"]] | None = None,
    form: Form | None = None,
) -> list[PairMasks]:
    """The masks that bring the random network nearest to each agent's target, entry by entry. Those of odd layers are
    the same for all agents; those of even layers have a leading axis of agents. Raises a ValueError where the channels
    of a form cannot say what it asks for: `biases` need a constant one."""
    form = form or Form()
    if biases is not None and not form.constant:
        raise ValueError("a form of layers with biases must have constant=True: they are taken from that channel")
    if form.channels == "lifted" and not form.constant:
        raise ValueError("a form with lifted channels must have constant=True: they take the lift from that channel")
    if form.channels == "both" and form.activation == "elu":
        raise ValueError("a form with ELU must have positive or lifted channels: below 0 an ELU is no straight line")
    found = []
    for layer, (pair, kernel) in enumerate(zip(network, kernels, strict=True)):
        agents, side, _, inputs, outputs = kernel.shape
        # Images are never negative, so that the first layer needs no lift.
        channels = form.channels if form.channels == "both" or layer > 0 else "positive"
        odd = odd_mask(pair.odd, blocks_of(inputs, form), channels)
        even = np.zeros((agents, *pair.even.shape), bool)
        for place in np.ndindex(side, side):
            for output in range(outputs):
                entries, mask = (
                    pair.even[(*place, slice(None), output)],
                    even[(slice(None), *place, slice(None), output)],
                )
                for one in range(inputs):
                    wanted = kernel[(slice(None), *place, one, output)]
                    for sign in (1, -1) if channels == "both" else (1,):
                        gains = np.where(odd[one], np.maximum(sign * pair.odd[one], 0), 0)
                        gains = pair.odd[one] * odd[one] if channels == "lifted" else gains
                        choose(mask, entries, gains, sign * wanted)
                if form.constant:
                    centre = place == (side // 2, side // 2)
                    wanted = biases[layer][:, output] if biases is not None and centre else np.zeros(agents)
                    lifts = np.where(odd[:inputs].any(axis=0), pair.odd[-1] * odd[-1], 0)
                    # Behind the activation ones times a negative entry are nothing.
                    own = np.where(odd[:inputs].any(axis=0), 0, np.maximum(pair.odd[-1] * odd[-1], 0))
                    choose(mask, entries, own, wanted - mask @ (entries * lifts))
        found.append(PairMasks(odd, even))
    return found


def odd_mask(odd: Float64[np.ndarray, "inputs hidden"], blocks: Sequence[int], channels: Channels) -> np.ndarray:
    """Which entries of an odd layer are kept: blocks of channels that see one input each, and of these the usable."""
    widths = np.array(blocks) * odd.shape[1] // sum(blocks)
    block = np.repeat(np.eye(len(odd), dtype=bool), widths, axis=1)
    if channels == "both":
        return block
    if channels == "positive":
        return block & (odd > 0)
    usable = block[:-1] & (odd[-1] >= np.abs(odd[:-1]))
    return np.concatenate([usable, usable.any(axis=0, keepdims=True) | (block[-1:] & (odd[-1:] > 0))])


def choose(mask: np.ndarray, entries: np.ndarray, gains: np.ndarray, wanted: Float64[np.ndarray, " agents"]) -> None:
    """Keep, of the entries with a gain, those whose products come nearest to what each agent wants. Of more than `MOST`
    the first are taken one by one, where they bring the sum nearer, and of the last `MOST` the nearest subset."""
    usable = np.flatnonzero(gains)
    products = entries[usable] * gains[usable]
    for place in range(len(usable) - MOST):
        nearer = np.abs(wanted - products[place]) < np.abs(wanted)
        mask[:, usable[place]] = nearer
        wanted = wanted - nearer * products[place]
    mask[:, usable[-MOST:]] = nearest(products[-MOST:], wanted).chosen


def answers(
    kernels: Sequence[Kernel],
    images: Images,
    biases: Sequence[Float64[np.ndarray, " _outputs"]] | None = None,
    form: Form | None = None,
) -> Images:
    """What one target answers to images: its last layer has no activation."""

    def of_layer(layer: int, inputs: Images) -> Images:
        out = convolved(inputs, kernels[layer], form, layer)
        return out if biases is None else out + biases[layer]

    return _through(len(kernels), of_layer, images, form)


def masked_answers(
    network: Sequence[Pair], masks: Sequence[PairMasks], agent: int, images: Images, form: Form | None = None
) -> Images:
    """What the random network answers under an agent's masks."""

    def of_layer(layer: int, inputs: Images) -> Images:
        pair, own = network[layer], masks[layer]
        if form is not None and form.constant:
            inputs = np.concatenate([inputs, np.ones((*inputs.shape[:-1], 1))], axis=-1)
        hidden = activated(inputs @ (pair.odd * own.odd), form)
        return convolved(hidden, pair.even * own.even[agent], form, layer)

    return _through(len(network), of_layer, images, form)


def _through(layers: int, of_layer: Callable[[int, Images], Images], images: Images, form: Form | None) -> Images:
    """Images through all layers, with what a form has between them."""
    form = form or Form()
    for layer in range(layers):
        outputs = of_layer(layer, images)
        images = outputs + images if form.residual and layer > 0 else outputs
        if layer < layers - 1:
            images = activated(images, form)
            images = pooled(images, form.pool) if layer == 0 else images
    return images


def activated(images: Images, form: Form | None = None) -> Images:
    """Behind the activation."""
    below = np.expm1(np.minimum(images, 0)) if form is not None and form.activation == "elu" else 0.0
    return np.maximum(images, 0) + below


def convolved(images: Images, kernel: Kernel, form: Form | None = None, layer: int = 0) -> Images:
    """A cross-correlation, of which a form says stride and padding."""
    form, side = form or Form(), len(kernel)
    if form.padding:
        images = np.pad(images, ((0, 0), (side // 2, (side - 1) // 2), (side // 2, (side - 1) // 2), (0, 0)))
    stride = form.stride if layer == 0 else 1
    height, width = images.shape[1] - side + 1, images.shape[2] - side + 1
    sums = np.zeros((len(images), -(-height // stride), -(-width // stride), kernel.shape[-1]))
    for row, column in np.ndindex(side, side):
        sums += images[:, row : row + height : stride, column : column + width : stride] @ kernel[row, column]
    return sums


def pooled(images: Images, side: int) -> Images:
    """The largest of each square block; what is over at the edges is left out."""
    samples, height, width, channels = images.shape
    rows, columns = height // side, width // side
    blocks = images[:, : rows * side, : columns * side].reshape(samples, rows, side, columns, side, channels)
    return blocks.max(axis=(2, 4))
