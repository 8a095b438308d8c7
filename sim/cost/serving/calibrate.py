"""Fit the clock's coefficients to measured serving points, and find out how far off it is.

No chip beats its roofline: coefficients of bytes and FLOPs are at least 1, all others at least 0.
They minimise Σ ρ(log predicted − log measured), ρ quadratic to .15 and linear beyond, over TTFT and
TPOT together, engines being alike as far as nothing speaks against it, and a coefficient that no
point tells of staying where it began; how many sequences run follows from the times (Little's law),
by turns. Intervals are refits to deployments drawn with
replacement. Errors are those of deployments that a fit has not seen: whole ones (model × chip ×
engine) by folds, then whole chips and whole models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from isoflop.models.errors import UserError
from isoflop.sim.cost.serving.calibration import UNSEEN, Calibration, Check, Spread, class_of
from isoflop.sim.cost.serving.clock import COUNTED, ENGINE, PARTS, SHARED, TURNS, Parts, closed
from isoflop.sim.cost.serving.measured import Measured, SideBySide, side_by_side

Floats = NDArray[np.float64]

KNEE = 0.15  # log error from which a point pulls no stronger
ALIKE = 0.5  # log error that an engine's coefficient costs by START of it off all engines' mean
HELD = 0.01  # … that any costs by START off it: it stays there where no point tells of it
FOLDS = 5
REFITS = 40
TINY = 1e-20  # of a complex step, whose error is its square
NEAR = 1e-6  # of START from its bound, from where a coefficient is begun, and called at it
WITHIN = 1.645  # standard deviations that hold 90 %
START = {
    "dense_bytes": 1.2, "expert_bytes": 1.2, "state_bytes": 1.2, "dense_flops": 1.5,
    "expert_flops": 3.0, "context_flops": 3.0, "link_bytes": 2.0, "messages": 5.0, "layers": 30.0,
    "routed_layers": 15.0, "split_layers": 10.0, "pieces": 1.0, "step": 0.3, "sequence": 8.0,
    "ttft": 20.0, "ttft_prefill": 1.0, "ttft_queue": 0.05, "ttft_steps": 2.0, "ttft_slot": 0.1,
}  # fmt: skip


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

    def times(self, points: SideBySide) -> Floats:
        """(2, n) seconds: TTFT, TPOT."""
        names, whose = np.unique(points.engine, return_inverse=True)
        own = [self.of(name) for name in names.tolist()]
        engine = {name: np.array([one[name] for one in own])[whose] for name in ENGINE}
        return np.array(points.times(self.shared, engine))

    def errors(self, points: SideBySide) -> Floats:
        """(2, n) log measured − log predicted."""
        return points.seen - np.log(self.times(points))


def fit(points: SideBySide, start: Fit | None = None) -> Fit:
    """The coefficients of these points."""
    engines = tuple(np.unique(points.engine).tolist())
    names = Fit(engines, np.empty(0)).names
    scale = np.array([START[name.split(".")[-1]] for name in names])
    least = np.array([float(n in PARTS and n not in COUNTED) for n in names])  # the roofline's own
    found = start
    if found is None or found.engines != engines:
        found = Fit(engines, np.maximum(scale, least))
    whose = np.searchsorted(engines, points.engine)
    for _ in range(TURNS):
        running = points.load.running(*found.times(points))
        steps = points.parts(running)

        def wrong(values: Any, steps: Parts = steps, running: Floats = running) -> Any:
            """What is minimised, (…, rows), of coefficients (…, k)."""
            shared, own = np.split(values, [len(SHARED)], axis=-1)
            own = own.reshape(*own.shape[:-1], len(engines), len(ENGINE))
            made = closed(
                steps, points.load, running,
                {name: shared[..., i, None] for i, name in enumerate(SHARED)},
                {name: own[..., whose, i] for i, name in enumerate(ENGINE)},
            )  # fmt: skip
            apart = ALIKE * (own - own.mean(-2, keepdims=True)) / scale[-len(ENGINE) :]
            off = [np.log(m) - seen for m, seen in zip(made, points.seen, strict=True)]
            held = HELD * (values / scale - 1.0)
            return np.concatenate([*off, apart.reshape(*apart.shape[:-2], -1), held], axis=-1)

        def slopes(values: Floats, wrong: Callable[[Any], Any] = wrong) -> Floats:
            """(rows, k): exact, by a complex step (Squire & Trapp 1998)."""
            return wrong(values + 1j * TINY * np.eye(len(values))).imag.T / TINY

        values = least_squares(
            wrong, np.maximum(found.values, least + NEAR * scale), slopes, bounds=(least, np.inf),
            loss="soft_l1", f_scale=KNEE, x_scale=scale,
        ).x  # fmt: skip
        found = Fit(engines, np.where(values < least + NEAR * scale, least, values))
    return found


def folds_of(groups: NDArray[Any], folds: int) -> NDArray[np.int64]:
    """Of each point, (n,): groups dealt out at random, as whole ones."""
    names, group = np.unique(groups, return_inverse=True)
    return (np.random.default_rng(0).permutation(len(names)) % folds)[group]


def held_out(points: SideBySide, folds: NDArray[Any], first: Fit) -> Floats:
    """(2, n) errors of points by a fit, begun at `first`, that has not seen their fold, (n,)."""
    errors = np.empty_like(points.seen)
    for fold in np.unique(folds):
        out = folds == fold
        errors[:, out] = fit(points.take(~out), first).errors(points.take(out))
    return errors


def calibrate(table: Sequence[Measured], source: str, refits: int = REFITS) -> Calibration:
    """Coefficients, their intervals and the errors by class. UserError for fewer than FOLDS units.

    Intervals are 5 and 95 % of fits to as many units (model × chip × engine) drawn with
    replacement.
    """
    points, counts = side_by_side(table), [len(m.ttft) for m in table]

    def each(of: Callable[[Measured], str]) -> NDArray[Any]:
        return np.repeat([of(m) for m in table], counts)

    unit, kind = each(lambda m: m.unit), each(lambda m: class_of(m.on.engine, m.on.model))
    whole = {"chip": each(lambda m: m.on.device.name), "model": each(lambda m: m.model)}
    units = np.unique(unit)
    if len(units) < FOLDS:
        raise UserError(
            f"a calibration needs {FOLDS} deployments (model × chip × engine), and these points "
            f"are of {len(units)}: add measurements of others"
        )
    found = fit(points)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(refits):
        picked = rng.choice(units, len(units))
        again = points.take(np.concatenate([np.flatnonzero(unit == one) for one in picked]))
        if set(again.engine) == set(found.engines):
            drawn.append(fit(again, found).values)
    low, high = (np.percentile(drawn, q, axis=0) for q in (5, 95))
    fold = folds_of(unit, FOLDS)
    errors = held_out(points, fold, found)
    new = np.stack([held_out(points, names, found) for names in whole.values()])  # (2, 2, n)
    inside = np.empty(errors.shape, bool)
    for name in np.unique(kind):
        for one in np.unique(fold[kind == name]):
            here, like = (kind == name) & (fold == one), (kind == name) & (fold != one)
            unseen = _spread(np.concatenate(new[..., fold != one], 1))
            others = _of_class(errors[:, like], len(set(unit[like])), unseen)
            inside[:, here] = _inside(errors[:, here], others)
    checks = {"deployments": _check(errors, inside)}
    checks |= {f"deployments of {name}": _check(errors[:, kind == name], inside[:, kind == name])
               for name in np.unique(kind).tolist()}  # fmt: skip
    for (what, names), made in zip(whole.items(), new, strict=True):
        for name in np.unique(names).tolist():
            own, rest = made[:, names == name], np.concatenate(new[..., names != name], 1)
            checks[f"{what} {name}"] = _check(own, _inside(own, _spread(rest)))
    unseen = _spread(np.concatenate(new, 1))
    spreads = {
        name: _of_class(errors[:, kind == name], len(set(unit[kind == name])), unseen)
        for name in np.unique(kind).tolist()
    }
    return Calibration(
        source=source,
        points=len(points),
        chips=tuple(np.unique(whole["chip"]).tolist()),
        shared=found.shared,
        engines={engine: found.of(engine) for engine in found.engines},
        intervals=dict(
            zip(found.names, zip(low.tolist(), high.tolist(), strict=True), strict=True)
        ),
        spreads=spreads | {UNSEEN: unseen},
        checks=checks,
    )


def _check(errors: Floats, inside: NDArray[np.bool_]) -> Check:
    off, held = np.abs(np.expm1(-errors)).mean(1), inside.mean(1)
    return Check(errors.shape[1], *off.tolist(), *held.tolist())


def _inside(errors: Floats, spread: Spread) -> NDArray[np.bool_]:
    """(2, n): whether errors are within the 90 % interval."""
    return np.abs(errors) <= WITHIN * np.array([[spread.ttft], [spread.tpot]])


def _spread(errors: Floats) -> Spread:
    """Of (2, n) log errors, by the size that 90 % of them are within."""
    ttft, tpot = np.quantile(np.abs(errors), 0.9, axis=1) / WITHIN
    clipped = np.clip(errors, -3 * np.array([[ttft], [tpot]]), 3 * np.array([[ttft], [tpot]]))
    together = float(np.corrcoef(*clipped)[0][1]) if errors.shape[1] > 2 else 0.0
    return Spread(float(ttft), float(tpot), together, errors.shape[1])


def _of_class(errors: Floats, units: int, unseen: Spread) -> Spread:
    """Of errors (2, n) on so many units of a class, as if there were one more, as far off as unseen
    ones are: without it, 90 % intervals held 84 % of the TPOT of units that were held out.
    """
    if not units:
        return unseen
    own = _spread(errors)
    ttft, tpot = (
        float(np.sqrt((units * mine**2 + new**2) / (units + 1)))
        for mine, new in ((own.ttft, unseen.ttft), (own.tpot, unseen.tpot))
    )
    return replace(own, ttft=ttft, tpot=tpot)
