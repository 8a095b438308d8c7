"""Byte pair encoding loses nothing and is trained on the training split alone."""

import numpy as np
import pytest

from isoflop.sim.data import File, cache, tokenizer
from isoflop.sim.data.source import Pieces, StoredTokens, split

pytestmark = pytest.mark.usefixtures("shared_cache")


def decoded(opened: StoredTokens) -> bytes:
    """The held-out text again, by the tokenizer that the cache holds."""
    (model,) = [file for file in cache.folder().iterdir() if file.name.startswith("bpe-")]
    reader = tokenizer.load(model.read_bytes()[: -cache.DIGEST_BYTES])
    return reader.decode(list(np.concatenate(opened.held.slices()))).encode()


def test_bpe_loses_nothing_and_reports_held_out_bytes_per_token(prose, own_cache):
    config = File(path=prose, bpe_vocab=400)
    opened = config.open()
    text = opened.text[1].tobytes()
    assert decoded(opened) == text
    assert opened.bytes_per_token == len(text) / len(opened.held)
    assert 1.5 < opened.bytes_per_token < 4
    assert config.vocab_size == 400
    assert opened.batch(0, 0, 64, 256).tokens.max() < 400


def test_text_without_lines_is_encoded_in_whole_characters(monkeypatch):
    monkeypatch.setattr(tokenizer, "CHUNK", 7)
    text = "où ça? Ω𝄞 " * 20 + "\n\nà\n"
    whole = np.frombuffer(text.encode(), np.uint8)
    chunks = list(tokenizer._chunks(Pieces(whole, [(0, len(whole))])))
    assert "".join(chunks) == text
    assert len(chunks) > 20


def test_bpe_is_the_same_whoever_trains_it(prose, own_cache, monkeypatch):
    first = File(path=prose, bpe_vocab=400).open()
    monkeypatch.setenv("ISOFLOP_CACHE", str(own_cache / "again"))
    again = File(path=prose, bpe_vocab=400).open()
    assert first.digest == again.digest
    assert first.train.tobytes() == again.train.tobytes()


def test_bpe_is_trained_on_the_training_split_alone(prose, tmp_path, own_cache):
    text = np.fromfile(prose, np.uint8)
    (_, held_out) = split(text)
    text[held_out.bounds[0][0] : held_out.bounds[0][1]] = ord("q")
    altered = str(tmp_path / "altered.txt")
    text.tofile(altered)
    File(path=prose, bpe_vocab=400).open()
    File(path=altered, bpe_vocab=400).open()
    models = [file for file in own_cache.iterdir() if file.name.startswith("bpe-")]
    assert len(models) == 2
    assert models[0].read_bytes() == models[1].read_bytes()
