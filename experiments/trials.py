"""What the experiments on tasks share: the same trials of learning rate for every family, all with
the same seeds, of which the first chooses the rate and the others report (sim/compare/trials.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from isoflop.experiments.families import BASE_WIDTH, seeds_of
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import AnyData
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Eval, Run


def trials(
    models: Mapping[str, ModelConfig],
    data: AnyData,
    budget: Budget,
    rates: Sequence[float],
    seeds: int,
    evals: tuple[Eval, ...] = (),
    **labels: str | int | float,
) -> list[Cell]:
    """Every model at every rate, which is that of a matrix at BASE_WIDTH, with every seed.

    Raises UserError for fewer than two seeds: one chooses, another reports.
    """
    if seeds < 2:
        raise UserError(f"seeds={seeds} must be at least 2: one chooses the rate, others report")
    warmup = min(100, budget.steps // 10)
    return [
        Cell(
            labels={"family": family, "width": model.d_model, "depth": len(model.blocks)}
            | labels
            | {"lr": rate},
            run=Run(
                model=model,
                data=data,
                optim=AdamW(lr=rate, base_width=BASE_WIDTH, warmup_steps=warmup),
                budget=budget,
                evals=evals,
                seed=seed,
            ),
        )
        for family, model in models.items()
        for rate in rates
        for seed in seeds_of(seeds)
    ]
