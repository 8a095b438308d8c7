"""The finished runs that a study of treatments starts from."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.grid import execute
from isoflop.sim.records.store import Row, Store
from isoflop.sim.spec import Cell
from isoflop.sim.train.loop import train


def finished(cells: Sequence[Cell], runs: Path, workers: int) -> list[Row]:
    """The cells' runs, in their order, of which those that `runs` lacks are trained. One without a
    result, as a diverged one, is left out, and told on stderr.
    """
    execute(cells, runs, train, executor=Local(workers=workers))
    found = [row for row in Store(runs).rows(cells) if row.record.status == "ok"]
    if (lost := len(cells) - len(found)) > 0:
        print(f"left out: {lost} of {len(cells)} runs that have no result", file=sys.stderr)
    return found
