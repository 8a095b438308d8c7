"""Loss beyond the training length, of a model as it was trained and with what extends attention.

A recurrence, a window, and attention without positions (NoPE) are read as they are. Attention that
sees everything can also be given a window of the training length, and, where it has rotary
positions that are not scaled yet, a scaling by how much longer the sequence is: linear
interpolation, the NTK-aware base and YaRN (models/rotary.py). None is trained for: weights stay.

All read the same sequences, of which shorter lengths are the beginnings, so that differences
between lengths and between variants are paired. `beyond` is the mean loss of the targets past the
training length, less that of the second half of the training length, read as trained, in the same
sequences: below 0 the model gains from context that it was never trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float

from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.rotary import LinearScaling, NTKScaling, YarnScaling
from isoflop.sim.evaluate.checkpoint import Checkpoint
from isoflop.sim.evaluate.position import Draw, Part, cut, judge
from isoflop.sim.records.metrics import Metric, by_position

TIMES = (1, 2, 4, 8)  # the training length
AS_TRAINED = "as trained"


@dataclass(frozen=True)
class Extrapolated:
    """One variant of a model at one length."""

    variant: str
    times: int
    seq_len: int
    loss: Metric
    beyond: Metric | None  # None at the training length
    by_position: dict[str, Metric]


def variants(model: ModelConfig, trained: int, times: int) -> dict[str, ModelConfig]:
    """The model by the name of what extends it to `times` its training length, as trained first."""
    found = {AS_TRAINED: model}

    def turns(mixer: Attention) -> bool:
        return mixer.rope_base is not None and mixer.rope_scaling is None

    def sees_more(mixer: Attention) -> bool:
        return mixer.window is None or mixer.window > trained

    mixers = [b.mixer for b in model.blocks if isinstance(b.mixer, Attention)]
    if times == 1:
        return found
    if any(map(turns, mixers)):
        for scaling in (
            LinearScaling(factor=times),
            NTKScaling(factor=times),
            YarnScaling(factor=times, original=trained),
        ):
            found[scaling.kind] = _with(model, turns, rope_scaling=scaling)
    if any(map(sees_more, mixers)):
        found["window"] = _with(model, sees_more, window=trained)
    return found


def _with(model: ModelConfig, where: Callable[[Attention], bool], **change: Any) -> ModelConfig:
    """Every attention layer that is such changed."""

    def extended(block: Block) -> Block:
        mixer = block.mixer
        if not (isinstance(mixer, Attention) and where(mixer)):
            return block
        return block.model_copy(update={"mixer": mixer.model_copy(update=change)})

    return model.model_copy(update={"blocks": tuple(map(extended, model.blocks))})


def extrapolate(
    checkpoint: Checkpoint, draw: Draw, trained: int, times: Sequence[int] = TIMES
) -> list[Extrapolated]:
    """Every variant at every length, by length. Raises UserError for a training length of one token
    and where the data are too short.
    """
    if trained < 2 or not times or min(times) < 1:
        raise UserError(
            f"extrapolation needs a training length of at least 2 tokens and whole multiples of "
            f"it, not {trained} times {', '.join(map(str, times)) or 'nothing'}"
        )
    whole = draw(trained * max(times))
    plain = judge(checkpoint, whole)
    early = Part.of(plain.nats, whole.weights, slice(trained // 2, trained))

    @cache
    def windowed(model: ModelConfig) -> Float[np.ndarray, "n t"]:  # of every length the same
        return judge(replace(checkpoint, model=model), whole).nats

    rows = []
    for many in sorted(set(times)):
        seq_len = many * trained
        batch = cut(whole, seq_len)
        for name, model in variants(checkpoint.model, trained, many).items():
            read = plain.nats[:, :seq_len]
            if name == "window":
                read = windowed(model)[:, :seq_len]
            elif name != AS_TRAINED:
                read = judge(replace(checkpoint, model=model), batch).nats
            late = slice(trained, None)
            beyond = Part.of(read, batch.weights, late).less(early) if many > 1 else None
            loss = Part.of(read, batch.weights, slice(None)).mean
            places = by_position(read, batch.weights)
            rows.append(Extrapolated(name, many, seq_len, loss, beyond, places))
    return rows
