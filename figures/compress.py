"""What compression costs in size, and how it grows with training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import ORDER
from isoflop.sim.compare.points import ordered
from isoflop.sim.compare.precision import hardness, largest, post_training

OUTSIDE = "N_eff/N is"  # in the reason of a size that lies outside the trained ones
HARD = "weights int3"  # the format whose cost is drawn against tokens


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture, of families that have a surface: effective sizes at each one's largest run, and
    the rise of the loss under int3 against training tokens; none where there are none.
    """
    surface = {row["family"] for row in rows if not row.get("reason") or OUTSIDE in row["reason"]}
    rows = [row for row in rows if row["family"] in surface]
    if not rows:
        return []
    families = ordered(surface, ORDER)
    treatments = list(dict.fromkeys(row["treatment"] for row in largest(rows)))
    kinds = [one.partition(" ")[0] for one in treatments]
    treatments.sort(key=lambda one: kinds.index(one.partition(" ")[0]))
    looks = style.styles(families)
    exponents = hardness(rows, HARD)
    with style.sheet(2, 1, width=6.2, height=0.42 * len(treatments) + 1.6) as (figure, axes):
        _sizes(axes[0], rows, families, treatments, looks)
        _growth(axes[1], rows, families, looks)
        style.key_above(figure)
        style.title(figure, finding(rows, exponents))
        style.note(
            figure,
            "left: each family's largest run with most tokens; bars: 90 % intervals (the family's "
            "surface, and seeds), off the axis where they leave the trained sizes; right: mean of "
            "the seeds, at each family's largest size",
        )
    numbers = {"rows": rows, "hardness": exponents, "post_training": post_training(rows)}
    return style.save(figure, numbers, out, "compress")


def finding(rows: Sequence[Mapping[str, Any]], exponents: Mapping[str, Any]) -> str:
    """What int8 and int4 weights cost, and whether int3 grows harder with training."""
    said = []
    for name in ("weights int8", "weights int4"):
        sizes = [row["ratio"] for row in largest(rows) if row["treatment"] == name
                 and not row.get("reason")]  # fmt: skip
        if sizes:
            low, high = min(sizes), max(sizes)
            span = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
            said.append(f"{name.removeprefix('weights ')} weights leave {span} of a model's size")
    harder = [name for name, found in exponents.items() if found["gamma_D"][1] > 0]
    if exponents:
        whom = style.listed(harder) if harder else "no family"
        said.append(
            f"over all sizes int3 costs more the longer one trains for {whom} (of {len(exponents)})"
        )
    return "; ".join(said) or "What compression costs"


def _sizes(
    axes: Axes, rows: Sequence[Mapping[str, Any]], families: Sequence[str],
    treatments: Sequence[str], looks: Mapping[str, Any],
) -> None:  # fmt: skip
    shown = largest(rows)
    for i, family in enumerate(families):
        of = {row["treatment"]: row for row in shown if row["family"] == family}
        known = [(y, of[name]) for y, name in enumerate(treatments)
                 if name in of and not of[name].get("reason")]  # fmt: skip
        shift = 0.7 * ((i + 0.5) / len(families) - 0.5)
        x = [row["ratio"] for _, row in known]
        ends = [
            [row["ratio"] - row["low"] for _, row in known],
            [(row["high"] if row["high"] is not None else 9.0) - row["ratio"] for _, row in known],
        ]
        axes.errorbar(
            x, [y + shift for y, _ in known], xerr=ends, fmt=looks[family].marker,
            color=looks[family].colour, label=style.label(family), elinewidth=1, markersize=4.5,
            markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    drawn = [row["ratio"] for row in shown if not row.get("reason")]
    axes.axvline(1.0, color=style.LINE, linewidth=0.8)
    axes.set_yticks(range(len(treatments)), treatments)
    axes.invert_yaxis()
    axes.set_xlim(min([0.2, *drawn]) * 0.9, max([1.05, *drawn]) * 1.08)
    axes.set(title="Effective size", xlabel="N_eff / N")
    refused = [f"{row['family']}: {row['treatment']}" for row in shown if row.get("reason")]
    if refused:
        axes.set_xlabel(f"N_eff / N ({len(refused)} of {len(shown)} outside the trained sizes)")


def _growth(
    axes: Axes, rows: Sequence[Mapping[str, Any]], families: Sequence[str], looks: Mapping[str, Any]
) -> None:
    values = []
    for family in families:
        mine = [row for row in rows if row["family"] == family and row["treatment"] == HARD]
        most = max((row["N"] for row in mine), default=math.nan)
        line = sorted((row["D"], row["change"]) for row in mine if row["N"] == most)
        line = [(d, change) for d, change in line if change > 0]
        values += [change for _, change in line]
        axes.plot(
            [d for d, _ in line], [change for _, change in line], color=looks[family].colour,
            marker=looks[family].marker, markeredgecolor="white", markeredgewidth=0.4,
        )  # fmt: skip
    if not values:
        return
    axes.set(xscale="log", yscale="log", title=f"What {HARD} costs, over training")
    tokens = sorted({row["D"] for row in rows})
    style.log_axis(axes.xaxis, *style.margins(tokens))
    style.log_axis(axes.yaxis, *style.margins(values))
    axes.set(xlabel="training tokens D", ylabel="rise of the loss δ (nats per token)")
