"""From settings to everything that a run needs, checked: data, partition, graph, network, algorithm; and what fits."""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from dslth_jax import partition, population, sharding
from dslth_jax.algorithm import Algorithm
from dslth_jax.evaluation import BATCH
from dslth_jax.graphs import Adjacency, Graph, GraphReport, Topology, adjacency_of, report, topology_by_name
from dslth_jax.networks.zoo import Network, largest_fitting, network_by_name
from dslth_jax.population import Shares
from dslth_jax.skew import skew_by_name
from dslth_jax.study.config import datasets
from dslth_jax.study.config.algorithms import algorithm_of, population_hyper
from dslth_jax.study.config.machine import check_machine
from dslth_jax.study.config.settings import (
    OF_THE_MACHINE,
    PACKAGES,
    Settings,
    check_each,
    check_together,
    resolve,
)
from dslth_jax.study.training import memory, processes

TEST_SAMPLES_WHILE_RUNNING = 200
BATCHES = 16  # below the batch that is asked for, batches are a multiple of this


class Prepared(NamedTuple):
    """Everything a run needs, checked; nothing has been written yet."""

    settings: Settings  # resolved
    dataset: datasets.Dataset
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


class Plan(NamedTuple):
    """Runs that are computed together, by one program, and where: a single run, or settings of a sweep.

    What differs between them is traced; whatever sets a shape or is compiled in is that of the first.
    """

    members: tuple[Prepared, ...]
    mesh: Mesh  # devices: settings by agents
    together: int  # members computed at once on each device
    chunk: int  # and agents of each
    footprint: dict[str, int]  # bytes that all take on each device, by what they are for


def prepare(settings: Settings, dataset: datasets.Dataset | None = None) -> Prepared:
    """Check the settings and load what they name, or take a data set that is loaded already."""
    check_each(settings)
    check_together(settings)
    if settings.coordinator:
        processes.start_processes(settings.coordinator, settings.processes, settings.process)
    check_machine()
    settings = resolve(settings)
    dataset = dataset or load(settings)
    image_shape = dataset.train_images.shape[1:]
    settings = dataclasses.replace(settings, model=settings.model or largest_fitting(image_shape))
    network = network_by_name(
        str(settings.model),
        image_shape,
        dataset.classes,
        weights=None if settings.weights == "uniform-by-fan-in" else settings.weights,
        zero_biases=settings.biases == "zero",
        elu_on_logits=bool(settings.elu_on_logits),
        precision=None if settings.precision == "float32" else settings.precision,
    )
    skew = skew_by_name(settings.feature_skew, settings.agents)
    held = who_holds_what(settings, dataset)
    capped = settings.test_samples
    # Draw the graph last: of a population too large for its data, that is said before its edges are drawn.
    topology = topology_by_name(
        settings.topology, settings.agents, settings.seed, directed=settings.directed, weighting=settings.mixing
    )
    hyper, schedules = population_hyper(settings, network)
    first = graph_of_round(settings, network, topology, 0)
    train = Shares(dataset.train_images, dataset.train_labels, *partition.stack(held.train), skew)
    tests = Shares(
        dataset.test_images,
        dataset.test_labels,
        partition.stack(held.tests)[0],
        tests_below(held, capped or len(dataset.test_labels)),
        skew,
    )
    return Prepared(
        settings,
        dataset,
        train,
        tests,
        tests_while_running=tests_below(held, capped or TEST_SAMPLES_WHILE_RUNNING),
        topology=topology,
        adjacency=first,
        graph_report=report(first, weighting=settings.mixing),
        network=network,
        algorithm=algorithm_of(settings, network),
        hyper=hyper,
        schedules=schedules,
    )


def load(settings: Settings) -> datasets.Dataset:
    """The data set that the settings name."""
    return (
        datasets.load_file(settings.data_file)
        if settings.data_file
        else datasets.load(settings.dataset, settings.data_dir)
    )


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
    """A run, or several together, takes more memory than there is."""


def batch_of(prepared: Prepared) -> int:
    """Samples a minibatch: nobody has more than the capacity, and a larger batch would be padding.

    Rounded up, so that populations that hold nearly as many are one program.
    """
    capacity = prepared.train.indices.shape[1]
    return min(prepared.settings.batch_size, -(-capacity // BATCHES) * BATCHES)


def identity(prepared: Prepared) -> dict[str, str]:
    """What must be the same in every process of a run, by name."""
    settings = dataclasses.asdict(prepared.settings)
    files = {name: settings.pop(name) is not None for name in ("data_file", "data_dir", "class_file", "out")}
    said = {name: str(value) for name, value in (settings | files).items() if name not in OF_THE_MACHINE}
    # These two change no number, but when processes ask each other something.
    said |= {name: str(getattr(prepared.settings, name)) for name in ("checkpoint_every", "resume")}
    said |= {f"the version of {package}": importlib.metadata.version(package) for package in PACKAGES}
    return said | fingerprints([prepared])[0]


def fingerprints(members: Sequence[Prepared]) -> list[dict[str, str]]:
    """A short name of all data that each member learns from, part by part; images are common to all of them."""
    dataset = members[0].dataset
    images = digest_of([dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels])
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


def who_holds_what(settings: Settings, dataset: datasets.Dataset) -> partition.Partition:
    """The partition that the settings ask for."""
    labels, rng = (dataset.train_labels, dataset.test_labels), np.random.default_rng([settings.seed, 1])
    if settings.class_file:
        classes_of = partition.read_classes(settings.class_file, settings.agents, dataset.classes)
        return partition.of_classes(classes_of, *labels, rng, settings.data_fraction)
    return partition.partition_by_name(
        str(settings.partition), *labels, dataset.classes, settings.agents, rng, fraction=settings.data_fraction
    )


def tests_below(held: partition.Partition, rank: int) -> np.ndarray:
    """How many test samples every agent has below a rank, and one at least."""
    return np.array([max(np.sum(ranks < rank), 1) for ranks in held.ranks], np.int32)


def graph_of_round(settings: Settings, network: Network, topology: Topology, round: int) -> Adjacency:
    """Who hears whom in a round, as a matrix."""

    @jax.jit
    def draw(key: jax.Array, round: jax.Array) -> Graph:
        return population.graph_in(population.world_of(network, key, None, round, settings.rounds), topology)

    graph = topology.graph if topology.redraw is None else draw(jax.random.key(settings.seed), jnp.int32(round))
    return adjacency_of(graph)
