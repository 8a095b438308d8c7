"""From which context on attention costs more than a recurrence, of measurements at growing lengths.

Between two lengths of which attention is the cheaper at the first and the dearer at the second, the
log of the ratio of costs is taken as a line in log T; the crossing is its zero, the last one if
there are several. Programs took turns, so the two costs of a turn are of one moment: every turn has
a crossing of its own, and the interval is the 90 % t interval of the mean of their logs. There is
none with fewer than three turns, or where some turn does not cross; a count of bytes has no noise,
and its crossing none.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from isoflop.sim.compare.slopes import series

TURNS_MIN = 3


@dataclass(frozen=True)
class Crossing:
    """Of one quantity; `at` is None where the cheaper one stays so over all lengths."""

    attention: str
    recurrence: str
    quantity: str
    at: float | None
    low: float | None
    high: float | None
    words: str


def crossings(
    measured: Sequence[Mapping[str, Any]], attention: Sequence[str], quantities: Sequence[str]
) -> list[Crossing]:
    """Of each family in `attention` with each other one, by quantity."""
    found = []
    for quantity in quantities:
        lines = series([dict(m) for m in measured], quantity)
        for one in (name for name in lines if name in attention):
            for other in (name for name in lines if name not in attention):
                found.append(_crossing(one, other, quantity, lines[one], lines[other]))
    return found


def _crossing(
    one: str,
    other: str,
    quantity: str,
    attention: Sequence[Mapping[str, Any]],
    recurrence: Sequence[Mapping[str, Any]],
) -> Crossing:
    theirs = {m["seq_len"]: m for m in recurrence}
    pairs = [(m, theirs[m["seq_len"]]) for m in attention if m["seq_len"] in theirs]
    lengths = [m["seq_len"] for m, _ in pairs]
    ratios = [m["value"] / r["value"] for m, r in pairs]
    at = crossing(lengths, ratios)
    low = high = None
    if at is None:
        words = _one_sided(lengths, ratios)
    else:
        low, high = _interval(lengths, pairs)
        words = f"{at:,.0f} tokens"
        if low is not None and high is not None:
            words += f" [{low:,.0f}, {high:,.0f}]"
    return Crossing(one, other, quantity, at, low, high, words)


def crossing(lengths: Sequence[float], ratios: Sequence[float]) -> float | None:
    """The last length at which the ratio rises through 1; None where it does not."""
    points = [(math.log(t), math.log(r)) for t, r in zip(lengths, ratios, strict=True)]
    for (x0, y0), (x1, y1) in reversed(list(itertools.pairwise(points))):
        if y0 < 0 <= y1:
            return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))
    return None


def _one_sided(lengths: Sequence[float], ratios: Sequence[float]) -> str:
    if not lengths:
        return "no length in common"
    if max(ratios) < 1:
        return f"beyond {max(lengths):,} tokens: cheaper throughout"
    if min(ratios) >= 1:
        return f"below {min(lengths):,} tokens: no cheaper anywhere"
    return "none: cheaper at long contexts alone"


def _interval(
    lengths: Sequence[float], pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> tuple[float | None, float | None]:
    turns = [(m.get("turns", ()), r.get("turns", ())) for m, r in pairs]
    count = min(min(len(a), len(b)) for a, b in turns)
    found = [crossing(lengths, [a[i] / b[i] for a, b in turns]) for i in range(count)]
    logs = [math.log(t) for t in found if t is not None]
    if count < TURNS_MIN or len(logs) < count:
        return None, None
    half = float(stdtrit(count - 1, 0.95)) * statistics.stdev(logs) / math.sqrt(count)
    middle = statistics.fmean(logs)
    return math.exp(middle - half), math.exp(middle + half)
