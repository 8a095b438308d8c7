"""Which learning rate a sweep finds for each family, and whether it transfers across sizes.

The rate is that of the base size, with the rule for the width or the depth already applied, so
under the rule the losses of one family have their minimum at one rate, whatever the size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from isoflop.sim.records.store import Row

HOLDS = 1.0  # factors of two: one step of the sweep
Sweep = dict[str, dict[int, dict[float, float]]]  # family → width or depth → rate → mean loss


def dial(rows: Sequence[Row]) -> str:
    """What the sweep is over: the depth where there are several, else the width."""
    return "depth" if len({row.labels["depth"] for row in rows}) > 1 else "width"


def sweep(rows: Sequence[Row]) -> Sweep:
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


def tuned(rows: Sequence[Row]) -> dict[str, Any]:
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
