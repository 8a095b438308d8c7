"""The delta rule: a linear memory that corrects what it holds for a key instead of adding to it.

    S_t = (I − β_t k_t k_tᵀ) diag(a_t) S_{t−1} + β_t k_t v_tᵀ        o_t = S_tᵀ q_t / √d_key

S is (k, v) per head; q and k have length 1. `decay="none"` is DeltaNet (Schlag et al. 2021,
2102.11174; Yang et al. 2024, 2406.06484, §3), `"scalar"` Gated DeltaNet, one a_t per head (Yang et
al. 2024, 2412.06464, §3.1), `"channel"` Kimi delta attention, one a_t per key channel (Kimi team
2025, 2510.26692). β = σ(·), so that I − βkkᵀ has eigenvalues in [0, 1]; with `negative_eigenvalues`
β = 2σ(·) and they are in [−1, 1] (Grazzi et al. 2024, 2411.12537).
Layers as in flash-linear-attention: short convolutions and silu before q, k, v; RMSNorm per head;
output gate silu(x W) for `"scalar"`, low-rank and sigmoid for `"channel"`, none for `"none"`.
log a = −exp(A_log) · softplus(· + dt_bias). With `n_value_heads`, consecutive value heads share a
key head, each with its own β and gates (Qwen3-Next).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels import delta_rule, recurrence
from isoflop.models.kernels.xla_cpu import broadcast_to_batch, in_rows
from isoflop.models.layers import SIGMOID, SILU, SOFTPLUS, Linear, RMSNorm, ShortConv, gated
from isoflop.models.packing import Lengths, Position, pad, restart

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4  # initial steps of the scalar gate, as in Mamba-2
UNIT_EPS = 1e-6


class DeltaNet(MixerConfig):
    kind: Literal["delta"] = "delta"
    n_heads: PositiveInt
    d_key: PositiveInt | None = None  # per head; None: d_model / n_heads
    d_value: PositiveInt | None = None  # per head; None: d_model / n_heads
    n_value_heads: PositiveInt | None = None  # None: as many as n_heads
    decay: Literal["none", "scalar", "channel"] = "scalar"
    negative_eigenvalues: bool = False
    d_conv: PositiveInt = 4
    norm_eps: PositiveFloat = 1e-5
    chunk: PositiveInt | None = None  # None: 32 tokens, or 16 for channel gates

    def heads(self, d_model: int) -> tuple[int, int]:
        """(d_key, d_value) of one head."""
        default = d_model // self.n_heads
        return self.d_key or default, self.d_value or default

    @property
    def value_heads(self) -> int:
        return self.n_value_heads or self.n_heads

    def resolved(self, d_model: int) -> DeltaNet:
        d_key, d_value = self.heads(d_model)
        sizes = {"d_key": d_key, "d_value": d_value, "n_value_heads": self.value_heads}
        return self.model_copy(update=sizes)

    def conv_channels(self, d_model: int) -> int:
        """Queries and keys, and values."""
        d_key, d_value = self.heads(d_model)
        return 2 * self.n_heads * d_key + self.value_heads * d_value

    @property
    def chunk_size(self) -> int:
        return self.chunk or (16 if self.decay == "channel" else 32)

    def check(self, d_model: int) -> None:
        if not (self.d_key and self.d_value):
            otherwise = ", or set d_key and d_value"
            check_multiple("d_model", d_model, "n_heads", self.n_heads, otherwise)
        check_multiple("n_value_heads", self.value_heads, "n_heads", self.n_heads)

    def build(self, d_model: int, *, init: Init) -> DeltaRule:
        self.check(d_model)
        return DeltaRule(self, d_model, init=init)

    def gates(self, d_model: int) -> int:
        """Log-gates of one head."""
        return self.heads(d_model)[0] if self.decay == "channel" else 1

    def _cost(self, d_model: int, tokens: int, head: tuple[int, int]) -> Cost:
        d_k, d_v = self.heads(d_model)
        h, channels = self.value_heads, self.conv_channels(d_model)
        gates = {
            "none": 0,
            "scalar": d_model * h + d_model * h * d_v,
            "channel": 2 * d_model * d_v + d_v * h * (d_k + d_v),
        }
        # A_log and dt_bias; and the output gate's bias
        gate_params = {"none": 0, "scalar": 2 * h, "channel": h + h * d_k + h * d_v}
        weights = d_model * (channels + h * d_v + h) + gates[self.decay]
        params = weights + gate_params[self.decay] + channels * self.d_conv + d_v
        matmul, elementwise = head
        local = ShortConv.flops(channels, self.d_conv, bias=False) + channels * SILU
        # length of queries and keys; scale of queries; β; bias of the pace, softplus, −rate
        local += 2 * self.n_heads * (3 * d_k + 2) + h * (d_k + SIGMOID + 1)
        local += h * self.gates(d_model) * (1 + SOFTPLUS + 1) * (self.decay != "none")
        gate = {"none": 0, "scalar": SILU + 1, "channel": 1 + SIGMOID + 1}[self.decay]
        local += h * (RMSNorm.flops(d_v) + d_v * gate)
        once = h * (self.decay != "none")  # exp of the rate's logarithm
        return Cost(
            matmul_flops=2 * weights * tokens + h * matmul,
            elementwise_flops=local * tokens + h * elementwise + once,
            params=params,
            active_params=params,
        )

    def cost(self, d_model: int, seq_len: int) -> Cost:
        flops = delta_rule.chunked_flops(
            seq_len, *self.heads(d_model), self.chunk_size, self.gates(d_model)
        )
        return self._cost(d_model, seq_len, flops)

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self._cost(
            d_model, 1, delta_rule.step_flops(*self.heads(d_model), self.gates(d_model))
        )

    def state_size(self, d_model: int, context: int) -> int:
        """The memory and the convolution's last inputs, whatever the context."""
        d_k, d_v = self.heads(d_model)
        return self.value_heads * d_k * d_v + self.conv_channels(d_model) * (self.d_conv - 1)


class DeltaRule(Mixer):
    def __init__(self, config: DeltaNet, d_model: int, *, init: Init):
        self.config = config
        self.d_k, self.d_v = d_k, d_v = config.heads(d_model)
        h = config.value_heads
        self.q = Linear(d_model, config.n_heads * d_k, init=init)
        self.k = Linear(d_model, config.n_heads * d_k, init=init)
        self.v = Linear(d_model, h * d_v, init=init)
        self.beta = Linear(d_model, h, init=init)
        self.conv = ShortConv(config.conv_channels(d_model), config.d_conv, init=init, bias=False)
        if config.decay == "scalar":
            self.decay = Linear(d_model, h, init=init)
            self.dt_bias = nnx.Param(init.draw((h,), self._initial_dt))
            self.gate = Linear(d_model, h * d_v, init=init)
        if config.decay == "channel":
            self.decay_down = Linear(d_model, d_v, axes="dr", init=init)
            self.decay = Linear(d_v, h * d_k, init=init)
            self.dt_bias = nnx.Param(init.full((h * d_k,), 0.0))
            self.gate_down = Linear(d_model, d_v, axes="dr", init=init)
            self.gate = Linear(d_v, h * d_v, init=init, bias=True)
        if config.decay != "none":
            self.A_log = nnx.Param(init.draw((h,), lambda rng: np.log(rng.uniform(1, 16, h))))
        self.norm = RMSNorm(d_v, config.norm_eps, init=init)
        self.out = Linear(h * d_v, d_model, axes="id", init=init)

    def _initial_dt(self, rng: np.random.Generator) -> np.ndarray:
        """Biases such that softplus(bias) is log-uniform in [DT_MIN, DT_MAX]."""
        dt = np.exp(rng.uniform(math.log(DT_MIN), math.log(DT_MAX), self.config.value_heads))
        dt = np.maximum(dt, DT_FLOOR)
        return dt + np.log(-np.expm1(-dt))

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        parts, first = [], 0  # each alone: joined, they would be copied and cut again
        for linear in (self.q, self.k, self.v):
            parts.append(self.conv(linear(x), position, first))
            first += parts[-1].shape[-1]
        q, k, v = self._heads(*parts)
        beta, log_a = self._gates(x)
        log_a = restart(log_a, position, recurrence.FORGET)
        return self._finish(delta_rule.chunked(q, k, v, beta, log_a, self.config.chunk_size)[1], x)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        joined = jnp.concatenate([self.q(x), self.k(x), self.v(x)], axis=-1)
        conv, joined = self.conv.prefill(joined, state["conv"], lengths)
        keys = self.config.n_heads * self.d_k
        q, k, v = self._heads(*jnp.split(joined, [keys, 2 * keys], axis=-1))
        beta, log_a = self._gates(x)
        k, log_a = pad(k, lengths), pad(log_a, lengths)
        S, o = delta_rule.chunked(q, k, v, beta, log_a, self.config.chunk_size, state["S"])
        return {"conv": conv, "S": S}, self._finish(o, x)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.config.value_heads, self.d_k, self.d_v)
        return {"conv": self.conv.init_state(batch, dtype), "S": jnp.zeros(shape, jnp.float32)}

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        joined = jnp.concatenate([self.q(x), self.k(x), self.v(x)], axis=-1)
        conv, joined = self.conv.step(state["conv"], joined)
        keys = self.config.n_heads * self.d_k
        parts = jnp.split(joined[:, None], [keys, 2 * keys], axis=-1)
        inputs = (*self._heads(*parts), *self._gates(x[:, None]))
        S, o = delta_rule.step(state["S"], *(z[:, :, 0] for z in inputs))
        return {"conv": conv, "S": S}, self._finish(o[:, :, None], x[:, None])[:, 0]

    def _heads(self, q: Float[Array, "b t i"], k: Float[Array, "b t i"], v: Float[Array, "b t o"]):
        """Queries and keys of length 1 (queries scaled) and values in fp32, heads first."""
        keys, values = self.config.n_heads, self.config.value_heads
        q, k, v = (jax.nn.silu(z).astype(jnp.float32) for z in (q, k, v))
        q, k = (
            repeat(unit(z), "b t g k -> b (g r) t k", r=values // keys)
            for z in (rearrange(z, "b t (g k) -> b t g k", g=keys) for z in (q, k))
        )
        return q * self.d_k**-0.5, k, rearrange(v, "b t (h v) -> b h t v", h=values)

    def _gates(self, x: Float[Array, "b t d"]):
        """β and log a in fp32, heads first."""
        h = self.config.value_heads
        beta = jax.nn.sigmoid(self.beta(x).astype(jnp.float32))
        beta = rearrange(beta, "b t h -> b h t 1") * (1 + self.config.negative_eigenvalues)
        if self.config.decay == "none":
            return beta, jnp.zeros_like(beta)
        x = self.decay_down(x) if self.config.decay == "channel" else x
        pace = self.decay(x).astype(jnp.float32)
        pace = jax.nn.softplus(pace + broadcast_to_batch(self.dt_bias[...], pace))
        rate = jnp.exp(self.A_log[...])[None, :, None, None]
        return beta, -rate * rearrange(pace, "b t (h a) -> b h t a", h=h)

    def _finish(self, o: Float[Array, "b h t v"], x: Float[Array, "b t d"]):
        o = rearrange(self.norm(o), "b h t v -> b t (h v)").astype(x.dtype)
        if self.config.decay == "scalar":
            o = gated(jax.nn.silu, self.gate(x), o)
        if self.config.decay == "channel":
            o = gated(jax.nn.sigmoid, self.gate(self.gate_down(x)), o)
        return self.out(o)


def unit(x: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    """x / |x|, finite at 0."""
    return in_rows(lambda x: x * jax.lax.rsqrt(jnp.sum(x * x, -1, keepdims=True) + UNIT_EPS), x)
