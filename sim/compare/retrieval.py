"""Is a gain logarithmic in the store? A parabola through the seeds' gains, which may be a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.sim.compare.regression import coefficients
from isoflop.sim.records.metrics import Z90

POINTS_MIN = 5  # of a parabola with a residual that an interval can be made of


def parabola(stores: Sequence[float], gains: Sequence[float]) -> dict[str, list[float]]:
    """Gain = a + slope·x + curvature·x² with x the log2 of the store, less its mean: `slope` and
    `curvature` with 90 % t intervals, by least squares. Empty with fewer than five points, or with
    fewer than three sizes.
    """
    if len(gains) < POINTS_MIN or len({*stores}) < 3:
        return {}
    x = np.log2(np.asarray(stores, float))
    x = x - x.mean()
    found = coefficients([x, x**2], np.asarray(gains, float))
    return dict(zip(("slope", "curvature"), found, strict=True))


def by_store(rows: Sequence[Mapping[str, Any]], family: str) -> dict[str, list[float]]:
    """`parabola` of a family's seeds in the table of `isoflop run retrieve`; in nats."""
    mine = [row for row in rows if row.get("arm") == "store" and row["family"] == family]
    points = [(row["store"], -change) for row in mine for change in row["changes"]]
    return parabola([store for store, _ in points], [gain for _, gain in points])


def families(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Of a part of the table, in its order."""
    return list(dict.fromkeys(str(row["family"]) for row in rows if row["part"] == part))


def obeys(row: Mapping[str, Any]) -> bool:
    """Whether a loss on facts is within its 90 % interval of the law."""
    return abs(row["loss"] - row["law"]) <= Z90 * row["se"]


def told_apart(row: Mapping[str, Any]) -> int:
    """The sign of a row's change where 0 is outside of its 90 % interval, else 0."""
    half = Z90 * row["se"]
    return int(row["change"] > half) - int(row["change"] < -half)


def per_byte(row: Mapping[str, Any]) -> tuple[float, float, float | None] | None:
    """N_eff/N over the bytes held, as multiples of the run's own, with its interval; None without
    an effective size.
    """
    if row.get("reason"):
        return None
    held, high = row["held_bytes"], row["high"]
    return row["ratio"] / held, row["low"] / held, None if high is None else high / held
