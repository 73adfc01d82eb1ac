"""The exact choice of each agent's largest scores, in several forms.

    python -m benchmarks.threshold [--agents 8 64] [--entries 4800 204800 819200 196608 1920] [--retention 0.3]
                                   [--repeats 5] [--patience 20]

Every form keeps of each layer exactly the same entries by a count that is traced: among equal magnitudes the lowest
index goes first, a zero is never kept; that is tried on a few entries before the form is timed. Agents are mapped by
`over_agents` in its default chunks, and all at once by `vmap`. The floor is copying the scores once, for they must be
read and as large a mask be written. A form that would run for more than `--patience` seconds, by its time for fewer
agents, is left out.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from rich.console import Console
from rich.table import Table

from benchmarks.measure import conditions, copy_rate, timed
from dslth_jax import masks
from dslth_jax.over_agents import default_chunk, over_agents

ALEXNET = (4_800, 204_800, 819_200, 196_608, 1_920)

Layers: TypeAlias = tuple[jax.Array, ...]  # one agent's scores, each layer a vector
Counts: TypeAlias = tuple[jax.Array | int, ...]
Form: TypeAlias = Callable[[Layers, Counts], Layers]

SMALLEST = jnp.finfo(jnp.float32).smallest_normal
MOST = jnp.iinfo(jnp.int32).max


def all_layers(layers: Layers, counts: Counts) -> Layers:
    """The library: all layers searched in one loop."""
    return masks.threshold(layers, counts)


def layer_after_layer(layers: Layers, counts: Counts) -> Layers:
    """The library, a loop for every layer."""
    return jax.tree.map(masks.threshold, layers, counts)


def sorted_entries(layers: Layers, counts: Counts) -> Layers:
    """A stable sort of the entries, of which the first are kept."""

    def keep(layer: jax.Array, count: jax.Array) -> jax.Array:
        magnitudes = jnp.abs(layer)
        order = jnp.argsort(magnitudes, descending=True, stable=True)
        return first_of(order, magnitudes[order], layer, count)

    return jax.tree.map(keep, layers, counts)


def sorted_values(layers: Layers, counts: Counts) -> Layers:
    """A sort of the magnitudes alone, for the cut; entries that tie at it are counted off."""

    def keep(layer: jax.Array, count: jax.Array) -> jax.Array:
        magnitudes = jnp.abs(layer)
        rising = jnp.append(jnp.sort(magnitudes), jnp.inf)
        cut = jnp.maximum(rising[layer.size - jnp.minimum(count, layer.size)], SMALLEST)
        above, tied = magnitudes > cut, magnitudes == cut
        room = count - jnp.sum(above)
        return (above | (tied & (jnp.cumsum(tied) <= room))).astype(layer.dtype)

    return jax.tree.map(keep, layers, counts)


def top_k(most: Sequence[int], layers: Layers, counts: Counts) -> Layers:
    """`lax.top_k`, which takes no traced count: of the `most` entries that are ever kept, the first."""

    def keep(most: int, layer: jax.Array, count: jax.Array | int) -> jax.Array:
        values, order = lax.top_k(jnp.abs(layer), most)
        return first_of(order, values, layer, count)

    return tuple(map(keep, most, layers, counts))


def first_of(order: jax.Array, magnitudes: jax.Array, layer: jax.Array, count: jax.Array | int) -> jax.Array:
    """The mask of the first `count` entries in `order`, whose magnitudes are given, without zeros."""
    kept = (lax.iota(jnp.int32, order.size) < count) & (magnitudes >= SMALLEST)
    return jnp.zeros_like(layer).at[order].set(kept.astype(layer.dtype))


class Bracket(NamedTuple):
    """For each layer, bit patterns between which the smallest kept magnitude lies, and how many entries reach them."""

    low: jax.Array
    high: jax.Array
    reach_low: jax.Array  # at least as many as wanted, or all that are no zeros
    reach_high: jax.Array  # fewer than wanted


def several_candidates(candidates: int, layers: Layers, counts: Counts) -> Layers:
    """The library's search by bit patterns, with `candidates` counted in each pass over the data.

    They cut the bracket into one part more than there are candidates: three settle two bits a pass, seven three.
    """
    patterns = [lax.bitcast_convert_type(jnp.abs(layer), jnp.uint32) for layer in layers]
    wanted = jnp.stack([jnp.asarray(count, jnp.int32) for count in counts])
    parts = jnp.uint32(candidates + 1)

    def too_many(bracket: Bracket) -> jax.Array:
        return jnp.any((bracket.reach_low > wanted) & (bracket.high - bracket.low > 1))

    def narrow(bracket: Bracket) -> Bracket:
        low, high, reach_low, reach_high = bracket
        step = (high - low - 1) // parts + 1
        steps = jnp.arange(1, candidates + 1, dtype=jnp.uint32)
        middles = jnp.minimum(low[:, None] + step[:, None] * steps[None], high[:, None])
        found = reaching(patterns, middles)
        # The further up a candidate lies, the fewer reach it: those that enough entries reach come first.
        enough = (found >= wanted[:, None]) & (middles < high[:, None])
        low = low + step * jnp.sum(enough, axis=1, dtype=jnp.uint32)
        reach_low = jnp.minimum(reach_low, jnp.min(jnp.where(enough, found, MOST), axis=1))
        reach_high = jnp.maximum(reach_high, jnp.max(jnp.where(enough, 0, found), axis=1))
        return Bracket(low, jnp.minimum(low + step, high), reach_low, reach_high)

    bracket = lax.while_loop(too_many, narrow, widest_bracket(patterns))
    cut, excess = bracket.low, bracket.reach_low > wanted
    ties = [pattern == cut[i] for i, pattern in enumerate(patterns)]
    last = end_of_ties(ties, wanted - bracket.reach_high, excess)
    kept = []
    for i, layer in enumerate(layers):
        tied = ties[i] & (lax.iota(jnp.int32, layer.size) < last[i])
        kept.append(((patterns[i] > cut[i]) | tied).astype(layer.dtype))
    return tuple(kept)


def widest_bracket(patterns: list[jax.Array]) -> Bracket:
    """From the smallest normal number, so that no zero is kept, to beyond infinity."""
    lowest = lax.bitcast_convert_type(SMALLEST, jnp.uint32)
    beyond = lax.bitcast_convert_type(jnp.float32(jnp.inf), jnp.uint32) + 1
    ends = jnp.broadcast_to(jnp.stack([lowest, beyond]), (len(patterns), 2))
    return Bracket(*ends.T, *reaching(patterns, ends).T)


def reaching(patterns: list[jax.Array], candidates: jax.Array) -> jax.Array:
    """How many entries of each layer reach each of its candidates (layers, candidates)."""
    return jnp.stack([reaching_in_layer(*pair) for pair in zip(patterns, candidates, strict=True)])


def reaching_in_layer(pattern: jax.Array, candidates: jax.Array) -> jax.Array:
    """The counts of one layer: one reduction of several operands, so that the data are read once."""
    reached = tuple((pattern >= candidate).astype(jnp.int32) for candidate in candidates)
    zeros = (jnp.int32(0),) * len(reached)
    return jnp.stack(lax.reduce(reached, zeros, lambda left, right: tuple(map(jnp.add, left, right)), (0,)))


def end_of_ties(ties: list[jax.Array], room: jax.Array, excess: jax.Array) -> jax.Array:
    """The flat index before which `room` of each layer's ties lie, where there is an excess of them; else its end."""
    sizes = jnp.array([tie.size for tie in ties], jnp.int32)

    def open_bracket(bracket: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(bracket[1] - bracket[0] > 1)

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = (low + high) // 2
        before = [jnp.sum(tie & (lax.iota(jnp.int32, tie.size) < middle[i])) for i, tie in enumerate(ties)]
        enough = jnp.stack(before) >= room
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    return lax.while_loop(open_bracket, halve, (jnp.where(excess, -1, sizes), sizes))[1]


def forms(most: Sequence[int]) -> dict[str, Form]:
    """All forms, for counts of which each is at most that of `most`."""
    return {
        "library": all_layers,
        "layer by layer": layer_after_layer,
        "argsort": sorted_entries,
        "sort": sorted_values,
        "lax.top_k": partial(top_k, most),
        "2 candidates": partial(several_candidates, 2),
        "3 candidates": partial(several_candidates, 3),
        "7 candidates": partial(several_candidates, 7),
    }


def kept_by_sorting(layer: np.ndarray, count: int) -> np.ndarray:
    """The mask, by a stable sort in numpy."""
    magnitudes = np.abs(layer)
    order = np.argsort(-magnitudes, kind="stable")[:count]
    mask = np.zeros_like(layer)
    mask[order[magnitudes[order] > 0]] = 1
    return mask


def expect_exact(name: str) -> None:
    """Raise unless the form of this name keeps, among entries that tie and zeros, those that it should."""
    layers = tuple(np.random.default_rng(0).integers(-3, 4, (2, 1003)).astype(np.float32))
    counts = (301, 950)
    kept = jax.jit(forms(counts)[name])(layers, tuple(map(jnp.int32, counts)))
    if not all(map(np.array_equal, kept, map(kept_by_sorting, layers, counts))):
        raise AssertionError(f"{name} keeps other entries than a stable sort")


def mappings(agents: int) -> dict[str, Callable[[Form], Callable[..., Layers]]]:
    """The ways to map over agents, where they differ."""
    chunk = default_chunk(agents)
    ways: dict[str, Callable[[Form], Callable[..., Layers]]] = {"vmap": jax.vmap}
    if chunk < agents:
        ways[f"chunks of {chunk}"] = lambda form: partial(over_agents, form)
    return ways


def measure(
    agents: Sequence[int] = (8, 64),
    entries: Sequence[int] = ALEXNET,
    retention: float = 0.3,
    repeats: int = 5,
    patience: float = 20.0,
) -> tuple[Table, dict[str, Any]]:
    """The table, and a row for every form, mapping and number of agents."""
    rate = copy_rate()
    floor = 2 * sum(entries) * np.dtype(np.float32).itemsize / rate
    table = Table("agents", "mapped by", "form", "ms an agent", "times the floor", "compile, s")
    most = [masks.kept_entries(retention, size) for size in entries]
    rows, left_out = [], []
    seconds_an_agent: dict[tuple[str, str], float] = {}  # as last measured
    for name in forms(most):
        expect_exact(name)
    for number in sorted(agents):
        keys = jax.random.split(jax.random.key(0), len(entries))
        layers = tuple(jax.random.normal(key, (number, size)) for key, size in zip(keys, entries, strict=True))
        counts = tuple(jnp.full(number, count, jnp.int32) for count in most)
        for mapped, over in mappings(number).items():
            for name, form in forms(most).items():
                row = {"agents": number, "mapped": mapped, "form": name}
                expected = number * seconds_an_agent.get((mapped, name), 0.0)
                if expected > patience:
                    table.add_row(str(number), mapped, name, f"left out: {expected:.0f} s a run")
                    left_out.append({**row, "expected_seconds": expected})
                    continue
                timing = timed(over(form), layers, counts, repeats=repeats)
                an_agent = seconds_an_agent[mapped, name] = timing.median / number
                cells = f"{1e3 * an_agent:.2f}", f"{an_agent / floor:.1f}", f"{timing.compile:.1f}"
                table.add_row(str(number), mapped, name, *cells)
                numbers = {"milliseconds_an_agent": 1e3 * an_agent, "times_floor": an_agent / floor}
                rows.append({**row, **numbers, "compile_seconds": timing.compile})
    result = {"entries": list(entries), "retention": retention, "copy_gigabytes_per_second": rate / 1e9}
    return table, {**result, "rows": rows, "left_out": left_out}


def main() -> None:
    """Print conditions, the table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--entries", type=int, nargs="+", default=ALEXNET, help="of each layer")
    parser.add_argument("--retention", type=float, default=0.3, help="the share of every layer that is kept")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=20.0)
    flags = parser.parse_args()
    print(f"{conditions()}; layers of {flags.entries} entries, {flags.retention:.0%} kept")
    table, result = measure(flags.agents, flags.entries, flags.retention, flags.repeats, flags.patience)
    print(f"copying {result['copy_gigabytes_per_second']:.1f} GB/s")
    Console().print(table)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
