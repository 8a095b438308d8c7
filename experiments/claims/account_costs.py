"""What the popular account says of prices: training, serving, energy, and what fits where."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import numpy as np

from isoflop.experiments.claims.account_scale import from_published
from isoflop.models.checkpoints.published import published, shape
from isoflop.sim.compare.served import Traffic, assumed, replicas_of
from isoflop.sim.compare.verdicts import ACCOUNT, Finding, above, all_of, claim, told
from isoflop.sim.cost.hardware import DEVICES, device
from isoflop.sim.cost.prices import API
from isoflop.sim.cost.serving import Deployment, Serving, Workload, serve
from isoflop.sim.cost.training import training

CHIP = "H100"
LLAMAS = {"llama-3.2-1b": 1, "llama-3.2-3b": 1, "llama-3.1-8b": 1, "llama-3.1-70b": 4}  # → chips
SERVED = f"isoflop's serving model on {CHIP}s in bf16, at the most users that memory allows"
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


@cache
def _served(name: str, chips: int, prompt: int, answer: int, p95: float | None = None) -> Serving:
    """One user of a published model."""
    own = shape(name)
    return serve(
        Deployment(own.model, device(CHIP), chips, extra_params=own.extra, name=name),
        Workload(prompt, answer, concurrency=1, p95=p95),
    )


def _dollars(serving: Serving) -> tuple[float, float, float]:
    """A query at capacity and the median rent: value, and the interval of the serving model."""
    rent = serving.deployment.count * device(CHIP).price.median / 3600
    pace = serving.capacity
    return rent / pace.value, rent / pace.high, rent / pace.low


@claim(
    "cost grows linearly with parameters; a large model is 10–100× dearer to ask; 50 ms at 1B is "
    "2.5 s at 70B (or 2–10× slower)",
    source="D1 D2 D3 D5",
    setting=f"Llama-3.x of 1B, 3B and 8B on one chip, 70B on four; 500 + 150 tokens; {SERVED}",
    words=ACCOUNT,
)
def cost_is_linear_in_size() -> Finding:
    """Held if the slope of log price on log parameters is within 1 ± .2, a query of the 70B model
    costs 10 to 100 times one of the 1B model, and a lone user waits at least ten times as long;
    refuted if one of the three is wholly outside, by 90 % intervals; else not resolved.
    """
    found = {name: _served(name, chips, 500, 150) for name, chips in LLAMAS.items()}
    sizes = [published(name).cost(1).params for name in LLAMAS]
    price = np.array([_dollars(s) for s in found.values()])
    ends = np.log(price[:, 0]), np.log(price[:, 1:]).T
    slope = float(np.polyfit(np.log(sizes), ends[0], 1)[0])
    spread = math.log(price[-1, 2] / price[-1, 1]) / 2 / math.log(sizes[-1] / sizes[0])
    low, high = slope - spread, slope + spread
    ratio = price[-1, 0] / price[0, 0], price[-1, 1] / price[0, 2], price[-1, 2] / price[0, 1]
    small, large = (list(found.values())[i].latency["p50"] for i in (0, -1))
    slower = large.value / small.value, large.low / small.high, large.high / small.low
    within = _inside((low, high), (0.8, 1.2)), _inside(ratio[1:], (10.0, 100.0))
    said = (
        f"slope {told(slope, low, high)}; 70B costs {told(*ratio)}× and takes {told(*slower)}× as "
        f"long ({small.value:.2f} and {large.value:.2f} s)"
    )
    return Finding(all_of([*within, above(slower[1], slower[2], 10.0)]), said,
                   {"slope": slope, "price": ratio, "time": slower})  # fmt: skip


def _inside(interval: tuple[float, float], limits: tuple[float, float]) -> bool | None:
    """Whether an interval lies within limits; None where a part of it does."""
    if limits[0] <= interval[0] and interval[1] <= limits[1]:
        return True
    return None if interval[0] <= limits[1] and limits[0] <= interval[1] else False


@claim(
    "P95 under 500 ms and under $0.01 a query at 10,000 queries a minute; real time under 100 ms",
    source="D2 D5",
    setting="500 + 50 tokens, Llama-3.x of 1B, 8B and 70B on 1 and 4 chips a replica, as many "
    f"replicas as needed ({CHIP}s at rents of 2026-05)",
    words=ACCOUNT,
)
def a_worked_choice() -> Finding:
    """Held if a model of 8B or more meets P95 and price with its whole 90 % intervals; refuted if
    none of them meets both even at its lower ends; else not resolved. What fits into 100 ms is told
    as tokens of one user.
    """
    answers: list[bool | None] = []
    said = []
    for name in ("llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b"):
        for chips in (1, 4) if not name.endswith("70b") else (4,):
            alone = _served(name, chips, 500, 50)
            count, one = replicas_of(alone.deployment, Traffic(500, 50, 10_000 / 60, p95=0.5))
            late, price = one.latency["p95"], one.per_query
            assert price is not None  # CHIP has a rent
            if not name.endswith("1b"):
                low = late.low <= 0.5 and price.low <= 0.01
                answers.append(
                    (late.high <= 0.5 and price.high <= 0.01) or (None if low else False)
                )
            short = max(0.0, 1 + (0.1 - alone.ttft.value) / alone.tpot.value)
            said.append(
                f"{name} on {count} × {chips}: P95 {told(late.value, late.low, late.high)} s, "
                f"${price.value:.2g}, {short:.0f} tokens in 100 ms"
            )
    best = True if True in answers else None if None in answers else False
    return Finding(best, "; ".join(said))


@claim(
    "a 7B model summarises as well as one 20× its size, 30× cheaper",
    source="D5",
    setting=f"2,000 + 200 tokens: llama-2-7b on one chip, an assumed dense shape of 140B on 8; "
    f"{SERVED}; how well they summarise is outside",
    words=ACCOUNT,
)
def thirty_times_cheaper() -> Finding:
    """Of the price alone. Held if the 90 % interval of the ratio of prices at capacity lies above
    30; refuted if it lies below; else not resolved.
    """
    small = _dollars(_served("llama-2-7b", 1, 2000, 200))
    large = _dollars(
        serve(
            Deployment(assumed(140e9), device(CHIP), 8, name="140B"),
            Workload(2000, 200, concurrency=1),
        )
    )
    ratio = large[0] / small[0], large[1] / small[2], large[2] / small[1]
    return Finding(above(ratio[1], ratio[2], 30.0), f"{told(*ratio)}× the price", {"ratio": ratio})


@claim(
    "throughput falls and memory grows with size; small models run on phones and laptops",
    source="D1 D5",
    setting=f"Llama-3.x; {SERVED}; int4 weights (4.5 bits with scales) and a bf16 cache of 4,096 "
    "tokens in half of 8 GB (a phone) and of 16 GB (a laptop)",
    words=ACCOUNT,
)
def small_fits_everywhere() -> Finding:
    """Held if tokens a second and chip fall and bytes of weights grow with every step in size, 3B
    fits half a phone and 8B half a laptop; refuted if one is not so; nothing here is a measurement
    on a phone.
    """
    found = {name: _served(name, chips, 500, 150) for name, chips in LLAMAS.items()}
    pace = [s.capacity.value / s.deployment.count for s in found.values()]
    need = {}
    for name in ("llama-3.2-3b", "llama-3.1-8b"):
        model = published(name)
        need[name] = 4.5 / 8 * model.cost(1).params + 2 * model.state_size(4096)
    falls = all(a > b for a, b in pairwise(pace))
    said = (
        f"queries a second and chip: {', '.join(f'{x:.3g}' for x in pace)}; 3B needs "
        f"{need['llama-3.2-3b'] / 1e9:.1f} GB, 8B {need['llama-3.1-8b'] / 1e9:.1f} GB"
    )
    fits = need["llama-3.2-3b"] <= 4e9, need["llama-3.1-8b"] <= 8e9
    return Finding(all_of([falls, *fits]), said, need)
