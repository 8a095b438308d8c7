"""Are runs of several architectures fitted as one? What a table's labels and a fit's residuals say.

Three signs give a warning: a column with a name that architectures go by (`LABELS`); any other
column of words between whose labels residuals differ by an F-test; and, where no column explains
it, residuals with two modes by Sarle's bimodality coefficient (skewness² + 1)/kurtosis: ⅓ for a
normal distribution, 1 for two points.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from scipy.special import fdtrc

from isoflop.models.errors import listed, quoted
from isoflop.sim.laws.resample import Floats
from isoflop.sim.records.tables import Columns

LABELS = {
    *("arch", "archs", "architecture", "family", "group", "mixer", "model_family", "model_type"),
    *("model_name", "variant", "block", "backbone", "dataset"),
}
MOST = 50  # labels of a column; more of them name runs
SURE = 1e-4  # p of the F-test
BIMODAL, ENOUGH = 0.65, 20  # Sarle's coefficient, and residuals that it needs
SMALLEST = 1e-4  # residuals in log L from which modes are of interest


def mixed(
    columns: Columns, kept: Sequence[int], residuals: Floats, used: Collection[str]
) -> list[str]:
    """Warnings about a fit through the rows `kept`, whose residuals in log L these are (n,).

    Columns `used` have a role in the fit and are not taken for labels.
    """
    told = []
    for name, column in columns.items():
        values = [str(column[i]).strip() for i in kept]
        labels = list(dict.fromkeys(values))
        if name in used or not 2 <= len(labels) <= min(MOST, len(values) - 1):
            continue
        split = _differ(values, residuals) if not all(map(_number, labels)) else False
        known = name.lower().rsplit(".", 1)[-1] in LABELS
        if known or split:
            also = ", between which residuals differ" if split else ""
            told.append(
                f"one law is fitted through all {len(labels)} values of column {quoted(name)} "
                f"({listed(labels, 4)}){also}; --group {name} fits each on its own"
            )
    if not told and _bimodality(residuals) > BIMODAL:
        told.append(
            "residuals fall into heaps, as of several architectures fitted as one; if a column "
            "names them, --group COLUMN fits each on its own"
        )
    return told


def _number(label: Any) -> bool:
    try:
        float(label)
    except ValueError:
        return False
    return True


def _differ(values: Sequence[str], residuals: Floats) -> bool:
    labels, of = np.unique(values, return_inverse=True)
    k, n = len(labels), len(residuals)
    count = np.bincount(of)
    mean = np.bincount(of, residuals) / count
    between = float(count @ (mean - residuals.mean()) ** 2)
    within = float(((residuals - mean[of]) ** 2).sum())
    if n <= k or np.sqrt((between + within) / n) < SMALLEST:
        return False
    return bool(fdtrc(k - 1, n - k, between / (k - 1) / max(within / (n - k), 1e-30)) < SURE)


def _bimodality(residuals: Floats) -> float:
    off = residuals - residuals.mean() if len(residuals) else residuals
    if len(off) < ENOUGH or (scale := float(off.std())) < SMALLEST:
        return 0.0
    z = off / scale
    return float((np.mean(z**3) ** 2 + 1.0) / np.mean(z**4))
