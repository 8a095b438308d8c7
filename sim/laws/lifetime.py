"""The size to train when answers are paid for too: least lifetime cost at one loss.

    min over N of  train(N, D(N)) + demand · serve(N),   L(N, D(N)) = ℓ

Sardana et al. 2024 (2401.00448), eq. 3, with train = 6·N·D and serve = 2·N FLOPs per token unless
told otherwise: an architecture's own FLOPs, bytes or dollars per token as functions of its size.
`demand` counts tokens read and written over the model's life. The loss is that of a law of N and D;
outside the sizes and token counts that it was fitted to the answer is an extrapolation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isoflop.models.errors import UserError

WIDEST = 1e4  # sizes are looked for within this factor around the training-optimal one
STEPS = 4001


@dataclass(frozen=True)
class Lifetime:
    """Two models of one loss: the cheapest to train, and the cheapest to train and use."""

    params: float
    tokens: float
    cost: float  # training and use
    train_params: float  # where training alone costs least
    train_tokens: float
    train_cost: float  # of that model: training and use

    @property
    def saved(self) -> float:
        """The share of lifetime cost that the second saves."""
        return 1.0 - self.cost / self.train_cost


def tokens_for(law: Any, N: Any, loss: float) -> Any:
    """D at which a Chinchilla-shaped law reaches `loss` with N parameters; inf where none does."""
    N = np.asarray(N, dtype=float)
    rest = loss - law.E - law.A * N**-law.alpha
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(rest > 0, (law.B / np.where(rest > 0, rest, 1.0)) ** (1 / law.beta), np.inf)


def lifetime(
    law: Any,
    loss: float,
    demand: float,
    train: Callable[[Any, Any], Any] = lambda N, D: 6.0 * N * D,
    serve: Callable[[Any], Any] = lambda N: 2.0 * N,
) -> Lifetime:
    """The size of least lifetime cost at a loss, `law` having E, A, B, α and β as plain numbers.

    Raises UserError for a loss at or below the law's floor, and for a negative demand.
    """
    if not demand >= 0:
        raise UserError(f"demand={demand:g} must be 0 or more tokens; correct it")
    if not loss > law.E:
        raise UserError(
            f"the loss must be above the law's floor E={law.E:.4g}, and is {loss:.4g}: no size "
            "reaches it; ask for a larger loss"
        )
    least = ((loss - law.E) / law.A) ** (-1.0 / law.alpha)  # N that reaches it with endless data
    sizes = least * (1.0 + np.geomspace(1e-4, WIDEST, STEPS))
    data = tokens_for(law, sizes, loss)
    training, using = train(sizes, data), demand * serve(sizes)
    first, both = int(np.argmin(training)), int(np.argmin(training + using))
    return Lifetime(
        float(sizes[both]),
        float(data[both]),
        float((training + using)[both]),
        float(sizes[first]),
        float(data[first]),
        float((training + using)[first]),
    )
