"""What models that were trained for one domain are worth beside general ones, paired by seed.

The rows are the table of `isoflop run specialise`: of every arm, size and seed the FLOPs that it
took in all, and its losses on the domain and on what it was general in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.sim.compare.rankings import Interval

Table = Sequence[Mapping[str, Any]]
GENERAL, DOMAIN, TUNED, LORA, PARENT = "general", "domain alone", "tuned", "LoRA", "parent"


def of(rows: Table, arm: str, width: int) -> dict[int, Mapping[str, Any]]:
    """By seed."""
    return {row["seed"]: row for row in rows if (row["arm"], row["width"]) == (arm, width)}


def old(rows: Table) -> str:
    """What the models were general in: english, or code where the domain is a book."""
    return "english" if "english" in rows[0] else "code"


def widths(rows: Table, arm: str) -> list[int]:
    return sorted({row["width"] for row in rows if row["arm"] == arm})


def size(rows: Table, width: int) -> int:
    return next(row["N"] for row in rows if row["width"] == width)


def less(
    rows: Table, first: tuple[str, int], second: tuple[str, int], metric: str = "domain"
) -> Interval | None:
    """Loss of the first arm and width, less the second's: mean over the seeds that both have, with
    its 90 % t interval; None where they share none.
    """
    a, b = of(rows, *first), of(rows, *second)
    differences = [a[seed][metric] - b[seed][metric] for seed in a if seed in b]
    return Interval.of(differences) if differences else None


def best(rows: Table, arm: str, metric: str = "domain") -> int | None:
    """The width of least mean loss of an arm; None where it has no rows."""

    def mean(width: int) -> float:
        found = of(rows, arm, width).values()
        return sum(row[metric] for row in found) / len(found)

    return min(widths(rows, arm), key=mean, default=None)


def not_above(interval: Interval | None, limit: float = 0.0) -> bool | None:
    """Whether a difference is at most the limit, by its interval; None where that is open."""
    if interval is None or interval.low is None or interval.high is None:
        return None
    return True if interval.high <= limit else False if interval.low > limit else None
