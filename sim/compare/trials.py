"""The best of several learning rates without its luck: one seed chooses, the others report.

A sweep trains every rate with the same seeds. The rate of least held-out loss of the first seed is
chosen, and what is said of it is read off the other seeds, which had no part in the choice: the
best of k trials is biased, its repeats are not. An optimum at the edge of the sweep is marked; what
is reached there is reached, what is not might be with another rate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean

from isoflop.sim.compare.rankings import Interval
from isoflop.sim.records.store import Row

TUNED = ("lr",)  # labels that a choice is over


@dataclass(frozen=True)
class Trial:
    """A cell at its chosen rate."""

    labels: dict[str, str | int | float]  # without the rate
    rate: float
    tried: int  # rates
    edge: bool  # whether the rate is the sweep's lowest or highest
    rows: tuple[Row, ...]  # of the seeds that had no part in the choice

    def interval(self, metric: str) -> Interval | None:
        """Mean over seeds and its 90 % t interval; a run that diverged counts as 0 of an accuracy.
        None where no run has the metric.
        """
        values = [row.record.value(metric) for row in self.rows]
        if all(value is None for value in values):
            return None
        return Interval.of([0.0 if value is None else value for value in values])

    @cached_property
    def state_bytes(self) -> int:
        return self.rows[0].record.state_bytes

    def __getitem__(self, label: str) -> str | int | float:
        return self.labels[label]


def chosen(rows: Iterable[Row]) -> list[Trial]:
    """One trial for each cell that was trained at one rate or more, with two seeds or more, in the
    order of the rows. A rate that was not trained with every seed of its cell is left out, and a
    run that failed was not trained.
    """
    cells: dict[tuple, dict[float, dict[int, Row]]] = {}
    for row in _trained(rows):
        labels = tuple((k, v) for k, v in row.labels.items() if k not in TUNED)
        rate = float(row.labels["lr"])
        cells.setdefault(labels, {}).setdefault(rate, {})[row.record.run.seed] = row
    return [trial for labels, rates in cells.items() if (trial := _chosen(dict(labels), rates))]


def _trained(rows: Iterable[Row]) -> list[Row]:
    """Without runs that failed, which say nothing of the model; those that diverged do."""
    return [row for row in rows if row.record.final]


def _chosen(labels: dict, rates: dict[float, dict[int, Row]]) -> Trial | None:
    seeds = sorted({seed for found in rates.values() for seed in found})
    whole = {rate: found for rate, found in rates.items() if sorted(found) == seeds}
    if len(seeds) < 2 or not whole:
        return None
    first, *others = seeds

    def loss(rate: float) -> float:
        found = whole[rate][first].record.loss
        return math.inf if found is None else found

    best = min(whole, key=loss)
    edge = len(whole) < 3 or best in (min(whole), max(whole))
    return Trial(labels, best, len(whole), edge, tuple(whole[best][seed] for seed in others))


@dataclass(frozen=True)
class Threshold:
    """The least state that reaches an accuracy: between the largest below it, which does not, and
    the smallest that does. `low` is None where the smallest does, `high` where none does.
    """

    low: int | None
    high: int | None
    open: bool = False  # whether a smaller one's rate was at the edge of its sweep
    dips: bool = False  # whether a larger one does not reach it

    def __str__(self) -> str:
        if self.high is None:
            return f"above {_bytes(self.low)}"
        beyond = " (not at a larger one)" if self.dips else ""
        if self.low is None:
            return f"at most {_bytes(self.high)}{beyond}"
        return f"{_bytes(self.low)} to {_bytes(self.high)}{beyond}"


def threshold(trials: Sequence[Trial], metric: str, accuracy: float = 0.9) -> Threshold | None:
    """Over one family's trials of growing state; reached is where the mean over seeds is. None
    where no trial has the metric.
    """
    known = [(t, found) for t in trials if (found := t.interval(metric)) is not None]
    if not known:
        return None
    known.sort(key=lambda pair: pair[0].state_bytes)
    passing = [i for i, (_, found) in enumerate(known) if found.mean >= accuracy]
    first = passing[0] if passing else len(known)
    low = known[first - 1][0].state_bytes if first else None
    high = known[first][0].state_bytes if passing else None
    dips = len(passing) < len(known) - first
    return Threshold(low, high, any(trial.edge for trial, _ in known[:first]), dips)


def pairs_of(rows: Iterable[Row]) -> list[int]:
    """Numbers of pairs that recall is judged on, by the names of the evaluation sets."""
    names = {split.name for row in rows for split in row.record.run.evals}
    return sorted(int(name.removeprefix("pairs")) for name in names)


def by_pairs(trial: Trial) -> dict[int, Interval]:
    """The accuracy of recall by the number of pairs."""
    found = {n: trial.interval(f"pairs{n}.accuracy") for n in pairs_of(trial.rows)}
    return {n: one for n, one in found.items() if one is not None}


def recalled(trial: Trial, accuracy: float) -> tuple[int, int]:
    """The most pairs that are recalled with an accuracy: surely, its interval at or above it, and
    perhaps, its interval reaching it. 0 for none that was asked.
    """
    known = by_pairs(trial)
    surely = [n for n, one in known.items() if one.low is not None and one.low >= accuracy]
    perhaps = [n for n, one in known.items() if one.high is None or one.high >= accuracy]
    return max(surely, default=0), max(perhaps, default=0)


def steps_to(rows: list[Row], family: str, accuracy: float = 0.95) -> dict[int, float]:
    """By string length: the fewest steps from which on every run's mean over seeds reaches the
    accuracy; infinite where none does.
    """
    found: dict[int, dict[int, list[float]]] = {}
    for row in _trained(rows):
        if row.labels["family"] == family:
            length, steps = int(row.labels["length"]), row.record.run.budget.steps
            value = row.record.value("accuracy")
            found.setdefault(length, {}).setdefault(steps, []).append(value or 0.0)
    least = {}
    for length, runs in sorted(found.items()):
        least[length] = math.inf
        for steps in sorted(runs, reverse=True):
            if fmean(runs[steps]) < accuracy:
                break
            least[length] = steps
    return least


def task_scores(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Mean accuracy over seeds by family and task; families that lack a task are left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in _trained(rows):
        tasks = found.setdefault(str(row.labels["family"]), {})
        tasks.setdefault(str(row.labels["task"]), []).append(row.record.value("accuracy") or 0.0)
    every = {task for tasks in found.values() for task in tasks}
    return {
        family: {task: fmean(values) for task, values in tasks.items()}
        for family, tasks in found.items()
        if tasks.keys() == every
    }


def _bytes(count: int | None) -> str:
    return "0 B" if count is None else f"{count / 1000:.3g} kB" if count >= 1000 else f"{count} B"
