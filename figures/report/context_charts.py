"""The charts of the context page in Vega-Lite: a line and marks a model, or a variant of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from isoflop.figures import style
from isoflop.figures.report import vega

Rows = list[dict[str, Any]]


def by_position(rows: Rows, names: Sequence[str] | None = None) -> vega.Spec:
    """`context` is the number of tokens before the first target of a bucket."""
    rows = [row | {"context": row["place"] + 1} for row in rows]
    ticks = alt.Axis(
        values=sorted({row["context"] for row in rows}),
        format="d",
        grid=False,
        labelOverlap="greedy",
    )
    x = alt.X("context:Q", title="tokens of context", axis=ticks, scale=_log())
    y, bottom = (
        alt.Y(f"{field}:Q", title="loss (nats per token)", scale=alt.Scale(zero=False))
        for field in ("loss", "loss_low")
    )
    tip = [
        *(vega.number("place", "from place", ",d"), vega.number("loss", "loss", ".4f")),
        *(vega.number("loss_low", "90 % low", ".4f"), vega.number("loss_high", "90 % high", ".4f")),
    ]
    families = list(names or dict.fromkeys(row["family"] for row in rows))
    bars = vega.data(rows).mark_rule(strokeWidth=1.5)
    bars = bars.encode(x=x, y=bottom, y2="loss_high:Q", color=vega.colour(families))
    return _chart(rows, families, x, y, tip, "Loss by position", bars)


def recall(rows: Rows, names: Sequence[str]) -> vega.Spec:
    """Accuracy of the second reading of a text, at the bytes of the state that holds it."""
    sizes = [row["state_bytes"] for row in rows]
    x = vega.log_x("state_bytes", "bytes of the decoding state", sizes, vega.BYTES_LABEL)
    top = alt.Scale(domain=[0, 1])
    y = alt.Y("accuracy:Q", title="accuracy, second reading", axis=alt.Axis(format="%"), scale=top)
    tip = [
        *(
            vega.number("length", "tokens repeated", ",d"),
            vega.number("accuracy", "accuracy", ".1%"),
        ),
        *(vega.number("first", "first reading", ".1%"), vega.number("gain", "nats gained", ".3f")),
    ]
    return _chart(rows, names, x, y, tip, "Recall at bytes of state")


def throughput(rows: Rows, names: Sequence[str]) -> vega.Spec:
    """Tokens per second against the batch."""
    rates = [row["tokens_per_second"] for row in rows]
    ticks = alt.Axis(values=sorted({row["batch"] for row in rows}), grid=False)
    x = alt.X("batch:Q", title="sequences in a batch", axis=ticks, scale=_log())
    axis = alt.Axis(format="~s", values=vega.decades(rates, (1, 2, 5)))
    scale = alt.Scale(type="log", domain=list(style.margins(rates, 0.1)))
    y = alt.Y("tokens_per_second:Q", title="tokens per second", axis=axis, scale=scale)
    tip = [
        vega.number("batch", "batch", ",d"),
        vega.number("tokens_per_second", "tokens/s", ",.0f"),
    ]
    return _chart(rows, names, x, y, tip, "Decoding speed against batch")


def _log() -> alt.Scale:
    return alt.Scale(type="log", nice=False, padding=18)


def _chart(
    rows: Rows,
    names: Sequence[str],
    x: alt.X,
    y: alt.Y,
    tip: list[alt.Tooltip],
    told: str,
    *more: alt.Chart,
) -> vega.Spec:
    base, colour = vega.data(rows), vega.colour(names)
    dots = base.mark_point(filled=True, opacity=1, size=60).encode(
        x=x,
        y=y,
        color=colour,
        shape=vega.shape(names),
        tooltip=[alt.Tooltip("family:N", title="read"), *tip],
    )
    return vega.frame(
        [base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour), *more, dots], names, told
    )
