"""Softmax attention tile by tile: no product of the sequence's length with itself is ever held.

For a tile of queries and one of keys, with S = QKᵀ/√d and the rows' running maximum m and sum l,

    m' = max(m, rowmax S)    P = exp(S − m')    f = exp(m − m')    l ← fl + rowsum P    O ← fO + PV

then o = O/l and L = m + log l, from which the backward pass makes P = exp(S − L) again:

    dV = PᵀdO    dS = P ⊙ (dO Vᵀ − rowsum(dO ⊙ o))    dQ = dS K/√d    dK = dSᵀ Q/√d

Online softmax: Milakov & Gimelshein 2018 (1805.02867, §3); tiles and backward pass: Dao et al. 2022
(2205.14135, algorithms 1 and 4). Pairs of tiles that are all in the future or all beyond the window
cost nothing. A CPU takes a tile of queries with all keys that it sees, so that its softmax is done
at once, and as many heads as its caches hold; an accelerator, where every step of a loop waits for
several launches, all pairs of one distance between query and key. Either is unrolled, a CPU's long
rows in a loop of which each step has a size of its own, and many tiles go pair by pair in a loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Bool, Float, Int

from isoflop.models.kernels.platforms import backend, by_platform
from isoflop.models.packing import Position

UNROLLED = 16  # rows or diagonals of tiles at most, where they are unrolled
ROWS = 64  # of a long sequence at most, which a CPU takes one at a time: a size of its own each
SCORES = 2**18  # in a row of tiles that a CPU holds at once, or of one head: 1 MiB, for its caches
LONG = 2048  # tokens from which a CPU takes one row at a time, which fills its cores
SIDE = 256  # queries of such a row that are taken at once, at most if its tile can be parted
UNSEEN = -1e30  # a finite score, so that a tile without a key to see makes no NaN

Queries = Float[Array, "b g r t k"]
Keys = Float[Array, "b g t k"]
SeenKeys = Float[Array, "b g s k"]
Place = Int[Array, "b t 1"] | None
Block = tuple[int, int | None]  # side of a tile, window


def pairs(length: int, tile: int, window: int | None) -> Int[np.ndarray, "p 2"]:
    """(query tile, key tile) in the order of the loop: each query tile's own key tile is last."""
    rows = _rows(length, tile, window)
    return np.array([(i, j) for i, first in rows for j in range(first, i + 1)], np.int32)


def count(length: int, tile: int, window: int | None) -> int:
    """Pairs of tiles that are computed."""
    return sum(i + 1 - first for i, first in _rows(length, tile, window))


def softmax_flops(length: int, tile: int, window: int | None, size: int) -> int:
    """Elementwise FLOPs of one head of `size` channels, padding included: for each pair scale,
    subtract the maximum, exp and sum; for each query the same of what it had before, and its output
    faded, added to and divided, once or, in a loop over pairs of tiles, in each of its turns.
    """
    turns, rows = count(length, tile, window), len(_rows(length, tile, window))
    ends = rows if _has_rows(length, tile, window) else turns
    return tile * (4 * turns * tile + ends * (4 + 3 * size))


def _rows(length: int, tile: int, window: int | None) -> list[tuple[int, int]]:
    """Of each query tile: its own key tile, which is its last, and the first that it sees."""
    reach = window or length
    return [(i, max(0, i * tile + 1 - reach) // tile) for i in range(-(-length // tile))]


def _has_rows(length: int, tile: int, window: int | None) -> bool:
    """Whether a CPU goes row by row, and not pair by pair."""
    return len(_rows(length, tile, window)) <= (UNROLLED if length < LONG else ROWS)


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


def reference(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b g s k"],
    v: Float[Array, "b g s k"],
    visible: Bool[Array, "#b 1 1 t s"],
) -> Float[Array, "b h t k"]:
    """softmax(QKᵀ/√d) V over the keys that each query sees, all pairs at once, in fp32."""
    groups = rearrange(q, "b (g r) t k -> b g r t k", g=k.shape[1])
    scores = _dot("bgrtk,bgsk->bgrts", groups, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, where=visible)
    out = _dot("bgrts,bgsk->bgrtk", weights, v.astype(jnp.float32))
    return out.reshape(q.shape).astype(v.dtype)


def attend(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b g t k"],
    v: Float[Array, "b g t k"],
    position: Position,
    tile: int,
    window: int | None,
) -> Float[Array, "b h t k"]:
    """Causal attention of the whole sequence in tiles of `tile` × `tile`.

    On an NVIDIA GPU bf16 without segments goes to cuDNN, whose kernel tiles by itself.
    """

    def tiles(q, k, v, position):
        return _by_tiles(q, k, v, position, (tile, window))[0]

    asked = backend()
    if asked == "reference":
        place = None if position is None else position[..., None]
        every = jnp.arange(q.shape[2])
        return reference(q, k, v, seen(every, every, window, place))
    if asked != "cpu" and _flash(q, position):
        kernel = partial(_cudnn, window=window)
        return jax.lax.platform_dependent(q, k, v, position, cuda=kernel, default=tiles)
    return tiles(q, k, v, position)


def attend_on(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b g t k"],
    v: Float[Array, "b g t k"],
    cache: tuple[Float[Array, "b g s k"], Float[Array, "b g s k"]],
    held: Int[Array, "b s"],
    place: Int[Array, "b t"],
    tile: int,
    window: int | None,
) -> Float[Array, "b h t k"]:
    """`attend` of tokens at `place` that also look at a `cache` of the keys and values of earlier
    ones, at the places `held` (negative: none there).

    The online softmax of the tokens' own keys goes on with the cache, a tile of keys at a time. A
    tile that no row holds a key in costs nothing, so that an empty cache does not.
    """
    if backend() == "reference":
        keys, values = (jnp.concatenate(pair, axis=2) for pair in zip(cache, (k, v), strict=True))
        at = jnp.concatenate([held, place], axis=1)[:, None]
        back = place[:, :, None] - at
        visible = (at >= 0) & (back >= 0) & (back < (window or jnp.inf))
        return reference(q, keys, values, visible[:, None, None])
    out, lse = _by_tiles(q, k, v, None, (tile, window))
    q = rearrange(q, "b (g r) t k -> b g r t k", g=k.shape[1])
    running = out.reshape(q.shape).astype(jnp.float32), lse, jnp.ones_like(lse)

    def some(running, inputs):
        keys, values, held = inputs

        def more(running):
            visible = (held >= 0)[:, None, :]
            if window is not None:
                visible = visible & (place[:, :, None] - held[:, None, :] < window)
            scores = _dot("bgrtk,bgsk->bgrts", q, keys) * q.shape[-1] ** -0.5
            scores = jnp.where(visible[:, None, None], scores, UNSEEN)
            return _gather(running, scores, values)

        return jax.lax.cond((held >= 0).any(), more, lambda running: running, running), None

    missing = -held.shape[1] % tile

    def split(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, 0), (0, missing), (0, 0)))
        return rearrange(x, "b g (n s) k -> n b g s k", s=tile)

    held = jnp.pad(held, ((0, 0), (0, missing)), constant_values=-1)
    inputs = *map(split, cache), rearrange(held, "b (n s) -> n b s", s=tile)
    (out, _, total), _ = jax.lax.scan(some, running, inputs)
    return rearrange((out / total).astype(v.dtype), "b g r t k -> b (g r) t k")


def _flash(q: Array, position: Position) -> bool:
    """Whether this process has a GPU whose kernel takes these inputs; it is bound to the device."""
    fits = q.dtype == jnp.bfloat16 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and position is None and jax.default_backend() == "gpu"


def _cudnn(q: Array, k: Array, v: Array, position: None, window: int | None) -> Array:
    """cuDNN's attention, which never holds the scores: 2205.14135 as one kernel each way."""
    q, k, v = (jnp.moveaxis(x, 1, 2) for x in (q, k, v))
    left = None if window is None else (window - 1, 0)
    out = jax.nn.dot_product_attention(
        q, k, v, is_causal=True, local_window_size=left, implementation="cudnn"
    )
    return jnp.moveaxis(out, 2, 1)


def _by_tiles(
    q: Array, k: Array, v: Array, position: Position, block: Block
) -> tuple[Array, Float[Array, "b g r t 1"]]:
    """Outputs, and the logarithm of each query's sum of weights."""
    batch, heads, length, size = q.shape
    groups, tile = k.shape[1], block[0]

    def whole_tiles(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -length % tile), (0, 0)])

    q = q.reshape(batch, groups, heads // groups, length, size)
    place = None if position is None else position[..., None]
    out, lse = _attend(block, *jax.tree.map(whole_tiles, (q, k, v, place)))
    return out.reshape(batch, heads, -1, size)[:, :, :length], lse[:, :, :, :length]


def _at(arrays: Any, i: Array | int, tile: int) -> Any:
    """Tile i of each array along time, the last axis but one."""
    return jax.tree.map(
        lambda x: jax.lax.dynamic_slice_in_dim(x, i * tile, tile, x.ndim - 2), arrays
    )


def _put(x: Array, new: Array, i: Array | int, tile: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), i * tile, x.ndim - 2)


def _add(x: Array, more: Array, i: Array, tile: int) -> Array:
    return _put(x, _at(x, i, tile) + more, i, tile)


_dot = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(block: Block, i, j, q: Queries, k: SeenKeys, place: Place) -> Float[Array, "b g r t s"]:
    """Scaled products of query tile i with keys from tile j on, fp32, UNSEEN where hidden."""
    tile, window = block
    queries, keys = (start * tile + jnp.arange(x.shape[-2]) for start, x in ((i, q), (j, k)))
    visible = seen(queries, keys, window, place)
    return jnp.where(visible, _dot("bgrtk,bgsk->bgrts", q, k) * q.shape[-1] ** -0.5, UNSEEN)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    return _forward(block, q, k, v, place)[0]


def _forward(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    forms = _forms(block, q, _forward_in_turn, _forward_by_rows, _forward_by_diagonals)
    out, lse = forms(q, k, v, place)
    return (out, lse), (q, k, v, place, out, lse)


def _backward(block: Block, saved, gradient):
    q, k, v, place, out, lse = saved
    d_out, d_lse = gradient  # dL joins as dS = P dL
    overlap = _dot("bgrtk,bgrtk->bgrt", d_out, out)[..., None] - d_lse
    forms = _forms(block, q, _backward_in_turn, _backward_by_rows, _backward_by_diagonals)
    gradients = forms(q, k, v, place, d_out, lse, overlap)
    return *(g.astype(x.dtype) for g, x in zip(gradients, (q, k, v), strict=True)), None


_attend.defvjp(_forward, _backward)


def _forms(block: Block, q: Queries, *forms: Callable) -> Callable:
    """In turn, by rows and by diagonals; a TPU's compiler takes minutes for 16 of the last."""
    turns, rows, diagonals = (partial(form, block) for form in forms)
    if not _has_rows(q.shape[3], *block):
        rows = turns
    if len(_diagonals(q.shape[3], *block)) > UNROLLED:
        diagonals = turns
    return by_platform(rows, diagonals, tpu=turns)


def _forward_in_turn(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    """(out, log of the sums)."""
    tile, window = block
    order = pairs(q.shape[3], tile, window)
    begins = np.diff(order[:, 0], prepend=-1) > 0
    start = _nothing(q[:, :, :, :tile])

    def step(carry, inputs):
        out, lse, running = carry
        (i, j), begin = inputs
        O, m, l = (jnp.where(begin, new, old) for new, old in zip(start, running, strict=True))
        qi, here = _at((q, place), i, tile)
        kj, vj = _at((k, v), j, tile)
        O, m, l = _gather((O, m, l), _scores(block, i, j, qi, kj, here), vj)
        out, lse = _put(out, O / l, i, tile), _put(lse, m + jnp.log(l), i, tile)
        return (out, lse, (O, m, l)), None

    empty = jnp.zeros_like(q), jnp.zeros((*q.shape[:-1], 1), jnp.float32), start
    (out, lse, _), _ = jax.lax.scan(step, empty, (order, begins))
    return out, lse


def _nothing(q: Queries):
    """The online softmax of no keys: values, maximum and sum."""
    row = (*q.shape[:-1], 1)
    return jnp.zeros(q.shape, jnp.float32), jnp.full(row, UNSEEN), jnp.zeros(row, jnp.float32)


def _gather(running, scores: Float[Array, "b g r t s"], v: SeenKeys):
    """The online softmax's values, maximum and sum of each query, with some more keys."""
    O, m, l = running
    top = jnp.maximum(m, scores.max(-1, keepdims=True))
    weights, fade = jnp.exp(scores - top), jnp.exp(m - top)
    O = fade * O + _dot("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v)
    return O, top, fade * l + weights.sum(-1, keepdims=True)


def _backward_in_turn(block: Block, q, k, v, place, d_out, lse, overlap):
    tile, window = block

    def step(carry, pair):
        dq, dk, dv = carry
        i, j = pair
        qi, here, dout, level, shared = _at((q, place, d_out, lse, overlap), i, tile)
        kj, vj = _at((k, v), j, tile)
        scores = _scores(block, i, j, qi, kj, here)
        weights, d_products = _unsoftmax(scores, dout, vj, level, shared)
        dq = _add(dq, _dot("bgrts,bgsk->bgrtk", d_products, kj), i, tile)
        dk = _add(dk, _dot("bgrts,bgrtk->bgsk", d_products, qi), j, tile)
        dv = _add(dv, _dot("bgrts,bgrtk->bgsk", weights, dout), j, tile)
        return (dq, dk, dv), None

    zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (q, k, v))
    return jax.lax.scan(step, zeros, pairs(q.shape[3], tile, window))[0]


def _unsoftmax(scores, d_out, v, lse, overlap):
    """The weights again, and the gradient of the products before scaling, in the inputs' format."""
    weights = jnp.exp(scores - lse)
    d_products = weights * (_dot("bgrtk,bgsk->bgrts", d_out, v) - overlap)
    d_products = d_products * d_out.shape[-1] ** -0.5
    return weights.astype(v.dtype), d_products.astype(v.dtype)


# By rows: tile i of the queries with all keys that it sees


def _at_once(total: int, scores: int) -> int:
    """The part of `total` heads, of so many scores in a row, that is nearest in ratio to SCORES."""
    parts = (n for n in range(1, total + 1) if total % n == 0)
    return min(parts, key=lambda n: abs(math.log(n * scores / SCORES)))


def _by_heads(block: Block, function: Callable, heads: tuple[Array, ...], place: Place) -> Any:
    """`function` of equal parts of the heads, one after another."""
    batch, groups, shared, length, _ = heads[0].shape
    width = max(i + 1 - first for i, first in _rows(length, *block)) * block[0]
    n = _at_once(batch * groups, shared * _side(length, block[0]) * width)
    if n == batch * groups:
        return function(heads, place)
    each = [rearrange(x, "b g ... -> (b g) 1 ...") for x in heads]
    here = None if place is None else repeat(place, "b t 1 -> (b g) t 1", g=groups)
    split = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]), (each, here))
    out = jax.lax.map(lambda some: function(*some), split)
    return jax.tree.map(lambda x: x.reshape(batch, groups, *x.shape[3:]), out)


def _side(length: int, tile: int) -> int:
    """Queries of a row that a CPU takes at once: equal parts of a tile, not much below SIDE."""
    if length < LONG or tile <= SIDE:
        return tile
    return next((side for side in range(SIDE, SIDE // 2, -1) if tile % side == 0), tile)


def _each(row: Callable, block: Block, length: int, done: Any) -> Any:
    """`row` of each: side by side, as XLA orders them, where one is too short for all cores, and
    else in a loop over parts of them, so that the scores of one part alone are held.
    """
    tile, window = block
    forms = [partial(row, *ends) for ends in _rows(length, tile, window)]
    if length < LONG:
        return reduce(lambda done, at: forms[at](at, done), range(len(forms)), done)
    parts = tile // _side(length, tile)

    def step(done, at):
        return jax.lax.switch(at // parts, forms, at, done), None

    return jax.lax.scan(step, done, jnp.arange(len(forms) * parts))[0]


def _forward_by_rows(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    (tile, window), length = block, q.shape[3]
    side = _side(length, tile)

    def forward(heads, place):
        q, k, v = heads

        def row(i: int, first: int, at, done):
            out, lse = done
            qi, here = _at((q, place), at, side)
            ki, vi = (x[:, :, first * tile : (i + 1) * tile] for x in (k, v))
            scores = _scores((side, window), at, first * tile // side, qi, ki, here)
            O, m, l = _gather(_nothing(qi), scores, vi)
            return _put(out, O / l, at, side), _put(lse, m + jnp.log(l), at, side)

        empty = jnp.zeros_like(q), jnp.zeros((*q.shape[:-1], 1), jnp.float32)
        return _each(row, block, length, empty)

    return _by_heads(block, forward, (q, k, v), place)


def _turned(
    narrow: Float[Array, "b g r t k"], wide: Float[Array, "b g r t s"]
) -> Float[Array, "b g k s"]:
    """narrowᵀ wide, which a CPU has for fp32 alone."""
    return jnp.einsum("bgrtk,bgrts->bgks", narrow.astype(jnp.float32), wide.astype(jnp.float32))


def _backward_by_rows(block: Block, q, k, v, place, d_out, lse, overlap):
    (tile, window), length = block, q.shape[3]
    side = _side(length, tile)

    def backward(heads, place):
        # or the scores of the forward pass would be kept instead of computed again
        q, d_out, lse, overlap, k, v = jax.lax.optimization_barrier(heads)

        def row(i: int, first: int, at, done):
            dq, dk, dv = done
            qi, dout, level, shared, here = _at((q, d_out, lse, overlap, place), at, side)
            keys = slice(first * tile, (i + 1) * tile)
            ki, vi = k[:, :, keys], v[:, :, keys]
            scores = _scores((side, window), at, first * tile // side, qi, ki, here)
            weights, d_products = _unsoftmax(scores, dout, vi, level, shared)
            dq = _put(dq, _dot("bgrts,bgsk->bgrtk", d_products, ki), at, side)
            dk = dk.at[..., keys].add(_turned(qi, d_products))
            dv = dv.at[..., keys].add(_turned(dout, weights))
            return dq, dk, dv

        # with time last, as products that turn over q and d_out make them, not the wider scores
        dk, dv = (jnp.zeros(x.swapaxes(2, 3).shape, jnp.float32) for x in (k, v))
        empty = jnp.zeros(q.shape, jnp.float32), dk, dv
        dq, dk, dv = _each(row, block, length, empty)
        return dq, dk.swapaxes(2, 3), dv.swapaxes(2, 3)

    return _by_heads(block, backward, (q, d_out, lse, overlap, k, v), place)


# By diagonals: tile i of the queries with tile i − d of the keys, for all i as one batch


def _diagonals(length: int, tile: int, window: int | None) -> range:
    """The distances d at which some key is seen."""
    return range(max(i + 1 - first for i, first in _rows(length, tile, window)))


def _tiles(arrays: Any, tile: int) -> Any:
    """Time split into tiles, which lead: (n b … tile k)."""

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, tile, x.shape[-1]), -3, 0)

    return jax.tree.map(split, arrays)


def _batch(arrays: Any, rows: slice) -> Any:
    """Some tiles as one batch."""
    return jax.tree.map(lambda x: x[rows].reshape(-1, *x.shape[2:]), arrays)


def _whole(x: Float[Array, "n b *heads t k"]) -> Array:
    """The inverse of `_tiles`."""
    x = jnp.moveaxis(x, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])


def _forward_by_diagonals(block: Block, q: Queries, k: Keys, v: Keys, place: Place):
    tile, window = block
    running = _tiles(_nothing(q), tile)
    queries, keys = _tiles((q, place), tile), _tiles((k, v), tile)
    count = len(keys[0])
    for d in _diagonals(q.shape[3], tile, window):
        rows, columns = slice(d, None), slice(0, count - d)
        (qs, here), (ks, vs) = _batch(queries, rows), _batch(keys, columns)
        more = _gather(_batch(running, rows), _scores(block, d, 0, qs, ks, here), vs)
        running = jax.tree.map(
            lambda x, new, rows=rows: x.at[rows].set(new.reshape(x[rows].shape)), running, more
        )
    O, m, l = map(_whole, running)
    return (O / l).astype(q.dtype), m + jnp.log(l)


def _backward_by_diagonals(block: Block, q, k, v, place, d_out, lse, overlap):
    tile, window = block
    queries, keys = _tiles((q, place, d_out, lse, overlap), tile), _tiles((k, v), tile)
    dq, dk, dv = _tiles([jnp.zeros(x.shape, jnp.float32) for x in (q, k, v)], tile)
    count = len(dk)

    def add(x: Array, rows: slice, more: Array) -> Array:
        return x.at[rows].add(more.reshape(x[rows].shape))

    for d in _diagonals(q.shape[3], tile, window):
        rows, columns = slice(d, None), slice(0, count - d)
        (qs, here, dout, level, shared), (ks, vs) = _batch(queries, rows), _batch(keys, columns)
        scores = _scores(block, d, 0, qs, ks, here)
        weights, d_products = _unsoftmax(scores, dout, vs, level, shared)
        dq = add(dq, rows, _dot("bgrts,bgsk->bgrtk", d_products, ks))
        dk = add(dk, columns, _dot("bgrts,bgrtk->bgsk", d_products, qs))
        dv = add(dv, columns, _dot("bgrts,bgrtk->bgsk", weights, dout))
    return tuple(map(_whole, (dq, dk, dv)))
