"""Text with its neighbours: passages of the training text beside each chunk of a row (RETRO).

A row is cut in chunks; each is looked up among the beginnings of passages of the training split,
and the most similar ones, with what follows, are its neighbours (Borgeaud et al. 2021, 2112.04426,
§2.2 and 2.3). Similar are texts that share rare n-grams (sim/data/ngrams.py), where the paper has
frozen BERT embeddings; the search is exact. A chunk's neighbours depend on it and on the row that
they must not copy, and a model lets no token see those of a chunk that it comes before the end of
(models/mixers/retro.py). The rows are the source's own, so a run without retrieval on it reads the
same ones and is judged on the same ones.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from isoflop.models.base import Retrieval
from isoflop.models.errors import UserError
from isoflop.sim.data.derived import Derived, DerivedSource
from isoflop.sim.data.languages import stream
from isoflop.sim.data.ngrams import NGrams, marks
from isoflop.sim.data.source import Batch, StoredTokens

RANDOM = 4  # the stream that a control's neighbours are drawn from
HELD_OUT = 2**62  # … at this step for held-out rows
SCORES = 2**23  # similarities that are held at once


class Retrieved(Derived):
    """Stored text, each chunk of it with its `nearest` passages of a store of the training split.

    The store has `store` passages of `length` tokens, evenly spaced over the training split. Left
    out for a row are passages within `apart` tokens of its place, as those of its own document,
    and passages with a token in `purge` tokens in a row that the row has too, near copies; both
    for training rows and the latter for held-out ones, which are not in the store. Raises UserError
    on `open` for data that are no stored text, and for a store that they are too short for.
    """

    kind: Literal["retrieved"] = "retrieved"
    chunk: PositiveInt = 64
    nearest: PositiveInt = 2
    length: PositiveInt = 128  # of a passage: the chunk that it is known by, and what follows
    store: int = Field(ge=2, le=2**22)
    gram: PositiveInt = 4  # tokens in a row that similarity is made of
    apart: NonNegativeInt = 4096
    purge: PositiveInt | None = 32  # None: near copies of a row may be its neighbours
    random: bool = False  # a control: passages drawn at random instead

    @model_validator(mode="after")
    def _fits(self) -> Retrieved:
        if not self.gram <= self.chunk <= self.length:
            raise ValueError(
                f"chunk={self.chunk} must be at least gram={self.gram} and at most "
                f"length={self.length}: a passage is known by its first chunk"
            )
        return self

    @property
    def retrieval(self) -> Retrieval:
        return Retrieval(self.chunk, self.nearest, self.length)

    def open(self) -> RetrievedSource:
        return RetrievedSource(self)


class RetrievedSource(DerivedSource):
    """Rows of stored text, with the neighbours of each whole chunk."""

    inner: StoredTokens

    def __init__(self, config: Retrieved):
        super().__init__(config)
        if not isinstance(self.inner, StoredTokens):
            raise UserError(
                f"neighbours are passages of stored training text, and {config.data.kind} data "
                f"have none; use a corpus, a file or a dataset"
            )
        self.config, self.train = config, self.inner.train
        n = len(self.train)
        most = n // config.length
        if config.store > most:
            raise UserError(
                f"store={config.store} passages of length={config.length} must fit into the "
                f"{n} training tokens without overlap, which hold {most}; lower it"
            )
        self.places = np.arange(config.store) * n // config.store
        self.passages = self._text(0, config.length)
        self.search = NGrams(self.passages[:, : config.chunk], config.gram)
        if config.purge is not None:  # every `purge` tokens in a row that a passage has a part of
            around = self._text(1 - config.purge, config.length + config.purge - 1)
            found = marks(around, config.purge)
            order = np.argsort(found, axis=None)
            self.copies = found.ravel()[order]
            self.copied = np.repeat(np.arange(len(found)), found.shape[1])[order]

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        own = self.inner.batch(step, seed, batch, seq_len)
        starts = self.inner.starts(step, seed, batch, seq_len)
        return self._beside(own, self._near(starts, seq_len + 1), (seed, step))

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        own = self.inner.held_out(tokens, seq_len)
        none = np.zeros((len(own.tokens), len(self.places)), bool)
        return self._beside(own, none, (0, HELD_OUT))

    def search_flops(self, batch: Batch) -> int:
        """That finding the neighbours of these rows takes."""
        return 0 if self.config.random else self.search.flops(self._chunks(batch.tokens))

    def _text(self, first: int, end: int) -> Int[np.ndarray, "n s"]:
        """Tokens from `first` to before `end` of each passage, counted from its beginning."""
        index = (self.places[:, None] + np.arange(first, end)) % len(self.train)
        return self.train.take(index).astype(np.int32)

    def _chunks(self, tokens: Int[np.ndarray, "b s"]) -> Int[np.ndarray, "c m"]:
        """The whole chunks of rows of inputs, whose last token is a target alone."""
        m = self.config.chunk
        count = (tokens.shape[1] - 1) // m
        return tokens[:, : count * m].reshape(len(tokens) * count, m)

    def _beside(
        self, own: Batch, left_out: Bool[np.ndarray, "b n"], drawn: tuple[int, int]
    ) -> Batch:
        """The rows with their neighbours, but those that are left out and near copies."""
        config, tokens = self.config, own.tokens
        if config.purge is not None and tokens.shape[1] >= config.purge:
            left_out = left_out.copy()
            left_out[self._copies(tokens)] = True
        if (least := len(self.places) - int(left_out.sum(1).max(initial=0))) < config.nearest:
            raise UserError(
                f"a row has {least} passages that are not near it or copies of it, and "
                f"nearest={config.nearest} are asked for; lower apart={config.apart}, or raise "
                f"purge or store={config.store}"
            )
        chunks = self._chunks(tokens)
        each = len(chunks) // len(tokens)
        some = max(1, SCORES // max(len(self.places) * each, 1))  # rows
        rng = stream(RANDOM, *drawn)
        found = np.empty((len(chunks), config.nearest), np.int64)
        for first in range(0, len(tokens), some):
            part = slice(first * each, (first + some) * each)
            asked = chunks[part]
            scores = (
                rng.random((len(asked), len(self.places)), np.float32)
                if config.random
                else self.search.similarity(asked)
            )
            scores[np.repeat(left_out[first : first + some], each, axis=0)] = -1
            found[part] = highest(scores, config.nearest)
        return own._replace(neighbours=self.passages[found].reshape(len(tokens), -1))

    def _near(self, starts: Int[np.ndarray, " b"], size: int) -> Bool[np.ndarray, "b n"]:
        """Which passages are no more than `apart` tokens from a row's place in the ring."""
        reach = self.config.apart + self.config.length - 1
        after = (self.places[None] - starts[:, None] + reach) % len(self.train)
        return after < size + reach + self.config.apart

    def _copies(self, tokens: Int[np.ndarray, "b s"]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of a row and a passage that is a near copy of part of it."""
        found = marks(tokens, self.config.purge or 1)
        low, high = (np.searchsorted(self.copies, found, side) for side in ("left", "right"))
        row, place = np.nonzero(high > low)
        low, count = low[row, place], (high - low)[row, place]
        within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        return np.repeat(row, count), self.copied[np.repeat(low, count) + within]


def highest(scores: Float[np.ndarray, "q n"], count: int) -> Int[np.ndarray, "q count"]:
    """Places of the highest scores of each row, the first of equals first; `scores` are spent."""
    found = np.empty((len(scores), count), np.int64)
    for i in range(count):
        found[:, i] = scores.argmax(1)
        scores[np.arange(len(scores)), found[:, i]] = -np.inf
    return found
