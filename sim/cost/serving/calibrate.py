"""Fit the clock's coefficients to measured serving points, and find out how far off it is.

No chip beats its roofline: coefficients of bytes and FLOPs are at least 1, all others at least 0.
They minimise Σ ρ(log predicted − log measured), ρ quadratic to .15 and linear beyond, over TTFT and
TPOT together, engines being alike as far as nothing speaks against it; how many sequences run
follows from the times (Little's law), by turns. Intervals are refits to deployments drawn with
replacement. Errors are those of deployments that a fit has not seen: whole ones (model × chip ×
engine) by folds, then whole chips and whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from isoflop.models.errors import UserError
from isoflop.sim.cost.serving.calibration import UNSEEN, Calibration, Spread, class_of
from isoflop.sim.cost.serving.clock import (
    COUNTED,
    ENGINE,
    PARTS,
    SHARED,
    TURNS,
    Load,
    Parts,
    closed,
    parts,
    times,
)
from isoflop.sim.cost.serving.deployment import Deployment
from isoflop.sim.cost.serving.memory import room
from isoflop.sim.cost.serving.work import Replica

Floats = NDArray[np.float64]

KNEE = 0.15  # log error from which a point pulls no stronger
ALIKE = 0.5  # log error that an engine's coefficient costs by START of it off all engines' mean
FOLDS = 5
REFITS = 40
WITHIN = 1.645  # standard deviations that hold 90 %
START = {
    "dense_bytes": 1.2, "expert_bytes": 1.2, "state_bytes": 1.2, "dense_flops": 1.5,
    "expert_flops": 3.0, "context_flops": 3.0, "link_bytes": 2.0, "messages": 5.0, "layers": 30.0,
    "routed_layers": 15.0, "split_layers": 10.0, "pieces": 1.0, "step": 0.3, "sequence": 8.0,
    "ttft": 20.0, "ttft_prefill": 1.0, "ttft_queue": 0.05, "ttft_steps": 2.0, "ttft_slot": 0.1,
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Points (n,) of one deployment."""

    on: Deployment
    model: str
    replica: Replica
    load: Load
    ttft: Floats  # seconds
    tpot: Floats

    @property
    def unit(self) -> str:
        """What is held out as a whole."""
        return f"{self.model}, {self.on.device.name}, {self.on.engine}"


def measured(
    on: Deployment, model: str, prompt: Floats, answer: Floats, users: Floats, ttft: Floats,
    tpot: Floats,
) -> Measured:  # fmt: skip
    """Points of a deployment: tokens, users and seconds, (n,) each."""
    replica = Replica(on, int(np.max(prompt + answer)))
    fit = np.array([room(replica, c) for c in prompt + answer / 2])
    load = Load(prompt, prompt, answer, users, np.maximum(fit, 1.0))
    return Measured(on, model, replica, load, ttft, tpot)


@dataclass(frozen=True)
class Fit:
    """Coefficients by name: shared ones, and `engine.name`."""

    engines: tuple[str, ...]
    values: Floats

    @property
    def names(self) -> list[str]:
        return [
            *SHARED,
            *(f"{engine}.{name}" for engine in self.engines for name in ENGINE),
        ]

    @property
    def shared(self) -> dict[str, float]:
        return dict(zip(SHARED, self.values.tolist(), strict=False))

    def by_engine(self) -> NDArray[np.float64]:
        """(engines, coefficients of one)."""
        return self.values[len(SHARED) :].reshape(len(self.engines), len(ENGINE))

    def of(self, engine: str) -> dict[str, float]:
        """Those of an engine; of one that was not fitted, the mean of all."""
        rows = self.by_engine()
        row = rows[self.engines.index(engine)] if engine in self.engines else rows.mean(0)
        return dict(zip(ENGINE, row.tolist(), strict=True))

    def times(self, table: Sequence[Measured]) -> tuple[Floats, Floats]:
        """(TTFT, TPOT) of all points, one deployment after the other."""
        made = [times(m.replica, m.load, self.shared, self.of(m.on.engine)) for m in table]
        ttft, tpot = (np.concatenate(rows) for rows in zip(*made, strict=True))
        return ttft, tpot

    def errors(self, table: Sequence[Measured]) -> Floats:
        """(2, n) log measured − log predicted, of TTFT and TPOT."""
        made = self.times(table)
        seen = (
            np.concatenate([m.ttft for m in table]),
            np.concatenate([m.tpot for m in table]),
        )
        return np.log(np.array(seen)) - np.log(np.array(made))


def fit(table: Sequence[Measured], start: Fit | None = None) -> Fit:
    """The coefficients of a table."""
    engines = tuple(sorted({m.on.engine for m in table}))
    names = Fit(engines, np.empty(0)).names
    scale = np.array([START[name.split(".")[-1]] for name in names])
    least = np.array([float(n in PARTS and n not in COUNTED) for n in names])  # the roofline's own
    found = (
        Fit(engines, np.maximum(scale, least))
        if start is None or start.engines != engines
        else start
    )
    whose = np.repeat([engines.index(m.on.engine) for m in table], [len(m.ttft) for m in table])
    seen = np.log(
        [
            np.concatenate([m.ttft for m in table]),
            np.concatenate([m.tpot for m in table]),
        ]
    )
    load = Load(*(np.concatenate([getattr(m.load, f.name) for m in table]) for f in fields(Load)))
    ttft, tpot = found.times(table)
    for _ in range(TURNS):
        running = load.running(ttft, tpot)
        pieces = np.split(running, np.cumsum([len(m.ttft) for m in table])[:-1])
        stacked = _stacked(
            [parts(m.replica, m.load, r) for m, r in zip(table, pieces, strict=True)]
        )

        def wrong(values: Floats, stacked: Any = stacked, running: Floats = running) -> Floats:
            one = Fit(engines, values)
            own = one.by_engine()
            engine = dict(zip(ENGINE, own[whose].T, strict=True))
            made = closed(stacked, load, running, one.shared, engine)
            apart = ALIKE * (own - own.mean(0)) / scale[-len(ENGINE) :]
            return np.concatenate([(np.log(np.array(made)) - seen).ravel(), apart.ravel()])

        values = least_squares(
            wrong, np.maximum(found.values, least + 1e-6 * scale), bounds=(least, np.inf),
            loss="soft_l1",
            f_scale=KNEE, x_scale=scale,
        ).x  # fmt: skip
        found = Fit(engines, values)
        ttft, tpot = found.times(table)
    return found


def _stacked(found: Sequence[Parts]) -> Parts:
    """The features of all deployments in one row of arrays each."""
    rows = [len(np.atleast_1d(own["plain"]["sequences"])) for own in found]
    return {
        step: {
            name: np.concatenate(
                [np.broadcast_to(own[step][name], n) for own, n in zip(found, rows, strict=True)]
            )
            for name in found[0][step]
        }
        for step in found[0]
    }


def held_out(table: Sequence[Measured], group: Callable[[Measured], str], folds: int = 0) -> Floats:
    """(2, n) errors of points whose group no fit has seen; each group alone, or in `folds`."""
    groups = sorted({group(m) for m in table})
    order = np.random.default_rng(0).permutation(len(groups))
    fold = dict(zip(groups, order % folds if folds else order, strict=True))
    errors: dict[int, Floats] = {}
    first = fit(table)
    for k in sorted(set(fold.values())):
        out = [i for i, m in enumerate(table) if fold[group(m)] == k]
        kept = fit([m for i, m in enumerate(table) if i not in out], first)
        for i in out:
            errors[i] = kept.errors([table[i]])
    return np.concatenate([errors[i] for i in range(len(table))], axis=1)


def calibrate(table: Sequence[Measured], source: str, refits: int = REFITS) -> Calibration:
    """Coefficients, their intervals and the errors by class. UserError for fewer than FOLDS units.

    Intervals are 5 and 95 % of fits to as many units (model × chip × engine) drawn with
    replacement.
    """
    units = sorted({m.unit for m in table})
    if len(units) < FOLDS:
        raise UserError(
            f"a calibration needs {FOLDS} deployments (model × chip × engine), and these points "
            f"are of {len(units)}: add measurements of others"
        )
    found = fit(table)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(refits):
        picked = rng.choice(units, len(units))
        again = [m for unit in picked for m in table if m.unit == unit]
        if {m.on.engine for m in again} == set(found.engines):
            drawn.append(fit(again, found).values)
    low, high = (np.percentile(drawn, q, axis=0) for q in (5, 95))
    errors = held_out(table, lambda m: m.unit, FOLDS)
    new = np.concatenate(
        [
            held_out(table, lambda m: m.on.device.name),
            held_out(table, lambda m: m.model),
        ],
        axis=1,
    )
    of = np.repeat([class_of(m.on.engine, m.on.model) for m in table], [len(m.ttft) for m in table])
    spreads = {name: _spread(errors[:, of == name]) for name in sorted(set(of))}
    return Calibration(
        source=source,
        points=errors.shape[1],
        chips=tuple(sorted({m.on.device.name for m in table})),
        shared=found.shared,
        engines={engine: found.of(engine) for engine in found.engines},
        intervals=dict(
            zip(found.names, zip(low.tolist(), high.tolist(), strict=True), strict=True)
        ),
        spreads=spreads | {UNSEEN: _spread(new)},
    )


def _spread(errors: Floats) -> Spread:
    """Of (2, n) log errors, by the size that 90 % of them are within."""
    ttft, tpot = np.quantile(np.abs(errors), 0.9, axis=1) / WITHIN
    clipped = np.clip(errors, -3 * np.array([[ttft], [tpot]]), 3 * np.array([[ttft], [tpot]]))
    together = float(np.corrcoef(*clipped)[0][1]) if errors.shape[1] > 2 else 0.0
    return Spread(float(ttft), float(tpot), together, errors.shape[1])
