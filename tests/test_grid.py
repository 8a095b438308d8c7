"""Grids are trained once, survive kills and failures, and are shared by processes without harm."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
import real

from isoflop.models.errors import UserError
from isoflop.sim import durable
from isoflop.sim.grid import grid as grids
from isoflop.sim.grid import leases
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.grid import Leased, Retried, Stalled, Started, execute, jobs, product, zipped
from isoflop.sim.records.store import Store
from isoflop.sim.train import preemption


@pytest.fixture
def impatient(monkeypatch):
    """Leases that expire, and are looked at, soon."""
    monkeypatch.setattr(leases, "EXPIRY_SECONDS", 0.3)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(grids, "POLL_SECONDS", 0.02)


def losses(root, cells):
    return {cell.run.key: Store(root).load(cell.run.key).loss for cell in cells}


def test_a_grid_on_an_object_store_is_trained_once_and_read_from_there(tmp_path):
    pytest.importorskip("upath")
    grid, root = fakes.cells(), durable.place(f"memory:/{tmp_path.name}")  # as Path writes it
    outcome = execute(grid, root, fakes.train)
    assert outcome.count("ok") == len(grid)
    assert {path.name for path in root.iterdir()} == {"jobs", "leases", *losses(root, grid)}
    assert not list(root.glob("leases/*"))
    assert execute(grid, root, fakes.never).finished == len(grid)
    execute(grid, tmp_path, fakes.train)
    assert losses(root, grid) == losses(tmp_path, grid)
    key = grid[0].run.key
    assert (Store(root).weights(key)["w"] == Store(tmp_path).weights(key)["w"]).all()
    assert len(Store(root).all()[0]) == len(grid)


def test_product_is_every_combination_and_zipped_refuses_unequal_lengths():
    assert product(a=[1, 2], b="xy") == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert zipped(a=[1, 2], b="xy") == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]
    with pytest.raises(UserError, match=r"equally many values; got .*'b': 1"):
        zipped(a=[1, 2], b="x")


def test_a_job_is_a_trunk_and_the_longest_comes_first():
    grid = fakes.cells(width=(8, 32, 16))
    assert [job.runs[0].model.d_model for job in jobs(grid)] == [32, 16, 8]
    for job in jobs(grid):
        assert {run.trunk for run in job.runs} == {job.trunk}
        assert {(run.budget.steps, run.seed) for run in job.runs} == {
            (50, 0), (50, 1), (100, 0), (100, 1),
        }  # fmt: skip
    assert jobs(grid + grid) == jobs(grid)


def test_shards_are_disjoint_and_together_the_grid():
    grid = fakes.cells(width=(8, 16, 32, 64, 128))
    parts = [{job.trunk for job in jobs(grid, (i, 3))} for i in range(3)]
    assert sum(map(len, parts)) == 5
    assert set.union(*parts) == {job.trunk for job in jobs(grid)}
    with pytest.raises(UserError, match="shard 3/3 is none of 0/3 … 2/3"):
        jobs(grid, (3, 3))


def test_finished_runs_are_never_trained_again(tmp_path):
    grid = fakes.cells()
    first = execute(grid, tmp_path, fakes.train)
    assert (first.finished, first.count("ok")) == (0, len(grid))
    again = execute(grid[::-1], tmp_path, fakes.never)
    assert (again.finished, again.trained) == (len(grid), ())
    assert not list(tmp_path.glob("leases/*"))
    assert not list(tmp_path.glob("jobs/*/work"))


def test_new_seeds_are_trained_without_the_old_ones(tmp_path):
    execute(fakes.cells(seed=(0, 1)), tmp_path, fakes.train)
    before = losses(tmp_path, fakes.cells(seed=(0, 1)))
    outcome = execute(fakes.cells(seed=(0, 1, 2)), tmp_path, fakes.train)
    assert {record.run.seed for record in outcome.trained} == {2}
    assert losses(tmp_path, fakes.cells(seed=(0, 1))) == before


def test_an_interrupted_job_goes_on_in_its_arrangement_and_writes_only_what_was_missing(tmp_path):
    grid = fakes.cells()
    execute(grid, tmp_path / "whole", fakes.train)
    with pytest.raises(KeyboardInterrupt):
        execute(grid, tmp_path / "cut", fakes.interrupted)
    (survivor,) = (tmp_path / "cut").glob("*/result.json")
    written = survivor.stat().st_mtime_ns
    outcome = execute(grid, tmp_path / "cut", fakes.unasked)
    assert (outcome.finished, outcome.count("ok")) == (1, len(grid) - 1)
    assert losses(tmp_path / "cut", grid) == losses(tmp_path / "whole", grid)
    assert survivor.stat().st_mtime_ns == written
    assert not list(tmp_path.glob("cut/leases/*"))


def test_an_arrangement_that_was_not_asked_for_is_not_resumed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        execute(fakes.cells(width=[8], seed=(0, 1)), tmp_path / "a", fakes.interrupted)
    few = fakes.cells(width=[8], seed=[1])
    execute(few, tmp_path / "a", fakes.train)
    execute(few, tmp_path / "b", fakes.train)
    assert losses(tmp_path / "a", few) == losses(tmp_path / "b", few)


def test_a_failure_is_rows_with_a_reason_and_the_other_jobs_go_on(tmp_path):
    grid = fakes.cells()
    outcome = execute(grid, tmp_path, fakes.breaks_at_16)
    assert (outcome.count("ok"), outcome.count("failed")) == (5, 3)
    failed = [row.record for row in Store(tmp_path).rows(grid) if row.record.status == "failed"]
    assert {record.run.model.d_model for record in failed} == {16}
    for record in failed:
        assert record.reason.startswith("ZeroDivisionError: a bug (traceback in ")
        told = record.reason.split(" in ")[1].rstrip(")")
        assert "fakes.py" in (tmp_path / told).read_text()
    assert not outcome.mistakes
    again = execute(grid, tmp_path, fakes.train)
    assert (again.finished, again.count("ok")) == (5, 3)
    assert all(row.record.status == "ok" for row in Store(tmp_path).rows(grid))


def test_a_mistake_of_the_users_inside_a_job_is_told_apart_from_a_bug(tmp_path):
    outcome = execute(fakes.cells(), tmp_path, fakes.mistaken_at_16)
    assert outcome.mistakes == ("width=16 is unlucky; use 8",)
    assert (outcome.count("ok"), outcome.count("failed")) == (4, 4)


def test_a_worker_that_is_killed_is_followed_by_others_and_then_its_runs_have_failed(tmp_path):
    """Each of three lands a run of four, and dies."""
    grid, seen = fakes.cells(width=[16]), []
    outcome = execute(
        grid, tmp_path, fakes.dies_after_one, executor=Local(workers=2), on_event=seen.append
    )
    assert len([event for event in seen if isinstance(event, Retried)]) == grids.TRIES - 1 == 2
    assert (outcome.count("ok"), outcome.count("failed")) == (3, 1)
    assert all("SIGKILL" in r.reason for r in outcome.trained if r.status == "failed")
    assert execute(grid, tmp_path, fakes.train).count("ok") == 1
    assert not list(tmp_path.glob("leases/*"))


def test_a_diverged_run_is_final(tmp_path):
    (cell,) = fakes.cells(width=[8], steps=[50], seed=[0])
    diverged = fakes.record(cell.run).model_copy(update={"status": "diverged", "metrics": {}})
    Store(tmp_path).save(diverged, {})
    assert execute([cell], tmp_path, fakes.never).finished == 1


def test_a_damaged_record_stops_the_grid_before_training_and_harms_nothing(tmp_path):
    grid = fakes.cells()
    execute(grid, tmp_path, fakes.train)
    damaged = tmp_path / grid[0].run.key / "result.json"
    damaged.write_bytes(damaged.read_bytes()[:50])
    others = {path: path.read_bytes() for path in tmp_path.glob("*/result.json")}
    with pytest.raises(UserError, match=r"result\.json is not a whole record"):
        execute(grid, tmp_path, fakes.never)
    assert {path: path.read_bytes() for path in tmp_path.glob("*/result.json")} == others


KILLED = """
import fakes
from pathlib import Path
from isoflop.sim.grid.grid import execute
if __name__ == "__main__":
    execute(fakes.cells(), Path(r"{root}"), fakes.slowly)
"""


def test_kill_9_loses_nothing_and_the_rest_equals_an_uninterrupted_grid(tmp_path, impatient):
    grid, root = fakes.cells(), tmp_path / "killed"
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(root=root))
    path = os.pathsep.join([*sys.path, str(tmp_path)])
    process = subprocess.Popen([sys.executable, script], env={**os.environ, "PYTHONPATH": path})
    wait_for(lambda: len(list(root.glob("*/result.json"))) >= 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(root.glob("leases/*")), "the process was killed too late to leave work undone"
    kept = {p: p.read_bytes() for p in root.glob("*/result.json")}
    assert 2 <= len(kept) < len(grid)

    outcome = execute(grid, root, fakes.train)
    assert outcome.finished == len(kept)
    assert outcome.count("ok") == len(grid) - len(kept)
    assert all(path.read_bytes() == content for path, content in kept.items())
    execute(grid, tmp_path / "whole", fakes.train)
    assert losses(root, grid) == losses(tmp_path / "whole", grid)


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_a_job_that_another_process_trains_is_come_back_to_when_its_lease_ends(tmp_path, impatient):
    """Trained by it or not: what it finished is kept, what it gave back is trained here."""
    grid = fakes.cells(width=(8, 16, 32))
    finishes, free, gives_up = jobs(grid)
    seen, stop = [], threading.Event()

    def on_event(message):
        seen.append(message)
        if isinstance(message, Leased) and len([m for m in seen if isinstance(m, Leased)]) == 2:
            stop.set()

    def other():
        with (
            leases.hold(tmp_path / "leases" / finishes.trunk, "other") as one,
            leases.hold(tmp_path / "leases" / gives_up.trunk, "other") as two,
        ):
            assert one.other is two.other is None
            begun.set()
            stop.wait(60)
            time.sleep(2 * leases.EXPIRY_SECONDS)  # it lives, so its leases do not expire
            for run in finishes.runs:
                Store(tmp_path).save(fakes.record(run, 7.5), {})

    begun = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    begun.wait(60)
    outcome = execute(grid, tmp_path, fakes.train, on_event=on_event)
    thread.join()
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert {Leased(finishes.trunk, who), Leased(gives_up.trunk, who)} <= set(
        message for message in seen if isinstance(message, Leased)
    )
    assert Started(finishes.trunk) not in seen
    assert outcome.elsewhere == 4
    assert {r.run.trunk for r in outcome.trained} == {free.trunk, gives_up.trunk}
    assert outcome.trained[0].run.trunk == free.trunk
    assert {Store(tmp_path).load(run.key).loss for run in finishes.runs} == {7.5}
    assert not list(tmp_path.glob("leases/*"))


PARENT = """
import sys, fakes
from pathlib import Path
from isoflop.sim.grid import grid
from isoflop.sim.grid.executors.local import Local
grid.POLL_SECONDS = 0.05
if __name__ == "__main__":
    outcome = grid.execute(
        fakes.cells(width=(8, 16, 32)), Path(r"{root}"), fakes.slowly, executor=Local(workers=2)
    )
    print(len(outcome.trained), outcome.elsewhere, outcome.finished)
"""


@pytest.mark.slow  # `isoflop work` in one process and the killed worker are default tests
def test_two_parents_and_four_workers_share_a_grid_and_nothing_is_done_twice_or_missing(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(root=tmp_path / "runs"))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parents = [
        subprocess.Popen([sys.executable, script], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [parent.communicate(timeout=400)[0] for parent in parents]
    assert [parent.returncode for parent in parents] == [0, 0]
    counts = [tuple(map(int, text.split())) for text in told]
    assert sum(trained for trained, *_ in counts) == 12
    assert all(sum(count) == 12 for count in counts)
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 12


def test_a_job_whose_lease_was_taken_over_stops_and_is_come_back_to(tmp_path, impatient):
    """As after a sleep of the machine: no record is written from then on, none is a failure."""
    (job,) = jobs(fakes.cells(width=[8]))
    path = tmp_path / "leases" / job.trunk
    once = []

    def robbed(runs, work, emit, wanted):
        if not once:
            once.append(path.write_text("another\nprocess 1 on elsewhere\n"))
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                time.sleep(0.02)
                emit(fakes.Event(runs[0].trunk, 1, 2, 3.0, 1.0))
        yield from fakes.train(runs, work, emit, wanted)

    seen = []
    outcome = execute(fakes.cells(width=[8]), tmp_path, robbed, on_event=seen.append)
    assert [type(m) for m in seen if isinstance(m, Leased | Started)] == [Started, Leased, Started]
    assert (outcome.count("ok"), outcome.count("failed")) == (4, 0)


def test_workers_that_are_ended_leave_no_lease(tmp_path):
    class Stop(Exception):
        pass

    def stop(message):
        if isinstance(message, grids.Recorded):
            raise Stop

    with pytest.raises(Stop):
        execute(fakes.cells(), tmp_path, fakes.slowly, executor=Local(workers=2), on_event=stop)
    assert not list(tmp_path.glob("leases/*"))


def test_an_exception_in_a_job_keeps_its_checkpoints(tmp_path):
    grid = fakes.cells(width=[8])

    def breaks(runs, work, emit, wanted):
        work.mkdir(parents=True)
        (work / "checkpoint").write_text("half-way")
        raise ConnectionError("passing")
        yield

    def goes_on(runs, work, emit, wanted):
        assert (work / "checkpoint").read_text() == "half-way"
        yield from fakes.train(runs, work, emit, wanted)

    assert execute(grid, tmp_path, breaks).count("failed") == 4
    assert execute(grid, tmp_path, goes_on).count("ok") == 4
    assert not list(tmp_path.glob("jobs/*/work"))


@pytest.mark.slow
def test_a_grid_of_two_processes_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    """At random steps, in its trunks and its branches; what was saved is not trained again."""
    script = Path(fakes.__file__).with_name("real.py")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    def train(root, *fatal):
        command = [sys.executable, str(script), str(root), *map(str, fatal)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        steps = dict(line.split() for line in done.stdout.splitlines())  # the last of each job
        return done.returncode, sum(map(int, steps.values()))

    code, whole = train(tmp_path / "whole")
    assert (code, whole) == (0, 2 * (48 + 6 + 12))  # both jobs' trunk and branches
    rng = random.Random(0)
    assert train(tmp_path / "cut", rng.randrange(8, 40))[0] == -signal.SIGKILL
    assert train(tmp_path / "cut", rng.randrange(8, 16))[0] == -signal.SIGKILL
    code, rest = train(tmp_path / "cut")
    assert code == 0
    grid = real.cells()
    assert losses(tmp_path / "cut", grid) == losses(tmp_path / "whole", grid)
    curves = [
        [Store(tmp_path / name).load(cell.run.key).curve for cell in grid]
        for name in ("cut", "whole")
    ]
    assert curves[0] == curves[1]
    assert rest < whole - 8


def test_a_job_that_says_nothing_is_flagged_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "STALL_SECONDS", 0.05)

    def hangs(runs, work, emit, wanted):
        wait_for(lambda: len([m for m in seen if isinstance(m, Stalled)]) == 2)
        yield from fakes.train(runs, work, emit, wanted)

    seen = []
    outcome = execute(fakes.cells(width=[8]), tmp_path, hangs, on_event=seen.append)
    first, second, *_ = (m.seconds for m in seen if isinstance(m, Stalled))
    assert first >= grids.STALL_SECONDS
    assert second >= 2 * grids.STALL_SECONDS
    assert outcome.count("ok") == 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_signal_lets_every_worker_save_and_gives_the_leases_back(tmp_path, workers):
    """As a scheduler sends it, to the parent alone."""
    begun: set[str] = set()

    def strike(message):
        begun.update([message.trunk] if isinstance(message, Started) else [])
        if len(begun) == workers and not isinstance(message, Started):
            signal.raise_signal(signal.SIGTERM)

    with preemption.raised(), pytest.raises(preemption.Preempted) as ended:
        execute(
            fakes.cells(), tmp_path, fakes.preemptible, executor=Local(workers), on_event=strike
        )
    assert ended.value.signal == signal.SIGTERM
    assert len(list(tmp_path.glob("jobs/*/work/state"))) == workers
    assert not list(tmp_path.glob("leases/*"))
    assert not list(tmp_path.glob("*/result.json"))


def test_a_signal_at_the_very_end_of_a_job_ends_the_grid_after_it(tmp_path):
    def late(runs, work, emit, wanted):
        yield from fakes.train(runs, work, emit, wanted)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(preemption.Preempted):
        execute(fakes.cells(), tmp_path, late)
    assert len(list(tmp_path.glob("*/result.json"))) == 4  # of the first job of two
    assert not list(tmp_path.glob("leases/*"))


def test_runs_whose_folder_is_deleted_under_them_are_trained_all_the_same(tmp_path, impatient):
    grid, root = fakes.cells(), tmp_path / "runs"
    once = []

    def deleted(runs, work, emit, wanted):
        for i, result in enumerate(fakes.train(runs, work, emit, wanted)):
            yield result
            if i == 1 and not once:
                once.append(shutil.rmtree(root))
                time.sleep(2 * leases.RENEW_SECONDS)

    execute(grid, root, deleted)
    execute(grid, root, fakes.train)
    execute(grid, tmp_path / "whole", fakes.train)
    assert losses(root, grid) == losses(tmp_path / "whole", grid)
    assert not list(root.glob("leases/*"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True
    )
    if done.returncode:
        pytest.skip("this user cannot mount")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def heavy(runs, work, emit, wanted):
    for record, _ in fakes.train(runs, work, emit, wanted):
        yield record, {"w": np.full(25_000, record.loss, np.float32)}


def test_a_full_disk_ends_the_grid_in_one_line_and_with_room_it_goes_on(small_disk, tmp_path):
    grid = fakes.cells()
    with pytest.raises(UserError, match="disk is full; what was finished is kept; free some"):
        execute(grid, small_disk, heavy)
    kept = len(list(small_disk.glob("*/result.json")))
    assert 0 < kept < len(grid)
    assert not list(small_disk.rglob("*.tmp"))
    assert not list(small_disk.glob("leases/*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert execute(grid, small_disk, heavy).finished == kept
    execute(grid, tmp_path / "whole", heavy)
    assert losses(small_disk, grid) == losses(tmp_path / "whole", grid)


def test_a_directory_that_cannot_be_written_is_refused_in_one_line(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="cannot be written: Read-only file system; choose another"):
        execute(fakes.cells(), small_disk, fakes.never)
