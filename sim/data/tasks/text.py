"""Retrieval from real text: numbers that were written into a corpus are asked for at its end.

Tokens are bytes. Text around training examples is of the corpus's training split, around held-out
ones of its held-out split; names are made of syllables, so that the text has none of them.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, PositiveInt, model_validator

from isoflop.sim.data.corpora import Corpus
from isoflop.sim.data.source import Batch, Pieces, Source
from isoflop.sim.data.tasks.base import LENGTH_MAX, Examples, Task, answered, distinct

SYLLABLES = np.array([[ord(c), ord(v)] for c in "bcdfghjklmnpqrstvwxyz" for v in "aeiou"])
NAME = 3  # syllables: over a million names


class TextRecall(Task):
    """Lines that say a name's number, written into text, and the beginning of one of them again.

    `depth` is where the line that is asked for stands, from 0 (the text's beginning) to 1 (its
    end); None: anywhere.
    """

    line: ClassVar[tuple[bytes, bytes, bytes]]  # before the name, before the number, after it
    together: ClassVar[bool]  # the lines, in one place of the text

    corpus: Literal["kjv", "sympy"] = "kjv"
    entries: PositiveInt = 1
    digits: int = Field(5, ge=1, le=64)
    depth: float | None = Field(None, ge=0, le=1)

    @model_validator(mode="after")
    def _fits_its_text(self) -> TextRecall:
        least = self.entries * self._written + self._asked
        if least > (shortest := self.shortest or self.length):
            raise ValueError(
                f"entries={self.entries} of {self._written} bytes and the question take {least} "
                f"bytes, and an example has {shortest}; use fewer entries or longer examples"
            )
        return self

    @property
    def _asked(self) -> int:
        """Bytes of the question and its answer."""
        return len(self.line[0]) + 2 * NAME + len(self.line[1]) + self.digits

    @property
    def _written(self) -> int:
        return self._asked + len(self.line[2])

    @property
    def vocab_size(self) -> int:
        return 256

    @property
    def answers(self) -> range:
        return range(ord("0"), ord("9") + 1)

    def size(self, length: int) -> int:
        return length

    def open(self) -> Source:
        return _InText(self)

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        return self.written(rng, length, Corpus(name=self.corpus).open().train)

    def written(
        self, rng: np.random.Generator, length: Int[np.ndarray, "n"], text: Pieces
    ) -> Batch:
        """Examples in windows of this text."""
        n, row, whose = len(length), np.arange(len(length))[:, None], np.arange(self.entries)
        lines = self._lines(rng, n)
        spare = length - self.entries * self._written - self._asked  # bytes of text
        asked = rng.integers(self.entries, size=n)
        where = rng.integers(spare[:, None] + 1, size=(n, 1 if self.together else self.entries))
        if self.depth is not None:
            where[:, 0] = np.rint(self.depth * spare)
            asked = asked if self.together else np.zeros(n, np.int64)
        order = np.argsort(where, axis=1, kind="stable")
        if not self.together:
            lines = np.take_along_axis(lines, order[..., None], axis=1)
            asked = np.argmax(order == asked[:, None], axis=1)
        start = np.sort(where, axis=1) + whose * self._written
        tokens = np.full((n, self.length), -1)
        place = start[..., None] + np.arange(self._written)
        tokens[row[..., None], place] = lines
        end = (length - self._asked)[:, None] + np.arange(self._asked)
        tokens[row, end] = lines[row[:, 0], asked, : self._asked]
        gap = tokens < 0
        first = rng.integers(len(text) - self.length, size=(n, 1))
        around = text.take(first + np.cumsum(gap, axis=1) - 1)
        inside = np.arange(self.length) < length[:, None]
        answer = np.zeros(tokens.shape, bool)
        answer[row, end[:, -self.digits :]] = True
        return answered(np.where(gap, around, tokens) * inside, answer)

    def _lines(self, rng: np.random.Generator, n: int) -> Int[np.ndarray, "n entries bytes"]:
        number = distinct(rng, n, len(SYLLABLES) ** NAME, self.entries)[..., None]
        syllable = number // len(SYLLABLES) ** np.arange(NAME) % len(SYLLABLES)
        name = SYLLABLES[syllable].reshape(*number.shape[:2], -1)
        digits = ord("0") + rng.integers(10, size=(*number.shape[:2], self.digits))
        before, between, after = (
            np.broadcast_to(np.array([*part], int), (*number.shape[:2], len(part)))
            for part in self.line
        )
        return np.concatenate([before, name, between, digits, after], axis=-1)


class _InText(Examples):
    def __init__(self, task: TextRecall):
        super().__init__(task)
        self.text = Corpus(name=task.corpus).open()
        self.written = task.written

    def examples(
        self, rng: np.random.Generator, length: Int[np.ndarray, "n"], held_out: bool
    ) -> Batch:
        return self.written(rng, length, self.text.held if held_out else self.text.train)

    def verify(self) -> None:
        self.text.verify()


class Needle(TextRecall):
    """Sentences `The number of NAME is 12345.` in real text; at its end one is begun again.

    The needle in a haystack, with numbers as in RULER (Hsieh et al. 2024, 2404.06654, section 3).
    `length` is in bytes, question and answer included. Dials: corpus, entries (needles, one of them
    asked for), digits, depth, length. Chance 1/10 for a digit.
    """

    kind: Literal["needle"] = "needle"
    length: int = Field(512, ge=1, le=LENGTH_MAX)
    line = b"\nThe number of ", b" is ", b".\n"
    together = False


class Phonebook(TextRecall):
    """Lines `NAME: 12345` one below the other in real text; at its end one is begun again.

    Jelassi et al. 2024 (2402.01032, section 4: look-up in a phone book, there without text around).
    `length` is in bytes, question and answer included. Dials: corpus, entries, digits, depth (of
    the book), length. Chance 1/10 for a digit.
    """

    kind: Literal["phonebook"] = "phonebook"
    length: int = Field(512, ge=1, le=LENGTH_MAX)
    entries: PositiveInt = 16
    line = b"\n", b": ", b""
    together = True
