"""Text that a treatment may look at: a second held-out split, and training text without near copies
of what is judged.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int

from isoflop.models.errors import UserError
from isoflop.sim.data import Batch, DataConfig
from isoflop.sim.data.ngrams import shared
from isoflop.sim.data.source import WINDOWS_MIN, drawn
from isoflop.sim.spec import Run

FRESH = 2**21  # a batch of a generated language that no run, and no retraining, has reached
GRAM = 32  # tokens in a row, by which copies are known


def judged(run: Run) -> list[Int[np.ndarray, "n s"]]:
    """The held-out sequences that the run is judged on, of all of its evaluation sets."""
    return [split.draw(split.data.open()).tokens for split in run.splits]


def second(run: Run) -> Batch:
    """Held-out sequences of the run's data that it is not judged on, as many where there are: of a
    generated language fresh ones, of text other windows of the held-out split, none of which shares
    GRAM tokens in a row with a judged one. Raises UserError where fewer than two are left.
    """
    budget, source = run.budget, run.data.open()
    own = run.splits[0].draw(source)
    rows = len(own.tokens)
    if source.train_tokens is None:
        return drawn(source, FRESH, run.seed, rows, budget.seq_len)
    every = source.held_out(4 * rows * budget.seq_len, budget.seq_len)
    gram = min(GRAM, budget.seq_len // 2 + 1)
    others = np.flatnonzero(~shared(every.tokens, [own.tokens], gram).any(-1))
    if len(others) < WINDOWS_MIN:
        raise UserError(
            f"eval_tokens={budget.eval_tokens} leaves {len(others)} windows of the held-out split "
            f"to choose by, and {WINDOWS_MIN} are needed; use a run that is judged on fewer"
        )
    kept = others[np.arange(min(rows, len(others))) * len(others) // min(rows, len(others))]
    return Batch(*(None if part is None else part[kept] for part in every))


class Shelf:
    """Training text for a store, batch after batch as a run reads it: tokens, and which of them may
    be kept, as they share no `purge` tokens in a row with what the run is judged on (None: all).

    Raises UserError where the text, which then begins to repeat, has less than `tokens`; `what`
    names the setting that asks for them.
    """

    def __init__(
        self, run: Run, data: DataConfig | None, first: int, purge: int | None, tokens: int,
        what: str,
    ):  # fmt: skip
        self.run, self.source, self.next, self.purge = run, (data or run.data).open(), first, purge
        self.what = what
        have, budget = self.source.train_tokens, run.budget
        self.rows = np.inf if have is None else have // budget.seq_len
        if (self.rows - first * budget.batch) * budget.seq_len < tokens:
            raise self._short()
        self.avoid = judged(run) if purge else []

    def draw(self) -> tuple[Batch, Bool[np.ndarray, "b s"]]:
        """The next batch."""
        budget = self.run.budget
        new = np.arange(self.next * budget.batch, (self.next + 1) * budget.batch) < self.rows
        if not new.any():
            raise self._short()
        batch = drawn(self.source, self.next, self.run.seed, budget.batch, budget.seq_len)
        self.next += 1
        allowed = np.broadcast_to(new[:, None], batch.tokens.shape)
        if self.purge is None:
            return batch, allowed
        return batch, allowed & ~shared(batch.tokens, self.avoid, self.purge)

    def _short(self) -> UserError:
        total = self.rows * self.run.budget.seq_len
        return UserError(
            f"{self.what} is more than there is of the {total:,} tokens of training text after "
            "what is left out of them; ask for less, or from an earlier batch on"
        )
