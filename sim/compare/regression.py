"""Least squares on columns of numbers, each coefficient with its 90 % t interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

SPAN = 0.95  # of each side of a 90 % interval


def coefficients(
    columns: Sequence[Float[np.ndarray, " n"]], y: Float[np.ndarray, " n"]
) -> list[list[float]]:
    """[value, low, high] of each column's coefficient, beside a constant. There must be two more
    rows than columns, of which none is a combination of others.
    """
    x = np.column_stack([np.ones(len(y)), *columns])
    theta, *_ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(y) - x.shape[1]
    variance = float(((y - x @ theta) ** 2).sum()) / freedom
    half = float(stdtrit(freedom, SPAN)) * np.sqrt(variance * np.diag(np.linalg.inv(x.T @ x)))
    return [[float(t), float(t - h), float(t + h)] for t, h in zip(theta, half, strict=True)][1:]
