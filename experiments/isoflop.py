"""How large should a model be for the compute at hand?

The second approach of Hoffmann et al. (2022, 2203.15556, §3.2), which gave this tool its name: at
each budget of executed FLOPs one family is trained in several sizes, each on as many tokens as the
budget pays for. Too small a model has learnt what it can hold, too large a one has read too little:
the loss over the sizes is a valley, its lowest point is N*, and over budgets N* ∝ C^a. The runs of
one size are cooldown branches of its longest.

Command:   isoflop run isoflop --workers 2 && isoflop figures isoflop
Duration:  about 3 minutes of processor time, shared by the workers
Expected:  a valley at every budget with its lowest point inside the sizes; N* grows with compute.
           More slowly than C^½ was expected, as the ladder's surface says of Python code; a = .56
           [.44, .67] was found
Rule:      a budget counts where its best size is neither the smallest nor the largest; N* grows
           where the 90 % interval of a lies above 0, and other than as the tokens where it leaves
           out ½
"""

from __future__ import annotations

from isoflop.experiments.families import corpus_of, for_budget, seeds_of
from isoflop.sim.spec import Cell

BUDGETS = (2e10, 3.56e10, 6.32e10, 1.12e11, 2e11)
WIDTHS = (8, 12, 16, 20, 24, 32, 48)
DEPTH = 2


def cells(
    family: str = "dense",
    budgets: tuple[float, ...] = BUDGETS,
    widths: tuple[int, ...] = WIDTHS,
    seeds: int = 2,
    corpus: str = "kjv",
) -> list[Cell]:
    """The grid.

    Args:
        family: name of a family with a tuned learning rate.
        budgets: executed FLOPs of a run; those within 10 % of each other would be one valley.
        widths: of the two-layer models; a minimum with an interval needs five near it.
        seeds: runs of each cell, trained together.
        corpus: kjv (English), sympy (Python code), or a file of your own: book.txt.
    """
    data = corpus_of(corpus)
    return [
        for_budget(family, width, DEPTH, data, budget, seed)
        for width in widths
        for budget in budgets
        for seed in seeds_of(seeds)
    ]
