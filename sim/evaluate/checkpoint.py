"""What a finished model is used for: its loss on a text, and text that it goes on with.

Tokens are those of a tokenizer.json beside the weights, or bytes where there is none. What its
template puts before a text, as a token of beginning, is context; what it puts after is left out.
Neither is ever predicted, and neither counts in the bytes. Its truncation and padding are off.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int

from isoflop.models.checkpoints import huggingface as interop
from isoflop.models.checkpoints.fields import escaped
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.train.program import cross_entropy

BYTES = 256
HEAD_ROWS = 1024  # tokens whose logits are in memory at once

Tokens = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Loss:
    """Of a model on a text. Windows share no context, so early tokens of each have little."""

    tokens: int
    window: int
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
        return nnx.split(self.model.abstract())[0]

    @cached_property
    def _tokenizer(self) -> Any:
        """None for bytes."""
        path = self.folder / "tokenizer.json"
        if path.exists():
            from tokenizers import Tokenizer

            with _telling(f"cannot read {path}", "copy that file again"):
                tokenizer = Tokenizer.from_file(str(path))
                tokenizer.no_truncation()
                tokenizer.no_padding()
                return tokenizer
        if self.model.vocab_size != BYTES:
            raise UserError(
                f"{self.folder} has no tokenizer.json, and vocab_size={self.model.vocab_size} is "
                f"not the {BYTES} of bytes; put the model's tokenizer.json there"
            )
        return None

    @property
    def context(self) -> int | None:
        """Tokens that the model was trained on at once, if config.json says it."""
        return interop.trained_context(self.folder)

    def encode(self, text: str) -> Tokens:
        """The tokens of the text itself."""
        return self._encoded(text)[1]

    def _encoded(self, text: str) -> tuple[Tokens, Tokens]:
        """What the tokenizer's template puts before a text, and the tokens of the text."""
        check_utf8(text)
        if self._tokenizer is None:
            return np.zeros(0, np.int32), np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        with _telling("tokenizer.json cannot encode the text", "use the model's own"):
            encoded = self._tokenizer.encode(text)
        ids, special = (np.array(x, np.int32) for x in (encoded.ids, encoded.special_tokens_mask))
        if ids.size and ids.max() >= self.model.vocab_size:
            raise UserError(
                f"tokenizer.json gives token {ids.max()}, and the model's vocab_size is "
                f"{self.model.vocab_size}; use the tokenizer that belongs to it"
            )
        return ids[np.cumsum(1 - special) == 0], ids[special == 0]

    def decode(self, tokens: Tokens) -> str:
        if self._tokenizer is None:
            return bytes(tokens.tolist()).decode(errors="replace")
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    def loss(self, text: str, seq_len: int) -> Loss:
        """Mean over the text's tokens, read in windows of `seq_len` targets that none shares."""
        before, own = self._encoded(text)
        tokens = np.concatenate([before, own])
        counted = np.arange(len(tokens)) >= max(1, len(before))
        if not counted.any():
            raise UserError(f"a text of {len(own)} tokens has none to predict; give a longer one")
        seq_len = min(seq_len, len(tokens) - 1)
        sums = (float(self._nats(*window)) for window in _windows(tokens, counted, seq_len))
        nats = math.fsum(sums) / int(counted.sum())
        if not math.isfinite(nats):
            raise UserError(
                "the model's loss on this text is not a finite number; its weights overflow fp32"
            )
        bytes_per_token = len(text.encode()) / len(own)
        bits_per_byte = nats / math.log(2) / bytes_per_token
        return Loss(int(counted.sum()), seq_len, nats, bits_per_byte)

    @cached_property
    def _nats(self) -> Any:
        """Of the targets of a window that are counted, in all."""

        @jax.jit
        def nats(params, window, counted):
            lm = nnx.merge(self._graph, params)
            hidden = lm.hidden(window[None, :-1])[0][0]
            rows = min(HEAD_ROWS, len(hidden))

            def some(cuts):
                hidden, targets, counted = cuts
                losses = cross_entropy(lm.logits(hidden[None]), targets[None])[0]
                return jnp.where(counted, losses, 0).sum()

            def cut(x):
                return jnp.pad(x, [(0, -len(x) % rows), *[(0, 0)] * (x.ndim - 1)]).reshape(
                    -1, rows, *x.shape[1:]
                )

            return jax.lax.map(some, (cut(hidden), cut(window[1:]), cut(counted[1:]))).sum()

        return partial(nats, self.params)

    def write(
        self, prompt: str, tokens: int, temperature: float = 0.0, seed: int = 0, context: int = 8192
    ) -> str:
        """What the model writes after `prompt`, greedily or sampled at a temperature.

        Raises UserError where a decoding state for `context` tokens is too small for both.
        """
        check_sampling(temperature, seed)
        before, own = self._encoded(prompt)
        if not len(own):
            raise UserError("a prompt needs at least one token; give one")
        given = np.concatenate([before, own])
        most, needed = self.model.max_tokens(context), len(given) + tokens - 1
        if most is not None and needed > most:
            raise UserError(
                f"a prompt of {len(given)} tokens and {tokens} to write need a decoding state for "
                f"{needed} tokens, but context={context}; write fewer, or raise context"
            )
        fed = np.concatenate([given, np.full(tokens - 1, -1, np.int32)])
        written, finite = self._decode(temperature > 0)(
            self.params, fed, max(temperature, 1e-6), jax.random.key(seed)
        )
        if not finite.all():
            raise UserError("the model's logits are not finite numbers; its weights overflow fp32")
        return self.decode(np.asarray(written[len(given) - 1 :]))

    def _decode(self, sampled: bool) -> Any:
        """(parameters, tokens with −1 where the model's own goes on, temperature, key) → tokens,
        and whether the logits of each were finite.
        """

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
                finite = jnp.isfinite(logits).all()
                return (state, best.astype(jnp.int32), key), (best, finite)

            start = lm.init_state(1, fed.shape[0]), jnp.int32(0), key
            return jax.lax.scan(step, start, fed)[1]

        return decode


@contextmanager
def _telling(what: str, remedy: str) -> Iterator[None]:
    """Whatever the tokenizers package raises as one line: a bare Exception, or Rust's panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {escaped(str(error))}; {remedy}") from None


def check_sampling(temperature: float, seed: int) -> None:
    """UserError for what no text can be sampled by."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature={temperature} must be a finite number of at least 0")
    if not 0 <= seed < 2**63:
        raise UserError(f"seed={seed} must be from 0 to 2^63 - 1; choose a smaller one")


def check_utf8(text: str) -> None:
    """UserError for bytes of a command line that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text must be UTF-8, and its character {error.start} is not; convert it"
        ) from None


def _windows(
    tokens: Tokens, counted: Bool[np.ndarray, "_"], seq_len: int
) -> Iterator[tuple[Tokens, Bool[np.ndarray, "_"]]]:
    """Inputs and, shifted by one, targets; the last window is filled up with what is not counted,
    which no earlier token sees.
    """
    for start in range(0, len(tokens) - 1, seq_len):
        window = slice(start, start + seq_len + 1)
        missing = max(0, start + seq_len + 1 - len(tokens))
        yield np.pad(tokens[window], (0, missing)), np.pad(counted[window], (0, missing))
