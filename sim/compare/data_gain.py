"""Data gain: how much plain data gives the loss that other data, or another goal, gave.

    D_eff / D,    S(N, D_eff) = L

with S the plain runs' loss at the same size N, over training lengths, and L the loss of what was
trained on D other tokens. It is effective size's twin (sim/compare/effective.py): that one moves
along N, this one along D. ln S is linear in ln D between the lengths that were trained, falling
(where noise lets a longer run end higher, the shorter one's loss stands); what lies outside of them
is refused and told on which side.

Runs are paired by seed: each seed has a curve and a gain of its own, and the 90 % interval is
Student's t over the seeds' ln D_eff/D, so it takes two or more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from isoflop.models.errors import UserError
from isoflop.sim.compare.effective import Effective
from isoflop.sim.compare.rankings import Interval
from isoflop.sim.records.store import Row

Curve = Mapping[float, float]  # training tokens → loss, of one seed
LENGTHS_MIN = 2  # that a curve is drawn through


def data_gain(plain: Mapping[int, Curve], losses: Mapping[int, float], tokens: float) -> Effective:
    """Of runs on `tokens` tokens with these losses by seed, beside the plain ones' by seed.

    Raises UserError for a seed without plain runs of two lengths or more.
    """
    logs = []
    for seed, loss in losses.items():
        curve = plain.get(seed, {})
        if len(curve) < LENGTHS_MIN:
            raise UserError(
                f"seed {seed} has plain runs of {len(curve)} lengths, and a data gain needs "
                f"{LENGTHS_MIN}; train more with that seed"
            )
        lengths = np.array(sorted(curve))
        falling = np.minimum.accumulate([curve[d] for d in lengths])
        if not falling[-1] <= loss <= falling[0]:
            worse = loss > falling[0]
            end = lengths[0] if worse else lengths[-1]
            return Effective(
                reason=f"the loss is {'above' if worse else 'below'} that of the "
                f"{'shortest' if worse else 'longest'} plain run ({end:.3g} tokens): D_eff/D is "
                f"{'below' if worse else 'above'} {end / tokens:.2g}"
            )
        found = np.interp(-math.log(loss), -np.log(falling), np.log(lengths))
        logs.append(float(found) - math.log(tokens))
    mean = Interval.of(logs)
    if mean.low is None or mean.high is None:
        return Effective(math.exp(mean.mean), reason="an interval needs two seeds or more")
    return Effective(math.exp(mean.mean), math.exp(mean.low), math.exp(mean.high))


def gains(
    runs: Iterable[tuple[str, int, float, float]], plain: str
) -> list[dict[str, Any]]:  # fmt: skip
    """Of every arm at every length, given (arm, seed, tokens, loss) of each run; `plain` is the
    arm that the others are measured by.
    """
    curves: dict[str, dict[int, dict[float, float]]] = {}
    for arm, seed, tokens, loss in runs:
        curves.setdefault(arm, {}).setdefault(seed, {})[tokens] = loss
    if plain not in curves:
        raise UserError(f"data gains are over runs of {plain}, and there are none; train them")
    rows = []
    for arm, seeds in curves.items():
        for tokens in sorted({d for curve in seeds.values() for d in curve}):
            losses = {seed: curve[tokens] for seed, curve in seeds.items() if tokens in curve}
            found = data_gain(curves[plain], losses, tokens)
            mean = float(np.mean(list(losses.values())))
            rows.append({"arm": arm, "tokens": tokens, "runs": len(losses), "loss": mean})
            rows[-1] |= found.json()
    return rows


def of_rows(rows: Sequence[Row], label: str, plain: str, metric: str) -> list[dict[str, Any]]:
    """`gains` of runs that a label tells apart, in a metric of theirs; those without it are left
    out.
    """
    return gains(
        (
            (str(row.labels[label]), row.record.run.seed, float(row.record.tokens), value)
            for row in rows
            if (value := row.record.value(metric)) is not None
        ),
        plain,
    )
