"""How many training steps does copying a string take, against its length?

A string of letters, a separator, and the string again (Jelassi et al. 2024, 2402.01032, section 3):
attention copies strings far longer than what a state of fixed size holds, and learns it in fewer
steps. Two-layer models of every family at its tuned rate, a run for each training length and string
length; shorter runs are branches of longer ones. Judged on strings of its own length and of twice
that, which no run was trained on.

Command:   isoflop run copying --workers 14 && isoflop figures copying
Duration:  40 minutes of one busy core for --lengths 8 16 --steps 250 500 1000, and an hour beside
           other work for --lengths 32; their records are committed, the whole grid was not timed
Expected:  dense reaches 95 % first at every length, in a number of steps that hardly grows; Mamba's
           grows with the length
Rule:      steps to 95 % lie between the longest run whose mean accuracy over seeds is below .95 and
           the shortest from which on all reach it
"""

from __future__ import annotations

from isoflop.experiments.families import model, optim, seeds_of
from isoflop.sim.data.tasks.copying import StringCopying
from isoflop.sim.spec import Budget, Cell, Eval, Run

EVAL_ROWS = 256


def cells(
    families: tuple[str, ...] = ("dense", "mamba", "mamba2", "gated_deltanet", "lstm", "hybrid"),
    lengths: tuple[int, ...] = (8, 16, 32),
    steps: tuple[int, ...] = (250, 500, 1000, 2000),
    letters: int = 26,
    width: int = 64,
    batch: int = 64,
    seeds: int = 3,
) -> list[Cell]:
    """The grid.

    Args:
        families: names of families with a tuned learning rate.
        lengths: letters of the strings that are copied.
        steps: training lengths.
        letters: of the alphabet.
        width: d_model of the two-layer models.
        batch: strings a step.
        seeds: runs of each cell, trained together.
    """
    found = []
    for length in lengths:
        task, longer = (StringCopying(length=n, letters=letters) for n in (length, 2 * length))
        size = task.size(length) - 1
        far = Eval(name="x2", data=longer, tokens=EVAL_ROWS * 2 * size, seq_len=2 * size)
        found += [
            Cell(
                labels={"family": family, "width": width, "depth": 2, "length": length},
                run=Run(
                    model=model(family, width, 2, task.vocab_size),
                    data=task,
                    optim=optim(family, width, 50),
                    budget=Budget(
                        steps=count, batch=batch, seq_len=size, eval_tokens=EVAL_ROWS * size
                    ),
                    evals=(far,),
                    seed=seed,
                ),
            )
            for family in families
            for count in steps
            for seed in seeds_of(seeds)
        ]
    return found
