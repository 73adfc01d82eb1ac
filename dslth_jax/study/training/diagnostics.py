"""Failure signatures of a run. Each is reported once, when it first shows, in one line."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from dslth_jax.algorithm import by_name
from dslth_jax.evaluation import Evaluation
from dslth_jax.graph_report import GraphReport
from dslth_jax.networks.network import Role
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS
from dslth_jax.study.config.mortality import dies_for_good
from dslth_jax.study.config.setting import spelled
from dslth_jax.study.config.settings import Settings

OFF_RETENTION = 0.01  # relative; counts are exact unless scores are zero
WINDOW = 50  # exchanges over which flip rates are compared
STRETCHES = 4  # so many windows must have passed: masks flip more, not less, while learning starts
PATIENCE = 3  # evaluations at chance in a row, and
ROUNDS_AT_CHANCE = 50  # at least so many rounds of training
ABOVE_CHANCE = 0.02  # of what a guess leaves to gain, the share that counts as learning

# For algorithms whose masks keep a given number of entries: why a layer keeps none, or fewer than wanted.
REASONS = {
    "mce-pl": (
        "take a smaller --group-lasso or --lr, or --revive",
        "the other scores are exactly zero; take a smaller --group-lasso, or --revive",
    ),
    "mask-mean": (
        "majorities of masks that differ keep ever less; take a larger --retention, or --algorithm mce-pl",
        "retention applies to an agent's own mask; the majority of several keeps another number",
    ),
}
Signs = Iterator[tuple[str, str]]  # signatures, each with its sentence


@dataclasses.dataclass
class Seen:
    """What later symptoms depend on."""

    flip_rates: list[float] = dataclasses.field(default_factory=list)
    at_chance: int = 0
    said: list[str] = dataclasses.field(default_factory=list)


class Symptoms:
    """What a run of resolved settings has shown so far: sentences as they are new. `graph` is that of all rounds, None
    where it changes; `maskable` has the shapes of all masks; `chance` is the accuracy of naming an agent's likeliest
    class."""

    def __init__(
        self,
        settings: Settings,
        graph: GraphReport | None,
        maskable: Any,
        chance: float,
        roles: Mapping[str, Role] | None = None,
    ) -> None:
        self.chance, self.algorithm = chance, settings.algorithm
        self.pull = "--force" if settings.fusion == "force" else "--amplitude"
        # Which layers keep how much, masks say.
        self.shared_out = settings.retention_policy == "global" or dies_for_good(settings)
        self.step, self.filtered, self.alone = str(settings.lr), settings.filter_rule is not None, settings.agents == 1
        self.sizes = {name: leaf.size for name, leaf in by_name(maskable).items()}
        self.seen = Seen()
        self.at_start = list(self.new([*expected(settings, graph), *without_effect(settings, roles or {})]))

    def new(self, signs: Iterable[tuple[str, str]]) -> Iterator[str]:
        """The sentences of signatures that have not been said yet."""
        for signature, sentence in signs:
            if signature not in self.seen.said:
                self.seen.said.append(signature)
                yield sentence

    def after_round(self, round: int, info: dict[str, Any], flip_rate: float | None) -> Iterator[str]:
        """What the masks of one round show; `info` is the driver's, with the counts that were wanted, and `flip_rate`
        the share of the bits of its messages that differ from those before, as metrics have it."""
        if self.algorithm not in REASONS:
            return
        wanted = by_name(info["wanted"])
        for name, kept in info["kept"].items():
            yield from self.new(self.of_layer(round, name, kept, wanted[name]))
        if flip_rate is not None and (info["listeners"].any() or self.alone):
            self.seen.flip_rates.append(flip_rate)
            yield from self.new(self.of_flips(round))

    def of_layer(self, round: int, name: str, kept: np.ndarray, wanted: np.ndarray) -> Signs:
        """Whether a layer's filters are all zero, or it keeps another number than its retention asks for."""
        size, layer = self.sizes[name], name.rpartition("/")[0] or name  # a user calls it by its module
        wanted, (why_zero, why_other) = np.minimum(wanted, size), REASONS[self.algorithm]
        off = np.abs(kept - wanted) > OFF_RETENTION * wanted
        dead = (kept == 0) & (wanted > 0)
        if dead.any():
            yield (
                "filters",
                f"all filters of {layer} are zero in {dead.sum()} agents (first: {np.argmax(dead)}) in round "
                f"{round}: they learn nothing any more; {why_zero}",
            )
        elif off.any() and not self.filtered and not self.shared_out:
            agent = int(np.argmax(off))
            yield (
                "density",
                f"agent {agent} keeps {kept[agent] / size:.1%} of {layer} in round {round}, its retention asks for "
                f"{wanted[agent] / size:.1%}: {why_other}",
            )

    def of_flips(self, round: int) -> Signs:
        """Whether masks do not settle: after the first exchanges, fewer bits should flip, and evenly so."""
        rates = np.array(self.seen.flip_rates[1:])  # the first exchange replaces the random start masks
        if len(rates) < STRETCHES * WINDOW:
            return
        first, last = rates[:WINDOW], rates[-WINDOW:]
        if last.mean() > 0.95 * first.mean() and last.mean() > 0:
            value, falls, _ = self.step.partition("@")
            falling = f"a smaller {self.pull} too" if falls else f"--lr {value}@cosine"
            yield (
                "flips",
                f"the share of mask bits that flip does not fall: {first.mean():.3%} an exchange at first, "
                f"{last.mean():.3%} up to round {round}; take a smaller or falling --lr (such as {falling})",
            )
        steps = np.diff(last)
        if (steps[1:] * steps[:-1] < 0).mean() > 0.8 and np.abs(steps).mean() > 0.3 * last.mean() > 0:
            yield (
                "oscillation",
                f"the share of mask bits that flip oscillates between {last.min():.3%} and {last.max():.3%} up to "
                f"round {round}: masks go to and fro; take a smaller --lr or {self.pull}",
            )

    def after_evaluation(self, round: int, evaluation: Evaluation) -> Iterator[str]:
        """Whether accuracy has stayed at chance for long."""
        accuracy = float(np.mean(evaluation.accuracy, dtype=np.float64))
        learning = self.chance + ABOVE_CHANCE * (1 - self.chance)
        self.seen.at_chance = self.seen.at_chance + 1 if round > 0 and accuracy < learning else 0
        if self.seen.at_chance >= PATIENCE and round >= ROUNDS_AT_CHANCE:
            sentence = (
                f"mean test accuracy is {accuracy:.1%} after round {round}, chance level {self.chance:.1%}: nothing "
                f"is learned; try another --lr, a larger --retention, or --preset tuned"
            )
            yield from self.new([("chance", sentence)])


def without_effect(settings: Settings, roles: Mapping[str, Role]) -> Signs:
    """What was said and changes nothing, in a network whose layers have these roles."""
    shares = settings.retention, settings.linear_retention
    only_linear = ALGORITHMS[settings.algorithm].by_scores and not {"convolution"} & set(roles.values())
    fixed = settings.retention_policy == "fixed-linear"
    if only_linear and fixed and "retention" in settings.given and spelled(shares[0]) != spelled(shares[1]):
        yield (
            "retention",
            (
                f"--retention {shares[0]} changes nothing, for --model {settings.model} has no convolutions: "
                f"say --linear-retention, which is {shares[1]}"
            ),
        )


def at_the_seam(settings: Settings, held: Int[np.ndarray, "agents classes"]) -> list[str]:
    """A sentence if windows of classes do not close on a ring: if the last agent and the first, who hear each other,
    share another number of classes than all other neighbours do. `held` are everybody's samples of each class.

    >>> at_the_seam(Settings(partition="overlapping:0.5:2", topology="ring"), np.array([[1, 1, 0], [0, 1, 1]]))
    []
    """
    if not str(settings.partition).startswith("overlapping") or settings.topology != "ring":
        return []
    holds = held > 0
    shared = np.sum(holds & np.roll(holds, -1, axis=0), axis=1)  # of each with the next one, the first behind the last
    if shared[-1] == shared[0]:
        return []
    classes, move = held.shape[1], int(holds[0].sum() - shared[0])
    return [
        f"the last agent and the first share {shared[-1]} classes, all other neighbours on the ring {shared[0]}: take "
        f"a multiple of {classes // math.gcd(move, classes)} agents, with which the classes go round"
    ]


def expected(settings: Settings, graph: GraphReport | None) -> Signs:
    """What can be expected from resolved settings alone."""
    step, fine_tuning = settings.lr, settings.fine_tune_lr
    usual = PRESETS[settings.preset]["fine_tune_lr"]
    if fine_tuning is not None and fine_tuning == usual and spelled(step) != spelled(fine_tuning):
        yield "steps", f"--lr is {step} and --fine-tune-lr {fine_tuning}: --fine-tune-lr same makes it follow"
    if ALGORITHMS[settings.algorithm].sends == "nothing" or settings.agents == 1 or graph is None:
        return
    if alone := graph.isolated:
        listed = ", ".join(map(str, alone[:10])) + (", ..." if len(alone) > 10 else "")
        yield "alone", f"{len(alone)} of {settings.agents} agents hear nobody and learn alone: {listed}"
    elif not graph.connected:
        yield "apart", "the graph is not connected: some agents' messages never reach some others"
