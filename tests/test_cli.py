"""The command: what it prints, its exit codes, and one line for every mistake."""

import importlib
import importlib.metadata
import inspect
import json
import os
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import fakes
import pytest
from flax import nnx

from isoflop import experiments
from isoflop.experiments import claims, families, scores  # noqa: F401  before the fixture hides them
from isoflop.experiments.cli.main import main
from isoflop.experiments.cli.progress import Progress
from isoflop.experiments.cli.text import duration, labelled, si, table
from isoflop.experiments.cli.verbs import VERBS
from isoflop.models.base import Init
from isoflop.sim.cost.flops import param_counts, training_flops
from isoflop.sim.grid.estimate import plan
from isoflop.sim.grid.executors import base
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.grid import Ended, Leased, Recorded, Started, jobs
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.store import Store, read_rows, read_table, write_table
from isoflop.sim.train import loop
from isoflop.sim.train.loop import names

ROOT = Path(experiments.__file__).resolve().parents[1]
TOY = '''
"""Does a toy
train?

Command: isoflop run toy. Duration: none. Expected: yes.
"""

import fakes


def cells(*, seeds: int = 2, steps: tuple[int, ...] = (50, 100), lr: float = 1e-3, heads: int = 2):
    """Two widths.

    Args:
        seeds: how often each point is repeated
    """
    block = {"mixer": {"kind": "attention", "n_heads": heads}}
    model = {"d_model": 8, "vocab_size": 512, "blocks": [block]}
    fakes.run(optim={"lr": lr}, model=model)
    return fakes.cells(steps=steps, seed=range(seeds))
'''

RULER = '''
"""How long is a gauge?"""

from pathlib import Path


def measure(lengths: tuple[int, ...] = (128, 256), place: Path | None = None) -> list[dict]:
    return [{"length": n, "seconds": n / 8} for n in lengths]
'''


@pytest.fixture(autouse=True)
def isoflop(tmp_path, monkeypatch, capsys):
    """Two experiments, a trainer that trains nothing, and `isoflop(*args)` → (code, out, err)."""
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "toy.py").write_text(TOY)
    (package / "gauge.py").write_text(RULER)
    (package / "kit.py").write_text("def cello(): ...")
    monkeypatch.setattr(experiments, "__path__", [str(package)])
    monkeypatch.setattr(loop, "train", fakes.train)
    monkeypatch.chdir(tmp_path)
    yield lambda *args: (main(args), *capsys.readouterr())
    for name in ("toy", "gauge", "prose"):
        sys.modules.pop(f"isoflop.experiments.{name}", None)


def the_error(result) -> str:
    """The one line of a mistake."""
    code, _, err = result
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    return err


def test_help_and_list_import_neither_jax_nor_what_is_slow():
    check = (
        "import sys; from isoflop.experiments.cli.main import main; "
        "main(['--help']); main(['list']); "
        "print(sorted({'jax', 'flax', 'pydantic', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_every_verb_names_a_function_that_is_there_and_says_what_it_does():
    for name, verb in VERBS.items():
        module = importlib.import_module(f"isoflop.experiments.cli.{verb.module}")
        function = getattr(module, verb.function)
        assert function.__doc__, name
        raw = list(inspect.signature(function).parameters) == ["args"]
        assert raw == verb.raw, name
        assert verb.help.endswith("."), name


def test_list_names_each_experiment_with_its_question_and_nothing_else(isoflop):
    code, out, _ = isoflop("list")
    assert code == 0
    assert out.splitlines() == [
        "experiment  question",
        "gauge       How long is a gauge?",
        "toy         Does a toy train?",
    ]
    assert [item["name"] for item in json.loads(isoflop("list", "--json")[1])] == ["gauge", "toy"]


def test_describe_prints_the_docstring(isoflop):
    assert "Expected: yes." in isoflop("describe", "toy")[1]
    assert json.loads(isoflop("describe", "toy", "--json")[1])["question"] == "Does a toy train?"


def test_run_trains_once_and_says_so_line_by_line(isoflop):
    code, out, err = isoflop("run", "toy")
    assert (code, out) == (0, "8 of 8 runs trained\n\nnext: isoflop report toy\n")
    assert len(err.splitlines()) == 8
    assert err.startswith("[1/8] dense, width 16, steps 50, seed 0: ok loss ")
    code, out, err = isoflop("run", "toy")
    assert (code, out, err) == (
        0,
        "0 of 8 runs trained, 8 finished before\n\nnext: isoflop report toy\n",
        "",
    )


def test_options_of_an_experiment_are_flags_of_the_command(isoflop):
    code, out, err = isoflop("run", "toy", "--seeds", "1", "--steps", "60", "--quiet")
    assert (code, out, err) == (0, "2 of 2 runs trained\n", "")


def test_help_of_a_run_shows_its_own_and_the_experiments_flags_with_types(isoflop, capsys):
    with pytest.raises(SystemExit) as exit:
        isoflop("run", "toy", "--help")
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert "--workers INT" in out
    assert "--seeds INT" in out
    assert "how often each point is repeated" in out


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        ("run", ["--runs", "--workers", "--shard", "--layout", "--dry-run"]),
        ("report", ["--runs", "--records", "--out"]),
        ("describe", ["--json"]),
        ("compile", ["--topology", "--largest", "--width"]),
    ],
)
def test_help_of_a_command_lists_its_options_without_an_experiment(verb, flags, capsys):
    with pytest.raises(SystemExit) as exit:
        main([verb, "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert [flag for flag in flags if flag not in out] == []


def test_version_is_the_packages(isoflop):
    assert isoflop("--version") == (0, f"isoflop {importlib.metadata.version('isoflop')}\n", "")


def test_runs_spare_a_gpu_its_search_for_kernels_unless_told_otherwise(isoflop, monkeypatch):
    for told, want in ((None, "--xla_gpu_enable_triton_gemm=false"), ("--mine", "--mine")):
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if told:
            monkeypatch.setenv("XLA_FLAGS", told)
        assert isoflop("run", "toy", "--dry-run")[0] == 0
        assert os.environ["XLA_FLAGS"] == want


def test_a_layout_reaches_the_trainer_and_a_dry_run_needs_no_devices(isoflop, monkeypatch):
    asked = []

    def spy(*args, layout):
        asked.append(layout.split)
        return fakes.train(*args)

    monkeypatch.setattr(loop, "train", spy)
    assert isoflop("run", "toy", "--layout", "data=2,tensor=2", "--dry-run")[0] == 0
    assert isoflop("run", "toy", "--layout", "micro_batches=2", "--quiet")[0] == 0
    assert asked == [{"micro_batches": 2}] * 2


def test_json_of_a_run_is_a_row_for_every_cell(isoflop):
    rows = json.loads(isoflop("run", "toy", "--json", "--quiet")[1])
    assert [row["labels"] for row in rows] == [cell.labels for cell in fakes.cells()]
    assert {row["status"] for row in rows} == {"ok"}


def test_dry_run_prints_runs_totals_and_warnings_and_trains_nothing(isoflop, tmp_path):
    code, out, _ = isoflop("run", "toy", "--dry-run")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("8 runs, 0 of them finished; 2 jobs to train: ")
    assert "of it 30 s to compile what no cache has (assuming 10 GFLOP/s and 15 s" in lines[0]
    end = lines.index("")
    assert end > 1
    assert all(line.startswith("warning: ") for line in lines[1:end])
    assert any(line.startswith("warning: dense: 8 of 8 runs have fewer") for line in lines)
    assert lines[end + 1].split() == [
        *["run", "params", "active", "non-emb.", "steps"],
        *["tokens", "epochs", "seeds", "FLOPs", "time", "disk"],
    ]
    assert [line.split("  ")[0] for line in lines[end + 2 :]] == [
        f"dense, width {width}, steps {steps}, seed 0" for width in (8, 16) for steps in (50, 100)
    ]  # a line for the two seeds of each
    assert not (tmp_path / "runs").exists()
    told = json.loads(isoflop("run", "toy", "--dry-run", "--json")[1])
    assert len(told["rows"]) == 8
    assert told["flops"] == sum(row["flops"] for row in told["rows"])


def test_an_executor_of_others_is_chosen_by_name_and_its_fields_are_flags(isoflop, monkeypatch):
    @dataclass(frozen=True)
    class Pool(Local):
        queue: str = "short"

        def run(self, jobs, work, on_event):
            asked.append(self)
            super().run(jobs, work, on_event)

    asked: list[Pool] = []
    point = types.SimpleNamespace(load=lambda: Pool)
    monkeypatch.setattr(base, "_installed", lambda: {"pool": point})
    assert isoflop("run", "toy", "--executor", "pool", "--queue", "long", "--quiet")[0] == 0
    assert asked == [Pool(queue="long")]
    assert "called --queue" in the_error(isoflop("run", "toy", "--queue", "long"))
    told = the_error(isoflop("run", "gauge", "--executor=pool"))
    assert told == "error: gauge measures in this process; leave out --executor pool\n"


def test_shards_train_a_part_each(isoflop):
    assert isoflop("run", "toy", "--shard", "0/2", "--quiet")[1] == "4 of 4 runs trained\n"
    assert isoflop("run", "toy", "--shard", "1/2", "--quiet")[1] == "4 of 4 runs trained\n"
    assert isoflop("run", "toy", "--quiet")[1].startswith("0 of 8 runs trained, 8 finished")


def test_a_measuring_experiment_keeps_and_prints_its_table(isoflop, tmp_path):
    code, out, _ = isoflop("run", "gauge", "--lengths", "8", "1600", "--runs", "r")
    assert code == 0
    assert out.splitlines() == ["length  seconds", "     8        1", "  1.6k      200"]
    kept = read_table(tmp_path / "r" / "measured" / "gauge.jsonl")
    assert kept == [{"length": 8, "seconds": 1.0}, {"length": 1600, "seconds": 200.0}]


MISTAKES = {
    "no command rum; perhaps you meant run": ["rum", "toy"],
    "no experiment tyo; perhaps you meant toy": ["run", "tyo"],
    "no experiment kit; use one of: gauge, toy": ["run", "kit"],
    "name the experiment first": ["run", "--seeds", "2", "toy"],
    "called --sedes; perhaps you meant --seeds": ["run", "toy", "--sedes", "2"],
    "called --worker; perhaps you meant --workers": ["run", "toy", "--worker=2"],
    "--dry-run cannot stand where it does; see isoflop run": ["run", "toy", "--", "--dry-run"],
    "called --jsno; perhaps you meant --json": ["list", "--jsno"],
    "--shard 2/2 must be i/n with 0 ≤ i < n": ["run", "toy", "--shard", "2/2"],
    "workers=0 must be at least 1": ["run", "toy", "--workers", "0"],
    "no executor slrum; perhaps you meant slurm": ["run", "toy", "--executor", "slrum"],
    "called fdsp; perhaps you meant fsdp": ["run", "toy", "--layout", "fdsp=2"],
    "must be sizes of at least 1 by name": ["run", "toy", "--layout", "fsdp=two"],
    "batch=2 must be a multiple of": ["run", "toy", "--layout", "data=4", "--dry-run"],
    "fsdp=2 needs 2 devices and there are 1": ["run", "toy", "--layout", "fsdp=2"],
    "gives every device to one job; leave out --workers 2": [
        *("run", "toy", "--layout", "fsdp=2", "--workers", "2")
    ],
    "--hosts gives every host to one job at a time; leave out --workers": [
        *("run", "toy", "--hosts", "env", "--layout", "data=2", "--workers", "2")
    ],
    "--hosts needs the --layout of a job on all hosts": ["run", "toy", "--hosts", "env"],
    "--executor ray --nodes 2 --hosts ray, and not with a part of these": [
        *("run", "toy", "--hosts", "ray", "--layout", "data=2")
    ],
    "--hosts mpi must be one of env, slurm": [
        *("run", "toy", "--hosts", "mpi", "--layout", "data=2")
    ],
    "--time-limit 0 must be above 0 seconds": ["run", "toy", "--time-limit", "0"],
    "gauge measures on one device": ["run", "gauge", "--layout", "fsdp=2"],
    "lr=-1.0: Input should be greater than 0": ["run", "toy", "--lr", "-1"],
    "lr=nan: Input should be a finite number": ["run", "toy", "--lr", "nan"],
    "d_model=8 must be a multiple of n_heads=3": ["run", "toy", "--heads", "3"],
    "--steps 70 70 must name each value once": ["run", "toy", "--steps", "70", "70", "--dry-run"],
    "--lengths 8 8 must name each value once": ["run", "gauge", "--lengths", "8", "8"],
    "--steps of at least 12": ["run", "toy", "--steps", "5", "100", "--dry-run"],
    "leave the grid without a run": ["run", "toy", "--seeds", "0"],
    "parsing --seeds: invalid literal for int() with base 10: 'x'; see isoflop run toy --help": [
        *("run", "toy", "--seeds", "x")
    ],
    "Missing value for argument '--workers'": ["run", "toy", "--workers"],
    "cannot be written": ["run", "toy", "--runs", "experiments/toy.py"],
    "gauge measures at once and has no budget table": ["run", "gauge", "--dry-run"],
    "nowhere.csv": ["fit", "nowhere.csv"],
    "gauge measures and trains no runs to report on": ["report", "gauge"],
    "gauge measures a table and has no figures; define draw(": ["figures", "gauge"],
    "toy has no finished runs in runs; first: isoflop run toy": ["report", "toy"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(isoflop, words, tmp_path):
    write_table(tmp_path / "runs" / "measured" / "gauge.jsonl", [{"length": 1}])
    assert words in the_error(isoflop(*MISTAKES[words]))
    assert not list(tmp_path.rglob("result.json"))


def test_a_reader_that_goes_away_causes_no_traceback():
    done = subprocess.run(
        f"{sys.executable} -m isoflop.experiments list | true; "
        "exit ${PIPESTATUS[0]}",
        shell=True, executable="/bin/bash", capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stderr == ""


def test_a_damaged_record_is_one_line_and_nothing_is_lost(isoflop, tmp_path):
    isoflop("run", "toy")
    records = sorted(tmp_path.rglob("result.json"))
    records[0].write_bytes(records[0].read_bytes()[:100])
    before = {path: path.read_bytes() for path in records}
    assert f"delete the folder {records[0].relative_to(tmp_path).parent}" in the_error(
        isoflop("run", "toy")
    )
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("result.json"))} == before


def test_failed_runs_give_code_1_for_a_bug_and_2_for_a_mistake(isoflop, monkeypatch):
    monkeypatch.setattr(loop, "train", fakes.mistaken_at_16)
    error = the_error(isoflop("run", "toy", "--quiet"))
    assert error == "error: width=16 is unlucky; use 8 (4 runs failed so)\n"
    monkeypatch.setattr(loop, "train", fakes.breaks_at_16)
    code, out, err = isoflop("run", "toy", "--quiet")
    assert code == 1
    assert out == "1 of 8 runs trained, 4 finished before, 3 failed\n"
    assert err.startswith("error: 3 runs failed; the first: ZeroDivisionError: a bug (traceback")


def test_ctrl_c_gives_130_and_keeps_what_was_finished(isoflop, monkeypatch):
    monkeypatch.setattr(loop, "train", fakes.interrupted)
    code, _, err = isoflop("run", "toy", "--quiet")
    assert code == 130
    assert err == "stopped; the same command goes on from what is finished\n"
    monkeypatch.setattr(loop, "train", fakes.train)
    assert isoflop("run", "toy", "--quiet")[1] == "7 of 8 runs trained, 1 finished before\n"


def test_a_bug_outside_the_jobs_keeps_its_traceback(isoflop, monkeypatch):
    monkeypatch.setattr("isoflop.sim.grid.grid.jobs", lambda *args: [][0])
    with pytest.raises(IndexError):
        isoflop("run", "toy", "--quiet")


def test_the_live_display_shows_the_grid_and_each_running_job(tmp_path):
    from rich.console import Console

    cells = fakes.cells()
    first, second = jobs(cells)
    with (tmp_path / "lines").open("w") as stream:
        progress = Progress(cells, plan(cells, Store(tmp_path)), stream)
        console = Console(width=120)

        def shown():
            with console.capture() as capture:
                console.print(progress.render())
            return capture.get()

        progress.on_event(Started(first.trunk))
        assert "0/8 runs" in shown()
        assert "compiling" in shown()
        progress.on_event(fakes.Event(first.trunk, 75, 300, 2.5, 12345.0))
        assert "dense, width 16" in shown()
        assert "75/300" in shown()
        assert "12.3k" in shown()
        failed = fakes.record(first.runs[0]).model_copy(update={"status": "failed", "reason": "!"})
        progress.on_event(Recorded(first.trunk, failed))
        progress.on_event(Recorded(first.trunk, fakes.record(first.runs[1])))
        assert "2/8 runs, 1 diverged or failed" in shown()
        assert "left" in shown()
        progress.on_event(Ended(first.trunk))
        assert "75/300" not in shown()
        progress.on_event(Leased(second.trunk, "process 1 on here"))
    assert (tmp_path / "lines").read_text().splitlines() == [
        "[1/8] dense, width 16, steps 50, seed 0: failed loss 2.5000: !",
        "[2/8] dense, width 16, steps 50, seed 1: ok loss 2.5000",
        "dense, width 8: leased by process 1 on here; left for later",
    ]


def test_numbers_and_tables_read_well():
    assert [si(x) for x in (0, 0.5, 999, 1234, 1.5e7, 2e12)] == [
        "0", "0.5", "999", "1.23k", "15M", "2T",
    ]  # fmt: skip
    assert [duration(x) for x in (1.25, 45, 200, 7500, 273600)] == [
        "1.2 s", "45 s", "3 min 20 s", "2 h 5 min", "3 d 4 h",
    ]  # fmt: skip
    assert labelled({"family": "moe", "width": 64}) == "moe, width 64"
    assert table([{"a": "x", "b": 1}, {"a": "long", "b": 100}], left="a") == (
        "a       b\nx       1\nlong  100"
    )


def test_runs_get_the_seconds_that_bench_measured_of_their_step(isoflop, tmp_path):
    """And those of another width get none."""
    assert isoflop("run", "toy", "--quiet")[0] == 0
    row = Store(tmp_path / "runs").all()[0][0]
    budget, model = row.run.budget, row.run.model
    step = {
        "program": "train_step",
        "family": "dense",
        "device": row.device,
        "width": model.d_model,
        "depth": len(model.blocks),
        "seq_len": budget.seq_len,
        "batch": budget.batch,
        "seconds": 0.25,
    }
    assert isoflop("records", "toy", "--out", "before")[0] == 0
    write_table(tmp_path / "runs" / "measured" / "bench.jsonl", [step])
    assert isoflop("records", "toy", "--out", "after")[0] == 0
    before, after = (
        [one.labels for one in read_rows(tmp_path / name / "toy" / "toy.jsonl")]
        for name in ("before", "after")
    )
    assert not any("step_seconds" in labels for labels in before)
    told = {(labels["width"], labels.get("step_seconds")) for labels in after}
    assert told == {(width, 0.25 if width == model.d_model else None) for width in (8, 16)}


@pytest.mark.parametrize("verb", ["records", "report"])
def test_runs_that_are_left_out_are_counted_and_the_command_that_shows_them_is_told(isoflop, verb):
    options = ["--steps", "70", "80", "--seeds=1", "--runs", "my runs"]
    _, out, _ = isoflop("run", "toy", *options, "--workers", "1")
    assert out.endswith("\nnext: isoflop report toy --steps 70 80 --seeds=1 --runs 'my runs'\n")
    there = ["--runs", "my runs"]
    said = the_error(isoflop(verb, "toy", *there))
    assert "toy has no finished runs of these options, and 4 runs in my runs are left out" in said
    isoflop("run", "toy", "--quiet", *there)
    code, _, err = isoflop("records", "toy", *there)
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("warning: 4 runs in my runs are left out: they are of other options")
    assert err.endswith("repeat the options of `isoflop run toy`\n")


def test_records_of_other_experiments_are_left_out_with_one_warning(isoflop, tmp_path):
    isoflop("run", "toy", "--quiet")
    for seed in range(5, 8):
        stranger = fakes.record(fakes.run(seed=seed))
        Store(tmp_path / "runs").save(stranger, {})
        path = tmp_path / "runs" / stranger.key / "result.json"
        path.write_text(path.read_text().replace('"zipf_facts"', '"somebodys"'))
    for words in (["run", "toy"], ["run", "toy", "--dry-run"]):
        code, _, err = isoflop(*words)
        assert code == 0
        assert err.count("\n") == 1
        assert err.startswith("warning: a record of the runs directory and 2 more is left out: ")
    assert isoflop("records", "toy")[0] == 0


def test_runs_that_other_code_trained_are_said_and_trained_again_when_asked(isoflop, tmp_path):
    isoflop("run", "toy", "--quiet")
    store, old = Store(tmp_path / "runs"), {"models.old": "0"}
    for cell, sources in zip(fakes.cells()[:3], [{}, old, old], strict=True):
        store.save(store.load(cell.run.key).model_copy(update={"sources": sources}), {})
    code, out, err = isoflop("run", "toy")
    assert code == 0
    assert out.startswith(
        "0 of 8 runs trained, 8 finished before (1 by code that they do not name)\n"
    )
    assert err.startswith(
        "warning: 2 of 8 runs were trained by other code than today's (isoflop.models."
    )
    assert err.endswith(" more changed since); --retrain-changed trains them again\n")
    dry = isoflop("run", "toy", "--retrain-changed", "--dry-run")
    assert "8 runs, 6 of them finished" in dry[1]
    code, out, err = isoflop("run", "toy", "--retrain-changed", "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("2 of 8 runs trained, 6 finished before")
    assert isoflop("run", "toy", "--retrain-changed")[1].startswith("0 of 8 runs trained, 8 ")


def test_a_note_of_a_job_is_a_warning_even_when_quiet(tmp_path):
    cells = fakes.cells()
    with (tmp_path / "lines").open("w") as stream:
        progress = Progress(cells, plan(cells, Store(tmp_path)), stream, quiet=True)
        progress.on_event(loop.Note(cells[0].run.trunk, "the disk is full"))
    assert (tmp_path / "lines").read_text() == "warning: dense, width 8: the disk is full\n"


UNREADABLE = {
    "--records of a directory": ["records", "toy", "--records", "."],
    "unwritable --out": ["records", "toy", "--out", "experiments/toy.py"],
    "unwritable --out of a report": ["report", "toy", "--out", "experiments/toy.py"],
    "unwritable --json": ["fit", "table.csv", "--n", "N", "--d", "D", "--json", "experiments"],
    "bench without columns": ["records", "toy", "--runs", "bench"],
    "context without columns": ["report", "toy", "--runs", "context"],
    "a record that is a pipe": ["run", "toy", "--runs", "pipe"],
    "weights that are none": ["export", "", "out", "--runs", "weights"],
    "a cache that is a file": ["run", "prose", "--runs", "elsewhere"],
}


@pytest.mark.parametrize("words", UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_or_written_is_one_line_and_exit_code_2(
    isoflop, tmp_path, monkeypatch, words
):
    run = fakes.run(width=8, steps=50)
    for name in ("runs", "bench", "context", "pipe", "weights"):
        Store(tmp_path / name).save(fakes.record(run), {})
    for name in ("bench", "context"):
        write_table(tmp_path / name / "measured" / f"{name}.jsonl", [{"family": "dense"}])
    (tmp_path / "pipe" / run.key / "result.json").unlink()
    os.mkfifo(tmp_path / "pipe" / run.key / "result.json")
    (tmp_path / "weights" / run.key / "model.safetensors").write_bytes(b"none")
    with open(tmp_path / "table.csv", "w") as table_of_runs:
        print("N,D,loss", *(f"{i}e6,{i * i}e8,{4 - i / 9}" for i in range(1, 9)), sep="\n",
              file=table_of_runs)  # fmt: skip
    text = TOY.replace("return fakes.cells(steps=steps, seed=range(seeds))", TEXT)
    (tmp_path / "experiments" / "prose.py").write_text(text)
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    assert ";" in the_error(isoflop(*words))


TEXT = """
    from isoflop.sim.data import Corpus
    cell = fakes.cells()[0]
    data = {"data": Corpus(name="kjv")}
    return [cell.model_copy(update={"run": cell.run.model_copy(update=data)})]
"""


OWN_TEXT = """
    from isoflop.sim.data import File
    cell = fakes.cells()[0]
    data = {"data": File(path="own.txt")}
    return [cell.model_copy(update={"run": cell.run.model_copy(update=data)})]
"""


def test_with_its_file_gone_a_run_is_still_reported_listed_and_exported(
    isoflop, tmp_path, monkeypatch
):
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    text = TOY.replace("return fakes.cells(steps=steps, seed=range(seeds))", OWN_TEXT)
    (tmp_path / "experiments" / "prose.py").write_text(text)
    (tmp_path / "own.txt").write_text("A line of one's own text.\n" * 400)

    def trained(runs, work, emit, wanted):
        for run in runs:
            counts, flops = param_counts(run.model), training_flops(run)
            weights = names(nnx.state(run.model.build(init=Init(0))))
            bits = {name: Metric(value=2.5) for name in ("loss", "bits_per_byte")}
            yield fakes.record(run, params=counts, flops=flops, metrics=bits), weights

    monkeypatch.setattr(loop, "train", trained)
    assert isoflop("run", "prose", "--quiet")[0] == 0
    (key,) = [path.parent.name for path in (tmp_path / "runs").glob("*/result.json")]
    (tmp_path / "own.txt").unlink()
    for words in (["records", "prose"], ["report", "prose"], ["export", key, "out"]):
        assert isoflop(*words)[::2] == (0, "")
    shutil.rmtree(tmp_path / "cache")
    for words in (
        ["records", "prose", "--records", "report/prose/prose.jsonl", "--out", "again"],
        ["report", "prose", "--records", "report/prose/prose.jsonl", "--out", "again"],
        ["export", key, "again"],
    ):
        code, _, err = isoflop(*words)
        assert code == 0
        assert ("no other compressor is measured: own.txt must be" in err) == (words[0] == "report")
    assert "own.txt must be an existing file" in the_error(isoflop("records", "prose"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 8. TiB\nfor an array"),
        MemoryError(),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.\nmore"),
        RuntimeError("another"),
    ],
)
def test_what_does_not_fit_the_memory_is_one_line_and_another_error_is_raised(
    error, monkeypatch, capsys
):
    def verb(*args):
        raise error

    monkeypatch.setitem(VERBS, "list", verb)
    if "another" in str(error):
        with pytest.raises(RuntimeError):
            main(["list"])
        return
    assert main(["list"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "out of memory (" in said
    assert "take fewer tokens" in said
