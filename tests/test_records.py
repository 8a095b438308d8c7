"""What is on disk is whole or absent, and reads back as it was written."""

import csv
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes import cells, record, run
from pydantic import ValidationError

from isoflop import experiments
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.compare.points import columns, points
from isoflop.sim.records import readers, tables
from isoflop.sim.records.store import (
    Row,
    Store,
    brief,
    join_step_seconds,
    measured_of,
    read_rows,
    read_table,
    write_rows,
    write_table,
)
from isoflop.sim.records.writers import write_csv
from isoflop.sim.spec import Run

LADDER = Path(experiments.__file__).parent / "results" / "ladder.jsonl"


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def test_a_saved_record_and_its_weights_read_back_equal(store):
    saved = record(run(), curve=((1, 5.0), (2, 1 / 3)), aux={"balance": 0.1 + 0.2})
    weights = {"blocks.0.w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    store.save(saved, weights)
    assert store.load(saved.key) == saved
    assert store.all() == ([saved], [])
    loaded = store.weights(saved.key)
    assert loaded.keys() == weights.keys()
    np.testing.assert_array_equal(loaded["blocks.0.w"], weights["blocks.0.w"])
    spec = (store.directory(saved.key) / "spec.json").read_text()
    assert Run.model_validate_json(spec).key == saved.key


def test_a_row_has_the_cells_run_whatever_the_record_wrote_down(store):
    """As where a default has changed: the digest leaves defaults out, the record does not."""
    asked, other = cells()[:2]
    stale = record(asked.run).model_copy(update={"run": other.run})
    store.save(stale, {})
    assert [row.record for row in store.rows([asked])] == [record(asked.run)]


def test_a_kill_before_the_last_rename_leaves_no_record(store, monkeypatch):
    def killed(source, target):
        if str(target).endswith("result.json"):
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(record(run()), {"w": np.zeros(3, np.float32)})
    assert (store.directory(run().key) / "model.safetensors").exists()
    assert store.load(run().key) is None
    assert store.all() == ([], [])


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_record_truncated_by_hand_is_told_by_name_with_its_remedy(store, size):
    store.save(record(run()), {})
    path = store.directory(run().key) / "result.json"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(UserError, match=r"result\.json is not a whole record.*; delete the folder"):
        store.load(run().key)


def foreign(store, seed, change):
    """A record that is whole, in its folder, and changed."""
    saved = record(run(seed=seed))
    store.save(saved, {})
    path = store.directory(saved.key) / "result.json"
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))
    return path


STRANGERS = {
    "another experiment's data": lambda r: r["run"]["data"].update(kind="my_data"),
    "another branch's mixer": lambda r: r["run"]["model"]["blocks"][0]["mixer"].update(kind="x"),
    "a later version's field": lambda r: r.update(flavour={"loss": 1}),
    "a later version's option": lambda r: r["run"]["optim"].update(sharpness=2),
}


@pytest.mark.parametrize("change", STRANGERS.values(), ids=STRANGERS)
def test_a_whole_record_that_this_code_does_not_know_is_left_out_and_never_called_damaged(
    store, change
):
    known = record(run())
    store.save(known, {})
    path = foreign(store, 1, change)
    content = path.read_bytes()
    records, left_out = store.all()
    assert records == [known]
    (told,) = left_out
    assert str(path) in told
    assert "delete" not in told
    with pytest.raises(UserError, match="it is left as it is"):
        store.load(run(seed=1).key)
    assert path.read_bytes() == content


def test_what_cannot_be_read_of_other_runs_stops_nobody(store):
    known = record(run())
    store.save(known, {})
    for seed, damage in enumerate([os.mkfifo, Path.mkdir, lambda p: p.symlink_to(p)], start=1):
        folder = store.directory(run(seed=seed).key)
        folder.mkdir()
        damage(folder / "result.json")
    records, left_out = store.all()  # and a pipe is not waited for
    assert records == [known]
    assert len(left_out) == 3 - 1  # a link to itself is no file at all


def test_damaged_weights_are_one_line_with_the_remedy(store):
    store.save(record(run()), {"w": np.zeros(3, np.float32)})
    path = store.directory(run().key) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"is damaged .*; delete the folder"):
        store.weights(run().key)


def test_a_record_in_the_folder_of_another_run_is_refused(store):
    store.save(record(run()), {})
    shutil.copytree(store.directory(run().key), store.directory(run(seed=1).key))
    with pytest.raises(UserError, match="holds the record of run"):
        store.load(run(seed=1).key)


@pytest.mark.parametrize("key", ["../elsewhere", "/tmp/elsewhere", "..", "", "a\\b", "a\0b"])
def test_no_record_leaves_the_runs_directory(store, key):
    """Whatever a record of somebody's says that it is called."""
    store.check(0)
    for action in (
        lambda: store.save(record(run()).model_copy(update={"key": key}), {}),
        lambda: store.load(key),
        lambda: store.weights(key),
    ):
        with pytest.raises(UserError, match=r"must be one plain name, not .*; records of"):
            action()
    assert list(store.root.parent.rglob("*.json")) == []


def test_a_full_disk_is_told_in_words_and_leaves_no_part_of_a_file(store, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        store.save(record(run()), {})
    assert list(store.directory(run().key).iterdir()) == []


def test_a_runs_directory_that_cannot_be_made_is_refused_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*; choose another with --runs"):
        Store(tmp_path / "file" / "runs").check(0)


def test_a_runs_directory_with_too_little_space_is_refused_before_training(store):
    store.check(1)
    with pytest.raises(UserError, match="MB free and this grid needs about 1e"):
        store.check(10**24)
    assert list(store.root.iterdir()) == []


def test_rows_survive_jsonl_exactly_and_a_bad_line_is_named(tmp_path):
    rows = [Row(labels=cell.labels, record=record(cell.run, 1 / 3)) for cell in cells()]
    path = tmp_path / "results" / "x.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
    assert path.read_text().count("\n") == len(rows)
    path.write_text(path.read_text()[:-9])
    with pytest.raises(UserError, match=rf"x\.jsonl:{len(rows)} is not a row"):
        read_rows(path)
    with pytest.raises(UserError, match="there is no file"):
        read_rows(tmp_path / "y.jsonl")


def test_measured_tables_survive_jsonl_and_a_bad_line_is_named(tmp_path):
    rows = [{"family": "dense", "context": 128, "seconds": 0.1}]
    write_table(tmp_path / "t.jsonl", rows)
    assert read_table(tmp_path / "t.jsonl") == rows
    (tmp_path / "t.jsonl").write_text("{}\n{")
    with pytest.raises(UserError, match=r"t\.jsonl:2 is not JSON"):
        read_table(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    "line", ["[]", "3", "{}", '{"name": 1, "size": 2}', '{"name": "a", "size": true}', "[" * 10**5]
)
def test_a_measured_table_without_its_columns_is_told_by_line(tmp_path, line):
    (tmp_path / "t.jsonl").write_text('{"name": "a", "size": 1.5}\n' + line)
    with pytest.raises(UserError, match=r"t\.jsonl:2 .*; measure again"):
        read_table(tmp_path / "t.jsonl", ["name"], ["size"])


def test_csv_has_a_line_per_row_and_a_column_per_label_and_number(tmp_path):
    write_csv(
        tmp_path / "x.csv",
        [Row(labels=c.labels, record=record(c.run, params={"total": 7})) for c in cells()],
    )
    with (tmp_path / "x.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(cells())
    assert table[0]["family"] == "dense"
    assert (table[0]["params.total"], table[0]["loss"], table[0]["steps"]) == ("7", "2.5", "50")
    assert [table[0][name] for name in ("lr", "batch", "seq_len")] == ["0.001", "2", "16"]


def test_commands_read_isoflops_own_records_as_its_figures_do(tmp_path):
    """No column named: the same N, D, FLOPs and trunks, from the CSV and from the JSON lines."""
    rows = [row for row in read_rows(LADDER) if row.labels["family"] in ("dense", "moe")]
    write_csv(tmp_path / "x.csv", rows)
    write_rows(tmp_path / "x.jsonl", rows)
    told = readers.read(tmp_path / "x.csv")
    whole = readers.read(tmp_path / "x.jsonl")
    assert {k: ["" if v is None else str(v) for v in column] for k, column in whole.items()} == told
    names = {what.upper(): tables.resolve_column(told, what, None) for what in ("n", "d")}
    names |= {what: tables.resolve_column(told, what, None) for what in ("arch", "flops")}
    names |= {what: what for what in ("loss", "run", "seed")}
    drawn = columns(points(rows))
    runs = zip(*(map(str, drawn[name]) for name in names), strict=True)
    assert sorted(runs) == sorted(zip(*(told[own] for own in names.values()), strict=True))
    assert tables.resolve_column({"N": [], "params.active": []}, "n", None) == "N"
    assert tables.resolve_column({"N": []}, "n", "size") == "size"


def test_a_validation_error_becomes_one_line_that_names_field_and_value():
    with pytest.raises(ValidationError) as caught:
        run(optim={"lr": -1.0, "clip": float("nan")})
    assert brief(caught.value) == (
        "optim.lr=-1.0: Input should be greater than 0; "
        "optim.clip=nan: Input should be a finite number"
    )
    blocks = [json.loads(run().model.blocks[0].model_dump_json())]
    with pytest.raises(ValidationError) as caught:
        ModelConfig(d_model=9, vocab_size=8, blocks=blocks)
    told = brief(caught.value)
    assert told.startswith("d_model=9 must be a multiple of n_heads=2")
    assert "\n" not in told


def test_of_a_shared_table_an_experiment_has_what_was_measured_of_its_own_families():
    """Not another experiment's, nor another architecture's that has the same name."""
    rows = [Row(labels=cell.labels, record=record(cell.run)) for cell in cells(family="mine")]
    facts = {"quantity": "state_bytes", "seq_len": 8, "value": 1.0}
    own, unstated = {"family": "mine", "layers": "attention + swiglu"}, {"family": "mine"}
    namesake, other = {"family": "mine", "layers": "mamba + swiglu"}, {"family": "mamba"}
    table = [facts | names for names in (other, own, namesake, unstated)]
    assert measured_of(rows, table) == [facts | own, facts | unstated]


def test_runs_get_the_seconds_of_their_own_step_and_no_other():
    """A step of another family, device, shape or program is not theirs."""
    row = Row(labels={"family": "dense"}, record=record(cells()[0].run))
    model, budget = row.record.run.model, row.record.run.budget
    step = {
        "program": "train_step",
        "family": "dense",
        "device": row.record.device,
        "width": model.d_model,
        "depth": len(model.blocks),
        "seq_len": budget.seq_len,
        "batch": budget.batch,
        "seconds": 0.25,
    }
    assert join_step_seconds([row], [step])[0].labels == {"family": "dense", "step_seconds": 0.25}
    for name, other in {
        "device": "tpu",
        "family": "moe",
        "program": "prefill",
        "batch": 77,
    }.items():
        assert join_step_seconds([row], [step | {name: other}]) == [row]
