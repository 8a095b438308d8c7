"""A record names the code that made it, and is told apart from what today's code would make."""

import importlib
import sys
import types

import fakes
import pytest

from isoflop.models.families import zoo
from isoflop.sim.data import Corpus, ZipfFacts
from isoflop.sim.grid.grid import execute
from isoflop.sim.records import provenance
from isoflop.sim.records.store import Store


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """`edited(name, change)`: the module lies on the disk as changed, and is read again."""

    def edit(name, change):
        module = importlib.import_module(name)
        path = tmp_path / f"{name}.py"
        with open(module.__file__, encoding="utf-8") as file:
            path.write_text(change(file.read()), encoding="utf-8")
        monkeypatch.setattr(module, "__file__", str(path))
        forget()

    def forget():
        provenance._module.cache_clear()
        provenance._digests.cache_clear()

    yield edit
    monkeypatch.undo()
    forget()


def test_a_run_depends_on_its_own_mixers_and_data_and_on_the_training():
    dense = provenance.sources(fakes.run())
    mamba = provenance.sources(fakes.run(model=zoo.mamba(32, 1, 512), data=Corpus(name="kjv")))
    assert {
        "isoflop.models.mixers.attention",
        "isoflop.models.mixers.mlp",
        "isoflop.models.lm",
        "isoflop.models.layers",
        "isoflop.sim.data.languages",
    } <= (dense.keys())
    assert {
        "isoflop.sim.train.loop",
        "isoflop.sim.train.program",
        "isoflop.sim.optim.adamw",
        "isoflop.sim.data.source",
    } <= dense.keys() & mamba.keys()
    assert {
        "isoflop.models.mixers.mamba",
        "isoflop.models.kernels.recurrence",
        "isoflop.sim.data.corpora",
    } <= mamba.keys() - dense.keys()
    assert {
        "isoflop.models.mixers.attention",
        "isoflop.sim.data.languages",
    } <= dense.keys() - mamba.keys()
    assert not {
        "isoflop.sim.records.store",
        "isoflop.sim.grid.grid",
        "isoflop.models.families.zoo",
    } & (dense.keys() | mamba.keys())


def test_an_edit_is_seen_where_the_run_uses_it_and_nowhere_else(edited):
    dense = fakes.record(fakes.run())
    mamba = fakes.record(fakes.run(model=zoo.mamba(32, 1, 512)))
    assert provenance.changed(dense) == provenance.changed(mamba) == ()
    edited("isoflop.models.mixers.mamba", lambda code: code + "\nEXTRA = 1\n")
    assert provenance.changed(dense) == ()
    assert provenance.changed(mamba) == ("isoflop.models.mixers.mamba",)
    edited("isoflop.models.layers", lambda code: code + "\nEXTRA = 1\n")  # that mixers import
    assert provenance.changed(dense) == ("isoflop.models.layers",)
    assert provenance.changed(mamba) == ("isoflop.models.layers", "isoflop.models.mixers.mamba")


def test_comments_docstrings_and_layout_do_not_count(edited):
    dense = fakes.record(fakes.run())
    edited(
        "isoflop.models.mixers.attention",
        lambda code: code.replace('"""', '"""Once more: ', 1) + "\n# end\n",
    )
    assert provenance.changed(dense) == ()


def test_a_module_that_is_gone_has_changed_and_a_record_without_digests_is_unknown():
    record = fakes.record(fakes.run())
    gone = record.model_copy(update={"sources": record.sources | {"models.gone": "0" * 12}})
    assert provenance.changed(gone) == ("models.gone",)
    assert provenance.changed(record.model_copy(update={"sources": {}})) == ()


def test_a_mixer_of_ones_own_is_named_too(tmp_path, monkeypatch):
    (tmp_path / "my_data.py").write_text("from isoflop.sim.data.source import DataConfig\n")
    module = types.ModuleType("my_data")
    module.__file__ = str(tmp_path / "my_data.py")
    monkeypatch.setitem(sys.modules, "my_data", module)
    own = type("Own", (ZipfFacts,), {"__module__": "my_data"})
    data = own(facts=100, symbols=16, alpha=0.5)
    assert "my_data" in provenance.sources(fakes.run(data=data))


def test_what_other_code_trained_is_trained_again_only_when_asked(tmp_path, edited):
    grid, store = fakes.cells(width=[8]), Store(tmp_path)
    execute(grid, tmp_path, fakes.train)
    unknown = store.load(grid[0].run.key).model_copy(update={"sources": {}})
    store.save(unknown, {})
    records = [store.load(cell.run.key) for cell in grid]
    assert provenance.code_changes(records) == {}
    edited("isoflop.models.mixers.attention", lambda code: code + "\nEXTRA = 1\n")
    others = [cell.run.key for cell in grid[1:]]
    assert provenance.code_changes(records) == dict.fromkeys(
        others, ("isoflop.models.mixers.attention",)
    )
    assert execute(grid, tmp_path, fakes.never).finished == 4
    again = execute(grid, tmp_path, fakes.train, retrain_changed=True)
    assert (again.finished, again.count("ok")) == (1, 3)
    assert {record.key for record in again.trained} == set(others)
    assert execute(grid, tmp_path, fakes.never, retrain_changed=True).finished == 4


def test_a_second_training_that_fails_leaves_the_first_ones_record(tmp_path, edited):
    grid, store = fakes.cells(width=[16]), Store(tmp_path)
    execute(grid, tmp_path, fakes.train)
    before = [store.load(cell.run.key) for cell in grid]
    edited("isoflop.models.mixers.attention", lambda code: code + "\nEXTRA = 1\n")
    outcome = execute(grid, tmp_path, fakes.mistaken_at_16, retrain_changed=True)
    assert outcome.count("failed") == 4
    assert [store.load(cell.run.key) for cell in grid] == before


def test_a_package_s_own_and_relative_imports_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "theirs"
    (package / "inner").mkdir(parents=True)
    files = {
        "__init__.py": "from . import first",
        "first.py": "from .inner import second\nimport json",
        "inner/__init__.py": "",
        "inner/second.py": "from ..third import f",
        "third.py": "def f(): ...",
        "unused.py": "",
    }
    for name, text in files.items():
        (package / name).write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = provenance._digests(frozenset({"theirs.first"})).keys()
    theirs = {name for name in found if name.startswith("theirs")}
    assert theirs == {"theirs.first", "theirs.inner.second", "theirs.third"}
    assert "json" not in found
