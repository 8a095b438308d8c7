"""The recurrence of RWKV-7, a delta rule whose key to erase is not the key to write (2503.14456).

    S_t = (diag(w_t) − (a_t ⊙ κ_t) κ_tᵀ) S_{t−1} + k_t v_tᵀ        y_t = S_tᵀ r_t

The reference is `step` token by token; the fast form, for every platform, is in chunks. S is (k, v)
per head, fp32. Axes: b batch, h head, t token, k and v channels, c tokens of a chunk.
"""

from __future__ import annotations

import jax.numpy as jnp

from isoflop.models.kernels import recurrence
from isoflop.models.kernels.delta_rule import System, after, inverse_flops, solve
from isoflop.models.kernels.recurrence import scores


def step(S: recurrence.Memory, r, k, v, unit, rated, log_w):
    """One token: the equation above; every input is (b, h, size)."""
    held = jnp.einsum("bhk,bhkv->bhv", unit, S)
    S = jnp.exp(log_w)[..., None] * S
    S = S - rated[..., None] * held[..., None, :] + k[..., None] * v[..., None, :]
    return S, jnp.einsum("bhk,bhkv->bhv", r, S)


def chunked(
    r, k, v, unit, rated, log_w, *, chunk: int, start: recurrence.Memory | None = None
) -> tuple[recurrence.Memory, recurrence.Values]:
    """`step` over all tokens in chunks, as `delta_rule.chunked` does it.

    With p_t = S_{t−1}ᵀ κ_t, S is the plain recurrence over the pairs (k, v) and (−a ⊙ κ, p), and
    the p of a chunk, p_v + p_k S_0, solve a unit lower triangular system. Between s and t lie the
    decays of s + 1 … t − 1 for κ, which reads before the decay of its own token, and of s + 1 … t
    for r.
    """
    memory = k.shape[-1], v.shape[-1]
    return recurrence.by_chunks(step, _chunk, (r, k, v, unit, rated, log_w), memory, chunk, start)


def _chunk(S: recurrence.Memory, inputs):
    r, k, v, unit, rated, log_w = inputs
    decay = recurrence.decays(log_w)
    start, end, pairs = decay.from_start(), decay.to_end(), decay.pairs()

    def late(x):  # what a token finds was left by the tokens before it
        return jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1]

    following = jnp.pad(unit, ((0, 0), (0, 0), (0, 1), (0, 0)))[:, :, 1:]
    begins = late(following * start).at[:, :, 0].set(unit[:, :, 0])
    (rated_found, rated_read), (found, read) = (
        scores([following, r], key, pairs) for key in (rated, k)
    )
    system = System.of(late(rated_found))
    parts = jnp.concatenate([begins, late(found) @ v], axis=-1)
    p_k, p_v = jnp.split(solve(system, parts), [k.shape[-1]], axis=-1)
    kept, outflow = after(start[:, :, -1], rated * end, p_k, p_v)
    inflow = jnp.einsum("bhck,bhcv->bhkv", k * end, v)
    S, before = recurrence.states(S, kept, inflow - outflow)
    p = p_k @ before + p_v
    out = read @ v - rated_read @ p + (r * start) @ before
    return S, out


def chunked_flops(length: int, size: int, chunk: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of `chunked` for one head, padding included."""
    chunk, padded = recurrence.in_chunks(length, chunk)
    chunks = padded // chunk
    decay = recurrence.decay_flops(chunk, size)
    pairs = recurrence.scores_flops(chunk, size, size, uses=4)
    matmul = decay[0] + pairs[0] + 10 * chunk * size + 10 * size**2
    # four decays on r, k and κ; the sums of p and of the outputs
    elementwise = decay[1] + pairs[1] + 7 * size
    inverse = inverse_flops(chunk)
    # once per chunk what remains of S, what flows in and its sum with that
    return (
        padded * matmul + chunks * (inverse[0] + 2 * size**3),
        padded * elementwise + chunks * (inverse[1] + 4 * size**2),
    )
