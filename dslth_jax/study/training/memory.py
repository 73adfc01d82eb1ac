"""What a run holds in memory, by a formula that is known before anything is compiled. Bytes on one device."""

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import psutil
from jaxtyping import PyTree

from dslth_jax.algorithm import Algorithm, Batch, Batches
from dslth_jax.codec.entropy import PAST
from dslth_jax.keys import key_of
from dslth_jax.links import Link, perfect
from dslth_jax.message_sizes import holds_bits_alone
from dslth_jax.mixing import Graph
from dslth_jax.networks.cost import programs_in
from dslth_jax.networks.network import Network
from dslth_jax.population import Shares, nothing_heard, world_of


class Compiler(NamedTuple):
    """What XLA's compiler takes of a device's memory, most of which it never gives back; bytes."""

    least: int
    of_equation: int  # of a network's forward pass, with what it keeps for the gradient
    copies: int  # of a network's weights


# As seen with networks of all kinds, and how many of the largest activation the gradient works with beside what the
# forward pass keeps for it, as seen with the AlexNet: by benchmarks/scaling.py.
COMPILERS, WORKING_COPIES = {"cpu": Compiler(7 * 10**8, 550_000, 8)}, 5
# Arrays as large as the weights that an agent's step works with: fused scores, bit patterns, mask, masked weights and
# gradient. Counted in the code and not measured; on CPUs, where one agent computes at a time, they are within the rest.
LIKE_WEIGHTS = 5
# Of an address space, what threads that compile and compute reserve and hardly use.
RESERVED = 5 * 10**8
# Of either version of the kernel's interface to control groups: their folder, what says their limit and their usage,
# and the word for pages of files that nobody reads any more.
GROUPS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def footprint(
    network: Network,
    algorithm: Algorithm,
    hyper: Any,
    graph: Graph,
    shares: Shares,
    link: Link | None = None,
    *,
    agents: int,
    batch_size: int,
    test_batch: int = 0,
    local_steps: int = 1,
    chunk: int = 1,
    devices: int = 1,
    platform: str = "",
) -> dict[str, int]:
    """Bytes of a round, and of an evaluation, on each device, by what they are for.

    What every agent holds (its fields by name; what it carries over the exchange, `gradient`; what it sends, `bits` of
    masks and `values`; what it has of others, `counts` and `sums`; without `values` and `sums` where none are sent)
    times the device's agents, what `chunk` agents compute with (`activations`), and what all have in common (`weights`,
    `data`, what a `link` remembers, `backlog`, and `compiler` where a `platform` compiles in the memory of a device).
    `hyper` are the settings of one agent, `shares` training samples, as arrays or shapes, and `agents` how many there
    are in all, a multiple of `devices`; an evaluation predicts `test_batch` samples at once.
    """
    image_shape, link = shares.images.shape[1:], link or perfect()

    def samples(*axes: int) -> Batch:
        return Batch(jnp.zeros((*axes, *image_shape), jnp.uint8), jnp.zeros(axes, jnp.int32), jnp.zeros(axes, bool))

    def before_the_exchange(hyper: Any) -> Any:
        key = key_of(0)
        world = world_of(network, key, 0, 1)
        batches = Batches(samples(local_steps, batch_size), samples(batch_size))
        agent, message = algorithm.init(key, world, hyper)
        everybody = jax.tree.map(lambda leaf: jnp.zeros((agents, *leaf.shape), leaf.dtype), message)
        backlog = link.init(everybody)
        heard, _ = nothing_heard(link, backlog, graph, everybody, world, algorithm.hears_levels)
        agent, carry, message, _ = algorithm.send(key, world, hyper, agent, heard, batches)
        return world, agent, carry, message, heard, backlog

    world, agent, carry, message, heard, backlog = jax.eval_shape(before_the_exchange, hyper)
    own, passed = agents // devices, forward_pass(network, world, batch_size, image_shape)
    held = {name: part for name, part in agent._asdict().items() if part is not None} | {"gradient": carry}
    # What was sent last and what is sent now; on several devices also what all the others send; and what bits were sent
    # before that, to code the next by.
    copies = 2 * own + (agents if devices > 1 else 0)
    remembered = own * PAST * bytes_of(message) if holds_bits_alone(message) else 0
    some = {"sums": own * bytes_of(heard.values), "values": copies * bytes_of(message.values)}
    some["backlog"], weights = bytes_of(backlog), bytes_of((world.weights, world.frozen))
    if compiler := COMPILERS.get(platform):
        some["compiler"] = compiler.least + compiler.of_equation * passed.equations + compiler.copies * weights
    return {
        "weights": weights,
        **{name: own * bytes_of(part) for name, part in held.items()},
        "counts": own * bytes_of(heard._replace(values={})),
        "bits": copies * bytes_of((message.masks, message.has)) + remembered,
        **{name: size for name, size in some.items() if size},
        "activations": chunk * passed.activations(batch_size, test_batch),
        "data": bytes_of_samples(shares, devices),
    }


def bytes_of_samples(shares: Shares, devices: int = 1) -> int:
    """Bytes of samples on each device: images, labels and a pool on all, on each what its own agents hold and how they
    see."""
    return bytes_of((shares.images, shares.labels, shares.pool)) + bytes_of_owned(shares, devices)


def bytes_of_owned(shares: Shares, devices: int = 1) -> int:
    """What its own agents hold, and how they see."""
    return -(-bytes_of((shares.indices, shares.sizes, shares.skew)) // devices)


class Pass(NamedTuple):
    """One agent's forward pass over a minibatch, before it is compiled."""

    sizes: list[int]  # bytes of each array that it keeps for the gradient
    equations: int  # of its program

    def activations(self, batch_size: int, test_batch: int) -> int:
        """Bytes that one agent computes with at most: for a gradient what the pass keeps, and copies of the largest of
        it; for an evaluation what goes into its largest layer and what comes out, of its own batch."""
        largest = max(self.sizes)
        return max(sum(self.sizes) + WORKING_COPIES * largest, 2 * largest * test_batch // batch_size)


def forward_pass(network: Network, world: Any, batch_size: int, image_shape: tuple[int, ...]) -> Pass:
    """What is known of it by shapes alone."""

    def kept_for_the_gradient(weights: PyTree, frozen: PyTree, images: Any) -> Any:
        apply = lambda weights: network.apply({"params": weights, "frozen": frozen}, images)  # noqa: E731
        return jax.vjp(apply, weights)[1]

    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8)
    traced = jax.make_jaxpr(kept_for_the_gradient, return_shape=True)
    program, kept = traced(world.weights, world.frozen, images)
    return Pass([bytes_of(leaf) for leaf in jax.tree.leaves(kept)], equations_of(program.jaxpr))


def equations_of(program: Any) -> int:
    """How many equations a program has, those of programs within it too.

    >>> equations_of(jax.make_jaxpr(lambda x: jax.jit(jnp.sin)(x) + 1)(1.0).jaxpr)
    3
    """
    return sum(1 + sum(map(equations_of, programs_in(step))) for step in program.eqns)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a pytree."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def available(device: jax.Device, sharing: int = 1) -> int | None:
    """Bytes still free on a device, None if that is unknown. A CPU's are what the operating system, or a
    control group of the process, has left, for each of the `sharing` devices that one CPU may pretend to be."""
    if device.platform != "cpu":
        said = device.memory_stats() or {}
        return said["bytes_limit"] - said["bytes_in_use"] if "bytes_limit" in said else None
    return min([psutil.virtual_memory().available, *_of_control_groups(), *_of_addresses()]) // sharing


def _of_addresses() -> Iterator[int]:
    """What a limit of this process's address space (ulimit -v, batch systems) leaves beside what threads reserve."""
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield max(limit - psutil.Process().memory_info().vms - RESERVED, 0)


def _of_control_groups() -> Iterator[int]:
    """What each group that the process is in has left below its limit, and every group above those. Pages of files that
    nobody reads any more count as left, for they make room."""
    for line in _read(Path("/proc/self/cgroup"), "0::/").splitlines():
        _, controllers, path = line.split(":", 2)
        for root, limit, usage, idle in (GROUPS[name] for name in controllers.split(",") if name in GROUPS):
            group = Path(root) / path.strip("/")
            for folder in (group, *group.parents):
                pages = re.search(rf"^{idle} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                with contextlib.suppress(ValueError):  # it has no limit, or is not to be seen from here
                    used = int(_read(folder / usage)) - (int(pages[1]) if pages else 0)
                    yield int(_read(folder / limit)) - used


def _read(path: Path, otherwise: str = "") -> str:
    """The text of a file of the operating system, where there is such a file."""
    try:
        return path.read_text()
    except OSError:
        return otherwise


def said(parts: dict[str, int]) -> str:
    """A footprint in words, its largest parts first.

    >>> said({"scores": 3 * 10**9, "bits": 5 * 10**8})
    '3.50 GB (scores 3.00, bits 0.50)'
    """
    order = sorted(parts.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in order if size >= 5 * 10**6)
    return f"{sum(parts.values()) / 1e9:.2f} GB" + (f" ({listed})" if listed else "")
