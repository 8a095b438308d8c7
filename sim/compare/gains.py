"""How much more compute does B need for the loss A reaches? Compute-equivalent gain.

    CEG_{A|B}(C) = L_B⁻¹(L_A(C)) / C

Above one, A is the better architecture at budget C. Each arm becomes one curve of loss over cost:
where N and D are known it is the compute-optimal frontier of a fitted Chinchilla surface along the
arm's own cost (`sim.laws.cost_model`), else a power law through the arm's runs. The cost is any
column: a FLOP convention, seconds, dollars, state bytes. Gains are read only where both curves have
runs, and never outside. Exponents of two architectures are not compared: subsets of one family's
runs move α more than architectures do. Not included: gains at a fixed N or D.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtri

from isoflop.models.errors import UserError
from isoflop.sim.laws.cost_model import CostModel, fit_cost
from isoflop.sim.laws.fit import Fit, Status
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.laws.frontier import Frontier
from isoflop.sim.laws.law import Law
from isoflop.sim.laws.noise import misfit, together
from isoflop.sim.laws.resample import Floats, percentile, ranks
from isoflop.sim.records.tables import Columns, Dropped, Table, clean, describe

Curve = PowerLaw | Frontier

DOMINATED, MANY = 0.02, 0.2  # in log loss; and share of an arm's runs: above both, a warning
GRID = 65  # points of the window at which crossovers are looked for
NEAR = 0.1  # in log cost, N and D: how far cells of two arms may lie apart to be paired
FLOORS = 41  # common asymptotes, from none to the least loss, under which a trend is looked at


@dataclass(frozen=True)
class Cells:
    """Where an arm's runs lie: log N and log D, or log cost, (n, k) in order, and their seeds."""

    at: Floats
    seeds: tuple[str, ...]

    def matches(self, other: Cells) -> bool:
        """Whether every run has one of the same seed at nearly the same place beside it."""
        if not self.seeds or self.seeds != other.seeds or self.at.shape != other.at.shape:
            return False
        return bool((np.abs(self.at - other.at) <= NEAR).all())


@dataclass(frozen=True)
class Arm:
    """One architecture's curve, its bootstrap, and where its runs lie."""

    name: str
    fit: Fit
    curve: Curve | None
    draws: Curve | None
    cost: tuple[float, float]  # smallest and largest cost of a run
    cells: Cells  # to see whether two arms can be paired
    floored: Callable[[Floats], tuple[Curve, Floats]]  # asymptotes ↦ curves and misfits
    spare: int  # runs beyond the law's parameters
    least: float  # loss of a run
    dominated: str = ""  # "k of n runs" that cheaper runs of its own beat, where those are many


@dataclass(frozen=True)
class Gain:
    """CEG at one budget of the arm: value, interval, and the share of draws above one."""

    budget: float
    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Crossover:
    """The arm's cost at which two curves meet, and the share of draws that meet in the window."""

    budget: float
    low: float
    high: float
    share: float
    resolved: bool  # the gain excludes one on both sides of it, in opposite directions


@dataclass(frozen=True)
class Floored:
    """The gain at both ends of the window, had both arms the asymptote E."""

    E: float
    start: float
    end: float


@dataclass(frozen=True)
class Trend:
    """Whether the gain grows with compute, under every common asymptote that both arms allow.

    Few runs fit as well with a low asymptote, under which gains fall, as with a high one, under
    which they rise; `floors` are the lowest and the highest.
    """

    direction: Literal["rises", "falls", "not identifiable"]
    floors: tuple[Floored, Floored]
    runs: tuple[int, int]  # of each arm


@dataclass(frozen=True)
class Comparison:
    arm: str
    baseline: str
    cost: str
    status: Status
    reason: str
    ceg: tuple[Gain, ...] = ()
    crossovers: tuple[Crossover, ...] = ()
    window: tuple[float, float] = (math.nan, math.nan)  # the arm's cost, both curves inside
    paired: bool = False
    warning: str = ""
    trend: Trend | None = None

    @property
    def trend_note(self) -> str:
        """The direction of the gain in words; empty without one."""
        if self.trend is None:
            return ""
        said: str = self.trend.direction
        (low, high), runs = self.trend.floors, self.trend.runs
        if said == "not identifiable":
            count = f"{runs[0]}" if runs[0] == runs[1] else f"{runs[0]} and {runs[1]}"
            said = f"{count} runs an arm: the direction is not identifiable"
        told = (f"{at.start:.3g} to {at.end:.3g} with E = {at.E:.3g}" for at in (low, high))
        return (
            f"{said}; over the window, under the least and the greatest E that both arms' runs "
            f"allow: {', '.join(told)}"
        )

    @property
    def crossover_note(self) -> str:
        return "" if self.crossovers or not self.ceg else "none in window"

    def json(self) -> dict[str, Any]:
        out = asdict(self) | {"note": self.crossover_note, "window": list(map(_plain, self.window))}
        for key in ("ceg", "crossovers"):
            out[key] = [{k: _plain(v) for k, v in item.items()} for item in out[key]]
        if self.trend:
            floors = out["trend"]["floors"]
            out["trend"]["floors"] = [{k: _plain(v) for k, v in at.items()} for at in floors]
        return out


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def arms(
    columns: Columns,
    *,
    arch: str = "arch",
    cost: str = "flops",
    loss: str = "loss",
    n: str | None = None,
    d: str | None = None,
    seed: str = "seed",
    run: str = "run",
    draws: int = 1000,
    rng_seed: int = 0,
    asymptote: bool = True,
    surfaces: Mapping[str, Fit] | None = None,
) -> tuple[dict[str, Arm], tuple[Dropped, ...]]:
    """Fit every architecture in the table; arms with the same cells get the same bootstrap draws.

    With `n` and `d` an arm is its compute-optimal frontier, without them a power law through all
    of its runs, which then should be the runs one would choose at each budget: where many are
    dominated by cheaper ones, the comparison carries a warning. Where runs are few, their noise is
    that of all arms together, unless it differs (`sim.laws.noise`). Without `asymptote` curves have
    E = 0: enough inside a window too short to show an E, and nothing outside it.
    `surfaces` are Chinchilla fits of these very rows that need not be made again: the surface is
    the same whatever the cost.
    """
    table = usable(columns, arch=arch, cost=cost, loss=loss, n=n, d=d, seed=seed, run=run)
    fitted = of_table(table, draws=draws, rng_seed=rng_seed, asymptote=asymptote, surfaces=surfaces)
    return fitted, table.dropped


def usable(
    columns: Columns, *, arch: str = "arch", cost: str = "flops", loss: str = "loss",
    n: str | None = None, d: str | None = None, seed: str = "seed", run: str = "run",
) -> Table:  # fmt: skip
    """The rows that a comparison uses: arch, cost and loss; N and D if named, seed and run if
    there.

    UserError where none is usable.
    """
    if (n is None) != (d is None):
        raise UserError(f"n and d go together, and are n={n!r}, d={d!r}; name both or neither")
    numeric = {"cost": cost, "loss": loss} | ({"N": n, "D": d} if n and d else {})
    labels = {"arch": arch} | {k: v for k, v in (("seed", seed), ("run", run)) if v in columns}
    table = clean(columns, numeric, labels)
    if not len(table):
        raise UserError(f"a comparison needs usable rows: {describe(table.dropped)}")
    return table


def of_table(
    table: Table,
    *,
    draws: int = 1000,
    rng_seed: int = 0,
    asymptote: bool = True,
    surfaces: Mapping[str, Fit] | None = None,
) -> dict[str, Arm]:
    """`arms` of rows that are usable already; surfaces are fitted where the table has N."""
    fits = surfaces
    if fits is None:
        fits = fits_of(table, draws=draws, rng_seed=rng_seed, asymptote=asymptote)
    surface = "N" in table.columns
    return {k: _arm(k, part, surface, fits[k]) for k, part in by_arch(table).items()}


def by_arch(table: Table) -> dict[str, Table]:
    """The rows of each architecture, in the table's order."""
    return {
        name: table.where(table["arch"] == name) for name in dict.fromkeys(table["arch"].tolist())
    }


def fits_of(
    table: Table, *, draws: int = 1000, rng_seed: int = 0, asymptote: bool = True
) -> dict[str, Fit]:
    """The law of every architecture of a usable table: of N and D, or of cost where it has no N."""
    rows, surface = by_arch(table), "N" in table.columns
    options: dict[str, Any] = {"seed": rng_seed, "asymptote": asymptote}
    alone = {k: _fit(part, surface, draws=1, **options).noise for k, part in rows.items()}
    noise = together({k: told for k, told in alone.items() if told})
    options["draws"] = draws
    return {k: _fit(v, surface, noise=noise.get(k), **options) for k, v in rows.items()}


def _fit(rows: Table, surface: bool, **options: Any) -> Fit:
    parts = {k: v for k, v in rows.columns.items() if k in ("loss", "N", "D", "run", "seed")}
    if surface:
        return Chinchilla.fit(Table(parts, ()), held_out=(), **options)
    return PowerLaw.fit(Table(parts | {"C": rows["cost"]}, ()), held_out=(), **options)


def _arm(name: str, rows: Table, surface: bool, fit: Fit) -> Arm:
    c = rows["cost"]
    priced = _cost_model(name, rows) if surface else None
    law: type[Chinchilla] | type[PowerLaw] = Chinchilla if surface else PowerLaw
    x = [rows["N"], rows["D"]] if surface else [c]

    def floored(floors: Floats) -> tuple[Curve, Floats]:
        assert fit.floored is not None
        found, left = fit.floored(floors)
        curves = _curve(found, priced)
        assert curves is not None
        return curves, misfit(left, fit.trunk)

    curve, many = _curve(fit.law, priced), None
    if fit.draws is not None:
        # one architecture's misfits are no other's: a stream of its own, whatever the pairing
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        count = np.size(fit.draws.params_raw()["E"])
        many = _curve(fit.draws, priced and priced.draws(count, rng))
    span, dominated = (
        (float(c.min()), float(c.max())),
        "" if surface else _dominated(c, rows["loss"]),
    )
    cells = _cells(x, rows.columns.get("seed"))
    spare, least = len(c) - len(fields(law)), float(rows["loss"].min())
    return Arm(name, fit, curve, many, span, cells, floored, spare, least, dominated)


def _cells(x: Sequence[Floats], seeds: NDArray[Any] | None) -> Cells:
    order = np.lexsort(
        [*([] if seeds is None else [seeds.astype(str)]), *(ranks(v) for v in reversed(x))]
    )
    named = () if seeds is None else tuple(str(seed) for seed in seeds[order])
    return Cells(np.log(np.stack(x, axis=1))[order], named)


def _dominated(c: Floats, loss: Floats) -> str:
    cell = ranks(c)
    least = np.full(cell.max() + 1, np.inf)
    np.minimum.at(least, cell, np.log(loss))
    count = int((np.log(loss) > np.minimum.accumulate(least)[cell] + DOMINATED).sum())
    return f"{count} of {len(c)} runs" if count > MANY * len(c) else ""


def warning(compared: Iterable[Arm]) -> str:
    """What the arms' tables make doubtful; empty where nothing is.

    Curves through all runs are not what a cost buys where many are dominated by cheaper ones of the
    same arm; and runs whose noise may be shared have intervals that assume so.
    """
    compared = list(compared)
    told = list(dict.fromkeys(arm.fit.warning for arm in compared if arm.fit.warning))
    found = ", ".join(f"{arm.name} ({arm.dominated})" for arm in compared if arm.dominated)
    if found:
        told.append(
            f"dominated by more than {DOMINATED:.0%} at no higher cost: {found}; a curve through "
            "such runs is not what a cost buys: name n and d to compare compute-optimal frontiers"
        )
    return "; ".join(told)


def _cost_model(name: str, rows: Table) -> CostModel:
    try:
        return fit_cost(rows["cost"], rows["N"], rows["D"])
    except UserError as error:
        told = "or leave n and d out (--no-surface) to compare the runs themselves"
        raise UserError(f"{name}: {error}, {told}") from None


def _curve(law: Law | None, cost: CostModel | None) -> Curve | None:
    """The loss over cost of a law: itself, or the optimum of its surface."""
    if law is None or isinstance(law, PowerLaw):
        return law
    assert cost is not None
    return Frontier(law, cost)


def _gain(a: Curve, b: Curve, budgets: Floats) -> Floats:
    """CEG at each budget, one column per draw."""
    c = np.asarray(budgets, dtype=float)[:, None]
    return np.atleast_2d(b.inverse(a(c)) / c)


def window(a: Arm, b: Arm) -> tuple[float, float]:
    """The part of a's costs whose losses both curves reach inside their own runs; empty is nan."""
    assert a.curve is not None
    assert b.curve is not None
    worst = min(float(a.curve(a.cost[0])), float(b.curve(b.cost[0])))
    best = max(float(a.curve(a.cost[1])), float(b.curve(b.cost[1])))
    if best >= worst:
        return math.nan, math.nan
    return float(a.curve.inverse(worst)), float(a.curve.inverse(best))


def gain(
    a: Arm, b: Arm, cost: str, *, budgets: Sequence[float] | None = None, level: float = 0.9
) -> Comparison:
    """CEG of arm a over arm b, by default at three budgets across the shared window.

    A surface whose exponent a is unidentifiable still has a frontier: how much it is worth, but not
    at which size, which the gain's interval carries. So has one that shows no asymptote: budgets
    lie inside the window.
    """
    bad = [arm for arm in (a, b) if not arm.fit.readable]
    if bad or not (a.curve and b.curve and a.draws and b.draws):
        reason = "; ".join(f"{arm.name}: {arm.fit.reason}" for arm in bad)
        return Comparison(a.name, b.name, cost, bad[0].fit.status, reason)
    low, high = window(a, b)
    if not low < high:
        reason = "the two arms' losses do not overlap: no cost of one has the other's loss"
        return Comparison(a.name, b.name, cost, "unidentifiable", reason)
    at = np.geomspace(low, high, 5)[1:-1] if budgets is None else np.asarray(budgets, dtype=float)
    if ((at < low * 0.999) | (at > high * 1.001)).any():
        raise UserError(
            f"budgets must lie inside the window both arms share, {low:.3g} to {high:.3g} of "
            f"{a.name}, and are {', '.join(f'{c:.3g}' for c in at)}; choose others or add runs"
        )
    paired = a.cells.matches(b.cells) and not (a.fit.simulated or b.fit.simulated)
    other = b.draws if paired else _shuffled(b)
    value, many = _gain(a.curve, b.curve, at)[:, 0], _gain(a.draws, other, at)
    gains = []
    for c, v, row in zip(at, value, many, strict=True):
        gains.append(Gain(float(c), float(v), *percentile(row, level), float(np.mean(row > 1.0))))
    met = _crossovers(a.curve, b.curve, a.draws, other, (low, high), level)
    trend = _trend(a, b, _gain(a.draws, other, np.array([low, high])), (low, high), level)
    return Comparison(
        a.name, b.name, cost, "converged", "", tuple(gains), met, (low, high), paired,
        warning((a, b)), trend,
    )  # fmt: skip


def _trend(a: Arm, b: Arm, ends: Floats, span: tuple[float, float], level: float) -> Trend:
    """Direction of the gain through the window; `ends` (2, draws) are gains at its ends."""
    floors = np.linspace(0.0, 0.99 * min(a.least, b.least), FLOORS)
    (of_a, left_a), (of_b, left_b) = a.floored(floors), b.floored(floors)
    kept = allowed(left_a + left_b, 1 + a.spare + b.spare, level)
    start, end = _gain(of_a, of_b, np.array(span))[:, kept]
    E = floors[kept]
    with np.errstate(invalid="ignore"):  # no cost of the baseline has the loss: infinite twice
        low, high = percentile(ends[1] / ends[0], level)
    direction: Literal["rises", "falls", "not identifiable"] = "not identifiable"
    if low > 1.0 and (end > start).all():
        direction = "rises"
    elif high < 1.0 and (end < start).all():
        direction = "falls"
    first, last = (Floored(float(E[i]), float(start[i]), float(end[i])) for i in (0, -1))
    return Trend(direction, (first, last), (a.fit.n_points, b.fit.n_points))


def allowed(left: Floats, dof: int, level: float) -> NDArray[np.bool_]:
    """Which asymptotes the runs allow, by the misfit that each leaves: an F test."""
    return left <= left.min() * (1.0 + fdtri(1.0, dof, level) / dof)


def _shuffled(arm: Arm) -> Curve:
    """The same draws in another order, so that they are independent of the other arm's."""
    assert arm.draws is not None
    assert arm.fit.draws is not None
    count = np.size(arm.fit.draws.params_raw()["E"])
    return arm.draws.take(np.random.default_rng(1).permutation(count))


def _crossovers(
    a: Curve, b: Curve, many_a: Curve, many_b: Curve, span: tuple[float, float], level: float,
) -> tuple[Crossover, ...]:  # fmt: skip
    grid = np.geomspace(*span, GRID)
    found = _roots(grid, (a(grid) - b(grid))[:, None])
    if not found:
        return ()
    gap = many_a(grid[:, None]) - many_b(grid[:, None])
    draws = _roots(grid, gap)
    ends = [percentile(row, level) for row in _gain(many_a, many_b, grid[[0, -1]])]
    above, below = [low > 1.0 for low, _ in ends], [high < 1.0 for _, high in ends]
    resolved = (above[0] and below[1]) or (below[0] and above[1])
    out = []
    for _, root in found:
        nearest: dict[int, float] = {}
        for draw, value in draws:
            if abs(math.log(value / root)) < abs(math.log(nearest.get(draw, math.inf) / root)):
                nearest[draw] = value
        values = np.array([*nearest.values()] or [math.nan])
        share = len(nearest) / gap.shape[1]
        out.append(Crossover(root, *percentile(values, level), share, resolved))
    return tuple(out)


def _roots(grid: Floats, gap: Floats) -> list[tuple[int, float]]:
    """(column, cost) of every sign change, linear in log cost between grid points."""
    out = []
    for i, j in zip(*np.nonzero(np.sign(gap[:-1]) * np.sign(gap[1:]) < 0), strict=True):
        share = gap[i, j] / (gap[i, j] - gap[i + 1, j])
        out.append((int(j), float(grid[i] * (grid[i + 1] / grid[i]) ** share)))
    return out


def compare(
    columns: Columns,
    *,
    baseline: str | None = None,
    cost: str = "flops",
    budgets: Sequence[float] | None = None,
    level: float = 0.9,
    **options: Any,
) -> tuple[Comparison, ...]:
    """Every architecture against the baseline (default: the first in the table)."""
    fitted, _ = arms(columns, cost=cost, **options)
    names = list(fitted)
    if len(names) < 2:
        raise UserError(f"a comparison needs two architectures, and the table has {names}")
    base = names[0] if baseline is None else baseline
    if base not in fitted:
        raise UserError(f"baseline must be one of {', '.join(names)}, and is {base!r}")
    rest = [name for name in names if name != base]
    return tuple(gain(fitted[a], fitted[base], cost, budgets=budgets, level=level) for a in rest)


@dataclass(frozen=True)
class Ranked:
    """A rank; architectures whose gain over the rank's leader is not resolved share it."""

    rank: int
    arm: str
    over_leader: Gain | None  # None for the leader itself


def ranking(fitted: Mapping[str, Arm], cost: str, level: float = 0.9) -> tuple[Ranked, ...]:
    """Order the arms by gain at the middle of the window they all share, ties sharing a rank."""
    usable = [
        a for a in fitted.values() if a.curve is not None and a.draws is not None and a.fit.readable
    ]
    if len(usable) < 2:
        raise UserError("a ranking needs two architectures whose fits converged")
    curves = [(a, a.curve) for a in usable if a.curve is not None]
    worst = min(float(c(a.cost[0])) for a, c in curves)
    best = max(float(c(a.cost[1])) for a, c in curves)
    if best >= worst:
        raise UserError("a ranking needs losses that all architectures reach, and none is shared")
    target = math.sqrt(worst * best)
    needed = {a.name: float(c.inverse(target)) for a, c in curves}
    order = sorted((a for a, _ in curves), key=lambda a: needed[a.name])
    ranks: list[Ranked] = []
    leader = order[0]
    for i, arm in enumerate(order):
        if arm is leader:
            ranks.append(Ranked(i + 1, arm.name, None))
            continue
        over = gain(arm, leader, cost, budgets=[needed[arm.name]], level=level).ceg[0]
        if over.high < 1.0:
            leader = arm
            ranks.append(Ranked(i + 1, arm.name, None))
        else:
            ranks.append(Ranked(ranks[-1].rank, arm.name, over))
    return tuple(ranks)
