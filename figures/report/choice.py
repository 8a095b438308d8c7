"""A choice as a page: limits are sliders, and what follows from them is drawn again in the browser.

The page holds worlds of the choice, quality and costs of every candidate in each, and picks each
world's winner again by the same rule as `sim.cost.choose` whenever a limit moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np

from isoflop.figures import style
from isoflop.figures.choice import around
from isoflop.figures.palette import PETROFF10
from isoflop.figures.report.page import render
from isoflop.figures.report.vega import POWER_LABEL, Spec
from isoflop.sim.compare.recommend import Recommendation, limit_words, pays_words, plain
from isoflop.sim.cost.choose import METRICS, QUALITY, RESOLVED

WORLDS = 200  # that a page holds
CANDIDATES = 60  # likewise; those that are chosen or on the frontier most often
HEIGHT = 340
STATUS = ["taken", "meets the limits", "misses a limit"]  # in most worlds


def build(result: Recommendation, out: Path, told: Sequence[str] = ()) -> Path:
    """Write the page to `out`; `told` are further warnings."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(render("choice.html.j2", _values(result, told)), encoding="utf-8")
    return out


def _values(result: Recommendation, told: Sequence[str]) -> dict[str, Any]:
    choice, volumes = result.choice, around(result.volume)
    shown = choice.standings[:CANDIDATES]
    lines = {
        way.name: (way.total(volumes, result.owner.months) / result.owner.months).tolist()
        for way in result.ways
    }
    costs = [name for name in METRICS if name in choice.costs]
    return {
        "decision": choice.words(),
        "limits_told": limit_words(choice.limits),
        "result": result,
        "shown": shown,
        "more": len(choice.standings) - len(shown),
        "costs": costs,
        "against": next((name for name in choice.limits if name in costs), costs[0]),
        "metrics": METRICS,
        "share": f"{choice.share:.0%}",
        "pays": [
            {"own": own, "other": other, "told": pays_words(found, result.owner.months)}
            for (own, other), found in result.pays.items()
        ],
        "spread": _spread,
        "percent": "{:.0%}".format,
        "dollars": "${:,.0f}".format,
        "short": style.short,
        "told": [*result.warnings, *told],
        "data": {
            "names": [s.candidate.name for s in shown],
            "models": [s.candidate.of for s in shown],
            "worlds": {
                QUALITY: _worlds(choice.quality[:, : len(shown)]),
                **{name: _worlds(choice.costs[name][:, : len(shown)]) for name in costs},
            },
            "limits": dict(choice.limits),
            "aim": choice.aim,
            "metrics": {QUALITY: [result.quality, ""], **{n: METRICS[n] for n in costs}},
            "resolved": RESOLVED,
            "volumes": [float(f"{v:.4g}") for v in volumes],
            "lines": {k: [[float(f"{x:.4g}") for x in row] for row in v] for k, v in lines.items()},
            "volume": result.volume,
        },
        "specs": {
            "frontier": _frontier(),
            "months": _months(lines, volumes, result),
            "bill": _bill(result),
        },
    }


def _worlds(values: Any) -> list[Any]:
    """By candidate: a number where all worlds have one, else an even sample of worlds."""
    at = np.linspace(0, len(values) - 1, min(WORLDS, len(values))).round().astype(int)
    return [
        _short(column[0]) if np.ptp(column) == 0 else [_short(v) for v in column[at]]
        for column in values.T
    ]


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _spread(name: str, spread: tuple[float, float, float]) -> str:
    told = style.bytes_ if name == "memory" else plain
    low, middle, high = (told(v) for v in spread)
    return middle if low == high else f"{middle} [{low}, {high}]"


def _spec(chart: Any, told: str) -> Spec:
    spec = chart.properties(width="container", height=HEIGHT, description=told).to_dict(
        validate=False
    )
    spec.pop("config", None)  # the page's theme decides
    return spec


def _frontier() -> Spec:
    """Quality against a cost, of rows that the page makes: x, y, their ends, status, label."""
    base = alt.Chart(alt.NamedData(name="marks"))
    x = alt.X("x:Q", title="cost", scale=alt.Scale(type="log", nice=False, padding=14),
              axis=alt.Axis(format="~g", labelOverlap="greedy"))  # fmt: skip
    y = alt.Y("y:Q", title="quality", scale=alt.Scale(zero=False, padding=10))
    colour = alt.Color("status:N", scale=alt.Scale(domain=STATUS), legend=None)
    tip = [alt.Tooltip("name:N"), alt.Tooltip("told:N", title="cost, 90 %"),
           alt.Tooltip("told_y:N", title="quality, 90 %"), alt.Tooltip("share:N")]  # fmt: skip
    layers = [
        base.mark_rule(opacity=0.6).encode(x=alt.X("x0:Q"), x2="x1:Q", y=y, color=colour),
        base.mark_rule(opacity=0.6).encode(x=x, y=alt.Y("y0:Q"), y2="y1:Q", color=colour),
        base.mark_point(filled=True, size=70, opacity=1).encode(
            x=x, y=y, color=colour, tooltip=tip,
            shape=alt.Shape("status:N", scale=alt.Scale(domain=STATUS), legend=None),
        ),
        base.mark_text(align="left", dx=8, dy=-8).encode(x=x, y=y, text="label:N"),
    ]  # fmt: skip
    return _spec(alt.layer(*layers), "Quality of every candidate against a cost")


def _months(lines: dict[str, Any], volumes: Any, result: Recommendation) -> Spec:
    """Dollars a month of each way over volume; the parameter `volume` is the rule."""
    rows = [
        {"way": name, "volume": _short(v), "dollars": _short(d), "low": _short(lo),
         "high": _short(hi), "kind": "price list" if name in result.prices else "own"}
        for name, (low, middle, high) in lines.items()
        for v, lo, d, hi in zip(volumes, low, middle, high, strict=True)
        if min(lo, d, hi) > 0
    ]  # fmt: skip
    base = alt.Chart(alt.Data(values=rows))
    x = alt.X("volume:Q", title="tokens a month", scale=alt.Scale(type="log", nice=False),
              axis=alt.Axis(labelExpr=POWER_LABEL, values=_decades(volumes)))  # fmt: skip
    y = alt.Y("dollars:Q", title="dollars a month", scale=alt.Scale(type="log"),
              axis=alt.Axis(format="$~s", tickCount=6))  # fmt: skip
    names = list(lines)
    colour = alt.Color("way:N", scale=alt.Scale(domain=names, range=colours(names)), legend=None)
    kinds = alt.Scale(domain=["own", "price list"], range=[[1, 0], [3, 4]])
    dash = alt.StrokeDash("kind:N", legend=None, scale=kinds)
    told = [alt.Tooltip("way:N"), alt.Tooltip("volume:Q", format=".3~s"),
            alt.Tooltip("dollars:Q", format="$,.0f")]  # fmt: skip
    rule = alt.Chart(alt.Data(values=[{}])).mark_rule(strokeDash=[5, 4])
    layers = [
        base.mark_area(opacity=0.1).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash, tooltip=told),
        rule.transform_calculate(volume="volume_at").encode(x="volume:Q"),
    ]
    chart = alt.layer(*layers).add_params(alt.param(name="volume_at", value=result.volume))
    return _spec(chart, "Dollars a month of each way against tokens a month")


def _bill(result: Recommendation) -> Spec:
    """What a month costs at the volume that was asked, part by part."""
    rows = [
        {"way": way, "part": part, "dollars": _short(amount)}
        for way, parts in result.monthly.items()
        for part, amount in parts.items()
    ]
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            x=alt.X("dollars:Q", title="dollars a month", axis=alt.Axis(format="$~s")),
            y=alt.Y("way:N", title=None, sort=list(result.monthly),
                    axis=alt.Axis(labelLimit=180)),
            color=alt.Color("part:N", title=None, legend=alt.Legend(orient="bottom")),
            tooltip=[alt.Tooltip("way:N"), alt.Tooltip("part:N"),
                     alt.Tooltip("dollars:Q", format="$,.0f")],
        )
    )  # fmt: skip
    return _spec(chart, "Dollars a month by part") | {"height": 34 * len(result.monthly)}


def _decades(volumes: Any) -> list[float]:
    low, high = math.floor(math.log10(volumes[0])), math.ceil(math.log10(volumes[-1]))
    return [10.0**k for k in range(low, high + 1)]


def colours(names: Sequence[str]) -> list[str]:
    return [PETROFF10[i % len(PETROFF10)] for i in range(len(names))]
