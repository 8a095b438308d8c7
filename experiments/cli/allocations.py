"""Approaches 1 and 2 as a command: N*(C) from the envelope or from IsoFLOP valleys, no surface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console

from isoflop.experiments.cli.text import grid
from isoflop.models.errors import UserError
from isoflop.sim.laws.isoflop import Allocation, envelope, isoflop, variable_projection
from isoflop.sim.laws.law import FLOPS_PER_ND
from isoflop.sim.laws.resample import Floats
from isoflop.sim.records.tables import Columns, Dropped, clean, describe

NAMES = {"1": "envelope", "2": "IsoFLOP valleys"}


@dataclass(frozen=True)
class Allocated:
    """An allocation of one group's runs, and the rows left out."""

    approach: Literal["1", "2"]
    found: Allocation
    at: tuple[float, ...]
    residuals: Floats  # log loss less that of a surface through all runs
    dropped: tuple[Dropped, ...]

    def json(self) -> dict[str, Any]:
        return {
            "approach": int(self.approach),
            "a": self.found.a,
            "interval": {"a": list(self.found.interval)},
            "coefficient": self.found.coefficient,
            "valleys": [
                {"C": v.C, "runs": len(v.N), "N*": v.best, "interval": list(v.interval),
                 "L*": v.least, "left out": v.why}
                for v in self.found.valleys
            ],
            "at": [{"C": c, "N*": float(self.found(c)), "interval": list(self.found.band(c)),
                    "extrapolated": self.found.extrapolated(c)} for c in self.at],
            "warnings": list(self.found.warnings),
            "dropped": [x.json() for x in self.dropped],
        }  # fmt: skip


def allocate(
    columns: Columns, approach: Literal["1", "2"], *, n: str, d: str, loss: str, flops: str | None,
    budgets: Sequence[float], curve: Literal["parabola", "akima"], at: Sequence[float],
) -> Allocated:  # fmt: skip
    """Compute is the column `flops`, without it 6·N·D."""
    named = {"N": n, "loss": loss} | ({"C": flops} if flops else {"D": d})
    table = clean(columns, named)
    if not len(table):
        raise UserError(f"a fit needs usable rows: {describe(table.dropped)}; correct the file")
    C = table["C"] if flops else FLOPS_PER_ND * table["N"] * table["D"]
    if approach == "1":
        found = envelope(C, table["N"], table["loss"])
    else:
        found = isoflop(C, table["N"], table["loss"], budgets=budgets or None, method=curve)
    # no surface is told by these approaches, but what misses one tells whose runs differ
    D = C / (FLOPS_PER_ND * table["N"])
    law = variable_projection(table["N"], D, table["loss"])
    residuals = np.log(table["loss"]) - np.log(law(table["N"], D))
    return Allocated(approach, found, tuple(at), residuals, table.dropped)


def show(screen: Console, name: str, result: Allocated) -> None:
    """The table of one group."""
    found = result.found
    low, high = found.interval
    out = grid(
        f"{name}: approach {result.approach}, {NAMES[result.approach]}, "
        f"N* = {found.coefficient:.4g}·C^a, a = {found.a:.3f} [{low:.3f}, {high:.3f}]",
        "compute", "runs", "N*", "90 % interval", "L*",
    )  # fmt: skip
    for v in found.valleys:
        if not v.why:
            out.add_row(
                f"{v.C:.3g}",
                str(len(v.N)),
                f"{v.best:.4g}",
                _between(*v.interval),
                f"{v.least:.4g}",
            )
    if not found.valleys:
        for c, n in zip(found.C, found.N, strict=True):
            out.add_row(f"{c:.3g}", "1", f"{n:.4g}", "", "")
    for c in result.at:
        out.add_row(f"at {c:.3g}", "", f"{float(found(c)):.4g}", _between(*found.band(c)), "")
    screen.print(out)
    for c in result.at:
        if told := found.extrapolated(c):
            screen.print(f"at {c:.3g}: {told}")
    for warning in found.warnings:
        screen.print(f"warning: {warning}")


def _between(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if math.isfinite(low) else "none: few sizes"


def draw(result: Allocated, path: Path) -> list[Path]:
    """The valleys of approach 2 as SVG and PNG, with the numbers beside them."""
    from isoflop.figures.valleys import draw as drawn  # with matplotlib behind it

    return drawn(result.found, path)
