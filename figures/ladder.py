"""The ladder's pictures: the demo's, and what a study of the same runs says.

Conventions, optima, gains, residuals, and one family's exponent from parts of its runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from isoflop.figures import quickstart, scaling, style
from isoflop.figures.palette import ORDER
from isoflop.figures.report import summary
from isoflop.sim.compare.study import BASELINE, DRAWS, Study, ends
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path, draws: int = DRAWS) -> list[Path]:
    study = Study(rows, draws, order=ORDER)
    if not study.points:
        return []
    found, styles = study.json(), style.styles(study.families)
    return [
        *quickstart.draw(rows, out),
        *flop_conventions(study, out),
        *optima(found, styles, out),
        *gains(found, styles, out),
        *gains_by_compute(found, styles, out),
        *residuals(found, styles, out),
        *subsets(found, out),
        style.write(found, out, "study"),
    ]


def flop_conventions(study: Study, out: Path) -> list[Path]:
    present = study.conventions
    columns = min(3, len(present))
    with style.sheet(columns, -(-len(present) // columns), width=4.4, height=4.4) as (
        figure,
        panels,
    ):
        for i, (axes, convention) in enumerate(zip(panels, present, strict=False)):
            scaling.loss_vs_flops(axes, study, convention)
            axes.set_ylabel(scaling.ylabel(study.points) if i % columns == 0 else "")
        style.drop(panels[len(present) :])
        style.key_above(figure)
        said = " ".join(summary.across(list(study.rankings.values()))).removesuffix(".")
        style.title(figure, said or "The same runs under each FLOP convention")
        style.note(figure, "lines: each family's lower envelope; small: its other cells")
    return style.save(figure, [cell.numbers for cell in study.points], out, "flop_conventions")


def optima(found: dict[str, Any], styles: dict[str, style.Style], out: Path) -> list[Path]:
    """N*(C) and D*(C) of each family, dotted outside the sizes and tokens trained."""
    with style.sheet(2, width=4.8, height=4.4) as (figure, panels):
        for axes, quantity, name in zip(
            panels, ("N*", "D*"), ("N* (active parameters)", "D* (tokens)"), strict=True
        ):
            for family, window in found["windows"].items():
                optimum = window["optimum"]
                if not optimum:
                    continue
                cost = [point["flops"] for point in optimum]
                middle, low, high = np.array([point[quantity] for point in optimum]).T
                colour = styles[family].colour
                axes.fill_between(cost, low, high, color=colour, alpha=0.12, linewidth=0)
                axes.plot(cost, middle, ":", color=colour)
                inside = [point["measured"] for point in optimum]
                axes.plot(
                    np.where(inside, cost, np.nan), middle, "-", marker=styles[family].marker,
                    color=colour, markeredgecolor="white", markeredgewidth=0.5,
                    label=style.label(family),
                )  # fmt: skip
            axes.set(xscale="log", yscale="log")
            style.log_axis(axes.xaxis, *axes.get_xlim())
            style.log_axis(axes.yaxis, *axes.get_ylim())
            axes.set_xlabel("training FLOPs: executed")
            axes.set_ylabel(name)
        style.key(panels[0])
        style.title(figure, _of_optima(found["windows"]))
        style.note(
            figure,
            "from L = A/Nᵅ + B/Dᵝ in each family's window; bands: 90 %; dotted: outside "
            "the sizes and tokens trained; no line: the fit says no",
        )
    return style.save(figure, found["windows"], out, "optima")


def _of_optima(windows: dict[str, Any]) -> str:
    """The span of optimal sizes at the largest budget that all families have, and how many of them
    were trained around.
    """
    known = {name: w["optimum"] for name, w in windows.items() if w["optimum"]}
    if not known:
        return "No family's runs determine a compute-optimal size"
    inside = [name for name, line in known.items() if any(point["measured"] for point in line)]
    last = {name: line[-1] for name, line in known.items()}
    order = sorted(last, key=lambda name: last[name]["N*"][0])
    small, large = order[0], order[-1]
    return (
        f"At the end of each window N* is from {style.short(last[small]['N*'][0])} ({small}) to "
        f"{style.short(last[large]['N*'][0])} ({large}) active parameters; inside the sizes and "
        f"tokens trained for {len(inside)} of {len(windows)} families"
    )


def gains(found: dict[str, Any], styles: dict[str, style.Style], out: Path) -> list[Path]:
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
            _forest(axes, items, styles)
            axes.set_title(style.named(convention), fontsize=9.5)
        style.drop(panels[len(present) :])
        style.title(figure, _of_gains(present))
        style.note(
            figure,
            "how much more of it the baseline needs for the same loss; 90 % intervals, filled "
            "where they exclude 1; at the largest of three budgets in the shared window",
        )
    return style.save(figure, found["gains"], out, "gains")


def _of_gains(present: dict[str, Any]) -> str:
    """Who gains most by the first cost, and for whom the choice of cost decides."""
    cost = next(iter(present))
    baseline = present[cost][0]["baseline"]
    signs: dict[str, set[int]] = {}
    for items in present.values():
        for item in items:
            if item["ceg"]:
                signs.setdefault(item["arm"], set()).add(_sign(item["ceg"][-1]))
    far = {item["arm"]: item["ceg"][-1] for item in present[cost] if item["ceg"]}
    said = f"No gain over {baseline} is resolved in {style.named(cost)} FLOPs"
    if ahead := [name for name in far if _sign(far[name]) > 0]:
        best = max(ahead, key=lambda name: far[name]["value"])
        at = far[best]
        said = (
            f"{best} gains most over {baseline} in {style.named(cost)} FLOPs: "
            f"{at['value']:.2f} × [{at['low']:.2f}, {at['high']:.2f}]"
        )
    both = [name for name, found in signs.items() if len(found) > 1]
    return said + (f"; what is counted decides for {style.listed(both)}" if both else "")


def _sign(gain: dict[str, Any]) -> int:
    """1 above one, −1 below, 0 where the interval includes it."""
    return (gain["low"] > 1) - (gain["high"] < 1)


def gains_by_compute(
    found: dict[str, Any], styles: dict[str, style.Style], out: Path, convention: str = "executed"
) -> list[Path]:
    """How the gain over the baseline changes through each family's shared window."""
    shown = [item for item in found["gains"].get(convention, []) if item["ceg"]]
    if not shown:
        return []
    with style.sheet(1, width=5.6, height=3.9) as (figure, (axes,)):
        for i, item in enumerate(shown):
            look = styles[item["arm"]]
            cost, middle, low, high = np.array(
                [[at["budget"], at["value"], *ends(at)] for at in item["ceg"]]
            ).T
            low, high = np.maximum(low, middle / 10), np.minimum(high, middle * 10)
            cost = cost * 1.02 ** (i - len(shown) / 2)  # side by side, not one over the other
            axes.errorbar(
                cost, middle, (middle - low, high - middle), marker=look.marker, color=look.colour,
                markeredgecolor="white", markeredgewidth=0.5, capsize=2,
                label=style.label(item["arm"]),
            )  # fmt: skip
        axes.axhline(1, color=style.LINE, linewidth=0.8)
        axes.set(xscale="log", yscale="log")
        style.log_axis(axes.xaxis, *axes.get_xlim())
        style.log_axis(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel(f"training FLOPs: {style.named(convention)}")
        axes.set_ylabel(f"gain over {BASELINE}")
        style.key(axes)
        style.title(figure, _of_compute(shown))
        style.note(
            figure,
            "compute-equivalent, 90 % intervals; above 1 less compute than the baseline is enough",
        )
    return style.save(figure, shown, out, "gains_by_compute")


def _of_compute(shown: list[dict[str, Any]]) -> str:
    """For whom the gain rises or falls under every asymptote that the runs allow."""
    ways: dict[str, list[str]] = {"rises": [], "falls": [], "not identifiable": []}
    for item in shown:
        ways[item["trend"]["direction"]].append(item["arm"])
    said = [
        f"{'has no identifiable direction' if way == 'not identifiable' else way} "
        f"for {style.listed(names)}"
        for way, names in ways.items()
        if names
    ]
    return f"Through the window the gain over {BASELINE} {style.listed(said)}"


def _forest(axes: Axes, items: list[dict[str, Any]], styles: dict[str, style.Style]) -> None:
    for row, item in enumerate(items):
        if not item["ceg"]:
            axes.annotate("not resolved", (1, row), va="center", fontsize=8, color=style.LINE)
            continue
        far = item["ceg"][-1]
        low, high = ends(far)
        resolved = not low <= 1 <= high
        look = styles[item["arm"]]
        reach = (low or far["value"] / 10, min(high, 10 * far["value"]))  # a side without an end
        axes.plot(reach, [row, row], color=look.colour, linewidth=1.4)
        face = look.colour if resolved else "white"
        axes.plot(far["value"], row, look.marker, color=look.colour, markerfacecolor=face)
    axes.axvline(1, color=style.LINE, linewidth=0.8)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    style.log_axis(axes.xaxis, left, right)
    axes.set_yticks(range(len(items)), [item["arm"] for item in items])
    axes.set_ylim(len(items) - 0.4, -0.6)


def residuals(found: dict[str, Any], styles: dict[str, style.Style], out: Path) -> list[Path]:
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
                    styles[family].marker, linestyle="-", linewidth=0.7,
                    color=styles[family].colour,
                    alpha=0.35 + 0.65 * tokens / max(cell["D"] for cell in cells),
                )  # fmt: skip
            axes.set(xscale="log", ylim=(-reach, reach))
            style.log_axis(axes.xaxis, *axes.get_xlim())
            axes.tick_params(axis="x", rotation=40)
            axes.set_title(family)
            axes.set_xlabel("active parameters N")
            axes.set_ylabel("error of the law (%)" if i % columns == 0 else "")
        style.drop(panels[len(shown) :])
        style.title(figure, _of_residuals(shown, found["noise"]))
        style.note(figure, "grey: ± one standard deviation between seeds; darker: more tokens")
    return style.save(figure, shown, out, "residuals")


def _of_residuals(shown: dict[str, Any], noise: dict[str, Any]) -> str:
    worst = {name: max(abs(cell["log"]) for cell in cells) for name, cells in shown.items()}
    most = max(worst, key=lambda name: worst[name])
    said = f"The law without E misses a cell by at most {worst[most]:.1%} ({most})"
    misses = [
        abs(cell["log"]) > noise[name]["seeds"]
        for name, cells in shown.items()
        for cell in cells
        if noise[name]["seeds"]
    ]
    if misses:
        said += f", and {sum(misses)} of {len(misses)} by more than the noise between seeds"
    return said


def subsets(found: dict[str, Any], out: Path) -> list[Path]:
    """The exponent moves with the subset; the prediction hardly does (2502.18969)."""
    items = [item for item in found["subsets"] if "alpha" in item]
    if not items:
        return []
    rows = range(len(items))
    with style.sheet(2, width=4.6, height=0.9 + 0.36 * len(items)) as (figure, (left, right)):
        colour = style.styles([BASELINE])[BASELINE].colour
        left.plot([item["alpha"] for item in items], rows, "o", color=colour)
        left.set_yticks(rows, [item["subset"] for item in items])
        left.set_xlabel("fitted exponent α of the parameters")
        left.set_xlim(left=0)
        errors = [100 * (item["predicted"] / item["measured"] - 1) for item in items]
        right.plot(errors, rows, "o", color=colour)
        right.axvline(0, color=style.LINE, linewidth=0.8)
        reach = max(10.0, 1.2 * max(map(abs, errors)))
        right.set_xlim(-reach, reach)
        right.set_yticks(rows, [])
        right.set_xlabel("loss predicted for the largest run, error (%)")
        for axes in (left, right):
            axes.set_ylim(len(items) - 0.5, -0.5)
        low, high = (pick(item["alpha"] for item in items) for pick in (min, max))
        style.title(
            figure,
            f"α of {BASELINE} is {low:.2f} to {high:.2f} by which of its runs are fitted; "
            f"the loss predicted for the largest is off by at most {max(map(abs, errors)):.1f} %",
        )
    return style.save(figure, found["subsets"], out, "subsets")
