"""The demo's pictures: loss against FLOPs, loss against parameters, and the loss curves."""

from __future__ import annotations

from pathlib import Path

from figures import fits, scaling, style
from figures.points import Point, conventions, counts, points
from sim.records import Row

DRAWS = 300  # of the bootstrap behind the bands


def draw(rows: list[Row], out: Path) -> list[Path]:
    """Each figure as SVG and PNG with its numbers as JSON; none where no run finished."""
    cells = points(rows)
    if not cells:
        return []
    left_out = len(rows) - sum(len(cell.losses) for cell in cells)
    return [
        *loss_vs_flops(cells, left_out, out),
        *loss_vs_params(cells, out),
        *loss_curves(cells, out),
    ]


def loss_vs_flops(cells: list[Point], left_out: int, out: Path) -> list[Path]:
    convention = _prefer("executed", conventions(cells))
    lines = fits.power(cells, convention, DRAWS)
    with style.sheet() as (figure, (axes,)):
        scaling.loss_vs_flops(axes, cells, convention)
        scaling.bands(axes, cells, lines, convention)
        axes.set_title(f"Held-out loss against training compute{_missing(left_out)}")
        style.key(axes)
        style.note(
            figure,
            "lines: each family's best runs (lower envelope); bands: 90 % interval of the power "
            "law through them",
        )
    numbers = {
        "convention": convention,
        "cells": [cell.numbers for cell in cells],
        "envelopes": {item.family: item.fit.json() for item in lines},
    }
    return style.save(figure, numbers, out, "loss_vs_flops")


def loss_vs_params(cells: list[Point], out: Path) -> list[Path]:
    present = counts(cells)
    shown = [name for name in ("total", "active", "non_embedding") if name in present]
    with style.sheet(len(shown), width=4.2) as (figure, panels):
        for axes, count in zip(panels, shown, strict=True):
            scaling.loss_vs_params(axes, cells, count)
            axes.set_ylabel(scaling.LOSS if axes is panels[0] else "")
        panels[0].set_title("One line per family and number of training tokens")
        style.key(panels[0])
    return style.save(figure, [cell.numbers for cell in cells], out, "loss_vs_params")


def loss_curves(cells: list[Point], out: Path) -> list[Path]:
    cells = scaling.costliest(cells)
    with style.sheet() as (figure, (axes,)):
        scaling.curves(axes, cells)
        axes.set_title("Training loss")
        style.key(axes)
        style.note(figure, "each family's largest cell, one line per seed")
    numbers = [
        {**cell.numbers, "batch_tokens": cell.batch_tokens, "curves": cell.curves} for cell in cells
    ]
    return style.save(figure, numbers, out, "loss_curves")


def _prefer(name: str, present: list[str]) -> str:
    return name if name in present else present[0]


def _missing(left_out: int) -> str:
    return f" ({left_out} failed or diverged, not drawn)" if left_out else ""
