"""A language whose state no token shows: a hidden Markov model, with its best predictor."""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt

from isoflop.models.errors import UserError
from isoflop.sim.data.languages import LANGUAGE, Generated, entropy, stream
from isoflop.sim.data.source import DataConfig, Source

TABLE_MAX = 2**20  # probabilities of contexts with their states
EQUAL = 1e-9  # nats between bounds of the entropy that have met
GAP_MAX = 1e-3  # nats between them where it is called known


class HiddenMarkov(DataConfig):
    """A hidden Markov model: each token is emitted by a hidden state, which then moves on.

    Transitions and emissions are rows of a symmetric Dirichlet (`concentration`); small values make
    them nearly certain. The forward algorithm (Rabiner 1989, section III.A) predicts best;
    `optimal` gives its nats. `entropy` is the rate, by bounds that meet (Cover & Thomas 2006,
    theorem 4.5.1): H(x_n | x_1 … x_n-1), with and without the first state, by all contexts of n − 1
    tokens. Raises UserError on `open` if the bounds are more than 0.001 nats apart.
    """

    kind: Literal["hidden_markov"] = "hidden_markov"
    states: int = Field(4, ge=1, le=64)
    symbols: int = Field(4, ge=2, le=1024)
    concentration: float = Field(1.0, ge=0.05)
    seed: NonNegativeInt = 0

    @property
    def vocab_size(self) -> int:
        return self.symbols

    def open(self) -> Source:
        return _HiddenMarkov(self)


class _HiddenMarkov(Generated):
    def __init__(self, config: HiddenMarkov):
        super().__init__(config, period=1)
        rng, n, v = stream(LANGUAGE, config.seed), config.states, config.symbols
        self.move = rng.dirichlet(np.full(n, config.concentration), size=n)
        self.emit = rng.dirichlet(np.full(v, config.concentration), size=n)
        balance = self.move.T - np.eye(n)
        balance[-1] = 1  # one equation is redundant; the probabilities sum to one instead
        self.stationary = np.linalg.solve(balance, np.eye(n)[-1])
        self.known, low = self._bounds(v)
        self.entropy = (self.known[-1] + low) / 2
        if (gap := self.known[-1] - low) > GAP_MAX:
            raise UserError(
                f"the entropy of a hidden Markov model of {n} states and {v} symbols is known to "
                f"{gap:.2g} nats by {len(self.known)} tokens, and must be to {GAP_MAX:g}; use "
                f"fewer symbols or states, or more concentration"
            )

    def _bounds(self, v: int) -> tuple[list[float], float]:
        """H(x_t | x_1 … x_t−1) for t = 1, 2, …, and the last of them where the first state is known
        too: until they are equal, or their contexts too many.
        """
        n = len(self.move)
        joint = np.diag(self.stationary)[:, None]  # p(first state, context, state)
        blocks, with_first = [0.0], [entropy(self.stationary)]
        gap = np.inf
        while gap > EQUAL and (joint.size * v <= TABLE_MAX or len(blocks) < 3):
            emitted = joint[:, :, None] * self.emit.T  # p(first state, context, token, state)
            blocks.append(entropy(emitted.sum(axis=(0, 3))))
            with_first.append(entropy(emitted.sum(axis=3)))
            joint = emitted.reshape(n, -1, n) @ self.move
            low = with_first[-1] - with_first[-2]
            gap = blocks[-1] - blocks[-2] - low
        return np.diff(blocks).tolist(), low

    def floor(self, seq_len: int) -> float:
        """Exact for the targets that the bounds reach, the rate for those after."""
        assert self.entropy is not None
        known = self.known[1 : seq_len + 1]
        return (sum(known) + (seq_len - len(known)) * self.entropy) / seq_len

    def optimal(self, tokens: Int[np.ndarray, "n s"]) -> Float[np.ndarray, "n t"]:
        """−log p of each target given all tokens of its window before it."""
        state = np.broadcast_to(self.stationary, (len(tokens), len(self.move)))
        nats = np.empty(tokens.shape)
        for t, token in enumerate(tokens.T):
            joint = state * self.emit.T[token]
            p = joint.sum(axis=1, keepdims=True)
            nats[:, t] = -np.log(p[:, 0])
            state = joint / p @ self.move
        return nats[:, 1:]

    def draw(self, rng: np.random.Generator, rows: int, length: int) -> np.ndarray:
        move, emit = self.move.cumsum(axis=1), self.emit.cumsum(axis=1)
        state = np.searchsorted(self.stationary.cumsum()[:-1], rng.random(rows), side="right")
        states = np.empty((length, rows), np.int64)
        for t, chance in enumerate(rng.random((length, rows))):
            states[t] = state
            state = (chance[:, None] > move[state, :-1]).sum(axis=1)
        chance = rng.random(states.shape)
        return (chance[..., None] > emit[states, :-1]).sum(axis=-1).T
