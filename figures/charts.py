"""The report's interactive charts, as Vega-Lite specifications that the page's own script draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from isoflop.figures import context, scaling, style
from isoflop.figures.report import sampling, vega
from isoflop.sim.compare.points import Point, conventions
from isoflop.sim.compare.slopes import series
from isoflop.sim.compare.study import Study

KEPT = 60  # points of a loss curve that the page keeps
FLOPS = "datum.flops[convention]"
PARAMS = "datum.params[count]"
HELD_OUT = "held-out loss (nats per token)"


def loss_vs_flops(study: Study) -> vega.Spec:
    """Under the first convention with the power laws of the envelopes."""
    names, families = study.conventions, _families(study.points)
    edges = [
        {"convention": name, "family": f, "x": cell.flops[name], "loss": cell.loss}
        for name, by_family in study.frontiers.items()
        for f in families
        for cell in by_family[f]
    ]
    bands: list[dict[str, Any]] = [
        {"convention": names[0], "family": item.family, "x": point["flops"], **point}
        for item in study.lines(names[0])
        for point in item.band()
    ]
    x, cells = _flops(study.points), sampling.cells(study)
    reach = [*scaling.reach(cells), *(band[end] for band in bands for end in ("low", "high"))]
    y, bottom = (vega.log_y(field, HELD_OUT, reach) for field in ("loss", "low"))
    colour = vega.colour(families)
    under, lines = (
        vega.data(rows).transform_filter("datum.convention == convention")
        for rows in (bands, edges)
    )
    layers = [
        under.mark_area(opacity=0.15, clip=True).encode(x=x, y=bottom, y2="high:Q", color=colour),
        lines.mark_line(strokeWidth=1.5, opacity=0.75).encode(x=x, y=y, color=colour),
        *_points(cells, x, y, FLOPS),
        _bars(cells, x, reach, FLOPS),
    ]
    told = "Held-out loss against training FLOPs"
    return vega.frame(layers, families, told, convention=names[0])


def loss_vs_params(study: Study) -> vega.Spec:
    """Over a choice of parameter count, and of the number of training tokens (0: all), the most to
    begin with; dashes tell lengths apart.
    """
    names, families, cells = study.counts, _families(study.points), sampling.cells(study)
    longest = max(cell.tokens for cell in study.points)
    x = vega.log_x("x", "parameters", [cell.params[n] for cell in cells for n in names])
    y = vega.log_y("loss", HELD_OUT, scaling.reach(cells))
    lines = (
        vega.data(_marks(cells))
        .transform_calculate(x=PARAMS)
        .mark_line(strokeWidth=1, opacity=0.6)
        .encode(x=x, y=y, color=vega.colour(families), strokeDash=_dashes(cells))
    )
    layers = [
        lines,
        *_points(cells, x, y, PARAMS),
        _bars(cells, x, scaling.reach(cells), PARAMS),
    ]
    layers = [layer.transform_filter("budget == 0 || datum.tokens == budget") for layer in layers]
    told = "Held-out loss against parameters"
    return vega.frame(layers, families, told, count=names[0], budget=longest)


def _dashes(cells: Sequence[Point]) -> alt.StrokeDash:
    """Solid for the most training tokens, finer for fewer; told in a legend."""
    lengths = sorted({cell.tokens for cell in cells}, reverse=True)
    dashes = [[1, 0], *([max(1, 8 - 2 * (i % 4)), 2 + i // 4] for i in range(len(lengths) - 1))]
    legend = alt.Legend(
        title="training tokens",
        orient="bottom",
        columns=5,
        values=sampling.even(lengths, 5),
        labelExpr="format(datum.value, '.3~s')",
        symbolStrokeColor="gray",
    )
    scale = alt.Scale(domain=lengths, range=dashes)
    return alt.StrokeDash("tokens:O", scale=scale, legend=legend if len(lengths) > 1 else None)


def loss_curves(study: Study) -> vega.Spec:
    """Runs' curves; `every` chooses between all that are kept and each family's largest cell."""
    families, largest = _families(study.points), study.costliest
    runs: list[dict[str, Any]] = []
    for i, cell in enumerate(sampling.curves(study)):
        for seed, curve in cell.curves.items():
            kept = thin(curve)
            if kept:
                size = f"width {cell.width}, depth {cell.depth}, {style.short(cell.tokens)} tokens"
                run = f"{cell.family}, {size}, seed {seed}"
                runs.append(
                    {
                        **{"family": cell.family, "run": run, "cell": i},
                        "largest": any(cell is other for other in largest),
                        "tokens": [step * cell.batch_tokens for step, _ in kept],
                        "loss": [loss for _, loss in kept],
                    }
                )
    reach, height = ([v for run in runs for v in run[n]] or [1.0] for n in ("tokens", "loss"))
    x = vega.log_x("tokens", "training tokens seen", reach)
    y = vega.log_y("loss", "training loss (nats per token)", height)
    chosen = vega.data(runs).transform_filter("every == 'all' || datum.largest")
    line = (
        chosen.transform_flatten(["tokens", "loss"])
        .mark_line(strokeWidth=1.2, opacity=0.8)
        .encode(
            x=x,
            y=y,
            color=vega.colour(families),
            detail=["run:N", "cell:N"],
            tooltip=[
                alt.Tooltip("run:N"),
                vega.number("tokens", "tokens", ".3~s"),
                vega.number("loss", "loss", ".4f"),
            ],
        )
    )
    ends = (
        chosen.transform_calculate(x="peek(datum.tokens)", y="peek(datum.loss)")
        .mark_point(filled=True, size=55, opacity=1)
        .encode(
            x=vega.log_x("x", "training tokens seen", reach),
            y=vega.log_y("y", "training loss (nats per token)", height),
            color=vega.colour(families),
            shape=vega.shape(families),
        )
    )
    told = "Training loss against tokens seen"
    return vega.frame([line, ends], families, told, every="largest")


def bits_per_byte(study: Study, compressors: dict[str, float]) -> vega.Spec:
    cells = [cell for cell in sampling.cells(study) if cell.bits_per_byte is not None]
    values = [cell.bits_per_byte or 0.0 for cell in cells]
    x = _flops(cells)
    y = vega.log_y("bits_per_byte", "bits per byte", [*values, *compressors.values()])
    layers = _points(cells, x, y, FLOPS)
    low, high = style.margins([*values, *compressors.values()])
    column, before = 0, 0.0
    for name, bits in sorted(compressors.items(), key=lambda item: item[1]):
        told = alt.Chart(alt.Data(values=[{"bits_per_byte": bits, "name": f"{name} {bits:.2f}"}]))
        # a name stands on its own line, beside that of a line too near for both
        near = before > 0 and math.log(bits / before) / math.log(high / low) * vega.HEIGHT < 16
        column, before = (column + 1 if near else 0), bits
        where: Any = {"expr": f"max(4, width - {4 + 90 * column})"}
        layers += [
            told.mark_rule(strokeDash=[5, 4], opacity=0.7).encode(y=y),
            told.mark_text(align="right", baseline="bottom", dy=-2, x=where).encode(
                y=y, text="name:N"
            ),
        ]
    told_of = "Bits per byte beside general compressors"
    return vega.frame(layers, _families(cells), told_of, convention=conventions(cells)[0])


def context_scaling(measured: Sequence[dict], quantity: str) -> vega.Spec:
    found = series(measured, quantity)
    lines = {name: found[name] for name in style.styles(found)}
    rows = [point for line in lines.values() for point in line]
    told = context.QUANTITIES[quantity]
    in_bytes = quantity.endswith("bytes")
    ends = ("value", "low", "high", "predicted")
    values = [v for p in rows for name in ends if (v := p.get(name))]
    long = max(values) / min(values) > 60
    lengths = alt.Axis(
        values=sorted({p["seq_len"] for p in rows}), labelExpr=vega.LENGTH_LABEL, grid=False
    )
    axis = alt.Axis(
        values=vega.decades(values, (1,) if long else (1, 2, 5)),
        labelExpr=vega.BYTES_LABEL if in_bytes else vega.TIME_LABEL,
    )
    scale = alt.Scale(type="log", nice=False, padding=18)
    x = alt.X("seq_len:Q", title="sequence length T (tokens)", axis=lengths, scale=scale)
    y, bottom, predicted = (
        alt.Y(
            f"{field}:Q",
            title=told.axis,  # the ticks carry the unit
            axis=axis,
            scale=alt.Scale(type="log", domain=list(style.margins(values))),
        )
        for field in ("value", "low", "predicted")
    )
    base, colour = vega.data(rows), vega.colour(lines)
    tip = [vega.number("seq_len", "T", ","), vega.number("value", told.axis, ".4~g")]
    width, size = vega.taper(alt.StrokeWidth, lines, 3, 1), vega.taper(alt.Size, lines, 110, 45)
    scale = alt.Scale(
        domain=list(lines), range=[[1, 0] if i % 2 == 0 else [6, 4] for i in range(len(lines))]
    )
    dash = alt.StrokeDash("family:N", scale=scale, legend=None)
    layers = [
        base.mark_line().encode(x=x, y=y, color=colour, strokeWidth=width, strokeDash=dash),
        base.mark_point(filled=True, opacity=1).encode(
            x=x,
            y=y,
            color=colour,
            shape=vega.shape(lines),
            size=size,
            tooltip=[alt.Tooltip("family:N"), *tip],
        ),
    ]
    if any((p.get("high") or 0) > (p.get("low") or 0) for p in rows):
        spread = base.mark_rule(strokeWidth=1.5).encode(x=x, y=bottom, y2="high:Q", color=colour)
        layers.append(spread)
    known = [p for p in rows if "predicted" in p]
    lower = vega.data(known).mark_line(strokeWidth=1.2, strokeDash=[2, 3], opacity=0.8)
    layers.append(lower.encode(x=x, y=predicted, color=colour))
    return vega.frame(layers, lines, f"{told.title} against sequence length")


def _points(cells: Sequence[Point], x: alt.X, y: alt.Y, x_of: str) -> list[alt.Chart]:
    """A mark per cell; `x_of` says how x follows from the controls."""
    families = _families(cells)
    tip = [
        *(alt.Tooltip("family:N"), alt.Tooltip("width:Q"), alt.Tooltip("depth:Q")),
        *(vega.number("tokens", "tokens", ","), vega.number("x", str(x.title), ".4~s")),
        *(vega.number("loss", "loss", ".4f"), vega.number("low", "90 % low", ".4f")),
        *(vega.number("high", "90 % high", ".4f"), vega.number("n", "seeds", "d")),
        vega.number("bits_per_byte", "bits per byte", ".4f"),
    ]
    dots = (
        vega.data(_marks(cells))
        .transform_calculate(x=x_of)
        .mark_point(filled=True, size=62, opacity=0.95)
        .encode(x=x, y=y, color=vega.colour(families), shape=vega.shape(families), tooltip=tip)
    )
    return [dots]


def _bars(cells: Sequence[Point], x: alt.X, reach: list[float], x_of: str) -> alt.Chart:
    """Intervals over seeds, of the marks that have one."""
    some = _marks(cells) if any(cell.low is not None for cell in cells) else []
    y = vega.log_y("low", HELD_OUT, reach)
    return (
        vega.data(some)
        .transform_filter("isValid(datum.low)")
        .transform_calculate(x=x_of)
        .mark_rule()
        .encode(x=x, y=y, y2="high:Q", color=vega.colour(_families(cells)))
    )


def _marks(cells: Sequence[Point]) -> list[dict[str, Any]]:
    """What is drawn of a cell and told where the pointer is."""
    names = ("family", "width", "depth", "tokens", "loss", "low", "high", "bits_per_byte")
    return [
        {name: getattr(cell, name) for name in names}
        | {"params": cell.params, "flops": cell.flops, "n": len(cell.losses)}
        for cell in cells
    ]


def _flops(cells: Sequence[Point]) -> alt.X:
    names = conventions(cells)
    values = [cell.flops[name] for cell in cells for name in names]
    return vega.log_x("x", "training FLOPs", values, vega.POWER_LABEL)


def _families(cells: Sequence[Point]) -> list[str]:
    return list(style.styles(cell.family for cell in cells))


def thin(curve: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most KEPT points, evenly on a logarithmic axis, without step 0 and with the last."""
    curve = [point for point in curve if point[0] > 0]
    if len(curve) <= KEPT:
        return list(curve)
    kept = {round((len(curve) - 1) ** (i / (KEPT - 1))) for i in range(KEPT)} | {0}
    return [point for i, point in enumerate(curve) if i in kept]
