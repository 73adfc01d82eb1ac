"""From settings to everything that a run needs, checked: data, partition, graph, network, algorithm."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dslth_jax import partition, population
from dslth_jax.graphs import Adjacency, Graph, Topology, adjacency_of, report
from dslth_jax.keys import key_of, reproducible
from dslth_jax.networks.network import Network
from dslth_jax.networks.zoo import largest_fitting, network_by_name
from dslth_jax.population import Shares
from dslth_jax.study.config import datasets, spellings
from dslth_jax.study.config.machine import check_machine
from dslth_jax.study.config.resolve import (
    algorithm_of,
    check_each,
    check_together,
    numbers_of,
    population_hyper,
    resolve,
)
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.training import processes
from dslth_jax.study.training.plan import Member, Prepared

TEST_SAMPLES_WHILE_RUNNING = 200


def prepare(settings: Settings, dataset: datasets.Dataset | None = None) -> Prepared:
    """Check the settings and load their data, unless a loaded data set is given."""
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
    skew = spellings.skew_of(settings.feature_skew, settings.agents)
    held = who_holds_what(settings, dataset)
    capped = settings.test_samples
    # Draw the graph last, so that a population too large for its data is refused before its edges are drawn.
    topology = spellings.topology_of(
        settings.topology, settings.agents, settings.seed, directed=settings.directed, mixing=settings.mixing
    )
    hyper, schedules = population_hyper(settings, network)
    kept = numbers_of(settings).get("retention")
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
        retentions=tuple(kept.values.tolist() if kept else [None] * settings.agents),
        classes=dataset.classes,
        train=train,
        tests=tests,
        tests_while_running=tests_below(held, capped or TEST_SAMPLES_WHILE_RUNNING),
        topology=topology,
        adjacency=first,
        graph_report=report(first, weighting=settings.mixing),
        network=network,
        algorithm=algorithm_of(settings, network),
        hyper=hyper,
        schedules=schedules,
    )


def members_of(
    settings: Settings, points: Sequence[Mapping[str, Any]], seeds: int, arms: Mapping[str, Any] | None = None
) -> list[Member]:
    """Every point with every seed, prepared. A ValueError names the point that makes no sense.

    A point holds its settings, or in a comparison the name of the arm that holds them; `settings` hold all others.
    """
    base = {field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)}
    loaded: dict[Any, datasets.Dataset] = {}

    def member(point: Mapping[str, Any], seed: int) -> Member:
        own = Settings(
            **{**base, **(arms[point["arm"]] if arms else point), "seed": seed, "out": None, "resume": False}
        )
        try:
            check_each(own)
            source = (own.dataset, own.data_file, own.data_dir)
            if source not in loaded:
                loaded[source] = load(own)
            return Member(dict(point), seed, prepare(own, loaded[source]))
        except (ValueError, OSError) as error:
            where = ", ".join(f"{name}={value}" for name, value in point.items())
            raise ValueError(f"at {where}: {error}" if where else str(error)) from None

    return [member(point, settings.seed + offset) for point in points for offset in range(seeds)]


def load(settings: Settings) -> datasets.Dataset:
    """The data set that the settings name."""
    return (
        datasets.load_file(settings.data_file)
        if settings.data_file
        else datasets.load(settings.dataset, settings.data_dir)
    )


def who_holds_what(settings: Settings, dataset: datasets.Dataset) -> partition.Partition:
    """The partition that the settings ask for."""
    given: dict[str, Any] = {
        "seed": np.random.default_rng([settings.seed, 1]),
        "test_labels": dataset.test_labels,
        "fraction": settings.data_fraction,
    }
    if settings.class_file:
        classes_of = spellings.read_classes(settings.class_file, settings.agents, dataset.classes)
        return partition.of_classes(dataset.train_labels, classes_of, **given)
    among = {"labels": dataset.train_labels, "agents": settings.agents, "among": dataset.classes}
    return spellings.partition_of(str(settings.partition), **among, **given)


def tests_below(held: partition.Partition, rank: int) -> np.ndarray:
    """How many test samples every agent has below a rank, and one at least."""
    return np.array([max(np.sum(ranks < rank), 1) for ranks in held.ranks], np.int32)


@reproducible
def graph_of_round(settings: Settings, network: Network, topology: Topology, round: int) -> Adjacency:
    """Who hears whom in a round, as a matrix."""

    @jax.jit
    def draw(key: jax.Array, round: jax.Array) -> Graph:
        return population.graph_in(population.world_of(network, key, round, settings.rounds), topology)

    graph = topology.graph if topology.redraw is None else draw(key_of(settings.seed), jnp.int32(round))
    return adjacency_of(graph)
