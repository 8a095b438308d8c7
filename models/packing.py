"""Packing: several segments in one row, each computed as if it stood there alone.

    position_t = t − (the first token of t's segment)

is all that a mixer needs: it restarts where position is 0. Keys further back than `position` are
another segment's, and so are the taps of a convolution; a recurrence forgets its state at 0. `None`
stands for one segment for each row, and adds nothing to the program. What a batch is charged does
not change: masked work is executed (Krell et al. 2021, 2107.02027, for why one packs). Experts of
limited capacity, and experts that choose, still share their room between all tokens of a call.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Position = Int[Array, "b t"] | None
Lengths = Int[Array, " b"] | None  # real tokens at the left of each row; None: all


def positions(segment_ids: Int[Array, "b t"]) -> Int[Array, "b t"]:
    """Place of each token in its segment, a run of equal ids; padding is a segment of its own."""
    t = jnp.arange(segment_ids.shape[1])[None]
    begins = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    start = jax.lax.cummax(jnp.where(begins, t, 0), axis=1)
    return t - start


def restart(x: Float[Array, "b *h t k"], position: Position, value: float) -> Array:
    """`x`, with `value` at the first token of each segment."""
    if position is None:
        return x
    first = (position == 0)[..., None]
    return jnp.where(first if x.ndim == 3 else first[:, None], value, x)


def kept(position: Position) -> Float[Array, "b t 1"] | None:
    """The factor on a state before each token: 0 where a segment begins, else 1."""
    return None if position is None else (position > 0)[..., None].astype(jnp.float32)


def previous(x: Float[Array, "b t d"], position: Position) -> Float[Array, "b t d"]:
    """The token before each token of the same segment, 0 where there is none."""
    return restart(jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], position, 0.0)


def is_real(lengths: Int[Array, " b"], size: int) -> Bool[Array, "b t"]:
    """Whether each of `size` tokens of a row is one of its own, or padding to their right."""
    return jnp.arange(size)[None] < lengths[:, None]


def pad(x: Float[Array, "b *h t k"], lengths: Lengths, value: float = 0.0) -> Array:
    """`x`, with `value` at the padding."""
    if lengths is None:
        return x
    real = is_real(lengths, x.shape[-2])[..., None]
    return jnp.where(real if x.ndim == 3 else real[:, None], x, value)


def last(window: Float[Array, "b p i"], size: int, lengths: Lengths) -> Float[Array, "b s i"]:
    """The `size` inputs up to the last real token, of those that `window` has before the first
    token (`size` as well) and of the tokens themselves.
    """
    if lengths is None:
        return window[:, window.shape[1] - size :]
    cut = partial(jax.lax.dynamic_slice_in_dim, slice_size=size)
    return jax.vmap(cut)(window, lengths)


def lengths_of(x: Float[Array, "b t d"], lengths: Lengths) -> Int[Array, " b"]:
    """Real tokens of each row."""
    return jnp.full(len(x), x.shape[1], jnp.int32) if lengths is None else lengths
