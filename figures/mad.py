"""Accuracies on MAD's six tasks by family, the best in the mean first."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import numpy as np

from isoflop.figures import style
from isoflop.sim.compare.trials import task_scores
from isoflop.sim.records.store import Row


def draw(rows: list[Row], out: Path) -> list[Path]:
    """One picture; none where no family has every task."""
    scores = task_scores(rows)
    if not scores:
        return []
    order = sorted(scores, key=lambda family: -fmean(scores[family].values()))
    tasks = list(dict.fromkeys(str(row.labels["task"]) for row in rows))
    values = np.array([[*(scores[f][t] for t in tasks), fmean(scores[f].values())] for f in order])
    with style.sheet(1, 1, 8.2, 1.6 + 0.42 * len(order)) as (figure, (axes,)):
        axes.imshow(values, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if value > 0.75 else "#1b1f24"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8.5)
        axes.set_xticks(
            range(len(tasks) + 1), [*(t.replace("_", "\n") for t in tasks), "mean"], fontsize=8.5
        )
        axes.set_yticks(range(len(order)), order)
        axes.axvline(len(tasks) - 0.5, color="white", linewidth=3)
        axes.grid(False)
        style.title(figure, finding(scores))
        style.note(figure, "share of answers that are right, mean over seeds; held-out examples")
    return style.save(figure, scores, out, "mad")


def finding(scores: dict[str, dict[str, float]]) -> str:
    """Who is best in the mean, and on how many tasks who is."""
    best = max(scores, key=lambda family: fmean(scores[family].values()))
    tasks = list(scores[best])
    led = [task for task in tasks if max(scores, key=lambda f: scores[f][task]) == best]
    return (
        f"{best} has the highest mean accuracy, {fmean(scores[best].values()):.2f}, and leads on "
        f"{len(led)} of {len(tasks)} tasks"
    )
