"""What is measured of a finished run: numbers by name, each with its standard error and count.

    loss            Σ w·nats / Σ w over held-out targets of weight w, in nats per token
    bits_per_byte   the same per byte of the text; where tokens are text and all weigh the same
    accuracy        Σ w·[the likeliest token is the target] / Σ w
    exact           share of sequences with targets of weight above 0 whose likeliest tokens are all
                    of them; where targets have weights
    loss_at_64      the loss of targets at places 64 to 127 of their sequence, counted from 0; so of
                    each power of 2, and of the first, loss_at_0; the last ends with the sequence
    NAME.loss, …    the same on the run's further evaluation set NAME (Run.evals)

With y_i the mean of w·nats and x_i that of w over sequence i of n, a metric is the ratio of means
R = Σ y / Σ x, and its standard error √(Σ (y_i − R·x_i)² / (n − 1) / n) / x̄ (Cochran 1977, Sampling
Techniques, chapter 6): where all weights are equal, that of a mean over sequences.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float
from pydantic import NonNegativeInt

from isoflop.models.base import Config

Z90 = 1.6448536269514722  # half of a central 90 % normal interval, in standard errors


class Metric(Config):
    """One number of a run, measured on held-out targets."""

    value: float
    se: float | None = None  # standard error over held-out sequences; None where unknown
    count: NonNegativeInt = 0  # targets of weight above 0 that it is the mean over


def measured(
    loss: Float[np.ndarray, " n"],
    nats: Float[np.ndarray, "n t"],
    correct: Bool[np.ndarray, "n t"],
    weights: Float[np.ndarray, "n t"] | None,
    bytes_per_token: float | None,
) -> dict[str, Metric]:
    """Metrics of an evaluation set by name, from each sequence's mean of weight · nats, and of each
    target its nats and whether it was the likeliest token. Raises pydantic's ValidationError if one
    is not finite.
    """
    if weights is None:
        share, hits, count = np.ones(len(correct)), correct.mean(-1), correct.size
    else:
        share = weights.mean(-1, dtype=np.float64)
        hits, count = (weights * correct).mean(-1, dtype=np.float64), int((weights > 0).sum())
    found = {"loss": ratio(loss, share, count)}
    if bytes_per_token is not None and weights is None:
        per_byte = 1 / math.log(2) / bytes_per_token
        value, se = found["loss"].value, found["loss"].se or 0.0
        found["bits_per_byte"] = Metric(value=value * per_byte, se=se * per_byte, count=count)
    found["accuracy"] = ratio(hits, share, count)
    if weights is not None:
        found["exact"] = _exact(correct, weights)
    return found | by_position(nats, weights)


def buckets(seq_len: int) -> dict[int, slice]:
    """Places of targets in a sequence, by the first of each bucket: 0, 1, 2 to 3, 4 to 7, …"""
    first = [0, *(2**i for i in range((seq_len - 1).bit_length()))]
    return {a: slice(a, b) for a, b in zip(first, [*first[1:], seq_len], strict=True)}


def by_position(
    nats: Float[np.ndarray, "n t"], weights: Float[np.ndarray, "n t"] | None
) -> dict[str, Metric]:
    """`loss_at_0`, `loss_at_1`, `loss_at_2`, `loss_at_4`, …: of each bucket that has any weight."""
    found = {}
    for first, places in buckets(nats.shape[1]).items():
        part = nats[:, places].astype(np.float64)
        weight = np.ones_like(part) if weights is None else weights[:, places].astype(np.float64)
        if weight.any():
            count = int((weight > 0).sum())
            found[f"loss_at_{first}"] = ratio((weight * part).mean(-1), weight.mean(-1), count)
    return found


def _exact(correct: Bool[np.ndarray, "n t"], weights: Float[np.ndarray, "n t"]) -> Metric:
    counted = np.any(weights > 0, axis=-1)
    whole = np.all(correct | (weights <= 0), axis=-1)[counted]
    return ratio(whole.astype(float), np.ones(len(whole)), len(whole))


def ratio(y: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"], count: int) -> Metric:
    """Of means over sequences, with its standard error."""
    mean = float(np.mean(x))
    value = float(np.mean(y, dtype=np.float64)) / mean
    se = float(np.std(y - value * x, ddof=1)) / math.sqrt(len(x)) / mean
    return Metric(value=value, se=se, count=count)
