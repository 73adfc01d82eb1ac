"""The driver: one round of everyone. The only place that maps over agents, draws batches and exchanges."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key, PyTree, UInt8

from dslth_jax.algorithm import Algorithm, Batches, Heard, World
from dslth_jax.exchange import hear, silence
from dslth_jax.models import Network
from dslth_jax.skew import Skew, see
from dslth_jax.topology import Graph, Topology, listeners


class State(NamedTuple):
    """Everything that goes from round to round. Leaves of the first three carry a leading agents axis."""

    agents: Any  # what each agent carries
    heard: Heard  # what each heard last
    sent: PyTree[UInt8[Array, "agents _"]]  # what each sent last: masks as packed bits
    round: Int[Array, ""]


class Shares(NamedTuple):
    """A data set, common to all, which of its samples each agent holds, and how each sees them."""

    images: UInt8[Array | np.ndarray, "samples height width channels"]
    labels: Int[Array | np.ndarray, "samples"]
    indices: Int[Array | np.ndarray, "agents capacity"]  # of samples; an agent's own come first, the rest is padding
    sizes: Int[Array | np.ndarray, "agents"]  # how many are its own
    skew: Skew = Skew()  # leaves with an agents axis


# One number for each use of an agent's key in a round, and two that set agents' and graphs' keys apart from the rest.
INIT, SEND, RECEIVE, DRAW = range(4)
AGENTS, GRAPHS = 2**31, 2**31 + 1


def over_agents(function: Callable[..., Any], *stacked: Any, chunk: int | None = None) -> Any:
    """Cross into the population's world: `function` of one agent, mapped over the leading axis of all arguments.

    `jax.vmap` over `chunk` agents at a time, chunk after chunk inside the compiled program. With a chunk of 1 an
    agent's numbers do not depend on who else is there, bit for bit. None takes the platform's choice (`default_chunk`).
    """
    agents = jax.tree.leaves(stacked)[0].shape[0]
    chunk = chunk or default_chunk(agents)
    if chunk >= agents > 1:
        return jax.vmap(function)(*stacked)
    return lax.map(lambda arguments: function(*arguments), stacked, batch_size=chunk if chunk > 1 else None)


def default_chunk(agents: int) -> int:
    """One agent at a time on CPUs, whose caches hold one; all together elsewhere.

    It asks the default backend: say the chunk where you compile for another one.
    """
    return 1 if jax.default_backend() == "cpu" else agents


def world_of(network: Network, key: Key[Array, ""], hyper: Any, round: Any, rounds: int) -> World:
    """The population's world of one round: the shared weights are drawn anew from `key`, never stored or sent.

    Leaves of `hyper` carry a leading agents axis.
    """
    weights_key, common_key = jax.random.split(key)
    weights, frozen = network.init(weights_key)
    return World(weights, frozen, hyper, common_key, jnp.asarray(round, jnp.int32), jnp.int32(rounds))


def graph_in(world: World, topology: Topology) -> Graph:
    """The graph of the world's round."""
    if topology.redraw is None:
        return topology.graph
    key = jax.random.fold_in(jax.random.fold_in(world.key, GRAPHS), world.round)
    return topology.redraw(key, topology.graph)


def init(algorithm: Algorithm, world: World, graph: Graph, *, agents: int, chunk: int | None = None) -> State:
    """The state before the first round, in which everybody has heard its neighbours' start messages."""

    def start(number: Array, hyper: Any) -> tuple[Any, Any]:
        return algorithm.init(agent_key(world, number, INIT), world._replace(hyper=hyper))

    states, sent = over_agents(start, jnp.arange(agents), world.hyper, chunk=chunk)
    return State(states, exchange(world, sent, graph, chunk), sent, jnp.int32(0))


def round(
    algorithm: Algorithm,
    world: World,
    state: State,
    shares: Shares,
    graph: Graph,
    *,
    batch_size: int,
    local_steps: int = 1,
    exchange_every: int | Int[Array, ""] = 1,
    chunk: int | None = None,
) -> tuple[State, dict[str, Any]]:
    """One round: everybody sends, all exchange at once, everybody receives.

    Args:
        algorithm: the four functions of one agent's world.
        world: the population's world of this round; its `hyper` has a leading agents axis.
        state: from `init` or the round before; donate it when jitting.
        shares: training samples.
        graph: who hears whom in this round.
        batch_size: samples a minibatch, `local_steps` minibatches (and one more) a round: both static.
        exchange_every: rounds from one exchange to the next, which is the last of each such stretch. In a silent
            round nothing is sent, `receive` hears nobody, and the state keeps what was sent and heard last.
        chunk: see `over_agents`.

    Returns the new state and diagnostics, each with a leading agents axis: the algorithm's own; `kept`, a pytree of
    how many entries of each layer the agent's new mask keeps; `flipped`, how many entries of it differ from what the
    agent last sent; `listeners`, over how many links this round's message travelled.
    """
    numbers = jnp.arange(shares.sizes.shape[0])

    # Both phases see the same minibatches, for the key is the same; what a phase does not use is never computed.
    def batches_of(number: Array, indices: Array, size: Array, skew: Skew) -> Batches:
        def batch(key: Array) -> Batches:
            drawn, present = draw(key, indices, size, batch_size)
            return Batches(see(shares.images[drawn], drawn, skew), shares.labels[drawn], present)

        return jax.vmap(batch)(jax.random.split(agent_key(world, number, DRAW), local_steps + 1))

    def send(number: Array, hyper: Any, agent: Any, heard: Heard, *own: Any) -> Any:
        key, own_world = agent_key(world, number, SEND), world._replace(hyper=hyper)
        return algorithm.send(key, own_world, agent, heard, batches_of(number, *own))

    def receive(number: Array, hyper: Any, agent: Any, carry: Any, heard: Heard, *own: Any) -> Any:
        key, own_world = agent_key(world, number, RECEIVE), world._replace(hyper=hyper)
        return algorithm.receive(key, own_world, agent, carry, heard, batches_of(number, *own))

    own = (shares.indices, shares.sizes, shares.skew)
    agents, carry, message, sent_info = over_agents(
        send, numbers, world.hyper, state.agents, state.heard, *own, chunk=chunk
    )

    def speak() -> tuple[Heard, Heard, Any, Array]:
        heard = exchange(world, message, graph, chunk)
        return heard, heard, message, listeners(graph, numbers.size)

    def stay_silent() -> tuple[Heard, Heard, Any, Array]:
        nothing = silence(world.weights, numbers.size, graph)
        nobody = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (numbers.size, *leaf.shape)), nothing)
        return nobody, state.heard, state.sent, jnp.zeros(numbers.size, jnp.int32)

    always = isinstance(exchange_every, int) and exchange_every == 1
    due = (state.round + 1) % exchange_every == 0
    heard_now, heard, sent, links = speak() if always else lax.cond(due, speak, stay_silent)
    agents, received_info = over_agents(receive, numbers, world.hyper, agents, carry, heard_now, *own, chunk=chunk)
    changed = jax.tree.map(jnp.bitwise_xor, message, state.sent)
    info = {
        **sent_info,
        **received_info,
        "kept": jax.tree.map(ones, message),
        "flipped": reduce(jnp.add, map(ones, jax.tree.leaves(changed))),
        "listeners": links,
    }
    return State(agents, heard, sent, state.round + 1), info


def exchange(world: World, sent: PyTree[UInt8[Array, "agents _"]], graph: Graph, chunk: int | None = None) -> Heard:
    """What everybody hears when the last messages travel along all edges of `graph`."""
    numbers = jnp.arange(jax.tree.leaves(sent)[0].shape[0])
    return over_agents(lambda number: hear(sent, graph, number, world.weights), numbers, chunk=chunk)


def agent_key(world: World, number: Int[Array, ""], phase: int) -> Key[Array, ""]:
    """The key of one agent in one phase of one round: no other agent, chunk or interruption changes it."""
    key = jax.random.fold_in(world.key, AGENTS)
    for part in (world.round, number, phase):
        key = jax.random.fold_in(key, part)
    return key


def draw(
    key: Key[Array, ""], indices: Int[Array, "capacity"], size: Int[Array, ""], batch_size: int
) -> tuple[Int[Array, "batch"], Bool[Array, "batch"]]:
    """A minibatch of an agent's samples, without replacement; one agent's world.

    Returns sample indices and which of them are real: an agent with fewer than `batch_size` samples uses all.
    """
    capacity = indices.shape[0]
    slots = jnp.arange(capacity)
    # Sort by random numbers, the padding behind everything.
    order = jnp.lexsort((jax.random.bits(key, (capacity,)), slots >= size))
    positions = jnp.arange(batch_size)
    return indices[order[jnp.minimum(positions, capacity - 1)]], positions < size


def ones(bits: UInt8[Array, "agents bytes"]) -> Int[Array, "agents"]:
    """How many ones each agent's packed bits hold.

    >>> ones(jnp.array([[0b101, 0b1], [0, 0b11]], jnp.uint8)).tolist()
    [3, 2]
    """
    return jnp.sum(jnp.bitwise_count(bits), axis=1, dtype=jnp.int32)
