"""What a run needs, resolved once; and how many runs, and agents of each, a machine computes at once."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from dslth_jax import sharding
from dslth_jax.algorithm import Algorithm
from dslth_jax.evaluation import BATCH
from dslth_jax.graphs import Adjacency, GraphReport, Topology
from dslth_jax.networks.network import Network
from dslth_jax.partition import class_counts
from dslth_jax.population import Shares
from dslth_jax.study.config.machine import PACKAGES, numerics
from dslth_jax.study.config.settings import Settings, described
from dslth_jax.study.training import memory, processes

BATCHES = 16  # a batch smaller than asked for is a multiple of this


class Prepared(NamedTuple):
    """Everything a run needs, checked; nothing has been written yet."""

    settings: Settings  # resolved
    retentions: tuple[float | None, ...]  # of each agent; None where its algorithm has none
    classes: int
    train: Shares
    tests: Shares  # sizes: all test samples that count at the end
    tests_while_running: np.ndarray  # sizes, (agents,)
    topology: Topology
    adjacency: Adjacency  # of the first round
    graph_report: GraphReport
    network: Network
    algorithm: Algorithm
    hyper: Any  # the algorithm's traced settings; leaves with an agents axis
    schedules: Any  # of the same structure: the schedule of each

    def held(self, shares: Shares) -> np.ndarray:
        """How many samples of each class every agent holds of `train` or `tests`: (agents, classes)."""
        return class_counts(shares.labels, shares.indices, shares.sizes, self.classes)


class Member(NamedTuple):
    """One run of a study: a point of its grid with one seed. The point of a single run is empty."""

    point: dict[str, Any]  # the axes' values, as they were spelled
    seed: int | None  # None of a single run, which needs no name
    prepared: Prepared

    @property
    def label(self) -> str:
        """The point in words."""
        return ", ".join(f"{axis}={value}" for axis, value in self.point.items())

    @property
    def name(self) -> str:
        """The member in words."""
        named = self.point if self.seed is None else self.point | {"seed": self.seed}
        return ",".join(f"{axis}={value}" for axis, value in named.items())


class Plan(NamedTuple):
    """Runs that are computed together, by one program, and where: a single run, or settings of a sweep.

    What differs between them is traced; whatever sets a shape or is compiled in is that of the first.
    """

    members: tuple[Prepared, ...]
    mesh: Mesh  # devices: settings by agents
    together: int  # members computed at once on each device
    chunk: int  # and agents of each
    footprint: dict[str, int]  # bytes that all take on each device, by what they are for

    @property
    def settings(self) -> Settings:
        """What all members have in common, as the first says it."""
        return self.members[0].settings


def plan(members: Sequence[Prepared]) -> Plan:
    """Where and how many at a time the members are computed; all processes of a run must call it.

    Settings of a sweep spread over devices, the agents of a single run do. A ValueError where they take more memory
    than there is.
    """
    first = members[0].settings
    mesh = sharding.settings_mesh(len(members), first.agents, first.devices)
    on_each = -(-len(members) // mesh.shape[sharding.SETTINGS])
    platform, sharing = mesh.local_devices[0].platform, len(mesh.local_devices)
    free = processes.least(memory.available(mesh.local_devices[0], sharing=sharing))
    largest = max(members, key=lambda one: one.train.indices.size + one.tests.indices.size)
    chunk, together, parts = what_fits(largest, on_each, mesh, platform, free)
    return Plan(tuple(members), mesh, together, chunk, parts)


def what_fits(
    one: Prepared, members: int, mesh: Mesh, platform: str, free: int | None
) -> tuple[int, int, dict[str, int]]:
    """How many agents and how many of `members` like one are computed at once on each device, and the bytes all take.

    A ValueError where it is more than the `free` bytes; None is no limit.
    """
    settings, agents = one.settings, one.settings.agents // mesh.shape[sharding.AXIS]
    parts = memory.footprint(
        one.network,
        one.algorithm,
        jax.tree.map(lambda leaf: leaf[0], one.hyper),
        one.topology.graph,
        one.train,
        agents=settings.agents,
        batch_size=batch_of(one),
        test_batch=BATCH,
        local_steps=settings.local_steps,
        devices=mesh.shape[sharding.AXIS],
    )
    common = memory.bytes_of((one.train.images, one.train.labels))
    # Test samples are held as training samples are, and only images and labels are the same for all members.
    parts["data"] += memory.bytes_of_samples(one.tests, mesh.shape[sharding.AXIS])
    common += memory.bytes_of((one.tests.images, one.tests.labels))
    of_one = parts.pop("activations")
    parts = {name: size * members for name, size in parts.items()}
    parts["data"] -= common * (members - 1)
    parts["compiler"] = memory.COMPILER.get(platform, 0)
    # Leave a fifth to what the compiler's own kernels take on an accelerator.
    unlimited = free is None
    fitting = agents * members if unlimited else max((int(free or 0) * 4 // 5 - sum(parts.values())) // of_one, 1)
    chunk = min(settings.agent_chunk or (1 if platform == "cpu" else fitting), agents)
    together = 1 if platform == "cpu" else min(max(fitting // chunk, 1), members) if chunk == agents else 1
    parts["activations"] = chunk * together * of_one
    if free is not None and sum(parts.values()) > free:
        several = f"{members} settings of " if members > 1 else ""
        raise TooLargeError(
            f"{several}{settings.agents} agents need about {memory.said(parts)} on each device, and {free / 1e9:.2f} "
            f"GB are free: take fewer --agents, more --devices, a smaller --agent-chunk, --batch-size or --model"
        )
    return chunk, together, parts


class TooLargeError(ValueError):
    """A run, or several runs together, would take more memory than there is."""


def batch_of(prepared: Prepared) -> int:
    """Samples a minibatch: nobody has more than the capacity, and a larger batch would be padding.

    Rounded up, so that populations that hold nearly as many are one program.
    """
    capacity = prepared.train.indices.shape[1]
    return min(prepared.settings.batch_size, -(-capacity // BATCHES) * BATCHES)


def identity(members: Sequence[Member]) -> dict[str, str]:
    """What must be the same in every process of a study, by name."""
    said = [_identity(member.prepared) for member in members]
    return {name: str([own[name] for own in said]) for name in said[0]}


def _identity(prepared: Prepared) -> dict[str, str]:
    known, settings = described(type(prepared.settings)), dataclasses.asdict(prepared.settings)
    files = {name: settings.pop(name) is not None for name in ("data_file", "data_dir", "class_file", "out")}
    said = {name: str(value) for name, value in (settings | files).items() if not known[name].machine}
    # These two change no number, but when processes ask each other something.
    said |= {name: str(getattr(prepared.settings, name)) for name in ("checkpoint_every", "resume")}
    said |= {f"the version of {package}": importlib.metadata.version(package) for package in PACKAGES}
    return said | numerics() | fingerprints([prepared])[0]


def fingerprints(members: Sequence[Prepared]) -> list[dict[str, str]]:
    """A short name of all data that each member learns from, part by part; images are common to all of them."""
    images = digest_of([members[0].train[:2], members[0].tests[:2]])
    return [
        {
            "the images and labels": images,
            "the training samples": digest_of(member.train[2:]),
            "the test samples": digest_of(member.tests[2:]),
            "the graph": digest_of(member.topology.graph),
        }
        for member in members
    ]


def digest_of(arrays: Any) -> str:
    """A short name of what arrays hold."""
    digest = hashlib.blake2b(digest_size=16)
    for leaf in jax.tree.leaves(arrays):
        array = np.ascontiguousarray(leaf)
        digest.update(json.dumps([array.shape, str(array.dtype)]).encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
