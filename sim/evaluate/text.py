"""Text to a model's tokens and back, by a tokenizer.json or as bytes.

What a tokenizer's template puts before a text, as a token of beginning, is context; what it puts
after is left out. Its truncation and padding are off.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from isoflop.models.checkpoints.fields import escaped
from isoflop.models.errors import UserError
from isoflop.sim.data.tokenizer import load

if TYPE_CHECKING:
    from isoflop.sim.data.source import DataConfig

BYTES = 256

Tokens = Int[np.ndarray, "_"]


@dataclass(frozen=True)
class Tokenizer:
    """Of a model with `vocab_size` tokens; `model` is of the package tokenizers, None for bytes."""

    model: Any
    vocab_size: int

    @classmethod
    def of_folder(cls, folder: Path, vocab_size: int) -> Tokenizer:
        """The tokenizer.json in a folder; bytes where there is none. Raises UserError if that is
        damaged, or if there is none and the vocabulary is not that of bytes.
        """
        path = folder / "tokenizer.json"
        if path.exists():
            from tokenizers import Tokenizer as Model

            with _telling(f"cannot read {path}", "copy that file again"):
                model = Model.from_file(str(path))
                model.no_truncation()
                model.no_padding()
                return cls(model, vocab_size)
        if vocab_size != BYTES:
            raise UserError(
                f"{folder} has no tokenizer.json, and vocab_size={vocab_size} is not the {BYTES} "
                "of bytes; put the model's tokenizer.json there"
            )
        return cls(None, vocab_size)

    @classmethod
    def of_data(cls, data: DataConfig) -> Tokenizer:
        """That of a run's data. Raises UserError if its tokens are of no text that is known."""
        source = data.open()
        if source.tokenizer is not None:
            return cls(load(source.tokenizer), data.vocab_size)
        if source.bytes_per_token is None:
            raise UserError(
                f"the {data.kind} data of this run hold tokens without a text; give and take token "
                "ids instead (logits, generate)"
            )
        return cls(None, data.vocab_size)

    def encode(self, text: str) -> tuple[Tokens, Tokens]:
        """What the template puts before a text, and the tokens of the text."""
        check_utf8(text)
        if self.model is None:
            return np.zeros(0, np.int32), np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        with _telling("tokenizer.json cannot encode the text", "use the model's own"):
            encoded = self.model.encode(text)
        ids, special = (np.array(x, np.int32) for x in (encoded.ids, encoded.special_tokens_mask))
        if ids.size and ids.max() >= self.vocab_size:
            raise UserError(
                f"tokenizer.json gives token {ids.max()}, and the model's vocab_size is "
                f"{self.vocab_size}; use the tokenizer that belongs to it"
            )
        return ids[np.cumsum(1 - special) == 0], ids[special == 0]

    def decode(self, tokens: Tokens) -> str:
        if self.model is None:
            return bytes(tokens.tolist()).decode(errors="replace")
        return self.model.decode(tokens.tolist(), skip_special_tokens=False)

    def one(self, text: str) -> int:
        """The one token that `text` is, special tokens by their names. Raises UserError if it is
        several, or none.
        """
        known = None if self.model is None else self.model.token_to_id(text)
        if known is not None:
            return known
        own = self.encode(text)[1]
        if len(own) != 1:
            raise UserError(f"{text!r:.60} must be one token to stop at, and is {len(own)}")
        return int(own[0])


@contextmanager
def _telling(what: str, remedy: str) -> Iterator[None]:
    """Whatever the tokenizers package raises as one line: a bare Exception, or Rust's panics."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise UserError(f"{what}: {escaped(str(error))}; {remedy}") from None


def check_utf8(text: str) -> None:
    """UserError for bytes of a command line that are no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"a text must be UTF-8, and its character {error.start} is not; convert it"
        ) from None
