"""What a finished model is used for: its loss on a text, and text that it goes on with.

Tokens are those of a tokenizer.json beside the weights, or bytes where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from models import interop
from models.base import Init
from models.errors import UserError
from models.lm import ModelConfig
from sim.program import cross_entropy

BYTES = 256


@dataclass(frozen=True)
class Loss:
    """Of a model on a text. Windows share no context, so early tokens of each have little."""

    tokens: int
    nats_per_token: float
    bits_per_byte: float


@dataclass(frozen=True)
class Checkpoint:
    """A model, its parameters and the folder with its tokenizer."""

    folder: Path
    model: ModelConfig
    params: Any

    @classmethod
    def load(cls, folder: Path) -> Checkpoint:
        return cls(folder, *interop.load(folder))

    @cached_property
    def _graph(self) -> Any:
        return nnx.split(nnx.eval_shape(lambda: self.model.build(init=Init(None))))[0]

    @cached_property
    def _tokenizer(self) -> Any:
        """None for bytes."""
        path = self.folder / "tokenizer.json"
        if path.exists():
            from tokenizers import Tokenizer

            try:
                return Tokenizer.from_file(str(path))
            except Exception as error:  # tokenizers raises nothing more precise
                raise UserError(f"cannot read {path}: {error}; copy that file again") from None
        if self.model.vocab_size != BYTES:
            raise UserError(
                f"{self.folder} has no tokenizer.json, and vocab_size={self.model.vocab_size} is "
                f"not the {BYTES} of bytes; put the model's tokenizer.json there"
            )
        return None

    def encode(self, text: str) -> Int[np.ndarray, " s"]:
        if self._tokenizer is None:
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        ids = np.array(self._tokenizer.encode(text).ids, np.int32)
        if ids.size and ids.max() >= self.model.vocab_size:
            raise UserError(
                f"tokenizer.json gives token {ids.max()}, and the model's vocab_size is "
                f"{self.model.vocab_size}; use the tokenizer that belongs to it"
            )
        return ids

    def decode(self, tokens: Int[np.ndarray, " s"]) -> str:
        if self._tokenizer is None:
            return bytes(tokens.tolist()).decode(errors="replace")
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def loss(self, text: str, seq_len: int) -> Loss:
        """Mean over windows of `seq_len` targets; a last part that fills no window is left out."""
        tokens = self.encode(text)
        if len(tokens) < 2:
            raise UserError(
                f"a text of {len(tokens)} tokens has none to predict; give a longer one"
            )
        seq_len = min(seq_len, len(tokens) - 1)
        windows = list(_windows(tokens, seq_len))
        nats = math.fsum(float(self._nats(window)) for window in windows) / len(windows)
        bytes_per_token = len(text.encode()) / len(tokens)
        return Loss(len(windows) * seq_len, nats, nats / math.log(2) / bytes_per_token)

    @cached_property
    def _nats(self) -> Any:
        @jax.jit
        def nats(params, window):
            logits, _ = nnx.merge(self._graph, params)(window[None, :-1])
            return cross_entropy(logits, window[None, 1:]).mean()

        return partial(nats, self.params)

    def write(
        self, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 0, context: int = 8192
    ) -> str:
        """What the model writes after `prompt`, greedily or sampled at a temperature.

        Raises UserError where a decoding state for `context` tokens is too small for both.
        """
        given = self.encode(prompt)
        if not len(given):
            raise UserError("a prompt needs at least one token; give one")
        most, needed = self.model.max_tokens(context), len(given) + tokens - 1
        if most is not None and needed > most:
            raise UserError(
                f"a prompt of {len(given)} tokens and {tokens} to write need a decoding state for "
                f"{needed} tokens, but context={context}; write fewer, or raise context"
            )
        fed = np.concatenate([given, np.full(tokens - 1, -1, np.int32)])
        written = self._decode(temperature > 0)(
            self.params, fed, max(temperature, 1e-6), jax.random.key(seed)
        )
        return self.decode(np.asarray(written[len(given) - 1 :]))

    def _decode(self, sampled: bool) -> Any:
        """(parameters, tokens with −1 where the model's own goes on, temperature, key) → tokens."""

        @jax.jit
        def decode(params, fed: Int[Array, " s"], temperature, key):
            lm = nnx.merge(self._graph, params)

            def step(carry, given):
                state, last, key = carry
                state, logits = lm.step(state, jnp.where(given < 0, last, given)[None])
                key, now = jax.random.split(key)
                if sampled:
                    best = jax.random.categorical(now, logits[0] / temperature)
                else:
                    best = jnp.argmax(logits[0])
                return (state, best.astype(jnp.int32), key), best

            start = lm.init_state(1, fed.shape[0]), jnp.int32(0), key
            return jax.lax.scan(step, start, fed)[1]

        return decode


def _windows(tokens: Int[np.ndarray, " s"], seq_len: int) -> Iterator[Int[np.ndarray, " w"]]:
    """Inputs and, shifted by one, targets, that no two windows share."""
    for start in range(0, len(tokens) - seq_len, seq_len):
        yield tokens[start : start + seq_len + 1]
