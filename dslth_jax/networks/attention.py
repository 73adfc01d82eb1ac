"""Attention of tokens to each other, and the code of their places. One agent's world."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tokens = Float[Array, "batch tokens width"]


def attention(query: Tokens, key: Tokens, value: Tokens, heads: int) -> Tokens:
    """softmax(q kᵀ / √d) v for each of `heads` equal parts of the width, d wide (Vaswani et al. 2017, section 3.2).

    No weights are part of it. The softmax takes each row's maximum off first, in float32 at least.
    """
    batch, tokens, width = query.shape
    if width % heads:
        raise ValueError(f"heads must divide the width {width}, got {heads}")
    q, k, v = (part.reshape(batch, tokens, heads, width // heads) for part in (query, key, value))
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide) / math.sqrt(width // heads)
    weights = jax.nn.softmax(scores).astype(query.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(batch, tokens, width)


def place_code(rows: int, columns: int, width: int) -> Float[np.ndarray, "tokens width"]:
    """A fixed code of a grid's places, in reading order: sines and cosines of columns and rows, a quarter each.

    Of frequencies from 1 to 1/10000, as Beyer et al. 2022 (a plain ViT) take them. The width is a multiple of 4.
    """
    if width % 4 or width < 4:
        raise ValueError(f"width must be a multiple of 4, got {width}")
    frequencies = 10000.0 ** -(np.arange(width // 4) / max(width // 4 - 1, 1))
    row, column = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1)
