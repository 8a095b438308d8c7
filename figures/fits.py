"""The laws of every family, as `sim.laws.forms` fits them, and words for what data cannot say.

Two per family: the Chinchilla surface over all runs, and a straight log-log line through the lower
envelope in FLOPs, which describes the window and promises nothing outside it. A fit that did not
converge is told by its reason and never drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.figures.points import Point, conventions, envelope
from isoflop.figures.style import named
from isoflop.sim.laws.fit import Fit
from isoflop.sim.laws.forms import Chinchilla, PowerLaw

COUNT = "active"  # the N of the fits: parameters that one token touches, embeddings included
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

    def curve(self, low: float, high: float, n: int = 40) -> list[dict[str, float]]:
        """Loss and its 90 % band over the fitted window; empty where the fit says no."""
        if not self.fit.ok or self.fit.draws is None or self.form is not PowerLaw:
            return []
        cost = np.geomspace(low, high, n)
        middle = self.fit.law(cost) if self.fit.law else cost
        draws = self.fit.draws
        band = np.quantile([draws.at(i)(cost) for i in range(_size(draws))], [0.05, 0.95], axis=0)
        return [
            {"flops": float(c), "loss": float(m), "low": float(low), "high": float(high)}
            for c, m, low, high in zip(cost, middle, *band, strict=True)
        ]


def _size(draws: Any) -> int:
    return len(np.atleast_1d(draws.alpha))


def chinchilla(cells: Sequence[Point], draws: int = 1000) -> list[FamilyFit]:
    """One surface per family, over every seed; branches of a trunk are resampled together."""
    return [
        FamilyFit(name, Chinchilla, surface(group, draws=draws))
        for name, group in families(cells).items()
    ]


def surface(group: Sequence[Point], **options: Any) -> Fit:
    """The Chinchilla surface of one family's runs; `options` are those of `Chinchilla.fit`."""
    stated = {"which N": COUNT, "which FLOPs": "executed"}
    return Chinchilla.fit(columns(group), stated=stated, **options)


def columns(cells: Sequence[Point]) -> dict[str, list[Any]]:
    """One row for each run: what `sim` fits and compares. `flops` are the executed."""
    runs = [(cell, seed, loss) for cell in cells for seed, loss in cell.losses.items()]
    found: dict[str, list[Any]] = {
        "arch": [cell.family for cell, _, _ in runs],
        "N": [cell.params[COUNT] for cell, _, _ in runs],
        "D": [cell.tokens for cell, _, _ in runs],
        "loss": [loss for _, _, loss in runs],
        "run": [cell.trunk for cell, _, _ in runs],
        "seed": [seed for _, seed, _ in runs],
        "flops": [cell.flops["executed"] for cell, _, _ in runs],
        "seconds": [cell.seconds for cell, _, _ in runs],
        "state_bytes": [cell.state_bytes for cell, _, _ in runs],
    }
    return found | {name: [cell.flops[name] for cell, _, _ in runs] for name in conventions(cells)}


def power(cells: Sequence[Point], convention: str, draws: int = 1000) -> list[FamilyFit]:
    """One power law per family, through the cells of its lower envelope."""
    found = []
    for name, group in families(cells).items():
        edge = envelope(group, convention)
        line: dict[str, list[Any]] = {
            "C": [cell.flops[convention] for cell in edge],
            "loss": [cell.loss for cell in edge],
        }
        stated = {"which FLOPs": named(convention)}
        fit = PowerLaw.fit(line, draws=draws, asymptote=False, stated=stated)
        found.append(FamilyFit(name, PowerLaw, fit))
    return found


def families(cells: Iterable[Point]) -> dict[str, list[Point]]:
    """The cells of each family, in their order."""
    groups: dict[str, list[Point]] = {}
    for cell in cells:
        groups.setdefault(cell.family, []).append(cell)
    return groups
