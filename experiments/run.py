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
from rich.console import Console

from dslth_jax import data, partition, population, topology
from dslth_jax.algorithm import Algorithm
from dslth_jax.evaluation import Evaluation, evaluate, packed_masks
from dslth_jax.mcepl import Hyper, kept_by_layer, mce_pl
from dslth_jax.models import SMALLEST_SIDE, Network, network_by_name
from dslth_jax.population import Shares, State
from experiments import figures, record
from experiments.progress import ProgressLine
from experiments.settings import Settings, check, retentions

TEST_SAMPLES_WHILE_RUNNING = 200


class NotFiniteError(RuntimeError):
    """The loss or the scores have become nan or infinite."""


class Prepared(NamedTuple):
    """Everything a run needs, checked; nothing has been written yet."""

    settings: Settings
    dataset: data.Dataset
    classes_of: list[list[int]]  # of each agent
    train: Shares
    tests: Shares  # sizes: all test samples that count at the end
    tests_while_running: np.ndarray  # sizes, (agents,)
    adjacency: topology.Adjacency
    model: str
    network: Network
    algorithm: Algorithm
    hyper: Hyper  # leaves with an agents axis


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
    check(settings)
    dataset = (
        data.load_file(settings.data_file) if settings.data_file else data.load(settings.dataset, settings.data_dir)
    )
    if settings.class_file:
        classes_of = partition.read_classes(settings.class_file, settings.agents, dataset.classes)
    else:
        rng = np.random.default_rng([settings.seed, 0])
        classes_of = partition.draw_classes(settings.agents, dataset.classes, settings.classes_per_agent, rng)
    rng = np.random.default_rng([settings.seed, 1])
    own = partition.split_by_class(dataset.train_labels, classes_of, rng, settings.data_fraction)
    own_tests, ranks = partition.tests_by_class(dataset.test_labels, classes_of)
    # Draw the graph last: of a population too large for its data, that is said before its edges are drawn.
    adjacency = topology.adjacency_by_name(settings.topology, settings.agents, settings.seed)

    def tests_up_to(cap: int) -> np.ndarray:
        return np.array([np.sum(rank < cap) for rank in ranks], np.int32)

    image_shape = dataset.train_images.shape[1:]
    model = settings.model or ("alexnet" if min(image_shape[:2]) >= SMALLEST_SIDE["alexnet"] else "small")
    network = network_by_name(model, image_shape, dataset.classes, elu_on_logits=settings.elu_on_logits)
    algorithm = mce_pl(network, group_lasso_form=settings.group_lasso_form, penalty_on=settings.penalty_on)
    return Prepared(
        settings,
        dataset,
        classes_of,
        train=Shares(dataset.train_images, dataset.train_labels, *partition.stack(own)),
        tests=Shares(
            dataset.test_images,
            dataset.test_labels,
            partition.stack(own_tests)[0],
            tests_up_to(settings.test_samples or len(dataset.test_labels)),
        ),
        tests_while_running=tests_up_to(settings.test_samples or TEST_SAMPLES_WHILE_RUNNING),
        adjacency=adjacency,
        model=model,
        network=network,
        algorithm=algorithm,
        hyper=population_hyper(settings, network),
    )


def population_hyper(settings: Settings, network: Network) -> Hyper:
    """The traced settings, one value an agent."""
    weights, _ = jax.eval_shape(network.init, jax.random.key(0))
    kept = [kept_by_layer(weights, r, settings.linear_retention) for r in retentions(settings)]
    same = {
        name: np.full(settings.agents, getattr(settings, name), np.float32) for name in Hyper._fields if name != "kept"
    }
    return Hyper(jax.tree.map(lambda *counts: np.array(counts, np.int32), *kept), **same)


class Programs(NamedTuple):
    """The compiled programs of one run; `seconds` is what compiling took."""

    start: Callable[[], State]
    step: Callable[[State], tuple[State, dict[str, jax.Array]]]
    evaluate: Callable[[State, np.ndarray], Evaluation]
    masks: Callable[[State], Any]
    seconds: float


def compile_programs(prepared: Prepared) -> Programs:
    """Compile everything ahead of the first round, so that no time of a round holds any of it."""
    settings, network, algorithm = prepared.settings, prepared.network, prepared.algorithm
    chunk, capacity = settings.agent_chunk, prepared.train.indices.shape[1]
    key = jax.random.key(settings.seed)
    hyper, graph, train, tests = jax.device_put(
        (prepared.hyper, topology.graph_of(prepared.adjacency), prepared.train, prepared.tests)
    )

    def world_at(key: jax.Array, hyper: Hyper, round: Any) -> Any:
        return population.world_of(network, key, hyper, round, settings.rounds)

    def start(key: jax.Array, hyper: Hyper, graph: topology.Graph) -> State:
        return population.init(algorithm, world_at(key, hyper, 0), graph, agents=settings.agents, chunk=chunk)

    def step(state: State, key: jax.Array, hyper: Hyper, shares: Shares, graph: topology.Graph) -> Any:
        world = world_at(key, hyper, state.round)
        # No agent can fill a larger batch than the largest share.
        sizes = {"batch_size": min(settings.batch_size, capacity), "local_steps": settings.local_steps}
        return population.round(algorithm, world, state, shares, graph, **sizes, chunk=chunk)

    def score(state: State, key: jax.Array, hyper: Hyper, tests: Shares) -> Evaluation:
        return evaluate(network, algorithm, world_at(key, hyper, state.round), state, tests, chunk=chunk)

    def masks(state: State, key: jax.Array, hyper: Hyper) -> Any:
        return packed_masks(algorithm, world_at(key, hyper, state.round), state, chunk=chunk)

    began = time.perf_counter()
    compiled_start = jax.jit(start).lower(key, hyper, graph).compile()
    state = jax.eval_shape(start, key, hyper, graph)
    compiled_step = jax.jit(step, donate_argnames="state").lower(state, key, hyper, train, graph).compile()
    compiled_score = jax.jit(score).lower(state, key, hyper, tests).compile()
    compiled_masks = jax.jit(masks).lower(state, key, hyper).compile()
    return Programs(
        start=lambda: compiled_start(key, hyper, graph),
        step=lambda state: compiled_step(state, key, hyper, train, graph),
        evaluate=lambda state, sizes: compiled_score(state, key, hyper, tests._replace(sizes=jnp.asarray(sizes))),
        masks=lambda state: compiled_masks(state, key, hyper),
        seconds=time.perf_counter() - began,
    )


@dataclasses.dataclass
class Tally:
    """What adds up over rounds, on the host: a round's bits overflow 32-bit integers."""

    out_degrees: np.ndarray  # links that each agent's messages travel
    entries: int  # maskable entries of one agent
    kept_bits: int = 0
    bitmap_bits: int = 0
    seconds: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)  # since the last row
    flip_rate: float | None = None

    def add(self, info: dict[str, np.ndarray], seconds: float) -> None:
        """Count one round."""
        self.kept_bits += int(info["kept"].astype(np.int64) @ self.out_degrees)
        self.bitmap_bits += self.entries * int(self.out_degrees.sum())
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
        "model": prepared.model,
        "retention": retentions(settings),
        "dataset": None if settings.data_file else settings.dataset,
        "data_file": settings.data_file and settings.data_file.resolve(),
        "agent_chunk": settings.agent_chunk or population.default_chunk(settings.agents),
    }
    record.write_config(folder, settings, resolved)
    figures.partition_picture(prepared, folder / "partition.png")
    with console.status(f"compiling for {settings.agents} agents"):
        programs = compile_programs(prepared)
    weights, _ = jax.eval_shape(prepared.network.init, jax.random.key(0))
    entries = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(weights))
    tally = Tally(prepared.adjacency.sum(axis=0), entries)
    rows: list[dict[str, Any]] = []
    evaluation_seconds = 0.0

    with ProgressLine(console, settings.rounds) as progress:

        def assess(state: State, round: int) -> Evaluation:
            nonlocal evaluation_seconds
            began = time.perf_counter()
            sizes = np.asarray(prepared.tests.sizes) if round == settings.rounds else prepared.tests_while_running
            evaluation = jax.device_get(programs.evaluate(state, sizes))
            evaluation_seconds += time.perf_counter() - began
            rows.append(tally.row(round, evaluation))
            record.append_metrics(folder, rows[-1])
            progress.evaluated(rows[-1])
            return evaluation

        state = programs.start()
        evaluation = assess(state, 0)
        for round in range(1, settings.rounds + 1):
            began = time.perf_counter()
            state, info = programs.step(state)
            info = jax.device_get(info)
            tally.add(info, time.perf_counter() - began)
            expect_finite(info, round, folder)
            progress.trained(round, tally.seconds, tally.bitmap_bits)
            if round % settings.eval_every == 0 or round == settings.rounds:
                evaluation = assess(state, round)

    agents = agent_rows(prepared, evaluation)
    record.write_agents(folder, agents)
    record.write_masks(folder, programs.masks(state), weights)
    figures.curves_picture(rows, folder / "curves.png")
    figures.topology_picture(prepared.adjacency, np.asarray(evaluation.accuracy), folder / "topology.png")
    console.print(record.summary_table(rows[-1], settings.rounds, programs.seconds, evaluation_seconds))
    console.print(f"run folder: {folder}", highlight=False, soft_wrap=True)
    return Result(folder, rows, agents)


def expect_finite(info: dict[str, np.ndarray], round: int, folder: Path) -> None:
    """Raise NotFiniteError if a diagnostic of any agent, such as its loss, is not finite."""
    for name, values in info.items():
        if not np.isfinite(values).all():
            agent = int(np.argmin(np.isfinite(values)))
            raise NotFiniteError(
                f"the {name.replace('_', ' ')} of agent {agent} is {values[agent]} in round {round}: "
                f"take smaller step sizes; what was had is kept in {folder}"
            )


def agent_rows(prepared: Prepared, evaluation: Evaluation) -> list[dict[str, Any]]:
    """The rows of agents.csv."""
    neighbours = prepared.adjacency.sum(axis=1)
    return [
        {
            "agent": agent,
            "classes": " ".join(map(str, prepared.classes_of[agent])),
            "samples": int(prepared.train.sizes[agent]),
            "test_samples": int(prepared.tests.sizes[agent]),
            "retention": retention,
            "neighbours": int(neighbours[agent]),
            "accuracy": round(float(evaluation.accuracy[agent]), 6),
            "density": round(float(evaluation.density[agent]), 6),
        }
        for agent, retention in enumerate(retentions(prepared.settings))
    ]
