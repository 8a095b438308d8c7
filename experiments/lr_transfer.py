"""Which learning rate does each architecture want, and does one rate transfer across sizes?

Every family gets the same trials: a factor-2 sweep of the matrix rate at each size. Across widths
AdamW's rate of a matrix falls as 1/width (muP) and Muon's stays; across depths CompleteP scales
residual branches by 1/depth. If a rule holds, the best rate at the base size is the same at all. An
optimum at the sweep's edge is refused, not reported.

Command:   isoflop run lr_transfer --workers 2 && isoflop figures lr_transfer
           (--optim muon, --depths 2 4 8, --depth-rule none for the others)
Duration:  about 30 minutes on 2 cores
Expected:  the optimum moves by at most one step of the sweep from the smallest size to the largest;
           without a depth rule it falls as depth grows
"""

from __future__ import annotations

from typing import Literal

from isoflop.experiments.families import (
    BASE_DEPTH,
    BASE_WIDTH,
    OPTIMISERS,
    STUDIED,
    model,
    named,
    seeds_of,
)
from isoflop.sim.data import Corpus
from isoflop.sim.spec import Budget, Cell, Run

RATES = {
    "adamw": (0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04),
    "muon": (0.005, 0.01, 0.02, 0.04, 0.08, 0.16),
}


def cells(
    families: tuple[str, ...] = STUDIED,
    widths: tuple[int, ...] = (32, 64),
    depths: tuple[int, ...] = (2,),
    optim: Literal["adamw", "muon"] = "adamw",
    depth_rule: Literal["completep", "none"] = "completep",
    rates: tuple[float, ...] | None = None,
    steps: int = 400,
    seeds: int = 3,
) -> list[Cell]:
    """The sweep.

    Args:
        families: names of the zoo's families.
        widths: widths at which each rate is tried.
        depths: depths, in blocks; more than one for a sweep over depth, at one width.
        optim: whose rate is swept.
        depth_rule: what transfers the rate where there are several depths.
        rates: rates that are tried, instead of the optimiser's six.
        steps: training length, of 1024 tokens a step.
        seeds: runs of each cell; the loss of a rate is their mean.
    """
    base_depth = BASE_DEPTH if len(depths) > 1 and depth_rule == "completep" else None

    def run(family: str, width: int, depth: int, rate: float, seed: int) -> Run:
        own = OPTIMISERS[optim](
            lr=rate, base_width=BASE_WIDTH, warmup_steps=50, base_depth=base_depth
        )
        return Run(
            model=own.deepen(model(family, width, depth)),
            data=Corpus(name="kjv"),
            optim=own,
            budget=Budget(steps=steps, batch=8, seq_len=128, eval_tokens=32_768),
            seed=seed,
        )

    return [
        Cell(
            labels={
                "family": named(family, optim, depth_rule if len(depths) > 1 else ""),
                "width": width,
                "depth": depth,
                "lr": rate,
            },
            run=run(family, width, depth, rate, seed),
        )
        for family in families
        for width in widths
        for depth in depths
        for rate in rates or RATES[optim]
        for seed in seeds_of(seeds)
    ]
