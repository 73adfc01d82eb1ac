"""One run, from settings to run folder."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from dslth_jax.population import State, count_of
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.config.stopping import NotFiniteError, Stop, StoppedError
from dslth_jax.study.results import folders, pictures, tables
from dslth_jax.study.training import checkpoint, memory, processes
from dslth_jax.study.training.history import History
from dslth_jax.study.training.ledger import is_encoded
from dslth_jax.study.training.prepare import Plan, Prepared, fingerprints, graph_of_round, identity, plan, prepare
from dslth_jax.study.training.programs import Programs, compile_programs
from dslth_jax.study.training.progress import ProgressLine


class Ready(NamedTuple):
    """A run that can begin."""

    plan: Plan
    folder: folders.Folder | None  # where this process writes; None in all but the first
    checkpoints: Path  # where all save
    found: checkpoint.Found | None  # where to go on from
    finished: str  # what to say of a run that has nothing left to do, else empty


class Result(NamedTuple):
    """What `run` returns."""

    folder: Path | None  # None in all processes but the first
    metrics: list[dict[str, Any]]  # the rows of metrics.jsonl
    agents: list[dict[str, Any]]  # the rows of agents.csv


def run(settings: Settings) -> Result:
    """Check, load, train, evaluate and folders.

    Raises ValueError on bad input and of a finished run that is to be resumed, NotFiniteError if training diverges.
    """
    prepared = ready(settings)
    if prepared.finished:
        folders.close(prepared.folder)
        raise ValueError(prepared.finished)
    return train(prepared)


def ready(settings: Settings) -> Ready:
    """Everything but the training itself. Of several processes all are ready or none, and nothing is left behind."""
    prepared = processes.in_every_process(lambda: prepare(settings), identity)
    planned, resolved = plan([prepared]), prepared.settings

    def claim() -> folders.Folder | None:
        return folders.open_folder(resolved, resolved.algorithm) if processes.is_first() else None

    folder = processes.in_every_process(claim)
    path, finished = processes.as_first_says([str(folder.path), folder.finished] if folder else ["", ""])
    checkpoints = Path(path) / "checkpoint"

    def find() -> checkpoint.Found | None:
        return checkpoint_of(checkpoints, [prepared]) if resolved.resume and not finished else None

    try:
        found = processes.in_every_process(find)
    except BaseException:
        folders.close(folder)
        raise
    return Ready(planned, folder, checkpoints, found, finished)


def checkpoint_of(folder: Path, members: Sequence[Prepared]) -> checkpoint.Found | None:
    """The last whole checkpoint; a ValueError if it is of other settings than the members', or of other data."""
    found = checkpoint.latest(folder)
    if found is not None:
        others = found.notes["settings"]
        if len(others) != len(members):
            raise ValueError(f"the checkpoint {found.path} is of {len(others)} settings, not {len(members)}")
        for member, other in zip(members, others, strict=True):
            folders.expect_same(member.settings, other, f"the checkpoint {found.path}")
        for ours, theirs in zip(fingerprints(members), found.notes["data"], strict=True):
            if changed := [name for name, digest in ours.items() if digest != theirs[name]]:
                raise ValueError(
                    f"the checkpoint {found.path} was trained on other data, and {', '.join(changed)} have changed: "
                    f"put back the files it began with, or start anew in another --out"
                )
    return found


def play(
    plan: Plan, programs: Programs, histories: Sequence[History], state: State, done: int
) -> Iterator[tuple[int, State, bool]]:
    """All rounds behind the first `done`, one after another, told to the histories of the plan's members.

    Yields after the start, and after each round, its number, the state (whose memory the next round takes) and whether
    histories got a row. It ends early where every member has failed.
    """
    settings = plan.members[0].settings

    def assess(round: int) -> None:
        began = time.perf_counter()
        sizes = np.stack([history.tests_that_count(round) for history in histories])
        evaluations = programs.evaluate(state, sizes)
        seconds = time.perf_counter() - began
        for number, history in enumerate(histories):
            history.after_evaluation(round, member_of(evaluations, number), seconds)

    starting = not any(history.rows for history in histories)
    if starting:
        assess(0)
    # No time of a round holds any of the compilation.
    programs.compiled()
    yield done, state, starting
    for round in range(done + 1, settings.rounds + 1):
        encoded = histories[0].ledger.masks_alone and is_encoded(settings, round)
        before = programs.sent(state) if encoded else None
        began = time.perf_counter()
        state, info = programs.step(state)
        seconds = time.perf_counter() - began
        sent = (before, programs.sent(state)) if encoded else None
        for number, history in enumerate(histories):
            history.after_round(round, member_of(info, number), seconds, member_of(sent, number))
        if all(history.failure for history in histories):
            return
        due = round % settings.eval_every == 0 or round == settings.rounds
        if due:
            assess(round)
        yield round, state, due


def member_of(stacked: Any, number: int) -> Any:
    """What is one member's."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def begin(programs: Programs, histories: Sequence[History], found: checkpoint.Found | None) -> tuple[State, int]:
    """The state to start from and how many rounds are done: anew, or as a checkpoint has both."""
    if found is None:
        return programs.start(), 0
    for history, notes in zip(histories, found.notes["histories"], strict=True):
        history.go_on_from(notes)
    warnings = histories[0].warnings
    warnings += [f"skipped a checkpoint that is not whole: {name}" for name in found.damaged]
    if (then := found.notes["versions"]) != (now := folders.versions()):
        changed = ", ".join(
            f"{name} {then.get(name)} then and {now[name]} now" for name in now if then.get(name) != now[name]
        )
        warnings.append(f"what follows may differ in the last bits from an uninterrupted run: {changed}")
    return restored(found, programs.state), found.round


def restored(found: checkpoint.Found, like: State) -> State:
    """The state of a checkpoint, on other devices too, which pad members to another number (see `programs.filled`)."""
    rows, wanted = found.notes["rows"], count_of(like)
    if rows == wanted:
        return checkpoint.restore(found, like)

    def on_every_device(leaf: Any) -> Any:
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec(None, *leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct((rows, *leaf.shape[1:]), leaf.dtype, sharding=everywhere)

    state = checkpoint.restore(found, jax.tree.map(on_every_device, like))
    chosen = np.minimum(np.arange(wanted), rows - 1)
    return jax.tree.map(lambda leaf, own: jax.device_put(leaf[chosen], own.sharding), state, like)


def save(checkpoints: Path, plan: Plan, histories: Sequence[History], state: State, round: int) -> None:
    """A checkpoint after a round, of all members."""
    notes = {
        "settings": [folders.as_json(member.settings) for member in plan.members],
        "numbers": [history.number for history in histories],
        "histories": [history.notes() for history in histories],
        "versions": folders.versions(),
        "data": fingerprints(plan.members),
        "rows": count_of(state),
    }
    checkpoint.save(checkpoints, round, state, notes)


def follow(
    plan: Plan,
    programs: Programs,
    histories: Sequence[History],
    found: checkpoint.Found | None,
    checkpoints: Path,
    progress: ProgressLine,
    on_rows: Callable[[], None],
    stop: Stop,
) -> None:
    """Play all rounds that are left, show how far they are, save what is to be saved; `on_rows` writes new rows."""
    settings, stop.later = plan.members[0].settings, True
    state, done = begin(programs, histories, found)
    on_rows()
    for round, now, evaluated in play(plan, programs, histories, state, done):
        leading = max(histories, key=lambda history: history.last("accuracy_mean", -1.0))
        bits = sum(history.ledger.on_the_wire for history in histories)
        progress.trained(round, max(history.tally.seconds for history in histories), bits)
        if evaluated:
            on_rows()
            progress.evaluated(leading.rows[-1], bits)
        for history in histories:
            progress.warn(history.take_warnings())
        if round == settings.rounds:
            return  # what is left to do takes no time: a signal that came is not heard any more
        asked = processes.anywhere(stop.asked is not None)
        every = settings.checkpoint_every
        if asked or (every is not None and round > done and round % every == 0):
            save(checkpoints, plan, histories, now, round)
        if asked:
            raise StoppedError(stop.asked or signal.SIGTERM)


def train(ready: Ready, stop: Stop | None = None) -> Result:
    """Run all rounds and fill the run folder, where there is one; who has none says and writes nothing."""
    (prepared,) = ready.plan.members
    settings, console = prepared.settings, Console(quiet=ready.folder is None)
    path = ready.folder.path if ready.folder else None

    def keep(write: Callable[..., None], *what: Any) -> None:
        if path is not None:
            write(path, *what)

    try:
        keep(folders.write_config, prepared, ready.plan, ready.found)
        tables.show_population(console, ready.plan, memory.said(ready.plan.footprint))
        with console.status(f"compiling for {settings.agents} agents"):
            programs = compile_programs(ready.plan)
        history = History(prepared)
        chance = history.symptoms.chance
        keep(pictures.partition_picture, prepared)
        done = ready.found.round if ready.found else 0
        with ProgressLine(console, settings.rounds, done) as progress:
            try:
                rows = lambda: keep(folders.write_metrics, history.rows)  # noqa: E731
                follow(ready.plan, programs, [history], ready.found, ready.checkpoints, progress, rows, stop or Stop())
            finally:
                keep(pictures.curves_picture, history.rows, chance)
        if history.failure:
            raise NotFiniteError(history.failure)
        agents = leave(path, history)
        times = programs.compiled(), history.evaluation_seconds
        tables.show_outcome(console, history.rows[-1], chance, settings.rounds, *times)
        keep(folders.finish)
        console.print(f"run folder: {path}", highlight=False, markup=False, soft_wrap=True)
        return Result(path, history.rows, agents)
    finally:
        folders.close(ready.folder)


def leave(folder: Path | None, history: History) -> list[dict[str, Any]]:
    """Write what is known at the end of a run; returns the rows of agents.csv."""
    prepared, evaluation = history.prepared, history.evaluation
    assert evaluation is not None
    last = graph_of_round(prepared.settings, prepared.network, prepared.topology, prepared.settings.rounds - 1)
    agents = history.agent_rows(last)
    if folder is not None:
        folders.write_table(folder / "agents.csv", agents)
        if evaluation.masks is not None:
            folders.write_masks(folder, evaluation.masks, history.maskable)
        pictures.topology_picture(folder, last, np.asarray(evaluation.accuracy))
    return agents
