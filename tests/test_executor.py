"""Executors: jobs in, events out; workers' cores, their deaths, their exceptions. None trains."""

import importlib
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import fakes
import pytest
from chores import describe, die_at_two, refuse_two

from isoflop.sim.grid import executors
from isoflop.sim.grid.executors import base
from isoflop.sim.grid.executors.base import WorkerDied
from isoflop.sim.grid.executors.local import Local, spawn
from isoflop.sim.grid.grid import execute


@dataclass(frozen=True)
class Thread:
    """What a file of somebody else's would hold."""

    workers: int = 1

    def run(self, jobs, work, on_event):
        for job in jobs:
            thread = threading.Thread(target=work, args=(job, on_event))
            thread.start()
            thread.join()


EXECUTORS = [Local(), Local(workers=2), Thread()]


@pytest.mark.parametrize("executor", EXECUTORS, ids=repr)
def test_a_grid_asks_of_its_executor_nothing_but_the_contract(executor, tmp_path):
    """The same records wherever its jobs run, and one event for each of them."""
    grid, events = fakes.cells(), []
    outcome = execute(grid, tmp_path, fakes.train, executor=executor, on_event=events.append)
    assert outcome.count("ok") == len(grid)
    told = [event.record.key for event in events if type(event).__name__ == "Recorded"]
    assert sorted(told) == sorted(cell.run.key for cell in grid)


def test_an_executor_is_found_by_being_there_or_by_an_entry_point(tmp_path, monkeypatch):
    assert base.names() == ["local", "ray", "slurm"]
    assert base.find("local") is Local
    (tmp_path / "carrier.py").write_text("class Carrier:\n    workers = 3\n")
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    point = importlib.metadata.EntryPoint("thread", "test_executor:Thread", base.GROUP)
    monkeypatch.setattr(base.importlib.metadata, "entry_points", lambda group: [point])
    assert base.names() == ["carrier", "local", "ray", "slurm", "thread"]
    assert base.find("carrier").workers == 3
    assert base.find("thread") is importlib.import_module("test_executor").Thread
    with pytest.raises(KeyError):
        base.find("pigeon")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_workers_share_the_cores_and_bring_no_jax():
    before, told = os.sched_getaffinity(0), []
    Local(workers=2).run(["a", "b", "c"], describe, told.append)
    assert sorted(job for job, *_ in told) == ["a", "b", "c"]
    cores = {pid: set(cores) for _, pid, cores, _ in told}
    assert len(cores) == 2
    assert os.getpid() not in cores
    if len(before) > 1:
        assert not set.intersection(*cores.values())
    assert all(len(share) == max(len(before) // 2, 1) for share in cores.values())
    assert not any(jax for *_, jax in told)
    assert os.sched_getaffinity(0) == before


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_a_share_does_not_grow_when_fewer_jobs_than_workers_are_left():
    told = []
    Local(workers=2).run(["last"], describe, told.append)
    assert len(told[0][2]) == max(len(os.sched_getaffinity(0)) // 2, 1)


def test_a_process_that_dies_takes_only_its_own_job_with_it():
    told = []
    spawn([1, 2, 3, 4], die_at_two, told.append, workers=1)
    first, died, *others = told
    assert [first, *others] == [1, 3, 4]
    assert isinstance(died, WorkerDied)
    assert died.job == 2
    assert "SIGKILL" in died.reason
    assert "memory" in died.reason


def test_an_exception_that_work_lets_out_is_raised_here_with_its_traceback():
    with pytest.raises(ValueError, match="two is refused") as caught:
        spawn([1, 2, 3], refuse_two, lambda event: None, workers=1)
    assert any("refuse_two" in note for note in caught.value.__notes__)


ORPHANS = """
import chores
from isoflop.sim.grid.executors.local import Local
if __name__ == "__main__":
    Local(workers=2).run([1, 2], chores.linger, lambda pid: print(pid, flush=True))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, script], env=path, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(running, pids))
        parent.kill()
    deadline = time.monotonic() + 30
    while any(map(running, pids)):
        assert time.monotonic() < deadline, "the workers outlived their parent"
        time.sleep(0.02)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_worker_keeps_the_order_in_this_process():
    told = []
    Local().run([3, 1], refuse_two, told.append)
    assert told == [3, 1]
