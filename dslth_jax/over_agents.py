"""The one crossing into the population's world: a function of one agent, mapped over all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def over_agents(function: Callable[..., Any], *stacked: Any, chunk: int | None = None) -> Any:
    """Cross into the population's world: `function` of one agent, mapped over the leading axis of all arguments.

    `jax.vmap` over `chunk` agents at a time, chunk after chunk inside the compiled program. With a chunk of 1 an
    agent's numbers do not depend on who else is there, bit for bit. None takes the platform's choice (`default_chunk`).

    >>> over_agents(lambda own, common: own + common, jnp.arange(3), jnp.ones(3, int)).tolist()
    [1, 2, 3]
    """
    return update_agents(lambda _, *own: (None, function(*own)), None, *stacked, chunk=chunk)[1]


def update_agents(
    function: Callable[..., tuple[Any, Any]], agents: Any, *stacked: Any, chunk: int | None = None
) -> tuple[Any, Any]:
    """`over_agents` where agents carry something: `function(agent, *own) -> agent, result` of one agent.

    New agents take the place of the old, chunk after chunk in the same memory, so that there is never a second copy of
    the population. Returns all agents and the stacked results.

    >>> update_agents(lambda agent, own: (agent + own, 2 * own), jnp.ones(3, int), jnp.arange(3))[0].tolist()
    [1, 2, 3]
    """
    number = count_of(stacked)
    chunk = min(chunk or default_chunk(number), number)
    if chunk == number:
        return (_alone(function) if number == 1 else jax.vmap(function))(agents, *stacked)
    several = jax.vmap(function) if chunk > 1 else _alone(function)
    whole = number - number % chunk

    def next_chunk(agents: Any, first_and_own: Any) -> tuple[Any, Any]:
        first, own = first_and_own
        chosen = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, chunk), agents)
        # Read them into memory of their own, by a branch that is always taken. If they were read in place, the compiler
        # would copy the whole population before it writes the new agents.
        chosen = lax.cond(first < 0, lambda own: jax.tree.map(jnp.zeros_like, own), lambda own: own, chosen)
        chosen, result = several(chosen, *own)
        agents = jax.tree.map(lambda leaf, new: lax.dynamic_update_slice_in_dim(leaf, new, first, 0), agents, chosen)
        return agents, result

    in_chunks = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:]), stacked)
    agents, results = lax.scan(next_chunk, agents, (jnp.arange(0, whole, chunk), in_chunks))
    results = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), results)
    if whole == number:
        return agents, results
    rest, last = jax.vmap(function)(*jax.tree.map(lambda leaf: leaf[whole:], (agents, *stacked)))
    agents = jax.tree.map(lambda leaf, new: leaf.at[whole:].set(new), agents, rest)
    return agents, jax.tree.map(lambda *parts: jnp.concatenate(parts), results, last)


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of one agent for a stack of one, without `vmap`."""

    def of_stack(*stacked: Any) -> Any:
        result = function(*jax.tree.map(lambda leaf: leaf[0], stacked))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], result)

    return of_stack


def count_of(stacked: Any) -> int:
    """How many agents a pytree of the population's world is of."""
    return jax.tree.leaves(stacked)[0].shape[0]


def default_chunk(agents: int) -> int:
    """One agent at a time on CPUs, whose caches hold one; all together elsewhere.

    It asks the default backend. Whoever compiles for another one should say the chunk.
    """
    return 1 if jax.default_backend() == "cpu" else agents
