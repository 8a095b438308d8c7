"""What a grid's runs say, computed once: points, rankings, laws, optima, gains, noise.

Two laws for each family, both over every run. L = E + A/Nᵅ + B/Dᵝ is the law; it may say no. The
same without E is a description inside the window, which is what optima and gains are read from; how
well it describes is in its residuals, and what it extrapolates, beside the law with E, in
`held_out`. Gains are over one baseline; exponents are never compared between families (2502.18969).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.compare import points as cells
from isoflop.sim.compare.family_fits import FamilyFit, line, surface
from isoflop.sim.compare.gains import Arm, Comparison, arms, gain
from isoflop.sim.compare.points import COUNT, LOSS, Point, usable
from isoflop.sim.compare.rankings import Ranking, rank
from isoflop.sim.laws.fit import Fit
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.laws.noise import seed_noise
from isoflop.sim.records.store import Row

BASELINE = "dense"
BUDGETS = 5  # of each family's window at which its optimum is told
DRAWS = 1000


@dataclass(frozen=True, eq=False)
class Study:
    """What the rows of one grid say; each part is computed when it is first asked for, and kept.

    `draws` are those of every bootstrap. `baseline` is the family that gains are over. `costs` are
    the columns of gains: FLOP conventions, `seconds`, `state_bytes`; None for all that every run
    has. `order` is the families' in every answer; those it lacks follow by the alphabet. `metric`
    is what stands for the loss in all of it (sim/records/metrics.py).
    """

    rows: Sequence[Row]
    draws: int = DRAWS
    baseline: str = BASELINE
    costs: tuple[str, ...] | None = None
    order: tuple[str, ...] = tuple(zoo.FAMILIES)
    metric: str = LOSS

    @cached_property
    def points(self) -> list[Point]:
        """One for each cell of the grid, over its seeds."""
        return cells.points(self.rows, self.order, self.metric)

    @cached_property
    def families(self) -> dict[str, list[Point]]:
        return cells.families(self.points)

    @cached_property
    def conventions(self) -> list[str]:
        """FLOP conventions that every point has."""
        return cells.conventions(self.points)

    @cached_property
    def counts(self) -> list[str]:
        """Ways of counting parameters that every point has."""
        return cells.counts(self.points)

    @property
    def lost(self) -> int:
        """Runs without a result: failed, diverged, or with no finite metric above 0."""
        return sum(not usable(row, self.metric) for row in self.rows)

    @cached_property
    def costliest(self) -> list[Point]:
        """Each family's largest cell with most tokens."""
        return cells.costliest(self.points)

    @cached_property
    def best(self) -> dict[str, Point]:
        """Each family's cell of least loss."""
        return {name: min(group, key=lambda p: p.loss) for name, group in self.families.items()}

    @cached_property
    def noise(self) -> dict[str, dict[str, float | None]]:
        """Relative, by family: between `seeds` of a cell, and of one `evaluation` on its held-out
        sequences.
        """
        errors: dict[str, list[float]] = {}
        for row in self.rows:
            metric = row.record.metrics.get(self.metric)
            if metric and metric.se and usable(row, self.metric):
                found = errors.setdefault(cells.family(row), [])
                found.append(metric.se / cells.drawn(row, self.metric))
        return {
            name: {
                "seeds": seed_noise(list(cell.losses.values()) for cell in group),
                "evaluation": median(errors[name]) if name in errors else None,
            }
            for name, group in self.families.items()
        }

    @cached_property
    def frontiers(self) -> dict[str, dict[str, list[Point]]]:
        """The lower envelope of each family, by FLOP convention."""
        return {
            way: {name: cells.envelope(group, way) for name, group in self.families.items()}
            for way in self.conventions
        }

    @cached_property
    def rankings(self) -> dict[str, Ranking]:
        """By FLOP convention, where two families or more share a budget."""
        found = {way: rank(self.points, way) for way in self.conventions}
        return {way: ranking for way, ranking in found.items() if ranking}

    @cached_property
    def laws(self) -> dict[str, FamilyFit]:
        """The surface with E of each family, with its errors on the most expensive runs."""
        return {
            name: FamilyFit(name, Chinchilla, surface(group, draws=self.draws))
            for name, group in self.families.items()
        }

    def lines(self, convention: str) -> list[FamilyFit]:
        """A power law through each family's lower envelope: slope of log loss on log FLOPs."""
        if convention not in self._lines:
            self._lines[convention] = [
                FamilyFit(name, PowerLaw, line(edge, convention, self.draws), span)
                for name, edge in self.frontiers[convention].items()
                for span in [self._span(name, convention)]
            ]
        return self._lines[convention]

    @cached_property
    def _lines(self) -> dict[str, list[FamilyFit]]:
        return {}

    def _span(self, family: str, convention: str) -> tuple[float, float]:
        found = [float(cell.flops[convention]) for cell in self.families[family]]
        return min(found), max(found)

    @cached_property
    def windows(self) -> dict[str, Fit]:
        """The surface without E of each family, with N*, D* and L* at `budgets`."""
        return {
            name: surface(group, draws=self.draws, asymptote=False, budgets=self._budgets(name))
            for name, group in self.families.items()
        }

    def _budgets(self, family: str) -> list[float]:
        """Executed FLOPs across the family's window."""
        return [float(c) for c in np.geomspace(*self._span(family, "executed"), BUDGETS)]

    def optima(self, family: str) -> list[dict[str, Any]]:
        """N*, D* and L* across the window, each [estimate, low, high], and whether sizes and tokens
        were trained on both sides; empty where the fit says no.
        """
        fit, group = self.windows[family], self.families[family]
        sizes, tokens = [cell.params[COUNT] for cell in group], [cell.tokens for cell in group]
        found = []
        for budget in self._budgets(family) if fit.ok else ():
            told = {
                q: [fit.estimate[f"{q}({budget:.3g})"], *fit.interval[f"{q}({budget:.3g})"]]
                for q in ("N*", "D*", "L*")
            }
            inside = min(sizes) <= told["N*"][0] <= max(sizes)
            inside &= min(tokens) <= told["D*"][0] <= max(tokens)
            found.append({"flops": budget, "measured": inside} | told)
        return found

    @cached_property
    def gains(self) -> dict[str, list[Comparison]]:
        """By cost column: each family's gain over the baseline, with its crossovers."""
        timed = ("seconds",) if all(cell.seconds for cell in self.points) else ()
        costs = (*self.conventions, *timed, "state_bytes") if self.costs is None else self.costs
        return {cost: self._gains(cost) for cost in costs}

    def _gains(self, cost: str) -> list[Comparison]:
        """On compute-optimal frontiers; for state bytes, which tokens do not move, by a power law
        through the cells with most tokens.
        """
        if self.baseline not in self.families:
            return []
        others = [name for name in self.families if name != self.baseline]
        found = []
        for name in others:
            try:
                if cost == "state_bytes":
                    base, other = self._state_arms(name)
                else:
                    base, other = self._arm(self.baseline, cost), self._arm(name, cost)
                found.append(gain(other, base, cost))
            except (
                UserError
            ) as error:  # a cost that does not grow with N, as time on an idle device
                said = str(error)
                found.append(Comparison(name, self.baseline, cost, "unidentifiable", said))
        return found

    def _state_arms(self, name: str) -> tuple[Arm, Arm]:
        pair = [*self.families[self.baseline], *self.families[name]]
        table = cells.columns(cells.longest(pair))
        found, _ = arms(table, cost="state_bytes", draws=self.draws, asymptote=False)
        return found[self.baseline], found[name]

    def _arm(self, name: str, cost: str) -> Arm:
        """A family's frontier along a cost. UserError where its cost has no model."""
        key = name, cost
        if key not in self._arms:
            found, _ = arms(
                cells.columns(self.families[name]),
                cost=cost, n="N", d="D", surfaces=self.windows, asymptote=False,
            )  # fmt: skip
            self._arms[key] = found[name]
        return self._arms[key]

    @cached_property
    def _arms(self) -> dict[tuple[str, str], Arm]:
        return {}

    @cached_property
    def subsets(self) -> list[dict[str, Any]]:
        """The baseline's law from parts of its runs: α, and the loss predicted where D and N are
        most.
        """
        group = self.families.get(self.baseline, self.points)
        corner = max(group, key=lambda cell: (cell.tokens, cell.params[COUNT]))
        sizes = sorted({(cell.width, cell.depth) for cell in group})
        seeds = sorted({seed for cell in group for seed in cell.losses})
        parts: dict[str, list[Point]] = {"all runs": group}
        for width, depth in sizes:
            rest = [cell for cell in group if (cell.width, cell.depth) != (width, depth)]
            parts[f"without width {width}, depth {depth}"] = rest
        for seed in seeds if len(seeds) > 1 else ():
            parts[f"seed {seed} alone"] = [
                replace(cell, losses={seed: cell.losses[seed]})
                for cell in group
                if seed in cell.losses
            ]
        return [
            {"subset": name} | _subset(self._part(part), corner) for name, part in parts.items()
        ]

    def _part(self, part: Sequence[Point]) -> Fit:
        if part is self.families.get(self.baseline):
            return self.laws[self.baseline].fit
        return surface(part, draws=self.draws, held_out=())

    def json(self) -> dict[str, Any]:
        """Everything that figures draw and READMEs quote, as plain numbers. Empty without runs."""
        if not self.points:
            return {}
        shown = ("width", "depth", "tokens", "loss", "low", "high")
        return {
            "runs": sum(len(cell.losses) for cell in self.points),
            "dropped": self.lost,
            "count": COUNT,
            "best": {n: {k: cell.numbers[k] for k in shown} for n, cell in self.best.items()},
            "noise": self.noise,
            "laws": {name: item.fit.json() for name, item in self.laws.items()},
            "windows": {name: self._window(name) for name in self.windows},
            "gains": {cost: [g.json() for g in found] for cost, found in self.gains.items()},
            "exponents": {way: _exponents(self.lines(way)) for way in self.conventions},
            "subsets": self.subsets,
        }

    def _window(self, family: str) -> dict[str, Any]:
        """The law without E: its optima, and the residual of each cell."""
        fit = self.windows[family]
        found: dict[str, Any] = {"status": fit.status, "reason": fit.reason}
        found["optimum"] = self.optima(family)
        if fit.law is not None:
            found["residuals"] = [
                {"N": cell.params[COUNT], "D": cell.tokens, "log": math.log(loss / cell.loss)}
                for cell in self.families[family]
                for loss in [float(fit.law(cell.params[COUNT], cell.tokens))]
            ]
        return found


def ends(gain: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a gain; JSON has null where it has no end."""
    low, high = gain["low"], gain["high"]
    return 0.0 if low is None else low, math.inf if high is None else high


def _exponents(fits: Sequence[FamilyFit]) -> dict[str, list[float]]:
    return {
        item.family: [item.fit.estimate["alpha"], *item.fit.interval["alpha"]]
        for item in fits
        if item.fit.ok
    }


def _subset(fit: Fit, corner: Point) -> dict[str, Any]:
    said: dict[str, Any] = {"status": fit.status, "reason": fit.reason}
    if fit.law is None:
        return said
    predicted = float(fit.law(corner.params[COUNT], corner.tokens))
    return said | {
        "alpha": fit.law.params()["alpha"],
        "interval": list(fit.interval.get("alpha", (math.nan, math.nan))),
        "predicted": predicted,
        "measured": corner.loss,
    }
