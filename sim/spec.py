"""What a run is: a frozen, validated value whose digest names it for ever.

Renaming an experiment, reordering a grid or adding an option to a mixer changes no digest, so it
retrains nothing.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from models.base import Config
from models.lm import ModelConfig
from sim.data import AnyData


class Optim(Config):
    """AdamW with decoupled weight decay on matrices, under warm-up, constant rate and cooldown.

    Matrices train at `lr · base_width / d_model` (muP under Adam: Yang et al. 2022, 2203.03466,
    table 3); embeddings and everything else (norms, biases, gates, A and Δ parameters) at rates
    that do not depend on width. The schedule is WSD (Hägele et al. 2024, 2405.18392).
    """

    lr: PositiveFloat
    base_width: PositiveInt = 64
    embedding_lr: PositiveFloat = 0.01
    vector_lr: PositiveFloat = 0.003
    steered_lr: PositiveFloat = 0.001  # of biases that balance experts (2408.15664, §4.1)
    warmup_steps: NonNegativeInt = 50
    cooldown: float = Field(0.2, gt=0, le=1)  # share of a run's steps over which the rate falls
    b1: float = Field(0.9, ge=0, lt=1)
    b2: float = Field(0.95, ge=0, lt=1)
    eps: PositiveFloat = 1e-10
    weight_decay: NonNegativeFloat = 0.1
    clip: PositiveFloat = 1.0  # of the global gradient norm


class Budget(Config):
    """How long a run trains, and on how many held-out tokens it is judged."""

    steps: PositiveInt
    batch: PositiveInt  # sequences per step
    seq_len: PositiveInt
    eval_tokens: PositiveInt = 131_072

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


class Run(Config):
    """One training run. Equal runs have equal keys and, on one kind of machine, equal losses."""

    model: ModelConfig
    data: AnyData
    optim: Optim
    budget: Budget
    seed: NonNegativeInt = 0
    version: PositiveInt = 1  # raised when a change of code changes what runs measure

    @model_validator(mode="after")
    def _schedule_fits(self) -> Run:
        if self.optim.warmup_steps > self.branch_step:
            raise ValueError(
                f"warmup_steps={self.optim.warmup_steps} must end before the cooldown begins at "
                f"step {self.branch_step} of {self.budget.steps}; shorten it or train longer"
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"model.vocab_size={self.model.vocab_size} must cover the data's "
                f"{self.data.vocab_size} tokens; raise it"
            )
        return self

    @property
    def branch_step(self) -> int:
        """The step at which the cooldown leaves the trunk of constant learning rate."""
        return self.budget.steps - round(self.optim.cooldown * self.budget.steps)

    @property
    def key(self) -> str:
        return digest(self)

    @property
    def cell(self) -> str:
        """Runs of one cell differ only in their seed."""
        return digest(self.model_copy(update={"seed": 0}))

    @property
    def trunk(self) -> str:
        """Runs of one trunk differ only in their steps and seed: they are trained together."""
        budget = self.budget.model_copy(update={"steps": 1})
        return digest(self.model_copy(update={"seed": 0, "budget": budget}))


class Cell(Config):
    """A run and what its experiment calls it. Labels are for grouping; they enter no digest."""

    labels: dict[str, str | int | float] = Field(default_factory=dict)
    run: Run


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values, equal text."""
    plain = value.model_dump(mode="json") if isinstance(value, Config) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def essential(value: Any) -> Any:
    """A config as plain JSON values without the fields that stand at their defaults.

    An option that is added later, with the default that keeps what was there, renames no run. A
    default may therefore never change: raise `Run.version` instead.
    """
    if isinstance(value, Config):
        return {
            name: essential(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if name == "kind" or getattr(value, name) != field.default
        }
    return [essential(item) for item in value] if isinstance(value, tuple) else value


@cache
def digest(value: Config) -> str:
    return hashlib.sha256(canonical(essential(value)).encode()).hexdigest()[:16]
