"""One study for each training context: what it costs and buys, family by family.

Rows carry the label `context`, the training length in tokens. Gains over the baseline and N* are
told at one compute that all contexts share, the geometric middle of their windows, so that they
differ by the context alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from isoflop.models.errors import UserError
from isoflop.sim.compare.family_fits import surface
from isoflop.sim.compare.gains import Gain, arms, gain
from isoflop.sim.compare.points import COUNT, Point, columns, families, points
from isoflop.sim.compare.slopes import Slope, slope
from isoflop.sim.compare.study import BASELINE
from isoflop.sim.laws.fit import Fit
from isoflop.sim.records.store import Row

Estimate = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True, eq=False)
class Contexts:
    """What rows of several contexts say; each part is computed when it is first asked for."""

    rows: Sequence[Row]
    draws: int = 400
    baseline: str = BASELINE

    @cached_property
    def cells(self) -> dict[int, dict[str, list[Point]]]:
        """By context, then family."""
        found = sorted({int(row.labels["context"]) for row in self.rows})
        return {
            n: families(points([row for row in self.rows if row.labels["context"] == n]))
            for n in found
        }

    @property
    def families(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(str(row.labels["family"]) for row in self.rows))

    @cached_property
    def budget(self) -> float:
        """Executed FLOPs in the middle of what every family spans at every context. UserError where
        there is none.
        """
        spans = [
            [point.flops["executed"] for point in group]
            for by_family in self.cells.values()
            for group in by_family.values()
        ]
        low = max(map(min, spans), default=0.0)
        high = min(map(max, spans), default=0.0)
        if low >= high:
            raise UserError(
                "the contexts share no executed FLOPs; train more sizes or lengths at each"
            )
        return (low * high) ** 0.5

    @cached_property
    def fits(self) -> dict[int, dict[str, Fit]]:
        """The law without E of each family at each context."""
        return {
            n: {
                name: surface(group, draws=self.draws, asymptote=False, budgets=[self.budget])
                for name, group in by_family.items()
            }
            for n, by_family in self.cells.items()
        }

    def optimum(self, family: str) -> dict[int, Estimate]:
        """N* at the shared budget by context, where the fit says something and sizes were trained
        on both sides of it.
        """
        name, found = f"N*({self.budget:.3g})", {}
        for n, by_family in self.fits.items():
            fit = by_family.get(family)
            if fit is None or not fit.ok or name not in fit.interval:
                continue
            sizes = [point.params[COUNT] for point in self.cells[n][family]]
            if min(sizes) <= fit.estimate[name] <= max(sizes):
                found[n] = (fit.estimate[name], *fit.interval[name])
        return found

    def gains(self, family: str) -> dict[int, Gain]:
        """The compute-equivalent gain over the baseline at the middle of the window by context."""
        found = {}
        for n, by_family in self.cells.items():
            if family not in by_family or self.baseline not in by_family:
                continue
            table = columns([*by_family[self.baseline], *by_family[family]])
            try:
                pair, _ = arms(table, n="N", d="D", draws=self.draws, asymptote=False)
                ceg = gain(pair[family], pair[self.baseline], "executed").ceg
            except UserError:  # a fit that says nothing
                continue
            if ceg:
                found[n] = ceg[len(ceg) // 2]
        return found

    def at_equal_tokens(self, family: str) -> dict[int, Point]:
        """The largest model with most tokens that was trained at every context, by context."""
        sizes = {
            n: {(point.params["total"], point.tokens): point for point in by_family[family]}
            for n, by_family in self.cells.items()
            if family in by_family
        }
        shared = set.intersection(*map(set, sizes.values())) if sizes else set()
        return {n: found[max(shared)] for n, found in sizes.items()} if shared else {}

    def by_position(self, family: str, context: int) -> dict[int, float]:
        """Mean loss over seeds of the model of `at_equal_tokens`, by the first place of each bucket
        of positions (sim/records/metrics.py).
        """
        point = self.at_equal_tokens(family).get(context)
        if point is None:
            return {}
        size = point.params["total"], point.tokens
        own = self._of(family, context)
        return means([r for r in own if (r.record.params["total"], r.record.tokens) == size])

    def late_slopes(self, family: str) -> dict[int, Slope]:
        """By context, the power of N with which the mean loss of its second half, over that of its
        first eighth, changes at most tokens: below 0 where late positions gain more from size. Left
        out where fewer than two sizes were trained, and below 8 tokens, which have no eighth.
        """
        found = {}
        for n in self.cells:
            known = [
                (row.record.params[COUNT], late / early)
                for row in self._of_most_tokens(family, n)
                if (early := _mean_loss(row, 0, n // 8)) and (late := _mean_loss(row, n // 2, n))
            ]
            sizes, ratios = [size for size, _ in known], [ratio for _, ratio in known]
            if line := slope(sizes, ratios, window=(0, math.inf)):
                found[n] = line
        return found

    def _of_most_tokens(self, family: str, context: int) -> list[Row]:
        own = self._of(family, context)
        most = max((row.record.tokens for row in own), default=0)
        return [row for row in own if row.record.tokens == most]

    def _of(self, family: str, context: int) -> list[Row]:
        """Runs with a loss."""
        return [
            row
            for row in self.rows
            if (row.labels["family"], row.labels["context"]) == (family, context)
            and row.record.loss is not None
        ]


def means(rows: Sequence[Row]) -> dict[int, float]:
    """Mean over runs of loss_at_0, loss_at_1, loss_at_2, …, by the number in the name."""
    found: dict[int, list[float]] = {}
    for row in rows:
        for name, metric in row.record.metrics.items():
            if name.startswith("loss_at_"):
                found.setdefault(int(name.removeprefix("loss_at_")), []).append(metric.value)
    return {first: sum(values) / len(values) for first, values in sorted(found.items())}


def _mean_loss(row: Row, first: int, end: int) -> float | None:
    """Of the buckets of positions that lie from `first` to before `end`, by their tokens; None
    where there is none.
    """
    parts = [
        metric
        for name, metric in row.record.metrics.items()
        if name.startswith("loss_at_") and first <= int(name.removeprefix("loss_at_")) < end
    ]
    tokens = sum(part.count for part in parts)
    return sum(part.value * part.count for part in parts) / tokens if tokens else None
