"""What the literature says of time, memory, recall and state over a context."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from isoflop.sim.compare.contexts import Contexts
from isoflop.sim.compare.rankings import rank_correlation
from isoflop.sim.compare.slopes import slopes
from isoflop.sim.compare.study import Study
from isoflop.sim.compare.trials import (
    Trial,
    by_pairs,
    chosen,
    pairs_of,
    steps_to,
    task_scores,
    threshold,
)
from isoflop.sim.compare.verdicts import Finding, above, all_of, claim, told
from isoflop.sim.records.store import Row

DRAWS = 400
RECALL = (
    "multi-query recall of 4 to 16 pairs in 64 tokens, 2 layers, widths 24 to 64, 3 rates by one "
    "seed, judged by 2 others"
)
FIXED_STATE = ("linear", "gla", "mamba", "mamba2", "gated_deltanet", "rwkv7", "lstm")
SOLVED, CHANCE = 0.99, 0.55  # accuracies
WIDEST = 64


@claim(
    "a training step of a selective state space grows linearly with the context, and of attention "
    "faster; decoding needs a state of constant size",
    source="Gu & Dao 2023, 2312.00752, sections 1 and 4.5",
    setting="width 64, 2 layers, batch 1, 1k to 32k tokens, 2 CPU cores; slopes of log seconds on "
    "log tokens with 90 % intervals of the line",
    records=("context",),
)
def cost_is_linear(rows: list[dict[str, Any]]) -> Finding:
    """Reproduced if the training step's slope is within 1.0 ± .1 for Mamba and above 1.1 for dense,
    and the slope of the state's bytes is 0 for Mamba and 1 for dense; not reproduced if one of
    these is not so by more than its interval; else not resolved.
    """
    fitted = slopes(rows)
    step, state = fitted["train_step_seconds"], fitted["state_bytes"]
    mamba, dense = step["mamba"], step["dense"]
    if mamba is None or dense is None or mamba.half is None or dense.half is None:
        return Finding(None, "fewer than three lengths between 1k and 32k tokens")
    off = abs(mamba.value - 1.0)
    linear = True if off <= 0.1 else None if off <= 0.1 + mamba.half else False
    faster = True if dense.value > 1.1 else None if dense.value + dense.half > 1.1 else False
    sizes = [state["mamba"], state["dense"]]
    held = all(s is not None and abs(s.value - i) < 1e-3 for i, s in enumerate(sizes))
    said = f"training step: Mamba {mamba}, dense {dense}; state bytes: {sizes[0]} and {sizes[1]}"
    return Finding(all_of([linear, faster, held]), said)


@claim(
    "attention solves multi-query recall at constant width, however many pairs",
    source="Arora et al. 2023, Zoology, 2312.04927, section 4",
    setting=RECALL,
    records=("recall",),
)
def attention_recalls(rows: list[Row]) -> Finding:
    """Reproduced if dense of width 64 has a mean accuracy of .99 or more at every number of pairs;
    not reproduced if it has less at one of them, at a rate inside the sweep; else not resolved.
    """
    return _solves(chosen(rows), "dense")


@claim(
    "recurrences need a state that grows with the pairs to be recalled",
    source="Arora et al. 2023, Zoology, 2312.04927, section 4",
    setting=RECALL,
    records=("recall",),
)
def recall_needs_state(rows: list[Row]) -> Finding:
    """For each family of fixed state, the states between which it begins to reach .9, at the fewest
    and at the most pairs. Reproduced if at the most pairs no family reaches it with the state that
    sufficed at the fewest, and one family or more did there; not reproduced if a family does; not
    resolved if no family reaches .9 at the fewest pairs.
    """
    trials, pairs = chosen(rows), pairs_of(rows)
    few, many = (f"pairs{n}.accuracy" for n in (pairs[0], pairs[-1]))
    answers, said = [], []
    for family in FIXED_STATE:
        own = [trial for trial in trials if trial["family"] == family]
        less, more = threshold(own, few), threshold(own, many)
        if less is None or more is None or less.high is None:
            continue
        answers.append(more.high is None or more.high > less.high)
        said.append(f"{family} {less} for {pairs[0]} pairs, {more} for {pairs[-1]}")
    if not answers:
        return Finding(None, f"no family of fixed state reaches .9 at {pairs[0]} pairs")
    return Finding(all(answers), "; ".join(said))


@claim(
    "one layer of attention restores the recall of a recurrence",
    source="Arora et al. 2023, 2312.04927; Wang et al. 2025, 2507.06457",
    setting=f"{RECALL}; Mamba with 0, 1 and 2 of its 2 layers attention",
    records=("recall",),
)
def first_attention_layer_restores(rows: list[Row]) -> Finding:
    """Reproduced if the hybrid of width 64 has a mean accuracy of .99 or more at every number of
    pairs, and Mamba less at one of them; not reproduced if the hybrid has less at one of them, at a
    rate inside the sweep; not resolved if Mamba has .99 as well.
    """
    trials = chosen(rows)
    hybrid, alone = _solves(trials, "hybrid"), _solves(trials, "mamba")
    if hybrid.holds and alone.holds:
        return Finding(None, f"Mamba alone solves it: {alone.result}", hybrid.numbers)
    return Finding(hybrid.holds, f"{hybrid.result}; without attention: {alone.result}")


def _solves(trials: list[Trial], family: str) -> Finding:
    """Whether the widest model of a family solves recall, by number of pairs."""
    found = [t for t in trials if (t["family"], t["width"]) == (family, WIDEST)]
    if not found:
        return Finding(None, f"no run of {family} at width {WIDEST}")
    (trial,) = found
    known = {n: one.mean for n, one in by_pairs(trial).items()}
    if not known:
        return Finding(False, f"every run of {family} diverged")
    holds = True if min(known.values()) >= SOLVED else None if trial.edge else False
    said = ", ".join(f"{mean:.3f} at {n}" for n, mean in known.items())
    edge = f"; its rate {trial.rate:g} is at the sweep's edge" if trial.edge else ""
    return Finding(holds, f"{family}: accuracy {said} pairs{edge}", {"accuracy": known})


@claim(
    "recurrences with eigenvalues in [0, 1] cannot follow parity, with [−1, 1] they can",
    source="Grazzi et al. 2024, 2411.12537, section 5.1",
    setting="Gated DeltaNet with either range, 2 layers of width 32, trained on 3 to 40 bits, "
    "asked after 240; 3 rates by one seed, judged by 3 others",
    records=("state_tracking",),
)
def parity_needs_negative_eigenvalues(rows: list[Row]) -> Finding:
    """Reproduced if the mean accuracy at 240 bits is .99 or more with [−1, 1] and the 90 % interval
    over seeds with [0, 1] holds or lies below .55; not reproduced if [0, 1] lies above .55, or
    [−1, 1] is below .99 at a rate inside the sweep; else not resolved.
    """
    trials = {t["family"]: t for t in chosen(rows) if t["task"] == "parity"}
    if not {"gated_deltanet", "gated_deltanet_negative"} <= trials.keys():
        return Finding(None, "one of the two ranges was not trained")
    negative, positive = trials["gated_deltanet_negative"], trials["gated_deltanet"]
    with_, without = negative.interval("x6.accuracy"), positive.interval("x6.accuracy")
    if with_ is None or without is None or without.low is None:
        return Finding(None, "a range has fewer than two runs with a result")
    solved = True if with_.mean >= SOLVED else None if negative.edge else False
    at_chance = without.low <= CHANCE
    said = ", ".join(
        f"{name} {told(one.mean, one.low, one.high)}"
        for name, trial in trials.items()
        if (one := trial.interval("x6.accuracy")) is not None
    )
    return Finding(all_of([solved, at_chance]), f"accuracy at 240 bits: {said}")


@claim(
    "attention and diagonal state spaces need more layers for A5 than for S3, an LSTM does not",
    source="Merrill et al. 2024, 2404.08819, section 5",
    setting="words of 16 elements, width 32, 1, 2 and 4 layers, 1000 steps of 64 words; 3 rates by "
    "one seed, judged by 3 others",
    records=("state_tracking",),
)
def words_need_depth(rows: list[Row]) -> Finding:
    """The least number of layers from which the mean accuracy of the last answer is .9 or more.
    Not resolved if a family reaches neither, or a group was not trained. Else reproduced if for
    dense and for Mamba it is larger for A5 than for S3, or A5 is never reached where S3 is, and the
    LSTM's is the same for both; not reproduced if one of these is otherwise.
    """
    trials = chosen(rows)
    found: dict[str, dict[str, float]] = {}
    for family in ("dense", "mamba", "lstm"):
        for group in ("S3", "A5"):
            own = [t for t in trials if (t["family"], t["task"]) == (family, group)]
            if not own:
                return Finding(None, f"{family} was not trained on {group}")
            reached = [t for t in own if (i := t.interval("x1.accuracy")) and i.mean >= 0.9]
            depth = min((int(t["depth"]) for t in reached), default=float("inf"))
            found.setdefault(family, {})[group] = depth
    said = "; ".join(
        f"{family}: " + ", ".join(f"{g} {_layers(depth)}" for g, depth in groups.items())
        for family, groups in found.items()
    )
    if any(min(groups.values()) == float("inf") for groups in found.values()):
        return Finding(None, said)
    deeper = {family: groups["A5"] - groups["S3"] for family, groups in found.items()}
    return Finding(deeper["dense"] > 0 and deeper["mamba"] > 0 and deeper["lstm"] == 0, said)


def _layers(depth: float) -> str:
    if depth == float("inf"):
        return "in no depth"
    return "from 1 layer on" if depth == 1 else f"from {depth:g} layers on"


@claim(
    "attention's compute-optimal size falls as the context grows, a recurrence's does not",
    source="Beck et al. 2025, xLSTM scaling laws, 2510.02228",
    setting="dense and Mamba, Python code in contexts of 128 to 2048 bytes, 3 sizes × 3 lengths, "
    "two seeds, executed FLOPs",
    records=("context_training",),
)
def optimum_falls_with_context(rows: list[Row]) -> Finding:
    """N* of the law without E at the middle of the FLOPs that all contexts of a family share.
    Reproduced if dense's 90 % interval at the longest context lies wholly below that at the
    shortest and Mamba's does not; not reproduced if dense's lies wholly above; else not resolved.
    """
    pair = ("dense", "mamba")
    contexts = Contexts([row for row in rows if row.labels["family"] in pair], draws=DRAWS)
    found = {family: contexts.optimum(family) for family in pair}
    if any(len(by_context) < len(contexts.cells) for by_context in found.values()):
        return Finding(None, "N* is not identifiable at every context")
    short, long = min(found["dense"]), max(found["dense"])
    (_, low, high), (_, *first) = found["dense"][long], found["dense"][short]
    rises = above(low, high, (first[0], first[1]))
    other = found["mamba"]
    falls = above(other[long][1], other[long][2], other[short][1:]) is False
    holds = False if rises else None if rises is None else (None if falls else True)
    said = "; ".join(
        f"{family} N* {_count(*values[short])} at {short} tokens, {_count(*values[long])} at {long}"
        for family, values in found.items()
    )
    return Finding(holds, said, found)


def _count(value: float, low: float, high: float) -> str:
    return f"{value / 1e3:.0f}k [{low / 1e3:.0f}k, {high / 1e3:.0f}k]"


@claim(
    "attention learns to copy strings in fewer steps than a state space does, the more so the "
    "longer they are",
    source="Jelassi et al. 2024, 2402.01032, section 3",
    setting="strings of 8, 16 and 32 letters, 2 layers of width 64 at the ladder's tuned rates, "
    "250 to 1000 steps of 64 strings, three seeds",
    records=("copying",),
)
def attention_copies_sooner(rows: list[Row]) -> Finding:
    """Steps to 95 % lie between the longest run below it and the shortest from which on all reach
    it, by the mean over seeds. Reproduced if dense's are fewer than Mamba's at the longest string;
    not reproduced if more; not resolved if they are within the same two runs, or neither reaches.
    """
    found = {family: steps_to(rows, family) for family in ("dense", "mamba")}
    both = found["dense"].keys() & found["mamba"].keys()
    if not both:
        return Finding(None, "dense and Mamba were not trained on strings of one length")
    longest = max(both)
    own = [row for row in rows if row.labels["length"] == longest]
    tried = [{r.record.run.budget.steps for r in own if r.labels["family"] == f} for f in found]
    if tried[0] != tried[1]:
        return Finding(None, f"{longest} letters: dense and Mamba had other numbers of steps")
    dense, mamba = (steps[longest] for steps in found.values())
    holds = None if dense == mamba else dense < mamba
    said = "; ".join(
        f"{family}: " + ", ".join(f"{_steps(count)} at {n}" for n, count in steps.items())
        for family, steps in found.items()
    )
    return Finding(holds, f"steps to 95 %, at most: {said} letters")


def _steps(count: float) -> str:
    return "never" if count == math.inf else f"{count:g}"


@claim(
    "scores on MAD's six synthetic tasks rank architectures as their losses at scale do",
    source="Poli et al. 2024, 2403.17844, section 4",
    setting="the ladder's families, 2 layers of width 32 at their tuned rates, 600 steps a task, "
    "two seeds, against their least losses in the laptop's ladder",
    records=("mad", "ladder"),
)
def mad_ranks_as_loss_does(rows: list[Row], ladder: list[Row]) -> Finding:
    """Spearman's correlation over families of the mean accuracy with the negated least loss.
    Reproduced if it is above 0 and its permutation p, two-sided, below .05; not reproduced if it is
    below 0 and p below .05; else not resolved.
    """
    scores = task_scores(rows)
    losses = {family: point.loss for family, point in Study(ladder).best.items()}
    shared = [family for family in scores if family in losses]
    if len(shared) < 4:
        return Finding(None, f"{len(shared)} families have both")
    rho, p = rank_correlation(
        [fmean(scores[f].values()) for f in shared], [-losses[f] for f in shared]
    )
    holds = None if p >= 0.05 else rho > 0
    said = ", ".join(f"{f} {fmean(scores[f].values()):.2f}" for f in shared)
    return Finding(holds, f"rank correlation {rho:.2f}, p = {p:.2f}; mean accuracies: {said}")
