"""A source that is made of another one, whose facts it has unless it says otherwise."""

from __future__ import annotations

import hashlib
import json

from isoflop.models.base import Retrieval
from isoflop.sim.data.source import AnyData, Batch, DataConfig, Source


class Derived(DataConfig):
    """Another source, changed."""

    data: AnyData

    @property
    def vocab_size(self) -> int:
        return self.data.vocab_size

    @property
    def retrieval(self) -> Retrieval | None:
        return self.data.retrieval

    def check(self, seq_len: int) -> None:
        self.data.check(seq_len)


class DerivedSource(Source):
    """With training batches of its own."""

    def __init__(self, config: Derived):
        self.inner = inner = config.data.open()
        facts = {k: v for k, v in config.model_dump(mode="json").items() if k != "data"}
        text = json.dumps([facts, inner.digest], sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.train_tokens, self.bytes_per_token = inner.train_tokens, inner.bytes_per_token
        self.entropy, self.chance, self.optimum = inner.entropy, inner.chance, inner.optimum
        self.tokenizer = inner.tokenizer

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        return self.inner.held_out(tokens, seq_len)

    def unique_tokens(self, tokens: int) -> int | None:
        return self.inner.unique_tokens(tokens)

    def verify(self) -> None:
        self.inner.verify()

    def floor(self, seq_len: int) -> float | None:
        return self.inner.floor(seq_len)
