"""Gated linear recurrences, the one machine behind the linear-attention family.

    S_t = diag(a_t) S_{t−1} + k_t v_tᵀ        o_t = S_tᵀ q_t        a_t = exp(log_a_t) ∈ (0, 1]

S is (k, v) per head. `log_a` is (b, h, t, k) for per-channel gates (GLA: Yang et al. 2023,
2312.06635, §4.1) or (b, h, t, 1) for one scalar per head (RetNet: Sun et al. 2023, 2307.08621,
§2.1; Mamba-2: Dao & Gu 2024, 2405.21060, §6). `sequential` is the oracle; `associative` and
`chunked` must equal it. Everything here computes in fp32.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from isoflop.models.kernels.platforms import by_platform
from isoflop.models.kernels.xla_cpu import running_sums

Queries = Float[Array, "b h t k"]
Values = Float[Array, "b h t v"]
Gates = Float[Array, "b h t a"]  # a is k, or 1 for a scalar per head
Memory = Float[Array, "b h k v"]
Memories = Float[Array, "mb h k v"]
Kept = Float[Array, "mb h k k"] | Float[Array, "mb h a"]  # a matrix, or factors of channels
Sums = tuple[Float[Array, "b h c a"], Float[Array, "b h c a"]]


class Decay(NamedTuple):
    """The log-gates of a chunk and their running sums."""

    log_a: Float[Array, "b h c a"]
    sums: Sums

    def from_start(self) -> Float[Array, "b h c a"]:
        """Decay from the chunk's start up to each token."""
        return jnp.exp(self.sums[0] + self.sums[1])

    def pairs(self) -> Float[Array, "b h c s a"]:
        """Decay from each token s to each token c; 0 for s > c."""
        return jnp.exp(between(*self))

    def to_end(self) -> Float[Array, "b h c a"]:
        """Decay from each token to the chunk's end."""
        later = jnp.pad(self.log_a[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
        return jnp.exp(jnp.cumsum(later[:, :, ::-1], axis=2)[:, :, ::-1])


# heads that are computed at once, of as many sequences and neighbouring chunks as it takes: on a
# CPU, for its caches, and on an accelerator, for what a short sequence of a large batch has
TOGETHER = 64, 2**14
FORGET = -100.0  # log-gates below this are exact zeros in fp32
GRID = 2.0**-6  # sums of its multiples are exact up to 2^18, so for chunks up to 2621


def step(
    S: Memory,
    q: Float[Array, "b h k"],
    k: Float[Array, "b h k"],
    v: Float[Array, "b h v"],
    log_a: Float[Array, "b h a"],
) -> tuple[Memory, Float[Array, "b h v"]]:
    """One token: the equation above."""
    S = jnp.exp(log_a)[..., None] * S + k[..., None] * v[..., None, :]
    return S, jnp.einsum("bhk,bhkv->bhv", q, S)


def sequential(q: Queries, k: Queries, v: Values, log_a: Gates) -> Values:
    """The recurrence token by token, from S = 0."""
    S = jnp.zeros((*k.shape[:2], k.shape[-1], v.shape[-1]), jnp.float32)
    return in_turn(step, S, q, k, v, log_a)[1]


def in_turn(step: Callable, S: Memory, *inputs: Float[Array, "b _ t _"]) -> tuple[Memory, Values]:
    """`step(S, *token) -> (S, out)` of every token of inputs (b g t ·), the reference of all forms
    in chunks. Where an input has fewer heads g than S, consecutive heads of S share one of them.
    """
    heads = S.shape[1]
    shared = (jnp.repeat(x, heads // x.shape[1], axis=1) for x in inputs)
    tokens = tuple(jnp.moveaxis(x.astype(jnp.float32), 2, 0) for x in shared)
    S, out = jax.lax.scan(lambda S, token: step(S, *token), S, tokens)
    return S, jnp.moveaxis(out, 0, 2)


def associative(q: Queries, k: Queries, v: Values, log_a: Gates) -> Values:
    """All states at once by a parallel prefix scan (Blelloch 1990): O(t·k·v) memory."""
    q, k, v, log_a = (jnp.moveaxis(x.astype(jnp.float32), 2, 0) for x in (q, k, v, log_a))
    update = k[..., None] * v[..., None, :]
    decay = jnp.broadcast_to(jnp.exp(log_a)[..., None], update.shape)
    S = prefix(jnp.zeros_like(update[0]), decay, update)
    return jnp.einsum("tbhk,tbhkv->bhtv", q, S)


def prefix(
    start: Float[Array, "*s"],
    decay: Float[Array, "t *s"],
    inflow: Float[Array, "t *s"],
    reverse: bool = False,
) -> Float[Array, "t *s"]:
    """All states of h ← decay ⊙ h + inflow at once; with `reverse` from the last token on."""

    def combine(left, right):
        (a1, s1), (a2, s2) = left, right
        return a1 * a2, a2 * s1 + s2

    first = -1 if reverse else 0
    inflow = inflow.at[first].add(decay[first] * start)
    return jax.lax.associative_scan(combine, (decay, inflow), reverse=reverse)[1]


def chunked(
    q: Float[Array, "b g t k"],
    k: Float[Array, "b g t k"],
    v: Values,
    log_a: Gates,
    chunk: int,
    start: Memory | None = None,
) -> tuple[Memory, Values]:
    """Chunks of `chunk` tokens: products inside, one state carried between (2312.06635, §4).
    The state after the last token, and all outputs, from a state `start` (None: 0) on.

    With scalar gates, consecutive heads of v may share a head of q and k (2405.21060, §7.2).
    Every exponent is a sum of log-gates over an interval, so never positive: nothing overflows.
    """
    body = _by_heads if log_a.shape[-1] == 1 else _by_channels
    return by_chunks(step, body, (q, k, v, log_a), (k.shape[-1], v.shape[-1]), chunk, start)


def by_chunks(
    step: Callable,
    body: Callable,
    inputs: Sequence[Array],
    memory: tuple[int, int],
    chunk: int,
    start: Memory | None = None,
) -> tuple[Memory, Values]:
    """`step(S, *token) -> (S, out)` of every token of inputs (b h t ·), from S = `start`, or from 0
    of sides `memory`, on. On the reference backend that is what is done (`in_turn`); otherwise
    `body(S, inputs) -> (S, out)` does the steps of a chunk. It must not change S by a token whose
    inputs are all 0: chunks are filled up so.

    `body` is given m neighbouring chunks at once, as (m·b h c ·), and passes the state on from each
    to the next by `states`: few sequences would make its products small otherwise, and an
    accelerator wait for many launches.
    On a CPU only the states before each m chunks are kept for the backward pass; the rest is
    recomputed.
    """
    batch, heads, length, _ = inputs[-1].shape
    chunk = min(chunk, length)
    chunks = -(-length // chunk)

    groups = [chunks // divisor(chunks, most // (batch * heads)) for most in TOGETHER]
    few, many = (partial(_by_chunks, chunk, n) for n in groups)
    S = jnp.zeros((batch, heads, *memory), jnp.float32) if start is None else start
    cpu, accelerator = partial(few, jax.checkpoint(body)), partial(many, body)
    return by_platform(cpu, accelerator, reference=partial(in_turn, step))(S, *inputs)


def divisor(count: int, most: int) -> int:
    """The largest divisor of `count` that is at most `most`, or 1."""
    return max(m for m in range(1, count + 1) if m <= max(1, most) and count % m == 0)


def _by_chunks(
    chunk: int, n: int, body: Callable, S: Memory, *inputs: Array
) -> tuple[Memory, Values]:
    """`by_chunks` in n groups of them."""
    batch, _, length, _ = inputs[-1].shape

    def split(x: Float[Array, "b h t k"]) -> Float[Array, "n mb h c k"]:
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, 0), (0, -length % chunk), (0, 0)))
        return rearrange(x, "b h (n m c) k -> n (m b) h c k", n=n, c=chunk)

    S, out = jax.lax.scan(body, S, tuple(map(split, inputs)))
    return S, rearrange(out, "n (m b) h c v -> b h (n m c) v", b=batch)[:, :, :length]


def states(S: Memory, kept: Kept, inflow: Memories) -> tuple[Memory, Memories]:
    """S ← kept S + inflow over the m chunks of each sequence that `by_chunks` gives together: the
    last state (b h k v), and those before each chunk (m·b h k v). `kept` is a factor for each
    channel (m·b h a), or a matrix (m·b h k k).
    """
    batch = len(S)
    apart = (rearrange(x, "(m b) ... -> m b ...", b=batch) for x in (kept, inflow))
    S, before = _states(S, *apart)
    return S, rearrange(before, "m b ... -> (m b) ...")


@jax.custom_vjp
def _states(S, kept, inflow):
    return _states_forward(S, kept, inflow)[0]


def _states_forward(S, kept, inflow):
    def step(S, part):
        kept, inflow = part
        return _keep(kept, S) + inflow, S

    S, before = jax.lax.scan(step, S, (kept, inflow))
    return (S, before), (kept, before)


def _states_backward(saved, gradient):
    """With g the gradient of the state after a chunk: that before it has keptᵀ g and its own, and
    the sums d kept = g beforeᵀ are no part of the loop.
    """
    kept, before = saved
    turned = kept.swapaxes(-1, -2) if kept.ndim == before.ndim else kept

    def step(g, part):
        turned, own = part
        return own + _keep(turned, g), g

    last, own = gradient
    g_start, g = jax.lax.scan(step, last, (turned, own), reverse=True)
    if kept.ndim == before.ndim:
        return g_start, jnp.einsum("mbhkv,mbhlv->mbhkl", g, before), g
    d_kept = jnp.sum(g * before, axis=-1)
    return g_start, d_kept if kept.shape[-1] > 1 else d_kept.sum(-1, keepdims=True), g


_states.defvjp(_states_forward, _states_backward)


def _keep(kept: Kept, S: Memory) -> Memory:
    return kept @ S if kept.ndim == S.ndim else kept[..., None] * S


def _by_channels(S: Memory, inputs) -> tuple[Memory, Float[Array, "mb h c v"]]:
    q, k, v, log_a = inputs
    decay = decays(log_a)
    start = decay.from_start()
    inflow = jnp.einsum("bhck,bhcv->bhkv", k * decay.to_end(), v)
    S, before = states(S, start[:, :, -1], inflow)
    return S, scores([q], k, decay.pairs())[0] @ v + (q * start) @ before


def _by_heads(S: Memory, inputs) -> tuple[Memory, Float[Array, "mb h c v"]]:
    """Gates stay beside the values, so that products with keys are made once for all heads of v.

    Batch and heads of keys are one axis: an axis of size 1 makes XLA's CPU code slow at sums.
    """
    q, k, v, log_a = inputs
    decay = decays(log_a)
    start, groups = decay.from_start(), k.shape[1]

    def shared(x: Array) -> Array:
        return rearrange(x, "b (g r) ... -> (b g) r ...", g=groups)

    q, k = (rearrange(x, "b g c k -> (b g) c k") for x in (q, k))
    inflow = jnp.einsum("xck,xrcv->xrkv", k, shared(v * decay.to_end()))
    S, before = states(S, start[:, :, -1], inflow.reshape(-1, *S.shape[1:]))
    pairs = jnp.einsum("xck,xsk->xcs", q, k)[:, None]
    inside = (pairs * shared(decay.pairs()[..., 0])) @ shared(v)
    earlier = jnp.einsum("xck,xrkv->xrcv", q, shared(before))
    return S, inside.reshape(v.shape) + start * earlier.reshape(v.shape)


def decays(log_a: Float[Array, "b h c a"]) -> Decay:
    """With Σ log_a from each chunk's start as a sum of multiples of GRID and a small remainder.

    Differences of the first are exact and the second is below 1, so that `exp` of a difference is
    right to fp32 even after gates that forget everything; one plain sum loses up to 4 digits.
    """
    clipped = jnp.maximum(log_a, FORGET)
    coarse = jax.lax.stop_gradient(jnp.round(clipped / GRID) * GRID)
    return Decay(log_a, (running_sums(coarse), running_sums(clipped - coarse)))


def scores(
    queries: Sequence[Queries], k: Queries, kept: Float[Array, "b h c s a"]
) -> list[Float[Array, "b h c s"]]:
    """The products q_c · k_s under `Decay.pairs`, of several queries with the same keys.

    With a gate for each channel that is Σ_k q_ck k_sk under one decay per pair and channel, so no
    matmul: splitting the exponential between q and k would make it one, and overflow at fast gates.
    """
    if kept.shape[-1] == 1:
        products = jnp.einsum("bhck,bhsk->bhcs", jnp.concatenate(queries, axis=2), k)
        return [x * kept[..., 0] for x in jnp.split(products, len(queries), axis=2)]
    return [jnp.sum(q[:, :, :, None] * k[:, :, None] * kept, axis=-1) for q in queries]


@jax.custom_vjp
def between(log_a: Float[Array, "b h c a"], sums: Sums) -> Float[Array, "b h c s a"]:
    """log_a summed over s + 1 … c: 0 for s = c, −∞ for s > c.

    Its gradient adds up the pairs on either side of each gate. Differences of running sums would
    let every pair, and the large ones most, cancel out of gates that it does not pass.
    """
    return _between_forward(log_a, sums)[0]


def _between_forward(log_a, sums):
    coarse, fine = (x[:, :, :, None] - x[:, :, None] for x in sums)
    past = _past(log_a)
    rest = jnp.where(jnp.eye(log_a.shape[2], dtype=bool), 0.0, -jnp.inf)[None, None, :, :, None]
    return jnp.where(past, coarse + fine, rest), log_a


def _between_backward(log_a, gradient):
    past = _past(log_a)
    pairs = rearrange(jnp.where(past, gradient, 0.0), "b h c s a -> b h c (s a)")
    beyond = running_sums(pairs, reverse=True).reshape(gradient.shape)
    passed = jnp.sum(jnp.where(past, beyond, 0.0), axis=3)
    return jnp.where(log_a >= FORGET, passed, 0.0), None


between.defvjp(_between_forward, _between_backward)


def _past(log_a) -> Bool[Array, "1 1 c s 1"]:
    """Where s < c."""
    size = log_a.shape[2]
    return jnp.tril(jnp.ones((size, size), bool), -1)[None, None, :, :, None]


def chunked_flops(
    length: int, d_k: int, d_v: int, chunk: int, gates: int, values: int = 1
) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of `chunked` for one head of keys and its heads of values, each
    of `gates` log-gates (d_k or 1), padding included.
    """
    chunk, padded = in_chunks(length, chunk)
    decay, pairs = decay_flops(chunk, gates), scores_flops(chunk, d_k, gates)
    matmul = values * (decay[0] + 2 * chunk * d_v + 4 * d_k * d_v) + pairs[0]
    # two decays beside values, or beside keys and queries; the sum of the two outputs
    local = (2 * d_v if gates == 1 else 2 * d_k) + d_v
    elementwise = values * (decay[1] + pairs[1] + local)
    return padded * matmul, padded * elementwise + padded // chunk * values * 2 * d_k * d_v


def in_chunks(length: int, chunk: int) -> tuple[int, int]:
    """(tokens of a chunk, tokens with the last chunk's padding)."""
    chunk = min(chunk, length)
    return chunk, length + -length % chunk


def decay_flops(chunk: int, gates: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of one token's `decays` of `gates` log-gates: their coarse and
    fine parts and running sums; decays from the chunk's start, to its end, and between tokens.
    """
    return 4 * chunk * gates, (3 + 2 + 2 + 4 * chunk) * gates


def scores_flops(chunk: int, d_k: int, gates: int, uses: int = 1) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of one token's `scores` with a chunk, of `uses` queries."""
    if gates == 1:
        return 2 * uses * chunk * d_k, uses * chunk
    return 0, 3 * uses * chunk * d_k


def step_flops(d_k: int, d_v: int, gates: int) -> tuple[int, int]:
    """(matmul, elementwise) FLOPs of `step` for one head: read-out; exp of the log-gates, decay,
    outer product, add.
    """
    return 2 * d_k * d_v, gates + 3 * d_k * d_v


def diagonal_step(
    h: Float[Array, "b i"], inputs: tuple[Float[Array, "b i"], Float[Array, "b i"]]
) -> tuple[Float[Array, "b i"], Float[Array, "b i"]]:
    """h ← a ⊙ h + u: the recurrence of channels that do not mix (k = v = 1)."""
    a, u = inputs
    h = a * h + u
    return h, h


def diagonal(
    a: Float[Array, "b t i"],
    u: Float[Array, "b t i"],
    chunk: int,
    start: Float[Array, "b i"] | None = None,
) -> tuple[Float[Array, "b i"], Float[Array, "b t i"]]:
    """`diagonal_step` over all tokens from h = `start` (None: 0): the last h, and all. The backward
    pass keeps one state per chunk.

    A scan on a CPU, where `associative_scan` takes three times as long.
    """
    h = jnp.zeros(a[:, 0].shape, jnp.float32) if start is None else start
    cpu = partial(_diagonal_in_turn, chunk=chunk)
    return by_platform(cpu, _diagonal_at_once, reference=diagonal_reference)(h, a, u)


def diagonal_reference(
    h: Float[Array, "b i"], a: Float[Array, "b t i"], u: Float[Array, "b t i"]
) -> tuple[Float[Array, "b i"], Float[Array, "b t i"]]:
    """`diagonal_step` token by token."""
    h, states = jax.lax.scan(diagonal_step, h, (jnp.moveaxis(a, 1, 0), jnp.moveaxis(u, 1, 0)))
    return h, jnp.moveaxis(states, 0, 1)


def _diagonal_at_once(
    h: Float[Array, "b i"], a: Float[Array, "b t i"], u: Float[Array, "b t i"]
) -> tuple[Float[Array, "b i"], Float[Array, "b t i"]]:
    a, u = (jnp.moveaxis(x, 1, 0) for x in (a, u))
    states = prefix(h, a, u)
    return states[-1], jnp.moveaxis(states, 0, 1)


def _diagonal_in_turn(
    h: Float[Array, "b i"], a: Float[Array, "b t i"], u: Float[Array, "b t i"], chunk: int
) -> tuple[Float[Array, "b i"], Float[Array, "b t i"]]:
    length = a.shape[1]
    chunk = min(chunk, length)

    def chunks(x: Float[Array, "b t i"], value: float) -> Float[Array, "n c b i"]:
        more = (0, 0), (0, -length % chunk), (0, 0)
        x = jnp.pad(x, more, constant_values=value)  # a = 1 and u = 0 keep the state
        return rearrange(x, "b (n c) i -> n c b i", c=chunk)

    def tokens(h: Float[Array, "b i"], inputs):
        return jax.lax.scan(diagonal_step, h, inputs)

    h, states = jax.lax.scan(jax.checkpoint(tokens), h, (chunks(a, 1.0), chunks(u, 0.0)))
    return h, rearrange(states, "n c b i -> b (n c) i")[:, :length]
