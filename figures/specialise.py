"""Loss on a domain of general, special and tuned models of equal FLOPs, and what tuning forgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import apart
from isoflop.sim.compare.rankings import Interval
from isoflop.sim.compare.specialists import (
    DOMAIN,
    GENERAL,
    LORA,
    PARENT,
    TUNED,
    less,
    of,
    old,
    size,
    widths,
)

ARMS = (GENERAL, TUNED, LORA, DOMAIN)
DOMAINS = {"english": "Code", "code": "One book"}  # by what models are general in
LANGUAGES = {"english": "English", "code": "code"}
HOW = {TUNED: "full tuning"}  # in words, where an arm's name is none


def draw(rows: list[dict], out: Path) -> list[Path]:
    """One picture; none without general and tuned models."""
    if not widths(rows, GENERAL) or not widths(rows, TUNED):
        return []
    looks = apart(ARMS)
    numbers = compared(rows)
    with style.sheet(2, 1, 5.6, 4.4) as (figure, (left, right)):
        for arm in ARMS:
            _line(left, rows, arm, "domain", looks[arm])
        left.set(title=f"{DOMAINS[old(rows)]}, the domain", ylabel="held-out loss (nats per byte)")
        for arm in (TUNED, LORA):
            _changes(right, numbers["tuning"], arm, looks[arm])
        right.axhline(0.0, color=style.LINE, linewidth=0.8)
        right.set(title="What tuning changes", ylabel="loss less the parent's (nats per byte)")
        for axes in (left, right):
            sizes = sorted({row["N"] for row in rows})
            axes.set(xscale="log", xlabel="parameters N, at equal training FLOPs")
            axes.set_xlim(*style.margins(sizes))
            style.log_axis(axes.xaxis, *style.margins(sizes))
        style.key_above(figure)
        style.title(figure, finding(numbers))
        style.note(
            figure,
            "points: seeds; bars: 90 % t intervals of differences paired by seed; right: solid on "
            f"{LANGUAGES[old(rows)]}, which the parent was mostly trained on, dashed on the domain",
        )
    return style.save(figure, {"rows": rows, **numbers}, out, "specialise")


def compared(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The smallest tuned model beside the largest general one, and every tuned one's changes."""
    small, large = widths(rows, TUNED)[0], widths(rows, GENERAL)[-1]
    tuning = [
        {"arm": arm, "width": w, "N": size(rows, w), "metric": metric, **_json(found)}
        for arm in (TUNED, LORA) for metric in (old(rows), "domain") for w in widths(rows, arm)
        if (found := less(rows, (arm, w), (PARENT, w), metric)) is not None
    ]  # fmt: skip
    beside = less(rows, (TUNED, small), (GENERAL, large))
    return {
        "old": old(rows),
        "ratio": size(rows, large) / size(rows, small),
        "small_less_large": _json(beside) if beside else None,
        "tuning": tuning,
    }


def _json(found: Interval) -> dict[str, float | None]:
    return {"mean": found.mean, "low": found.low, "high": found.high}


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], arm: str, metric: str, look: Any) -> None:
    own = {w: [row[metric] for row in of(rows, arm, w).values()] for w in widths(rows, arm)}
    x = [size(rows, width) for width in own]
    axes.plot(x, [sum(v) / len(v) for v in own.values()], f"{look.marker}-", color=look.colour,
              label=arm, markersize=5)  # fmt: skip
    for n, values in zip(x, own.values(), strict=True):
        axes.plot([n] * len(values), values, look.marker, color=look.colour, markersize=2.5,
                  alpha=0.6)  # fmt: skip


def _changes(axes: Axes, tuning: Sequence[Mapping[str, Any]], arm: str, look: Any) -> None:
    for domain, line in ((False, "-"), (True, "--")):
        own = [one for one in tuning
               if one["arm"] == arm and (one["metric"] == "domain") == domain]  # fmt: skip
        axes.plot([one["N"] for one in own], [one["mean"] for one in own],
                  line + look.marker, color=look.colour, markersize=4.5)  # fmt: skip
        for one in own:
            if one["low"] is not None:
                axes.plot([one["N"]] * 2, [one["low"], one["high"]], "-", color=look.colour,
                          linewidth=0.8)  # fmt: skip


def finding(numbers: Mapping[str, Any]) -> str:
    """Whether the small tuned model is beside the large general one, and what full tuning and LoRA
    forget at the largest size.
    """
    said = []
    if (one := numbers["small_less_large"]) is not None and one["low"] is not None:
        word = "not told from" if one["low"] <= 0 <= one["high"] else (
            "better on its domain than" if one["high"] < 0 else "worse on its domain than"
        )  # fmt: skip
        ends = ", ".join(_signed(one[end]) for end in ("low", "high"))
        said.append(
            f"A small tuned model is {word} a general one {numbers['ratio']:.0f} times its size "
            f"(loss {_signed(one['mean'])} [{ends}] nats)"
        )
    last = {one["arm"]: one for one in numbers["tuning"] if one["metric"] != "domain"}
    forgotten = [f"{_signed(one['mean'])} nats by {HOW.get(arm, arm)}" for arm, one in last.items()]
    if forgotten:
        language = LANGUAGES[numbers["old"]]
        said.append(f"the largest's loss on {language} changes {style.listed(forgotten)}")
    return "; ".join(said) or "What specialising is worth"


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")
