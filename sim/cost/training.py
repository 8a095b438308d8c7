"""What a training run costs, and from which volume on having one's own model pays.

    chip-hours = FLOPs · (1 + trials · share) / (utilisation · peak) / (1 − lost)
    total(v)   = upfront + months · monthly(v)                  v tokens a month

Utilisation is that of the model's FLOPs (MFU, Chowdhery et al. 2022, 2204.02311, appendix B): state
it, or measure it with `utilisation`. Published ones: 38 to 43 % for Llama 3 405B on 16,384 H100s
(2407.21783, table 4). Dollars are (low, median, high) of a dated price; joules are a range.
Not included: storage, egress, staff, and data that is bought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.sim.cost.hardware import SECONDS_PER_HOUR, Device, Price, dollars
from isoflop.sim.cost.prices import HOURS, TokenPrice, checked

Floats = NDArray[np.float64]
Three = tuple[float, float, float]  # at the low, median and high price

DRAW = (0.6, 1.0)  # of a board's limit while training
OVERHEAD = (1.1, 1.6)  # host, network, conversion and cooling, per watt of the boards
LEAST, MOST = 1e4, 1e14  # tokens a month that break-even volumes are looked for in
GRID = 2001  # points a decade of that are 200


@dataclass(frozen=True)
class Bill:
    """What a run takes, its trials included."""

    flops: float
    chip_hours: float
    days: float  # on all chips at once
    dollars: Three
    joules: tuple[float, float] | None  # None: the chip's maker states no power


def utilisation(flops: float, seconds: float, on: Device, chips: float = 1) -> float:
    """The share of the chips' peak that a measured run's FLOPs reached.

    Raises UserError where that is not between 0 and 1: the time or the chip is another.
    """
    share = flops / (seconds * chips * on.flops_per_second) if seconds > 0 and chips > 0 else -1.0
    return _share(share, f"the utilisation of {chips:g} {on.name} ({flops:.3g} FLOPs)")


def training(
    flops: float,
    on: Device,
    chips: int,
    utilisation: float,
    price: Price | None = None,
    trials: float = 0.0,
    trial_share: float = 0.01,
    lost: float = 0.0,
) -> Bill:
    """The bill of a run of `flops` on `chips` at a share of their peak.

    `trials` are hyper-parameter trials, each of `trial_share` of the run's FLOPs; `lost` is the
    share of chip time that restarts and waiting take. The price is the chip's listed rent unless
    given. Raises UserError for what cannot be.
    """
    for name, value in (("flops", flops), ("chips", chips)):
        if not 0 < value < 1e40:
            raise UserError(f"{name}={value:g} must be above 0; correct it")
    if not 0 <= trials < 1e9:
        raise UserError(f"trials={trials:g} must be at least 0; correct it")
    if not 0 <= lost < 1:
        raise UserError(f"lost={lost:g} must be from 0 to below 1: the share of time not trained")
    _share(utilisation, "utilisation")
    _share(trial_share, "trial_share, of the run's FLOPs,", zero=True)
    every = flops * (1 + trials * trial_share)
    seconds = every / (utilisation * on.flops_per_second) / (1 - lost)  # of one chip
    rent = checked(on.price if price is None else price, f"rent of {on.name}")
    power = None
    if on.watts is not None:
        power = (on.watts * seconds * DRAW[0] * OVERHEAD[0],
                 on.watts * seconds * DRAW[1] * OVERHEAD[1])  # fmt: skip
    return Bill(
        every,
        seconds / SECONDS_PER_HOUR,
        seconds / chips / SECONDS_PER_HOUR / 24,
        dollars(rent, seconds),
        power,
    )


def tuning_flops(params: float, tokens: float, teacher: float = 0.0) -> float:
    """FLOPs of training `params` on so many tokens; distilled, the `teacher`'s forward pass over
    them is paid for too (Busbridge et al. 2025, 2502.08606, §5): 6·N·D + 2·N_T·D.
    """
    for name, value in (("params", params), ("tokens", tokens), ("teacher", teacher)):
        if not 0 <= value < 1e20:
            raise UserError(f"{name}={value:g} must be 0 or more; correct it")
    return tokens * (6.0 * params + 2.0 * teacher)


def _share(value: float, name: str, zero: bool = False) -> float:
    if not (0 < value <= 1 or (zero and value == 0)):
        raise UserError(f"{name} must be a share in {'[' if zero else '('}0, 1], and is {value:g}")
    return value


@dataclass(frozen=True)
class Way:
    """One way to have answers: what it costs once, and each month as a function of tokens.

    `monthly` maps tokens a month (n,) to dollars (3, n), at the low, median and high price.
    """

    name: str
    monthly: Callable[[Floats], Floats]
    upfront: Three = (0.0, 0.0, 0.0)

    def costing(self, once: Sequence[float], name: str = "") -> Way:
        """The same way with training, tuning or distilling paid first."""
        first: Any = tuple(a + b for a, b in zip(self.upfront, once, strict=True))
        return replace(self, upfront=first, name=name or self.name)

    def total(self, tokens: Any, months: float) -> Floats:
        """Dollars (3, n) over a horizon, at `tokens` a month."""
        if not months > 0:
            raise UserError(f"months={months:g} must be above 0: a horizon to spread costs over")
        volumes = np.atleast_1d(np.asarray(tokens, dtype=float))
        return np.array(self.upfront)[:, None] + months * self.monthly(volumes)


def from_list(price: TokenPrice, prompt: float, answer: float, cached: float = 0.0) -> Way:
    """A vendor's API, for traffic of so many prompt and answer tokens a query."""
    rate = price.per_token(prompt, answer, cached)
    return Way(price.name, lambda v: np.broadcast_to(rate * v, (3, len(v))))


def hosted(
    name: str, rent: Price, chips: float, tokens_per_second: float, busy: float = 0.5,
    replicas: int = 1,
) -> Way:  # fmt: skip
    """Replicas of `chips` chips, each of which sustains so many tokens (prompt and answer).

    Traffic has peaks, so on average replicas are `busy` for that share of what they sustain. At
    least `replicas` stand day and night. `rent` is of a chip-hour, also of one's own
    (`prices.owned`).
    """
    checked(rent, f"rent of {name}'s chips")
    _share(busy, f"busy of {name}")
    if not (chips > 0 and 0 < tokens_per_second < math.inf and replicas >= 1):
        raise UserError(
            f"{name} must have chips={chips:g} and tokens_per_second={tokens_per_second:g} above 0 "
            f"and replicas={replicas} of at least 1"
        )
    each = busy * tokens_per_second * HOURS * SECONDS_PER_HOUR
    rates = np.array([rent.low, rent.median, rent.high])[:, None] * chips * HOURS

    def monthly(tokens: Floats) -> Floats:
        return rates * np.maximum(np.ceil(tokens / each), replicas)

    return Way(name, monthly)


def cascade(small: Way, large: Way, share: float) -> Way:
    """All traffic through the small way, and the share that it hands on through the large too."""
    _share(share, "the share handed on", zero=True)
    first: Any = tuple(a + b for a, b in zip(small.upfront, large.upfront, strict=True))
    return Way(
        f"{small.name}, {share:.0%} to {large.name}",
        lambda v: small.monthly(v) + large.monthly(share * v),
        first,
    )


@dataclass(frozen=True)
class BreakEven:
    """Tokens a month from which one way costs no more than another; inf: never in the range."""

    first: float  # the least such volume
    lasting: float  # from here on always: replicas come in whole numbers


def break_even(way: Way, than: Way, months: float) -> tuple[BreakEven, BreakEven, BreakEven]:
    """From which volume `way` pays, at the low, median and high price of both.

    Looked for from 10⁴ to 10¹⁴ tokens a month.
    """
    volumes = np.geomspace(LEAST, MOST, GRID)
    dearer = way.total(volumes, months) > than.total(volumes, months)
    return tuple(_crossed(way, than, months, volumes, row, i) for i, row in enumerate(dearer))  # type: ignore[return-value]


def _crossed(
    way: Way, than: Way, months: float, volumes: Floats, dearer: NDArray[np.bool_], level: int
) -> BreakEven:
    def between(last: int) -> float:
        """Where it stops to be dearer, between a volume and the next: a crossing or a step."""
        if last < 0:
            return float(volumes[0])
        low, high = float(volumes[last]), float(volumes[last + 1])
        for _ in range(60):
            middle = math.sqrt(low * high)
            gap = way.total(middle, months) > than.total(middle, months)
            low, high = (middle, high) if gap[level, 0] else (low, middle)
        return high

    if dearer.all():
        return BreakEven(math.inf, math.inf)
    first = int(np.argmin(dearer)) - 1
    lasting = len(dearer) - 1 - int(np.argmax(dearer[::-1])) if dearer.any() else -1
    end = math.inf if lasting == len(dearer) - 1 else between(lasting)
    return BreakEven(between(first), end)
