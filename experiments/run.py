"""One run, from settings to run folder."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from jaxtyping import Array, UInt32
from rich.console import Console

from dslth_jax import data, memory, partition, placement, population
from dslth_jax.algorithm import Algorithm, World
from dslth_jax.evaluation import Evaluation, evaluate
from dslth_jax.mcepl import Hyper, MaskRule, kept_by_layer, mce_pl
from dslth_jax.models import Network, largest_fitting, network_by_name
from dslth_jax.placement import AXIS, EVERYWHERE, SHARES, SPREAD, STATE
from dslth_jax.population import Shares, State
from dslth_jax.schedules import at_round
from dslth_jax.skew import skew_by_name
from dslth_jax.topology import Adjacency, Graph, GraphReport, Topology, adjacency_of, report, topology_by_name
from experiments import figures, record
from experiments.progress import ProgressLine
from experiments.settings import (
    Settings,
    check_each,
    check_together,
    linear_retention,
    number_and_schedule,
    resolve,
    retentions,
    schedule_of,
)
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
    footprint: dict[str, int]  # bytes that the run takes on each, by what they are for


class Result(NamedTuple):
    """What `run` returns."""

    folder: Path | None  # None in all processes but the first
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


def run(settings: Settings) -> Result:
    """Check, load, train, evaluate and record. Raises ValueError on bad input, NotFiniteError if training diverges."""
    return train(*ready(settings))


def ready(settings: Settings) -> tuple[Prepared, Path | None]:
    """What a run needs, and its new folder, which only the first process has. Of several, all are ready or none."""
    refusal, prepared, folder = None, None, None
    try:
        prepared = prepare(settings)
        folder = record.create_folder(settings) if placement.is_first() else None
    except (ValueError, OSError) as error:
        refusal = error
    complaint = placement.agree(str(refusal) if refusal else None)
    if prepared is None or complaint:
        raise refusal or ValueError(complaint)
    return prepared, folder


def prepare(settings: Settings) -> Prepared:
    """Check the settings, load what they name, and see that it fits."""
    check_each(settings)
    check_together(settings)
    if settings.coordinator:
        placement.start_processes(settings.coordinator, settings.processes, settings.process)
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
    algorithm, mesh = algorithm_of(settings, network), placement.agents_mesh(settings.agents, settings.devices)
    chunk, parts = what_fits(settings, network, algorithm, mesh, hyper, topology.graph, train, tests)
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
        algorithm=algorithm,
        hyper=hyper,
        schedules=schedules,
        mesh=mesh,
        chunk=chunk,
        footprint=parts,
    )


def keep_programs(wanted: bool) -> None:
    """Keep compiled programs from run to run in the user's cache folder, or in the folder that JAX was told."""
    forbidden = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false")
    jax.config.update("jax_enable_compilation_cache", wanted and not forbidden)
    told: Any = jax.config
    if wanted and not told.jax_compilation_cache_dir:
        folder = data.cache_folder() / "programs"
        # A folder that cannot be made costs the cache and nothing else.
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # JAX looks at these settings once, when it first compiles: let it look again.
    compilation_cache.reset_cache()


def what_fits(
    settings: Settings,
    network: Network,
    algorithm: Algorithm,
    mesh: Mesh,
    hyper: Hyper,
    graph: Graph,
    train: Shares,
    tests: Shares,
) -> tuple[int, dict[str, int]]:
    """How many agents are computed at once on each device, and what the run takes of its memory, in bytes.

    A ValueError where it is more than there is.
    """
    device, agents = mesh.local_devices[0], settings.agents // mesh.size
    parts = memory.footprint(
        network,
        algorithm,
        jax.tree.map(lambda leaf: leaf[0], hyper),
        graph,
        train,
        agents=settings.agents,
        batch_size=min(settings.batch_size, train.indices.shape[1]),
        local_steps=settings.local_steps,
        devices=mesh.size,
    )
    parts["data"] += memory.bytes_of(tests)
    of_one, free = parts["activations"], memory.available(device, sharing=len(mesh.local_devices))
    # Leave a fifth to what the compiler's own kernels take on an accelerator.
    fitting = agents if free is None else max((free * 4 // 5 - sum(parts.values())) // of_one + 1, 1)
    chunk = min(settings.agent_chunk or (1 if device.platform == "cpu" else fitting), agents)
    parts["activations"] = chunk * of_one
    if free is not None and sum(parts.values()) > free:
        raise ValueError(
            f"{settings.agents} agents need about {memory.said(parts)} on each device, and {free / 1e9:.2f} GB are "
            f"free: take fewer --agents, more --devices, a smaller --agent-chunk, --batch-size or --model"
        )
    return chunk, parts


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


class Common(NamedTuple):
    """What every program of a run needs, on every device."""

    seed: UInt32[Array, ""]
    drawn: Any  # the shared weights and frozen parameters, from the seed
    graph: Graph


class Programs(NamedTuple):
    """The programs of one run, which may still be compiling: each waits for itself alone."""

    start: Callable[[], State]
    evaluate: Callable[[State, np.ndarray], Evaluation]
    step: Callable[[State], tuple[State, dict[str, Any]]]
    compiled: Callable[[], float]  # waits for all of them; the seconds from the first's begin to the last's end


def compile_programs(prepared: Prepared) -> Programs:
    """Trace everything ahead of the first round and begin to compile it, in the order of need."""
    settings, network, algorithm, mesh = prepared.settings, prepared.network, prepared.algorithm, prepared.mesh
    chunk, capacity = prepared.chunk, prepared.train.indices.shape[1]
    keep_programs(settings.compilation_cache)

    def draw(seed: jax.Array) -> Any:
        return population.draw_weights(network, jax.random.key(seed))

    def world_at(common: Common, hyper: Hyper, round: Any) -> World:
        hyper, key = at_round(hyper, prepared.schedules, round), jax.random.key(common.seed)
        return population.world_of(network, key, hyper, round, settings.rounds, common.drawn)

    def graph_at(world: World, graph: Graph) -> Graph:
        return population.graph_in(world, Topology(graph, prepared.topology.redraw))

    def start(common: Common, hyper: Hyper) -> State:
        world, agents = world_at(common, hyper, 0), settings.agents // mesh.size
        graph = graph_at(world, common.graph)
        return population.init(algorithm, world, graph, agents=agents, chunk=chunk, axis=AXIS)

    def step(state: State, common: Common, hyper: Hyper, train: Shares) -> tuple[State, dict[str, Any]]:
        world = world_at(common, hyper, state.round)
        state, info = population.round(
            algorithm,
            world,
            state,
            train,
            graph_at(world, common.graph),
            # Nobody has more than `capacity` samples: a larger batch would be padding.
            batch_size=min(settings.batch_size, capacity),
            local_steps=settings.local_steps,
            exchange_every=settings.exchange_every,
            chunk=chunk,
            axis=AXIS,
        )
        return state, {**info, "wanted": world.hyper.kept}

    def score(state: State, common: Common, hyper: Hyper, tests: Shares) -> Evaluation:
        # In the world of the round that ran last, so that what is evaluated is what was trained.
        world = world_at(common, hyper, jnp.maximum(state.round - 1, 0))
        return evaluate(network, algorithm, world, state, tests, chunk=chunk)

    start = placement.over_devices(start, mesh, (EVERYWHERE, SPREAD), STATE)
    step = placement.over_devices(step, mesh, (STATE, EVERYWHERE, SPREAD, SHARES), (STATE, SPREAD))
    score = placement.over_devices(score, mesh, (STATE, EVERYWHERE, SPREAD, SHARES), SPREAD)
    began = time.perf_counter()
    seed, graph = placement.put((np.uint32(settings.seed), prepared.topology.graph), EVERYWHERE, mesh)
    hyper = placement.put(prepared.hyper, SPREAD, mesh)
    train, tests = (placement.put(shares, SHARES, mesh) for shares in (prepared.train, prepared.tests))
    # What runs once need not be made as fast as what runs in every round.
    hasty = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    compiling = ThreadPoolExecutor(max_workers=2)

    def compiled(traced: Any, options: dict[str, Any] | None = None) -> Future:
        """Compile behind the next tracing, and what comes last behind the first evaluation, in order of need."""
        lowered = traced.lower()
        return compiling.submit(lambda: (lowered.compile(options), time.perf_counter()))

    traced_draw = jax.jit(draw).trace(seed)
    drawing = compiled(traced_draw, hasty)
    common = Common(seed, placement.placed_shapes(traced_draw.out_info, EVERYWHERE, mesh), graph)
    traced_start = jax.jit(start).trace(common, hyper)
    starting = compiled(traced_start, hasty)
    state = placement.placed_shapes(traced_start.out_info, STATE, mesh)
    scoring = compiled(jax.jit(score).trace(state, common, hyper, tests))
    stepping = compiled(jax.jit(step, donate_argnums=0).trace(state, common, hyper, train))
    compiling.shutdown(wait=False)
    common = common._replace(drawn=drawing.result()[0](seed))

    def stepped(state: State) -> tuple[State, dict[str, Any]]:
        state, info = stepping.result()[0](state, common, hyper, train)
        return state, placement.fetch(info)

    def evaluated(state: State, sizes: np.ndarray) -> Evaluation:
        counted = tests._replace(sizes=placement.put(sizes, SPREAD, mesh))
        return placement.fetch(scoring.result()[0](state, common, hyper, counted))

    def all_compiled() -> float:
        return max(future.result()[1] for future in (drawing, starting, scoring, stepping)) - began

    return Programs(lambda: starting.result()[0](common, hyper), evaluated, stepped, all_compiled)


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


def train(prepared: Prepared, folder: Path | None) -> Result:
    """Run all rounds and fill the run folder, where there is one; who has none says and writes nothing."""
    settings, console = prepared.settings, Console(quiet=folder is None)

    def keep(write: Callable[..., None], *what: Any) -> None:
        if folder is not None:
            write(folder, *what)

    resolved = {
        "data_file": settings.data_file and settings.data_file.resolve(),
        "agent_chunk": prepared.chunk,
        "devices": prepared.mesh.size,
    }
    keep(record.write_config, settings, resolved, prepared.graph_report)
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
            keep(record.append_metrics, rows[-1])
            progress.evaluated(rows[-1])
            progress.warn(symptoms.after_evaluation(round, evaluation))
            return evaluation

        try:
            progress.warn(symptoms.at_start())
            state = programs.start()
            evaluation = assess(state, 0)
            keep(figures.partition_picture, prepared)
            # No time of a round holds any of the compilation.
            compile_seconds = programs.compiled()
            for round in range(1, settings.rounds + 1):
                began = time.perf_counter()
                state, info = programs.step(state)
                expect_finite(info, round)
                tally.add(info, time.perf_counter() - began)
                progress.trained(round, tally.seconds, tally.bitmap_bits)
                progress.warn(symptoms.after_round(round, info))
                if round % settings.eval_every == 0 or round == settings.rounds:
                    evaluation = assess(state, round)
        finally:
            keep(figures.curves_picture, rows, symptoms.chance)

    last_adjacency = graph_of_round(settings, prepared.network, prepared.topology, settings.rounds - 1)
    agents = agent_rows(prepared, last_adjacency, evaluation)
    keep(record.write_agents, agents)
    keep(record.write_masks, evaluation.masks, weights)
    keep(figures.topology_picture, last_adjacency, np.asarray(evaluation.accuracy))
    console.print(record.summary_table(rows[-1], symptoms.chance, settings.rounds, compile_seconds, evaluation_seconds))
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, rows, agents)


def expect_finite(info: dict[str, Any], round: int) -> None:
    """Raise NotFiniteError if a diagnostic of any agent, such as its loss, is not finite."""
    for name, values in info.items():
        if isinstance(values, np.ndarray) and not np.isfinite(values).all():
            agent = int(np.argmin(np.isfinite(values)))
            raise NotFiniteError(
                f"the {name.replace('_', ' ')} of agent {agent} is {values[agent]} in round {round}: "
                f"take smaller step sizes"
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
