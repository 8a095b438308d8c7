"""The laws of every family, as `sim.laws.forms` fits them, and words for what data cannot say.

Two per family: the Chinchilla surface over all runs, and a straight log-log line through the lower
envelope in FLOPs, which describes the window and promises nothing outside it. A fit that did not
converge is told by its reason and never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.sim.compare.points import COUNT, Point, columns
from isoflop.sim.cost.names import named
from isoflop.sim.laws.fit import Fit
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.laws.isoflop import Allocation, isoflop

FORMULA = {
    Chinchilla: "L = E + A/Nᵅ + B/Dᵝ",
    PowerLaw: "L = A/Cᵅ on the envelope",
}
SYMBOL = {"alpha": "α", "beta": "β"}
SHOWN = {Chinchilla: ("E", "alpha", "beta", "a"), PowerLaw: ("alpha",)}


@dataclass(frozen=True)
class FamilyFit:
    family: str
    form: type[Chinchilla] | type[PowerLaw]
    fit: Fit
    span: tuple[float, float] = (1.0, 1.0)  # least and greatest FLOPs of the family's cells

    @property
    def asked(self) -> str:
        """What the fit was to find, in words."""
        return "The Chinchilla surface" if self.form is Chinchilla else "The envelope's exponent"

    @property
    def formula(self) -> str:
        return FORMULA[self.form]

    @property
    def verdict(self) -> str:
        """The estimates with their intervals, or why there are none."""
        if not self.fit.ok:
            status = "" if self.fit.status == "unidentifiable" else f" ({self.fit.status})"
            return f"not identifiable{status}: {self.fit.reason}"
        return ", ".join(self._told(name) for name in SHOWN[self.form])

    def _told(self, name: str) -> str:
        low, high = self.fit.interval[name]
        return f"{SYMBOL.get(name, name)} {self.fit.estimate[name]:.3g} [{low:.3g}, {high:.3g}]"

    @property
    def held_out(self) -> str:
        """Mean error of log loss above the first compute cut, when fitted below it."""
        first = next(iter(self.fit.held_out), None)
        if first is None or first.error is None:
            return "—"
        return f"{first.error:.1%} ({first.n_test} points)"

    def band(self, n: int = 40) -> list[dict[str, float]]:
        """Loss and its 90 % interval over `span`; empty where the fit says no."""
        if not self.fit.ok or self.fit.draws is None or self.form is not PowerLaw:
            return []
        cost = np.geomspace(*self.span, n)
        middle = self.fit.law(cost) if self.fit.law else cost
        draws = self.fit.draws
        count = len(np.atleast_1d(draws.params_raw()["alpha"]))
        ends = np.quantile([draws.at(i)(cost) for i in range(count)], [0.05, 0.95], axis=0)
        return [
            {"flops": float(c), "loss": float(m), "low": float(low), "high": float(high)}
            for c, m, low, high in zip(cost, middle, *ends, strict=True)
        ]


def surface(group: Sequence[Point], **options: Any) -> Fit:
    """The Chinchilla surface of one family's runs, over every seed; branches of a trunk are
    resampled together. `options` are those of `Chinchilla.fit`.
    """
    stated = {"which N": COUNT, "which FLOPs": "executed"}
    try:
        return Chinchilla.fit(columns(group), stated=stated, **options)
    except UserError as error:  # executed FLOPs grow with both: these runs do not show how
        return Fit(None, "unidentifiable", str(error), n_points=len(group))


def line(edge: Sequence[Point], convention: str, draws: int) -> Fit:
    """A power law through the cells of one family's lower envelope."""
    found: dict[str, list[Any]] = {
        "C": [cell.flops[convention] for cell in edge],
        "loss": [cell.loss for cell in edge],
    }
    stated = {"which FLOPs": named(convention)}
    return PowerLaw.fit(found, draws=draws, asymptote=False, stated=stated)


def valleys(
    group: Sequence[Point], budgets: Sequence[float] | None = None, convention: str = "executed"
) -> Allocation:
    """N*(C) of one family by IsoFLOP valleys, over every seed; `budgets` are found without them.

    Raises UserError where fewer than three budgets have their minimum inside the sizes.
    """
    runs = columns(group)
    return isoflop(runs[convention], runs["N"], runs["loss"], budgets=budgets)
