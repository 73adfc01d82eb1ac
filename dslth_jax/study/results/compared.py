"""The arms of a comparison when they have ended: `table.md` and `figure.png` in the sweep's folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dslth_jax.study.config.algorithms import defaults_of
from dslth_jax.study.results import folders, gains, pictures, points
from dslth_jax.study.results.plots import AXES, Lines, Panel, numbers_of_seeds
from dslth_jax.study.results.points import DONE, mean_of

# Accuracy over what is sent, and over rounds.
BY_BITS: Sequence[Panel] = (Panel("megabytes", "accuracy", logarithmic=True), Panel("round", "accuracy"))


def leave(path: Path, panels: Sequence[Panel], baseline: str = gains.ALONE) -> None:
    """table.md and figure.png, of a sweep's folder."""
    found = points.read(path, path.name)
    assert isinstance(found, points.Sweep)
    folders.replace(path / "table.md", table_of(found, baseline))
    lines, panels = lines_of(found, panels, baseline)
    pictures.lines_picture(path / "figure.png", lines, panels)
    print(f"table and figure: {path / 'table.md'}, {path / 'figure.png'}")


def lines_of(found: points.Sweep, panels: Sequence[Panel], baseline: str) -> tuple[Lines, Sequence[Panel]]:
    """The lines of a figure, and those of its panels that have any: a line for each rule over the points of an axis, or
    for each arm over rounds, where there are no such panels or no points."""
    every = gains.along_axes(found.points, found.config.get("models", {}), baseline)
    along = [panel for panel in panels if panel.across in AXES]
    if drawn := [panel for panel in along if any(own[panel.across].notna().any() for own in every.values())]:
        return {rule: own for rule, own in every.items() if any(own[panel.up].notna().any() for panel in drawn)}, drawn
    arms = {point.values["arm"]: numbers_of_seeds(point.members) for point in found.points}
    return arms, BY_BITS if along else panels


def said_of_arms(config: folders.Row) -> str:
    """What a table says of the images that arms learn from, where they are not as they come, of layers that arms keep
    personal, where any are, and of their step sizes and optimizers."""
    images: dict[str, list[str]] = {}
    personal: dict[str, list[str]] = {}
    steps: dict[str, list[str]] = {}
    for arm, own in config.get("arms", {}).items():
        chosen = {**config["settings"], **own}
        dataset = None if chosen.get("data_file") else chosen["dataset"]
        usual = defaults_of(chosen["algorithm"], chosen["preset"], dataset)
        chosen |= {name: value for name, value in usual.items() if name in chosen and chosen[name] is None}
        augment, pooled = chosen.get("augment", "none"), chosen.get("images", "own") == "pooled"
        for what in [f"augmentation {augment}"] * (augment != "none") + ["drawn from all agents'"] * pooled:
            images.setdefault(what, []).append(arm)
        if (layers := chosen.get("personal_layers") or "none") != "none":
            personal.setdefault(layers, []).append(arm)
        if (step := chosen.get("lr")) is not None:
            by = chosen.get("optimizer")
            steps.setdefault(f"{step} by {by}" if by else str(step), []).append(arm)
    everybody = [*config.get("arms", {})]

    def named(arms: Sequence[str]) -> str:
        """Arms in words: a rule alone that all groups have so."""
        rules = [gains.group_and_rule(arm)[1] for arm in everybody]
        of = {arm: rule for arm, rule in zip(everybody, rules, strict=True) if arm in arms}
        whole = {rule for rule in of.values() if [*of.values()].count(rule) == rules.count(rule)}
        return ", ".join(dict.fromkeys(rule if rule in whole else arm for arm, rule in of.items()))

    def sentence(subject: str, said: dict[str, list[str]]) -> str:
        parts = [one if len(arms) == len(everybody) else f"{one} ({named(arms)})" for one, arms in said.items()]
        return f"{subject}: {'; '.join(parts)}. " if parts else ""

    return sentence("Images", images) + sentence("Personal layers", personal) + sentence("Step sizes", steps)


MEGABYTES = {"kept": "kept entries", **points.SIZES, "busiest_agent": "busiest agent"}
VALIDATED = "validation, %"
COLUMNS = {  # of the table: what each is of, a factor, and how it is written
    "accuracy, %": ("accuracy_mean", 100, ".1f"),
    "worst agent, %": ("accuracy_worst", 100, ".1f"),
    "loss": ("loss", 1, ".3f"),
    "density": ("density", 1, ".3f"),
    **{f"{words}, MB": (f"{size}_bits", 1, ",.4g") for size, words in MEGABYTES.items()},
}
OF_TIME = {  # further ones, where time is simulated
    "simulated, s": ("simulated_seconds", 1, ",.4g"),
    "idle, s": ("idle_seconds", 1, ",.4g"),
    "retention": ("retention_mean", 1, ".3f"),
}

MODELS = {  # further ones, where networks differ
    "model, kbit": ("model_bits", 1e-3, ",.0f"),
    "multiply-adds, millions": ("multiply_adds", 1e-6, ",.4g"),
}


class Column(NamedTuple):
    """Of the table: its head, and what it says of an arm."""

    head: str
    cell: Callable[[points.Point], str]


def columns_of(found: points.Sweep) -> list[Column]:
    """Those of numbers, with that of validation where samples are held back, and those of time where it is
    simulated."""
    timed = OF_TIME if shortest(found) is not None else {}
    first, *others = COLUMNS.items()
    further = [(VALIDATED, ("validation_mean", 100, ".1f"))] if is_validated(found) else []

    def column(head: str, key: str, factor: float, form: str) -> Column:
        def cell(point: points.Point) -> str:
            value = point.result[key] if key in point.result else mean_of(point.members, key)
            deviation = point.result["accuracy_std"] if key == "accuracy_mean" else None
            said = "" if value is None else f"{factor * value:{form}}"
            return said if deviation is None else f"{said} \u00b1 {100 * deviation:.1f}"

        return Column(head, cell)

    return [column(head, *what) for head, what in [first, *further, *others, *timed.items()]]


def is_validated(found: points.Sweep) -> bool:
    """Whether samples are held back."""
    return any(point.result.get("validation_mean") is not None for point in found.points)


def columns_of_models(found: points.Sweep) -> list[Column]:
    """Those of networks, where arms have unlike ones."""
    models = found.config.get("models", {})

    def column(head: str, key: str, factor: float, form: str) -> Column:
        def cell(point: points.Point) -> str:
            value = models[point.values["arm"]][key]
            return "" if value is None else f"{factor * value:{form}}"

        return Column(head, cell)

    return [column(head, *what) for head, what in MODELS.items()] if models else []


def columns_of_a_time(found: points.Sweep) -> tuple[list[Column], str]:
    """Where arms stand when the first that hears anybody is done, in simulated time; and where controllers set
    retentions, what each has then won over the best arm that hears neighbours and has none. With a sentence on both."""
    if (seconds := shortest(found)) is None:
        return [], ""

    def reached(point: points.Point) -> str:
        accuracy = points.mean_at(point.members, seconds)
        return "" if accuracy is None else f"{100 * accuracy:.1f}"

    columns, said = [Column(f"accuracy after {seconds:,.4g} s, %", reached)], " Arms that end before keep their last."
    arms = {arm: own.get("controller") for arm, own in found.config.get("arms", {}).items() if not gains.is_alone(arm)}
    staying = [arm for arm, controller in arms.items() if controller is None]
    best = gains.over_the_best(found.points, staying, seconds) if len(staying) < len(arms) else None
    if best is None:
        return columns, said
    rival, ranked, won = best
    columns.append(Column(f"minus {rival} then, points", lambda point: gains.written(won[point.values["arm"]])))
    by = "validation" if ranked == points.VALIDATION[0] else "test accuracy"
    return columns, f"{said} Of those without a controller that hear neighbours {rival} is the best then, by {by}."


def shortest(found: points.Sweep) -> float | None:
    """The simulated seconds after which the first member of any arm has ended, which all others have had. Agents alone
    do not count, unless there are no others: they send nothing, are done first, and would go on learning. None without
    a clock."""
    ends: dict[bool, list[float]] = {False: [], True: []}
    for point in found.points:
        ends[gains.is_alone(point.values.get("arm", ""))] += points.last_of(point.members, "simulated_seconds")
    return min(ends[False] or ends[True], default=None)


def table_of(found: points.Sweep, baseline: str = gains.ALONE) -> str:
    """The table of an experiment in Markdown, arms best first, and what its numbers are. Where an arm, or one of each
    group, is called `baseline`, a column says what the others gain over it."""
    (first, *others), (then, rival) = columns_of(found), columns_of_a_time(found)
    gained = gains.over(found.points, baseline)
    over = Column(f"minus {baseline}, points", lambda point: gains.written(gained[point.values["arm"]]))
    columns = [first, *([over] if any(gained.values()) else []), *others, *columns_of_models(found), *then]
    heads, losing = [column.head for column in columns], gains.below(gained, baseline)
    best = points.best(point.result for point in found.points)
    ranked = f" Arms stand {best}." if VALIDATED in heads else ""
    several = len(found.config["seeds"]) > 1 and any(head.startswith("minus ") for head in heads)
    paired = " Differences are paired by seed, their 95 % intervals Student's t." if several else ""

    def name(point: points.Point) -> str:
        status = point.result["status"]
        return point.values["arm"] + ("" if status == DONE else f" ({status})")

    lines = [
        f"`{found.config['command']}`\n",
        f"Seeds {', '.join(map(str, found.config['seeds']))}. {said_of_arms(found.config)}"
        "Accuracy: mean of agents, mean ± standard deviation over "
        "seeds; the worst agent of any seed; of all else the mean over seeds. Megabytes: over all links and rounds, "
        f"those of the busiest agent as bitmaps or floats.{ranked}{paired}{losing and f' {losing}'}{rival}\n",
        f"| arm | {' | '.join(heads)} |",
        "|---" * (1 + len(heads)) + "|",
        *(f"| {' | '.join((name(point), *(own.cell(point) for own in columns)))} |" for point in found.points),
    ]
    return "\n".join(lines) + "\n"
