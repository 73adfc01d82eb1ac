"""The driver: one round of everyone. The only place that maps over agents, draws batches and exchanges."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key, UInt8

from dslth_jax.algorithm import Algorithm, Batches, Heard, Message, World, parts_of
from dslth_jax.exchange import as_planes, hear, present_first, silence, unpacked_like
from dslth_jax.graphs import Graph, Topology, listeners
from dslth_jax.networks.network import Network
from dslth_jax.skew import Skew, see


class State(NamedTuple):
    """Everything that goes from round to round. Leaves of the first three carry a leading agents axis."""

    agents: Any  # what each agent carries
    heard: Heard  # what each heard last
    sent: Any  # what each sent last: masks as packed bits, values as floats
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
        return (jax.vmap(function) if number > 1 else _alone(function))(agents, *stacked)
    several = jax.vmap(function) if chunk > 1 else _alone(function)
    whole = number - number % chunk

    def next_chunk(agents: Any, first_and_own: Any) -> tuple[Any, Any]:
        first, own = first_and_own
        chosen = jax.tree.map(lambda leaf: lax.dynamic_slice_in_dim(leaf, first, chunk), agents)
        # Read them into memory of their own, by a branch always taken: read in place by whoever uses them, they would
        # make the compiler copy everybody before it lets the new ones be written.
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

    It asks the default backend: say the chunk where you compile for another one.
    """
    return 1 if jax.default_backend() == "cpu" else agents


def draw_weights(network: Network, key: Key[Array, ""]) -> tuple[Any, Any]:
    """The shared weights and frozen parameters of a run, known from its key alone: never sent, never saved."""
    return network.init(jax.random.split(key)[0])


def world_of(network: Network, key: Key[Array, ""], hyper: Any, round: Any, rounds: int, drawn: Any = None) -> World:
    """The population's world of one round.

    Leaves of `hyper` carry a leading agents axis. `drawn` is what `draw_weights` makes of the key: drawn once and
    handed to every program they compile faster; None draws anew.
    """
    weights, frozen = draw_weights(network, key) if drawn is None else drawn
    common_key = jax.random.split(key)[1]
    return World(weights, frozen, hyper, common_key, jnp.asarray(round, jnp.int32), jnp.int32(rounds))


def graph_in(world: World, topology: Topology) -> Graph:
    """The graph of the world's round."""
    if topology.redraw is None:
        return topology.graph
    key = jax.random.fold_in(jax.random.fold_in(world.key, GRAPHS), world.round)
    return topology.redraw(key, topology.graph)


def init(
    algorithm: Algorithm, world: World, graph: Graph, *, agents: int, chunk: int | None = None, axis: str | None = None
) -> State:
    """The state before the first round, in which everybody has heard its neighbours' start messages.

    `agents` says how many there are, `chunk` and `axis` are those of `round`; inside `jax.shard_map` how many there are
    on each device.
    """
    numbers = agent_numbers(agents, axis)

    def start(number: Array, hyper: Any) -> tuple[Any, Any]:
        return algorithm.init(agent_key(world, number, INIT), world._replace(hyper=hyper))

    started, sent = over_agents(start, numbers, world.hyper, chunk=chunk)
    everybody = from_all_devices(sent, axis)
    one = jax.tree.map(lambda leaf: leaf[0], sent)
    nothing = silence(unpacked_like(one, world.weights), agents * devices_of(axis), graph)
    nothing = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (agents, *leaf.shape)), nothing)
    return State(started, exchange(everybody, graph, numbers, nothing, chunk), sent, jnp.int32(0))


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
    axis: str | None = None,
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
        axis: inside `jax.shard_map`, the mesh axis over which agents are spread: `hyper`, `state` and what is an
            agent's of `shares` are then those of this device's agents, all else is the same everywhere. Messages are
            all that crosses.

    Returns the new state and diagnostics, each with a leading agents axis: the algorithm's own; of the masks in the
    agent's new message (None without any) `kept`, a pytree of how many entries of each layer they keep, and `flipped`,
    how many entries differ from what the agent last sent; `floats`, how many values it has to send, those that masks
    beside them keep (None without any); `listeners`, over how many links it travelled this round.
    """
    numbers = agent_numbers(shares.sizes.shape[0], axis)

    # Both phases see the same minibatches, for the key is the same; what a phase does not use is never computed.
    def batches_of(number: Array, indices: Array, size: Array, skew: Skew) -> Batches:
        def batch(key: Array) -> Batches:
            drawn, present = draw(key, indices, size, batch_size)
            return Batches(see(shares.images[drawn], drawn, skew), shares.labels[drawn], present)

        return jax.vmap(batch)(jax.random.split(agent_key(world, number, DRAW), local_steps + 1))

    def send(agent: Any, number: Array, hyper: Any, heard: Heard, *own: Any) -> Any:
        key, own_world = agent_key(world, number, SEND), world._replace(hyper=hyper)
        agent, *results = algorithm.send(key, own_world, agent, heard, batches_of(number, *own))
        return agent, results

    def receive(agent: Any, number: Array, hyper: Any, carry: Any, heard: Heard, *own: Any) -> Any:
        key, own_world = agent_key(world, number, RECEIVE), world._replace(hyper=hyper)
        return algorithm.receive(key, own_world, agent, carry, heard, batches_of(number, *own))

    own = (shares.indices, shares.sizes, shares.skew)
    agents, (carry, message, sent_info) = update_agents(
        send, state.agents, numbers, world.hyper, state.heard, *own, chunk=chunk
    )

    def speak() -> tuple[Heard, Heard, Any, Array]:
        everybody = from_all_devices(message, axis)
        heard = exchange(everybody, graph, numbers, state.heard, chunk)
        return heard, heard, message, listeners(graph)[numbers]

    def stay_silent() -> tuple[Heard, Heard, Any, Array]:
        nothing = jax.tree.map(jnp.zeros_like, state.heard)
        return nothing, state.heard, state.sent, jnp.zeros(numbers.size, jnp.int32)

    always = isinstance(exchange_every, int) and exchange_every == 1
    due = (state.round + 1) % exchange_every == 0
    if not jax.tree.leaves(message):
        heard_now, heard, sent, links = stay_silent()
    else:
        heard_now, heard, sent, links = speak() if always else lax.cond(due, speak, stay_silent)
    agents, received_info = update_agents(receive, agents, numbers, world.hyper, carry, heard_now, *own, chunk=chunk)
    info = {**sent_info, **received_info, **sizes_of(message, state.sent), "listeners": links}
    return State(agents, heard, sent, state.round + 1), info


def sizes_of(message: Any, before: Any) -> dict[str, Any]:
    """How much is in everybody's messages, and how many bits of their masks differ from those sent before."""
    (bits, values), (bits_before, _) = parts_of(message), parts_of(before)
    kept = jax.tree.map(ones, bits)
    flipped = floats = None
    if bits is not None:
        changed = jax.tree.map(jnp.bitwise_xor, bits, bits_before)
        flipped = reduce(jnp.add, map(ones, jax.tree.leaves(changed)))
    if values is not None:
        every = jax.tree.map(lambda leaf: jnp.full(leaf.shape[0], leaf[0].size, jnp.int32), values)
        floats = reduce(jnp.add, jax.tree.leaves(every if bits is None else kept))
    return {"kept": kept, "flipped": flipped, "floats": floats}


def exchange(
    sent: Any, graph: Graph, receivers: Int[Array, "receivers"], heard: Heard, chunk: int | None = None
) -> Heard:
    """What `receivers` hear when everybody's messages travel along all edges of `graph`, in the place of `heard`."""
    if not jax.tree.leaves(sent):
        return heard
    graph = present_first(graph, count_of(sent))

    # As planes, in the order in which bits are packed: so counts are written at once to where they belong.
    planes = heard._replace(counts=jax.tree.map(as_planes, heard.counts))
    like = jax.tree.map(lambda leaf: leaf[0], Message(planes.counts, planes.sums))

    def listen(_: Heard, number: Array) -> tuple[Heard, None]:
        return hear(sent, graph, number, like), None

    new = update_agents(listen, planes, receivers, chunk=chunk)[0]
    return jax.tree.map(lambda leaf, old: leaf.reshape(old.shape), new, heard)


def agent_numbers(agents: int, axis: str | None) -> Int[Array, "agents"]:
    """The numbers of this device's agents: all devices hold equally many, in order."""
    return jnp.arange(agents) + (0 if axis is None else lax.axis_index(axis) * agents)


def devices_of(axis: str | None) -> int:
    """Over how many devices agents are spread."""
    return 1 if axis is None else lax.axis_size(axis)


def from_all_devices(message: Any, axis: str | None) -> Any:
    """Everybody's message, from those of every device's agents. The only thing that crosses between devices."""
    return message if axis is None else lax.all_gather(message, axis, tiled=True)


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
