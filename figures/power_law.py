"""Loss against compute on logarithmic axes: a straight line, if it is a power law."""

from __future__ import annotations

import math
from pathlib import Path

from isoflop.figures import scaling, style
from isoflop.sim.compare.family_fits import FamilyFit, line
from isoflop.sim.compare.points import Point
from isoflop.sim.compare.study import Study
from isoflop.sim.laws.forms import PowerLaw
from isoflop.sim.records.store import Row

DRAWS = 1000


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture: the runs of a family, and the law of all its cells but the costliest, drawn on
    to that one. None with fewer than two cells, or of several families.
    """
    study = Study(rows, DRAWS)
    if len(study.families) != 1 or len(study.points) < 2:
        return []
    ((family, group),) = study.families.items()
    cells = sorted(group, key=lambda cell: cell.flops["executed"])
    span = float(cells[0].flops["executed"]), float(cells[-1].flops["executed"])
    law = FamilyFit(family, PowerLaw, line(cells[:-1], "executed", DRAWS), span)
    with style.sheet(1, width=7.0) as (figure, (axes,)):
        scaling.loss_vs_flops(axes, study)
        scaling.bands(axes, [law])
        if band := law.band():
            axes.plot([at["flops"] for at in band], [at["loss"] for at in band], "--",
                      color=style.LINE, label="law of all models but the costliest")  # fmt: skip
        style.key(axes)
        style.title(figure, heading(law, cells[-1]))
        style.note(figure, "bars: 90 % over seeds; band: 90 % of the law")
        numbers = {"cells": [cell.numbers for cell in cells], "law": law.fit.json()}
        return style.save(figure, numbers, out, "power_law")


def heading(law: FamilyFit, last: Point) -> str:
    """The exponent, and how far the costliest cell is from the law of the others."""
    if law.fit.law is None or "alpha" not in law.fit.interval:
        return f"No power law through these runs: {law.fit.reason}"
    low, high = law.fit.interval["alpha"]
    predicted = float(law.fit.law(last.flops["executed"]))
    off = math.expm1(abs(math.log(last.loss / predicted)))
    return (
        f"Loss falls as C^−{law.fit.estimate['alpha']:.3f} [{low:.3f}, {high:.3f}], and the "
        f"costliest model is {off:.1%} off the law of the others"
    )
