"""What the report's charts share in Vega-Lite: logarithmic axes, scales by family, the frame.

Colours and symbols come from the page's theme, in the order of a scale's domain, so that one page
serves light and dark schemes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from isoflop.figures import style

Spec = dict[str, Any]

HEIGHT = 340
SHOWN = "indexof(shown, datum.family) >= 0"  # the families that the reader left on
_DIGITS = "['⁰','¹','²','³','⁴','⁵','⁶','⁷','⁸','⁹']"
_POWER = "floor(log(datum.value) / LN10 + 1e-9)"
_LEADING = f"round(datum.value / pow(10, {_POWER}))"
_TENS = f"({_POWER} > 9 ? {_DIGITS}[floor({_POWER} / 10)] : '')"
POWER_LABEL = (
    f"({_LEADING} == 1 ? '' : {_LEADING} + '·') + '10' + {_TENS} + {_DIGITS}[{_POWER} % 10]"
)
TIME_LABEL = (
    "datum.value >= 1 ? format(datum.value, '~g') + ' s' : datum.value >= 1e-3 ? "
    "format(datum.value * 1e3, '~g') + ' ms' : format(datum.value * 1e6, '~g') + ' µs'"
)
BYTES_LABEL = "replace(format(datum.value, '~s'), /([kMG]?)$/, ' $1B')"
LENGTH_LABEL = "datum.value >= 1024 ? datum.value / 1024 + 'k' : datum.value"


def data(rows: list[dict]) -> alt.Chart:
    return alt.Chart(alt.Data(values=_rounded(rows))).transform_filter(SHOWN)


def _rounded(value: Any) -> Any:
    """Six digits, which no screen can tell from more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def log_x(field: str, title: str, values: Sequence[float], label: str = "") -> alt.X:
    """`label` is a Vega expression of `datum.value`; without one, 50k and 1M."""
    axis: dict[str, Any] = {"labelExpr": label} if label else {"format": "~s"}
    axis |= {"values": decades(values, (1, 2, 5)), "labelOverlap": "greedy"}
    scale = alt.Scale(type="log", nice=False, padding=18)
    return alt.X(f"{field}:Q", title=title, axis=alt.Axis(**axis), scale=scale)


def log_y(field: str, title: str, values: Sequence[float]) -> alt.Y:
    """Plain round numbers, for a range of less than a decade or so."""
    low, high = style.margins(values)
    axis = alt.Axis(values=style.ticks(low, high), format="~g")
    return alt.Y(
        f"{field}:Q", title=title, axis=axis, scale=alt.Scale(type="log", domain=[low, high])
    )


def decades(values: Sequence[float], digits: Sequence[int]) -> list[float]:
    """Powers of ten, times `digits`, around the values."""
    low, high = (math.floor(math.log10(value)) for value in (min(values), max(values)))
    return [float(f"{m}e{power}") for power in range(low, high + 2) for m in digits]


def colour(families: Iterable[str]) -> alt.Color:
    """The page writes the legend, in lines as long as a screen is wide."""
    return alt.Color("family:N", scale=alt.Scale(domain=list(families)), legend=None)


def shape(families: Iterable[str]) -> alt.Shape:
    return alt.Shape("family:N", scale=alt.Scale(domain=list(families)), legend=None)


def taper(channel: type, families: Iterable[str], first: float, last: float) -> Any:
    """Later families are drawn smaller, so that equal ones both show."""
    names = list(families)
    sizes = [first + (last - first) * i / max(1, len(names) - 1) for i in range(len(names))]
    return channel("family:O", sort=names, scale=alt.Scale(domain=names, range=sizes), legend=None)


def number(field: str, title: str, form: str) -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=form)


def frame(
    layers: Sequence[alt.Chart], families: Iterable[str], told: str, **parameters: Any
) -> Spec:
    """The layers that have data as one chart, with the parameters that the page's controls set."""
    full = [layer for layer in layers if layer.data.values]
    chart = alt.layer(*full).properties(width="container", height=HEIGHT, description=told)
    values = {"shown": list(families), **parameters}
    chart = chart.add_params(*(alt.param(name=name, value=value) for name, value in values.items()))
    spec = chart.to_dict(validate=False)  # a test compiles every chart; here it takes seconds
    del spec["config"]  # the page's theme decides
    return _once(spec)


def _once(spec: Spec) -> Spec:
    """Rows that several layers draw are written down once, under a name."""
    named: dict[str, list[Any]] = {}
    for layer in spec["layer"]:
        rows = layer.get("data", {}).get("values")
        if rows is None:
            continue
        name = next((name for name, known in named.items() if known == rows), f"d{len(named)}")
        named[name], layer["data"] = rows, {"name": name}
    return spec | {"datasets": named} if named else spec
