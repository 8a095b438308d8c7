"""The recurrent networks that attention replaced, and a modern one that runs in parallel.

    LSTM     i, f, o = σ(W x_t + U h_{t−1} + b)      g = tanh(W x_t + U h_{t−1} + b)
             c_t = f ⊙ c_{t−1} + i ⊙ g               h_t = o ⊙ tanh(c_t)
    minGRU   z = σ(W_z x_t)      h_t = (1 − z) ⊙ h_{t−1} + z ⊙ g(W_h x_t)

LSTM: Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, as in Graves 2013
(1308.0850) without peepholes; gates in the order i, f, g, o, forget bias 1 (Jozefowicz et al.
2015). Its time loop cannot be parallelised: the state enters the gates through U. minGRU: Feng et
al. 2024 (2410.01201, §3.1), log-space form with g(x) = x + ½ for x ≥ 0 and σ(x) below; here the
same recurrence as a scan. Both widths are d_hidden, followed by a projection to d_model. Not
included: minGRU's short convolution, layer-wise dropout.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float
from pydantic import PositiveInt

from isoflop.models.base import Cost, Init, Matrix, Mixer, MixerConfig, State
from isoflop.models.kernels.recurrence import diagonal, diagonal_step, in_chunks
from isoflop.models.kernels.xla_cpu import broadcast_to_batch
from isoflop.models.layers import Linear
from isoflop.models.packing import Lengths, Position, is_real, kept, lengths_of, pad, restart


class Lstm(MixerConfig):
    kind: Literal["lstm"] = "lstm"
    d_hidden: PositiveInt | None = None  # None: d_model
    chunk: PositiveInt = 32  # tokens between the states kept for the backward pass

    def hidden(self, d_model: int) -> int:
        return self.d_hidden or d_model

    def build(self, d_model: int, *, init: Init) -> LongShortTerm:
        return LongShortTerm(self, d_model, init=init)

    def _cost(self, d_model: int, tokens: int, steps: int) -> Cost:
        """`steps` counts the tokens that pad the last chunk as well: they are computed."""
        size = self.hidden(d_model)
        outside, inside = 5 * d_model * size, 4 * size * size
        params = outside + inside + 4 * size
        return Cost(
            matmul_flops=2 * (outside * tokens + inside * steps),
            # bias; gates' sum, 3 σ and tanh, c 3, tanh and h
            elementwise_flops=4 * size * tokens + (4 + 4 + 3 + 2) * size * steps,
            params=params,
            active_params=params,
        )

    def cost(self, d_model: int, seq_len: int) -> Cost:
        return self._cost(d_model, seq_len, in_chunks(seq_len, self.chunk)[1])

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self._cost(d_model, 1, 1)

    def state_size(self, d_model: int, context: int) -> int:
        return 2 * self.hidden(d_model)


class LongShortTerm(Mixer):
    def __init__(self, config: Lstm, d_model: int, *, init: Init):
        self.config = config
        self.size = size = config.hidden(d_model)
        self.inward = Linear(d_model, 4 * size, init=init)
        self.across = Matrix(init.normal((size, 4 * size), size**-0.5), axes="di")
        forget = np.repeat([0.0, 1.0, 0.0, 0.0], size)
        self.bias = nnx.Param(init.draw((4 * size,), lambda rng: forget))
        self.out = Linear(size, d_model, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        state = self.init_state(x.shape[0], x.shape[1])
        return self._scan(x, state, kept(position), None)[1]

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        return self._scan(x, state, None, is_real(lengths_of(x, lengths), x.shape[1])[..., None])

    def _scan(
        self,
        x: Float[Array, "b t d"],
        state: State,
        keep: Float[Array, "b t 1"] | None,
        real: Bool[Array, "b t 1"] | None,
    ) -> tuple[State, Float[Array, "b t d"]]:
        """The state after the last token, right where `real` tells padding apart, and outputs."""
        length = x.shape[1]
        chunk = min(self.config.chunk, length)
        across = jnp.asarray(self.across[...])

        def split(x: Array) -> Array:
            x = jnp.pad(x, ((0, 0), (0, -length % chunk), (0, 0)))
            return rearrange(x, "b (n c) i -> n c b i", c=chunk)

        def token(state: State, inputs):
            gates, keep, real = inputs
            if keep is not None:
                state = jax.tree.map(lambda s: keep * s, state)
            after, h = _cell(across, state, gates)
            if real is not None:
                after = jax.tree.map(partial(jnp.where, real), after, state)
            return after, h

        inputs = jax.tree.map(split, (self._gates(x), keep, real))
        state, h = jax.lax.scan(jax.checkpoint(partial(jax.lax.scan, token)), state, inputs)
        h = rearrange(h, "n c b i -> b (n c) i")[:, :length]
        return state, self.out(h.astype(x.dtype))

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        shape = (batch, self.size)
        return {"c": jnp.zeros(shape, jnp.float32), "h": jnp.zeros(shape, jnp.float32)}

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        state, h = _cell(jnp.asarray(self.across[...]), state, self._gates(x))
        return state, self.out(h.astype(x.dtype))

    def _gates(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch i"]:
        """What the token alone gives the four gates, in fp32."""
        gates = self.inward(x).astype(jnp.float32)
        return gates + broadcast_to_batch(self.bias[...], gates)


def _cell(
    across: Float[Array, "j i"], state: State, gates: Float[Array, "b i"]
) -> tuple[State, Float[Array, "b j"]]:
    i, f, g, o = jnp.split(gates + state["h"] @ across, 4, axis=-1)
    c = jax.nn.sigmoid(f) * state["c"] + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return {"c": c, "h": h}, h


class MinGru(MixerConfig):
    kind: Literal["mingru"] = "mingru"
    expand: PositiveInt = 1  # d_hidden / d_model
    chunk: PositiveInt = 32  # tokens between the states kept for the backward pass

    def build(self, d_model: int, *, init: Init) -> MinimalGru:
        return MinimalGru(self, d_model, init=init)

    def cost(self, d_model: int, seq_len: int) -> Cost:
        size = self.expand * d_model
        params = 3 * d_model * size
        _, padded = in_chunks(seq_len, self.chunk)
        return Cost(
            matmul_flops=2 * params * seq_len,
            # z, 1 − z, g 2, z·g; then a·h + u
            elementwise_flops=5 * size * seq_len + 2 * size * padded,
            params=params,
            active_params=params,
        )

    def step_cost(self, d_model: int, context: int) -> Cost:
        return self.cost(d_model, 1)

    def state_size(self, d_model: int, context: int) -> int:
        return self.expand * d_model


class MinimalGru(Mixer):
    def __init__(self, config: MinGru, d_model: int, *, init: Init):
        self.config = config
        self.size = size = config.expand * d_model
        self.gate = Linear(d_model, size, init=init)
        self.candidate = Linear(d_model, size, init=init)
        self.out = Linear(size, d_model, axes="id", init=init)

    def __call__(
        self, x: Float[Array, "b t d"], position: Position = None
    ) -> Float[Array, "b t d"]:
        decay, inflow = self._inputs(x)
        _, h = diagonal(restart(decay, position, 0.0), inflow, self.config.chunk)
        return self.out(h.astype(x.dtype))

    def prefill(
        self, x: Float[Array, "b t d"], state: State, lengths: Lengths = None
    ) -> tuple[State, Float[Array, "b t d"]]:
        decay, inflow = self._inputs(x)
        decay, inflow = pad(decay, lengths, 1.0), pad(inflow, lengths)
        state, h = diagonal(decay, inflow, self.config.chunk, state)
        return state, self.out(h.astype(x.dtype))

    def init_state(self, batch: int, context: int, dtype: Any = jnp.float32) -> State:
        return jnp.zeros((batch, self.size), jnp.float32)

    def step(self, state: State, x: Float[Array, "b d"]) -> tuple[State, Float[Array, "b d"]]:
        state, h = diagonal_step(state, self._inputs(x))
        return state, self.out(h.astype(x.dtype))

    def _inputs(self, x: Float[Array, "*batch d"]):
        """The decay 1 − z and the inflow z ⊙ g, in fp32."""
        z = self.gate(x).astype(jnp.float32)
        u = self.candidate(x).astype(jnp.float32)
        candidate = jnp.where(u >= 0, u + 0.5, jax.nn.sigmoid(u))
        return jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * candidate
