"""How does each architecture's loss scale with parameters and data, and which wins where?

Five sizes × three training lengths × two seeds for every family, each family with its own tuned
learning rate. Shorter runs are cooldown branches of the longest, so D is nearly free. Feeds the
Chinchilla fits, the compute-equivalent gains and the comparison of counting conventions.

Command:   isoflop run ladder --workers 2 && isoflop report ladder
Duration:  see --dry-run; --sizes and --shard make it less
Expected:  loss falls as a power of compute with an offset; exponents differ by convention more
           than by architecture
"""

from __future__ import annotations

from experiments.families import grid
from models.errors import UserError
from sim.data import Corpus
from sim.spec import Cell

SHAPES = ((24, 2), (32, 2), (48, 2), (64, 2), (64, 4))  # (width, depth): 14k to 200k parameters


def cells(
    families: tuple[str, ...] = (
        "dense",
        "moe",
        "mamba",
        "mamba2",
        "linear",
        "gated_deltanet",
        "hybrid",
        "lstm",
    ),
    sizes: int = len(SHAPES),
    steps: tuple[int, ...] = (500, 800, 1300),
    seeds: int = 2,
    corpus: str = "sympy",
) -> list[Cell]:
    """The grid.

    Args:
        families: names of the zoo's families.
        sizes: how many of the five sizes, the smallest first.
        steps: training lengths, of 512 tokens a step.
        seeds: runs of each cell, trained together; the same data order for every family.
        corpus: sympy (Python code, 15.8 MB to train on) or kjv (English, 4.0 MB).
    """
    if not 1 <= sizes <= len(SHAPES):
        raise UserError(f"sizes={sizes} must be between 1 and {len(SHAPES)}, the sizes there are")
    data = Corpus(name=corpus)
    return grid(families, SHAPES[:sizes], steps, seeds, data, eval_tokens=131_072, batch=4)
