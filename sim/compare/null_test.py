"""Does a comparison find nothing where there is nothing, and what was put in where it was?

For anybody's runs: one architecture beside itself, its seeds split in two halves. Without a change
intervals should cover 1 about nine times in ten; with one half's costs multiplied, the factor
should come out again (protocol of the study in experiments/README.md; synthetic surfaces in the
tests).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.sim.compare.gains import arms, gain
from isoflop.sim.records.tables import Columns


@dataclass(frozen=True)
class SelfTest:
    """One architecture against itself, its seeds split in two at random, `repeats` times."""

    factor: float  # what the second half's costs were multiplied by
    repeats: int
    covers: float  # share of intervals that contain the factor
    resolves: float  # share that exclude one
    median: float  # the gain found in the middle repeat


def null_test(columns: Columns, arm: str, *, repeats: int = 20, **options: Any) -> SelfTest:
    """No gain where there is none: intervals should contain 1 about nine times in ten."""
    return _self_test(columns, arm, 1.0, repeats, options)


def power_test(
    columns: Columns, arm: str, *, factor: float = 1.3, repeats: int = 20, **options: Any
) -> SelfTest:
    """A gain put in by hand, one half's costs times `factor`, should come out again."""
    return _self_test(columns, arm, factor, repeats, options)


def _self_test(
    columns: Columns, arm: str, factor: float, repeats: int, options: dict[str, Any]
) -> SelfTest:
    arch, seed = options.pop("arch", "arch"), options.get("seed", "seed")
    cost, level = options.pop("cost", "flops"), options.pop("level", 0.9)
    if seed not in columns:
        raise UserError(f"a self-test splits the seeds, and there is no column {seed!r}; name it")
    mine = np.array([str(v) for v in columns[arch]]) == arm
    if not mine.any():
        raise UserError(f"arm must be one of {sorted(set(map(str, columns[arch])))}, not {arm!r}")
    kept = {k: np.asarray(v)[mine] for k, v in columns.items()}
    seeds = np.unique(kept[seed].astype(str))
    if len(seeds) < 2:
        raise UserError(f"a self-test needs two seeds of {arm}, and has {len(seeds)}; train more")
    rng = np.random.default_rng(options.get("rng_seed", 0))
    gains = []
    for _ in range(repeats):
        half = rng.permutation(seeds)[: len(seeds) // 2]
        side = np.isin(kept[seed].astype(str), half)
        split = kept | {arch: np.where(side, "this half", "that half")}
        split[cost] = np.where(side, 1.0, factor) * kept[cost].astype(float)
        fitted, _ = arms(split, arch=arch, cost=cost, **options)
        found = gain(fitted["this half"], fitted["that half"], cost, level=level)
        if not found.ceg:
            raise UserError(f"the halves cannot be compared: {found.reason}")
        gains.append(found.ceg[len(found.ceg) // 2])
    return SelfTest(
        factor=factor,
        repeats=repeats,
        covers=float(np.mean([g.low <= factor <= g.high for g in gains])),
        resolves=float(np.mean([not g.low <= 1.0 <= g.high for g in gains])),
        median=float(np.median([g.value for g in gains])),
    )
