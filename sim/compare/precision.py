"""How what compression costs grows with training, falls with size, and falls with bits.

    δ = C · D^γ_D / N^γ_N · e^(−P/γ_P)    Kumar et al. 2024, 2411.04330, eq. 3

δ is the rise of the loss when weights are rounded to P bits after training. The rows are those of
`sim.compare.effective.of_cells`. Fits are least squares in logs over cells whose rise is resolved
(twice its standard error or more), with 90 % t intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.sim.compare.regression import coefficients
from isoflop.sim.treatments.formats import BITS

CELLS_MIN = 5  # of a line over tokens and size
ROUNDED = {f"weights {name}": BITS[name] for name in ("int4", "int3", "int2")}


def largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of each family's largest run with most tokens."""
    most = {row["family"]: (0.0, 0.0) for row in rows}
    for row in rows:
        most[row["family"]] = max(most[row["family"]], (row["N"], row["D"]))
    return [row for row in rows if (row["N"], row["D"]) == most[row["family"]]]


def inside(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of each family's runs of most tokens at the largest size but one, so that an effective
    size has trained sizes on both sides of it.
    """
    found = []
    for name in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == name]
        sizes = sorted({row["N"] for row in own})
        at = sizes[-2:][0], max(row["D"] for row in own)
        found += [row for row in own if (row["N"], row["D"]) == at]
    return found


def hardness(rows: Sequence[Mapping[str, Any]], treatment: str) -> dict[str, dict[str, Any]]:
    """γ_D and γ_N of one treatment by family, as [value, low, high]. A family is left out with
    fewer than five cells, or with a rise that is not resolved in any of them.
    """
    found = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        cells = [row for row in rows if (row["family"], row["treatment"]) == (name, treatment)]
        if len(cells) < CELLS_MIN or not all(map(_resolved, cells)):
            continue
        line = _line(cells)
        found[name] = dict(zip(("gamma_D", "gamma_N"), line, strict=True)) | {"cells": len(cells)}
    return found


def post_training(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The whole form by family: γ_D, γ_N and γ_P as [value, low, high], how many of the cells of
    weights at 4, 3 and 2 bits (rounded to nearest) were `resolved` and how many were not, and the
    fit's status: `converged`; `unidentifiable`, with a reason, where they do not tell the exponents
    apart, or bits do not lower the rise.
    """
    found = {}
    for name in dict.fromkeys(row["family"] for row in rows):
        cells = [row for row in rows if row["family"] == name and row["treatment"] in ROUNDED]
        kept = [cell for cell in cells if _resolved(cell)]
        told: dict[str, Any] = {"resolved": len(kept), "unresolved": len(cells) - len(kept)}
        if reason := _lacks(kept):
            found[name] = told | {"status": "unidentifiable", "reason": reason}
            continue
        *exponents, bits = _line(kept, [-float(ROUNDED[cell["treatment"]]) for cell in kept])
        if bits[1] <= 0:  # 1/γ_P: an interval that holds 0 is no bound on γ_P
            reason = "the rise does not fall with bits beyond its noise"
            found[name] = told | {"status": "unidentifiable", "reason": reason}
            continue
        value, low, high = bits
        found[name] = told | {
            **dict(zip(("gamma_D", "gamma_N"), exponents, strict=True)),
            "gamma_P": [1 / value, 1 / high, 1 / low],
            **{"status": "converged", "reason": ""},
        }
    return found


def _resolved(cell: Mapping[str, Any]) -> bool:
    return bool(cell["change"] > 2 * cell["se"])


def _lacks(cells: Sequence[Mapping[str, Any]]) -> str:
    """What cells would have to have for all three exponents; empty if nothing."""
    for name, least in (("D", 2), ("N", 2), ("treatment", 2)):
        if (have := len({cell[name] for cell in cells})) < least:
            what = {"treatment": "format"}.get(name, name)
            return f"resolved rises are of {have} {what}, and at least {least} are needed"
    if len(cells) < CELLS_MIN + 1:
        return f"{len(cells)} rises are resolved, and at least {CELLS_MIN + 1} are needed"
    return ""


def _line(cells: Sequence[Mapping[str, Any]], *more: Sequence[float]) -> list[list[float]]:
    """Coefficients of ln δ on ln D, −ln N and more columns, each with its interval."""
    tokens = [math.log(cell["D"]) for cell in cells]
    sizes = [-math.log(cell["N"]) for cell in cells]
    columns = map(np.array, (tokens, sizes, *more))
    return coefficients([*columns], np.log([cell["change"] for cell in cells]))
