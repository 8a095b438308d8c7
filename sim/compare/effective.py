"""Effective size: how large a plain model of the same family and data equals a treated one.

    S(N_eff, D) = S(N, D) · L_treated / L_run

with S the family's own surface of loss over size and data at the run's D tokens. The run's own
residual from S is the treated model's too, so it divides out: what counts is the change of the loss
on the same held-out tokens, and the seed's noise with it. Near the run this is ln N_eff/N ≈
ln(L_treated/L_run) / (∂ln S/∂ln N). It is refused where
the whole interval lies outside the sizes that the surface was fitted to, and told on which side; an
end that lies outside is 0 or infinite, and an estimate the size at that edge.

The 90 % interval has two sources: the surface's bootstrap draws, and the change of the loss: with
two seeds or more their spread (a t distribution over seeds), which holds the evaluation's error
too; with one, the paired standard error over held-out sequences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtri, stdtrit

from isoflop.models.base import Tagged
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare.points import COUNT, family, label
from isoflop.sim.compare.study import Study
from isoflop.sim.laws.law import Law
from isoflop.sim.records.store import Row
from isoflop.sim.treatments.apply import Treated

SPAN = (0.05, 0.95)
REACH = 30.0  # of |ln N_eff/N| that is looked through


@dataclass(frozen=True)
class Change:
    """One treated run: its own loss, the treated loss less that, and the latter's standard error
    over held-out sequences, paired.
    """

    n: float  # parameters, by the surface's count
    d: float  # training tokens
    loss: float
    change: float
    error: float
    seed: int = 0


@dataclass(frozen=True)
class Effective:
    """N_eff / N with its 90 % interval; or, with a `reason`, none."""

    ratio: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""

    @property
    def resolved(self) -> bool:
        """Whether the interval leaves 1 out."""
        return not self.reason and not self.low <= 1.0 <= self.high

    def json(self) -> dict[str, Any]:
        if self.reason:
            return {"reason": self.reason}
        high = self.high if math.isfinite(self.high) else None
        return {"ratio": self.ratio, "low": self.low, "high": high}


def effective(
    changes: Sequence[Change],
    law: Law,
    draws: Law | None,
    sizes: tuple[float, float],
    seed: int = 0,
) -> Effective:
    """Of one cell's treated runs, one for each seed. `law` is the surface and `draws` its
    bootstrap's (None: no interval is to be had of it); `sizes` are the least and the greatest N
    that it was fitted to.

    Raises UserError for runs of several cells.
    """
    if len({(one.n, one.d) for one in changes}) != 1:
        raise UserError("an effective size is of the runs of one cell; give one N and one D")
    first = changes[0]
    logs = np.array([math.log1p(one.change / one.loss) for one in changes])
    middle = float(logs.mean())
    ratio = low = high = _inverted(law, first, middle)
    if draws is not None:
        rng = np.random.default_rng(seed)
        count = len(np.atleast_1d(next(iter(draws.params_raw().values()))))
        even = (rng.permutation(count) + 0.5) / count  # quantiles, in an order of their own
        if len(logs) > 1:
            scale = float(logs.std(ddof=1)) / math.sqrt(len(logs))
            moved = middle + scale * stdtrit(len(logs) - 1, even)
        else:
            moved = middle + first.error / first.loss * ndtri(even)
        found = [_inverted(draws.at(i), first, float(m)) for i, m in enumerate(moved)]
        low, high = (float(x) for x in np.quantile(found, SPAN, method="closest_observation"))
    least, most = (size / first.n for size in sizes)
    if high < least or low > most:
        return Effective(reason=_outside("below" if high < least else "above", sizes, first))
    if draws is None:
        return Effective(ratio=ratio, reason="the surface has no interval, so neither has this")
    inside = min(max(ratio, least), most)
    return Effective(inside, low if low >= least else 0.0, high if high <= most else math.inf)


def interaction(
    whole: Sequence[Change],
    parts: Sequence[Sequence[Change]],
    law: Law,
    draws: Law | None,
    sizes: tuple[float, float],
    seed: int = 0,
) -> Effective:
    """What treatments leave together over the product of what each of them leaves alone, 1 where
    they do not know of each other. The runs are of one cell, `whole` under all treatments and each
    of `parts` under one, by the same seeds; the rest is as for `effective`. The interval is of the
    surface's draws and of the spread over seeds, a t distribution; refused for one seed, and where
    one of the sizes lies outside the trained ones.
    """
    every = [sorted(changes, key=lambda one: one.seed) for changes in (whole, *parts)]
    if len({tuple(one.seed for one in changes) for changes in every}) != 1:
        return Effective(reason="the treatments are of different seeds")
    if draws is None or len(whole) < 2:
        return Effective(reason="an interval needs two seeds and a surface that has one")
    first = every[0][0]
    logs = np.array([[math.log1p(one.change / one.loss) for one in row] for row in every])

    def beyond(law: Law, moved: np.ndarray) -> float:
        together, *alone = (_inverted(law, first, float(m)) for m in moved)
        return math.log(together / math.prod(alone)) if together and all(alone) else math.nan

    middle = logs.mean(1)
    reached = [first.n * _inverted(law, first, float(m)) for m in middle]
    if min(reached) < sizes[0] or max(reached) > sizes[1]:
        return Effective(reason="one of the effective sizes lies outside the trained ones")
    rng = np.random.default_rng(seed)
    count = len(np.atleast_1d(next(iter(draws.params_raw().values()))))
    even = (rng.permutation(count) + 0.5) / count
    scale = np.std([beyond(law, moved) for moved in logs.T], ddof=1) / math.sqrt(len(whole))
    found = [beyond(draws.at(i), middle) for i in range(count)]
    found += scale * stdtrit(len(whole) - 1, even)
    if not np.isfinite(found).all():
        return Effective(reason="a draw of the surface has no such size")
    low, high = np.exp(np.quantile(found, SPAN, method="closest_observation"))
    return Effective(math.exp(beyond(law, middle)), float(low), float(high))


def _inverted(law: Law, run: Change, moved: float) -> float:
    """N_eff/N where log S has moved by so much: 0 or infinite where no size has that."""
    if moved == 0.0:
        return 1.0
    goal = math.log(float(law(run.n, run.d))) + moved

    def gap(log_ratio: float) -> float:
        return math.log(float(law(run.n * math.exp(log_ratio), run.d))) - goal

    if gap(-REACH) <= 0:
        return 0.0
    return math.inf if gap(REACH) >= 0 else math.exp(brentq(gap, -REACH, REACH))


def _outside(side: str, sizes: tuple[float, float], run: Change) -> str:
    end = sizes[0] if side == "below" else sizes[1]
    return (
        f"the treated model is {'worse' if side == 'below' else 'better'} than the "
        f"{'smallest' if side == 'below' else 'largest'} plain one that was trained "
        f"({end:.3g} parameters): N_eff/N is {side} {end / run.n:.2g}"
    )


def of_cells(treated: Sequence[Treated], study: Study) -> list[dict[str, Any]]:
    """Every cell's treated runs under each treatment: their mean change, what they cost as shares
    of the plain run's, and the effective size; under several whose parts were applied alone too,
    the interaction. `study` has the plain runs of the same families, of which those that were
    treated are some.

    Raises UserError for a treated run that is not among the study's.
    """
    known = {row.record.key: row for row in study.rows}
    if strange := [one.run for one in treated if one.run not in known]:
        raise UserError(
            f"run {strange[0]} was treated and is not among the plain runs; give its own"
        )
    groups: dict[tuple[str, ...], list[Treated]] = {}  # by cell and the treatments' names
    for one in treated:
        names = [_named(each) for each in one.treatments] or ["nothing"]
        groups.setdefault((known[one.run].record.run.cell, *names), []).append(one)
    found = []
    for (cell, *names), whole in groups.items():
        row, changes, surface = _row(" + ".join(names), whole, known, study)
        parts = [groups[cell, name] for name in names if (cell, name) in groups]
        if surface is not None and 1 < len(names) == len(parts):
            both = interaction(changes, [_changes(part, known) for part in parts], *surface)
            row |= {f"interaction_{name}": value for name, value in both.json().items()}
        found.append(row)
    return found


def _row(
    what: str, found: Sequence[Treated], known: Mapping[str, Row], study: Study
) -> tuple[dict[str, Any], list[Change], tuple[Law, Law | None, tuple[float, float]] | None]:
    """The row of one cell under one treatment; its changes, and the surface that they are read by:
    its draws, and the sizes that it was fitted to.
    """
    one = known[found[0].run]
    first, name = one.record, family(one)
    law = study.laws[name].fit if study.laws[name].fit.ok else study.windows[name]
    sizes = [float(cell.params[COUNT]) for cell in study.families[name]]
    changes = _changes(found, known)
    surface = None if law.law is None else (law.law, law.draws, (min(sizes), max(sizes)))
    size = effective(changes, *surface) if surface else Effective(reason=law.reason)
    ledger, plain = found[0].ledger, found[0].plain_ledger
    shares = {
        field: getattr(ledger, field) / getattr(plain, field)
        for field in ("step_flops", "read_bytes", "resident_bytes", "train_flops")
    }
    row = {
        **{"family": name, "treatment": what, "N": first.params[COUNT], "D": first.tokens},
        **{"width": label(one, "width"), "depth": label(one, "depth"), "runs": len(found)},
        "loss": float(np.mean([one.plain["loss"].value for one in found])),
        "change": float(np.mean([one.change.value for one in found])),
        "se": float(np.mean([one.change.se or 0.0 for one in found])),
        **shares, **size.json(),
    }  # fmt: skip
    return row, changes, surface


def _changes(found: Sequence[Treated], known: Mapping[str, Row]) -> list[Change]:
    records = [known[one.run].record for one in found]
    return [
        Change(record.params[COUNT], record.tokens, one.plain["loss"].value, one.change.value,
               one.change.se or 0.0, record.run.seed)
        for one, record in zip(found, records, strict=True)
    ]  # fmt: skip


def _named(one: Tagged) -> str:
    """As in `weights int4 gptq`: the kind, its first field, and what differs from the defaults."""
    _, dial, *_ = fields = type(one).model_fields
    said = [getattr(one, name) for name in fields if name != "kind"
            and (name == dial or getattr(one, name) != fields[name].default)]  # fmt: skip
    return " ".join([one.kind, *(_told(value) for value in said)])


def _told(value: Any) -> str:
    if isinstance(value, ModelConfig):
        return f"{value.d_model} × {len(value.blocks)}"
    return _named(value) if isinstance(value, Tagged) else str(value)
