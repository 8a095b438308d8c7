"""Softmax attention: multi-head or grouped-query, with rotary positions, window, norms and gate.

    o_t = Σ_{s ≤ t} softmax_s(q_t · k_s / √d_head) v_s        [⊙ σ(x_t W_gate)]

Vaswani et al. 2017 (1706.03762, §3.2); grouped queries: Ainslie et al. 2023 (2305.13245); rotary
positions: Su et al. 2021 (2104.09864); QK-norm: Henry et al. 2020 (2010.04245) with RMSNorm, of
each head as in Qwen3 or of all heads jointly as in OLMoE; sliding window: Beltagy et al. 2020
(2004.05150); output gate: Qiu et al. 2025 (2505.06708), as in Qwen3-Next. The parallel form goes by
tiles (models/kernels/attention.py). Not included: dropout, sinks, soft-capped scores.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int
from pydantic import PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels import attention as tiled
from isoflop.models.layers import SIGMOID, Linear, RMSNorm, gated
from isoflop.models.packing import Lengths, Position, is_real, lengths_of
from isoflop.models.rotary import (
    RopeScaling,
    amplitude,
    check_dims,
    frequencies,
    rope,
    rope_flops,
)

TILES = (
    64,
    256,
    1024,
)  # sides of a tile for up to 512 tokens, 2048 to 4096, and from 16384 on


class Attention(MixerConfig):
    kind: Literal["attention"] = "attention"
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None  # None: as many as n_heads
    d_head: PositiveInt | None = None  # None: d_model / n_heads
    window: PositiveInt | None = None  # keys seen by a query, itself included; None: all
    rope_base: PositiveFloat | None = 10_000.0  # None: no positions
    rope_dims: PositiveInt | None = None  # leading channels of a head that turn; None: all
    rope_scaling: RopeScaling | None = None
    qk_norm: bool | Literal["joint"] = False  # "joint": over all heads at once
    norm_eps: PositiveFloat = 1e-6
    qkv_bias: bool = False
    out_bias: bool = False
    gate: bool = False  # of the output, by channel
    chunk: PositiveInt | None = (
        None  # side of a tile; None: an eighth of 512…2048 tokens, a 16th of 4096…16384, or window
    )

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    def head_size(self, d_model: int) -> int:
        return self.d_head or d_model // self.n_heads

    def resolved(self, d_model: int) -> Attention:
        return self.model_copy(
            update={"n_kv_heads": self.kv_heads, "d_head": self.head_size(d_model)}
        )

    def check(self, d_model: int) -> None:
        if self.d_head is None:
            check_multiple("d_model", d_model, "n_heads", self.n_heads, ", or set d_head")
        check_multiple("n_heads", self.n_heads, "n_kv_heads", self.kv_heads)
        if self.rope_base:
            size = self.head_size(d_model)
            check_dims(self.rope_dims or size, size)

    def build(self, d_model: int, *, init: Init) -> SoftmaxAttention:
        self.check(d_model)
        return SoftmaxAttention(self, d_model, init=init)

    def _projections(self, d_model: int) -> int:
        heads = (2 + self.gate) * self.n_heads + 2 * self.kv_heads
        return d_model * self.head_size(d_model) * heads

    def _vectors(self, d_model: int) -> int:
        """Parameters of norms and biases."""
        d_head, both = self.head_size(d_model), self.n_heads + self.kv_heads
        norms = {False: 0, True: 2 * d_head, "joint": both * d_head}[self.qk_norm]
        biases = self.qkv_bias * (both + self.kv_heads) * d_head + self.out_bias * d_model
        return norms + biases

    def cost(self, d_model: int, seq_len: int) -> Cost:
        per_pair = self.n_heads * self.head_size(d_model) * 4
        tile = self.tile(seq_len)
        pairs = tiled.count(seq_len, tile, self.window) * tile**2
        softmax = tiled.softmax_flops(seq_len, tile, self.window, self.head_size(d_model))
        weights = self._projections(d_model)
        params = weights + self._vectors(d_model)
        return Cost(
            matmul_flops=2 * weights * seq_len + per_pair * pairs,
            elementwise_flops=self._local_flops(d_model, True) * seq_len + self.n_heads * softmax,
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        per_pair = self.n_heads * self.head_size(d_model) * 4
        slots = self.slots(context)
        softmax = 4 * slots + self.head_size(d_model)  # scale, less the maximum, exp, sum; divide
        parallel = self.cost(d_model, 1)
        return Cost(
            matmul_flops=2 * self._projections(d_model) + per_pair * slots,
            elementwise_flops=self._local_flops(d_model, False) + self.n_heads * softmax,
            params=parallel.params,
            active_params=parallel.active_params,
        )

    def _local_flops(self, d_model: int, known: bool) -> int:
        """Elementwise, of one token beside its softmax; positions may be `known` in advance."""
        size, both = self.head_size(d_model), self.n_heads + self.kv_heads
        normed = {
            False: (),
            True: both * (size,),
            "joint": (self.n_heads * size, self.kv_heads * size),
        }[self.qk_norm]
        biases = self.qkv_bias * (both + self.kv_heads) * size + self.out_bias * d_model
        gates = self.gate * self.n_heads * size * (SIGMOID + 1)
        dims = (self.rope_dims or size) if self.rope_base is not None else 0
        turns = rope_flops(dims, both, known, amplitude(self.rope_scaling))
        return biases + gates + turns + sum(map(RMSNorm.flops, normed))

    def state_size(self, d_model: int, context: int) -> int:
        """Keys and values of every slot, and one position."""
        return 2 * self.slots(context) * self.kv_heads * self.head_size(d_model) + 1

    @property
    def state_parts(self) -> int:
        return self.kv_heads

    def slots(self, context: int) -> int:
        """Keys a cache for `context` tokens holds: all of them, or a ring of `window`."""
        return min(context, self.window or context)

    def max_tokens(self, context: int) -> int | None:
        """A ring of the whole window goes on for ever, a shorter cache to its last slot."""
        return None if self.slots(context) == self.window else context

    def tile(self, seq_len: int) -> int:
        """Side of the parallel form's tiles of scores."""
        least, middle, most = TILES
        eighth, sixteenth = (least * -(-seq_len // (parts * least)) for parts in (8, 16))
        side = min(max(min(eighth, middle), sixteenth), most)
        return min(self.chunk or min(side, self.window or side), seq_len)


class SoftmaxAttention(Mixer):
    def __init__(self, config: Attention, d_model: int, *, init: Init):
        self.config = config
        self.d_head = d_head = config.head_size(d_model)
        width, kv_width = config.n_heads * d_head, config.kv_heads * d_head
        self.q = Linear(d_model, width, init=init, bias=config.qkv_bias)
        self.k = Linear(d_model, kv_width, init=init, bias=config.qkv_bias)
        self.v = Linear(d_model, kv_width, init=init, bias=config.qkv_bias)
        self.gate = Linear(d_model, width, init=init) if config.gate else None
        self.out = Linear(width, d_model, axes="id", init=init, bias=config.out_bias)
        normed = (width, kv_width) if config.qk_norm == "joint" else (d_head, d_head)
        self.q_norm, self.k_norm = (
            RMSNorm(size, config.norm_eps, init=init) if config.qk_norm else None for size in normed
        )

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        q, k, v = self._heads(x, np.arange(x.shape[1]) if position is None else position[:, None])
        out = tiled.attend(q, k, v, position, self.config.tile(x.shape[1]), self.config.window)
        return self._finish(rearrange(out, "b h t k -> b t (h k)"), x)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        """As `step` token by token: of a ring, only the last tokens stay, and what is beyond the
        cache's last slot is NaN.
        """
        position, config = state["position"], self.config
        slots, new = state["k"].shape[2], x.shape[1]
        here = position[:, None] + jnp.arange(new)[None]
        q, k, v = self._heads(x, here[:, None])
        k, v = (z.astype(state["k"].dtype) for z in (k, v))
        cache, held = (state["k"], state["v"]), _held(position, slots)
        out = tiled.attend_on(q, k, v, cache, held, here, config.tile(new), config.window)
        if slots != config.window:  # the cache ends
            past = here >= slots
            if lengths is not None:  # padding stays finite, or it would spoil what rows share
                past = past & is_real(lengths, new)
            out = jnp.where(past[:, None, :, None], jnp.nan, out)
        after = position + lengths_of(x, lengths)
        source = _held(after, slots) - position[:, None]  # of each slot's token among the new ones
        fresh = (source >= 0)[:, None, :, None]
        taken = jnp.clip(source, 0, new - 1)[:, None, :, None]
        keys, values = (
            jnp.where(fresh, jnp.take_along_axis(z, taken, axis=2), old)
            for z, old in zip((k, v), cache, strict=True)
        )
        out = self._finish(rearrange(out, "b h t k -> b t (h k)"), x)
        return {"k": keys, "v": values, "position": after}, out

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.config.kv_heads, self.config.slots(context), self.d_head)
        return {
            "k": jnp.zeros(shape, dtype),
            "v": jnp.zeros(shape, dtype),
            "position": jnp.zeros(batch, jnp.int32),
        }

    def room(self, state: State) -> Int[Array, " b"] | None:
        slots = state["k"].shape[2]
        return None if slots == self.config.window else slots - state["position"]

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        """A token overwrites the one a window before it. Where the cache is shorter than the
        window, or there is none, that token should still be seen: what follows is NaN.
        """
        position, room = state["position"], self.room(state)
        # every sequence has its own position, so sequences stand in as the time axis' batch
        q, k, v = jax.vmap(lambda x, p: self._heads(x[None, None], p[None]))(x, position)
        batch, groups, slots, _ = state["k"].shape
        # one write for each head: XLA's CPU code copies a whole cache around a write of all of them
        slot = (
            jnp.arange(batch)[:, None],
            jnp.arange(groups)[None],
            position[:, None] % slots,
        )
        keys = state["k"].at[slot].set(k[:, 0, :, 0])
        values = state["v"].at[slot].set(v[:, 0, :, 0])
        seen = jnp.arange(slots)[None] <= position[:, None]
        out = _attend(q[:, 0], keys, values, seen[:, None, None, None])
        if room is not None:
            out = jnp.where(room[:, None, None, None] > 0, out, jnp.nan)
        out = self._finish(rearrange(out, "b h 1 k -> b (h k)"), x)
        return {"k": keys, "v": values, "position": position + 1}, out

    def _heads(self, x, positions):
        config = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        if config.qk_norm == "joint":
            q, k = self._normed(q, k)
        q, k, v = (rearrange(z, "b t (h k) -> b h t k", k=self.d_head) for z in (q, k, v))
        if config.qk_norm != "joint":
            q, k = self._normed(q, k)
        if config.rope_base is not None:
            dims, scaling = config.rope_dims or self.d_head, config.rope_scaling
            turns = frequencies(dims, config.rope_base, scaling)
            q, k = (rope(z, positions, turns, amplitude(scaling)) for z in (q, k))
        return q, k, v

    def _normed(self, q, k):
        norms = (self.q_norm, self.k_norm)
        return (z if norm is None else norm(z) for norm, z in zip(norms, (q, k), strict=True))

    def _finish(self, o: Float[Array, "*batch i"], x: Float[Array, "*batch d"]):
        return self.out(o if self.gate is None else gated(jax.nn.sigmoid, self.gate(x), o))


def _held(position: Int[Array, " b"], slots: int) -> Int[Array, "b s"]:
    """The place of the token in each slot after `position` tokens, below 0 where there is none:
    token p lies in slot p mod slots, until one a whole turn later takes it.
    """
    last = position[:, None] - 1
    return last - (last - jnp.arange(slots)[None]) % slots


def _attend(
    q: Float[Array, "b h t k"],
    k: Float[Array, "b g s k"],
    v: Float[Array, "b g s k"],
    seen: Array,
) -> Float[Array, "b h t k"]:
    """Queries against a cache; scores in fp32, normalised after the value product."""
    grouped = rearrange(q, "b (g r) t k -> b g r t k", g=k.shape[1])
    scores = jnp.einsum("bgrtk,bgsk->bgrts", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v)
    out = out / weights.sum(-1, keepdims=True).astype(v.dtype)
    return rearrange(out, "b g r t k -> b (g r) t k")
