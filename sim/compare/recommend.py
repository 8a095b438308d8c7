"""From candidates to a recommendation: the choice, what it costs a month, and when it pays.

Everything that was assumed on the way is a note, every price that was used stands with its date.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from datetime import date
from typing import Any

import numpy as np

from isoflop.models.errors import UserError, listed
from isoflop.sim.compare.candidates import Option, size
from isoflop.sim.compare.served import Place, Served, Traffic, assumed, candidates
from isoflop.sim.cost.choose import METRICS, QUALITY, Candidate, Choice, choose
from isoflop.sim.cost.hardware import Price
from isoflop.sim.cost.prices import HOURS, TokenPrice, stale
from isoflop.sim.cost.training import (
    LEAST,
    BreakEven,
    Three,
    Way,
    break_even,
    cascade,
    from_list,
    hosted,
    training,
    tuning_flops,
)

SECONDS = HOURS * 3600  # of a month
LISTED = 8  # shapes of a note
SHOWN = 4  # ways of one's own in a break-even curve


@dataclass(frozen=True)
class Owner:
    """How candidates are paid for: over `months`, training and tuning at a `utilisation`."""

    months: float = 12.0
    utilisation: float = 0.4
    tune_tokens: float = 0.0  # of fine-tuning, for models that are there
    teacher: float = 0.0  # parameters of a model that these tokens are distilled from
    cascade: float | None = None  # share that the cheapest candidate hands on to the chosen one


@dataclass(frozen=True)
class Recommendation:
    """What `isoflop choose` says, prints and draws."""

    choice: Choice
    quality: str  # what the quality is
    traffic: Traffic
    owner: Owner
    volume: float  # tokens a month
    ways: tuple[Way, ...]  # one's own first, the winner's before the others', then vendors'
    monthly: Mapping[str, Mapping[str, float]]  # way → part → dollars a month at `volume`
    pays: Mapping[tuple[str, str], tuple[BreakEven, BreakEven, BreakEven]]  # (own, vendor)
    prices: Mapping[str, Price | TokenPrice]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    left_out: tuple[str, ...]  # what cannot be served where, and why

    def json(self) -> dict[str, Any]:
        """Everything but the draws, as plain JSON; intervals are (5 %, median, 95 %)."""
        choice = self.choice
        return {
            "decision": choice.words(),
            "resolved": choice.resolved,
            "contenders": list(choice.contenders),
            "no candidate": choice.none,
            "limits": dict(choice.limits),
            "aim": choice.aim,
            "quality": self.quality,
            "traffic": asdict(self.traffic),
            "tokens a month": self.volume,
            "candidates": [
                {
                    "name": s.candidate.name, "chosen": s.wins, "frontier": s.frontier,
                    "meets": s.meets, "quality": s.quality, **s.costs,
                    "basis": s.candidate.basis, **s.candidate.facts,
                }
                for s in choice.standings
            ],
            "measurements": [asdict(m) for m in choice.measurements],
            "dollars a month": {name: dict(parts) for name, parts in self.monthly.items()},
            "break-even, tokens a month": [
                {"way": own, "than": other, "low price": asdict(low), "median price": asdict(mid),
                 "high price": asdict(high)}
                for (own, other), (low, mid, high) in self.pays.items()
            ],
            "prices": {name: asdict(price) for name, price in self.prices.items()},
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "left out": list(self.left_out),
        }  # fmt: skip


def recommend(
    options: Sequence[Option],
    places: Sequence[Place],
    traffic: Traffic,
    limits: Mapping[str, float],
    *,
    quality: str = "quality",
    aim: str = "quality",
    vendors: Sequence[TokenPrice] = (),
    owner: Owner = Owner(),
    today: date | None = None,
    seed: int = 0,
) -> Recommendation:
    """Serve what has to be served, choose under `limits`, and put a month's bill to the contenders.

    Options whose rows bring every cost that is limited or aimed at, and a price, are taken as they
    are; all others are served at each place. `vendors` are bought from instead. Raises UserError as
    `choose` and serving do.
    """
    if not traffic.rate > 0 or min(traffic.prompt, traffic.answer) < 1:
        raise UserError(
            f"traffic must have a rate above 0 and prompts and answers of 1 token or more, and has "
            f"{traffic.rate:g} queries a second of {traffic.prompt} + {traffic.answer}"
        )
    if not owner.months > 0:
        raise UserError(f"months={owner.months:g} must be above 0: a horizon to spread costs over")
    needed = {*limits, aim, "per_query"} - {QUALITY}
    given = [o for o in options if needed <= set(o.costs)]
    served: list[Served] = []
    out: list[str] = []
    if rest := [o for o in options if not needed <= set(o.costs)]:
        served, out = candidates(rest, places, traffic, seed)
    own = {o.name: (o.priced(), _as_given(o, traffic)) for o in given}
    own |= {s.candidate.name: (s.candidate, _as_served(s, traffic, owner)) for s in served}
    paid = {o.name: o for o in given} | {s.candidate.name: s.option for s in served}
    found = [candidate for candidate, _ in own.values()]
    shared = set.intersection(*(set(c.costs) for c in found))
    unknown = dict(_unknown(found, shared, served))
    notes = [*_notes(found, served, traffic, quality)]
    notes += [f"{told}: not compared" for told in unknown.values()]
    if lacking := [name for name in METRICS if name in needed - shared]:
        told = unknown[lacking[0]]
        raise UserError(f"{told}: it can be no limit and no aim; leave it out, or give it")
    choice = choose(
        [replace(c, costs={k: v for k, v in c.costs.items() if k in shared}) for c in found],
        limits, aim, seed,
    )  # fmt: skip
    volume = traffic.rate * traffic.busy * traffic.tokens * SECONDS
    mine, monthly = [], {}
    for model in list(choice.models)[:SHOWN]:
        name = choice.best(model).candidate.name
        way, bill = own[name][1], _training(paid[name], owner, places)
        parts = {"serving": float(way.total(volume, 1)[1, 0])}
        if bill:
            parts["training" if paid[name].train_flops else "tuning"] = bill[1] / owner.months
            way = way.costing(bill)
        mine.append(way)
        monthly[way.name] = parts
    if owner.cascade is not None:
        way = _cascade(choice, own, owner.cascade)
        mine.append(way)
        monthly[way.name] = {"serving": float(way.total(volume, 1)[1, 0])}
    theirs = [from_list(v, traffic.prompt, traffic.answer, traffic.cached) for v in vendors]
    monthly |= {way.name: {"price list": float(way.total(volume, 1)[1, 0])} for way in theirs}
    few = [*mine[: len(choice.contenders)], *(mine[-1:] if owner.cascade is not None else ())]
    pays = {(a.name, b.name): break_even(a, b, owner.months) for a in few for b in theirs}
    rented = [s.place for s in served]
    rented += places[:1] if any(_training(o, owner, places) for o in options) else []
    prices: dict[str, Price | TokenPrice] = {p.device.name: p.price for p in rented}
    prices |= {vendor.name: vendor for vendor in vendors}
    return Recommendation(
        choice, quality, traffic, owner, volume, (*mine, *theirs), monthly, pays, prices,
        tuple(notes), tuple(stale(prices.items(), today or date.today())), tuple(out),
    )  # fmt: skip


def limit_words(limits: Mapping[str, float]) -> list[str]:
    """Each limit as people say it."""
    told = []
    for name, limit in limits.items():
        what, unit = METRICS.get(name, (name, ""))
        amount = size(limit) if limit >= 1e3 else f"{limit:g}"
        told.append(f"{what} at {'least' if name == QUALITY else 'most'} {amount} {unit}".rstrip())
    return told


def plain(value: float) -> str:
    """Three digits without an exponent: 0.0000812."""
    if value == 0 or not 1e-9 < abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def pays_words(volumes: tuple[BreakEven, BreakEven, BreakEven], months: float) -> str:
    """From which volume, at the median price, and the range over low and high prices."""
    low, middle, high = volumes
    if math.isinf(middle.first):
        return f"at no volume up to 10¹⁴ tokens a month, over {months:g} months"
    if middle.lasting <= LEAST:
        return f"at every volume, over {months:g} months"
    ends = [f"{size(v)}" if v < math.inf else "never" for v in (low.lasting, high.lasting)]
    last = f"{size(middle.lasting)}" if middle.lasting < math.inf else "never for good"
    return (
        f"from {size(middle.first)} tokens a month (for good: {last}; at low and high prices: "
        f"{ends[0]} and {ends[1]}), over {months:g} months"
    )


def _cascade(choice: Choice, own: Mapping[str, tuple[Candidate, Way]], share: float) -> Way:
    """All through the cheapest candidate that meets the limits, a share on to the chosen one."""
    large = choice.winner
    meets = [s for s in choice.standings if s.meets >= 0.5 and s.candidate.of != large.candidate.of]
    if not meets:
        raise UserError("a cascade needs a second model that meets the limits; leave it out")
    small = min(meets, key=lambda s: s.costs["per_query"][1])
    return cascade(own[small.candidate.name][1], own[large.candidate.name][1], share)


def _as_given(option: Option, traffic: Traffic) -> Way:
    """The user's own price per query, whatever the volume."""
    rate = option.costs["per_query"] / traffic.tokens
    return Way(option.name, lambda v: np.broadcast_to(rate * v, (3, len(v))))


def _as_served(item: Served, traffic: Traffic, owner: Owner) -> Way:
    return hosted(
        f"{item.option.name}, {item.place.name}", item.place.price, item.place.chips,
        item.sustained * traffic.tokens, traffic.busy,
    )  # fmt: skip


def _training(option: Option, owner: Owner, places: Sequence[Place]) -> Three | None:
    """What has to be paid once, on chips of the first place."""
    flops = option.train_flops
    if not flops and owner.tune_tokens:
        flops = tuning_flops(option.params or 0.0, owner.tune_tokens, owner.teacher)
    if not flops or not places:
        return None
    return training(flops, places[0].device, 1, owner.utilisation, places[0].rent).dollars


def _unknown(
    found: Sequence[Candidate], shared: Set[str], served: Sequence[Served]
) -> Iterator[tuple[str, str]]:
    """Costs that are not known of all candidates, and of whom they are not."""
    silent = sorted({s.place.device.name for s in served if s.place.device.watts is None})
    for name, (what, _) in METRICS.items():
        if name in shared:
            continue
        first, *more = [c.name for c in found if name not in c.costs]
        rest = f" and {len(more)} more" if more else ""
        power = name == "joules" and silent
        why = f" (no power of {listed(silent)} is published)" if power else ""
        yield name, f"{what} is not known of {first}{rest}{why}"


def _notes(
    found: Sequence[Candidate], served: Sequence[Served], traffic: Traffic, quality: str
) -> Iterator[str]:
    """What was assumed, each thing once."""
    yield from dict.fromkeys(c.basis for c in found if "ASSUMPTION" in c.basis)
    if any(c.basis.startswith("lab") for c in found):
        yield (
            "qualities are of models of 10⁴ to 10⁶ parameters that were trained here: they decide "
            "between these, and say nothing of models of 10⁹"
        )
    if any(c.basis.startswith("published") and "ASSUMPTION" not in c.basis for c in found):
        yield "a published law is a point: shares hold what is uncertain of serving, not of the law"
    exact = [c.name for c in found if "taken as exact" in c.basis]
    if exact:
        yield (
            f"{len(exact)} of {len(found)} qualities have no standard error and count as exact: "
            f"give a column {quality}_se or questions"
        )
    shapes = {
        s.option.name: assumed(s.option.params, s.option.family)
        for s in served
        if s.option.model is None and s.option.params
    }
    if shapes:
        told = ", ".join(
            f"{name} {len(m.blocks)} × {m.d_model} ({size(m.cost(1).params)})"
            for name, m in list(shapes.items())[:LISTED]
        )
        rest = f" and {len(shapes) - LISTED} more" if len(shapes) > LISTED else ""
        yield f"served in assumed shapes, layers × width, as no config is known: {told}{rest}"
    if any(s.place.weights not in ("bf16", s.option.engine.get("weights"), *s.option.formats)
           for s in served):  # fmt: skip
        yield "a format's loss of quality is not in these qualities: give each format a row"
    if any(s.place.weights in s.option.formats for s in served):
        yield "weights in int4 count as 92.3 % as many parameters (2502.16440)"
    for told in dict.fromkeys(s.serving.fits_class for s in served):
        yield f"serving: {told}"
    if served:
        yield (
            f"the rate is that of the peak, and its mean {traffic.busy:.0%} of that (--busy); so "
            "many replicas as meet the P95 then stand day and night"
        )
