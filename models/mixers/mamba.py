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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Matrix, Mixer, MixerConfig, State
from isoflop.models.kernels import selective_scan
from isoflop.models.kernels.recurrence import in_chunks
from isoflop.models.kernels.xla_cpu import broadcast_to_batch
from isoflop.models.layers import SILU, SOFTPLUS, Linear, RMSNorm, ShortConv, gated
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
        _, y = selective_scan.scan(u.astype(jnp.float32), dt, self._A(), B, C, keep, chunk)
        return self._finish(y, u, gate)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        u, gate = jnp.split(self.inward(x), 2, axis=-1)
        conv, u = self.conv.prefill(u, state["conv"], lengths)
        u = jax.nn.silu(u)
        dt, B, C = self._select(u)
        dt, chunk, h = pad(dt, lengths), self.config.chunk, state["h"]
        h, y = selective_scan.scan(u.astype(jnp.float32), dt, self._A(), B, C, None, chunk, h)
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
        h, y = selective_scan.step(self._A(), state["h"], (u.astype(jnp.float32), dt, B, C))
        return {"conv": conv, "h": h}, self._finish(y, u, gate)

    def _A(self) -> Float[Array, "j i"]:
        return -jnp.exp(self.A_log[...]).T

    def _select(self, u: Float[Array, "*batch i"]):
        """Δ (fp32, after softplus), B and C of each token."""
        r, j = self.rank, self.config.d_state
        parts = jnp.split(self.select(u), [r, r + j], axis=-1)
        norms = (self.dt_norm, self.B_norm, self.C_norm)
        low, B, C = (x if norm is None else norm(x) for norm, x in zip(norms, parts, strict=True))
        dt = self.dt(low).astype(jnp.float32) + broadcast_to_batch(self.dt_bias[...], low)
        dt = jax.nn.softplus(dt)
        return dt, B.astype(jnp.float32), C.astype(jnp.float32)

    def _finish(self, y, u, gate):
        y = (y + broadcast_to_batch(self.D[...], u) * u.astype(jnp.float32)).astype(gate.dtype)
        return self.out(gated(jax.nn.silu, gate, y))
