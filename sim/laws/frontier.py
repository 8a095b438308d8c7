"""The least loss that a cost buys: of runs their lower envelope, of a surface its minimum along the
cost of its own configurations.

    min E + A/N^α + B/D^β  over N and D  with  C(N, D) = C        C: `sim.laws.cost_model`

A step along equal cost leaves the loss as it is where αA·N^−α/k(N) = βB·D^−β/b, with k and b the
powers by which C grows with N and D there. For each N this gives D, so the optima are a path with N
along it, on which cost and loss are monotone; Newton's method finds the N of either.
For C = 6·N·D it is Hoffmann et al. 2022 (2203.15556), eq. 4, in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.sim.laws.cost_model import CostModel
from isoflop.sim.laws.resample import Floats

STEPS = 60
LONGEST = 8.0  # of a step in log N
CLOSE = 1e-12


def lower_envelope(cost: Floats, loss: Floats) -> NDArray[np.intp]:
    """Rows, by rising cost, that no cheaper or equally cheap row beats."""
    order = np.lexsort((loss, cost))
    best = np.minimum.accumulate(np.concatenate([[np.inf], loss[order][:-1]]))
    return order[loss[order] < best]


@dataclass(frozen=True)
class Frontier:
    """Loss over cost; called and inverted as a `PowerLaw`, with draws in the last axis.

    `law` has E, A, B, α and β, as a Chinchilla surface has.
    """

    law: Any
    cost: CostModel

    def __call__(self, C: Any) -> Any:
        return self.law(*self.optimal(C))

    def optimal(self, C: Any) -> tuple[Any, Any]:
        """(N, D) of least loss at a cost."""
        target = np.log(np.asarray(C, dtype=float))

        def gap(n: Any) -> tuple[Any, Any]:
            g, k, bend = self.cost.size(n)
            along = self.cost.tokens * (self.law.alpha + bend / k) / self.law.beta
            return self.cost.tokens * self._log_d(n) + g - target, along + k

        with np.errstate(all="ignore"):  # α, β or B of a draw may be zero: its optimum is nan
            n = _root(gap, target / 2.0)
            # D from the cost itself, so that the point is at C to rounding
            return np.exp(n), np.exp(self.cost.log_tokens(target, n))

    def inverse(self, loss: Any) -> Any:
        """The cost at which the loss is reached; infinite at or below the asymptote."""
        law, b = self.law, self.cost.tokens
        with np.errstate(all="ignore"):
            excess = np.asarray(loss, dtype=float) - law.E
            target = np.log(np.where(excess > 0, excess, np.nan))

            def gap(n: Any) -> tuple[Any, Any]:
                _, k, bend = self.cost.size(n)
                other = law.alpha * b / (law.beta * k)  # B·D^−β over A·N^−α
                slope = -law.alpha - other / (1.0 + other) * bend / k
                return np.log(law.A) - law.alpha * n + np.log1p(other) - target, slope

            n = _root(gap, (np.log(law.A) - target) / law.alpha)
            cost = np.exp(b * self._log_d(n) + self.cost.size(n)[0])
        return np.where(excess > 0, cost, np.inf)

    def _log_d(self, n: Any) -> Any:
        """log D of the optimum whose size is n."""
        law, (_, k, _) = self.law, self.cost.size(n)
        worth = np.log(law.beta * law.B * k / (law.alpha * law.A * self.cost.tokens))
        return (law.alpha * n + worth) / law.beta

    def take(self, order: NDArray[np.intp]) -> Frontier:
        """The draws in another order."""
        values = {name: np.asarray(v)[order] for name, v in self.law.params_raw().items()}
        return replace(self, law=type(self.law)(**values), cost=self.cost.take(order))


def _root(gap: Callable[[Any], tuple[Any, Any]], start: Any) -> Any:
    """Where a monotone function, given with its slope, is zero."""
    n = start
    for _ in range(STEPS):
        value, slope = gap(n)
        step = np.clip(-value / slope, -LONGEST, LONGEST)
        n = n + step
        if not (np.abs(step) > CLOSE * np.maximum(1.0, np.abs(n))).any():
            break
    return n
