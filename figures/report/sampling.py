"""What a page draws of very many runs; what it says of them is computed from all.

A screen shows some hundreds of marks, and a file of everything opens slowly and is sent by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from isoflop.sim.compare.points import Point, usable
from isoflop.sim.compare.study import Study
from isoflop.sim.records.store import Row

CELLS = 600  # marks of a chart
CURVES = 150  # loss curves
LINES = 500  # of the table of runs

DRAWN = 100_000  # runs of a family × bootstrap draws behind a page's fits

Item = TypeVar("Item")


def even(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, evenly spaced in their order, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def cells(study: Study, most: int = CELLS) -> list[Point]:
    """Those on a family's lower envelope under any convention, and an even sample of the others."""
    every = study.points
    if len(every) <= most:
        return list(every)
    edges = [edge for by_family in study.frontiers.values() for edge in by_family.values()]
    kept = {id(cell) for edge in edges for cell in edge}
    rest = [cell for cell in every if id(cell) not in kept]
    kept |= {id(cell) for cell in even(rest, max(2, most - len(kept)))}
    return [cell for cell in every if id(cell) in kept]


def curves(study: Study, most: int = CURVES) -> list[Point]:
    """Cells whose curves are drawn: the largest of each family, and an even sample of the others.

    `most` counts curves, of which a cell has one for each seed.
    """
    every, kept = study.points, {id(cell) for cell in study.costliest}
    rest = [cell for cell in every if id(cell) not in kept]
    seeds = max((len(cell.losses) for cell in every), default=1)
    kept |= {id(cell) for cell in even(rest, max(2, most // seeds - len(kept)))}
    return [cell for cell in every if id(cell) in kept]


def draws(every: Iterable[Point], most: int) -> int:
    """Bootstrap draws: `most`, and fewer, at least 100, for a family of very many runs."""
    runs: dict[str, int] = {}
    for cell in every:
        runs[cell.family] = runs.get(cell.family, 0) + len(cell.losses)
    return min(most, max(100, DRAWN // max(runs.values(), default=1)))


def lines(rows: Sequence[Row], most: int = LINES) -> list[Row]:
    """Rows of the table: those without a result first, then by loss, the lowest first."""
    lost = [row for row in rows if not usable(row)]
    done = [row for row in rows if usable(row)]
    if len(rows) > most:
        done = sorted(done, key=lambda row: row.record.loss or 0.0)
    return [*lost, *done][:most]
