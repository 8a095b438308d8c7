"""Weights & Biases, offline unless WANDB_MODE says otherwise: `wandb sync` uploads it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from isoflop.models.errors import need
from isoflop.sim.records.trackers.base import PROJECT, Shown


@dataclass(frozen=True)
class Mirror:
    """A run of the project isoflop, or WANDB_PROJECT, for each record; its id is the run's key."""

    folder: Path

    def __post_init__(self) -> None:
        need("wandb", "wandb")

    def log(self, shown: Shown) -> None:
        """The training loss by step, the options as config, the results as summary."""
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=shown.key,
            name=shown.name,
            config=shown.options,
            dir=str(self.folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
        for step, loss in shown.curve:
            run.log({"train/loss": loss}, step=step)
        run.summary.update(shown.results)
        run.finish(exit_code=int(shown.status != "ok"))
