"""Multi-head latent attention: keys and values of all heads from one small latent per token.

    c_t = norm(x_t W_down)    k_s = [W_k c_s ; R_s k^R_s]    v_s = W_v c_s
    q_t = [q^N_t ; R_t q^R_t]
    o_t = Σ_{s ≤ t} softmax_s(q_t · k_s · scale) v_s

DeepSeek-AI 2024 (2405.04434, §2.1): W_down is `down`, W_k and W_v together `up`, k^R the last
`d_rope` channels of `down`, one key for all heads; queries come from a latent of their own, or
directly (DeepSeek-V2-Lite). Only c and R k^R are cached. A step works on the cache itself, the
absorbed form: q^N · W_k c = (W_kᵀ q^N) · c and Σ w W_v c = W_v Σ w c, so that it is attention of
all heads to one key and value of `kv_rank` (+ `d_rope`) channels. The channels of a pair that turns
are half of them apart, where DeepSeek's are neighbours. Without `rope_base` nothing turns, as in
Kimi-Linear. `score_scale` is m² of DeepSeek's YaRN. The parallel form's kernel sees values filled
up with zeros to the keys' channels.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from isoflop.models.base import Cost, Init, Mixer, MixerConfig, State
from isoflop.models.errors import UserError
from isoflop.models.kernels import attention as tiled
from isoflop.models.layers import Linear, RMSNorm
from isoflop.models.mixers.attention import Attention
from isoflop.models.packing import Lengths, Position, is_real, lengths_of
from isoflop.models.rotary import RopeScaling, amplitude, check_dims, frequencies, rope, rope_flops


class Mla(MixerConfig):
    kind: Literal["mla"] = "mla"
    n_heads: PositiveInt
    kv_rank: PositiveInt  # channels of the latent that is cached
    q_rank: PositiveInt | None = None  # of the queries' latent; None: queries straight from x
    d_nope: PositiveInt = 128  # channels of a head's keys and queries without positions
    d_rope: NonNegativeInt = 64  # and with, shared by the keys of all heads
    d_value: PositiveInt = 128
    rope_base: PositiveFloat | None = 10_000.0  # None: nothing turns
    rope_scaling: RopeScaling | None = None
    score_scale: PositiveFloat = 1.0
    norm_eps: PositiveFloat = 1e-6
    chunk: PositiveInt | None = None  # side of a tile, as Attention has it

    @property
    def d_key(self) -> int:
        return self.d_nope + self.d_rope

    @property
    def cached(self) -> int:
        """Elements of a token in the cache."""
        return self.kv_rank + self.d_rope

    @property
    def state_parts(self) -> int:
        return 1

    def check(self, d_model: int) -> None:
        if self.d_value > self.d_key:
            raise UserError(
                f"d_value={self.d_value} must be at most d_nope + d_rope = {self.d_key}; lower it"
            )
        if self.rope_base is not None:
            check_dims(self.d_rope, self.d_rope)

    def build(self, d_model: int, *, init: Init) -> LatentAttention:
        self.check(d_model)
        return LatentAttention(self, d_model, init=init)

    def _projections(self, d_model: int) -> tuple[int, int]:
        """Weights of (what every form multiplies, the matrix that a step absorbs)."""
        queries, rank = self.n_heads * self.d_key, self.q_rank
        asked = d_model * queries if rank is None else rank * (d_model + queries)
        out = self.n_heads * self.d_value * d_model
        up = self.kv_rank * self.n_heads * (self.d_nope + self.d_value)
        return asked + d_model * self.cached + out, up

    def _params(self, d_model: int) -> int:
        return sum(self._projections(d_model)) + self.kv_rank + (self.q_rank or 0)

    def _local_flops(self, known: bool) -> int:
        """Elementwise, of one token beside its softmax; positions may be `known` in advance."""
        norms = RMSNorm.flops(self.kv_rank) + (RMSNorm.flops(self.q_rank) if self.q_rank else 0)
        turned = self.rope_base is not None and self.d_rope > 0
        turns = 0
        if turned:
            wide = amplitude(self.rope_scaling)
            turns = rope_flops(self.d_rope, self.n_heads + 1, known, wide)
        scaled = self.n_heads * self.d_key * (self.score_scale != 1)
        return norms + turns + scaled

    def cost(self, d_model: int, seq_len: int) -> Cost:
        tile, heads = self.tile(seq_len), self.n_heads
        pairs = tiled.count(seq_len, tile, None) * tile**2
        softmax = tiled.softmax_flops(seq_len, tile, None, self.d_key)
        params = self._params(d_model)
        return Cost(
            matmul_flops=2 * sum(self._projections(d_model)) * seq_len
            + 4 * heads * self.d_key * pairs,
            elementwise_flops=self._local_flops(True) * seq_len + heads * softmax,
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        always, absorbed = self._projections(d_model)
        params = self._params(d_model)
        # exp and its sum, less the maximum; the outputs divided by the sum
        softmax = 3 * context + self.kv_rank
        return Cost(
            matmul_flops=2 * (always + absorbed)
            + 2 * self.n_heads * context * (self.cached + self.kv_rank),
            elementwise_flops=self._local_flops(False)
            + self.n_heads * (softmax + self.cached),  # queries scaled
            params=params,
            active_params=params,
        )

    def state_size(self, d_model: int, context: int) -> int:
        """The latent and the rotary key of every slot, and one position."""
        return context * self.cached + 1

    def max_tokens(self, context: int) -> int | None:
        return context

    def tile(self, seq_len: int) -> int:
        return Attention(n_heads=self.n_heads, chunk=self.chunk).tile(seq_len)


class LatentAttention(Mixer):
    def __init__(self, config: Mla, d_model: int, *, init: Init):
        self.config = config
        heads, rank = config.n_heads, config.q_rank
        self.q_down = Linear(d_model, rank, init=init) if rank else None
        self.q_norm = RMSNorm(rank, config.norm_eps, init=init) if rank else None
        self.q = Linear(rank or d_model, heads * config.d_key, init=init)
        self.down = Linear(d_model, config.cached, init=init)
        self.norm = RMSNorm(config.kv_rank, config.norm_eps, init=init)
        self.up = Linear(config.kv_rank, heads * (config.d_nope + config.d_value), init=init)
        self.out = Linear(heads * config.d_value, d_model, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        config, length = self.config, x.shape[1]
        places = np.arange(length) if position is None else position[:, None]
        q, latent, shared = self._inputs(x, places)
        both = rearrange(self.up(latent), "b t (h k) -> b h t k", h=config.n_heads)
        k, v = jnp.split(both, [config.d_nope], -1)
        shared = jnp.broadcast_to(shared, (*k.shape[:-1], config.d_rope))
        k = jnp.concatenate([k, shared], -1)
        v = jnp.pad(v, ((0, 0), (0, 0), (0, 0), (0, config.d_key - config.d_value)))
        out = tiled.attend(q, k, v, position, config.tile(length), None)[..., : config.d_value]
        return self.out(rearrange(out, "b h t v -> b t (h v)"))

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        """In the absorbed form, so that a cache is never spread over heads."""
        config, new = self.config, x.shape[1]
        position, cache = state["position"], state["cache"]
        here = position[:, None] + jnp.arange(new)[None]
        q, latent, shared = self._inputs(x, here[:, None])
        q = self._absorbed(q) * config.cached**0.5  # the kernel divides by it
        fresh = jnp.concatenate([latent[:, None], shared], -1).astype(cache.dtype)
        slot = jnp.arange(cache.shape[2])[None]
        held = jnp.where(slot < position[:, None], slot, -1)
        out = tiled.attend_on(
            q.astype(fresh.dtype),
            fresh,
            fresh,
            (cache, cache),
            held,
            here,
            config.tile(new),
            None,
        )
        past = here >= cache.shape[2]
        if lengths is not None:  # padding stays finite, or it would spoil what rows share
            past = past & is_real(lengths, new)
        out = jnp.where(past[:, None, :, None], jnp.nan, out[..., : config.kv_rank])
        after = position + lengths_of(x, lengths)
        source = slot - position[:, None]  # of each slot's token among the new ones
        taken = jnp.take_along_axis(fresh, jnp.clip(source, 0, new - 1)[:, None, :, None], axis=2)
        given = ((source >= 0) & (slot < after[:, None]))[:, None, :, None]
        cache = jnp.where(given, taken, cache)
        return {"cache": cache, "position": after}, self._finish(out.astype(x.dtype))

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, 1, context, self.config.cached)
        return {
            "cache": jnp.zeros(shape, dtype),
            "position": jnp.zeros(batch, jnp.int32),
        }

    def room(self, state: State) -> Int[Array, " b"] | None:
        return state["cache"].shape[2] - state["position"]

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        """Beyond the cache's last slot what follows is NaN."""
        config, position, cache = self.config, state["position"], state["cache"]
        q, latent, shared = self._inputs(x[:, None], position[:, None, None])
        fresh = jnp.concatenate([latent, shared[:, 0]], -1)[:, 0].astype(cache.dtype)
        cache = cache.at[jnp.arange(len(x)), 0, position].set(fresh)
        keys, queries = cache[:, 0], self._absorbed(q)[:, :, 0].astype(cache.dtype)
        scores = jnp.einsum("bhk,bsk->bhs", queries, keys, preferred_element_type=jnp.float32)
        seen = jnp.arange(keys.shape[1])[None] <= position[:, None]
        scores = jnp.where(seen[:, None], scores, -jnp.inf)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        values = keys[..., : config.kv_rank]
        out = jnp.einsum("bhs,bsr->bhr", weights.astype(values.dtype), values)
        out = out / weights.sum(-1, keepdims=True).astype(values.dtype)
        past = position >= keys.shape[1]
        out = jnp.where(past[:, None, None], jnp.nan, out)[:, :, None]
        return {"cache": cache, "position": position + 1}, self._finish(out.astype(x.dtype))[:, 0]

    def _inputs(self, x: Float[Array, "b t d"], places: Any):
        """Queries (b h t k), latents (b t r) and the key that all heads share (b 1 t p)."""
        config = self.config
        asked = x if self.q_down is None or self.q_norm is None else self.q_norm(self.q_down(x))
        q = rearrange(self.q(asked), "b t (h k) -> b h t k", h=config.n_heads)
        latent, shared = jnp.split(self.down(x), [config.kv_rank], -1)
        latent, shared = self.norm(latent), shared[:, None]
        if config.rope_base is not None and config.d_rope:
            turns = frequencies(config.d_rope, config.rope_base, config.rope_scaling)
            plain, turned = jnp.split(q, [config.d_nope], -1)
            wide = amplitude(config.rope_scaling)
            q = jnp.concatenate([plain, rope(turned, places, turns, wide)], -1)
            shared = rope(shared, places, turns, wide)
        if config.score_scale != 1:
            q = q * config.score_scale
        return q, latent, shared

    def _up(self, dtype: Any) -> tuple[Float[Array, "r h k"], Float[Array, "r h v"]]:
        """W_k and W_v of every head."""
        up = rearrange(self.up.kernel[...], "r (h k) -> r h k", h=self.config.n_heads)
        keys, values = jnp.split(up.astype(dtype), [self.config.d_nope], -1)
        return keys, values

    def _absorbed(self, q: Float[Array, "b h t k"]) -> Float[Array, "b h t r"]:
        """Queries of latents and shared keys, scaled: softmax takes their products as they are."""
        plain, turned = jnp.split(q, [self.config.d_nope], -1)
        keys, _ = self._up(q.dtype)
        asked = jnp.concatenate([jnp.einsum("bhtn,rhn->bhtr", plain, keys), turned], -1)
        return asked * self.config.d_key**-0.5

    def _finish(self, out: Float[Array, "b h t r"]) -> Float[Array, "b t d"]:
        """Weighted latents as values, and out."""
        _, values = self._up(out.dtype)
        return self.out(
            rearrange(jnp.einsum("bhtr,rhv->bhtv", out, values), "b h t v -> b t (h v)")
        )
