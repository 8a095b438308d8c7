"""What a law is, and the parts laws are made of: centred powers, bounds and starts.

A law is fitted as log L = log Σ_k exp u_k(θ) (`sim.laws.resample`), with its inputs centred in logs
so that coefficients and exponents do not trade off. N parameters, D tokens, C = 6·N·D training
FLOPs unless said otherwise, U unique tokens, L loss in nats per token; which N and which C are the
caller's choice and are printed with the fit. A field may hold an array: a whole bootstrap is the
same law with one entry per draw.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, ClassVar

import numpy as np

from isoflop.sim.laws.cost_model import CostModel
from isoflop.sim.laws.resample import (
    LOG_ZERO,
    Floats,
    Form,
    Solution,
    Terms,
    at_floors,
    linear_terms,
    minimise,
    without,
)

Value = Any  # a float, or an array with one entry per bootstrap draw

FLOPS_PER_ND = 6.0  # Kaplan 2001.08361 §2.1: forward and backward, without attention scores
EXPONENT = (0.0, 4.0)


@dataclass(frozen=True)
class Law(ABC):
    """A frozen, callable loss surface. Subclasses give the formula and its log-space form."""

    inputs: ClassVar[tuple[str, ...]]
    levels: ClassVar[dict[str, int]] = {}  # different values of an input that the form needs
    allocates: ClassVar[bool] = False  # whether it has an optimal N and D along a cost

    @abstractmethod
    def __call__(self, *x: Any) -> Any:
        """Loss in nats per token."""

    @classmethod
    @abstractmethod
    def form(cls, x: Sequence[Floats], y: Floats) -> tuple[Form, Floats]:
        """The law on this data for `sim.laws.resample.minimise`, and the starts (s, p)."""

    @classmethod
    @abstractmethod
    def unpack(cls, theta: Floats, x: Sequence[Floats]) -> Law:
        """θ (b, p) of `form` to the paper's letters, one entry per row."""

    def quantities(self, budgets: Sequence[float], cost: CostModel) -> dict[str, Value]:
        """What a fit reports with intervals; `cost` is what N and D cost, where that matters."""
        return self.params_raw()

    @classmethod
    def doubt(cls, interval: Mapping[str, tuple[float, float]]) -> str:
        """Why intervals as wide as these settle nothing; empty when they do."""
        return ""

    @classmethod
    def cost(cls, x: Sequence[Floats]) -> Floats | None:
        """Compute of each run when no column gives it; None where the form has no such notion."""
        by = dict(zip(cls.inputs, x, strict=True))
        if "C" in by:
            return by["C"]
        return FLOPS_PER_ND * by["N"] * by["D"] if "D" in by else None

    @classmethod
    def solve(
        cls, x: Sequence[Floats], y: Floats, *, asymptote: bool, delta: float, log: bool
    ) -> tuple[Form, Solution]:
        """The form on this data and its minimum from every start."""
        form, starts = cls.form(x, y)
        form = replace(form if asymptote else without(form), log=log)
        return form, minimise(form, y, starts, delta=delta)

    @classmethod
    def floored(cls, x: Sequence[Floats], y: Floats) -> Floored:
        """Asymptotes (b,) ↦ the least-squares law with each, and what it leaves of log L (b, n).

        The free fit that these start from is made at the first call, and once.
        """

        @cache
        def free() -> tuple[Form, Floats]:
            form, found = cls.solve(x, y, asymptote=True, delta=1e3, log=True)
            return form, found.theta[int(np.argmin(found.objective))]

        def at(floors: Floats) -> tuple[Law, Floats]:
            form, start = free()
            theta = at_floors(form, y, start, floors)
            return cls.unpack(theta, x), form.predict(theta) - y

        return at

    def params_raw(self) -> dict[str, Value]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def params(self) -> dict[str, float]:
        return {name: float(value) for name, value in self.params_raw().items()}

    def at(self, i: int) -> Law:
        """The law of one draw, with plain floats."""
        return type(self)(**{k: float(np.asarray(v)[i]) for k, v in self.params_raw().items()})


Floored = Callable[[Floats], tuple[Law, Floats]]


def sum_of_powers(logs: Sequence[Floats], exponents: Sequence[int]) -> Terms:
    """u_k = a_k − x_j (log_k − mean), j = exponents[k], and u = e; θ = (a …, e, x …)."""
    k = len(logs)
    design = np.zeros((len(logs[0]), k + 1, k + 2 + max(exponents)))
    design[:, range(k + 1), range(k + 1)] = 1.0
    for i, (log, j) in enumerate(zip(logs, exponents, strict=True)):
        design[:, i, k + 1 + j] = log.mean() - log
    return linear_terms(design)


def boxed(terms: Terms, y: Floats, kinds: str) -> Form:
    """Bounds by kind of parameter: c log-coefficient at the centre, e log-asymptote, x exponent."""
    low = {"c": y.min() - 14.0, "e": y.min() - 12.0, "x": EXPONENT[0]}
    high = {"c": y.max() + 4.0, "e": y.max(), "x": EXPONENT[1]}
    lower, upper = (np.array([side[k] for k in kinds]) for side in (low, high))
    return Form(terms, lower, upper, fading=kinds.index("e"))


def grid(*axes: Sequence[float] | Floats) -> Floats:
    """Every combination, one a row."""
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1)


def starts_nd(y: Floats, *rest: Sequence[float]) -> Floats:
    """Starts for laws in N and D: two equal coefficients, an asymptote, and a grid of the rest."""
    middle = [y.mean() - 1.5]
    return grid(middle, middle, [y.min() - 0.4], *rest)


def asymptote_of(e: Floats) -> Floats:
    """E of its log, and zero where it is held at zero."""
    return np.where(e <= LOG_ZERO, 0.0, np.exp(e))
