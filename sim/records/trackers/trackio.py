"""trackio: on this machine, unless its own environment variables name a Space."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from isoflop.models.errors import need
from isoflop.sim.records.trackers.base import PROJECT, Shown


@dataclass(frozen=True)
class Mirror:
    """A run of the project isoflop for each record; `trackio show` with the same TRACKIO_DIR."""

    folder: Path

    def __post_init__(self) -> None:
        need("trackio", "trackio")

    def log(self, shown: Shown) -> None:
        """The training loss by step, the results at the last step, the options as config."""
        os.environ.setdefault("TRACKIO_DIR", str(self.folder.absolute()))  # read at its import
        import trackio

        trackio.init(project=PROJECT, name=f"{shown.name} {shown.key}", config=shown.options)
        for step, loss in shown.curve:
            trackio.log({"train/loss": loss}, step=step)
        trackio.log({f"result/{k}": v for k, v in shown.results.items()}, step=shown.steps)
        trackio.finish()
