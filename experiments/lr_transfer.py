"""Which learning rate does each architecture want, and does one rate transfer across widths?

Every family gets the same trials: a factor-2 sweep of the matrix rate at two widths, with the
rate of a matrix falling as 1/width (muP under Adam). If the rule holds, the best rate at the base
width is the same at both. An optimum at the sweep's edge is refused, not reported.

Command:   isoflop run lr_transfer --workers 2 && isoflop figures lr_transfer
Duration:  about 30 minutes on 2 cores
Expected:  the optimum moves by at most one step of the sweep from width 32 to 64
"""

from __future__ import annotations

from experiments.families import BASE_WIDTH, STUDIED, model
from sim.data import Corpus
from sim.spec import Budget, Cell, Optim, Run

RATES = (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04)


def cells(
    families: tuple[str, ...] = STUDIED,
    widths: tuple[int, ...] = (32, 64),
    steps: int = 400,
    seeds: int = 3,
) -> list[Cell]:
    """The sweep.

    Args:
        families: names of the zoo's families.
        widths: widths at which each rate is tried.
        steps: training length, of 1024 tokens a step.
        seeds: runs of each cell; the loss of a rate is their mean.
    """
    return [
        Cell(
            labels={"family": family, "width": width, "depth": 2, "lr": rate},
            run=Run(
                model=model(family, width, 2),
                data=Corpus(name="kjv"),
                optim=Optim(lr=rate, base_width=BASE_WIDTH, warmup_steps=50),
                budget=Budget(steps=steps, batch=8, seq_len=128, eval_tokens=32_768),
                seed=seed,
            ),
        )
        for family in families
        for width in widths
        for rate in RATES
        for seed in range(seeds)
    ]
