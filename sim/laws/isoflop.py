"""Other views of the same runs: the envelope, IsoFLOP valleys, and variable projection.

Approaches 1 and 2 of Hoffmann et al. 2022 (arXiv 2203.15556) find N*(C) = k·C^a without a surface;
variable projection finds the surface of approach 3 by another estimator and another optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.sim.laws.diagnostics import distinct
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.frontier import lower_envelope
from isoflop.sim.laws.law import FLOPS_PER_ND, grid
from isoflop.sim.laws.resample import Floats, ranks

TOLERANCE = 0.1  # runs whose C differs by no more than this share from a budget are of it
FEWEST = 5  # sizes near a minimum from which its parabola has an interval
NEARBY = 0.25  # share of its compute within which a run of the envelope must have beaten others
SAME = 0.01  # in log N: sizes no further apart are one
CHOSEN = 5  # such runs from which the envelope says how the best size grows


@dataclass(frozen=True)
class Valley:
    """The runs of one budget, and the size of least loss among them where it lies inside.

    Losses are those at C: a run that cost a little more or less is moved there along the slope of
    the least losses, which is the slope at fixed N where the valley is deepest.
    """

    C: float
    N: Floats
    loss: Floats
    best: float = math.nan
    least: float = math.nan  # loss at the minimum
    interval: tuple[float, float] = (math.nan, math.nan)  # of best: 90 %, Student t; nan without
    why: str = ""  # why there is no minimum; empty where there is
    line: tuple[Floats, Floats] = (np.zeros(0), np.zeros(0))  # N and loss of the curve through it


@dataclass(frozen=True)
class Allocation:
    """N*(C) = coefficient · C^a over the budgets whose optimum is inside the sizes tried."""

    a: float
    coefficient: float
    interval: tuple[float, float]  # of a: 90 %, Student t over the budgets' scatter
    C: Floats
    N: Floats
    warnings: tuple[str, ...]
    valleys: tuple[Valley, ...] = ()

    def __call__(self, C: Any) -> Any:
        return self.coefficient * np.asarray(C, dtype=float) ** self.a

    def extrapolated(self, C: float) -> str:
        """Where C lies outside the budgets found, which of them it is beyond; empty inside."""
        low, high = float(self.C.min()), float(self.C.max())
        if high * 1.001 < C:
            return f"extrapolated: {C / high:.3g} × the largest compute with a minimum"
        if low * 0.999 > C:
            return f"extrapolated: {C / low:.3g} × the smallest compute with a minimum"
        return ""

    def band(self, C: float) -> tuple[float, float]:
        """90 % interval of the line at C."""
        slack, half = _line_error(np.log(self.C), np.log(self.N), math.log(C))
        middle = math.log(float(self(C)))
        return math.exp(middle - slack * half), math.exp(middle + slack * half)


def _line_error(c: Floats, n: Floats, at: float | None) -> tuple[float, float]:
    """Student's t, and the standard error of a line through n over c: of its value at `at`, or with
    None of its slope.

    The larger of the usual one, for equal scatter, and one that lets the flatter valleys of large
    budgets scatter more (HC3: MacKinnon & White 1985).
    """
    from scipy.special import stdtrit

    centred = c - c.mean()
    square = float(centred @ centred)
    rest = n - n.mean() - float(centred @ n) / square * centred
    part = centred / square  # of each n in the slope
    if at is not None:
        part = 1.0 / len(c) + (at - c.mean()) * part
    free = 1.0 - 1.0 / len(c) - centred**2 / square  # one less the leverage
    dof = len(c) - 2
    usual = float(part @ part) * float(rest @ rest) / dof
    robust = float((part * rest / np.maximum(free, 1e-9)) @ (part * rest / np.maximum(free, 1e-9)))
    return float(stdtrit(dof, 0.95)), math.sqrt(max(usual, robust))


def _allocate(
    C: Sequence[float], N: Sequence[float], warnings: Sequence[str], valleys: Sequence[Valley] = ()
) -> Allocation:
    c, n = np.log(np.asarray(C, dtype=float)), np.log(np.asarray(N, dtype=float))
    if len(c) < 3:
        left = f" (such as {warnings[0]})" if warnings else ""
        raise UserError(
            f"an allocation needs the optimum inside the sizes at 3 budgets or more, and has it at "
            f"{len(c)}; add sizes on both sides of the minimum, or fit a surface: approach 3{left}"
        )
    centred = c - c.mean()
    a = float(centred @ n / (centred @ centred))
    slack, error = _line_error(c, n, None)
    half = slack * error
    coefficient = math.exp(n.mean() - a * c.mean())
    return Allocation(
        a, coefficient, (a - half, a + half), np.exp(c), np.exp(n), tuple(warnings), tuple(valleys)
    )


def envelope(C: Any, N: Any, loss: Any) -> Allocation:
    """Approach 1 (Hoffmann et al. 2022, §3.1): the sizes on the lower envelope of loss over C.

    A run of the envelope tells a size of least loss only where it was a choice: within 25 % of its
    compute a larger and a smaller size were tried, and it beat all that were, each moved to its
    compute along the slope of the envelope. Without that the envelope is the design that was run:
    with one run at each compute nearly every run is on it. UserError with fewer than 5 choices.

    The envelope takes the luckiest run at each budget, so its losses are biased low; between the
    sizes that were tried it is a staircase.
    """
    C, N, loss = (np.asarray(v, dtype=float) for v in (C, N, loss))
    edge = lower_envelope(C, loss)
    slope = _slope(list(zip(C[edge], loss[edge], strict=True)))
    rows = np.array([i for i in edge.tolist() if _chosen(i, C, N, loss, slope)], dtype=np.intp)
    told = (
        f"{len(rows)} of the envelope's {len(edge)} runs beat a larger and a smaller size tried "
        f"within {NEARBY:.0%} of their compute"
    )
    if len(rows) < CHOSEN:
        raise UserError(
            f"unidentifiable: {told}, and N*(C) needs {CHOSEN}: elsewhere the envelope is the grid "
            "that was run; train several sizes at each compute, or fit a surface: approach 3"
        )
    warnings = [told] if len(rows) < len(edge) else []
    if (sizes := distinct(N[rows])) < 5:
        found = f"{sizes} size{'s' * (sizes != 1)}"
        warnings.append(f"the envelope visits only {found}: a staircase")
    return _allocate(C[rows].tolist(), N[rows].tolist(), warnings)


def _chosen(i: int, C: Floats, N: Floats, loss: Floats, slope: float) -> bool:
    """Whether run i beat smaller and larger sizes at nearly its compute."""
    near = np.abs(np.log(C / C[i])) <= math.log1p(NEARBY)
    step = np.where(near, np.log(N / N[i]), 0.0)
    rivals = np.abs(step) > SAME
    moved = loss[rivals] * np.exp(slope * np.log(C[i] / C[rivals]))
    return bool((step > SAME).any() and (step < -SAME).any() and (loss[i] < moved).all())


def by_budget(C: Floats, budgets: Sequence[float] | None) -> list[tuple[float, NDArray[np.intp]]]:
    """Budgets and the rows of each: those given, or those found where costs cluster within 10 %."""
    if budgets is None:
        cluster = ranks(C, math.log((1.0 + TOLERANCE) / (1.0 - TOLERANCE)))
        parts = [np.flatnonzero(cluster == i) for i in range(int(cluster.max()) + 1)]
        return [(float(np.median(C[rows])), rows) for rows in parts]
    given = np.sort(np.asarray(budgets, dtype=float))
    off = np.abs(C[:, None] / given - 1.0)
    nearest = np.where(off.min(axis=1) <= TOLERANCE, off.argmin(axis=1), -1)
    return [(float(c), np.flatnonzero(nearest == i)) for i, c in enumerate(given)]


def isoflop(
    C: Any,
    N: Any,
    loss: Any,
    *,
    budgets: Sequence[float] | None = None,
    method: Literal["parabola", "akima"] = "parabola",
    window: float = 4.0,
    reference: Chinchilla | None = None,
) -> Allocation:
    """Approach 2 (Hoffmann et al. 2022, §3.2): the size of least loss at each budget.

    `budgets` are found where costs cluster, or given; runs within 10 % of one are its valley.
    `parabola` fits log L by a parabola in log N to the runs within a factor `window` of the best
    one; `akima` interpolates all sizes (Porian et al. 2024, arXiv 2406.19146, §2). Budgets whose
    best run is the smallest or largest size are left out with a warning. A parabola is exact only
    for a symmetric valley: given a `reference` surface its bias on these very sizes is measured.
    """
    C, N, loss = (np.asarray(v, dtype=float) for v in (C, N, loss))
    parts = by_budget(C, budgets)
    warnings = []
    if outside := len(C) - sum(len(rows) for _, rows in parts):
        warnings.append(f"{outside} of {len(C)} runs lie within {TOLERANCE:.0%} of no budget")
    slope = _slope([(c, float(loss[rows].min())) for c, rows in parts if len(rows)])
    valleys = []
    for c, rows in parts:
        moved = loss[rows] * np.exp(slope * np.log(c / C[rows]))
        valley = _valley(c, N[rows], moved, method, window)
        valleys.append(valley)
        if valley.why:
            warnings.append(f"C = {c:.3g}: {valley.why}; left out")
        elif method == "parabola":
            n, i = np.log(valley.N), int(np.argmin(valley.loss))
            warnings += _off_centre(c, n, i, math.log(valley.best), window, reference)
    found = [valley for valley in valleys if not valley.why]
    return _allocate([v.C for v in found], [v.best for v in found], warnings, valleys)


def _slope(least: Sequence[tuple[float, float]]) -> float:
    """d log L/d log C of the least losses."""
    c, y = np.log(np.array(least)).T
    return float(np.polyfit(c, y, 1)[0]) if len(c) > 1 else 0.0


def _valley(c: float, N: Floats, loss: Floats, method: str, window: float) -> Valley:
    order = np.lexsort((loss, N))
    N, loss = N[order], loss[order]
    n, y = np.log(N), np.log(loss)
    sizes = distinct(N) if len(N) else 0
    if sizes < 3:
        return Valley(c, N, loss, why=f"{sizes} size{'s' * (sizes != 1)}, and a minimum needs 3")
    i = int(np.argmin(y))
    if N[i] in (N[0], N[-1]):
        return Valley(c, N, loss, why=f"the best of {sizes} sizes is at the edge")
    if method == "akima":
        from scipy.interpolate import Akima1DInterpolator

        n, first = np.unique(n, return_index=True)
        y = np.add.reduceat(y, first) / np.diff([*first, len(y)])  # seeds of one size
        i = int(np.argmin(y))
        curve = Akima1DInterpolator(n, y)
        fine = np.linspace(n[i - 1], n[i + 1], 2001)
        top = float(fine[int(np.argmin(curve(fine)))])
        shown = np.linspace(n[0], n[-1], 101)
        line = np.exp(shown), np.exp(curve(shown))
        return Valley(c, N, loss, math.exp(top), math.exp(float(curve(top))), line=line)
    vertex = _vertex(n, y, i, window)
    if vertex is None:
        return Valley(c, N, loss, why="no interior minimum near the best size")
    top, half, bottom, (low, high), bend = vertex
    between = (math.exp(top - half), math.exp(top + half))
    shown = np.linspace(low, high, 51)
    line = np.exp(shown), np.exp(bottom + bend * (shown - top) ** 2)
    return Valley(c, N, loss, math.exp(top), math.exp(bottom), between, line=line)


def _vertex(
    n: Floats, y: Floats, i: int, window: float
) -> tuple[float, float, float, tuple[float, float], float] | None:
    """Minimum of the parabola near the best size: log N, half its interval (nan where sizes are few
    for one), log L, the sizes it was fitted to, and its bend.
    """
    from scipy.special import stdtrit

    near = np.abs(n - n[i]) <= math.log(window) + 1e-9
    if distinct(np.exp(n[near])) < 3:
        near = (n >= n[n < n[i]].max()) & (n <= n[n > n[i]].min())
    x = n[near] - n[i]
    basis = np.stack([x**2, x, np.ones_like(x)], axis=1)
    (bend, line, level), *_ = np.linalg.lstsq(basis, y[near], rcond=None)
    if bend <= 0:
        return None
    off = -line / (2.0 * bend)
    top = float(n[i] + off)
    if not n[near].min() < top < n[near].max():
        return None
    half = math.nan
    if distinct(np.exp(n[near])) >= FEWEST:
        dof = len(x) - 3
        rest = y[near] - basis @ np.array([bend, line, level])
        slopes = np.array([-off / bend, -0.5 / bend, 0.0])  # of the vertex in the coefficients
        spread = float(slopes @ np.linalg.inv(basis.T @ basis) @ slopes)
        half = float(stdtrit(dof, 0.95)) * math.sqrt(spread * float(rest @ rest) / dof)
    ends = (float(n[near].min()), float(n[near].max()))
    return top, half, float(level - bend * off**2), ends, float(bend)


def _off_centre(
    c: float, n: Floats, i: int, top: float, window: float, reference: Chinchilla | None
) -> list[str]:
    near = np.abs(n - n[i]) <= math.log(window) + 1e-9
    if reference is None:
        off = math.exp(abs(top - 0.5 * (n[near][0] + n[near][-1])))
        said = "the parabola is biased off-centre; pass a reference surface to measure by how much"
        return [f"C = {c:.3g}: the minimum is {off:.2f} × off the sizes' centre: {said}"] * (
            off > 1.5
        )
    y = np.log(reference(np.exp(n), c / (FLOPS_PER_ND * np.exp(n))))
    i = int(np.argmin(y))
    found = None if n[i] in (n[0], n[-1]) else _vertex(n, y, i, window)
    if found is None:
        return [f"C = {c:.3g}: the reference surface has no interior minimum on these sizes"]
    bias = math.exp(found[0] - float(np.log(reference.optimal(c)[0]))) - 1.0
    return [f"C = {c:.3g}: the parabola is off by {bias:+.1%} in N* on the reference surface"] * (
        abs(bias) > 0.02
    )


def variable_projection(N: Any, D: Any, loss: Any) -> Chinchilla:
    """Chinchilla by a search over α, β alone; E, A, B ≥ 0 follow by non-negative least squares.

    Least squares on relative error, so a check on `Chinchilla.fit` by another estimator and
    another optimiser. The inner problem is linear, which is why it is well conditioned.
    """
    from scipy.optimize import minimize as search
    from scipy.optimize import nnls

    N, D, loss = (np.asarray(v, dtype=float) for v in (N, D, loss))
    n, d = np.exp(np.log(N) - np.log(N).mean()), np.exp(np.log(D) - np.log(D).mean())

    def inner(power: Floats) -> tuple[Floats, float]:
        basis = np.stack([np.ones_like(n), n ** -power[0], d ** -power[1]], axis=1)
        return nnls(basis / loss[:, None], np.ones_like(loss))

    powers = np.linspace(0.05, 1.2, 12)
    start = min(grid(powers, powers), key=lambda power: inner(power)[1])
    options = {"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
    power = search(lambda p: inner(p)[1], start, method="Nelder-Mead", options=options).x
    (E, A, B), _ = inner(power)
    scale = [
        math.exp(float(np.log(v).mean()) * float(p)) for v, p in zip((N, D), power, strict=True)
    ]
    return Chinchilla(float(E), float(A * scale[0]), float(B * scale[1]), *map(float, power))
