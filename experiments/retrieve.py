"""Is what a store of text gains logarithmic in the store, and is it worth its bytes?

A small grid of each family is trained on half of its text, or taken from the runs directory, and
reads from a store of the other half (kNN-LM, exact search, λ and temperature chosen on a second
held-out split, near copies of held-out text purged). Beside it stand: the same run with as much
text again to train on; a store of the text that it was trained on; a store in random order;
passages in the context, found or random. Effective sizes are on the family's own surface. Trained
with neighbours (RETRO): the same model with a layer of chunked cross-attention to passages of the
training split, found or random, beside plain runs of as many tokens and of as many FLOPs. Fresh
facts: runs that saw Zipf facts which were never the same twice, or others than they are asked for,
look facts up in a table of five sizes.

Decision rules, from before there were records, with 90 % intervals. The gain is logarithmic where a
least-squares parabola of the seeds' gains over log2 of the store has a slope above 0 and a
curvature that 0 is inside of. Retrieval pays for its bytes where N_eff/N over the bytes held, as
multiples of the run's own, is above 1. A control gains nothing where 0 is inside of the interval of
its change over held-out sequences. Training with neighbours pays where the interval of the change
from a plain run of as many executed training FLOPs, the search's included, lies below 0; what is
gained is due to the neighbours where the runs with random ones gain nothing on plain ones of as
many tokens. Facts obey the law H + (1 − coverage) · cost, and half of that for each token, where
the measured loss is within its interval of the law at all five sizes: the cost is log(symbols)
where facts were never the same twice, and what the run itself pays for each fact where it learnt
others.

Command:   isoflop run retrieve && isoflop figures retrieve
Duration:  about eleven minutes of one core, five of them with neighbours (--parts trained); not
           timed on an idle machine
Expected:  gains grow with the store and are those of a few times the parameters at most, for many
           times the bytes; random stores gain nothing; facts obey their law
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import WARMUP, grid, model, optim, seeds_of
from isoflop.experiments.finished import finished
from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.retro import ChunkedCrossAttention
from isoflop.sim.compare.effective import of_cells
from isoflop.sim.compare.study import Study
from isoflop.sim.cost.flops import training_flops
from isoflop.sim.data import AnyData, ContextFacts, Corpus, FactTable, Retrieved, ZipfFacts
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.position import judge as judge_checkpoint
from isoflop.sim.records.store import Row
from isoflop.sim.spec import Budget, Cell, Eval, Run
from isoflop.sim.treatments import Neighbours, Passages, Subject, Treated, Treatment, apply
from isoflop.sim.treatments.base import judge

SHAPES = ((32, 1), (32, 2), (64, 2))  # (width, depth), of which the middle one retrieves
STEPS = (100, 200, 400)  # of which the middle one is half of the text
CONTROL = 16_384  # tokens in the stores of controls
PARTS = ("text", "trained", "facts")
WIDE, LONG = (64, 2), 1000  # (width, depth) and steps of the runs with neighbours
READ = {"chunk": 16, "nearest": 1, "length": 32}
PASSAGES = 32_768  # that they are found among
FACTS = {"facts": 256, "symbols": 64, "alpha": 0.5}
TABLES = (2, 8, 32, 96, 256)


def text_cells(families: tuple[str, ...], seeds: int, corpus: str) -> list[Cell]:
    """The grid on text, which the cascade shares."""
    return grid(families, SHAPES, STEPS, seeds, Corpus(name=corpus), eval_tokens=8192)


def measure(
    families: tuple[str, ...] = ("dense", "mamba"),
    stores: tuple[int, ...] = (256, 1024, 4096, 16_384, 65_536),
    passages: int = 2048,
    seeds: int = 2,
    corpus: str = "sympy",
    trained: Path = Path("runs"),
    workers: int = 1,
    parts: tuple[str, ...] = PARTS,
) -> list[dict]:
    """The table: a row for each family and arm on text, and for each table of facts.

    Args:
        families: names of families with a tuned learning rate.
        stores: tokens in the stores, of the text after what was trained on.
        passages: in the store that the context is filled from.
        seeds: runs of each cell.
        corpus: kjv (English) or sympy (Python code).
        trained: the runs directory of the plain runs; what it lacks is trained.
        workers: processes that train.
        parts: of the table: text, trained (with neighbours), facts.
    """
    if unknown := {*parts} - {*PARTS}:
        raise UserError(f"there is no part {min(unknown)!r}; use some of {', '.join(PARTS)}")
    found: list[dict[str, Any]] = []
    if "text" in parts:
        text = text_cells(families, seeds, corpus)
        found += on_text(finished(text, trained, workers), stores, passages, trained)
    if "trained" in parts:
        retro = [cell for family in families for cell in retro_cells(family, seeds, corpus)]
        rows = finished(retro, trained, workers)
        for family in families:
            tell(f"{family} trained with neighbours")
            found += on_trained([row for row in rows if row.labels["family"] == family], trained)
    if "facts" in parts:
        facts = [cell for family in families for cell in fact_cells(family, seeds)]
        for row in finished(facts, trained, workers):
            tell(f"facts of {row.labels['family']}")
            found += on_facts(row, trained)
    tell("")
    return found


def on_text(
    rows: Sequence[Row], stores: Sequence[int], passages: int, trained: Path
) -> list[dict[str, Any]]:
    """A row for each family and arm, with the seeds' changes of the loss."""
    study, half = Study(rows), STEPS[1]
    arms: list[tuple[str, int, Treatment]] = [
        *(("store", n, Neighbours(store=n, first=half)) for n in stores),
        ("seen text", CONTROL, Neighbours(store=CONTROL)),
        ("random store", CONTROL, Neighbours(store=CONTROL, first=half, shuffled=True)),
        ("passages", passages, Passages(store=passages, first=half)),
        ("random passages", passages, Passages(store=passages, first=half, shuffled=True)),
    ]
    found = []
    for family in dict.fromkeys(str(row.labels["family"]) for row in rows):
        mine = [row for row in rows if row.labels["family"] == family
                and (row.labels["width"], row.labels["depth"]) == SHAPES[1]]  # fmt: skip
        halves = [row for row in mine if row.record.run.budget.steps == half]
        for arm, count, treatment in arms:
            tell(f"{family}: {arm}, {count}")
            treated = [apply(row.record.key, (treatment,), trained) for row in halves]
            (row,) = of_cells(treated, study)
            found.append(_row(arm, count, treated) | row)
        whole = {row.record.run.seed: row.record.metrics["loss"].value for row in mine
                 if row.record.run.budget.steps == STEPS[2]}  # fmt: skip
        changes = [whole[row.record.run.seed] - row.record.metrics["loss"].value for row in halves
                   if row.record.run.seed in whole]  # fmt: skip
        found.append({"part": "text", "arm": "train on all", "family": family, "store": 0,
                      "changes": changes, "change": float(np.mean(changes))})  # fmt: skip
    return found


def _row(arm: str, count: int, treated: Sequence[Treated]) -> dict[str, Any]:
    held = max(
        (one.ledger.resident_bytes + one.ledger.store_bytes) / one.plain_ledger.resident_bytes
        for one in treated
    )
    return {
        **{"part": "text", "arm": arm, "store": count, "held_bytes": held},
        "changes": [one.change.value for one in treated],
        "errors": [one.change.se or 0.0 for one in treated],
        "chosen": [one.chosen for one in treated],
    }


def retro_cells(family: str, seeds: int, corpus: str) -> list[Cell]:
    """Runs with neighbours, found and random, and plain ones of as many tokens and of as many
    FLOPs.
    """
    plain, (width, depth) = Corpus(name=corpus), WIDE
    found = Retrieved(data=plain, store=PASSAGES, **READ)
    base = model(family, width, depth)
    cross = Block(mixer=ChunkedCrossAttention(n_heads=width // 16, **READ))
    retro = base.model_copy(update={"blocks": (*base.blocks[:1], cross, *base.blocks[1:])})

    def run(architecture: ModelConfig, data: AnyData, steps: int, seed: int = 0) -> Run:
        budget = Budget(steps=steps, batch=8, seq_len=128, eval_tokens=65_536)
        return Run(model=architecture, data=data, optim=optim(family, width, WARMUP),
                   budget=budget, seed=seed)  # fmt: skip

    whole = training_flops(run(retro, found, LONG))["executed"] + search_flops(found, LONG * 1024)
    longer = round(LONG * whole / training_flops(run(base, plain, LONG))["executed"])
    arms = {
        "neighbours": (retro, found, LONG),
        "random neighbours": (retro, found.model_copy(update={"random": True}), LONG),
        "equal tokens": (base, plain, LONG),
        "equal FLOPs": (base, plain, longer),
    }
    return [
        Cell(labels={"family": family, "width": width, "depth": depth, "arm": arm},
             run=run(*each, seed))
        for arm, each in arms.items()
        for seed in seeds_of(seeds)
    ]  # fmt: skip


def search_flops(data: Retrieved, tokens: int) -> int:
    """Of finding the neighbours of so many tokens, at the held-out text's mean."""
    source = data.open()
    batch = source.inner.held_out(65_536, 128)
    return round(source.search_flops(batch) / (batch.tokens.size - len(batch.tokens)) * tokens)


def on_trained(rows: Sequence[Row], trained: Path) -> list[dict[str, Any]]:
    """A row for each arm of a family: its change from plain runs of as many tokens, or of as many
    FLOPs, of the seeds that have a result in all of them.
    """
    arms: dict[str, dict[int, Run]] = {}
    for row in rows:
        run = row.record.run
        arms.setdefault(str(row.labels["arm"]), {})[run.seed] = run
    seeds = sorted(set.intersection(*map(set, arms.values()))) if len(arms) == 4 else []
    if not seeds:
        return []
    runs = {arm: [found[seed] for seed in seeds] for arm, found in arms.items()}
    data = runs["neighbours"][0].data
    assert isinstance(data, Retrieved)

    def losses(arm: str, given: AnyData | None = None) -> np.ndarray:
        """Nats per token of (seed, held-out sequence)."""
        split = runs[arm][0].splits[0]
        split = split._replace(data=given or split.data)
        batch = split.draw(split.data.open())
        return np.stack([
            judge_checkpoint(Checkpoint.load(run.key, trained), batch).loss for run in runs[arm]
        ])  # fmt: skip

    random = data.model_copy(update={"random": True})
    retro = losses("neighbours")
    against = {
        "neighbours": ("equal FLOPs", retro),
        "neighbours, equal tokens": ("equal tokens", retro),
        "random neighbours": ("equal tokens", losses("random neighbours")),
        "judged with random neighbours": ("equal tokens", losses("neighbours", random)),
    }
    plain = {arm: losses(arm) for arm in ("equal tokens", "equal FLOPs")}
    run = runs["neighbours"][0]
    searched = search_flops(data, run.budget.tokens)
    found = []
    for arm, (base, own) in against.items():
        apart = own - plain[base]
        found.append({
            **{"part": "trained", "arm": arm, "family": rows[0].labels["family"]},
            **{"against": base, "store": data.store, "N": run.model.cost(1).params},
            **{"D": run.budget.tokens, "plain_D": runs[base][0].budget.tokens},
            "train_flops": training_flops(run)["executed"],
            "search_flops": 0 if arm == "random neighbours" else searched,
            "plain_flops": training_flops(runs[base][0])["executed"],
            **{"loss": float(own.mean()), "change": float(apart.mean())},
            "changes": apart.mean(1).tolist(),
            "se": float(apart.mean(0).std(ddof=1) / np.sqrt(apart.shape[1])),
        })  # fmt: skip
    return found


def fact_cells(family: str, seeds: int) -> list[Cell]:
    """Runs on facts that were never the same twice, and on others than will be asked for; all are
    judged on facts that were drawn after.
    """
    drawn = Eval(name="drawn", data=ZipfFacts(seed=1, **FACTS), tokens=32_768)
    arms = {"never twice": ContextFacts(fresh=1.0, **FACTS), "others": ZipfFacts(**FACTS)}
    return [
        Cell(
            labels={"family": family, "width": 32, "depth": 1, "arm": arm},
            run=Run(
                model=model(family, 32, 1, data.vocab_size),
                data=data,
                optim=optim(family, 32, 50),
                budget=Budget(steps=1000, batch=256, seq_len=2, eval_tokens=16_384),
                evals=(drawn,),
                seed=seed,
            ),
        )
        for arm, data in arms.items()
        for seed in seeds_of(seeds)
    ]


def on_facts(row: Row, trained: Path) -> list[dict[str, Any]]:
    """A row for each table: the loss on facts that were drawn after training, and its law."""
    table = FactTable(seed=1, **FACTS)
    costs = _costs(Subject.of(Checkpoint.load(row.record.key, trained)), table)
    language, unknown = table.language.open(), float(np.log(table.symbols))
    assert language.entropy is not None
    found = []
    for count in TABLES:
        looked_up = Neighbours(
            store=count, share=1 - 1e-6, temperature=1.0, nearest=1, radius=1e-3, data=table
        )
        treated = apply(row.record.key, (looked_up,), trained)
        plain, loss = (one["drawn.loss"] for one in (treated.plain, treated.metrics))
        if row.labels["arm"] == "never twice":
            law = language.entropy + (1 - table.coverage(count)) * unknown / 2
        else:
            law = plain.value - float(table.p[:count] @ costs[:count]) / 2
        found.append({
            **{"part": "facts", **row.labels, "seed": row.record.run.seed, "store": count},
            **{"coverage": table.coverage(count), "loss": loss.value, "se": loss.se},
            **{"law": law, "plain": plain.value, "floor": language.entropy},
        })  # fmt: skip
    return found


def _costs(plain: Subject, table: FactTable) -> np.ndarray:
    """−log p(symbol) of each fact of the table by the plain run, in nats."""
    batch = table.open().batch(0, 0, table.facts, 2)
    return judge(plain, batch)[0][:, 0].astype(float)
