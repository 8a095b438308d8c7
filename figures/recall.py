"""Recall against the bytes of decoding state, a panel for each number of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.trials import Threshold, Trial, by_pairs, chosen, pairs_of, threshold
from isoflop.sim.records.store import Row

REACHED = 0.9


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture; none without a trial of two seeds or more."""
    trials = [trial for trial in chosen(rows) if by_pairs(trial)]
    pairs = pairs_of(rows)
    if not trials or not pairs:
        return []
    families = list(style.styles(str(trial["family"]) for trial in trials))
    found = {
        n: {f: threshold(_of(trials, f), f"pairs{n}.accuracy", REACHED) for f in families}
        for n in pairs
    }
    with style.sheet(len(pairs), 1, 4.3, 4.0) as (figure, panels):
        for axes, n in zip(panels, pairs, strict=True):
            _panel(axes, trials, families, n)
        style.key_above(figure)
        style.title(figure, finding(found))
        style.note(
            figure,
            "mean over the seeds that had no part in choosing the learning rate, with its 90 % t "
            "interval; hollow: the chosen rate is at the edge of the sweep; dashed: .9",
        )
    return style.save(figure, _numbers(trials, pairs, found), out, "recall")


def _of(trials: list[Trial], family: str) -> list[Trial]:
    own = [trial for trial in trials if trial["family"] == family]
    return sorted(own, key=lambda trial: trial.state_bytes)


def _panel(axes: Axes, trials: list[Trial], families: list[str], pairs: int) -> None:
    shown = []
    for family, look in style.styles(families).items():
        line = [
            (trial, one)
            for trial in _of(trials, family)
            if (one := by_pairs(trial).get(pairs)) is not None
        ]
        x, y = [trial.state_bytes for trial, _ in line], [one.mean for _, one in line]
        shown += x
        axes.plot(x, y, "-", color=look.colour, linewidth=1)
        for trial, one in line:
            style.accuracy(axes, trial.state_bytes, one, look, hollow=trial.edge)
        axes.plot([], [], f"{look.marker}-", color=look.colour, label=style.label(family))
    axes.axhline(REACHED, color=style.LINE, linestyle=(0, (4, 3)), linewidth=0.8)
    axes.set(xscale="log", ylim=(-0.03, 1.03), title=f"{pairs} pairs", ylabel="accuracy")
    axes.set_xlabel("decoding state (bytes)")
    axes.set_xlim(*style.margins(shown))
    style.log_axis(axes.xaxis, *style.margins(shown), style.bytes_)


def finding(found: dict[int, dict[str, Threshold | None]]) -> str:
    """Who reaches .9 at the most pairs, and from how many bytes on."""
    most = max(found)
    known = {family: one for family, one in found[most].items() if one is not None}
    reach = {f: one for f, one in known.items() if one.high is not None}
    if not reach:
        return f"No family reaches 90 % of the answers at {most} pairs"
    least = min(reach, key=lambda family: reach[family].high or 0)
    rest = [family for family in known if family not in reach]
    never = f"; {style.listed(rest)} {'does' if len(rest) == 1 else 'do'} not" if rest else ""
    return (
        f"At {most} pairs {len(reach)} of {len(known)} families reach 90 %, {least} with the "
        f"least state ({reach[least]}){never}"
    )


def _numbers(trials: list[Trial], pairs: list[int], found: dict[int, Any]) -> dict[str, Any]:
    return {
        "trials": [
            trial.labels
            | {"lr": trial.rate, "tried": trial.tried, "edge": trial.edge}
            | {"state_bytes": trial.state_bytes}
            | {f"pairs{n}": _interval(trial.interval(f"pairs{n}.accuracy")) for n in pairs}
            for trial in trials
        ],
        "thresholds": {
            n: {f: one and {"low": one.low, "high": one.high} for f, one in by_family.items()}
            for n, by_family in found.items()
        },
    }


def _interval(one: Any) -> list[float | None] | None:
    return None if one is None else [one.mean, one.low, one.high]
