"""Which family has the lowest loss at a budget that all of them reached, and is that resolved?

The common budget is the largest that every family reached. A family's loss there is read off its
lower envelope, log L linear in log C between neighbours, seed by seed with the same cells for
every seed, so that families are compared by paired differences between runs that saw the same
data in the same order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from isoflop.sim.compare.points import Point, envelope, families


@dataclass(frozen=True)
class Interval:
    """A mean and its 90 % t interval; `low` and `high` are None with fewer than two values."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean, n = fmean(values), len(values)
        if n < 2:
            return cls(mean, None, None, n)
        half = float(stdtrit(n - 1, 0.95)) * stdev(values) / math.sqrt(n)
        return cls(mean, mean - half, mean + half, n)


@dataclass(frozen=True)
class Standing:
    """A family at the common budget, beside the family with the lowest loss."""

    family: str
    loss: Interval
    behind: Interval | None  # loss − best family's loss, over shared seeds; None for the best

    @property
    def resolved(self) -> bool:
        """The best family's lead over this one is larger than the noise between seeds."""
        return self.behind is not None and self.behind.low is not None and self.behind.low > 0


@dataclass(frozen=True)
class Ranking:
    """Families by loss at one budget; `absent` are those too thin to take part."""

    convention: str
    flops: float
    standings: tuple[Standing, ...]
    absent: tuple[str, ...]


def rank(cells: Iterable[Point], convention: str) -> Ranking | None:
    """None where fewer than two families overlap."""
    by_family = families(cells)
    wide = {name: group for name, group in by_family.items() if len(group) > 1}
    if len(wide) < 2:
        return None
    flops = min(max(cell.flops[convention] for cell in group) for group in wide.values())
    at = {name: losses_at(group, convention, flops) for name, group in wide.items()}
    at = {name: losses for name, losses in at.items() if losses}
    if len(at) < 2:
        return None
    order = sorted(at, key=lambda name: fmean(at[name].values()))
    best = at[order[0]]
    standings = []
    for name in order:
        shared = sorted(best.keys() & at[name].keys())
        behind = [at[name][seed] - best[seed] for seed in shared]
        standings.append(
            Standing(
                name,
                Interval.of(list(at[name].values())),
                Interval.of(behind) if name != order[0] and behind else None,
            )
        )
    return Ranking(convention, flops, tuple(standings), tuple(sorted(by_family.keys() - at.keys())))


def losses_at(cells: Sequence[Point], convention: str, flops: float) -> dict[int, float]:
    """Loss by seed at `flops` on the lower envelope; empty if the envelope begins above it."""
    edge = envelope(cells, convention)
    below = [cell for cell in edge if cell.flops[convention] <= flops]
    above = [cell for cell in edge if cell.flops[convention] > flops]
    if not below:
        return {}
    left = below[-1]
    if not above:
        return dict(left.losses)
    right = above[0]
    c0, c1 = (math.log(cell.flops[convention]) for cell in (left, right))
    share = (math.log(flops) - c0) / (c1 - c0)
    return {
        seed: math.exp((1 - share) * math.log(loss) + share * math.log(right.losses[seed]))
        for seed, loss in left.losses.items()
        if seed in right.losses
    }


PERMUTATIONS = 9  # values up to which all orders are tried, and above which so many are drawn:
DRAWN = 20_000


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation, and its two-sided p: the share of orders of y whose correlation is as
    far from 0, all of them for up to PERMUTATIONS values, else of DRAWN random ones and itself.
    NaN and 1 where all of x or all of y are equal.
    """
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = math.sqrt(float((a @ a) * (b @ b)))
    if scale == 0:
        return math.nan, 1.0
    found = float(a @ b) / scale
    if len(b) <= PERMUTATIONS:
        orders = np.array(list(itertools.permutations(b)))
    else:
        rng = np.random.default_rng(0)
        orders = np.array([b, *(rng.permutation(b) for _ in range(DRAWN))])
    return found, float(np.mean(np.abs(orders @ a) / scale >= abs(found) - 1e-12))
