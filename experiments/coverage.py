"""Do 90 % intervals hold the truth nine times in ten, and from how many runs on?

Losses of known laws with normal noise, fitted and compared as anybody's are, many times. A row is
one design of one arm: how often the intervals of an exponent (`exponent`: α of a power law, a of a
surface), of N*, L* and of compute-equivalent gains hold the truth; how often one law compared with
itself has a gain that is told from 1 (`false gains`) or a resolved crossing (`false crossings`);
how often a gain of 1.3 is told from 1 in the middle of the window (`power`). `declined` is the
share of fits without an interval. Trunks: branches of one trunk share `share` of their variance;
`column` says whether the table names the trunks.

Command:   isoflop run coverage --json
Duration:  10 minutes on 1 core; `--only` takes the designs whose names contain a word
Expected:  coverage of .85 to .95 wherever an interval is given, and false gains of at most .15
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.experiments.cli.text import tell
from isoflop.models.errors import UserError
from isoflop.sim.compare.design import LAB
from isoflop.sim.compare.gains import compare
from isoflop.sim.laws.cost_model import SIX_ND
from isoflop.sim.laws.forms import Chinchilla, PowerLaw
from isoflop.sim.laws.noise import SHARED
from isoflop.sim.laws.resample import Floats

Tails = Literal["normal", "t3", "outliers"]
LINE = PowerLaw(A=300.0, alpha=0.2, E=1.0)
GAIN = 1.3


@dataclass(frozen=True)
class Arms:
    """Runs of one arm: a power law's over three decades of cost, or a surface's cells."""

    form: Literal["power", "n/d"]
    shape: tuple[int, int]  # sizes and token counts; of a power law runs and 1
    missing: tuple[int, ...] = ()  # cells of the grid that were not run
    share: float = 0.0  # of a trunk's variance that its branches have in common
    column: bool = False  # whether a column `run` names each run's trunk

    @property
    def name(self) -> str:
        runs = math.prod(self.shape) - len(self.missing)
        if self.form == "power" or not (self.share or not self.column):
            return f"{self.form} {runs}"
        noise = f"branches share {self.share:g}" if self.share else "independent"
        return f"n/d {runs} of {self.shape[0]} sizes, {noise}, {'run' if self.column else 'no run'}"

    def columns(
        self, name: str, noise: float, rng: np.random.Generator, tails: Tails = "normal"
    ) -> dict[str, Any]:
        if self.form == "power":
            flops = np.geomspace(1e11, 1e14, self.shape[0])
            told = {"flops": flops, "loss": LINE(flops)}
            trunk = np.arange(len(flops))
        else:
            axes = np.geomspace(1e4, 3e5, self.shape[0]), np.geomspace(1e6, 3e7, self.shape[1])
            n, d = (np.delete(v.ravel(), self.missing) for v in np.meshgrid(*axes, indexing="ij"))
            told = {"N": n, "D": d, "flops": 6.0 * n * d, "loss": LAB(n, d)}
            trunk = np.unique(n, return_inverse=True)[1]
            if self.column:
                told["run"] = trunk if self.share else np.arange(len(n))
        own, common = (
            _noise(tails, len(trunk), rng),
            _noise(tails, int(trunk.max()) + 1, rng)[trunk],
        )
        moved = math.sqrt(1.0 - self.share) * own + math.sqrt(self.share) * common
        return {"arch": [name] * len(trunk)} | told | {"loss": told["loss"] * np.exp(noise * moved)}


def _noise(tails: Tails, count: int, rng: np.random.Generator) -> Floats:
    """Of variance 1, but for the outliers: one run in twenty is off by five times as much."""
    if tails == "t3":
        return rng.standard_t(3, count) / math.sqrt(3.0)
    size = np.where(rng.random(count) < 0.05, 5.0, 1.0) if tails == "outliers" else 1.0
    return size * rng.standard_normal(count)


DESIGNS = (
    *(Arms("power", (runs, 1)) for runs in (4, 5, 6, 8, 9, 12, 16)),
    Arms("n/d", (3, 3), missing=(1, 5, 6), column=True),
    Arms("n/d", (3, 3), missing=(6,), column=True),
    *(Arms("n/d", shape, column=True) for shape in ((3, 3), (4, 3), (4, 4))),
    *(
        Arms("n/d", (sizes, 4), share=share, column=column)
        for sizes in (3, 4, 5, 6)
        for share, column in ((SHARED, True), (SHARED, False))
    ),
    Arms("n/d", (4, 4), share=0.3, column=True),
    Arms("n/d", (4, 4), share=0.9, column=True),
    Arms("n/d", (4, 4)),
)


def measure(
    repeats: int = 100,
    draws: int = 100,
    noise: float = 0.003,
    unequal: float = 1.0,
    tails: Tails = "normal",
    only: str = "",
    seed: int = 0,
) -> list[dict]:
    """The table.

    Args:
        repeats: simulated tables of each design.
        draws: behind each interval.
        noise: standard deviation of log loss between runs.
        unequal: the second arm's noise over the first's.
        tails: of the noise; outliers are one run in twenty, five times as far off.
        only: a word of the names of the designs to measure.
        seed: of the noise.
    """
    if min(repeats, draws) < 1 or not 0.0 < noise < 1.0:
        raise UserError(
            f"repeats={repeats} and draws={draws} must be at least 1, and noise={noise} between 0 "
            "and 1"
        )
    designs = [arms for arms in DESIGNS if only in arms.name]
    if not designs:
        known = ", ".join(arms.name for arms in DESIGNS)
        raise UserError(f"only={only!r} must be part of a design's name, and they are: {known}")
    rows = []
    for arms in designs:
        tell(arms.name)
        rng = np.random.default_rng(seed)
        seen: dict[str, list[float]] = {}
        for _ in range(repeats):
            a = arms.columns("a", noise, rng, tails)
            b = arms.columns("b", noise * unequal, rng, tails)
            for key, value in (_fitted(arms, a, draws) | _compared(arms, a, b, draws)).items():
                seen.setdefault(key, []).append(value)
        rows.append({"design": arms.name} | {key: _mean(v) for key, v in seen.items()})
    tell("")
    return rows


def _mean(values: list[float]) -> float | None:
    """Of those that there are."""
    there = [value for value in values if not math.isnan(value)]
    return float(np.mean(there)) if there else None


def _fitted(arms: Arms, runs: dict[str, Any], draws: int) -> dict[str, float]:
    """Which intervals of one arm's fit hold the truth."""
    top = [float(np.max(runs["flops"]))]
    if arms.form == "power":
        law: Any = LINE
        fit = PowerLaw.fit(runs | {"C": runs["flops"]}, draws=draws, budgets=top, held_out=())
        keys = {"exponent": "alpha", "L*": f"L({top[0]:.3g})"}
    else:
        law = LAB
        fit = Chinchilla.fit(runs, draws=draws, budgets=top, held_out=())
        keys = {"exponent": "a", "N*": f"N*({top[0]:.3g})", "L*": f"L*({top[0]:.3g})"}
    truth = law.quantities(top, SIX_ND)
    out = {"declined": float(not fit.interval)}
    for name, key in keys.items():
        low, high = fit.interval.get(key, (math.nan, math.nan))
        out[name] = math.nan if not fit.interval else float(low <= truth[key] <= high)
    return out


def _compared(arms: Arms, a: dict[str, Any], b: dict[str, Any], draws: int) -> dict[str, float]:
    """What a comparison of a law with itself says, and with itself at 1.3 times the cost.

    A factor on one arm's costs is a factor on every gain.
    """
    options: dict[str, Any] = {"n": "N", "d": "D"} if arms.form == "n/d" else {}
    both = {key: np.concatenate([np.asarray(part[key]) for part in (a, b)]) for key in a}
    null = compare(both, baseline="b", draws=draws, **options)[0]
    if not null.ceg:
        return dict.fromkeys(("CEG", "false gains", "false crossings", "power"), math.nan)
    holds = [gain.low <= 1.0 <= gain.high for gain in null.ceg]
    return {
        "CEG": float(np.mean(holds)),
        "false gains": float(not all(holds)),
        "false crossings": float(any(cross.resolved for cross in null.crossovers)),
        "power": float(GAIN * null.ceg[1].low > 1.0),
    }
