"""Whole networks in plain numpy, written from their formulas: the oracle of those in `dslth_jax.networks`.

A network is a function of kernels and biases, by the names of their layers, and of pixels 0..255 (batch, height, width,
channels); it returns logits. It knows nothing of agents, masks or absent blocks: a weight that is not kept is a 0.

Kernels may be complex, and then derivatives come by the complex step (Squire and Trapp 1998): of kernels x + i h d, for
a tiny h, the logits' imaginary part is h times their derivative along d, with no difference of near numbers. Decisions,
such as which of some values is the largest, are made by real parts.
"""

import functools
import itertools
import math

import numpy as np

STEP = 1e-200  # h, of which the square is 0 in float64: real parts are those without a step, ties and all
EPSILON = 1e-5  # added to variances


def logits_and_derivative(network, kernels, directions, biases, pixels):
    """A network's logits, and their derivative where its kernels move along these directions."""
    moved = {layer: kernel + 1j * STEP * directions[layer] for layer, kernel in kernels.items()}
    logits = network(moved, biases, pixels)
    return logits.real, logits.imag / STEP


# What networks are made of.


def from_pixels(pixels):
    return pixels / 127.5 - 1


def relu(values):
    return np.where(values.real > 0, values, 0)


def relu6(values):
    return np.where(values.real < 6, relu(values), 6)


def elu(values):
    return np.where(values.real > 0, values, np.expm1(np.where(values.real > 0, 0, values)))


def gelu(values):
    """By a hyperbolic tangent (Hendrycks and Gimpel 2016)."""
    return values / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))


def windows_of(images, sides, stride):
    """All windows of images, (batch, rows, columns, channels, window's rows, window's columns)."""
    windows = np.lib.stride_tricks.sliding_window_view(images, sides, axis=(1, 2))
    return windows[:, ::stride, ::stride]


def framed(images, padding, value=0.0):
    return np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), constant_values=value)


def convolution(images, kernel, padding, stride=1):
    windows = windows_of(framed(images, padding), kernel.shape[:2], stride)
    return np.tensordot(windows, kernel, axes=([4, 5, 3], [0, 1, 2]))


def depthwise(images, kernel, padding, stride):
    """A convolution of each channel by itself."""
    windows = windows_of(framed(images, padding), kernel.shape[:2], stride)
    return np.einsum("nrcokl,klo->nrco", windows, kernel[:, :, 0])


def max_pool(images, side, stride, padding=0):
    """The largest value of each window, the first in reading order among equal ones; a remainder is left out."""
    windows = windows_of(framed(images, padding, -np.inf), (side, side), stride)
    flat = windows.reshape(*windows.shape[:4], -1)
    return np.take_along_axis(flat, flat.real.argmax(-1)[..., None], -1)[..., 0]


def larger(ones, others):
    """Of each pair the larger value; of equal ones the mean, so that each has half of the derivative."""
    return np.select([ones.real > others.real, ones.real < others.real], [ones, others], (ones + others) / 2)


def max_pool_pairs(images):
    """The larger of two rows, and then of two columns; a remainder is left out."""
    height, width = (size // 2 * 2 for size in images.shape[1:3])
    rows = larger(images[:, 0:height:2, :width], images[:, 1:height:2, :width])
    return larger(rows[:, :, 0::2], rows[:, :, 1::2])


def response_norm(images, alpha, size=4):
    """x_c / (1 + alpha/size sum x^2)^(3/4), the sum over the channels c-2 to c+1."""
    squares = np.pad(images**2, ((0, 0), (0, 0), (0, 0), (2, 1)))
    sums = sum(squares[..., offset : offset + images.shape[3]] for offset in range(size))
    return images / (1 + alpha / size * sums) ** 0.75


def normalized(values, axis=None):
    """To mean 0 and nearly variance 1, over some axes or all of them."""
    apart = values - values.mean(axis, keepdims=True)
    return apart / np.sqrt((apart**2).mean(axis, keepdims=True) + EPSILON)


def layer_norm(tokens):
    return normalized(tokens, -1)


def groups_of(channels):
    """The channels in the most groups that are equal, 32 at most, of four channels or more; or all in one."""
    sizes = [size for size in range(4, channels + 1) if channels % size == 0 and channels // size <= 32]
    return np.split(np.arange(channels), channels // min(sizes, default=channels))


def group_norm(images, live):
    """Over the pixels of each group's live channels, as if there were no others; the others are 0."""
    out = np.zeros_like(images)
    for number, group in itertools.product(range(len(images)), groups_of(len(live))):
        own = group[live[group]]
        if own.size:
            out[number][..., own] = normalized(images[number][..., own])
    return out


def normed_convolution(stream, kernel, stride=1):
    """A convolution and a group norm over the channels that it makes of live ones.

    A stream is a pair of values and which of their channels are live.
    """
    values, live = stream
    alive = (kernel.real != 0)[:, :, live].any(axis=(0, 1, 2))
    return group_norm(convolution(values, kernel, kernel.shape[0] // 2, stride), alive), alive


def normed_depthwise(stream, kernel, stride):
    """The same of each channel by itself."""
    values, live = stream
    alive = live & (kernel.real != 0).any(axis=(0, 1, 2))
    return group_norm(depthwise(values, kernel, 1, stride), alive), alive


def activated(activation, stream):
    return activation(stream[0]), stream[1]


def added(stream, other):
    """A sum of streams, in which a channel lives that lives in either."""
    return stream[0] + other[0], stream[1] | other[1]


def live_images(pixels):
    return from_pixels(pixels), np.ones(pixels.shape[3], bool)


def global_mean(stream):
    return stream[0].mean((1, 2))


def linear(values, layer, kernels, biases):
    return values.reshape(len(values), -1) @ kernels[layer] + biases[layer]


def attention(query, key, value, heads):
    """softmax(q k^T / sqrt d) v of each head by itself."""
    out = []
    for q, k, v in zip(*(np.split(part, heads, axis=2) for part in (query, key, value)), strict=True):
        likely = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[2]))
        out.append(likely / likely.sum(2, keepdims=True) @ v)
    return np.concatenate(out, 2)


def patches_of(images, side):
    """Squares of pixels in reading order, as tokens (batch, squares, values)."""
    rows, columns = (size // side for size in images.shape[1:3])
    places = [np.s_[:, side * i : side * (i + 1), side * j : side * (j + 1)] for i, j in np.ndindex(rows, columns)]
    return np.stack([images[place].reshape(len(images), -1) for place in places], 1)


def place_code(rows, columns, width):
    """Of each square sines and cosines of its column and then of its row, of frequencies from 1 to 1/10000."""
    frequencies = np.geomspace(1, 1e-4, width // 4)
    waves = [[np.sin(place * frequencies), np.cos(place * frequencies)] for place in range(max(rows, columns))]
    return np.array([np.concatenate(waves[column] + waves[row]) for row, column in np.ndindex(rows, columns)])


# Networks.


def residual_network(kernels, biases, pixels, *, stages, blocks, projected):
    """He et al. 2016: two convolutions a block beside a shortcut, and half the resolution from stage to stage."""
    stream = activated(relu, normed_convolution(live_images(pixels), kernels["stem"]))
    for stage, block in np.ndindex(stages, blocks):
        stride = 2 if stage > 0 and block == 0 else 1
        stream = residual_block(stream, kernels, f"stage{stage + 1}/block{block + 1}", stride, projected)
    return linear(global_mean(stream), "head", kernels, biases)


def residual_block(stream, kernels, name, stride, projected):
    inner = activated(relu, normed_convolution(stream, kernels[f"{name}/conv1"], stride))
    inner = normed_convolution(inner, kernels[f"{name}/conv2"])
    if stride == 1:
        shortcut = stream
    elif projected:
        shortcut = normed_convolution(stream, kernels[f"{name}/shortcut"], stride)
    else:
        shortcut = thinned(stream, stride, channels=inner[0].shape[3])
    return activated(relu, added(inner, shortcut))


def thinned(stream, stride, channels):
    """Every stride-th pixel, and further channels of 0: a shortcut without parameters."""
    values, live = stream
    further = channels - len(live)
    return np.pad(values[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, further))), np.pad(live, (0, further))


# Of each stage of Sandler et al. 2018, table 2: expansion, blocks, and the stride of the first one for small images.
INVERTED = ((1, 1, 1), (6, 2, 1), (6, 3, 2), (6, 4, 2), (6, 3, 1), (6, 3, 2), (6, 1, 1))


def mobilenetv2(kernels, biases, pixels):
    """Sandler et al. 2018: blocks that are wide inside and narrow between."""
    stream = activated(relu6, normed_convolution(live_images(pixels), kernels["stem"]))
    for stage, (expansion, blocks, stride) in enumerate(INVERTED, 1):
        for block in range(1, blocks + 1):
            own = f"stage{stage}/block{block}"
            stream = inverted_block(stream, kernels, own, expansion, stride if block == 1 else 1)
    stream = activated(relu6, normed_convolution(stream, kernels["last"]))
    return linear(global_mean(stream), "head", kernels, biases)


def inverted_block(stream, kernels, name, expansion, stride):
    """To more channels, each by itself, to few channels again without an activation; added where it fits."""
    inner = stream
    if expansion > 1:
        inner = activated(relu6, normed_convolution(inner, kernels[f"{name}/expand"]))
    inner = activated(relu6, normed_depthwise(inner, kernels[f"{name}/depthwise"], stride))
    inner = normed_convolution(inner, kernels[f"{name}/project"])
    fits = stride == 1 and inner[0].shape == stream[0].shape
    return added(inner, stream) if fits else inner


def vision_transformer(kernels, biases, pixels, *, blocks, side=4, heads=3):
    """Dosovitskiy et al. 2021, with a fixed code of places and a mean over tokens as in Beyer et al. 2022."""
    tokens = patches_of(from_pixels(pixels), side) @ kernels["patches"]
    tokens = tokens + place_code(pixels.shape[1] // side, pixels.shape[2] // side, tokens.shape[2])
    for block in range(1, blocks + 1):
        own = f"block{block}"
        query, key, value = (layer_norm(tokens) @ kernels[f"{own}/{name}"] for name in ("query", "key", "value"))
        tokens = tokens + attention(query, key, value, heads) @ kernels[f"{own}/output"]
        tokens = tokens + gelu(layer_norm(tokens) @ kernels[f"{own}/mlp1"]) @ kernels[f"{own}/mlp2"]
    return linear(layer_norm(tokens).mean(1), "head", kernels, biases)


def alexnet(kernels, biases, pixels):
    """The authors' network: behind each convolution an ELU, a response norm and a pooling."""
    values = from_pixels(pixels)
    for layer, alpha, padding in (("conv1", 2e-5, 0), ("conv2", 1e-4, 0), ("conv3", 1e-4, 1)):
        values = response_norm(elu(convolution(values, kernels[layer], padding=1)), alpha)
        values = max_pool(values, side=3, stride=2, padding=padding)
    return dense(values, kernels, biases, ("linear1", "linear2"), elu)


def small(kernels, biases, pixels):
    """Two convolutions, with an ELU and a pooling behind each."""
    values = from_pixels(pixels)
    for layer in ("conv1", "conv2"):
        values = max_pool(elu(convolution(values, kernels[layer], padding=1)), side=3, stride=2, padding=1)
    return dense(values, kernels, biases, ("linear1", "linear2"), elu)


def plain(kernels, biases, pixels, *, convolutions, linears, activation):
    """So many 3x3 convolutions of each stage, a 2x2 pooling behind it, and linear layers of these names."""
    values, number = from_pixels(pixels), 0
    for of_stage in convolutions:
        for _ in range(of_stage):
            number += 1
            values = activation(convolution(values, kernels[f"conv{number}"], padding=1))
        values = max_pool_pairs(values)
    return dense(values, kernels, biases, linears, activation)


def dense(values, kernels, biases, layers, activation):
    """Linear layers, with an activation behind all but the last."""
    for layer in layers[:-1]:
        values = activation(linear(values, layer, kernels, biases))
    return linear(values, layers[-1], kernels, biases)


def mlp(kernels, biases, pixels):
    """LeNet-300-100: linear layers alone."""
    return dense(from_pixels(pixels), kernels, biases, ("linear1", "linear2", "linear3"), relu)


def by_stages(activation, linears, *convolutions):
    """A plain network of so many linear layers, and of so many convolutions in each stage."""
    layers = ["linear"] if linears == 1 else [f"linear{number}" for number in range(1, linears + 1)]
    return functools.partial(plain, convolutions=convolutions, linears=layers, activation=activation)


NETWORKS = {
    "alexnet": alexnet,
    "small": small,
    "mlp": mlp,
    "conv3": by_stages(elu, 2, 1, 1, 1),
    "plain2": by_stages(elu, 2, 1, 1),
    "plain4": by_stages(elu, 2, 1, 1, 2),
    "plain5": by_stages(elu, 2, 1, 2, 2),
    "plain6": by_stages(elu, 2, 2, 2, 2),
    "plain7": by_stages(elu, 2, 2, 2, 3),
    "plain8": by_stages(elu, 2, 2, 3, 3),
    "conv4": by_stages(relu, 3, 2, 2),
    "conv6": by_stages(relu, 3, 2, 2, 2),
    "vgg11": by_stages(relu, 1, 1, 1, 2, 2, 2),
    "resnet18": functools.partial(residual_network, stages=4, blocks=2, projected=True),
    "resnet20": functools.partial(residual_network, stages=3, blocks=3, projected=False),
    "mobilenetv2": mobilenetv2,
    "vit-tiny": functools.partial(vision_transformer, blocks=6),
}
