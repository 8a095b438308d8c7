"""What a deployment gives its users, and what that costs: each with the interval of its errors.

Times are those of sim/cost/serving/clock.py; how they spread over requests is what the event loop
(sim/cost/serving/queue.py) says of a percentile over the median. Intervals are of 90 %: by what
deployments were off that the calibration had not seen, those of the same class, or whole chips and
families where this one is new. One error of TTFT and one of TPOT go through everything that is
made of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError
from isoflop.sim.cost.hardware import SECONDS_PER_HOUR
from isoflop.sim.cost.prices import checked
from isoflop.sim.cost.serving.calibration import Calibration, calibration
from isoflop.sim.cost.serving.clock import BUDGET, Load, bound, features, seconds, times
from isoflop.sim.cost.serving.deployment import Deployment, Workload
from isoflop.sim.cost.serving.memory import (
    SLOTS,
    Memory,
    left_on_a_chip,
    memory,
    room,
    states_on_a_chip,
)
from isoflop.sim.cost.serving.queue import Engine, Timeline, simulate
from isoflop.sim.cost.serving.work import Replica
from isoflop.sim.cost.training import OVERHEAD

Floats = NDArray[np.float64]

DRAWS = 4000  # behind every interval
REQUESTS = 200  # of the event loop, or four for every user where that is more
MOST_REQUESTS = 1200
MILLION = 1e6
JOULES_PER_KWH = 3.6e6
# joules over the boards' limit × predicted seconds: 91 % of 200 published readings are inside
# (ML.ENERGY leaderboard @ 0cd52da, vLLM on H100 and B200); they draw .47 to .97 of the limit
POWER = (0.4, 0.8, 1.6)
GRID = (24.0, 445.0, 820.0)  # g CO2 per kWh: hydropower and coal, life cycle (IPCC AR5, annex III);
# the world's mean of 2024 (IEA, Electricity 2025)


@dataclass(frozen=True)
class Estimate:
    """A value and its 90 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Serving:
    """Seconds, tokens and queries per second of a replica, dollars, joules and grams of CO2.

    What is per second, per query or per token is at the workload's load. Joules are those of the
    chips, None where the maker states no power; grams are with the data centre's overhead. Dollars
    are None where neither the deployment nor the chip has a price.
    """

    deployment: Deployment
    workload: Workload
    memory: Memory
    ttft: Estimate  # median
    tpot: Estimate  # median, between an answer's tokens
    latency: Mapping[str, Estimate]  # p50, p95 and p99 of a whole answer
    throughput: Estimate  # tokens of answers a second
    queries: Estimate  # a second
    capacity: Estimate  # queries a second with as many users as memory and the P95 target allow
    per_query: Estimate | None  # dollars
    per_million: Estimate | None  # dollars per million tokens of answers
    joules: Estimate | None  # a token of answers
    joules_per_query: Estimate | None
    grams: Estimate | None  # of CO2, a query
    users: float  # requests in the replica at once, on average
    preempted: int  # in the event loop, of `requests`
    requests: int
    fits_class: str  # the deployment's class, and whether measurements are behind its intervals
    bound: str  # what takes most of a step: memory, compute, links or overhead
    draws: Mapping[str, Floats]  # of every quantity above, (DRAWS,)

    @property
    def largest_batch(self) -> int:
        return self.memory.largest_batch

    @property
    def met(self) -> bool | None:
        """Whether the P95 target is met, at the value; None without a target."""
        target = self.workload.p95
        return None if target is None else self.latency["p95"].value <= target

    def sample(self, n: int, seed: int = 0) -> dict[str, Floats]:
        """`n` joint draws of every quantity, (n,) each: index i is one world."""
        chosen = np.random.default_rng(seed).integers(0, DRAWS, n)
        return {name: values[chosen] for name, values in self.draws.items()}


def serve(
    deployment: Deployment,
    workload: Workload,
    calibrated: Calibration | None = None,
    grid: tuple[float, float, float] = GRID,
    seed: int = 0,
) -> Serving:
    """One replica under a workload; `grid` is grams of CO2 per kWh (low, middle, high).

    Raises UserError where the model or one request does not fit, by how much, and where the rate is
    more than the replica sustains.
    """
    found = calibration() if calibrated is None else calibrated
    replica, own = replica_of(deployment, workload), found.engine(deployment.engine)
    most = float(memory(replica, workload, 0.0).largest_batch)

    def timed(users: float) -> tuple[float, float]:
        ttft, tpot = times(replica, load(replica, workload, users), found.shared, own)
        return float(ttft), float(tpot)

    users = float(workload.concurrency or 0)
    if workload.rate is not None:
        users = _users(timed, workload, most)
    ttft, tpot = timed(users)
    running = float(load(replica, workload, users).running(ttft, tpot))
    timeline = replay(replica, found, **requests(workload, users, seed))
    spread = {f"p{q}": _ratio(timeline.latency, q) for q in (50, 95, 99)}
    full = _fullest(timed, workload, spread["p95"], most)
    late, slow = timed(max(full, 1.0))
    words, errors = found.spread(deployment)
    rent = deployment.price or deployment.device.listed
    if rent is not None:
        checked(rent, "rent of a chip")
    watts, more = deployment.device.watts, workload.answer - 1

    def quantities(ttft: Any, tpot: Any, late: Any, slow: Any, hourly: Any, power: Any, grams: Any):
        """Everything, by name."""
        whole = ttft + more * tpot
        queries = users / whole if workload.rate is None else workload.rate + 0 * whole
        made = {
            "ttft": ttft, "tpot": tpot,
            **{name: whole * ratio for name, ratio in spread.items()},
            "throughput": queries * workload.answer, "queries": queries,
            "capacity": full / (late + more * slow),
        }  # fmt: skip
        if rent is not None:
            dollars = deployment.count * hourly / SECONDS_PER_HOUR / queries
            made |= {"per_query": dollars, "per_million": MILLION * dollars / workload.answer}
        if watts is None:
            return made
        joules = deployment.count * watts * power / queries
        return made | {
            "joules": joules / workload.answer, "joules_per_query": joules,
            "grams": joules * grams / JOULES_PER_KWH,
        }  # fmt: skip

    rng = np.random.default_rng(seed)
    wrong = np.exp(rng.multivariate_normal([0, 0], errors.covariance, DRAWS)).T
    middle = math.sqrt(OVERHEAD[0] * OVERHEAD[1])
    values = quantities(
        ttft, tpot, late, slow, rent.median if rent else 0.0, POWER[1], middle * grid[1]
    )
    draws = quantities(
        ttft * wrong[0], tpot * wrong[1], late * wrong[0], slow * wrong[1],
        _triangle(rng, rent.low, rent.median, rent.high) if rent else 0.0, _triangle(rng, *POWER),
        rng.uniform(*OVERHEAD, DRAWS) * _triangle(rng, *grid),
    )  # fmt: skip
    told = {name: _estimate(values[name], draws[name]) for name in values}
    kept = memory(replica, workload, running)
    absent = dict.fromkeys(("per_query", "per_million", "joules", "joules_per_query", "grams"))
    latency = {name: told.pop(name) for name in spread}
    every: dict[str, Any] = absent | told
    return Serving(
        deployment, workload, kept, latency=latency, **every, users=users,
        preempted=timeline.preempted, requests=len(timeline.done), fits_class=words, draws=draws,
        bound=bound(features(replica, replica.step(running, workload.prompt)), found.shared, own),
    )  # fmt: skip


def replica_of(deployment: Deployment, workload: Workload) -> Replica:
    return Replica(deployment, workload.prompt + workload.answer)


def load(replica: Replica, workload: Workload, users: float) -> Load:
    """So many users of a workload."""
    fit = room(replica, workload.prompt + workload.answer / 2)
    return Load(
        float(workload.read),
        float(workload.prompt),
        float(workload.answer),
        users,
        max(1.0, fit),
    )


def requests(workload: Workload, users: float, seed: int) -> dict[str, Any]:
    """Those of a workload, as `queue.simulate` takes them."""
    at_once = math.ceil(users)
    count = min(max(REQUESTS, 4 * at_once), max(MOST_REQUESTS, at_once))
    found: dict[str, Any] = {
        "prompts": np.full(count, workload.read),
        "answers": np.full(count, workload.answer),
        "cached": np.full(count, workload.prompt - workload.read),
    }
    if workload.rate is None:
        return found | {"users": at_once}
    waits = np.random.default_rng(seed).exponential(1 / workload.rate, count)
    return found | {"arrivals": np.cumsum(waits)}


def replay(replica: Replica, found: Calibration, **asked: Any) -> Timeline:
    """Requests, as `queue.simulate` takes them, through the event loop of a replica."""
    own, on = found.engine(replica.on.engine), replica.on

    def clock(batch: float, context: float, tokens: float, done: float, ends: float) -> float:
        step = replica.step(batch, context, tokens, done, ends)
        return float(seconds(features(replica, step), found.shared, own))

    engine = Engine(
        clock, partial(states_on_a_chip, replica), on.data * left_on_a_chip(replica),
        SLOTS * on.data, BUDGET,
    )  # fmt: skip
    return simulate(engine, **asked)


Timed = Callable[[float], tuple[float, float]]  # users → (TTFT, TPOT)


def _users(timed: Timed, workload: Workload, most: float) -> float:
    """Users at once under a rate: those of whom so many a second have their answer (Little)."""
    rate = workload.rate or 0.0

    def pace(users: float) -> float:
        ttft, tpot = timed(users)
        return users / (ttft + (workload.answer - 1) * tpot)

    if rate > pace(most):
        raise UserError(
            f"a rate of {rate:g} requests a second is more than the {pace(most):.3g} that this "
            f"replica sustains: share it among {math.ceil(rate / pace(most))} replicas"
        )
    low, high = 1e-6, most
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if pace(middle) < rate else (low, middle)
    return high


def _fullest(timed: Timed, workload: Workload, tail: float, most: float) -> float:
    """The most users whose P95, `tail` times a median answer, is what it should be; 0: none."""
    target = workload.p95
    if target is None:
        return most

    def late(users: float) -> bool:
        ttft, tpot = timed(users)
        return tail * (ttft + (workload.answer - 1) * tpot) > target

    if late(1.0):
        return 0.0
    low, high = 1, int(most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if late(middle) else (middle, high)
    return float(low)


def _ratio(values: Floats, percentile: float) -> float:
    """A percentile over the median."""
    return float(np.percentile(values, percentile) / np.median(values))


def _triangle(rng: np.random.Generator, low: float, middle: float, high: float) -> Any:
    return rng.triangular(low, middle, high, DRAWS) if low < high else np.full(DRAWS, middle)


def _estimate(value: Any, draws: Any) -> Estimate:
    low, high = np.percentile(draws, [5, 95])
    return Estimate(float(value), float(low), float(high))
