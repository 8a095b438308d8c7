"""Loss on clean text of models that read worse, and how much clean text that is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import apart
from isoflop.sim.compare.data_gain import of_rows
from isoflop.sim.records.store import Row

CLEAN, JUDGED = "clean", "code.loss"


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture; none without runs on clean data."""
    if not any(row.labels["data"] == CLEAN for row in rows):
        return []
    found = of_rows(rows, "data", CLEAN, JUDGED)
    arms = list(dict.fromkeys(row["arm"] for row in found))
    looks = apart(arms)
    with style.sheet(2, 1, 5.6, 4.6) as (figure, (left, right)):
        for arm in arms:
            own = [row for row in found if row["arm"] == arm]
            left.plot([row["tokens"] for row in own], [row["loss"] for row in own],
                      f"{looks[arm].marker}-", color=looks[arm].colour, label=arm, markersize=4.5,
                      linewidth=2.4 if arm == CLEAN else 1.2)  # fmt: skip
        left.set(xscale="log", yscale="log", title="Loss on clean code")
        left.set(xlabel="training tokens D", ylabel="held-out loss (nats per byte)")
        style.log_axis(left.xaxis, *style.margins([row["tokens"] for row in found]))
        style.log_axis(left.yaxis, *style.margins([row["loss"] for row in found]))
        _gains(right, found, arms, looks)
        style.key_above(figure)
        style.title(figure, finding(found))
        style.note(
            figure,
            "left: means over the seeds; right: the longest runs, 90 % t intervals over seeds; "
            "arrow: outside of the lengths that were trained on clean code, and to which side",
        )
    return style.save(figure, {"gains": found}, out, "data_quality")


def longest(found: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Each arm's gain at the most tokens."""
    return {row["arm"]: row for row in sorted(found, key=lambda row: row["tokens"])}


def _gains(
    axes: Axes, found: Sequence[Mapping[str, Any]], arms: Sequence[str], looks: Mapping[str, Any]
) -> None:
    last, shown = longest(found), [arm for arm in arms if arm != CLEAN]
    values = [1.0]
    for y, arm in enumerate(shown):
        row, look = last[arm], looks[arm]
        if "low" in row:
            values += [row["low"], row["high"]]
            axes.plot([row["low"], row["high"]], [y, y], "-", color=look.colour, linewidth=1.4)
            axes.plot(row["ratio"], y, look.marker, color=look.colour)
        else:
            side = "◀" if "below" in row["reason"] else "▶"
            axes.annotate(side, (0.02 if side == "◀" else 0.98, y), color=look.colour,
                          xycoords=("axes fraction", "data"), va="center", ha="center")  # fmt: skip
    axes.axvline(1.0, color=style.LINE, linewidth=0.8)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set(xscale="log", title="What the data are worth", xlabel="data gain D_eff / D")
    axes.set_xlim(*style.margins(values, 0.15))
    style.log_axis(axes.xaxis, *style.margins(values, 0.15))


def finding(found: Sequence[Mapping[str, Any]]) -> str:
    """The gains of the longest runs."""
    last = longest(found)
    told = [
        f"{arm}: {row['ratio']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        for arm, row in last.items()
        if arm != CLEAN and "low" in row
    ]
    below = [arm for arm, row in last.items() if "below" in row.get("reason", "")]
    less = f"; less than the shortest run of clean data: {style.listed(below)}" if below else ""
    if not told:
        return f"What worse data are worth{less}"
    return f"Clean data that the same loss takes, over what was read: {', '.join(told)}{less}"
