"""What the paper's experiments share: arms on equal terms (steps, graph, split, seeds, evaluation), a table, a figure.

An experiment is a class that names its arms and the panels of its figure. Its folder is a sweep's, with `table.md` and
`figure.png` beside: it is stopped, resumed and reported like any.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from dslth_jax.study.config.algorithms import ALGORITHMS, defaults_of, of_some, with_own_settings
from dslth_jax.study.config.setting import described, flag
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import folders, gains, pictures, points
from dslth_jax.study.results.plots import AXES, Lines, Panel, numbers_of_seeds
from dslth_jax.study.results.points import DONE, mean_of
from dslth_jax.study.sweeping.grid import Arms, Sweep

# Accuracy over what is sent, and over rounds.
BY_BITS: Sequence[Panel] = (Panel("megabytes", "accuracy", logarithmic=True), Panel("round", "accuracy"))


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """Compare methods on equal terms."""

    agents: int = 8
    rounds: int = 100
    preset: Literal["code", "tuned"] = "tuned"
    """Bundle of switches of those arms that learn masks by scores; that of the paper takes two gradients a round."""
    lr: float | str | None = None
    """Step sizes by algorithm, dsgd=0.0125,mce-pl=0.0005@cosine for example; of those left out those of the experiment,
    searched for it, or else the algorithm's default."""
    seeds: int = 3
    """Seeds of each arm: --seed and the numbers behind it."""
    run_folders: bool = False
    """Leave a run folder for every member, as a single run does, with each agent's accuracy."""

    panels = BY_BITS  # of its figure: all of them over rounds, or all over points of axes
    baseline = gains.ALONE  # the arm, or the one of each group, over which the table says what others gain
    reads: ClassVar[tuple[str, ...]] = ()  # flags that `arms` takes up itself, so that they may be said

    def arms(self) -> Arms:
        """The settings that each arm has of its own, by its name."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Proxy(Experiment):
    """Compare methods where that is cheap enough to be repeated: 20 agents, small images, a small network."""

    agents: int = 20
    data_fraction: float = 0.2
    rounds: int = 300
    resize: int | None = 16
    """Images become so many pixels a side, each the mean of a square block; None leaves them as they are."""
    model: str | None = "conv3"
    """Network, of those that --model of experiments.cifar names; None takes the largest that fits the images."""
    batch_size: int = 64
    augment: str | None = "none"
    """What agents make of the images of each minibatch: none, crop or flip-crop; None is the preset's."""


def shared_and_own(settings: Experiment, arms: Arms) -> tuple[Sweep, Arms]:
    """The settings that all arms share, and those of each: its step size, which a flag may give anew, the given flags
    that mean something to its algorithm, and that every message of masks is really encoded unless a flag says
    otherwise. A ValueError if a flag sets what arms differ in, or means nothing to any of them."""
    differing = {"algorithm"}.union(*arms.values()) - {"lr"}
    known = described(with_own_settings(Settings))
    said = {name: getattr(settings, name) for name in known if getattr(settings, name) != known[name].default}
    for name in said.keys() & differing - {*settings.reads}:
        raise ValueError(f"{flag(name)} is set by the experiment itself: leave it out")
    steps = steps_of(settings.lr, {arm["algorithm"] for arm in arms.values()})
    shared = {name: value for name, value in said.items() if name in of_some() - {"lr"}}
    for name in shared.keys() - set().union(*(ALGORITHMS[arm["algorithm"]].flags for arm in arms.values())):
        raise ValueError(f"{flag(name)} means nothing to any arm: leave it out")
    own = {}
    for name, arm in arms.items():
        flags = ALGORITHMS[arm["algorithm"]].flags
        step = {"lr": steps[arm["algorithm"]]} if arm["algorithm"] in steps else {}
        own[name] = {key: value for key, value in {"code_every": 1, **shared}.items() if key in flags} | {**arm} | step
    common = {name: value for name, value in said.items() if name not in of_some()}
    return Sweep(**common, seeds=settings.seeds, run_folders=settings.run_folders), own


def ways(every: int, *names: str) -> dict[str, dict[str, Any]]:
    """How agents may learn, as comparisons have it, those of some names or all: alone; by masks heard every so many
    rounds (the consensus force, the paper's fusion by its aggregation tensor, FedPM); by what is heard in every round
    (the gossip of scores, weights, Dis-PFL, FedMRN). The paper's fusion, FedPM and what does not say otherwise share
    all layers. Each has the step size that was searched for it on the proxy, by validation."""
    masks, head = {"algorithm": "mce-pl", "exchange_every": every}, {"personal_layers": "last"}
    gossip = {"algorithm": "score-gossip", **head}
    known: dict[str, dict[str, Any]] = {
        "alone": {"algorithm": "independent", "lr": "0.002@cosine"},
        "force": {**masks, **head, "fusion": "force", "force_momentum": 0.5, "mask_sent": "own", "lr": "0.002@cosine"},
        "aggregation tensor": {
            **masks,
            "fusion": "tensor",
            "mask_sent": "fused",
            "personal_layers": "none",
            "lr": "0.001@cosine",
        },
        "gossip": {**gossip, "lr": "0.002@cosine"},
        "gossip, following": {**gossip, "follow": 0.5, "lr": "0.002@cosine"},
        "weights, alone": {"algorithm": "local", "lr": "0.05@cosine"},
        "weights": {"algorithm": "dsgd", "lr": "0.05@cosine"},
        "weights, personal head": {"algorithm": "dsgd", **head, "lr": "0.1@cosine"},
        "dis-pfl": {"algorithm": "dis-pfl", "lr": "0.8@cosine"},
        "fedpm": {"algorithm": "fedpm", "exchange_every": every, "lr": "1.6@cosine"},
        "fedmrn, personal head": {"algorithm": "fedmrn", **head, "lr": "0.1@cosine"},
    }
    return {name: known[name] for name in names or known}


def listed(name: str, spelled: str, kind: type[int] | type[float]) -> list[Any]:
    """The numbers that stand between commas in the value of a flag; a ValueError where one is none."""
    try:
        return [kind(word) for word in spelled.split(",")]
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{flag(name)} must be {wanted} between commas, got {spelled!r}") from None


def steps_of(
    spelled: float | str | None, names: set[str], said_by: str = "lr", kind: str = "algorithm"
) -> dict[str, str]:
    """Step sizes by the names of algorithms, or of another kind, from the spelling of a flag; a ValueError if it names
    others."""
    steps = {}
    for part in str(spelled).split(",") if spelled is not None else ():
        name, equals, step = part.partition("=")
        if not (equals and step) or name not in names:
            among = f"{kind.upper()}=STEP,... of {kind}s among {', '.join(sorted(names))}"
            raise ValueError(f"{flag(said_by)} must be {among}, got {part!r}")
        if name in steps:
            raise ValueError(f"{flag(said_by)} must say one step for {name}, got several: {spelled!r}")
        steps[name] = step
    return steps


def leave(path: Path, panels: Sequence[Panel], baseline: str = gains.ALONE) -> None:
    """table.md and figure.png, of a sweep's folder."""
    found = points.read(path, path.name)
    assert isinstance(found, points.Sweep)
    folders.replace(path / "table.md", table_of(found, baseline))
    lines, panels = lines_of(found, panels, baseline)
    pictures.lines_picture(path / "figure.png", lines, panels)
    print(f"table and figure: {path / 'table.md'}, {path / 'figure.png'}")


def lines_of(found: points.Sweep, panels: Sequence[Panel], baseline: str) -> tuple[Lines, Sequence[Panel]]:
    """The lines of a figure, and those of its panels that have any: a line for each arm over rounds, or for each rule
    over the points of an axis."""
    if not any(panel.across in AXES for panel in panels):
        return {point.values["arm"]: numbers_of_seeds(point.members) for point in found.points}, panels
    every = gains.along_axes(found.points, found.config.get("models", {}), baseline)
    drawn = [panel for panel in panels if any(own[panel.across].notna().any() for own in every.values())]
    return {rule: own for rule, own in every.items() if any(own[panel.up].notna().any() for panel in drawn)}, drawn


def said_of_arms(config: folders.Row) -> str:
    """What a table says of the images that arms learn from, where they are not as they come, of layers that arms keep
    personal, where any are, and of their step sizes."""
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
            steps.setdefault(str(step), []).append(arm)
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
    columns.append(Column(f"less {rival} then, points", lambda point: gains.written(won[point.values["arm"]])))
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
    over = Column(f"less {baseline}, points", lambda point: gains.written(gained[point.values["arm"]]))
    columns = [first, *([over] if any(gained.values()) else []), *others, *columns_of_models(found), *then]
    heads, losing = [column.head for column in columns], gains.below(gained, baseline)
    best = points.best(point.result for point in found.points)
    ranked = f" Arms stand {best}." if VALIDATED in heads else ""
    several = len(found.config["seeds"]) > 1 and any(head.startswith("less ") for head in heads)
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
