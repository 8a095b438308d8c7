"""Prune: weights set to zero, or whole parts of a model taken out.

A mask is stored as one bit for each weight beside those that are left; it claims neither FLOPs nor
seconds, for no device here computes less by it. What is taken out whole is: the model that is left
is a smaller one, and costs what such a model costs.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from pydantic import Field, PositiveInt, model_validator

from isoflop.models.base import Sizes
from isoflop.models.errors import UserError
from isoflop.sim.treatments.base import Leaf, Subject, Treatment
from isoflop.sim.treatments.quantise import moments_of


class Prune(Treatment, Sizes):
    """The least important weights of every matrix but the head set to zero; embeddings stay.

    Importance is |w| over the matrix (`magnitude`), or |w|·‖x‖ among one output's weights, with
    ‖x‖ of the input channel on training text (`wanda`: Sun et al. 2023, 2306.11695, §3). `pattern`
    2:4 keeps the two most important of every four neighbours along the axis that is summed over.
    """

    kind: Literal["prune"] = "prune"
    sparsity: float = Field(0.5, ge=0, lt=1)  # share of the weights that become zero
    method: Literal["magnitude", "wanda"] = "magnitude"
    pattern: Literal["free", "2:4"] = "free"
    calibration: PositiveInt = 32  # sequences of the training split that `wanda` reads

    @model_validator(mode="after")
    def _pattern_is_half(self) -> Prune:
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError(f"the pattern 2:4 has sparsity=0.5, and not {self.sparsity}")
        return self

    def apply(self, subject: Subject) -> Subject:
        if self.sparsity == 0:
            return subject
        moments = moments_of(subject, self.calibration) if self.method == "wanda" else {}
        kept: dict[str, int] = {}

        def change(leaf: Leaf) -> Any:
            value = leaf.value
            if not _prunable(leaf):
                return value
            mask = self._mask(leaf, value, moments.get(leaf.path))
            kept[leaf.path] = int(mask.sum())
            return jnp.where(mask, value, 0)

        pruned = subject.rewrite(change)
        return pruned.to(kept={**subject.kept, **kept})

    def _mask(self, leaf: Leaf, value: Any, moments: Any) -> np.ndarray:
        """Which weights (…, i, o) stay."""
        weights = np.abs(np.asarray(value, np.float64))
        if self.method == "wanda":
            if moments is None:
                raise UserError(
                    f"{leaf.path} is multiplied inside a loop over time, where its inputs are not "
                    "seen; use method magnitude"
                )
            norms = np.sqrt(np.diagonal(moments, axis1=-2, axis2=-1))  # (e or 1, i)
            weights = weights * norms.reshape(*norms.shape[:1] * (value.ndim - 2), -1, 1)
        if self.pattern == "2:4":
            return _two_of_four(weights)
        if self.method == "wanda":  # among the inputs of each output
            return _largest(weights, -2, self.sparsity)
        flat = weights.reshape(*weights.shape[:-2], -1)
        return _largest(flat, -1, self.sparsity).reshape(weights.shape)


def _prunable(leaf: Leaf) -> bool:
    return leaf.sums is not None and not leaf.embedded and not leaf.path.startswith("head")


def _largest(importance: np.ndarray, axis: int, sparsity: float) -> np.ndarray:
    """All but the `sparsity` least along an axis, ties by place."""
    drop = round(sparsity * importance.shape[axis])
    rank = np.argsort(np.argsort(importance, axis, kind="stable"), axis, kind="stable")
    return rank >= drop


def _two_of_four(importance: np.ndarray) -> np.ndarray:
    inputs = importance.shape[-2]
    if inputs % 4:
        raise UserError(f"the pattern 2:4 needs inputs in fours, and a matrix has {inputs}")
    fours = importance.reshape(*importance.shape[:-2], inputs // 4, 4, -1)
    return _largest(fours, -2, 0.5).reshape(importance.shape)
