"""Languages of exactly known entropy, which a model's loss at tiny scale is checked against.

Batches are generated fresh from a counter (Philox; Salmon et al. 2011), so no training token is
ever repeated, and the held-out stream has a key of its own. `seed` of a language fixes its facts
or rules; the `seed` of a batch belongs to the run.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from isoflop.models.errors import UserError
from isoflop.sim.data.source import Batch, DataConfig, Source

TRAINING, HELD_OUT, LANGUAGE = range(3)  # which stream a counter belongs to
TABLE_MAX = 2**24  # facts, or symbols in the rules of a grammar, drawn when it is opened
WINDOW_MAX = 2**20  # tokens
GRID = 4096  # a Markov language's probabilities are multiples of 1 / GRID


def stream(which: int, seed: int, step: int = 0) -> np.random.Generator:
    """Streams of different arguments are disjoint for 2^128 draws."""
    return np.random.Generator(np.random.Philox(key=[seed, which], counter=[0, 0, step, 0]))


class Generated(Source):
    """Fresh sequences; `period` tokens after which the language is in the same state again."""

    def __init__(self, config: DataConfig, period: int):
        text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.period = period

    @abstractmethod
    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        """(rows, length) tokens, each row from the beginning of a sentence."""

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        self._whole(seq_len)
        return Batch(self.draw(stream(TRAINING, seed, step), batch, seq_len + 1).astype(np.int32))

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        self._whole(seq_len)
        rows = -(-tokens // seq_len)
        return Batch(self.draw(stream(HELD_OUT, 0), rows, seq_len + 1).astype(np.int32))

    def _whole(self, seq_len: int) -> None:
        if seq_len > WINDOW_MAX:
            raise UserError(
                f"seq_len={seq_len} must be at most {WINDOW_MAX} tokens of a generated language, "
                f"which is drawn in turn; choose a shorter one"
            )
        if seq_len % self.period:
            raise UserError(
                f"seq_len={seq_len} must be a multiple of {self.period}, the length of this "
                "language's sentences, for its entropy to be exact; choose one that is"
            )


class Facts(DataConfig):
    """Facts k = 1..facts, asked for with p_k ∝ k^-(1+α); each belongs to one of `symbols`."""

    facts: int = Field(ge=2, le=TABLE_MAX)
    symbols: int = Field(ge=2, le=TABLE_MAX)
    alpha: PositiveFloat
    seed: NonNegativeInt = 0

    @property
    def vocab_size(self) -> int:
        return self.facts + self.symbols

    @property
    def p(self) -> Float[np.ndarray, " facts"]:
        """How often each fact is asked for."""
        weight = np.arange(1, self.facts + 1) ** -(1 + self.alpha)
        return weight / weight.sum()


class ZipfFacts(Facts):
    """Pairs (k, z_k): a fact's number, Zipf-distributed, then the symbol that belongs to it.

    p_k ∝ k^-(1+α) for k = 1..facts; z_k is one of `symbols`, fixed by `seed`. Numbers cost H(k),
    known symbols nothing, so the entropy is H(k) / 2 per token. A model that knows n facts has an
    excess ∝ n^-α, one that saw D pairs ∝ D^(-α/(1+α)) (Hutter 2021, 2102.04074; Michaud et al.
    2023, 2303.13506).
    """

    kind: Literal["zipf_facts"] = "zipf_facts"

    def open(self) -> Source:
        return _ZipfFacts(self)


class _ZipfFacts(Generated):
    def __init__(self, config: Facts):
        super().__init__(config, period=2)
        self.p = config.p
        self.cdf = np.cumsum(self.p)[:-1]
        symbol = stream(LANGUAGE, config.seed).integers(config.symbols, size=config.facts)
        self.symbol = config.facts + symbol
        self.entropy = entropy(self.p) / 2

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        return self._tokens(rng.random((rows, length // 2 + 1)), rng)

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        """Every fact is a target as often as p_k says, to within one: systematic sampling.

        The mean of -log p_k over the targets is then H(k) without sampling noise worth a name.
        """
        self._whole(seq_len)
        rng, rows = stream(HELD_OUT, 0), -(-tokens // seq_len)
        targets = rows * seq_len // 2
        even = (rng.permutation(targets) + rng.random()) / targets
        given = rng.random((rows, 1))  # the first token of a row is never a target
        uniform = np.hstack([given, even.reshape(rows, -1)])
        return Batch(self._tokens(uniform, rng).astype(np.int32))

    def _tokens(self, uniform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        fact = np.searchsorted(self.cdf, uniform, side="right")
        pairs = np.stack([fact, self.symbols(fact, rng)], axis=-1)
        return pairs.reshape(len(fact), -1)[:, :-1]  # the last fact's symbol is outside the window

    def symbols(self, fact: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.symbol[fact]


class ContextFacts(Facts):
    """Zipf facts of which a share `fresh` has other symbols in every window: those are recalled.

    Pairs (k, z_k) as of `ZipfFacts`. Which facts are fresh is drawn once, by `seed`; in each window
    their symbols are drawn anew, and cost log(symbols) where they first occur in it and nothing
    again. The entropy is therefore H(k)/2 per token as there, and the least loss in windows of P
    pairs, `floor`, is higher by log(symbols)/2P · Σ 1 − (1 − p_k)^P over the fresh facts: what
    memory cannot give, and a longer context can. `fresh=0` is `ZipfFacts`.
    """

    kind: Literal["context_facts"] = "context_facts"
    fresh: float = Field(0.5, ge=0, le=1)

    def open(self) -> Source:
        return _ContextFacts(self)


class _ContextFacts(_ZipfFacts):
    def __init__(self, config: ContextFacts):
        super().__init__(config)
        self.config = config
        chosen = stream(LANGUAGE, config.seed, 1).permutation(config.facts)
        self.fresh = chosen < round(config.fresh * config.facts)

    def symbols(self, fact: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn = self.config.facts + rng.integers(self.config.symbols, size=fact.shape)
        own = np.take_along_axis(drawn, first_places(fact), axis=1)
        return np.where(self.fresh[fact], own, self.symbol[fact])

    def floor(self, seq_len: int) -> float:
        pairs = seq_len // 2
        seen = 1 - (1 - self.p[self.fresh]) ** pairs
        assert self.entropy is not None
        return self.entropy + float(np.log(self.config.symbols) * seen.sum()) / (2 * pairs)


def first_places(numbers: np.ndarray) -> np.ndarray:
    """Of each number of a row (n, p), where it first stands in it."""
    order = np.argsort(numbers, axis=1, kind="stable")
    ordered = np.take_along_axis(numbers, order, axis=1)
    new = np.pad(ordered[:, 1:] != ordered[:, :-1], [(0, 0), (1, 0)], constant_values=True)
    begin = np.maximum.accumulate(np.where(new, np.arange(numbers.shape[1]), 0), axis=1)
    found = np.empty_like(numbers)
    np.put_along_axis(found, order, np.take_along_axis(order, begin, axis=1), axis=1)
    return found


class HierarchyGrammar(DataConfig):
    """Sentences of s^L tokens from L levels of production rules (the random hierarchy model).

    A symbol of one level becomes, by one of its m equally likely rules, s symbols of the next; no
    two rules give the same s-tuple. Entropy of a sentence: log v + log m · (s^L - 1) / (s - 1)
    (Cagnetta et al. 2024, 2307.02129, section 2; v symbols, m rules, s branching, L depth).
    """

    kind: Literal["hierarchy_grammar"] = "hierarchy_grammar"
    symbols: int = Field(ge=2, le=TABLE_MAX)
    rules: int = Field(ge=1, le=TABLE_MAX)
    branching: int = Field(ge=2, le=61)  # 2^62 tuples of two symbols are too many
    depth: int = Field(ge=1, le=20)  # 2^20 tokens are the longest sentence
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _unambiguous(self) -> HierarchyGrammar:
        tuples = self.symbols**self.branching
        if self.symbols * self.rules > tuples:
            raise ValueError(
                f"symbols · rules = {self.symbols * self.rules} must be at most symbols^branching "
                f"= {tuples}, or two symbols share a rule; use fewer rules or more branching"
            )
        if tuples >= 2**62 or self.branching**self.depth > 2**20:
            raise ValueError(
                f"symbols^branching = {self.symbols}^{self.branching} must be below 2^62 and "
                f"branching^depth = {self.branching}^{self.depth} at most 2^20; use less branching "
                f"or depth"
            )
        table = self.symbols * self.rules * self.branching * self.depth
        if table > TABLE_MAX:
            raise ValueError(
                f"symbols · rules · branching · depth = {table} symbols in the rules must be at "
                f"most 2^24; use fewer symbols or rules"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.symbols

    @property
    def sentence(self) -> int:
        """Tokens of one sentence; windows are whole sentences."""
        return self.branching**self.depth

    def open(self) -> Source:
        return _HierarchyGrammar(self)


class _HierarchyGrammar(Generated):
    def __init__(self, config: HierarchyGrammar):
        super().__init__(config, period=config.sentence)
        self.config = config
        v, m, s = config.symbols, config.rules, config.branching
        rng = stream(LANGUAGE, config.seed)
        codes = [rng.choice(v**s, size=v * m, replace=False) for _ in range(config.depth)]
        digit = v ** np.arange(s - 1, -1, -1)
        self.tables = [(code[:, None] // digit % v).reshape(v, m, s) for code in codes]
        nodes = (config.sentence - 1) // (s - 1)
        self.entropy = float(np.log(v) + np.log(m) * nodes) / config.sentence

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        sentences = -(-length // self.period)
        level = rng.integers(self.config.symbols, size=(rows * sentences, 1))
        for table in self.tables:
            rule = rng.integers(self.config.rules, size=level.shape)
            level = table[level, rule].reshape(len(level), -1)
        return level.reshape(rows, -1)[:, :length]


class Markov(DataConfig):
    """Each token depends on the last `order` tokens, by probabilities from a symmetric Dirichlet.

    Small `concentration` makes the next token nearly certain, large makes it nearly uniform.
    `entropy` is the rate; the first order - 1 targets of a window cost more, for want of context,
    which `floor` includes exactly. Probabilities are multiples of 1/4096 and at least one of them,
    so that every context recurs.
    """

    kind: Literal["markov"] = "markov"
    symbols: int = Field(ge=2, le=1024)
    order: int = Field(1, ge=1, le=10)
    concentration: float = Field(0.3, ge=0.05)
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _solvable(self) -> Markov:
        if self.symbols**self.order > 1024:
            raise ValueError(
                f"symbols^order = {self.symbols**self.order} contexts must be at most 1024; "
                "use fewer symbols or a lower order"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.symbols

    def open(self) -> Source:
        return _Markov(self)

    @property
    def after(self) -> Float[np.ndarray, "c w"]:
        """Probabilities of the next token after each context, the last `order` tokens as a number
        whose first digit is the oldest; fp32.
        """
        return (_counts(self) / GRID).astype(np.float32)


def _counts(config: Markov) -> Int[np.ndarray, "c w"]:
    """How many of GRID chances lead from each context to each token."""
    rng = stream(LANGUAGE, config.seed)
    likely = rng.dirichlet(
        np.full(config.symbols, config.concentration), size=config.symbols**config.order
    )
    return 1 + rng.multinomial(GRID - config.symbols, likely)


class _Markov(Generated):
    def __init__(self, config: Markov):
        super().__init__(config, period=1)
        self.v, self.order = v, k = config.symbols, config.order
        self.contexts = n = v**k  # the last k tokens as a number, the oldest its first digit
        counts = _counts(config)
        after = np.arange(n)[:, None] * v % n + np.arange(v)  # the context that a token leads to
        self.next = np.repeat(after.ravel(), counts.ravel())  # GRID equally likely ones for each
        balance = -np.eye(n)
        np.add.at(balance, (after, np.arange(n)[:, None]), counts / GRID)
        balance[-1] = 1  # one equation is redundant; the probabilities sum to one instead
        self.stationary = np.linalg.solve(balance, np.eye(n)[-1])
        self.entropy = self.rate = float(self.stationary @ [entropy(row / GRID) for row in counts])

    def floor(self, seq_len: int) -> float:
        known = min(seq_len + 1, self.order)
        block = entropy(self.stationary.reshape(self.v**known, -1).sum(1))
        first = entropy(self.stationary.reshape(self.v, -1).sum(1))
        return (block - first + (seq_len + 1 - known) * self.rate) / seq_len

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        chance = rng.integers(GRID, size=(length, rows))
        context = np.empty((length, rows), np.int64)
        now = np.searchsorted(np.cumsum(self.stationary)[:-1], rng.random(rows), side="right")
        for t in range(length):
            now = context[t] = self.next[now * GRID + chance[t]]
        return (context % self.v).T


def entropy(p: np.ndarray) -> float:
    """-Σ p log p, in nats."""
    seen = p[p > 0]
    return float(-(seen * np.log(seen)).sum())
