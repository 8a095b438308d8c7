"""Loss by position: of one model, and of two on the same targets.

Buckets are those of records (sim/records/metrics.py): places 0, 1, 2 to 3, 4 to 7, …. Standard
errors are over sequences. Of two models that read the same sequences the difference is taken target
by target before it is averaged, so that what makes a sequence hard for both is no noise of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from isoflop.models.errors import UserError
from isoflop.sim.data.source import WINDOWS_MIN, Batch, judged_on, spaced
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.records.metrics import Metric, by_position, ratio
from isoflop.sim.train.program import Judged

Draw = Callable[[int], Batch]  # seq_len → held-out sequences of as many targets


def held_out(checkpoint: Checkpoint, tokens: int, text: str | None = None) -> Draw:
    """About `tokens` targets of a text, or of the held-out split of the data of a run.

    Raises UserError if there is no text and no run, or no tokenizer for a text; so does a draw for
    which either is too short.
    """
    if text is None:
        if checkpoint.run is None:
            raise UserError(
                f"{checkpoint.folder} is no run, so it has no held-out data of its own; give a "
                "text with --text"
            )
        source = checkpoint.run.data.open()
        return lambda seq_len: judged_on(source, tokens, seq_len, "tokens")
    own = checkpoint.encode(text)

    def draw(seq_len: int) -> Batch:
        places = spaced(len(own), tokens, seq_len)
        if len(places) < WINDOWS_MIN:
            raise UserError(
                f"the text's {len(own)} tokens are {len(places)} windows of {seq_len}, and a "
                f"standard error needs {WINDOWS_MIN}; give a longer text, or shorter windows"
            )
        return Batch(own[places])

    return draw


def judge(checkpoint: Checkpoint, batch: Batch) -> Judged:
    """Raises UserError if a loss is not finite, or a token none of the model's."""
    vocab, top = checkpoint.model.vocab_size, int(batch.tokens.max())
    if top >= vocab:
        raise UserError(f"token {top} is none of the model's vocab_size={vocab}; use its own data")
    found = checkpoint.judge(batch.tokens, batch.targets, batch.neighbours)
    if not np.isfinite(found.nats).all():
        raise UserError(
            f"the loss of {checkpoint.folder} on these sequences is not a finite number; its "
            "weights overflow fp32"
        )
    return found


def cut(batch: Batch, seq_len: int) -> Batch:
    """The beginning of every sequence."""
    tokens, rest = batch.tokens[:, : seq_len + 1], (batch.weights, batch.labels)
    return Batch(tokens, *(None if x is None else x[:, :seq_len] for x in rest))


def loss_by_position(judged: Judged, batch: Batch) -> dict[str, Metric]:
    """`loss_at_0`, `loss_at_1`, `loss_at_2`, `loss_at_4`, …"""
    return by_position(judged.nats, batch.weights)


def difference(one: Judged, other: Judged, batch: Batch) -> dict[str, Metric]:
    """How much more loss one has than the other by position, both on the targets of the batch."""
    return by_position(one.nats.astype(np.float64) - other.nats, batch.weights)


class Part(NamedTuple):
    """Of some targets, each sequence's mean of weight · value, and that of weight."""

    total: Float[np.ndarray, " n"]
    weight: Float[np.ndarray, " n"]
    targets: int  # of weight above 0

    @classmethod
    def of(cls, values: Shaped[np.ndarray, "n t"], weights: Any, places: slice) -> Part:
        part = values[:, places].astype(np.float64)
        weight = np.ones_like(part) if weights is None else weights[:, places].astype(np.float64)
        return cls((weight * part).mean(-1), weight.mean(-1), int((weight > 0).sum()))

    @property
    def mean(self) -> Metric:
        return ratio(*self)

    def less(self, other: Part) -> Metric | None:
        """This mean less another one of the same sequences; None where either has no weight."""
        if not (self.targets and other.targets):
            return None
        noise = [
            (one.total - one.mean.value * one.weight) / one.weight.mean() for one in (self, other)
        ]
        se = float(np.std(noise[0] - noise[1], ddof=1)) / math.sqrt(len(self.total))
        return Metric(value=self.mean.value - other.mean.value, se=se, count=self.targets)
