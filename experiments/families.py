"""What the training experiments share: the families' models, and the rates they train with.

The rates are data: `results/learning_rates.json` is the numbers file that
`isoflop figures lr_transfer` writes of the runs in `results/lr_transfer.jsonl`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from models import zoo
from models.errors import UserError
from models.lm import ModelConfig
from sim.data import AnyData
from sim.spec import Budget, Cell, Optim, Run

RATES = Path(__file__).parent / "results" / "learning_rates.json"
BASE_WIDTH = 64
STUDIED = ("dense", "moe", "mamba", "mamba2", "linear", "gated_deltanet", "hybrid", "lstm")


def model(family: str, width: int, depth: int | None = None, vocab_size: int = 256) -> ModelConfig:
    """A zoo model by its family's name. Raises UserError for an unknown one."""
    if family not in zoo.FAMILIES:
        raise UserError(f"there is no family {family!r}; use one of {', '.join(zoo.FAMILIES)}")
    return zoo.FAMILIES[family](width, depth, vocab_size)


@cache
def tuned() -> dict[str, Any]:
    """What `figures.lr_transfer.tuned` found: `rates`, `moved`, and each family's sweep."""
    if not RATES.exists():
        raise UserError(f"{RATES.name} is missing from experiments/results; reinstall isoflop")
    return json.loads(RATES.read_text())


def optim(family: str, width: int, warmup_steps: int) -> Optim:
    """The tuned optimiser of a family at a width: one rate at BASE_WIDTH for all widths, or, where
    the 1/width rule failed, that of a sweep at this width.

    Raises UserError for a family that was never tuned, or not at this width though it has to be.
    """
    rates, remedy = tuned()["rates"], f"run `isoflop run lr_transfer --families {family}`"
    if family not in rates:
        raise UserError(
            f"{family} has no tuned learning rate (tuned: {', '.join(rates)}); {remedy}"
        )
    rate = rates[family]
    if moved := tuned()["moved"].get(family):
        best = tuned()["families"][family]["best"]
        if str(width) not in best:
            raise UserError(f"{family}: {moved}; {remedy} with --widths {width}")
        rate = best[str(width)]
    return Optim(lr=rate, base_width=BASE_WIDTH, warmup_steps=warmup_steps)


def grid(
    families: tuple[str, ...],
    shapes: tuple[tuple[int, int], ...],
    steps: tuple[int, ...],
    seeds: int,
    data: AnyData,
    eval_tokens: int,
    batch: int = 8,
    seq_len: int = 128,
) -> list[Cell]:
    """Families × (width, depth) × training lengths, of `batch` × `seq_len` tokens, × seeds."""
    return [
        cell(
            family,
            width,
            depth,
            data,
            Budget(steps=length, batch=batch, seq_len=seq_len, eval_tokens=eval_tokens),
            seed,
            warmup=50,
        )
        for family in families
        for width, depth in shapes
        for length in steps
        for seed in range(seeds)
    ]


def cell(
    family: str, width: int, depth: int, data: AnyData, budget: Budget, seed: int, warmup: int
) -> Cell:
    """One run of a width × depth × data grid, under its labels."""
    run = Run(
        model=model(family, width, depth, data.vocab_size),
        data=data,
        optim=optim(family, width, warmup),
        budget=budget,
        seed=seed,
    )
    return Cell(labels={"family": family, "width": width, "depth": depth}, run=run)
