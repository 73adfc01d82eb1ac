"""What an arm of a comparison gains over another: differences paired by seed, with an interval.

An arm is named "RULE", or "GROUP: RULE" where arms come in groups; a group that is a point of an axis is named as
"width 0.5". Arms are compared with the one of their own group that is called as `ALONE`, or with one by its whole name.
"""

import math
import re
import statistics
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from dslth_jax.study.results.folders import Row
from dslth_jax.study.results.plots import AXES
from dslth_jax.study.results.points import Point, last_of, mean_at, ranked_by, reached

ALONE = "alone"
CERTAIN = 0.95  # of intervals


class Gain(NamedTuple):
    """How far one arm is above another: shares of 1, or of 100 where they are written."""

    mean: float
    low: float  # and the ends of the interval; -inf and inf where a single seed is known
    high: float
    lost: int = 0  # seeds without a pair, because one of the two did not stay finite


def gain(members: Sequence[Sequence[Row]], others: Sequence[Sequence[Row]]) -> Gain | None:
    """The gain in accuracy of one arm over another at their last rows. Both are lists of a seed's rows, in the order of
    seeds.

    >>> one, other = ([[{"accuracy_mean": value}] for value in own] for own in ((0.5, 0.75), (0.25, 0.5)))
    >>> gain(one, other)
    Gain(mean=0.25, low=0.25, high=0.25, lost=0)
    """

    def ends(runs: Sequence[Sequence[Row]]) -> list[float | None]:
        return [next(iter(last_of([rows], "accuracy_mean")), None) for rows in runs]

    return paired(ends(members), ends(others))


def paired(ones: Sequence[float | None], others: Sequence[float | None]) -> Gain | None:
    """The mean difference of numbers that are paired by seed, with the 95 % interval of Student's t; None where no seed
    has both.

    >>> paired([0.5, None], [0.25, 0.5])
    Gain(mean=0.25, low=-inf, high=inf, lost=1)
    """
    pairs = [*zip(ones, others, strict=False)]
    differences = [one - other for one, other in pairs if one is not None and other is not None]
    if not differences:
        return None
    mean, seeds = statistics.fmean(differences), len(differences)
    lost = len(pairs) - seeds
    if seeds == 1:
        return Gain(mean, -math.inf, math.inf, lost)
    half = float(student.ppf((1 + CERTAIN) / 2, seeds - 1)) * statistics.stdev(differences) / math.sqrt(seeds)
    return Gain(mean, mean - half, mean + half, lost)


def written(own: Gain | None) -> str:
    """A gain in percentage points, with its interval and the seeds that are not in it; empty where there is none.

    >>> written(Gain(0.021, 0.0035, 0.0385)), written(Gain(-0.021, -math.inf, math.inf, 2)), written(None)
    ('+2.1 (+0.4 to +3.9)', '-2.1, 2 lost', '')
    """
    if own is None:
        return ""
    mean, low, high = (f"{100 * number:+.1f}" for number in own[:3])
    said = f"{mean} ({low} to {high})" if math.isfinite(own.low) else mean
    return f"{said}, {own.lost} lost" if own.lost else said


def group_and_rule(arm: str) -> tuple[str, str]:
    """The group that an arm is of, empty if it is of none, and the rule that it follows.

    >>> group_and_rule("overlap 0.5: force, every 10"), group_and_rule("force, every 10")
    (('overlap 0.5', 'force, every 10'), ('', 'force, every 10'))
    """
    group, colon, rule = arm.rpartition(": ")
    return (group, rule) if colon else ("", arm)


def is_alone(arm: str) -> bool:
    """Whether an arm, or the rule that it follows in its group, is called `ALONE`."""
    return group_and_rule(arm)[1] == ALONE


def place_on_axis(group: str) -> tuple[str, float] | None:
    """The axis and the number on it that a group is named by; None where it is no point of an axis.

    >>> place_on_axis("overlap 0.5"), place_on_axis("4 classes, ring"), place_on_axis("version 1.2.3")
    (('overlap', 0.5), None, None)
    """
    found = re.fullmatch(r"([a-z]+) (\d+(?:\.\d+)?(?:e[+-]?\d+)?)", group)
    return (found[1], float(found[2])) if found else None


def over(points: Sequence[Point], baseline: str = ALONE) -> dict[str, Gain | None]:
    """The gain of every arm, by its name, over the arm that is called `baseline`, or over that of its own group; None
    for arms that are compared with none, and for these themselves."""
    arms = {point.values["arm"]: point.members for point in points}
    gains: dict[str, Gain | None] = {}
    for arm, members in arms.items():
        group, _ = group_and_rule(arm)
        own = baseline if baseline in arms else f"{group}: {baseline}"
        gains[arm] = gain(members, arms[own]) if own in arms and own != arm else None
    return gains


def over_the_best(
    points: Sequence[Point], among: Collection[str], seconds: float
) -> tuple[str, str, dict[str, Gain | None]] | None:
    """The arm among those named that is best after so many simulated seconds; the accuracy that says so, on what is
    held back if all have it; and the gain of every other arm over it at that time. None where none of them has that
    accuracy with every seed."""
    arms = {point.values["arm"]: point.members for point in points}
    ranked = ranked_by(rows[-1] for members in arms.values() for rows in members if rows)
    whole = [arm for arm in among if None not in reached(arms[arm], seconds, ranked) and arms[arm]]
    if not whole:
        return None
    best = max(whole, key=lambda arm: mean_at(arms[arm], seconds, ranked) or 0.0)
    accuracy = {arm: reached(members, seconds) for arm, members in arms.items()}
    gains = {arm: paired(own, accuracy[best]) if arm != best else None for arm, own in accuracy.items()}
    return best, ranked, gains


def below(gains: dict[str, Gain | None], baseline: str = ALONE) -> str:
    """One sentence on the arms whose whole interval lies below 0, group by group along axes, from large to small: where
    they begin to lose. Empty where no arm has an interval."""
    known = {arm: own for arm, own in gains.items() if own is not None and math.isfinite(own.low)}
    if not known:
        return ""
    losing: dict[str, list[str]] = {}
    for arm in sorted((arm for arm, own in known.items() if own.high < 0), key=order_of):
        group, rule = group_and_rule(arm)
        losing.setdefault(rule, []).append(group)
    said = [rule + (f" at {', '.join(groups)}" if any(groups) else "") for rule, groups in losing.items()]
    return f"Below {baseline} by their whole interval: {'; '.join(said) or 'none'}."


def order_of(arm: str) -> tuple[str, float]:
    """Where an arm stands among those of its axis, those of the largest numbers first."""
    place = place_on_axis(group_and_rule(arm)[0])
    return (place[0], -place[1]) if place else ("", 0.0)


def along_axes(points: Sequence[Point], models: dict[str, Row], baseline: str = ALONE) -> dict[str, pd.DataFrame]:
    """A table for each rule, of a row for each group that is a point of an axis, in the order of these, or whose
    networks `models` knows: its name and place on the axis, accuracy (with the lowest and the highest of seeds) and
    gain (with its interval) in percent, and what `models` says of its model. What is not known is nan."""
    gains, rows = over(points, baseline), dict[str, list[Row]]()
    for point in sorted(points, key=lambda point: order_of(point.values["arm"]), reverse=True):
        arm = point.values["arm"]
        group, rule = group_and_rule(arm)
        place, accuracies = place_on_axis(group), last_of(point.members, "accuracy_mean")
        if not accuracies or (place is None and arm not in models):
            continue
        own = gains[arm]
        bounds = [100 * (end if math.isfinite(end) else own.mean) for end in (own.low, own.high)] if own else []
        row: Row = {"group": group, "accuracy": 100 * statistics.fmean(accuracies), **models.get(arm, {})}
        row |= {} if place is None else {place[0]: place[1]}
        row |= {"accuracy_low": 100 * min(accuracies), "accuracy_high": 100 * max(accuracies)}
        row |= dict(
            zip(("gain", "gain_low", "gain_high"), [100 * own.mean, *bounds] if own else [np.nan] * 3, strict=True)
        )
        rows.setdefault(rule, []).append(row)
    columns = [*dict.fromkeys(("gain", *AXES, *(key for own in rows.values() for row in own for key in row)))]
    return {rule: pd.DataFrame(own).reindex(columns=columns) for rule, own in rows.items()}
