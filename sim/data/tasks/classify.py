"""Classification: one label for a whole sequence, asked for after its last token."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, PositiveInt

from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, labelled


class Topic(Task):
    """Which of `classes` topics do most of the words belong to? Of ties nothing is asked.

    Each topic has `words` words of its own, all equally likely; the order says nothing. It is the
    most frequent token of Weiss et al. 2021 (RASP, 2106.06981, section 4: most-freq) with a table
    of what belongs together, which the weights have to hold. Dials: classes, words, length. Chance
    1/classes.
    """

    kind: Literal["topic"] = "topic"
    classes: int = Field(4, ge=2, le=VOCAB_MAX // 4)
    words: PositiveInt = 8
    length: int = Field(32, ge=1, le=LENGTH_MAX)

    @property
    def vocab_size(self) -> int:
        return self.classes * self.words + self.classes  # the words, then the topics' names

    @property
    def answers(self) -> range:
        return range(self.classes * self.words, self.vocab_size)

    def size(self, length: int) -> int:
        return length + 1

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        tokens = rng.integers(self.classes * self.words, size=(len(length), self.length))
        place = np.arange(self.length)
        inside = place < length[:, None]
        row = np.broadcast_to(np.arange(len(length))[:, None], tokens.shape)
        counts = np.zeros((len(length), self.classes), np.int64)
        np.add.at(counts, (row, tokens % self.classes), inside)
        ordered = np.sort(counts, axis=1)
        clear = (ordered[:, -1] > ordered[:, -2])[:, None]
        last = place == length[:, None] - 1
        named = self.classes * self.words + counts.argmax(axis=1)
        labels = np.broadcast_to(named[:, None], tokens.shape)
        return labelled(tokens * inside, labels * inside, last & clear)
