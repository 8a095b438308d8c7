"""Why data cannot determine a law, in one sentence; empty where they can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from isoflop.sim.laws.law import Law
from isoflop.sim.laws.resample import Floats, Form, cells_of, ranks

PLAIN = {"N": "model size", "D": "token count", "C": "budget", "D/N": "D/N value"}


def distinct(values: Floats) -> int:
    """How many values differ by more than one per cent."""
    return int(ranks(values).max()) + 1


def unidentifiable(
    cls: type[Law], x: Sequence[Floats], y: Floats, *, asymptote: bool = True
) -> str:
    """What the design lacks, before anything is fitted; y is log L."""
    p = len(fields(cls))
    if len(y) < p + 1:
        return f"too few points: {len(y)} for {p} parameters, and at least {p + 1} are needed"
    if np.ptp(y) < 1e-9:
        return "all losses are equal: there is no effect to fit"
    by = dict(zip(cls.inputs, x, strict=True))
    for name, need in cls.levels.items():
        top, _, bottom = name.partition("/")
        have = distinct(by[top] / by[bottom] if bottom else by[top])
        if have < need:
            word = PLAIN.get(name, f"{name} value")
            few = f"one {word}" if have == 1 else f"{have} {word}s"
            return f"only {few}: at least {need} are needed"
    if {"N", "D"} <= cls.levels.keys() and cls.levels["N"] > 2:
        r = float(np.corrcoef(np.log(by["N"]), np.log(by["D"]))[0, 1])
        if abs(r) > 0.99:
            return (
                f"N and D move together (corr(log N, log D) = {r:.3f}), so their exponents cannot "
                "be told apart: vary D at fixed N"
            )
    cells, free = int(cells_of(by, cls.inputs).max()) + 1, p if asymptote else p - 1
    if cells < free:
        return (
            f"only {cells} configurations for {free} free parameters, and seeds add none: at least "
            f"{free} different ({', '.join(cls.inputs)}) are needed"
        )
    return ""


def noise_dominated(residuals: Floats, predicted: Floats, p: int) -> str:
    """Whether the noise of residuals (n,), corrected for p parameters, is as large as the spread of
    the predictions (n,); both in log L, so that .01 is 1 %.
    """
    n = len(residuals)
    spread = float(np.mean(np.abs(residuals))) * math.sqrt(math.pi / 2)  # of a normal
    noise, signal = spread * math.sqrt(n / (n - p)), float(np.std(predicted))
    if noise < signal:
        return ""
    return (
        f"the noise ({noise:.2%} of the loss) is not below the effect ({signal:.2%}): more "
        "seeds, a wider range, or a longer evaluation"
    )


def at_bound(form: Form, theta: Floats, law: Law) -> str:
    """Which parameters ended on the edge of their range, but for those held there on purpose and
    for an asymptote of zero.
    """
    close = (theta <= form.lower + 1e-6) | (theta >= form.upper - 1e-6)
    loose = close & (form.upper > form.lower)
    if zero_asymptote(form, theta):
        loose[form.fading] = False
    if not loose.any():
        return ""
    said = ", ".join(f"{k} = {v:.3g}" for k, v in law.params().items())
    return f"{int(loose.sum())} of {len(theta)} parameters ran to the edge of its range ({said})"


def zero_asymptote(form: Form, theta: Floats) -> bool:
    """Whether the asymptote was free, and these losses are described best without one."""
    return form.fading is not None and bool(theta[form.fading] <= form.lower[form.fading])
