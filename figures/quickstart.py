"""The demo's pictures: loss against FLOPs, loss against parameters, and the loss curves."""

from __future__ import annotations

from pathlib import Path

from isoflop.figures import scaling, style
from isoflop.figures.palette import ORDER
from isoflop.figures.report import summary
from isoflop.sim.compare.points import LOSS, Point, families, noun, unit
from isoflop.sim.compare.study import Study
from isoflop.sim.records.store import Row

DRAWS = 300  # of the bootstrap behind the bands
LENGTHS = 3  # numbers of training tokens that have a panel


def draw(rows: list[Row], out: Path, metric: str = LOSS) -> list[Path]:
    """Each figure as SVG and PNG with its numbers as JSON; none where no run finished. Of another
    metric than the loss there are no curves.
    """
    study = Study(rows, DRAWS, order=ORDER, metric=metric)
    if not study.points:
        return []
    return [
        *loss_vs_flops(study, out),
        *loss_vs_params(study, out),
        *(loss_curves(study, out) if metric == LOSS else []),
    ]


def loss_vs_flops(study: Study, out: Path) -> list[Path]:
    convention = _prefer("executed", study.conventions)
    lines = study.lines(convention)
    with style.sheet() as (figure, (axes,)):
        scaling.loss_vs_flops(axes, study, convention)
        scaling.bands(axes, lines)
        style.key(axes)
        style.title(figure, headline(study, convention))
        told = "lines: each family's best runs (lower envelope)"
        if any(cell.low is not None for cell in study.points):
            told += "; bars: 90 % over seeds"
        if any(item.fit.ok for item in lines):
            told += "; bands: 90 % interval of the power law through a line"
        style.note(figure, told + _missing(study.lost, study.metric))
    numbers = {
        "convention": convention,
        "cells": [cell.numbers for cell in study.points],
        "envelopes": {item.family: item.fit.json() for item in lines},
    }
    return style.save(figure, numbers, out, "loss_vs_flops")


def headline(study: Study, convention: str) -> str:
    return summary.headline(study.rankings.get(convention), [*study.families], study.metric)


def loss_vs_params(study: Study, out: Path) -> list[Path]:
    """A row for each way of counting, a column for each number of tokens."""
    cells = study.points
    shown = [name for name in ("total", "active") if name in study.counts]
    lengths = sorted({cell.tokens for cell in cells})
    most = len(lengths) - 1
    kept = sorted({lengths[round(i * most / max(1, LENGTHS - 1))] for i in range(LENGTHS)})
    columns = [[cell for cell in cells if cell.tokens == tokens] for tokens in kept]
    bottom, top = style.margins(scaling.reach([cell for group in columns for cell in group]))
    with style.sheet(len(kept), len(shown), width=3.9, height=3.3) as (figure, panels):
        for i, axes in enumerate(panels):
            count, group = shown[i // len(kept)], columns[i % len(kept)]
            scaling.loss_vs_params(axes, group, count)
            left, right = style.margins([cell.params[count] for cell in cells])
            axes.set(xscale="log", yscale="log", xlim=(left, right), ylim=(bottom, top))
            style.log_axis(axes.xaxis, left, right)
            style.log_axis(axes.yaxis, bottom, top)
            axes.set_ylabel(scaling.ylabel(cells) if i % len(kept) == 0 else "")
            if i < len(kept):
                axes.set_title(f"{style.short(kept[i])} training tokens")
        style.key_above(figure)
        style.title(figure, _of_params(columns[-1], kept[-1]))
        some = "" if len(kept) == len(lengths) else f"{len(kept)} of {len(lengths)} lengths; "
        style.note(figure, f"{some}a row for each way of counting parameters")
    return style.save(figure, [cell.numbers for cell in cells], out, "loss_vs_params")


def _of_params(cells: list[Point], tokens: int) -> str:
    """What a larger model gains after the longest training, family by family."""
    gains = {}
    for name, group in families(cells).items():
        small, large = (pick(group, key=lambda c: c.params["total"]) for pick in (min, max))
        if large.params["total"] > small.params["total"]:
            gains[name] = small.loss - large.loss
    if not gains:
        return f"{noun(cells[0].metric).capitalize()} against parameters"
    of = unit(cells[0].metric)
    least, most = (pick(gains, key=lambda name: gains[name]) for pick in (min, max))
    if least == most:
        said = f"gains {most} {gains[most]:.2f} {of}"
    else:
        said = f"gains from {gains[least]:.2f} {of} ({least}) to {gains[most]:.2f} ({most})"
    return f"After {style.short(tokens)} tokens the largest model over the smallest {said}"


def loss_curves(study: Study, out: Path) -> list[Path]:
    cells = study.costliest
    with style.sheet() as (figure, (axes,)):
        scaling.curves(axes, cells)
        style.key(axes)
        style.title(figure, _of_curves(cells))
        sizes = {(cell.width, cell.depth) for cell in cells}
        size = "width {}, depth {}".format(*sizes.pop()) if len(sizes) == 1 else "its own size"
        style.note(
            figure,
            f"each family's largest cell ({size}); the mean over its seeds and over quarters of an "
            "octave; the fall at the end is the cooldown's",
        )
    numbers = [
        {**cell.numbers, "batch_tokens": cell.batch_tokens, "curves": cell.curves} for cell in cells
    ]
    return style.save(figure, numbers, out, "loss_curves")


def _of_curves(cells: list[Point]) -> str:
    ends = {cell.family: curve[-1][1] for cell in cells if (curve := cell.smooth)}
    if len(ends) < 2:
        return "Training loss against tokens seen"
    order = sorted(ends, key=lambda name: ends[name])
    return (
        f"At the end of training {order[0]} is lowest ({ends[order[0]]:.2f} nats per token) and "
        f"{order[-1]} highest ({ends[order[-1]]:.2f})"
    )


def _prefer(name: str, present: list[str]) -> str:
    return name if name in present else present[0]


def _missing(left_out: int, metric: str) -> str:
    why = "failed or diverged" if metric == LOSS else f"without {metric}, or none above 0"
    return f"; {left_out} {why}, not drawn" if left_out else ""
