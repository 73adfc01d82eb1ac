"""What is known of a run's simulated time before it starts, in sentences. Host side."""

import math

import numpy as np

from dslth_jax.budgets import INTERVALS, bandit, exchanges_to_try, prunefl
from dslth_jax.schedules import constant
from dslth_jax.study.config.algorithms import ALGORITHMS
from dslth_jax.study.config.numbers import numbers_of
from dslth_jax.study.config.spellings import CONTROLLERS
from dslth_jax.study.training.budget import least_seconds, little_bought
from dslth_jax.study.training.plan import Prepared

KEPT = ("retention", "linear_retention")


def said_of_time(prepared: Prepared) -> list[str]:
    """What is known of a run's simulated time before it starts, a sentence each: who cannot make the deadline, whether
    retention buys any time, and whether there is enough of it to choose one."""
    sends_masks = ALGORITHMS[prepared.settings.algorithm].bits == "masks"  # whose bits go by what is kept
    links = (prepared.adjacency != 0).sum(axis=0) * sends_masks
    by_layer = sets_layers(prepared)
    little = little_bought(prepared.budget, prepared.costs, prepared.hyper, links, by_layer)
    return [*out_of_reach(prepared), *little, *too_short(prepared)]


def too_short(prepared: Prepared) -> list[str]:
    """A sentence if a bandit is to choose among retentions, and the run ends before it has tried them all."""
    limits = prepared.budget.limits if prepared.budget else None
    if limits is None or CONTROLLERS.get(str(prepared.settings.controller)) is not bandit:
        return []
    exchanges, tries = prepared.course.exchanges(prepared.course.rounds), exchanges_to_try(limits)
    longer = int(np.sum(tries >= exchanges))
    if not longer:
        return []
    return [
        f"--controller bandit has tried each of {INTERVALS} retentions after {tries.max()} exchanges, and there are "
        f"{exchanges} in this run: for {longer} of {prepared.agents} agents it ends before anything is chosen"
    ]


def sets_layers(prepared: Prepared) -> bool:
    """Whether a controller gives each layer a share of its own."""
    return CONTROLLERS.get(str(prepared.settings.controller)) is prunefl


def out_of_reach(prepared: Prepared) -> list[str]:
    """A sentence if some agents cannot make the deadline, whatever they send; none where that is not known."""
    budget, costs = prepared.budget, prepared.costs
    if budget is None or costs is None or not 0 < budget.deadline < math.inf:
        return []
    seconds = least_seconds(budget, costs, prepared.hyper, sets_layers(prepared))
    slowest, over = int(np.argmax(seconds)), int(np.sum(seconds > budget.deadline))
    if not over:
        return []
    takes = f"computing alone takes agent {slowest} {seconds[slowest]:.3g} simulated seconds a round"
    more = f"{over} of {prepared.agents} agents more than the deadline of {float(budget.deadline):.3g}"
    what = "no number of blocks" if budget.fewest is not None else "no retention"
    # Seconds are the least that there can be only where retention takes no time, or where a controller alone sets it.
    least = not costs.sparse or budget.fewest is not None or (budget.limits is not None and not has_schedule(prepared))
    if least:
        return [f"{takes}, and {more}: {what} brings them below it, and rounds wait for them"]
    return [f"{takes}, and {more}: rounds wait for them while they keep as much as in the first round"]


def has_schedule(prepared: Prepared) -> bool:
    """Whether a schedule sets how much agents keep."""
    numbers = numbers_of(prepared.settings)
    return any(numbers[name].schedule is not constant for name in KEPT if name in numbers)
