"""What a ladder says, as plain numbers: noise, laws, optima, gains, and what is not resolved.

Two fits for each family, both over every run. L = E + A/Nᵅ + B/Dᵝ is the law; it may say no. The
same without E is a description inside the window, which is what optima and gains are read from; how
well it describes is in its residuals, and what it foretells beside the law with E in `held_out`.
Gains are over one baseline; exponents are never compared between families (2502.18969).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from isoflop.figures import fits
from isoflop.figures.points import Point, conventions, points, seed_noise, usable
from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import Comparison, arms, gain
from isoflop.sim.laws.fit import Fit
from isoflop.sim.records.store import Row

BASELINE = "dense"
COUNT = fits.COUNT
BUDGETS = 5  # of each family's window at which its optimum is told
DRAWS = 1000


def numbers(rows: Sequence[Row], draws: int = DRAWS) -> dict[str, Any]:
    """Everything that the ladder's figures draw and the READMEs quote. Empty without runs."""
    cells = points(rows)
    if not cells:
        return {}
    by_family = fits.families(cells)
    timed = ("seconds",) if all(cell.seconds for cell in cells) else ()
    laws = {name: fits.surface(group, draws=draws) for name, group in by_family.items()}
    windows = {
        name: fits.surface(group, draws=draws, asymptote=False, budgets=_budgets(group))
        for name, group in by_family.items()
    }
    return {
        "runs": sum(len(cell.losses) for cell in cells),
        "dropped": len(rows) - sum(map(usable, rows)),
        "count": COUNT,
        "best": {name: best(group) for name, group in by_family.items()},
        "noise": {name: noise(group, rows) for name, group in by_family.items()},
        "laws": {name: fit.json() for name, fit in laws.items()},
        "windows": {name: _window(by_family[name], fit) for name, fit in windows.items()},
        "gains": {c: gains(cells, c, windows) for c in (*conventions(cells), *timed)}
        | {"state_bytes": gains(longest(cells), "state_bytes")},
        "exponents": {c: _exponents(cells, c, draws) for c in conventions(cells)},
        "subsets": _subsets(by_family.get(BASELINE, cells), draws),
    }


def _budgets(group: Sequence[Point]) -> list[float]:
    """FLOPs across the family's window."""
    cost = [cell.flops["executed"] for cell in group]
    return [float(c) for c in np.geomspace(min(cost), max(cost), BUDGETS)]


def best(group: Sequence[Point]) -> dict[str, Any]:
    cell = min(group, key=lambda cell: cell.loss)
    return {k: cell.numbers[k] for k in ("width", "depth", "tokens", "loss", "low", "high")}


def noise(group: Sequence[Point], rows: Sequence[Row]) -> dict[str, float | None]:
    """Relative: between seeds of a cell, and of one evaluation on its held-out sequences."""
    errors = [
        row.record.loss_se / row.record.loss
        for row in rows
        if row.labels.get("family") == group[0].family and row.record.loss and row.record.loss_se
    ]
    seeds = seed_noise(group)
    return {
        "seeds": None if math.isnan(seeds) else seeds,
        "evaluation": median(errors) if errors else None,
    }


def _window(group: Sequence[Point], fit: Fit) -> dict[str, Any]:
    """The law without E: N*, D* and L* across the window, and the residual of each cell."""
    found: dict[str, Any] = {"status": fit.status, "reason": fit.reason, "optimum": []}
    sizes, tokens = [cell.params[COUNT] for cell in group], [cell.tokens for cell in group]
    for budget in _budgets(group) if fit.ok else ():
        told = {
            q: [fit.estimate[f"{q}({budget:.3g})"], *fit.interval[f"{q}({budget:.3g})"]]
            for q in ("N*", "D*", "L*")
        }
        inside = min(sizes) <= told["N*"][0] <= max(sizes)
        inside &= min(tokens) <= told["D*"][0] <= max(tokens)
        found["optimum"].append({"flops": budget, "measured": inside} | told)
    if fit.law is not None:
        found["residuals"] = [
            {"N": cell.params[COUNT], "D": cell.tokens, "log": math.log(loss / cell.loss)}
            for cell in group
            for loss in [float(fit.law(cell.params[COUNT], cell.tokens))]
        ]
    return found


def longest(cells: Sequence[Point]) -> list[Point]:
    """Those with the most tokens of their size: a state costs the same however long one trains."""
    most: dict[tuple[str, int, int], int] = {}
    for cell in cells:
        size = cell.family, cell.width, cell.depth
        most[size] = max(most.get(size, 0), cell.tokens)
    return [cell for cell in cells if cell.tokens == most[cell.family, cell.width, cell.depth]]


def gains(
    cells: Sequence[Point], cost: str, surfaces: Mapping[str, Fit] | None = None
) -> list[dict[str, Any]]:
    """Gain of each family over the baseline: on their compute-optimal frontiers, with `surfaces`,
    else by a power law through the cells.
    """
    by_family = fits.families(cells)
    if BASELINE not in by_family:
        return []
    options: dict[str, Any] = {"cost": cost, "asymptote": False}
    if surfaces is not None:
        options |= {"n": "N", "d": "D", "surfaces": surfaces}
    found = []
    for name in [name for name in by_family if name != BASELINE]:
        try:
            pair, _ = arms(fits.columns([*by_family[BASELINE], *by_family[name]]), **options)
            found.append(gain(pair[name], pair[BASELINE], cost))
        except UserError as error:  # a cost that does not grow with N, as time on an idle device
            found.append(Comparison(name, BASELINE, cost, "unidentifiable", str(error)))
    return [item.json() for item in found]


def ends(gain: Mapping[str, Any]) -> tuple[float, float]:
    """The interval of a gain; JSON has null where it has no end."""
    low, high = gain["low"], gain["high"]
    return 0.0 if low is None else low, math.inf if high is None else high


def _exponents(cells: Sequence[Point], convention: str, draws: int) -> dict[str, Any]:
    """The slope of log loss on log FLOPs along each family's envelope: one per convention."""
    return {
        item.family: [item.fit.estimate["alpha"], *item.fit.interval["alpha"]]
        for item in fits.power(cells, convention, draws)
        if item.fit.ok
    }


def _subsets(group: Sequence[Point], draws: int) -> list[dict[str, Any]]:
    """One family's law from parts of its runs: α, and the loss predicted where D and N are most."""
    corner = max(group, key=lambda cell: (cell.tokens, cell.params[COUNT]))
    sizes = sorted({(cell.width, cell.depth) for cell in group})
    seeds = sorted({seed for cell in group for seed in cell.losses})
    parts: dict[str, list[Point]] = {"all runs": list(group)}
    for width, depth in sizes:
        rest = [cell for cell in group if (cell.width, cell.depth) != (width, depth)]
        parts[f"without width {width}, depth {depth}"] = rest
    for seed in seeds if len(seeds) > 1 else ():
        parts[f"seed {seed} alone"] = [
            replace(cell, losses={seed: cell.losses[seed]}) for cell in group if seed in cell.losses
        ]
    return [
        {"subset": name} | _subset(fits.surface(part, draws=draws, held_out=()), corner)
        for name, part in parts.items()
    ]


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
