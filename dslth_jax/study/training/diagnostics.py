"""Failure signatures of a run. Each is reported once, when it first shows, in one line."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from dslth_jax.algorithm import by_name
from dslth_jax.evaluation import Evaluation
from dslth_jax.graphs import GraphReport
from dslth_jax.study.config.algorithms import ALGORITHMS, PRESETS
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
        "that is of an agent's own mask, and the majority of several keeps another number",
    ),
}


class Symptoms:
    """What a run of resolved `settings` has shown so far. Each method yields the sentences that are new.

    `graph` is that of all rounds, None where it changes; `maskable` holds the shapes of all that has masks; `chance` is
    the accuracy of naming an agent's likeliest class.
    """

    def __init__(self, settings: Settings, graph: GraphReport | None, maskable: Any, chance: float) -> None:
        self.chance, self.reasons = chance, REASONS.get(settings.algorithm)
        self.step, self.filtered, self.alone = str(settings.lr), settings.filter_rule is not None, settings.agents == 1
        self.sizes = {name: leaf.size for name, leaf in by_name(maskable).items()}
        self.flip_rates: list[float] = []
        self.at_chance = 0
        self.said: set[str] = set()
        self.at_start = [line for said in expected(settings, graph) for line in self.once(*said)]

    def after_round(self, round: int, info: dict[str, Any]) -> Iterator[str]:
        """What the masks of one round show; `info` is the driver's, with the counts that were wanted."""
        if self.reasons is None:
            return
        wanted = by_name(info["wanted"])
        for name, kept in info["kept"].items():
            yield from self.of_layer(round, name, kept, wanted[name], *self.reasons)
        if info["listeners"].any() or self.alone:
            # The first exchange replaces the random start masks.
            self.flip_rates.append(float(info["flipped"].mean()) / sum(self.sizes.values()))
            yield from self.of_flips(round)

    def of_layer(
        self, round: int, name: str, kept: np.ndarray, wanted: np.ndarray, why_zero: str, why_other: str
    ) -> Iterator[str]:
        """Whether a layer's filters are all zero, or it keeps another number than its retention asks for."""
        layer, size = layer_name(name), self.sizes[name]
        wanted = np.minimum(wanted, size)
        if (kept == 0).any():
            sentence = (
                f"all filters of {layer} are zero in {np.sum(kept == 0)} agents (first: {np.argmin(kept)}) in round "
                f"{round}: they learn nothing any more; {why_zero}"
            )
            yield from self.once("filters", sentence)
        off = np.abs(kept - wanted) > OFF_RETENTION * wanted
        if off.any() and not (kept == 0).any() and not self.filtered:
            agent = int(np.argmax(off))
            sentence = (
                f"agent {agent} keeps {kept[agent] / size:.1%} of {layer} in round {round}, its retention asks for "
                f"{wanted[agent] / size:.1%}: {why_other}"
            )
            yield from self.once("density", sentence)

    def of_flips(self, round: int) -> Iterator[str]:
        """Whether masks do not settle: after the first exchanges, fewer bits should flip, and evenly so."""
        rates = np.array(self.flip_rates[1:])
        if len(rates) < STRETCHES * WINDOW:
            return
        first, last = rates[:WINDOW], rates[-WINDOW:]
        if last.mean() > 0.95 * first.mean() and last.mean() > 0:
            sentence = (
                f"the share of mask bits that flip does not fall: {first.mean():.3%} an exchange at first, "
                f"{last.mean():.3%} up to round {round}; take a smaller or falling --lr (such as {self.falling_step()})"
            )
            yield from self.once("flips", sentence)
        steps = np.diff(last)
        if (steps[1:] * steps[:-1] < 0).mean() > 0.8 and np.abs(steps).mean() > 0.3 * last.mean() > 0:
            sentence = (
                f"the share of mask bits that flip oscillates between {last.min():.3%} and {last.max():.3%} up to "
                f"round {round}: masks go to and fro; take a smaller --lr or --amplitude"
            )
            yield from self.once("oscillation", sentence)

    def falling_step(self) -> str:
        """A spelling of the step size with a schedule."""
        value, falls, _ = self.step.partition("@")
        return "a smaller --amplitude too" if falls else f"--lr {value}@cosine"

    def after_evaluation(self, round: int, evaluation: Evaluation) -> Iterator[str]:
        """Whether accuracy has stayed at chance for long."""
        accuracy = float(np.mean(evaluation.accuracy, dtype=np.float64))
        learning = self.chance + ABOVE_CHANCE * (1 - self.chance)
        self.at_chance = self.at_chance + 1 if round > 0 and accuracy < learning else 0
        if self.at_chance >= PATIENCE and round >= ROUNDS_AT_CHANCE:
            sentence = (
                f"mean accuracy is {accuracy:.1%} after round {round}, where a guess scores {self.chance:.1%}: nothing "
                f"is learned; try another --lr, a larger --retention, or --preset tuned"
            )
            yield from self.once("chance", sentence)

    def notes(self) -> dict[str, Any]:
        """What later symptoms depend on, for a checkpoint."""
        return {"flip_rates": self.flip_rates, "at_chance": self.at_chance, "said": sorted(self.said)}

    def go_on_from(self, notes: dict[str, Any]) -> None:
        """Take up the state in which these notes were made."""
        self.flip_rates, self.at_chance, self.said = [*notes["flip_rates"]], notes["at_chance"], {*notes["said"]}

    def once(self, signature: str, sentence: str) -> Iterator[str]:
        """The sentence, if this signature has not been said yet."""
        if signature not in self.said:
            self.said.add(signature)
            yield sentence


def expected(settings: Settings, graph: GraphReport | None) -> Iterator[tuple[str, str]]:
    """What can be expected from resolved settings alone: signatures and sentences."""
    step, fine_tuning = settings.lr, settings.fine_tune_lr
    usual = PRESETS[settings.preset]["fine_tune_lr"]
    if fine_tuning is not None and fine_tuning == usual and not same_step(step, fine_tuning):
        yield "steps", f"--lr is {step} and --fine-tune-lr {fine_tuning}: --fine-tune-lr same makes it follow"
    sends_nothing = ALGORITHMS[settings.algorithm].sends == "nothing"
    if sends_nothing or settings.agents == 1 or graph is None:
        return
    if alone := graph.isolated:
        listed = ", ".join(map(str, alone[:10])) + (", ..." if len(alone) > 10 else "")
        yield "alone", f"{len(alone)} of {settings.agents} agents hear nobody and learn alone: {listed}"
    elif not graph.connected:
        sent = "weights" if settings.algorithm in ("dsgd", "dis-pfl") else "masks"
        yield "apart", f"the graph is not connected: some agents' {sent} never reach some others"


def same_step(one: float | str | None, other: float | str) -> bool:
    """Whether two step sizes are the same, however they are spelled."""
    try:
        return float(one or 0) == float(other)
    except ValueError:
        return str(one) == str(other)


def layer_name(name: str) -> str:
    """What a user calls a layer: its module, without the kernel's own name."""
    return name.rpartition("/")[0] or name
