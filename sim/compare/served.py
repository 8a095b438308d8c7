"""Candidates served: every option × format × place, with draws of what answers take and cost.

A place is a number of chips of one kind. Traffic is spread over as many replicas as its rate needs;
each is then a deployment of `sim.cost.serving` at its share of the rate, whose residual (how far
deployments like it have been from the prediction) is drawn once a world.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.models.families.matching import uniform
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.compare.candidates import Option, size
from isoflop.sim.cost.choose import Candidate
from isoflop.sim.cost.hardware import Device, Price
from isoflop.sim.cost.serving import Deployment, Serving, Workload, serve

VOCAB, SMALL_VOCAB = (128_256, 32_000)  # of a shape that is assumed, and below a width of 1024
KV_HEADS = 8
WIDTHS = (256, 512, 1024, 1536, 2048, 3072, 4096, 5120, 6144, 8192, 12_288, 16_384)
DEEPEST = 256  # layers
TRIES = 8  # numbers of replicas
FILLED = 0.8  # of what a replica sustains at the most


@dataclass(frozen=True)
class Traffic:
    """Queries of `prompt` and `answer` tokens, `rate` a second at the peak, `p95` s wanted."""

    prompt: int
    answer: int
    rate: float
    cached: float = 0.0
    p95: float | None = None
    busy: float = 1.0  # the mean of the rate over its peak, which is `rate`

    @property
    def tokens(self) -> int:
        return self.prompt + self.answer


@dataclass(frozen=True)
class Place:
    device: Device
    chips: int
    weights: str
    rent: Price | None = None  # of a chip-hour; None: the device's

    @property
    def name(self) -> str:
        return f"{self.weights}, {self.chips} × {self.device.name}"

    @property
    def price(self) -> Price:
        """Of a chip-hour. UserError where neither says it."""
        return self.rent or self.device.price


@dataclass(frozen=True)
class Served:
    """An option at a place."""

    option: Option
    candidate: Candidate
    place: Place
    replicas: int
    serving: Serving

    @property
    def sustained(self) -> float:
        """Queries a second of a replica: its share, or alone what it could."""
        share, most = self.serving.queries.value, self.serving.capacity.value
        if self.replicas > 1:
            return share
        return max(share, most * (1.0 if self.serving.workload.p95 else FILLED))


def candidates(
    options: Sequence[Option], places: Iterable[Place], traffic: Traffic, seed: int = 0
) -> tuple[list[Served], list[str]]:
    """Each option at each place that it fits, and why the others are left out.

    Raises UserError where nothing can be served anywhere.
    """
    found, out = [], []
    places = list(places)
    for i, option in enumerate(options):
        for j, place in enumerate(places):
            if "weights" in option.engine and any(
                (p.device, p.chips) == (place.device, place.chips) for p in places[:j]
            ):
                continue  # it is served in its own format, and once
            try:
                found.append(_served(option, place, traffic, seed + i * len(places) + j))
            except UserError as error:
                out.append(f"{option.name}, {place.name}: {error}")
    if not found:
        raise UserError(f"nothing can be served: {out[0] if out else 'no candidates'}")
    return found, out


def _served(option: Option, place: Place, traffic: Traffic, seed: int) -> Served:
    model = option.model
    if model is None:
        if option.params is None:
            raise UserError("it needs a known model's name, or params, to be served")
        model = assumed(option.params, option.family)
    own = option.engine
    place = replace(place, weights=own.get("weights", place.weights))
    deployment = Deployment(
        model=model, device=place.device, count=place.chips, weights=place.weights,
        activations=own.get("activations"), cache=own.get("cache"), price=place.price,
        name=option.name, extra_params=option.extra_params,
    )  # fmt: skip
    replicas, serving = replicas_of(deployment, traffic)
    drawn = serving.sample(len(option.quality), seed)
    costs = {
        "p95": drawn["p95"],
        "per_query": drawn["per_query"] / traffic.busy,
        "memory": np.full(len(option.quality), float(serving.memory.total)),
    }
    if "joules_per_query" in drawn:
        costs["joules"] = drawn["joules_per_query"]
    where = f"{replicas} × ({place.name})" if replicas > 1 else place.name
    timed = f"time {option.name} on {place.chips} × {place.device.name} in {place.weights}"
    facts = {
        **option.facts, "place": place.name, "replicas": replicas, "class": serving.fits_class,
        "bound": serving.bound, "chips": replicas * place.chips,
    }  # fmt: skip
    quality = option.formats.get(place.weights)
    candidate = Candidate(
        f"{option.name}, {where}",
        option.quality if quality is None else quality,
        costs | {k: np.full(len(option.quality), v) for k, v in option.costs.items()},
        option.basis,
        option.bought | dict.fromkeys(("p95", "per_query", "joules"), timed),
        facts,
        model=option.name if quality is None else f"{option.name} in {place.weights}",
    )
    return Served(option, candidate, place, replicas, serving)


@cache  # treated models that are served alike are one
def replicas_of(deployment: Deployment, traffic: Traffic) -> tuple[int, Serving]:
    """The fewest replicas, in steps of two fifths, that sustain the rate and meet the P95, and one
    of them at its share. Where a user alone waits longer than that, or without a P95, as many as
    keep each at `FILLED` of what memory allows.
    """
    one = Workload(
        traffic.prompt, traffic.answer, concurrency=1, cached=traffic.cached, p95=traffic.p95
    )
    alone = serve(deployment, one)
    if alone.met is not True:
        one = replace(one, p95=None)
        alone = serve(deployment, one)
    sustained = alone.capacity.value * (1.0 if one.p95 else FILLED)
    count, found = max(1, math.ceil(traffic.rate / sustained)), alone
    for _ in range(TRIES):
        try:
            found = serve(deployment, replace(one, concurrency=None, rate=traffic.rate / count))
        except UserError:  # more than it sustains
            found = alone
        if found is not alone and found.met is not False:
            return count, found
        count = math.ceil(1.4 * count)
    if found is alone:
        raise UserError(f"{count} replicas do not sustain {traffic.rate:g} queries a second")
    return count, found


@cache
def assumed(params: float, family: str = "dense") -> ModelConfig:
    """A shape with about so many parameters: of `dense` Llama-3's proportions (grouped-query
    attention with 8 heads of keys, MLP 3.5 × width), of any other family the zoo's.

    Of the widths that split over chips, the one whose depth is nearest to width / 128. Raises
    UserError where none comes within 15 %.
    """

    found = {}  # width → depth and parameters
    for width in WIDTHS:
        two, three = (_shape(width, depth, family).cost(1).params for depth in (2, 3))
        depth = min(max(2, 2 + round((params - two) / (three - two))), DEEPEST)
        found[width] = depth, two + (depth - 2) * (three - two)
    near = [w for w, (_, count) in found.items() if abs(math.log(count / params)) < math.log(1.15)]
    if not near:
        ends = " to ".join(size(found[w][1]) for w in (WIDTHS[0], WIDTHS[-1]))
        raise UserError(
            f"no shape of {family} has about {size(params)} parameters (they have {ends}); name a "
            "known model, or give its config.json"
        )
    width = min(near, key=lambda w: abs(math.log(128 * found[w][0] / w)))
    return _shape(width, found[width][0], family)


def _shape(width: int, depth: int, family: str) -> ModelConfig:
    vocabulary = VOCAB if width >= 1024 else SMALL_VOCAB
    if family != "dense":
        return zoo.FAMILIES[family](width, depth, vocabulary)
    heads = width // (128 if width >= 4096 else 64)
    mixer = Attention(n_heads=heads, n_kv_heads=math.gcd(heads, KV_HEADS))
    return uniform(
        width, depth, vocabulary, Block(mixer=mixer, channel=SwiGLU(d_ff=7 * width // 2))
    )
