"""Copying: what was read has to be written again, whole, in part, or by its places."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, PositiveInt, model_validator

from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, answered


class StringCopying(Task):
    """A string of letters, a separator, and the string again, whose letters are the answers.

    Jelassi et al. 2024 (2402.01032, section 3.1: trained up to 300 letters, tested beyond).
    `length` is in letters. Dials: letters (of the alphabet), length. Chance 1/letters.
    """

    kind: Literal["string_copying"] = "string_copying"
    letters: int = Field(26, ge=2, le=VOCAB_MAX - 1)
    length: int = Field(20, ge=1, le=LENGTH_MAX // 2 - 1)

    @property
    def vocab_size(self) -> int:
        return self.letters + 1

    @property
    def answers(self) -> range:
        return range(self.letters)

    def size(self, length: int) -> int:
        return 2 * length + 1

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        string = rng.integers(self.letters, size=(len(length), self.length))
        middle, place = length[:, None], np.arange(self.size(self.length))
        source = np.where(place < middle, place, place - middle - 1).clip(0, self.length - 1)
        tokens = np.take_along_axis(string, source, axis=1)
        tokens = np.where(place == middle, self.letters, tokens)
        return answered(tokens, (place > middle) & (place <= 2 * middle))


class SelectiveCopying(Task):
    """`copied` tokens among blanks, a separator, and the tokens again, in order, without blanks.

    MAD (2403.17844, section 3.1) and Gu & Dao 2023, Mamba (2312.00752, section 4.1.1: 16 of 16
    kinds in 4096). `length` is in tokens before the separator. Dials: copied, symbols, length.
    Chance 1/symbols.
    """

    kind: Literal["selective_copying"] = "selective_copying"
    copied: PositiveInt = 16
    symbols: int = Field(16, ge=2, le=VOCAB_MAX - 2)
    length: int = Field(64, ge=1, le=LENGTH_MAX)

    @model_validator(mode="after")
    def _has_room(self) -> SelectiveCopying:
        if self.copied > (shortest := self.shortest or self.length):
            raise ValueError(
                f"copied={self.copied} tokens must stand among {shortest}, the length of an "
                f"example; use fewer or longer examples"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.symbols + 2

    @property
    def answers(self) -> range:
        return range(self.symbols)

    def size(self, length: int) -> int:
        return length + 1 + self.copied

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, row = len(length), np.arange(len(length))[:, None]
        what = rng.integers(self.symbols, size=(n, self.copied))
        when = rng.random((n, self.length))
        when[np.arange(self.length) >= length[:, None]] = np.inf
        where = np.sort(np.argsort(when, axis=1)[:, : self.copied], axis=1)
        again = length[:, None] + 1 + np.arange(self.copied)
        tokens = np.full((n, self.size(self.length)), self.symbols)
        answer = np.zeros(tokens.shape, bool)
        tokens[row, where] = tokens[row, again] = what
        tokens[row, length[:, None]] = self.symbols + 1
        answer[row, again] = True
        return answered(tokens, answer)


class Compression(Task):
    """A random string, a mark, then places of it in random order, each followed by its symbol.

    After MAD's compression (2403.17844, section 3.1), in which the state at the mark alone is
    decoded, place by place, by an MLP. There is none here: places are tokens, and what may still
    be looked at is up to the mixer, so attention has nothing to compress. `length` is in symbols.
    Dials: symbols, length, asked (places). Chance 1/symbols.
    """

    kind: Literal["compression"] = "compression"
    symbols: int = Field(16, ge=2, le=VOCAB_MAX)
    length: int = Field(32, ge=1, le=VOCAB_MAX)
    asked: PositiveInt = 8

    @model_validator(mode="after")
    def _has_places(self) -> Compression:
        if self.asked > (shortest := self.shortest or self.length):
            raise ValueError(
                f"asked={self.asked} places must be at most {shortest}, the symbols of an example; "
                f"ask for fewer or use longer examples"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1 + self.length

    @property
    def answers(self) -> range:
        return range(self.symbols)

    def size(self, length: int) -> int:
        return length + 1 + 2 * self.asked

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, row = len(length), np.arange(len(length))[:, None]
        tokens = np.zeros((n, self.size(self.length)), np.int64)
        tokens[:, : self.length] = rng.integers(self.symbols, size=(n, self.length))
        when = rng.random((n, self.length))
        when[np.arange(self.length) >= length[:, None]] = np.inf
        place = np.argsort(when, axis=1)[:, : self.asked]
        symbol = tokens[row, place]
        question = length[:, None] + 1 + 2 * np.arange(self.asked)
        tokens[row, length[:, None]] = self.symbols
        tokens[row, question], tokens[row, question + 1] = self.symbols + 1 + place, symbol
        answer = np.zeros(tokens.shape, bool)
        answer[row, question + 1] = True
        return answered(tokens, answer)
