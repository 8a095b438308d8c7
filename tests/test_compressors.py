"""What compressors make of held-out text, beside which a loss can be read."""

import lzma

import numpy as np
import pytest
from sources import LANGUAGES, refusal

from isoflop.sim.data import Corpus, File, compressed_bits_per_byte

pytestmark = pytest.mark.usefixtures("shared_cache")


def random_letters(path, size):
    letters = np.frombuffer(bytes(range(33, 97)), np.uint8)
    file = path / "letters.txt"
    file.write_bytes(np.random.default_rng(0).choice(letters, size).tobytes())
    return File(path=str(file)).open()


def test_compressors_come_close_to_a_known_entropy_from_above(tmp_path):
    bits = compressed_bits_per_byte(random_letters(tmp_path, 2_000_000))
    assert set(bits) == {"xz", "bzip2", "zstd"}
    assert all(6 < value < 6.2 for value in bits.values())


def test_compressors_see_the_held_out_bytes_and_no_others():
    opened = Corpus(name="kjv").open()
    text = b"".join(piece.tobytes() for piece in opened.held.slices())
    expected = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    assert compressed_bits_per_byte(opened)["xz"] == expected


def test_priming_helps_where_training_text_is_like_held_out_text(prose):
    opened = File(path=prose).open()
    plain, primed = (compressed_bits_per_byte(opened, primed=flag) for flag in (False, True))
    assert set(primed) == {"xz", "zstd"}
    assert all(primed[name] < 0.9 * plain[name] for name in primed)


def test_compressors_refuse_what_is_not_text():
    assert "need text" in refusal(compressed_bits_per_byte, LANGUAGES[0].open())
