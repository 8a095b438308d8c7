"""What a cascade's choice is worth: losses against the share that a large model answers.

Of each unit (a token, a sequence, a question) the loss of the small and of the large model is
known. A choice at random is on the line between them, and the best choice, the oracle, sends the
units where the large model gains most. A rule sends those of highest score, and is worth

    closed(x) = (L_small − L(x)) / (L_small − L_large)

of the gap. Losses may be nats, or 1 for a wrong answer and 0 for a right one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from isoflop.models.errors import UserError

Losses = Float[np.ndarray, " n"]


def closed(
    small: Losses, large: Losses, score: Losses, shares: Sequence[float]
) -> Float[np.ndarray, " s"]:
    """Share of the gap that is closed when the units of highest score go to the large model; what
    ties is sent in proportion. Raises UserError where there is no gap.
    """
    gained, counts = _by_score(score, small - large)
    return _read(gained, counts, _gap(small, large), shares)


def oracle(small: Losses, large: Losses, shares: Sequence[float]) -> Float[np.ndarray, " s"]:
    """By the best choice of so many units or fewer. Raises UserError where there is no gap."""
    gains = small - large
    gained, counts = _by_score(gains, np.maximum(gains, 0.0))
    return _read(gained, counts, _gap(small, large), shares)


def _gap(small: Losses, large: Losses) -> float:
    gap = float((small - large).mean())
    if gap <= 0:
        raise UserError(
            f"the large model must be better than the small one, and is {-gap:.3g} worse; give "
            "another one"
        )
    return gap


def _by_score(score: Losses, gains: Losses) -> tuple[np.ndarray, np.ndarray]:
    """Sums of gains, and numbers of units, of each score from the highest on."""
    _, which, counts = np.unique(-score, return_inverse=True, return_counts=True)
    return np.bincount(which, gains), counts


def _read(
    gained: np.ndarray, counts: np.ndarray, gap: float, shares: Sequence[float]
) -> Float[np.ndarray, " s"]:
    total = counts.sum()
    at = np.concatenate([[0.0], np.cumsum(counts) / total])
    worth = np.concatenate([[0.0], np.cumsum(gained) / total / gap])
    return np.interp(np.asarray(shares, float), at, worth)


def interval(
    small: Losses, large: Losses, score: Losses, shares: Sequence[float], groups: Shaped[
        np.ndarray, " n"], draws: int = 400, seed: int = 0,
) -> tuple[Float[np.ndarray, " s"], Float[np.ndarray, " s"]]:  # fmt: skip
    """90 % interval of `closed`: a bootstrap over groups of units, as the sequences of tokens."""
    rng = np.random.default_rng(seed)
    rows = [np.flatnonzero(groups == one) for one in np.unique(groups)]
    found = []
    for _ in range(draws):
        take = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        if (small[take] - large[take]).mean() > 0:
            found.append(closed(small[take], large[take], score[take], shares))
    low, high = np.quantile(found, [0.05, 0.95], axis=0)
    return low, high


def answers(
    table: Mapping[tuple[bool, bool], int],
) -> tuple[Losses, Losses]:
    """Losses of both models on each question, from how many each answers rightly: (small right,
    large right) → questions.
    """
    small = [(0.0 if pair[0] else 1.0, count) for pair, count in table.items()]
    large = [(0.0 if pair[1] else 1.0, count) for pair, count in table.items()]
    small_, large_ = (
        np.repeat([loss for loss, _ in one], [count for _, count in one]) for one in (small, large)
    )
    return small_, large_
