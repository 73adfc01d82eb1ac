"""Binary masks: fuse, threshold, count, pack. One agent's world: no function here knows an agents axis."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

PLANES = ("positive", "negative")  # of a ternary mask, as messages and files call them; no parameter may be called so


def kept_entries(retention: float, size: int) -> int:
    """How many of a layer's `size` entries a retention in (0, 1] keeps: `size - int((1 - retention) * size)`.

    Counted in Python floats on the host, as the authors' code does: float32 arithmetic gives other counts.

    >>> kept_entries(0.3, 4800), kept_entries(0.9, 1920)
    (1440, 1729)
    """
    if not 0 < retention <= 1:
        raise ValueError(f"retention must lie in (0, 1], got {retention}")
    return size - int((1 - retention) * size)


def fuse(
    scores: Float[Array, "*shape"],
    neighbour_mean: Float[Array, "*shape"],
    amplitude: float | Float[Array, ""] = 1.0,
    *,
    ternary: bool = False,
) -> Float[Array, "*shape"]:
    """The aggregation tensor of one layer, y = z + a · sign(z) ⊙ m̄ (paper, aggregation step).

    The adaptive amplitude a is `amplitude` times the mean magnitude of the layer's scores. Only z carries a gradient:
    nothing flows into a, the signs or what the neighbours sent. A zero score stays zero. Neighbours' ternary masks have
    signs of their own: then y = z + a · m̄ (ours).

    >>> fuse(jnp.array([1.0, -3.0, 0.0]), jnp.array([0.5, 1.0, 1.0])).tolist()
    [1.6666667461395264, -4.333333492279053, 0.0]
    """
    adaptive = amplitude * jnp.mean(jnp.abs(scores))
    toward = neighbour_mean if ternary else jnp.sign(scores) * neighbour_mean
    return scores + lax.stop_gradient(adaptive * toward)


def threshold(fused: PyTree[Float[Array, "..."]], count: PyTree[int | Int[Array, ""]]) -> PyTree[Float[Array, "..."]]:
    """The mask, of the dtype of `fused`, that keeps the `count` entries of largest magnitude (paper, Thres).

    Takes one layer, or a pytree of layers with a count for each: all are searched in one loop, which compiles and runs
    faster than a loop for each. A count is a number of entries; `kept_entries` makes it of a share.

    Raises a ValueError if the layers are not of one floating dtype, from float16 to float64, if a count is no whole
    number or is negative (a traced negative count keeps nothing), or if the counts have another structure than the
    layers.

    Exactly min(count, non-zero entries) of a layer are kept: among equal magnitudes the lowest flat index goes first, a
    zero is never kept (subnormal numbers of float32, bfloat16 and float64 count as zeros; the count does not hold for
    nan). Counts may be traced. The derivative, forward and backward, passes straight through to the magnitude of
    every entry, kept or not: d mask = sign(fused) · d fused, which is 0 at 0.

    >>> threshold(jnp.array([1.0, -4.0, 0.0, 1.0]), 2).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    return _straight_through(fused, _counted(fused, count))


def _counted(fused: PyTree, count: PyTree) -> PyTree:
    """The counts, checked. No count that is known exceeds the size of its layer."""
    layers: Any = jax.tree.structure(fused)
    counts: Any = jax.tree.structure(count)
    if counts != layers:
        raise ValueError(
            f"count must be a whole number for each layer, {layers}, got {counts}: for one share of every layer say "
            f"jax.tree.map(lambda layer: kept_entries(share, layer.size), layers)"
        )
    return jax.tree.map(lambda leaf, layer: _whole(leaf, jnp.size(layer)), count, fused)


def _whole(count: Any, size: int) -> int | Int[Array, ""]:
    """One layer's count, checked."""
    dtype = jnp.result_type(count)
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.shape(count):
        got = f"an array of {jnp.shape(count)}" if jnp.shape(count) else f"{dtype} {count}"
        raise ValueError(
            f"count must be a whole number of entries, got {got}: for a share of them say kept_entries(share, size)"
        )
    if not isinstance(count, jax.core.Tracer):
        if int(count) < 0:
            raise ValueError(f"count must not be negative, got {count}: to keep nothing say 0")
        return min(int(count), size)
    return jnp.minimum(count, size) if jnp.iinfo(dtype).max > jnp.iinfo(jnp.int32).max else count


@jax.custom_jvp
def _straight_through(fused: PyTree, count: PyTree) -> PyTree:
    kept = largest(jax.tree.map(jnp.abs, fused), count)
    return jax.tree.map(lambda mask, leaf: mask.astype(leaf.dtype), kept, fused)


@_straight_through.defjvp
def _threshold_derivative(primals: tuple[PyTree, PyTree], tangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    fused, count = primals
    return _straight_through(fused, count), jax.tree.map(lambda leaf, t: t * jnp.sign(leaf), fused, tangents[0])


def signed_threshold(
    fused: PyTree[Float[Array, "..."]], count: PyTree[int | Int[Array, ""]]
) -> PyTree[Float[Array, "..."]]:
    """The ternary mask: the signs of the entries that `threshold` keeps, and 0 elsewhere.

    Signs are learned, too, then: "Signing the Supermask" (Koster, Grothe and Rettinger, ICLR 2022), here with exact
    counts. The derivative passes straight through to every entry, kept or not: d mask = d fused. Arguments and errors
    are those of `threshold`.

    >>> signed_threshold(jnp.array([1.0, -4.0, 0.0, 1.0]), 2).tolist()
    [1.0, -1.0, 0.0, 0.0]
    """
    return _signed_straight_through(fused, _counted(fused, count))


@jax.custom_jvp
def _signed_straight_through(fused: PyTree, count: PyTree) -> PyTree:
    kept = largest(jax.tree.map(jnp.abs, fused), count)
    return jax.tree.map(lambda mask, leaf: jnp.where(mask, jnp.sign(leaf), 0), kept, fused)


@_signed_straight_through.defjvp
def _signed_derivative(primals: tuple[PyTree, PyTree], tangents: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
    return _signed_straight_through(*primals), tangents[0]


def largest(magnitudes: PyTree[Float[Array, "..."]], count: PyTree[int | Int[Array, ""]]) -> PyTree[Bool[Array, "..."]]:
    """Where the `count` largest of non-negative `magnitudes` lie, by the rules of `threshold` for ties and zeros.

    Floats that are not negative sort as their bit patterns do. So a search among patterns finds the count-th largest
    exactly. Each pass over the entries counts how many reach each of some candidates, which part what is left to search
    evenly, all in one reduction. It stops early where a candidate already splits off `count`. How many candidates there
    are changes no mask.
    """
    layers, tree = jax.tree.flatten(magnitudes)
    dtypes = {layer.dtype for layer in layers}
    if len(dtypes) > 1 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise ValueError(f"all layers must be of one floating dtype, got {', '.join(str(x.dtype) for x in layers)}")
    if not layers:
        return magnitudes
    # Search narrower floats as float32, which holds every value of theirs.
    layers = [layer if layer.dtype.itemsize > 2 else layer.astype(jnp.float32) for layer in layers]
    counts = jnp.stack([jnp.asarray(leaf, jnp.int32) for leaf in jax.tree.leaves(count)])
    dtype = layers[0].dtype
    word = jnp.uint64 if dtype == jnp.float64 else jnp.uint32
    patterns = [lax.bitcast_convert_type(layer, word).reshape(-1) for layer in layers]
    parts = _candidates() + 1

    def reaching(*cuts: Array) -> list[Array]:
        found = [_count_each([pattern >= cut[i] for cut in cuts]) for i, pattern in enumerate(patterns)]
        return [jnp.stack(of_cut) for of_cut in zip(*found, strict=True)]

    def too_many(bracket: tuple[Array, Array, Array]) -> Array:
        low, high, reached = bracket
        return jnp.any((reached > counts) & (high - low > 1))

    def narrow(bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, reached = bracket
        part = (high - low - 1) // parts + 1
        cuts = [jnp.minimum(low + place * part, high) for place in range(1, parts)]
        new_low, new_high = low, cuts[0]
        for cut, beyond, reach in zip(cuts, [*cuts[1:], high], reaching(*cuts), strict=True):
            # In a bracket too small for so many parts candidates fall on its upper end, and then they are none.
            enough = (reach >= counts) & (cut < high)
            new_low, new_high = jnp.where(enough, cut, new_low), jnp.where(enough, beyond, new_high)
            reached = jnp.where(enough, reach, reached)
        return new_low, new_high, reached

    # Start at the smallest normal number, so that no zero is ever kept. Compiled code takes subnormals for zeros in
    # some operations and not in others; here they are zeros.
    lowest = jnp.broadcast_to(lax.bitcast_convert_type(jnp.finfo(dtype).smallest_normal, word), counts.shape)
    beyond_infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, dtype), word) + 1
    start = (lowest, jnp.broadcast_to(beyond_infinity, counts.shape), reaching(lowest, lowest)[0])
    cut, _, reached = lax.while_loop(too_many, narrow, start)

    last = _end_of_ties([pattern == cut[i] for i, pattern in enumerate(patterns)], reached - counts)
    kept = []
    for i, pattern in enumerate(patterns):
        tied = (pattern == cut[i]) & (lax.iota(jnp.int32, pattern.size) < last[i])
        kept.append(((pattern > cut[i]) | tied).reshape(layers[i].shape))
    return jax.tree.unflatten(tree, kept)


def _candidates() -> int:
    """How many candidates a pass over the entries has: two on CPUs, for which compilers make faster code than for one.
    Elsewhere a pass costs more to begin than to count, and seven find a threshold in about half as many passes."""
    return 2 if jax.default_backend() == "cpu" else 7


def _count_each(several: list[Bool[Array, "size"]]) -> tuple[Int[Array, ""], ...]:
    """How many are true of each, in one pass."""
    add = lambda one, other: tuple(a + b for a, b in zip(one, other, strict=True))  # noqa: E731
    zeros = (jnp.int32(0),) * len(several)
    return tuple(lax.reduce(tuple(own.astype(jnp.int32) for own in several), zeros, add, (0,)))


def _end_of_ties(ties: list[Bool[Array, "_"]], excess: Int[Array, "layers"]) -> Int[Array, "layers"]:
    """For each layer, the flat index before which all but the last `excess` of its ties lie. No excess, no pass."""
    sizes = jnp.array([tie.size for tie in ties], jnp.int32)

    def before(index: Array) -> Array:
        found = [jnp.sum(tie & (lax.iota(jnp.int32, tie.size) < index[i])) for i, tie in enumerate(ties)]
        return jnp.stack(found).astype(jnp.int32)

    wanted = before(sizes) - excess

    def open_bracket(bracket: tuple[Array, Array]) -> Array:
        return jnp.any(bracket[1] - bracket[0] > 1)

    def halve(bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) // 2
        enough = before(middle) >= wanted
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    low = jnp.where(excess > 0, jnp.int32(-1), sizes)
    return lax.while_loop(open_bracket, halve, (low, sizes))[1]


def revive(scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Scores in which every exact zero is a positive number far below all others; gradients pass unchanged.

    A zero has no sign, so that without this neither fusion nor a gradient would reach it again. The number is the root
    of the smallest normal one, so that its square is not zero either. Ours. A ValueError for float16, in which this
    number would be larger than many scores.

    >>> revive(jnp.array([0.0, -2.0])).tolist()
    [1.0842021724855044e-19, -2.0]
    """
    if scores.dtype == jnp.float16:
        raise ValueError("scores that are revived must be float32, float64 or bfloat16, got float16")
    tiny = math.sqrt(jnp.finfo(scores.dtype).smallest_normal)
    return scores + lax.stop_gradient(jnp.where(scores == 0, tiny, 0).astype(scores.dtype))


def drop_filters(mask: Float[Array, "*inputs outputs"], smallest: int) -> Float[Array, "*inputs outputs"]:
    """The mask without filters of at most `smallest` kept entries, if the layer's filters keep more on average.

    A filter is everything that feeds one output. Gradients pass straight through to every entry, dropped or not, as in
    `threshold`. The authors' code has such a rule, of 20, and does not use it.

    >>> drop_filters(jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), 1).tolist()
    [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    """
    kept = jnp.sum(mask != 0, axis=tuple(range(mask.ndim - 1)), dtype=jnp.int32)
    dropped = (kept <= smallest) & (jnp.sum(kept) > smallest * kept.size)
    drop = mask * jnp.expand_dims(dropped.astype(mask.dtype), range(mask.ndim - 1))
    return mask - lax.stop_gradient(drop)


def density(masks: PyTree[Array]) -> Float[Array, ""]:
    """The share of all entries, of all layers together, that `masks` keep.

    >>> float(density([jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])]))
    0.25
    """
    leaves = jax.tree.leaves(masks)
    kept = [jnp.sum(leaf != 0, dtype=jnp.int32) for leaf in leaves]
    return jnp.sum(jnp.stack(kept)) / sum(leaf.size for leaf in leaves)


def planes(mask: Array) -> dict[str, Bool[Array, "..."]]:
    """A ternary mask as two binary ones: where it is 1, and where it is -1.

    >>> planes(jnp.array([1, 0, -1]))["negative"].tolist()
    [False, False, True]
    """
    return dict(zip(PLANES, (mask > 0, mask < 0), strict=True))


def pack(mask: Array) -> UInt8[Array, "bytes"]:
    """The mask as bits, eight entries a byte.

    Byte k holds the entries k, k + bytes, k + 2 bytes, ... of the flattened mask, lowest bit first. Packing and
    unpacking then move whole stretches, in vector code several times faster than with eight neighbours a byte.

    >>> pack(jnp.array([1, 0, 0, 1, 0, 0, 0, 0, 0, 1])).tolist()
    [1, 18]
    """
    flat = (mask.reshape(-1) != 0).astype(jnp.uint8)
    planes = jnp.pad(flat, (0, -flat.size % 8)).reshape(8, -1)
    shifts = lax.iota(jnp.uint8, 8)[:, None]
    return jnp.sum(planes << shifts, axis=0, dtype=jnp.uint8)


def unpack(bits: UInt8[Array, "bytes"], shape: tuple[int, ...]) -> UInt8[Array, "..."]:
    """The mask of the given shape, as 0 and 1 in uint8, that `pack` made bits of.

    >>> unpack(jnp.array([1, 18], jnp.uint8), (10,)).tolist()
    [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    """
    planes = (bits[None] >> lax.iota(jnp.uint8, 8)[:, None]) & jnp.uint8(1)
    return planes.reshape(-1)[: math.prod(shape)].reshape(shape)
