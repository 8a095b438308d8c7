"""Optimisers: a frozen config each, which says every parameter's rate and the update's direction.

An optimiser is one file here: a subclass of `sim.optim.base.Optim` with a `kind` of its own.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, SerializeAsAny

from isoflop.models.base import resolve
from isoflop.sim.optim.adamw import AdamW
from isoflop.sim.optim.base import Optim, apply
from isoflop.sim.optim.muon import Muon

AnyOptim = Annotated[SerializeAsAny[Optim], BeforeValidator(lambda value: resolve(Optim, value))]

__all__ = ["AdamW", "AnyOptim", "Muon", "Optim", "apply"]
