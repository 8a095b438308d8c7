"""Recall of what stood beside a token earlier in the sequence."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, answered, distinct


class MQAR(Task):
    """Multi-query associative recall: `pairs` of key and value, then each key again, and its value.

    Arora et al. 2023, Zoology (2312.04927, section 3 and appendix E). `length` is in tokens: the
    pairs first, then (length − 2·pairs)/2 slots, in which every key is asked for once. A slot's
    distance from the pairs follows the power law p ∝ slot^(power − 1), so small `power` asks soon.
    Slots between hold noise: one `filler`, or any token of the `vocabulary`, as there. Keys and
    values are drawn from one half of `vocab` each, none twice in an example; the filler is 0.
    Unlike there, the value also follows its query as a token. Dials: pairs, vocab, length, power,
    noise. Chance one in vocab − vocab/2 values (one in `pairs` for who knows those of the example).
    """

    kind: Literal["mqar"] = "mqar"
    pairs: PositiveInt = 8
    vocab: int = Field(256, ge=4, le=VOCAB_MAX)
    length: int = Field(64, ge=4, le=LENGTH_MAX)
    power: PositiveFloat = 0.1
    noise: Literal["filler", "vocabulary"] = "vocabulary"

    @model_validator(mode="after")
    def _holds_its_pairs(self) -> MQAR:
        shortest = self.shortest or self.length
        if 4 * self.pairs > shortest:
            raise ValueError(
                f"pairs={self.pairs} take 4·pairs={4 * self.pairs} tokens of an example, which has "
                f"{shortest}; use fewer pairs or longer examples"
            )
        if self.pairs > self.vocab // 2 - 1:
            raise ValueError(
                f"pairs={self.pairs} need as many keys, and vocab={self.vocab} has "
                f"{self.vocab // 2 - 1} (vocab/2 − 1); use fewer pairs or a larger vocab"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.vocab

    @property
    def answers(self) -> range:
        return range(self.vocab // 2, self.vocab)

    def size(self, length: int) -> int:
        return length

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, pairs, half = len(length), self.pairs, self.vocab // 2
        keys = 1 + distinct(rng, n, half - 1, pairs)
        values = half + distinct(rng, n, self.vocab - half, pairs)
        slots = (self.length - 2 * pairs) // 2
        # the smallest of exponentials over p are draws by p without replacement
        when = rng.exponential(size=(n, slots)) * np.arange(1, slots + 1) ** (1 - self.power)
        when[np.arange(slots) >= (length[:, None] - 2 * pairs) // 2] = np.inf
        query = 2 * pairs + 2 * np.argsort(when, axis=1)[:, :pairs]
        tokens = np.zeros((n, self.length), np.int64)
        if self.noise == "vocabulary":
            tokens = rng.integers(self.vocab, size=tokens.shape)
        tokens[:, 0 : 2 * pairs : 2], tokens[:, 1 : 2 * pairs : 2] = keys, values
        np.put_along_axis(tokens, query, keys, axis=1)
        np.put_along_axis(tokens, query + 1, values, axis=1)
        answer = np.zeros(tokens.shape, bool)
        np.put_along_axis(answer, query + 1, True, axis=1)
        return answered(tokens, answer)


class InductionHeads(Task):
    """A signal and a token once among random ones; at the end the signal, and the token is asked.

    Dao et al. 2022 (2212.14052, section 3.1) and Gu & Dao 2023, Mamba (2312.00752, section 4.1.2:
    16 tokens, trained at length 256, tested up to 2^20). `length` is in tokens, the signal is the
    last token of the vocabulary. Dials: symbols, length. Chance 1/symbols.
    """

    kind: Literal["induction"] = "induction"
    symbols: int = Field(16, ge=2, le=VOCAB_MAX - 1)
    length: int = Field(64, ge=5, le=LENGTH_MAX)
    shortest: int | None = Field(None, ge=5)

    @property
    def vocab_size(self) -> int:
        return self.symbols + 1

    @property
    def answers(self) -> range:
        return range(self.symbols)

    def size(self, length: int) -> int:
        return length

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, row = len(length), np.arange(len(length))
        tokens = rng.integers(self.symbols, size=(n, self.length))
        first = rng.integers(length - 3)
        tokens[row, first] = tokens[row, length - 2] = self.symbols
        tokens[row, length - 1] = tokens[row, first + 1]
        answer = np.zeros(tokens.shape, bool)
        answer[row, length - 1] = True
        return answered(tokens, answer)
