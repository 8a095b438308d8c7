"""Several sources in one stream, in stated proportions of their sequences.

Sequences of the parts follow each other in a fixed pattern, in which each part's share is exact in
every period and off by about one sequence before. Those of a part are its own stream's in order,
none left out and none twice, so epochs of stored text are what they are without company.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, model_validator

from isoflop.models.base import Config
from isoflop.models.errors import UserError
from isoflop.sim.data.languages import Generated
from isoflop.sim.data.source import AnyData, Batch, DataConfig, Source

PERIOD_MAX = 2**16  # sequences, after which the pattern begins again


class Part(Config):
    """A source, and how many sequences of a period it gives."""

    data: AnyData
    share: int = Field(1, ge=1, le=PERIOD_MAX)


class Mixture(DataConfig):
    """Several sources in stated proportions of sequences: `parts` of `data` and `share`.

    Shares 3 and 1 are three sequences of the first to one of the second, in training batches and in
    the held-out split. Where one part weights its answers, each target of the others counts as 1.
    Its entropy, chance and optimum are known where all parts agree on them, and the entropy is the
    parts' mean where they are languages. Raises UserError on `open` if tokenizers differ.
    """

    kind: Literal["mixture"] = "mixture"
    parts: tuple[Part, ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="after")
    def _has_a_period_and_no_neighbours(self) -> Mixture:
        if (period := sum(part.share for part in self.parts)) > PERIOD_MAX:
            raise ValueError(
                f"shares of a mixture add up to {period}, and must to at most {PERIOD_MAX}; use "
                f"smaller numbers in the same proportions"
            )
        if any(part.data.retrieval is not None for part in self.parts):
            raise ValueError("sequences of a mixture have no neighbours; mix text without them")
        return self

    @property
    def vocab_size(self) -> int:
        return max(part.data.vocab_size for part in self.parts)

    def check(self, seq_len: int) -> None:
        for part in self.parts:
            part.data.check(seq_len)

    def open(self) -> Source:
        return _Mixture(self)


class _Mixture(Source):
    def __init__(self, config: Mixture):
        self.parts = [part.data.open() for part in config.parts]
        if len({part.tokenizer for part in self.parts}) > 1:
            kinds = ", ".join(part.data.kind for part in config.parts)
            raise UserError(
                f"the parts of a mixture must have one tokenizer, and {kinds} have several; use "
                f"bytes in all of them"
            )
        self.tokenizer = self.parts[0].tokenizer
        shares = [part.share for part in config.parts]
        self.shares = np.array(shares)
        when = np.concatenate([(np.arange(n) + 0.5) / n for n in shares])
        self.pattern = np.repeat(np.arange(len(shares)), shares)[np.argsort(when, kind="stable")]
        given = self.pattern[:, None] == np.arange(len(shares))
        self.before = np.pad(given.cumsum(axis=0), [(1, 0), (0, 0)])  # by place in the pattern
        text = repr([(part.digest, share) for part, share in zip(self.parts, shares, strict=True)])
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.chance = _common([part.chance for part in self.parts])
        self.optimum = _common([part.optimum for part in self.parts])
        self.entropy = self._mean([part.entropy for part in self.parts])
        sizes = [part.bytes_per_token for part in self.parts]
        self.bytes_per_token = None if None in sizes else self._share_of(sizes)
        self.train_tokens = min(  # of all, when a first part begins to repeat
            (
                part.train_tokens * len(self.pattern) // share
                for part, share in zip(self.parts, shares, strict=True)
                if part.train_tokens is not None
            ),
            default=None,
        )
        self._forms: dict[int, tuple[bool, bool]] = {}

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        rows = np.arange(step * batch, (step + 1) * batch)
        first, end = self._given(step * batch), self._given((step + 1) * batch)
        drawn = {
            i: self._rows(i, int(first[i]), int(end[i]), seed, batch, seq_len)
            for i in np.flatnonzero(end > first).tolist()
        }
        return self._placed(self.pattern[rows % len(self.pattern)], drawn, seq_len)

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        """In the same proportions: as many sequences as the part that runs out first allows."""
        rows = -(-tokens // seq_len)
        while True:
            wanted = self._given(rows)
            drawn = {
                i: self.parts[i].held_out(int(wanted[i]) * seq_len, seq_len)
                for i in np.flatnonzero(wanted).tolist()
            }
            short = {i: n for i in drawn if (n := len(drawn[i].tokens)) < wanted[i]}
            if not short:
                break
            rows = min(self._most(i, n, rows) for i, n in short.items())
        which = self.pattern[np.arange(rows) % len(self.pattern)]
        return self._placed(which, drawn, seq_len)

    def unique_tokens(self, tokens: int) -> int | None:
        """Those of generated parts are all different; None if all parts are."""
        if self.train_tokens is None:
            return None
        own = [tokens * share // len(self.pattern) for share in self.shares.tolist()]
        found = [part.unique_tokens(n) for part, n in zip(self.parts, own, strict=True)]
        return sum(n if one is None else one for n, one in zip(own, found, strict=True))

    def verify(self) -> None:
        for part in self.parts:
            part.verify()

    def floor(self, seq_len: int) -> float | None:
        return self._mean([part.floor(seq_len) for part in self.parts])

    def _mean(self, entropies: Sequence[float | None]) -> float | None:
        """Of parts that all know theirs, and whose targets all count."""
        even = all(isinstance(part, Generated) for part in self.parts) and None not in entropies
        return self._share_of(entropies) if even else _common(entropies)

    def _share_of(self, values: Sequence[float | None]) -> float:
        return float(self.shares @ np.array(values, float)) / len(self.pattern)

    def _given(self, rows: int) -> Int[np.ndarray, "parts"]:
        """How many of the first `rows` sequences are each part's."""
        periods, place = divmod(rows, len(self.pattern))
        return periods * self.shares + self.before[place]

    def _most(self, i: int, given: int, rows: int) -> int:
        """At most how many of `rows` sequences need no more than `given` of a part."""
        return bisect.bisect_right(range(rows), given, key=lambda n: int(self._given(n)[i])) - 1

    def _rows(self, i: int, first: int, end: int, seed: int, batch: int, seq_len: int) -> Batch:
        """Sequences first … end − 1 of a part: it is asked for whole blocks of one size, of which
        one or two hold them. Parts have streams of their own, also where they are equal.
        """
        block = -(-batch * int(self.shares[i]) // len(self.pattern)) + 1
        own = int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] >> 1)
        blocks = range(first // block, -(-end // block))
        drawn = [self.parts[i].batch(number, own, block, seq_len) for number in blocks]
        skip = first - blocks.start * block
        parts = (part for part in zip(*drawn, strict=True))
        return Batch(
            *(
                None if one[0] is None else np.concatenate(one)[skip : skip + end - first]
                for one in parts
            )
        )

    def _placed(self, which: Int[np.ndarray, "n"], drawn: dict[int, Batch], seq_len: int) -> Batch:
        """The parts' sequences at their places, in the form that all batches have."""
        if seq_len not in self._forms:
            ones = [part.batch(0, 0, 1, seq_len) for part in self.parts]
            weighted = any(one.weights is not None for one in ones)
            self._forms[seq_len] = weighted, any(one.labels is not None for one in ones)
        weighted, labelled = self._forms[seq_len]
        tokens = np.empty((len(which), seq_len + 1), np.int32)
        weights = np.ones((len(which), seq_len), np.float32)
        labels = np.empty((len(which), seq_len), np.int32)
        for i, one in drawn.items():
            tokens[which == i], labels[which == i] = one.tokens, one.targets
            if one.weights is not None:
                weights[which == i] = one.weights
        return Batch(tokens, weights if weighted else None, labels if labelled else None)


def _common(values: Sequence[float | None]) -> float | None:
    return values[0] if len({*values}) == 1 else None
