"""Class lists: which classes each agent holds, before any sample is dealt. Host side, numpy; the population's world."""

from collections.abc import Sequence

import numpy as np


def draw_classes(agents: int, classes: int, classes_per_agent: int, rng: np.random.Generator) -> list[list[int]]:
    """`classes_per_agent` different classes for every agent, uniformly at random."""
    return [sorted(rng.choice(classes, classes_per_agent, replace=False).tolist()) for _ in range(agents)]


def window_classes(
    agents: int, classes: int, per_agent: int, overlap: float, rng: np.random.Generator
) -> list[list[int]]:
    """A window of `per_agent` classes that moves on from agent to agent, so that an agent and the next one share
    `overlap` of their classes. Ours.

    The classes are put in a random order, which ends where it begins, and the window moves by per_agent (1 - overlap)
    of them. So on a ring of agents all neighbours share the same; the last agent and the first do if the moves of all
    agents together go round the classes a whole number of times, as those of 20 agents do with 10 classes. Raises a
    ValueError if the window would not move by whole classes, or would meet its own other end.

    >>> window_classes(3, classes=10, per_agent=4, overlap=1.0, rng=np.random.default_rng(0))[0]
    [2, 4, 6, 7]
    >>> held = window_classes(20, classes=10, per_agent=4, overlap=0.25, rng=np.random.default_rng(0))
    >>> {len({*own} & {*other}) for own, other in zip(held, held[1:] + held[:1])}
    {1}
    """
    if per_agent not in range(1, classes + 1):
        raise ValueError(f"per_agent must lie in 1..{classes}, the classes that there are, got {per_agent}")
    move = round(per_agent * (1 - overlap)) if 0 <= overlap <= 1 else -1
    if not abs(per_agent * (1 - overlap) - move) <= 1e-6:  # of nan too
        among = ", ".join(f"{shared / per_agent:.4g}" for shared in range(per_agent + 1))
        raise ValueError(f"overlap must be a share of the {per_agent} classes, one of {among}, got {overlap:g}")
    if move + per_agent > classes:
        raise ValueError(
            f"overlap must be at least {2 - classes / per_agent:.4g}, as two agents of {per_agent} classes each share "
            f"that of {classes} in any case, got {overlap:g}: take a larger one, or fewer classes an agent"
        )
    order = rng.permutation(classes)
    windows: Sequence[np.ndarray] = [order[(agent * move + np.arange(per_agent)) % classes] for agent in range(agents)]
    return [sorted(window.tolist()) for window in windows]
