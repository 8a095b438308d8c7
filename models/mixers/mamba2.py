"""Mamba-2: a state-space model with one decay per head (Dao & Gu 2024, 2405.21060, §5–7).

    S_t = exp(Δ_t A) S_{t−1} + B_t (Δ_t x_t)ᵀ        y_t = S_tᵀ C_t + D x_t
    o = norm(y ⊙ silu(z)) W_out

for each of d_inner / d_head heads; n_groups of heads share B and C, which pass the short
convolution with x. Paper → here: P → d_head, N → d_state, G → n_groups, E → expand. One projection
gives z, x, B, C and Δ in that order, as the released code lays them out; its norm is over each
group. Not included: an MLP inside the mixer (d_ssm < d_inner), limits on Δ.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels import recurrence
from isoflop.models.kernels.xla_cpu import broadcast_to_batch, in_rows
from isoflop.models.layers import SILU, SOFTPLUS, Linear, RMSNorm, ShortConv, by_rms, gated
from isoflop.models.packing import Lengths, Position, pad, restart

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # the released code's range of initial steps


class Mamba2(MixerConfig):
    kind: Literal["mamba2"] = "mamba2"
    d_state: PositiveInt = 128
    d_head: PositiveInt = 64
    expand: PositiveInt = 2
    d_conv: PositiveInt = 4
    n_groups: PositiveInt = 1
    conv_bias: bool = True
    bias: bool = False  # of the projections in and out
    norm_eps: PositiveFloat = 1e-5
    chunk: PositiveInt = 64

    def heads(self, d_model: int) -> int:
        return self.expand * d_model // self.d_head

    def conv_channels(self, d_model: int) -> int:
        """x, and B and C of every group."""
        return self.expand * d_model + 2 * self.n_groups * self.d_state

    def check(self, d_model: int) -> None:
        d_inner = self.expand * d_model
        check_multiple("expand·d_model", d_inner, "d_head", self.d_head)
        check_multiple("heads", self.heads(d_model), "n_groups", self.n_groups)

    def build(self, d_model: int, *, init: Init) -> StateSpaceDual:
        self.check(d_model)
        return StateSpaceDual(self, d_model, init=init)

    def _cost(self, d_model: int, tokens: int, core: tuple[int, int]) -> Cost:
        d_inner, heads = self.expand * d_model, self.heads(d_model)
        channels = self.conv_channels(d_model)
        projections = d_model * (d_inner + channels + heads) + d_inner * d_model
        # conv taps and bias; A, D and the bias of Δ; norm
        params = projections + channels * (self.d_conv + self.conv_bias) + 3 * heads + d_inner
        params += self.bias * (d_inner + channels + heads + d_model)
        matmul, elementwise = core
        local = ShortConv.flops(channels, self.d_conv, self.conv_bias) + channels * SILU
        local += heads * (1 + SOFTPLUS + 1)  # bias of Δ, softplus, Δ A
        local += d_inner * (1 + 2 + SILU + 1)  # Δ x, D skip, gate
        local += self.n_groups * RMSNorm.flops(d_inner // self.n_groups)
        local += self.bias * (d_inner + channels + heads + d_model)
        return Cost(
            matmul_flops=2 * projections * tokens + matmul,
            elementwise_flops=tokens * local + elementwise + heads,  # exp of A's logarithm
            params=params,
            active_params=params,
        )

    def cost(self, d_model: int, seq_len: int) -> Cost:
        values = self.heads(d_model) // self.n_groups
        matmul, elementwise = recurrence.chunked_flops(
            seq_len, self.d_state, self.d_head, self.chunk, 1, values
        )
        return self._cost(d_model, seq_len, (self.n_groups * matmul, self.n_groups * elementwise))

    def step_cost(self, d_model: int, context: int) -> Cost:
        matmul, elementwise = recurrence.step_flops(self.d_state, self.d_head, 1)
        heads = self.heads(d_model)
        return self._cost(d_model, 1, (heads * matmul, heads * elementwise))

    def state_size(self, d_model: int, context: int) -> int:
        """States and the convolution's last inputs, whatever the context."""
        states = self.expand * d_model * self.d_state
        return states + self.conv_channels(d_model) * (self.d_conv - 1)


class StateSpaceDual(Mixer):
    def __init__(self, config: Mamba2, d_model: int, *, init: Init):
        self.config = config
        self.d_inner, self.heads = config.expand * d_model, config.heads(d_model)
        channels = config.conv_channels(d_model)
        inward = self.d_inner + channels + self.heads
        self.inward = Linear(d_model, inward, init=init, bias=config.bias)
        self.conv = ShortConv(channels, config.d_conv, init=init, bias=config.conv_bias)
        self.dt_bias = nnx.Param(init.draw((self.heads,), self._initial_dt))
        rates = (self.heads,)
        self.A_log = nnx.Param(init.draw(rates, lambda rng: np.log(rng.uniform(1, 16, rates))))
        self.D = nnx.Param(init.full((self.heads,), 1.0))
        self.norm_scale = nnx.Param(init.full((self.d_inner,), 1.0))
        self.out = Linear(self.d_inner, d_model, axes="id", init=init, bias=config.bias)

    def _initial_dt(self, rng: np.random.Generator) -> np.ndarray:
        """Biases such that softplus(bias) is log-uniform in [DT_MIN, DT_MAX]."""
        dt = np.exp(rng.uniform(math.log(DT_MIN), math.log(DT_MAX), self.heads))
        dt = np.maximum(dt, DT_FLOOR)
        return dt + np.log(-np.expm1(-dt))

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        gate, xBC, dt = self._project(x)
        u, C, B, v, log_a = self._heads(jax.nn.silu(self.conv(xBC, position)), dt)
        log_a = restart(log_a, position, recurrence.FORGET)
        _, y = recurrence.chunked(C, B, v, log_a, self.config.chunk)
        return self._finish(y, u, gate)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        gate, xBC, dt = self._project(x)
        conv, xBC = self.conv.prefill(xBC, state["conv"], lengths)
        u, C, B, v, log_a = self._heads(jax.nn.silu(xBC), dt)
        v, log_a = pad(v, lengths), pad(log_a, lengths)
        S, y = recurrence.chunked(C, B, v, log_a, self.config.chunk, state["S"])
        return {"conv": conv, "S": S}, self._finish(y, u, gate)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.heads, self.config.d_state, self.config.d_head)
        return {"conv": self.conv.init_state(batch, dtype), "S": jnp.zeros(shape, jnp.float32)}

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        gate, xBC, dt = self._project(x[:, None])
        conv, xBC = self.conv.step(state["conv"], xBC[:, 0])
        u, *scanned = self._heads(jax.nn.silu(xBC)[:, None], dt)
        C, B, v, log_a = (z[:, :, 0] for z in scanned)
        C, B = (jnp.repeat(z, self.heads // self.config.n_groups, axis=1) for z in (C, B))
        S, y = recurrence.step(state["S"], C, B, v, log_a)
        return {"conv": conv, "S": S}, self._finish(y[:, :, None], u, gate)[:, 0]

    def _project(self, x: Float[Array, "b t d"]):
        """z; x, B and C before the convolution; Δ before its bias."""
        ends = [self.d_inner, 2 * self.d_inner + 2 * self.config.n_groups * self.config.d_state]
        return jnp.split(self.inward(x), ends, axis=-1)

    def _heads(self, xBC: Float[Array, "b t i"], dt: Float[Array, "b t h"]):
        """x; and as queries, keys, values, log-gates of the recurrence: C, B, Δx, ΔA (fp32).

        C and B have a head for each group, which its heads share.
        """
        groups = self.config.n_groups
        split = [self.d_inner, self.d_inner + groups * self.config.d_state]
        u, B, C = jnp.split(xBC.astype(jnp.float32), split, axis=-1)
        u = rearrange(u, "b t (h v) -> b h t v", h=self.heads)
        B, C = (rearrange(z, "b t (g k) -> b g t k", g=groups) for z in (B, C))
        dt = jax.nn.softplus(dt.astype(jnp.float32) + broadcast_to_batch(self.dt_bias[...], dt))
        dt = rearrange(dt, "b t h -> b h t 1")
        A = -jnp.exp(self.A_log[...])[None, :, None, None]
        return u, C, B, u * dt, dt * A

    def _finish(self, y: Float[Array, "b h t v"], u: Float[Array, "b h t v"], gate):
        y = rearrange(y + self.D[...][None, :, None, None] * u, "b h t v -> b t (h v)")
        y = gated(jax.nn.silu, gate.astype(jnp.float32), y)
        groups = rearrange(y, "b t (g i) -> b t g i", g=self.config.n_groups)
        groups = in_rows(lambda x: by_rms(x, self.config.norm_eps), groups)
        y = rearrange(groups, "b t g i -> b t (g i)") * broadcast_to_batch(self.norm_scale[...], y)
        return self.out(y.astype(gate.dtype))
