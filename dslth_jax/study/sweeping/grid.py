"""Points of a grid of settings, which of them can be one program, and how many of those memory holds."""

import bisect
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dslth_jax.naming import nearest
from dslth_jax.study.config.algorithms import with_own_settings
from dslth_jax.study.config.numbers import DEALT, may_lack_layers
from dslth_jax.study.config.setting import Setting, described, flag, parts, read, setting
from dslth_jax.study.config.setting import spelled as written
from dslth_jax.study.config.settings import COUNT, Settings
from dslth_jax.study.training.plan import Prepared, TooLargeError, plan, room_of


@dataclasses.dataclass(frozen=True)
class Sweep(Settings):
    """Train every point of a grid of settings, with several seeds, as one more axis of one compiled program.

    All other flags are those of experiments.cifar, and hold for every point.
    """

    grid: tuple[str, ...] = ()
    """An axis of the grid as NAME=VALUE,VALUE,... where NAME is any other flag; say it once for each axis. Values with
    commas of their own have semicolons between them: 'retention=dealt:0.1,0.7;0.4'."""
    seeds: int = 1
    """Seeds of each point: --seed and the numbers behind it."""
    run_folders: bool = False
    """Leave the run folder of each point and seed, under runs/."""
    search: tuple[str, ...] = ()
    """Instead of a grid, what Optuna searches: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=VALUE,VALUE,... with semicolons
    as in --grid."""
    trials: int = setting(64, bounds=COUNT, unit="points")
    """Points that this command tries in a search."""
    ask: int = setting(16, bounds=COUNT, unit="points")
    """Points asked of Optuna at a time, which run as one program."""
    study: str = "dslth_jax"
    """Name of the study in its storage."""
    storage: str | None = None
    """Optuna's storage, which several machines may share (each with an --out of its own): a URL, or journal:FILE on a
    file system that they share; None is a file in the sweep's folder."""
    submit: Literal["slurm", "local"] | None = setting(None, machine=True)
    """Have each group of points that share a program trained by a job of its own, on Slurm or on this machine, and
    gather what came of them."""
    submit_with: tuple[str, ...] = setting((), machine=True)
    """What submitit is to know of a job, NAME=VALUE: timeout_min=60, slurm_partition=gpu, slurm_gpus_per_node=1..."""


Arms = Mapping[str, Mapping[str, Any]]  # of a comparison, the settings of each by its name


@dataclasses.dataclass
class Points:
    """What a sweep is made of: its axes, and its members, one for each point and seed."""

    settings: Sweep
    axes: dict[str, list[Any]]  # of a search the ends of each
    first: list[dict[str, Any]]  # the points of these axes
    arms: Arms | None
    spaces: dict[str, dict[str, Any]]  # of a search, what Optuna draws from
    said: Mapping[str, Any]  # the flags that were given
    members: list[Prepared] = dataclasses.field(default_factory=list)  # a search adds to them


def axes_of(settings: Sweep) -> dict[str, list[Any]]:
    """The axes of a grid, each value of its field's type; a ValueError where one means nothing or is said twice."""
    axes: dict[str, list[Any]] = {}
    for name, values in spelled_axes("--grid", settings.grid, "NAME=VALUE,VALUE,... such as lr=3,10,30", settings):
        axes[name] = values_of("--grid", settings.known[name], values)
    return axes


def values_of(flag_name: str, known: Setting, spelled: str) -> list[Any]:
    """A field's values, which have commas between them, or semicolons where there are any; a ValueError where one means
    nothing or is said twice."""
    between = ";" if ";" in spelled else ","
    if DEALT in spelled and between == ",":
        has = f"{flag_name} has commas between values, and {DEALT} has some of its own"
        raise ValueError(f"{has}: got {known.name}={spelled}, put semicolons between values")
    values = [value_of(known, word.strip()) for word in spelled.split(between) if word.strip() or between == ","]
    if not values:
        raise ValueError(f"{flag_name} gives {known.name} no value, in {spelled!r}: say one at least")
    if len(set(map(written, values))) < len(values):
        raise ValueError(f"{flag_name} gives {known.name} one value twice, in {spelled!r}: leave one of them out")
    return values


def spelled_axes(flag_name: str, axes: Sequence[str], form: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """The field that each axis is of, and the spelling of its values; a ValueError where one means nothing, or is said
    twice."""
    flags, given, seen = described(with_own_settings(Settings)), settings.given, set[str]()
    for spelled in axes:
        name, equals, values = spelled.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not values.strip():
            raise ValueError(f"{flag_name} must be {form}, got {spelled!r}")
        if name == "seed":
            raise ValueError(f"{flag_name} takes no seeds: say --seeds, how many there are of each point")
        if name not in flags or flags[name].machine:
            raise ValueError(f"{flag_name} takes names of flags that change a run, got {name!r}{nearest(name, flags)}")
        if name in seen:
            raise ValueError(f"{flag_name} names {name} twice: give all its values at once")
        if name in given:
            raise ValueError(f"{flag(name)} and {flag_name} {name}=... contradict each other: leave one of them out")
        seen.add(name)
        yield name, values


def value_of(known: Setting, word: str) -> Any:
    """A field's value from its spelling."""
    hint = known.hint
    # Keep a whole number whole where a schedule may stand behind it: it reads better.
    value = read(known.name, word, int | hint if {float, str} <= {*parts(hint)} else hint)
    return word if isinstance(value, Path) else value


def points_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every point of a grid."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def statics_of(prepared: Prepared) -> str:
    """What is compiled in or sets a shape, in words. Members for which it is the same can be one program."""
    settings, graph = prepared.settings, prepared.topology.graph
    known, said = settings.known, settings.as_json()
    fixed = {name: value for name, value in said.items() if not (known[name].traced or known[name].machine)}
    # The spelling alone: before the @ may stand more than a number, such as a range of retentions.
    schedules = {name: str(value).partition("@")[2] for name, value in said.items() if known[name].scheduled}
    changing = (settings.topology, settings.directed, len(graph.senders)) if prepared.changing else None
    skew = [name for name, value in prepared.train.skew._asdict().items() if value is not None]
    weighing = (str(graph.weights.dtype), settings.mixing == "similarity")
    simulated = prepared.budget is not None, prepared.targets is not None
    programs = prepared.batch_size, prepared.validation is not None, may_lack_layers(settings), *simulated
    parts = (fixed, schedules, changing, weighing, skew, *programs)
    return json.dumps(parts, default=str)


def programs_of(members: Sequence[Prepared], numbers: Sequence[int]) -> list[list[int]]:
    """The numbers of members that can be one program, program after program."""
    by_statics: dict[str, list[int]] = {}
    for number in numbers:
        by_statics.setdefault(statics_of(members[number]), []).append(number)
    return [*by_statics.values()]


def groups_of(members: Sequence[Prepared], numbers: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of members that are computed together: one program's, as many as fit in memory."""
    for group in programs_of(members, numbers):
        most = most_that_fit([members[number] for number in group])
        # Make groups of about one size, so that the last few members need no program of their own.
        even = -(-len(group) // -(-len(group) // most))
        for start in range(0, len(group), even):
            yield group[start : start + even]


def most_that_fit(group: Sequence[Prepared]) -> int:
    """How many members of a group memory holds at once; a TooLargeError where it holds none."""
    largest = max(group, key=room_of)

    def is_too_large(number: int) -> bool:
        try:
            plan([largest] * number)
        except TooLargeError:
            if number == 1:
                raise
            return True
        return False

    if not is_too_large(len(group)):
        return len(group)
    return bisect.bisect_left(range(1, len(group)), True, key=is_too_large)
