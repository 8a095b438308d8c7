"""How well does a law fitted to the cheap runs predict the expensive ones?

The error on the runs above a compute cut, fitted on the rest, beside two baselines and the noise:
the same law without its asymptote, and a straight log-log line through the two largest budgets. A
law that does not beat them says nothing that a straight line would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.sim.laws.diagnostics import unidentifiable
from isoflop.sim.laws.frontier import lower_envelope
from isoflop.sim.laws.law import Law
from isoflop.sim.laws.noise import seed_noise
from isoflop.sim.laws.resample import Floats, cells_of


@dataclass(frozen=True)
class HeldOut:
    """Error on the runs above a compute cut, fitted on the rest; log-loss, so .01 is 1 %."""

    cut: float  # largest training compute as a fraction of the largest compute
    n_train: int
    n_test: int
    error: float | None = None  # mean |log L̂ − log L|
    bias: float | None = None  # mean (log L̂ − log L); above zero predicts too much loss
    no_asymptote: float | None = None  # the same law with E = 0
    last_two: float | None = None  # a line in log-log through the two largest training budgets
    over_seed_noise: float | None = None  # error / standard deviation between seeds
    reason: str = ""  # why a number is missing; empty when none is

    def words(self) -> str:
        if self.error is None:
            return f"above {self.cut:g} of the largest compute: {self.reason}"
        line = "none" if self.last_two is None else f"{self.last_two:.2%}"
        return (
            f"above {self.cut:g} of the largest compute: {self.error:.2%} "
            f"(E = 0: {self.no_asymptote:.2%}, last two points: {line}) on {self.n_test} runs"
        )


def leave_largest_out(
    cls: type[Law], x: Sequence[Floats], y: Floats, cost: Floats, cut: float, *,
    delta: float, log: bool, asymptote: bool = True,
) -> HeldOut:  # fmt: skip
    """Errors of the law, with its asymptote or without as it is fitted, and of the baselines."""
    train = cost <= cost.max() * cut * (1 + 1e-9)
    sizes = (cut, int(train.sum()), int((~train).sum()))
    inside, outside = [v[train] for v in x], [v[~train] for v in x]
    if reason := unidentifiable(cls, inside, y[train], asymptote=asymptote):
        return HeldOut(*sizes, reason=reason)
    errors = {}
    for kind in {asymptote, False}:
        _, found = cls.solve(inside, y[train], asymptote=kind, delta=delta, log=log)
        law = cls.unpack(found.theta[None, int(np.argmin(found.objective))], inside).at(0)
        errors[kind] = np.log(law(*outside)) - y[~train]
    line = _last_two(np.log(cost[train]), y[train], np.log(cost[~train]))
    cells = cells_of(dict(zip(cls.inputs, x, strict=True)), cls.inputs)
    noise = seed_noise(np.exp(y[cells == i]) for i in range(int(cells.max()) + 1))
    error = float(np.mean(np.abs(errors[asymptote])))
    return HeldOut(
        *sizes,
        error=error,
        bias=float(np.mean(errors[asymptote])),
        no_asymptote=float(np.mean(np.abs(errors[False]))),
        last_two=None if line is None else float(np.mean(np.abs(line - y[~train]))),
        over_seed_noise=error / noise if noise else None,
        reason="" if noise else "no cell has two seeds, so seed noise is unknown",
    )


def _last_two(c: Floats, y: Floats, at: Floats) -> Floats | None:
    """A line through the best losses of the two largest budgets on the frontier."""
    keep = lower_envelope(np.exp(c), y)
    c, y = c[keep], y[keep]
    if len(c) < 2 or c[-1] - c[-2] < 1e-6:
        return None
    return y[-1] + (y[-1] - y[-2]) / (c[-1] - c[-2]) * (at - c[-1])
