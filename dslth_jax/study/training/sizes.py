"""How large the models are that the members of a study learn, known before they train."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dslth_jax.algorithm import by_masked_name
from dslth_jax.keys import key_of
from dslth_jax.networks.cost import multiply_adds, positions_of, sizes_of
from dslth_jax.study.training.plan import Prepared


def models_of(members: Sequence[Prepared]) -> list[dict[str, Any]]:
    """Of each member, what a model takes: `model_bits`, one an entry of a mask and 32 an entry of weights; and
    `multiply_adds` of a sample by the entries that agents are to keep, the mean over agents, or by all where an
    algorithm keeps no certain number. None where a network's multiply-adds cannot be seen."""
    positions: dict[int, dict[str, int] | None] = {}  # by network, which members have in common

    def seen(member: Prepared) -> dict[str, int] | None:
        height, width, channels = member.train.images.shape[1:]
        try:
            return positions_of(member.network, (height, width, channels))
        except ValueError:
            return None

    def model_of(member: Prepared) -> dict[str, Any]:
        masked, _ = jax.eval_shape(member.network.init, key_of(0))
        sizes, own = sizes_of(masked), id(member.network)
        if own not in positions:
            positions[own] = seen(member)
        kept = sizes | by_masked_name(getattr(member.hyper, "kept", {}))
        of_mask = 2 if member.settings.mask == "ternary" else 1
        found = positions[own]
        return {
            "model_bits": sum(sizes.values()) * (of_mask if member.algorithm.of_masks else 32),
            "multiply_adds": None if found is None else float(np.asarray(multiply_adds(found, kept)).mean()),
        }

    return [model_of(member) for member in members]
