"""Chunked cross-attention (RETRO): tokens look into the neighbours of the last whole chunk.

    o_t = Σ_s softmax_s(q_t · k_s / √d_head) v_s      over the tokens s of the neighbours that were
                                                      found for chunk ⌊(t + 1)/m⌋ − 1

Borgeaud et al. 2021 (2112.04426, §2.4, figure 2): a row is cut in chunks of m tokens (`chunk`),
each has k neighbours (`nearest`) of r tokens (`length`), which somebody else has found, and the
last token of a chunk is the first that sees its neighbours: it predicts the next chunk's first
token. The m − 1 tokens before have none, and get 0. Neighbours are embedded as the row is, each is
read by a bidirectional encoder of its own, and rotary positions say how far a token is along what
follows a neighbour's beginning. Not included: the encoder's look at the chunk itself, one encoder
for all layers, relative logits in the place of rotary positions.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from isoflop.models.base import Cost, CrossLayerState, Init, Mixer, MixerConfig, Retrieval, State
from isoflop.models.errors import UserError, check_multiple
from isoflop.models.kernels.attention import reference
from isoflop.models.layers import SOFTMAX, Linear, RMSNorm
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.models.packing import Lengths, Position, is_real, lengths_of
from isoflop.models.rotary import check_dims, frequencies, rope, rope_flops


class ChunkedCrossAttention(MixerConfig):
    """Its `cost` and `step_cost` are of a row's own tokens; `read_cost` is of a chunk's
    neighbours.
    """

    kind: Literal["chunked_cross_attention"] = "chunked_cross_attention"
    n_heads: PositiveInt
    chunk: PositiveInt = 64  # m
    nearest: PositiveInt = 2  # k
    length: PositiveInt = 128  # r
    d_head: PositiveInt | None = None  # None: d_model / n_heads
    encoder: NonNegativeInt = 1  # layers that read a neighbour; 0: its embeddings are attended to
    encoder_ff: PositiveInt | None = None  # of a SwiGLU in each of them; None: attention alone
    rope_base: PositiveFloat = 10_000.0

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({"neighbours"})

    @property
    def retrieval(self) -> Retrieval:
        return Retrieval(self.chunk, self.nearest, self.length)

    def head_size(self, d_model: int) -> int:
        return self.d_head or d_model // self.n_heads

    def resolved(self, d_model: int) -> ChunkedCrossAttention:
        return self.model_copy(update={"d_head": self.head_size(d_model)})

    def check(self, d_model: int) -> None:
        if self.d_head is None:
            check_multiple("d_model", d_model, "n_heads", self.n_heads, ", or set d_head")
        check_dims(self.head_size(d_model), self.head_size(d_model))

    def build(self, d_model: int, *, init: Init) -> CrossAttention:
        self.check(d_model)
        return CrossAttention(self, d_model, init=init)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        chunks = seq_len // self.chunk
        params = self._encoder_params(d_model) + d_model + 4 * d_model * self._width(d_model)
        some = self._looks(d_model, max(seq_len - self.chunk + 1, 0), chunks * self.chunk, True)
        return some + Cost(params=params, active_params=params)

    def step_cost(self, d_model: int, context: int) -> Cost:
        parallel = self.cost(d_model, 1)
        return self._looks(d_model, 1, 1, False) + Cost(
            params=parallel.params, active_params=parallel.active_params
        )

    def read_cost(self, d_model: int) -> Cost:
        size, width, tokens = self.head_size(d_model), self._width(d_model), self.retrieval.tokens
        pairs = tokens * self.length
        layer = Cost(
            matmul_flops=8 * d_model * width * tokens + 4 * width * pairs,
            elementwise_flops=tokens * (RMSNorm.flops(d_model) + d_model)
            + tokens * rope_flops(size, 2 * self.n_heads, True)
            + pairs * self.n_heads * (SOFTMAX + 1),
        )
        if self.encoder_ff is not None:
            inner = SwiGLU(d_ff=self.encoder_ff).cost(d_model, tokens)
            local = tokens * (RMSNorm.flops(d_model) + d_model)
            layer += Cost(inner.matmul_flops, inner.elementwise_flops + local)
        keys = Cost(
            matmul_flops=4 * d_model * width * tokens,
            elementwise_flops=tokens
            * (RMSNorm.flops(d_model) + rope_flops(size, self.n_heads, True)),
        )
        return sum([layer] * self.encoder, keys)

    def state_size(self, d_model: int, context: int) -> int:
        """Keys and values of one chunk's neighbours, the position, and the sets that were read."""
        return 2 * self.retrieval.tokens * self._width(d_model) + 2

    @property
    def state_parts(self) -> int:
        return self.n_heads

    def _width(self, d_model: int) -> int:
        return self.n_heads * self.head_size(d_model)

    def _encoder_params(self, d_model: int) -> int:
        each = d_model + 4 * d_model * self._width(d_model)
        if self.encoder_ff is not None:
            each += d_model + SwiGLU(d_ff=self.encoder_ff).cost(d_model, 1).params
        return self.encoder * each

    def _looks(self, d_model: int, tokens: int, queries: int, known: bool) -> Cost:
        """Of tokens that look into one set of neighbours each, filled up to so many queries, whose
        places may be `known` when the program is made.
        """
        width, pairs = self._width(d_model), queries * self.retrieval.tokens
        size = self.head_size(d_model)
        angles = 0 if known else rope_flops(size, 0, False) // 2  # of queries alone
        turned = rope_flops(size, self.n_heads, True) + angles
        return Cost(
            matmul_flops=4 * d_model * width * tokens + 4 * width * pairs,
            elementwise_flops=queries * turned + pairs * self.n_heads * (SOFTMAX + 1),
        )


class EncoderLayer(nnx.Module):
    """Bidirectional attention within each neighbour, and a SwiGLU if there is one."""

    def __init__(self, config: ChunkedCrossAttention, d_model: int, *, init: Init):
        width = config.n_heads * config.head_size(d_model)
        self.heads, self.base = config.n_heads, config.rope_base
        self.norm = RMSNorm(d_model, init=init)
        self.q = Linear(d_model, width, init=init)
        self.k = Linear(d_model, width, init=init)
        self.v = Linear(d_model, width, init=init)
        self.out = Linear(width, d_model, axes="id", init=init)
        ff = config.encoder_ff
        self.channel_norm = None if ff is None else RMSNorm(d_model, init=init)
        self.channel = None if ff is None else SwiGLU(d_ff=ff).build(d_model, init=init)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        normed, places = self.norm(x), np.arange(x.shape[1])
        q, k, v = (_heads(w(normed), self.heads) for w in (self.q, self.k, self.v))
        q, k = (_turned(z, places, self.base) for z in (q, k))
        x = x + self.out(_look(q, k, v))
        if self.channel is not None and self.channel_norm is not None:
            x = x + self.channel(self.channel_norm(x))[0]
        return x


class CrossAttention(Mixer):
    def __init__(self, config: ChunkedCrossAttention, d_model: int, *, init: Init):
        self.config = config
        self.d_head = config.head_size(d_model)
        width = config.n_heads * self.d_head
        self.encoder = nnx.List(
            [EncoderLayer(config, d_model, init=init) for _ in range(config.encoder)]
        )
        self.norm = RMSNorm(d_model, init=init)
        self.q = Linear(d_model, width, init=init)
        self.k = Linear(d_model, width, init=init)
        self.v = Linear(d_model, width, init=init)
        self.out = Linear(width, d_model, axes="id", init=init)

    def forward(
        self, x: Float[Array, "b t d"], cross: CrossLayerState, position: Position = None
    ) -> tuple[Float[Array, "b t d"], CrossLayerState]:
        """Of rows with the neighbours of each of their chunks, (b, chunks, tokens, d)."""
        m, (batch, t, _) = self.config.chunk, x.shape
        if t < m:
            return jnp.zeros_like(x), cross
        keys, values = self._read(rearrange(cross["neighbours"], "b n s d -> (b n) s d"))
        q = jnp.pad(self.q(x[:, m - 1 :]), ((0, 0), (0, t // m * m - (t - m + 1)), (0, 0)))
        q = _heads(rearrange(q, "b (n c) i -> (b n) c i", c=m), self.config.n_heads)
        y = _look(_turned(q, m - 1 + np.arange(m), self.config.rope_base), keys, values)
        y = self.out(rearrange(y, "(b n) c i -> b (n c) i", b=batch)[:, : t - m + 1])
        return jnp.pad(y, ((0, 0), (m - 1, 0), (0, 0))), cross

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.config.n_heads, self.config.retrieval.tokens, self.d_head)
        none = jnp.zeros(batch, jnp.int32)
        return {
            "k": jnp.zeros(shape, dtype),
            "v": jnp.zeros(shape, dtype),
            "position": none,
            "sets": none,
        }

    def read(self, state: State, neighbours: Float[Array, "b s d"]) -> State:
        """In the place of those before. Raises UserError if the next token is known to end none."""
        due = self.room(state)
        if not isinstance(due, jax.core.Tracer) and (due != 0).any():
            raise UserError(
                f"neighbours are read before the token that ends a chunk, and {due.max()} tokens "
                f"come before that one; give those first"
            )
        keys, values = self._read(neighbours)
        return state | {
            "k": keys.astype(state["k"].dtype),
            "v": values.astype(state["v"].dtype),
            "sets": state["sets"] + 1,
        }

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        """Tokens that see the neighbours which were read last, or none; those beyond are NaN."""
        m, position, sets = self.config.chunk, state["position"], state["sets"]
        here = position[:, None] + 1 + jnp.arange(x.shape[1])[None]  # tokens, with each one's own
        q = _heads(self.q(x), self.config.n_heads)
        q = _turned(q, (m - 1 + here % m)[:, None], self.config.rope_base)
        y = self.out(_look(q, state["k"].astype(q.dtype), state["v"].astype(q.dtype)))
        y = jnp.where((sets > 0)[:, None, None], y, 0)
        late = here // m != sets[:, None]
        if lengths is not None:  # padding stays finite
            late = late & is_real(lengths, x.shape[1])
        after = state | {"position": position + lengths_of(x, lengths)}
        return after, jnp.where(late[..., None], jnp.nan, y)

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        state, y = self.prefill(x[:, None], state)
        return state, y[:, 0]

    def room(self, state: State) -> Int[Array, " b"]:
        """Tokens before the one that ends a chunk, whose neighbours are to be read first."""
        return (state["sets"] + 1) * self.config.chunk - 1 - state["position"]

    def _read(
        self, x: Float[Array, "b s d"]
    ) -> tuple[Float[Array, "b h s k"], Float[Array, "b h s k"]]:
        """Keys and values of one set of neighbours a row."""
        k, r = self.config.nearest, self.config.length
        x = rearrange(x, "b (k r) d -> (b k) r d", k=k)
        for layer in self.encoder:
            x = layer(x)
        x = self.norm(rearrange(x, "(b k) r d -> b (k r) d", k=k))
        keys, values = (_heads(w(x), self.config.n_heads) for w in (self.k, self.v))
        return _turned(keys, np.tile(np.arange(r), k), self.config.rope_base), values


def _heads(x: Float[Array, "b t i"], heads: int) -> Float[Array, "b h t k"]:
    return rearrange(x, "b t (h k) -> b h t k", h=heads)


def _turned(x: Float[Array, "b h t k"], places: Any, base: float) -> Float[Array, "b h t k"]:
    return rope(x, places, frequencies(x.shape[-1], base, None))


def _look(
    q: Float[Array, "b h t k"], k: Float[Array, "b h s k"], v: Float[Array, "b h s k"]
) -> Float[Array, "b t i"]:
    """Attention to all keys."""
    every = jnp.ones((1, 1, 1, q.shape[2], k.shape[2]), bool)
    return rearrange(reference(q, k, v, every), "b h t k -> b t (h k)")
