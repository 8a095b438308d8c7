"""How much clean data is worse data worth?

One model is trained on Python code, clean or made worse, and judged on clean held-out code: with a
stated share of the bytes replaced (`corrupted`), on few bytes repeated in epochs (`repeated`, so
many of them for the longest run), and on a mixture with English (`mixed`, the share of sequences
that are English). What each is worth is a data gain D_eff/D, the clean data that give the same loss
over the data that were read, by seed, with a 90 % t interval (sim/compare/data_gain.py).

Command:   isoflop run data_quality && isoflop figures data_quality
Duration:  10 minutes of one busy core
Expected:  repeating 4 times costs little (2305.16264), 32 times half or more; a tenth of corrupted
           bytes costs more than a tenth of the data; English beside code is worth a little
Rule:      data are worth less than clean where the 90 % interval of D_eff/D at the longest run lies
           below 1; a mixture's English is worth something where the interval lies above the share
           of code
"""

from __future__ import annotations

from isoflop.experiments.families import model, optim, seeds_of
from isoflop.models.errors import UserError
from isoflop.sim.data import Corpus, Corrupted, DataConfig, Duplicated, Mixture, Part
from isoflop.sim.spec import Budget, Cell, Eval, Run

CLEAN = "clean"
CODE, ENGLISH = Corpus(name="sympy"), Corpus(name="kjv")


def cells(
    family: str = "dense",
    width: int = 32,
    depth: int = 2,
    corrupted: tuple[float, ...] = (0.1, 0.3),
    epochs: tuple[int, ...] = (4, 32),
    mixed: tuple[float, ...] = (0.5,),
    steps: tuple[int, ...] = (125, 250, 500),
    seeds: int = 3,
) -> list[Cell]:
    """The grid.

    Args:
        family: name of a family of the zoo.
        width: d_model.
        depth: layers.
        corrupted: shares of the bytes that are replaced by others.
        epochs: how often the longest run reads each byte.
        mixed: shares of the sequences that are English, in quarters.
        steps: training lengths, of 1024 bytes a step.
        seeds: runs of each; an interval needs two.
    """
    tokens = max(steps) * 8 * 128
    arms: dict[str, DataConfig] = {CLEAN: CODE}
    arms |= {f"corrupted {rate:g}": Corrupted(data=CODE, rate=rate) for rate in corrupted}
    arms |= {f"repeated {n}": Duplicated(data=CODE, tokens=tokens // n) for n in epochs}
    arms |= {f"mixed {share:g}": _mixed(share) for share in mixed}
    return [
        Cell(
            labels={"family": family, "width": width, "depth": depth, "data": name},
            run=Run(
                model=model(family, width, depth),
                data=data,
                optim=optim(family, width, warmup_steps=50),
                budget=Budget(steps=length, batch=8, seq_len=128, eval_tokens=65_536),
                evals=(Eval(name="code", data=CODE, tokens=65_536),),
                seed=seed,
            ),
        )
        for name, data in arms.items()
        for length in steps
        for seed in seeds_of(seeds)
    ]


def _mixed(share: float) -> Mixture:
    english = round(4 * share)
    if not (0 < english < 4 and english == 4 * share):
        raise UserError(f"mixed={share:g} must be .25, .5 or .75; choose among them")
    return Mixture(parts=(Part(data=CODE, share=4 - english), Part(data=ENGLISH, share=english)))
