"""Fitting a law to runs: what the data say, how surely, and when they say nothing.

Protocol ((Mis)Fitting 2502.18969; Besiroglu 2404.10102): Huber δ = 1e-3 on log L, summed; many
starts; hierarchical bootstrap, every draw converged again; leave-largest-out error beside two
baselines; a checklist of what a reader must know. A design that cannot answer gives a `Fit` with
its status and reason, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.sim.laws.cost_model import SIX_ND, fit_cost
from isoflop.sim.laws.diagnostics import at_bound, noise_dominated, unidentifiable, zero_asymptote
from isoflop.sim.laws.holdout import HeldOut, leave_largest_out
from isoflop.sim.laws.law import Floored, Law
from isoflop.sim.laws.noise import Noise, residual_noise, simulate
from isoflop.sim.laws.resample import (
    DELTA,
    STEPS,
    Floats,
    cell_weights,
    minimise,
    percentile,
    units,
)
from isoflop.sim.records.tables import Columns, Dropped, Table, clean, describe

Status = Literal["converged", "not converged", "at a bound", "unidentifiable"]

LEVEL = 0.9  # of every interval


@dataclass(frozen=True)
class Fit:
    """What the data say about a law, and how surely."""

    law: Law | None
    status: Status
    reason: str
    interval: dict[str, tuple[float, float]] = field(default_factory=dict)
    estimate: dict[str, float] = field(default_factory=dict)
    residuals: Floats = field(default_factory=lambda: np.zeros(0))  # log L̂ − log L per kept row
    held_out: tuple[HeldOut, ...] = ()
    objective: float = math.nan  # summed Huber loss
    n_points: int = 0
    dropped: tuple[Dropped, ...] = ()
    checklist: dict[str, str] = field(default_factory=dict)
    draws: Law | None = None  # the law with one entry per bootstrap draw
    zero_asymptote: bool = (
        False  # at a bound for no other reason than that E = 0 describes the runs best
    )
    noise: Noise | None = None  # of one run, by what the fit leaves
    simulated: bool = False  # the draws are of that noise, not of runs: these are too few
    trunk: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))  # of each row
    warning: str = ""  # what the table leaves open about shared noise
    floored: Floored | None = None  # the same runs' laws with an asymptote that is given

    @property
    def ok(self) -> bool:
        return self.status == "converged"

    @property
    def readable(self) -> bool:
        """Whether the law describes the losses inside its window: also where E = 0, or where the
        allocation is loose.
        """
        settled = self.zero_asymptote or self.status in ("converged", "unidentifiable")
        return settled and self.draws is not None

    def json(self) -> dict[str, Any]:
        """The public record of the fit: plain JSON, no NaN."""
        return {
            "law": type(self.law).__name__ if self.law else self.checklist.get("form", ""),
            "params": {k: _finite(v) for k, v in self.law.params().items()} if self.law else {},
            "estimate": {k: _finite(v) for k, v in self.estimate.items()},
            "interval": {k: [_finite(x) for x in v] for k, v in self.interval.items()},
            "status": self.status,
            "reason": self.reason,
            "objective": _finite(self.objective),
            "held_out": [asdict(h) for h in self.held_out],
            "n_points": self.n_points,
            "dropped": [d.json() for d in self.dropped],
            "checklist": self.checklist,
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


class Fittable(Law):
    """The base of every law, with `fit`; apart from `Law` because fitting itself reads laws."""

    @classmethod
    def fit(
        cls,
        columns: Columns | Table,
        *,
        delta: float = DELTA,
        residual: Literal["log", "loss"] = "log",
        draws: int = 1000,
        seed: int = 0,
        budgets: Sequence[float] | None = None,
        asymptote: bool = True,
        held_out: Sequence[float] = (0.25, 0.1),
        stated: Mapping[str, str] | None = None,
        noise: Noise | None = None,
    ) -> Fit:
        """Fit the columns of the law's letters and `loss`; `flops`, `run` and `seed` where present.

        `run` groups cooldown branches that share a trunk: they are drawn together. Runs, or trunks,
        that are too few to be drawn from get their interval from refits to simulated noise
        (`sim.laws.noise`): as large as the residuals say, or as `noise` says, which may come from
        more runs than these. `budgets` are where N*(C) and L*(C) are reported (default: a tenth of
        the largest compute, and the largest). `residual="loss"` with a large `delta` is plain
        least squares on the loss. `stated` adds to the checklist what data cannot tell, such as the
        learning-rate rule. Raises UserError for a missing column and where no row is usable; a
        design that cannot answer is a `Fit` with its status and reason.
        """
        table = columns if isinstance(columns, Table) else cls.table(columns)
        x, y = [table[name] for name in cls.inputs], np.log(table["loss"])
        cost = table["flops"] if "flops" in table.columns else cls.cost(x)
        checklist = _checklist(cls, table, x, cost, delta, stated or {})
        common: dict[str, Any] = {"n_points": len(y), "dropped": table.dropped}
        common |= {"checklist": checklist, "floored": cls.floored(x, y)}
        if reason := unidentifiable(cls, x, y, asymptote=asymptote):
            return Fit(None, "unidentifiable", reason, **common)

        log = residual == "log"
        form, solution = cls.solve(x, y, asymptote=asymptote, delta=delta, log=log)
        best = int(np.argmin(solution.objective))
        theta, least = solution.theta[best], float(solution.objective[best])
        law = cls.unpack(theta[None], x).at(0)
        agree = int((solution.objective <= least * (1 + 1e-6) + 1e-18).sum())
        many = len(solution.objective)
        checklist["starts"] = f"{many}, of which {agree} reach the same minimum"
        loss = f"summed Huber loss, δ = {delta:g}, of {'log L' if log else 'L'}"
        checklist["objective"] = f"{least:.6g} ({loss})"
        predicted = form.predict(theta)[0]
        common |= {"residuals": predicted - y, "objective": least}
        if not solution.converged[best]:
            reason = f"no start reached a minimum in {STEPS} steps"
            return Fit(law, "not converged", reason, **common)
        if reason := noise_dominated(predicted - y, predicted, len(theta)):
            return Fit(None, "unidentifiable", reason, **common)

        if budgets is None:
            budgets = [] if cost is None else [cost.max() / 10.0, cost.max()]
        priced = SIX_ND
        if cls.allocates and cost is not None and "flops" in table.columns:
            priced = fit_cost(cost, *x)
        estimate = {q: float(v) for q, v in law.quantities(budgets, priced).items()}
        drawn = units(table.columns, cls.inputs, len(theta), y)
        own = residual_noise(form, y, theta, drawn.trunk)
        common |= {"noise": own, "simulated": drawn.few}
        common |= {"trunk": drawn.trunk, "warning": drawn.warning}
        if drawn.warning:
            checklist["shared noise"] = drawn.warning
        rng, starts = np.random.default_rng(seed), np.tile(theta, (draws, 1))
        if drawn.few:
            told = noise or own
            simulated = simulate(form, theta, told, drawn.trunk, draws, rng)
            again = minimise(form, simulated, starts, delta=delta)
            source = f"fits of {len(drawn.group)} {drawn.name} to noise of {told.words()}"
        else:
            weights = cell_weights(drawn.of, draws, rng, drawn.need, drawn.group)
            again = minimise(form, y, starts, weights=weights, delta=delta)
            source = f"bootstrap draws of {len(drawn.group)} {drawn.name}"
        spread = cls.unpack(again.theta, x)
        values = spread.quantities(budgets, priced.draws(draws, rng))
        interval = {q: percentile(v, LEVEL) for q, v in values.items()}
        share = float(again.converged.mean())
        checklist["interval"] = (
            f"{LEVEL:.0%}, percentiles of {draws} {source}, each converged again ({share:.1%} did)"
        )
        if cls.allocates:
            checklist["cost of N and D"] = priced.words()
            checklist |= _beyond(cls, x, budgets, estimate)
        held: list[HeldOut] = []
        if cost is not None:
            held = [
                leave_largest_out(cls, x, y, cost, c, delta=delta, log=log, asymptote=asymptote)
                for c in held_out
            ]
        checklist["held out"] = "; ".join(h.words() for h in held) or "no compute axis"
        common |= {"interval": interval, "estimate": estimate, "draws": spread}
        common["held_out"] = tuple(held)
        if reason := at_bound(form, theta, law):
            return Fit(law, "at a bound", reason, **common)
        if reason := cls.doubt(interval):
            return Fit(law, "unidentifiable", reason, **common)
        if share < 0.95:
            reason = f"only {share:.0%} of the bootstrap draws reached a minimum"
            return Fit(law, "not converged", reason, **common)
        if zero_asymptote(form, theta):
            reason = "E = 0: these runs show no asymptote, and beyond them the law promises none"
            return Fit(law, "at a bound", reason, zero_asymptote=True, **common)
        return Fit(law, "converged", "", **common)

    @classmethod
    def table(cls, columns: Columns, names: Mapping[str, str] | None = None) -> Table:
        """Check raw columns against what this law needs; `names` maps letters to the file's."""
        names = names or {}
        numeric = {key: names.get(key, key) for key in (*cls.inputs, "loss")}
        if names.get("flops", "flops") in columns:
            numeric["flops"] = names.get("flops", "flops")
        labels = {k: names.get(k, k) for k in ("run", "seed") if names.get(k, k) in columns}
        table = clean(columns, numeric, labels)
        if not len(table):
            raise UserError(
                f"a fit needs usable rows, and all {len(table.dropped)} were dropped: "
                f"{describe(table.dropped)}; correct the file"
            )
        return table


def _beyond(
    cls: type[Law], x: Sequence[Floats], budgets: Sequence[float], estimate: Mapping[str, float]
) -> dict[str, str]:
    """Which optima lie outside the runs, and so rest on the law and the cost model alone."""
    told = []
    for c in budgets:
        for name, v in zip(cls.inputs, x, strict=True):
            best = estimate[f"{name}*({c:.3g})"]
            if not v.min() <= best <= v.max():
                told.append(f"{name}*({c:.3g}) = {best:.3g} lies outside the {name} of all runs")
    return {"extrapolated": "; ".join(told)} if told else {}


def _checklist(
    cls: type[Law], table: Table, x: Sequence[Floats], cost: Floats | None, delta: float,
    stated: Mapping[str, str],
) -> dict[str, str]:  # fmt: skip
    """What to print with every fit; what was not said is said to be not stated."""
    by = dict(zip(cls.inputs, x, strict=True))
    out = {"form": cls.__name__}
    n = ("which N",) if "N" in by else ()
    for key in (*n, "which FLOPs", "schedule", "evaluation set"):
        out[key] = stated.get(key, "not stated")
    if "flops" not in table.columns and cost is not None and "which FLOPs" not in stated:
        out["which FLOPs"] = "6·N·D" if "D" in by else "the column fitted"
    out |= {f"range of {k}": f"{v.min():.3g} to {v.max():.3g}" for k, v in by.items()}
    if cost is not None:
        out["range of compute"] = f"{cost.min():.3g} to {cost.max():.3g}"
    out["range of loss"] = f"{table['loss'].min():.4g} to {table['loss'].max():.4g}"
    out["points dropped"] = describe(table.dropped)
    out["optimiser"] = f"batched Newton on the summed Huber loss, δ = {delta:g}"
    return out | {k: v for k, v in stated.items() if k not in out}
