"""What does a longer training context buy each architecture, for the same tokens and FLOPs?

Families are trained on Python code in contexts of 128 to 2048 tokens, with as many tokens a step
whatever the context, at their tuned learning rates; shorter runs are branches of longer ones. Gains
over dense at equal executed FLOPs, losses at equal tokens, loss by position, and the
compute-optimal N against T (xLSTM's scaling laws, 2510.02228, find that attention's optimum falls
with T and a recurrence's does not). Contexts of 512 are the ladder's question beside that of 128.

Command:   isoflop run context_training --workers 14 && isoflop figures context_training
Duration:  97 minutes of one busy core for --steps 125 250 500, and 95 beside other work for the
           other four families of the ladder, --families moe mamba2 linear lstm --lengths 128 512;
           their records are committed, and the whole grid was not timed
Expected:  every family's loss at equal tokens falls with T, mostly before 512; dense's falls most,
           so that recurrences' gains over it fall with T at equal tokens and, its attention being
           charged, less at equal FLOPs
Rule:      a gain changes with T where the 90 % intervals at the shortest and the longest context
           do not overlap; N* likewise
"""

from __future__ import annotations

from isoflop.experiments.families import grid
from isoflop.models.errors import UserError
from isoflop.sim.data import Corpus
from isoflop.sim.spec import Cell

SHAPES = ((24, 2), (40, 2), (64, 2))  # (width, depth)
STEP_TOKENS = 4096


def cells(
    families: tuple[str, ...] = ("dense", "mamba", "gated_deltanet", "hybrid"),
    lengths: tuple[int, ...] = (128, 512, 2048),
    sizes: int = len(SHAPES),
    steps: tuple[int, ...] = (250, 500, 1000),
    seeds: int = 2,
) -> list[Cell]:
    """The grid.

    Args:
        families: names of families with a tuned learning rate.
        lengths: training contexts, in tokens; each divides the 4096 tokens of a step.
        sizes: how many sizes, the smallest first.
        steps: training lengths, of 4096 tokens a step.
        seeds: runs of each cell, trained together; the same bytes in the same order.
    """
    if bad := [length for length in lengths if length < 1 or STEP_TOKENS % length]:
        raise UserError(f"lengths={bad[0]} must divide the {STEP_TOKENS} tokens of a step")
    if not 1 <= sizes <= len(SHAPES):
        raise UserError(f"sizes={sizes} must be between 1 and {len(SHAPES)}, the sizes there are")
    found = []
    for length in lengths:
        part = grid(
            families, SHAPES[:sizes], steps, seeds, Corpus(name="sympy"), 131_072,
            STEP_TOKENS // length, length,
        )  # fmt: skip
        found += [Cell(labels=cell.labels | {"context": length}, run=cell.run) for cell in part]
    return found
