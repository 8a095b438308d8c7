"""What a run is: a frozen, validated value whose digest names it for ever.

Renaming an experiment, reordering a grid or adding an option to a mixer changes no digest, so it
retrains nothing.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from functools import cache
from typing import Any, NamedTuple

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from isoflop.models.base import Config, Sizes, Tagged
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import AnyData, Batch, DataConfig, Source
from isoflop.sim.data.source import judged_on
from isoflop.sim.optim import AnyOptim

STEP_TOKENS_MAX = 2**28  # a step's tokens are made on the host, and this many take 1 GiB
STEPS_MIN = 500  # fewer measure the optimiser's start more than the architecture
EPOCHS_MAX = 4  # Muennighoff et al. 2023, 2305.16264: beyond it repeated tokens lose their worth


class Budget(Sizes):
    """How long a run trains, and on how many held-out tokens it is judged."""

    steps: PositiveInt
    batch: PositiveInt  # sequences per step
    seq_len: int = Field(ge=1, le=2**24)
    eval_tokens: int = Field(131_072, ge=1, le=2**28)

    @model_validator(mode="after")
    def _step_is_held(self) -> Budget:
        if self.batch_tokens > STEP_TOKENS_MAX:
            raise ValueError(
                f"batch · seq_len = {self.batch} · {self.seq_len} tokens of one step must be at "
                f"most 2^28; use a smaller batch or shorter sequences, and more steps"
            )
        return self

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens


class Eval(Sizes):
    """A further evaluation set: its held-out split gives a run the metrics `NAME.loss`, ….

    Its data must have the model's tokens: the same bytes or tokenizer.
    """

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")
    data: AnyData
    tokens: int = Field(131_072, ge=1, le=2**28)
    seq_len: int | None = Field(None, ge=1, le=2**24)  # None: that of training


class Split(NamedTuple):
    """Held-out sequences that a run is judged on."""

    name: str  # of the evaluation set; empty for the run's own data
    data: DataConfig
    tokens: int
    seq_len: int

    def metric(self, name: str) -> str:
        """What a metric of it is called: `loss`, `NAME.loss`."""
        return f"{self.name}.{name}" if self.name else name

    def draw(self, source: Source) -> Batch:
        """From its opened data. Raises UserError if they are too few for a standard error."""
        what = f"tokens of evaluation set {self.name}" if self.name else "eval_tokens"
        return judged_on(source, self.tokens, self.seq_len, what)


class Run(Config):
    """One training run. Equal runs have equal keys and, on one kind of machine, equal losses.

    With `start` it goes on from the weights of that run, of the same model and seed, with an
    optimiser and a schedule of its own; on the same data it reads what comes after that run's.
    """

    model: ModelConfig
    data: AnyData
    optim: AnyOptim
    budget: Budget
    evals: tuple[Eval, ...] = ()  # evaluation sets beside the held-out split of `data`
    seed: NonNegativeInt = 0
    version: PositiveInt = 1  # raised when a change of code changes what runs measure
    start: Run | None = Field(  # the run whose weights it goes on from; None: initial ones
        None, exclude_if=lambda start: start is None
    )

    @model_validator(mode="after")
    def _schedule_fits(self) -> Run:
        if (warmup := self.optim.warmup_steps) > self.branch_step:
            least = bisect.bisect_left(range(2**62), warmup, key=self.optim.branch_step)
            raise ValueError(
                f"steps={self.budget.steps} must be at least {least}: warmup_steps={warmup} must "
                f"end before the cooldown begins, and it begins at step {self.branch_step}; train "
                f"longer, with --steps of at least {least}"
            )
        self.optim.check(self.model)
        for split in self.splits:
            if (tokens := split.data.vocab_size) > self.model.vocab_size:
                raise ValueError(
                    f"model.vocab_size={self.model.vocab_size} must cover the data's "
                    f"{tokens} tokens ({split.data.kind}); raise it"
                )
            if (reads := self.model.retrieval) != (gives := split.data.retrieval):
                raise ValueError(
                    f"the model must read the neighbours that its data come with, as (chunk, "
                    f"nearest, length): it reads {reads and tuple(reads)}, {split.data.kind} data "
                    f"have {gives and tuple(gives)}; give both the same, with Retrieved data"
                )
            split.data.check(split.seq_len)
        if self.start is not None:
            for name in ("model", "seed"):
                if getattr(self.start, name) != getattr(self, name):
                    raise ValueError(
                        f"start.{name} must be the {name} of the run that goes on from it; give "
                        f"both the same"
                    )
        names = [one.name for one in self.evals]
        if len({*names}) < len(names):
            raise ValueError(f"evals must have a name each, and are {', '.join(names)}; rename one")
        return self

    @property
    def splits(self) -> tuple[Split, ...]:
        """Every held-out split that it is judged on, that of its own data first."""
        budget = self.budget
        return (
            Split("", self.data, budget.eval_tokens, budget.seq_len),
            *(Split(e.name, e.data, e.tokens, e.seq_len or budget.seq_len) for e in self.evals),
        )

    @property
    def branch_step(self) -> int:
        """The step at which the cooldown leaves the trunk of constant learning rate."""
        return self.optim.branch_step(self.budget.steps)

    @property
    def lineage(self) -> tuple[Run, ...]:
        """The runs that it goes on from, the last of them first."""
        return () if self.start is None else (self.start, *self.start.lineage)

    @property
    def first_step(self) -> int:
        """The step of its data that it begins at: after those of the run that it goes on from."""
        start = self.start
        if start is None or start.data != self.data:
            return 0
        shapes = [(run.budget.batch, run.budget.seq_len) for run in (self, start)]
        return start.first_step + start.budget.steps if shapes[0] == shapes[1] else 0

    @property
    def key(self) -> str:
        return digest(self)

    def _of_seed_0(self) -> Run:
        start = self.start and self.start._of_seed_0()
        return self.model_copy(update={"seed": 0, "start": start})

    @property
    def cell(self) -> str:
        """Runs of one cell differ only in their seed."""
        return digest(self._of_seed_0())

    @property
    def trunk(self) -> str:
        """Runs of one trunk differ only in their steps and seed: they are trained together."""
        budget = self.budget.model_copy(update={"steps": 1})
        return digest(self._of_seed_0().model_copy(update={"budget": budget}))


class Cell(Config):
    """A run and what its experiment calls it. Labels are for grouping; they enter no digest."""

    labels: dict[str, str | int | float] = Field(default_factory=dict)
    run: Run


def canonical(value: Any) -> str:
    """JSON with sorted keys and no white space: equal values, equal text."""
    plain = value.model_dump(mode="json") if isinstance(value, Config) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)


def essential(value: Any) -> Any:
    """A config as plain JSON values without the fields that stand at their defaults, and without
    those that say where something was found and not what it is.

    An option that is added later, with the default that keeps what was there, renames no run. A
    default may therefore never change: raise `Run.version` instead.
    """
    if isinstance(value, Config):
        return {
            name: essential(getattr(value, name))
            for name, field in type(value).model_fields.items()
            if name not in type(value).incidental
            and (_is_named(value, name) or getattr(value, name) != field.default)
        }
    return [essential(item) for item in value] if isinstance(value, tuple) else value


def _is_named(value: Config, name: str) -> bool:
    """Whether the field is the name of a kind, which is in every digest that is not implied."""
    return name == "kind" and isinstance(value, Tagged) and not value.implied


@cache
def digest(value: Config) -> str:
    return hashlib.sha256(canonical(essential(value)).encode()).hexdigest()[:16]
