"""Does the loss of six ever larger models fall as a power of the compute that trained them?

Six sizes of one family, each trained with two and a half times the compute of the last, larger
models on more tokens: a line of runs near the best size of each budget (`isoflop run isoflop` looks
for it). On logarithmic axes a power law is a straight line; an irreducible loss E bends it.

Command:   isoflop run power_law --workers 2 && isoflop figures power_law
Duration:  about 2 minutes of processor time, shared by the workers
Expected:  loss falls at each step; α between .1 and .2 was expected, and is .09; six models tell no
           E
Rule:      loss falls as a power law where the law of the five cheaper models predicts the loss of
           the sixth within 3 %; an E is told where its 90 % interval lies above 0
"""

from __future__ import annotations

from isoflop.experiments.families import corpus_of, for_budget, seeds_of
from isoflop.models.errors import UserError
from isoflop.sim.grid.grid import zipped
from isoflop.sim.spec import Cell

WIDTHS = (12, 16, 24, 32, 40, 48)
BUDGETS = (4e9, 1e10, 2.5e10, 6.25e10, 1.56e11, 3.9e11)
DEPTH = 2


def cells(
    family: str = "dense",
    widths: tuple[int, ...] = WIDTHS,
    budgets: tuple[float, ...] = BUDGETS,
    seeds: int = 2,
    corpus: str = "kjv",
) -> list[Cell]:
    """The line of runs.

    Args:
        family: name of a family with a tuned learning rate.
        widths: of the two-layer models, in the order of the budgets.
        budgets: executed FLOPs, one for each width.
        seeds: runs of each cell, trained together.
        corpus: kjv (English), sympy (Python code), or a file of your own: book.txt.
    """
    if len(widths) != len(budgets):
        raise UserError(
            f"each width has a budget, and there are {len(widths)} and {len(budgets)}; give as "
            "many of both"
        )
    data = corpus_of(corpus)
    return [
        for_budget(family, turn["width"], DEPTH, data, turn["budget"], seed)
        for turn in zipped(width=widths, budget=budgets)
        for seed in seeds_of(seeds)
    ]
