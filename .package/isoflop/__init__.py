"""isoflop: how does this architecture scale?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.sim.evaluate.checkpoint import Checkpoint


def load(run: str | Path, runs: str | Path = "runs") -> Checkpoint:
    """A trained model, with `model`, `params`, `tokenizer`, `logits`, `loss` and `generate`.

    `run` is a run's folder, the beginning of its key in the directory `runs`, or the folder of a
    Hugging Face checkpoint. Raises ValueError (isoflop.models.errors.UserError) if it is none.
    """
    from isoflop.sim.evaluate.checkpoint import Checkpoint  # brings JAX, which help does without

    return Checkpoint.load(run, Path(runs))
