"""How much of a large model's quality does a small one get from it by asking at the hardest tokens?

Runs of one family, a small and a large one, answer held-out text: the small one by itself, and the
large one where the small one's prediction has most entropy, or where most is predicted to be gained
by a regression on a second held-out split; token by token or, judged by a prompt, sequence by
sequence. Beside these rules stand a choice at random and the best there is (the oracle).
Published answers of two large models are read in the same way (RouteLLM: Ong et al. 2024,
2406.18665), where the rule at hand is the length of the question. The same pairs decode
speculatively: tokens for each reading of the large model, as predicted and as counted.

Decision rules, from before there were records: a rule is worth something where the 90 % interval of
the share of the gap that it closes, a bootstrap over sequences, lies above the share of tokens that
it asks for. A cascade saves work where it closes half of the gap with less than half of the large
model's FLOPs for each token, all that it has to read included. Tokens for each reading are as
predicted where they are within 2 % of (1 − α^(γ+1))/(1 − α), with α of held-out text.

Command:   isoflop run cascade && isoflop figures cascade
Duration:  about five minutes of one core after those of `retrieve`; not timed on an idle machine
Expected:  random is at most the rule and the rule at most the oracle; by tokens a twentieth closes
           about a tenth of the gap, more by the regression than by entropy, and the large model has
           to read nearly everything all the same
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.experiments.cli.text import tell
from isoflop.experiments.finished import finished
from isoflop.experiments.retrieve import SHAPES, STEPS, text_cells
from isoflop.experiments.scores import routed, routing
from isoflop.models.speculation import expected_tokens, speculate
from isoflop.sim.compare.cascades import answers, closed, interval, oracle
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.treatments import Cascade, Speculate, Subject
from isoflop.sim.treatments.base import judge
from isoflop.sim.treatments.cascade import Rule, Unit, scores

SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
UNITS: tuple[Unit, ...] = ("tokens", "sequences")
RULES: tuple[Rule, ...] = ("entropy", "learnt")
PROMPT = 32
GAMMAS = (1, 2, 4)
ROWS, COUNT = 64, 64  # prompts, and tokens that are written after each


def measure(
    families: tuple[str, ...] = ("dense", "mamba"),
    seeds: int = 2,
    corpus: str = "sympy",
    trained: Path = Path("runs"),
    workers: int = 1,
) -> list[dict]:
    """The table: a row for each pair, unit, rule and share, and for each γ.

    Args:
        families: names of families with a tuned learning rate.
        seeds: pairs of runs of each family.
        corpus: kjv (English) or sympy (Python code).
        trained: the runs directory of the runs; what it lacks is trained.
        workers: processes that train.
    """
    wanted = [cell for cell in text_cells(families, seeds, corpus)
              if cell.run.budget.steps == STEPS[2]]  # fmt: skip
    pairs: dict[tuple[str, int], dict[tuple, str]] = {}
    for row in finished(wanted, trained, workers):
        shape = row.labels["width"], row.labels["depth"]
        of = pairs.setdefault((str(row.labels["family"]), row.record.run.seed), {})
        of[shape] = row.record.key
    found = published()
    for (family, seed), keys in pairs.items():
        if SHAPES[0] not in keys or SHAPES[-1] not in keys:
            continue
        small, large = (Subject.of(Checkpoint.load(keys[shape], trained))
                        for shape in (SHAPES[0], SHAPES[-1]))  # fmt: skip
        tell(f"{family}, seed {seed}")
        about = {"family": family, "seed": seed}
        found += [about | row for row in asked(small, large)]
        found += [about | row for row in drafted(small, large)]
    tell("")
    return found


def asked(small: Subject, large: Subject) -> list[dict[str, Any]]:
    """A row for each unit, rule and share: the part of the gap that is closed, and what is read for
    it. Threshold and regression are of a second held-out split; the rule is judged at the share
    that it asks.
    """
    batch = small.run.splits[0].draw(small.run.data.open())
    nats = [judge(one, batch)[0].astype(float) for one in (small, large)]
    found: list[dict[str, Any]] = []
    for unit, rule in product(UNITS, RULES):
        losses = nats if unit == "tokens" else [x[:, PROMPT:].mean(-1, keepdims=True) for x in nats]
        rows = np.repeat(np.arange(len(losses[0])), losses[0].shape[1])
        pair = losses[0].ravel(), losses[1].ravel()
        how = [Cascade(large=large.run.key, share=share, unit=unit, rule=rule, prompt=PROMPT)
               for share in SHARES]  # fmt: skip
        treated = [one.apply(small) for one in how]
        score = scores(small, batch, how[0], treated[0].memory[-1].weights).ravel()
        sent = [float((score >= one.chosen["threshold"]).mean()) for one in treated]
        value, best = closed(*pair, score, sent), oracle(*pair, sent)
        low, high = interval(*pair, score, sent, rows)
        for i, one in enumerate(treated):
            found.append({
                **{"part": "cascade", "unit": unit, "rule": rule, "share": SHARES[i]},
                **{"asked": sent[i], "closed": float(value[i])},
                **{"low": float(low[i]), "high": float(high[i])},
                **{"oracle": float(best[i]), "gap": float((pair[0] - pair[1]).mean())},
                "explained": one.chosen.get("explained"),
                "large_calls": one.ledger.large_calls,
                "flops": one.ledger.step_flops / large.ledger.step_flops,
                "read_bytes": one.ledger.read_bytes / large.ledger.read_bytes,
            })  # fmt: skip
    return found


def drafted(small: Subject, large: Subject) -> list[dict[str, Any]]:
    """A row for each γ: tokens for each reading of the large model, as predicted and as counted on
    what it writes after held-out prompts.
    """
    batch = small.run.splits[0].draw(small.run.data.open())
    prompt = jnp.asarray(batch.tokens[:ROWS, :PROMPT])
    target, draft = (
        nnx.merge(nnx.split(one.model.abstract())[0], one.params) for one in (large, small)
    )
    found: list[dict[str, Any]] = []
    for gamma in GAMMAS:
        treated = Speculate(draft=small.run.key, gamma=gamma).apply(large)
        out = speculate(target, draft, prompt, COUNT, gamma)
        calls = float(out.calls.sum())
        own = float(out.overlap.sum() / out.tried.sum())
        found.append({
            **{"part": "speculation", "gamma": gamma, "alpha": treated.chosen["alpha"]},
            **{"predicted": treated.chosen["tokens_per_call"], "own_alpha": own},
            "counted": float(out.kept.sum()) / calls + 1,
            "predicted_by_own_alpha": expected_tokens(own, gamma),
            "read_bytes": treated.ledger.read_bytes / large.ledger.read_bytes,
            "resident_bytes": treated.ledger.resident_bytes - large.ledger.resident_bytes,
        })  # fmt: skip
    return found


def published() -> list[dict[str, Any]]:
    """A row for each task and share, of Mixtral-8x7B and GPT-4 on the questions of a task."""
    found = []
    for task in ("gsm8k", "mmlu"):
        pair = answers(routing(task))
        rule = by_length(task)
        best = oracle(*pair, SHARES)
        found += [
            {"part": "published", "task": task, "share": share, "oracle": float(top),
             "closed": float(worth)}
            for share, top, worth in zip(SHARES, best, rule, strict=True)
        ]  # fmt: skip
    return found


def by_length(task: str) -> Sequence[float]:
    """Share of the gap that sending the longest questions closes."""
    table = routed(task)
    counts = [count for *_, count, _ in table]
    small, large, score = (
        np.repeat([float(value) for value in column], counts)
        for column in (
            [not small for small, *_ in table],
            [not large for _, large, *_ in table],
            [length for *_, length in table],
        )
    )
    return closed(small, large, score, SHARES).tolist()
