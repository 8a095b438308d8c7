"""What the literature says of models whose weights have fewer bits."""

from __future__ import annotations

from typing import Any

from isoflop.sim.compare.precision import hardness, inside
from isoflop.sim.compare.verdicts import Finding, above, claim, told

GRID = "29k to 271k parameters, 154k to 614k tokens of Python code, two seeds, groups of 32 weights"
AWARE, CONTROL = "retrain 150 int4", "retrain 150"
PUBLISHED, WIDEST = 0.923, 0.3


@claim(
    "weights of four bits leave .92 of the size of a model that is trained with them",
    source="Frantar et al. 2025, 2502.16440",
    setting=f"dense, {GRID}; 150 more steps with int4 weights beside 150 without, width 64",
    records=("compress",),
)
def four_bits_leave_most(rows: list[dict[str, Any]]) -> Finding:
    """N_eff/N of dense models of most tokens at the largest size that has larger ones beside it.
    Reproduced if the 90 % interval holds .923 and is at most .3 wide; not reproduced if it does not
    hold it; else not resolved.
    """
    own = [row for row in inside(rows) if row.get("control") == CONTROL]
    said = "; ".join(
        f"{row['family']}: {row.get('reason') or told(row['ratio'], row['low'], row['high'])}"
        for row in own
    )
    dense = [row for row in own if row["family"] == "dense" and not row.get("reason")]
    if not dense:
        return Finding(None, said or "no training that knows of its rounding")
    low, high = dense[0]["low"], dense[0]["high"]
    if above(low, high, PUBLISHED) is not None:
        return Finding(False, said)
    narrow = high is not None and high - low <= WIDEST
    return Finding(True if narrow else None, said)


@claim(
    "the longer a model was trained, the more rounding its weights costs",
    source="Kumar et al. 2024, 2411.04330",
    setting=f"dense, {GRID}; int3, rounded to nearest after training",
    records=("compress",),
)
def training_makes_rounding_dearer(rows: list[dict[str, Any]]) -> Finding:
    """Slope γ_D of the logarithm of the rise of the loss on that of the tokens, at equal size.
    Reproduced if its 90 % interval lies above 0 for dense models; not reproduced if below; else not
    resolved.
    """
    found = hardness(rows, "weights int3")
    said = "; ".join(f"{name}: {told(*one['gamma_D'])}" for name, one in found.items())
    if "dense" not in found:
        return Finding(None, f"no slope for dense models: {said}")
    _, low, high = found["dense"]["gamma_D"]
    return Finding(above(low, high, 0.0), f"γ_D {said}", found)
