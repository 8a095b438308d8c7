"""The contract of a data set, and its one implementation over stored tokens.

A stream has no state: `batch(step)` is a pure function of seed and step, so a run can be stopped,
resumed, branched or repeated, and every architecture sees the same batches for the same seed.

An epoch cuts the training tokens, taken as a ring, at a random offset into windows that do not
overlap, and visits them in a random order. A token is therefore the target once per epoch at most,
and "unique" and "repeated" are counts, not estimates.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import BeforeValidator, SerializeAsAny

from isoflop.models.base import Retrieval, Tagged, resolve
from isoflop.models.errors import UserError

HELD_OUT = 20  # one token in 20 is held out
WINDOWS_MIN = 2  # that a loss is the mean of: one has no standard error
STRIPES = 8  # at most so many held-out stripes, evenly spaced over the data,
STRIPE_MIN = 16_384  # each at least so many elements long (fewer stripes if the data is short)
SNAP = 4_096  # a stripe's edge moves to the next line end, if one is this near (in bytes)


class Batch(NamedTuple):
    """Sequences, and how much each of their targets counts; a pytree.

    `tokens` are inputs and, shifted by one, targets, unless `labels` are: what is asked for at a
    position and never shown, as the state after each input. A loss is the weighted mean
    Σ w·nats / Σ w over all targets of the batch: a task's weights stand at its answers, padding has
    weight 0. None is weight 1 for every target. `neighbours` are what a model that retrieves reads
    beside a row: those of its first whole chunk, then of the next (`DataConfig.retrieval`). Each of
    the three is None in every batch of a source or in none. Arrays are NumPy's on the host and
    JAX's in a program.
    """

    tokens: Int[Any, "*batch s"]  # int32 (…, seq_len + 1)
    weights: Float[Any, "*batch t"] | None = None  # float32 (…, seq_len), at least 0
    labels: Int[Any, "*batch t"] | None = None  # int32 (…, seq_len)
    neighbours: Int[Any, "*batch u"] | None = None  # int32 (…, retrieval.beside(seq_len))

    @property
    def targets(self) -> Any:
        """What each of the first seq_len tokens is asked for: int32 (…, seq_len)."""
        return self.tokens[..., 1:] if self.labels is None else self.labels


class DataConfig(Tagged, ABC):
    """Names a source of tokens; `open` reads, generates or streams it.

    A subclass in any module is found by its `kind` once that module is imported.
    """

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are below this. Known without opening anything."""

    @property
    def retrieval(self) -> Retrieval | None:
        """The neighbours that its batches come with; None: none."""
        return None

    @abstractmethod
    def open(self) -> Source:
        """The data themselves. Raises UserError where they cannot be had."""

    def check(self, seq_len: int) -> None:
        """Raise UserError if windows of `seq_len` targets cannot be had, without opening them."""


AnyData = Annotated[
    SerializeAsAny[DataConfig], BeforeValidator(lambda value: resolve(DataConfig, value))
]


class Source(ABC):
    """An opened data set. Training and held-out tokens never overlap."""

    digest: str  # of the bytes that the tokens come from, or of the generator's parameters
    train_tokens: int | None = None  # None: generated fresh, never repeated
    bytes_per_token: float | None = None  # of the held-out text; None where tokens are not text
    entropy: float | None = None  # nats per target that no model can beat; None where unknown
    chance: float | None = None  # accuracy of the best guess that looks at no input, if known
    optimum: float | None = None  # accuracy that no model can beat; None where unknown
    tokenizer: bytes | None = None  # a tokenizer.json; None where tokens are bytes, or no text

    @abstractmethod
    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        """`batch` sequences of `seq_len` targets: a pure function of the arguments."""

    @abstractmethod
    def held_out(self, tokens: int, seq_len: int) -> Batch:
        """n sequences of `seq_len` targets: the same for every run.

        n·seq_len ≥ tokens targets, or as many as the held-out split has: count what you got.
        """

    def unique_tokens(self, tokens: int) -> int | None:
        """Distinct training tokens among the first `tokens` targets; None if generated fresh.

        Exact within the first epoch; after it at most seq_len - 1 too high, since the offset
        leaves less than one window of the ring unvisited.
        """
        return None if self.train_tokens is None else min(tokens, self.train_tokens)

    def verify(self) -> None:  # noqa: B027 (what is generated cannot change)
        """Raise UserError if stored data are no longer those that were opened."""

    def floor(self, seq_len: int) -> float | None:
        """Entropy in nats, averaged over the targets of a window of `seq_len`: the exact best loss.

        It is above `entropy` only where a window begins with less context than the language has.
        """
        return self.entropy


def drawn(source: Source, step: int, seed: int, batch: int, seq_len: int) -> Batch:
    """A training batch, checked. Raises UserError if no loss can be computed from it."""
    return _checked(source, source.batch(step, seed, batch, seq_len), batch, seq_len)


def judged_on(source: Source, tokens: int, seq_len: int, what: str = "eval_tokens") -> Batch:
    """The held-out windows of a run, checked. Raises UserError also where they are too few for a
    standard error; `what` is the name of the setting that `tokens` are of.
    """
    windows = source.held_out(tokens, seq_len)
    weights = windows.weights
    counted = len(windows.tokens) if weights is None else int((weights > 0).any(-1).sum())
    if counted < WINDOWS_MIN:
        raise UserError(
            f"{what}={tokens} of the held-out split, in windows of seq_len={seq_len}, are "
            f"{counted} window, and the standard error of a loss needs {WINDOWS_MIN}; raise "
            f"{what}, use a shorter seq_len or more data"
        )
    return _checked(source, windows, len(windows.tokens), seq_len)


def _checked(source: Source, batch: Batch, rows: int, seq_len: int) -> Batch:
    """What a source gave, if it is what a source must give."""
    tokens, weights, labels, _ = batch
    name = type(source).__name__
    if tokens.shape != (rows, seq_len + 1) or tokens.dtype != np.int32:
        raise UserError(
            f"tokens of {name} must be int32 ({rows}, {seq_len + 1}), and are {tokens.dtype} "
            f"{tokens.shape}; give batch sequences of seq_len + 1 tokens"
        )
    if labels is not None and (labels.shape != (rows, seq_len) or labels.dtype != np.int32):
        raise UserError(
            f"labels of {name} must be int32 ({rows}, {seq_len}), and are {labels.dtype} "
            f"{labels.shape}; give one for each of the first seq_len tokens, or None"
        )
    if weights is None:
        return batch
    if weights.shape != (rows, seq_len) or weights.dtype != np.float32:
        raise UserError(
            f"weights of {name} must be float32 ({rows}, {seq_len}), and are {weights.dtype} "
            f"{weights.shape}; give one for each target, or None"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise UserError(
            f"weights of {name} must be finite, at least 0 and somewhere above 0, and are "
            f"{weights.min():g} to {weights.max():g}; weight the targets that are to be learnt"
        )
    return batch


class Pieces:
    """Disjoint slices of one array, read as if they were joined end to end; nothing is copied."""

    def __init__(self, array: np.ndarray, bounds: list[tuple[int, int]]):
        starts, stops = np.array(bounds, np.int64).reshape(-1, 2).T
        self.array, self.bounds = array, bounds
        self.ends = np.cumsum(stops - starts)
        self.shift = stops - self.ends

    def __len__(self) -> int:
        return int(self.ends[-1])

    def take(self, index: np.ndarray) -> np.ndarray:
        return self.array[index + self.shift[np.searchsorted(self.ends, index, side="right")]]

    def slices(self) -> list[np.ndarray]:
        return [self.array[start:stop] for start, stop in self.bounds]

    def tobytes(self) -> bytes:
        return b"".join(piece.tobytes() for piece in self.slices())


class StoredTokens(Source):
    """Windows over tokens that exist: a memory-mapped corpus or file."""

    def __init__(
        self,
        name: str,
        digest: str,
        train: Pieces,
        held_out: Pieces,
        text: tuple[Pieces, Pieces] | None = None,
        tokenizer: bytes | None = None,
        stored: Sequence[tuple[np.ndarray, str]] = (),
    ):
        """`stored` are the mapped bytes behind all this, each with its SHA-256, to verify."""
        if not len(train) or not len(held_out):
            raise UserError(
                f"{name} must have at least {HELD_OUT} tokens, of which one in {HELD_OUT} is held "
                f"out, but has {len(train) + len(held_out)}; use more data"
            )
        self.name, self.digest, self.stored = name, digest, stored
        self.train, self.held = train, held_out
        self.train_tokens = len(train)
        self.entropy = None
        self.text = text  # the bytes of the training and of the held-out tokens
        self.tokenizer = tokenizer
        self.bytes_per_token = None if text is None else len(text[1]) / len(held_out)

    def verify(self) -> None:
        for data, digest in self.stored:
            if hashlib.sha256(data.data).hexdigest() != digest:
                raise UserError(
                    f"the bytes of {self.name} changed in the cache while they were in use; leave "
                    "it alone and run again"
                )

    def batch(self, step: int, seed: int, batch: int, seq_len: int) -> Batch:
        n, start = len(self.train), self.starts(step, seed, batch, seq_len)
        index = start[:, None] + np.arange(seq_len + 1)
        return Batch(self.train.take(np.where(index < n, index, index - n)).astype(np.int32))

    def starts(self, step: int, seed: int, batch: int, seq_len: int) -> Int[np.ndarray, " b"]:
        """Where the sequences of a training batch begin in the training tokens, a ring."""
        n = self._fit(self.train, "training", seq_len)
        windows = n // seq_len
        row = np.arange(step * batch, (step + 1) * batch)
        epoch, place = np.divmod(row, windows)
        start = np.empty_like(row)
        for e in range(int(epoch[0]), int(epoch[-1]) + 1):
            rng = np.random.Generator(np.random.Philox(key=[seed, e]))
            offset = rng.integers(n)
            start[epoch == e] = offset + seq_len * shuffle(place[epoch == e], windows, rng)
        return start % n

    def held_out(self, tokens: int, seq_len: int) -> Batch:
        """Windows evenly spaced over the held-out split, whose targets do not overlap."""
        n = self._fit(self.held, "held-out", seq_len)
        return Batch(self.held.take(spaced(n, tokens, seq_len)).astype(np.int32))

    def _fit(self, pieces: Pieces, split: str, seq_len: int) -> int:
        if seq_len + 1 > len(pieces):
            raise UserError(
                f"seq_len={seq_len} needs {seq_len + 1} tokens in a row, but the {split} split of "
                f"{self.name} has {len(pieces)}; use a shorter seq_len or more data"
            )
        return len(pieces)


def spaced(n: int, tokens: int, seq_len: int) -> Int[np.ndarray, "w s"]:
    """Places of windows evenly spaced over n tokens, whose targets do not overlap: `tokens` of
    them, or as many as there are.
    """
    windows = min(-(-tokens // seq_len), (n - 1) // seq_len)
    start = np.arange(windows) * (n - 1 - seq_len) // max(windows - 1, 1)
    return start[:, None] + np.arange(seq_len + 1)


def shuffle(place: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """π(place) for a random permutation π of range(n), without the other n - len(place) values.

    Six Feistel rounds on digits (x, y) of the base just above √n, then again for values that fall
    outside range(n) (cycle walking; Black & Rogaway 2002, Ciphers with Arbitrary Finite Domains,
    sections 3 and 4). A round scrambles y by multiplication and shifts, all modulo 2^64.
    """
    base = np.uint64(np.ceil(np.sqrt(n)))
    odd, half = np.uint64(0x9E3779B97F4A7C15), np.uint64(32)
    keys = rng.integers(2**63, size=6, dtype=np.uint64)
    todo, result = np.arange(len(place)), place.astype(np.uint64)
    while len(todo):
        x, y = np.divmod(result[todo], base)
        for key in keys:
            scrambled = (y + key) * odd
            scrambled = (scrambled ^ (scrambled >> half)) * odd
            x, y = y, (x + (scrambled >> half)) % base
        result[todo] = x * base + y
        todo = todo[result[todo] >= n]
    return result.astype(np.int64)


def split(text: np.ndarray) -> tuple[Pieces, Pieces]:
    """Training and held-out pieces of uint8 text: the last twentieth of each of S equal blocks.

    Stripes rather than the last 5 % of all, so that held-out text is like training text: the end
    of a corpus sorted by topic or by file name is not. Edges fall on line ends.
    """
    stripes = min(max(len(text) // HELD_OUT // STRIPE_MIN, 1), STRIPES)
    length = len(text) // stripes // HELD_OUT
    reach = min(SNAP, length // 2)
    train, held_out, begin = [], [], 0
    for i in range(1, stripes + 1):
        end = i * len(text) // stripes
        cut = max(begin, _line_start(text, end - length, reach))
        end = max(cut, _line_start(text, end, reach))
        train.append((begin, cut))
        held_out.append((cut, end))
        begin = end
    return Pieces(text, train), Pieces(text, held_out)


def _line_start(text: np.ndarray, point: int, reach: int) -> int:
    """The first start of a line within `reach` of `point`, or else the first of a character."""
    if point in (0, len(text)):
        return point
    found = text[point - 1 : point + reach].tobytes().find(b"\n")
    if found >= 0:
        return point + found
    while point < len(text) and text[point] & 0xC0 == 0x80:  # inside a UTF-8 character
        point += 1
    return point
