"""The operations of `benchmarks.convolution`'s second table in PyTorch, on a CPU.

Agents come one after another; operations that have a kernel also all in one call, which makes agents groups of
channels or a batch of matrices (`torch.vmap`). Arrays lie in memory as PyTorch is fastest: images and kernels channels
last, which suits convolutions and average pooling, but channels first for a group norm, which is several times slower
otherwise. That form stands beside it, for convolutions hand images on channels last. PyTorch is needed here and in
`rivals` alone.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import torch
import torch.nn.functional as F  # noqa: N812 - the name it goes by

from benchmarks.measure import Timing, threads, timed_calls

Tensor: TypeAlias = Any  # a torch tensor; loosely, for PyTorch may be missing where types are checked

WARM_UP = 2  # calls: the first one also prepares what later ones find


class Layout(NamedTuple):
    """How PyTorch numbers the axes of an agent's array of the library, and in which order they lie in memory."""

    axes: tuple[int, ...]
    memory: tuple[int, ...]


CHANNELS_LAST = Layout((0, 3, 1, 2), (0, 1, 2, 3))  # of images (batch, height, width, channels)
CHANNELS_FIRST = Layout((0, 3, 1, 2), (0, 3, 1, 2))
KERNEL = Layout((3, 2, 0, 1), (3, 0, 1, 2))  # of kernels (height, width, inputs, outputs)
MATRIX = Layout((1, 0), (1, 0))  # of kernels (inputs, outputs)
PLACES = Layout((0, 1, 2, 3), (0, 1, 2, 3))  # of images whose channels stay the last axis
TOKENS = Layout((0, 1, 2), (0, 1, 2))
VECTORS = Layout((0, 1), (0, 1))  # (batch, channels)


class Form(NamedTuple):
    """How PyTorch computes an operation of one agent."""

    operation: Callable[..., Tensor]
    takes: tuple[Layout, ...]
    gives: Layout
    together: bool = False  # all agents in one call


Forms: TypeAlias = dict[str, Form]

IN_A_LOOP, TOGETHER = "PyTorch", "PyTorch, one call"


def with_kernel(operation: Callable[..., Tensor], images: Layout, kernel: Layout) -> Forms:
    """Both ways to map an operation of images and a kernel over agents."""
    alone = Form(operation, (images, kernel), images)
    return {IN_A_LOOP: alone, TOGETHER: alone._replace(together=True)}


def window(stride: int, groups: int) -> Forms:
    """A convolution, padded by one."""
    return with_kernel(partial(F.conv2d, stride=stride, padding=1, groups=groups), CHANNELS_LAST, KERNEL)


def product() -> Forms:
    """A 1x1 convolution, as a matrix product."""
    return with_kernel(F.linear, PLACES, MATRIX)


def average_pool(side: int) -> Forms:
    """The mean of each window, side by side."""
    return {IN_A_LOOP: Form(partial(F.avg_pool2d, kernel_size=side), (CHANNELS_LAST,), CHANNELS_LAST)}


def global_average_pool() -> Forms:
    """The mean of every channel over all pixels."""
    return {IN_A_LOOP: Form(lambda images: images.mean((2, 3)), (CHANNELS_LAST,), VECTORS)}


def group_norm(groups: int) -> Forms:
    """Without scale and shift: channels first, which is the faster layout for it, and channels last."""
    norm = partial(F.group_norm, num_groups=groups, eps=1e-5)
    return {
        IN_A_LOOP: Form(norm, (CHANNELS_FIRST,), CHANNELS_FIRST),
        "PyTorch, channels last": Form(norm, (CHANNELS_LAST,), CHANNELS_LAST),
    }


def layer_norm() -> Forms:
    """Over the last axis, without scale and shift."""
    return {IN_A_LOOP: Form(lambda tokens: F.layer_norm(tokens, tokens.shape[-1:], eps=1e-5), (TOKENS,), TOKENS)}


def attention(heads: int) -> Forms:
    """PyTorch's own, and written out as products."""

    def by_heads(*parts: Tensor) -> list[Tensor]:
        return [part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts]

    def own(*parts: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*by_heads(*parts)).transpose(1, 2).flatten(2)

    def written_out(*parts: Tensor) -> Tensor:
        query, key, value = by_heads(*parts)
        weights = torch.softmax(query @ key.mT / math.sqrt(query.shape[-1]), -1)
        return (weights @ value).transpose(1, 2).flatten(2)

    return {
        IN_A_LOOP: Form(own, (TOKENS,) * 3, TOKENS),
        "PyTorch, as products": Form(written_out, (TOKENS,) * 3, TOKENS),
    }


def to_torch(array: jax.Array, layout: Layout) -> Tensor:
    """All agents' arrays (agents, ...) as PyTorch wants them, in the same precision."""
    in_memory = torch.from_dlpack(array).permute(0, *(1 + axis for axis in layout.memory)).contiguous()
    return in_memory.permute(0, *(1 + layout.memory.index(axis) for axis in layout.axes))


def from_torch(tensor: Tensor, layout: Layout) -> Tensor:
    """All agents' tensors (agents, ...) with the axes of the library."""
    return tensor.permute(0, *(1 + layout.axes.index(axis) for axis in range(len(layout.axes))))


def forward(form: Form, *stacked: Tensor) -> Any:
    """All agents' outputs: in one tensor where they are computed together, in a list of them otherwise."""
    with torch.no_grad():
        if form.together:
            return torch.vmap(form.operation)(*stacked)
        return [form.operation(*own) for own in zip(*stacked, strict=True)]


def gradients(form: Form, *stacked: Tensor) -> Any:
    """All agents' gradients of a sum of squares, by every argument: one tuple, or a list of them.

    That sum itself is not computed, for XLA leaves it out too where only its gradient is asked for.
    """

    def by_arguments(operation: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        leaves = [argument.detach().requires_grad_() for argument in arguments]
        outputs = operation(*leaves)
        return torch.autograd.grad(outputs, leaves, 2 * outputs.detach())

    if form.together:
        return by_arguments(torch.vmap(form.operation), stacked)
    return [by_arguments(form.operation, own) for own in zip(*stacked, strict=True)]


def timings(form: Form, arrays: tuple[jax.Array, ...], repeats: int) -> tuple[Timing, Timing]:
    """Forward and with gradients, of all agents' arrays, on as many threads as this process may use."""
    torch.set_num_threads(threads())
    stacked = [to_torch(array, layout) for array, layout in zip(arrays, form.takes, strict=True)]
    ways = (forward, gradients)
    once, both = (timed_calls(partial(way, form, *stacked), repeats, WARM_UP) for way in ways)
    return once, both


def conditions() -> str:
    """Version and threads, as one line."""
    return f"torch {torch.__version__}, {threads()} threads"
