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

import numpy as np
from scipy.special import stdtrit

from isoflop.models.families import zoo
from isoflop.sim.laws.frontier import lower_envelope
from isoflop.sim.laws.noise import seed_noise
from isoflop.sim.records.store import Row
from isoflop.sim.records.tables import rises

LOSS = "loss"  # the metric of every run

COUNT = "active"  # the N of fits: parameters that one token touches, embeddings included
PER_OCTAVE = 4  # points of a smoothed loss curve for every doubling of its tokens


@dataclass(frozen=True)
class Point:
    """One cell of the grid: its runs, one per seed, all of them finished."""

    family: str
    width: int
    depth: int
    tokens: int
    losses: dict[int, float]  # by seed, nats per token; or of another metric
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
    metric: str = LOSS  # what `losses` are; of an accuracy, the error rate

    @property
    def loss(self) -> float:
        return math.exp(fmean(map(math.log, self.losses.values())))

    @property
    def smooth(self) -> list[tuple[float, float]]:
        """Training loss, (tokens seen, nats per token): geometric means over the seeds and over
        each 1/PER_OCTAVE of an octave.
        """
        bins: dict[int, list[tuple[float, float]]] = defaultdict(list)
        for curve in self.curves.values():
            for step, loss in curve:
                if step > 0 and math.isfinite(loss) and loss > 0:
                    tokens = math.log(step * self.batch_tokens)
                    at = math.floor(PER_OCTAVE * tokens / math.log(2))
                    bins[at].append((tokens, math.log(loss)))
        return [
            (math.exp(fmean(x for x, _ in bins[i])), math.exp(fmean(y for _, y in bins[i])))
            for i in sorted(bins)
        ]

    @property
    def numbers(self) -> dict[str, Any]:
        """What a figure writes beside itself."""
        return {
            **{"family": self.family, "width": self.width, "depth": self.depth},
            **{"tokens": self.tokens, "loss": self.loss, "low": self.low, "high": self.high},
            **{"seeds": list(self.losses), "losses": list(self.losses.values())},
            **{"bits_per_byte": self.bits_per_byte, "params": self.params, "flops": self.flops},
            **{"seconds": self.seconds, "state_bytes": self.state_bytes},
            **({} if self.metric == LOSS else {"metric": self.metric}),
        }


KINDS = {  # metric → what is drawn of it, its unit, and that in a title
    LOSS: ("loss", "nats per token", "nats"),
    "bits_per_byte": ("loss", "bits per byte", "bits per byte"),
    "accuracy": ("error rate", "1 − accuracy", "errors per target"),
}


def _kind(metric: str) -> tuple[str, str, str]:
    """As KINDS says, or of the loss of a part of a sequence, as `loss_at_64`."""
    kind = metric.rpartition(".")[2]
    whole, at, first = kind.partition("_at_")
    if not (at and first.isdigit() and whole in KINDS):
        return KINDS.get(kind, (kind, "", kind))
    name, unit, short = KINDS[whole]
    last = 2 * int(first) - 1
    places = f"positions {first} to {last}" if last > int(first) else f"position {first}"
    return f"{name} at {places}", unit, short


def noun(metric: str) -> str:
    """As in `held-out loss`, `error rate on kjv`."""
    where, name = metric.rpartition(".")[0], _kind(metric)[0]
    return f"{name} on {where}" if where else f"held-out {name}"


def axis_label(metric: str) -> str:
    """As in `held-out loss (nats per token)`, `error rate on kjv (1 − accuracy)`."""
    unit = _kind(metric)[1]
    return f"{noun(metric)} ({unit})" if unit else noun(metric)


def unit(metric: str) -> str:
    """After a number in a title."""
    return _kind(metric)[2]


def usable(row: Row, metric: str = LOSS) -> bool:
    """Fixed beforehand: finished, with a finite metric above 0. The rest is in the table only."""
    value = drawn(row, metric)
    return row.record.status == "ok" and math.isfinite(value) and value > 0


def drawn(row: Row, metric: str) -> float:
    """What falls with scale; NaN where the run has no such metric."""
    value = row.record.value(metric)
    return math.nan if value is None else 1 - value if rises(metric) else value


def family(row: Row) -> str:
    return str(row.labels.get("family", "model"))


def label(row: Row, name: str) -> int:
    """Width or depth: the experiment's label, or what the model says."""
    model = row.record.run.model
    return int(row.labels.get(name, model.d_model if name == "width" else len(model.blocks)))


def points(
    rows: Iterable[Row], order: Iterable[str] = zoo.FAMILIES, metric: str = LOSS
) -> list[Point]:
    """By family, those of `order` first and then the others by name; then by size and tokens."""
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if usable(row, metric):
            cells[family(row), row.record.run.cell].append(row)
    every = (_point(cell, metric) for cell in cells.values())
    found = sorted(every, key=lambda p: (p.width, p.depth, p.tokens))
    return [
        interval
        for name in ordered((p.family for p in found), order)
        for interval in _intervals([p for p in found if p.family == name])
    ]


def _point(rows: list[Row], metric: str) -> Point:
    rows = sorted(rows, key=lambda row: row.record.run.seed)
    first, bits = rows[0].record, [row.record.bits_per_byte for row in rows]
    step = rows[0].labels.get("step_seconds")
    return Point(
        family=family(rows[0]),
        width=label(rows[0], "width"),
        depth=label(rows[0], "depth"),
        tokens=first.tokens,
        losses={row.record.run.seed: drawn(row, metric) for row in rows},
        bits_per_byte=fmean(b for b in bits if b is not None) if None not in bits else None,
        params=first.params,
        flops=first.flops,
        batch_tokens=first.run.budget.batch_tokens,
        trunk=first.run.trunk,
        curves={row.record.run.seed: row.record.curve for row in rows},
        seconds=None if step is None else float(step) * first.run.budget.steps,
        state_bytes=first.state_bytes,
        metric=metric,
    )


def _intervals(cells: list[Point]) -> list[Point]:
    freedom = sum(len(cell.losses) - 1 for cell in cells)
    noise = seed_noise(list(cell.losses.values()) for cell in cells)
    if noise is None:
        return cells
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


def envelope(cells: Sequence[Point], convention: str) -> list[Point]:
    """The lower envelope: cells that no cheaper cell beats, by increasing FLOPs."""
    cost = np.array([cell.flops[convention] for cell in cells], dtype=float)
    return [cells[i] for i in lower_envelope(cost, np.array([cell.loss for cell in cells]))]


def costliest(cells: Iterable[Point]) -> list[Point]:
    """The largest of each family's cells with most tokens."""
    return [
        max(reversed(group), key=lambda cell: (cell.tokens, cell.params.get("total", 0)))
        for group in families(cells).values()
    ]


def longest(cells: Sequence[Point]) -> list[Point]:
    """Those with the most tokens of their size: a state costs the same however long one trains."""
    most: dict[tuple[str, int, int], int] = {}
    for cell in cells:
        size = cell.family, cell.width, cell.depth
        most[size] = max(most.get(size, 0), cell.tokens)
    return [cell for cell in cells if cell.tokens == most[cell.family, cell.width, cell.depth]]


def families(cells: Iterable[Point]) -> dict[str, list[Point]]:
    """The cells of each family, in their order."""
    groups: dict[str, list[Point]] = {}
    for cell in cells:
        groups.setdefault(cell.family, []).append(cell)
    return groups


def ordered(names: Iterable[str], order: Iterable[str]) -> list[str]:
    """Each name once: those of `order` in it, then the others by the alphabet."""
    present = set(names)
    known = [name for name in order if name in present]
    return [*known, *sorted(present.difference(known))]


def columns(cells: Sequence[Point]) -> dict[str, list[Any]]:
    """One row for each run: what `sim` fits and compares. `flops` are the executed."""
    runs = [(cell, seed, loss) for cell in cells for seed, loss in cell.losses.items()]
    found: dict[str, list[Any]] = {
        "arch": [cell.family for cell, _, _ in runs],
        "N": [cell.params[COUNT] for cell, _, _ in runs],
        "D": [cell.tokens for cell, _, _ in runs],
        "loss": [loss for _, _, loss in runs],
        "run": [cell.trunk for cell, _, _ in runs],
        "seed": [seed for _, seed, _ in runs],
        "flops": [cell.flops["executed"] for cell, _, _ in runs],
        "seconds": [cell.seconds for cell, _, _ in runs],
        "state_bytes": [cell.state_bytes for cell, _, _ in runs],
    }
    return found | {name: [cell.flops[name] for cell, _, _ in runs] for name in conventions(cells)}
