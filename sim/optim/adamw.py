"""AdamW (Loshchilov & Hutter 2017, 1711.05101) with muP's rule for the width.

The rate of a matrix is lr · base_width / d_model (Yang et al. 2022, 2203.03466, table 3).
"""

from __future__ import annotations

from typing import ClassVar, Literal

import optax
from pydantic import Field, PositiveFloat

from isoflop.models.lm import ModelConfig
from isoflop.sim.optim.base import Optim, Params, adam


class AdamW(Optim):
    """Adam with decoupled weight decay; the rate of a matrix falls as base_width / d_model."""

    kind: Literal["adamw"] = "adamw"
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-10

    implied: ClassVar[bool] = True  # runs from before there were others name no kind

    def matrix_rate(self, path: tuple[str, ...], d_model: int) -> float:
        return self.lr * self.base_width / d_model

    def own_direction(self, model: ModelConfig, params: Params) -> optax.GradientTransformation:
        return adam(self.b1, self.b2, self.eps, self, model, params)
