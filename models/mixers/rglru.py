"""Griffin's recurrent block around the RG-LRU (De et al. 2024, 2402.19427, §2.4).

    r_t = σ(W_a x_t + b_a)      i_t = σ(W_x x_t + b_x)      log a_t = −8 r_t softplus(Λ)
    h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ x_t)
    block(x) = W_out (gelu(W_y x) ⊙ RG-LRU(conv(W_x' x)))

W_a and W_x are block-diagonal with n_heads blocks. As RecurrentGemma runs it, the first token
enters with weight 1 in place of √(1 − a²); linear maps have biases. Paper → here: D_RNN → d_rnn,
c → GATE_POWER. Not included: complex-valued gates (appendix B).
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float
from pydantic import PositiveInt

from isoflop.models.base import Cost, Init, Matrix, Mixer, MixerConfig, State
from isoflop.models.errors import check_multiple
from isoflop.models.kernels.recurrence import diagonal, diagonal_step, in_chunks
from isoflop.models.kernels.xla_cpu import broadcast_to_batch
from isoflop.models.layers import GELU, SIGMOID, SOFTPLUS, Linear, ShortConv
from isoflop.models.packing import Lengths, Position, lengths_of, pad, restart

GATE_POWER = 8.0
RING = 0.9, 0.999  # initial a^(1/8) lies between, uniform in area
FLOOR = 1e-12  # below it √(1 − a²) has no gradient


class RgLru(MixerConfig):
    kind: Literal["rg_lru"] = "rg_lru"
    n_heads: PositiveInt  # blocks of the gates' matrices
    d_rnn: PositiveInt | None = None  # None: d_model
    d_conv: PositiveInt = 4
    chunk: PositiveInt = 32  # tokens between the states kept for the backward pass

    def width(self, d_model: int) -> int:
        return self.d_rnn or d_model

    def resolved(self, d_model: int) -> RgLru:
        return self.model_copy(update={"d_rnn": self.width(d_model)})

    def check(self, d_model: int) -> None:
        check_multiple("d_rnn", self.width(d_model), "n_heads", self.n_heads)

    def build(self, d_model: int, *, init: Init) -> RecurrentBlock:
        self.check(d_model)
        return RecurrentBlock(self, d_model, init=init)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        width = self.width(d_model)
        weights = 3 * d_model * width + 2 * width * width // self.n_heads
        # biases of the three maps and two gates; Λ; conv taps and bias
        params = weights + (4 * width + d_model) + width + width * (self.d_conv + 1)
        # biases 4, gates 2, log a 2, a 1, √(1 − a²) 3, gated input 2, product with gelu
        local = width * (4 + 2 * SIGMOID + 2 + 1 + 3 + 2 + GELU + 1) + d_model
        local += ShortConv.flops(width, self.d_conv)
        _, padded = in_chunks(seq_len, self.chunk)
        once = width * SOFTPLUS  # of Λ
        return Cost(
            matmul_flops=2 * weights * seq_len,
            elementwise_flops=local * seq_len + 2 * width * padded + once,
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self.cost(d_model, 1)

    def state_size(self, d_model: int, context: int) -> int:
        """The state, the convolution's last inputs, and whether a token came before."""
        return self.width(d_model) * self.d_conv + 1


class RecurrentBlock(Mixer):
    def __init__(self, config: RgLru, d_model: int, *, init: Init):
        self.config = config
        self.width = width = config.width(d_model)
        self.branch = Linear(d_model, width, init=init, bias=True)
        self.inward = Linear(d_model, width, init=init, bias=True)
        self.conv = ShortConv(width, config.d_conv, init=init)
        self.decay_gate = BlockDiagonal(width, config.n_heads, init=init)
        self.input_gate = BlockDiagonal(width, config.n_heads, init=init)
        self.decay = nnx.Param(init.draw((width,), self._initial_decay))
        self.out = Linear(width, d_model, axes="id", init=init, bias=True)

    def _initial_decay(self, rng: np.random.Generator) -> np.ndarray:
        low, high = RING
        log_a = 0.5 * np.log(rng.uniform(low**2, high**2, self.width))
        return np.log(np.expm1(-log_a))

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        place = jnp.arange(x.shape[1])[None] if position is None else position
        u = self.conv(self.inward(x), position)
        decay, inflow = self._gates(u, place[..., None] == 0)
        decay = restart(decay, position, 0.0)
        return self._finish(diagonal(decay, inflow, self.config.chunk)[1], x)

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        conv, u = self.conv.prefill(self.inward(x), state["conv"], lengths)
        first = (state["first"] == 1) & (jnp.arange(x.shape[1])[None] == 0)
        decay, inflow = self._gates(u, first[..., None])
        decay, inflow = pad(decay, lengths, 1.0), pad(inflow, lengths)
        h, states = diagonal(decay, inflow, self.config.chunk, state["h"])
        first = jnp.where(lengths_of(x, lengths)[:, None] > 0, 0, state["first"])
        return {"conv": conv, "h": h, "first": first}, self._finish(states, x)

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        return {
            "conv": self.conv.init_state(batch, dtype),
            "h": jnp.zeros((batch, self.width), jnp.float32),
            "first": jnp.ones((batch, 1), jnp.int32),
        }

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        conv, u = self.conv.step(state["conv"], self.inward(x))
        h, _ = diagonal_step(state["h"], self._gates(u, state["first"] == 1))
        after = {"conv": conv, "h": h, "first": jnp.zeros_like(state["first"])}
        return after, self._finish(h, x)

    def _gates(self, u: Float[Array, "*batch i"], first: Bool[Array, "*first 1"]):
        """a and √(1 − a²) ⊙ i ⊙ u, in fp32."""
        r = jax.nn.sigmoid(self.decay_gate(u).astype(jnp.float32))
        i = jax.nn.sigmoid(self.input_gate(u).astype(jnp.float32))
        log_a = -GATE_POWER * r * broadcast_to_batch(jax.nn.softplus(self.decay[...]), r)
        scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), FLOOR))
        return jnp.exp(log_a), jnp.where(first, 1.0, scale) * i * u.astype(jnp.float32)

    def _finish(self, h: Float[Array, "*batch i"], x: Float[Array, "*batch d"]):
        return self.out(h.astype(x.dtype) * jax.nn.gelu(self.branch(x)))


class BlockDiagonal(nnx.Module):
    """y = x W + b with W block-diagonal: n_heads blocks, each on its own channels."""

    def __init__(self, width: int, n_heads: int, *, init: Init):
        size = width // n_heads
        self.kernel = Matrix(init.normal((n_heads, size, size), size**-0.5), axes="ikv")
        self.bias = nnx.Param(init.full((width,), 0.0))

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch i"]:
        kernel = self.kernel.astype(x.dtype)
        heads = rearrange(x, "... (h k) -> ... h k", h=kernel.shape[0])
        y = rearrange(jnp.einsum("...hk,hkv->...hv", heads, kernel), "... h v -> ... (h v)")
        return y + broadcast_to_batch(self.bias.astype(x.dtype), y)
