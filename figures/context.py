"""How time and memory grow with the context: train step, prefill, decoding, state."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.slopes import Slope, series, slopes, window


class Quantity(NamedTuple):
    title: str
    axis: str
    told: Callable[[float], str]  # a value with its unit


QUANTITIES = {
    "train_step_seconds": Quantity("Training step", "time per step", style.seconds),
    "prefill_seconds": Quantity("Prefill (read the prompt)", "time per prompt", style.seconds),
    "decode_seconds": Quantity("Decode (write one token)", "time per token", style.seconds),
    "state_bytes": Quantity("Decoding state", "bytes per sequence", style.bytes_),
}


def measured_on(measured: Iterable[dict]) -> str:
    """Size and machine of what is drawn, as far as they were recorded."""
    shown = [m for m in measured if m["quantity"] in QUANTITIES]
    sizes = {(m["width"], m["depth"]) for m in shown if "width" in m and "depth" in m}
    devices = {str(m["device"]) for m in shown if "device" in m}
    said = [f"width {width}, depth {depth}" for width, depth in sorted(sizes)]
    told = style.listed(said) or "size not recorded"
    return f"{told}, on {style.listed(sorted(devices)) or 'a machine not recorded'}"


def finding(fitted: dict[str, dict[str, Slope | None]]) -> str:
    """Whose cost grows least and most with the context, of the first two quantities that tell."""
    said: list[str] = []
    low, high = window(fitted)
    for quantity, lines in fitted.items():
        known = {name: s for name, s in lines.items() if s is not None}
        if len(known) < 2 or len(said) == 2:
            continue
        order = sorted(known, key=lambda name: known[name].value)
        slow, fast = order[0], order[-1]
        what = QUANTITIES[quantity].title.split(" (")[0].lower()
        said.append(
            f"{what} grows as T to the {known[slow].power} ({slow}) to {known[fast].power} ({fast})"
        )
    if not said:
        return "Cost against the length of the context"
    return f"From {style.tokens(low)} to {style.tokens(high)} tokens, {', '.join(said)}"


def draw(measured: list[dict], out: Path) -> list[Path]:
    """One picture, a panel per quantity; none where nothing was measured."""
    fitted = slopes(measured)
    if not fitted:
        return []
    columns = min(2, len(fitted))
    with style.sheet(columns, -(-len(fitted) // columns), width=5.0, height=3.7) as (figure, axes):
        for panel, quantity in zip(axes, fitted, strict=False):
            _panel(panel, measured, quantity, fitted[quantity])
        style.drop(axes[len(fitted) :])
        style.title(figure, finding(fitted))
        some = any(s and s.half is not None for lines in fitted.values() for s in lines.values())
        told = "; ±: 90 % t interval of the log-log line" if some else ""
        if any("predicted" in m for m in measured):
            told += "; dotted: what the exact cost takes at least, at the rates measured beside it"
        style.note(figure, f"{measured_on(measured)}; bars: range of the repeats{told}")
    numbers = {
        "window": window(fitted),
        "measured": measured,
        "slopes": {
            quantity: {
                name: s and {"slope": s.value, "half_width": s.half, "n": s.n}
                for name, s in by_family.items()
            }
            for quantity, by_family in fitted.items()
        },
    }
    return style.save(figure, numbers, out, "context_scaling")


def _panel(
    axes: Axes, measured: list[dict], quantity: str, fitted: dict[str, Slope | None]
) -> None:
    lines = series(measured, quantity)
    for i, (name, look) in enumerate(style.styles(lines).items()):
        line = lines[name]
        over = 1 - i / len(lines)  # later lines are thinner, every other dashed: equal ones show
        lengths = [m["seq_len"] for m in line]
        values = [m["value"] for m in line]
        spread = [
            [max(0.0, m["value"] - (m.get("low") or m["value"])) for m in line],
            [max(0.0, (m.get("high") or m["value"]) - m["value"]) for m in line],
        ]
        told = f"{name}: {fitted[name]}" if fitted[name] else name
        axes.errorbar(
            lengths,
            values,
            yerr=spread,
            color=look.colour,
            marker=look.marker,
            markersize=4.5 + 2.5 * over,
            linewidth=1 + 1.5 * over,
            linestyle=(0, (3, 2)) if i % 2 else "-",
            markeredgecolor="white",
            markeredgewidth=0.5,
            capsize=2,
            elinewidth=1,
            label=style.label(told),
        )
        least = [(m["seq_len"], m["predicted"]) for m in line if "predicted" in m]
        if least and quantity != "state_bytes":  # whose bytes are exact
            axes.plot(*zip(*least, strict=True), color=look.colour, linestyle=":", linewidth=1)
    lengths = sorted({m["seq_len"] for line in lines.values() for m in line})
    ends = ("value", "predicted")
    values = [m[name] for line in lines.values() for m in line for name in ends if name in m]
    axes.set(xscale="log", yscale="log", ylim=style.margins(values, 0.1))
    axes.set_xticks(lengths, [style.tokens(t) for t in lengths])
    axes.minorticks_off()
    style.log_axis(axes.yaxis, *style.margins(values, 0.1), QUANTITIES[quantity].told)
    axes.set(title=QUANTITIES[quantity].title, ylabel=QUANTITIES[quantity].axis)
    axes.set_xlabel("sequence length T (tokens)")
    low, high = map(style.tokens, window({quantity: fitted}))
    legend = f"log-log slope, {low} to {high}" if any(fitted.values()) else None
    style.key(axes, title=legend, title_fontsize=8.5)
