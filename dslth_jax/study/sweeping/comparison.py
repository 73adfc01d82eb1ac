"""What the paper's experiments share: arms on equal terms, that is, with the same steps, graph, split, seeds and
evaluation, and each with its own searched step size.

An experiment is a class that names its arms and the panels of its figure. Its folder is a sweep's, with a table and a
figure beside (`results.compared`): it is stopped, resumed and reported like any.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from dslth_jax.study.config.algorithms import ALGORITHMS, of_some, with_own_settings
from dslth_jax.study.config.setting import described, flag
from dslth_jax.study.config.settings import Settings
from dslth_jax.study.results import gains
from dslth_jax.study.results.plots import Panel
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
    all layers. Each has the step size that was best on the proxy, by validation; that of weights without a personal
    head was not searched."""
    masks, head = {"algorithm": "mce-pl", "exchange_every": every}, {"personal_layers": "last"}
    gossip = {"algorithm": "score-gossip", **head}
    known: dict[str, dict[str, Any]] = {
        "alone": {"algorithm": "independent", "lr": "0.002@cosine"},
        "force": {**masks, **head, "fusion": "force", "force_momentum": 0.5, "mask_sent": "own", "lr": "0.004@cosine"},
        "aggregation tensor": {
            **masks,
            "fusion": "tensor",
            "mask_sent": "fused",
            "personal_layers": "none",
            "lr": "0.002@cosine",
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
