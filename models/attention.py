"""Softmax attention: multi-head or grouped-query, rotary positions, optional window and QK-norm.

    o_t = Σ_{s ≤ t} softmax_s(q_t · k_s / √d_head) v_s

Vaswani et al. 2017 (1706.03762, §3.2); grouped queries: Ainslie et al. 2023 (2305.13245); rotary
positions: Su et al. 2021 (2104.09864); QK-norm: Henry et al. 2020 (2010.04245) with RMSNorm as in
Qwen3; sliding window: Beltagy et al. 2020 (2004.05150). The parallel form goes by tiles
(models/tiled.py). Not included: dropout, biases, sinks.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float
from pydantic import PositiveFloat, PositiveInt

from models import tiled
from models.base import Cost, Init, Mixer, MixerConfig, State
from models.errors import UserError
from models.layers import Linear, RMSNorm, rope
from models.packing import Position

TILE, WIDE_TILE = 64, 256  # sides of a tile for up to LONG tokens, and beyond
LONG = 1024


class Attention(MixerConfig):
    kind: Literal["attention"] = "attention"
    n_heads: PositiveInt
    n_kv_heads: PositiveInt | None = None  # None: as many as n_heads
    d_head: PositiveInt | None = None  # None: d_model / n_heads
    window: PositiveInt | None = None  # keys seen by a query, itself included; None: all
    rope_base: PositiveFloat | None = 10_000.0  # None: no positions
    qk_norm: bool = False
    chunk: PositiveInt | None = (
        None  # side of a tile; None: 64 tokens, or 256 beyond 1024, or window
    )

    @property
    def kv_heads(self) -> int:
        return self.n_kv_heads or self.n_heads

    def head_size(self, d_model: int) -> int:
        return self.d_head or d_model // self.n_heads

    def check(self, d_model: int) -> None:
        if self.d_head is None and d_model % self.n_heads:
            raise UserError(
                f"d_model={d_model} must be a multiple of n_heads={self.n_heads}; "
                "choose n_heads that divides it, or set d_head"
            )
        if self.n_heads % self.kv_heads:
            raise UserError(
                f"n_heads={self.n_heads} must be a multiple of n_kv_heads={self.kv_heads}; "
                "choose n_kv_heads that divides it"
            )
        if self.rope_base and self.head_size(d_model) % 2:
            raise UserError(
                f"rotary positions need an even d_head, got {self.head_size(d_model)}; "
                "change n_heads or set rope_base to None"
            )

    def build(self, d_model: int, *, init: Init) -> SoftmaxAttention:
        self.check(d_model)
        return SoftmaxAttention(self, d_model, init=init)

    def _projections(self, d_model: int) -> int:
        return 2 * d_model * self.head_size(d_model) * (self.n_heads + self.kv_heads)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        per_pair = self.n_heads * self.head_size(d_model) * 4
        tile = self.tile(seq_len)
        pairs = tiled.count(seq_len, tile, self.window) * tile**2
        weights = self._projections(d_model)
        params = weights + 2 * self.head_size(d_model) * self.qk_norm
        return Cost(
            matmul_flops=2 * weights * seq_len + per_pair * pairs,
            elementwise_flops=4 * self.n_heads * pairs,  # scale, subtract the maximum, exp, sum
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        per_pair = self.n_heads * self.head_size(d_model) * 4
        slots = self.slots(context)
        parallel = self.cost(d_model, 1)
        return Cost(
            matmul_flops=2 * self._projections(d_model) + per_pair * slots,
            elementwise_flops=4 * self.n_heads * slots,
            params=parallel.params,
            active_params=parallel.active_params,
        )

    def state_size(self, d_model: int, context: int) -> int:
        """Keys and values of every slot, and one position."""
        return 2 * self.slots(context) * self.kv_heads * self.head_size(d_model) + 1

    def slots(self, context: int) -> int:
        """Keys a cache for `context` tokens holds: all of them, or a ring of `window`."""
        return min(context, self.window or context)

    def tile(self, seq_len: int) -> int:
        """Side of the parallel form's tiles of scores."""
        side = TILE if seq_len <= LONG else WIDE_TILE
        return min(self.chunk or min(side, self.window or side), seq_len)


class SoftmaxAttention(Mixer):
    def __init__(self, config: Attention, d_model: int, *, init: Init):
        self.config = config
        self.d_head = d_head = config.head_size(d_model)
        self.q = Linear(d_model, config.n_heads * d_head, init=init)
        self.k = Linear(d_model, config.kv_heads * d_head, init=init)
        self.v = Linear(d_model, config.kv_heads * d_head, init=init)
        self.out = Linear(config.n_heads * d_head, d_model, init=init)
        self.q_norm = RMSNorm(d_head, init=init) if config.qk_norm else None
        self.k_norm = RMSNorm(d_head, init=init) if config.qk_norm else None

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        q, k, v = self._heads(x, jnp.arange(x.shape[1]) if position is None else position[:, None])
        out = tiled.attend(q, k, v, position, self.config.tile(x.shape[1]), self.config.window)
        return self.out(rearrange(out, "b h t k -> b t (h k)"))

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.config.kv_heads, self.config.slots(context), self.d_head)
        return {
            "k": jnp.zeros(shape, dtype),
            "v": jnp.zeros(shape, dtype),
            "position": jnp.zeros(batch, jnp.int32),
        }

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        """Tokens beyond a full cache's last slot overwrite the oldest (a ring)."""
        position = state["position"]
        # every sequence has its own position, so sequences stand in as the time axis' batch
        q, k, v = jax.vmap(lambda x, p: self._heads(x[None, None], p[None]))(x, position)
        batch, groups, slots, _ = state["k"].shape
        # one write for each head: XLA's CPU code copies a whole cache around a write of all of them
        slot = jnp.arange(batch)[:, None], jnp.arange(groups)[None], position[:, None] % slots
        keys = state["k"].at[slot].set(k[:, 0, :, 0])
        values = state["v"].at[slot].set(v[:, 0, :, 0])
        seen = jnp.arange(slots)[None] <= position[:, None]
        out = _attend(q[:, 0], keys, values, seen[:, None, None, None])
        out = self.out(rearrange(out, "b h 1 k -> b (h k)"))
        return {"k": keys, "v": values, "position": position + 1}, out

    def _heads(self, x, positions):
        q, k, v = (
            rearrange(project(x), "b t (h k) -> b h t k", k=self.d_head)
            for project in (self.q, self.k, self.v)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope_base is not None:
            q = rope(q, positions, self.config.rope_base)
            k = rope(k, positions, self.config.rope_base)
        return q, k, v


def _attend(
    q: Float[Array, "b h t k"], k: Float[Array, "b g s k"], v: Float[Array, "b g s k"], seen: Array
) -> Float[Array, "b h t k"]:
    """Attention of one block of queries; scores in fp32, normalised after the value product."""
    grouped = rearrange(q, "b (g r) t k -> b g r t k", g=k.shape[1])
    scores = jnp.einsum("bgrtk,bgsk->bgrts", grouped, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen, scores * q.shape[-1] ** -0.5, -jnp.inf)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bgrts,bgsk->bgrtk", weights.astype(v.dtype), v)
    out = out / weights.sum(-1, keepdims=True).astype(v.dtype)
    return rearrange(out, "b g r t k -> b (g r) t k")
