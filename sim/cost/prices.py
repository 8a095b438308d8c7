"""Prices with their dates: of chips bought and powered, and of tokens by vendors' lists.

Rents of chips stand beside their specifications (sim/cost/hardware.py). All are dated inputs, not
constants: pass your own. One that is older than `YEAR` days warns, since rents have halved and
doubled within a year.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from isoflop.models.errors import UserError
from isoflop.sim.cost.hardware import Price

YEAR = 365
HOURS = 730.0  # of a month
MILLION = 1e6


@dataclass(frozen=True)
class TokenPrice:
    """Dollars per million tokens of a vendor's list, at a date."""

    name: str
    input: float
    output: float
    date: str
    source: str
    cached: float | None = None  # of input that the vendor has cached; None: charged as input

    def __post_init__(self) -> None:
        rates = {"input": self.input, "output": self.output, "cached": self.cached or 0.0}
        for name, rate in rates.items():
            if not 0 <= rate < 1e9:
                raise UserError(
                    f"the {name} price of {self.name} must be 0 or more dollars per million "
                    f"tokens, and is {rate:g}; correct it"
                )

    def per_token(self, prompt: float, answer: float, cached: float = 0.0) -> float:
        """Dollars per token of traffic with `prompt` tokens to every `answer` tokens, of which the
        share `cached` of the prompt is in the vendor's cache.
        """
        hit = self.input if self.cached is None else self.cached
        into = prompt * (cached * hit + (1 - cached) * self.input)
        return (into + answer * self.output) / (prompt + answer) / MILLION


_LIST = "simonw/llm-prices @ 723ef0b"
_STREET = "aiinframap.com, H100 vs H200 vs B200 TCO: street prices, ±20–40 %; no list price"
_RACK = "v2-pseo-ai.pages.dev/tools/gpu-tco-analysis: range of contracts, and its middle"

PURCHASE = {  # dollars per chip
    "H100": Price(18e3, 30e3, 42e3, "2026-06", _STREET),
    "H200": Price(21e3, 35e3, 49e3, "2026-06", _STREET),
    "B200": Price(24e3, 40e3, 56e3, "2026-06", _STREET),
}
ELECTRICITY = Price(0.06, 0.09, 0.12, "2026-06", f"dollars per kWh; {_RACK}")
RACK = Price(150.0, 200.0, 250.0, "2026-06", f"dollars per kW and month; {_RACK}")
API = {
    price.name: price
    for price in (
        TokenPrice("gpt-5-nano", 0.05, 0.40, "2026-08", _LIST, 0.005),
        TokenPrice("gpt-5-mini", 0.25, 2.00, "2026-08", _LIST, 0.025),
        TokenPrice("gpt-5", 1.25, 10.00, "2026-08", _LIST, 0.125),
        TokenPrice("gpt-4o-mini", 0.15, 0.60, "2026-08", _LIST, 0.075),
        TokenPrice("claude-haiku-4.5", 1.00, 5.00, "2026-08", _LIST),
        TokenPrice("claude-opus-4.8", 5.00, 25.00, "2026-08", _LIST),
        TokenPrice("gemini-2.5-flash-lite", 0.10, 0.40, "2026-08", _LIST, 0.01),
        TokenPrice("ministral-8b", 0.10, 0.10, "2026-08", _LIST),
        TokenPrice("mixtral-8x7b", 0.70, 0.70, "2026-08", _LIST),
        TokenPrice("deepseek-v4-pro", 1.74, 3.48, "2026-08", _LIST, 0.145),
    )
}


def api(name: str) -> TokenPrice:
    """A row of the list. Raises UserError for a name that is not in it."""
    if name not in API:
        raise UserError(f"there is no listed price of {name!r}; use one of {', '.join(API)}")
    return API[name]


def checked(price: Price, what: str) -> Price:
    """The same price. UserError unless 0 ≤ low ≤ median ≤ high."""
    if not 0 <= price.low <= price.median <= price.high < 1e12:
        raise UserError(
            f"the {what} must be 0 or more dollars with low ≤ median ≤ high, and is "
            f"{price.low:g}, {price.median:g}, {price.high:g}; correct it"
        )
    return price


def owned(
    purchase: Price,
    watts: float,
    months: float = 36.0,
    residual: float = 0.0,
    electricity: Price = ELECTRICITY,
    rack: Price = RACK,
    overhead: float = 1.5,
    draw: float = 0.7,
) -> Price:
    """Dollars per chip-hour of a chip that is bought and written off over `months`.

    `residual` is the share of its price that it still fetches then; a rack is rented for `overhead`
    times its `watts` (host, network, cooling), of which the share `draw` is used. Raises UserError
    for months, watts or shares that cannot be.
    """
    if not (months > 0 and watts > 0 and 0 <= residual < 1 and overhead >= 1 and 0 < draw <= 1):
        raise UserError(
            f"months={months:g} and watts={watts:g} must be above 0, residual={residual:g} from 0 "
            f"to below 1, overhead={overhead:g} at least 1 and draw={draw:g} in (0, 1]"
        )
    kilowatts = watts * overhead / 1000
    rates = []
    for level in ("low", "median", "high"):
        bought, power, room = (
            getattr(checked(price, what), level)
            for price, what in (
                (purchase, "price of a chip"),
                (electricity, "price of electricity"),
                (rack, "rent of a rack"),
            )
        )
        hour = bought * (1 - residual) / (months * HOURS)
        rates.append(hour + kilowatts * (draw * power + room / HOURS))
    low, median, high = rates
    oldest = min(purchase.date, electricity.date, rack.date)
    return Price(low, median, high, oldest, f"bought: {purchase.source}; {electricity.source}")


def stale(
    prices: Iterable[tuple[str, Price | TokenPrice]], today: date, days: int = YEAR
) -> list[str]:
    """A warning for each named price that was dated more than `days` before `today`."""
    found = []
    for name, price in prices:
        age = (today - dated(price.date)).days
        if age > days:
            found.append(
                f"the price of {name} is of {price.date}, {age} days old: pass one of today"
            )
    return found


def dated(text: str) -> date:
    """2026-05 or 2026-05-20 as a day. UserError for anything else."""
    try:
        return date.fromisoformat(text if len(text) > 7 else f"{text}-01")
    except ValueError:
        raise UserError(
            f"a price's date must be as 2026-05 or 2026-05-20, and is {text!r}"
        ) from None
