"""What the popular account says of architectures and of ways to make a small model do more."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.experiments.claims.account_scale import from_published
from isoflop.experiments.scores import ROUTED, routing
from isoflop.sim.compare.contexts import Contexts
from isoflop.sim.compare.gains import Comparison
from isoflop.sim.compare.precision import largest
from isoflop.sim.compare.retrieval import by_store, families, per_byte
from isoflop.sim.compare.slopes import slopes
from isoflop.sim.compare.specialists import (
    DOMAIN,
    GENERAL,
    TUNED,
    best,
    less,
    not_above,
    size,
    widths,
)
from isoflop.sim.compare.study import Study
from isoflop.sim.compare.trials import Trial, chosen, pairs_of, recalled
from isoflop.sim.compare.verdicts import (
    ACCOUNT,
    Finding,
    above,
    all_of,
    claim,
    outside,
    told,
)
from isoflop.sim.records.metrics import Z90
from isoflop.sim.records.store import Row

DRAWS = 120
LADDER = "14k to 200k non-embedding parameters, 256k to 666k tokens of Python code, bytes"
FILE = "account_methods"


def _gains(rows: list[Row], family: str, costs: Sequence[str]) -> dict[str, Comparison]:
    """Gains of a family over dense, under each cost."""
    pair = [row for row in rows if row.labels["family"] in ("dense", family)]
    study = Study(pair, draws=DRAWS, costs=tuple(costs))
    return {cost: study.gains[cost][0] for cost in costs}


def _far(found: Comparison) -> tuple[float, float, float] | None:
    """The gain at the far end of the shared window."""
    return (found.ceg[-1].value, found.ceg[-1].low, found.ceg[-1].high) if found.ceg else None


@claim(
    "experts give the capacity of a large model at the cost of a small one: 1T at the cost of 100B",
    source="D1 D2",
    setting=f"moe (8 experts, 2 active) over dense, {LADDER}; at the window's far end",
    records=("ladder",),
    words=ACCOUNT,
)
def experts_are_cheap(rows: list[Row]) -> Finding:
    """A gain above 1 at equal executed FLOPs, at equal seconds, and, for the capacity of a dense
    model of as many parameters, at equal 6·N·D with idle experts counted. Held if all three 90 %
    intervals lie above 1; refuted if one lies below; else not resolved.
    """
    names = {"executed": "executed FLOPs", "seconds": "seconds of 2 cores",
             "6ND_non_embedding": "6·N·D with idle experts"}  # fmt: skip
    gains = {cost: _far(found) for cost, found in _gains(rows, "moe", list(names)).items()}
    answers = [above(g[1], g[2], 1.0) if g else None for g in gains.values()]
    said = ", ".join(f"{names[c]} {told(*g) if g else 'no gain'}" for c, g in gains.items())
    return Finding(all_of(answers), f"gain by {said}", gains)


@claim(
    "state spaces and linear attention are O(n) and give equivalent performance for less compute",
    source="D1 D2",
    setting=f"mamba and linear over dense, {LADDER}; slopes from 1k to 8k tokens at width 64; "
    "quality at long context is isoflop run context_training",
    records=("ladder", "context"),
    words=ACCOUNT,
)
def linear_time_less_compute(rows: list[Row], context: list[dict[str, Any]]) -> Finding:
    """Held if the training step's slope over length is within 1 ± .1 of both and the 90 % intervals
    of both gains over dense in executed FLOPs lie above 1; refuted if one gain lies below 1 or a
    slope is off by more than its interval; else not resolved.
    """
    answers: list[bool | None] = []
    said = []
    for family in ("mamba", "linear"):
        slope = slopes(context)["train_step_seconds"][family]
        gain = _far(_gains(rows, family, ["executed"])["executed"])
        if slope is not None and slope.half is not None:
            off = abs(slope.value - 1)
            answers.append(True if off <= 0.1 else None if off <= 0.1 + slope.half else False)
        answers.append(above(gain[1], gain[2], 1.0) if gain else None)
        said.append(f"{family}: slope {slope}, gain {told(*gain) if gain else 'none'}")
    return Finding(all_of(answers), "; ".join(said))


@claim(
    "larger models train less stably and iterate more slowly",
    source="D2",
    setting="six learning rates × eight families × three seeds at widths 32 and 64",
    records=("lr_transfer",),
    words=ACCOUNT,
)
def larger_is_less_stable(rows: list[Row]) -> Finding:
    """Stability is the share of runs that diverge and the window of rates within 2 % of the best
    loss, by width. Held if the larger width diverges more often (by 5 points) or its window is
    narrower in all but one of the families; refuted if no more runs diverge and its window is as
    wide in half of the families or more; else not resolved. Two widths are far from 1B to 70B.
    """
    lost = {w: [r.record.status != "ok" for r in rows if r.labels["width"] == w] for w in (32, 64)}
    if not all(lost.values()):
        return Finding(None, "one of the two widths was not trained")
    share = {w: sum(v) / len(v) for w, v in lost.items()}
    names = sorted({str(r.labels["family"]) for r in rows})
    wide = {w: {n: _window([r for r in rows if r.labels["family"] == n and r.labels["width"] == w])
                for n in names} for w in (32, 64)}  # fmt: skip
    narrower = sum(wide[64][n] < wide[32][n] for n in names)
    worse = share[64] > share[32] + 0.05
    holds = True if worse or narrower >= len(names) - 1 else None
    if not worse and share[64] <= share[32] and narrower <= len(names) / 2:
        holds = False
    said = (
        f"diverged: {share[32]:.0%} at width 32, {share[64]:.0%} at 64; the window is narrower at "
        f"64 in {narrower} of {len(names)} families"
    )
    return Finding(holds, said, {"windows": wide})


def _window(rows: Sequence[Row]) -> int:
    """How many rates come within 2 % of the best mean loss."""
    by_rate: dict[float, list[float]] = {}
    for row in rows:
        if row.record.loss is not None:
            by_rate.setdefault(float(row.labels["lr"]), []).append(row.record.loss)
    means = [float(np.mean(v)) for v in by_rate.values()]
    return sum(m <= 1.02 * min(means) for m in means)


@claim(
    "a large model as consultant for the hardest 5 % gives most of its quality at a fraction of "
    "the price",
    source="D2",
    setting=f"1,319 questions of GSM8K: Mixtral-8x7B, with GPT-4 for 5 % of them ({ROUTED})",
    words=ACCOUNT,
)
def consultant() -> Finding:
    """A perfect choice of the 5 % sends only questions that the small model has wrong and the large
    one right. Held if that closes more than half of the gap in accuracy, by the 90 % interval of a
    bootstrap over questions; refuted if less than half; else not resolved. No rule does better.
    """
    table = routing()
    kinds = list(table)
    counts = np.array([table[kind] for kind in kinds])
    total = int(counts.sum())
    draws = np.random.default_rng(0).multinomial(total, counts / total, 4000)

    def closed(n: Any) -> Any:
        n = np.asarray(n, dtype=float)
        only_large, only_small = (
            n[..., kinds.index((False, True))],
            n[..., kinds.index((True, False))],
        )
        return np.minimum(0.05 * total, only_large) / (only_large - only_small)

    low, high = np.quantile(closed(draws), [0.05, 0.95])
    value = float(closed(counts))
    said = f"a perfect 5 % closes {told(value, float(low), float(high))} of the gap"
    holds = above(float(low), float(high), 0.5)
    return from_published(holds, said, {"closed": value})


@claim(
    "retrieval's gains are logarithmic in the store, knowledge stays fresh, and it is efficient",
    source="D1 D2 D3",
    setting="dense and mamba at width 32, trained on 205k tokens of Python code, stores of 256 to "
    "66k more; 256 Zipf facts that were drawn after training, tables of 2 to 256",
    records=("retrieve",),
    words=ACCOUNT,
)
def retrieval_is_logarithmic(rows: list[dict[str, Any]]) -> Finding:
    """Held if loss over the logarithm of the store is a line within noise, facts that are swapped
    after training are answered within 1 % of the exact law, and the gain per byte is above 1;
    refuted if one is not so beyond its 90 % interval; else not resolved.
    """
    answers: list[bool | None] = []
    said = []
    for family in families(rows, "text"):
        found = by_store(rows, family)
        if found:
            _, low, high = found["curvature"]
            rising = found["slope"][1] > 0
            answers.append(True if rising and low <= 0 <= high else False if rising else None)
            said.append(f"{family}: curvature {told(*(1e3 * x for x in found['curvature']))} mnat")
        stores = [row for row in rows if row.get("arm") == "store" and row["family"] == family]
        worth = [one for row in stores if (one := per_byte(row))]
        if worth:
            best = max(worth, key=lambda one: one[0])
            answers.append(above(*best[1:], 1.0))
            said.append(f"N_eff/N for each byte held at best {told(*best)}")
    facts = [row for row in rows if row["part"] == "facts"]
    off = [abs(row["loss"] / row["law"] - 1) for row in facts]
    beyond = [abs(row["loss"] - row["law"]) > 0.01 * row["law"] + Z90 * row["se"] for row in facts]
    answers.append(True if max(off) <= 0.01 else False if any(beyond) else None)
    said.append(f"losses on new facts are off their law by at most {max(off):.1%}")
    return Finding(all_of(answers), "; ".join(said))


@claim(
    "quantisation, pruning and distillation shrink without losing much; compressed is like larger",
    source="D1 D3 D4",
    setting="each family's largest run of most tokens; int4 weights rounded "
    "to nearest in groups of 32, half of the weights masked by magnitude, without retraining",
    records=("compress",),
    words=ACCOUNT,
)
def compression_costs_little(rows: list[dict[str, Any]]) -> Finding:
    """Held if the effective size of int4 weights, of half the weights masked and of a distilled
    student is above .9 of the untreated model's with 90 % intervals, in every family; refuted if
    one lies below .9; else not resolved. A distilled student is none of these records' treatments,
    so they can refute the claim and cannot hold it.
    """
    answers: list[bool | None] = [None]
    said = []
    for what, word in (("weights int4", "int4"), ("prune 0.5", "half masked")):
        of = [row for row in largest(rows) if row["treatment"] == what]
        answers += [_kept(row) for row in of]
        known = [row for row in of if not row.get("reason")]
        below = [row["family"] for row in of if _kept(row) is False]
        if known:
            ratios = [row["ratio"] for row in known]
            said.append(f"{word} leaves {told(min(ratios))} to {told(max(ratios))}")
        said += [f"below .9 in {', '.join(below)}"] if below else []
    return Finding(all_of(answers), "; ".join(said) or "no such treatment")


def _kept(row: Mapping[str, Any]) -> bool | None:
    """Whether an effective size is above .9."""
    if reason := row.get("reason"):
        return False if "N_eff/N is below" in reason else None
    high = math.inf if row["high"] is None else row["high"]
    return above(row["low"], high, 0.9)


SPECIAL = (
    "dense, 2 layers of widths 32 to 112 (twelve times the parameters without embedding and head), "
    "Python code the domain, a mixture of three parts English to one of code the general data, "
    "equal executed FLOPs in all (50 to .7 bytes a parameter), two seeds"
)


@claim(
    "a tuned small model matches or beats a large general one on its domain, with retrieval a "
    "giant",
    source="D1–D5",
    setting=SPECIAL,
    records=("specialise",),
    words=ACCOUNT,
)
def tuned_small_beats_large(rows: list[dict[str, Any]]) -> Finding:
    """Held if at equal training FLOPs the tuned small model's loss on its domain is at or below
    that of a general model ten times its size, paired by seed, by the 90 % interval; refuted if
    above; else not resolved. The small one's FLOPs are its general part's and its tuning's;
    retrieval is the row on retrieval's.
    """
    small, large = min(widths(rows, TUNED)), max(widths(rows, GENERAL))
    found = less(rows, (TUNED, small), (GENERAL, large))
    if found is None:
        return Finding(None, "no seed has both models")
    said = [
        f"{told(one.mean, one.low, one.high)} nats over that of a general model "
        f"{size(rows, width) / size(rows, small):.0f} times its size"
        for width in dict.fromkeys((large, best(rows, GENERAL)))
        if width is not None and (one := less(rows, (TUNED, small), (GENERAL, width))) is not None
    ]
    return Finding(not_above(found), f"loss on code {', and '.join(said)} (the best)")


@claim(
    "models trained from scratch on one kind of data reach high performance at a smaller size",
    source="D2",
    setting=SPECIAL,
    records=("specialise",),
    words=ACCOUNT,
)
def specialist_is_smaller(rows: list[dict[str, Any]]) -> Finding:
    """Held if at equal FLOPs a model of the domain alone reaches the mixture's loss on the domain
    with half its parameters or fewer, by the 90 % interval; refuted if it needs as many; else not
    resolved. The mixture's is the size of least loss on the domain; it needs as many if every
    smaller model of the domain alone has a loss above it, by its interval.
    """
    reference = best(rows, GENERAL)
    if reference is None:
        return Finding(None, "no general models")
    most = size(rows, reference)
    smaller = [w for w in widths(rows, DOMAIN) if size(rows, w) < most]
    answers = {w: not_above(less(rows, (DOMAIN, w), (GENERAL, reference))) for w in smaller}
    halves = [w for w in smaller if 2 * size(rows, w) <= most and answers[w]]
    said = f"the mixture's best is {most:,} parameters"
    if halves:
        share = size(rows, min(halves)) / most
        return Finding(True, f"{said}; of code alone {share:.2f} of them do as well")
    refuted = bool(answers) and all(answer is False for answer in answers.values())
    tail = "none that is smaller does as well of code alone" if refuted else "smaller ones are open"
    return Finding(False if refuted else None, f"{said}; {tail}")


@claim(
    "larger models keep longer contexts",
    source="D3 D5",
    setting="multi-query recall of 4 to 16 pairs, 2 layers, widths 24 to 64, 3 rates by one seed, "
    "judged by 2 others; Python code in contexts of 128 to 2048 bytes, 14k to 99k non-embedding "
    "parameters, 2M bytes, two seeds",
    records=("recall", "context_training"),
    words=ACCOUNT,
)
def larger_keeps_longer_contexts(recall: list[Row], trained: list[Row]) -> Finding:
    """Held if the pairs that a family recalls at 90 % grow with its width at a fixed ratio of
    state, and the loss of late positions falls faster with N than that of early ones, both by their
    90 % intervals; refuted if both shrink or stay; else not resolved. Late is the second half of a
    context, early its first eighth; a family that recalls no pairs that were asked, or all of them
    at its narrowest, has no say; where families or contexts disagree, that part is open.
    """
    grows: dict[str, bool | None] = {}
    trials = chosen(recall)
    for family in dict.fromkeys(str(trial["family"]) for trial in trials):
        own = sorted((t for t in trials if t["family"] == family), key=lambda t: t["width"])
        grows[family] = _recalls_more(own[0], own[-1])
    contexts = Contexts(trained)
    faster: dict[str, bool | None] = {}
    said = []
    for family in contexts.families:
        for length, line in contexts.late_slopes(family).items():
            if line.half is not None:
                low, high = line.value - line.half, line.value + line.half
                below = above(low, high, 0.0)
                faster[f"{family} at {length}"] = None if below is None else not below
                said.append(f"{family} at {length}: {told(line.value, low, high)}")
    more = [family for family, answer in grows.items() if answer]
    holds = [_agreed(part.values()) for part in (grows, faster)]
    return Finding(
        holds[0] if holds[0] is holds[1] else None,
        f"more pairs at width 64 than at 24: {', '.join(more) or 'no family'}; power of N of late "
        f"over early loss: {'; '.join(said) or 'not known'}",
    )


def _recalls_more(narrow: Trial, wide: Trial) -> bool | None:
    """Whether the widest recalls more pairs than the narrowest by the intervals of both, or no
    more.
    """
    (surely, perhaps), (low, high) = (recalled(trial, 0.9) for trial in (narrow, wide))
    if low > perhaps:
        return True
    could_tell = 0 < surely < max(pairs_of(wide.rows))
    return False if could_tell and high <= surely else None


def _agreed(answers: Iterable[bool | None]) -> bool | None:
    """What all that have an answer say; None where they disagree or none has one."""
    known = {answer for answer in answers if answer is not None}
    return known.pop() if len(known) == 1 else None


multimodal = outside(
    "multimodal",
    "multimodal models scale by other laws",
    source="D1",
    why="nothing here trains on images or sound",
    file=FILE,
)
