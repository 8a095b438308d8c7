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
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from isoflop.models.errors import UserError, quoted
from isoflop.sim.laws.diagnostics import unidentifiable
from isoflop.sim.laws.forms import Chinchilla
from isoflop.sim.laws.law import FLOPS_PER_ND
from isoflop.sim.laws.noise import SHARED
from isoflop.sim.laws.published import PUBLISHED
from isoflop.sim.laws.resample import DELTA, Floats, minimise
from isoflop.sim.records.metrics import Z90
from isoflop.sim.records.tables import LEAST, MOST

COOLDOWN = 0.2  # share of a branch that is its own cooldown (Hägele et al. 2024, arXiv 2405.18392)
SEARCHED = range(4, 9), range(3, 7), range(1, 6)  # numbers of sizes, of ratios D/N, of seeds
NARROW, SPAN = 4.0, 30.0  # least and, unless told, greatest ratio of the sizes
SPENT = 0.9  # of the budget, from which on it counts as used
RANGES = {  # of what is not just any number above zero: least, greatest, in words
    "noise": (1e-8, 0.5, "the seed spread of log loss, .01 for 1 %"),
    "gain": (1.0 + 1e-6, 1e6, "above 1, the ratio to be resolved"),
    "families": (1, 1000, "how many architectures share the budget"),
    "smallest": (1, 1e15, "a number of parameters"),
    "largest": (1, 1e15, "a number of parameters"),
}
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

    @property
    def smallest(self) -> float:
        """FLOPs of the smallest run."""
        return FLOPS_PER_ND * min(self.sizes) ** 2 * min(self.tokens_per_param)

    def window(self, gain: float = 1.0) -> tuple[float, float]:
        """The budgets at which `sim.compare.gains` reads the gain of two arms on this grid, if one
        needs up to `gain` times the other's compute: losses that both arms reach, at its own cost.
        """
        return self.smallest * gain, self.largest / gain

    @property
    def target(self) -> float:
        """The highest of the three budgets that `compare` reads when none are named."""
        return float(np.geomspace(*self.window(), 5)[3])

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

    design: Design
    status: Literal["answers", "refused"]
    reason: str
    target: float  # FLOPs of one run, where the widths are promised and `compare` will read
    window: tuple[float, float]  # where `compare` will read a gain as large as was asked for
    flops: float  # of all families
    runs: int
    delta: Widths | None = None  # at the target, by the delta method; None where it is refused
    simulated: Widths | None = None  # there, by simulation
    unused: str = ""  # how much of the budget this leaves, and why

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
    """Why this design cannot determine the surface at any noise; empty when it can."""
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
    budget: float | None = None,
) -> Plan:
    """Can this design tell a compute-equivalent gain of `gain` from 1, at the target?

    `target` defaults to the design's own; with the `budget` in FLOPs the remedies know what is
    left of it.
    """
    _validate(noise=noise, gain=gain, target=target, families=families, budget=budget)
    runs, flops = families * len(design.points()[0]), families * design.flops(branches)
    at = design.target if target is None else target
    low, high = design.window(gain)
    plan = Plan(design, "refused", refuse(design, law), at, (low, high), flops, runs)
    if plan.reason:
        return plan
    if not low <= at <= high:
        reach = f"it is {low:.3g} to {high:.3g} FLOPs; choose a target inside or other sizes"
        if low > high:
            reach = f"this grid has none for a gain of {gain:g}; widen its sizes or data"
        outside = f"the target, {at:.3g} FLOPs, is outside the window that compare will read"
        return replace(plan, reason=f"{outside}: {reach}")
    shared = SHARED if branches else 0.0
    (delta,) = delta_widths(law, design, noise, [at], shared=shared)
    simulated = (
        simulated_widths(law, design, noise, [at], repeats, shared=shared)[0] if repeats else None
    )
    worst = max(delta.gain, simulated.gain if simulated else 0.0)
    plan = replace(plan, delta=delta, simulated=simulated)
    if worst <= math.log(gain):
        reason = f"CEG ± {math.expm1(worst):.1%} at the target, and the question is {gain - 1:.1%}"
        return replace(plan, status="answers", reason=reason)
    # widths go with the noise, and with the number of runs as 1/√
    remedies = [
        f"lower the noise to {noise * math.log(gain) / worst:.2g}",
        f"ask for a gain of {math.exp(worst):.3g}",
    ]
    if budget is None or flops > SPENT * budget:
        more = (worst / math.log(gain)) ** 2 * flops
        remedies.insert(0, f"spend about {more:.2g} FLOPs on more seeds")
    reason = (
        f"a gain of {gain:g} × is inside the interval: CEG is known to ± {math.expm1(worst):.1%}; "
        f"{', or '.join(remedies)}"
    )
    return replace(plan, reason=reason)


def propose(
    budget: float,
    *,
    families: int,
    noise: float,
    gain: float = 1.2,
    target: float | None = None,
    law: Chinchilla = LAB,
    smallest: float = 1e4,
    largest: float | None = None,
    ratios: tuple[float, float] = (10.0, 320.0),
    branches: bool = True,
    repeats: int = 400,
) -> Plan:
    """The grid within `budget` FLOPs, all families together, that knows CEG best at the target.

    Sizes run from `smallest` to `largest`, by default as far as the budget affords and no further
    than `SPAN` times, tokens per parameter over `ratios`; the numbers of sizes (4-8), ratios (3-6)
    and seeds (1-5) are searched by the delta method, and the winner is checked by simulation.
    `target` defaults to the least of the candidates' own, so that all are judged at one budget.
    """
    _validate(
        budget=budget, noise=noise, gain=gain, target=target, families=families,
        smallest=smallest, largest=largest,
    )  # fmt: skip
    if largest is not None and largest < NARROW * smallest:
        raise UserError(
            f"largest must be at least {NARROW:g} × smallest, or sizes tell too little, and they "
            f"are {largest:.6g} and {smallest:.6g}; raise largest or lower smallest"
        )
    tried = [
        (k, tuple(float(r) for r in np.geomspace(*ratios, m)), seeds)
        for k, m, seeds in product(*SEARCHED)
    ]
    candidates = []
    for k, ratio, seeds in tried:
        unit = families * Design((1.0,), ratio, seeds).flops(branches)
        top = _affordable(budget / unit, smallest, largest, k)
        if top is not None:
            sizes = tuple(float(v) for v in np.geomspace(smallest, top, k))
            candidates.append(Design(sizes, ratio, seeds))
    if not candidates:
        k, ratio, seeds = tried[0]
        sizes = tuple(np.geomspace(smallest, largest or NARROW * smallest, k))
        least = families * Design(sizes, ratio, seeds).flops(branches)
        raise UserError(
            f"{budget:.3g} FLOPs do not pay for {k} sizes from {smallest:,.6g} to "
            f"{sizes[-1]:,.6g} parameters in {families} families, which take {least:.3g}; raise "
            f"the budget or choose smaller models"
        )
    at = min(d.target for d in candidates) if target is None else target
    reach = [d for d in candidates if d.window(gain)[0] <= at <= d.window(gain)[1]]
    shared = SHARED if branches else 0.0
    best = min(
        reach or [max(candidates, key=lambda d: d.largest)],
        key=lambda d: delta_widths(law, d, noise, [at], shared=shared)[0].gain if reach else 0.0,
    )
    plan = check(
        best, noise=noise, gain=gain, target=at, families=families, law=law, branches=branches,
        repeats=repeats, budget=budget,
    )  # fmt: skip
    return replace(plan, unused=_unused(plan, budget, max(d.sizes[-1] for d in candidates)))


def _unused(plan: Plan, budget: float, largest: float) -> str:
    """How much of the budget a plan leaves unspent and why; empty where that is little."""
    if plan.flops > SPENT * budget or plan.delta is None:
        return ""
    sizes, ratios, seeds = (f"{r[0]} to {r[-1]}" for r in SEARCHED)
    return (
        f"{budget - plan.flops:.3g} of {budget:.3g} FLOPs: of the grids searched ({sizes} sizes up "
        f"to {largest:,.0f} parameters, {ratios} amounts of data, {seeds} seeds) this one is the "
        f"surest at the target; larger models (largest) use more"
    )


def _validate(**values: float | None) -> None:
    """Raise UserError for an argument outside its range."""
    for name, value in values.items():
        if value is None:
            continue
        low, high, words = RANGES.get(name, (LEAST, MOST, "a number above zero"))
        if not low <= value <= high:
            raise UserError(
                f"{name} must be {words}, from {low:g} to {high:g}, and is {quoted(value)}; "
                f"choose another"
            )


def _affordable(squares: float, smallest: float, largest: float | None, k: int) -> float | None:
    """The largest top size with Σ N² ≤ squares over k geometric sizes; None where it is less than
    `NARROW` × the smallest, or than `largest`, which then is the only one wanted.
    """

    def total(factor: float) -> float:
        return float(np.sum(np.geomspace(smallest, smallest * factor, k) ** 2))

    low, high = NARROW, SPAN
    if largest is not None:
        low = high = largest / smallest
    if total(low) > squares:
        return None
    if total(high) <= squares:
        return smallest * high
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
