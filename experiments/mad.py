"""Do scores on small synthetic tasks rank architectures as the ladder's loss does?

The six tasks of mechanistic architecture design (Poli et al. 2024, MAD, 2403.17844): in-context,
noisy and fuzzy recall, selective copying, compression and memorisation, on two-layer models of
every family of the ladder, at its tuned rate and for as many steps. A family's score is the mean
accuracy over tasks and seeds; the rank correlation with its loss in the ladder is told with a
permutation p.

Command:   isoflop run mad --workers 14 && isoflop figures mad
Duration:  75 minutes of one busy core for --width 32 --steps 600 --seeds 2, whose records are
           committed; the whole grid was not timed
Expected:  a rank correlation of .5 or more between score and negative loss, as MAD finds
Rule:      Spearman's correlation of the scores with the ladder's least losses, negated; resolved
           where the permutation p is below .05, on either side
"""

from __future__ import annotations

from isoflop.experiments import pick
from isoflop.experiments.families import STUDIED, model, optim, seeds_of
from isoflop.sim.data.tasks.base import Task
from isoflop.sim.data.tasks.copying import Compression, SelectiveCopying
from isoflop.sim.data.tasks.mad import FuzzyRecall, InContextRecall, Memorisation, NoisyRecall
from isoflop.sim.spec import Budget, Cell, Run

TASKS: dict[str, Task] = {
    "in_context_recall": InContextRecall(keys=16, values=16),
    "noisy_recall": NoisyRecall(keys=16, values=16),
    "fuzzy_recall": FuzzyRecall(),
    "selective_copying": SelectiveCopying(length=111),
    "compression": Compression(),
    "memorisation": Memorisation(length=127),
}
SEQ_LEN = 128
EVAL_ROWS = 256


def cells(
    families: tuple[str, ...] = STUDIED,
    tasks: tuple[str, ...] = tuple(TASKS),
    width: int = 64,
    steps: int = 800,
    batch: int = 32,
    seeds: int = 3,
) -> list[Cell]:
    """The grid.

    Args:
        families: names of families with a tuned learning rate.
        tasks: names of tasks.
        width: d_model of the two-layer models.
        steps: training length.
        batch: examples a step.
        seeds: runs of each cell, trained together.
    """
    for task in tasks:
        pick(task, TASKS, "task called")
    budget = Budget(steps=steps, batch=batch, seq_len=SEQ_LEN, eval_tokens=EVAL_ROWS * SEQ_LEN)
    return [
        Cell(
            labels={"family": family, "width": width, "depth": 2, "task": task},
            run=Run(
                model=model(family, width, 2, TASKS[task].vocab_size),
                data=TASKS[task],
                optim=optim(family, width, 50),
                budget=budget,
                seed=seed,
            ),
        )
        for task in tasks
        for family in families
        for seed in seeds_of(seeds)
    ]
