"""The figure everyone knows: a valley of loss at each budget, and N*(C) through their minima."""

from __future__ import annotations

from pathlib import Path

from isoflop.figures import valleys
from isoflop.sim.compare import family_fits
from isoflop.sim.compare.points import families, points
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture for each family. Raises UserError where three budgets have no minimum inside."""
    return [
        path
        for family, group in families(points(rows)).items()
        for path in valleys.draw(family_fits.valleys(group), out / f"{family}.png")
    ]
