"""How fast time and memory grow with the context: slopes of measurements on log-log axes.

A measurement is {family, quantity, seq_len, value, low, high}, where known with the width, depth
and device it was taken at; `low` and `high` are the spread of its repeats. The slope is that of log
value against log T from 1k to 32k tokens: 1 is linear, 2 quadratic, 0 constant. Its interval is
the 90 % t interval of that line, so curvature widens it; two lengths give none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import stdtrit

WINDOW = (1024, 32768)  # tokens, over which slopes are fitted, as far as they were measured
QUANTITIES = ("train_step_seconds", "prefill_seconds", "decode_seconds", "state_bytes")


@dataclass(frozen=True)
class Slope:
    """Slope of a log-log line between two lengths; `half` is None with fewer than three."""

    value: float
    half: float | None
    n: int
    shortest: int
    longest: int

    @property
    def power(self) -> str:
        return f"{self.value:.2f}".replace("-0.00", "0.00").replace("-", "−")

    def __str__(self) -> str:
        return self.power if self.half is None else f"{self.power} ± {self.half:.2f}"


def slope(
    lengths: Iterable[float], values: Iterable[float], window: tuple[float, float] = WINDOW
) -> Slope | None:
    """Over the lengths inside the window; None with fewer than two of them."""
    inside = [
        (math.log(t), math.log(v))
        for t, v in zip(lengths, values, strict=True)
        if window[0] <= t <= window[1] and v > 0
    ]
    if len({x for x, _ in inside}) < 2:
        return None
    ends = round(math.exp(min(inside)[0])), round(math.exp(max(inside)[0]))
    x, y = np.array(inside).T
    x = x - x.mean()
    gradient = float(x @ y / (x @ x))
    freedom = len(x) - 2
    if freedom < 1:
        return Slope(gradient, None, len(x), *ends)
    rest = y - y.mean() - gradient * x
    half = float(stdtrit(freedom, 0.95) * math.sqrt(rest @ rest / freedom / (x @ x)))
    return Slope(gradient, half, len(x), *ends)


def series(measured: Iterable[dict], quantity: str) -> dict[str, list[dict[str, Any]]]:
    """By family, as they come, by increasing length; what is not positive has no logarithm."""
    kept = [m for m in measured if m["quantity"] == quantity and m["value"] > 0]
    return {
        name: sorted((m for m in kept if m["family"] == name), key=lambda m: m["seq_len"])
        for name in dict.fromkeys(str(m["family"]) for m in kept)
    }


def slopes(measured: Iterable[dict]) -> dict[str, dict[str, Slope | None]]:
    """By quantity, then family."""
    measured = list(measured)
    return {
        quantity: {
            name: slope([m["seq_len"] for m in line], [m["value"] for m in line])
            for name, line in series(measured, quantity).items()
        }
        for quantity in QUANTITIES
        if series(measured, quantity)
    }


def window(fitted: Mapping[str, Mapping[str, Slope | None]]) -> tuple[int, int]:
    """The shortest and the longest length that any slope is of; WINDOW where there is none."""
    known = [s for lines in fitted.values() for s in lines.values() if s is not None]
    if not known:
        return WINDOW
    return min(s.shortest for s in known), max(s.longest for s in known)
