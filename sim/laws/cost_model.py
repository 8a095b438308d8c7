"""What training N parameters on D tokens costs, fitted to the costs of an architecture's runs.

    C(N, D) = D^b · N · (Σ_k c_k N^−p_k)^±1,    c_k > 0

Accounting gives sums of powers: 6·N·D plus attention scores (p = ⅓ where depth grows with width)
plus a head (p = ⅔); or one over a sum, where a part of N costs nothing, as an embedding does. Both
forms are positive and grow with N and with D whatever the coefficients, bend as log C does in log
N, and have a limit outside the sizes tried. The third form is one power with a free exponent. The
form with the least Bayesian information criterion is chosen; its misfit is part of every interval.
Not included: costs that do not grow with the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from isoflop.models.errors import UserError
from isoflop.sim.laws.resample import LOG_ZERO, Floats, ranks

POWERS = (0.0, 1 / 3, 1 / 2, 2 / 3, 1.0)  # p_k: matrices, and what grows more slowly than they do
TERMS = 3  # of a sum: a model's matrices, its attention, its head
EXACT = 1e-9  # misfit in log C that rounding leaves
SLOWEST = 0.05  # power of N or D below which a cost does not grow


@dataclass(frozen=True)
class CostModel:
    """C(N, D); `logs` and `powers` may hold arrays with one entry per bootstrap draw."""

    logs: tuple[Any, ...]  # log c_k
    powers: tuple[Any, ...] = (0.0,)  # p_k
    tokens: float = 1.0  # b
    sign: int = 1  # 1: the sum; −1: one over it
    misfit: float = 0.0  # standard deviation of log C about the model
    sizes: Floats = field(default_factory=lambda: np.zeros(0), repr=False)  # log N of the runs

    def __call__(self, N: Any, D: Any) -> Any:
        log_n, log_d = np.log(np.asarray(N, dtype=float)), np.log(np.asarray(D, dtype=float))
        return np.exp(self.tokens * log_d + self.size(log_n)[0])

    def log_tokens(self, log_c: Any, log_n: Any) -> Any:
        """log of the D for which C pays at size N."""
        return (log_c - self.size(log_n)[0]) / self.tokens

    def size(self, log_n: Any) -> tuple[Any, Any, Any]:
        """log of the part of the cost that N decides, and its two derivatives in log N."""
        u = [c - p * log_n for c, p in zip(self.logs, self.powers, strict=True)]
        total = u[0]
        for other in u[1:]:
            total = np.logaddexp(total, other)
        shares = [np.exp(each - total) for each in u]
        mean = sum(p * share for p, share in zip(self.powers, shares, strict=True))
        square = sum(p * p * share for p, share in zip(self.powers, shares, strict=True))
        bend = np.maximum(square - mean**2, 0.0)
        return log_n + self.sign * total, 1.0 - self.sign * mean, self.sign * bend

    def draws(self, count: int, rng: np.random.Generator) -> CostModel:
        """One model with `count` draws: refits to costs that scatter by the misfit, each with the
        misfit of one configuration more, that of the optimum itself.
        """
        if self.misfit <= EXACT:
            return self
        noise = self.misfit * rng.standard_normal((len(self.sizes), count))
        own = self.misfit * rng.standard_normal(count)
        y = self.size(self.sizes)[0][:, None] + noise - self.sizes[:, None]
        if len(self.logs) == 1 and self.powers[0] not in POWERS:
            level, power = _line(self.sizes, y)
            return replace(self, logs=(level + own,), powers=(-power,))
        fits = [_sum(self.sizes, column, self.powers, self.sign) for column in y.T]
        logs = tuple(np.log(c + math.exp(LOG_ZERO)) + self.sign * own for c in np.array(fits).T)
        return replace(self, logs=logs)

    def take(self, order: NDArray[np.intp]) -> CostModel:
        """The draws in another order."""

        def moved(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(v[order] if np.ndim(v) else v for v in values)

        return replace(self, logs=moved(self.logs), powers=moved(self.powers))

    def words(self) -> str:
        """The formula and its misfit, for people."""
        terms = [
            f"{math.exp(log):.4g}{_power('N', self.sign - p)}"
            for log, p in zip(self.logs, self.powers, strict=True)
        ]
        inner = f"({' + '.join(terms)})" if len(terms) > 1 else terms[0]
        left = "exact" if self.misfit < 1e-6 else f"misfit {self.misfit:.2%} of C"
        head = f"C = {_power('D', self.tokens)[1:]}"
        return f"{head}{'·' if self.sign > 0 else ' / '}{inner}; {left}"


SIX_ND = CostModel((math.log(6.0),))  # Kaplan 2001.08361 §2.1: without attention scores and head


def _power(letter: str, exponent: float) -> str:
    if exponent == 0:
        return ""
    return f"·{letter}" if exponent == 1 else f"·{letter}^{exponent:.3g}"


def per_token(flops: float) -> CostModel:
    """C = flops·N·D."""
    return CostModel((math.log(flops),))


def fit_cost(C: Floats, N: Floats, D: Floats) -> CostModel:
    """The cost model of runs with costs C, parameters N and tokens D, each (n,).

    Raises UserError for a cost that does not grow with N and with D.
    """
    y, n, d = np.log(C), np.log(N), np.log(D)
    size = ranks(N)
    many = int(size.max()) + 1
    sizes = np.bincount(size, n) / np.bincount(size)
    bent = np.stack([np.ones_like(n), n - n.mean(), (n - n.mean()) ** 2, d - d.mean()], axis=1)
    free = float(np.linalg.lstsq(bent, y, rcond=None)[0][3])
    slope = float(_line(n, y - free * d)[1])
    if min(slope, free) < SLOWEST:
        raise UserError(
            f"the cost must grow with N and with D to have an optimum, and goes as "
            f"N^{round(slope, 2) + 0.0:.2g}·D^{round(free, 2) + 0.0:.2g}; name a cost of training"
        )
    least, chosen = math.inf, None
    for tokens in (1.0, free):
        for model, parameters in _candidates(n, y - tokens * d - n):
            if len(model.logs) > 1 and parameters >= many:
                continue  # nothing would be left to estimate the misfit from
            model = replace(model, tokens=tokens)
            left = float(np.mean((tokens * d + model.size(n)[0] - y) ** 2))
            count = parameters + (tokens != 1.0)
            score = many * math.log(left + EXACT**2) + count * math.log(many)
            if score < least - 1e-6:
                misfit = math.sqrt(left * many / max(many - parameters, 1))
                least, chosen = score, replace(model, misfit=misfit, sizes=sizes)
    assert chosen is not None
    return chosen


def _candidates(n: Floats, y: Floats) -> Iterator[tuple[CostModel, int]]:
    """Models of y = log C/(N·D^b), and their number of parameters; the simplest first."""
    for terms in range(1, TERMS + 1):
        for powers in combinations(POWERS, terms):
            for sign in (1, -1):
                if terms == 1 and (powers != (0.0,) or sign < 0):
                    continue
                c = _sum(n, y, powers, sign)
                if (c > 0).all():
                    yield CostModel(tuple(np.log(c).tolist()), powers, sign=sign), terms
        if terms == 1:
            level, slope = _line(n, y)
            yield CostModel((float(level),), (-float(slope),)), 2


def _sum(n: Floats, y: Floats, powers: tuple[float, ...], sign: int) -> Floats:
    """c ≥ 0 of Σ c_k N^−p_k = exp(±y), by least squares on relative error."""
    centre = n.mean()
    basis = np.exp(-np.outer(n - centre, powers) - sign * (y - y.mean())[:, None])
    c, _ = nnls(basis, np.ones_like(n))
    return c * np.exp(sign * y.mean() + np.asarray(powers) * centre)


def _line(n: Floats, y: Floats) -> tuple[Any, Any]:
    """Level at n = 0 and slope of every column of y over n: none where all are of one size."""
    off = n - n.mean()
    slope = off @ y / (off @ off or 1.0)
    return y.mean(axis=0) - slope * n.mean(), slope
