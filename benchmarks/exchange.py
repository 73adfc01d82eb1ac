"""Everyone's neighbour counts, in several forms.

    python -m benchmarks.exchange [--agents 64 1024] [--topology regular:8 erdos-renyi:0.5] [--share SHARE]
                                  [--repeats 3] [--patience 20]

Masks of the AlexNet's layers, packed as agents send them; `--share` of the entries of each layer, by default all for 64
agents and a sixteenth for 1,024 (short rows stay in caches that whole ones may not fit). Every form gives the same
counts, which is tried on a few entries before it is timed. The floor is reading every neighbour's bits and writing the
counts, at the rate of copying; whoever reads the bits from a cache, or once for many receivers, can go below it. "as
the round runs it" puts the counts in the place of the last, and with scales sums of floats; all other forms make new
memory for them. A form that would run for more than `--patience` seconds, by its best rate in the cases before, is left
out.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import sparse
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, copy_rate, timed, timed_in_place
from benchmarks.threshold import ALEXNET
from dslth_jax import masks, population
from dslth_jax.algorithm import Heard, Message
from dslth_jax.exchange import counting_dtype, hear, present_first, silence
from dslth_jax.graphs import Graph, adjacency_of
from dslth_jax.over_agents import over_agents
from dslth_jax.study.config.spellings import topology_of

TOPOLOGIES = ("regular:8", "erdos-renyi:0.5")
BUDGET = {"cpu": 2**21}  # bytes of a block of unpacked masks, which a CPU's cache should hold


class Case(NamedTuple):
    """What is known when compiling."""

    agents: int
    degree: int  # edges, absent ones too, of the receiver that has most
    sizes: tuple[int, ...]  # entries of each layer


Sent: TypeAlias = Sequence[jax.Array]  # of each layer, everybody's packed bits (agents, bytes)
Counts: TypeAlias = list[jax.Array]  # of each layer, how many neighbours keep each entry (agents, entries)


class Form(NamedTuple):
    """A way to count, for graphs of an edge at least whose weights are 0 and 1 in uint8."""

    function: Callable[[Case, Sent, Graph], Counts]
    all_pairs: bool = False  # whether its work grows with all pairs of agents, not with the edges


# One receiver after another, or all by `vmap`, as the platform has it ------------------------------------------------


def as_the_round_runs_it(case: Case, sent: Sent, graph: Graph) -> Counts:
    """The population's exchange, alone."""
    return in_place(False, case, sent, graph)


def scaled_bits(case: Case, sent: Sent, graph: Graph) -> Counts:
    """The same where each bit counts as many times as its sender says of the layer, as in score gossip: here once, so
    that the sums, which are of floats, are counts."""
    return in_place(True, case, sent, graph)


def in_place(scaled: bool, case: Case, sent: Sent, graph: Graph) -> Counts:
    """What the population's exchange leaves of silence."""
    heard = nothing_heard(case, graph, scaled)
    return [*population.exchange(everybodys(case, sent, scaled), graph, receivers(case), heard).masks.values()]


def everybodys(case: Case, sent: Sent, scaled: bool) -> Message:
    """Everybody's message, with scales of one if they are `scaled`."""
    return message_of(sent, jnp.ones(case.agents) if scaled else None)


def message_of(layers: Sequence[jax.Array], scales: jax.Array | None = None) -> Message:
    """Layers by their numbers, and by the same what a bit of each is worth, one number a sender or one for `like`."""
    names = [str(number) for number in range(len(layers))]
    scaled = {} if scales is None else dict.fromkeys(names, scales)
    return Message(dict(zip(names, layers, strict=True)), scales=scaled)


def nothing_heard(case: Case, graph: Graph, scaled: bool = False) -> Heard:
    """What everybody has heard before the first exchange."""
    scales = jnp.ones(()) if scaled else None
    nothing = silence(message_of([jnp.zeros(size) for size in case.sizes], scales), case.agents, graph)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (case.agents, *leaf.shape)), nothing)


def half_bytes(case: Case, sent: Sent, graph: Graph) -> Counts:
    """`hear`, mapped over receivers."""
    messages, like = message_of(sent), message_of([jnp.zeros(size) for size in case.sizes])
    graph = present_first(graph, case.agents)
    heard = over_agents(lambda receiver: hear(messages, graph, receiver, like).masks, receivers(case))
    return [*heard.values()]


def one_neighbour_after_another(case: Case, sent: Sent, graph: Graph) -> Counts:
    """Every neighbour's mask unpacked and added."""
    dtype = counting_dtype(case.agents)

    def listen(receiver: jax.Array) -> Counts:
        def add(edge: jax.Array, totals: Counts) -> Counts:
            sender, weight = graph.senders[edge], graph.weights[edge]
            return [
                total + (weight * masks.unpack(bits[sender], total.shape)).astype(dtype)
                for total, bits in zip(totals, sent, strict=True)
            ]

        zeros = [jnp.zeros(size, dtype) for size in case.sizes]
        return lax.fori_loop(*stretch_of(receiver, graph), add, zeros)

    return over_agents(listen, receivers(case))


def bit_sliced(case: Case, sent: Sent, graph: Graph) -> Counts:
    """Counters as bit planes: eight neighbours at a time through carry-save adders (Harley and Seal)."""
    graph = present_first(graph, case.agents)
    number = max(4, case.degree.bit_length())

    def listen(receiver: jax.Array) -> Counts:
        first, end = stretch_of(receiver, graph)

        def add_eight(step: jax.Array, planes: list[list[jax.Array]]) -> list[list[jax.Array]]:
            edges = first + 8 * step + lax.iota(jnp.int32, 8)
            inside = jnp.minimum(edges, end - 1)
            present = (edges < end) & (graph.weights[inside] != 0)
            senders = [graph.senders[inside[i]] for i in range(8)]
            rows = [[jnp.where(present[i], bits[senders[i]], 0) for i in range(8)] for bits in sent]
            return list(map(count_eight, planes, rows))

        planes = [[jnp.zeros(bits.shape[1], jnp.uint8)] * number for bits in sent]
        planes = lax.fori_loop(0, (end - first + 7) // 8, add_eight, planes)
        dtype = counting_dtype(case.agents)
        return [expand(own, dtype)[:size] for own, size in zip(planes, case.sizes, strict=True)]

    return over_agents(listen, receivers(case))


def count_eight(planes: list[jax.Array], rows: list[jax.Array]) -> list[jax.Array]:
    """Bit-plane counters after eight rows of bits more."""
    ones, twos, fours, *higher = planes
    ones, first = add_bits(ones, rows[0], rows[1])
    ones, second = add_bits(ones, rows[2], rows[3])
    twos, third = add_bits(twos, first, second)
    ones, first = add_bits(ones, rows[4], rows[5])
    ones, second = add_bits(ones, rows[6], rows[7])
    twos, fourth = add_bits(twos, first, second)
    fours, carry = add_bits(fours, third, fourth)
    summed = []
    for plane in higher:
        summed.append(plane ^ carry)
        carry = plane & carry
    return [ones, twos, fours, *summed]


def add_bits(first: jax.Array, second: jax.Array, third: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A full adder of every bit: sum and carry."""
    unequal = first ^ second
    return unequal ^ third, (first & second) | (unequal & third)


def expand(planes: list[jax.Array], dtype: Any) -> jax.Array:
    """The whole numbers, one an entry, whose bits `planes` are."""

    def at(shift: jax.Array) -> jax.Array:
        bits = [((plane >> shift) & jnp.uint8(1)).astype(dtype) << i for i, plane in enumerate(planes)]
        return reduce(jnp.add, bits)

    # Loop over the shifts, for the compiler makes vector code of shifting all bytes alike.
    return lax.map(at, lax.iota(jnp.uint8, 8)).reshape(-1)


def receivers(case: Case) -> jax.Array:
    """Everybody's number."""
    return jnp.arange(case.agents, dtype=jnp.int32)


def stretch_of(receiver: jax.Array, graph: Graph) -> tuple[jax.Array, jax.Array]:
    """The first of a receiver's edges, and the one behind its last."""
    first = jnp.searchsorted(graph.receivers, receiver, side="left")
    return first, jnp.searchsorted(graph.receivers, receiver, side="right")


# All receivers at once, in blocks of columns -------------------------------------------------------------------------


def gathered(case: Case, sent: Sent, graph: Graph) -> Counts:
    """Neighbours' rows gathered by lists that are filled up with a silent one, unpacked and summed."""
    position = jnp.arange(graph.receivers.size) - jnp.searchsorted(graph.receivers, graph.receivers, side="left")
    silent = case.agents
    heard = jnp.where(graph.weights != 0, graph.senders, silent)
    neighbours = jnp.full((case.agents, case.degree), silent).at[graph.receivers, position].set(heard)
    dtype = counting_dtype(case.agents)

    def count(block: jax.Array) -> jax.Array:
        return jnp.sum(planes_of(block[neighbours]), axis=1, dtype=dtype)

    with_silent = [jnp.pad(bits, ((0, 1), (0, 0))) for bits in sent]
    return in_blocks(count, case, with_silent, case.agents * case.degree)


def segment_sum(case: Case, sent: Sent, graph: Graph) -> Counts:
    """Every edge's mask unpacked, and summed by receiver."""
    dtype = counting_dtype(case.agents)

    def count(block: jax.Array) -> jax.Array:
        weighted = planes_of(block)[graph.senders] * graph.weights[:, None, None]
        return jax.ops.segment_sum(weighted.astype(dtype), graph.receivers, case.agents, indices_are_sorted=True)

    return in_blocks(count, case, sent, graph.receivers.size * jnp.dtype(dtype).itemsize)


def sparse_product(case: Case, sent: Sent, graph: Graph) -> Counts:
    """A sparse matrix of edges times everybody's unpacked masks."""
    where = jnp.stack([graph.receivers, graph.senders], axis=1)
    shape = (case.agents, case.agents)
    mixing = sparse.BCOO((jnp.asarray(graph.weights, jnp.float32), where), shape=shape, indices_sorted=True)

    def count(block: jax.Array) -> jax.Array:
        unpacked = planes_of(block).reshape(case.agents, -1).astype(jnp.float32)
        return (mixing @ unpacked).reshape(case.agents, 8, -1)

    return in_blocks(count, case, sent, 4 * case.agents)


def dense_product(dtype: Any, case: Case, sent: Sent, graph: Graph) -> Counts:
    """A dense matrix of 0 and 1 times everybody's unpacked masks, summed in float32: exact below 2^24 neighbours."""
    shape = (case.agents, case.agents)
    mixing = jnp.zeros(shape, dtype).at[graph.receivers, graph.senders].add(graph.weights.astype(dtype))

    def count(block: jax.Array) -> jax.Array:
        unpacked = planes_of(block).reshape(case.agents, -1).astype(dtype)
        return jnp.matmul(mixing, unpacked, preferred_element_type=jnp.float32).reshape(case.agents, 8, -1)

    return in_blocks(count, case, sent, 4 * case.agents)


def planes_of(bits: jax.Array) -> jax.Array:
    """The entries (..., 8, bytes) of bits (..., bytes), as `dslth_jax.masks.pack` laid them out."""
    *others, columns = bits.shape
    shifts = lax.broadcasted_iota(jnp.uint8, (*others, 8, columns), len(others))
    return (bits[..., None, :] >> shifts) & jnp.uint8(1)


def in_blocks(count: Callable[[jax.Array], jax.Array], case: Case, sent: Sent, bytes_an_entry: int) -> Counts:
    """`count` of a block of everybody's bits (agents, columns) gives (agents, 8, columns); for all columns in turn.

    A block has as many columns as fit into the budget when an entry of it takes `bytes_an_entry`.
    """
    dtype = counting_dtype(case.agents)
    budget = BUDGET.get(jax.default_backend(), 2**29)
    most = max(16, budget // max(8 * bytes_an_entry, 1))

    def of_layer(bits: jax.Array, size: int) -> jax.Array:
        columns = bits.shape[1]
        width = min(most, columns)

        def next_block(block: jax.Array, counts: jax.Array) -> jax.Array:
            # The last one overlaps the one before it.
            start = jnp.minimum(block * width, columns - width)
            counted = count(lax.dynamic_slice_in_dim(bits, start, width, axis=1)).astype(dtype)
            return lax.dynamic_update_slice_in_dim(counts, counted, start, axis=2)

        counts = jnp.zeros((case.agents, 8, columns), dtype)
        counts = lax.fori_loop(0, -(-columns // width), next_block, counts)
        return counts.reshape(case.agents, -1)[:, :size]

    return list(map(of_layer, sent, case.sizes))


IN_PLACE = {"as the round runs it": False, "with scales, as the round runs it": True}  # whether bits have scales
FORMS = {
    "as the round runs it": Form(as_the_round_runs_it),
    "with scales, as the round runs it": Form(scaled_bits),
    "library": Form(half_bytes),
    "one by one": Form(one_neighbour_after_another),
    "bit-sliced": Form(bit_sliced),
    "gather": Form(gathered),
    "segment sum": Form(segment_sum),
    "sparse product": Form(sparse_product),
    "dense float32": Form(partial(dense_product, jnp.float32), all_pairs=True),
    "dense bfloat16": Form(partial(dense_product, jnp.bfloat16), all_pairs=True),
}


def case_of(graph: Graph, agents: int, sizes: Sequence[int]) -> Case:
    """What forms may know of a graph when they are compiled."""
    return Case(agents, int(np.bincount(graph.receivers).max()), tuple(sizes))


def drawn_bits(agents: int, sizes: Sequence[int]) -> list[jax.Array]:
    """Everybody's packed masks, each entry kept with probability one half."""
    keys = jax.random.split(jax.random.key(0), len(sizes))
    return [jax.random.bits(key, (agents, -(-size // 8)), jnp.uint8) for key, size in zip(keys, sizes, strict=True)]


def unpacked_by_numpy(bits: jax.Array, size: int) -> np.ndarray:
    """Everybody's masks of one layer (agents, entries)."""
    planes = np.unpackbits(np.asarray(bits)[:, None], axis=1, bitorder="little")
    return planes.reshape(len(planes), -1)[:, :size]


def expect_equal(name: str, graph: Graph, agents: int, sizes: Sequence[int] = (83, 16)) -> None:
    """Raise unless the form of this name gives the counts of a matrix product in numpy, on a few entries."""
    sent, adjacency = drawn_bits(agents, sizes), adjacency_of(graph).astype(np.int32)
    counts = jax.jit(partial(FORMS[name].function, case_of(graph, agents, sizes)))(sent, graph)
    expected = [adjacency @ unpacked_by_numpy(bits, size) for bits, size in zip(sent, sizes, strict=True)]
    if not all(map(np.array_equal, counts, expected)):
        raise AssertionError(f"{name} gives other counts than a matrix product")


def measure(
    agents: Sequence[int] = (64, 1024),
    topologies: Sequence[str] = TOPOLOGIES,
    share: float | None = None,
    repeats: int = 3,
    patience: float = 20.0,
) -> tuple[Table, dict[str, Any]]:
    """The table, and a row for every form and graph."""
    rate = copy_rate()
    table = Table("agents", "graph", "edges", "form", "ms", "µs an edge", "times the floor")
    rows, left_out = [], []
    seconds_of_work: dict[str, float] = {}  # the best so far
    for number in sorted(agents):
        sizes = shared_sizes(number, share)
        sent = drawn_bits(number, sizes)
        for spelling in topologies:
            graph = topology_of(spelling, number, seed=0).graph
            case, edges = case_of(graph, number, sizes), len(graph.senders)
            counts_bytes = number * sum(sizes) * jnp.dtype(counting_dtype(number)).itemsize
            floor = (edges * sum(bits.shape[1] for bits in sent) + counts_bytes) / rate
            for name, form in FORMS.items():
                row = {"agents": number, "entries": sum(sizes), "graph": spelling, "edges": edges, "form": name}
                cells = (str(number), spelling, f"{edges:,}", name)
                work = sum(sizes) * (number**2 if form.all_pairs else edges)
                expected = work * seconds_of_work.get(name, 0.0)
                if expected > patience:
                    table.add_row(*cells, f"left out: {expected:.0f} s a run")
                    left_out.append({**row, "expected_seconds": expected})
                    continue
                expect_equal(name, graph, number)
                seconds = seconds_of(name, case, sent, graph, repeats)
                seconds_of_work[name] = min(seconds / work, seconds_of_work.get(name, math.inf))
                table.add_row(*cells, f"{1e3 * seconds:.1f}", f"{1e6 * seconds / edges:.2f}", f"{seconds / floor:.1f}")
                numbers = {"milliseconds": 1e3 * seconds, "microseconds_an_edge": 1e6 * seconds / edges}
                rows.append({**row, **numbers, "times_floor": seconds / floor})
    return table, {"copy_gigabytes_per_second": rate / 1e9, "rows": rows, "left_out": left_out}


def seconds_of(name: str, case: Case, sent: Sent, graph: Graph, repeats: int) -> float:
    """The median of the form of this name."""
    if name not in IN_PLACE:
        return timed(partial(FORMS[name].function, case), sent, graph, repeats=repeats).median

    scaled = IN_PLACE[name]

    def again(state: tuple[Heard, Sent, Graph]) -> tuple[Heard, Sent, Graph]:
        heard, sent, graph = state
        return population.exchange(everybodys(case, sent, scaled), graph, receivers(case), heard), sent, graph

    # Others still need the bits and the graph that are given up here.
    own = jax.tree.map(jnp.array, (sent, graph))
    return timed_in_place(again, (nothing_heard(case, graph, scaled), *own), repeats=repeats).median


def shared_sizes(agents: int, share: float | None) -> list[int]:
    """Entries of the AlexNet's layers of which `share` is taken; None is as many as 64 agents have."""
    share = min(1.0, 64 / agents) if share is None else share
    return [max(1, round(share * size)) for size in ALEXNET]


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--topology", nargs="+", default=TOPOLOGIES)
    parser.add_argument("--share", type=float, help="of the entries of each layer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patience", type=float, default=20.0)
    flags = parser.parse_args()
    entries = (f"{sum(shared_sizes(agents, flags.share)):,} for {agents} agents" for agents in flags.agents)
    print(f"{conditions()}; entries: {', '.join(entries)}")
    table, result = measure(flags.agents, flags.topology, flags.share, flags.repeats, flags.patience)
    print(f"copying {result['copy_gigabytes_per_second']:.1f} GB/s")
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
