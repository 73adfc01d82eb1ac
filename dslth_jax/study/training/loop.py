"""Train a study: members of a grid, group after group, each group one program. A single run is a study of one member.

A study says what it is made of and what it leaves in its folder (see `records`). How it is checked, begun, resumed,
trained round by round, saved and stopped is the same for all studies, and stands here.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from dslth_jax.over_agents import count_of
from dslth_jax.population import State
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import folders, track
from dslth_jax.study.results.points import ranked_by
from dslth_jax.study.sweeping.grid import groups_of
from dslth_jax.study.system.console import console
from dslth_jax.study.system.machine import numerics
from dslth_jax.study.system.stopping import Stop
from dslth_jax.study.training import checkpoint, processes
from dslth_jax.study.training.checkpoint import Found
from dslth_jax.study.training.history import History, Outcome, shapes_of
from dslth_jax.study.training.plan import Plan, Prepared, fingerprints, identity, plan
from dslth_jax.study.training.programs import Programs, compile_programs
from dslth_jax.study.training.progress import ProgressLine


class Study:
    """Members, what they come to, and the folder in which they are recorded; what is made of these is for its kinds to
    say, in the methods that do nothing here."""

    settings: Settings
    members: list[Prepared]  # a search adds to them
    outcomes: dict[int, Outcome]  # what members have come to so far, by their numbers
    folder: folders.Folder | None = None  # None in all processes but the first, which writes
    path = Path()  # of the folder, in every process
    name = ""  # what it is called, if not as its folder
    numbers: Sequence[int] | None = None  # of the members that it trains; None is all
    elsewhere = False  # whether other processes train them, so that their memory is none of this machine's
    leaves_models = True  # whether the folder gets what agents come to
    can_become_longer = True  # whether a checkpoint of the end stays, from which more rounds go on
    finished = ""  # what to say of a study that has nothing left to do
    tracking: track.Tracking | None = None  # who tells a tracker of it, if it has one and this process writes
    told: set[str]  # the kinds of warnings that have been said
    said: Console  # where a study in training says how it goes
    stop: Stop  # and who is asked whether it is to stop

    def keep(self, write: Callable[..., None], *what: Any) -> None:
        """Write into the folder, in the process that has it."""
        if self.folder is not None:
            write(self.path, *what)

    def note(self, histories: Sequence[History]) -> None:
        """Take what members have come to so far, and write their rows."""
        self.outcomes |= {history.number: Outcome(history.rows, history.failure) for history in histories}
        self.has_rows()
        if self.tracking:
            self.tracking.tell(
                [track.Member(one.number, one.prepared.name, one.prepared.settings, [*one.rows]) for one in histories]
            )

    def prepare(self) -> list[Prepared]:
        """Check everything, and load what the members need."""
        raise NotImplementedError

    def claim(self, members: Sequence[Prepared]) -> folders.Folder:
        """Make the folder this process's own."""
        raise NotImplementedError

    def known(self) -> dict[int, Outcome]:
        """The outcomes of those members that an interrupted command had finished."""
        return {}

    def batches(self) -> Iterator[None]:
        """Yield members, batch after batch. Whoever asks for the next batch has trained the one before."""
        yield

    def begins(self, planned: Plan, found: Found | None, heading: str) -> None:
        """A group is about to be compiled."""

    def compiles(self, histories: Sequence[History]) -> None:
        """It is being compiled: there is time to write what is known before training."""

    def has_rows(self) -> None:
        """Members have new rows."""

    def pauses(self, histories: Sequence[History]) -> None:
        """A group has come to its end, or is interrupted in the middle of it."""

    def pictures(self, number: int) -> list[Path]:
        """The pictures that there are of a member."""
        raise NotImplementedError

    def ends(self, planned: Plan, histories: Sequence[History], seconds: float) -> None:
        """A group has come to its end; its programs took so many `seconds` to compile."""

    def concludes(self) -> Any:
        """All members have been trained; returns what the whole study came to."""


def ready(study: Study) -> Study:
    """The study, with everything done except the training. Either all processes are ready or none is, and then nothing
    is left behind. A ValueError on bad input."""
    track.check(study.settings.track)
    members = processes.together(study.prepare, identity=identity)
    if not study.elsewhere:
        list(groups_of(members, own_of(study)))  # refuses what does not fit
    study.folder = folder = processes.together(lambda: study.claim(members), first_alone=True)
    path, study.finished = processes.as_first_says([str(folder.path), folder.finished] if folder else ["", ""])
    study.path = Path(path)
    if study.finished:
        folders.close(folder)
    return study


def train(study: Study, stop: Stop | None = None) -> Any:
    """Train all that is left of a ready study, fill its folder if it has one, and unlock it."""
    study.stop = stop or Stop()
    study.said, study.told = console(study.stop, quiet=study.folder is None), set()
    try:
        study.outcomes = study.known()
        tracker = study.settings.track if study.folder and not study.elsewhere else None
        with track.tracking(tracker, study.path, study.name, study.pictures) as study.tracking:
            for _ in study.batches():
                train_members(study)
            return study.concludes()
    finally:
        folders.close(study.folder)


def train_members(study: Study) -> None:
    """Train all members that are left; the group at which a study was interrupted goes first."""
    found = interrupted(study)
    first = found.notes["numbers"] if found else []
    left = [number for number in own_of(study) if number not in (*study.outcomes, *first)]
    groups = [*([first] if first else []), *groups_of(study.members, left)]
    for number, group in enumerate(groups, 1):
        if number > 1:
            study.stop.obey(processes.anywhere)
        heading = f"group {number} of {len(groups)}, " if len(groups) > 1 else ""
        train_group(study, group, found if number == 1 else None, heading)


def own_of(study: Study) -> Sequence[int]:
    """The numbers of the members that a study trains."""
    return range(len(study.members)) if study.numbers is None else study.numbers


def interrupted(study: Study) -> Found | None:
    """The checkpoint of the group at which a study was interrupted. A ValueError if it is of other settings than those
    of its members, of other data or other numbers."""
    found = checkpoint.latest(study.path / "checkpoint") if study.settings.resume else None
    group = found.notes["numbers"] if found else []
    if found is None or study.outcomes.keys() >= {*group} or max(group) >= len(study.members):
        return None  # there is none, or the group was done and killed before its checkpoints were gone
    if (then := found.notes["numerics"]) != (now := numerics()):
        differing = "; ".join(f"{name} was {then[name]} and is {now[name]}" for name in now if then[name] != now[name])
        raise ValueError(f"the checkpoint {found.path} was trained with other JAX settings: {differing}: restore them")
    members = [study.members[number] for number in group]
    for member, other in zip(members, found.notes["settings"], strict=True):
        folders.expect_same(member.settings, other, f"the checkpoint {found.path}", longer=study.can_become_longer)
    for ours, theirs in zip(fingerprints(members), found.notes["data"], strict=True):
        if changed := [name for name, digest in ours.items() if digest != theirs[name]]:
            raise ValueError(
                f"the checkpoint {found.path} was trained on other data, and {', '.join(changed)} have changed: "
                f"put back the files it began with, or start anew in another --out"
            )
    return found


def train_group(study: Study, group: Sequence[int], found: Found | None, heading: str) -> None:
    """Train the members of these numbers as one program."""
    planned = plan([study.members[number] for number in group])
    study.begins(planned, found, heading)
    if not study.said.is_terminal:
        study.said.print("compiling")
    with study.said.status("compiling"):
        programs = compile_programs(planned)
    shapes = shapes_of(planned.members[0])
    histories = [History(member, shapes, number) for member, number in zip(planned.members, group, strict=True)]
    study.compiles(histories)
    progress = ProgressLine(study.said, planned.members[0].course.rounds, found.round if found else 0, heading)
    with progress.bar:
        try:
            follow(study, programs, histories, found, progress)
        finally:
            study.pauses(histories)
    study.note(histories)
    study.ends(planned, histories, programs.compiled())
    if study.tracking:
        for history in histories:
            study.tracking.end(history.number, track.FAILED if history.failure else track.FINISHED)


def follow(
    study: Study, programs: Programs, histories: Sequence[History], found: Found | None, progress: ProgressLine
) -> None:
    """Train all rounds that are left, show the progress, and save checkpoints."""
    course, stop = histories[0].prepared.course, study.stop
    stop.later = True
    state, done = begin(programs, histories, found)
    study.note(histories)
    for round, now, evaluated in play(programs, histories, state, done):
        key = ranked_by(history.rows[-1] for history in histories)
        leading = max(histories, key=lambda history: -1.0 if history.failure else history.rows[-1][key])
        bits = sum(history.ledger.on_the_wire for history in histories)
        progress.trained(round, max(history.tally.seconds for history in histories), bits)
        if evaluated:
            study.note(histories)
            progress.evaluated(leading.rows[-1], bits)
        warned = [(history.prepared.name, line) for history in histories for line in history.take_warnings()]
        progress.warn(once(warned, study.told))
        if round == course.rounds:
            if study.can_become_longer and course.checkpoint_every and round > done and not histories[0].failure:
                save(study.path / "checkpoint", histories, now, round)
            variables = programs.variables(now) if programs.variables and study.leaves_models else None
            for number, history in enumerate(histories):
                history.variables = member_of(variables, number)
            return  # what is left takes no time, so that a signal needs no answer any more
        asked = processes.anywhere(stop.asked is not None)
        if asked or (round > done and course.is_saved(round)):
            save(study.path / "checkpoint", histories, now, round)
        if asked:
            stop.obey(lambda _: True)


def once(warned: Sequence[tuple[str, str]], told: set[str]) -> Iterator[str]:
    """The lines of warnings, each with the name of its member: of a kind the first alone, and with how many more have
    it now; those of the kinds already `told` are left out. Of one kind are sentences that differ in numbers alone.

    >>> told = set()
    >>> list(once([("lr=1", "a loss of 7: take less"), ("lr=2", "a loss of 80: take less"), ("", "no cache")], told))
    ['lr=1: a loss of 7: take less (and 1 more like it)', 'no cache']
    >>> list(once([("lr=3", "a loss of 9: take less")], told))
    []
    """
    kinds: dict[str, list[tuple[str, str]]] = {}
    for name, line in warned:
        kinds.setdefault(re.sub(r"(?<![a-z_])\d[\d.,]*", "", line), []).append((name, line))
    for kind, [(name, line), *others] in kinds.items():
        if kind not in told:
            yield (f"{name}: " if name else "") + line + (f" (and {len(others)} more like it)" if others else "")
    told.update(kinds)


def play(
    programs: Programs, histories: Sequence[History], state: State, done: int
) -> Iterator[tuple[int, State, bool]]:
    """Train the rounds after the first `done`, until all members have failed, and tell their histories. Yield, at the
    start and after each round, its number, the state (whose memory the next one takes) and whether there is a row."""
    course = histories[0].prepared.course

    def assess(round: int) -> None:
        members = [history.prepared for history in histories]
        tests = [one.tests.sizes if round == course.rounds else one.tests_while_running for one in members]
        began = time.perf_counter()
        evaluations = programs.evaluate(state, np.stack(tests))
        validations = programs.validate and programs.validate(state)
        seconds = time.perf_counter() - began
        for number, history in enumerate(histories):
            history.after_evaluation(round, member_of(evaluations, number), seconds, member_of(validations, number))

    # A run that goes on behind its old end has the row of a longer run yet to come.
    behind = [one for one in histories if not one.failure and one.rows and one.rows[-1]["round"] < done]
    starting = not any(one.rows for one in histories) or bool(behind and course.is_evaluated(done))
    if starting:
        assess(done)
    # Wait here, so that no compilation counts as time of a round.
    programs.compiled()
    yield done, state, starting
    for round in range(done + 1, course.rounds + 1):
        encoded = histories[0].ledger.masks_alone and course.is_encoded(round)
        began = time.perf_counter()
        state, info = programs.step(state)
        seconds = time.perf_counter() - began
        sent = programs.sent(state) if encoded else ()
        for number, history in enumerate(histories):
            history.after_round(round, member_of(info, number), seconds, member_of(sent, number))
        if all(history.failure for history in histories):
            return
        if due := course.is_evaluated(round):
            for history in histories if round == course.rounds else ():
                history.close()
            assess(round)
        yield round, state, due


def member_of(stacked: Any, number: int) -> Any:
    """The part of one member."""
    return jax.tree.map(lambda leaf: leaf[number], stacked)


# Saved and gone on with ----------------------------------------------------------------------------------------------


def save(checkpoints: Path, histories: Sequence[History], state: State, round: int) -> None:
    """A checkpoint after a round, of all members."""
    members = [history.prepared for history in histories]
    notes = {
        "settings": [member.settings.as_json() for member in members],
        "numbers": [history.number for history in histories],
        "histories": [history.at_end or history.notes() for history in histories],
        "versions": folders.versions(),
        "numerics": numerics(),
        "data": fingerprints(members),
        "rows": count_of(state),
    }
    checkpoint.save(checkpoints, round, state, notes)


def begin(programs: Programs, histories: Sequence[History], found: Found | None) -> tuple[State, int]:
    """The state to start from and how many rounds are done: a new state, or a checkpoint's."""
    if found is None:
        return programs.start(), 0
    for history, notes, then in zip(histories, found.notes["histories"], found.notes["settings"], strict=True):
        course = history.prepared.course
        history.go_on_from(notes, reopened=course.exchanges(course.rounds) > course.exchanges(then["rounds"]))
    warnings = histories[0].warnings
    warnings += [f"skipped a checkpoint that is not whole: {name}" for name in found.damaged]
    then, now = found.notes["versions"], folders.versions()
    differing = [f"{name} {then.get(name)} then and {now[name]} now" for name in now if then.get(name) != now[name]]
    if differing:
        warnings.append(f"what follows may differ in the last bits from an uninterrupted run: {', '.join(differing)}")
    return restored(found, programs.state), found.round


def restored(found: Found, like: State) -> State:
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
