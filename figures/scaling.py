"""Panels of loss against FLOPs, parameters and tokens seen, shared by the experiments' figures."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.family_fits import FamilyFit
from isoflop.sim.compare.points import Point, axis_label
from isoflop.sim.compare.study import Study


def loss_vs_flops(axes: Axes, study: Study, convention: str = "executed") -> None:
    """Each family's lower envelope with its intervals over seeds; the other cells behind it."""
    for name, look in style.styles(study.families).items():
        edge = study.frontiers[convention][name]
        kept = {id(cell) for cell in edge}
        rest = [cell for cell in study.families[name] if id(cell) not in kept]
        axes.plot(
            [cell.flops[convention] for cell in rest],
            [cell.loss for cell in rest],
            look.marker,
            color=look.colour,
            alpha=0.35,
            markersize=3.5,
            markeredgewidth=0,
        )
        cost = [cell.flops[convention] for cell in edge]
        axes.plot(cost, [cell.loss for cell in edge], color=look.colour, alpha=0.8)
        _scatter(axes, cost, edge, look, name)
    _axes(axes, [cell.flops[convention] for cell in study.points], study.points)
    axes.set_xlabel(f"training FLOPs: {style.named(convention)}")


def bands(axes: Axes, fits: Sequence[FamilyFit]) -> None:
    """90 % bands of the fitted envelopes, over each family's own window; the axis holds them."""
    look = style.styles(item.family for item in fits)
    low, high = axes.get_ylim()
    for item in fits:
        line = item.band()
        if line:
            axes.fill_between(
                [point["flops"] for point in line],
                [point["low"] for point in line],
                [point["high"] for point in line],
                color=look[item.family].colour,
                alpha=0.15,
                linewidth=0,
            )
            low = min(low, *(point["low"] for point in line))
            high = max(high, *(point["high"] for point in line))
    if (low, high) != axes.get_ylim():
        axes.set_ylim(*style.margins([low, high], 0.02))
        style.log_axis(axes.yaxis, *axes.get_ylim())


def loss_vs_params(axes: Axes, cells: Sequence[Point], count: str = "non_embedding") -> None:
    """One line per family, of cells that saw equally many tokens."""
    for name, look in style.styles(cell.family for cell in cells).items():
        group = sorted(
            (cell for cell in cells if cell.family == name), key=lambda c: c.params[count]
        )
        x = [cell.params[count] for cell in group]
        axes.plot(x, [cell.loss for cell in group], color=look.colour, alpha=0.6, linewidth=1)
        _scatter(axes, x, group, look, name)
    axes.set_xlabel(f"parameters: {style.named(count)}")


def curves(axes: Axes, cells: Sequence[Point]) -> None:
    """Training loss of each cell, the mean over its seeds and over a quarter of an octave."""
    shown = []
    sizes = {(cell.width, cell.depth) for cell in cells}
    styles = style.styles(cell.family for cell in cells)
    for cell in cells:
        look = styles[cell.family]
        seen = cell.smooth
        if not seen:
            continue
        size = "" if len(sizes) == 1 else f" (width {cell.width}, depth {cell.depth})"
        axes.plot(
            *zip(*seen, strict=True),
            color=look.colour,
            marker=look.marker,
            markersize=4,
            linewidth=1.1,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=style.label(f"{cell.family}{size}"),
        )
        shown += seen
    axes.set_xlabel("training tokens seen")
    axes.set_ylabel("training loss (nats per token)")
    if shown:
        _log(axes, [x for x, _ in shown], [y for _, y in shown])


def _scatter(
    axes: Axes, x: Sequence[float], group: Sequence[Point], look: style.Style, name: str
) -> None:
    bars = [
        (at, cell.loss, cell.loss - cell.low, cell.high - cell.loss)
        for at, cell in zip(x, group, strict=True)
        if cell.low is not None and cell.high is not None
    ]
    if bars:
        at, y, low, high = zip(*bars, strict=True)
        axes.errorbar(at, y, yerr=(low, high), fmt="none", ecolor=look.colour, elinewidth=1)
    axes.plot(
        x,
        [cell.loss for cell in group],
        look.marker,
        color=look.colour,
        markeredgecolor="white",
        markeredgewidth=0.5,
        label=style.label(name),
    )


def _axes(axes: Axes, x: Sequence[float], cells: Sequence[Point]) -> None:
    axes.set_ylabel(ylabel(cells))
    _log(axes, x, reach(cells))


def ylabel(cells: Sequence[Point]) -> str:
    """The name of the metric that these cells are of."""
    return axis_label(cells[0].metric)


def reach(cells: Sequence[Point]) -> list[float]:
    """Losses and their intervals."""
    return [v for cell in cells for v in (cell.loss, cell.low, cell.high) if v is not None]


def _log(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    (left, right), (bottom, top) = style.margins(x), style.margins(y)
    axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
    style.log_axis(axes.xaxis, left, right)
    style.log_axis(axes.yaxis, bottom, top)
