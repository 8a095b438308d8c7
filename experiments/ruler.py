r"""Does a fitted E find the entropy of a language, where the entropy is known exactly?

The language of Zipf facts (Hutter 2021, 2102.04074; Michaud et al. 2023, 2303.13506) has pairs
(k, z): k drawn from a power law, z a fixed random symbol that a model can only memorise. No model
can beat its entropy, and the excess falls as a power of the data seen. So the asymptote of a
power law fitted to losses against D has a true value to be held to.

Command:   isoflop run ruler && isoflop records ruler && isoflop fit report/ruler/ruler.csv \
           --n params.total --d tokens --flops flops.executed --law power
Duration:  about 3 minutes on 2 cores
Expected:  every loss above the entropy; the 90 % interval of E covers it. With 256 facts it does
           not: the excess stalls, and E is that of the stall (LOG.md)
"""

from __future__ import annotations

from isoflop.experiments.families import BASE_WIDTH, seeds_of
from isoflop.models.families import zoo
from isoflop.sim.data import ZipfFacts
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run


def cells(
    facts: int = 32,
    steps: tuple[int, ...] = (200, 350, 600, 1000, 1700),
    seeds: int = 3,
    width: int = 64,
) -> list[Cell]:
    """The grid: one model, many amounts of data.

    Args:
        facts: number of facts in the language.
        steps: training lengths, of 512 tokens a step.
        seeds: runs of each length, trained together.
        width: of a two-layer dense transformer.
    """
    data = ZipfFacts(facts=facts, symbols=64, alpha=0.5)
    return [
        Cell(
            labels={"family": "dense", "width": width, "depth": 2},
            run=Run(
                model=zoo.dense(width, 2, data.vocab_size),
                data=data,
                optim=AdamW(lr=0.01, base_width=BASE_WIDTH, warmup_steps=20),
                budget=Budget(steps=length, batch=16, seq_len=32),
                seed=seed,
            ),
        )
        for length in steps
        for seed in seeds_of(seeds)
    ]
