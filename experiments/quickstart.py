"""How does the loss of four architectures fall with compute, on real text, in a few minutes?

Dense transformer, mixture of experts, Mamba and linear attention are trained on the King James
text over widths, depths, training lengths and seeds; each shorter run is a cooldown branch of the
longer one. It is the demo: enough to say with an interval which family is lowest at the budget that
all of them reach, too small to trust an exponent, and it says so.

Command:   isoflop run quickstart && isoflop report quickstart
Duration:  about 3 minutes on 2 idle cores, less than half of it compiling
Expected:  every family's loss falls with FLOPs; at 1.9 × 10¹¹ of them Mamba's is the lowest by
           about .2 nats, with an interval over seeds that excludes 0
"""

from __future__ import annotations

from isoflop.experiments.families import corpus_of, grid
from isoflop.sim.spec import Cell

SHAPES = ((32, 1), (32, 2), (48, 2), (64, 2))  # (width, depth)


def cells(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "linear"),
    steps: tuple[int, ...] = (80, 140, 240),
    seeds: int = 3,
    corpus: str = "kjv",
) -> list[Cell]:
    """The grid.

    Args:
        families: names of the zoo's families.
        steps: training lengths, of 1024 tokens a step.
        seeds: runs of each cell, trained together; an interval needs two or more.
        corpus: kjv (English), sympy (Python code), or a file of your own: book.txt.
    """
    return grid(families, SHAPES, steps, seeds, corpus_of(corpus), eval_tokens=32_768)
