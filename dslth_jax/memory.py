"""What a run holds in memory, by a formula that is known before anything is compiled. Bytes on one device."""

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dslth_jax.algorithm import Algorithm, Batches
from dslth_jax.exchange import silence
from dslth_jax.models import Network
from dslth_jax.population import Shares, world_of
from dslth_jax.topology import Graph

# Of the largest activation, how many the gradient works with beside what the forward pass keeps for it (as XLA's own
# analysis says for the AlexNet; see benchmarks/scaling.py).
WORKING_COPIES = 5


def footprint(
    network: Network,
    algorithm: Algorithm,
    hyper: Any,
    graph: Graph,
    shares: Shares,
    *,
    agents: int,
    batch_size: int,
    local_steps: int = 1,
    chunk: int = 1,
    devices: int = 1,
) -> dict[str, int]:
    """Bytes of a round on each device, by what they are for.

    What every agent holds (its fields by name; what it carries over the exchange, `gradient`; `counts`; `bits`) times
    the device's agents, what `chunk` agents compute with (`activations`), and what all have in common (`weights`,
    `data`).

    Args:
        network: of all agents.
        algorithm: what they run.
        hyper: the traced settings of one agent.
        graph: its kind of weights decides in what neighbours are counted.
        shares: training samples, as arrays or shapes.
        agents: of the whole population, a multiple of `devices`.
        batch_size: samples a minibatch.
        local_steps: minibatches a round.
        chunk: agents computed at once on a device.
        devices: over which agents are spread.
    """
    image_shape = shares.images.shape[1:]

    def one_round(hyper: Any) -> Any:
        """One agent's phase before the exchange, to see the shapes of what it holds."""
        key = jax.random.key(0)
        world, steps = world_of(network, key, hyper, 0, 1), (local_steps + 1, batch_size)
        batches = Batches(
            jnp.zeros((*steps, *image_shape), jnp.uint8), jnp.zeros(steps, jnp.int32), jnp.zeros(steps, bool)
        )
        agent, message = algorithm.init(key, world)
        heard = silence(world.weights, agents, graph)
        agent, carry, message, _ = algorithm.send(key, world, agent, heard, batches)
        return world, agent, carry, message, heard

    world, agent, carry, message, heard = jax.eval_shape(one_round, hyper)
    own, bits = agents // devices, bytes_of(message)
    per_agent = {**{name: bytes_of(part) for name, part in agent._asdict().items()}, "gradient": bytes_of(carry)}
    return {
        "weights": bytes_of((world.weights, world.frozen)),
        **{name: own * size for name, size in per_agent.items()},
        "counts": own * bytes_of(heard),
        # What was sent last and what is sent now; on several devices also what all the others send.
        "bits": 2 * own * bits + (agents * bits if devices > 1 else 0),
        "activations": chunk * activations(network, world, batch_size, image_shape),
        "data": bytes_of(shares),
    }


def activations(network: Network, world: Any, batch_size: int, image_shape: tuple[int, ...]) -> int:
    """Bytes that one agent's gradient works with: what the forward pass keeps, and copies of the largest of it."""

    def kept_for_the_gradient(weights: PyTree, frozen: PyTree, images: Any) -> Any:
        apply = lambda weights: network.apply({"params": weights, "frozen": frozen}, images)  # noqa: E731
        return jax.vjp(apply, weights)[1]

    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.uint8)
    kept = jax.eval_shape(kept_for_the_gradient, world.weights, world.frozen, images)
    sizes = [bytes_of(leaf) for leaf in jax.tree.leaves(kept)]
    return sum(sizes) + WORKING_COPIES * max(sizes)


def bytes_of(tree: Any) -> int:
    """Bytes of all arrays, or shapes, of a pytree."""
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def available(device: jax.Device, sharing: int = 1) -> int | None:
    """Bytes that can still be had on a device, None where nobody says.

    A CPU's are what the operating system, or the control group of the process, has left, for each of the `sharing`
    devices that one CPU may pretend to be.
    """
    if device.platform != "cpu":
        said = device.memory_stats() or {}
        return said["bytes_limit"] - said["bytes_in_use"] if "bytes_limit" in said else None
    left = [size for size in (_of_the_machine(), _of_the_control_group()) if size is not None]
    return min(left) // sharing if left else None


def _of_the_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _of_the_control_group() -> int | None:
    folder = Path("/sys/fs/cgroup")
    try:
        return int((folder / "memory.max").read_text()) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):  # there is none, or it has no limit
        return None


def said(parts: dict[str, int]) -> str:
    """A footprint in words, its largest parts first.

    >>> said({"scores": 3 * 10**9, "bits": 5 * 10**8})
    '3.50 GB (scores 3.00, bits 0.50)'
    """
    order = sorted((name for name in parts if parts[name] >= 5 * 10**6), key=lambda name: -parts[name])
    listed = ", ".join(f"{name} {parts[name] / 1e9:.2f}" for name in order)
    return f"{sum(parts.values()) / 1e9:.2f} GB" + (f" ({listed})" if listed else "")
