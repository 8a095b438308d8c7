"""The exercises of the lessons: what is asked, how the library answers it, what to look at again.

No answer is written down: each is computed from the records that the lesson read (the committed
ones, or a class's own) by the functions that the lesson uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from isoflop.experiments import lessons
from isoflop.experiments.families import model
from isoflop.experiments.lessons.marking import Folder, Question
from isoflop.models.errors import UserError
from isoflop.sim.compare import candidates, family_fits
from isoflop.sim.compare.context_crossings import crossings
from isoflop.sim.compare.points import COUNT, Point, columns, families, points
from isoflop.sim.compare.points import family as of
from isoflop.sim.compare.recommend import Recommendation, recommend
from isoflop.sim.compare.served import Place, Traffic
from isoflop.sim.compare.slopes import slopes
from isoflop.sim.compare.study import Study
from isoflop.sim.compare.trials import Threshold, Trial, chosen, threshold
from isoflop.sim.cost.flops import param_counts, step_flops
from isoflop.sim.cost.hardware import device
from isoflop.sim.laws.cost_model import fit_cost
from isoflop.sim.laws.fit import Fit
from isoflop.sim.laws.forms import Chinchilla, fit_table
from isoflop.sim.laws.isoflop import Allocation
from isoflop.sim.laws.published import PUBLISHED
from isoflop.sim.laws.resample import Floats
from isoflop.sim.records.store import Row, read_rows, read_table

DRAWS = 100  # of every bootstrap here
PINNED = 0.9  # nats: the floor of lesson 3
SLOW, QUICK = 4.0, 2.0  # seconds: the limits of lesson 8


@cache
def _rows(name: str, folder: Folder) -> list[Row]:
    return read_rows(lessons.path(name, folder))


@cache
def _cells(name: str, folder: Folder, family: str = "dense") -> list[Point]:
    """One family's cells, by increasing cost."""
    group = families(points(row for row in _rows(name, folder) if of(row) == family))
    if family not in group:
        raise UserError(f"the records of {name} must have runs of {family}; name other records")
    return sorted(group[family], key=lambda cell: cell.flops["executed"])


# 1: loss falls as a power of compute


@cache
def _power(folder: Folder, left_out: int = 0, asymptote: bool = False) -> Fit:
    """The law of the runs but for the costliest cells."""
    cells = _cells("power_law", folder)
    runs = columns(cells[: len(cells) - left_out])
    return fit_table(runs, law="power", flops="executed", asymptote=asymptote, draws=DRAWS)


def _sixth(folder: Folder) -> float:
    law = _power(folder, 1).law
    return float(law(_cells("power_law", folder)[-1].flops["executed"])) if law else math.nan


def _floor_told(folder: Folder) -> bool:
    fit = _power(folder, asymptote=True)
    return fit.ok and fit.interval["E"][0] > 0


LESSON1 = (
    Question(
        "exponent",
        "α of L = A/C^α through all runs, C in executed FLOPs",
        lambda folder: _power(folder).estimate["alpha"],
        "fit_table with law='power', flops='executed' and asymptote=False; α is in .estimate",
        0.03,
    ),
    Question(
        "sixth",
        "the loss that the law of the five cheaper models says of the sixth, in nats per token",
        _sixth,
        "fit the law again without the costliest cell, and call it with that cell's FLOPs",
        0.005,
    ),
    Question(
        "times",
        "how many times the compute lowers the loss by a tenth, by the law of all runs",
        lambda folder: 0.9 ** (-1 / _power(folder).estimate["alpha"]),
        "A/(kC)^α = .9·A/C^α: solve it for k",
        0.1,
    ),
    Question(
        "floor",
        "do these runs tell an irreducible loss E from zero?",
        _floor_told,
        "fit with the asymptote, and look at the status before you look at E",
    ),
)

# 2: IsoFLOP


@cache
def _valleys(folder: Folder) -> Allocation:
    return family_fits.valleys(_cells("isoflop", folder))


def _tokens_per_parameter(folder: Folder) -> float:
    """At the largest budget, D by what the runs cost."""
    runs, found = columns(_cells("isoflop", folder)), _valleys(folder)
    cost = fit_cost(*(np.array(runs[name], float) for name in ("executed", "N", "D")))
    best = found.N[-1]
    return float(np.exp(cost.log_tokens(np.log(found.C[-1]), np.log(best))) / best)


LESSON2 = (
    Question(
        "a",
        "a of N* ∝ C^a through the minima of all budgets",
        lambda folder: _valleys(folder).a,
        "family_fits.valleys(group).a; the group has every size, budget and seed",
        0.05,
    ),
    Question(
        "middle",
        "N* at the middle budget, in parameters, by its own parabola",
        lambda folder: _valleys(folder).N[len(_valleys(folder).N) // 2],
        ".N has the minima in the order of .C; the line N*(C) is another estimate",
        0.03,
    ),
    Question(
        "tokens_per_parameter",
        "tokens for each parameter, D*/N*, at the minimum of the largest budget",
        _tokens_per_parameter,
        "C is not 6·N·D here: fit_cost(C, N, D) of the runs has log_tokens(log C, log N*)",
        0.05,
    ),
    Question(
        "in_proportion",
        "may parameters and tokens grow alike, that is, is a = ½ in the 90 % interval?",
        lambda folder: _valleys(folder).interval[0] <= 0.5 <= _valleys(folder).interval[1],
        "compare ½ with both ends of .interval",
    ),
)

# 3: fit it and doubt it


@cache
def _surface(folder: Folder) -> Fit:
    return family_fits.surface(_cells("ladder", folder), draws=1, held_out=())  # for its floors


def pinned(fit: Fit, floors: Sequence[float]) -> tuple[Chinchilla, Floats]:
    """The least-squares laws of a fit's runs with each E of `floors`, one entry each, and what each
    leaves of log L (floors, runs).
    """
    assert fit.floored is not None
    laws, left = fit.floored(np.array(floors))
    assert isinstance(laws, Chinchilla)
    return laws, left


@cache
def _pinned(folder: Folder) -> Chinchilla:
    return pinned(_surface(folder), (0.0, PINNED))[0]


def _apart(folder: Folder) -> float:
    """By how many per cent the two laws differ at the costliest cell."""
    cell = _cells("ladder", folder)[-1]
    low, high = _pinned(folder)(cell.params[COUNT], cell.tokens)
    return 100.0 * abs(math.log(high / low))


def along_a_ratio(ratio: float = 20.0) -> Fit:
    """The law of nine exact runs of a published surface, all of them on D = ratio·N."""
    sizes = np.geomspace(1e7, 1e10, 9)
    surface = PUBLISHED["chinchilla-corrected"].law
    assert isinstance(surface, Chinchilla)
    runs = {"N": sizes, "D": ratio * sizes, "loss": surface(sizes, ratio * sizes)}
    return Chinchilla.fit(runs, draws=DRAWS)


LESSON3 = (
    Question(
        "beta_no_floor",
        "β of the dense surface with E pinned at 0",
        lambda folder: float(_pinned(folder).beta[0]),
        "exercises.pinned(fit, floors) has one law for each floor",
        0.03,
    ),
    Question(
        "beta_pinned",
        f"β of the same runs with E pinned at {PINNED:g} nats",
        lambda folder: float(_pinned(folder).beta[1]),
        "the second entry of the same call",
        0.03,
    ),
    Question(
        "apart",
        "by how many per cent the two laws differ in the loss of the costliest cell",
        _apart,
        "call both laws with that cell's N (active) and D; 100·|log ratio|",
        0.1,
    ),
    Question(
        "design",
        "what a fit says of runs that all have D = 20·N, however many and however exact",
        lambda folder: along_a_ratio().status,
        "exercises.along_a_ratio() makes such runs; read .status and .reason",
        choices=("converged", "not converged", "at a bound", "unidentifiable"),
    ),
)

# 4: counting


@cache
def _exponents(folder: Folder) -> dict[str, float]:
    """Of each convention, the exponent of the power law through dense's lower envelope."""
    study = Study([row for row in _rows("ladder", folder) if of(row) == "dense"], DRAWS)
    return {way: study.lines(way)[0].fit.estimate["alpha"] for way in study.conventions}


def _over_6nd(seq_len: int, family: str = "dense", way: str = "6ND") -> float:
    step = step_flops(model(family, 64, 2), seq_len, 1)
    return step["executed"] / step[way]


LESSON4 = (
    Question(
        "executed_exponent",
        "exponent of loss on compute along dense's lower envelope, in executed FLOPs",
        lambda folder: _exponents(folder)["executed"],
        "Study(rows).lines('executed')[0].fit.estimate['alpha']",
        0.03,
    ),
    Question(
        "non_embedding_exponent",
        "the same of the same runs in 6·N·D without embedding and head",
        lambda folder: _exponents(folder)["6ND_non_embedding"],
        "the same call with '6ND_non_embedding'; its envelope may have other cells",
        0.03,
    ),
    Question(
        "short",
        "executed FLOPs over 6·N·D of a training step: dense, width 64, depth 2, 128 tokens",
        lambda folder: _over_6nd(128),
        "step_flops(model, seq_len, batch) has every convention",
        0.01,
    ),
    Question(
        "long",
        "the same ratio at 4096 tokens",
        lambda folder: _over_6nd(4096),
        "only the length changes; 6·N·D does not know it for a token",
        0.01,
    ),
)

# 5: attention and recurrences


@cache
def _slopes(folder: Folder) -> dict[str, float]:
    measured = read_table(lessons.path("context", folder))
    found = slopes(measured)["train_step_seconds"]
    return {name: one.value for name, one in found.items() if one is not None}


def _crossing(folder: Folder, quantity: str, recurrence: str) -> float:
    measured = read_table(lessons.path("context", folder))
    for one in crossings(measured, ["dense"], [quantity]):
        if one.recurrence == recurrence and one.at is not None:
            return one.at
    return math.nan


LESSON5 = (
    Question(
        "dense",
        "power of T with which dense's training step grows, over the measured window",
        lambda folder: _slopes(folder)["dense"],
        "slopes(rows)['train_step_seconds']['dense'].value",
        0.03,
    ),
    Question(
        "mamba",
        "the same of Mamba's",
        lambda folder: _slopes(folder)["mamba"],
        "the same call; 1 is linear",
        0.03,
    ),
    Question(
        "crossing",
        "from how many tokens on a training step of dense takes longer than one of Mamba",
        lambda folder: _crossing(folder, "train_step_seconds", "mamba"),
        "crossings(rows, ['dense'], ['train_step_seconds'])",
        0.05,
    ),
    Question(
        "state",
        "how many times as many bytes of decoding state dense has at 8192 tokens as Mamba",
        lambda folder: _state_ratio(folder, 8192),
        "rows of quantity state_bytes; Mamba's does not depend on the length",
        0.01,
    ),
)


def _state_ratio(folder: Folder, length: int) -> float:
    held = {
        row["family"]: row["value"]
        for row in read_table(lessons.path("context", folder))
        if (row["quantity"], row["seq_len"]) == ("state_bytes", length)
    }
    return float(held["dense"] / held["mamba"])


# 6: recall and state

MOST_PAIRS = "pairs16.accuracy"


@cache
def _trials(folder: Folder) -> list[Trial]:
    return chosen(_rows("recall", folder))


def _thresholds(folder: Folder) -> dict[str, Threshold]:
    """Of each family, the state from which it recalls most pairs."""
    trials = _trials(folder)
    own = {str(t["family"]): [o for o in trials if o["family"] == t["family"]] for t in trials}
    found = {name: threshold(group, MOST_PAIRS) for name, group in own.items()}
    return {name: one for name, one in found.items() if one is not None}


def _accuracy(folder: Folder, family: str, width: int) -> float:
    (trial,) = (t for t in _trials(folder) if (t["family"], t["width"]) == (family, width))
    found = trial.interval(MOST_PAIRS)
    return math.nan if found is None else found.mean


LESSON6 = (
    Question(
        "reach",
        "how many families reach 90 % of the answers at 16 pairs, at any width",
        lambda folder: float(sum(t.high is not None for t in _thresholds(folder).values())),
        "threshold(trials of a family, 'pairs16.accuracy').high is None where none does",
        0.01,
    ),
    Question(
        "least_bytes",
        "the bytes of decoding state of the smallest model that does",
        lambda folder: float(min(t.high for t in _thresholds(folder).values() if t.high)),
        "the least .high over the families",
        0.01,
    ),
    Question(
        "restored",
        "accuracy at 16 pairs and width 32 of the hybrid, less that of Mamba alone",
        lambda folder: _accuracy(folder, "hybrid", 32) - _accuracy(folder, "mamba", 32),
        "trial.interval('pairs16.accuracy').mean of both trials",
        0.03,
    ),
    Question(
        "tuned",
        "is the chosen rate of dense at width 24 inside its sweep, so that its failure is its own?",
        lambda folder: (
            not next(t.edge for t in _trials(folder) if (t["family"], t["width"]) == ("dense", 24))
        ),
        "trial.edge: an optimum at the edge of a sweep may lie beyond it",
    ),
)

# 7: experts


@cache
def _moe_gains(folder: Folder) -> dict[str, Any]:
    """By cost, moe's gain over dense at the far end of the shared window."""
    pair = [row for row in _rows("ladder", folder) if of(row) in ("dense", "moe")]
    found = Study(pair, DRAWS, costs=("executed", "6ND_non_embedding")).gains
    return {cost: one.ceg[-1] for cost, (one,) in found.items() if one.ceg}


def _read(tokens: int) -> float:
    """Weights that a step of `tokens` tokens touches, over those that one touches."""
    experts = model("moe", 64, 2)
    return experts.touched_params(tokens) / experts.touched_params(1)


LESSON7 = (
    Question(
        "active",
        "share of its weights that one token touches: moe, width 64, depth 2",
        lambda folder: (lambda n: n["active"] / n["total"])(param_counts(model("moe", 64, 2))),
        "param_counts(model('moe', 64, 2))",
        0.01,
    ),
    Question(
        "batch",
        "how many times as many weights a decoding step of 8 sequences reads as one of 1",
        lambda folder: _read(8),
        "model.touched_params(tokens): E·(1 − (1 − k/E)^B) of E experts in expectation",
        0.02,
    ),
    Question(
        "gain",
        "moe's compute-equivalent gain over dense at the far end of the window, executed FLOPs",
        lambda folder: _moe_gains(folder)["executed"].value,
        "Study(rows, costs=('executed', …)).gains['executed'][0].ceg[-1]",
        0.05,
    ),
    Question(
        "free",
        "is there a gain, its 90 % interval above 1, where idle experts are counted (6·N·D)?",
        lambda folder: _moe_gains(folder)["6ND_non_embedding"].low > 1,
        "the same call with '6ND_non_embedding'; read .low",
    ),
)

# 8: which model would you buy


SIZES = (3e9, 8e9, 14e9, 32e9)
NAMES = tuple(candidates.size(n) for n in SIZES)


@cache
def offer(p95: float, per_query: float = 0.001) -> Recommendation:
    """Sizes on a published law, each of two trillion tokens, served on H100s at four queries a
    second: the choice under a P95 latency (s) and a price of a query ($).
    """
    options = candidates.published("chinchilla-corrected", SIZES, 2e12)
    limits = {"p95": p95, "per_query": per_query}
    place = Place(device("H100"), 1, "bf16")
    traffic = Traffic(500, 150, 4.0, p95=p95)
    return recommend(options, [place], traffic, limits, quality=candidates.LOSS)


LESSON8 = (
    Question(
        "winner",
        f"the model to take with a P95 of {SLOW:g} s and a tenth of a cent a query",
        lambda folder: offer(SLOW).choice.contenders[0],
        "exercises.offer(p95).choice.words()",
        choices=NAMES,
    ),
    Question(
        "share",
        f"with a P95 of {QUICK:g} s instead, the share of worlds in which the likeliest is best",
        lambda folder: offer(QUICK).choice.share,
        "the same call with the other limit; choice.share",
        0.05,
    ),
    Question(
        "resolved",
        f"is the choice at {QUICK:g} s resolved: 95 % of worlds for one model?",
        lambda folder: offer(QUICK).choice.resolved,
        "choice.resolved",
    ),
)

EXERCISES = {
    f"lesson{i}": questions
    for i, questions in enumerate(
        (LESSON1, LESSON2, LESSON3, LESSON4, LESSON5, LESSON6, LESSON7, LESSON8), 1
    )
}
