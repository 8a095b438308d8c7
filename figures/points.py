"""Runs that differ only in their seed are one point; a point's interval is over its seeds.

The seed noise of a family is pooled: with r_is = log L_is − mean_s log L_is over cell i and seed s,

    σ² = Σ r_is² / Σ (n_i − 1),    interval of cell i = mean · exp(± t(.95, Σ (n_i − 1)) · σ / √n_i)

a 90 % interval of the mean. A cell with a single seed has none.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from scipy.special import stdtrit

from isoflop.figures.style import looks
from isoflop.sim.records.store import Row


@dataclass(frozen=True)
class Point:
    """One cell of the grid: its runs, one per seed, all of them finished."""

    family: str
    width: int
    depth: int
    tokens: int
    losses: dict[int, float]  # by seed, nats per token
    bits_per_byte: float | None
    params: dict[str, int]
    flops: dict[str, int]
    batch_tokens: int
    trunk: str  # cells of one trunk share their training up to the cooldown
    curves: dict[int, tuple[tuple[int, float], ...]]  # by seed
    seconds: float | None = None  # of training, one seed, in turns with the other shapes
    state_bytes: int = 0  # of one sequence's decoding state at the training length, fp32
    low: float | None = None
    high: float | None = None

    @property
    def loss(self) -> float:
        return math.exp(fmean(map(math.log, self.losses.values())))

    @property
    def numbers(self) -> dict[str, Any]:
        """What a figure writes beside itself."""
        return {
            **{"family": self.family, "width": self.width, "depth": self.depth},
            **{"tokens": self.tokens, "loss": self.loss, "low": self.low, "high": self.high},
            **{"seeds": list(self.losses), "losses": list(self.losses.values())},
            **{"bits_per_byte": self.bits_per_byte, "params": self.params, "flops": self.flops},
            **{"seconds": self.seconds, "state_bytes": self.state_bytes},
        }


def usable(row: Row) -> bool:
    """Fixed beforehand: finished, with a finite held-out loss. The rest is in the table only."""
    loss = row.record.loss
    return row.record.status == "ok" and loss is not None and math.isfinite(loss) and loss > 0


def family(row: Row) -> str:
    return str(row.labels.get("family", "model"))


def label(row: Row, name: str) -> int:
    """Width or depth: the experiment's label, or what the model says."""
    model = row.record.run.model
    return int(row.labels.get(name, model.d_model if name == "width" else len(model.blocks)))


def points(rows: Iterable[Row]) -> list[Point]:
    """By family, in the order of `style.looks`, then by size and tokens."""
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in filter(usable, rows):
        cells[family(row), row.record.run.cell].append(row)
    found = sorted(map(_point, cells.values()), key=lambda p: (p.width, p.depth, p.tokens))
    return [
        interval
        for name in looks(p.family for p in found)
        for interval in _intervals([p for p in found if p.family == name])
    ]


def _point(rows: list[Row]) -> Point:
    rows = sorted(rows, key=lambda row: row.record.run.seed)
    first, bits = rows[0].record, [row.record.bits_per_byte for row in rows]
    step = rows[0].labels.get("step_seconds")
    return Point(
        family=family(rows[0]),
        width=label(rows[0], "width"),
        depth=label(rows[0], "depth"),
        tokens=first.tokens,
        losses={row.record.run.seed: row.record.loss or math.nan for row in rows},
        bits_per_byte=fmean(b for b in bits if b is not None) if None not in bits else None,
        params=first.params,
        flops=first.flops,
        batch_tokens=first.run.budget.batch_tokens,
        trunk=first.run.trunk,
        curves={row.record.run.seed: row.record.curve for row in rows},
        seconds=None if step is None else float(step) * first.run.budget.steps,
        state_bytes=first.state_bytes,
    )


def _intervals(cells: list[Point]) -> list[Point]:
    freedom = sum(len(cell.losses) - 1 for cell in cells)
    if freedom == 0:
        return cells
    noise = seed_noise(cells)
    t = float(stdtrit(freedom, 0.95))
    return [
        cell
        if len(cell.losses) == 1
        else replace(
            cell,
            low=cell.loss * math.exp(-t * noise / math.sqrt(len(cell.losses))),
            high=cell.loss * math.exp(t * noise / math.sqrt(len(cell.losses))),
        )
        for cell in cells
    ]


def seed_noise(cells: Sequence[Point]) -> float:
    """Pooled standard deviation of log L between seeds of one cell; nan with one seed each."""
    squares = sum(
        math.log(loss / cell.loss) ** 2 for cell in cells for loss in cell.losses.values()
    )
    freedom = sum(len(cell.losses) - 1 for cell in cells)
    return math.sqrt(squares / freedom) if freedom else math.nan


def conventions(cells: Iterable[Point]) -> list[str]:
    """FLOP conventions that every point has."""
    cells = list(cells)
    first = cells[0].flops if cells else {}
    return [name for name in first if all(cell.flops.get(name, 0) > 0 for cell in cells)]


def counts(cells: Iterable[Point]) -> list[str]:
    """Ways of counting parameters that every point has."""
    cells = list(cells)
    first = cells[0].params if cells else {}
    return [name for name in first if all(cell.params.get(name, 0) > 0 for cell in cells)]


def envelope(cells: Iterable[Point], convention: str) -> list[Point]:
    """The lower envelope: cells that no cheaper cell beats, by increasing FLOPs."""
    best: list[Point] = []
    for cell in sorted(cells, key=lambda c: (c.flops[convention], c.loss)):
        if not best or cell.loss < best[-1].loss:
            best.append(cell)
    return best
