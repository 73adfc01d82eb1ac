"""Binary masks: fuse, threshold, count, pack. One agent's world: no function here knows an agents axis."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8


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
    scores: Float[Array, "*shape"], neighbour_mean: Float[Array, "*shape"], amplitude: float | Float[Array, ""] = 1.0
) -> Float[Array, "*shape"]:
    """The aggregation tensor of one layer, y = z + a · sign(z) ⊙ m̄ (paper, aggregation step).

    The adaptive amplitude a is `amplitude` times the mean magnitude of the layer's scores. Only z carries a gradient:
    nothing flows into a, the signs or what the neighbours sent. A zero score stays zero.

    >>> fuse(jnp.array([1.0, -3.0, 0.0]), jnp.array([0.5, 1.0, 1.0])).tolist()
    [1.6666667461395264, -4.333333492279053, 0.0]
    """
    adaptive = amplitude * jnp.mean(jnp.abs(scores))
    return scores + lax.stop_gradient(adaptive * jnp.sign(scores) * neighbour_mean)


def threshold(fused: Float[Array, "*shape"], count: int | Int[Array, ""]) -> Float[Array, "*shape"]:
    """The mask, of the dtype of `fused`, that keeps the `count` entries of largest magnitude (paper, Thres).

    `count` is a number of entries, not a share: `kept_entries` makes one of the other.

    Exactly min(count, non-zero entries) are kept: among equal magnitudes the lowest flat index goes first, a zero is
    never kept (subnormal numbers count as zeros; the count does not hold for nan). `count` may be traced. Backward it
    is straight through to the magnitude of every entry, kept or not: the gradient of `fused` is sign(fused) times
    that of the mask, 0 at 0.

    >>> threshold(jnp.array([1.0, -4.0, 0.0, 1.0]), 2).tolist()
    [1.0, 1.0, 0.0, 0.0]
    """
    return _straight_through(fused, count)


@jax.custom_vjp
def _straight_through(fused: Array, count: int | Array) -> Array:
    return largest(jnp.abs(fused), count).astype(fused.dtype)


def _threshold_forward(fused: Array, count: int | Array) -> tuple[Array, Array]:
    return _straight_through(fused, count), fused


def _threshold_backward(fused: Array, cotangent: Array) -> tuple[Array, None]:
    return cotangent * jnp.sign(fused), None


_straight_through.defvjp(_threshold_forward, _threshold_backward)


def largest(magnitudes: Float[Array, "*shape"], count: int | Int[Array, ""]) -> Bool[Array, "*shape"]:
    """Where the `count` largest of non-negative `magnitudes` lie, by the rules of `threshold` for ties and zeros.

    Floats that are not negative sort as their bit patterns do. So bisection on the pattern finds the count-th largest
    exactly, in at most as many passes as it has bits; it stops early where a candidate already splits off `count`.
    """
    word = jnp.uint64 if magnitudes.dtype == jnp.float64 else jnp.uint32
    patterns = lax.bitcast_convert_type(magnitudes, word).reshape(-1)
    count = jnp.asarray(count, jnp.int32)

    def at_least(candidate: Array) -> Array:
        return jnp.sum(patterns >= candidate, dtype=jnp.int32)

    def too_many(bracket: tuple[Array, Array, Array]) -> Array:
        low, high, reached = bracket
        return (reached > count) & (high - low > 1)

    def halve(bracket: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        low, high, reached = bracket
        middle = low + (high - low) // 2
        found = at_least(middle)
        up = found >= count
        return jnp.where(up, middle, low), jnp.where(up, high, middle), jnp.where(up, found, reached)

    # Start at the smallest normal number, so that no zero is ever kept. Compiled code takes subnormals for zeros in
    # some operations and not in others; here they are zeros.
    lowest = lax.bitcast_convert_type(jnp.finfo(magnitudes.dtype).smallest_normal, word)
    beyond_infinity = lax.bitcast_convert_type(jnp.array(jnp.inf, magnitudes.dtype), word) + 1
    cut, _, reached = lax.while_loop(too_many, halve, (lowest, beyond_infinity, at_least(lowest)))

    last = _end_of_ties(patterns == cut, reached - count)
    index = lax.iota(jnp.int32, patterns.size)
    return ((patterns > cut) | ((patterns == cut) & (index < last))).reshape(magnitudes.shape)


def _end_of_ties(ties: Bool[Array, "size"], excess: Int[Array, ""]) -> Int[Array, ""]:
    """The flat index before which all but `excess` of `ties` lie; no pass over them is made where excess <= 0."""
    wanted = jnp.sum(ties, dtype=jnp.int32) - excess
    index = lax.iota(jnp.int32, ties.size)

    def open_bracket(bracket: tuple[Array, Array]) -> Array:
        return bracket[1] - bracket[0] > 1

    def halve(bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bracket
        middle = (low + high) // 2
        enough = jnp.sum(ties & (index < middle), dtype=jnp.int32) >= wanted
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    size = jnp.int32(ties.size)
    low = jnp.where(excess > 0, jnp.int32(-1), size)
    return lax.while_loop(open_bracket, halve, (low, size))[1]


def revive(scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Scores in which every exact zero is a positive number far below all others; gradients pass unchanged.

    Otherwise a zero has no sign: neither fusion nor a gradient reaches it again. The number is the root of the smallest
    normal one, so that its products are no zeros either. Ours.

    >>> revive(jnp.array([0.0, -2.0])).tolist()
    [1.0842021724855044e-19, -2.0]
    """
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


def pack(mask: Array) -> UInt8[Array, "bytes"]:
    """The mask as bits, eight entries a byte.

    Byte k holds the entries k, k + bytes, k + 2 bytes, ... of the flattened mask, lowest bit first: so packing and
    unpacking move whole stretches, which compiles to vector code several times faster than eight neighbours a byte.

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
