"""How noisy are runs that are too few to be drawn from, and what that noise does to a fit.

A bootstrap of n runs through p parameters fits almost exactly where n − p is small, and says so
little of the noise that 90 % intervals cover 40 to 70 % (LOG.md). Here the noise is estimated with
its degrees of freedom and drawn anew. With r the least-squares residuals, M what the fit leaves of
a vector (I − hat matrix) and R the correlation of the runs' noise,

    σ² = r·r / tr MR,    ν = (tr MR)² / tr MRMR,    y* = ŷ + σ √(ν / χ²_ν) · R^½ ε,

so that refits of y* give Student's interval exactly where the law is linear and R = I (ν = n − p;
Satterthwaite 1946, Biometrics 2:110, for other R). Cooldown branches of one trunk share a part ρ
of their variance: R = (1 − ρ)I + ρZZᵀ, with Z the rows' trunks. Not included: noise that differs
between the runs of one fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtr

from isoflop.sim.laws.resample import Floats, Form, minimise

# Variance of log loss between seeds that branches of one trunk have in common, as a share of all of
# it: .61 in the committed ladders, .62 [.53, .67] in the laptop's and .50 [.31, .64] in the GPU's.
SHARED = 0.61


@dataclass(frozen=True)
class Noise:
    """Variance of one run's residual, and the degrees of freedom of its estimate."""

    variance: float
    dof: float

    def words(self) -> str:
        return f"{math.sqrt(self.variance):.2%} with {self.dof:.1f} degrees of freedom"


def seed_noise(cells: Iterable[Sequence[float] | Floats]) -> float | None:
    """Standard deviation of log loss between seeds, pooled over cells; each is its seeds' losses.

    With r_is = log L_is − mean_s log L_is of cell i and seed s it is √(Σ r_is² / Σ (n_i − 1)), and
    None where no cell has two seeds.
    """
    squares, freedom = 0.0, 0
    for losses in cells:
        mean = math.exp(fmean(map(math.log, losses)))
        for loss in losses:
            squares += math.log(loss / mean) ** 2
        freedom += len(losses) - 1
    return math.sqrt(squares / freedom) if freedom else None


def pooled(found: Iterable[Noise]) -> Noise:
    """One noise of several fits, each weighted by its degrees of freedom."""
    found = list(found)
    dof = sum(one.dof for one in found)
    return Noise(sum(one.variance * one.dof for one in found) / dof, dof)


def together(found: Mapping[str, Noise]) -> dict[str, Noise]:
    """Each arm's noise estimated from all arms, or its own where an F test says that it differs.

    The test is at 5 % for an arm that is noisier than the others and at 1 % for one that is
    quieter: taking a quiet arm for a noisy one only widens its interval.
    """
    out = dict(found)
    for name, own in found.items():
        others = [noise for other, noise in found.items() if other != name]
        rest = pooled(others) if others else own
        below = fdtr(own.dof, rest.dof, own.variance / rest.variance) if rest.variance else 0.5
        if 0.01 < below < 0.95:
            out[name] = pooled([own, rest]) if others else own
    return out


def shared(trunk: NDArray[np.intp]) -> float:
    """ρ: the planner's measured share where rows have trunks in common, else 0."""
    return SHARED if len(np.unique(trunk)) < len(trunk) else 0.0


def residual_noise(form: Form, y: Floats, theta: Floats, trunk: NDArray[np.intp]) -> Noise:
    """From the residuals of a least-squares fit that starts at θ; `trunk` numbers each row's."""
    least = minimise(form, y, theta[None], delta=1e3).theta
    q = _span(form, least)
    r = _value(form, form.predict(least)[0]) - _value(form, y)
    left, rho = float(len(y) - q.shape[1]), shared(trunk)
    trace, square = left, left
    if rho:
        z = np.eye(int(trunk.max()) + 1)[trunk]
        zmz = z.T @ z - (q.T @ z).T @ (q.T @ z)
        own, common = 1.0 - rho, rho * float(np.trace(zmz))
        trace = own * left + common
        square = own**2 * left + 2.0 * own * common + rho**2 * float((zmz**2).sum())
    return Noise(float(r @ r) / trace, trace**2 / square)


def _span(form: Form, theta: Floats) -> Floats:
    """An orthonormal basis (n, q) of the residuals' slopes in the parameters that are free."""
    u, du = form.terms(theta)
    f = np.logaddexp.reduce(u, axis=-1)
    slope = np.einsum("nk,nkp->np", np.exp(u - f[..., None])[0], du[0])
    slope *= 1.0 if form.log else np.exp(f[0])[:, None]
    slope = slope[:, form.upper > form.lower]
    size = np.linalg.norm(slope, axis=0)
    return np.linalg.qr(slope / np.where(size > 0, size, 1.0))[0]


def simulate(
    form: Form, theta: Floats, noise: Noise, trunk: NDArray[np.intp], draws: int,
    rng: np.random.Generator,
) -> Floats:  # fmt: skip
    """log L (draws, n) of the fitted law with noise of a size that the residuals allow."""
    fitted, rho = _value(form, form.predict(theta)[0]), shared(trunk)
    size = np.sqrt(noise.variance * noise.dof / rng.chisquare(noise.dof, draws))
    own = rng.standard_normal((draws, len(fitted)))
    common = rng.standard_normal((draws, int(trunk.max()) + 1))[:, trunk]
    y = fitted + size[:, None] * (math.sqrt(1.0 - rho) * own + math.sqrt(rho) * common)
    return y if form.log else np.log(np.maximum(y, 1e-3 * fitted))


def misfit(r: Floats, trunk: NDArray[np.intp]) -> Floats:
    """rᵀR⁻¹r of residuals (…, n): their squares, where no trunk has several rows."""
    rho = shared(trunk)
    count = np.bincount(trunk)
    total = np.stack([np.bincount(trunk, row) for row in np.atleast_2d(r)])
    taken = rho * total**2 / (1.0 - rho + rho * count)
    return ((np.atleast_2d(r) ** 2).sum(axis=1) - taken.sum(axis=1)) / (1.0 - rho)


def _value(form: Form, log_loss: Floats) -> Floats:
    """What residuals are taken of."""
    return log_loss if form.log else np.exp(log_loss)
