"""How does each architecture's loss scale with parameters and data, and which wins where?

Sizes × three training lengths × three seeds for every family, each family with its own tuned
learning rate, at the scale of a laptop or of one GPU. Shorter runs are cooldown branches of the
longest, so D is nearly free. Feeds the Chinchilla fits, the compute-equivalent gains and the
comparison of counting conventions.

Command:   isoflop run ladder --workers 2 && isoflop report ladder
Duration:  see --dry-run; --sizes and --shard make it less
Expected:  loss falls as a power of compute with an offset; exponents differ by convention more
           than by architecture
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from isoflop.experiments.families import STUDIED, corpus_of, grid
from isoflop.models.errors import UserError
from isoflop.sim.spec import Cell


class Scale(NamedTuple):
    shapes: tuple[tuple[int, int], ...]  # (width, depth)
    steps: tuple[int, ...]
    batch: int
    seq_len: int


SCALES = {
    # 14k to 200k non-embedding parameters, 256k to 666k tokens
    "laptop": Scale(((24, 2), (32, 2), (48, 2), (64, 2), (64, 4)), (500, 800, 1300), 4, 128),
    # 98k to 1.5M, 2.0M to 8.2M
    "gpu": Scale(((64, 2), (96, 3), (128, 4), (160, 5)), (500, 1000, 2000), 16, 256),
}


def cells(
    families: tuple[str, ...] = STUDIED,
    scale: Literal["laptop", "gpu"] = "laptop",
    sizes: int | None = None,
    steps: tuple[int, ...] | None = None,
    seeds: int = 3,
    corpus: str = "sympy",
    optim: Literal["adamw", "muon"] = "adamw",
) -> list[Cell]:
    """The grid.

    Args:
        families: names of the zoo's families.
        scale: sizes, training lengths and batch: laptop, of 512 tokens a step, or gpu, of 4096.
        sizes: how many of the scale's sizes, the smallest first; all by default.
        steps: training lengths, instead of the scale's.
        seeds: runs of each cell, trained together; the same data order for every family.
        corpus: sympy (Python code, 15.8 MB to train on), kjv (English, 4.0 MB), or a file of your
            own: book.txt.
        optim: whose tuned rates the families train with.
    """
    shapes, lengths, batch, seq_len = SCALES[scale]
    if sizes is not None and not 1 <= sizes <= len(shapes):
        raise UserError(f"sizes={sizes} must be between 1 and {len(shapes)}, the sizes there are")
    data = corpus_of(corpus)
    lengths = steps or lengths
    return grid(families, shapes[:sizes], lengths, seeds, data, 131_072, batch, seq_len, kind=optim)
