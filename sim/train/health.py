"""What is wrong with a training, from its losses and its errors: by rules that no result can move.

A spike is a loss more than SPIKE standard deviations above the mean of the WINDOW losses before it
(the spike score of OLMo 2, 2501.00656, which counts both directions). A run that spiked and went
on is told with the first spike and the step before it; one whose loss was ever not finite has
diverged.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from isoflop.models.errors import UserError, is_out_of_memory, shortened
from isoflop.sim.spec import Run
from isoflop.sim.train.sharding import Layout

SPIKE = 7.0  # standard deviations
WINDOW = 1000  # losses before
LEAST = 100  # of them, before anything is called a spike


class TimeLimit(UserError):
    """A job trained for longer than it was given."""


def finite(losses: Float[np.ndarray, "steps seeds"]) -> Bool[np.ndarray, "seeds"]:
    """Seeds whose losses are all finite."""
    return np.isfinite(losses).all(axis=0)


def spikes(losses: Float[np.ndarray, "steps"]) -> Int[np.ndarray, "n"]:
    """Steps, counted from 1, at which the loss is a spike."""
    x = np.asarray(losses, float)
    sums, squares = (np.concatenate([[0.0], np.cumsum(y)]) for y in (x, x * x))
    at = np.arange(len(x))
    since = np.maximum(at - WINDOW, 0)
    count = np.maximum(at - since, 1)
    mean = (sums[at] - sums[since]) / count
    variance = np.maximum((squares[at] - squares[since]) / count - mean * mean, 0.0)
    found = (at >= LEAST) & (x - mean > SPIKE * np.sqrt(variance)) & (variance > 0)
    return np.flatnonzero(found) + 1


def unsteady(losses: Float[np.ndarray, "steps"]) -> str:
    """A loss that was not finite, with the last good step; empty if all are."""
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return ""
    said = f"training loss was not finite at step {bad[0] + 1}"
    if not bad[0]:
        return f"{said}, the first"
    return f"{said}; {_last(losses[: bad[0]])}{_spiked(losses[: bad[0]], '; before it, ')}"


def spiked(losses: Float[np.ndarray, "steps"]) -> str:
    """The spikes that a run recovered from; empty if it had none."""
    return _spiked(losses, "")


def _spiked(losses: Float[np.ndarray, "steps"], before: str) -> str:
    found = spikes(losses)
    if not found.size:
        return ""
    many = f"{found.size} loss spikes, the first" if found.size > 1 else "a loss spike"
    first = int(found[0])
    return (
        f"{before}{many} at step {first} ({losses[first - 1]:.4g} nats, more than {SPIKE:g} "
        f"standard deviations above the mean before); {_last(losses[: first - 1])}"
    )


def _last(good: Float[np.ndarray, "steps"]) -> str:
    return f"the last good step is {len(good)} ({good[-1]:.4g} nats)"


def smaller(error: jax.errors.JaxRuntimeError, layout: Layout, runs: Sequence[Run]) -> Layout:
    """The layout with half as large micro-batches, for a job that a device has no memory for.

    Raises the error again if it is another, and UserError if the micro-batches cannot be halved.
    """
    said = str(error)
    if not is_out_of_memory(error):
        raise error
    run = runs[0]
    half = layout.model_copy(update={"micro_batches": 2 * layout.micro_batches})
    try:
        half.check(run.model, run.budget.batch)
    except UserError as reason:
        raise UserError(
            f"out of memory with batch={run.budget.batch}, seq_len={run.budget.seq_len} "
            f"({shortened(said.splitlines()[0], 200)}), and half as large micro-batches are none: "
            f"{reason}; take shorter sequences, fewer workers, or split the job with --layout"
        ) from error
    return half
