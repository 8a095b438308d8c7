"""Accuracy against size: the smallest that learns a task, plateaus, and what predicts accuracy.

Trials are those of sim/compare/trials.py: every size at its best learning rate, told by the seeds
that had no part in choosing it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import least_squares
from scipy.special import expit

from isoflop.sim.compare.points import COUNT
from isoflop.sim.compare.trials import Trial

REACHED = 0.9
FLAT = 0.05  # of accuracy, that sizes of a plateau are within
SIZES_MIN = 4  # of a prediction: three to fit by, the largest to predict


def size(trial: Trial) -> int:
    """N, as fits count it."""
    return trial.rows[0].record.params[COUNT]


def accuracies(trial: Trial) -> list[float]:
    """Of each reporting seed; 0 of one that diverged."""
    return [row.record.value("accuracy") or 0.0 for row in trial.rows]


@dataclass(frozen=True)
class Smallest:
    """The interval of trained sizes that holds it: above `low`, at which no seed reaches the mark
    for good (None: the smallest size was enough for one), and at most `high`, from which on every
    seed does (None: no size is enough for all).
    """

    low: int | None
    high: int | None
    edge: bool = False  # whether a size that failed had its rate at the edge of the sweep

    def __str__(self) -> str:
        if self.high is None:
            return "none" if self.low is None else f"more than {self.low:,}"
        return f"at most {self.high:,}" if self.low is None else f"{self.low:,} to {self.high:,}"


def smallest(trials: Sequence[Trial], reached: float = REACHED) -> Smallest:
    """N of the smallest model that reaches an accuracy: for each seed the first size from which on
    all larger ones do too; over the seeds, from the size below the least of them to the greatest.
    """
    ordered = sorted(trials, key=size)
    sizes = [size(trial) for trial in ordered]
    seeds = list(zip(*map(accuracies, ordered), strict=True))
    first = []
    for values in seeds:
        failed = [i for i, value in enumerate(values) if value < reached]
        first.append(failed[-1] + 1 if failed else 0)
    low, high = min(first), max(first)
    return Smallest(
        sizes[low - 1] if low else None,
        sizes[high] if high < len(sizes) else None,
        any(trial.edge for trial in ordered[:high]),
    )


def plateaus(trials: Sequence[Trial], reached: float = REACHED) -> list[tuple[int, int, float]]:
    """(from N, to N, mean accuracy) of two or more neighbouring sizes short of the mark whose mean
    accuracies lie within FLAT.
    """
    ordered = sorted(trials, key=size)
    means = [fmean(accuracies(trial)) for trial in ordered]
    found, begin = [], 0
    for end in range(1, len(means) + 1):
        part = means[begin : end + 1]
        if end < len(means) and max(part) - min(part) <= FLAT and max(part) < reached:
            continue
        if end - begin > 1:
            level = fmean(means[begin:end])
            found.append((size(ordered[begin]), size(ordered[end - 1]), level))
        begin = end
    return found


def predicted(trials: Sequence[Trial], chance: float) -> dict[str, Any] | None:
    """The largest size's accuracy, and what smaller ones predict: `direct`, a sigmoid of ln N, and
    `from_loss`, a sigmoid of the loss at a loss that a power law of N predicts (both from chance
    to 1, by least squares). None with fewer than four sizes, or where those to fit by lie within
    FLAT, which no sigmoid can be told from.

    Two steps against one: 2512.08894.
    """
    ordered = sorted(trials, key=size)
    means = [fmean(accuracies(trial)) for trial in ordered]
    losses = [[row.record.loss for row in trial.rows] for trial in ordered]
    if len(ordered) < SIZES_MIN or np.ptp(means[:-1]) <= FLAT:
        return None
    if any(value is None or value <= 0 for of_size in losses for value in of_size):
        return None
    n = np.log([size(trial) for trial in ordered])
    loss = np.array([fmean(math.log(value or 1.0) for value in of_size) for of_size in losses])
    slope, level = np.polyfit(n[:-1], loss[:-1], 1)
    ahead = np.append(np.exp(loss[:-1]), math.exp(slope * n[-1] + level))
    return {
        "measured": means[-1],
        "direct": _sigmoid(n, means[:-1], chance),
        "from_loss": _sigmoid(ahead, means[:-1], chance),
    }


def _sigmoid(x: np.ndarray, y: Sequence[float], chance: float) -> float:
    """What a sigmoid through all but the last x says of the last."""
    centre, scale = x[:-1].mean(), x[:-1].std() or 1.0
    z = (x - centre) / scale

    def at(theta: np.ndarray, z: Any) -> Any:
        return chance + (1 - chance) * expit(theta[0] + theta[1] * z)

    starts = [least_squares(lambda t: at(t, z[:-1]) - y, (0.0, s)) for s in (-2.0, 2.0)]
    return float(at(min(starts, key=lambda found: found.cost).x, z[-1]))
