"""Loss against learning rate at each size: where a family's optimum lies, and whether it moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from isoflop.figures import style
from isoflop.sim.compare.rates import dial, sweep, tuned
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One panel for each family, one curve for each width, a ring at each optimum."""
    found, numbers = sweep(rows), tuned(rows)
    if not found:
        return []
    columns = min(3, len(found))
    kinds = {name: name.split(", ")[0] for name in found}  # without optimiser and depth rule
    styles = style.styles(kinds.values())
    with style.sheet(columns, -(-len(found) // columns), 4.0, 3.2) as (figure, panels):
        for axes, (family, widths) in zip(panels, found.items(), strict=False):
            look = styles[kinds[family]]
            for shade, (width, losses) in enumerate(sorted(widths.items())):
                known = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
                colour, alpha = look.colour, 1 - 0.5 / (shade + 1)
                axes.plot(
                    list(known), list(known.values()), f"{look.marker}-",
                    label=f"{dial(rows)} {width}", color=colour, alpha=alpha,
                )  # fmt: skip
                if known:
                    best = min(known, key=known.__getitem__)
                    axes.plot(best, known[best], "o", ms=12, mfc="none", mec=colour)
            axes.set_xscale("log", base=2)
            every = sorted({rate for losses in widths.values() for rate in losses})
            axes.set_xticks(every, [f"{rate:g}" for rate in every], rotation=30)
            axes.minorticks_off()
            failed = " (the rule fails)" if family in numbers["moved"] else ""
            failed += " (no optimum inside)" if family in numbers["refused"] else ""
            axes.set_title(family + failed)
            axes.set_xlabel(f"matrix learning rate at the base {dial(rows)}")
            axes.set_ylabel("held-out loss (nats per token)")
            style.key(axes)
        style.drop(panels[len(found) :])
        style.title(figure, finding(numbers, dial(rows)))
        style.note(figure, f"means over seeds; a ring: the best rate of a {dial(rows)}")
    return style.save(figure, numbers, out, "lr_transfer")


def finding(numbers: dict[str, Any], dial: str) -> str:
    """How far the best rate moves from the least width (or depth) to the greatest."""
    shifts = {
        name: abs(family["shift"])
        for name, family in numbers["families"].items()
        if len(family["best"]) > 1
    }
    if not shifts:
        return f"Held-out loss against the learning rate, at one {dial}"
    most = max(shifts, key=lambda name: shifts[name])
    moved = sum(shift > 0 for shift in shifts.values())
    sizes = [int(size) for name in shifts for size in numbers["families"][name]["best"]]
    ends = f"From {dial} {min(sizes)} to {max(sizes)}"
    if not moved:
        return f"{ends} no best rate of {len(shifts)} families moves"
    return (
        f"{ends} the best rate moves for {moved} of {len(shifts)} families, by at most "
        f"{2 ** shifts[most]:.3g} × ({most})"
    )
