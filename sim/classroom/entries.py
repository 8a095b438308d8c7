"""What a student's log holds, line by line, and what follows from it: the account.

submitted    a run, and the amount that is reserved for it
settled      what it was charged in the end; the rest of the reservation is free again
predicted    a design for the target, and an interval for the loss that the target reaches
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator

from isoflop.models.base import Config
from isoflop.sim.classroom.rules import Amount, Paid
from isoflop.sim.spec import Cell


class Submitted(Paid):
    kind: Literal["submitted"] = "submitted"
    cell: Cell
    reserved: Amount = Field(ge=0)
    failures: int = 0  # that the run's record told of before


class Settled(Paid):
    kind: Literal["settled"] = "settled"
    of: int  # the submission's number in the log
    charge: Amount = Field(ge=0)
    status: Literal["ok", "diverged", "failed"]
    reason: str = ""


class Predicted(Config):
    """`low` to `high` holds the loss, nats per token, at the class's level; `loss` is inside."""

    kind: Literal["predicted"] = "predicted"
    cell: Cell  # of the target's length
    loss: float = Field(gt=0)
    low: float = Field(gt=0)
    high: float = Field(gt=0)

    @model_validator(mode="after")
    def _is_ordered(self) -> Predicted:
        if not self.low <= self.loss <= self.high:
            raise ValueError(
                f"an interval must hold its own prediction: low={self.low:g} ≤ loss={self.loss:g} "
                f"≤ high={self.high:g} fails; correct one of them"
            )
        return self


Entry = Submitted | Settled | Predicted
ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


@dataclass(frozen=True)
class Purchase:
    """A submission by its number, and its end, once it has one."""

    number: int
    submitted: Submitted
    settled: Settled | None

    @property
    def key(self) -> str:
        return self.submitted.cell.run.key

    @property
    def cost(self) -> Amount:
        """What it takes of the budget, now."""
        return self.submitted.reserved if self.settled is None else self.settled.charge

    @property
    def trained(self) -> bool:
        """Whether it has a result, and need never be bought again."""
        return self.settled is not None and self.settled.status != "failed"


@dataclass(frozen=True)
class Account:
    """A student's log, counted from 1, and the budget that it is written against."""

    name: str
    budget: Amount
    log: tuple[Entry, ...] = ()

    @property
    def purchases(self) -> list[Purchase]:
        ends = {entry.of: entry for entry in self.log if isinstance(entry, Settled)}
        return [
            Purchase(i, entry, ends.get(i))
            for i, entry in enumerate(self.log, start=1)
            if isinstance(entry, Submitted)
        ]

    @property
    def waiting(self) -> Iterator[Purchase]:
        """Reserved and not yet settled, in order."""
        return (one for one in self.purchases if one.settled is None)

    @property
    def spent(self) -> Amount:
        return sum(one.cost for one in self.purchases if one.settled is not None)

    @property
    def reserved(self) -> Amount:
        return sum(one.cost for one in self.waiting)

    @property
    def left(self) -> Amount:
        return self.budget - self.spent - self.reserved

    @property
    def prediction(self) -> Predicted | None:
        """The last that was handed in."""
        return next((e for e in reversed(self.log) if isinstance(e, Predicted)), None)

    def find(self, key: str) -> Purchase | None:
        """The student's own purchase of a run that waits or has a result."""
        found = (one for one in self.purchases if one.key == key)
        return next((one for one in found if one.settled is None or one.trained), None)
