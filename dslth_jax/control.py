"""Budgets from round to round: what sets every agent's traced settings. The population's world.

A `Controller` is pure functions inside the compiled program. It always gets the run's own values, so that its
changes do not compound. Counts and step sizes are traced, and nothing recompiles.
Those that set budgets by simulated time stand in `budgets`.
"""

from functools import reduce
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dslth_jax.schedules import at_round


class Control(NamedTuple):
    """What a controller has said. Leaves carry a leading agents axis."""

    memory: Any
    used: Any  # the settings of the round that ran last; of the first round before it
    next: Any  # those of the round to come


class Start(Protocol):
    """What a controller begins with."""

    def __call__(self, hyper: PyTree[Array]) -> tuple[Any, PyTree[Array]]:
        """Its memory, and the settings of the first round, from the run's own values; leading agents axis."""
        ...


class Update(Protocol):
    """What a controller does at the end of a round."""

    def __call__(
        self,
        memory: Any,
        hyper: PyTree[Array],
        round: Int[Array, ""],
        info: dict[str, Any],
        seconds: Float[Array, "agents"] | None,
        axis: str | None,
    ) -> tuple[Any, PyTree[Array]]:
        """Its memory anew, and the settings of the next round.

        Args:
            memory: from the round before.
            hyper: the run's own values, leaves with a leading agents axis.
            round: the number of the round that ends, from 0.
            info: that round's diagnostics, as `population.round` returns them.
            seconds: what the round took each agent, simulated; None where nobody simulates time.
            axis: the mesh axis over which agents are spread, None on one device.
        """
        ...


class Speaks(Protocol):
    """Who sends in a round."""

    def __call__(self, memory: Any, round: Int[Array, ""]) -> Bool[Array, "agents"]:
        """Whether each agent sends in the round of this number, from 0, if it is one of exchange. Of who does not,
        neighbours hear again what it sent last, which costs nothing."""
        ...


class Controller(NamedTuple):
    """Functions of the population's world."""

    init: Start
    update: Update
    speaks: Speaks | None = None  # None: everybody sends in every round of exchange


def constant() -> Controller:
    """The run's own values in every round."""
    return scheduled(None)


def scheduled(schedules: PyTree[Any] | None) -> Controller:
    """Each setting times the factor of its own schedule; `schedules` has the structure of the settings, None leaves all
    as they are."""

    def at(hyper: PyTree[Array], round: Any) -> PyTree[Array]:
        return hyper if schedules is None else at_round(hyper, schedules, round)

    def init(hyper: PyTree[Array]) -> tuple[None, PyTree[Array]]:
        return None, at(hyper, 0)

    def update(
        memory: None,
        hyper: PyTree[Array],
        round: Int[Array, ""],
        info: dict[str, Any],
        seconds: Float[Array, "agents"] | None,
        axis: str | None,
    ) -> tuple[None, PyTree[Array]]:
        del memory, info, seconds, axis
        return None, at(hyper, round + 1)

    return Controller(init, update)


def chain(*controllers: Controller) -> Controller:
    """One controller after the other: the first one gets the run's own values, each further one what the one before has
    made of them; its memory is all of theirs.

    >>> init, update, _ = chain(constant(), scheduled(lambda round: 1 / (1 + round)))
    >>> memory, first = init(8.0)
    >>> float(first), float(update(memory, 8.0, 0, {}, None, None)[1])
    (8.0, 4.0)
    """

    def init(hyper: PyTree[Array]) -> tuple[tuple[Any, ...], PyTree[Array]]:
        memories = []
        for controller in controllers:
            memory, hyper = controller.init(hyper)
            memories.append(memory)
        return tuple(memories), hyper

    def update(
        memory: tuple[Any, ...],
        hyper: PyTree[Array],
        round: Int[Array, ""],
        info: dict[str, Any],
        seconds: Float[Array, "agents"] | None,
        axis: str | None,
    ) -> tuple[tuple[Any, ...], PyTree[Array]]:
        memories = []
        for controller, own in zip(controllers, memory, strict=True):
            remembered, hyper = controller.update(own, hyper, round, info, seconds, axis)
            memories.append(remembered)
        return tuple(memories), hyper

    def speaks(memory: tuple[Any, ...], round: Int[Array, ""]) -> Bool[Array, "agents"]:
        pairs = zip(controllers, memory, strict=True)
        return reduce(jnp.logical_and, [own.speaks(one, round) for own, one in pairs if own.speaks])

    return Controller(init, update, speaks if any(own.speaks for own in controllers) else None)
