"""One look for every figure: a family has the same colour and marker wherever it appears.

Colours are petroff10 (Petroff 2021, arXiv 2107.02270), chosen for colour-blind readers; markers
repeat the information for those who print in grey. Pictures are reproducible byte for byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogFormatterMathtext,
    NullFormatter,
    NullLocator,
)

PETROFF10 = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#94a4a2"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")
PATHS = {  # the same markers as SVG paths about the origin, for the report
    "o": "M-1,0A1,1 0 1,0 1,0A1,1 0 1,0 -1,0Z",
    "s": "M-.9,-.9H.9V.9H-.9Z",
    "^": "M0,-1L1.05,.85H-1.05Z",
    "D": "M0,-1.2L1.2,0L0,1.2L-1.2,0Z",
    "v": "M0,1L1.05,-.85H-1.05Z",
    "P": "M-.38,-1.1H.38V-.38H1.1V.38H.38V1.1H-.38V.38H-1.1V-.38H-.38Z",
    "X": "M-.7,-1L0,-.3L.7,-1L1,-.7L.3,0L1,.7L.7,1L0,.3L-.7,1L-1,.7L-.3,0L-1,-.7Z",
    "<": "M-1,0L.85,1.05V-1.05Z",
    ">": "M1,0L-.85,1.05V-1.05Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
}
FAMILIES = ("dense", "moe", "mamba", "linear", "hybrid")  # slots kept for ever

NAMES = {  # how a cost or a count is written for people
    "executed": "executed",
    "matmul": "matrix products",
    "causal": "causal",
    "6ND": "6·N·D (all parameters)",
    "6ND_non_embedding": "6·N·D (non-embedding)",
    "6ND_active": "6·N·D (active non-embedding)",
    "seconds": "seconds of training",
    "state_bytes": "bytes of decoding state",
    "total": "total",
    "active": "active",
    "non_embedding": "non-embedding",
    "active_non_embedding": "active non-embedding",
}

RC: dict[Any, Any] = {
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.color": "#e3e5e8",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.edgecolor": "#5c6370",
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
    "savefig.dpi": 160,
    "figure.dpi": 100,
}


class Look(NamedTuple):
    colour: str
    marker: str

    @property
    def path(self) -> str:
        return PATHS[self.marker]

    @property
    def on_dark(self) -> str:
        """The same hue, lightened until it stands out from a dark page."""
        channels = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return "#" + "".join(f"{round(c + 0.28 * (255 - c)):02x}" for c in channels)


def looks(families: Iterable[str]) -> dict[str, Look]:
    """Known families keep their slot; others take the free ones in alphabetical order."""
    present = set(families)
    known = {name: Look(PETROFF10[i], MARKERS[i]) for i, name in enumerate(FAMILIES)}
    others = sorted(present - known.keys())
    free = islice(cycle(range(len(FAMILIES), len(PETROFF10))), len(others))
    chosen = known | {n: Look(PETROFF10[i], MARKERS[i]) for n, i in zip(others, free, strict=True)}
    return {name: chosen[name] for name in (*FAMILIES, *others) if name in present}


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


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Plain round numbers over a short range, powers of ten over a long one."""
    if high / low < 1000:
        axis.set_major_locator(FixedLocator(ticks(low, high)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axis.set_minor_locator(NullLocator())
    else:
        axis.set_major_formatter(LogFormatterMathtext())
        axis.set_minor_formatter(NullFormatter())


def margins(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Limits of a logarithmic axis around `values`, with some air."""
    values = list(values)
    low, high = min(values), max(values)
    air = max((high / low) ** share, 1.02)
    return low / air, high * air


def short(value: float) -> str:
    """1234567 → 1.23M; 8192 → 8192; 0.00213 → 0.00213."""
    if value == 0:
        return "0"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.4g}"


def key(axes: Axes, **where: Any) -> None:
    """A legend, if anything asked for one; a long one without options stands beside all panels."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 6 and not where:
        axes.figure.legend(handles, labels, loc="outside right upper", fontsize=8.5)
    elif labels:
        axes.legend(handles, labels, loc="best", fontsize=8.5, **where)


def key_above(figure: Figure, columns: int) -> None:
    """One legend above all panels, for what any of them shows."""
    told: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        told |= dict(zip(labels, handles, strict=True))
    where: dict[str, Any] = {"loc": "outside upper left", "ncols": columns}
    figure.legend(list(told.values()), list(told), fontsize=8.5, **where)


def title(figure: Figure, text: str) -> None:
    """A line above all panels."""
    figure.suptitle(text, x=0.01, ha="left", fontsize="medium")


def drop(panels: Sequence[Axes]) -> None:
    """Take out the panels of a sheet that nothing was drawn in."""
    for axes in panels:
        axes.remove()


def note(figure: Figure, text: str) -> None:
    """A line below the panels that says what is drawn."""
    figure.supxlabel(text, fontsize=8, color="#5c6370", x=0.01, ha="left")


def tokens(count: float) -> str:
    """A sequence length as people say it: 512, 1k, 8k."""
    return f"{count / 1024:g}k" if count >= 1024 and count % 1024 == 0 else f"{count:g}"


def scientific(value: float, digits: int = 2) -> str:
    """4907335680000 → 4.9 × 10¹²."""
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{power}"
