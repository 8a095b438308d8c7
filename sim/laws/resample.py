"""Many robust fits at once: a batched Newton method for sums of powers, and the bootstrap over it.

Every law of `sim.laws.forms` is a log-sum-exp of terms, log L = log Σ_k exp u_k(θ), so one routine
fits them all. It minimises, for a whole batch of problems (bootstrap draws × starts) in one pass,

    Σ_i w_i · huber_δ(log L̂_i(θ) − log L_i),    huber_δ(r) = r²/2 if |r| ≤ δ else δ(|r| − δ/2),

which is the objective of Hoffmann et al. 2022 (arXiv 2203.15556, appendix D.2), summed over runs
and never averaged: averaging made the original L-BFGS stop early (Besiroglu et al. 2024, arXiv
2404.10102). Each step solves (H + λM)s = −g with H the exact Hessian and M the matrix of
iteratively reweighted least squares: λ → 0 is Newton's method, λ ≥ 1 is a majoriser's safe step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Terms = Callable[[Floats], tuple[Floats, Floats]]

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.2
TOLERANCE = 1e-9  # predicted decrease of the objective, relative to it, at which a fit is converged
STEPS = 2000  # of Newton; along the ridge of a weak asymptote a draw takes hundreds
LOG_ZERO = -690.0  # log of an asymptote that is held at zero
FLOOR = 1e-24  # per point: a noise-free fit has no scale of its own


@dataclass(frozen=True)
class Form:
    """A law with its data put in: θ (b, p) ↦ terms u (b, n, k), slopes ∂u/∂θ (b or 1, n, k, p)."""

    terms: Terms
    lower: Floats  # (p,) box in θ; reaching it is reported, never hidden
    upper: Floats
    fading: int | None = None  # which θ is the log of an asymptote, whose best value may be zero
    log: bool = True  # residuals in log L; False: in L itself, as plain least squares has them

    def predict(self, theta: Floats) -> Floats:
        """log L̂, shape (b, n)."""
        u, _ = self.terms(np.atleast_2d(theta))
        return np.logaddexp.reduce(u, axis=-1)


@dataclass(frozen=True)
class Solution:
    """The minima of a batch of problems: θ (b, p), summed Huber loss (b,), who converged (b,)."""

    theta: Floats
    objective: Floats
    converged: NDArray[np.bool_]


def linear_terms(design: Floats) -> Terms:
    """Terms that are linear in θ, u = design · θ with design (n, k, p): sums of pure powers."""

    def terms(theta: Floats) -> tuple[Floats, Floats]:
        return np.einsum("nkp,bp->bnk", design, theta), design[None]

    return terms


def huber(r: Floats, delta: float = DELTA) -> Floats:
    size = np.abs(r)
    return np.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def _derivatives(
    form: Form, theta: Floats, y: Floats, w: Floats, delta: float
) -> tuple[Floats, Floats, Floats, Floats]:
    """Objective (b,), gradient (b, p), Hessian and reweighted matrix (b, p, p)."""
    u, du = form.terms(theta)
    f = np.logaddexp.reduce(u, axis=-1)
    share = np.exp(u - f[..., None])  # (b, n, k), sums to one over k
    if len(du) == 1:
        slope = np.einsum("bnk,nkp->bnp", share, du[0])
    else:
        slope = np.einsum("bnk,bnkp->bnp", share, du)
    scale = np.ones_like(f) if form.log else np.exp(f)  # ∂(residual)/∂f
    r = f - y if form.log else scale - np.exp(y)
    size = np.abs(r)
    objective = np.sum(w * huber(r, delta), axis=-1)
    pull = w * np.clip(r, -delta, delta) * scale
    grad = np.einsum("bn,bnp->bp", pull, slope)
    inside = w * (size <= delta) * scale**2 - (pull if form.log else 0.0)
    across = np.swapaxes(slope, 1, 2)
    pulled = pull[..., None] * share
    if len(du) == 1:
        n, k, p = du.shape[1:]
        flat = (du[0][..., :, None] * du[0][..., None, :]).reshape(n * k, p * p)
        bend = (pulled.reshape(len(theta), n * k) @ flat).reshape(-1, p, p)
    else:
        bend = np.einsum("bnk,bnkp,bnkq->bpq", pulled, du, du, optimize=True)
    hessian = (across * inside[:, None, :]) @ slope + bend
    majorant = (across * (w * scale**2 * delta / np.maximum(size, delta))[:, None, :]) @ slope
    return objective, grad, hessian, majorant


def minimise(
    form: Form,
    y: Floats,
    starts: Floats,
    *,
    weights: Floats | None = None,
    delta: float = DELTA,
    max_steps: int = STEPS,
    fixed: int | None = None,
) -> Solution:
    """Minimise the summed Huber loss from every start.

    `y` is log L, (n,) or one row per start; `weights` likewise (multiplicities of a bootstrap
    draw); `starts` is (b, p), whose parameter number `fixed` stays where it starts. A problem that
    has not converged within `max_steps` says so.

    An asymptote of zero is infinitely far in its log. A problem that did not converge, or came to
    the lower edge on the way there, is solved again without one, and ends there if that is lower.
    """
    theta = np.clip(np.array(starts, dtype=float), form.lower, form.upper)
    b, p = theta.shape
    y = np.broadcast_to(np.asarray(y, dtype=float), (b, np.shape(y)[-1]))
    w = np.ones_like(y) if weights is None else np.broadcast_to(weights, y.shape)
    objective = np.full(b, np.inf)
    converged = np.zeros(b, dtype=bool)
    damping = np.ones(b)
    live = np.arange(b)
    state = _derivatives(form, theta, y, w, delta)
    objective[:] = state[0]
    grad, hessian, majorant = state[1:]
    eye = np.eye(p)
    for _ in range(max_steps):
        t, lam = theta[live], damping[live]
        held = ((t <= form.lower) & (grad > 0)) | ((t >= form.upper) & (grad < 0))
        if fixed is not None:
            held[:, fixed] = True
        free = ~held[:, :, None] & ~held[:, None, :]
        scale = np.einsum("bpp->bp", majorant)
        ridge = 1e-12 * scale + 1e-300
        matrix = np.where(free, hessian + lam[:, None, None] * majorant, 0.0)
        matrix += eye * np.where(held, 1.0, ridge)[:, :, None]
        g = np.where(held, 0.0, grad)
        step = _solve(matrix, -g)
        trial = np.clip(t + step, form.lower, form.upper)
        moved = trial - t
        gain = -np.einsum("bp,bp->b", g, moved) - 0.5 * np.einsum(
            "bp,bpq,bq->b", moved, hessian + lam[:, None, None] * majorant, moved
        )
        new = _derivatives(form, trial, y[live], w[live], delta)
        small = TOLERANCE * objective[live] + FLOOR * y.shape[1]
        better = new[0] < objective[live]
        # a short predicted step ends the search only where damping does not make it short
        done = (np.abs(gain) <= small) & (lam <= 1.0)
        stuck = ~better & (lam > 1e12)
        accept = live[better]
        theta[accept] = trial[better]
        objective[accept] = new[0][better]
        grad = np.where(better[:, None], new[1], grad)
        hessian = np.where(better[:, None, None], new[2], hessian)
        majorant = np.where(better[:, None, None], new[3], majorant)
        damping[live] = np.where(better, np.maximum(lam / 5.0, 1e-9), lam * 4.0)
        converged[live[done]] = True
        keep = ~(done | stuck)
        live, grad, hessian, majorant = live[keep], grad[keep], hessian[keep], majorant[keep]
        if not len(live):
            break
    if form.fading is not None:
        far = np.flatnonzero(~converged | (theta[:, form.fading] <= form.lower[form.fading]))
        rest = minimise(
            without(form), y[far], theta[far], weights=w[far], delta=delta, max_steps=max_steps
        )
        lower = rest.objective <= objective[far]
        far = far[lower]
        theta[far], objective[far] = rest.theta[lower], rest.objective[lower]
        converged[far] = rest.converged[lower]
    return Solution(theta, objective, converged)


def without(form: Form) -> Form:
    """The form with its asymptote, if it has one, held at zero."""
    if form.fading is None:
        return form
    lower, upper = form.lower.copy(), form.upper.copy()
    lower[form.fading] = upper[form.fading] = LOG_ZERO
    return replace(form, lower=lower, upper=upper, fading=None)


def at_floors(form: Form, y: Floats, theta: Floats, floors: Floats) -> Floats:
    """θ (b, p) of the least-squares fits that start at θ and have each of the asymptotes (b,)."""
    assert form.fading is not None
    starts = np.tile(theta, (len(floors), 1))
    starts[:, form.fading] = np.log(np.maximum(floors, np.exp(form.lower[form.fading])))
    held = replace(form, fading=None)
    return minimise(held, y, starts, delta=1e3, fixed=form.fading).theta


def _solve(matrix: Floats, rhs: Floats) -> Floats:
    """Batched solve after scaling to a unit diagonal."""
    d = 1.0 / np.sqrt(np.maximum(np.abs(np.einsum("bpp->bp", matrix)), 1e-300))
    scaled = matrix * d[:, :, None] * d[:, None, :]
    scaled += 1e-14 * np.eye(matrix.shape[-1])
    return d * np.linalg.solve(scaled, (d * rhs)[..., None])[..., 0]


def cells_of(table: dict[str, NDArray[Any]], keys: Sequence[str]) -> NDArray[np.intp]:
    """Number the rows' cells 0, 1, …: rows that agree in every key that is present are one cell."""
    present = [np.unique(table[key], return_inverse=True)[1] for key in keys if key in table]
    return np.unique(np.stack(present, axis=1), axis=0, return_inverse=True)[1].reshape(-1)


FEW = 12  # units; below it the bootstrap's intervals hold the truth too rarely (LOG.md)
ONE_TRUNK = 0.3  # share of noise in common, from which runs of one size and seed are branches


@dataclass(frozen=True)
class Units:
    """Independent units: each row's unit, each unit's group, and the groups that a draw must hold.

    Where there are `few`, noise is drawn and not they (`sim.laws.noise`); rows of one `trunk` share
    it.
    """

    of: NDArray[np.intp]
    group: NDArray[np.intp]
    need: int
    name: str
    few: bool
    trunk: NDArray[np.intp]
    warning: str = ""  # what the table leaves open about shared noise


def units(table: dict[str, NDArray[Any]], keys: Sequence[str], p: int, y: Floats) -> Units:
    """The independent units of a table for a law of p parameters; y is log L.

    Trunks where a column `run` says which runs share one, or where `_branches` finds them; else
    cells of equal `keys`. Fewer than `FEW`, or than 2(p + 1), trunks or cells are too few to draw
    from: then a trunk's seeds, or every run, are units of their own. Units are numbered by their
    keys, so that two arms with the same grid get the same draws from the same seed.
    """
    seeds, limit, warning = (["seed"] if "seed" in table else []), max(FEW, 2 * (p + 1)), ""
    if "run" in table:
        whole = cells_of(table, ["run"])
        if len(whole) > 1 and whole.max() == 0:
            warning = (
                "column `run` has one name for all runs, as of one trunk; give each trunk its own, "
                "or leave the column out"
            )
    else:
        whole, warning = _branches(table, keys, seeds, y)
    trunk = cells_of({"run": whole} | table, ["run", *seeds])
    if trunk.max() + 1 < len(trunk):
        few = whole.max() + 1 < limit
        names = trunk if few else whole
        label = f"trunks of one seed (fewer than {limit} trunks)" if few and seeds else "trunks"
        _, first, unit = np.unique(names, return_index=True, return_inverse=True)
        heads = {key: table[key][first] for key in (keys[0], *seeds)}
        order = _numbered(heads, [keys[0], *seeds])
        group = np.empty(len(first), np.intp)
        group[order] = np.unique(heads[keys[0]], return_inverse=True)[1]
        return Units(order[unit], group, 3, label, len(first) < limit, trunk, warning)
    cells = cells_of(table, keys)
    if cells.max() + 1 < limit:
        runs, count = _numbered(table, [*keys, *seeds]), len(cells)
        label = f"runs (fewer than {limit} cells)"
        return Units(runs, np.arange(count), p, label, count < limit, trunk)
    return Units(cells, np.arange(cells.max() + 1), p, "cells", False, trunk)


def _branches(
    table: dict[str, NDArray[Any]], keys: Sequence[str], seeds: Sequence[str], y: Floats
) -> tuple[NDArray[np.intp], str]:
    """Each row's trunk where no column names it, and what to tell the user.

    Runs of one size and seed at several token counts may be cooldown branches of one trunk. Where
    cells have several seeds the deviations from their means show it; where they have one, it is
    taken to be so.
    """
    alone = np.arange(len(y))
    if not {"N", "D"} <= set(keys):
        return alone, ""
    size, cell = cells_of(table, ["N", *seeds]), cells_of(table, ["N", "D"])
    pairs = cells_of({"size": size, "D": table["D"]}, ["size", "D"])
    if pairs.max() == size.max():
        return alone, ""
    remedy = "a column `run` says which: one name for each trunk, or one for each run"
    count = np.bincount(cell)
    if not seeds or (count < 2).all():
        return size, (
            f"runs of one N and seed may be cooldown branches of one trunk, which share noise, and "
            f"intervals take them to be; {remedy}"
        )
    rest = (y - (np.bincount(cell, y) / count)[cell]) * (count[cell] > 1)
    n, total = np.bincount(size, count[cell] > 1), np.bincount(size, rest)
    square = np.bincount(size, rest**2)
    pooled = float((np.maximum(n - 1, 0) * square).sum())
    share = float((total**2 - square).sum()) / pooled if pooled else 0.0
    if share < ONE_TRUNK:
        return alone, ""
    return size, (
        f"runs of one N and seed share {share:.0%} of their noise, as cooldown branches of one "
        f"trunk do, and intervals take them for such; {remedy}"
    )


def _numbered(table: dict[str, NDArray[Any]], keys: Sequence[str]) -> NDArray[np.intp]:
    """Every row its own number, in the order of the keys: equal grids are numbered alike."""
    codes = [np.unique(table[key], return_inverse=True)[1] for key in keys]
    return np.argsort(np.lexsort(codes[::-1]))


def cell_weights(
    cells: NDArray[np.intp],
    draws: int,
    rng: np.random.Generator,
    need: int = 1,
    group: NDArray[np.intp] | None = None,
) -> Floats:
    """Multiplicities (draws, n) of a hierarchical bootstrap: cells with replacement, seeds within.

    Whole cells are drawn with replacement and come with all their seeds: for nested data the
    outermost level alone carries the variance, and drawing seeds again inside a drawn cell counts
    their noise twice (Davison & Hinkley 1997, "Bootstrap Methods and their Application", §3.8).
    Draws with fewer than `need` different cells, or groups of cells where `group` has each cell's,
    cannot determine a law and are drawn again.
    """
    count = int(cells.max()) + 1
    member = np.eye(count)[np.arange(count) if group is None else group].T
    share = np.full(count, 1.0 / count)
    chosen = rng.multinomial(count, share, size=draws)
    need = min(need, int(member.any(axis=1).sum()))
    while (poor := np.count_nonzero(chosen @ member.T, axis=1) < need).any():
        chosen[poor] = rng.multinomial(count, share, size=int(poor.sum()))
    return chosen[:, cells].astype(float)


def ranks(values: Floats, within: float = 0.01) -> NDArray[np.intp]:
    """Dense ranks of positive values, those whose logs lie `within` a rank's least being equal."""
    logs = np.log(values)
    order = np.sort(logs)
    heads = [0]
    while (after := int(np.searchsorted(order, order[heads[-1]] + within, side="right"))) < len(
        order
    ):
        heads.append(after)
    return np.searchsorted(order[heads], logs, side="right") - 1


def percentile(draws: Floats, level: float) -> tuple[float, float]:
    """The central `level` interval of draws; infinite ones stay in their tail, nan is in both."""
    tail = (1.0 - level) / 2.0
    low = np.quantile(np.where(np.isnan(draws), -np.inf, draws), tail, method="inverted_cdf")
    high = np.quantile(np.where(np.isnan(draws), np.inf, draws), 1.0 - tail, method="inverted_cdf")
    return float(low), float(high)
