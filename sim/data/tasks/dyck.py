"""Brackets that nest to a bounded depth: a stack that a finite state holds."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field

from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, labelled


class BoundedDyck(Task):
    """Brackets of `types` nested at most `depth` deep: which may be closed next?

    Hewitt et al. 2020 (2010.07515, section 2: Dyck-(k, m)). A bracket opens or closes with the same
    probability where both are possible. The label is the bracket that may close next, asked for
    where one has just closed and another is still open (elsewhere it is plain to see). `length` is
    in brackets. Dials: types, depth, length. Chance 1/types.
    """

    kind: Literal["bounded_dyck"] = "bounded_dyck"
    types: int = Field(4, ge=2, le=VOCAB_MAX // 2)
    depth: int = Field(4, ge=2, le=64)
    length: int = Field(40, ge=3, le=LENGTH_MAX)
    shortest: int | None = Field(None, ge=3)

    @property
    def vocab_size(self) -> int:
        return 2 * self.types

    @property
    def answers(self) -> range:
        return range(self.types, 2 * self.types)

    def size(self, length: int) -> int:
        return length + 1

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, place = len(length), np.arange(self.length)
        coin = rng.integers(2, size=(self.length, n))
        after = np.stack([np.arange(self.depth + 1) - 1, np.arange(self.depth + 1) + 1], axis=1)
        after[0], after[-1] = 1, self.depth - 1
        deep = np.zeros((self.length + 1, n), np.int64)
        for t in range(self.length):
            deep[t + 1] = after[deep[t], coin[t]]
        before, now = deep[:-1].T, deep[1:].T
        opens = now > before
        types = rng.integers(self.types, size=now.shape)
        tokens, closes_next = types.copy(), np.zeros_like(types)
        for level in range(1, self.depth + 1):
            # the last bracket that was opened to this level is the one to close from it
            last = np.maximum.accumulate(np.where(opens & (now == level), place, 0), axis=1)
            found = self.types + np.take_along_axis(types, last, axis=1)
            tokens = np.where(~opens & (before == level), found, tokens)
            closes_next = np.where(now == level, found, closes_next)
        inside = place < length[:, None]
        return labelled(tokens * inside, closes_next * inside, inside & ~opens & (now > 0))
