"""What a grid of runs will be able to say, before it is paid for.

The delta method gives the width of every answer from the design alone: with J the slopes of log L
in the law's parameters, cov θ = v·σ²·(JᵀJ)⁻¹ JᵀRJ (JᵀJ)⁻¹, where v = E ψ² / (σ² P(|r| ≤ δ)²) is the
price of Huber's ψ at noise σ (Huber 1964, "Robust estimation of a location parameter", §4) and R
the correlation of ψ between runs, which is not 0 between cooldown branches of one trunk.
Simulation draws noisy losses on the same grid and fits them, which is slower and sees the
curvature. A design that cannot answer the question is refused with the reason. Not included: the
cost of tuning and of runs that fail.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from models.errors import UserError
from sim.identify import unidentifiable
from sim.law import FLOPS_PER_ND
from sim.laws import Chinchilla
from sim.noise import SHARED
from sim.published import PUBLISHED
from sim.resample import DELTA, Floats, minimise

Z90 = 1.6448536269514722  # half of a central 90 % normal interval, in standard deviations
COOLDOWN = 0.2  # share of a branch that is its own cooldown (Hägele et al. 2024, arXiv 2405.18392)
LAB = Chinchilla(E=1.0, A=30.0, B=600.0, alpha=0.35, beta=0.42)  # bytes, 1e4 to 1e6 parameters


@dataclass(frozen=True)
class Design:
    """Every size at every number of tokens per parameter, `seeds` times, per family."""

    sizes: tuple[float, ...]
    tokens_per_param: tuple[float, ...]
    seeds: int

    def points(self) -> tuple[Floats, Floats]:
        """N and D of each run, seeds repeated."""
        n, r, _ = np.meshgrid(self.sizes, self.tokens_per_param, np.arange(self.seeds))
        return n.ravel().astype(float), (n * r).ravel().astype(float)

    def trunks(self) -> NDArray[np.intp]:
        """The trunk of each run: one for each size and seed."""
        size, _, seed = np.meshgrid(
            np.arange(len(self.sizes)), self.tokens_per_param, np.arange(self.seeds)
        )
        return (size * self.seeds + seed).ravel().astype(np.intp)

    @property
    def largest(self) -> float:
        """FLOPs of the largest run."""
        return FLOPS_PER_ND * max(self.sizes) ** 2 * max(self.tokens_per_param)

    def flops(self, branches: bool = True) -> float:
        """Training FLOPs of one family; with branches, one trunk per size and its cooldowns."""
        ratios = np.sort(self.tokens_per_param)
        tokens = ratios[-1] + COOLDOWN * ratios[:-1].sum() if branches else ratios.sum()
        return float(FLOPS_PER_ND * self.seeds * tokens * np.sum(np.square(self.sizes)))


@dataclass(frozen=True)
class Widths:
    """Half-widths of 90 % intervals at one budget: of a, and of N*, L* and CEG as log ratios."""

    budget: float
    a: float
    n_star: float
    loss: float
    gain: float

    def words(self) -> str:
        n, loss, gain = (math.expm1(v) for v in (self.n_star, self.loss, self.gain))
        return f"a ± {self.a:.3f}, N* ± {n:.0%}, L* ± {loss:.2%}, CEG ± {gain:.1%}"


@dataclass(frozen=True)
class Plan:
    """A proposed design, what it will resolve, and whether that answers the question."""

    design: Design | None
    status: Literal["answers", "refused"]
    reason: str
    delta: tuple[Widths, ...] = ()  # delta method: at the largest run and at the target
    simulated: tuple[Widths, ...] = ()
    flops: float = 0.0  # of all families
    runs: int = 0

    def json(self) -> dict[str, Any]:
        return asdict(self)


def _theta(law: Chinchilla, N: Floats, D: Floats) -> Floats:
    """The law in the centred coordinates of `Chinchilla.form`."""
    a = math.log(law.A) - law.alpha * float(np.log(N).mean())
    b = math.log(law.B) - law.beta * float(np.log(D).mean())
    return np.array([a, b, math.log(law.E), law.alpha, law.beta])


def _answers(theta: Floats, x: Sequence[Floats], budget: float) -> Floats:
    """(b, 4): a, log N*, log L* and the slope of log L* in log C."""
    law = Chinchilla.unpack(np.atleast_2d(theta), x)
    assert isinstance(law, Chinchilla)
    loss = [np.log(law(*law.optimal(budget * f))) for f in (1.0, 1.01)]
    slope = (loss[1] - loss[0]) / math.log(1.01)
    return np.stack([law.a, np.log(law.optimal(budget)[0]), loss[0], slope], axis=1)


def _efficiency(noise: float, delta: float) -> float:
    """Variance of the Huber estimate over that of least squares, for normal noise."""
    k = delta / noise
    inside = math.erf(k / math.sqrt(2.0))
    density = math.exp(-0.5 * k * k) / math.sqrt(2.0 * math.pi)
    square = inside - 2.0 * k * density + k * k * (1.0 - inside)
    return square / inside**2


def _correlation(shared: float, k: float) -> float:
    """Of ψ(x) and ψ(y), clipped at ±k, for standard normal x and y of correlation `shared`."""
    x = np.linspace(-8.0, 8.0, 4001)
    weight = np.exp(-0.5 * x * x)
    sd = math.sqrt(max(1.0 - shared**2, 1e-12))
    low, high = ((edge - shared * x) / sd for edge in (-k, k))
    inside = norm.cdf(high) - norm.cdf(low)
    expected = shared * x * inside - sd * (norm.pdf(high) - norm.pdf(low))
    expected += k * (norm.sf(high) - norm.cdf(low))
    clipped = np.clip(x, -k, k)
    return float((weight * clipped * expected).sum() / (weight * clipped**2).sum())


def delta_widths(
    law: Chinchilla,
    design: Design,
    noise: float,
    budgets: Sequence[float],
    delta: float = DELTA,
    shared: float = 0.0,
) -> tuple[Widths, ...]:
    """Interval half-widths from the design alone; `noise` is the seed SD of log L (.01 is 1 %), of
    whose square branches of one trunk have the part `shared` in common.
    """
    x = design.points()
    y = np.log(law(*x))
    theta = _theta(law, *x)
    form, _ = Chinchilla.form(x, y)
    u, du = form.terms(theta[None])
    share = np.exp(u - np.logaddexp.reduce(u, axis=-1)[..., None])
    slopes = np.einsum("bnk,nkp->np", share, du[0])
    common = _correlation(shared, delta / noise)
    same = np.equal.outer(design.trunks(), design.trunks())
    correlation = common * same + (1.0 - common) * np.eye(len(y))
    inverse = np.linalg.inv(slopes.T @ slopes)
    cov = inverse @ (slopes.T @ correlation @ slopes) @ inverse
    cov *= noise**2 * _efficiency(noise, delta)
    out = []
    for c in budgets:
        step = 1e-5
        moves = _answers(theta + step * np.eye(5), x, c) - _answers(theta - step * np.eye(5), x, c)
        sd = np.sqrt(np.einsum("pq,pi,qi->i", cov, moves, moves)) / (2.0 * step)
        slope = abs(float(_answers(theta, x, c)[0, 3]))
        a, n, loss = (Z90 * float(v) for v in sd[:3])
        out.append(Widths(float(c), a, n, loss, math.sqrt(2.0) * loss / slope))
    return tuple(out)


def simulated_widths(
    law: Chinchilla,
    design: Design,
    noise: float,
    budgets: Sequence[float],
    repeats: int = 400,
    seed: int = 0,
    shared: float = 0.0,
) -> tuple[Widths, ...]:
    """The same half-widths from the spread of fits to `repeats` noisy copies of the grid.

    CEG is between two families of the same law with noise of their own.
    """
    x = design.points()
    y = np.log(law(*x))
    theta = _theta(law, *x)
    form, _ = Chinchilla.form(x, y)
    rng, trunks = np.random.default_rng(seed), design.trunks()
    own = rng.standard_normal((2 * repeats, len(y)))
    common = rng.standard_normal((2 * repeats, trunks.max() + 1))[:, trunks]
    noisy = y + noise * (math.sqrt(1.0 - shared) * own + math.sqrt(shared) * common)
    found = minimise(form, noisy, np.tile(theta, (2 * repeats, 1))).theta
    out = []
    for c in budgets:
        many = _answers(found, x, c)
        rise = abs(float(_answers(theta, x, c)[0, 3]))
        low, high = np.quantile(many[:, :3], [0.05, 0.95], axis=0)
        gain = (many[:repeats, 2] - many[repeats:, 2]) / rise
        a, n, loss = (float(v) for v in (high - low) / 2.0)
        ceg = float(np.ptp(np.quantile(gain, [0.05, 0.95]))) / 2.0
        out.append(Widths(float(c), a, n, loss, ceg))
    return tuple(out)


def refuse(design: Design, law: Chinchilla = LAB) -> str:
    """Why no noise level at all would let this design fix the surface; empty when one would."""
    x = design.points()
    return unidentifiable(Chinchilla, list(x), np.log(law(*x)))


def check(
    design: Design,
    *,
    noise: float,
    gain: float,
    target: float | None = None,
    families: int = 2,
    law: Chinchilla = LAB,
    branches: bool = True,
    repeats: int = 400,
) -> Plan:
    """Can this design tell a compute-equivalent gain of `gain` from 1, at the target budget?"""
    if not 0.0 < noise < 1.0:
        raise UserError(f"noise is the seed spread of log loss, .01 for 1 %, and is {noise}")
    if gain <= 1.0:
        raise UserError(f"gain must be above 1, the ratio to be resolved, and is {gain}")
    runs = families * len(design.points()[0])
    cost = families * design.flops(branches)
    if reason := refuse(design, law):
        return Plan(design, "refused", reason, flops=cost, runs=runs)
    at = [design.largest] + ([target] if target else [])
    if at[-1] > 10.0 * design.largest:
        beyond = at[-1] / design.largest
        reason = f"the target is {beyond:.0f} × the largest run: beyond 10 × is speculation"
        return Plan(design, "refused", reason, flops=cost, runs=runs)
    shared = SHARED if branches else 0.0
    by_delta = delta_widths(law, design, noise, at, shared=shared)
    by_simulation = (
        simulated_widths(law, design, noise, at, repeats, shared=shared) if repeats else ()
    )
    worst = max((by_delta[-1].gain, *(w.gain for w in by_simulation[-1:])))
    status: Literal["answers", "refused"] = "answers"
    reason = f"CEG ± {math.expm1(worst):.1%} against a question of {gain - 1:.1%}"
    if math.exp(worst) > gain:
        status = "refused"
        reason = (
            f"a gain of {gain:g} × is inside the interval: CEG is known to ± "
            f"{math.expm1(worst):.1%}; spend more, lower the noise, or ask for a larger gain"
        )
    return Plan(design, status, reason, by_delta, by_simulation, cost, runs)


def propose(
    budget: float,
    *,
    families: int,
    noise: float,
    gain: float = 1.2,
    target: float | None = None,
    law: Chinchilla = LAB,
    smallest: float = 1e4,
    span: float = 30.0,
    ratios: tuple[float, float] = (10.0, 320.0),
    branches: bool = True,
    repeats: int = 400,
) -> Plan:
    """The grid within `budget` FLOPs, all families together, that knows CEG best at the target.

    Sizes run over a factor of up to `span` from `smallest`, tokens per parameter over `ratios`;
    the numbers of sizes (4-8), ratios (3-6) and seeds (1-5) are searched by the delta method, the
    largest size is what the budget then affords, and the winner is checked by simulation.
    `target` defaults to the largest run of the cheapest candidate grid, so that all are judged at
    one budget.
    """
    candidates = []
    for k, m, seeds in product(range(4, 9), range(3, 7), range(1, 6)):
        ratio = tuple(float(r) for r in np.geomspace(*ratios, m))
        unit = Design((1.0,), ratio, seeds).flops(branches)
        top = _affordable(budget / families / unit, smallest, span, k)
        if top is not None:
            sizes = tuple(float(v) for v in np.geomspace(smallest, top, k))
            candidates.append(Design(sizes, ratio, seeds))
    if not candidates:
        raise UserError(
            f"{budget:.3g} FLOPs for {families} families do not pay for 4 sizes from "
            f"{smallest:.3g} parameters over a factor of 4; raise the budget or lower smallest"
        )
    at = target or min(d.largest for d in candidates)
    reach = [d for d in candidates if d.largest * 10.0 >= at] or candidates
    shared = SHARED if branches else 0.0
    best = min(reach, key=lambda d: delta_widths(law, d, noise, [at], shared=shared)[0].gain)
    return check(
        best, noise=noise, gain=gain, target=at, families=families, law=law, branches=branches,
        repeats=repeats,
    )  # fmt: skip


def _affordable(squares: float, smallest: float, span: float, k: int) -> float | None:
    """The largest top size with Σ N² ≤ squares over k geometric sizes; None below a factor of 4."""

    def total(factor: float) -> float:
        return float(np.sum(np.geomspace(smallest, smallest * factor, k) ** 2))

    if total(4.0) > squares:
        return None
    low, high = 4.0, span
    if total(high) <= squares:
        return smallest * span
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if total(middle) <= squares else (low, middle)
    return smallest * low


def surface(name: str) -> Chinchilla:
    """A published surface to plan with, or `lab`, this project's byte-level scale."""
    laws = {k: p.law for k, p in PUBLISHED.items() if type(p.law) is Chinchilla} | {"lab": LAB}
    if name not in laws:
        raise UserError(f"law must be one of {', '.join(laws)}, and is {name!r}")
    law = laws[name]
    assert isinstance(law, Chinchilla)
    return law
