r"""Where the entropy is known exactly: does a fitted E find it, and does the excess fall by theory?

The language of Zipf facts (Hutter 2021, 2102.04074; Michaud et al. 2023, 2303.13506) has pairs
(k, z): k drawn from a power law p_k ∝ k^-(1+α), z a fixed random symbol that a model can only
memorise. No model can beat its entropy, so the loss less the entropy is an excess without a fit.

- `entropy`: 32 facts, each seen hundreds of times: the asymptote of a power law fitted to losses
  against D has a true value to be held to.
- `data`: 2048 facts, most of them rare: who learns a fact when it was seen has an excess
  ∝ D^(-α/(1+α)).
- `capacity`: the same facts and the longest training by narrower models as well: who keeps the n
  most frequent facts has an excess ∝ n^-α, and n grows with the parameters.

Command:   isoflop run known_entropy && isoflop figures known_entropy; for E the first part alone:
           isoflop records known_entropy --parts entropy, and isoflop fit on its CSV with
           --n params.total --d tokens --flops flops.executed --law power
Duration:  3 minutes on 2 cores for --parts entropy; 12 for the others on a busy machine
Expected:  every loss above the entropy; the 90 % interval of E covers it. With 256 facts it does
           not: the excess stalls, and E is that of the stall (LOG.md). The excess falls by theory
           in data; in capacity it falls faster, because every fact brings an embedding of its own.
           (It was the other way round: LOG.md)
Rule:      a slope in logarithms agrees with theory where its line's 90 % t interval holds the
           exponent, and is not resolved where the interval is wider than the exponent itself
"""

from __future__ import annotations

from isoflop.experiments import pick
from isoflop.experiments.families import BASE_WIDTH, seeds_of
from isoflop.models.families import zoo
from isoflop.sim.data import ZipfFacts
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run

FACTS = {"entropy": 32, "data": 2048, "capacity": 2048}


def cells(
    parts: tuple[str, ...] = tuple(FACTS),
    facts: int | None = None,
    steps: tuple[int, ...] = (200, 350, 600, 1000, 1700),
    seeds: int = 3,
    width: int = 64,
    narrower: tuple[int, ...] = (4, 8, 16, 32),
) -> list[Cell]:
    """The grid.

    Args:
        parts: of entropy, data, capacity.
        facts: of the language; by default 32 for entropy and 2048 for the others.
        steps: training lengths, of 512 tokens a step.
        seeds: runs of each length, trained together.
        width: of a two-layer dense transformer.
        narrower: widths of capacity, trained for the most steps; `data` has the widest.
    """
    for part in parts:
        pick(part, FACTS, "part")
    return [
        _cell(part, d, length, seed, facts or FACTS[part])
        for part in parts
        for d in (narrower if part == "capacity" else (width,))
        for length in ((max(steps),) if part == "capacity" else steps)
        for seed in seeds_of(seeds)
    ]


def _cell(part: str, width: int, steps: int, seed: int, facts: int) -> Cell:
    data = ZipfFacts(facts=facts, symbols=64, alpha=0.5)
    return Cell(
        labels={"part": part, "family": "dense", "width": width, "depth": 2},
        run=Run(
            model=zoo.dense(width, 2, data.vocab_size),
            data=data,
            optim=AdamW(lr=0.01, base_width=BASE_WIDTH, warmup_steps=20),
            budget=Budget(steps=steps, batch=16, seq_len=32),
            seed=seed,
        ),
    )
