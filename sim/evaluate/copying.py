"""Recall of what stands in the context: text that is repeated, on its second reading.

A sequence is n held-out tokens, and the same n tokens again. From the second token of the repeat
on, what follows stands in the context, n tokens back: a model that can find it there has an
accuracy of 1 and no loss (Olsson et al. 2022, 2209.11895, of induction heads; Jelassi et al. 2024,
2402.01032, of how long a string a state of fixed size can hold). The first reading of the same
targets is what the model knows without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.models.errors import UserError
from isoflop.sim.data.source import Batch
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.position import Draw, Part, judge
from isoflop.sim.records.metrics import Metric


@dataclass(frozen=True)
class Copied:
    """Of repeats of `length` tokens."""

    length: int
    accuracy: Metric  # of the second reading
    first: Metric  # of the first reading of the same targets
    loss: Metric  # of the second reading
    gain: Metric  # nats of the first reading less those of the second, paired


def copying(checkpoint: Checkpoint, draw: Draw, lengths: Sequence[int]) -> list[Copied]:
    """By length. Raises UserError for a length below 2, and where the data are too short."""
    if not lengths or min(lengths) < 2:
        raise UserError("a repeat has at least 2 tokens; name longer ones")
    rows = []
    for length in sorted(set(lengths)):
        text = draw(length).tokens[:, :length]
        twice = np.concatenate([text, text], axis=1)
        found = judge(checkpoint, Batch(twice))
        again, once = slice(length, 2 * length - 1), slice(0, length - 1)

        def part(values: np.ndarray, places: slice) -> Part:
            return Part.of(values, None, places)

        gain = part(found.nats, once).less(part(found.nats, again))
        assert gain is not None
        rows.append(
            Copied(
                length,
                part(found.correct, again).mean,
                part(found.correct, once).mean,
                part(found.nats, again).mean,
                gain,
            )
        )
    return rows
