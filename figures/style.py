"""One look for every figure: type, axes, titles and legends; `figures.palette` has the colours.

Pictures are reproducible byte for byte. Text is drawn as it is written: a name is never read as
mathematics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
)

from isoflop.figures.palette import Style as Style
from isoflop.figures.palette import styles as styles
from isoflop.sim.compare.rankings import Interval
from isoflop.sim.cost.names import named as named

LINE = "#5c6370"  # of axes, of lines to compare with, and of notes
RC: dict[Any, Any] = {
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "legend.frameon": False,
    "lines.markersize": 5.5,
    "lines.linewidth": 1.4,
    "svg.hashsalt": "isoflop",
    "text.parse_math": False,
    "savefig.dpi": 160,
    "figure.dpi": 100,
}


@contextmanager
def sheet(
    columns: int = 1, rows: int = 1, width: float = 6.4, height: float = 4.4
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of `columns` × `rows` panels, as (figure, flat list of axes)."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        yield figure, list(axes.flat)


def save(figure: Figure, numbers: Any, out: Path, name: str) -> list[Path]:
    """SVG, PNG and the plotted numbers, side by side."""
    out.mkdir(parents=True, exist_ok=True)
    svg, png = (out / f"{name}.{suffix}" for suffix in ("svg", "png"))
    with matplotlib.rc_context(RC):
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png)
    return [svg, png, write(numbers, out, name)]


def write(numbers: Any, out: Path, name: str) -> Path:
    """Numbers as JSON; NaN, which JSON has not, as null."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    text = json.dumps(_plain(numbers), indent=1, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ticks(low: float, high: float, most: int = 8) -> list[float]:
    """Round values for a logarithmic axis that spans about three decades or less."""
    if not 0 < low <= high:
        return []
    if high / low > 2:
        marks = (1, 2, 5) if high / low > 5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        values = [float(f"{mark}e{e}") for e in decades for mark in marks]
        return _thin([value for value in values if low <= value <= high], low, high, most)
    span = max(high - low, 1e-3 * high)
    for step in (m * 10.0**e for e in range(-9, 18) for m in (1, 2, 5)):
        if span / step > 60:
            continue
        values = [round(k * step, 9) for k in range(math.ceil(low / step), int(high / step) + 1)]
        if len(values) <= most:
            return values
    return []


def _thin(values: list[float], low: float, high: float, most: int) -> list[float]:
    """Drop values that would crowd their neighbour on the logarithmic scale."""
    kept: list[float] = []
    for value in values:
        if not kept or math.log(value / kept[-1]) >= math.log(high / low) / most:
            kept.append(value)
    return kept


def log_axis(
    axis: Axis, low: float, high: float, told: Callable[[float], str] | None = None
) -> None:
    """Plain round numbers over a short range, powers of ten over a long one; or as `told`."""
    if high / low < 1000:
        axis.set_major_locator(FixedLocator(ticks(low, high)))
        write = told or short
    else:
        axis.set_major_locator(LogLocator())
        write = told or power
    axis.set_major_formatter(FuncFormatter(lambda value, _: write(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def margins(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis around `values`, with some air."""
    values = list(values)
    low, high = min(values), max(values)
    air = max((high / low) ** share, 1.02)
    return low / air, high * air


def accuracy(axes: Axes, x: float, one: Interval, look: Style, *, hollow: bool) -> None:
    """A mean accuracy at `x`, with the part of its interval from 0 to 1 where there is one."""
    if one.low is not None and one.high is not None:
        ends = [max(one.low, 0.0), min(one.high, 1.0)]
        axes.plot([x, x], ends, "-", color=look.colour, linewidth=0.8)
    face = "white" if hollow else look.colour
    axes.plot(x, one.mean, look.marker, mfc=face, mec=look.colour)


def short(value: float) -> str:
    """1234567 → 1.23M; 8192 → 8192; 0.00213 → 0.00213; 2e16 → 2·10¹⁶, beyond all prefixes."""
    if value == 0:
        return "0"
    if abs(value) >= 1e15:
        exponent = math.floor(math.log10(abs(value)) + 1e-9)
        mantissa = f"{value / 10.0**exponent:.3g}"
        return f"{'' if mantissa == '1' else f'{mantissa}·'}10{_raised(exponent)}"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def seconds(value: float) -> str:
    """0.0002 → 200 µs; 0.05 → 50 ms; 2 → 2 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size * (1 - 1e-9):
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def bytes_(value: float) -> str:
    """8192 → 8.19 kB; 1e6 → 1 MB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size * (1 - 1e-9):
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def label(name: str) -> str:
    """As matplotlib shows it in a legend: what begins with _ would be left out."""
    return f"\u200a{name}" if name.startswith("_") else name


def key(axes: Axes, **where: Any) -> None:
    """A legend, if anything asked for one; a long one without options stands above the panels."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 6 and not where:
        key_above(axes.figure)
    elif labels:
        axes.legend(handles, labels, loc="best", fontsize=8.5, **where)


def key_above(figure: Any) -> None:
    """One legend above all panels, for what any of them shows; `title` places it."""
    told: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        told |= dict(zip(labels, handles, strict=True))
    columns = _columns(figure, list(told))
    figure.legend(list(told.values()), list(told), fontsize=8.5, ncols=columns, loc="upper left")


def _columns(figure: Any, labels: Sequence[str]) -> int:
    """How many such labels stand beside each other in a legend of the figure's width."""
    points = 8.5 * (4 + 0.62 * max(map(len, labels), default=0))
    return max(1, min(len(labels), int(figure.get_figwidth() * 72 / points)))


def title(figure: Figure, text: str) -> None:
    """What was found, above all panels and their legend, in lines that the width can hold."""
    lines = wrap(text, int(figure.get_figwidth() * 10.5))
    height = 72 * figure.get_figheight()
    taken = (4 + 15 * len(lines)) / height
    figure.text(0.01, 1 - 4 / height, "\n".join(lines), fontsize=11, va="top")
    for legend in figure.legends:
        legend.set_bbox_to_anchor((0, 1 - taken), transform=figure.transFigure)
        labels = [text.get_text() for text in legend.get_texts()]
        rows = -(-len(labels) // _columns(figure, labels))
        taken += (8 + 13 * rows) / height
    engine = figure.get_layout_engine()
    assert isinstance(engine, ConstrainedLayoutEngine)
    engine.set(rect=(0, 0, 1, 1 - taken - 4 / height))


def drop(panels: Sequence[Axes]) -> None:
    """Take out the panels of a sheet that nothing was drawn in."""
    for axes in panels:
        axes.remove()


def note(figure: Figure, text: str) -> None:
    """Below the panels, what is drawn."""
    lines = wrap(text, int(figure.get_figwidth() * 15.5))
    figure.supxlabel("\n".join(lines), fontsize=8, color=LINE, x=0.01, ha="left")


def tokens(count: float) -> str:
    """A sequence length as people say it: 512, 1k, 8k."""
    return f"{count / 1024:g}k" if count >= 1024 and count % 1024 == 0 else f"{count:g}"


def scientific(value: float, digits: int = 2) -> str:
    """4907335680000 → 4.9 × 10¹²."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{_raised(int(exponent))}"


def power(value: float) -> str:
    """1000 → 10³, as on an axis of many decades; 2000 → 2·10³."""
    exponent = math.floor(math.log10(value) + 1e-9)
    times = round(value / 10.0**exponent)
    return f"{'' if times == 1 else f'{times}·'}10{_raised(exponent)}"


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def listed(words: Iterable[str]) -> str:
    """a, b and c; empty for none."""
    *rest, last = list(words) or [""]
    return f"{', '.join(rest)} and {last}" if rest else last
