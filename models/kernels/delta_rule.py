"""The delta rule: a memory that corrects what it holds for a key instead of adding to it.

    S_t = (I − β_t k_t k_tᵀ) diag(a_t) S_{t−1} + β_t k_t v_tᵀ        o_t = S_tᵀ q_t

The reference is `step` token by token. The fast form, for every platform, is the WY form in chunks
(Yang et al. 2024, 2406.06484, §3.2; 2412.06464, §3.3), laid out by `recurrence.by_chunks`. S is
(k, v) per head, fp32. Axes: b batch, h head, t token, k and v channels, c tokens of a chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from isoflop.models.kernels import recurrence
from isoflop.models.kernels.xla_cpu import by_terms

SMALL = 4  # rows of blocks that are multiplied term by term


def step(
    S: recurrence.Memory,
    q: Float[Array, "b h k"],
    k: Float[Array, "b h k"],
    v: Float[Array, "b h v"],
    beta: Float[Array, "b h 1"],
    log_a: Float[Array, "b h a"],
) -> tuple[recurrence.Memory, Float[Array, "b h v"]]:
    """One token: decay, then move what the memory holds for k towards v."""
    S = jnp.exp(log_a)[..., None] * S
    u = beta * (v - jnp.einsum("bhk,bhkv->bhv", k, S))
    S = S + k[..., None] * u[..., None, :]
    return S, jnp.einsum("bhk,bhkv->bhv", q, S)


def chunked(
    q: recurrence.Queries,
    k: recurrence.Queries,
    v: recurrence.Values,
    beta: Float[Array, "b h t 1"],
    log_a: recurrence.Gates,
    chunk: int,
    start: recurrence.Memory | None = None,
) -> tuple[recurrence.Memory, recurrence.Values]:
    """`step` over all tokens, chunk by chunk (the WY form: 2406.06484, §3.2; 2412.06464, §3.3):
    the state after the last, and all outputs, from a state `start` (None: 0) on.

    With u_t = β_t (v_t − k_tᵀ diag(a_t) S_{t−1}), S is the plain recurrence over (k, u); inside a
    chunk that starts from S_0, and with k̄ = k under the decay from the chunk's start,

        (I + L) U = β (V − K̄ S_0)        L_ts = β_t k_t · (decay from s to t) k_s    for s < t,

    so U = U_v − U_k S_0 from both parts of the right-hand side, and the state after a chunk is
    linear in the one before: all of a chunk but one product is computed for all chunks at once.
    No exponent is positive.
    """
    memory = k.shape[-1], v.shape[-1]
    return recurrence.by_chunks(step, _chunk, (q, k, v, beta, log_a), memory, chunk, start)


def _chunk(S: recurrence.Memory, inputs):
    q, k, v, beta, log_a = inputs
    decay = recurrence.decays(log_a)
    start = decay.from_start()
    overlap, found = recurrence.scores([k, q], k, decay.pairs())
    system = System.of(jnp.tril(beta * overlap, -1))
    parts = beta * jnp.concatenate([k * start, v], axis=-1)
    u_k, u_v = jnp.split(solve(system, parts), [k.shape[-1]], axis=-1)
    S, before = recurrence.states(S, *after(start[:, :, -1], k * decay.to_end(), u_k, u_v))
    return S, found @ (u_v - u_k @ before) + (q * start) @ before


def after(kept, k, u_k, u_v) -> tuple[Float[Array, "b h k k"], recurrence.Memory]:
    """diag(kept) − kᵀ u_k, by which a chunk multiplies S, and kᵀ u_v."""
    kept = kept[..., None] * jnp.eye(k.shape[-1], dtype=k.dtype)[None, None]
    erased, added = (jnp.einsum("bhck,bhcv->bhkv", k, u) for u in (u_k, u_v))
    return kept - erased, added


class System(NamedTuple):
    """I + L for a strictly lower triangular L, and its inverse, through which no gradient goes."""

    L: Float[Array, "b h c s"]
    inverse: Float[Array, "b h c s"]

    @classmethod
    def of(cls, L: Float[Array, "b h c s"]) -> System:
        return cls(L, unit_lower_inverse(jax.lax.stop_gradient(L)))


@jax.custom_vjp
def solve(system: System, rhs: Float[Array, "b h c v"]) -> Float[Array, "b h c v"]:
    """(I + L)⁻¹ rhs."""
    return system.inverse @ rhs


def _solve_forward(system, rhs):
    u = system.inverse @ rhs
    return u, (system.inverse, u)


def _solve_backward(saved, du):
    inverse, u = saved
    d_rhs = jnp.einsum("bhcs,bhcv->bhsv", inverse, du)
    dL = -jnp.einsum("bhcv,bhsv->bhcs", d_rhs, u)
    return System(dL, jnp.zeros_like(inverse)), d_rhs


solve.defvjp(_solve_forward, _solve_backward)


def unit_lower_inverse(L: Float[Array, "b h c s"]) -> Float[Array, "b h c s"]:
    """(I + L)⁻¹ by doubling: from the inverses A and D of neighbouring diagonal blocks,

        [[A⁻¹, 0], [B, D⁻¹]]⁻¹ = [[A, 0], [−D B A, D]].

    The product (I − L)(I + L²)(I + L⁴)… is the same in exact arithmetic, takes 30 times the work,
    and loses every digit where a key repeats: powers of L grow like binomials before they cancel.
    Blocks of up to SMALL rows are multiplied term by term: a CPU has no fast product of so little.
    """
    chunk = L.shape[-1]
    size = _power_of_two(chunk)
    L = jnp.pad(L, ((0, 0), (0, 0), (0, size - chunk), (0, size - chunk)))
    blocks = jnp.ones((*L.shape[:3], 1, 1), L.dtype)  # n blocks of m × m
    m = 1
    while m < size:
        A, D = blocks[:, :, 0::2], blocks[:, :, 1::2]
        grid = rearrange(L, "b h (n p r) (o q s) -> p q b h n r o s", p=2, q=2, r=m, s=m)
        B = jnp.einsum("bhnrns->bhnrs", grid[1, 0])
        times = by_terms if m <= SMALL else jnp.matmul
        low = -B if m == 1 else -times(times(D, B), A)
        top = jnp.concatenate([A, jnp.zeros_like(A)], axis=-1)
        blocks = jnp.concatenate([top, jnp.concatenate([low, D], axis=-1)], axis=-2)
        m *= 2
    return blocks[:, :, 0, :chunk, :chunk]


def _power_of_two(size: int) -> int:
    """The least power of two that is at least `size`."""
    return 1 << (size - 1).bit_length()


def inverse_flops(chunk: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of one `unit_lower_inverse`: two products for each pair of
    2^i-blocks, those of up to SMALL rows term by term; and each time the diagonal of the blocks
    below it, a sum over all of them.
    """
    size = _power_of_two(chunk)
    sides = [2**i for i in range(size.bit_length() - 1)]
    matmul = sum(2 * size * side**2 for side in sides if side > SMALL)
    terms = sum(size * side * (2 * side - 1) for side in sides if 1 < side <= SMALL)
    return matmul, terms + len(sides) * (size // 2) ** 2


def chunked_flops(length: int, d_k: int, d_v: int, chunk: int, gates: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of `chunked` for one head of `gates` log-gates, with padding."""
    chunk, padded = recurrence.in_chunks(length, chunk)
    decay = recurrence.decay_flops(chunk, gates)
    pairs = recurrence.scores_flops(chunk, d_k, gates, uses=2)
    matmul = decay[0] + pairs[0] + 2 * chunk * (d_k + 2 * d_v) + 6 * d_k * d_v + 2 * d_k**2
    # β on L, keys and values; three decays on q and k; the corrected values, the sum of outputs;
    # once per chunk what remains of S and the sum with what flows in
    elementwise = decay[1] + pairs[1] + chunk + 4 * d_k + 3 * d_v
    chunks, inverse = padded // chunk, inverse_flops(chunk)
    once = 2 * d_k**2 + d_k * d_v
    return (
        padded * matmul + chunks * (inverse[0] + 2 * d_k**2 * d_v),
        padded * elementwise + chunks * (inverse[1] + once),
    )


def step_flops(d_k: int, d_v: int, gates: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of `step` for one head."""
    return 4 * d_k * d_v, gates + 3 * d_k * d_v + 2 * d_v
