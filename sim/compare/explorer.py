"""What a budget buys: N*, D* and the loss of every family along budgets, with bands that say where
runs end.

At a budget C of one cost, a family's law has its least loss at N*(C), D*(C) (`sim.laws.frontier`).
As everywhere inside a window, the law is the one without E. Its band is the bootstrap's 90 %
interval, as factors, about the optima under every asymptote E that the runs allow,

    S(E) ≤ min S · (1 + F(.9; 1, ν)/ν)        S: misfit of the surface with E, ν: runs − parameters

Between the cheapest run and the most expensive those optima agree, and outside they part, so the
band widens. It holds the truth of a surface with an E more than nine times in ten, at the runs as
at ten times their cost (a slow test simulates it). A cost can be recounted for sequences of another
length: the losses stay those of the training length, and only what the same tokens cost is the
other's.
Not included: how the loss itself changes with the context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare.gains import Arm, Curve, allowed, by_arch, fits_of, of_table
from isoflop.sim.compare.points import COUNT, LOSS, family, label, usable
from isoflop.sim.compare.study import DRAWS, Study
from isoflop.sim.cost.flops import WORK, flops_at
from isoflop.sim.laws.cost_model import CostModel
from isoflop.sim.laws.fit import LEVEL, Fit
from isoflop.sim.laws.frontier import Frontier
from isoflop.sim.laws.law import FLOPS_PER_ND
from isoflop.sim.laws.resample import Floats, percentile
from isoflop.sim.records.store import Row
from isoflop.sim.records.tables import Columns, Table, clean, describe

PER_DECADE = 12  # budgets
BELOW, BEYOND = 3.0, 100.0  # how far budgets reach outside all runs
ASYMPTOTES = 41  # that are tried, from none to the least loss
LONGEST, TIMES = 65_536, 4  # contexts: the training length, four times that, … tokens
FP32 = 4  # bytes of an element of the state, as in records


@dataclass(frozen=True)
class Shape:
    """A size that was trained: its configuration, and N by the study's count."""

    width: int
    depth: int
    n: int
    model: ModelConfig

    def state_bytes(self, context: int) -> int:
        """Of the decoding state of one sequence, in fp32."""
        return FP32 * self.model.state_size(context)

    def step_flops(self, context: int) -> int:
        """Of one decoded token after `context` tokens."""
        return self.model.step_cost(context).flops


@dataclass(frozen=True)
class Along:
    """Optima along budgets, each (3, n): the law's, and the ends of its band."""

    N: Floats
    D: Floats
    loss: Floats
    window: tuple[float, float]  # cost of the family's cheapest and of its most expensive run
    cost: CostModel


@dataclass(frozen=True, eq=False)
class Explorer:
    """A table of runs, and what budgets buy in it; each part is computed when first asked for.

    `table` has arch, N, D and loss, and every column of `costs`: cost → context → its column, where
    context 0 stands for a cost that knows none. `fits` are the laws without E by family, `shapes`
    the sizes that were trained, where the runs tell them; `flops` is the cost that a chip's time is
    charged by, and `loss` what the loss is called.
    """

    table: Table
    fits: Mapping[str, Fit]
    costs: Mapping[str, Mapping[int, str]]
    shapes: Mapping[str, Sequence[Shape]] = field(default_factory=dict)
    flops: str = ""
    loss: str = LOSS

    @cached_property
    def rows(self) -> dict[str, Table]:
        """The runs of each family."""
        return by_arch(self.table)

    @cached_property
    def families(self) -> list[str]:
        """Those whose law can be read."""
        return [name for name, fit in self.fits.items() if fit.readable]

    @property
    def left_out(self) -> list[str]:
        """Why the others are not drawn."""
        return [
            f"{name}: {fit.status}: {fit.reason}"
            for name, fit in self.fits.items()
            if not fit.readable
        ]

    @cached_property
    def contexts(self) -> list[int]:
        """Lengths that costs are counted at, the training length first."""
        return sorted({at for by_context in self.costs.values() for at in by_context if at})

    def budgets(self, cost: str) -> Floats:
        """From BELOW the cheapest run to BEYOND the most expensive, of any family; and as far as
        runs of the longest context cost.
        """
        first, *rest = (self.table[name] for name in self.costs[cost].values())
        low, high = float(first.min()) / BELOW, float(first.max()) * BEYOND
        high = max([high, *(float(column.max()) for column in rest)])
        return np.geomspace(low, high, 1 + math.ceil(PER_DECADE * math.log10(high / low)))

    def along(self, family: str, cost: str, context: int) -> Along | None:
        """None where the cost does not grow with N and D in the family's runs."""
        rows = self.rows[family]
        priced = Table(rows.columns | {"cost": rows[self.costs[cost][context]]}, ())
        try:
            arm = of_table(priced, surfaces={family: self.fits[family]})[family]
        except UserError:
            return None
        return _along(arm, self.budgets(cost))

    def cells(self, family: str) -> list[dict[str, float]]:
        """N, D, the geometric mean of the losses over seeds, and every cost, of each cell."""
        rows = self.rows[family]
        names = ["N", "D", *(c for by_context in self.costs.values() for c in by_context.values())]
        found: dict[tuple[float, ...], list[float]] = {}
        for *at, loss in zip(*(rows[name] for name in names), rows["loss"], strict=True):
            found.setdefault(tuple(at), []).append(math.log(loss))
        return [
            dict(zip(names, at, strict=True)) | {"loss": math.exp(np.mean(logs))}
            for at, logs in found.items()
        ]


def of_rows(rows: Sequence[Row], draws: int = DRAWS) -> Explorer:
    """Of isoflop's own records: every FLOP convention, at several contexts where it knows them; the
    seconds of training where all runs were timed; the configurations.

    Raises UserError without a finished run.
    """
    study = Study(rows, draws)
    runs = [row for row in rows if usable(row)]
    if not runs:
        raise UserError("there are no finished runs to explore; first: isoflop run ladder")
    trained = max(row.record.run.budget.seq_len for row in runs)
    contexts = [t for k in range(9) if (t := trained * TIMES**k) <= max(trained, LONGEST)]
    counts = {t: [_flops(row, t) for row in runs] for t in contexts}
    columns: dict[str, list[Any]] = {
        "arch": [family(row) for row in runs],
        "N": [row.record.params[COUNT] for row in runs],
        "D": [row.record.tokens for row in runs],
        "loss": [row.record.loss for row in runs],
    }
    costs: dict[str, dict[int, str]] = {}
    for way in study.conventions:
        known = way in WORK  # the others are of parameters and tokens alone
        own = contexts if known else contexts[:1]
        costs[way] = {t * known: f"{way} at {t}" for t in own}
        columns |= {f"{way} at {t}": [count[way] for count in counts[t]] for t in own}
    if all(cell.seconds for cell in study.points):
        costs["seconds"] = {0: "seconds"}
        columns["seconds"] = [
            float(row.labels["step_seconds"]) * row.record.run.budget.steps for row in runs
        ]
    table = clean(columns, {name: name for name in columns if name != "arch"}, {"arch": "arch"})
    shapes: dict[str, dict[str, Shape]] = {}
    for row in runs:
        model = row.record.run.model
        shape = Shape(label(row, "width"), label(row, "depth"), row.record.params[COUNT], model)
        shapes.setdefault(family(row), {})[model.model_dump_json()] = shape
    by_size = {k: sorted(v.values(), key=lambda s: s.n) for k, v in shapes.items()}
    return Explorer(table, study.windows, costs, by_size, study.conventions[0])


def of_columns(
    columns: Columns, *, arch: str | None, costs: Sequence[str], loss: str, n: str, d: str,
    seed: str = "seed", run: str = "run", draws: int = DRAWS,
) -> Explorer:  # fmt: skip
    """Of anybody's table: its columns of cost, or 6·N·D where none is named; one law of all runs
    where no column names architectures. The first cost is FLOPs.

    Raises UserError for a column that is not there and where no row is usable.
    """
    if arch is None:
        count = len(next(iter(columns.values()), ()))
        columns, arch = {**columns, "arch": ["all runs"] * count}, "arch"
    numeric = {"N": n, "D": d, "loss": loss} | {cost: cost for cost in costs}
    labels = {"arch": arch} | {k: v for k, v in (("seed", seed), ("run", run)) if v in columns}
    table = clean(columns, numeric, labels)
    if not len(table):
        raise UserError(f"a page needs usable rows, and none is: {describe(table.dropped)}")
    if not costs:
        product = FLOPS_PER_ND * table["N"] * table["D"]
        table, costs = Table(table.columns | {"6ND": product}, table.dropped), ("6ND",)
    fits = fits_of(table, draws=draws, asymptote=False)
    return Explorer(table, fits, {cost: {0: cost} for cost in costs}, flops=costs[0], loss=loss)


def _flops(row: Row, context: int) -> Mapping[str, float]:
    run = row.record.run
    return row.record.flops if run.budget.seq_len == context else flops_at(run, context)


def _along(arm: Arm, budgets: Floats) -> Along:
    floors = np.linspace(0.0, 0.99 * arm.least, ASYMPTOTES)
    curves, left = arm.floored(floors)
    kept = np.flatnonzero(allowed(left, max(arm.spare, 1), LEVEL))
    one, drawn = _optima(arm.curve, budgets), _optima(arm.draws, budgets)
    others = [values[:, kept] for values in _optima(curves, budgets)]
    n, d, loss = (_band(*three) for three in zip(one, drawn, others, strict=True))
    assert isinstance(arm.curve, Frontier)
    return Along(n, d, loss, arm.cost, arm.curve.cost)


def _band(one: Floats, drawn: Floats, others: Floats) -> Floats:
    """The estimate, and the draws' interval as factors about the least and the most of others."""
    middle, (low, high) = one[:, 0], np.array([percentile(row, LEVEL) for row in drawn]).T
    least, most = np.fmin.reduce(others, axis=1), np.fmax.reduce(others, axis=1)
    return np.stack(
        [middle, low * np.fmin(least / middle, 1.0), high * np.fmax(most / middle, 1.0)]
    )


def _optima(curve: Curve | None, budgets: Floats) -> tuple[Floats, Floats, Floats]:
    """N*, D* and the loss there, each (budgets, draws)."""
    assert isinstance(curve, Frontier)
    n, d = curve.optimal(budgets[:, None])
    return n, d, np.asarray(curve.law(n, d))
