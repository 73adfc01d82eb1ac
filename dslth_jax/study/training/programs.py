"""The compiled programs of a plan: start, evaluate, one round. Everything in them has a leading axis of members."""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array, Float, UInt32

from dslth_jax import control, population, sharding
from dslth_jax.algorithm import Message, World
from dslth_jax.evaluation import Evaluation, evaluate
from dslth_jax.graphs import Graph, Topology
from dslth_jax.keys import key_of, reproducible
from dslth_jax.links import Link, dropped, perfect
from dslth_jax.population import Shares, State
from dslth_jax.sharding import AXIS, EVERYWHERE, SHARES, SPREAD, STATE, of_several
from dslth_jax.study.config.console import warn
from dslth_jax.study.config.machine import cache_folder
from dslth_jax.study.training.plan import Plan, batch_of

# Where things belong that every member has its own of.
EACH, AGENTS_OF_EACH, STATES, HELD = of_several((EVERYWHERE, SPREAD, STATE, SHARES))
HELD = HELD._replace(images=EVERYWHERE, labels=EVERYWHERE)


class Own(NamedTuple):
    """What is one member's, beside its state; stacked along a leading axis of members."""

    seed: UInt32[Array | np.ndarray, "*members"]
    drawn: Any  # the shared weights and frozen parameters, from the seed
    graph: Graph
    link_drop: Float[Array | np.ndarray, "*members"]  # how often a message is lost
    hyper: Any  # leaves with an agents axis


class Programs(NamedTuple):
    """The programs of one plan. Each waits for its own compilation alone.

    States and what comes back have a leading axis of members; what comes back lies in this host's memory.
    """

    start: Callable[[], State]
    evaluate: Callable[[State, np.ndarray], Evaluation]  # with how many test samples count, (members, agents)
    step: Callable[[State], tuple[State, dict[str, Any]]]
    sent: Callable[[State], Message]  # what everybody sent last
    compiled: Callable[[], float]  # waits for all of them; the seconds from the first's begin to the last's end
    state: State  # shapes, and where they lie


@reproducible
def compile_programs(plan: Plan) -> Programs:
    """Trace everything ahead of the first round and begin to compile it, in the order of need."""
    first, mesh = plan.members[0], plan.mesh
    settings, network, algorithm = first.settings, first.network, first.algorithm
    controller = control.scheduled(first.schedules)
    agents = settings.agents // mesh.shape[AXIS]
    keep_programs(settings.compilation_cache)

    def for_each(function: Callable[..., Any], *stacked: Any) -> Any:
        """`function` of every member: members are one more axis of the function that maps over agents."""
        return population.over_agents(function, *stacked, chunk=plan.together)

    def link_of(own: Own) -> Link:
        return (
            dropped(jnp.asarray(own.link_drop))
            if any(member.settings.link_drop for member in plan.members)
            else perfect()
        )

    def world_at(own: Own, round: Any) -> World:
        return population.world_of(network, key_of(own.seed), round, settings.rounds, own.drawn)

    def graph_at(world: World, graph: Graph) -> Graph:
        return population.graph_in(world, Topology(graph, first.topology.redraw))

    def draw(seeds: jax.Array) -> Any:
        return for_each(lambda seed: population.draw_weights(network, key_of(seed)), seeds)

    def start(owns: Own) -> State:
        def one(own: Own) -> State:
            world = world_at(own, 0)
            return population.init(
                algorithm,
                world,
                own.hyper,
                graph_at(world, own.graph),
                agents=agents,
                link=link_of(own),
                controller=controller,
                chunk=plan.chunk,
                axis=AXIS,
            )

        return for_each(one, owns)

    def step(states: State, owns: Own, train: Shares) -> tuple[State, dict[str, Any]]:
        def one(state: State, own: Own, held: tuple[Any, ...]) -> tuple[State, dict[str, Any]]:
            world = world_at(own, state.round)
            state, info = population.round(
                algorithm,
                world,
                own.hyper,
                state,
                Shares(train.images, train.labels, *held),
                graph_at(world, own.graph),
                batch_size=batch_of(first),
                local_steps=settings.local_steps,
                exchange_every=settings.exchange_every,
                link=link_of(own),
                controller=controller,
                chunk=plan.chunk,
                axis=AXIS,
            )
            return state, {**info, "wanted": getattr(state.control.used, "kept", None)}

        return population.update_agents(one, states, owns, train[2:], chunk=plan.together)

    def score(states: State, owns: Own, tests: Shares) -> Evaluation:
        def one(state: State, own: Own, held: tuple[Any, ...]) -> Evaluation:
            world = world_at(own, jnp.maximum(state.round - 1, 0))
            shares = Shares(tests.images, tests.labels, *held)
            return evaluate(network, algorithm, world, state, shares, chunk=plan.chunk)

        return for_each(one, states, owns, tests[2:])

    owned: Any = Own(EACH, EACH, EACH, EACH, AGENTS_OF_EACH)
    start = sharding.over_devices(start, mesh, (owned,), STATES)
    step = sharding.over_devices(step, mesh, (STATES, owned, HELD), (STATES, AGENTS_OF_EACH))
    score = sharding.over_devices(score, mesh, (STATES, owned, HELD), AGENTS_OF_EACH)
    began = time.perf_counter()
    seeds, graph, rates, hyper, train, tests = stacked(plan)
    seeds, graph, rates = sharding.put((seeds, graph, rates), EACH, mesh)
    hyper = sharding.put(hyper, AGENTS_OF_EACH, mesh)
    train, tests = (sharding.put(shares, HELD, mesh) for shares in (train, tests))
    # A program that runs once need not be as fast as one that runs in every round.
    hasty = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    compiling = ThreadPoolExecutor(max_workers=2)

    def compiled(traced: Any, options: dict[str, Any] | None = None) -> Future:
        """Compile in the order of need, while the next program is traced and the first evaluation runs."""
        lowered = traced.lower()
        return compiling.submit(lambda: (lowered.compile(options), time.perf_counter()))

    draw = sharding.over_devices(draw, mesh, (EACH,), EACH)
    traced_draw = jax.jit(draw).trace(seeds)
    drawing = compiled(traced_draw, hasty)
    owns = Own(seeds, sharding.placed_shapes(traced_draw.out_info, EACH, mesh), graph, rates, hyper)
    traced_start = jax.jit(start).trace(owns)
    starting = compiled(traced_start, hasty)
    state = sharding.placed_shapes(traced_start.out_info, STATES, mesh)
    scoring = compiled(jax.jit(score).trace(state, owns, tests))
    stepping = compiled(jax.jit(step, donate_argnums=0).trace(state, owns, train))
    compiling.shutdown(wait=False)
    owns = owns._replace(drawn=drawing.result()[0](seeds))

    def stepped(state: State) -> tuple[State, dict[str, Any]]:
        state, info = stepping.result()[0](state, owns, train)
        return state, sharding.fetch(info)

    def evaluated(state: State, sizes: np.ndarray) -> Evaluation:
        counted = tests._replace(sizes=sharding.put(filled(sizes, plan), AGENTS_OF_EACH, mesh))
        return sharding.fetch(scoring.result()[0](state, owns, counted))

    def all_compiled() -> float:
        return max(future.result()[1] for future in (drawing, starting, scoring, stepping)) - began

    def sent(state: State) -> Message:
        return sharding.fetch(state.sent)

    return Programs(lambda: starting.result()[0](owns), evaluated, stepped, sent, all_compiled, state)


def stacked(plan: Plan) -> tuple[np.ndarray, Graph, np.ndarray, Any, Shares, Shares]:
    """Seeds, graphs, rates of lost messages, settings, training and test samples of all members, along a leading axis;
    edges and samples are padded to the most that any has."""
    members = [*plan.members]
    edges = max(len(member.topology.graph.senders) for member in members)

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: filled(np.stack(leaves), plan), *trees)

    def samples(of_all: list[Shares]) -> Shares:
        capacity = max(shares.indices.shape[1] for shares in of_all)
        room = [[(0, 0), (0, capacity - shares.indices.shape[1])] for shares in of_all]
        own = [(np.pad(s.indices, width), s.sizes, s.skew) for s, width in zip(of_all, room, strict=True)]
        return Shares(of_all[0].images, of_all[0].labels, *stack(own))

    seeds = stack([np.uint32(member.settings.seed) for member in members])
    graph = stack([with_edges(member.topology.graph, edges) for member in members])
    rates = stack([np.float32(member.settings.link_drop) for member in members])
    hyper = stack([member.hyper for member in members])
    return seeds, graph, rates, hyper, samples([m.train for m in members]), samples([m.tests for m in members])


def with_edges(graph: Graph, edges: int) -> Graph:
    """The same graph with `edges` edges: those it lacks are absent ones, behind all others. Host side."""
    more = (0, edges - len(graph.senders))
    return graph._replace(
        senders=np.pad(graph.senders, more),
        receivers=np.pad(graph.receivers, more, constant_values=len(graph.own) - 1),
        weights=np.pad(graph.weights, more),
    )


def filled(of_members: np.ndarray, plan: Plan) -> np.ndarray:
    """Repeat the last member until all devices have equally many; nobody looks at what the copies come to."""
    missing = -len(of_members) % plan.mesh.shape[sharding.SETTINGS]
    return np.concatenate([of_members, np.repeat(of_members[-1:], missing, axis=0)]) if missing else of_members


def keep_programs(wanted: bool) -> None:
    """Keep compiled programs from run to run in the user's cache folder, or in the folder that JAX was told."""
    forbidden = os.environ.get("JAX_ENABLE_COMPILATION_CACHE", "").lower() in ("0", "false")
    jax.config.update("jax_enable_compilation_cache", wanted and not forbidden)
    told: Any = jax.config
    if wanted and not told.jax_compilation_cache_dir:
        if folder := cache_folder():
            jax.config.update("jax_compilation_cache_dir", str(folder / "programs"))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        else:
            warn("there is no folder of this user's to keep compiled programs in: name one in XDG_CACHE_HOME")
    # JAX reads these settings once, when it first compiles: make it read them again.
    compilation_cache.reset_cache()
