"""The facts of a language of Zipf facts written down once, to be kept in a store."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import numpy as np

from isoflop.models.errors import UserError
from isoflop.sim.data.languages import Facts, ZipfFacts
from isoflop.sim.data.source import Batch, Source


class FactTable(Facts):
    """The facts of `ZipfFacts` of the same fields, each once, those that are asked most first.

    A window holds seq_len / 2 of them, number and symbol; symbols weigh 1 and numbers 0, so what is
    learnt or stored is the facts. A table of n facts answers a share `coverage(n)` of what the
    language asks. What is held out is the table too: it is there to be looked up.
    """

    kind: Literal["fact_table"] = "fact_table"

    @property
    def language(self) -> ZipfFacts:
        """Whose facts these are."""
        return ZipfFacts(facts=self.facts, symbols=self.symbols, alpha=self.alpha, seed=self.seed)

    def coverage(self, count: int) -> float:
        """Share of what is asked for that the first `count` facts are."""
        return float(self.p[:count].sum())

    def check(self, seq_len: int) -> None:
        if seq_len % 2 or seq_len > 2 * self.facts:
            raise UserError(
                f"seq_len={seq_len} must be even, and at most the {2 * self.facts} tokens of the "
                "facts; choose one that is"
            )

    def open(self) -> Source:
        return _FactTable(self)


class _FactTable(Source):
    def __init__(self, config: FactTable):
        self.config = config
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.train_tokens = 2 * config.facts
        symbol = config.language.open().symbol  # type: ignore[attr-defined]
        self.tokens = np.stack([np.arange(config.facts), symbol], -1).ravel().astype(np.int32)

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        self.config.check(seq_len)
        rows = np.arange(step * batch, (step + 1) * batch)[:, None]
        places = (rows * seq_len + np.arange(seq_len + 1)) % len(self.tokens)
        weights = np.broadcast_to(
            (np.arange(seq_len) % 2 == 0).astype(np.float32), (batch, seq_len)
        )
        return Batch(self.tokens[places], np.ascontiguousarray(weights))

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        rows = min(-(-tokens // seq_len), len(self.tokens) // seq_len)
        return self.batch(0, 0, rows, seq_len)
