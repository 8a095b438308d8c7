"""status, records, gc and work: what they say of a runs directory, and that work ends with it."""

import json
import os
import sys
import time

import fakes
import pyarrow.parquet
import pytest
from test_cli import TOY

from isoflop import experiments
from isoflop.experiments.cli import work
from isoflop.experiments.cli.main import main
from isoflop.sim import durable
from isoflop.sim.grid import garbage, leases
from isoflop.sim.grid.executors import local
from isoflop.sim.grid.grid import QUEUED, jobs
from isoflop.sim.records.store import Store
from isoflop.sim.train import loop


@pytest.fixture(autouse=True)
def isoflop(tmp_path, monkeypatch, capsys):
    """One experiment, a trainer that trains nothing, and `isoflop(*args)` → (code, out, err)."""
    package = tmp_path / "experiments"
    package.mkdir()
    (package / "toy.py").write_text(TOY)
    monkeypatch.setattr(experiments, "__path__", [str(package)])
    monkeypatch.setattr(loop, "train", fakes.train)
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.2)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    monkeypatch.setenv("ISOFLOP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield lambda *args: (main(args), *capsys.readouterr())
    sys.modules.pop("isoflop.experiments.toy", None)


def fail_at_16(runs, work, emit, wanted):
    """Writes down its tries."""
    with open("tries", "a") as file:
        print(runs[0].model.d_model, file=file)
    if runs[0].model.d_model == 16:
        raise ZeroDivisionError("a bug")
    yield from fakes.train(runs, work, emit, wanted)


def test_status_tells_what_is_done_running_stale_queued_slow_and_failed(
    isoflop, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "train", fakes.breaks_at_16)
    isoflop("run", "toy")
    wide, _ = jobs(fakes.cells())
    folder = tmp_path / "runs" / "jobs" / wide.trunk
    (folder / "metrics.jsonl").write_text('{"job": "x", "step": 7, "steps": 9, "loss": 3.5}\n{"jo')
    leases.acquire(tmp_path / "runs" / "leases" / wide.trunk, "mine")
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 3600)
    code, out, err = isoflop("status")
    assert (code, err) == (0, "")
    assert out.startswith("toy: 5 of 8 runs done, 3 failed, 1 jobs running")
    assert "5 runs in the last hour" in out
    assert f"process {os.getpid()} on " in out
    assert "7/9  3.500" in out
    assert "dense, width 16, steps 100, seed 1  ZeroDivisionError: a bug" in out
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", -1)
    (folder / QUEUED).write_text("Ray task ab12\n")
    out = isoflop("status", "toy")[1]
    assert "1 queued, 1 stale leases" in out
    assert "Ray task ab12" in out
    told = json.loads(isoflop("status", "toy", "--json")[1])["toy"]
    assert (told["asked"], told["finished"], told["complete"]) == (8, 5, False)
    assert told["seconds_left"] > 0
    assert len(told["failed"]) == 3


def test_status_joins_the_queue_of_slurm(isoflop, tmp_path, monkeypatch):
    """A job that the queue no longer knows is not said to be queued."""
    if os.name != "posix":
        pytest.skip("runs a shell script")
    monkeypatch.setattr(loop, "train", fakes.breaks_at_16)
    isoflop("run", "toy")
    squeue = tmp_path / "squeue"
    squeue.write_text("#!/bin/sh\necho 12_3 PENDING\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    wide, _ = jobs(fakes.cells())
    queued = tmp_path / "runs" / "jobs" / wide.trunk / QUEUED
    queued.write_text("Slurm job 12_3\n")
    assert "Slurm job 12_3 PENDING" in isoflop("status")[1]
    queued.write_text("Slurm job 12_4\n")
    assert "queued" not in isoflop("status")[1]


def test_status_of_nothing_and_of_records_without_a_grid(isoflop, tmp_path):
    code, _, err = isoflop("status")
    assert (code, err) == (2, "error: there is no runs directory runs; name another with --runs\n")
    Store(tmp_path / "runs").save(fakes.record(fakes.run()), {})
    assert isoflop("status")[1] == "runs: 1 runs done\n1 runs in the last hour\n"


def test_watch_ends_when_the_grid_is_complete(isoflop):
    isoflop("run", "toy", "--quiet")
    code, out, _ = isoflop("status", "--watch")
    assert code == 0
    assert "toy: 8 of 8 runs done" in out


def test_records_of_a_directory_are_listed_and_chosen_and_written(isoflop, tmp_path):
    isoflop("run", "toy", "--quiet")
    out = isoflop("records", "--where", "width >= 16 and family == 'dense'")[1]
    assert len(out.splitlines()) == 5
    assert "dense, width 16, steps 50, seed 0" in out
    assert len(json.loads(isoflop("records", "--json")[1])) == 8
    where = ("--where", "steps == 50", "--out", "x.parquet")
    for words in (("records", *where), ("records", "toy", *where)):
        assert isoflop(*words)[:2] == (0, "x.parquet\n")
        table = pyarrow.parquet.read_table(tmp_path / "x.parquet").to_pydict()
        assert table["steps"] == [50] * 4
        assert set(table["width"]) == {8, 16}
    code, _, err = isoflop("records", "--where", "wdith > 3")
    assert code == 2
    assert "perhaps width is meant" in err


def test_gc_names_what_no_run_needs_and_deletes_only_when_asked(isoflop, tmp_path):
    isoflop("run", "toy", "--quiet")
    assert isoflop("gc")[1] == "runs has nothing to remove\n"
    runs, hours_ago = tmp_path / "runs", time.time() - 9000
    records = {path: path.read_bytes() for path in runs.glob("*/result.json")}
    wide, narrow = jobs(fakes.cells())
    done = runs / "jobs" / wide.trunk / "work"
    begun = runs / "jobs" / narrow.trunk / "work"
    lost = runs / "jobs" / "0123456789abcdef" / "work"
    for folder in (done, begun, lost):
        folder.mkdir(parents=True)
        (folder / "state").write_bytes(b"1234")
    missing = runs / narrow.runs[0].key
    records.pop(missing / "result.json")
    (missing / "result.json").unlink()
    left = runs / f".{narrow.trunk}.0a1b.tmp"
    young = runs / "leases" / ".young.0a1b.tmp"
    for path in (left, young):
        path.write_bytes(b"")
    for path in (left, missing / "model.safetensors"):
        os.utime(path, (hours_ago, hours_ago))
    stale, live = runs / "leases" / "stale", runs / "leases" / "live"
    leases.acquire(stale, "gone")
    with leases.hold(live, "here"):
        named = {item["path"]: item["why"] for item in json.loads(isoflop("gc", "--json")[1])}
        assert named == {
            str(path.relative_to(tmp_path)): why
            for path, why in {
                done: "checkpoints of a finished job",
                lost: "checkpoints of no job",
                stale: "a stale lease",
                left: "a file that a killed writer left",
                missing / "model.safetensors": "weights without a record",
            }.items()
        }
        assert all((tmp_path / path).exists() for path in named)
        code, out, _ = isoflop("gc", "--delete")
        assert (code, "5 things" in out, "removed" in out) == (0, True, True)
    assert not any((tmp_path / path).exists() for path in named)
    assert begun.exists()
    assert young.exists()
    assert records == {path: path.read_bytes() for path in runs.glob("*/result.json")}


@pytest.mark.parametrize("when", ["while it is looked for", "once it is named"])
def test_a_job_that_is_begun_again_keeps_its_checkpoints(tmp_path, monkeypatch, when):
    work = tmp_path / "jobs" / "0123456789abcdef" / "work"
    lease = tmp_path / "leases" / work.parent.name
    listed = garbage.files

    def begun(root):
        if when == "while it is looked for":
            leases.acquire(lease, "mine")
        return listed(root)

    monkeypatch.setattr(garbage, "files", begun)
    work.mkdir(parents=True)
    (work / "state").write_bytes(b"1234")
    (item,) = garbage.find(tmp_path, pytest.fail)
    leases.acquire(lease, "mine")
    assert not garbage.remove(item)
    assert (work / "state").exists()
    leases.release(lease, "mine")
    assert garbage.remove(item)
    assert not work.exists()


def test_an_object_store_is_surveyed_listed_and_cleared_as_a_folder_is(
    isoflop, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "train", fakes.breaks_at_16)
    url = f"memory://{tmp_path.name}/runs"
    runs, here = durable.place(url), ("--runs", url)
    assert isoflop("status", *here)[2] == (
        f"error: there is no runs directory {url}; name another with --runs\n"
    )
    isoflop("run", "toy", "--quiet", *here)
    wide, narrow = jobs(fakes.cells())
    durable.write(runs / "jobs" / wide.trunk / QUEUED, b"Ray task ab12\n")
    leases.acquire(runs / "leases" / narrow.trunk, "mine")
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 3600)
    code, out, err = isoflop("status", *here)
    assert (code, err) == (0, "")
    assert f"toy --runs {url}: 5 of 8 runs done, 3 failed, 1 jobs running, 1 queued\n" in out
    assert f"process {os.getpid()} on " in out
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.2)
    assert len(isoflop("records", *here, "--where", "width == 8 and loss < 9")[1].splitlines()) == 5
    assert isoflop("records", "toy", *here, "--out", "x.csv")[0] == 0
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 9

    lost = runs / narrow.runs[0].key
    (lost / "result.json").unlink()
    done = runs / "jobs" / "0123456789abcdef" / "work"
    for name in ("1/state", "2/state"):
        durable.write(done / name, b"1234")
    time.sleep(0.3)  # the lease lapses
    monkeypatch.setattr(garbage, "OLD_SECONDS", -1.0)
    found = {item["path"]: item for item in json.loads(isoflop("gc", "--json", *here)[1])}
    assert {path: item["why"] for path, item in found.items()} == {
        str(done): "checkpoints of no job",
        str(lost / "model.safetensors"): "weights without a record",
        str(runs / "leases" / narrow.trunk): "a stale lease",
    }
    assert found[str(done)]["bytes"] == 8
    records = {path: durable.contents(path) for path in runs.glob("*/result.json")}
    assert "3 things" in isoflop("gc", "--delete", *here)[1]
    assert isoflop("gc", *here)[1] == f"{url} has nothing to remove\n"
    assert {path: durable.contents(path) for path in runs.glob("*/result.json")} == records


def test_a_worker_trains_the_grid_and_ends(isoflop):
    code, out, _ = isoflop("work", "toy")
    assert code == 0
    assert out.startswith("8 of 8 runs trained")
    assert isoflop("work", "toy", "--quiet")[:2] == (
        0,
        "0 of 8 runs trained, 8 finished before\n",
    )


def test_workers_try_again_what_fails_and_give_up_together(isoflop, monkeypatch, tmp_path):
    monkeypatch.setattr(loop, "train", fail_at_16)
    monkeypatch.setattr(work, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(
        local, "spawn", lambda jobs, work, on_event, _: [work(j, on_event) for j in jobs]
    )
    code, _, err = isoflop("work", "toy", "--retries", "1", "--seeds", "1")
    assert code == 1
    assert (tmp_path / "tries").read_text().split() == ["16", "8", "16"]
    assert "ZeroDivisionError" in err
    assert isoflop("work", "toy", "--retries", "1", "--seeds", "1")[0] == 1
    assert len((tmp_path / "tries").read_text().split()) == 3, "another worker tried once more"
    monkeypatch.setattr(loop, "train", fakes.train)
    assert isoflop("run", "toy", "--seeds", "1")[0] == 0, "a command that is given tries again"
