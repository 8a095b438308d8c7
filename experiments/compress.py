"""How large is a compressed model effectively, and does more training make it harder to compress?

A small grid of each family is trained, or taken from the runs directory, and every finished run is
treated: weights rounded to nearest and with error feedback (GPTQ), the decoding state between
tokens, activations, masks, removed channels. What a treatment does to the loss is measured on the
run's own held-out tokens, and told as an effective size N_eff/N on the family's own surface.
Quantisation-aware training, 150 more steps whose every forward pass has int4 weights, is set beside
150 steps that know nothing of it, so that what is told is the rounding's cost alone; of the longest
runs, as it is training.

Decision rules, from before there were records: a treatment costs size where the 90 % interval of
N_eff/N is below 1. Compression grows harder with training where the slope of ln δ over ln D, at
equal size, has a 90 % interval above 0, and easier with size where that over ln N is below 0, with
δ the rise of the loss under int3 (2411.04330 finds .51 and −.34 for transformers of 30M to 220M).
The .923 that int4 weights leave of a transformer trained with them (2502.16440) is found again if
dense models' interval of quantisation-aware training holds it and is at most .3 wide, at width 64
and most tokens, where larger and smaller plain models were trained too.

Command:   isoflop run compress && isoflop figures compress
Duration:  36 minutes of one core for --families dense mamba gated_deltanet --steps 150 300 600,
           most of it treating; 5 for --families linear --kinds states at those steps; 4 for
           --families dense --steps 64 100 150 --seeds 1; the whole grid was not timed
Expected:  int8 weights cost nothing that is resolved, then int4, int3 and int2 cost more and more,
           and int4 less where training knows of it; recurrent states at int8 cost nothing either
"""

from __future__ import annotations

from pathlib import Path

from isoflop.experiments import pick
from isoflop.experiments.cli.text import tell
from isoflop.experiments.families import grid
from isoflop.experiments.finished import finished
from isoflop.models.errors import UserError
from isoflop.sim.compare.effective import of_cells
from isoflop.sim.compare.study import Study
from isoflop.sim.data import Corpus
from isoflop.sim.treatments import (
    Activations,
    Prune,
    Remove,
    Retrain,
    States,
    Treated,
    Treatment,
    Weights,
    apply,
)

SHAPES = ((32, 1), (32, 2), (64, 2), (96, 2))  # (width, depth)
AFTER = 150  # steps of retraining
CONTROL, AWARE = Retrain(steps=AFTER), Retrain(steps=AFTER, weights="int4")
TREATMENTS: tuple[tuple[Treatment, ...], ...] = (
    *((Weights(format=format),) for format in ("int8", "int4", "int3", "int2")),
    *((Weights(format=format, method="gptq"),) for format in ("int4", "int3", "int2")),
    *((States(format=format),) for format in ("int8", "fp8", "int4")),
    *((Activations(format=format),) for format in ("int8", "int4")),
    (Prune(sparsity=0.3),),
    (Prune(sparsity=0.5),),
    (Remove(what="channels", share=0.25),),
    (Prune(sparsity=0.3), Weights(format="int4")),
    (CONTROL,),
)
KINDS = tuple(dict.fromkeys(treatments[0].kind for treatments in TREATMENTS))


def measure(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "mamba2", "gated_deltanet", "lstm"),
    steps: tuple[int, ...] = (200, 500, 1200),
    kinds: tuple[str, ...] = KINDS,
    sizes: int = len(SHAPES),
    seeds: int = 2,
    corpus: str = "sympy",
    trained: Path = Path("runs"),
    workers: int = 1,
) -> list[dict]:
    """The table: a row for each cell and treatment.

    Args:
        families: names of the zoo's families.
        steps: training lengths, of 1024 tokens a step.
        kinds: of treatments, by the first thing that is done: weights, states, activations, prune,
            remove, retrain.
        sizes: how many of the four sizes, the smallest first; one gives changes of the loss and no
            effective sizes.
        seeds: runs of each cell; an interval over seeds needs two or more.
        corpus: kjv (English) or sympy (Python code).
        trained: the runs directory of the plain runs; what it lacks is trained.
        workers: processes that train.
    """
    for kind in kinds:
        pick(kind, KINDS, "kind of treatment")
    if not 1 <= sizes <= len(SHAPES):
        raise UserError(f"sizes={sizes} must be between 1 and {len(SHAPES)}; choose one of these")
    cells = grid(families, SHAPES[:sizes], steps, seeds, Corpus(name=corpus), eval_tokens=65_536)
    rows = finished(cells, trained, workers)
    study = Study(rows)
    found: list[Treated] = []
    aware: list[Treated] = []
    for i, row in enumerate(rows):
        tell(f"run {i + 1} of {len(rows)}")
        longest = row.record.run.budget.steps == max(steps)
        done = {each: apply(row.record.key, each, trained) for each in TREATMENTS
                if each[0].kind in kinds and (longest or each != (CONTROL,))}  # fmt: skip
        found += done.values()
        if control := done.get((CONTROL,)):
            aware.append(apply(row.record.key, (AWARE,), trained).over(control))
    tell("")
    beside = [row | {"control": f"retrain {AFTER}"} for row in of_cells(aware, study)]
    return [*of_cells(found, study), *beside]
