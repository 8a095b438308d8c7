"""A choice in one picture: quality against a cost, shares of the candidates, dollars a month."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.figures import style
from isoflop.figures.palette import PETROFF10
from isoflop.sim.compare.recommend import Recommendation
from isoflop.sim.cost.choose import METRICS, QUALITY, Standing
from isoflop.sim.cost.training import LEAST

NAMED = 6  # candidates with a name beside their mark
BARS = 8
DECADES = 3.0  # of volume on either side of the one that is asked


def draw(result: Recommendation, path: Path) -> list[Path]:
    """Write path as SVG, PNG and the drawn numbers."""
    choice = result.choice
    cost = next((n for n in choice.limits if n in choice.costs), "per_query")
    with style.sheet(3, width=4.9, height=4.9) as (figure, (left, middle, right)):
        _frontier(left, result, cost)
        _shares(middle, result)
        _months(right, result)
        style.title(figure, choice.words())
        style.note(
            figure,
            f"Shares of {choice.draws} worlds drawn from what is uncertain of quality and serving; "
            "bars: 90 %. Hollow: misses a limit in most worlds. Dashed: limits, and the volume, "
            f"{style.short(result.volume)} tokens a month; shades: low and high prices.",
        )
        return style.save(figure, numbers(result, cost), path.parent, path.stem)


def _frontier(axes: Any, result: Recommendation, cost: str) -> None:
    choice, (what, unit) = result.choice, METRICS[cost]
    named = _best(result)[:NAMED]
    for s in reversed(choice.standings):
        x, y = s.costs[cost], s.quality
        taken, meets = (s.candidate.of in choice.contenders and s.wins > 0, s.meets >= 0.5)
        colour = "#bd1f01" if taken else "#3f90da" if meets else "#94a4a2"
        axes.errorbar(
            x[1], y[1], xerr=[[x[1] - x[0]], [x[2] - x[1]]], yerr=[[y[1] - y[0]], [y[2] - y[1]]],
            fmt="o", ms=5, color=colour, mfc=colour if meets else "white", elinewidth=0.8,
        )  # fmt: skip
    reach = [v for s in choice.standings for v in s.quality]
    apart, last = 0.045 * (max(reach) - min(reach) or 1.0), -np.inf
    for s in sorted(named, key=lambda s: s.quality[1]):  # none on the one below it
        last = max(s.quality[1] + 0.2 * apart, last + apart)
        axes.annotate(style.label(s.candidate.of), (s.costs[cost][1], last), xytext=(6, 2),
                      textcoords="offset points", fontsize=8)  # fmt: skip
    if cost in choice.limits:
        axes.axvline(choice.limits[cost], ls="--", color=style.LINE, lw=1)
    if QUALITY in choice.limits:
        axes.axhline(choice.limits[QUALITY], ls="--", color=style.LINE, lw=1)
    axes.set(xlabel=f"{what}, {unit}", ylabel=result.quality, xscale="log")
    low, high = style.margins([v for s in choice.standings for v in s.costs[cost] if v > 0], 0.12)
    axes.set_xlim(low, high)
    style.log_axis(axes.xaxis, low, high)


def _shares(axes: Any, result: Recommendation) -> None:
    shares = dict(list(result.choice.models.items())[:BARS])
    if result.choice.none:
        shares["none meets the limits"] = result.choice.none
    names = list(shares)[::-1]
    colours = ["#bd1f01" if n in result.choice.contenders else "#94a4a2" for n in names]
    axes.barh(range(len(names)), [shares[n] for n in names], color=colours, height=0.6)
    for i, name in enumerate(names):
        axes.text(0.01, i + 0.42, f"{name}: {shares[name]:.0%}", fontsize=8.5, va="center")
    axes.set(xlabel="share of worlds in which it is the one to take", xlim=(0, 1), yticks=[])
    axes.set_ylim(-0.6, len(names) - 0.2)
    axes.grid(axis="y", visible=False)


def _months(axes: Any, result: Recommendation) -> None:
    volumes = around(result.volume)
    for i, way in enumerate(result.ways):
        bought, colour = way.name in result.prices, PETROFF10[i % len(PETROFF10)]
        low, total, high = way.total(volumes, result.owner.months) / result.owner.months
        axes.plot(volumes, total, color=colour, ls=":" if bought else "-",
                  label=style.label(way.name))  # fmt: skip
        axes.fill_between(volumes, low, high, color=colour, alpha=0.1, lw=0)
    axes.axvline(result.volume, ls="--", color=style.LINE, lw=1)
    told = f"dollars a month, over {result.owner.months:g} months"
    axes.set(xlabel="tokens a month", ylabel=told, xscale="log", yscale="log")
    low, high = axes.get_ylim()
    style.log_axis(axes.xaxis, volumes[0], volumes[-1])
    style.log_axis(axes.yaxis, low, high)
    axes.legend(fontsize=7.5, loc="upper left")


def around(volume: float, points: int = 121) -> Any:
    """Volumes on both sides of one."""
    low = max(LEAST, volume / 10**DECADES)
    return np.geomspace(low, max(volume, low) * 10**DECADES, points)


def _best(result: Recommendation) -> Sequence[Standing]:
    """Of each model the candidate that is taken most often, the surest model first."""
    return [result.choice.best(model) for model in result.choice.models]


def numbers(result: Recommendation, cost: str) -> dict[str, Any]:
    volumes = around(result.volume)
    return {
        "decision": result.choice.words(),
        "cost": cost,
        "shares": dict(result.choice.models),
        "candidates": [
            {"name": s.candidate.name, "quality": s.quality, cost: s.costs[cost], "meets": s.meets,
             "chosen": s.wins}
            for s in result.choice.standings
        ],
        "tokens a month": volumes.tolist(),
        "dollars a month": {
            way.name: (way.total(volumes, result.owner.months)[1] / result.owner.months).tolist()
            for way in result.ways
        },
    }  # fmt: skip
