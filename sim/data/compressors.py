"""Baseline compressors for a model's loss: bits per byte of the same held-out text."""

from __future__ import annotations

import bz2
import lzma
from functools import partial

from isoflop.models.errors import UserError
from isoflop.sim.data.source import Source, StoredTokens

XZ = 9 | lzma.PRESET_EXTREME
ZSTD = 22


def compressed_bits_per_byte(source: Source, *, primed: bool = False) -> dict[str, float]:
    """Bits per byte of the whole held-out text, by compressor: xz -9e, bzip2 -9 and zstd -22.

    A model has seen the training text; these have not. With `primed` they have: xz is charged for
    what the held-out text adds to an archive of the training text, and zstd has the training text
    as its dictionary; bzip2 is left out, since its blocks are 900 kB. Takes seconds; primed, a few
    seconds per megabyte of training text.

    Raises UserError if the source's tokens are not text.
    """
    if not isinstance(source, StoredTokens) or source.text is None:
        raise UserError("compressors need text, but this source has none; use a Corpus or File")
    import zstandard

    train, text = (pieces.tobytes() for pieces in source.text)
    if primed:
        window = (len(train) + len(text)).bit_length()
        parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD, window_log=window)
        raw = zstandard.ZstdCompressionDict(train, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        zstd = zstandard.ZstdCompressor(compression_params=parameters, dict_data=raw)
        xz = partial(lzma.compress, preset=XZ)
        size = {"xz": len(xz(train + text)) - len(xz(train)), "zstd": len(zstd.compress(text))}
    else:
        size = {
            "xz": len(lzma.compress(text, preset=XZ)),
            "bzip2": len(bz2.compress(text, 9)),
            "zstd": len(zstandard.ZstdCompressor(level=ZSTD).compress(text)),
        }
    return {name: 8 * compressed / len(text) for name, compressed in size.items()}
