"""Loss of models of which most weights are zero, in what is left of them.

    Sparse   L = (a_S s^b_S + c_S) N^−b_N + (a_D / D)^b_D + c   Frantar 2309.08520, eq. 1

s is the share of the weights that stay, one less the sparsity, and N counts those that stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from isoflop.sim.laws.fit import Fittable
from isoflop.sim.laws.law import Value, asymptote_of, boxed, grid
from isoflop.sim.laws.resample import Floats, Form, linear_terms


@dataclass(frozen=True)
class Sparse(Fittable):
    """L = (a_S s^b_S + c_S) N^−b_N + (a_D / D)^b_D + c; s is the share of weights that stay, N
    their number (Frantar et al. 2023, eq. 1).
    """

    a_S: Value
    b_S: Value
    c_S: Value
    b_N: Value
    a_D: Value
    b_D: Value
    c: Value

    inputs: ClassVar = ("N", "D", "kept")
    levels: ClassVar = {"N": 3, "D": 3, "kept": 3}

    def __call__(self, N: Any, D: Any, kept: Any) -> Any:
        N, D, kept = (np.asarray(v, dtype=float) for v in (N, D, kept))
        capacity = (self.a_S * kept**self.b_S + self.c_S) * N**-self.b_N
        return capacity + (self.a_D / D) ** self.b_D + self.c

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        n, d, kept = (np.log(v) for v in x)
        design = np.zeros((len(y), 4, 7))  # θ: three coefficients, c, b_S, b_N, b_D
        design[:, range(4), range(4)] = 1.0
        design[:, 0, 4] = kept
        design[:, 0, 5] = design[:, 1, 5] = n.mean() - n
        design[:, 2, 6] = d.mean() - d
        middle = [y.mean() - 1.5]
        starts = grid(
            middle, middle, middle, [y.min() - 0.4, y.min() - 1.5],
            [0.3, 0.8, 1.5], [0.1, 0.25, 0.6], [0.1, 0.25, 0.6],
        )  # fmt: skip
        return boxed(linear_terms(design), y, "cccexxx"), starts

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Sparse:
        a, k, d, e, b_S, b_N, b_D = theta.T
        n, m = np.log(x[0]).mean(), np.log(x[1]).mean()
        with np.errstate(divide="ignore", over="ignore"):
            a_D = np.exp(d / b_D + m)
        return cls(np.exp(a + b_N * n), b_S, np.exp(k + b_N * n), b_N, a_D, b_D, asymptote_of(e))
