"""Text to tokens: bytes by default, or a byte-level BPE trained here on the training split alone.

Byte pair encoding as in Sennrich et al. (2016, 1508.07909), over bytes and within the words of
GPT-2's pattern (Radford et al. 2019, section 2.2). Every byte is in the vocabulary, so any text is
encoded without loss, and nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from isoflop.sim.data import cache
from isoflop.sim.data.source import Pieces, StoredTokens, split

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BPE_VOCAB_MIN = 257  # all bytes and one merge
BPE_VOCAB_MAX = 65_536  # token ids are stored as uint16
CHUNK = 65_536  # bytes encoded at once


def text_tokens(name: str, text: np.ndarray, digest: str, bpe_vocab: int | None) -> StoredTokens:
    """Split uint8 `text` into training and held-out, and tokenise each; UTF-8 if `bpe_vocab`."""
    train, held_out = both = split(text)
    if bpe_vocab is None:
        return StoredTokens(name, digest, train, held_out, both, stored=[(text, digest)])
    version = importlib.metadata.version("tokenizers")
    file = cache.name("bpe", version, digest, str(train.bounds), str(bpe_vocab))
    model, model_digest = cache.entry(file, lambda: [_train(train, bpe_vocab)])

    def encoded(pieces: Pieces) -> tuple[np.ndarray, str]:
        file = cache.name("tokens", model_digest, digest, str(pieces.bounds))
        return cache.entry(file, lambda: _encode(model.tobytes(), pieces))

    of_both = hashlib.sha256(f"{digest} {model_digest}".encode()).hexdigest()
    described = load(model.tobytes()).to_str().encode()
    stored = [encoded(train), encoded(held_out)]
    first, second = (Pieces(data.view("<u2"), [(0, len(data) // 2)]) for data, _ in stored)
    return StoredTokens(name, of_both, first, second, both, described, [(text, digest), *stored])


def _train(train: Pieces, vocab: int) -> bytes:
    """A trained tokenizer as JSON: at most `vocab` tokens, fewer if the text has no more pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    tokenizer.train_from_iterator(_chunks(train), trainer)
    return tokenizer.to_str().encode()


def _encode(model: bytes, pieces: Pieces) -> Iterator[bytes]:
    tokenizer = load(model)
    for chunk in _chunks(pieces):
        yield np.array(tokenizer.encode(chunk).ids, "<u2").tobytes()


def load(model: bytes) -> Tokenizer:
    """The trained tokenizer from its JSON, decoding bytes to text."""
    from tokenizers import Tokenizer, decoders

    tokenizer = Tokenizer.from_str(model.decode())
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _chunks(pieces: Pieces) -> Iterator[str]:
    """The text in chunks that end at a line's end, or at a character's where a line is too long."""
    for piece in pieces.slices():
        begin = 0
        while begin < len(piece):
            window = piece[begin : begin + CHUNK].tobytes()
            end = len(window)
            if begin + end < len(piece):
                end = window.rfind(b"\n") + 1 or _character_end(window)
            yield window[:end].decode()
            begin += end


def _character_end(window: bytes) -> int:
    """The length of the longest prefix that splits no UTF-8 character."""
    end = len(window) - 1
    while window[end] & 0xC0 == 0x80:
        end -= 1
    return end
