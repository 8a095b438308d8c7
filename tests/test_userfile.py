"""An experiment of one's own, anywhere: run, drawn, reported and read by its path; its mistakes are
told by file and line.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest

from isoflop import experiments
from isoflop.experiments.cli.main import main
from isoflop.models.base import MixerConfig, resolve
from isoflop.sim import userfile
from isoflop.sim.records import provenance
from isoflop.sim.records.store import Store, read_rows
from isoflop.sim.train import loop

MINE = '''"""Do my own mixer and source work?"""

from typing import Literal

import fakes
import beside
from isoflop.models.mixers.attention import Attention
from isoflop.sim.data import ZipfFacts


class Mine(Attention):
    kind: Literal["KIND"] = "KIND"


class Facts(ZipfFacts):
    kind: Literal["facts of KIND"] = "facts of KIND"


def cells(steps: tuple[int, ...] = (50, 100)):
    model = {"d_model": 8, "vocab_size": 512, "blocks": [{"mixer": Mine(n_heads=beside.HEADS)}]}
    facts = Facts(facts=100, symbols=16, alpha=0.5)
    return [
        fakes.Cell(
            labels={"family": "mine", "width": 8, "depth": 1, "steps": n, "seed": seed},
            run=fakes.run(steps=n, seed=seed, model=model, data=facts),
        )
        for n in steps
        for seed in (0, 1)
    ]
'''


@pytest.fixture
def folder(tmp_path, monkeypatch, capsys):
    """A folder with models/, sim/ and tests/ of its own, and a trainer that trains nothing."""
    for name in ("models", "sim", "tests", "figures", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise AssertionError('not ours')\n")
    (tmp_path / "beside.py").write_text("HEADS = 2\n")
    monkeypatch.setattr(loop, "train", fakes.train)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(userfile, "_modules", {})
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("beside", None)


def isoflop(capsys, *args):
    return main(args), *capsys.readouterr()


def mine(folder: Path, kind: str, name: str = "mine.py", more: str = "") -> str:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(MINE.replace("KIND", kind) + more)
    return name


def test_a_file_with_its_own_kinds_trains_here_and_in_spawned_processes(folder, capsys):
    word = mine(folder, "mine-1")
    assert isoflop(capsys, "describe", word)[1] == "Do my own mixer and source work?\n"
    code, out, err = isoflop(capsys, "run", word, "--quiet", "--steps", "50")
    assert (code, out, err) == (0, "2 of 2 runs trained\n", "")
    code, out, err = isoflop(capsys, "run", word, "--quiet", "--workers", "2")
    assert (code, out, err) == (0, "4 of 4 runs trained\n", "") or out.startswith("2 of 4 runs")
    records, _ = Store(folder / "runs").all()
    assert {record.status for record in records} == {"ok"}
    assert {type(r.run.model.blocks[0].mixer).__name__ for r in records} == {"Mine"}
    assert {r.run.data.kind for r in records} == {"facts of mine-1"}
    assert all({"own_mine", "beside"} <= record.sources.keys() for record in records)


def test_its_records_are_read_later_by_a_process_of_their_own(folder, capsys):
    word = mine(folder, "mine-2", "else where/my-file.py")
    (folder / "beside.py").rename(folder / "else where" / "beside.py")
    assert isoflop(capsys, "run", word, "--quiet")[0] == 0
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "isoflop.experiments", "records", word, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stderr == ""
    flat, whole = map(Path, json.loads(done.stdout))
    assert (flat, whole) == (Path("report/my-file/my-file.csv"), flat.with_suffix(".jsonl"))
    assert len(read_rows(folder / whole)) == 4


def test_a_change_to_what_it_trains_is_seen_and_one_of_its_grid_is_not(folder, capsys):
    def told():
        for name in ("own_mine", "beside"):
            sys.modules.pop(name, None)
        userfile._modules.clear()
        provenance._module.cache_clear()
        provenance._digests.cache_clear()
        return isoflop(capsys, "run", "mine.py", "--quiet")

    mine(folder, "mine-3")
    assert told() == (0, "4 of 4 runs trained\n", "")
    file = folder / "mine.py"
    file.write_text(file.read_text().replace("(0, 1)", "(1, 0)"))
    assert told() == (0, "0 of 4 runs trained, 4 finished before\n", "")
    (folder / "beside.py").write_text("HEADS = 1 + 1\n")
    assert "4 of 4 runs were trained by other code than today's (beside changed" in told()[2]


def test_figures_are_standard_unless_the_file_draws_its_own(folder, capsys):
    word = mine(folder, "mine-4")
    isoflop(capsys, "run", word, "--quiet")
    for record in Store(folder / "runs").all()[0]:  # the fake trainer counts nothing
        counts = {"executed": 10**9 * record.tokens}, {"total": 1000, "active": 1000}
        update = dict(zip(("flops", "params"), counts, strict=True))
        Store(folder / "runs").save(record.model_copy(update=update), {})
    code, out, _ = isoflop(capsys, "figures", word)
    assert code == 0
    drawn = {Path(line).stem for line in out.splitlines()}
    assert drawn == {"loss_vs_flops", "loss_vs_params", "loss_curves"}
    own = "\n\ndef draw(rows, out):\n    return [out / f'{len(rows)} rows.svg']\n"
    word = mine(folder, "mine-5", "other.py", own)
    isoflop(capsys, "run", word, "--quiet")
    code, out, err = isoflop(capsys, "figures", word)
    assert (code, out) == (0, "report/other/4 rows.svg\n")
    assert err.startswith("warning: 4 runs in runs are left out: ")  # those of mine.py


MISTAKES = {
    'mine.py:3, "def cells(:": invalid syntax; correct': ("run", '"""Why?"""\n\ndef cells(:\n'),
    'mine.py:2, "import nowhere_at_all": ModuleNotFoundError: No module named': (
        *("run", '"""Why?"""\nimport nowhere_at_all\ndef cells(): ...\n'),
    ),
    'mine.py:2, "return undefined": NameError: name': ("run", "def cells():\n    return undefined"),
    'mine.py:3, "return [fakes.run(steps=0)]" (raised in ': (
        *("run", "import fakes\ndef cells():\n    return [fakes.run(steps=0)]"),
    ),
    "mine.py has no function cells(...)": ("describe", "import fakes\n"),
    'mine.py:2, "return open("gone")": cannot read or write gone: No such file': (
        *("run", 'def measure():\n    return open("gone")'),
    ),
    'mine.py:2, "raise OSError": OSError': ("run", "def measure():\n    raise OSError"),
}


@pytest.mark.parametrize("said", MISTAKES)
def test_a_mistake_in_the_file_is_one_line_with_its_place(folder, capsys, said):
    verb, text = MISTAKES[said]
    (folder / "mine.py").write_text(text)
    code, out, err = isoflop(capsys, verb, "mine.py")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


def test_an_exception_of_its_mixer_while_training_names_the_place_too(folder, capsys, monkeypatch):
    word = mine(folder, "mine-6", more="\n\ndef work():\n    return 1 / 0\n")

    def train(runs, work, emit, wanted):
        sys.modules["own_mine"].work()
        yield

    monkeypatch.setattr(loop, "train", train)
    code, _, err = isoflop(capsys, "run", word, "--quiet")
    assert code == 1
    assert "the first: mine.py:" in err
    assert '"return 1 / 0": ZeroDivisionError: division by zero (traceback in jobs/' in err


def test_a_missing_file_and_an_unknown_kind_are_told_with_the_remedy(folder, capsys):
    code, _, err = isoflop(capsys, "run", "gone/mine.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "there is no file gone/mine.py; `isoflop init gone/mine.py` writes one" in err


def test_installed_packages_bring_experiments_by_an_entry_point(folder, capsys, monkeypatch):
    (folder / "package_of_mine.py").write_text(MINE.replace("KIND", "mine-7"))
    monkeypatch.syspath_prepend(folder)
    points = [
        importlib.metadata.EntryPoint(name, "package_of_mine", experiments.GROUP)
        for name in ("theirs", "quickstart")
    ]
    monkeypatch.setattr(experiments.importlib.metadata, "entry_points", lambda group: points)
    found = experiments.discover()
    assert found["quickstart"].source == "isoflop.experiments.quickstart"
    assert found["theirs"].question == "Do my own mixer and source work?"
    assert isoflop(capsys, "run", "theirs", "--quiet")[:2] == (0, "4 of 4 runs trained\n")
    assert resolve(MixerConfig, {"kind": "mine-7", "n_heads": 2}).n_heads == 2


@pytest.fixture
def started(tmp_path, monkeypatch, capsys, shared_cache):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(userfile, "_modules", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert isoflop(capsys, "init", "lab/mine.py")[1].endswith("isoflop run lab/mine.py --dry-run\n")
    return tmp_path


def test_the_starter_file_is_described_estimated_and_trained(started, capsys, monkeypatch):
    size = ("--steps", "40", "50", "--widths", "32")
    assert "isoflop run lab/mine.py" in isoflop(capsys, "describe", "lab/mine.py")[1]
    code, out, err = isoflop(capsys, "run", "lab/mine.py", "--dry-run", *size)
    assert (code, err) == (0, "")
    assert "8 runs" in out
    monkeypatch.setattr(loop, "train", fakes.train)
    assert isoflop(capsys, "run", "lab/mine.py", "--quiet", *size)[:2] == (
        *(0, "8 of 8 runs trained\n"),
    )


@pytest.mark.slow
def test_the_starter_file_trains_draws_and_reports(started, capsys):
    size = ("--steps", "40", "50", "--widths", "32")
    assert "isoflop run lab/mine.py" in isoflop(capsys, "describe", "lab/mine.py")[1]
    assert isoflop(capsys, "run", "lab/mine.py", "--quiet", *size)[0] == 0
    code, out, _ = isoflop(capsys, "figures", "lab/mine.py", *size)
    assert code == 0
    drawn = {Path(line).stem for line in out.splitlines()}
    assert drawn == {"loss_vs_flops", "loss_vs_params", "loss_curves", "gains"}
    gains = json.loads(Path("report/mine/gains.json").read_text())
    assert {(i["arm"], i["baseline"]) for i in gains["executed"]} == {("wide", "narrow")}
    assert isoflop(capsys, "report", "lab/mine.py", *size)[1] == "report/mine/mine.html\n"
    assert isoflop(capsys, "records", "lab/mine.py", *size)[0] == 0
    rows = read_rows(started / "report" / "mine" / "mine.jsonl")
    assert {row.labels["family"] for row in rows} == {"narrow", "wide"}
    assert all(row.record.status == "ok" for row in rows)
    assert len(rows) == 8
    assert "Does a wider MLP" in (started / "report" / "mine" / "mine.html").read_text("utf-8")


def test_the_starter_file_never_overwrites_and_its_own_grid_is_sound(started, capsys):
    (started / "lab" / "mine.py").write_text("mine\n")
    code, _, err = isoflop(capsys, "init", "lab/mine.py")
    assert (code, err.count("\n")) == (2, 1)
    assert "lab/mine.py is there already, and is left as it is" in err
    assert (started / "lab" / "mine.py").read_text() == "mine\n"
    assert isoflop(capsys, "init", "mine.txt")[0] == 2
    from isoflop.experiments.cli import starter

    assert len({cell.run.key for cell in starter.cells()}) == 16
