"""Scaling laws as values: call them, ask for the optimum, fit them, and hear when data says no.

    PowerLaw     L = E + A / C^α                                 Hestness 1712.00409
    Chinchilla   L = E + A / N^α + B / D^β                       Hoffmann 2203.15556, eq. 2
    Coupled      L = E + (A / N^α + B / D^β)^γ                   Kaplan, eq. 1.5: E = 0, β = 1
    Overtrained  L = E + (a M^η + b M^−η) C^−η, M = D/N          Gadre 2403.08540, eq. 4

from `sim.laws.saturating`,

    Routed       log L = a log N + b log Ê + c log N log Ê + d   Clark 2202.01169, eq. 1
    Repeated     Chinchilla at the effective N′, D′              Muennighoff 2305.16264, eq. 5-6

from `sim.laws.sparse`,

    Sparse       L = (a_S s^b_S + c_S) N^−b_N + (a_D/D)^b_D + c  Frantar 2309.08520, eq. 1

Letters and units are those of `sim.laws.law`; how a fit is made, `sim.laws.fit`. Not included:
broken and shifted power laws, which predict held-out runs no better than Chinchilla's (LOG.md).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.sim.laws.cost_model import SIX_ND, CostModel
from isoflop.sim.laws.fit import Fit, Fittable
from isoflop.sim.laws.frontier import Frontier
from isoflop.sim.laws.law import (
    FLOPS_PER_ND,
    Value,
    asymptote_of,
    boxed,
    grid,
    starts_nd,
    sum_of_powers,
)
from isoflop.sim.laws.resample import Floats, Form
from isoflop.sim.laws.saturating import Repeated, Routed
from isoflop.sim.laws.sparse import Sparse
from isoflop.sim.records.tables import Columns, require

POWERS = (0.1, 0.3, 0.6, 1.0)  # exponents that fits start from


@dataclass(frozen=True)
class PowerLaw(Fittable):
    """L = E + A / C^α; C is any one cost (FLOPs, parameters, seconds). E = 0: no asymptote."""

    A: Value
    alpha: Value
    E: Value = 0.0

    inputs: ClassVar = ("C",)
    levels: ClassVar = {"C": 3}

    def __call__(self, C: Any) -> Any:
        return self.E + self.A * np.asarray(C, dtype=float) ** -self.alpha

    def inverse(self, loss: Any) -> Any:
        """The cost C at which the loss (nats per token) is reached; infinite at or below E."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            excess = np.asarray(loss, dtype=float) - self.E
            cost = np.exp(np.log(np.where(excess > 0, excess, np.nan) / self.A) / -self.alpha)
        return np.where(excess > 0, cost, np.inf)

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        e = (y.min() - 3.0, y.min() - 0.4, y.min() - 0.05)
        starts = grid([y.mean() - 0.7], e, [0.05, 0.2, 0.5, 1.0])
        return boxed(sum_of_powers([np.log(x[0])], [0]), y, "cex"), starts

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> PowerLaw:
        a, e, alpha = theta.T
        return cls(A=np.exp(a + alpha * np.log(x[0]).mean()), alpha=alpha, E=asymptote_of(e))

    def quantities(self, budgets: Sequence[float], cost: CostModel) -> dict[str, Value]:
        return self.params_raw() | {f"L({c:.3g})": self(c) for c in budgets}

    def take(self, order: NDArray[np.intp]) -> PowerLaw:
        """The draws in another order."""
        return PowerLaw(**{k: np.asarray(v)[order] for k, v in self.params_raw().items()})


@dataclass(frozen=True)
class Chinchilla(Fittable):
    """L(N, D) = E + A / N^α + B / D^β (Hoffmann et al. 2022, eq. 2)."""

    E: Value
    A: Value
    B: Value
    alpha: Value
    beta: Value

    inputs: ClassVar = ("N", "D")
    levels: ClassVar = {"N": 3, "D": 3}
    allocates: ClassVar = True

    def __call__(self, N: Any, D: Any) -> Any:
        N, D = np.asarray(N, dtype=float), np.asarray(D, dtype=float)
        return self.E + self.A * N**-self.alpha + self.B * D**-self.beta

    @property
    def a(self) -> Value:
        """N* ∝ C^a where C ∝ N·D (Hoffmann et al. 2022, eq. 4)."""
        return self.beta / (self.alpha + self.beta)

    def optimal(self, C: Any, cost: CostModel = SIX_ND) -> tuple[Any, Any]:
        """(N, D) of least loss among all that cost C (`sim.laws.frontier`)."""
        return Frontier(self, cost).optimal(C)

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        terms = sum_of_powers([np.log(v) for v in x], [0, 1])
        return boxed(terms, y, "ccexx"), starts_nd(y, POWERS, POWERS)

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Chinchilla:
        a, b, e, alpha, beta = theta.T
        A = np.exp(a + alpha * np.log(x[0]).mean())
        return cls(asymptote_of(e), A, np.exp(b + beta * np.log(x[1]).mean()), alpha, beta)

    @classmethod
    def doubt(cls, interval: Mapping[str, tuple[float, float]]) -> str:
        low, high = interval["a"]
        if high - low > 0.5:
            return f"the interval of a is {low:.2f} to {high:.2f}: nearly any allocation fits"
        return ""

    def quantities(self, budgets: Sequence[float], cost: CostModel) -> dict[str, Value]:
        with np.errstate(divide="ignore", invalid="ignore"):
            out = self.params_raw() | {"a": self.a}
        for c in budgets:
            n, d = self.optimal(c, cost)
            out |= {f"N*({c:.3g})": n, f"D*({c:.3g})": d, f"L*({c:.3g})": self(n, d)}
        return out


@dataclass(frozen=True)
class Coupled(Chinchilla):
    """L(N, D) = E + (A / N^α + B / D^β)^γ: γ = 1 is Chinchilla, E = 0 with β = 1 is Kaplan's."""

    gamma: Value = 1.0

    def __call__(self, N: Any, D: Any) -> Any:
        N, D = np.asarray(N, dtype=float), np.asarray(D, dtype=float)
        return self.E + (self.A * N**-self.alpha + self.B * D**-self.beta) ** self.gamma

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        n, d = np.log(x[0]), np.log(x[1])
        n, d = n - n.mean(), d - d.mean()

        def terms(theta: Floats) -> tuple[Floats, Floats]:
            a, b, e, alpha, beta, gamma = theta.T[..., None]
            inner = np.stack([a - alpha * n, b - beta * d], axis=-1)
            total = np.logaddexp.reduce(inner, axis=-1)
            p = np.exp(inner - total[..., None])
            u = np.stack([gamma * total, np.broadcast_to(e, total.shape)], axis=-1)
            du = np.zeros((*u.shape, 6))
            du[..., 0, 0] = gamma * p[..., 0]
            du[..., 0, 1] = gamma * p[..., 1]
            du[..., 0, 3] = -gamma * p[..., 0] * n
            du[..., 0, 4] = -gamma * p[..., 1] * d
            du[..., 0, 5] = total
            du[..., 1, 2] = 1.0
            return u, du

        form = boxed(terms, y, "ccexxx")
        form.lower[[0, 1, 5]], form.upper[[0, 1, 5]] = (-30.0, -30.0, 0.05), (30.0, 30.0, 4.0)
        return form, starts_nd(y, POWERS, POWERS, [0.5, 1.0])

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Coupled:
        base = Chinchilla.unpack(theta[:, :5], x)
        return cls(**base.params_raw(), gamma=theta[:, 5])


@dataclass(frozen=True)
class Overtrained(Fittable):
    """L = E + (a M^η + b M^−η) C^−η with M = D/N and C = 6ND (Gadre et al. 2024, eq. 4).

    The same surface as Chinchilla with α = β = 2η, so N* ∝ C^½ is assumed and not measured.
    """

    E: Value
    a: Value
    b: Value
    eta: Value

    inputs: ClassVar = ("N", "D")
    levels: ClassVar = {"N": 2, "D": 2, "D/N": 2}

    def __call__(self, N: Any, D: Any) -> Any:
        N, D = np.asarray(N, dtype=float), np.asarray(D, dtype=float)
        M, C = D / N, FLOPS_PER_ND * N * D
        return self.E + (self.a * M**self.eta + self.b * M**-self.eta) * C**-self.eta

    @classmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        terms = sum_of_powers(cls._logs(x), [0, 0])
        return boxed(terms, y, "ccex"), starts_nd(y, [0.05, 0.1, 0.2, 0.4])

    @staticmethod
    def _logs(x: Sequence[Floats]) -> list[Floats]:
        """log(C/M) = log 6N² and log(C·M) = log 6D²."""
        return [math.log(FLOPS_PER_ND) + 2.0 * np.log(v) for v in x]

    @classmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Overtrained:
        a, b, e, eta = theta.T
        n, d = cls._logs(x)
        return cls(asymptote_of(e), np.exp(a + eta * n.mean()), np.exp(b + eta * d.mean()), eta)


LAWS: dict[str, type[Fittable]] = {
    "power": PowerLaw,
    "chinchilla": Chinchilla,
    "coupled": Coupled,
    "overtrained": Overtrained,
    "routed": Routed,
    "repeated": Repeated,
    "sparse": Sparse,
}


def fit_table(
    columns: Columns,
    *,
    law: str = "chinchilla",
    n: str = "N",
    d: str = "D",
    loss: str = "loss",
    flops: str | None = None,
    run: str = "run",
    **options: Any,
) -> Fit:
    """Fit a law to any table, given what its columns are called; `options` are those of `fit`.

    The power law is fitted in `flops` if that is named, else in `n`.
    """
    if law not in LAWS:
        raise UserError(f"law must be one of {', '.join(LAWS)}, and is {law!r}")
    if flops is not None:
        require(columns, [flops])
    # no column is called "\0": compute is then 6·N·D
    names = {"N": n, "D": d, "C": flops or n, "loss": loss, "run": run, "flops": flops or "\0"}
    return LAWS[law].fit(LAWS[law].table(columns, names), **options)
