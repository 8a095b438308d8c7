"""The recurrence of Mamba, whose decays depend on the token, channel and state (2312.00752, §3.3).

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t        y_t = C_t · h_t

`reference` is `step` token by token. Its gradient by JAX stores every decay and state and takes 2.8
times as long as the backward pass written here, which keeps one state per chunk. A CPU takes all
tokens in turn. An accelerator, where a loop costs a launch for each token, takes short chunks side
by side as if they were sequences: once from nothing, for what each adds to the state, and again
from where the chunk before it ends. d_inner is the last axis, so that sums over states run along
vectors. Axes: b batch, t token, i channel (d_inner), j state (d_state), n c chunks of c tokens.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from isoflop.models.kernels.platforms import by_platform
from isoflop.models.kernels.recurrence import divisor, prefix
from isoflop.models.kernels.xla_cpu import by_dots

BESIDE = 2**28  # elements of the states of all tokens that are taken side by side: 1 GiB
SHORT = 8  # tokens of a chunk that is taken beside others, at most


def step(A: Float[Array, "j i"], h: Float[Array, "b j i"], inputs):
    """One token: the equation above without the skip. `inputs` are u, Δ (b i) and B, C (b j)."""
    u, dt, B, C, *keep = inputs
    h = _decay(A, dt, *keep) * h + B[..., None] * (dt * u)[:, None]
    return h, jnp.sum(h * C[..., None], axis=1)


def _decay(A, dt, keep=None) -> Float[Array, "b j i"]:
    """exp(ΔA), or 0 where a segment begins."""
    decay = jnp.exp(dt[:, None] * A[None])
    return decay if keep is None else decay * keep[:, None]


def reference(A: Float[Array, "j i"], h: Float[Array, "b j i"], tokens):
    """`step` token by token, differentiated by JAX: what the forms below must equal."""
    tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), tokens)
    h, y = jax.lax.scan(partial(step, A), h, tokens)
    return h, jnp.moveaxis(y, 0, 1)


def scan(
    u: Float[Array, "b t i"],
    dt: Float[Array, "b t i"],
    A: Float[Array, "j i"],
    B: Float[Array, "b t j"],
    C: Float[Array, "b t j"],
    keep: Float[Array, "b t 1"] | None,
    chunk: int,
    start: Float[Array, "b j i"] | None = None,
) -> tuple[Float[Array, "b j i"], Float[Array, "b t i"]]:
    """The recurrence over time from a state `start` (None: 0): the state after the last token, and
    y of all. One state per chunk is stored for the backward pass.
    """
    in_turn = partial(_by_chunks, (_forward_in_turn, _backward_in_turn), chunk)
    at_once = partial(_by_chunks, (_forward_at_once, _backward_at_once), min(chunk, SHORT))
    h = jnp.zeros((len(u), *A.shape), jnp.float32) if start is None else start
    return by_platform(in_turn, at_once, reference=reference)(A, h, (u, dt, B, C, keep))


def _by_chunks(forms, chunk: int, A, h, tokens):
    length = tokens[0].shape[1]
    chunk = min(chunk, length)

    def split(x):
        x = jnp.pad(x, ((0, 0), (0, -length % chunk), (0, 0)))  # Δ = 0 keeps the state
        return rearrange(x, "b (n c) i -> n c b i", c=chunk)

    h, y = _scan(forms, A, h, jax.tree.map(split, tokens))
    return h, rearrange(y, "n c b i -> b (n c) i")[:, :length]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(forms, A, h, tokens) -> tuple[Float[Array, "b j i"], Float[Array, "n c b i"]]:
    """`forms` are forward, giving the last state, y and each chunk's first state, and backward."""
    return _scan_forward(forms, A, h, tokens)[0]


def _scan_forward(forms, A, h, tokens):
    after, (y, starts) = forms[0](A, h, tokens)
    return (after, y), (A, tokens, starts)


def _scan_backward(forms, saved, gradient):
    """With g the gradient of h_t: g ← g + C_t dy_t; then dC = h_t dy_t, d(Δu) = g B, dB = g Δu,
    d(ΔA) = g exp(ΔA) h_{t−1}; and g exp(ΔA) goes on to h_{t−1}.
    """
    g, dA, gradients = forms[1](*saved, *gradient)
    return dA, g, (*gradients, None)


_scan.defvjp(_scan_forward, _scan_backward)


def _forward_in_turn(A, h, tokens):
    """The last state, and (y, the state at each chunk's start), token by token."""

    def chunk(h, tokens):
        after, y = jax.lax.scan(lambda h, x: step(A, h, x), h, tokens)
        return after, (y, h)

    return jax.lax.scan(chunk, h, tokens)


def _backward_in_turn(A, tokens, starts, g, dy):
    """Chunks from the last to the first, from the gradient g of the last state on."""
    nothing = jnp.zeros_like(starts[0])
    chunk = partial(_chunk_backward, by_dots, A)
    (g, dA), gradients = jax.lax.scan(chunk, (g, nothing), (tokens, starts, dy), reverse=True)
    return g, dA.sum(0), gradients


def _chunk_backward(over, A, carry, inputs):
    """States again from the chunk's start, then gradients from its end."""
    tokens, start, dy = inputs

    def token(carry, inputs):
        g, dA = carry
        tokens, before, dy = inputs
        _, dt, _, C, keep = tokens
        g = g + C[..., None] * dy[:, None]
        onward = g * _decay(A, dt, keep)
        more, gradients = _gradients(over, A, tokens, g, onward * before)
        return (onward, dA + more), gradients

    last, before = jax.lax.scan(lambda h, x: (step(A, h, x)[0], h), start, tokens)
    carry, gradients = jax.lax.scan(token, carry, (tokens, before, dy), reverse=True)
    # all states but the last are before a token: theirs with dy one token later, not copied
    dC = over(2, before, jnp.roll(dy, 1, axis=0))
    return carry, (*gradients, jnp.roll(dC.at[0].set(over(2, last, dy[-1])), -1, axis=0))


def _forward_at_once(A, h, tokens):
    m = _beside(A, tokens)

    def chunks(h, tokens):
        advance, shape = partial(step, A), (m, *h.shape)
        nothing = jnp.zeros((m * len(h), *A.shape), jnp.float32)
        alone = jax.lax.scan(lambda h, x: (advance(h, x)[0], None), nothing, tokens)[0]
        ends = prefix(h, _faded(A, tokens).reshape(shape), alone.reshape(shape))
        starts = jnp.concatenate([h[None], ends[:-1]])
        _, y = jax.lax.scan(advance, starts.reshape(alone.shape), tokens)
        return ends[-1], (y, starts)

    h, (y, starts) = jax.lax.scan(chunks, h, _side_by_side(tokens, m))
    return h, (_apart(y, m), rearrange(starts, "n m b j i -> (n m) b j i"))


def _backward_at_once(A, tokens, starts, g, dy):
    m = _beside(A, tokens)

    def chunks(carry, inputs):
        g, dA = carry
        tokens, start, dy = inputs
        _, dt, _, C, keep = tokens
        shape, nothing = (m, *g.shape), jnp.zeros_like(start)

        def token(g, inputs):
            dt, C, keep, dy = inputs
            return (g + C[..., None] * dy[:, None]) * _decay(A, dt, keep), None

        alone = jax.lax.scan(token, nothing, (dt, C, keep, dy), reverse=True)[0]
        onward = prefix(g, _faded(A, tokens).reshape(shape), alone.reshape(shape), reverse=True)
        ends = jnp.concatenate([onward[1:], g[None]]).reshape(start.shape)
        (_, more), gradients = _chunk_backward(_by_sums, A, (ends, nothing), inputs)
        # or XLA computes their sums over all states again wherever they are read
        gradients = jax.lax.optimization_barrier(gradients)
        return (onward[0], dA + more.reshape(shape).sum(0)), gradients

    nothing = jnp.zeros_like(starts[0])
    starts = rearrange(starts, "(n m) b j i -> n (m b) j i", m=m)
    inputs = _side_by_side(tokens, m), starts, _side_by_side(dy, m)
    (g, dA), gradients = jax.lax.scan(chunks, (g, nothing), inputs, reverse=True)
    return g, dA.sum(0), jax.tree.map(lambda x: _apart(x, m), gradients)


def _gradients(over, A, tokens, g, d_exponent):
    """One token's part in each sequence's dA, and its du, dΔ and dB; d_exponent is d(ΔA).

    `over` has Σ x ⊙ y over states (axis 1) or channels (axis 2), as a device is fast at it.
    """
    u, dt, B, _, _ = tokens
    d_inflow, dB = over(1, g, B), over(2, g, dt * u)
    d_dt = sum(d_exponent[:, j] * A[j][None] for j in range(len(A))) + d_inflow * u
    return d_exponent * dt[:, None], (d_inflow * dt, d_dt, dB)


def _by_sums(axis: int, x: Float[Array, "*b j i"], y: Float[Array, "*b z"]) -> Float[Array, "*b y"]:
    return jnp.sum(x * jnp.expand_dims(y, -axis), axis - 3)


def _faded(A, tokens) -> Float[Array, "b j i"]:
    """What is left of a chunk's first state after its last token: exp(A ΣΔ), or 0."""
    _, dt, _, _, keep = tokens
    return _decay(A, dt.sum(0), None if keep is None else keep.prod(0))


def _beside(A, tokens) -> int:
    """How many chunks are taken side by side."""
    n, c, b, _ = tokens[0].shape
    return divisor(n, BESIDE // (c * b * A.size))


def _side_by_side(tokens, m: int):
    """m chunks at a time, as the sequences of a batch."""
    return jax.tree.map(lambda x: rearrange(x, "(n m) c b i -> n c (m b) i", m=m), tokens)


def _apart(x: Float[Array, "n c mb i"], m: int) -> Float[Array, "nm c b i"]:
    """The inverse of `_side_by_side`."""
    return rearrange(x, "n c (m b) i -> (n m) c b i", m=m)
