"""From settings to everything that a run needs, checked: data, partition, graph, network, algorithm."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from dslth_jax import partition, population
from dslth_jax.channels import channels_of
from dslth_jax.control import Controller
from dslth_jax.evaluation import BATCH
from dslth_jax.graph_report import GraphReport, report, sparse_adjacency_of, sparse_mixing_of
from dslth_jax.keys import key_of, reproducible
from dslth_jax.label_shares import class_counts, overlap
from dslth_jax.links import Link, added_up, by_similarity, chain, dropped, loses_for_good, resent
from dslth_jax.mixing import Graph, Topology, hearing_some, weighted
from dslth_jax.networks.network import Network
from dslth_jax.networks.zoo import largest_fitting
from dslth_jax.pool import pool_of
from dslth_jax.population import Shares
from dslth_jax.study.config import spellings
from dslth_jax.study.config.algorithms import ALGORITHMS, with_own_settings
from dslth_jax.study.config.numbers import numbers_of, population_hyper, targets_of
from dslth_jax.study.config.resolve import algorithm_of, check, check_graph, filled_in, network_of
from dslth_jax.study.config.setting import described
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.data import datasets
from dslth_jax.study.data.form import Dataset
from dslth_jax.study.data.lists import read_classes, read_owners
from dslth_jax.study.system.machine import check_machine
from dslth_jax.study.training import memory, processes
from dslth_jax.study.training.budget import budget_of, costs_of
from dslth_jax.study.training.ledger import Course
from dslth_jax.study.training.plan import Prepared, in_words
from dslth_jax.target_channels import target_channels

TEST_SAMPLES_WHILE_RUNNING = 200
SPLITS = ("partition", "dirichlet_alpha", "class_overlap", "classes_per_agent", "class_file")  # who holds what
DYING = 0.05, 0.35  # the part of all rounds between which channels die, where there is a target of how many are left
BATCHES = 16  # a batch smaller than asked for is a multiple of this


def prepare(settings: Settings, load: Callable[..., Dataset] | None = None) -> Prepared:
    """Check the settings, then load the data that they name: by `load`, from a data set's name, file, folder and side,
    or by `datasets.named` where it is None."""
    check(settings)
    if settings.coordinator:
        processes.start_processes(settings.coordinator, settings.processes, settings.process)
    check_machine()
    given, settings = settings, filled_in(settings)
    dataset, settings = loaded(settings, given, load or datasets.named)
    image_shape = dataset.train_images.shape[1:]
    network = network_of(settings, image_shape, dataset.classes)
    skew = spellings.skew_of(settings.feature_skew, settings.agents)
    held, validation = held_back(settings, dataset, who_holds_what(settings, dataset))
    # Draw the graph last, so that a population too large for its data is refused before its edges are drawn.
    graph = who_hears_whom(settings, dataset, held)
    check_graph(given, redrawn=graph.redraw is not None)
    topology = graph if settings.hear is None else hearing_some(graph, settings.hear)
    hyper, schedules = population_hyper(settings, network)
    kept = numbers_of(settings).get("retention")
    first, last = adjacencies(network, topology, settings.seed, settings.rounds)
    of_graph = first if settings.hear is None else adjacencies(network, graph, settings.seed, settings.rounds)[0]
    pooled = settings.images == "pooled"
    pool = pool_of(dataset.train_labels, held.train, dataset.classes) if pooled else None
    train = Shares(dataset.train_images, dataset.train_labels, *partition.stack(held.train), skew, pool)
    at_the_end, while_running = (
        # How many test samples every agent has below a rank, and one at least.
        np.array([max(np.sum(ranks < (settings.test_samples or most)), 1) for ranks in held.ranks], np.int32)
        for most in (len(dataset.test_labels), TEST_SAMPLES_WHILE_RUNNING)
    )
    # List no test samples that never count: of many agents they are most of the data.
    tested = partition.stack(held.tests)[0][:, : at_the_end.max()]
    # Nobody has more than the capacity. Round it up, so that populations that hold nearly as many are one program.
    capacity = -(-train.indices.shape[1] // BATCHES) * BATCHES
    batch_size, algorithm = min(settings.batch_size, capacity), algorithm_of(settings, network)
    of_one = jax.tree.map(lambda leaf: leaf[0], hyper)
    sizes: dict[str, Any] = {"agents": settings.agents, "batch_size": batch_size, "local_steps": settings.local_steps}
    failing, fails, links = what_links_do(settings, network, topology)
    link = chain(*links, *([failing(settings.link_drop)] if fails else []))
    footprint = functools.partial(memory.footprint, network, algorithm, of_one, topology.graph, train, link, **sizes)
    return Prepared(
        settings,
        given.as_given(),
        course=Course(*(getattr(settings, name) for name in Course._fields)),
        batch_size=batch_size,
        augment=spellings.AUGMENTATIONS[str(settings.augment)],
        retentions=tuple(kept.values.tolist() if kept else [None] * settings.agents),
        classes=dataset.classes,
        labels=dataset.own_labels or tuple(range(dataset.classes)),
        source=dataset.source,
        owners=owners_of(dataset, settings),
        train=train,
        tests=Shares(dataset.test_images, dataset.test_labels, tested, at_the_end, skew),
        tests_while_running=while_running,
        validation=Shares(*train[:2], *partition.stack(validation), skew) if validation else None,
        topology=topology,
        adjacency=first,
        last_adjacency=last,
        graph_report=report_of(of_graph, settings, graph),
        changing=graph.redraw is not None,
        network=network,
        algorithm=algorithm,
        hyper=hyper,
        schedules=schedules,
        budget=(budget := budget_of(settings, network)),
        costs=costs_of(settings, network, image_shape, batch_size) if budget else None,
        targets=targets_of(settings),
        aiming=aiming_of(settings, network),
        failing=failing,
        fails=fails,
        links=links,
        footprint=functools.cache(
            lambda devices, platform: footprint(test_batch=BATCH, devices=devices, platform=platform)
        ),
    )


def aiming_of(settings: Settings, network: Network) -> Callable[..., Controller] | None:
    """What brings agents to the shares of their channels that they are to be left with, from these; None where nobody
    aims at one."""
    if settings.target_channels is None:
        return None
    begin, end = (share * settings.rounds for share in DYING)
    return functools.partial(target_channels, channels=channels_of(network), begin=begin, end=end)


def loaded(settings: Settings, given: Settings, load: Callable[..., Dataset]) -> tuple[Dataset, Settings]:
    """The data that resolved settings name, and the settings with what follows from it: the network that fits its
    images, and a split by owners where it has some and no other was `given`."""
    dataset = load(settings.dataset, settings.data_file, settings.data_dir, settings.resize)
    chosen: dict[str, Any] = {"model": settings.model or largest_fitting(dataset.train_images.shape[1:])}
    if settings.owner_file:
        owner = read_owners(settings.owner_file, len(dataset.train_labels))
        dataset = dataset._replace(owner=owner, test_owner=None)
    elif dataset.owner is not None and not {*SPLITS} & {*given.given}:
        chosen["partition"] = "owner"
    return dataset, dataclasses.replace(settings, **chosen)


def what_links_do(
    settings: Settings, network: Network, topology: Topology
) -> tuple[Callable[..., Link], bool, tuple[Link, ...]]:
    """The link that loses messages so often, or holds what was told; whether messages pass through it; and what happens
    to them before."""
    again = added_up if settings.keep_neighbours else resent
    failing = again if ALGORITHMS[settings.algorithm].bits == "changes" else dropped
    if failing is resent and settings.link_drop:
        expect_all_arrives(settings, network, topology)
    before = (by_similarity(),) if settings.mixing == "similarity" else ()
    return failing, settings.link_drop > 0 or settings.keep_neighbours, before


def expect_all_arrives(settings: Settings, network: Network, topology: Topology) -> None:
    """Raise a ValueError if some message would be lost for good, so often is it lost."""
    every, first = settings.exchange_every, settings.exchange_from
    rounds = jnp.arange(-(-first // every) * every - 1, settings.rounds, every)

    def key(round: jax.Array) -> jax.Array:
        world = population.world_of(network, key_of(settings.seed), round, settings.rounds)
        return population.round_key(world, population.LINKS)

    if loses_for_good(resent(settings.link_drop), topology.graph, jax.vmap(key)(rounds)):
        raise ValueError(
            f"--algorithm {settings.algorithm} adds up all that a neighbour has ever sent, and with --link-drop "
            f"{settings.link_drop:g} some message is lost 16 times in a row, and then for good: take a smaller one, or "
            "say --keep-neighbours"
        )


def members_of(
    settings: Settings, points: Sequence[Mapping[str, Any]], seeds: int, arms: Mapping[str, Any] | None = None
) -> list[Prepared]:
    """Every point with every seed, prepared; a ValueError names the point that makes no sense. A point holds its
    settings, or in a comparison the name of the arm that holds them; `settings` hold all others."""
    kind = with_own_settings(Settings)
    base = {name: getattr(settings, name, known.default) for name, known in described(kind).items()}
    load = functools.cache(datasets.named)

    def member(point: dict[str, Any], seed: int) -> Prepared:
        changed = {**(arms[point["arm"]] if arms else point), "seed": seed, "out": None, "resume": False}
        own = kind(**{**base, **changed})
        try:
            prepared = prepare(own, load)
            return prepared._replace(point=point, name=in_words(point | {"seed": seed}, ","))
        except (ValueError, OSError) as error:
            raise ValueError(f"at {in_words(point)}: {error}" if point else str(error)) from None

    return [member(dict(point), settings.seed + offset) for point in points for offset in range(seeds)]


def who_holds_what(settings: Settings, dataset: Dataset) -> partition.Partition:
    """The partition that the settings ask for; where it cannot be, the error names a flag, or the data's own labels."""
    try:
        return partition_of(settings, dataset)
    except ValueError as error:
        if "per_agent" in str(error):
            raise ValueError(f"{error}: say --classes-per-agent, or another --partition") from None
        if not dataset.own_labels:
            raise
        words = ", ".join(f"{number} is {label}" for number, label in enumerate(dataset.own_labels[:10]))
        raise ValueError(f"{error} (classes are counted in the order of their labels: {words})") from None


def partition_of(settings: Settings, dataset: Dataset) -> partition.Partition:
    """By a file of classes, or by the function that --partition spells."""
    given: dict[str, Any] = {
        "seed": np.random.default_rng([settings.seed, 1]),
        "test_labels": dataset.test_labels,
        "fraction": settings.data_fraction,
    }
    if settings.class_file:
        classes_of = read_classes(settings.class_file, settings.agents, dataset.classes, dataset.own_labels)
        return partition.of_classes(dataset.train_labels, classes_of, **given)
    among = {"labels": dataset.train_labels, "agents": settings.agents, "among": dataset.classes}
    owners = {"owner": dataset.owner, "test_owner": dataset.test_owner}
    return spellings.partition_of(str(settings.partition), **among, **owners, **given)


def owners_of(dataset: Dataset, settings: Settings) -> tuple[int | str, ...]:
    """The owner that each agent is, where data is split so."""
    if settings.partition != "owner" or dataset.owner is None:
        return ()
    return tuple(partition.owners(dataset.owner, settings.agents))


def who_hears_whom(settings: Settings, dataset: Dataset, held: partition.Partition) -> Topology:
    """The graph that the settings ask for, with the weights of neighbours that are known from the start."""
    topology = spellings.topology_of(
        settings.topology, settings.agents, settings.seed, directed=settings.directed, mixing=settings.mixing
    )
    if settings.mixing != "overlap":
        return topology
    counts = class_counts(dataset.train_labels, *partition.stack(held.train), dataset.classes)
    return weighted(topology, overlap(counts))


def report_of(first: sparse.csr_array, settings: Settings, topology: Topology) -> GraphReport:
    """What the graph of the first round is like: of a file's own weights, or else of those that the settings name."""
    if settings.mixing == "uniform" and np.asarray(topology.graph.weights).dtype.kind == "f":
        return report(first, weights=sparse_mixing_of(topology.graph))
    return report(first, weighting="metropolis" if settings.mixing == "metropolis" else "uniform")


def held_back(
    settings: Settings, dataset: Dataset, held: partition.Partition
) -> tuple[partition.Partition, list[partition.Indices] | None]:
    """The partition without the training samples that --validation holds back, and these; None where it holds none."""
    if not settings.validation:
        return held, None
    own = np.random.default_rng([settings.seed, 2])  # its own, so that nothing else is drawn otherwise
    try:
        train, validation = partition.hold_back(held.train, dataset.train_labels, settings.validation, own)
    except ValueError as error:
        raise ValueError(f"--validation: {error}") from None
    return held._replace(train=train), validation


@reproducible
def adjacencies(network: Network, topology: Topology, seed: int, rounds: int) -> list[sparse.csr_array]:
    """Who hears whom in the first and in the last of so many rounds."""

    @jax.jit
    def draw(key: jax.Array, round: jax.Array) -> Graph:
        return population.graph_in(population.world_of(network, key, round, rounds), topology)

    if topology.redraw is None:
        return 2 * [sparse_adjacency_of(topology.graph)]
    return [sparse_adjacency_of(draw(key_of(seed), jnp.int32(round))) for round in (0, rounds - 1)]
