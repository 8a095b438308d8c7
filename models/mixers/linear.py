"""Linear attention with decay: one scalar per head, or one gate per head and channel.

    S_t = diag(a_t) S_{t−1} + k_t v_tᵀ        o_t = norm(S_tᵀ q_t) ⊙ silu(x W_g)

`decay="none"` is linear attention without normaliser (Katharopoulos et al. 2020, 2006.16236; the
sum of keys is replaced by a norm: Qin et al. 2022, 2210.10340); with `normalizer="keys"` it is as
first published, o_t = S_tᵀ φ(q_t) / Σ_s φ(k_s)·φ(q_t) and φ = elu + 1, without norm and gate.
`"fixed"` is RetNet's retention, a = 1 − 2^(−5−h) (Sun et al. 2023, 2307.08621, §2.2). `"scalar"`
makes that decay depend on the token, a = σ(x w)^(1/τ). `"channel"` is GLA, low-rank gates per
channel with τ = 16 (Yang et al. 2023, 2312.06635, §4.4). `rope_base` turns q and k by their
positions, as RetNet's e^{inθ} does; halves are paired as in flash-linear-attention.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels import recurrence
from isoflop.models.layers import ELU, SILU, SOFTPLUS, Linear, RMSNorm, gated
from isoflop.models.packing import Lengths, Position, lengths_of, pad, restart
from isoflop.models.rotary import check_dims, frequencies, rope, rope_flops

TAU = 16.0  # gates start near 1: σ(0)^(1/16) = .96 forgets half in 16 tokens
GATE_RANK = 16
KEYS_EPS = 1e-6  # beside the sum of keys


class LinearAttention(MixerConfig):
    kind: Literal["linear"] = "linear"
    n_heads: PositiveInt
    d_key: PositiveInt | None = None  # per head; None: d_model / n_heads
    d_value: PositiveInt | None = None  # per head; None: d_model / n_heads
    decay: Literal["none", "fixed", "scalar", "channel"] = "scalar"
    normalizer: Literal["norm", "keys"] = "norm"
    rope_base: PositiveFloat | None = None  # None: no positions
    chunk: PositiveInt | None = None  # None: 64 tokens, or 16 for channel gates

    def heads(self, d_model: int) -> tuple[int, int]:
        """(d_key, d_value) of one head."""
        default = d_model // self.n_heads
        return self.d_key or default, self.d_value or default

    def memory(self, d_model: int) -> tuple[int, int]:
        """Sides of one head's state: the sum of keys is one more value."""
        d_k, d_v = self.heads(d_model)
        return d_k, d_v + (self.normalizer == "keys")

    @property
    def chunk_size(self) -> int:
        return self.chunk or (16 if self.decay == "channel" else 64)

    def check(self, d_model: int) -> None:
        if not (self.d_key and self.d_value):
            otherwise = ", or set d_key and d_value"
            check_multiple("d_model", d_model, "n_heads", self.n_heads, otherwise)
        d_key, _ = self.heads(d_model)
        if self.rope_base:
            check_dims(d_key, d_key)

    def build(self, d_model: int, *, init: Init) -> GatedLinear:
        self.check(d_model)
        return GatedLinear(self, d_model, init=init)

    def _projections(self, d_model: int) -> int:
        d_k, d_v = self.heads(d_model)
        gates = {
            "none": 0,
            "fixed": 0,
            "scalar": d_model * self.n_heads,
            "channel": GATE_RANK * (d_model + self.n_heads * d_k),
        }
        values = 3 if self.normalizer == "norm" else 2  # v, out, and the output gate
        return d_model * self.n_heads * (2 * d_k + values * d_v) + gates[self.decay]

    def gates(self, d_model: int) -> int:
        """Log-gates of one head."""
        return self.heads(d_model)[0] if self.decay == "channel" else 1

    def _cost(self, d_model: int, tokens: int, head: tuple[int, int], known: bool) -> Cost:
        d_k, d_v = self.heads(d_model)
        gates = self.gates(d_model) * (self.decay in ("scalar", "channel"))  # from a map
        weights, normed = self._projections(d_model), self.normalizer == "norm"
        params = weights + self.n_heads * gates + d_v * normed
        # queries' scale; bias, log σ and temperature of gates
        local = d_k + gates * (1 + SOFTPLUS + 1)
        if normed:
            local += RMSNorm.flops(d_v) + d_v * (SILU + 1)
        else:  # elu + 1 of queries and keys; quotient
            local += 2 * d_k * (ELU + 1) + d_v + 1
        turns = rope_flops(d_k, 2 * self.n_heads, known) if self.rope_base is not None else 0
        once = 3 * self.n_heads * (self.decay == "fixed")  # log(1 − 2^(−5−h))
        matmul, elementwise = head
        return Cost(
            matmul_flops=2 * weights * tokens + self.n_heads * matmul,
            elementwise_flops=self.n_heads * (elementwise + tokens * local) + tokens * turns + once,
            params=params,
            active_params=params,
        )

    def cost(self, d_model: int, seq_len: int) -> Cost:
        flops = recurrence.chunked_flops(
            seq_len, *self.memory(d_model), self.chunk_size, self.gates(d_model)
        )
        return self._cost(d_model, seq_len, flops, known=True)

    def step_cost(self, d_model: int, context: int) -> Cost:
        flops = recurrence.step_flops(*self.memory(d_model), self.gates(d_model))
        return self._cost(d_model, 1, flops, known=False)

    def state_size(self, d_model: int, context: int) -> int:
        """The memory, and with rotation the position, whatever the context."""
        d_k, d_v = self.memory(d_model)
        return self.n_heads * d_k * d_v + (self.rope_base is not None)


class GatedLinear(Mixer):
    def __init__(self, config: LinearAttention, d_model: int, *, init: Init):
        self.config = config
        self.d_k, self.d_v = config.heads(d_model)
        self.memory = config.memory(d_model)
        h = config.n_heads
        self.q = Linear(d_model, h * self.d_k, init=init)
        self.k = Linear(d_model, h * self.d_k, init=init)
        self.v = Linear(d_model, h * self.d_v, init=init)
        if config.normalizer == "norm":
            self.gate = Linear(d_model, h * self.d_v, init=init)
            self.norm = RMSNorm(self.d_v, init=init)
        if config.decay == "scalar":
            self.decay = Linear(d_model, h, init=init, bias=True)
        if config.decay == "channel":
            self.decay_down = Linear(d_model, GATE_RANK, axes="dr", init=init)
            self.decay = Linear(GATE_RANK, h * self.d_k, init=init, bias=True)
        self.out = Linear(h * self.d_v, d_model, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        q, k, v, log_a = self._heads(x, position)
        log_a = restart(log_a, position, recurrence.FORGET)
        _, o = recurrence.chunked(q, k, v, log_a, self.config.chunk_size)
        return self._finish(o, x)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        position = state.get("position")
        here = None if position is None else position[:, None] + jnp.arange(x.shape[1])[None]
        q, k, v, log_a = self._heads(x, here)
        k, log_a = pad(k, lengths), pad(log_a, lengths)
        S, o = recurrence.chunked(q, k, v, log_a, self.config.chunk_size, state["S"])
        after = {} if position is None else {"position": position + lengths_of(x, lengths)}
        return after | {"S": S}, self._finish(o, x)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        S = jnp.zeros((batch, self.config.n_heads, *self.memory), jnp.float32)
        if self.config.rope_base is None:
            return {"S": S}
        return {"S": S, "position": jnp.zeros(batch, jnp.int32)}

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        S, position = state["S"], state.get("position")
        here = None if position is None else position[:, None]
        S, o = recurrence.step(S, *(y[:, :, 0] for y in self._heads(x[:, None], here)))
        after = {} if position is None else {"position": position + 1}
        return after | {"S": S}, self._finish(o[:, :, None], x[:, None])[:, 0]

    def _heads(self, x: Float[Array, "b t d"], position: Position):
        """Queries, keys, values and log-gates in fp32, heads first."""
        h = self.config.n_heads
        q, k, v = (
            rearrange(project(x), "b t (h k) -> b h t k", h=h).astype(jnp.float32)
            for project in (self.q, self.k, self.v)
        )
        if self.config.rope_base is not None:
            place = np.arange(x.shape[1]) if position is None else position[:, None]
            turns = frequencies(self.d_k, self.config.rope_base, None)
            q, k = rope(q, place, turns), rope(k, place, turns)
        if self.config.normalizer == "keys":
            q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], axis=-1)
        return q * self.d_k**-0.5, k, v, self._log_decay(x)

    def _log_decay(self, x: Float[Array, "b t d"]) -> Float[Array, "b h t a"]:
        h = self.config.n_heads
        if self.config.decay == "none":
            return jnp.zeros((x.shape[0], h, x.shape[1], 1), jnp.float32)
        if self.config.decay == "fixed":
            fixed = jnp.log1p(-(2.0 ** (-5 - jnp.arange(h, dtype=jnp.float32))))
            return jnp.broadcast_to(fixed[:, None, None], (x.shape[0], h, x.shape[1], 1))
        x = self.decay_down(x) if self.config.decay == "channel" else x
        gates = jax.nn.log_sigmoid(self.decay(x).astype(jnp.float32)) / TAU
        return rearrange(gates, "b t (h a) -> b h t a", h=h)

    def _finish(self, o: Float[Array, "b h t v"], x: Float[Array, "b t d"]):
        if self.config.normalizer == "keys":
            o = o[..., :-1] / (o[..., -1:] + KEYS_EPS)
            return self.out(rearrange(o, "b h t v -> b t (h v)").astype(x.dtype))
        o = rearrange(self.norm(o), "b h t v -> b t (h v)").astype(x.dtype)
        return self.out(gated(jax.nn.silu, self.gate(x), o))
