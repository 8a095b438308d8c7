"""Who has the best model at the target, and whose interval was worth the most.

    S(l, u; x) = (u − l) + 2/α · max(l − x, 0) + 2/α · max(x − u, 0)        α = 1 − level

the interval score of Winkler 1972 (Gneiting & Raftery 2007, J. Am. Stat. Assoc. 102, eq. 43), in
nats per token, less is better. It is proper: whatever somebody believes of x, the expected score is
least at the α/2 and 1 − α/2 quantiles of that belief, so neither a wider nor a narrower interval
than the honest one pays.

Every design that was handed in is trained at the target with seed 0, which ranks the models. The
loss x that intervals are scored against is that of the best of them, trained again with other
seeds: the lowest of many losses is low by luck, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from isoflop.sim.classroom.entries import Predicted
from isoflop.sim.classroom.rules import parameters
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Cell


def interval_score(low: float, high: float, x: float, level: float) -> float:
    """Of one interval, in the unit of `x`."""
    return (high - low) + 2.0 / (1.0 - level) * (max(low - x, 0.0) + max(x - high, 0.0))


@dataclass(frozen=True)
class Standing:
    """A student on the leaderboard; ranks are shared where values are equal."""

    student: str
    predicted: Predicted
    params: int
    loss: float | None  # of the student's own design at the target; None if it diverged
    loss_se: float | None  # over held-out tokens
    score: float
    holds: bool  # whether the interval has the loss in it
    model_rank: int
    interval_rank: int

    @property
    def points(self) -> int:
        """Of both ranks; less is better."""
        return self.model_rank + self.interval_rank


@dataclass(frozen=True)
class Board:
    """`loss` is what intervals are scored against, of `best`; `se` of its mean over seeds, None
    with fewer than two of them.
    """

    standings: tuple[Standing, ...]
    best: Cell
    loss: float
    se: float | None
    level: float

    @property
    def held(self) -> int:
        return sum(standing.holds for standing in self.standings)


def fresh(cell: Cell, seeds: int) -> list[Cell]:
    """The same design with seeds that nobody has chosen it by."""
    return [
        cell.model_copy(update={"run": cell.run.model_copy(update={"seed": seed})})
        for seed in range(1, seeds + 1)
    ]


def best(predictions: Mapping[str, Predicted], records: Mapping[str, Record]) -> Cell | None:
    """The design of lowest loss among those trained; None without one."""
    cells = {one.cell.run.key: one.cell for one in predictions.values()}
    losses = {key: loss for key in cells if (loss := _loss(records, key)) is not None}
    return cells[min(losses, key=lambda key: (losses[key], key))] if losses else None


def board(
    predictions: Mapping[str, Predicted],
    records: Mapping[str, Record],
    level: float,
    seeds: int,
) -> Board | None:
    """The leaderboard from the records by key; None while one is missing that it needs, or if no
    design reached a loss.
    """
    keys = {one.cell.run.key for one in predictions.values()}
    top = best(predictions, records)
    if top is None or not keys <= records.keys():
        return None
    again = [cell.run.key for cell in fresh(top, seeds)]
    if not records.keys() >= {*again}:
        return None
    losses = [loss for key in again if (loss := _loss(records, key)) is not None]
    x = fmean(losses) if losses else _loss(records, top.run.key)
    assert x is not None
    scores = {n: interval_score(p.low, p.high, x, level) for n, p in predictions.items()}
    models = {name: _loss(records, p.cell.run.key) for name, p in predictions.items()}
    ordered = [math.inf if loss is None else loss for loss in models.values()]
    standings = [
        Standing(
            student=name,
            predicted=one,
            params=parameters(one.cell.run),
            loss=models[name],
            loss_se=records[one.cell.run.key].loss_se,
            score=scores[name],
            holds=one.low <= x <= one.high,
            model_rank=_rank(models[name], ordered),
            interval_rank=_rank(scores[name], list(scores.values())),
        )
        for name, one in predictions.items()
    ]
    standings.sort(key=lambda s: (s.points, s.model_rank, s.student))
    se = stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None
    return Board(tuple(standings), top, x, se, level)


def _loss(records: Mapping[str, Record], key: str) -> float | None:
    record = records.get(key)
    return record.loss if record is not None and record.status == "ok" else None


def _rank(value: float | None, of: Sequence[float]) -> int:
    """1 for the lowest; equal values share theirs."""
    return 1 + sum(other < (math.inf if value is None else value) for other in of)
