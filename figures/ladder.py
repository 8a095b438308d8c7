"""The ladder's pictures: the demo's, and what `figures.study` makes of the same runs.

Conventions, optima, gains, residuals, and one family's exponent from parts of its runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from figures import quickstart, scaling, study, style
from figures.points import Point, conventions, points
from sim.records import Row


def draw(rows: list[Row], out: Path, draws: int = study.DRAWS) -> list[Path]:
    found = study.numbers(rows, draws)
    if not found:
        return []
    cells = points(rows)
    looks = style.looks(cell.family for cell in cells)
    return [
        *quickstart.draw(rows, out),
        *flop_conventions(cells, out),
        *optima(found, looks, out),
        *gains(found, looks, out),
        *gains_by_compute(found, looks, out),
        *residuals(found, looks, out),
        *subsets(found, out),
        style.write(found, out, "study"),
    ]


def flop_conventions(cells: list[Point], out: Path) -> list[Path]:
    present = conventions(cells)
    columns = min(3, len(present))
    with style.sheet(columns, -(-len(present) // columns), width=4.4, height=3.6) as (
        figure,
        panels,
    ):
        for i, (axes, convention) in enumerate(zip(panels, present, strict=False)):
            scaling.loss_vs_flops(axes, cells, convention)
            axes.set_ylabel(scaling.LOSS if i % columns == 0 else "")
        style.drop(panels[len(present) :])
        style.key(panels[0])
        style.title(figure, "The same runs under each FLOP convention")
    return style.save(figure, [cell.numbers for cell in cells], out, "flop_conventions")


def optima(found: dict[str, Any], looks: dict[str, style.Look], out: Path) -> list[Path]:
    """N*(C) and D*(C) of each family, dotted outside the sizes and tokens trained."""
    with style.sheet(2, width=4.8, height=3.9) as (figure, panels):
        for axes, quantity, name in zip(
            panels, ("N*", "D*"), ("active parameters N*", "tokens D*"), strict=True
        ):
            for family, window in found["windows"].items():
                optimum = window["optimum"]
                if not optimum:
                    continue
                cost = [point["flops"] for point in optimum]
                middle, low, high = np.array([point[quantity] for point in optimum]).T
                colour = looks[family].colour
                axes.fill_between(cost, low, high, color=colour, alpha=0.12, linewidth=0)
                axes.plot(cost, middle, ":", color=colour)
                inside = [point["measured"] for point in optimum]
                axes.plot(
                    np.where(inside, cost, np.nan), middle, "-", marker=looks[family].marker,
                    color=colour, markeredgecolor="white", markeredgewidth=0.5, label=family,
                )  # fmt: skip
            axes.set(xscale="log", yscale="log")
            style.log_axis(axes.xaxis, *axes.get_xlim())
            style.log_axis(axes.yaxis, *axes.get_ylim())
            axes.set_xlabel("training FLOPs: executed")
            axes.set_ylabel(f"compute-optimal {name}")
        style.key(panels[0])
        style.title(figure, "Compute-optimal size and data")
        style.note(
            figure,
            "from L = A/Nᵅ + B/Dᵝ in each family's window; bands: 90 %; dotted: outside "
            "the sizes and tokens trained; no line: the fit says no",
        )
    return style.save(figure, found["windows"], out, "optima")


def gains(found: dict[str, Any], looks: dict[str, style.Look], out: Path) -> list[Path]:
    """Gain over the baseline under every FLOP convention and in other costs, at the window's far
    end.
    """
    present = {name: items for name, items in found["gains"].items() if items}
    if not present:
        return []
    columns = min(3, len(present))
    with style.sheet(columns, -(-len(present) // columns), width=3.6, height=2.9) as (
        figure,
        panels,
    ):
        for axes, (convention, items) in zip(panels, present.items(), strict=False):
            _forest(axes, items, looks)
            axes.set_title(style.NAMES.get(convention, convention), fontsize=9.5)
        style.drop(panels[len(present) :])
        style.title(figure, f"Compute-equivalent gain over {study.BASELINE}, by what is counted")
        style.note(
            figure,
            "how much more of it the baseline needs for the same loss; 90 % intervals, filled "
            "where they exclude 1; at the largest of three budgets in the shared window",
        )
    return style.save(figure, found["gains"], out, "gains")


def gains_by_compute(
    found: dict[str, Any], looks: dict[str, style.Look], out: Path, convention: str = "executed"
) -> list[Path]:
    """How the gain over the baseline changes through each family's shared window."""
    shown = [item for item in found["gains"].get(convention, []) if item["ceg"]]
    if not shown:
        return []
    with style.sheet(1, width=5.6, height=3.9) as (figure, (axes,)):
        for i, item in enumerate(shown):
            look = looks[item["arm"]]
            cost, middle, low, high = np.array(
                [[at["budget"], at["value"], at["low"], at["high"]] for at in item["ceg"]]
            ).T
            cost = cost * 1.02 ** (i - len(shown) / 2)  # side by side, not one over the other
            axes.errorbar(
                cost, middle, (middle - low, high - middle), marker=look.marker, color=look.colour,
                markeredgecolor="white", markeredgewidth=0.5, capsize=2, label=item["arm"],
            )  # fmt: skip
        axes.axhline(1, color="#5c6370", linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        style.log_axis(axes.xaxis, *axes.get_xlim())
        style.log_axis(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel(f"training FLOPs: {style.NAMES.get(convention, convention)}")
        axes.set_ylabel(f"compute-equivalent gain over {study.BASELINE}")
        style.key(axes)
        style.note(figure, "90 % intervals; above 1 less compute than the baseline is enough")
    return style.save(figure, shown, out, "gains_by_compute")


def _forest(axes: Axes, items: list[dict[str, Any]], looks: dict[str, style.Look]) -> None:
    for row, item in enumerate(items):
        if not item["ceg"]:
            axes.annotate("not resolved", (1, row), va="center", fontsize=8, color="#5c6370")
            continue
        far = item["ceg"][-1]
        resolved = not far["low"] <= 1 <= far["high"]
        look = looks[item["arm"]]
        axes.plot([far["low"], far["high"]], [row, row], color=look.colour, linewidth=1.4)
        face = look.colour if resolved else "white"
        axes.plot(far["value"], row, look.marker, color=look.colour, markerfacecolor=face)
    axes.axvline(1, color="#5c6370", linewidth=0.8)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    style.log_axis(axes.xaxis, left, right)
    axes.set_yticks(range(len(items)), [item["arm"] for item in items])
    axes.set_ylim(len(items) - 0.4, -0.6)


def residuals(found: dict[str, Any], looks: dict[str, style.Look], out: Path) -> list[Path]:
    """What the window's law leaves, beside the noise of a cell's mean over its seeds."""
    shown = {name: w["residuals"] for name, w in found["windows"].items() if w.get("residuals")}
    if not shown:
        return []
    columns = min(4, len(shown))
    reach = 115 * max(abs(cell["log"]) for cells in shown.values() for cell in cells)
    with style.sheet(columns, -(-len(shown) // columns), width=3.0, height=2.5) as (figure, panels):
        for i, (axes, (family, cells)) in enumerate(zip(panels, shown.items(), strict=False)):
            noise = found["noise"][family]["seeds"]
            if noise:
                axes.axhspan(-100 * noise, 100 * noise, color="#e3e5e8", zorder=0)
            for tokens in sorted({cell["D"] for cell in cells}):
                line = [cell for cell in cells if cell["D"] == tokens]
                axes.plot(
                    [cell["N"] for cell in line], [100 * cell["log"] for cell in line],
                    looks[family].marker, linestyle="-", linewidth=0.7, color=looks[family].colour,
                    alpha=0.35 + 0.65 * tokens / max(cell["D"] for cell in cells),
                )  # fmt: skip
            axes.set(xscale="log", ylim=(-reach, reach))
            style.log_axis(axes.xaxis, *axes.get_xlim())
            axes.tick_params(axis="x", rotation=40)
            axes.set_title(family)
            axes.set_xlabel("active parameters N")
            axes.set_ylabel("error of the law (%)" if i % columns == 0 else "")
        style.drop(panels[len(shown) :])
        style.note(figure, "grey: ± one standard deviation between seeds; darker: more tokens")
    return style.save(figure, shown, out, "residuals")


def subsets(found: dict[str, Any], out: Path) -> list[Path]:
    """The exponent moves with the subset; the prediction hardly does (2502.18969)."""
    items = [item for item in found["subsets"] if "alpha" in item]
    if not items:
        return []
    rows = range(len(items))
    with style.sheet(2, width=4.6, height=0.9 + 0.36 * len(items)) as (figure, (left, right)):
        left.plot([item["alpha"] for item in items], rows, "o", color="#3f90da")
        left.set_yticks(rows, [item["subset"] for item in items])
        left.set_xlabel("fitted exponent α of the parameters")
        left.set_xlim(left=0)
        errors = [100 * (item["predicted"] / item["measured"] - 1) for item in items]
        right.plot(errors, rows, "o", color="#bd1f01")
        right.axvline(0, color="#5c6370", linewidth=0.8)
        reach = max(10.0, 1.2 * max(map(abs, errors)))
        right.set_xlim(-reach, reach)
        right.set_yticks(rows, [])
        right.set_xlabel("loss predicted for the largest run, error (%)")
        for axes in (left, right):
            axes.set_ylim(len(items) - 0.5, -0.5)
        style.title(figure, f"One family ({study.BASELINE}), one law, parts of its runs")
    return style.save(figure, found["subsets"], out, "subsets")
