"""The figures of any grid whose experiment has none of its own: the demo's, and gains.

Gains are over `dense`, or, where the grid has no such family, over its first in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path

from isoflop.figures import ladder, quickstart, style
from isoflop.figures.palette import ORDER
from isoflop.sim.compare.points import LOSS
from isoflop.sim.compare.study import BASELINE, Study
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path, metric: str = LOSS) -> list[Path]:
    """As `figures.quickstart.draw`; of the loss also gains, where there are two families."""
    written = quickstart.draw(rows, out, metric)
    families = list(Study(rows, order=ORDER).families)
    if len(families) < 2 or metric != LOSS:
        return written
    baseline = BASELINE if BASELINE in families else families[0]
    study = Study(rows, quickstart.DRAWS, baseline, order=ORDER)
    found = {cost: [item.json() for item in items] for cost, items in study.gains.items()}
    return [*written, *ladder.gains({"gains": found}, style.styles(families), out)]
