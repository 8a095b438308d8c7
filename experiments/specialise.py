"""Is a small model of one domain as good there as a large general one, and what does it forget?

Four ways to spend the same executed FLOPs, at every size. `general`: a mixture of three parts
English to one of Python code. `domain alone`: code from the beginning. `tuned`: the general model
for four fifths of the FLOPs (`parent`), then code for the rest, all weights trained on
(`Run.start`). `LoRA`: the same, but only a change of low rank of each matrix is trained. All are
judged on code and on English; what tuning forgets is the rise of the loss on English over the
parent's. Losses are compared by seed, with 90 % t intervals. The domain may also be one module of
the code; or one book of English, and code what the models are general in.

Command:   isoflop run specialise && isoflop figures specialise
           (--book psalms for a book, whose records are specialise_book.jsonl)
Duration:  5 minutes of one core; the book, whose general models read code, as long again
Expected:  tuned beats general at every size, and at a tenth of the size is beside a general model,
           which sees code in every fourth sequence; LoRA learns less and forgets less; a model of
           code alone needs half the parameters of the mixture's or fewer
Rule:      a small tuned model beats the large general one where the interval of its loss on the
           domain less the other's lies below 0, and loses where it lies above; tuning forgets where
           the interval of the rise on English lies above 0
"""

from __future__ import annotations

from pathlib import Path

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import model, optim, seeds_of
from isoflop.experiments.finished import finished
from isoflop.models.errors import UserError
from isoflop.sim.compare.specialists import DOMAIN, GENERAL, LORA, PARENT, TUNED
from isoflop.sim.cost.flops import step_flops
from isoflop.sim.data import AnyData, Corpus, Mixture, Part
from isoflop.sim.records.store import Row
from isoflop.sim.spec import Budget, Cell, Eval, Run
from isoflop.sim.treatments import Retrain, apply

DEPTH = 2
OTHERS = {  # by the domain's corpus: what models are general in, and its name among the losses
    "sympy": ("english", Corpus(name="kjv")),
    "kjv": ("code", Corpus(name="sympy")),
}
SHAPE = {"batch": 8, "seq_len": 128, "eval_tokens": 65_536}
WARMUP = 20


def measure(
    widths: tuple[int, ...] = (32, 48, 112),
    steps: int = 2000,
    share: float = 0.2,
    rank: int = 4,
    rate: float = 0.3,
    module: str | None = None,
    book: str | None = None,
    family: str = "dense",
    seeds: int = 2,
    trained: Path = Path("runs"),
    workers: int = 1,
) -> list[dict]:
    """The table: a row for each arm, size and seed.

    Args:
        widths: of the two-layer models, the smallest first; 112 has nine times the parameters of
            32, twelve times those without embedding and head.
        steps: training length of the smallest model, of 1024 tokens a step; larger ones have fewer
            steps of the same FLOPs.
        share: of the FLOPs that goes into tuning.
        rank: of LoRA's changes.
        rate: of tuning, times the rate that the size was trained with.
        module: the domain is one module of sympy, as solvers; by default all of it.
        book: the domain is one book of the King James Version, as psalms, and Python code what the
            models are general in.
        family: name of a family of the zoo.
        seeds: runs of each; an interval needs two.
        trained: the runs directory; what it lacks is trained.
        workers: processes that train.
    """
    if not 0 < share < 1:
        raise UserError(f"share={share:g} of the FLOPs must be between 0 and 1; lower it")
    if module is not None and book is not None:
        raise UserError(f"the domain is module {module} or book {book}; leave out one")
    domain = Corpus(name="kjv", book=book) if book else Corpus(name="sympy", module=module)
    cells: list[Cell] = []
    for width in widths:
        for seed in seeds_of(seeds):
            length = _as_long(family, widths[0], width, steps)
            cells += _arms(family, width, domain, length, share, rate, seed)
    rows = finished(cells, trained, workers)
    found = []
    for i, row in enumerate(rows):
        tell(f"run {i + 1} of {len(rows)}")
        found.append(_row(row, str(row.labels["arm"])))
        if row.labels["arm"] == PARENT:
            found.append(_low_rank(row, domain, rank, rate, trained))
    tell("")
    return found


def _as_long(family: str, smallest: int, width: int, steps: int) -> int:
    """Steps of the same executed FLOPs."""
    of = [
        step_flops(model(family, w, DEPTH), SHAPE["seq_len"], SHAPE["batch"])
        for w in (smallest, width)
    ]
    return round(steps * of[0]["executed"] / of[1]["executed"])


def _arms(
    family: str, width: int, domain: Corpus, steps: int, share: float, rate: float, seed: int
) -> list[Cell]:
    """Of one size and seed. Raises UserError where tuning or its parent is too short."""
    after = round(share * steps)
    if min(after, steps - after) < 2 * WARMUP:
        raise UserError(
            f"width {width} has {steps} steps, of which {after} tune, and each part must have "
            f"{2 * WARMUP}; raise --steps"
        )
    old, other = OTHERS[domain.name]
    mixed = Mixture(parts=(Part(data=other, share=3), Part(data=domain, share=1)))
    evals = (Eval(name="domain", data=domain, tokens=65_536),
             Eval(name=old, data=other, tokens=65_536))  # fmt: skip

    def run(data: AnyData, length: int, start: Run | None = None) -> Run:
        tuned = optim(family, width, WARMUP)
        if start is not None:
            slower = {name: rate * getattr(tuned, name) for name in tuned.rate_fields}
            tuned = tuned.model_copy(update=slower)
        return Run(
            model=model(family, width, DEPTH), data=data, optim=tuned, evals=evals, seed=seed,
            budget=Budget(steps=length, **SHAPE), start=start,
        )  # fmt: skip

    parent = run(mixed, steps - after)
    arms = {
        GENERAL: run(mixed, steps), PARENT: parent, DOMAIN: run(domain, steps),
        TUNED: run(domain, after, parent),
    }  # fmt: skip
    labels = {"family": family, "width": width, "depth": DEPTH, "after": after}
    return [Cell(labels=labels | {"arm": arm}, run=run) for arm, run in arms.items()]


def _row(row: Row, arm: str) -> dict:
    record = row.record
    return {
        **{"arm": arm, "family": row.labels["family"], "width": row.labels["width"]},
        **{"depth": DEPTH, "N": record.params["active"], "seed": record.run.seed},
        **{"steps": record.run.budget.steps, "flops": record.flops["executed"]},
        **{one.name: record.value(f"{one.name}.loss") for one in record.run.evals},
    }


def _low_rank(row: Row, domain: Corpus, rank: int, rate: float, runs: Path) -> dict:
    """The parent tuned as long as its full sibling was, by a change of low rank."""
    steps = int(row.labels["after"])
    how = Retrain(steps=steps, data=domain, rate=rate, lora_rank=rank)
    one = apply(row.record.key, (how,), runs)
    return _row(row, LORA) | {
        "steps": steps,
        "flops": one.ledger.train_flops,
        **{each.name: one.metrics[f"{each.name}.loss"].value for each in row.record.run.evals},
    }
