"""Graphs of agents: generators of a `Topology`. The population's world.

    ring torus star complete regular small_world erdos_renyi     one graph for all rounds, edges of weight 1
    changing_regular changing_erdos_renyi                        a new graph in every round
    of_matrix of_networkx                                        a graph of one's own, with weights where it has any
    metropolis                                                   the same graphs with Metropolis weights
    weighted                                                     the same graphs with weights of one's own
    hearing_some                                                 the same graphs, few of one's neighbours in a round

The last five are of `mixing`, as are the types. `graph_report` says what a graph is like.
"""

import random
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from dslth_jax.keys import reproducible
from dslth_jax.mixing import (
    Adjacency,
    Graph,
    Topology,
    adjacency_of,
    graph_of,
    hearing_some,
    listeners,
    metropolis,
    mixing_of,
    of_matrix,
    of_networkx,
    weighted,
)

__all__ = [
    "Adjacency", "Graph", "Topology", "adjacency_of", "changing_erdos_renyi", "changing_regular", "complete",
    "erdos_renyi", "graph_of", "hearing_some", "listeners", "metropolis", "mixing_of", "of_matrix", "of_networkx",
    "regular", "ring", "small_world", "star", "torus", "weighted",
]  # fmt: skip

MOST_NEIGHBOURS = 300  # of regular graphs that networkx draws: with more it tries again and again, for minutes
MOST_PAIRED = 10**6  # ends of links of regular graphs that networkx draws: with more, switching is several times faster
AT_ONCE = 2**22  # random numbers that are drawn at once for graphs of many agents
PASSES = 16  # over all links of a regular graph that is drawn by switching


def ring(agents: int, directed: bool = False) -> Topology:
    """Agent i hears i - 1 and i + 1; directed, i - 1 alone.

    >>> ring(3, directed=True).graph.senders.tolist()
    [2, 0, 1]
    """
    _expect_agents(agents)
    everybody = np.arange(agents)
    return _of_links(agents, everybody, np.roll(everybody, 1), directed)


def torus(agents: int, rows: int | None = None, directed: bool = False) -> Topology:
    """Agents on a grid of `rows` rows whose edges are joined: each hears four others; directed, two. Where a grid has
    two rows or columns the neighbours on both sides are one, and where it has one, as of a prime number of agents, it
    is a ring.

    `rows` must divide `agents`; None makes the grid as square as can be.
    """
    _expect_agents(agents)
    divisors = [rows for rows in range(1, agents + 1) if agents % rows == 0]
    squarest = min(divisors, key=lambda rows: abs(rows - agents / rows))
    if rows not in (None, *divisors):
        raise ValueError(f"rows must divide the {agents} agents, so be one of {divisors}, got {rows}")
    grid = np.arange(agents).reshape(rows or squarest, -1)
    left, above = np.roll(grid, 1, axis=1), np.roll(grid, 1, axis=0)
    return _of_links(agents, np.stack([grid, grid]).ravel(), np.stack([left, above]).ravel(), directed)


def star(agents: int) -> Topology:
    """Agent 0 and every other hear each other; the others hear nobody else."""
    _expect_agents(agents)
    return _of_links(agents, np.zeros(agents - 1, int), np.arange(1, agents))


def complete(agents: int) -> Topology:
    """Everybody hears everybody."""
    _expect_agents(agents)
    return Topology(graph_of(~np.eye(agents, dtype=bool)))


def regular(agents: int, degree: int = 4, seed: int = 0, directed: bool = False) -> Topology:
    """A random graph in which everybody hears exactly `degree` others, in 1..agents - 1.

    If directed, everybody draws by itself whom it hears. Otherwise `agents` times `degree` must be even, and the graph
    is close to a uniform draw among all such graphs. It is drawn by pairing (Steger and Wormald 1999). Where pairing
    takes long, because everybody has more than 300 neighbours and as many others, or all together have more than a
    million, it is drawn by switching (Milo et al. 2003): agents stand on a circle in random order and hear their
    nearest, and then links exchange ends two by two, each about four times.
    """
    _expect_degree(degree, agents)
    rng = np.random.default_rng(seed)
    if directed:
        # Everybody takes those of all others whose random numbers are least.
        heard = [_least(rng, receivers, agents, degree) for receivers in _parts(agents, agents)]
        return _of_links(agents, np.repeat(np.arange(agents), degree), np.concatenate(heard), directed)
    if degree * agents % 2:
        raise ValueError(f"degree {degree} needs an even number of agents, or take an even degree, got {agents} agents")
    # Where fewer agents are not heard than heard, draw who is not heard: fewer links are found sooner.
    dense = degree > agents // 2
    fewer = agents - 1 - degree if dense else degree
    if fewer > MOST_NEIGHBOURS or fewer * agents > MOST_PAIRED:
        links = _by_switching(rng, agents, fewer)
    else:
        links = _drawn("random_regular_graph", fewer, agents, seed=seed)
    drawn = _of_links(agents, *links.T)
    return Topology(graph_of(~(adjacency_of(drawn.graph) | np.eye(agents, dtype=bool)))) if dense else drawn


def small_world(agents: int, degree: int = 4, probability: float = 0.1, seed: int = 0) -> Topology:
    """A ring of `degree` nearest neighbours, an even number, whose links are each rewired with `probability`.

    Watts and Strogatz 1998.
    """
    _expect_degree(degree, agents)
    if degree % 2:
        raise ValueError(f"degree must be even, half of it on either side, got {degree}")
    _expect_probability(probability)
    return _of_links(agents, *_drawn("watts_strogatz_graph", agents, degree, probability, seed=seed).T)


def erdos_renyi(agents: int, probability: float = 0.5, seed: int = 0, directed: bool = False) -> Topology:
    """Every two agents hear each other with `probability`, independently; if directed, each way is drawn by itself."""
    _expect_agents(agents)
    _expect_probability(probability)
    if probability in (0, 1):
        return complete(agents) if probability else _of_links(agents, *np.zeros((2, 0), int))
    # One number for each pair, in order: the same graphs as networkx's `gnp_random_graph`, many times faster.
    _, state, _ = random.Random(seed).getstate()
    rng = np.random.RandomState()
    rng.set_state(("MT19937", np.array(state[:-1], np.uint32), state[-1], 0, 0.0))
    pairs = agents * (agents - 1) // (1 if directed else 2)
    joined = [part[rng.random_sample(len(part)) < probability] for part in _parts(pairs)]
    place = np.concatenate([np.zeros(0, int), *joined])
    if directed:
        sender, other = np.divmod(place, max(agents - 1, 1))
        return _of_links(agents, other + (other >= sender), sender, directed)
    before = np.append(0, np.cumsum(np.arange(agents - 1, 0, -1)))  # pairs whose first agent is an earlier one
    first = np.searchsorted(before, place, side="right") - 1
    return _of_links(agents, first, place - before[first] + first + 1)


def changing_erdos_renyi(agents: int, probability: float = 0.5, directed: bool = False) -> Topology:
    """`erdos_renyi` drawn anew in every round, from the round's key.

    Edges have a static number, so it holds all pairs: of ten thousand agents about a gigabyte. `changing_regular` holds
    those that are present.
    """
    _expect_agents(agents)
    _expect_probability(probability)

    @reproducible
    def redraw(key: Key[Array, ""], graph: Graph) -> Graph:
        drawn = jax.random.uniform(key, (agents, agents))
        first, second = graph.receivers, graph.senders
        if not directed:
            first, second = jnp.minimum(first, second), jnp.maximum(first, second)
        return graph._replace(weights=(drawn[first, second] < probability).astype(jnp.uint8))

    return complete(agents)._replace(redraw=redraw)


def changing_regular(agents: int, degree: int = 4, directed: bool = False) -> Topology:
    """In every round `degree` random pairings of all agents; if directed, everybody hears `degree` random others.

    Two agents that are paired twice in a round share one link, and each pairing of an odd number leaves one agent out.
    So an agent hears at most `degree` others, unless the graph is directed; there a round draws a number for each pair,
    400 MB for ten thousand agents.
    """
    _expect_degree(degree, agents)
    receivers = np.repeat(np.arange(agents, dtype=np.int32), degree)

    @reproducible
    def hear_others(key: Key[Array, ""], graph: Graph) -> Graph:
        # Order all others by random numbers, oneself behind them, and take the first.
        drawn = jax.random.uniform(key, (agents, agents)) + 2 * jnp.eye(agents)
        _, others = jax.lax.top_k(-drawn, degree)
        # Weights are those of a round: whoever weighs edges by their ends does so anew.
        return graph._replace(
            senders=others.astype(jnp.int32).reshape(-1), weights=jnp.ones(receivers.shape, jnp.uint8)
        )

    @reproducible
    def pair_up(key: Key[Array, ""], graph: Graph) -> Graph:
        orders = jax.vmap(lambda key: jax.random.permutation(key, agents))(jax.random.split(key, degree))
        pairs = orders[:, : agents - agents % 2].reshape(degree, -1, 2)
        pairing = jnp.arange(degree)[:, None, None]
        # An agent that is left over is paired with itself, which is no link.
        partner = jnp.tile(jnp.arange(agents), (degree, 1)).at[pairing, pairs].set(pairs[..., ::-1]).T
        again = jnp.tril(partner[:, :, None] == partner[:, None, :], -1).any(axis=2)
        present = (partner != jnp.arange(agents)[:, None]) & ~again
        return graph._replace(
            senders=partner.reshape(-1).astype(jnp.int32), weights=present.reshape(-1).astype(jnp.uint8)
        )

    # The senders before the first draw are heard by nobody: every round draws its own.
    weights, own = np.ones(receivers.shape, np.uint8), np.ones(agents, np.float32)
    start = Graph((receivers + 1) % agents, receivers, weights, own)
    return Topology(start, hear_others if directed else pair_up)


def _of_links(
    agents: int, receivers: Int[np.ndarray, "links"], senders: Int[np.ndarray, "links"], directed: bool = False
) -> Topology:
    """The same graph in every round: each receiver hears its sender and, unless `directed`, the other way round.
    Nobody hears itself, and a link that is named twice is one."""
    ways = [(receivers, senders), *([] if directed else [(senders, receivers)])]
    places = np.sort(np.concatenate([np.int64(agents) * one + other for one, other in ways]))
    heard, sent = np.divmod(places[np.diff(places, prepend=-1) > 0], agents)
    heard, sent = heard[heard != sent].astype(np.int32), sent[heard != sent].astype(np.int32)
    return Topology(Graph(sent, heard, np.ones(sent.shape, np.uint8), np.ones(agents, np.float32)))


def _parts(many: int, each: int = 1) -> Iterator[Int[np.ndarray, "_"]]:
    """The numbers below `many` in order, in parts for which not too many random numbers are drawn, so many for `each`
    of them."""
    step = max(AT_ONCE // each, 1)
    return (np.arange(first, min(first + step, many)) for first in range(0, many, step))


def _least(rng: np.random.Generator, receivers: Int[np.ndarray, "_"], agents: int, degree: int) -> Int[np.ndarray, "_"]:
    """Of every receiver those of all others that draw the least random numbers."""
    drawn = rng.random((len(receivers), agents))
    drawn[np.arange(len(receivers)), receivers] = 2
    return np.argpartition(drawn, degree - 1, axis=1)[:, :degree].ravel()


def _by_switching(rng: np.random.Generator, agents: int, degree: int) -> Int[np.ndarray, "links ends"]:
    """The links of a regular graph that have exchanged ends at random.

    It begins with agents in random order on a circle, each beside its nearest (and for an odd degree the opposite one).
    In each pass all links come in pairs (a, b), (c, d), which become (a, d), (c, b) where that is possible.
    """
    order = rng.permutation(agents)
    beside = [(order, np.roll(order, -away)) for away in range(1, degree // 2 + 1)]
    opposite = [np.split(order, 2)] if degree % 2 else []
    links = np.concatenate([np.stack(ends, axis=1) for ends in beside + opposite])
    adjacency = np.zeros((agents, agents), bool)
    adjacency[links[:, 0], links[:, 1]] = adjacency[links[:, 1], links[:, 0]] = True
    pairs, claimed_by = len(links) // 2, np.empty((agents, agents), np.int32)
    for _ in range(PASSES):
        links = links[rng.permutation(len(links))]
        (a, b), (c, d) = links[:pairs].T, links[pairs : 2 * pairs].T
        turned = rng.random(pairs) < 0.5
        c, d = np.where(turned, d, c), np.where(turned, c, d)
        # Where two pairs want the same new link, one of them stays as it is.
        pair = np.flatnonzero((a != d) & (b != c) & ~adjacency[a, d] & ~adjacency[c, b])
        wanted = np.sort([[a[pair], d[pair]], [c[pair], b[pair]]], axis=1)
        claimed_by[wanted[:, 0], wanted[:, 1]] = pair
        pair = pair[(claimed_by[wanted[:, 0], wanted[:, 1]] == pair).all(axis=0)]
        links = np.concatenate([np.stack([a, b], axis=1), np.stack([c, d], axis=1), links[2 * pairs :]])
        links[pair, 1], links[pairs + pair, 1] = d[pair], b[pair]
        for one, other, present in ((a, b, False), (c, d, False), (a, d, True), (c, b, True)):
            adjacency[one[pair], other[pair]] = adjacency[other[pair], one[pair]] = present
    return links


def _drawn(name: str, *arguments: Any, **settings: Any) -> Int[np.ndarray, "links ends"]:
    """The links that a generator of networkx draws. It is imported here, so that no import of the library pays for
    it."""
    import networkx

    return np.array(getattr(networkx, name)(*arguments, **settings).edges, int).reshape(-1, 2)


def _expect_agents(agents: int, fewest: int = 1) -> None:
    if agents < fewest:
        raise ValueError(f"agents must be at least {fewest}, got {agents}")


def _expect_degree(degree: int, agents: int) -> None:
    _expect_agents(agents, 2)
    if not 1 <= degree < agents:
        raise ValueError(f"degree must lie in 1..{agents - 1}, below the {agents} agents, got {degree}")


def _expect_probability(probability: float) -> None:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {probability:g}")
