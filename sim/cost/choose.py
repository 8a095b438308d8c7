"""Which candidate to take under limits, how surely, and what to measure before deciding.

A candidate has draws of its quality and of what it costs; one draw of all candidates is one world
that the measurements allow. In each world the winner is the best of those that meet every limit, so
a share of worlds is a probability: of meeting the limits, of being on the Pareto frontier, of being
the one to take. A choice is resolved where the winner has `RESOLVED` of the worlds; else every
candidate that is needed to make up that share is a contender, and the choice is not resolved.

The best of several noisy estimates is too good (winner's curse), so qualities are drawn from

    q ~ N(μ, τ²),  estimates | q ~ N(q, Σ)        Σ: covariance of the draws; μ, log τ: flat prior

(Efron & Morris 1973, doi 10.1080/01621459.1973.10481350): equal candidates move together, well
separated ones stay. What a measurement is worth is by how much knowing it exactly
would raise the probability of choosing rightly (partial perfect information, by bins of the draws),
an upper bound for any real one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError, printable

Floats = NDArray[np.float64]

RESOLVED = 0.95  # of the worlds: a 90 % interval of the lead, two-sided, excludes nothing
BINS = 20  # of worlds by one quantity
NEAR = 12  # candidates whose measurements are valued
WORTH = 0.01  # a measurement that raises the probability by less is not named
QUALITY = "quality"
METRICS = {  # cost → what it is called, its unit
    "p95": ("P95 latency", "s"),
    "per_query": ("price per query", "$"),
    "memory": ("memory of a replica", "B"),
    "joules": ("energy per query", "J"),
}


@dataclass(frozen=True)
class Candidate:
    """One thing that could be taken. Arrays are (n,) draws, those of one index one world."""

    name: str
    quality: Floats  # more is better
    costs: Mapping[str, Floats]  # of METRICS; less is better
    basis: str  # where its quality is from: measured in the lab, a published law, the user's rows
    buy: Mapping[str, str] = field(default_factory=dict)  # quantity → the measurement of it
    facts: Mapping[str, Any] = field(default_factory=dict)  # printed, and drawn, as they are
    model: str = ""  # what several candidates, served differently, have their one quality from

    @property
    def of(self) -> str:
        return self.model or self.name


@dataclass(frozen=True)
class Standing:
    """A candidate among the others."""

    candidate: Candidate
    meets: float  # share of worlds in which it meets every limit
    frontier: float  # … and no other that does is as good and as cheap in everything
    wins: float
    quality: tuple[float, float, float]  # 5 %, median, 95 %
    costs: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Measurement:
    """What to buy next: knowing it exactly would raise the probability of a right choice so far."""

    what: str
    candidate: str
    quantity: str
    right: float  # probability of a right choice after it


NOTHING = Measurement("", "", "", 0.0)


@dataclass(frozen=True, eq=False)
class Choice:
    """Standings by the share of worlds that a candidate wins."""

    standings: tuple[Standing, ...]
    quality: Floats  # (n, k): worlds × candidates, in the order of the standings
    costs: Mapping[str, Floats]  # likewise
    models: Mapping[str, float]  # share of worlds in which any candidate of a model wins, by it
    contenders: tuple[str, ...]  # models, the winner's first; one where the choice is resolved
    none: float  # share of worlds in which no candidate meets the limits
    limits: Mapping[str, float]
    aim: str
    measurements: tuple[Measurement, ...]

    @property
    def draws(self) -> int:
        return len(self.quality)

    @property
    def resolved(self) -> bool:
        return len(self.contenders) == 1

    def best(self, model: str) -> Standing:
        """The candidate of a model that wins most often."""
        return next(s for s in self.standings if s.candidate.of == model)

    @property
    def winner(self) -> Standing:
        return self.best(self.contenders[0])

    @property
    def share(self) -> float:
        """The probability of the winner's model."""
        return self.models[self.contenders[0]]

    def words(self) -> str:
        """The decision in one or two sentences."""
        rest = f"; in {self.none:.0%} of worlds nothing meets the limits" if self.none else ""
        if self.resolved:
            served = (
                f", best as {self.winner.candidate.name}" if self.winner.candidate.model else ""
            )
            return (
                f"{self.contenders[0]} is the choice in {self.share:.0%} of {self.draws} worlds"
                f"{served}{rest}"
            )
        shares = ", ".join(f"{name} {self.models[name]:.0%}" for name in self.contenders)
        return f"not resolved between {shares} of {self.draws} worlds{rest}"


def choose(
    candidates: Sequence[Candidate],
    limits: Mapping[str, float] | None = None,
    aim: str = QUALITY,
    seed: int = 0,
) -> Choice:
    """The candidates' standings under `limits`, each the most of a cost, or the least `quality`.

    The aim is the best quality, or the least of the cost that it names. Raises UserError for fewer
    than two candidates, for names or costs that do not fit, for qualities that are all one exact
    number, and where in most worlds nothing meets the limits: which of them binds, and by how much.
    """
    limits = dict(limits or {})
    names = _checked(candidates, limits, aim)
    rng = np.random.default_rng(seed)
    raw = np.stack([c.quality for c in candidates], axis=1).astype(float)
    costs = {
        name: np.stack([c.costs[name] for c in candidates], axis=1).astype(float)
        for name in candidates[0].costs
    }
    models = list(dict.fromkeys(c.of for c in candidates))
    member = np.array([models.index(c.of) for c in candidates])
    first = [int(np.argmax(member == i)) for i in range(len(models))]
    quality = shrunk(raw[:, first], rng)[:, member]
    meets = np.ones(quality.shape, bool)
    for name, limit in limits.items():
        meets &= quality >= limit if name == QUALITY else costs[name] <= limit
    none = float((~meets.any(axis=1)).mean())
    if none > 0.5:
        raise UserError(binding(names, quality, costs, limits, none))
    wins = winners(quality, costs, meets, aim)
    frontier = on_frontier(quality, costs, meets)
    by_model = wins @ np.eye(len(models))[member]
    order = np.lexsort((-quality.mean(axis=0), -frontier.mean(axis=0), -wins.mean(axis=0)))
    standings = tuple(
        Standing(
            candidates[i],
            float(meets[:, i].mean()),
            float(frontier[:, i].mean()),
            float(wins[:, i].mean()),
            _spread(quality[:, i]),
            {name: _spread(v[:, i]) for name, v in costs.items()},
        )
        for i in order.tolist()
    )
    shares = by_model.mean(axis=0)
    ranked = np.argsort(-shares, kind="stable")
    count = int(np.argmax(np.cumsum(shares[ranked]) >= RESOLVED * (1.0 - none) - 1e-12)) + 1
    contenders = tuple(models[i] for i in ranked[:count])
    quantities = {QUALITY: quality} | {n: v for n, v in costs.items() if n in limits or n == aim}
    near = [i for i in order.tolist() if candidates[i].of in contenders][:NEAR]
    some = _worth([candidates[i] for i in near], near, quantities, by_model) if count > 1 else ()
    return Choice(
        standings, quality[:, order], {name: v[:, order] for name, v in costs.items()},
        {models[i]: float(shares[i]) for i in ranked}, contenders, none, limits, aim, some,
    )  # fmt: skip


def _checked(candidates: Sequence[Candidate], limits: Mapping[str, float], aim: str) -> list[str]:
    names = [printable(c.name) for c in candidates]
    if len(names) < 2:
        raise UserError(f"a choice needs two candidates or more, and has {len(names)}; add some")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise UserError(f"each candidate must have a name of its own, and {twice[0]!r} is two")
    costs = list(candidates[0].costs)
    for c in candidates:
        if set(c.costs) != set(costs) or any(v.shape != c.quality.shape for v in c.costs.values()):
            raise UserError(f"{c.name} must have draws of the costs that all others have")
        if not all(np.isfinite(v).all() for v in (c.quality, *c.costs.values())):
            raise UserError(f"{c.name} must have finite draws of its quality and costs")
    for name, limit in limits.items():
        if name != QUALITY and name not in costs:
            raise UserError(f"a limit must be of {', '.join((QUALITY, *costs))}, and is of {name}")
        if not np.isfinite(limit) or (name != QUALITY and limit <= 0):
            raise UserError(f"the limit of {name} must be a number above 0, and is {limit:g}")
    if aim != QUALITY and aim not in costs:
        raise UserError(f"the aim must be one of {', '.join((QUALITY, *costs))}, and is {aim}")
    level = {float(v) for c in candidates for v in (c.quality.min(), c.quality.max())}
    if len(level) == 1 and aim == QUALITY and len({c.of for c in candidates}) > 1:
        raise UserError(
            f"all {len(names)} candidates have one quality, {level.pop():g}, without an error, so "
            "nothing tells them apart; name another column, or aim at a cost"
        )
    return names


def shrunk(draws: Floats, rng: np.random.Generator) -> Floats:
    """Qualities (n, k) drawn again with what their spread over candidates says of each.

    Draws without any spread, of exact qualities, are returned as they are.
    """
    n, k = draws.shape
    m = draws.mean(axis=0)
    noise = np.atleast_2d(np.cov(draws, rowvar=False))
    scale = max(float(np.ptp(m)), float(np.sqrt(np.trace(noise) / k)))
    if np.allclose(draws, m, rtol=0, atol=1e-12 * max(scale, 1e-300)):
        return draws
    lam, turn = np.linalg.eigh(noise)
    lam, one, x = np.maximum(lam, 1e-18 * scale**2), turn.T @ np.ones(k), turn.T @ m
    tau = scale * np.geomspace(0.01, 10.0, 60)[:, None]
    v = lam + tau**2  # (τ, k): the variance of each turned estimate
    weight = (one**2 / v).sum(axis=1)
    centre = (one * x / v).sum(axis=1) / weight
    fit = -0.5 * (np.log(v).sum(axis=1) + np.log(weight))
    fit -= 0.5 * ((x - centre[:, None] * one) ** 2 / v).sum(axis=1)
    p = np.exp(fit - fit.max())
    at = rng.choice(len(tau), n, p=p / p.sum())
    middle = centre[at] + rng.standard_normal(n) / np.sqrt(weight[at])
    mu = middle[:, None] * one
    keep = (tau**2 / v)[at]
    drawn = mu + keep * (x - mu) + np.sqrt(keep * lam) * rng.standard_normal((n, k))
    return drawn @ turn.T


def winners(
    quality: Floats, costs: Mapping[str, Floats], meets: NDArray[np.bool_], aim: str
) -> Floats:
    """(n, k): 1 for a world's winner, parts of 1 where several are exactly equal, 0 elsewhere.

    Of equally good candidates, as one model served in two ways, the cheaper per query wins.
    """
    won = meets
    for score in (quality if aim == QUALITY else -costs[aim], -costs.get("per_query", 0 * quality)):
        masked = np.where(won, score, -np.inf)
        won = won & (masked == masked.max(axis=1, keepdims=True))
    return won / np.maximum(won.sum(axis=1, keepdims=True), 1)


def on_frontier(
    quality: Floats, costs: Mapping[str, Floats], meets: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(n, k): meets the limits, and none that does is as good in everything and better in one."""
    gains = [quality, *(-v for v in costs.values())]
    out = meets.copy()
    for i in range(quality.shape[1]):
        as_good, better = meets.copy(), np.zeros_like(meets)
        for gain in gains:
            as_good &= gain >= gain[:, i : i + 1]
            better |= gain > gain[:, i : i + 1]
        out[:, i] &= ~(as_good & better).any(axis=1)
    return out


def _spread(values: Floats) -> tuple[float, float, float]:
    low, middle, high = np.percentile(values, [5, 50, 95])
    return float(low), float(middle), float(high)


def binding(
    names: Sequence[str],
    quality: Floats,
    costs: Mapping[str, Floats],
    limits: Mapping[str, float],
    none: float,
) -> str:
    """Which limit binds and by how much, at the medians: the one that alone excludes every
    candidate, or that of the candidate which misses least.
    """
    over = {}  # limit → how far each candidate is beyond it, as a factor or a difference
    for name, limit in limits.items():
        middle = np.median(quality if name == QUALITY else costs[name], axis=0)
        over[name] = limit - middle if name == QUALITY else middle / limit - 1.0
    alone = [name for name, far in over.items() if (far > 0).all()]
    worst = np.max([far / (abs(limits[n]) or 1) if n == QUALITY else far
                    for n, far in over.items()], axis=0)  # fmt: skip
    near = int(np.argmin(over[alone[0]] if alone else worst))
    name = alone[0] if alone else max(over, key=lambda n: float(over[n][near]))
    has = float(np.median((quality if name == QUALITY else costs[name])[:, near]))
    side = "at least" if name == QUALITY else "at most"
    what, unit = METRICS.get(name, (name, ""))
    off = f"{over[name][near]:.3g} short" if name == QUALITY else f"{has / limits[name]:.3g} ×"
    rule = "no candidate meets it" if alone else "no candidate meets all limits at once"
    return (
        f"nothing meets the limits in {none:.0%} of worlds; {what} of {side} "
        f"{limits[name]:.4g} {unit}".rstrip()
        + f" binds: {rule}, and {names[near]} comes nearest with {has:.4g} {unit}".rstrip()
        + f" ({off}); raise the limit or add candidates"
    )


def _worth(
    near: Sequence[Candidate],
    at: Sequence[int],
    quantities: Mapping[str, Floats],
    wins: Floats,
) -> tuple[Measurement, ...]:
    """Measurements of candidates by the probability of a right choice of model after each, the
    largest first. `at` are their columns of the quantities.
    """
    now = float(wins.mean(axis=0).max())

    def right(order: NDArray[np.intp]) -> float:
        """Half of each bin says whom to take there, the other half how often that is right."""
        total = 0.0
        for part in np.array_split(wins[order], BINS):
            for one, two in ((part[::2], part[1::2]), (part[1::2], part[::2])):
                total += float(one[:, two.mean(axis=0).argmax()].sum())
        return total / len(wins)

    found: dict[str, Measurement] = {}
    for c, i in zip(near, at, strict=True):
        for name, values in quantities.items():
            if np.ptp(values[:, i]) == 0:
                continue
            after = right(np.argsort(values[:, i], kind="stable"))
            told = c.buy.get(name, f"measure the {METRICS.get(name, (name,))[0]} of {c.name}")
            if after - now >= WORTH and after > found.get(told, NOTHING).right:
                found[told] = Measurement(told, c.of, name, after)
    return tuple(sorted(found.values(), key=lambda x: -x.right))
