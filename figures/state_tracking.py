"""Parity at one and at six times the training length, and word problems against depth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from isoflop.figures import style
from isoflop.sim.compare.trials import Trial, chosen
from isoflop.sim.records.store import Row

SOLVED = 0.99


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture with a panel for each task that has trials of two seeds or more."""
    trials = chosen(rows)
    tasks = [t for t in ("parity", "S3", "A5") if any(trial["task"] == t for trial in trials)]
    if not tasks:
        return []
    with style.sheet(len(tasks), 1, 4.6 if len(tasks) > 1 else 7.0, 4.0) as (figure, panels):
        for axes, task in zip(panels, tasks, strict=True):
            own = [trial for trial in trials if trial["task"] == task]
            (_parity if task == "parity" else _words)(axes, own)
        style.key_above(figure)
        style.title(figure, finding(trials))
        style.note(
            figure,
            "mean over the seeds that had no part in choosing the learning rate, with its 90 % t "
            "interval; hollow: the chosen rate is at the edge of the sweep; dotted: chance",
        )
    return style.save(figure, [_numbers(trial) for trial in trials], out, "state_tracking")


def _parity(axes: Axes, trials: list[Trial]) -> None:
    looks = style.styles(str(trial["family"]) for trial in trials)
    own = {str(trial["family"]): trial for trial in trials}
    lengths = {name: split.seq_len for split in trials[0].rows[0].record.run.evals
               for name in [split.name]}  # fmt: skip
    for i, (family, look) in enumerate(looks.items()):
        for place, name in enumerate(lengths):
            _dot(
                axes, place + 0.06 * (2 * i + 1 - len(looks)), own[family], f"{name}.accuracy", look
            )
        axes.plot([], [], look.marker, color=look.colour, label=style.label(family))
    bits = [f"{(n or 1) - 1} bits" for n in lengths.values()]
    axes.set_xticks(range(len(bits)), bits)
    _finish(axes, "Parity after the last bit", 0.5)


def _words(axes: Axes, trials: list[Trial]) -> None:
    for family, look in style.styles(str(trial["family"]) for trial in trials).items():
        own = sorted((t for t in trials if t["family"] == family), key=lambda t: int(t["depth"]))
        line = [(t["depth"], one.mean) for t in own if (one := t.interval("x1.accuracy"))]
        axes.plot(*zip(*line, strict=True), "-", color=look.colour, linewidth=1) if line else None
        for trial in own:
            _dot(axes, float(trial["depth"]), trial, "x1.accuracy", look)
        axes.plot([], [], look.marker, color=look.colour, label=style.label(family))
    depths = sorted({int(trial["depth"]) for trial in trials})
    axes.set(xscale="log", xlabel="layers")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.minorticks_off()
    group = trials[0]["task"]
    _finish(axes, f"Word problem of {group}", {"S3": 1 / 6, "A5": 1 / 60}[str(group)])


def _dot(axes: Axes, x: float, trial: Trial, metric: str, look: style.Style) -> None:
    if one := trial.interval(metric):
        style.accuracy(axes, x, one, look, hollow=trial.edge)


def _finish(axes: Axes, title: str, chance: float) -> None:
    axes.axhline(chance, color=style.LINE, linestyle=(0, (1, 2)), linewidth=1)
    axes.set(ylim=(-0.03, 1.03), title=title, ylabel="accuracy of the last answer")


def finding(trials: list[Trial]) -> str:
    """Which families solve parity at the longest length, and words at a depth."""
    by_task: dict[str, list[Trial]] = {}
    for trial in trials:
        by_task.setdefault(str(trial["task"]), []).append(trial)
    parity = by_task.pop("parity", [])
    return "; ".join([*(_solved_parity(parity) if parity else []), *map(_solved, by_task.values())])


def _solved_parity(trials: list[Trial]) -> list[str]:
    parity = {str(trial["family"]): trial for trial in trials}
    evals = trials[0].rows[0].record.run.evals
    near, *_, far = sorted(evals, key=lambda one: one.seq_len or 0)
    means = {f: one.mean for f, t in parity.items() if (one := t.interval(f"{far.name}.accuracy"))}
    solved = [family for family in means if means[family] >= SOLVED]
    rest = [family for family in means if family not in solved]
    trained, asked = ((one.seq_len or 1) - 1 for one in (near, far))
    who = style.listed(solved) if solved else "no family"
    said = [f"Parity at {asked} bits, trained on at most {trained}, is solved by {who}"]
    if rest:
        best = max(rest, key=lambda family: means[family])
        said.append(f"{best} has {means[best]:.2f} of the answers")
    return said


def _solved(trials: list[Trial]) -> str:
    """Who has .99 of the last answers of words at one depth or more."""
    means = [(str(t["family"]), one.mean) for t in trials if (one := t.interval("x1.accuracy"))]
    solved = list(dict.fromkeys(family for family, mean in means if mean >= SOLVED))
    return f"words of {trials[0]['task']} by {style.listed(solved) if solved else 'no family'}"


def _numbers(trial: Trial) -> dict[str, Any]:
    names = [split.name for split in trial.rows[0].record.run.evals]
    told = {name: trial.interval(f"{name}.accuracy") for name in names}
    return (
        trial.labels
        | {"lr": trial.rate, "tried": trial.tried, "edge": trial.edge}
        | {name: one and [one.mean, one.low, one.high] for name, one in told.items()}
    )
