"""Your own data: local text, JSON lines, Parquet or token files.

    .txt      UTF-8
    .jsonl    one JSON object a line; the strings under `field`, with a blank line between documents
    .parquet  the strings of the column `field`, likewise
    .bin      token ids of a stated width, or behind llm.c's header (sim/data/tokenfile.py)

A file is copied to the cache once, documents of .jsonl and .parquet as text, and the copy is what
is read: whatever happens to the file then, a run has the bytes that it is named by.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from isoflop.models.errors import UserError
from isoflop.sim.data import cache
from isoflop.sim.data.source import HELD_OUT, DataConfig, Pieces, StoredTokens
from isoflop.sim.data.tokenfile import Width, ids_of, read_ids
from isoflop.sim.data.tokenizer import BPE_VOCAB_MAX, BPE_VOCAB_MIN, text_tokens
from isoflop.sim.durable import write
from isoflop.sim.jsonlines import json_object

Format = Literal["txt", "jsonl", "parquet", "bin"]
BETWEEN = b"\n\n"  # documents
CHUNK = 1 << 24  # bytes read at once where a whole file is checked


class File(DataConfig):
    """A local file, named by content: `path` is where it was found, and is in no digest.

    `format` is the path's suffix when left out, and `digest`, the SHA-256, is read from the file:
    where there is none any more, it is that of what was last opened under this path. `open` reads
    the content of that digest, from the cache, or from the file if it still has it. For .bin alone:
    `bin_vocab` says that its token ids are below it, `dtype` how wide they are, unless a header
    does; its held-out split is its last twentieth. Raises UserError if the file is empty, or
    missing and never opened.
    """

    incidental = frozenset({"path"})

    kind: Literal["file"] = "file"
    path: str
    format: Format = Field(default_factory=lambda given: _suffix(given["path"]))
    field: str = "text"
    bpe_vocab: int | None = Field(None, ge=BPE_VOCAB_MIN, le=BPE_VOCAB_MAX)
    bin_vocab: int | None = Field(None, ge=2, lt=2**31)
    dtype: Width | None = None
    digest: str = Field(default_factory=lambda given: file_digest(given["path"]))

    @model_validator(mode="after")
    def _known_kind(self) -> File:
        if self.format not in get_args(Format):
            suffixes = ", ".join(f".{name}" for name in get_args(Format))
            raise ValueError(f"{self.path} must end in one of {suffixes}; convert it")
        if (self.format == "bin") != (self.bin_vocab is not None):
            raise ValueError(
                f"bin_vocab={self.bin_vocab} with {self.path}: bin_vocab is needed for .bin files, "
                "and for them alone; give or drop it"
            )
        if self.format == "bin" and self.bpe_vocab is not None:
            raise ValueError(
                f"bpe_vocab={self.bpe_vocab} needs text, but {self.path} holds tokens; drop it"
            )
        if self.dtype is not None and (self.bin_vocab or math.inf) > ids_of(self.dtype):
            raise ValueError(
                f"dtype={self.dtype} holds {ids_of(self.dtype)} token ids of a .bin file, but "
                f"bin_vocab={self.bin_vocab}; state a wider dtype, or drop it for text"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return self.bin_vocab or self.bpe_vocab or 256

    def open(self) -> StoredTokens:
        if self.format in ("txt", "bin"):
            name = cache.name("file", self.digest)
            data, digest = cache.entry(name, self._bytes, self.digest)
        else:
            name = cache.name("file", f".{self.format}", self.digest, self.field)
            data, digest = cache.entry(name, self._documents)
        _remember(self.path, self.digest)
        if self.bin_vocab is None:
            return text_tokens(self.path, _utf8(self.path, data), digest, self.bpe_vocab)
        ids = read_ids(self.path, data, self.bin_vocab, self.dtype)
        cut = len(ids) - len(ids) // HELD_OUT
        train, held_out = Pieces(ids, [(0, cut)]), Pieces(ids, [(cut, len(ids))])
        return StoredTokens(self.path, digest, train, held_out, stored=[(data, digest)])

    def _bytes(self) -> Iterator[bytes]:
        """The file in pieces. Raises UserError after the last if they have another digest."""
        file_digest(self.path, must_exist=True)
        found = hashlib.sha256()
        with open(self.path, "rb") as file:
            while chunk := file.read(CHUNK):
                found.update(chunk)
                yield chunk
        self._check(found.hexdigest())

    def _documents(self) -> Iterator[bytes]:
        self._check(file_digest(self.path, must_exist=True))
        read = _jsonl if self.format == "jsonl" else _parquet
        yield from join(read(self.path, self.field), self.path)
        self._check(file_digest(self.path, must_exist=True))

    def _check(self, found: str) -> None:
        if found != self.digest:
            raise UserError(
                f"{self.path} must have the digest {self.digest[:16]} of its run, but has "
                f"{found[:16]}; restore the file, or leave the digest out to describe a new run"
            )


def _suffix(path: str) -> Any:  # a Format, which is for the value that has it to check
    return Path(path).suffix.removeprefix(".")


def _memory(path: str) -> Path:
    return cache.folder() / cache.name("digest", os.path.abspath(path))


def _remember(path: str, digest: str) -> None:
    """Keep the digest of what was opened under this path, for the time when it is gone."""
    memory = _memory(path)
    with contextlib.suppress(OSError):  # a service, that needs no cache
        if not memory.is_file() or memory.read_text() != digest:
            write(memory, digest.encode())


def file_digest(path: str, must_exist: bool = False) -> str:
    """SHA-256 of a file's bytes, in hex, or of what was last opened there, if it is gone.

    Raises UserError if it is empty, or if it is gone and was never opened or must be there now.
    """
    file, memory = Path(path), _memory(path)
    if not file.is_file():
        if memory.is_file() and not file.exists() and not must_exist:
            return memory.read_text()
        raise UserError(f"{path} must be an existing file; check the path")
    status = file.stat()
    if not status.st_size:
        raise UserError(f"{path} must hold data, but is empty; write some")
    return _file_digest(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_digest(path: str, size: int, changed_ns: int) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} must be readable ({error.strerror}); allow it") from error


def _utf8(path: str, text: np.ndarray) -> np.ndarray:
    """The same bytes. Raises UserError, naming the first bad byte, if they are not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    for begin in range(0, len(text), CHUNK):
        pending = len(decoder.getstate()[0])
        try:
            decoder.decode(text[begin : begin + CHUNK].tobytes(), begin + CHUNK >= len(text))
        except UnicodeDecodeError as error:
            at = begin - pending + error.start
            raise UserError(
                f"{path} must be UTF-8 text, but byte {at} is {int(text[at]):#04x}; "
                "convert it with `iconv -t utf-8`"
            ) from None
    return text


def _jsonl(path: str, field: str) -> Iterator[bytes]:
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where} must be UTF-8 text ({error.reason}); convert it with `iconv -t utf-8`"
                ) from None
            if text.strip():
                yield document(json_object(text, where), field, where)


def _parquet(path: str, field: str) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if field not in columns:
                raise _no_field(field, path, columns)
            number = 0
            for batch in file.iter_batches(columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield document({field: value}, field, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} must be a Parquet file ({reason}); write it again") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} must hold UTF-8 text in {field} ({error.reason}); write it again"
        ) from None


def document(row: object, field: str, where: str) -> bytes:
    """The text under `field`, as UTF-8. Raises UserError if there is none."""
    if not isinstance(row, dict):
        raise UserError(f"{where} must be a JSON object, but is a {type(row).__name__}; fix it")
    if field not in row:
        raise _no_field(field, where, list(row))
    if not isinstance(row[field], str):
        kind = type(row[field]).__name__
        raise UserError(f"{where} must have a string in {field!r}, but has a {kind}; fix it")
    try:
        return row[field].encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} must be text that UTF-8 can hold ({error.reason}); fix it"
        ) from None


def _no_field(field: str, where: str, names: list[str]) -> UserError:
    there = ", ".join(map(repr, names)) or "none"
    return UserError(f"{where} has no field {field!r}; set field to one of those there: {there}")


def join(documents: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Documents with a blank line between them. Raises UserError if all are empty."""
    between = b""
    for text in documents:
        if text:
            yield between + text
            between = BETWEEN
    if not between:
        raise UserError(f"{name} must hold text, but every document is empty; write some")
