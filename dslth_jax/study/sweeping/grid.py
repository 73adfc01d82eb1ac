"""Points of a grid of settings, which of them can be one program, and how many of those memory holds."""

import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dslth_jax.naming import nearest
from dslth_jax.study.config import command, datasets
from dslth_jax.study.config.hints import choices, flag, kinds, parts, refusal
from dslth_jax.study.config.settings import DEFAULTS, HINTS, OF_THE_MACHINE, Settings, check_each
from dslth_jax.study.results import folders
from dslth_jax.study.training.prepare import Prepared, TooLargeError, batch_of, load, plan, prepare

# Settings that are traced, or decide only about what is: they may differ between members of one program. What they
# decide beside, such as how many samples a batch can have, `statics_of` looks at itself.
TRACED = (
    "seed", "partition", "classes_per_agent", "class_file", "dirichlet_alpha", "data_fraction", "feature_skew",
    "topology", "directed", "mixing", "retention", "linear_retention", "lr", "fine_tune_lr", "weight_decay",
    "amplitude", "group_lasso", "prune_rate", "clamp", "preset", "batch_size",
)  # fmt: skip
SCHEDULED = ("retention", "linear_retention", "lr", "fine_tune_lr", "weight_decay", "amplitude", "group_lasso")


class Member(NamedTuple):
    """One point of the grid with one seed."""

    point: dict[str, Any]  # the axes' values, as they were spelled
    seed: int
    prepared: Prepared

    @property
    def label(self) -> str:
        """The point in words."""
        return ", ".join(f"{axis}={value}" for axis, value in self.point.items())

    @property
    def name(self) -> str:
        """The member in words."""
        return ",".join([*(f"{axis}={value}" for axis, value in self.point.items()), f"seed={self.seed}"])


def axes_of(grid: Sequence[str], settings: Settings) -> dict[str, list[Any]]:
    """The axes of a grid, each value of its field's type; a ValueError where one means nothing, or `settings` say it
    otherwise."""
    axes: dict[str, list[Any]] = {}
    for spelled in grid:
        name, values = axis_of("--grid", spelled, "NAME=VALUE,VALUE,... such as lr=3,10,30", axes, settings)
        axes[name] = [value_of(name, word.strip()) for word in values.split(",")]
        if len(set(map(str, axes[name]))) < len(axes[name]):
            raise ValueError(f"--grid gives {name} one value twice, in {values!r}: leave one of them out")
    return axes


def axis_of(flag_name: str, spelled: str, form: str, known: Mapping[str, Any], settings: Settings) -> tuple[str, str]:
    """The field that one axis is of, and the spelling of its values."""
    name, equals, values = spelled.partition("=")
    name = name.strip().removeprefix("--").replace("-", "_")
    if not equals or not values.strip():
        raise ValueError(f"{flag_name} must be {form}, got {spelled!r}")
    if name == "seed":
        raise ValueError(f"{flag_name} takes no seeds: say --seeds, how many there are of each point")
    if name not in HINTS or name in OF_THE_MACHINE:
        raise ValueError(f"{flag_name} takes names of flags that change a run, got {name!r}{nearest(name, HINTS)}")
    if name in known:
        raise ValueError(f"{flag_name} names {name} twice: give all its values at once")
    if getattr(settings, name) != DEFAULTS[name]:
        raise ValueError(f"{flag(name)} and {flag_name} {name}=... contradict each other: leave one of them out")
    return name, values


def value_of(name: str, word: str) -> Any:
    """A field's value from its spelling."""
    hint = HINTS[name]
    if word == "None" and type(None) in parts(hint):
        return None
    if bool in parts(hint) and word in ("True", "False"):
        return word == "True"
    for number in (int, float):
        # Where a number may be spelled with a schedule, a whole one reads better as it is.
        if (number in parts(hint) or {float, str} <= set(parts(hint))) and command.is_spelled(word, number):
            return number(word)
    if word in choices(hint) or str in parts(hint) or Path in parts(hint):
        return word
    raise ValueError(refusal(name, kinds(hint), word, choices(hint)))


def base_of(settings: Settings) -> Settings:
    """What is a run's of the settings of a sweep."""
    return Settings(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(Settings)})


def points_of(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every point of a grid."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def members_of(
    base: Settings,
    points: Sequence[Mapping[str, Any]],
    seeds: int,
    arms: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Member]:
    """Every point with every seed, prepared; a ValueError that names the point where one makes no sense.

    A point is its settings, or of a comparison names the arm that has them.
    """
    loaded: dict[Any, datasets.Dataset] = {}

    def member(point: Mapping[str, Any], seed: int) -> Member:
        chosen = arms[point["arm"]] if arms else point
        own = dataclasses.replace(base, **chosen, seed=seed, out=None, resume=False)
        try:
            check_each(own)
            source = (own.dataset, own.data_file, own.data_dir)
            if source not in loaded:
                loaded[source] = load(own)
            return Member(dict(point), seed, prepare(own, loaded[source]))
        except (ValueError, OSError) as error:
            where = ", ".join(f"{name}={value}" for name, value in point.items())
            raise ValueError(f"at {where}: {error}" if where else str(error)) from None

    return [member(point, base.seed + offset) for point in points for offset in range(seeds)]


def statics_of(prepared: Prepared) -> str:
    """What is compiled in, or sets a shape, in words: members of which it is the same can be one program."""
    settings, graph = prepared.settings, prepared.topology.graph
    fixed = {name: value for name, value in folders.as_json(settings).items() if name not in (*TRACED, *OF_THE_MACHINE)}
    # The spelling alone: before the @ may stand more than a number, such as a range of retentions.
    schedules = {name: str(getattr(settings, name)).partition("@")[2] for name in SCHEDULED}
    changing = (settings.topology, settings.directed, len(graph.senders)) if prepared.topology.redraw else None
    skew = [name for name, value in prepared.train.skew._asdict().items() if value is not None]
    parts = (fixed, schedules, changing, str(graph.weights.dtype), skew, batch_of(prepared))
    return json.dumps(parts, default=str)


def groups_of(members: Sequence[Member], numbers: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of members that are computed together: one program's, as many as fit in memory."""
    by_statics: dict[str, list[int]] = {}
    for number in numbers:
        by_statics.setdefault(statics_of(members[number].prepared), []).append(number)
    for group in by_statics.values():
        most = most_that_fit([members[number].prepared for number in group])
        # Of about one size each, so that the last is no program of its own for a few.
        even = -(-len(group) // -(-len(group) // most))
        for start in range(0, len(group), even):
            yield group[start : start + even]


def most_that_fit(group: Sequence[Prepared]) -> int:
    """How many members of a group memory holds at once; a TooLargeError where it holds none."""

    largest = max(group, key=lambda one: one.train.indices.size + one.tests.indices.size)

    def fits(number: int) -> bool:
        try:
            plan([largest] * number)
        except TooLargeError:
            if number == 1:
                raise
            return False
        return True

    if fits(len(group)):
        return len(group)
    fitting, too_many = int(fits(1)), len(group)
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
    return fitting
