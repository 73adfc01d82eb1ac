"""Normalization over live channels, without trained parameters and without state. One agent's world.

A channel is live if the kernel in use feeds it: see `fed`. A dead one is 0 everywhere; counted in, its zeros would move
the mean and the variance of all others, and a network from which it is cut out would be another one. So statistics are
those of live channels, and dead ones stay exactly 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

EPSILON = 1e-5  # added to variances

Live = Bool[Array, "channels"]
Groups = int | tuple[int, ...]  # how many equal parts, one after another; or each channel's group


def fed(
    kernel: Float[Array, "*sides inputs outputs"], live: Bool[Array, "inputs"] | None = None
) -> Bool[Array, "outputs"]:
    """Which outputs a kernel feeds: those with an entry other than 0 at an input that is `live` (None: all are).

    >>> fed(jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), jnp.array([True, False])).tolist()
    [True, False, False]
    """
    used = jnp.any(kernel != 0, axis=tuple(range(kernel.ndim - 2)))
    return jnp.any(used if live is None else used & live[:, None], axis=0)


def groups_of(channels: int) -> int:
    """How many groups a norm makes of so many channels: the most, up to 32, that are equal and have at least 4 each.

    32 is what Wu and He (ECCV 2018) take; of fewer than 128 channels they would leave few to a group.

    >>> [groups_of(channels) for channels in (2, 4, 16, 24, 64, 320)]
    [1, 1, 4, 6, 16, 32]
    """
    most = max(1, min(32, channels // 4))
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


def groups_left(numbers: Int[np.ndarray, "left"], channels: int) -> Groups:
    """The groups of those channels that are left of so many, by their numbers; each stays in the group that it had.

    >>> groups_left(np.array([0, 1, 4, 7]), 8), groups_left(np.array([0, 4, 7]), 8), groups_left(np.array([5, 6]), 8)
    (2, (0, 1, 1), 1)
    """
    _, own, sizes = np.unique(numbers // (channels // groups_of(channels)), return_inverse=True, return_counts=True)
    return len(sizes) if (sizes == sizes[0]).all() else tuple(own.tolist())


def group_norm(
    images: Float[Array, "batch height width channels"], groups: Groups, alive: Live | None = None
) -> Float[Array, "batch height width channels"]:
    """(x - mean) / √(variance + 1e-5) over the live channels of each group, and all pixels.

    Wu and He, ECCV 2018, without scale and shift. `alive` None takes all channels; dead ones, and so a whole group
    without a live one, become 0. Statistics are at least of float32. Reverse mode only.
    """
    channels = images.shape[3]
    if isinstance(groups, tuple):
        if len(groups) != channels:
            raise ValueError(f"groups must say the group of each of the {channels} channels, got {len(groups)}")
    elif channels % groups:
        raise ValueError(f"groups must divide the {channels} channels, got {groups}")
    live = jnp.ones(channels, bool) if alive is None else alive
    values = images.reshape(images.shape[0], -1, channels)
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return _normalized(groups, wide, live.astype(wide.dtype)).astype(images.dtype).reshape(images.shape)


def _mean_of_group(groups: Groups, sums: Array, live: Array, places: int) -> Array:
    """Sums over places of every channel (batch, channels), as the mean of its group's live entries."""
    if isinstance(groups, tuple):
        own = np.eye(max(groups) + 1)[list(groups)]  # (channels, groups)
        member = jnp.asarray(own, sums.dtype)
        entries = jnp.maximum(places * (live @ member), 1)
        of_group = jnp.matmul(sums * live[None], member, precision=lax.Precision.HIGHEST) / entries[None]
        return of_group[:, np.array(groups)]
    parts = live.reshape(groups, -1)
    entries = jnp.maximum(places * jnp.sum(parts, 1), 1)
    of_group = jnp.sum(sums.reshape(-1, *parts.shape) * parts[None], 2) / entries[None]
    return jnp.repeat(of_group, parts.shape[1], 1)


def _statistics(groups: Groups, values: Array, live: Array) -> tuple[Array, Array]:
    """The mean of every channel's group, and the factor that brings it to variance 1: 0 for a dead channel."""
    mean_of_group = partial(_mean_of_group, groups, live=live, places=values.shape[1])
    mean = mean_of_group(jnp.sum(values, 1))
    variance = mean_of_group(jnp.sum((values - mean[:, None]) ** 2, 1))
    return mean, lax.rsqrt(variance + EPSILON) * live[None]


def _normalized_value(groups: Groups, values: Array, live: Array) -> Array:
    return _normalized_forward(groups, values, live)[0]


def _normalized_forward(groups: Groups, values: Array, live: Array) -> tuple[Array, tuple[Array, ...]]:
    mean, factor = _statistics(groups, values, live)
    return (values - mean[:, None]) * factor[:, None], (values, live, mean, factor)


def _normalized_backward(groups: Groups, residuals: tuple[Array, ...], gradient: Array) -> tuple[Array, None]:
    """factor · (g - mean g - y · mean(g · y)), for y the normalized values."""
    values, live, mean, factor = residuals
    mean_of_group = partial(_mean_of_group, groups, live=live, places=values.shape[1])
    apart = values - mean[:, None]
    direct = mean_of_group(jnp.sum(gradient, 1))
    along = mean_of_group(jnp.sum(gradient * apart, 1) * factor) * factor
    return factor[:, None] * (gradient - direct[:, None] - along[:, None] * apart), None


_normalized = jax.custom_vjp(_normalized_value, nondiff_argnums=(0,))
_normalized.defvjp(_normalized_forward, _normalized_backward)


def layer_norm(values: Float[Array, "*axes channels"], alive: Live | None = None) -> Float[Array, "*axes channels"]:
    """(x - mean) / √(variance + 1e-5) over the live channels at each place, without scale and shift.

    Ba, Kiros and Hinton 2016. `alive` as in `group_norm`.
    """
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    live = jnp.ones(values.shape[-1], bool) if alive is None else alive
    live = jnp.expand_dims(live, range(values.ndim - 1))
    entries = jnp.maximum(jnp.sum(live), 1).astype(wide.dtype)
    zero = jnp.zeros((), wide.dtype)  # not Python's: converters take that for a number of float64
    mean = jnp.sum(jnp.where(live, wide, zero), -1, keepdims=True) / entries
    apart = jnp.where(live, wide - mean, zero)
    variance = jnp.sum(apart**2, -1, keepdims=True) / entries
    return (apart * lax.rsqrt(variance + EPSILON)).astype(values.dtype)
