"""The index is what the records say, whatever happened to it; conditions mean what Python means."""

import json
import shutil
import sqlite3
import time
from datetime import UTC, datetime

import fakes
import numpy as np
import pytest

from isoflop.models.errors import UserError
from isoflop.sim import durable
from isoflop.sim.grid.estimate import asked_of
from isoflop.sim.records import grids, index, readers
from isoflop.sim.records.index import opened, place
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Row, Store, flatten
from isoflop.sim.records.where import chosen
from isoflop.sim.records.writers import write_flat

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def runs(tmp_path):
    """Eight records, one of them failed, and the grid that they are of."""
    root, grid = tmp_path / "runs", fakes.cells()
    for i, cell in enumerate(grid):
        facts = {"seconds": i, "params": {"total": 10 * i}, "versions": {"jax": "0.10"}}
        changes = {"status": "failed", "reason": "a bug", "metrics": {}} if i == 3 else {}
        one = fakes.record(cell.run, 2 + i / 10, **facts).model_copy(update=changes)
        Store(root).save(one, {})
    grids.save(root, grids.Grid("toy", "toy --seeds 2", asked_of(grid)))
    return root


def listed(root, where="", note=lambda text: pytest.fail(text)):
    with opened(root, note) as found:
        return found.listing(where)


def test_rows_are_those_of_the_records_with_their_grids_labels(runs):
    with opened(runs, pytest.fail) as found:
        rows = list(found.rows())
    expected = [flatten(row) for row in Store(runs).rows(fakes.cells())]
    assert rows == sorted(expected, key=lambda row: row["key"])


CONDITIONS = [
    "width >= 16 and family == 'dense'",
    "width > 8 or status == 'failed'",
    "not loss < 2.2",
    "2.1 < loss <= 2.4",
    "steps in (50, 70) and seed not in [1]",
    "loss is None",
    "seconds is not None and `params.total` <= 40",
    "params.total / 20 == .5 or tokens / batch == 800",
    "(width + 0) * 2 - steps > -20",
    "versions.jax == '0.10' and reason != ''",
]


@pytest.mark.parametrize("where", CONDITIONS)
def test_a_condition_chooses_the_rows_that_python_would(runs, where):
    """But None compares with nothing, where Python raises."""
    rows = list(map(flatten, Store(runs).rows(fakes.cells())))
    text = where.replace("`", "").replace("params.total", "total").replace("versions.jax", "jax")

    def met(row):
        cells = {"loss": None} | {name.rpartition(".")[2]: value for name, value in row.items()}
        try:
            return eval(text, {}, cells)
        except TypeError:
            return text.startswith("not")

    expected = {row["key"] for row in rows if met(row)}
    assert 0 < len(expected) < 8
    assert {row["key"] for row in listed(runs, where)} == expected
    both = zip(rows, chosen(where, rows), strict=True)
    assert {row["key"] for row, yes in both if yes} == expected


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("wdith > 3", "the column 'wdith', which no run has; perhaps width is meant"),
        ("width", "is no comparison"),
        ("__import__('os').system('true') == 0", "is not understood"),
        ("width > (lambda: 3)()", "is not understood"),
        ("width >", "cannot be read"),
        ("width == 'x'; DROP TABLE runs", "cannot be read"),
        ("width in 8", "stands before values in brackets"),
        ("(" * 300 + "width" + ")" * 300 + " > 1", "cannot be read"),
        ("width == 1" + " + 1" * 500, "nested more than"),
        ("[x for x in y] == 3", "is not understood"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(runs, where, told):
    with pytest.raises(UserError) as error:
        listed(runs, where)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_text_is_a_value_and_never_a_part_of_the_query(runs):
    assert listed(runs, "family == \"x' OR '1' = '1\"") == []
    assert len(listed(runs)) == 8


def test_what_changed_is_read_again_and_nothing_else(runs, monkeypatch):
    read, original = [], index._read
    monkeypatch.setattr(index, "_read", lambda *a: (read.append(a[1]), original(*a))[1])
    assert len(listed(runs)) == len(read) == 8
    read.clear()
    first, second, *_ = (cell.run for cell in fakes.cells())
    Store(runs).save(fakes.record(first, 1.25), {})
    shutil.rmtree(runs / second.key)
    rows = {row["key"]: row["loss"] for row in listed(runs)}
    assert read == [first.key]
    assert rows[first.key] == 1.25
    assert second.key not in rows
    assert len(rows) == 7


def test_an_object_store_has_an_index_of_its_own_that_reads_what_changed(
    runs, tmp_path, monkeypatch
):
    store = Store(f"memory://{tmp_path.name}/runs")
    for cell in fakes.cells():
        store.save(Store(runs).load(cell.run.key), {"w": np.zeros(3, np.float32)})
    (path,) = grids.begun(runs)
    grids.save(store.root, grids.load(path))
    read, original = [], index._read
    monkeypatch.setattr(index, "_read", lambda *a: (read.append(a[1]), original(*a))[1])
    where = "seed == 0 and loss < 3"
    expected = [row | {"recorded_ns": 0} for row in listed(runs, where)]
    read.clear()
    assert [row | {"recorded_ns": 0} for row in listed(store.root, where)] == expected
    assert len(read) == 8
    assert place(store.root) != place(runs)
    read.clear()
    first, second, third, *_ = (cell.run for cell in fakes.cells())
    before = store.load(first.key)
    store.save(before.model_copy(update={"metrics": {"loss": Metric(value=9.9)}}), {})
    durable.write(store.directory(second.key) / "result.json", b'{"key": "')
    durable.remove_folder(store.directory(third.key))
    with opened(store.root, pytest.fail) as found:
        rows = {row["key"]: row for row in found.listing()}
        assert ["is not a whole record" in text for text in found.left_out()] == [True]
    assert sorted(read) == sorted([first.key, second.key])
    assert rows[first.key]["loss"] == 9.9
    assert not {second.key, third.key} & rows.keys()
    assert abs(rows[first.key]["recorded_ns"] / 1e9 - time.time()) < 600


def test_a_store_that_does_not_answer_is_one_line_and_no_record_is_left_out_for_it(
    runs, tmp_path, monkeypatch
):
    store = Store(f"memory://{tmp_path.name}/runs")
    store.save(fakes.record(fakes.run()), {})
    failed = {store.root.joinpath(fakes.run().key, "result.json").path: TimeoutError("503")}

    def fail(*args, **options):
        raise TimeoutError("503")

    for what, answer in {"cat": lambda *args, **options: failed, "find": fail}.items():
        with monkeypatch.context() as patch:
            patch.setattr(type(store.root.fs), what, answer)
            with pytest.raises(UserError, match=r"cannot be reached \(503\); check the address"):
                listed(store.root)
    assert len(listed(store.root)) == 1


@pytest.mark.parametrize(
    ("info", "stamp"),
    [
        ({"LastModified": datetime(2026, 1, 2, tzinfo=UTC), "ETag": '"ab"'}, (1767312000, '"ab"')),
        ({"updated": "2026-01-02T00:00:00.5Z", "generation": "7"}, (1767312000.5, "7")),
        ({"created": 1767312000.25}, (1767312000.25, "")),
    ],
    ids=["S3", "GCS", "memory"],
)
def test_when_an_object_was_written_is_read_in_each_stores_own_words(info, stamp):
    found = durable._stamp({"name": "x", "type": "file", "size": 3} | info)
    assert found == (int(stamp[0] * 1e9), 3, stamp[1])


def test_an_index_of_another_version_or_a_damaged_one_is_made_afresh_and_that_is_said(runs):
    before = listed(runs)
    for harm in ("version", "garbage", "table", "cut"):
        file, said = place(runs), []
        if harm == "version":
            with sqlite3.connect(file) as database:
                database.execute("PRAGMA user_version = 99")
            database.close()
        elif harm == "table":
            with sqlite3.connect(file) as database:
                database.execute("DROP TABLE runs")
            database.close()
        elif harm == "garbage":
            file.write_bytes(b"no database at all" * 1000)
        else:
            file.write_bytes(file.read_bytes()[:5000])
        assert listed(runs, note=said.append) == before, harm
        assert len(said) == 1, harm
        assert "made afresh from the records" in said[0]
        assert listed(runs) == before


def test_without_a_place_to_write_the_index_is_in_memory_and_that_is_said(runs, own_cache):
    own_cache.mkdir()
    (own_cache / "index").write_text("a file where the folder should be")
    said = []
    assert len(listed(runs, note=said.append)) == 8
    assert "made in memory" in said[0]


def test_damaged_and_foreign_records_are_left_out_with_their_reason(runs):
    key = fakes.cells()[0].run.key
    (runs / key / "result.json").write_text('{"key": "')
    other = json.loads((runs / fakes.cells()[1].run.key / "result.json").read_text())
    other["run"]["model"]["blocks"][0]["mixer"]["kind"] = "telepathy"
    (runs / other["key"] / "result.json").write_text(json.dumps(other))
    with opened(runs, pytest.fail) as found:
        assert len(found.listing()) == 6
        told = sorted(found.left_out(), key=len)
    assert any("is not a whole record" in text for text in told)
    assert any("this code cannot read" in text for text in told)


def test_a_grid_is_one_file_however_often_it_is_begun_and_a_damaged_one_is_told(runs):
    (path,) = grids.begun(runs)
    grids.save(runs, grids.load(path))
    assert list(grids.begun(runs)) == [path]
    assert grids.load(path).runs == asked_of(fakes.cells())
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"is not a whole grid .*delete it"):
        grids.load(path)
    said = []
    assert len(listed(runs, note=said.append)) == 8
    assert "is not a whole grid" in said[0]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_is_written_as_it_is_read(tmp_path, suffix):
    rows = [
        flatten(Row(labels=cell.labels, record=fakes.record(cell.run))) for cell in fakes.cells()
    ]
    rows[0]["mixed"], rows[1]["mixed"], rows[2]["huge"] = "text", 3, 2**70
    write_flat(tmp_path / f"t{suffix}", rows)
    back = readers.read(tmp_path / f"t{suffix}")
    assert [float(x) for x in back["loss"]] == [2.5] * 8
    assert list(map(str, back["mixed"][:2])) == ["text", "3"]
    assert float(back["huge"][2]) == 2.0**70
    assert back["key"] == [row["key"] for row in rows]


def test_a_table_of_another_suffix_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in one of \.csv, \.jsonl, \.parquet"):
        write_flat(tmp_path / "t.xlsx", [])
