"""Data made worse by a stated amount: tokens replaced, or few sequences read over and over.

Only training batches are changed. The held-out split stays the source's own, so that the losses of
runs on either compare. Mixtures of good and bad data, or of whole and few, are `Mixture`'s.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, PositiveInt

from isoflop.models.errors import UserError
from isoflop.sim.data.derived import Derived, DerivedSource
from isoflop.sim.data.languages import stream
from isoflop.sim.data.source import Batch, Source, shuffle

NOISE = 3  # the stream that corruption is drawn from
POOL_MAX = 2**24  # tokens that are kept in memory to be repeated


class Corrupted(Derived):
    """A source of which a share `rate` of the training tokens is replaced by other ones.

    In every batch exactly round(rate · batch · (seq_len + 1)) tokens, at random places, each by any
    other of the vocabulary with the same probability; in a later epoch others are.
    """

    kind: Literal["corrupted"] = "corrupted"
    rate: float = Field(ge=0, le=1)

    def open(self) -> Source:
        return _Corrupted(self)


class Duplicated(Derived):
    """A source of which just the first `tokens` training tokens are read, over and over.

    In whole sequences, each once an epoch, every epoch in another order; all seeds repeat the same
    ones. Raises UserError for fewer tokens than one sequence has, or more than there are.
    """

    kind: Literal["duplicated"] = "duplicated"
    tokens: PositiveInt = Field(le=POOL_MAX)

    def check(self, seq_len: int) -> None:
        super().check(seq_len)
        if self.tokens < seq_len:
            raise UserError(
                f"tokens={self.tokens} to be repeated must be at least one sequence of "
                f"seq_len={seq_len}; raise it"
            )

    def open(self) -> Source:
        return _Duplicated(self)


class _Corrupted(DerivedSource):
    def __init__(self, config: Corrupted):
        super().__init__(config)
        self.rate, self.vocab = config.rate, config.vocab_size

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        clean = self.inner.batch(step, seed, batch, seq_len)
        tokens = clean.tokens.copy()
        flat, rng = tokens.reshape(-1), stream(NOISE, seed, step)
        where = rng.permutation(flat.size)[: round(self.rate * flat.size)]
        flat[where] = (flat[where] + rng.integers(1, self.vocab, size=len(where))) % self.vocab
        return clean._replace(tokens=tokens)


class _Duplicated(DerivedSource):
    def __init__(self, config: Duplicated):
        super().__init__(config)
        there = self.inner.train_tokens
        if there is not None and config.tokens > there:
            raise UserError(
                f"tokens={config.tokens} to be repeated must be at most the {there} training "
                f"tokens of {config.data.kind}; lower it"
            )
        self.config = config
        self.train_tokens = config.tokens
        self._pools: dict[int, Batch] = {}

    def unique_tokens(self, tokens: int) -> int:
        return min(tokens, self.config.tokens)

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        self.config.check(seq_len)
        n = self.config.tokens // seq_len
        if seq_len not in self._pools:
            self._pools[seq_len] = self.inner.batch(0, 0, n, seq_len)
        epoch, place = np.divmod(np.arange(step * batch, (step + 1) * batch), n)
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            rng = np.random.Generator(np.random.Philox(key=[seed, e]))
            place[epoch == e] = shuffle(place[epoch == e], n, rng)
        return Batch(*(None if one is None else one[place] for one in self._pools[seq_len]))
