"""What a user would write instead, in PyTorch: two loops over agents of one training round in the order "code".

`python -m benchmarks.round` runs them beside the library's round. PyTorch is needed here alone.

Tried for the plain loop, in milliseconds of one agent's forward and backward pass at batch 128 (two cores, AVX-512,
torch 2.15): stock operations 420, channels last 400; the response norm by roots and shifted sums 320 through autograd,
210 with a gradient of its own, sums as a banded matrix product and ELU in place; whole blocks by hand with a few images
at a time, as here, 190 (their convolutions alone 140); all 128 images in microbatches of 32 was no faster in the end.
`torch.compile`, which is not plain: 350 and 225. The thresholds of all layers: `sort` 110, `topk` 13, `kthvalue` 10, of
bit patterns 7, with a sample's bracket 4. The exchange of 64 agents: adding bytes 300, a product in blocks 110.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by
from torch import nn

from dslth_jax import graphs, masks, population
from dslth_jax.algorithm import with_names
from dslth_jax.algorithms.mce_pl import Hyper, mce_pl
from dslth_jax.networks.network import Network
from dslth_jax.networks.zoo import network_by_name
from dslth_jax.retention import kept_by_layer

Tensor: TypeAlias = Any  # a torch tensor; loosely, for PyTorch may be missing where types are checked
Arrays: TypeAlias = dict[str, np.ndarray]  # {layer: array}, layouts as in the library: HWIO, and (inputs, outputs)

STEP, FINE_TUNING_STEP, WEIGHT_DECAY = 10.0, 10.0, 5e-4
# The response norm's alpha and the pooling's padding after each convolution.
CONVOLUTIONS = {"conv1": (2e-5, 0), "conv2": (1e-4, 0), "conv3": (1e-4, 1)}
LAYERS = (*CONVOLUTIONS, "linear1", "linear2")
FLATTENED = (256, 2, 2)  # channels, height, width of what feeds the first linear layer


class Start(NamedTuple):
    """Where all agents start: everything but the graph is common to them."""

    weights: Arrays
    biases: Arrays  # of the linear layers, frozen
    scores: Arrays
    masks: Arrays  # uint8
    adjacency: np.ndarray  # bool (agents, agents): row i says whom agent i hears
    kept: dict[str, int]  # entries that masks keep
    dtype: np.dtype


class Rival(Protocol):
    """The form both loops take; agents in lists are in the order of the adjacency matrix."""

    def round(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One round of everybody, from uint8 images (agents, batch, 32, 32, 3) and labels (agents, batch)."""

    def scores(self) -> list[Arrays]:
        """Each agent's scores after fine-tuning."""

    def masks(self) -> list[Arrays]:
        """The mask that each agent sent last, as uint8."""


def start_of(
    network: Network,
    key: jax.Array,
    adjacency: np.ndarray,
    retention: float = 0.3,
    linear_retention: float | None = 0.9,
) -> Start:
    """The library's own start from `key`, for a network that is the authors' AlexNet."""
    shapes, _ = jax.eval_shape(network.init, key)
    kept = kept_by_layer(shapes, network.roles, retention, linear_retention)

    @jax.jit
    def draw(key: jax.Array) -> tuple[Any, Any, Any, Any]:
        world, hyper = population.world_of(network, key, 0, 1), Hyper(jax.tree.map(jnp.int32, kept))
        own_key = population.agent_key(world, jnp.int32(0), population.INIT)
        agent, message = mce_pl(network).init(own_key, world, hyper)
        unpacked = with_names(lambda name, like: masks.unpack(message.masks[name], like.shape), shapes)
        return world.weights, world.frozen, agent.scores, unpacked

    weights, frozen, scores, start_masks = jax.tree.map(np.asarray, draw(key))

    def arrays(tree: Any, leaf: str) -> Arrays:
        return {layer: tree[layer][leaf] for layer in LAYERS if layer in tree}

    return Start(
        arrays(weights, "kernel"),
        arrays(frozen, "bias"),
        arrays(scores, "kernel"),
        arrays(start_masks, "kernel"),
        adjacency,
        {layer: kept[layer]["kernel"] for layer in LAYERS},
        weights[LAYERS[0]]["kernel"].dtype,
    )


def to_torch(layer: str, array: np.ndarray) -> Tensor:
    """A kernel as PyTorch has it: OIHW or (outputs, inputs), flattened images as channels, height, width."""
    if array.ndim == 4:
        return torch.tensor(array.transpose(3, 2, 0, 1).copy())
    if layer == "linear1":
        channels, height, width = FLATTENED
        array = array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3).reshape(array.shape)
    return torch.tensor(array.T.copy())


def from_torch(layer: str, tensor: Tensor) -> np.ndarray:
    """The inverse of `to_torch`."""
    array = tensor.detach().numpy()
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0).copy()
    array = array.T
    if layer == "linear1":
        array = array.reshape(*FLATTENED, -1).transpose(1, 2, 0, 3).reshape(array.shape)
    return array.copy()


def minibatch(images: np.ndarray, labels: np.ndarray, dtype: Any) -> tuple[Tensor, Tensor]:
    """One agent's images in [-1, 1], as PyTorch numbers their axes and laid out channels last, and its labels."""
    pixels = torch.tensor(images).permute(0, 3, 1, 2).to(dtype)
    return pixels.div_(255).sub_(0.5).div_(0.5), torch.tensor(labels, dtype=torch.int64)


# The authors' structure ------------------------------------------------------------------------------------------


class LargestBySorting(torch.autograd.Function):
    """The mask of the largest magnitudes of a layer; gradients pass straight through to every one of them."""

    @staticmethod
    def forward(ctx: Any, magnitudes: Tensor, kept: int) -> Tensor:
        """Sort all, keep the last."""
        order = magnitudes.flatten().sort().indices
        mask = torch.zeros_like(magnitudes)
        mask.view(-1)[order[-kept:]] = 1
        return mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Straight through."""
        return gradient, None


class MaskedLayer(nn.Module):
    """Frozen weights, trained scores, what the neighbours' masks are on average, and the mask last applied."""

    weight: Tensor
    scores: Tensor
    neighbour_mean: Tensor
    mask: Tensor
    bias: Tensor

    def __init__(self, layer: str, start: Start) -> None:
        super().__init__()
        self.kept = start.kept[layer]
        self.scores = nn.Parameter(to_torch(layer, start.scores[layer]))
        self.register_buffer("weight", to_torch(layer, start.weights[layer]))
        self.register_buffer("mask", to_torch(layer, start.masks[layer]).to(self.weight.dtype))
        self.register_buffer("neighbour_mean", self.mask.clone())
        bias = start.biases.get(layer)
        self.register_buffer("bias", None if bias is None else torch.tensor(bias))

    def forward(self, values: Tensor) -> Tensor:
        """The layer with the weights that its mask keeps, the mask computed anew."""
        scores = self.scores.detach()
        towards_neighbours = scores.abs().mean() * scores.sign() * self.neighbour_mean
        mask = LargestBySorting.apply((self.scores + towards_neighbours).abs(), self.kept)
        self.mask = mask.detach()
        if self.weight.ndim == 4:
            return F.conv2d(values, self.weight * mask, padding=1)
        return F.linear(values, self.weight * mask, self.bias)


class MaskedAlexNet(nn.Module):
    """One agent: the authors' network of masked layers."""

    layers: Any  # {layer: MaskedLayer}
    norms: Any

    def __init__(self, start: Start) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({layer: MaskedLayer(layer, start) for layer in LAYERS})
        self.norms = nn.ModuleDict(
            {layer: nn.LocalResponseNorm(4, alpha) for layer, (alpha, _) in CONVOLUTIONS.items()}
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes), with an ELU on them."""
        for layer, (_, padding) in CONVOLUTIONS.items():
            images = F.max_pool2d(self.norms[layer](F.elu(self.layers[layer](images))), 3, 2, padding)
        return F.elu(self.layers["linear2"](F.elu(self.layers["linear1"](images.flatten(1)))))


class AuthorsStructure:
    """Built as the authors' program is: a module an agent, sorting, a second forward pass, masks copied as floats."""

    def __init__(self, start: Start) -> None:
        self.neighbours = [np.flatnonzero(row).tolist() for row in start.adjacency]
        self.agents: list[Any] = [MaskedAlexNet(start) for _ in self.neighbours]
        self.optimizers = [
            torch.optim.SGD(agent.parameters(), lr=STEP, weight_decay=WEIGHT_DECAY) for agent in self.agents
        ]
        self.dtype = torch.from_numpy(np.zeros(0, start.dtype)).dtype
        for agent, heard in zip(self.agents, self.neighbours, strict=True):
            for layer in agent.layers.values():
                layer.neighbour_mean *= bool(heard)

    def round(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One round of everybody; see `Rival`."""
        own = zip(images, labels, strict=True)
        for agent, optimizer, (own_images, own_labels) in zip(self.agents, self.optimizers, own, strict=True):
            pixels, targets = minibatch(own_images, own_labels, self.dtype)
            pixels = pixels.contiguous()
            optimizer.zero_grad()
            F.cross_entropy(agent(pixels), targets).backward()
            optimizer.step()
            # The masks of the new scores, which are what is sent.
            with torch.no_grad():
                agent(pixels)
        self.exchange()
        self.fine_tune()

    def exchange(self) -> None:
        """Everybody gets copies of its neighbours' masks and averages them."""
        sent = [{name: layer.mask.clone() for name, layer in agent.layers.items()} for agent in self.agents]
        for agent, heard in zip(self.agents, self.neighbours, strict=True):
            received = [{name: mask.clone() for name, mask in sent[neighbour].items()} for neighbour in heard]
            for name, layer in agent.layers.items():
                if received:
                    layer.neighbour_mean = sum(message[name] for message in received) / len(received)

    def fine_tune(self) -> None:
        """Every score moves by the stored gradient times what the neighbours' masks are on average."""
        with torch.no_grad():
            for agent in self.agents:
                for layer in agent.layers.values():
                    layer.scores -= FINE_TUNING_STEP * layer.scores.grad * layer.neighbour_mean

    def scores(self) -> list[Arrays]:
        """Each agent's scores after fine-tuning."""
        return [{name: from_torch(name, layer.scores) for name, layer in agent.layers.items()} for agent in self.agents]

    def masks(self) -> list[Arrays]:
        """The mask that each agent sent last, as uint8."""
        return [
            {name: from_torch(name, layer.mask).astype(np.uint8) for name, layer in agent.layers.items()}
            for agent in self.agents
        ]


# The plain loop --------------------------------------------------------------------------------------------------


def channel_window(values: Tensor, before: int, after: int) -> Tensor:
    """For every channel c, the last axis, the sum over channels c-before to c+after, four in all."""
    padded = F.pad(values, (before, after))
    pairs = padded[..., :-1] + padded[..., 1:]
    return pairs[..., :-2] + pairs[..., 2:]


def inverse_root(values: Tensor, scale: float) -> Tensor:
    """(1 + scale · windowed sum of squares)^(-1/2); the response norm divides by the power 3/4."""
    return channel_window(values * values, 2, 1).mul_(scale).add_(1).rsqrt_()


class Block(torch.autograd.Function):
    """A convolution, ELU, local response norm and max pooling, of images that lie channels last.

    What follows the convolution is done for a few images at a time, which stay in the cache. Beside its output the
    block keeps what the ELU makes, and where the maxima lie. It can be differentiated once.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, kernel: Tensor, alpha: float, padding: int, chunk: int) -> Tensor:
        """Images (batch, channels, height, width), kernel OIHW; `chunk` images at a time."""
        values = F.conv2d(images, kernel, padding=1)
        pooled, places = [], []
        for part in values.split(chunk):
            activations = F.elu(part, inplace=True).permute(0, 2, 3, 1)
            root = inverse_root(activations, alpha / 4)
            normed = root.sqrt().mul_(root).mul_(activations)
            maxima, indices = F.max_pool2d(normed.permute(0, 3, 1, 2), 3, 2, padding, return_indices=True)
            pooled.append(maxima)
            places.append(indices)
        ctx.save_for_backward(images, kernel, values, *places)
        ctx.settings = alpha / 4, padding, chunk
        return torch.cat(pooled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """The chain rule by hand. The gradient of the convolution's output replaces what the ELU made."""
        images, kernel, values, *places = ctx.saved_tensors
        scale, padding, chunk = ctx.settings
        for part, pooled, indices in zip(values.split(chunk), gradient.split(chunk), places, strict=True):
            through = torch.ops.aten.max_pool2d_with_indices_backward(
                pooled, part, [3, 3], [2, 2], [padding] * 2, [1, 1], False, indices
            ).permute(0, 2, 3, 1)
            activations = part.permute(0, 2, 3, 1)
            root = inverse_root(activations, scale)
            through.mul_(root.sqrt().mul_(root))
            around = channel_window(root.square_().mul_(through).mul_(activations), 1, 2)
            through.sub_(around.mul_(activations).mul_(1.5 * scale))
            # The ELU's slope is 1 where its output is positive, and its output + 1 elsewhere.
            torch.mul(through, activations.clamp(max=0).add_(1), out=activations)
        wanted = [ctx.needs_input_grad[0], True, False]
        by_images, by_kernel, _ = torch.ops.aten.convolution_backward(
            values, images, kernel, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted
        )
        return by_images, by_kernel, None, None, None


def kth_largest(values: Tensor, kth: int) -> Tensor:
    """Exactly the `kth` largest of a vector: a sorted sample brackets it, and only what lies between is searched."""
    sample = values[:: max(values.numel() // 8192, 1)].sort().values
    share, last = kth / values.numel(), len(sample) - 1
    expected, margin = last * (1 - share), 1 + 4 * math.sqrt(last * share * (1 - share))
    low, high = sample[max(int(expected - margin), 0)], sample[min(int(expected + margin) + 1, last)]
    above = int(torch.count_nonzero(values > high))
    between = values[(values >= low) & (values <= high)]
    if not above < kth <= above + len(between):
        above, between = 0, values
    return between.kthvalue(len(between) + above - kth + 1).values


class PlainLoop:
    """The same round as well as plain PyTorch does it on a CPU, still one agent after another.

    All of an agent's layers lie in one vector, kernels as outputs, height, width, inputs, so that most operations are
    one call, and convolutions read their kernels channels last. Masks are bytes; 255 neighbours at most.
    """

    def __init__(self, start: Start) -> None:
        agents = len(start.adjacency)
        # With the outputs first, what feeds the first linear layer is flattened as height, width, channels.
        self.shapes = {layer: np.moveaxis(start.weights[layer], -1, 0).shape for layer in LAYERS}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.kept = [start.kept[layer] for layer in LAYERS]
        self.biases = {layer: torch.tensor(bias) for layer, bias in start.biases.items()}
        self.weights = self.vector(start.weights)
        self.kept_weights = torch.empty_like(self.weights)
        self.all_scores = self.vector(start.scores).repeat(agents, 1)
        self.gradients = torch.empty_like(self.all_scores)
        self.all_masks = self.vector(start.masks).repeat(agents, 1)
        self.adjacency = torch.tensor(start.adjacency, dtype=torch.float32)
        self.degrees = start.adjacency.sum(axis=1).tolist()
        self.counts = torch.empty_like(self.all_masks)
        self.exchange()

    def round(self, images: np.ndarray, labels: np.ndarray) -> None:
        """One round of everybody; see `Rival`."""
        for agent, own in enumerate(zip(images, labels, strict=True)):
            self.local_step(agent, *own)
        self.exchange()
        for agent in range(len(self.degrees)):
            self.fine_tune(agent)

    def local_step(self, agent: int, images: np.ndarray, labels: np.ndarray) -> None:
        """Descend the loss of one minibatch; the gradient stays, and so does the mask to be sent."""
        scores, gradient, mask = self.all_scores[agent], self.gradients[agent], self.all_masks[agent]
        mean = self.neighbour_mean(agent)
        # Until the new mask is known, its place holds the one that the gradient is taken at.
        self.threshold(scores, mean, mask)
        torch.mul(self.weights, mask, out=self.kept_weights)
        kernels = [kernel.detach().requires_grad_() for kernel in self.kernels(self.kept_weights)]
        pixels, targets = minibatch(images, labels, self.weights.dtype)
        loss = F.cross_entropy(self.logits(kernels, pixels), targets)
        derivatives = torch.autograd.grad(loss, kernels)
        for part, derivative in zip(self.kernels(gradient), derivatives, strict=True):
            part.copy_(derivative)
        # Through v = w ⊙ m and straight through the threshold of |y|, whose sign is that of z.
        gradient.mul_(self.weights).mul_(scores.sign())
        scores.mul_(1 - STEP * WEIGHT_DECAY).sub_(gradient, alpha=STEP)
        self.threshold(scores, mean, mask)

    def logits(self, kernels: list[Tensor], values: Tensor) -> Tensor:
        """Logits (batch, classes), with an ELU on them."""
        *convolutions, linear1, linear2 = kernels
        for (alpha, padding), kernel, chunk in zip(CONVOLUTIONS.values(), convolutions, (8, 32, 128), strict=True):
            values = Block.apply(values, kernel, alpha, padding, chunk)
        values = F.elu(F.linear(values.permute(0, 2, 3, 1).flatten(1), linear1, self.biases["linear1"]))
        return F.elu(F.linear(values, linear2, self.biases["linear2"]))

    def threshold(self, scores: Tensor, mean: Tensor, mask: Tensor) -> None:
        """Write Thres(|y|; r) of every layer to `mask`; equal magnitudes at the cut are all kept, zeros never."""
        word = torch.int32 if scores.dtype == torch.float32 else torch.int64
        parts = (vector.split(self.sizes) for vector in (scores, mean, mask))
        for z, m, out, kept in zip(*parts, self.kept, strict=True):
            fused = z.sign().mul_(m).mul_(z.abs().mean()).add_(z).abs_()
            # Floats that are not negative sort as their bit patterns do, and whole numbers compare faster.
            patterns = fused.view(word)
            torch.ge(patterns, kth_largest(patterns, kept).clamp(min=1), out=out)

    def neighbour_mean(self, agent: int) -> Tensor:
        """m̄ of every entry; 0 where there are no neighbours."""
        return self.counts[agent].to(self.weights.dtype).div_(max(self.degrees[agent], 1))

    def exchange(self) -> None:
        """Count for every agent and entry the neighbours that keep it: a matrix product, in blocks for the cache."""
        for counts, sent in zip(self.counts.split(8192, 1), self.all_masks.split(8192, 1), strict=True):
            counts.copy_(self.adjacency @ sent.float())

    def fine_tune(self, agent: int) -> None:
        """Every score moves by the stored gradient times what the neighbours' masks are on average."""
        self.all_scores[agent].addcmul_(self.gradients[agent], self.neighbour_mean(agent), value=-FINE_TUNING_STEP)

    def scores(self) -> list[Arrays]:
        """Each agent's scores after fine-tuning."""
        return [self.arrays(scores) for scores in self.all_scores]

    def masks(self) -> list[Arrays]:
        """The mask that each agent sent last, as uint8."""
        return [self.arrays(mask) for mask in self.all_masks]

    def vector(self, arrays: Arrays) -> Tensor:
        """All layers behind one another, outputs first."""
        return torch.tensor(np.concatenate([np.moveaxis(arrays[layer], -1, 0).reshape(-1) for layer in LAYERS]))

    def parts(self, vector: Tensor) -> Iterator[Tensor]:
        """Views of the layers, outputs first."""
        for part, shape in zip(vector.split(self.sizes), self.shapes.values(), strict=True):
            yield part.view(shape)

    def kernels(self, vector: Tensor) -> list[Tensor]:
        """Views of the layers with axes numbered as PyTorch does."""
        return [part.permute(0, 3, 1, 2) if part.ndim == 4 else part for part in self.parts(vector)]

    def arrays(self, vector: Tensor) -> Arrays:
        """Copies of the layers in the library's layout."""
        parts = (np.moveaxis(part.numpy(), 0, -1).copy() for part in self.parts(vector))
        return dict(zip(LAYERS, parts, strict=True))


RIVALS: dict[str, Callable[[Start], Rival]] = {"authors' structure": AuthorsStructure, "plain loop": PlainLoop}


def rival_seconds(name: str, agents: int, batch: int, repeats: int) -> float:
    """The median seconds of `repeats` rounds of one of `RIVALS`, after one to warm up, on random images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (agents, batch, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, (agents, batch))
    network = network_by_name("alexnet", (32, 32, 3), 10, elu_on_logits=True)
    graph = graphs.erdos_renyi(agents).graph
    rival = RIVALS[name](start_of(network, jax.random.key(0), graphs.adjacency_of(graph)))
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        rival.round(images, labels)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
