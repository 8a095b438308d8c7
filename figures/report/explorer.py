"""The page of `isoflop explore`: drag a budget, see what it buys; tables within, nothing computed
but their reading.

Every number of the page stands on the grid of budgets that the slider steps through, as
`sim.compare.explorer` has it; the browser evaluates the cost models, and looks up the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from isoflop.figures import style
from isoflop.figures.report import vega
from isoflop.figures.report.page import render
from isoflop.sim.compare.explorer import ASYMPTOTES, Along, Explorer
from isoflop.sim.compare.points import axis_label
from isoflop.sim.compare.trials import chosen
from isoflop.sim.cost.hardware import DEVICES
from isoflop.sim.cost.names import CONVENTIONS
from isoflop.sim.cost.training import training
from isoflop.sim.records.store import Row

UTILISATION = 0.4  # of a chip's peak: 38 to 43 % for Llama 3 405B (2407.21783, table 4)
CHIPS = ("H100", "A100-80", "v5e")  # that have a dated price and that a class can rent
SPECULATION = 10.0  # times beyond the runs
DIGIT = "round(datum.value / pow(10, floor(log(datum.value) / LN10 + 1e-9)))"  # the leading one
LABEL = f"{DIGIT} != 1 ? '' : datum.value >= 10000 ? {vega.POWER_LABEL} : format(datum.value, '~g')"
PARTS = ["measured", "outside"]


def build(
    found: Mapping[str, Explorer],
    out: Path,
    recall: Sequence[Row] = (),
    told: Sequence[str] = (),
) -> Path:
    """Write the page of some tables of runs, by what each is called; `recall` are runs of that
    experiment, `told` further warnings.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    page = render("explorer.html.j2", _values(found, recall, told))
    out.write_text(page, encoding="utf-8")
    return out


def _values(
    found: Mapping[str, Explorer], recall: Sequence[Row], told: Sequence[str]
) -> dict[str, Any]:
    studies = {name: _study(one) for name, one in found.items()}
    remembered = _recall(recall)
    families = list(style.styles(name for one in found.values() for name in one.families))
    styles = style.styles([*families, *(row["family"] for row in remembered)])
    specs = {
        "loss": _chart("loss", "loss", families, cells=True),
        "size": _chart("N", "N*, parameters", families),
        "tokens": _chart("D", "D*, tokens", families),
    }
    if lengths := sorted({t for one in found.values() for t in one.contexts}):
        specs["state"] = _state(families, lengths)
    if remembered:
        specs["recall"] = _recalled(remembered, list(styles))
    return {
        "studies": {name: _about(one) for name, one in found.items()},
        "left_out": {name: one.left_out for name, one in found.items() if one.left_out},
        "ends": {name: _ends(one, studies[name]) for name, one in found.items()},
        "told": told,
        "specs": specs,
        "styles": styles,
        "order": {name: i for i, name in enumerate(styles)},
        "chips": CHIPS,
        "pairs": sorted({row["pairs"] for row in remembered}),
        "prices": {name: DEVICES[name].price for name in CHIPS},
        "utilisation": f"{UTILISATION:.0%}",
        "asymptotes": ASYMPTOTES,
        "speculation": f"{SPECULATION:g}",
        "conventions": {
            style.named(cost): about
            for cost, about in CONVENTIONS.items()
            if any(cost in study["costs"] for study in studies.values())
        },
        "data": {
            "studies": studies,
            "speculation": SPECULATION,
            "chips": {
                name: training(1.0, DEVICES[name], 1, UTILISATION).dollars for name in CHIPS
            },  # of a FLOP, at the low, median and high rent
        },
    }


def _study(one: Explorer) -> dict[str, Any]:
    families = {name: _family(one, name) for name in one.families}
    lines = [along for family in families.values() for along in family["along"].items()]
    costs = [c for c in one.costs if any(any(by.values()) for cost, by in lines if cost == c)]
    return {
        "contexts": one.contexts,
        "flops": one.flops if _unit(one, one.flops) == "FLOPs" else "",
        "loss": axis_label(one.loss).removeprefix("held-out "),
        "budgets": {cost: _short(one.budgets(cost), 6) for cost in costs},
        "costs": {
            cost: {
                "name": style.named(cost),
                "unit": _unit(one, cost),
                "known": list(one.costs[cost]),
            }
            for cost in costs
        },
        "families": families,
    }


def _family(one: Explorer, name: str) -> dict[str, Any]:
    rows = one.rows[name]
    return {
        "sizes": [float(rows["N"].min()), float(rows["N"].max())],
        "lengths": [float(rows["D"].min()), float(rows["D"].max())],
        "cells": [
            {"N": cell["N"], "D": cell["D"], "loss": _short([cell["loss"]], 6)[0]}
            | {
                "cost": {
                    cost: {t: _short([cell[column]], 6)[0] for t, column in by_context.items()}
                    for cost, by_context in one.costs.items()
                }
            }
            for cell in one.cells(name)
        ],
        "shapes": [
            {
                "name": f"width {shape.width}, depth {shape.depth}",
                "n": shape.n,
                "state": [shape.state_bytes(t) for t in one.contexts],
                "step": [shape.step_flops(t) for t in one.contexts],
            }
            for shape in one.shapes.get(name, ())
        ],
        "along": {
            cost: {t: _line(one.along(name, cost, t)) for t in by_context}
            for cost, by_context in one.costs.items()
        },
    }


def _line(along: Along | None) -> dict[str, Any] | None:
    if along is None:
        return None
    cost = along.cost
    return {
        **{key: [_short(row, 5) for row in getattr(along, key)] for key in ("N", "D", "loss")},
        "window": _short(along.window, 6),
        "cost": {
            "logs": [float(c) for c in cost.logs],
            "powers": [float(p) for p in cost.powers],
            "tokens": cost.tokens,
            "sign": cost.sign,
        },
    }


def _short(values: Any, digits: int) -> list[float | None]:
    """Rounded; what is not finite is null."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values)]


def _unit(one: Explorer, cost: str) -> str:
    """Nothing is known of a column of anybody's, but that the first is of FLOPs."""
    return "s" if cost == "seconds" else "FLOPs" if cost in (*CONVENTIONS, one.flops) else ""


def _about(one: Explorer) -> str:
    """The runs in words."""
    n, d = one.table["N"], one.table["D"]
    return (
        f"{len(one.table)} runs of {len(one.fits)} famil{'y' if len(one.fits) == 1 else 'ies'}, "
        f"N from {style.short(n.min())} to {style.short(n.max())} parameters, D from "
        f"{style.short(d.min())} to {style.short(d.max())} tokens"
    )


def _ends(one: Explorer, study: dict[str, Any]) -> list[dict[str, str]]:
    """For readers without scripts: each family at the last budget of its window, first cost."""
    cost = next(iter(study["costs"]), "")
    rows: list[dict[str, str]] = []
    for name, found in study["families"].items() if cost else ():
        line = next(iter(found["along"][cost].values()))
        if line is None:
            continue
        inside = [i for i, c in enumerate(study["budgets"][cost]) if c <= line["window"][1]]
        at = inside[-1]
        rows.append(
            {
                "family": name,
                "budget": f"{style.scientific(study['budgets'][cost][at], 3)} {_unit(one, cost)}",
                **{
                    key: _interval([line[key][i][at] for i in range(3)])
                    for key in ("loss", "N", "D")
                },
            }
        )
    return rows


def _interval(values: Sequence[float | None]) -> str:
    middle, low, high = ("—" if v is None else style.short(v) for v in values)
    return f"{middle} [{low}, {high}]"


def _chart(field: str, title: str, families: list[str], cells: bool = False) -> vega.Spec:
    """Lines over the budget, and the band of the family `focus`, of rows that the page makes."""
    lines = alt.Chart(alt.NamedData(name="lines")).transform_filter(vega.SHOWN)
    scale = alt.Scale(type="log", nice=False, padding=8)
    x = alt.X("x:Q", title="budget", scale=scale,
              axis=alt.Axis(labelExpr=LABEL, tickCount=6, labelOverlap="greedy"))  # fmt: skip
    grows = (
        alt.Scale(zero=False) if field == "loss" else alt.Scale(type="log", nice=False, padding=8)
    )
    told = f"indexof([1, 2, 5], {DIGIT}) < 0 ? '' : format(datum.value, '~s')"
    told = "format(datum.value, '~g')" if field == "loss" else told
    axis = alt.Axis(tickCount=6, labelOverlap="greedy", labelExpr=told)
    y, low = (alt.Y(f"{f}:Q", title=title, scale=grows, axis=axis) for f in (field, f"{field}0"))
    colour = vega.colour(families)
    dash = alt.StrokeDash("part:N", legend=None,
                          scale=alt.Scale(domain=PARTS, range=[[1, 0], [5, 4]]))  # fmt: skip
    layers = [
        lines.transform_filter("datum.family == focus")
        .mark_area(opacity=0.2, clip=True)
        .encode(x=x, y=low, y2=f"{field}1:Q", color=colour),
        lines.mark_line(strokeWidth=2, clip=True).encode(
            x=x, y=y, color=colour, strokeDash=dash, detail="segment:N"
        ),
    ]
    if cells:
        layers.append(
            alt.Chart(alt.NamedData(name="cells"))
            .transform_filter(vega.SHOWN)
            .mark_point(filled=True, size=22, opacity=0.45)
            .encode(x=x, y=y, color=colour, shape=vega.shape(families))
        )
    answers = alt.Chart(alt.NamedData(name="answers")).transform_filter(vega.SHOWN)
    tip = [alt.Tooltip("family:N"), alt.Tooltip("told:N", title=title)]
    layers += [
        answers.transform_filter("datum.family == focus")
        .mark_rule(strokeWidth=2)
        .encode(x=x, y=low, y2=f"{field}1:Q", color=colour),
        answers.mark_point(filled=True, size=85, opacity=1).encode(
            x=x, y=y, color=colour, shape=vega.shape(families), tooltip=tip
        ),
        alt.Chart(alt.NamedData(name="at")).mark_rule(strokeDash=[5, 4]).encode(x=x),
    ]
    named = ("lines", "cells", "answers", "at") if cells else ("lines", "answers", "at")
    return _frame(layers, families, f"{title} against the budget", named, focus=families[0])


def _state(families: list[str], lengths: list[int]) -> vega.Spec:
    """Bytes of the decoding state over the context, of each family's size nearest to N*."""
    rows = alt.Chart(alt.NamedData(name="state")).transform_filter(vega.SHOWN)
    x = alt.X("context:Q", title="tokens of context", scale=alt.Scale(type="log", padding=12),
              axis=alt.Axis(labelExpr=vega.LENGTH_LABEL, values=lengths,
                            labelOverlap="greedy"))  # fmt: skip
    y = alt.Y("bytes:Q", title="decoding state", scale=alt.Scale(type="log", padding=8),
              axis=alt.Axis(labelExpr=vega.BYTES_LABEL, tickCount=6))  # fmt: skip
    colour = vega.colour(families)
    tip = [alt.Tooltip("family:N"), alt.Tooltip("size:N"), alt.Tooltip("bytes:Q", format=",")]
    layers = [
        rows.mark_line(strokeWidth=1.5).encode(x=x, y=y, color=colour),
        rows.mark_point(filled=True, size=55, opacity=1).encode(
            x=x, y=y, color=colour, shape=vega.shape(families), tooltip=tip
        ),
        alt.Chart(alt.NamedData(name="at")).mark_rule(strokeDash=[5, 4]).encode(x=x),
    ]
    return _frame(layers, families, "Decoding state against the context", ("state", "at"))


def _recall(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each family and width at its chosen rate: state, pairs, mean accuracy and its interval."""
    found = []
    for trial in chosen(rows):
        for name in (one.name for one in trial.rows[0].record.run.evals):
            told = trial.interval(f"{name}.accuracy")
            if told is None:
                continue
            found.append(
                {
                    "family": str(trial["family"]),
                    "pairs": int(name.removeprefix("pairs")),
                    "bytes": trial.state_bytes,
                    "accuracy": told.mean,
                    "low": max(told.mean if told.low is None else told.low, 0.0),
                    "high": min(told.mean if told.high is None else told.high, 1.0),
                }
            )
    return found


def _recalled(rows: list[dict[str, Any]], families: list[str]) -> vega.Spec:
    """Accuracy of recall against bytes of state, at the number of pairs that is chosen."""
    pairs = max(row["pairs"] for row in rows)
    present = {row["family"] for row in rows}
    families = [name for name in families if name in present]  # of one order everywhere
    base = vega.data(rows).transform_filter("datum.pairs == pairs")
    sizes = [row["bytes"] for row in rows]
    x = vega.log_x("bytes", "bytes of the decoding state", sizes, vega.BYTES_LABEL)
    y = alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"),
              scale=alt.Scale(domain=[0, 1]))  # fmt: skip
    colour = vega.colour(families)
    tip = [alt.Tooltip("family:N"), alt.Tooltip("bytes:Q", format=","),
           alt.Tooltip("accuracy:Q", format=".1%")]  # fmt: skip
    layers = [
        base.mark_line(strokeWidth=1.2).encode(x=x, y=y, color=colour),
        base.mark_rule().encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            x=x, y=y, color=colour, shape=vega.shape(families), tooltip=tip
        ),
    ]
    return vega.frame(layers, families, "Recall at bytes of state", pairs=pairs)


def _frame(
    layers: Sequence[alt.Chart], families: list[str], told: str, names: Sequence[str],
    **parameters: Any,
) -> vega.Spec:  # fmt: skip
    """Of rows that the page makes, under `names`."""
    chart = alt.layer(*layers).properties(width="container", height=vega.HEIGHT, description=told)
    values = {"shown": families, **parameters}
    chart = chart.add_params(*(alt.param(name=name, value=value) for name, value in values.items()))
    spec = chart.to_dict(validate=False)
    spec.pop("config", None)  # the page's theme decides
    return spec | {"datasets": {name: [] for name in names}}
