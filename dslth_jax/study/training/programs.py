"""The compiled programs of a plan: start, evaluate, one round. Everything in them has a leading axis of members."""

import functools
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
from dslth_jax.keys import key_of, reproducible
from dslth_jax.links import Link, chain
from dslth_jax.mixing import Graph, Topology
from dslth_jax.population import Shares, State
from dslth_jax.sharding import AXIS, EVERYWHERE, SHARES, SPREAD, STATE, of_several
from dslth_jax.study.system.console import warn
from dslth_jax.study.system.machine import cache_folder
from dslth_jax.study.training.budget import Budget, clock_of, controller_of, places_of, with_steps
from dslth_jax.study.training.plan import Plan

# Where things belong that every member has its own of.
EACH, AGENTS_OF_EACH, STATES, HELD = of_several((EVERYWHERE, SPREAD, STATE, SHARES))
HELD = HELD._replace(images=EVERYWHERE, labels=EVERYWHERE)
FOR_CONTROLLERS = ("deadline", "exchanged", "squares")  # diagnostics that nobody else reads


class Own(NamedTuple):
    """What is one member's, beside its state; stacked along a leading axis of members."""

    seed: UInt32[Array | np.ndarray, "*members"]
    drawn: Any  # the shared weights and frozen parameters, from the seed; None where they have not been drawn yet
    graph: Graph
    link_drop: Float[Array | np.ndarray, "*members"]  # how often a message is lost
    hyper: Any  # leaves with an agents axis
    budget: Budget | None  # what sets simulated time, where anybody simulates it
    # The share of its channels that each agent is to be left with; None where nobody aims at one.
    targets: Float[Array | np.ndarray, "*members agents"] | None


class Programs(NamedTuple):
    """The programs of one plan, each of which waits for its own compilation alone. States and what comes back have a
    leading axis of members; what comes back lies in this host's memory."""

    start: Callable[[], State]
    evaluate: Callable[[State, np.ndarray], Evaluation]  # with how many test samples count, (members, agents)
    step: Callable[[State], tuple[State, dict[str, Any]]]
    sent: Callable[[State], tuple[Message, ...]]  # what everybody sent last, and before that, the latest first
    compiled: Callable[[], float]  # waits for all of them; the seconds from the first's begin to the last's end
    state: State  # shapes, and where they lie
    # Everybody's accuracy on what it holds back, (members, agents); None where nobody holds anything back.
    validate: Callable[[State], np.ndarray] | None = None
    # Everybody's variables; None where masks and the seed say all of them. Compiled when it is asked for.
    variables: Callable[[State], Any] | None = None


@reproducible
def compile_programs(plan: Plan) -> Programs:
    """Trace everything ahead of the first round and begin to compile it, in the order of need."""
    first, mesh = plan.members[0], plan.mesh
    network, algorithm, rounds = first.network, first.algorithm, first.course.rounds
    keep_programs(first.settings.compilation_cache)
    failing = any(member.fails for member in plan.members)
    driven: dict[str, Any] = {"chunk": plan.chunk, "axis": AXIS}
    steps = driven | {"batch_size": first.batch_size, "augment": first.augment}
    steps["local_steps"] = first.settings.local_steps
    steps |= {name: getattr(first.course, name) for name in ("exchange_every", "exchange_from")}
    # Members are one more axis of what maps over agents.
    for_each = functools.partial(population.over_agents, chunk=plan.together)

    def scene(own: Own, round: Any) -> tuple[World, Graph, Link]:
        world = population.world_of(network, key_of(own.seed), round, rounds, own.drawn)
        link = chain(*first.links, *([first.failing(jnp.asarray(own.link_drop))] if failing else []))
        return world, population.graph_in(world, Topology(own.graph, first.topology.redraw)), link

    def by_time(own: Own) -> dict[str, Any]:
        clock = clock_of(own.budget, first.costs) if own.budget and first.costs else None
        if clock is not None:  # as the ledger counts
            lasting = first.topology.redraw is None
            surely = lasting & (jnp.asarray(own.link_drop) == 0)
            clock = clock._replace(remembered=surely, key_every=first.course.key_every)
        controller = controller_of(first.settings.controller, first.schedules, own.budget, first.costs)
        if own.targets is not None and first.aiming is not None:
            controller = control.chain(controller, first.aiming(jnp.asarray(own.targets)))
        return {"clock": clock, "controller": controller}

    def draw(seeds: jax.Array) -> Any:
        return for_each(lambda seed: population.draw_weights(network, key_of(seed)), seeds)

    def start(owns: Own) -> State:
        def one(own: Own) -> State:
            world, graph, link = scene(own, 0)
            agents = first.agents // mesh.shape[AXIS]
            driving = {"link": link, **by_time(own), **driven}
            return population.init(algorithm, world, own.hyper, graph, agents=agents, **driving)

        return for_each(one, owns)

    def step(states: State, owns: Own, train: Shares) -> tuple[State, dict[str, Any]]:
        # All members are at the same round: said once, so that members who are computed together skip silent exchanges.
        number = states.round[0]

        def one(state: State, own: Own, held: tuple[Any, ...]) -> tuple[State, dict[str, Any]]:
            state = state._replace(round=number)
            world, graph, link = scene(own, number)
            shares = Shares(train.images, train.labels, *held)
            driving = {"link": link, **by_time(own), **steps}
            state, info = population.round(algorithm, world, own.hyper, state, shares, graph, **driving)
            told = {name: own for name, own in info.items() if name not in FOR_CONTROLLERS}
            return state, {**told, "wanted": getattr(state.control.used, "kept", None)}

        return population.update_agents(one, states, owns, train[2:], chunk=plan.together)

    def score(states: State, owns: Own, tests: Shares) -> Evaluation:
        def one(state: State, own: Own, held: tuple[Any, ...]) -> Evaluation:
            world, *_ = scene(own, jnp.maximum(state.round - 1, 0))
            shares = Shares(tests.images, tests.labels, *held)
            return evaluate(network, algorithm, world, state, shares, chunk=plan.chunk)

        return for_each(one, states, owns, tests[2:])

    def models(states: State, owns: Own) -> Any:
        def one(state: State, own: Own) -> Any:
            world, *_ = scene(own, jnp.maximum(state.round - 1, 0))
            of_agent = lambda *carried: algorithm.model(world, *carried)[0]  # noqa: E731
            carried = (state.control.used, state.agents, state.heard)
            return population.over_agents(of_agent, *carried, chunk=plan.chunk)

        return for_each(one, states, owns)

    where: Any = Own(EACH, EACH, EACH, EACH, AGENTS_OF_EACH, of_several(places_of(first.budget)), AGENTS_OF_EACH)
    draw = sharding.over_devices(draw, mesh, (EACH,), EACH)
    start = sharding.over_devices(start, mesh, (where,), STATES)
    step = sharding.over_devices(step, mesh, (STATES, where, HELD), (STATES, AGENTS_OF_EACH))
    score = sharding.over_devices(score, mesh, (STATES, where, HELD), AGENTS_OF_EACH)

    models = sharding.over_devices(models, mesh, (STATES, where), AGENTS_OF_EACH)

    def validate(states: State, owns: Own, held_back: Shares) -> Any:
        return score(states, owns, held_back).accuracy

    began = time.perf_counter()
    *everything, held_back = stacked(plan)
    owns, train, tests = sharding.put(tuple(everything), (where, HELD, HELD), mesh)
    # The images held back are training images, which lie on the devices already.
    validation = held_back and Shares(*train[:2], *sharding.put(held_back[2:], HELD[2:], mesh))
    compiling = ThreadPoolExecutor(max_workers=2)

    def begin(function: Callable[..., Any], *arguments: Any, once: bool = False, **options: Any) -> tuple[Any, Future]:
        """Compile in the order of need, while the next program is traced and the first evaluation runs."""
        traced = jax.jit(function, **options).trace(*arguments)
        lowered = traced.lower()
        # A program that runs once need not be as fast as one that runs in every round.
        hasty = {"xla_backend_optimization_level": 1} if once and jax.default_backend() == "cpu" else None
        return traced.out_info, compiling.submit(lambda: (lowered.compile(hasty), time.perf_counter()))

    drawn, drawing = begin(draw, owns.seed, once=True)
    shapes = owns._replace(drawn=sharding.placed_shapes(drawn, EACH, mesh))
    states, starting = begin(start, shapes, once=True)
    state = sharding.placed_shapes(states, STATES, mesh)
    _, scoring = begin(score, state, shapes, tests)
    if validation:
        _, validating = begin(validate, state, shapes, validation)
    _, stepping = begin(step, state, shapes, train, donate_argnums=0)
    compiling.shutdown(wait=False)
    owns = owns._replace(drawn=drawing.result()[0](owns.seed))

    def stepped(state: State) -> tuple[State, dict[str, Any]]:
        state, info = stepping.result()[0](state, owns, train)
        return state, sharding.fetch(info)

    def evaluated(state: State, sizes: np.ndarray) -> Evaluation:
        counted = tests._replace(sizes=sharding.put(filled(sizes, plan), AGENTS_OF_EACH, mesh))
        return sharding.fetch(scoring.result()[0](state, owns, counted))

    compiled = [drawing, starting, scoring, stepping, *([validating] if validation else [])]
    return Programs(
        start=lambda: starting.result()[0](owns),
        evaluate=evaluated,
        step=stepped,
        sent=lambda state: sharding.fetch((state.sent, *state.earlier)),
        compiled=lambda: max(future.result()[1] for future in compiled) - began,
        state=state,
        validate=validation and (lambda state: sharding.fetch(validating.result()[0](state, owns, validation))),
        variables=None if algorithm.of_masks else lambda state: sharding.fetch(jax.jit(models)(state, owns)),
    )


def stacked(plan: Plan) -> tuple[Own, Shares, Shares, Shares | None]:
    """What each member has of its own, its training and its test samples, and those that it holds back if all do, along
    a leading axis; edges and samples are padded to the most that any has."""
    members = plan.members
    edges = max(len(member.topology.graph.senders) for member in members)
    steps = max((member.budget.devices.bandwidth.ends.shape[1] for member in members if member.budget), default=0)

    def stack(trees: list[Any]) -> Any:
        return jax.tree.map(lambda *leaves: filled(np.stack(leaves), plan), *trees)

    def samples(of_all: list[Shares]) -> Shares:
        of_all = widened(of_all)
        if of_all[0].pool is not None:
            pools = widened([own.pool for own in of_all])
            of_all = [own._replace(pool=pool) for own, pool in zip(of_all, pools, strict=True)]
        return Shares(*of_all[0][:2], *stack([own[2:] for own in of_all]))

    owns = []
    for one in members:
        said = one.settings
        seed, link_drop = np.array(said.seed, np.uint32), np.array(said.link_drop, np.float32)
        budget = one.budget and with_steps(one.budget, steps)
        graph = with_edges(one.topology.graph, edges)
        owns.append(Own(seed, None, graph, link_drop, one.hyper, budget, one.targets))
    held_back = [one.validation for one in members if one.validation]
    train, tests = samples([one.train for one in members]), samples([one.tests for one in members])
    return stack(owns), train, tests, samples(held_back) if held_back else None


def widened(holding: list[Any]) -> list[Any]:
    """Shares, or pools, padded to as many samples in a row as the widest of them has. Host side."""
    widest = max(own.indices.shape[1] for own in holding)
    return [own._replace(indices=np.pad(own.indices, [(0, 0), (0, widest - own.indices.shape[1])])) for own in holding]


def with_edges(graph: Graph, edges: int) -> Graph:
    """The same graph with `edges` edges: those it lacks are absent ones, behind all others. Host side."""
    more = (0, edges - len(graph.senders))
    return graph._replace(
        senders=np.pad(graph.senders, more),
        receivers=np.pad(graph.receivers, more, constant_values=len(graph.own) - 1),
        weights=np.pad(graph.weights, more),
    )


def filled(of_members: np.ndarray, plan: Plan) -> np.ndarray:
    """Repeat the last member until all devices have equally many; the results of the copies are dropped."""
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
            warn("no cache folder for compiled programs can be written to: name one in XDG_CACHE_HOME")
    # JAX reads these settings once, when it first compiles: make it read them again.
    compilation_cache.reset_cache()
