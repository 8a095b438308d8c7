"""Mamba: a selective state-space model (Gu & Dao 2023, 2312.00752, §3, algorithm 2).

    h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_t        y_t = C_t · h_t + D x_t

for each of d_inner channels with d_state states; Δ, B and C depend on the token. Paper → here:
D → d_inner, N → d_state, E → expand, R → dt_rank. Discretisation as the released code does it:
zero-order hold for A, Euler for B. `select_norm` puts an RMSNorm on Δ (before its projection), B
and C: "plain" without a scale as in Falcon Mamba (Zuo et al. 2024, 2410.05355), "learned" as in
Jamba (Lieber et al. 2024, 2403.19887, §6.4). Not included: complex-valued A.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Matrix, Mixer, MixerConfig, State
from isoflop.models.kernels.platforms import by_platform
from isoflop.models.kernels.recurrence import divisor, in_chunks, prefix
from isoflop.models.layers import SILU, SOFTPLUS, Linear, RMSNorm, ShortConv, gated, lift
from isoflop.models.packing import Lengths, Position, kept, pad

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # the released code's range of initial steps


class Mamba(MixerConfig):
    kind: Literal["mamba"] = "mamba"
    d_state: PositiveInt = 16
    expand: PositiveInt = 2
    d_conv: PositiveInt = 4
    dt_rank: PositiveInt | None = None  # None: ⌈d_model / 16⌉
    conv_bias: bool = True
    bias: bool = False  # of the projections in and out
    select_norm: Literal["none", "plain", "learned"] = "none"
    norm_eps: PositiveFloat = 1e-6  # of select_norm
    chunk: PositiveInt = 32  # tokens between the states kept for the backward pass

    def rank(self, d_model: int) -> int:
        return self.dt_rank or math.ceil(d_model / 16)

    def resolved(self, d_model: int) -> Mamba:
        return self.model_copy(update={"dt_rank": self.rank(d_model)})

    def build(self, d_model: int, *, init: Init) -> SelectiveSsm:
        return SelectiveSsm(self, d_model, init=init)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        d_inner, rank = self.expand * d_model, self.rank(d_model)
        projections = 3 * d_model * d_inner + d_inner * (2 * rank + 2 * self.d_state)
        # conv taps and bias; bias of Δ; A; D
        params = projections + d_inner * (self.d_conv + self.conv_bias + 1 + self.d_state + 1)
        params += self.bias * (2 * d_inner + d_model)
        params += (self.select_norm == "learned") * (rank + 2 * self.d_state)
        # silu after the convolution; bias of Δ and softplus; D skip; gate
        local = d_inner * (SILU + 1 + SOFTPLUS + 2 + SILU + 1)
        local += ShortConv.flops(d_inner, self.d_conv, self.conv_bias)
        local += self.bias * (2 * d_inner + d_model)
        if self.select_norm != "none":
            sizes = (rank, self.d_state, self.d_state)
            local += sum(RMSNorm.flops(size, self.select_norm == "learned") for size in sizes)
        # exp(Δ A), decay, inflow, sum and read-out of each state; Δ u
        scanned = 7 * d_inner * self.d_state + d_inner
        _, padded = in_chunks(seq_len, self.chunk)
        once = d_inner * self.d_state  # exp of A's logarithm
        return Cost(
            matmul_flops=2 * projections * seq_len,
            elementwise_flops=seq_len * local + padded * scanned + once,
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self.cost(d_model, 1)

    def state_size(self, d_model: int, context: int) -> int:
        """States and the convolution's last inputs, whatever the context."""
        return self.expand * d_model * (self.d_state + self.d_conv - 1)


class SelectiveSsm(Mixer):
    def __init__(self, config: Mamba, d_model: int, *, init: Init):
        self.config = config
        self.d_inner, self.rank = config.expand * d_model, config.rank(d_model)
        self.inward = Linear(d_model, 2 * self.d_inner, init=init, bias=config.bias)
        self.conv = ShortConv(self.d_inner, config.d_conv, init=init, bias=config.conv_bias)
        self.select = Linear(self.d_inner, self.rank + 2 * config.d_state, axes="ir", init=init)
        self.dt = Linear(self.rank, self.d_inner, axes="ri", init=init)
        bound = self.rank**-0.5
        self.dt.kernel = Matrix(init.uniform((self.rank, self.d_inner), -bound, bound), axes="ri")
        self.dt_bias = nnx.Param(init.draw((self.d_inner,), self._initial_dt))
        shape = self.d_inner, config.d_state
        self.A_log = nnx.Param(init.draw(shape, lambda rng: np.log(1 + np.arange(shape[1]))))
        self.D = nnx.Param(init.full((self.d_inner,), 1.0))
        self.out = Linear(self.d_inner, d_model, axes="id", init=init, bias=config.bias)
        self.dt_norm, self.B_norm, self.C_norm = (
            self._select_norm(size, init) for size in (self.rank, config.d_state, config.d_state)
        )

    def _select_norm(self, size: int, init: Init) -> RMSNorm | None:
        kind, eps = self.config.select_norm, self.config.norm_eps
        return None if kind == "none" else RMSNorm(size, eps, init=init, learned=kind == "learned")

    def _initial_dt(self, rng: np.random.Generator) -> np.ndarray:
        """Biases such that softplus(bias) is log-uniform in [DT_MIN, DT_MAX]."""
        dt = np.exp(rng.uniform(math.log(DT_MIN), math.log(DT_MAX), self.d_inner))
        dt = np.maximum(dt, DT_FLOOR)
        return dt + np.log(-np.expm1(-dt))

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        u, gate = jnp.split(self.inward(x), 2, axis=-1)
        u = jax.nn.silu(self.conv(u, position))
        dt, B, C = self._select(u)
        keep, chunk = kept(position), self.config.chunk
        _, y = scan(u.astype(jnp.float32), dt, self._A(), B, C, keep, chunk)
        return self._finish(y, u, gate)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        u, gate = jnp.split(self.inward(x), 2, axis=-1)
        conv, u = self.conv.prefill(u, state["conv"], lengths)
        u = jax.nn.silu(u)
        dt, B, C = self._select(u)
        dt, chunk, h = pad(dt, lengths), self.config.chunk, state["h"]
        h, y = scan(u.astype(jnp.float32), dt, self._A(), B, C, None, chunk, h)
        return {"conv": conv, "h": h}, self._finish(y, u, gate)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        return {
            "conv": self.conv.init_state(batch, dtype),
            "h": jnp.zeros((batch, self.config.d_state, self.d_inner), jnp.float32),
        }

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        u, gate = jnp.split(self.inward(x), 2, axis=-1)
        conv, u = self.conv.step(state["conv"], u)
        u = jax.nn.silu(u)
        dt, B, C = self._select(u)
        h, y = ssm_step(self._A(), state["h"], (u.astype(jnp.float32), dt, B, C))
        return {"conv": conv, "h": h}, self._finish(y, u, gate)

    def _A(self) -> Float[Array, "j i"]:
        return -jnp.exp(self.A_log[...]).T

    def _select(self, u: Float[Array, "*batch i"]):
        """Δ (fp32, after softplus), B and C of each token."""
        r, j = self.rank, self.config.d_state
        parts = jnp.split(self.select(u), [r, r + j], axis=-1)
        norms = (self.dt_norm, self.B_norm, self.C_norm)
        low, B, C = (x if norm is None else norm(x) for norm, x in zip(norms, parts, strict=True))
        dt = jax.nn.softplus(self.dt(low).astype(jnp.float32) + lift(self.dt_bias[...], low))
        return dt, B.astype(jnp.float32), C.astype(jnp.float32)

    def _finish(self, y, u, gate):
        y = (y + lift(self.D[...], u) * u.astype(jnp.float32)).astype(gate.dtype)
        return self.out(gated(jax.nn.silu, gate, y))


# The recurrence keeps d_inner as the last axis, so that sums over states run along vectors.
# Its backward pass is written by hand: autodiff would store every decay and state of a chunk, and
# takes 2.8 times as long. A CPU takes all tokens in turn. An accelerator, where a loop costs a
# launch for each token, takes short chunks side by side as if they were sequences: once from
# nothing, for what each adds to the state, and again from where the chunk before it ends.

BESIDE = 2**28  # elements of the states of all tokens that are taken side by side: 1 GiB
SHORT = 8  # tokens of a chunk that is taken beside others, at most


def ssm_step(A: Float[Array, "j i"], h: Float[Array, "b j i"], inputs):
    """One token: the equation above without the skip. `inputs` are u, Δ (b i) and B, C (b j)."""
    u, dt, B, C, *keep = inputs
    h = _decay(A, dt, *keep) * h + B[..., None] * (dt * u)[:, None]
    return h, jnp.sum(h * C[..., None], axis=1)


def _decay(A, dt, keep=None) -> Float[Array, "b j i"]:
    """exp(ΔA), or 0 where a segment begins."""
    decay = jnp.exp(dt[:, None] * A[None])
    return decay if keep is None else decay * keep[:, None]


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
    return by_platform(in_turn, at_once)(A, h, (u, dt, B, C, keep))


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
        after, y = jax.lax.scan(lambda h, x: ssm_step(A, h, x), h, tokens)
        return after, (y, h)

    return jax.lax.scan(chunk, h, tokens)


def _backward_in_turn(A, tokens, starts, g, dy):
    """Chunks from the last to the first, from the gradient g of the last state on."""
    nothing = jnp.zeros_like(starts[0])
    chunk = partial(_chunk_backward, _by_dots, A)
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

    last, before = jax.lax.scan(lambda h, x: (ssm_step(A, h, x)[0], h), start, tokens)
    carry, gradients = jax.lax.scan(token, carry, (tokens, before, dy), reverse=True)
    # all states but the last are before a token: theirs with dy one token later, not copied
    dC = over(2, before, jnp.roll(dy, 1, axis=0))
    return carry, (*gradients, jnp.roll(dC.at[0].set(over(2, last, dy[-1])), -1, axis=0))


def _forward_at_once(A, h, tokens):
    m = _beside(A, tokens)

    def chunks(h, tokens):
        step, shape = partial(ssm_step, A), (m, *h.shape)
        nothing = jnp.zeros((m * len(h), *A.shape), jnp.float32)
        alone = jax.lax.scan(lambda h, x: (step(h, x)[0], None), nothing, tokens)[0]
        ends = prefix(h, _faded(A, tokens).reshape(shape), alone.reshape(shape))
        starts = jnp.concatenate([h[None], ends[:-1]])
        _, y = jax.lax.scan(step, starts.reshape(alone.shape), tokens)
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


def _by_dots(axis: int, x: Float[Array, "*b j i"], y: Float[Array, "*b z"]) -> Float[Array, "*b y"]:
    """For XLA's CPU code, which writes down all terms of a sum and none of a product."""
    return jnp.einsum("...ji,...j->...i" if axis == 1 else "...ji,...i->...j", x, y)


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
