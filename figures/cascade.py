"""How much of a gap a cascade closes for what share of calls, and what speculation gives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import ORDER
from isoflop.sim.compare.points import ordered

RULES: dict[str, dict[str, Any]] = {
    "entropy": {},
    "learnt": {"markerfacecolor": "white", "linewidth": 1.0},
}
TOLERANCE = 0.02  # of the predicted tokens a reading
PUBLISHED = {"gsm8k": "GSM8K", "mmlu": "MMLU"}


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture: the gap closed by tokens and by sequences, of published answers, and tokens for
    each reading of a large model; none without runs.
    """
    names = ordered({row["family"] for row in rows if "family" in row}, ORDER)
    if not names:
        return []
    looks = style.styles(names)
    with style.sheet(2, 2, width=5.6, height=3.7) as (figure, axes):
        for panel, unit in zip(axes[:2], ("tokens", "sequences"), strict=True):
            _gap(panel, rows, unit, names, looks)
        _published(axes[2], rows)
        _drafted(axes[3], rows, names, looks)
        style.key_above(figure)
        style.title(figure, finding(rows))
        style.note(
            figure,
            "solid: by entropy, hollow: by the gain that a regression predicts; bars 90 % by a "
            "bootstrap over sequences, means over seeds; dashed: the best choice (oracle); dotted: "
            "at random, and the prediction of 2211.17192, eq. 1; published: Mixtral-8x7B and GPT-4 "
            "(RouteLLM), rule: the longest questions",
        )
    return style.save(figure, {"rows": rows}, out, "cascade")


def finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a twentieth closes by each rule, and whether speculation is as predicted."""
    said = []
    some = {rule: [row for row in rows if row["part"] == "cascade" and row["unit"] == "tokens"
                   and row["share"] == 0.05 and row["rule"] == rule] for rule in RULES}  # fmt: skip
    if all(some.values()):
        value, top, read = (float(np.mean([row[name] for row in some["entropy"]]))
                            for name in ("closed", "oracle", "flops"))  # fmt: skip
        learnt = float(np.mean([row["closed"] for row in some["learnt"]]))
        said.append(
            f"The 5 % of tokens of most entropy close {100 * value:.0f} % of the gap, of most "
            f"predicted gain {100 * learnt:.0f} % (the best 5 %: {100 * top:.0f} %), at "
            f"{read:.2f} of the large model's FLOPs"
        )
    drafts = [row for row in rows if row["part"] == "speculation"]
    if drafts:
        off = [abs(row["counted"] / row["predicted"] - 1) for row in drafts]
        near = sum(one <= TOLERANCE for one in off)
        said.append(
            f"speculation gives the predicted tokens within 2 % in {near} of {len(drafts)}, within "
            f"{math.ceil(round(100 * max(off), 6))} % in all"
        )
    return "; ".join(said) or "What a cascade closes"


def _mean(rows: Sequence[Mapping[str, Any]], by: str, name: str) -> tuple[list, list]:
    """Means over seeds at each value of `by`."""
    places = sorted({row[by] for row in rows})
    return places, [float(np.mean([r[name] for r in rows if r[by] == at])) for at in places]


def _gap(
    axes: Axes, rows: Sequence[Mapping[str, Any]], unit: str, names: Sequence[str],
    looks: Mapping[str, Any],
) -> None:  # fmt: skip
    every = [row for row in rows if row["part"] == "cascade" and row["unit"] == unit]
    for family, (rule, marks) in product(names, RULES.items()):
        mine = [row for row in every if row["family"] == family and row["rule"] == rule]
        look = looks[family]
        x = _mean(mine, "share", "asked")[1]
        y, low, high, top = (_mean(mine, "share", name)[1]
                             for name in ("closed", "low", "high", "oracle"))  # fmt: skip
        label = style.label(family) if rule == "entropy" else None
        axes.errorbar(
            x, y, yerr=[np.subtract(y, low), np.subtract(high, y)], color=look.colour,
            marker=look.marker, elinewidth=1, label=label, **marks,
        )  # fmt: skip
        if rule == "entropy":
            axes.plot(x, top, "--", color=look.colour)
    axes.plot([0, 1], [0, 1], ":", color=style.LINE)
    axes.set(title=f"By {unit}", xlabel=f"share of {unit} that the large model answers",
             ylabel="share of the gap closed")  # fmt: skip


def _published(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for task, colour in zip(PUBLISHED, ("#20242c", "#8a94a6"), strict=True):
        mine = [row for row in rows if row["part"] == "published" and row["task"] == task]
        x = [row["share"] for row in mine]
        axes.plot(x, [row["closed"] for row in mine], color=colour, label=PUBLISHED[task])
        axes.plot(x, [row["oracle"] for row in mine], "--", color=colour)
    axes.plot([0, 1], [0, 1], ":", color=style.LINE)
    axes.set(title="Published answers", xlabel="share of questions that GPT-4 answers",
             ylabel="share of the gap closed")  # fmt: skip


def _drafted(
    axes: Axes, rows: Sequence[Mapping[str, Any]], names: Sequence[str], looks: Mapping[str, Any]
) -> None:
    for family in names:
        mine = [r for r in rows if r["part"] == "speculation" and r["family"] == family]
        x, counted = _mean(mine, "gamma", "counted")
        predicted = _mean(mine, "gamma", "predicted")[1]
        axes.plot(x, counted, color=looks[family].colour, marker=looks[family].marker)
        axes.plot(x, predicted, ":", color=looks[family].colour)
    axes.set(title="Speculative decoding", xlabel="tokens that are drafted (γ)",
             ylabel="tokens per reading of the large")  # fmt: skip
