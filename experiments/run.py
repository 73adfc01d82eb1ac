"""One run, from settings to run folder."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from rich.console import Console

from dslth_jax import data, partition, placement, population
from dslth_jax.algorithm import Algorithm
from dslth_jax.evaluation import Evaluation, evaluate, packed_masks
from dslth_jax.mcepl import Hyper, MaskRule, kept_by_layer, mce_pl
from dslth_jax.models import Network, largest_fitting, network_by_name
from dslth_jax.placement import AXIS, EVERYWHERE, SHARES, SPREAD, STATE
from dslth_jax.population import Shares, State
from dslth_jax.schedules import at_round
from dslth_jax.skew import skew_by_name
from dslth_jax.topology import Adjacency, Graph, GraphReport, Topology, adjacency_of, report, topology_by_name
from experiments import figures, record
from experiments.progress import ProgressLine
from experiments.settings import Settings, linear_retention, number_and_schedule, resolve, retentions, schedule_of
from experiments.symptoms import Symptoms

TEST_SAMPLES_WHILE_RUNNING = 200


class NotFiniteError(RuntimeError):
    """The loss or the scores have become nan or infinite."""


class Prepared(NamedTuple):
    """Everything a run needs, checked; nothing has been written yet."""

    settings: Settings  # resolved
    dataset: data.Dataset
    train: Shares
    tests: Shares  # sizes: all test samples that count at the end
    tests_while_running: np.ndarray  # sizes, (agents,)
    topology: Topology
    adjacency: Adjacency  # of the first round
    graph_report: GraphReport
    network: Network
    algorithm: Algorithm
    hyper: Hyper  # leaves with an agents axis
    schedules: Hyper  # of the same structure: the schedule of each
    mesh: Mesh  # the devices that agents are spread over
    chunk: int  # agents computed at once on each


class Result(NamedTuple):
    """What `run` returns."""

    folder: Path
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


def run(settings: Settings) -> Result:
    """Check, load, train, evaluate and record. Raises ValueError on bad input, NotFiniteError if training diverges."""
    prepared = prepare(settings)
    return train(prepared, record.create_folder(settings))


def prepare(settings: Settings) -> Prepared:
    """Check the settings and load what they name."""
    settings = resolve(settings)
    dataset = (
        data.load_file(settings.data_file) if settings.data_file else data.load(settings.dataset, settings.data_dir)
    )
    image_shape = dataset.train_images.shape[1:]
    settings = dataclasses.replace(settings, model=settings.model or largest_fitting(image_shape))
    network = network_by_name(
        str(settings.model),
        image_shape,
        dataset.classes,
        weights=None if settings.weights == "uniform-by-fan-in" else settings.weights,
        zero_biases=settings.biases == "zero",
        elu_on_logits=bool(settings.elu_on_logits),
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
    return Prepared(
        settings,
        dataset,
        train=Shares(dataset.train_images, dataset.train_labels, *partition.stack(held.train), skew),
        tests=Shares(
            dataset.test_images,
            dataset.test_labels,
            partition.stack(held.tests)[0],
            tests_below(held, capped or len(dataset.test_labels)),
            skew,
        ),
        tests_while_running=tests_below(held, capped or TEST_SAMPLES_WHILE_RUNNING),
        topology=topology,
        adjacency=first,
        graph_report=report(first, weighting=settings.mixing),
        network=network,
        algorithm=algorithm_of(settings, network),
        hyper=hyper,
        schedules=schedules,
        mesh=placement.agents_mesh(settings.agents, settings.devices),
        chunk=settings.agent_chunk or population.default_chunk(settings.agents),
    )


def who_holds_what(settings: Settings, dataset: data.Dataset) -> partition.Partition:
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


def algorithm_of(settings: Settings, network: Network) -> Algorithm:
    """MCE-PL with the settings' switches."""
    names = ("order", "fine_tune_gradient", "fine_tune_weight", "group_lasso_form", "penalty_on", "start_scores")
    optimizers = {
        "sgd": optax.identity(),
        "momentum": optax.trace(settings.momentum),
        "adam": optax.scale_by_adam(settings.momentum, settings.second_momentum),
    }
    return mce_pl(
        network,
        **{name: getattr(settings, name) for name in names},
        mask_rule=MaskRule(settings.filter_rule, settings.revive, settings.weights == "signed-constant"),
        optimizer=optimizers[str(settings.optimizer)],
    )


def population_hyper(settings: Settings, network: Network) -> tuple[Hyper, Hyper]:
    """The traced settings, one value an agent, and the schedule of each; of settings that are resolved."""
    weights, _ = jax.eval_shape(network.init, jax.random.key(0))
    kept = [kept_by_layer(weights, r, linear_retention(settings)) for r in retentions(settings)]
    names = [name for name in Hyper._fields if name != "kept"]
    values = {name: np.full(settings.agents, number_and_schedule(settings, name)[0], np.float32) for name in names}
    linear, others = schedule_of(settings, "linear_retention"), schedule_of(settings, "retention")
    schedules: dict[str, Any] = {name: schedule_of(settings, name) for name in names}
    return (
        Hyper(jax.tree.map(lambda *counts: np.array(counts, np.int32), *kept), **values),
        Hyper(jax.tree.map(lambda w: linear if w.ndim == 2 else others, weights), **schedules),
    )


def graph_of_round(settings: Settings, network: Network, topology: Topology, round: int) -> Adjacency:
    """Who hears whom in a round, as a matrix."""

    @jax.jit
    def draw(key: jax.Array, round: jax.Array) -> Graph:
        return population.graph_in(population.world_of(network, key, None, round, settings.rounds), topology)

    graph = topology.graph if topology.redraw is None else draw(jax.random.key(settings.seed), jnp.int32(round))
    return adjacency_of(graph, settings.agents)


class Programs(NamedTuple):
    """The compiled programs of one run; `seconds` is what compiling took."""

    start: Callable[[], State]
    step: Callable[[State], tuple[State, dict[str, Any]]]
    evaluate: Callable[[State, np.ndarray], Evaluation]
    masks: Callable[[State], Any]
    seconds: float


def compile_programs(prepared: Prepared) -> Programs:
    """Compile everything ahead of the first round, so that no time of a round holds any of it."""
    settings, network, algorithm, mesh = prepared.settings, prepared.network, prepared.algorithm, prepared.mesh
    chunk, capacity = prepared.chunk, prepared.train.indices.shape[1]

    def world_at(seed: jax.Array, hyper: Hyper, round: Any) -> Any:
        hyper, key = at_round(hyper, prepared.schedules, round), jax.random.key(seed)
        return population.world_of(network, key, hyper, round, settings.rounds)

    def graph_at(world: Any, graph: Graph) -> Graph:
        return population.graph_in(world, Topology(graph, prepared.topology.redraw))

    def last_world(seed: jax.Array, hyper: Hyper, state: State) -> Any:
        """Of the round that ran last, so that what is evaluated is what was trained."""
        return world_at(seed, hyper, jnp.maximum(state.round - 1, 0))

    def start(seed: jax.Array, hyper: Hyper, graph: Graph) -> State:
        world, agents = world_at(seed, hyper, 0), settings.agents // mesh.size
        return population.init(algorithm, world, graph_at(world, graph), agents=agents, chunk=chunk, axis=AXIS)

    def step(state: State, seed: jax.Array, hyper: Hyper, graph: Graph, train: Shares) -> tuple[State, dict[str, Any]]:
        world = world_at(seed, hyper, state.round)
        state, info = population.round(
            algorithm,
            world,
            state,
            train,
            graph_at(world, graph),
            # Nobody has more than `capacity` samples: a larger batch would be padding.
            batch_size=min(settings.batch_size, capacity),
            local_steps=settings.local_steps,
            exchange_every=settings.exchange_every,
            chunk=chunk,
            axis=AXIS,
        )
        return state, {**info, "wanted": world.hyper.kept}

    def score(state: State, seed: jax.Array, hyper: Hyper, tests: Shares) -> Evaluation:
        return evaluate(network, algorithm, last_world(seed, hyper, state), state, tests, chunk=chunk)

    def masks(state: State, seed: jax.Array, hyper: Hyper) -> Any:
        return packed_masks(algorithm, last_world(seed, hyper, state), state, chunk=chunk)

    began = time.perf_counter()
    seed, graph = placement.put((np.uint32(settings.seed), prepared.topology.graph), EVERYWHERE, mesh)
    hyper = placement.put(prepared.hyper, SPREAD, mesh)
    train, tests = (placement.put(shares, SHARES, mesh) for shares in (prepared.train, prepared.tests))
    common = (EVERYWHERE, SPREAD)
    start = placement.over_devices(start, mesh, (*common, EVERYWHERE), STATE)
    step = placement.over_devices(step, mesh, (STATE, *common, EVERYWHERE, SHARES), (STATE, SPREAD))
    score = placement.over_devices(score, mesh, (STATE, *common, SHARES), SPREAD)
    masks = placement.over_devices(masks, mesh, (STATE, *common), SPREAD)
    state = placement.placed_shapes(jax.eval_shape(start, seed, hyper, graph), STATE, mesh)
    compiled_start = jax.jit(start).lower(seed, hyper, graph).compile()
    compiled_score = jax.jit(score).lower(state, seed, hyper, tests).compile()
    compiled_step = jax.jit(step, donate_argnums=0).lower(state, seed, hyper, graph, train).compile()
    compiled_masks = jax.jit(masks).lower(state, seed, hyper).compile()

    def evaluated(state: State, sizes: np.ndarray) -> Evaluation:
        counted = tests._replace(sizes=placement.put(sizes, SPREAD, mesh))
        return placement.fetch(compiled_score(state, seed, hyper, counted))

    def stepped(state: State) -> tuple[State, dict[str, Any]]:
        state, info = compiled_step(state, seed, hyper, graph, train)
        return state, placement.fetch(info)

    return Programs(
        start=lambda: compiled_start(seed, hyper, graph),
        step=stepped,
        evaluate=evaluated,
        masks=lambda state: placement.fetch(compiled_masks(state, seed, hyper)),
        seconds=time.perf_counter() - began,
    )


@dataclasses.dataclass
class Tally:
    """What adds up over rounds, on the host: a round's bits overflow 32-bit integers."""

    entries: int  # maskable entries of one agent
    kept_bits: int = 0
    bitmap_bits: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # since the last row
    flip_rate: float | None = None

    def add(self, info: dict[str, Any], seconds: float) -> None:
        """Count one round."""
        listeners = info["listeners"].astype(np.int64)
        self.kept_bits += sum(int(kept @ listeners) for kept in jax.tree.leaves(info["kept"]))
        self.bitmap_bits += self.entries * int(listeners.sum())
        self.seconds += seconds
        self.losses.append(float(info["loss"].mean(dtype=np.float64)))
        self.flip_rate = float(info["flipped"].mean(dtype=np.float64)) / self.entries

    def row(self, round: int, evaluation: Evaluation) -> dict[str, Any]:
        """The row of metrics after `round`; losses start anew."""
        accuracy = np.asarray(evaluation.accuracy, np.float64)
        loss = float(np.mean(self.losses)) if self.losses else None
        self.losses = []
        return {
            "round": round,
            "loss": loss,
            "accuracy_mean": accuracy.mean(),
            "accuracy_std": accuracy.std(),
            "accuracy_worst": accuracy.min(),
            "accuracy_best": accuracy.max(),
            "density": float(np.mean(evaluation.density, dtype=np.float64)),
            "flip_rate": self.flip_rate,
            "kept_bits": self.kept_bits,
            "bitmap_bits": self.bitmap_bits,
            "coded_bits": None,
            "float32_bits": 0,
            "busiest_agent_bits": None,
            "seconds": self.seconds,
        }


def train(prepared: Prepared, folder: Path) -> Result:
    """Run all rounds and fill the run folder."""
    settings, console = prepared.settings, Console()
    resolved = {
        "data_file": settings.data_file and settings.data_file.resolve(),
        "agent_chunk": prepared.chunk,
        "devices": prepared.mesh.size,
    }
    record.write_config(folder, settings, resolved, prepared.graph_report)
    figures.partition_picture(prepared, folder / "partition.png")
    console.print(record.population_table(prepared))
    with console.status(f"compiling for {settings.agents} agents"):
        programs = compile_programs(prepared)
    weights, _ = jax.eval_shape(prepared.network.init, jax.random.key(0))
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    tally, symptoms = Tally(entries), Symptoms(prepared, weights)
    rows: list[dict[str, Any]] = []
    evaluation_seconds = 0.0

    with ProgressLine(console, settings.rounds) as progress:

        def assess(state: State, round: int) -> Evaluation:
            nonlocal evaluation_seconds
            began = time.perf_counter()
            sizes = np.asarray(prepared.tests.sizes) if round == settings.rounds else prepared.tests_while_running
            evaluation = programs.evaluate(state, sizes)
            evaluation_seconds += time.perf_counter() - began
            rows.append(tally.row(round, evaluation))
            record.append_metrics(folder, rows[-1])
            progress.evaluated(rows[-1])
            progress.warn(symptoms.after_evaluation(round, evaluation))
            return evaluation

        try:
            progress.warn(symptoms.at_start())
            state = programs.start()
            evaluation = assess(state, 0)
            for round in range(1, settings.rounds + 1):
                began = time.perf_counter()
                state, info = programs.step(state)
                expect_finite(info, round, folder)
                tally.add(info, time.perf_counter() - began)
                progress.trained(round, tally.seconds, tally.bitmap_bits)
                progress.warn(symptoms.after_round(round, info))
                if round % settings.eval_every == 0 or round == settings.rounds:
                    evaluation = assess(state, round)
        finally:
            figures.curves_picture(rows, symptoms.chance, folder / "curves.png")

    last_adjacency = graph_of_round(settings, prepared.network, prepared.topology, settings.rounds - 1)
    agents = agent_rows(prepared, last_adjacency, evaluation)
    record.write_agents(folder, agents)
    record.write_masks(folder, programs.masks(state), weights)
    figures.topology_picture(last_adjacency, np.asarray(evaluation.accuracy), folder / "topology.png")
    console.print(
        record.summary_table(rows[-1], symptoms.chance, settings.rounds, programs.seconds, evaluation_seconds)
    )
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, rows, agents)


def expect_finite(info: dict[str, Any], round: int, folder: Path) -> None:
    """Raise NotFiniteError if a diagnostic of any agent, such as its loss, is not finite."""
    for name, values in info.items():
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            agent = int(np.argmin(np.isfinite(values)))
            raise NotFiniteError(
                f"the {name.replace('_', ' ')} of agent {agent} is {values[agent]} in round {round}: "
                f"take smaller step sizes; what was had is kept in {folder}"
            )


def agent_rows(prepared: Prepared, adjacency: Adjacency, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of agents.csv; `adjacency` is that of the last round."""
    neighbours = adjacency.sum(axis=1)
    held = record.class_counts(prepared.train, prepared.dataset.classes)
    return [
        {
            "agent": agent,
            "classes": " ".join(map(str, np.flatnonzero(held[agent]))),
            "samples": int(prepared.train.sizes[agent]),
            "test_samples": int(prepared.tests.sizes[agent]),
            "retention": retention,
            "neighbours": int(neighbours[agent]),
            "accuracy": round(float(evaluation.accuracy[agent]), 6),
            "density": round(float(evaluation.density[agent]), 6),
        }
        for agent, retention in enumerate(retentions(prepared.settings))
    ]
