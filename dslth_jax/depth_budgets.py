"""A controller that sets how many residual blocks each agent has, by simulated time. The population's world; ours.

It acts as those of `budgets` do: at the end of rounds of exchange alone, inside the compiled program. Absent blocks
keep their place in every array; their layers keep 0 entries, as `depth` says, and are neither computed nor sent.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dslth_jax.algorithm import with_names
from dslth_jax.budgets import BAND, SMOOTHED, by_time
from dslth_jax.control import Controller

LONGEST_WAIT = 96  # exchanges before an agent tries another residual block again


def with_depths(hyper: Any, depths: Int[Array, "agents"], needs: Mapping[str, int]) -> Any:
    """The settings of agents of these depths, that keep nothing of layers which need more."""
    return hyper._replace(
        kept=with_names(lambda name, kept: jnp.where(depths >= needs.get(name, 0), kept, 0), hyper.kept)
    )


class Deep(NamedTuple):
    """What a controller of depths remembers. Leaves with a leading agents axis."""

    depth: Int[Array, "agents"]
    smoothed: Float[Array, "agents"]  # τ at this depth; 0 before its first exchange
    since: Int[Array, "agents"]  # for so many exchanges
    wait: Int[Array, "agents"]  # so many of them before a block is added
    grew: Bool[Array, "agents"]  # whether the last change was a block more


def depth(
    fewest: Int[Array | np.ndarray, "agents"], needs: Mapping[str, int], *, band: float = BAND, wait: int = 3
) -> Controller:
    """A block less where τ is beyond the deadline by more than a `band`; a block more where τ · (d + 1) / d is not
    beyond it, `wait` exchanges after the last change or later. Whoever loses the block that it has just gained waits
    twice as long from then on.

    `needs` says of each layer that an agent may lack from which depth on it has it. All begin with all blocks, keep
    `fewest` at least, and change by one at most in an exchange. τ is that of the present depth alone, smoothed.
    """
    most = max(needs.values())

    def init(hyper: Any) -> tuple[Deep, Any]:
        whole = jnp.full_like(jnp.asarray(fewest), most)
        nothing = jnp.zeros_like(whole)
        start = Deep(whole, nothing.astype(jnp.result_type(float)), nothing, nothing + wait, nothing > 0)
        return start, with_depths(hyper, whole, needs)

    def act(memory: Deep, hyper: Any, info: dict[str, Any], axis: str | None) -> tuple[Deep, Any]:
        del axis
        now, old, until = info["seconds"], memory.smoothed, info["deadline"]
        smoothed = jnp.where(old > 0, SMOOTHED * now + (1 - SMOOTHED) * old, now).astype(old.dtype)
        since = memory.since + 1
        fewer = jnp.isfinite(until) & (smoothed > until * (1 + band)) & (memory.depth > fewest)
        room = jnp.isfinite(until) & (smoothed * (memory.depth + 1) <= until * memory.depth)
        more = room & (since >= memory.wait) & (memory.depth < most)
        changed = fewer | more
        decided = Deep(
            memory.depth + more - fewer,
            jnp.where(changed, 0, smoothed),
            jnp.where(changed, 0, since),
            jnp.where(fewer & memory.grew, jnp.minimum(2 * memory.wait, LONGEST_WAIT), memory.wait),
            jnp.where(changed, more, memory.grew),
        )
        going = jax.tree.map(lambda new, old: jnp.where(info["exchanged"], new, old), decided, memory)
        return going, with_depths(hyper, going.depth, needs)

    return by_time(init, act)
