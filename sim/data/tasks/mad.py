"""The recall tasks of mechanistic architecture design (MAD; Poli et al. 2024, 2403.17844, section 3
and appendix B): in-context, noisy and fuzzy recall, and memorisation.

Its other two, selective copying and compression, are in copying.py. As there, pairs of a key and
its value follow each other, keys at random, and the value of a key that has occurred is an answer.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from isoflop.sim.data.languages import LANGUAGE, first_places, stream
from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, answered, labelled

STRINGS_MAX = 4096  # of key tokens, among which keys are drawn


class PairRecall(Task):
    """Pairs of one token each, with a share of noise tokens between them."""

    keys: int = Field(8, ge=1, le=VOCAB_MAX)
    values: int = Field(8, ge=2, le=VOCAB_MAX)
    length: int = Field(128, ge=4, le=LENGTH_MAX)
    shortest: int | None = Field(None, ge=4)
    noise: float = Field(0.0, ge=0, le=0.9)
    noise_tokens: int = Field(0, ge=0, le=VOCAB_MAX)

    @model_validator(mode="after")
    def _has_pairs(self) -> PairRecall:
        if (self.noise > 0) != (self.noise_tokens > 0):
            raise ValueError(
                f"noise={self.noise:g} and noise_tokens={self.noise_tokens} must both be 0 or "
                f"neither; set both"
            )
        shortest = self.shortest or self.length
        if int((1 - self.noise) * shortest) < 4:
            raise ValueError(
                f"noise={self.noise:g} of {shortest} tokens leaves no two pairs; use less noise or "
                f"longer examples"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.keys + self.values + self.noise_tokens

    @property
    def answers(self) -> range:
        return range(self.keys, self.keys + self.values)

    def size(self, length: int) -> int:
        return length

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, row = len(length), np.arange(len(length))[:, None]
        pairs = ((1 - self.noise) * length).astype(int)[:, None] // 2
        place = np.arange(pairs.max())
        key = rng.integers(self.keys, size=(n, len(place)))
        value = self.keys + rng.integers(self.values, size=(n, self.keys))[row, key]
        spare = length[:, None] - 2 * pairs
        gaps = rng.integers(spare * (self.noise_tokens > 0) + 1, size=key.shape)
        before = np.where(place < pairs, gaps, spare)
        start = 2 * place + np.sort(before, axis=1)  # after so many tokens of noise
        inside = place < pairs
        tokens = np.zeros((n, self.length + 2 * len(place)), np.int64)
        if self.noise_tokens:
            tokens += self.keys + self.values + rng.integers(self.noise_tokens, size=tokens.shape)
        answer = np.zeros(tokens.shape, bool)
        tokens[row, start], tokens[row, start + 1] = key, value
        answer[row, start + 1] = inside & (first_places(key) < place)
        return answered(tokens[:, : self.length], answer[:, : self.length])


class InContextRecall(PairRecall):
    """Pairs of key and value, keys at random: the value of a key that has occurred is asked for.

    MAD (2403.17844, section 3.1, multi-query). `length` is in tokens. Dials: keys, values, length.
    Chance 1/values.
    """

    kind: Literal["in_context_recall"] = "in_context_recall"


class NoisyRecall(PairRecall):
    """In-context recall with a share `noise` of tokens that mean nothing between the pairs.

    MAD (2403.17844, section 3.1). Dials: keys, values, length, noise, noise_tokens. Chance
    1/values.
    """

    kind: Literal["noisy_recall"] = "noisy_recall"
    noise: float = Field(0.2, ge=0, le=0.9)
    noise_tokens: int = Field(16, ge=0, le=VOCAB_MAX)


class FuzzyRecall(Task):
    """In-context recall with keys and values of several tokens, each of a length of its own.

    MAD (2403.17844, section 3.1), where 1 to 3 tokens each. Unlike there, a token of its own stands
    between key and value, so that a key's end is known and the best accuracy is 1. `length` is in
    tokens. Dials: keys (in an example), key_vocab, key_tokens, value_vocab, value_tokens, length.
    Chance 1/value_vocab.
    """

    kind: Literal["fuzzy_recall"] = "fuzzy_recall"
    keys: PositiveInt = 8
    key_vocab: int = Field(8, ge=1, le=STRINGS_MAX)
    key_tokens: int = Field(3, ge=1, le=12)
    value_vocab: int = Field(8, ge=2, le=VOCAB_MAX)
    value_tokens: int = Field(3, ge=1, le=64)
    length: int = Field(128, ge=6, le=LENGTH_MAX)

    @model_validator(mode="after")
    def _has_keys(self) -> FuzzyRecall:
        strings = self._strings_of(self.key_tokens)
        if not self.keys <= strings <= STRINGS_MAX:
            raise ValueError(
                f"key_vocab={self.key_vocab} and key_tokens={self.key_tokens} make {strings} "
                f"different keys, and must keys={self.keys} to {STRINGS_MAX}; change them"
            )
        if (least := 2 * self._widest) > (shortest := self.shortest or self.length):
            raise ValueError(
                f"two pairs take up to {least} tokens, and an example has {shortest}; use longer "
                f"examples, or fewer key_tokens and value_tokens"
            )
        return self

    def _strings_of(self, tokens: int) -> int:
        """Different strings of up to so many key tokens."""
        return sum(self.key_vocab**n for n in range(1, tokens + 1))

    @property
    def _widest(self) -> int:
        return self.key_tokens + 1 + self.value_tokens

    @property
    def vocab_size(self) -> int:
        return self.key_vocab + self.value_vocab + 1

    @property
    def answers(self) -> range:
        return range(self.key_vocab, self.key_vocab + self.value_vocab)

    def size(self, length: int) -> int:
        return length

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        n, row = len(length), np.arange(len(length))[:, None]
        words, is_value, width = self._pairs(rng, n)
        chosen = rng.integers(self.keys, size=(n, self.length // 3))
        end = np.cumsum(width[row, chosen], axis=1)
        inside = (end <= length[:, None])[..., None]
        offset = np.arange(self._widest)
        place = (end - width[row, chosen])[..., None] + offset
        place = np.where(inside & (offset < width[row, chosen][..., None]), place, self.length)
        tokens = np.zeros((n, self.length + 1), np.int64)
        answer = np.zeros(tokens.shape, bool)
        tokens[row[..., None], place] = words[row, chosen]
        again = first_places(chosen) < np.arange(chosen.shape[1])
        answer[row[..., None], place] = is_value[row, chosen] & again[..., None]
        return answered(tokens[:, :-1], answer[:, :-1])

    def _pairs(
        self, rng: np.random.Generator, n: int
    ) -> tuple[Int[np.ndarray, "n k w"], Bool[np.ndarray, "n k w"], Int[np.ndarray, "n k"]]:
        """Every key with its value, padded; which of their tokens are the value's; their widths."""
        per_length = np.array([self.key_vocab**i for i in range(1, self.key_tokens + 1)])
        first = np.cumsum(per_length) - per_length
        # draws without replacement in which every length of keys is as likely at first
        race = rng.exponential(size=(n, per_length.sum())) * np.repeat(per_length, per_length)
        code = np.argsort(race, axis=1)[:, : self.keys]
        size = np.searchsorted(first, code, side="right")
        number = (code - first[size - 1])[..., None]
        values = rng.integers(self.value_vocab, size=(*code.shape, self.value_tokens))
        count = rng.integers(1, self.value_tokens, size=code.shape, endpoint=True)
        offset = np.arange(self._widest)
        digit = number // self.key_vocab ** np.minimum(offset, self.key_tokens) % self.key_vocab
        after = offset - size[..., None] - 1
        value = np.take_along_axis(values, after.clip(0, self.value_tokens - 1), axis=-1)
        words = np.where(after < -1, digit, self.key_vocab + value)
        words = np.where(after == -1, self.vocab_size - 1, words)
        return words, after >= 0, size + 1 + count


class Memorisation(Task):
    """Each token asks for its partner in a fixed list of `facts`, which the weights have to hold.

    MAD (2403.17844, section 3.1). `seed` makes the list, a permutation; the partner is a label and
    never an input. `length` is in tokens. Dials: facts, length. Chance 1/facts.
    """

    kind: Literal["memorisation"] = "memorisation"
    facts: int = Field(256, ge=2, le=VOCAB_MAX)
    length: int = Field(32, ge=1, le=LENGTH_MAX)
    seed: NonNegativeInt = 0

    @property
    def vocab_size(self) -> int:
        return self.facts

    @property
    def answers(self) -> range:
        return range(self.facts)

    def size(self, length: int) -> int:
        return length + 1

    @cached_property
    def partner(self) -> Int[np.ndarray, "facts"]:
        return stream(LANGUAGE, self.seed).permutation(self.facts)

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        inside = np.arange(self.length) < length[:, None]
        fact = rng.integers(self.facts, size=inside.shape)
        return labelled(fact * inside, self.partner[fact] * inside, inside)
