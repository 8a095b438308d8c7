"""Tasks: examples whose answers are right or wrong, drawn fresh, with a held-out split.

A task is one class: its fields are its dials of difficulty, `draw` makes examples. Answers follow
from what stands before them, so the best accuracy is 1 and the least loss 0, exactly; `answers` are
the tokens that they may be, each as likely to whoever has seen no example, so chance is one in so
many. Training and evaluation differ in their dials alone: a run trains on `Parity(length=40)` and
is judged on `Eval(name="long", data=Parity(length=240), seq_len=240)`.

An example in which nothing is asked for is drawn again.

Split: an example is held out where a hash of its tokens before its last answer is a multiple of
20. That depends on nothing else, so what any task holds out no other trains on, whatever the dials
and seeds. A held-out split holds no example twice, and has as many as were found.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Shaped, UInt64
from pydantic import Field, PositiveInt, model_validator

from isoflop.models.errors import UserError
from isoflop.sim.data.languages import HELD_OUT, TRAINING, stream
from isoflop.sim.data.source import HELD_OUT as ONE_IN
from isoflop.sim.data.source import Batch, DataConfig, Source

LENGTH_MAX = 2**20  # tokens of an example
VOCAB_MAX = 2**16
DRAWN_MAX = 2**20  # tokens that are drawn at once
HELD_OUT_MIN = 32  # different examples, or the task has too few to be split
ROUNDS = 4  # of drawing without a new example of the wanted split


class Task(DataConfig):
    """What every task has: a length, and what is learnt.

    `length` is in units of the task. With `shortest`, each example has a length of its own, from
    `shortest` to `length`, equally likely, and padding of weight 0 after it. `loss="all"` weights
    every token up to the last answer; accuracy is then no longer that of the answers, which a
    further evaluation set may measure. Raises UserError if the dials do not go together.
    """

    length: int = Field(ge=1, le=LENGTH_MAX)
    shortest: PositiveInt | None = None
    loss: Literal["answers", "all"] = "answers"

    @property
    @abstractmethod
    def answers(self) -> range:
        """The tokens that an answer may be, equally likely beforehand."""

    @abstractmethod
    def size(self, length: int) -> int:
        """Tokens of an example of this length."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        """An example of each length: tokens (n, size(self.length)), int, anything after its end,
        and weights above 0 at its answers alone.
        """

    @model_validator(mode="after")
    def _fits_itself(self) -> Task:
        if self.shortest is not None and self.shortest > self.length:
            raise ValueError(
                f"shortest={self.shortest} must be at most length={self.length}; lower it"
            )
        if (size := self.size(self.length)) > LENGTH_MAX:
            raise ValueError(
                f"length={self.length} of {self.kind} takes {size} tokens, and at most "
                f"{LENGTH_MAX} are drawn; lower it"
            )
        if self.vocab_size > VOCAB_MAX:
            raise ValueError(
                f"{self.kind} has {self.vocab_size} different tokens, and at most {VOCAB_MAX} are "
                f"drawn; use fewer"
            )
        return self

    def check(self, seq_len: int) -> None:
        if seq_len < (least := self.size(self.length) - 1):
            raise UserError(
                f"seq_len={seq_len} must be at least {least}, which {self.kind} of length="
                f"{self.length} takes; raise it, or lower the length"
            )

    def open(self) -> Source:
        return Examples(self)


class Examples(Source):
    """A task's examples, one to a window."""

    def __init__(self, task: Task):
        self.task = task
        text = json.dumps(task.model_dump(mode="json"), sort_keys=True)
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        if task.loss == "answers":
            self.entropy, self.optimum, self.chance = 0.0, 1.0, 1 / len(task.answers)

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        return self._collect(stream(TRAINING, seed, step), batch, seq_len)

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        return self._collect(stream(HELD_OUT, 0), -(-tokens // seq_len), seq_len, held_out=True)

    def examples(
        self, rng: np.random.Generator, length: Int[np.ndarray, "n"], held_out: bool
    ) -> Batch:
        """One of each length, of either split."""
        return self.task.draw(rng, length)

    def _collect(
        self, rng: np.random.Generator, rows: int, seq_len: int, held_out: bool = False
    ) -> Batch:
        """Examples of one split: of the held-out one all different, perhaps fewer than asked."""
        self.task.check(seq_len)
        most = max(DRAWN_MAX // (seq_len + 1), 1)
        low = self.task.shortest or self.task.length
        found: list[Batch] = []
        seen = np.empty(0, np.uint64)
        count = drawn = without = 0
        while count < rows and without < ROUNDS:
            missing = rows - count
            ask = missing * (ONE_IN + 2) + 256 if held_out else missing + missing // 8 + 4
            length = rng.integers(low, self.task.length, size=min(ask, most), endpoint=True)
            one = _window(self.examples(rng, length, held_out), seq_len)
            marks = fingerprints(one)
            asked = np.any(one.weights, axis=1)
            keep = np.flatnonzero(asked & ((marks % np.uint64(ONE_IN) == 0) == held_out))
            if held_out:
                first = np.sort(np.unique(marks[keep], return_index=True)[1])
                keep = keep[first][~np.isin(marks[keep[first]], seen)]
                seen = np.concatenate([seen, marks[keep]])
            keep = keep[:missing]
            drawn += len(marks)
            without = 0 if len(keep) else without + 1
            count += len(keep)
            found.append(_pick(one, keep))
        if count < (min(rows, HELD_OUT_MIN) if held_out else rows):
            raise UserError(
                f"{self.task.kind} has {count} different examples of its held-out split among "
                f"{drawn} drawn, and needs {HELD_OUT_MIN}; make them longer or of more tokens"
            )
        whole = [np.concatenate(part) for part in zip(*found, strict=True) if part[0] is not None]
        return self._counted(Batch(*whole))

    def _counted(self, batch: Batch) -> Batch:
        if self.task.loss == "answers" or batch.weights is None:
            return batch
        return batch._replace(weights=_before(batch.weights, _ends(batch)).astype(np.float32))


def answered(tokens: Int[np.ndarray, "n s"], answer: Bool[np.ndarray, "n s"]) -> Batch:
    """Tokens of which some are answers: the targets that count."""
    return Batch(tokens, answer[:, 1:].astype(np.float32))


def labelled(
    inputs: Int[np.ndarray, "n t"], labels: Int[np.ndarray, "n t"], asked: Bool[np.ndarray, "n t"]
) -> Batch:
    """Inputs, each with a label that is no token of the sequence, of which some are asked for."""
    return Batch(np.pad(inputs, [(0, 0), (0, 1)]), asked.astype(np.float32), labels)


def distinct(rng: np.random.Generator, rows: int, n: int, k: int) -> Int[np.ndarray, "rows k"]:
    """k different numbers below n in each row, in random order."""
    if k * k > n:  # else most rows of k have no number twice
        part = max(DRAWN_MAX // n, 1)
        chunks = [
            np.argsort(rng.random((min(part, rows - first), n), np.float32), axis=1)[:, :k]
            for first in range(0, rows, part)
        ]
        return np.concatenate(chunks) if chunks else np.empty((0, k), np.int64)
    found = rng.integers(n, size=(rows, k))
    again = np.arange(rows)
    while len(again):
        ordered = np.sort(found[again], axis=1)
        again = again[(ordered[:, 1:] == ordered[:, :-1]).any(axis=1)]
        found[again] = rng.integers(n, size=(len(again), k))
    return found


def fingerprints(batch: Batch) -> UInt64[np.ndarray, "n"]:
    """A hash of each row's tokens before its last answer: a weighted sum modulo 2^64, then mixed
    (splitmix64's finaliser; Steele et al. 2014, Fast Splittable Pseudorandom Number Generators).
    """
    tokens = batch.tokens
    kept = np.where(_before(tokens, _ends(batch)), tokens + 1, 0).astype(np.uint64)
    mark = kept @ _multipliers(tokens.shape[1].bit_length())[: tokens.shape[1]]
    mark = (mark ^ (mark >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mark = (mark ^ (mark >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mark ^ (mark >> np.uint64(31))


@cache
def _multipliers(bits: int) -> UInt64[np.ndarray, "s"]:
    return np.random.Generator(np.random.Philox(key=0)).integers(2**64, size=2**bits, dtype="u8")


def _ends(batch: Batch) -> Int[np.ndarray, "n"]:
    """How many targets each row has up to its last answer."""
    assert batch.weights is not None
    return batch.weights.shape[1] - np.argmax(batch.weights[:, ::-1] > 0, axis=1)


def _before(like: Shaped[np.ndarray, "n s"], end: Int[np.ndarray, "n"]) -> Bool[np.ndarray, "n s"]:
    return np.arange(like.shape[1]) < end[:, None]


def _pick(batch: Batch, rows: Int[np.ndarray, "n"]) -> Batch:
    return Batch(*(None if part is None else part[rows] for part in batch))


def _window(batch: Batch, seq_len: int) -> Batch:
    """The examples padded to the window."""
    widths, dtypes = (seq_len + 1, seq_len, seq_len), (np.int32, np.float32, np.int32)
    return Batch(
        *(
            None
            if part is None
            else np.pad(part, [(0, 0), (0, width - part.shape[1])]).astype(dtype)
            for part, width, dtype in zip(batch[:3], widths, dtypes, strict=True)
        )
    )
