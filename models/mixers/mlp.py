"""The two MLPs of dense models.

SwiGLU   out(silu(gate(x)) ⊙ up(x))    (Shazeer 2020, 2002.05202, §2); with `activation="gelu"` its
                                       GEGLU, gelu in the tanh form as in Gemma
GELU     out(gelu(up(x)))              with biases and the tanh form of gelu, as in GPT-2
                                       (Hendrycks & Gimpel 2016, 1606.08415; Radford et al. 2019)
"""

from __future__ import annotations

from typing import Literal

import jax
from jaxtyping import Array, Float
from pydantic import PositiveInt

from isoflop.models.base import Aux, Channel, ChannelConfig, Cost, Init
from isoflop.models.kernels.xla_cpu import product, rematerialise
from isoflop.models.layers import GELU, SILU, Linear


class SwiGLU(ChannelConfig):
    kind: Literal["swiglu"] = "swiglu"
    d_ff: PositiveInt
    activation: Literal["silu", "gelu"] = "silu"
    bias: bool = False

    def build(self, d_model: int, *, init: Init) -> GatedMlp:
        return GatedMlp(self, d_model, init=init)

    def cost(self, d_model: int, tokens: int) -> Cost:
        weights = 3 * d_model * self.d_ff
        params = weights + self.bias * (d_model + 2 * self.d_ff)
        hidden = {"silu": SILU, "gelu": GELU}[self.activation] + 1
        return Cost(
            matmul_flops=2 * weights * tokens,
            elementwise_flops=tokens * (self.d_ff * hidden + params - weights),  # and biases
            params=params,
            active_params=params,
        )


class GatedMlp(Channel):
    def __init__(self, config: SwiGLU, d_model: int, *, init: Init):
        self.activation = {"silu": jax.nn.silu, "gelu": jax.nn.gelu}[config.activation]
        self.gate = Linear(d_model, config.d_ff, init=init, bias=config.bias)
        self.up = Linear(d_model, config.d_ff, init=init, bias=config.bias)
        self.out = Linear(config.d_ff, d_model, axes="id", init=init, bias=config.bias)

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        def hidden_out(gate, up, kernel):
            return product(self.activation(gate) * up, kernel)

        y = rematerialise(hidden_out, self.gate(x), self.up(x), self.out.kernel.astype(x.dtype))
        return self.out.biased(y), {}


class Gelu(ChannelConfig):
    kind: Literal["gelu"] = "gelu"
    d_ff: PositiveInt
    bias: bool = True

    def build(self, d_model: int, *, init: Init) -> GeluMlp:
        return GeluMlp(d_model, self.d_ff, self.bias, init=init)

    def cost(self, d_model: int, tokens: int) -> Cost:
        weights = 2 * d_model * self.d_ff
        params = weights + self.bias * (d_model + self.d_ff)
        return Cost(
            matmul_flops=2 * weights * tokens,
            elementwise_flops=tokens * (self.d_ff * GELU + params - weights),  # and biases
            params=params,
            active_params=params,
        )


class GeluMlp(Channel):
    def __init__(self, d_model: int, d_ff: int, bias: bool, *, init: Init):
        self.up = Linear(d_model, d_ff, init=init, bias=bias)
        self.out = Linear(d_ff, d_model, axes="id", init=init, bias=bias)

    def __call__(self, x: Float[Array, "b t d"]) -> tuple[Float[Array, "b t d"], Aux]:
        return self.out(jax.nn.gelu(self.up(x), approximate=True)), {}
