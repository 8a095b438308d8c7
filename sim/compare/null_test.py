"""Does a comparison find nothing where there is nothing, and what was put in where it was?

For anybody's runs: one architecture beside itself, its seeds split in two halves. Without a change
intervals should cover 1 about nine times in ten; with one half's costs multiplied, the factor
should come out again (protocol of the study in experiments/README.md; synthetic surfaces in the
tests). Runs are the usable rows of a comparison (`sim.compare.gains.usable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.models.errors import UserError, listed, quoted
from isoflop.sim.compare.gains import gain, of_table
from isoflop.sim.records.tables import Table

ENOUGH = 10  # different splits, below which the share of intervals that hold the truth is a guess
SEEN = 0.5  # share of splits that must tell a gain from 1 for the design to see it


@dataclass(frozen=True)
class SelfTest:
    """One architecture against itself, its seeds split in two at random, `repeats` times."""

    factor: float  # what the second half's costs were multiplied by
    repeats: int
    splits: int  # of the repeats, those that split the seeds differently
    covers: float  # share of intervals that contain the factor
    resolves: float  # share that exclude one
    median: float  # the gain found in the middle repeat


def null_test(runs: Table, arm: str, **options: Any) -> SelfTest:
    """No gain where there is none: intervals should contain 1 about nine times in ten."""
    return _self_test(runs, arm, 1.0, **options)


def power_test(runs: Table, arm: str, *, factor: float = 1.3, **options: Any) -> SelfTest:
    """A gain put in by hand, one half's costs times `factor`, should come out again."""
    return _self_test(runs, arm, factor, **options)


def verdict(null: SelfTest, power: SelfTest) -> str:
    """What the two say of the design, in words."""
    told = []
    if null.splits < ENOUGH:
        one = null.splits == 1
        told.append(
            f"{null.splits} split{'' if one else 's'} {'is' if one else 'are'} too few to tell "
            f"coverage: {ENOUGH} different ones are needed, of more seeds or --repeats"
        )
    elif null.covers < 0.9 - 2 * np.sqrt(0.9 * 0.1 / null.splits):
        told.append(
            f"{null.covers:.0%} of the null test's intervals hold 1, fewer than nine in ten: "
            "intervals of such runs are too narrow"
        )
    else:
        told.append(f"intervals hold the truth as they should: {null.covers:.0%} of the null test")
    seen, share = "sees" if power.resolves >= SEEN else "cannot see", f"{power.resolves:.0%}"
    told.append(
        f"this design {seen} a gain of {power.factor:.3g} with half its seeds: told from 1 in "
        f"{share} of the power test"
    )
    return "; ".join(told)


def _self_test(
    runs: Table,
    arm: str,
    factor: float,
    *,
    repeats: int = 20,
    draws: int = 1000,
    level: float = 0.9,
    rng_seed: int = 0,
    on_repeat: Callable[[int], None] = lambda done: None,
) -> SelfTest:
    if "seed" not in runs.columns:
        raise UserError("a self-test splits the seeds, and no column names them; name it")
    mine = runs.where(runs["arch"] == arm)
    if not len(mine):
        raise UserError(
            f"arm must be one of {listed(sorted(set(runs['arch'])))}, and is {quoted(arm)}"
        )
    seeds = np.unique(mine["seed"].astype(str))
    if len(seeds) < 2:
        raise UserError(f"a self-test needs two seeds of {arm}, and has {len(seeds)}; train more")
    rng = np.random.default_rng(rng_seed)
    gains, splits = [], set()
    for repeat in range(repeats):
        half = rng.permutation(seeds)[: len(seeds) // 2]
        side = np.isin(mine["seed"].astype(str), half)
        split = {
            "arch": np.where(side, "this half", "that half").astype(object),
            "cost": np.where(side, 1.0, factor) * mine["cost"],
        }
        fitted = of_table(Table(mine.columns | split, ()), draws=draws, rng_seed=rng_seed)
        found = gain(fitted["this half"], fitted["that half"], "cost", level=level)
        if not found.ceg:
            raise UserError(f"the halves cannot be compared: {found.reason}")
        gains.append(found.ceg[len(found.ceg) // 2])
        splits.add(frozenset((frozenset(half), frozenset(seeds) - frozenset(half))))
        on_repeat(repeat + 1)
    return SelfTest(
        factor=factor,
        repeats=repeats,
        splits=len(splits),
        covers=float(np.mean([g.low <= factor <= g.high for g in gains])),
        resolves=float(np.mean([not g.low <= 1.0 <= g.high for g in gains])),
        median=float(np.median([g.value for g in gains])),
    )
