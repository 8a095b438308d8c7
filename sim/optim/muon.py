"""Muon: momentum of each hidden matrix, orthogonalised (Jordan et al. 2024, Muon).

    M ← β M + (1 − β) G;   O = NewtonSchulz(β M + (1 − β) G) ≈ U Vᵀ of M = U S Vᵀ
    W ← W − lr · (√max(1, d_out / d_in) · O + weight_decay · W)

Matrices inside blocks take it, each matrix of a stack (experts, blocks of a diagonal) by itself;
the embedding, the head and vectors take Adam at rates of their own. O has spectral norm about 1, so
with that shape factor `lr` does not depend on the width (Bernstein & Newhouse 2024, 2409.20325).
A fused matrix (queries, keys and values in one) is orthogonalised as one. A Newton-Schulz step of
an m × n matrix, m ≤ n, takes 4m²n + 2m³ FLOPs whatever the batch: at few tokens a step they are a
large part of training, and count as executed.
"""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar, Literal

import jax
import optax
from flax import nnx
from optax.contrib import MuonDimensionNumbers, scale_by_muon
from pydantic import Field, PositiveFloat, PositiveInt

from isoflop.models.base import Init, Matrix
from isoflop.models.kernels.platforms import full_precision
from isoflop.models.lm import ModelConfig
from isoflop.sim.optim.base import Optim, Params, adam, by_parameter, inside_block


class Muon(Optim):
    """Orthogonalised momentum at rate `lr` for matrices inside blocks; Adam elsewhere, for the head
    at `adam_lr`, which falls as base_width / d_model.
    """

    kind: Literal["muon"] = "muon"
    adam_lr: PositiveFloat = 0.01
    momentum: float = Field(0.95, ge=0, lt=1)
    newton_schulz_steps: PositiveInt = 5
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-10  # of Adam's part

    rate_fields: ClassVar = (*Optim.rate_fields, "adam_lr")

    def matrix_rate(self, path: tuple[str, ...], d_model: int) -> float:
        return self.lr if inside_block(path) else self.adam_lr * self.base_width / d_model

    def matmul_flops(self, model: ModelConfig) -> int:
        params = nnx.state(nnx.eval_shape(lambda: model.build(init=Init(None))))
        total = 0
        for path, variable in nnx.to_flat_state(params):
            if _is_hidden_matrix(tuple(map(str, path)), variable):
                shape = variable.get_value().shape
                m, n = sorted(shape[-2:])
                total += math.prod(shape[:-2]) * (4 * m * m * n + 2 * m**3)
        return self.newton_schulz_steps * total

    def own_direction(self, model: ModelConfig, params: Params) -> optax.GradientTransformation:
        where = partial(by_parameter, params=params)
        hidden = where(_is_hidden_matrix)
        muon = scale_by_muon(
            ns_steps=self.newton_schulz_steps,
            beta=self.momentum,
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: LAST_TWO, tree),
        )
        orthogonal = optax.chain(
            optax.GradientTransformation(muon.init, full_precision(muon.update)),
            optax.stateless(lambda updates, _: jax.tree.map(_by_shape, updates)),
        )
        return optax.chain(
            optax.masked(orthogonal, hidden),
            optax.masked(
                adam(self.b1, self.b2, self.eps, self, model, params),
                where(lambda path, v: not _is_hidden_matrix(path, v)),
            ),
        )


LAST_TWO = MuonDimensionNumbers(reduction_axis=(-2,), output_axis=(-1,))  # others are a stack


def _is_hidden_matrix(path: tuple[str, ...], variable: nnx.Variable) -> bool:
    return isinstance(variable, Matrix) and inside_block(path)


def _by_shape(update: jax.Array) -> jax.Array:
    d_in, d_out = update.shape[-2:]
    return math.sqrt(max(1.0, d_out / d_in)) * update
