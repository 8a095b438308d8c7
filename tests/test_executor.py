"""Spawned processes: their cores, their deaths, their exceptions. No test here trains."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chores import describe, die_at_two, refuse_two

from isoflop.sim.grid.local import serial, spawn


def unexpected(job, reason):
    raise AssertionError(f"{job} was lost: {reason}")


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin")
def test_workers_share_the_cores_and_bring_no_jax():
    before, told = os.sched_getaffinity(0), []
    spawn(describe, ["a", "b", "c"], 2, told.append, unexpected)
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
    spawn(describe, ["last"], 2, told.append, unexpected)
    assert len(told[0][2]) == max(len(os.sched_getaffinity(0)) // 2, 1)


def test_a_process_that_dies_takes_only_its_own_job_with_it():
    told, lost = [], []
    spawn(die_at_two, [1, 2, 3, 4], 1, told.append, lambda job, reason: lost.append((job, reason)))
    assert told == [1, 3, 4]
    assert [job for job, _ in lost] == [2]
    assert "SIGKILL" in lost[0][1]
    assert "memory" in lost[0][1]


def test_an_exception_that_work_lets_out_is_raised_here_with_its_traceback():
    with pytest.raises(ValueError, match="two is refused") as caught:
        spawn(refuse_two, [1, 2, 3], 1, lambda message: None, unexpected)
    assert any("refuse_two" in note for note in caught.value.__notes__)


ORPHANS = """
import chores
from isoflop.sim.grid.local import spawn
if __name__ == "__main__":
    spawn(chores.linger, [1, 2], 2, lambda pid: print(pid, flush=True), None)
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


def test_serial_keeps_the_order_in_this_process():
    told = []
    serial(refuse_two, [3, 1], told.append)
    assert told == [3, 1]
