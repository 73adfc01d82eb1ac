"""The driver: one round of everyone. The only place that draws batches and exchanges."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Key, UInt8

from dslth_jax.algorithm import Algorithm, Batch, Batches, Heard, Message, World
from dslth_jax.augment import Augment
from dslth_jax.clock import Clock, Lap, Times, begin, lap, told_before
from dslth_jax.codec.entropy import PAST
from dslth_jax.control import Control, Controller, constant
from dslth_jax.exchange import as_planes, edge_weights, hear, present_first, silence, unpacked
from dslth_jax.keys import expect_key, reproducible
from dslth_jax.links import Link, perfect
from dslth_jax.message_sizes import chosen, holds_anything, holds_bits_alone, kept_of_layers, message_bits, sizes_of
from dslth_jax.mixing import Graph, Topology
from dslth_jax.networks.network import Network
from dslth_jax.over_agents import count_of, over_agents, update_agents
from dslth_jax.pool import Pool, draw_pooled
from dslth_jax.skew import Skew, see


class State(NamedTuple):
    """Everything that goes from round to round. Leaves have a leading agents axis, but those of links, round and
    clock."""

    agents: Any  # what each agent carries
    heard: Heard  # what each heard in the last round of exchange
    sent: Message  # what each sent last
    links: Any  # what the links remember
    control: Control  # the settings of the round that ran last, and of the next
    round: Int[Array, ""]
    clock: Times | None = None  # simulated time, where anybody simulates it
    # Where messages are bits alone, what each sent before that, as far as it helps to code what it sent last, the
    # latest first; the start message in the place of what there is not yet.
    earlier: tuple[Message, ...] = ()


class Shares(NamedTuple):
    """A data set, common to all, which of its samples each agent holds, and how each sees them."""

    images: UInt8[Array | np.ndarray, "samples height width channels"]
    labels: Int[Array | np.ndarray, "samples"]
    indices: Int[Array | np.ndarray, "agents capacity"]  # of samples; an agent's own come first, the rest is padding
    sizes: Int[Array | np.ndarray, "agents"]  # how many are its own
    skew: Skew = Skew()  # leaves with an agents axis
    pool: Pool | None = None  # everybody's samples by class, where minibatches are drawn from these; common to all


# One number for each use of an agent's key in a round, three that set the keys of agents, graphs and links apart, and
# one for a further use of a minibatch's key, above all places of samples that this key orders.
INIT, SEND, RECEIVE, DRAW = range(4)
AGENTS, GRAPHS, LINKS, AUGMENT = 2**31, 2**31 + 1, 2**31 + 2, 2**31 + 3


@reproducible
def weights_key(key: Key[Array, ""]) -> Key[Array, ""]:
    """The key by which the network of a run with this key is drawn."""
    return jax.random.split(key)[0]


@reproducible
def draw_weights(network: Network, key: Key[Array, ""]) -> tuple[Any, Any]:
    """The shared weights and frozen parameters of a run, known from its key alone: never sent, never saved."""
    expect_key(key)
    return network.init(weights_key(key))


@reproducible
def world_of(network: Network, key: Key[Array, ""], round: Any, rounds: int, drawn: Any = None) -> World:
    """The world of one round.

    `drawn` is what `draw_weights` makes of the key. Programs that are handed it compile faster than those that draw;
    None draws anew. Raises a ValueError if the key is not of the kind that `keys.key_of` makes.
    """
    expect_key(key)
    weights, frozen = draw_weights(network, key) if drawn is None else drawn
    common_key = jax.random.split(key)[1]
    return World(weights, frozen, common_key, jnp.asarray(round, jnp.int32), jnp.int32(rounds))


@reproducible
def graph_in(world: World, topology: Topology) -> Graph:
    """The graph of the world's round."""
    if topology.redraw is None:
        return topology.graph
    return topology.redraw(round_key(world, GRAPHS), topology.graph)


@reproducible
def init(
    algorithm: Algorithm,
    world: World,
    hyper: Any,
    graph: Graph,
    *,
    agents: int,
    link: Link | None = None,
    controller: Controller | None = None,
    clock: Clock | None = None,
    chunk: int | None = None,
    axis: str | None = None,
) -> State:
    """The state before the first round, in which everybody has heard its neighbours' start messages.

    `agents` says how many there are; all else is as in `round`. Inside `jax.shard_map` it is how many there are on each
    device.
    """
    link, controller, numbers = link or perfect(), controller or constant(), agent_numbers(agents, axis)
    memory, first = controller.init(jax.tree.map(jnp.asarray, hyper))

    def start(number: Array, hyper: Any) -> tuple[Any, Message]:
        return algorithm.init(agent_key(world, number, INIT), world, hyper)

    started, sent = over_agents(start, numbers, first, chunk=chunk)
    everybody = from_all_devices(sent, axis)
    links = link.init(everybody) if holds_anything(sent) else None
    nothing, graph = nothing_heard(link, links, graph, everybody, world, algorithm.hears_levels)
    nothing = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (agents, *leaf.shape)), nothing)
    as_sent = {*nothing.masks} == {*sent.masks} and {*nothing.values} == {*sent.values}
    heard = exchange(everybody, graph, numbers, nothing, chunk) if as_sent else nothing
    control, times = Control(memory, first, first), None if clock is None else begin(clock)
    # Copies, because each round takes the memory of the state before, once.
    earlier = tuple(jax.tree.map(jnp.copy, sent) for _ in range(PAST)) if holds_bits_alone(sent) else ()
    return State(started, heard, sent, links, control, jnp.int32(0), times, earlier)


def nothing_heard(
    link: Link, memory: Any, graph: Graph, everybody: Message, world: World, levels: bool = False
) -> tuple[Heard, Graph]:
    """What one agent has heard before anybody spoke, with the types that arrive behind the link; and the graph with
    weights of that type, for start messages, which pass through no link."""
    if not holds_anything(everybody):
        return silence(Message(), 1, graph), graph
    key = round_key(world, LINKS)
    _, behind, arriving, _ = jax.eval_shape(link.transmit, key, memory, jax.tree.map(jnp.asarray, graph), everybody)
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), arriving)
    nothing = silence(unpacked(one, world), count_of(arriving), behind, levels)
    return nothing, graph._replace(weights=jnp.asarray(graph.weights).astype(behind.weights.dtype))


@reproducible
def round(
    algorithm: Algorithm,
    world: World,
    hyper: Any,
    state: State,
    shares: Shares,
    graph: Graph,
    *,
    batch_size: int,
    local_steps: int = 1,
    exchange_every: int | Int[Array, ""] = 1,
    exchange_from: int | Int[Array, ""] = 1,
    link: Link | None = None,
    controller: Controller | None = None,
    clock: Clock | None = None,
    augment: Augment | None = None,
    chunk: int | None = None,
    axis: str | None = None,
) -> tuple[State, dict[str, Any]]:
    """One round: everybody sends, all exchange at once, everybody receives.

    Args:
        algorithm: the four functions of one agent's world.
        world: of this round.
        hyper: the run's own values of all traced settings, leaves with a leading agents axis; the controller makes of
            them what a round takes.
        state: from `init` or the round before; donate it when jitting.
        shares: training samples.
        graph: who hears whom in this round.
        batch_size: samples a minibatch, `local_steps` minibatches (and one more) a round: both static.
        exchange_every: rounds from one exchange to the next; of each so many rounds the last one exchanges.
        exchange_from: the first round that may exchange, counted from 1; those before are silent. In a silent round
            nothing is sent, `receive` hears that nobody spoke, and the state keeps what was sent and heard last.
        link: what happens to messages on their way; None is `links.perfect()`.
        controller: what sets the settings of each round; None is `control.constant()`.
        clock: how long a round takes whom; who is late is heard with what it sent before, so that an algorithm whose
            messages add up (`Algorithm.adds_up`) needs a deadline that nobody misses. None simulates no time.
        augment: what is made of each minibatch's images before anybody learns from them, such as `augment.crop`; None
            leaves them as they are.
        chunk: see `over_agents`.
        axis: inside `jax.shard_map`, the mesh axis over which agents are spread: `hyper`, `state` and what is an
            agent's of `shares` are then those of this device's agents, all else is the same everywhere. Messages are
            all that crosses.

    Returns the new state and diagnostics, each with a leading agents axis: the algorithm's own; of the agent's new
    message what `sizes_of` says; `listeners`, over how many links it was sent this round. Raises a ValueError if a
    controller has agents stay silent whose messages add up.
    """
    link, controller, numbers = link or perfect(), controller or constant(), agent_numbers(shares.sizes.shape[0], axis)
    if algorithm.adds_up and controller.speaks is not None:
        raise ValueError("controller must let everybody speak: messages of this algorithm add up, and none comes twice")
    # Steps count from behind the last round that would have been an exchange.
    first = (exchange_from + exchange_every - 1) // exchange_every * exchange_every
    world = world._replace(exchanging=state.round + 1 > first - exchange_every)
    now, (hyper, shares) = state.control.next, jax.tree.map(jnp.asarray, (hyper, shares))

    # Both phases see the same minibatches, because the key is the same; what a phase does not use is never computed.
    def batches_of(number: Array, indices: Array, size: Array, skew: Skew) -> Batches:
        def batch(key: Array) -> Batch:
            if shares.pool is None:
                drawn, present = draw(key, indices, size, batch_size)
            else:
                drawn, present = draw_pooled(key, shares.labels, indices, size, shares.pool, batch_size)
            images = see(shares.images[drawn], drawn, skew)
            images = images if augment is None else augment(jax.random.fold_in(key, AUGMENT), images)
            return Batch(images, shares.labels[drawn], present)

        keys = jax.random.split(agent_key(world, number, DRAW), local_steps + 1)
        return Batches(jax.vmap(batch)(keys[:-1]), batch(keys[-1]))

    def send(agent: Any, number: Array, hyper: Any, heard: Heard, *own: Any) -> Any:
        key = agent_key(world, number, SEND)
        agent, *results = algorithm.send(key, world, hyper, agent, heard, batches_of(number, *own))
        return agent, results

    def receive(agent: Any, number: Array, hyper: Any, carry: Any, heard: Heard, *own: Any) -> Any:
        key = agent_key(world, number, RECEIVE)
        return algorithm.receive(key, world, hyper, agent, carry, heard, batches_of(number, *own))

    own = (shares.indices, shares.sizes, shares.skew)
    agents, (carry, message, sent_info) = update_agents(
        send, state.agents, numbers, now, state.heard, *own, chunk=chunk
    )

    always = all(isinstance(setting, int) and setting == 1 for setting in (exchange_every, exchange_from))
    due = (state.round + 1 >= exchange_from) & ((state.round + 1) % exchange_every == 0)
    speaking = None if controller.speaks is None else controller.speaks(state.control.memory, state.round)
    told, earlier = message, (state.sent, *state.earlier)[: len(state.earlier)]
    if speaking is not None:
        told = chosen(speaking, message, state.sent)
        earlier = tuple(chosen(speaking, new, old) for new, old in zip(earlier, state.earlier, strict=True))
    times, timed = state.clock, None
    if clock is not None:
        busy = jnp.zeros(numbers.size, jnp.int32)  # over how many links each sends
        if holds_anything(message):
            *_, of_all = link.transmit(round_key(world, LINKS), state.links, graph, from_all_devices(told, axis))
            busy = of_all[numbers]
        times, timed = timed_lap(clock, state, now, message, speaking, busy, world, algorithm.start_known, due, axis)

    def speak() -> tuple[Heard, Heard, Message, tuple[Message, ...], Any, Array]:
        arrived = told if timed is None else chosen(~timed.late, told, state.sent)
        everybody = from_all_devices(arrived, axis)
        memory, behind, arriving, sent = link.transmit(round_key(world, LINKS), state.links, graph, everybody)
        heard = exchange(arriving, behind, numbers, state.heard, chunk)
        sent = sent[numbers] if speaking is None else jnp.where(speaking, sent[numbers], 0)
        return heard, heard, told, earlier, memory, sent

    def stay_silent() -> tuple[Heard, Heard, Message, tuple[Message, ...], Any, Array]:
        nothing = jax.tree.map(jnp.zeros_like, state.heard)._replace(own=state.heard.own)
        return nothing, state.heard, state.sent, state.earlier, state.links, jnp.zeros(numbers.size, jnp.int32)

    if not holds_anything(message):
        heard_now, heard, sent, earlier, memory, links = stay_silent()
    else:
        heard_now, heard, sent, earlier, memory, links = speak() if always else lax.cond(due, speak, stay_silent)
    agents, received_info = update_agents(receive, agents, numbers, now, carry, heard_now, *own, chunk=chunk)
    info = {**sent_info, **received_info, **sizes_of(message, state.sent), "listeners": links}
    info |= {} if timed is None else timed._asdict()
    seconds = None if timed is None else timed.seconds
    remembered, to_come = controller.update(state.control.memory, hyper, state.round, info, seconds, axis)
    return State(agents, heard, sent, memory, Control(remembered, now, to_come), state.round + 1, times, earlier), info


def timed_lap(
    clock: Clock,
    state: State,
    hyper: Any,
    message: Message,
    speaking: Bool[Array, "agents"] | None,
    links: Int[Array, "agents"],
    world: World,
    start_known: bool,
    due: Bool[Array, ""],
    axis: str | None,
) -> tuple[Times, Lap]:
    """How long the round takes this device's agents, if each sends its message over so many `links`."""
    assert state.clock is not None
    bits = jnp.zeros(links.size)
    if holds_anything(message):
        entries = unpacked(jax.tree.map(lambda leaf: leaf[0], message), world)
        sizes = {name: leaf.size for name, leaf in {**entries.values, **entries.masks}.items()}
        bits = message_bits(message, state.sent, sizes, told_before(clock, state.clock, start_known))
    sending = jnp.full(links.shape, holds_anything(message)) if speaking is None else speaking
    return lap(clock, state.clock, hyper, bits, links, sending, due, lambda own: from_all_devices(own, axis))


def exchange(
    messages: Message, graph: Graph, receivers: Int[Array, "receivers"], heard: Heard, chunk: int | None = None
) -> Heard:
    """What `receivers` hear when everybody's messages travel along all edges of `graph`, in the place of `heard`."""
    if not holds_anything(messages):
        return heard
    graph = present_first(graph, count_of(messages))
    weights, kept = edge_weights(messages, graph), kept_of_layers(messages) if heard.levels else None

    # Take planes, in the order in which bits are packed, so that counts are written at once to where they belong.
    planes = heard._replace(masks={name: as_planes(counts) for name, counts in heard.masks.items()})
    like = jax.tree.map(lambda leaf: leaf[0], Message(planes.masks, planes.values, scales=planes.scales))

    def listen(_: Heard, number: Array) -> tuple[Heard, None]:
        return hear(messages, graph, number, like, weights, kept), None

    new = update_agents(listen, planes, receivers, chunk=chunk)[0]
    return jax.tree.map(lambda leaf, old: leaf.reshape(old.shape), new, heard)


def agent_numbers(agents: int, axis: str | None) -> Int[Array, "agents"]:
    """The numbers of this device's agents: all devices hold equally many, in order."""
    return jnp.arange(agents) + (0 if axis is None else lax.axis_index(axis) * agents)


def from_all_devices(message: Any, axis: str | None) -> Any:
    """Everybody's message, from those of every device's agents. The only thing that crosses between devices."""
    return message if axis is None else lax.all_gather(message, axis, tiled=True)


def round_key(world: World, use: int) -> Key[Array, ""]:
    """The key of one use in the world's round, the same for all agents."""
    return jax.random.fold_in(jax.random.fold_in(world.key, use), world.round)


def agent_key(world: World, number: Int[Array, ""], phase: int) -> Key[Array, ""]:
    """The key of one agent in one phase of one round: no other agent, chunk or interruption changes it."""
    key = round_key(world, AGENTS)
    for part in (number, phase):
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
