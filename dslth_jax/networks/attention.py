"""Attention of tokens to each other, and the code of their places. One agent's world."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tokens = Float[Array, "batch tokens width"]


def attention(
    query: Tokens, key: Tokens, value: Float[Array, "batch tokens values"], heads: int, depth: int | None = None
) -> Float[Array, "batch tokens values"]:
    """softmax(q kᵀ / √d) v for each of `heads` equal parts of the width, d wide (Vaswani et al. 2017, section 3.2).

    No weights are part of it. The softmax takes each row's maximum off first, in float32 at least. `depth` is d where
    channels that add nothing to q kᵀ have been cut out.
    """
    batch, tokens, width = query.shape
    if width % heads or value.shape[2] % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    q, k, v = (part.reshape(batch, tokens, heads, -1) for part in (query, key, value))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) / math.sqrt(depth or width // heads)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(value.shape)


def place_code(rows: int, columns: int, width: int) -> Float[np.ndarray, "tokens width"]:
    """A fixed code of a grid's places, in reading order: sines and cosines of columns and rows, a quarter each.

    Of frequencies from 1 to 1/10000, as Beyer et al. 2022 (a plain ViT) take them. The width is a multiple of 4.
    """
    if width % 4 or width < 4:
        raise ValueError(f"width must be a multiple of 4, got {width}")
    frequencies = 10000.0 ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
