"""What the paper's experiments share: arms on equal terms, that is, with the same steps, graph, split, seeds and
evaluation, and each with its own searched step size.

An experiment is a class that names its arms and the panels of its figure. Its folder is a sweep's, with a table and a
figure beside (`results.compared`): it is stopped, resumed and reported like any.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from dslth_jax.study.config.algorithms import ALGORITHMS, of_some, with_own_settings
from dslth_jax.study.config.setting import choices, described, flag
from dslth_jax.study.config.settings import SETTINGS, Settings
from dslth_jax.study.results import gains
from dslth_jax.study.results.compared import BY_BITS
from dslth_jax.study.sweeping.grid import Arms, Sweep

PROXY = "conv3"  # the network in which experiments are cheap enough to be repeated
OPTIMIZERS = choices(SETTINGS["optimizer"].hint)

# The step size of each way to learn, by network: the best by validation or level with it, but where
# experiments/results/ says that it was not searched, or chosen by test images. A network that is not here takes the
# proxy's steps. Where one of these lacks a way, MCE-PL and gossip take its step of masks alone, and all else the
# default of the algorithm, as nearly everything does in the AlexNet. Steps are of the algorithm's own optimizer unless
# they name another (`at_step`).
STEPS: dict[str, dict[str, str]] = {
    PROXY: {
        "alone": "0.002@cosine",
        "force": "0.004@cosine",
        "mce-pl, every round": "0.002@cosine",
        "aggregation tensor": "0.002@cosine",
        "aggregation tensor, every round": "0.001@cosine",
        "majority": "0.0005@cosine",
        "gossip": "0.002@cosine",
        "gossip, following": "0.002@cosine",
        "weights, alone": "adam:0.004@cosine",
        "weights": "adam:0.001",
        "weights, personal head": "adam:0.008@cosine",
        "dis-pfl": "0.8@cosine",
        "fedpm, personal head": "0.8@cosine",
        "fedmrn, personal head": "0.1@cosine",
    },
    "alexnet": {"weights, alone": "adam:0.001@cosine", "weights, personal head": "adam:0.001@cosine"},
    "conv6": {"alone": "0.001@cosine", "weights, alone": "adam:0.002@cosine"},
    "vgg11": {"alone": "0.0005@cosine", "weights, alone": "adam:0.001@cosine"},
    "resnet20": {"alone": "0.001@cosine", "weights, alone": "adam:0.002@cosine"},
    "resnet18": {"alone": "0.001@cosine", "weights, alone": "adam:0.002@cosine"},
    "mobilenetv2": {"alone": "0.002@cosine", "weights, alone": "adam:0.004@cosine"},
    "vit-tiny": {"alone": "0.002@cosine", "weights, alone": "adam:0.004@cosine"},
}


@dataclasses.dataclass(frozen=True)
class Experiment(Settings):
    """Compare methods on equal terms."""

    agents: int = 8
    rounds: int = 100
    preset: Literal["code", "tuned"] = "tuned"
    """Bundle of switches of those arms that learn masks by scores; that of the paper takes two gradients a round."""
    lr: float | str | None = None
    """Step sizes by algorithm, dsgd=0.0125,mce-pl=0.0005@cosine for example, each of the algorithm's own optimizer or
    the one that it names, dsgd=adam:0.001; of those left out those of the experiment, searched for it, or else the
    algorithm's default."""
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
    model: str | None = PROXY
    """Network, of those that --model of experiments.cifar names; None takes the largest that fits the images, at the
    step sizes of conv3."""
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
        at = at_step(arm, steps.get(arm["algorithm"]))
        own[name] = {key: value for key, value in {"code_every": 1, **shared}.items() if key in flags} | at
    common = {name: value for name, value in said.items() if name not in of_some()}
    return Sweep(**common, seeds=settings.seeds, run_folders=settings.run_folders), own


def at_step(arm: Mapping[str, Any], step: str | None) -> dict[str, Any]:
    """An arm at a step, 0.1@cosine of its algorithm's own optimizer or adam:0.001@cosine; as it is where there is none.

    >>> at_step({"algorithm": "dsgd"}, "adam:0.001@cosine")
    {'algorithm': 'dsgd', 'optimizer': 'adam', 'lr': '0.001@cosine'}
    """
    if step is None:
        return {**arm}
    first, _, rest = step.partition(":")
    own = {name: value for name, value in arm.items() if name != "optimizer"}
    return own | ({"optimizer": first, "lr": rest} if first in OPTIMIZERS else {"lr": step})


def ways(network: str | None, every: int, *names: str) -> dict[str, dict[str, Any]]:
    """How agents may learn, as comparisons have it: the ways of these names or all of them, each with its step size in
    the network (`STEPS`). Agents learn alone, or hear neighbours' masks every so many rounds (by the consensus force,
    the paper's aggregation tensor, FedPM), or hear neighbours in every round unless a flag says otherwise (all other
    ways). The last layer is personal with gossip and the force, MCE-PL in every round, and where a name says so."""
    often, head = {"exchange_every": every}, {"personal_layers": "last"}
    tensor = {"algorithm": "mce-pl", "fusion": "tensor", "mask_sent": "fused", "personal_layers": "none"}
    force = {"algorithm": "mce-pl", **head, "fusion": "force", "mask_sent": "own", "force_momentum": 0.5}
    gossip = {"algorithm": "score-gossip", **head}
    known: dict[str, dict[str, Any]] = {
        "alone": {"algorithm": "independent"},
        "force": {**force, **often},
        "mce-pl, every round": {"algorithm": "mce-pl", **head},
        "aggregation tensor": {**tensor, **often},
        "aggregation tensor, every round": tensor,
        "majority": {"algorithm": "mask-mean", "personal_layers": "none"},
        "gossip": gossip,
        "gossip, following": {**gossip, "follow": 0.5},
        "weights, alone": {"algorithm": "local"},
        "weights": {"algorithm": "dsgd"},
        "weights, personal head": {"algorithm": "dsgd", **head},
        "dis-pfl": {"algorithm": "dis-pfl"},
        "fedpm, personal head": {"algorithm": "fedpm", **head, **often},
        "fedmrn, personal head": {"algorithm": "fedmrn", **head},
    }
    steps = STEPS.get(network or PROXY, STEPS[PROXY])

    def step_of(name: str) -> str | None:
        like_alone = known[name]["algorithm"] in ("mce-pl", "score-gossip")
        return steps.get(name, steps.get("alone") if like_alone else None)

    return {name: at_step(known[name], step_of(name)) for name in names or known}


def interval(said: Any) -> int:
    """The rounds from one exchange to the next: those of `--every`, or all that there are where it is left at its
    default; a ValueError where others were asked for than there are."""
    if "every" in said.given and said.every > said.rounds:
        raise ValueError(f"--every must be at most --rounds, got {said.every} and {said.rounds}: exchange more often")
    return int(min(said.every, said.rounds))


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
