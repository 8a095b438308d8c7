"""Slurm in earnest, of one node: `make test-slurm`."""

import os
import subprocess
import sys
from pathlib import Path

import fakes
import pytest
import real
from test_ray import bits

from isoflop.models.errors import UserError
from isoflop.sim.grid.executors.base import Queued
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.grid.executors.slurm import Options, Slurm
from isoflop.sim.grid.grid import TRIES, Recorded, Retried, Started, execute

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def nodes_import_these_tests(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def slurm(folder, **options):
    return Slurm(Options(partition="low", time=10, folder=folder / "slurm", **options))


def test_of_one_array_tasks_that_are_preempted_go_on_and_one_that_fails_fails_alone(tmp_path):
    """Two of three tasks are preempted at their first steps by a job of a better partition; the
    third dies, each time that it is begun.
    """
    grid, dying, heard = real.cells(), real.cells(widths=(24,)), []
    execute(grid, tmp_path / "local", real.often, executor=Local(workers=2))
    preempting: list[int] = []

    def on_event(message):
        heard.append(message)
        if not preempting and getattr(message, "step", 0) >= 8:
            command = ["sbatch", "--partition=high", f"--cpus-per-task={os.cpu_count()}"]
            preempting.append(
                subprocess.run(
                    [*command, f"--output={os.devnull}", "--wrap=sleep 2"], check=True
                ).returncode
            )

    root = tmp_path / "slurm"
    outcome = execute(
        [*grid, *dying], root, real.together_but_24_dies, executor=slurm(root), on_event=on_event
    )
    queued = [message for message in heard if isinstance(message, Queued)][:3]
    assert len({message.where.partition("_")[0] for message in queued}) == 1, "of several arrays"
    fails = dying[0].run.trunk
    started = [message.trunk for message in heard if isinstance(message, Started)]
    assert len({*started}) == 3
    assert [trunk for trunk in started if trunk != fails][2:], "no task was begun again"
    assert [m.trunk for m in heard if isinstance(m, Retried)] == [fails] * (TRIES - 1)
    failed = {record.run.key: record for record in outcome.trained if record.status == "failed"}
    assert failed.keys() == {cell.run.key for cell in dying}
    assert all("ended as FAILED, see " in record.reason for record in failed.values())
    assert outcome.count("ok") == len(grid)
    assert bits(root, grid) == bits(tmp_path / "local", grid)


def test_a_task_that_dies_is_a_failure_with_the_log_of_its_job_and_the_others_go_on(tmp_path):
    grid = fakes.cells(width=(8, 16))
    outcome = execute(grid, tmp_path, fakes.dies_at_16, executor=slurm(tmp_path))
    failed = [record for record in outcome.trained if record.status == "failed"]
    assert (outcome.count("ok"), len(failed)) == (4, 4)
    assert {record.run.model.d_model for record in failed} == {16}
    assert all("ended as FAILED, see " in record.reason for record in failed)
    logs = {record.reason.split("see ")[1] for record in failed}
    assert all("srun: error" in Path(log).read_text() for log in logs)


def test_tasks_of_a_grid_that_is_stopped_are_cancelled(tmp_path):
    def stop(message):
        if isinstance(message, Recorded):
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        execute(fakes.cells(), tmp_path, fakes.slowly, executor=slurm(tmp_path), on_event=stop)
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert queue.stdout == ""
    assert not list(tmp_path.glob("leases/*"))


def test_a_partition_that_is_not_there_is_refused_in_one_line(tmp_path):
    executor = Slurm(Options(partition="nowhere", folder=tmp_path / "slurm"))
    with pytest.raises(UserError, match=r"sbatch refuses .*invalid partition.*--slurm"):
        execute(fakes.cells(), tmp_path, fakes.train, executor=executor)
