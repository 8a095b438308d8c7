"""Loss against learning rate at each size: where a family's optimum lies, and whether it moves.

The rate is that of the base size; the rule for the width or the depth is already applied, so under
the rule the curves of one family have their minimum at one place.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from isoflop.figures import style
from isoflop.sim.records.store import Row

HOLDS = 1.0  # factors of two: one step of the sweep
Sweep = dict[str, dict[int, dict[float, float]]]  # family → width or depth → rate → mean loss


def dial(rows: list[Row]) -> str:
    """What the sweep is over: the depth where there are several, else the width."""
    return "depth" if len({row.labels["depth"] for row in rows}) > 1 else "width"


def sweep(rows: list[Row]) -> Sweep:
    """Mean loss over seeds. A rate of which any run diverged or failed has an infinite loss."""
    size = dial(rows)
    losses: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    for row in rows:
        labels, record = row.labels, row.record
        key = str(labels["family"]), int(labels[size]), float(labels["lr"])
        losses[key].append(math.inf if record.loss is None else record.loss)
    found: Sweep = {}
    for (family, width, rate), values in sorted(losses.items()):
        found.setdefault(family, {}).setdefault(width, {})[rate] = fmean(values)
    return found


def tuned(rows: list[Row]) -> dict[str, Any]:
    """The best rate of each family at its largest size, and what each size says.

    `rates` holds the families whose optimum is inside the sweep at the largest size; `refused`
    names the others with the reason. `shift` is how many factors of two the optimum moves from the
    narrowest width to the widest; the rule holds where that is at most `HOLDS`, and `moved` names
    the families for which it does not: they are trained at their own best rate of each size.
    """
    rates, refused, moved, detail = {}, {}, {}, {}
    size = dial(rows)
    rule = "1/width rule" if size == "width" else "rule for the depth"
    for family, widths in sweep(rows).items():
        best = {width: min(losses, key=losses.__getitem__) for width, losses in widths.items()}
        narrow, wide = min(best), max(best)
        shift = round(math.log2(best[wide] / best[narrow]), 3)
        tried = sorted(widths[wide])
        detail[family] = {
            "trials": {str(width): len(losses) for width, losses in widths.items()},
            "best": {str(width): rate for width, rate in best.items()},
            "shift": shift,
            "loss": {
                str(width): {f"{rate:g}": None if math.isinf(loss) else loss
                             for rate, loss in losses.items()}
                for width, losses in widths.items()
            },
        }  # fmt: skip
        if best[wide] in (tried[0], tried[-1]):
            refused[family] = f"the best rate {best[wide]:g} is at the edge of the sweep; widen it"
        else:
            rates[family] = best[wide]
        if abs(shift) > HOLDS:
            moved[family] = (
                f"the best rate at the base {size} moves from {best[narrow]:g} at {size} {narrow} "
                f"to {best[wide]:g} at {wide}, so the {rule} fails"
            )
    return {"rates": rates, "refused": refused, "moved": moved, "families": detail}


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One panel for each family, one curve for each width, a ring at each optimum."""
    found, numbers = sweep(rows), tuned(rows)
    if not found:
        return []
    columns = min(3, len(found))
    looks = style.looks(found)
    with style.sheet(columns, -(-len(found) // columns), 4.0, 3.2) as (figure, panels):
        for axes, (family, widths) in zip(panels, found.items(), strict=False):
            for shade, (width, losses) in enumerate(sorted(widths.items())):
                known = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
                colour, alpha = looks[family].colour, 1 - 0.5 / (shade + 1)
                axes.plot(
                    list(known), list(known.values()), f"{looks[family].marker}-",
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
        style.title(figure, finding(numbers))
        style.note(figure, "means over seeds; a ring: the best rate of a width")
    return style.save(figure, numbers, out, "lr_transfer")


def finding(numbers: dict[str, Any]) -> str:
    """How far the best rate moves from the narrowest width to the widest."""
    shifts = {
        name: abs(family["shift"])
        for name, family in numbers["families"].items()
        if len(family["best"]) > 1
    }
    if not shifts:
        return "Held-out loss against the learning rate, at one width"
    most = max(shifts, key=lambda name: shifts[name])
    moved = sum(shift > 0 for shift in shifts.values())
    if not moved:
        return f"No best rate of {len(shifts)} families moves with the width under lr ∝ 1/width"
    return (
        f"Under lr ∝ 1/width the best rate moves for {moved} of {len(shifts)} families, by at most "
        f"{2 ** shifts[most]:.3g} × ({most})"
    )
