"""What is known of a run's simulated time before it starts, in sentences. Host side."""

import math

import numpy as np

from dslth_jax.study.config.algorithms import ALGORITHMS
from dslth_jax.study.training.budget import least_seconds, little_bought
from dslth_jax.study.training.plan import Prepared


def said_of_time(prepared: Prepared) -> list[str]:
    """What is known of a run's simulated time before it starts, a sentence each: who cannot make the deadline, and
    whether retention buys any time."""
    sends = ALGORITHMS[prepared.settings.algorithm].sends != "nothing"
    links = (prepared.adjacency != 0).sum(axis=0) * sends
    little = little_bought(prepared.budget, prepared.costs, prepared.hyper, links)
    return [*out_of_reach(prepared), *little]


def out_of_reach(prepared: Prepared) -> list[str]:
    """A sentence if some agents cannot make the deadline, whatever they send; none where that is not known."""
    budget, costs = prepared.budget, prepared.costs
    if budget is None or costs is None or not 0 < budget.deadline < math.inf:
        return []
    seconds = least_seconds(budget, costs, prepared.hyper)
    slowest, over = int(np.argmax(seconds)), int(np.sum(seconds > budget.deadline))
    if not over:
        return []
    what = "no number of blocks" if prepared.settings.controller == "depth" else "no retention"
    return [
        f"computing alone takes agent {slowest} {seconds[slowest]:.3g} simulated seconds a round, and {over} of "
        f"{prepared.agents} agents more than the deadline of {float(budget.deadline):.3g}: {what} brings them below "
        f"it, and rounds wait for them"
    ]
