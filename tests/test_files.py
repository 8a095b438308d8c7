"""Your own files: every format gives the same text, and a bad file is refused in one line."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError
from sources import refusal

from isoflop.sim.data import File
from isoflop.sim.spec import digest, essential

pytestmark = pytest.mark.usefixtures("shared_cache")

TEXTS = ["A document.\nOf two lines.", "Füße", "", "The last one. " * 40]
JOINED = "\n\n".join(text for text in TEXTS if text).encode()


def write(path, name, texts=TEXTS, field="text"):
    file = path / name
    if file.suffix == ".jsonl":
        file.write_text("\n\n".join(json.dumps({"id": 1, field: text}) for text in texts) + "\n")
    elif file.suffix == ".parquet":
        table = pyarrow.table({"id": range(len(texts)), field: texts})
        pyarrow.parquet.write_table(table, file)
    else:
        file.write_bytes(JOINED)
    return str(file)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_every_format_gives_the_same_text(tmp_path, name):
    opened = File(path=write(tmp_path, name)).open()
    assert opened.train.tobytes() + opened.held.tobytes() == JOINED
    assert opened.digest == hashlib.sha256(JOINED).hexdigest()


def test_a_field_may_have_another_name(tmp_path):
    path = write(tmp_path, "a.jsonl", field="body")
    assert File(path=path, field="body").open().train_tokens > 0
    assert "'id', 'body'" in refusal(File(path=path).open)


def test_a_token_file_is_mapped_and_its_last_twentieth_held_out(tmp_path):
    tokens = np.arange(1000, dtype="<u2")
    tokens.tofile(tmp_path / "a.bin")
    config = File(path=str(tmp_path / "a.bin"), bin_vocab=1000, dtype="uint16")
    opened = config.open()
    assert (config.vocab_size, opened.train_tokens, opened.bytes_per_token) == (1000, 950, None)
    np.testing.assert_array_equal(opened.held_out(49, 49).tokens, [range(950, 1000)])
    assert opened.batch(0, 0, 4, 8).tokens.max() < 950


def test_a_file_is_named_by_its_content(tmp_path, own_cache):
    path = write(tmp_path, "a.txt")
    before = File(path=path)
    assert before.digest == hashlib.sha256(JOINED).hexdigest()
    assert File(**before.model_dump()) == before
    (tmp_path / "a.txt").write_bytes(b"Other text of more lines.\n" * 40)
    assert File(path=path) != before
    assert "must have the digest" in refusal(before.open)
    File(path=path).open()
    assert "must have the digest" in refusal(before.open)


def test_a_file_that_moves_keeps_its_name_and_another_content_or_format_has_another(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    here, there = write(tmp_path, "a.txt"), write(tmp_path / "elsewhere", "b.txt")
    assert digest(File(path=here)) == digest(File(path=there))
    lines = write(tmp_path, "a.jsonl")
    (tmp_path / "lines.txt").write_bytes(Path(lines).read_bytes())
    assert File(path=lines).digest == File(path=str(tmp_path / "lines.txt")).digest
    names = {digest(File(path=p)) for p in (here, lines, str(tmp_path / "lines.txt"))}
    assert len(names) == 3
    renamed = tmp_path / "lines"
    renamed.write_bytes(Path(lines).read_bytes())
    assert digest(File(path=str(renamed), format="jsonl")) == digest(File(path=lines))


OTHERS = {"overwritten": b"E" * len(JOINED), "truncated": b"", "gone": None, "longer": JOINED * 2}


@pytest.mark.parametrize("content", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.bin"])
def test_what_happens_to_a_file_changes_nothing_for_whoever_opened_it(
    tmp_path, own_cache, name, content
):
    """Neither while it is read nor afterwards: its content is in the cache."""
    fields = {"bin_vocab": 65_536, "dtype": "uint16"} if name == "a.bin" else {}
    path = Path(write(tmp_path, name))
    if name == "a.bin":
        path.write_bytes(JOINED[: len(JOINED) // 2 * 2])
    config = File(path=str(path), **fields)
    opened = config.open()
    before = opened.batch(0, 0, 4, 16).tokens
    if content is None:
        path.unlink()
    else:
        with open(path, "r+b") as file:  # in place, as an editor or rsync --inplace does
            file.truncate(len(content))
            file.write(content)
    np.testing.assert_array_equal(opened.batch(0, 0, 4, 16).tokens, before)
    opened.verify()
    again = config.open()
    assert again.digest == opened.digest
    np.testing.assert_array_equal(again.batch(0, 0, 4, 16).tokens, before)
    if content is None:
        assert File(path=str(path), **fields) == config


def test_a_file_that_was_never_opened_cannot_be_named_once_it_is_gone(tmp_path, own_cache):
    path = write(tmp_path, "a.txt")
    config = File(path=path)
    Path(path).unlink()
    assert "must be an existing file" in refusal(lambda: File(path=path))
    assert "must be an existing file" in refusal(config.open)


def test_a_copy_that_changes_while_it_is_read_is_refused(tmp_path, own_cache):
    opened = File(path=write(tmp_path, "a.txt")).open()
    opened.verify()
    (copy,) = own_cache.glob("file-*")
    with open(copy, "r+b") as file:
        file.write(b"X")
    assert "changed in the cache while they were in use" in refusal(opened.verify)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", None, "must be an existing file"),
        ("a.txt", b"", "is empty"),
        ("a.txt", b"too short", "has 9"),
        ("a.txt", b"x" * 50 + b"\xe9t\xe9" + b"x" * 50, "byte 50 is 0xe9"),
        ("a.txt", b"x" * 50 + "é".encode()[:1], "byte 50 is 0xc3"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1 must be UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1 must be text that UTF-8 can hold"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 must be a JSON object"),
        ("a.jsonl", b'["text"]', "line 1 must be a JSON object, and is"),
        ("a.jsonl", b'{"text": 3}', "has a int"),
        ("a.jsonl", b'{"body": "a", "n": 1}', "one of those there: 'body', 'n'"),
        ("a.jsonl", b'{"text": ""}', "every document is empty"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1 names 'text' twice"),
        ("a.jsonl", b'{"text": "a", "n": {"m": 1, "m": 2}}', "line 1 names 'm' twice"),
        ("a.jsonl", b"[" * 100_000 + b"]" * 100_000, "line 1 is nested too deeply"),
        ("a.jsonl", b"\xef\xbb\xbf", "every document is empty"),
        ("a.parquet", b"PAR1 is not enough", "must be a Parquet file"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert told in refusal(lambda: File(path=str(path)).open())


def test_json_lines_are_read_by_the_rules_of_tables(tmp_path):
    """A byte-order mark is none of the text, and a number too long for Python is nobody's text."""
    path = tmp_path / "a.jsonl"
    line = b'{"text": "A line of text, and more.", "n": ' + b"9" * 5000 + b"}\n"
    path.write_bytes(b"\xef\xbb\xbf" + line)
    opened = File(path=str(path)).open()
    assert opened.train.tobytes() + opened.held.tobytes() == b"A line of text, and more."


@pytest.mark.parametrize("content", [b"ab", b"a short line"])
def test_text_too_short_for_a_tokenizer_is_called_so_and_no_damage(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert "use more data" in refusal(File(path=str(path), bpe_vocab=300).open)


def test_a_bad_parquet_column_is_refused_in_one_line(tmp_path):
    path = write(tmp_path, "a.parquet")
    assert "one of those there: 'id', 'text'" in refusal(File(path=path, field="body").open)
    assert "row 1 must have a string in 'id'" in refusal(File(path=path, field="id").open)
    path = write(tmp_path, "b.parquet", ["some", None])
    assert "row 2" in refusal(File(path=path).open)


IDS = np.arange(1, 400) % 350


def llm_c(ids, magic=20240520, version=1, count=None, dtype="<u2") -> bytes:
    """As llm.c's write_datafile writes it."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(ids) if count is None else count
    return header.tobytes() + ids.astype(dtype).tobytes()


@pytest.mark.parametrize(
    ("content", "stated"),
    [
        (IDS.astype("<u2").tobytes(), "uint16"),
        (IDS.astype("<u4").tobytes(), "uint32"),
        (llm_c(IDS), None),
        (llm_c(IDS), "uint16"),
        (llm_c(IDS, 20240801, 7, dtype="<u4"), None),
    ],
    ids=["nanogpt", "raw-wide", "llm.c-gpt2", "llm.c-gpt2-stated", "llm.c-llama3"],
)
def test_ids_are_read_at_the_width_stated_or_in_the_header(tmp_path, content, stated):
    (tmp_path / "a.bin").write_bytes(content)
    opened = File(path=str(tmp_path / "a.bin"), bin_vocab=350, dtype=stated).open()
    read = np.concatenate([*opened.train.slices(), *opened.held.slices()])
    np.testing.assert_array_equal(read, IDS)


@pytest.mark.parametrize(
    ("content", "stated", "told"),
    [
        (IDS.astype("<u2").tobytes(), None, "must be stated; set dtype='uint16'"),
        (IDS.astype("<u4").tobytes(), None, "must be stated"),
        (IDS.astype("<u4").tobytes(), "uint16", "every second id of"),
        (IDS.astype("<u2").tobytes()[:-2], "uint32", "exceed the id"),
        (b"123", "uint16", "holds 3 bytes, no multiple of that"),
        (IDS.astype("<u2").tobytes(), "uint32", "no multiple of that; state another dtype"),
        (b"\x5e\x01" * 99, "uint16", "exceed the id 350"),
        (llm_c(IDS), "uint32", "begins with llm.c's header of uint16; drop it"),
        (llm_c(IDS)[:-2], None, "header of 399 ids of uint16, which take 1822 bytes"),
        (llm_c(IDS, version=2), None, "only version 1 is known"),
        (llm_c(IDS[:0]), None, "has a header alone"),
    ],
)
def test_ids_whose_width_is_unknown_or_contradicted_are_refused(tmp_path, content, stated, told):
    (tmp_path / "a.bin").write_bytes(content)
    assert told in refusal(File(path=str(tmp_path / "a.bin"), bin_vocab=350, dtype=stated).open)


def test_a_width_holds_its_vocabulary_and_is_for_token_files_alone():
    for path, fields, told in (
        ("a.bin", {"bin_vocab": 70_000, "dtype": "uint16"}, "dtype=uint16 holds 65536 token ids"),
        ("a.txt", {"dtype": "uint16"}, "bin_vocab=None; state a wider dtype, or drop it for text"),
    ):
        with pytest.raises(ValidationError, match=told):
            File(path=path, digest="0", **fields)


def test_a_width_left_out_is_not_in_the_key_so_older_runs_keep_theirs():
    plain = File(path="a.bin", digest="0", bin_vocab=9)
    assert "dtype" not in essential(plain)
    assert digest(plain) != digest(plain.model_copy(update={"dtype": "uint16"}))
