"""Panels of loss against FLOPs, parameters and tokens seen, shared by the experiments' figures."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from figures import style
from figures.fits import FamilyFit
from figures.points import Point, envelope

LOSS = "held-out loss (nats per token)"


def loss_vs_flops(axes: Axes, cells: Sequence[Point], convention: str = "executed") -> None:
    """Cells with their intervals over seeds, and each family's lower envelope."""
    for name, look in style.looks(cell.family for cell in cells).items():
        group = [cell for cell in cells if cell.family == name]
        _scatter(axes, [cell.flops[convention] for cell in group], group, look, name)
        edge = envelope(group, convention)
        axes.plot(
            [cell.flops[convention] for cell in edge],
            [cell.loss for cell in edge],
            color=look.colour,
            alpha=0.8,
        )
    _axes(axes, [cell.flops[convention] for cell in cells], cells)
    axes.set_xlabel(f"training FLOPs: {style.NAMES.get(convention, convention)}")


def bands(axes: Axes, cells: Sequence[Point], fits: Sequence[FamilyFit], convention: str) -> None:
    """90 % bands of the fitted envelopes, over each family's own window."""
    look = style.looks(cell.family for cell in cells)
    for item in fits:
        reach = [cell.flops[convention] for cell in cells if cell.family == item.family]
        line = item.curve(min(reach), max(reach))
        if line:
            axes.fill_between(
                [point["flops"] for point in line],
                [point["low"] for point in line],
                [point["high"] for point in line],
                color=look[item.family].colour,
                alpha=0.15,
                linewidth=0,
            )


def loss_vs_params(axes: Axes, cells: Sequence[Point], count: str = "non_embedding") -> None:
    """One thin line per family and number of training tokens."""
    for name, look in style.looks(cell.family for cell in cells).items():
        group = sorted(
            (cell for cell in cells if cell.family == name), key=lambda c: c.params[count]
        )
        _scatter(axes, [cell.params[count] for cell in group], group, look, name)
        for tokens in sorted({cell.tokens for cell in group}):
            line = [cell for cell in group if cell.tokens == tokens]
            x = [cell.params[count] for cell in line]
            y = [cell.loss for cell in line]
            axes.plot(x, y, color=look.colour, alpha=0.5, linewidth=0.9)
    _axes(axes, [cell.params[count] for cell in cells], cells)
    axes.set_xlabel(f"parameters: {style.NAMES.get(count, count)}")


def costliest(cells: Sequence[Point]) -> list[Point]:
    """The largest of each family's cells with most tokens."""
    order = sorted(cells, key=lambda cell: (cell.tokens, cell.params.get("total", 0)))
    most = {cell.family: cell for cell in order}
    return [most[name] for name in style.looks(most)]


def curves(axes: Axes, cells: Sequence[Point]) -> None:
    """Training loss of each cell, one thin line per seed."""
    shown = []
    looks = style.looks(cell.family for cell in cells)
    for cell in cells:
        look = looks[cell.family]
        legend = f"{cell.family} (width {cell.width}, depth {cell.depth})"
        for curve in cell.curves.values():
            seen = [(step * cell.batch_tokens, loss) for step, loss in curve if step > 0]
            if not seen:
                continue
            axes.plot(*zip(*seen, strict=True), color=look.colour, linewidth=0.9, label=legend)
            legend = ""
            shown += seen
    axes.set_xlabel("training tokens seen")
    axes.set_ylabel("training loss (nats per token)")
    if shown:
        _log(axes, [x for x, _ in shown], [y for _, y in shown])


def _scatter(
    axes: Axes, x: Sequence[float], group: Sequence[Point], look: style.Look, name: str
) -> None:
    bars = [
        (at, cell.loss, cell.loss - cell.low, cell.high - cell.loss)
        for at, cell in zip(x, group, strict=True)
        if cell.low is not None and cell.high is not None
    ]
    if bars:
        at, y, low, high = zip(*bars, strict=True)
        axes.errorbar(
            at, y, yerr=(low, high), fmt="none", ecolor=look.colour, elinewidth=1, capsize=4
        )
    axes.plot(
        x,
        [cell.loss for cell in group],
        look.marker,
        color=look.colour,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=name,
    )


def _axes(axes: Axes, x: Sequence[float], cells: Sequence[Point]) -> None:
    reach = [v for cell in cells for v in (cell.loss, cell.low, cell.high) if v is not None]
    axes.set_ylabel(LOSS)
    _log(axes, x, reach)


def _log(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    (left, right), (bottom, top) = style.margins(x), style.margins(y)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    style.log_axis(axes.xaxis, left, right)
    style.log_axis(axes.yaxis, bottom, top)
