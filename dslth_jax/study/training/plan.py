"""What a run needs, resolved once; and how many runs, and agents of each, a machine computes at once."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from scipy import sparse

from dslth_jax import sharding
from dslth_jax.algorithm import Algorithm
from dslth_jax.augment import Augment
from dslth_jax.control import Controller
from dslth_jax.graph_report import GraphReport
from dslth_jax.label_shares import class_counts
from dslth_jax.links import Link
from dslth_jax.mixing import Topology
from dslth_jax.networks.network import Network
from dslth_jax.population import Shares
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.system.machine import PACKAGES, numerics
from dslth_jax.study.training import memory, processes
from dslth_jax.study.training.budget import Budget, Costs
from dslth_jax.study.training.ledger import Course


class Prepared(NamedTuple):
    """A run, or a member of a study: everything it needs, checked; nothing has been written yet."""

    settings: Settings  # resolved
    said: Mapping[str, Any]  # the flags that were given
    course: Course
    batch_size: int  # samples a minibatch
    failing: Callable[..., Link]  # the link that loses messages, or holds what was told
    fails: bool  # whether messages pass through it
    links: tuple[Link, ...]  # what happens to messages before
    augment: Augment | None  # what is made of the images of each minibatch
    retentions: tuple[float | None, ...]  # of each agent; None where its algorithm has none
    classes: int
    labels: tuple[int | str, ...]  # by which the data itself calls them
    source: str  # where the data was read from
    owners: tuple[int | str, ...]  # whose samples each agent has, where the data says so
    train: Shares
    tests: Shares  # sizes: all test samples that count at the end
    tests_while_running: np.ndarray  # sizes, (agents,)
    topology: Topology
    adjacency: sparse.csr_array  # who hears whom in the first round
    last_adjacency: sparse.csr_array
    graph_report: GraphReport  # on the graph, of the first round where it changes, whoever of it is heard
    changing: bool  # whether it is another graph in each round
    network: Network
    algorithm: Algorithm
    hyper: Any  # the algorithm's traced settings; leaves with an agents axis
    schedules: Any  # of the same structure: the schedule of each
    budget: Budget | None  # what sets simulated time, and budgets by it; None where nothing does
    costs: Costs | None  # and what takes this time
    footprint: Callable[[int, str], dict[str, int]]  # bytes on each of so many devices, of a platform; traced once
    targets: np.ndarray | None = None  # the share of its channels that each agent is to be left with
    aiming: Callable[..., Controller] | None = None  # what brings agents to such targets
    validation: Shares | None = None  # samples of the training images that are held back, if any are
    point: Mapping[str, Any] = {}  # of a study's grid: the axes' values, as they were spelled
    name: str = ""  # which member of a study it is, in words

    @property
    def agents(self) -> int:
        """How many there are."""
        return len(self.train.sizes)

    def held(self, shares: Shares) -> np.ndarray:
        """How many samples of each class every agent holds of `train`, `tests` or `validation`: (agents, classes)."""
        return class_counts(shares.labels, shares.indices, shares.sizes, self.classes)


def in_words(point: Mapping[str, Any], between: str = ", ") -> str:
    """A point of a grid as a reader likes it."""
    return between.join(f"{axis}={value}" for axis, value in point.items())


class Plan(NamedTuple):
    """Runs that are computed together, by one program, and where: a single run, or settings of a sweep. What differs
    between them is traced; whatever sets a shape or is compiled in is that of the first."""

    members: tuple[Prepared, ...]
    mesh: Mesh  # devices: settings by agents
    together: int  # members computed at once on each device
    chunk: int  # and agents of each
    footprint: dict[str, int]  # bytes that all take on each device, by what they are for


def plan(members: Sequence[Prepared]) -> Plan:
    """Where and how many at a time the members are computed: a sweep's settings spread over devices, or a single run's
    agents. All processes of a run must call it. A ValueError where they take more memory than there is."""
    mesh = sharding.settings_mesh(len(members), members[0].agents, members[0].settings.devices)
    on_each = -(-len(members) // mesh.shape[sharding.SETTINGS])
    platform, sharing = mesh.local_devices[0].platform, len(mesh.local_devices)
    free = processes.least(memory.available(mesh.local_devices[0], sharing=sharing))
    largest = max(members, key=room_of)
    chunk, together, parts = what_fits(largest, on_each, mesh, platform, free)
    return Plan(tuple(members), mesh, together, chunk, parts)


def room_of(one: Prepared) -> tuple[bool, int]:
    """What members of a study differ in, of all that takes memory: whether links lose something, and the size of all
    lists of samples."""
    return one.fails, sum(shares.indices.size for shares in (one.train, one.tests, one.validation) if shares)


def what_fits(
    one: Prepared, members: int, mesh: Mesh, platform: str, free: int | None
) -> tuple[int, int, dict[str, int]]:
    """How many agents and how many of `members` like one are computed at once on each device, and the bytes all take. A
    ValueError where it is more than the `free` bytes; None is no limit."""
    devices, on_cpu = mesh.shape[sharding.AXIS], platform == "cpu"
    agents = one.agents // devices
    parts = dict(one.footprint(devices, platform))
    # Test samples are held as training samples are, and only images and labels are the same for all members.
    parts["data"] += memory.bytes_of_samples(one.tests, devices)
    if one.validation:  # of images that count already
        parts["data"] += memory.bytes_of_owned(one.validation, devices)
    common = memory.bytes_of((one.train[:2], one.tests[:2]))
    of_one, compiler = parts.pop("activations"), parts.pop("compiler", 0)
    of_one += 0 if on_cpu else memory.LIKE_WEIGHTS * parts["weights"]
    parts = {name: size * members for name, size in parts.items()}
    parts["data"] -= common * (members - 1)
    parts["compiler"] = compiler
    # Leave a fifth to what the compiler's own kernels take on an accelerator.
    fitting = agents * members if free is None else max((free * 4 // 5 - sum(parts.values())) // of_one, 1)
    chunk = min(one.settings.agent_chunk or (1 if on_cpu else evenly(agents, fitting)), agents)
    together = 1 if on_cpu or chunk < agents else min(max(fitting // chunk, 1), members)
    parts["activations"] = chunk * together * of_one
    if free is not None and sum(parts.values()) > free:
        several = f"{members} settings of " if members > 1 else ""
        raise TooLargeError(
            f"{several}{one.agents} agents need about {memory.said(parts)} on each device, and {free / 1e9:.2f} "
            f"GB are free: take fewer --agents, more --devices, a smaller --agent-chunk, --batch-size or --model"
        )
    return chunk, together, parts


def evenly(agents: int, fitting: int) -> int:
    """How many agents to compute at once where so many fit: a number that divides all, so that no smaller chunk is
    compiled for the rest, unless that is less than half of what fits; else in as few chunks, as even as they can be.

    >>> evenly(1024, 567), evenly(20, 9), evenly(8, 5), evenly(7, 5), evenly(7, 9)
    (512, 5, 4, 4, 7)
    """
    fitting = min(fitting, agents)
    dividing = max(size for size in range(1, fitting + 1) if agents % size == 0)
    return dividing if 2 * dividing >= fitting else -(-agents // -(-agents // fitting))


class TooLargeError(ValueError):
    """A run, or several runs together, would take more memory than there is."""


def identity(members: Sequence[Prepared]) -> dict[str, str]:
    """What must be the same in every process of a study, by name."""
    known = members[0].settings.known
    # The last two change no number, but when processes ask each other something.
    names = [*(name for name, own in known.items() if not own.machine), "checkpoint_every", "resume"]
    each: list[dict[str, Any]] = []
    for member in members:
        given = dataclasses.asdict(member.settings)
        # A host may have its own paths.
        given |= {name: given[name] is not None for name in ("data_file", "class_file", "owner_file")}
        each.append({name: given[name] for name in names} | fingerprints([member])[0])
    versions = {f"the version of {package}": importlib.metadata.version(package) for package in PACKAGES}
    return versions | numerics() | {name: str([own[name] for own in each]) for name in each[0]}


def fingerprints(members: Sequence[Prepared]) -> list[dict[str, str]]:
    """A short name of all data that each member learns from, part by part; images are common to all of them."""
    first = members[0]
    own = [] if first.labels == tuple(range(first.classes)) else [np.frombuffer(repr(first.labels).encode(), np.uint8)]
    images = digest_of([first.train[:2], first.tests[:2], *own])
    return [
        {
            "the images and labels": images,
            "the training samples": digest_of(member.train[2:]),
            "the test samples": digest_of(member.tests[2:]),
            "the validation samples": digest_of(member.validation and member.validation[2:]),
            "the graph": digest_of(member.topology.graph),
            "the bandwidths": digest_of(member.budget and member.budget.devices.bandwidth),
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
