"""Packing: several segments in one row, each computed as if it stood there alone.

    position_t = t − (the first token of t's segment)

is all that a mixer needs: it restarts where position is 0. Keys further back than `position` are
another segment's, and so are the taps of a convolution; a recurrence forgets its state at 0. `None`
stands for one segment for each row, and adds nothing to the program. What a batch is charged does
not change: masked work is executed (Krell et al. 2021, 2107.02027, for why one packs). Experts of
limited capacity, and experts that choose, still share their room between all tokens of a call.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Position = Int[Array, "b t"] | None


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
