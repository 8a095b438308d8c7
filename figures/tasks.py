"""Accuracy on each task against size, and the smallest size that learns it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.figures.palette import ORDER
from isoflop.sim.compare.points import ordered
from isoflop.sim.compare.task_curves import (
    REACHED,
    Smallest,
    accuracies,
    plateaus,
    predicted,
    size,
    smallest,
)
from isoflop.sim.compare.trials import Trial, chosen
from isoflop.sim.records.store import Row

Found = dict[str, dict[str, Smallest]]  # by task and family


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture, a panel for each task; none without a trial of two seeds or more."""
    trials = chosen(rows)
    if not trials:
        return []
    tasks = list(dict.fromkeys(str(trial["task"]) for trial in trials))
    families = ordered((str(trial["family"]) for trial in trials), ORDER)
    arms = {task: {f: _of(trials, task, f) for f in families} for task in tasks}
    found = {task: {f: smallest(own) for f, own in arms[task].items() if own} for task in tasks}
    table = [_row(task, f, own, found[task][f]) for task in tasks
             for f, own in arms[task].items() if own]  # fmt: skip
    with style.sheet(len(tasks), 1, 3.6, 4.2) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            _panel(axes, task, arms[task], found[task])
        style.key_above(figure)
        style.title(figure, finding(found, table))
        style.note(
            figure,
            "each seed that had no part in choosing the learning rate, and their mean; hollow: the "
            "chosen rate is at the edge of the sweep; band: sizes between which the smallest that "
            "reaches .9 lies; dotted: chance",
        )
    return style.save(figure, {"tasks": table}, out, "tasks")


def _of(trials: list[Trial], task: str, family: str) -> list[Trial]:
    own = [t for t in trials if (t["task"], t["family"]) == (task, family)]
    return sorted(own, key=size)


def _chance(trial: Trial) -> float:
    return trial.rows[0].record.run.data.open().chance or 0.0


def _row(task: str, family: str, own: list[Trial], found: Smallest) -> dict[str, Any]:
    return {
        **{"task": task, "family": family, "smallest": [found.low, found.high]},
        **{"edge": found.edge, "chance": _chance(own[0])},
        "sizes": [size(trial) for trial in own],
        "accuracies": [accuracies(trial) for trial in own],
        "plateaus": plateaus(own),
        "predicted": predicted(own, _chance(own[0])),
    }


def _panel(axes: Axes, task: str, arms: dict[str, list[Trial]], found: dict[str, Smallest]) -> None:
    shown = []
    for family, look in style.styles(family for family, own in arms.items() if own).items():
        own = arms[family]
        x = [size(trial) for trial in own]
        shown += x
        axes.plot(x, [fmean(accuracies(t)) for t in own], "-", color=look.colour, linewidth=1.2)
        for trial, n in zip(own, x, strict=True):
            face = "white" if trial.edge else look.colour
            for value in accuracies(trial):
                axes.plot(n, value, look.marker, mfc=face, mec=look.colour, markersize=4.5)
        axes.plot([], [], f"{look.marker}-", color=look.colour, label=style.label(family))
        one = found[family]
        if one.high is not None:
            low = one.low if one.low is not None else style.margins(x)[0]
            axes.axvspan(low, one.high, color=look.colour, alpha=0.13, linewidth=0)
        axes.axhline(_chance(own[0]), color=style.LINE, linestyle=":", linewidth=0.8)
    axes.axhline(REACHED, color=style.LINE, linestyle=(0, (4, 3)), linewidth=0.8)
    axes.set(xscale="log", ylim=(-0.03, 1.03), title=task, ylabel="accuracy")
    axes.set_xlabel("parameters N")
    axes.set_xlim(*style.margins(shown))
    style.log_axis(axes.xaxis, *style.margins(shown))


def finding(found: Found, table: list[dict[str, Any]]) -> str:
    """The smallest size for each task, of the family that needs least, and what predicts it."""
    said = []
    for task, by_family in found.items():
        reach = {f: one for f, one in by_family.items() if one.high is not None}
        if not reach:
            said.append(f"{task} none of those trained")
            continue
        best = min(reach, key=lambda family: reach[family].high or 0)
        whose = f" ({best})" if len(by_family) > 1 else ""
        said.append(f"{task} {reach[best]}{whose}")
    errors = [
        {way: abs(one[way] - one["measured"]) for way in ("direct", "from_loss")}
        for row in table if (one := row["predicted"]) is not None
    ]  # fmt: skip
    better = sum(one["direct"] < one["from_loss"] for one in errors)
    ways = (
        f"; a sigmoid of ln N predicts the largest better than the loss in {better} of "
        f"{len(errors)}"
        if errors
        else ""
    )
    return f"Parameters that 90 % of the answers take: {', '.join(said)}{ways}"
