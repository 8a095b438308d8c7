"""The rules of a class: what a student may spend, on which models, and what is to be predicted.

A student pays for a run what it takes, in executed FLOPs (exact, before it is trained) or in
seconds of training (reserved, and charged as measured). The target is an amount of executed FLOPs
that nobody's budget reaches. While it is hidden the rules hold only a commitment to it, the SHA-256
of the target and a random salt, so that it can neither be read nor be changed afterwards.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from isoflop.models.base import Config
from isoflop.models.errors import UserError, quoted
from isoflop.models.families import zoo
from isoflop.sim.cost.flops import param_counts, training_flops
from isoflop.sim.data import AnyData
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")  # of a student: a folder's, on any file system
ENOUGH_STEPS = 1000  # for any warm-up; only to count what a step takes
Amount = int | float  # FLOPs, exact, or seconds


class Paid(Config):
    """A config with amounts: FLOPs may be more than 64 bits hold."""

    LARGEST = 10**40


def student(name: str) -> str:
    """A student's name, unless it could not name a folder: then UserError."""
    if not NAME.fullmatch(name):
        raise UserError(
            f"a student's name must be 1 to 40 of a-z, 0-9, - and _, not begin with - or _, and is "
            f"{quoted(name)}; choose another"
        )
    return name


class Target(Paid):
    """What is to be predicted: the loss that so many executed FLOPs of training reach."""

    flops: PositiveInt
    salt: str = Field(default_factory=lambda: secrets.token_hex(16))

    @property
    def commitment(self) -> str:
        return hashlib.sha256(f"{self.flops} {self.salt}".encode()).hexdigest()


class Design(Config):
    """A model and how it is trained; data, batch and length of sequences are the class's.

    `lr` is that of matrices at width 64 and falls as 64 / width (sim/optim/adamw.py).
    """

    family: str
    width: int = Field(ge=1, le=2**16)
    depth: int = Field(ge=1, le=2**10)
    lr: float = Field(gt=0)
    seed: NonNegativeInt = 0


class Rules(Paid):
    """What a teacher decides. Amounts are in `unit`, for each student."""

    unit: Literal["flops", "seconds"] = "flops"
    budget: Amount = Field(gt=0)
    largest: Amount = Field(gt=0)  # of one run
    families: tuple[str, ...] = Field(min_length=1)
    data: AnyData
    batch: PositiveInt = 8
    seq_len: int = Field(128, ge=1, le=2**20)
    eval_tokens: int = Field(32_768, ge=1, le=2**28)
    level: float = Field(0.9, gt=0, lt=1)  # of the intervals that are handed in
    fresh: NonNegativeInt = 2  # seeds that the best design is trained again with
    announced: bool = False  # the target is told from the beginning, and runs are taken beside it
    commitment: str

    @model_validator(mode="after")
    def _can_be_kept(self) -> Rules:
        if self.largest > self.budget:
            raise ValueError(
                f"largest={self.largest:g} must be at most the budget={self.budget:g}; lower it"
            )
        for family in self.families:
            if family not in zoo.FAMILIES:
                known = ", ".join(zoo.FAMILIES)
                raise ValueError(f"there is no family {quoted(family)}; use some of {known}")
        return self

    def cell(self, design: Design, steps: int) -> Cell:
        """The run of a design. Raises UserError for a family that the class has not, or a model or
        a length that cannot be trained.
        """
        if design.family not in self.families:
            raise UserError(
                f"family {quoted(design.family)} must be one of this class's: "
                f"{', '.join(self.families)}; choose one of them"
            )
        make = zoo.FAMILIES[design.family]
        run = Run(
            model=make(design.width, design.depth, self.data.vocab_size),
            data=self.data,
            optim=AdamW(lr=design.lr),
            budget=Budget(
                steps=steps,
                batch=self.batch,
                seq_len=self.seq_len,
                eval_tokens=self.eval_tokens,
            ),
            seed=design.seed,
        )
        labels = {"family": design.family, "width": design.width, "depth": design.depth}
        return Cell(labels=labels, run=run)

    def affordable(self, design: Design, flops: int) -> Cell:
        """The longest run of a design that `flops` pay for. Raises as `cell`, and UserError where
        they pay for less than a warm-up.
        """
        each = flops_of(self.cell(design, ENOUGH_STEPS).run) // ENOUGH_STEPS
        steps = flops // each
        warmup = AdamW(lr=design.lr).warmup_steps
        if steps < 2 * warmup:
            raise UserError(
                f"width {design.width}, depth {design.depth} takes {each:.3g} FLOPs a step, and "
                f"{flops:.3g} FLOPs pay for {steps} steps, of which {warmup} warm up; hand in a "
                "smaller model"
            )
        return self.cell(design, steps)


def flops_of(run: Run) -> int:
    """Executed FLOPs of its whole training."""
    return training_flops(run)["executed"]


def parameters(run: Run) -> int:
    """All of them, embedding and head too."""
    return param_counts(run.model)["total"]
