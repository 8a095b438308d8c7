"""RWKV-7: a generalised delta rule with a decay per channel (Peng et al. 2025, 2503.14456, §4).

    S_t = (diag(w_t) − (a_t ⊙ κ_t) κ_tᵀ) S_{t−1} + k_t v_tᵀ        y_t = S_tᵀ r_t

S is (k, v) per head, the transpose of the paper's. Every input of a layer is a mix of its token
and the one before (token shift). w = exp(−e^(−1/2) σ(·)) ∈ (.545, 1), a = σ(·) and the output gate
come from low-rank maps; κ is the key ⊙ k_k at length 1; k is the key ⊙ (1 + (a − 1) ⊙ k_a). Then a
norm per head, the bonus (r · (k ⊙ r_k)) v, the gate, the output map. Channel mixing is
relu(W x)² W' of the shifted token, and has a state too, so it is a mixer here. With `values`, the
published model's first layer leaves its values v' to the layers above, and those mix them in:
v ← v + (v' − v) σ(·) before all else, low-rank again. Initial vectors as released for a first
layer; matrices are drawn as everywhere in this package.
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

from isoflop.models.base import Cost, CrossLayerState, Init, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels import recurrence, rwkv7
from isoflop.models.kernels.xla_cpu import broadcast_to_batch, in_rows
from isoflop.models.layers import SIGMOID, Linear, by_rms, centred
from isoflop.models.packing import Lengths, Position, last, pad, previous, restart

MIX_POWERS = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
RANK_UNIT = 32


def _rank(d_model: int, factor: float) -> int:
    """The released sizes of the low-rank maps: factor·√d_model to the nearest 32, at least 32."""
    return max(RANK_UNIT, round(factor * math.sqrt(d_model) / RANK_UNIT) * RANK_UNIT)


class Rwkv7(MixerConfig):
    kind: Literal["rwkv7"] = "rwkv7"
    n_heads: PositiveInt
    rank_decay: PositiveInt | None = None  # None: 2.5·√d_model to the nearest 32
    rank_rate: PositiveInt | None = None  # of a; None: the same
    rank_gate: PositiveInt | None = None  # None: 5·√d_model to the nearest 32
    rank_value: PositiveInt | None = None  # None: 1.7·√d_model to the nearest 32
    values: Literal["own", "leave", "mix"] = "own"  # leave them to, or mix them from, other layers
    norm_eps: PositiveFloat = 1e-5  # of a head, for each of its channels
    chunk: PositiveInt = 16

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"values"} if self.values == "mix" else ())

    @property
    def writes(self) -> frozenset[str]:
        return frozenset({"values"} if self.values == "leave" else ())

    def resolved(self, d_model: int) -> Rwkv7:
        names = ("rank_decay", "rank_rate", "rank_gate", "rank_value")
        return self.model_copy(update=dict(zip(names, self.ranks(d_model), strict=True)))

    def ranks(self, d_model: int) -> tuple[int, int, int, int]:
        """Ranks of w, a, the gate and the values' mix."""
        small = _rank(d_model, 2.5)
        return (
            self.rank_decay or small,
            self.rank_rate or small,
            self.rank_gate or _rank(d_model, 5.0),
            self.rank_value or _rank(d_model, 1.7),
        )

    def check(self, d_model: int) -> None:
        check_multiple("d_model", d_model, "n_heads", self.n_heads)

    def build(self, d_model: int, *, init: Init) -> TimeMix:
        self.check(d_model)
        return TimeMix(self, d_model, init=init)

    def _cost(self, d_model: int, tokens: int, head: tuple[int, int]) -> Cost:
        mixes = self.values == "mix"
        ranks = self.ranks(d_model)[: 3 + mixes]
        weights = 4 * d_model**2 + 2 * d_model * sum(ranks)
        # six mixes, two biases, k_k, k_a, r_k, norm scale and bias; the values' bias
        params = weights + (13 + mixes) * d_model
        matmul, elementwise = head
        # six mixes of 2 and their difference, log w 3, a 2, κ 4, k 4, a ⊙ κ 1, norm 7, bonus 5,
        # gate 1; the values' mix 5; for each head, roots of κ and of the norm
        local = d_model * (13 + 3 + 2 + 4 + 4 + 1 + 7 + 5 + 1 + 5 * mixes) + self.n_heads * (1 + 4)
        local += ranks[0] + ranks[2] * SIGMOID  # tanh of w's map, σ of the gate's
        return Cost(
            matmul_flops=2 * weights * tokens + self.n_heads * matmul,
            elementwise_flops=local * tokens + self.n_heads * elementwise,
            params=params,
            active_params=params,
        )

    def cost(self, d_model: int, seq_len: int) -> Cost:
        size = d_model // self.n_heads
        return self._cost(d_model, seq_len, rwkv7.chunked_flops(seq_len, size, self.chunk))

    def step_cost(self, d_model: int, context: int) -> Cost:
        size = d_model // self.n_heads
        return self._cost(d_model, 1, (4 * size**2, size + 5 * size**2))

    def state_size(self, d_model: int, context: int) -> int:
        """The memory and the last token, whatever the context."""
        return d_model * (d_model // self.n_heads) + d_model


class TimeMix(Mixer):
    def __init__(self, config: Rwkv7, d_model: int, *, init: Init):
        self.config = config
        self.size = size = d_model // config.n_heads
        d = d_model
        place = np.arange(d)
        linear = place / max(1, d - 1) - 0.5
        zigzag = (place % size - (size - 1) / 2) / max(1, (size - 1) / 2)
        zigzag = zigzag * np.abs(zigzag)
        powers = np.array(list(MIX_POWERS.values()))[:, None]
        decay = -5.5 + 6 * (linear + 0.5) + 2.5 * zigzag
        rate = -0.19 + 0.3 * zigzag + 0.4 * linear

        def constant(values):
            return nnx.Param(init.draw(values.shape, lambda rng: values))

        self.mix = constant(1 - (place / d) ** powers)
        self.r = Linear(d, d, init=init)
        self.k = Linear(d, d, init=init)
        self.v = Linear(d, d, init=init)
        rank_decay, rank_rate, rank_gate, rank_value = config.ranks(d)
        self.decay_down = Linear(d, rank_decay, axes="dr", init=init)
        self.decay_up = Linear(rank_decay, d, axes="ri", init=init)
        self.decay_bias = constant(decay)
        self.rate_down = Linear(d, rank_rate, axes="dr", init=init)
        self.rate_up = Linear(rank_rate, d, axes="ri", init=init)
        self.rate_bias = constant(rate)
        self.gate_down = Linear(d, rank_gate, axes="dr", init=init)
        self.gate_up = Linear(rank_gate, d, axes="ri", init=init)
        if config.values == "mix":
            self.value_down = Linear(d, rank_value, axes="dr", init=init)
            self.value_up = Linear(rank_value, d, axes="ri", init=init)
            self.value_bias = constant(0.73 - 0.4 * linear)
        self.k_k = constant(0.71 - 0.1 * linear)
        self.k_a = nnx.Param(init.full((d,), 1.02))
        self.r_k = nnx.Param(init.full((d,), -0.04))
        self.norm_scale = nnx.Param(init.full((d,), 1.0))
        self.norm_bias = nnx.Param(init.full((d,), 0.0))
        self.out = Linear(d, d, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        return self.forward(x, {}, position)[0]

    def forward(
        self, x: Float[Array, "b t d"], cross: CrossLayerState, position: Position = None
    ) -> tuple[Float[Array, "b t d"], CrossLayerState]:
        inputs, gate, cross = self._inputs(x, previous(x, position), cross)
        r, k, v, unit, rated, log_w = inputs
        rated = restart(rated, position, 0.0)  # since κ reads before the decay of its own token
        log_w = restart(log_w, position, recurrence.FORGET)
        _, y = rwkv7.chunked(r, k, v, unit, rated, log_w, chunk=self.config.chunk)
        return self._finish(y, inputs, gate), cross

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        return self.forward_prefill(x, state, {}, lengths)[:2]

    def forward_prefill(
        self,
        x: Float[Array, "b t d"],
        state: State,
        cross: CrossLayerState,
        lengths: Lengths = None,
    ) -> tuple[State, Float[Array, "b t d"], CrossLayerState]:
        before, shifted = _shifted(x, state["before"], lengths)
        inputs, gate, cross = self._inputs(x, shifted, cross)
        r, k, v, unit, rated, log_w = inputs
        k, rated, log_w = (pad(z, lengths) for z in (k, rated, log_w))
        chunk, S = self.config.chunk, state["S"]
        S, y = rwkv7.chunked(r, k, v, unit, rated, log_w, chunk=chunk, start=S)
        return {"before": before, "S": S}, self._finish(y, inputs, gate), cross

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        heads = self.config.n_heads
        return {
            "before": jnp.zeros((batch, heads * self.size), dtype),
            "S": jnp.zeros((batch, heads, self.size, self.size), jnp.float32),
        }

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        return self.forward_step(state, x, {})[:2]

    def forward_step(
        self, state: State, x: Float[Array, "b d"], cross: CrossLayerState
    ) -> tuple[State, Float[Array, "b d"], CrossLayerState]:
        inputs, gate, cross = self._inputs(x[:, None], state["before"][:, None], cross)
        S, y = rwkv7.step(state["S"], *(z[:, :, 0] for z in inputs))
        y = self._finish(y[:, :, None], inputs, gate)[:, 0]
        return {"before": x, "S": S}, y, cross

    def _values(
        self, x: Float[Array, "b t d"], cross: CrossLayerState
    ) -> tuple[Float[Array, "b t d"], CrossLayerState]:
        v = self.v(x)
        if self.config.values == "leave":
            return v, cross | {"values": v}
        if self.config.values == "mix":
            share = self.value_up(self.value_down(x))
            share = jax.nn.sigmoid(share + broadcast_to_batch(self.value_bias.astype(x.dtype), x))
            v = v + (cross["values"] - v) * share
        return v, cross

    def _inputs(
        self, x: Float[Array, "b t d"], before: Float[Array, "b t d"], cross: CrossLayerState
    ):
        """(r, k, v, κ, a ⊙ κ, log w) in fp32, heads first; the output gate; what is cross."""
        mixed = shift(self.mix[...], x, before)
        r, k = self.r(mixed["r"]), self.k(mixed["k"])
        v, cross = self._values(mixed["v"], cross)
        w = self.decay_up(jnp.tanh(self.decay_down(mixed["w"]))).astype(jnp.float32)
        a = self.rate_up(self.rate_down(mixed["a"])).astype(jnp.float32)
        log_w = -math.exp(-0.5) * jax.nn.sigmoid(w + broadcast_to_batch(self.decay_bias[...], w))
        a = jax.nn.sigmoid(a + broadcast_to_batch(self.rate_bias[...], a))
        r, k, v = (z.astype(jnp.float32) for z in (r, k, v))
        key = k * broadcast_to_batch(self.k_k[...], k)
        k = k * (1 + (a - 1) * broadcast_to_batch(self.k_a[...], k))
        r, k, v, key, a, log_w = (self._split(z) for z in (r, k, v, key, a, log_w))
        unit = in_rows(_unit, key)
        gate = self.gate_up(jax.nn.sigmoid(self.gate_down(mixed["g"])))
        return (r, k, v, unit, a * unit, log_w), gate, cross

    def _split(self, x: Float[Array, "b t d"]) -> Float[Array, "b h t k"]:
        return rearrange(x, "b t (h k) -> b h t k", h=self.config.n_heads)

    def _finish(self, y: Float[Array, "b h t v"], inputs, gate: Float[Array, "b t d"]):
        r, k, v = inputs[:3]
        y = in_rows(lambda x: by_rms(centred(x), self.config.norm_eps * self.size), y)
        r_k = rearrange(self.r_k[...], "(h k) -> 1 h 1 k", k=self.size)
        bonus = jnp.sum(r * k * r_k, -1, keepdims=True) * v
        y, bonus = (rearrange(z, "b h t v -> b t (h v)") for z in (y, bonus))
        scale, bias = (broadcast_to_batch(p[...], y) for p in (self.norm_scale, self.norm_bias))
        y = y * scale + bias + bonus
        return self.out(y.astype(gate.dtype) * gate)


def _shifted(
    x: Float[Array, "b t d"], before: Float[Array, "b d"], lengths: Lengths
) -> tuple[Float[Array, "b d"], Float[Array, "b t d"]]:
    """The last token, and the token before each, `before` before the first."""
    window = jnp.concatenate([before[:, None], x], axis=1)
    return last(window, 1, lengths)[:, 0], window[:, :-1]


def shift(
    mix: Float[Array, "n d"], x: Float[Array, "b t d"], before: Float[Array, "b t d"]
) -> dict[str, Float[Array, "b t d"]]:
    """x + m ⊙ (before − x) for each of the six mixes."""
    change = before - x
    weights = zip(MIX_POWERS, mix.astype(x.dtype), strict=True)
    return {name: x + broadcast_to_batch(weight, x) * change for name, weight in weights}


def _unit(x: Float[Array, "*batch k"]) -> Float[Array, "*batch k"]:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))


class RwkvChannel(MixerConfig):
    """RWKV-7's MLP. Beside an `Rwkv7` block, its own block: Block(mixer=RwkvChannel(d_ff=…))."""

    kind: Literal["rwkv7_channel"] = "rwkv7_channel"
    d_ff: PositiveInt

    def build(self, d_model: int, *, init: Init) -> ChannelMix:
        return ChannelMix(d_model, self.d_ff, init=init)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        weights = 2 * d_model * self.d_ff
        params = weights + d_model
        return Cost(
            matmul_flops=2 * weights * seq_len,
            elementwise_flops=(3 * d_model + self.d_ff) * seq_len,  # mix; square
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self.cost(d_model, 1)

    def state_size(self, d_model: int, context: int) -> int:
        return d_model


class ChannelMix(Mixer):
    def __init__(self, d_model: int, d_ff: int, *, init: Init):
        mix = 1 - (np.arange(d_model) / d_model) ** 4
        self.mix = nnx.Param(init.draw((d_model,), lambda rng: mix))
        self.up = Linear(d_model, d_ff, init=init)
        self.out = Linear(d_ff, d_model, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        return self._mix(x, previous(x, position))

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        state, before = _shifted(x, state, lengths)
        return state, self._mix(x, before)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        return jnp.zeros((batch, self.mix.shape[0]), dtype)

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        return x, self._mix(x, state)

    def _mix(self, x: Float[Array, "*batch d"], before: Float[Array, "*batch d"]):
        mixed = x + broadcast_to_batch(self.mix.astype(x.dtype), x) * (before - x)
        return self.out(jnp.square(jax.nn.relu(self.up(mixed))))
