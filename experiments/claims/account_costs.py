"""What the popular account says of prices: training, serving, energy, and what fits where."""

from __future__ import annotations

import math

from isoflop.experiments.claims.account_scale import from_published
from isoflop.sim.compare.verdicts import ACCOUNT, Finding, all_of, claim
from isoflop.sim.cost.hardware import DEVICES, device
from isoflop.sim.cost.prices import API
from isoflop.sim.cost.training import training

LOW, HIGH = 0.5, 0.3  # utilisation of the cheapest and of the dearest bill


def _bill(params: float, tokens: float) -> tuple[float, float]:
    """Dollars of 6·N·D FLOPs on H100s: low price at 50 % of the peak to high price at 30 %."""
    chip, flops = device("H100"), 6 * params * tokens
    return training(flops, chip, 1, LOW).dollars[0], training(flops, chip, 1, HIGH).dollars[2]


@claim(
    "training costs $10–50k for 1B to $10–50M for 70B; a million tokens cost $.05 to $5; return in "
    "months to years",
    source="D1 D2",
    setting="6·N·D on H100s at dated rents (2026-05) and 30 to 50 % utilisation; vendors' lists "
    "(2026-08); returns are not in it",
    words=ACCOUNT,
)
def training_bills() -> Finding:
    """Two recipes: 20 tokens a parameter, and 15T tokens for every size. Held if the bill of one
    recipe overlaps the claimed range at both sizes, and if vendors' prices of input and output lie
    within a factor of ten of the claimed ends; refuted if neither recipe does; else not resolved.
    """
    claimed = {1e9: (10e3, 50e3), 70e9: (10e6, 50e6)}
    recipes = {"20 tokens a parameter": lambda n: 20 * n, "15T tokens": lambda n: 15e12}
    fits, said = {}, []
    for name, tokens in recipes.items():
        bills = {n: _bill(n, tokens(n)) for n in claimed}
        fits[name] = all(bills[n][0] <= high and bills[n][1] >= low
                         for n, (low, high) in claimed.items())  # fmt: skip
        ends = " and ".join(f"${low:,.0f}–{high:,.0f}" for low, high in bills.values())
        said.append(f"{name}: {ends}")
    prices = [p for listed in API.values() for p in (listed.input, listed.output)]
    near = min(prices) >= 0.05 / 10 and max(prices) <= 50
    listed = f"listed: ${min(prices):g}–{max(prices):g} a million tokens"
    return from_published(all_of([any(fits.values()), near]), "; ".join([*said, listed]), fits)


@claim(
    "efficiency gains 40 % a year; compute grows 4.4× a year; the smartest model per watt wins",
    source="D3 D4",
    setting="bf16 FLOPs and bytes per second per watt of NVIDIA's data-centre boards by the date "
    "they were announced; the growth of all compute is outside",
    words=ACCOUNT,
)
def efficiency_by_year() -> Finding:
    """Growth a year between the first and the last board, of FLOPs per watt (prefill, training) and
    of memory bytes per watt (decoding). Held if both are 30 % a year or more; refuted if both are
    less; else not resolved.
    """
    boards = sorted((d for d in DEVICES.values() if d.watts and d.name[0] in "ABH"),
                    key=lambda d: d.announced)  # fmt: skip
    first, last = boards[0], boards[-1]
    years = (_months(last.announced) - _months(first.announced)) / 12
    growth = {
        name: (new / old) ** (1 / years) - 1
        for name, old, new in (
            ("FLOPs", first.flops_per_second, last.flops_per_second),
            ("bytes", first.bytes_per_second, last.bytes_per_second),
        )
        for old, new in [(old / (first.watts or math.nan), new / (last.watts or math.nan))]
    }
    enough = [g >= 0.3 for g in growth.values()]
    holds = True if all(enough) else None if any(enough) else False
    said = ", ".join(f"{name} per watt {g:.0%} a year" for name, g in growth.items())
    return from_published(holds, f"{said}, from {first.name} to {last.name}", growth)


def _months(date: str) -> int:
    year, month = date.split("-")[:2]
    return 12 * int(year) + int(month)
