"""Whose each sample is, as the data says. Host side, numpy."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from dslth_jax.tested_on import Labels

Owners = Shaped[np.ndarray, "_"]  # of samples: whole numbers, or words


def owners(owner: Owners, agents: int) -> list[Any]:
    """The owner that each agent is, in the order of agents; a ValueError where there are not as many."""
    nobody = "" if owner.dtype.kind == "U" else -1
    names = [name for name in np.unique(owner).tolist() if name != nobody]
    if nobody == -1 and all(0 <= name < agents for name in names):
        return list(range(agents))
    if len(names) != agents:
        raise ValueError(f"owner must name {agents} agents, got {len(names)} owners: take as many agents")
    return names


def expect_owners(name: str, owner: Owners, labels: Labels) -> None:
    """Raise a ValueError unless each sample has an owner that can be told."""
    if owner.dtype.kind not in "iuU":
        raise ValueError(f"{name} must be whole numbers or words, got {owner.dtype}")
    if owner.shape != labels.shape:
        raise ValueError(f"{name} must say whose each of {len(labels)} samples is, got {owner.shape} owners")
