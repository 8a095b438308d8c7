"""Excess losses of a language whose entropy is known, and how they fall with data and parameters.

Theory of Zipf facts, p_k ∝ k^-(1+α) (Hutter 2021, 2102.04074; Michaud et al. 2023, 2303.13506): the
excess is ∝ D^(-α/(1+α)) where facts are learnt when they are seen, and ∝ n^-α where the n most
frequent are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

from isoflop.sim.compare.slopes import Slope, slope
from isoflop.sim.data import ZipfFacts
from isoflop.sim.records.store import Row


@dataclass(frozen=True)
class Line:
    """Mean excess over seeds in nats a token, at each amount of tokens or parameters."""

    x: tuple[float, ...]
    excess: tuple[float, ...]
    theory: float  # the exponent
    fitted: Slope | None  # of the positive ones; None with fewer than two

    @property
    def agrees(self) -> bool | None:
        """Whether the 90 % interval holds the exponent; None if it is wider than that, or none."""
        if self.fitted is None or self.fitted.half is None:
            return None
        inside = abs(self.fitted.value - self.theory) <= self.fitted.half
        return None if inside and self.fitted.half > abs(self.theory) else inside

    @property
    def told(self) -> str:
        found = "no slope" if self.fitted is None else f"slope {self.fitted}"
        return f"{found}, theory {self.theory:.2f}".replace("-", "−")

    def json(self) -> dict[str, Any]:
        return {
            "x": list(self.x),
            "excess": list(self.excess),
            "theory": self.theory,
            "slope": self.fitted and self.fitted.value,
            "half": self.fitted and self.fitted.half,
        }


def in_data(rows: Iterable[Row]) -> Line:
    """Excess against training tokens, of the rows of part `data`."""
    own = [row for row in rows if row.labels.get("part") == "data"]
    return _line(own, lambda row: row.record.tokens, lambda alpha: -alpha / (1 + alpha))


def in_capacity(rows: Iterable[Row]) -> Line:
    """Excess against parameters, of part `capacity` and of part `data`'s longest runs."""
    own = [row for row in rows if row.labels.get("part") in ("data", "capacity")]
    most = max((row.record.tokens for row in own), default=0)
    longest = [row for row in own if row.record.tokens == most]
    return _line(longest, lambda row: row.record.params["total"], lambda alpha: -alpha)


def _line(rows: list[Row], of: Any, exponent: Any) -> Line:
    groups: dict[float, list[float]] = {}
    for row in rows:
        if row.record.loss is not None and row.record.entropy is not None:
            groups.setdefault(of(row), []).append(row.record.loss - row.record.entropy)
    x = sorted(groups)
    y = [fmean(groups[value]) for value in x]
    theory = exponent(cast(ZipfFacts, rows[0].record.run.data).alpha) if rows else math.nan
    return Line((*x,), (*y,), theory, slope(x, y, (0, math.inf)))
