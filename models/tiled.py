"""Softmax attention tile by tile: no product of the sequence's length with itself is ever held.

For a tile of queries and one of keys, with S = QKᵀ/√d and the rows' running maximum m and sum l,

    m' = max(m, rowmax S)    P = exp(S − m')    f = exp(m − m')    l ← fl + rowsum P    O ← fO + PV

then o = O/l and L = m + log l, from which the backward pass makes P = exp(S − L) again:

    dV = PᵀdO    dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ o))    dQ = dS K/√d    dK = dSᵀ Q/√d

Online softmax: Milakov & Gimelshein 2018 (1805.02867, §3); tiles and backward pass: Dao et al. 2022
(2205.14135, algorithms 1 and 4). One loop runs over the pairs of tiles that are not all in the
future or all beyond the window; the others cost nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models.packing import Position

UNSEEN = -1e30  # a finite score, so that a tile without a key to see makes no NaN

Queries = Float[Array, "b g r t k"]
Keys = Float[Array, "b g t k"]
Place = Int[Array, "b t 1"] | None
Block = tuple[int, int | None]  # side of a tile, window


def pairs(length: int, tile: int, window: int | None) -> Int[np.ndarray, "p 2"]:
    """(query tile, key tile) in the order of the loop: each query tile's own key tile is last."""
    rows = enumerate(_first_keys(length, tile, window))
    return np.array([(i, j) for i, first in rows for j in range(first, i + 1)], np.int32)


def count(length: int, tile: int, window: int | None) -> int:
    """Pairs of tiles that are computed."""
    return sum(i + 1 - first for i, first in enumerate(_first_keys(length, tile, window)))


def _first_keys(length: int, tile: int, window: int | None) -> list[int]:
    """The first key tile that each query tile sees."""
    reach = window or length
    return [max(0, i * tile + 1 - reach) // tile for i in range(-(-length // tile))]


def seen(
    t: Int[Array, " t"], s: Int[Array, " s"], window: int | None, place: Place
) -> Bool[Array, "b 1 1 t s"]:
    """Whether query t may look at key s: not ahead, within the window, in the same segment."""
    back = t[:, None] - s[None]
    allowed = back >= 0
    if window is not None:
        allowed = allowed & (back < window)
    if place is None:
        return allowed[None, None, None]
    return (allowed[None] & (back[None] <= place))[:, None, None]


def attend(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b g t k"],
    v: Float[Array, "b g t k"],
    position: Position,
    tile: int,
    window: int | None,
) -> Float[Array, "b h t k"]:
    """Causal attention of the whole sequence in tiles of `tile` × `tile`."""
    batch, heads, length, size = q.shape
    groups = k.shape[1]

    def whole_tiles(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -length % tile), (0, 0)])

    q = q.reshape(batch, groups, heads // groups, length, size)
    place = None if position is None else position[..., None]
    out = _attend((tile, window), *jax.tree.map(whole_tiles, (q, k, v, place)))
    return out.reshape(batch, heads, -1, size)[:, :, :length]


def _at(arrays: Any, i: Array, tile: int) -> Any:
    """Tile i of each array along time, the last axis but one."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile, x.ndim - 2), arrays
    )


def _put(x: Array, new: Array, i: Array, tile: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), i * tile, x.ndim - 2)


def _add(x: Array, more: Array, i: Array, tile: int) -> Array:
    return _put(x, _at(x, i, tile) + more, i, tile)


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(block: Block, i, j, q: Queries, k: Keys, place: Place) -> Float[Array, "b g r t s"]:
    """Scaled products of query tile i with key tile j, fp32, UNSEEN where hidden."""
    tile, window = block
    within = jnp.arange(tile)
    visible = seen(i * tile + within, j * tile + within, window, place)
    return jnp.where(visible, _dot("bgrtk,bgsk->bgrts", q, k) * q.shape[-1] ** -0.5, UNSEEN)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block: Block, q: Queries, k: Keys, v: Keys, place: Place) -> Queries:
    return _forward(block, q, k, v, place)[0]


def _forward(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    tile, window = block
    order = pairs(q.shape[3], tile, window)
    begins = np.diff(order[:, 0], prepend=-1) > 0
    row = (*q.shape[:3], tile, 1)
    start = (
        jnp.zeros((*row[:-1], q.shape[-1]), jnp.float32),
        jnp.full(row, UNSEEN, jnp.float32),
        jnp.zeros(row, jnp.float32),
    )

    def step(carry, inputs):
        out, lse, running = carry
        (i, j), begin = inputs
        O, m, l = (jnp.where(begin, new, old) for new, old in zip(start, running, strict=True))
        qi, here = _at((q, place), i, tile)
        kj, vj = _at((k, v), j, tile)
        scores = _scores(block, i, j, qi, kj, here)
        top = jnp.maximum(m, scores.max(-1, keepdims=True))
        weights, fade = jnp.exp(scores - top), jnp.exp(m - top)
        l = fade * l + weights.sum(-1, keepdims=True)
        values = _dot("bgrts,bgsk->bgrtk", weights.astype(v.dtype), vj)
        O = fade * O + values
        out, lse = _put(out, O / l, i, tile), _put(lse, top + jnp.log(l), i, tile)
        return (out, lse, (O, top, l)), None

    empty = jnp.zeros_like(q), jnp.zeros((*q.shape[:-1], 1), jnp.float32), start
    (out, lse, _), _ = jax.lax.scan(step, empty, (order, begins))
    return out, (q, k, v, place, out, lse)


def _backward(block: Block, saved, d_out: Queries):
    q, k, v, place, out, lse = saved
    tile, window = block
    overlap = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)

    def step(carry, pair):
        dq, dk, dv = carry
        i, j = pair
        qi, here, dout, level, shared = _at((q, place, d_out, lse, overlap), i, tile)
        kj, vj = _at((k, v), j, tile)
        weights = jnp.exp(_scores(block, i, j, qi, kj, here) - level)
        d_weights = _dot("bgrtk,bgsk->bgrts", dout, vj)
        d_products = weights * (d_weights - shared) * q.shape[-1] ** -0.5
        d_products, weights = d_products.astype(q.dtype), weights.astype(v.dtype)
        dq = _add(dq, _dot("bgrts,bgsk->bgrtk", d_products, kj), i, tile)
        dk = _add(dk, _dot("bgrts,bgrtk->bgsk", d_products, qi), j, tile)
        dv = _add(dv, _dot("bgrts,bgrtk->bgsk", weights, dout), j, tile)
        return (dq, dk, dv), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    gradients, _ = jax.lax.scan(step, zeros, pairs(q.shape[3], tile, window))
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True)), None


_attend.defvjp(_forward, _backward)
