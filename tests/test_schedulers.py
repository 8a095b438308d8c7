"""Ray and Slurm without either: what is refused, what is asked of them, how they are read."""

import base64
import os
import pickle
import socket

import pytest

from isoflop.models import errors
from isoflop.models.errors import UserError
from isoflop.sim.grid.executors import ray, slurm
from isoflop.sim.grid.executors.base import WorkerDied


@pytest.mark.parametrize(
    ("executor", "module"), [(ray.Ray(), "ray"), (slurm.Slurm(), "submitit")], ids=str
)
def test_a_missing_extra_is_one_line_that_names_it(executor, module, monkeypatch):
    monkeypatch.setattr(errors.importlib.util, "find_spec", lambda what: None)
    told = rf"needs the package {module}; pip install 'isoflop\[(ray|slurm)\]'"
    with pytest.raises(UserError, match=told):
        executor.run(["job"], print, print)


def test_a_cluster_that_does_not_answer_is_told_at_once():
    """Ray itself would try for minutes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        for way in (address, f"ray://{address}"):
            with pytest.raises(UserError, match=rf"reached at {way} .*refused.*--ray-address"):
                ray._reach(way)
    ray._reach("auto")


def test_resources_of_a_job_are_asked_for_by_rays_names():
    asked = ray.Ray(cpus=2, gpus=0.25, memory=1.5)
    assert asked._resources() == {"CPU": 2.0, "GPU": 0.25, "memory": 1.5 * 2**30}
    assert ray.Ray()._resources() == {"CPU": 1.0}
    with pytest.raises(UserError, match="cpus=0 and nodes=1 must be at least 1"):
        ray.Ray(cpus=0)
    with pytest.raises(UserError, match=r"nodes=2 are of a cluster .* --ray-address"):
        ray.Ray(nodes=2)


def test_a_job_has_as_many_threads_as_cores_and_the_settings_of_its_parent(monkeypatch):
    monkeypatch.setenv("ISOFLOP_CACHE", "/somewhere")
    told = ray.Ray(cpus=3, gpus=0.5)._environment()
    assert told["PJRT_NPROC"] == "3"
    assert told["ISOFLOP_CACHE"] == "/somewhere"
    assert told["XLA_FLAGS"] == os.environ["XLA_FLAGS"]
    assert told["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.375"
    assert "HOME" not in told


def test_options_of_sbatch_are_those_that_were_given():
    told = slurm.Options(partition="gpu", gpus=1, memory=8, sbatch=("nice=100", "exclusive"))
    asked = told.parameters
    assert (asked["partition"], asked["gpus_per_node"], asked["mem"]) == ("gpu", 1, "8192M")
    assert asked["additional_parameters"] == {"requeue": True, "nice": "100", "exclusive": True}
    assert not {"account", "qos", "constraint", "setup"} & asked.keys()
    with pytest.raises(UserError, match="without its dashes, as in nice=100"):
        slurm.Options(sbatch=("--nice=100",))
    with pytest.raises(UserError, match=r"slurm\.time=0, .* must be at least 1"):
        slurm.Options(time=0)


def line(kind, message):
    return b"\n" + base64.b64encode(pickle.dumps((kind, message))) + b"\n"


def test_every_message_of_a_task_is_read_once_and_one_that_a_kill_cut_short_never(tmp_path):
    task = slurm._Task("12_3", "job", tmp_path / "post", tmp_path / "log")
    assert list(task.news()) == []
    whole = line("event", 1)
    task.post.write_bytes(whole + line("event", 2)[:9])
    assert list(task.news()) == [("event", 1)]
    with task.post.open("ab") as file:
        file.write(line("event", 3) + line("end", None))
    heard = []
    assert slurm._hand_on(task, heard.append)
    assert heard == [3]
    assert list(task.news()) == []


def test_what_a_job_raises_is_raised_here(tmp_path):
    def work(job, emit):
        emit(job)
        raise ValueError("two is refused")

    with pytest.raises(ValueError, match="refused"):
        slurm._serve(work, 2, tmp_path / "post")
    task, heard = slurm._Task("7", 2, tmp_path / "post", tmp_path / "log"), []
    with pytest.raises(ValueError, match="two is refused") as caught:
        slurm._hand_on(task, heard.append)
    assert heard == [2]
    assert any("work(job" in note for note in caught.value.__notes__)


SQUEUE = """#!/bin/sh
echo "$@" >> {folder}/asked
cat {folder}/queue
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A Slurm whose queue is a file."""
    for name in ("squeue", "scancel"):
        program = tmp_path / name
        program.write_text(SQUEUE.format(folder=tmp_path))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "POST_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "CANCEL_SECONDS", 0.01)
    (tmp_path / "queue").write_text("")
    return tmp_path


@pytest.mark.skipif(os.name != "posix", reason="runs shell scripts")
def test_a_task_that_slurm_ends_or_forgets_has_died_and_one_in_the_queue_has_not(
    cluster, monkeypatch
):
    tasks = [slurm._Task(f"12_{i}", i, cluster / str(i), cluster / f"{i}.err") for i in range(4)]
    monkeypatch.setattr(slurm.Slurm, "_submit", lambda self, jobs, work: tasks)
    (cluster / "queue").write_text("12_0 RUNNING\n12_1 NODE_FAIL\n12_3 PENDING\n")
    heard = []

    def on_event(event):
        heard.append(event)
        if len([e for e in heard if isinstance(e, WorkerDied)]) == 2:
            for i in (0, 3):
                (cluster / str(i)).write_bytes(line("event", f"end of {i}") + line("end", None))

    slurm.Slurm().run([0, 1, 2, 3], print, on_event)
    died = {e.job: e.reason for e in heard if isinstance(e, WorkerDied)}
    assert died.keys() == {1, 2}
    assert "Slurm job 12_1 ended as NODE_FAIL" in died[1]
    assert "knows no more of it" in died[2]
    assert {"end of 0", "end of 3"} <= {e for e in heard if isinstance(e, str)}
    assert "--jobs=12" in (cluster / "asked").read_text()


@pytest.mark.skipif(os.name != "posix", reason="runs shell scripts")
def test_a_task_that_is_preempted_queues_itself_again_and_not_its_array(cluster, monkeypatch):
    """The last task of array 12 has the array's number as its own."""
    (cluster / "scontrol").write_text((cluster / "squeue").read_text())
    (cluster / "scontrol").chmod(0o755)
    (cluster / "queue").write_text("RUNNING\n")
    for name, value in {"JOB_ID": "12", "ARRAY_JOB_ID": "12", "ARRAY_TASK_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit, match="stopped while it was RUNNING"):
        slurm._queue_again()
    asked = (cluster / "asked").read_text().splitlines()
    assert asked == ["--noheader --format=%T --jobs=12_7", "requeue 12_7"]


@pytest.mark.skipif(os.name != "posix", reason="runs shell scripts")
def test_tasks_of_a_grid_that_ends_early_are_cancelled(cluster, monkeypatch):
    tasks = [slurm._Task(f"12_{i}", i, cluster / str(i), cluster / "err") for i in range(2)]
    monkeypatch.setattr(slurm.Slurm, "_submit", lambda self, jobs, work: tasks)

    def stop(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        slurm.Slurm().run([0, 1], print, stop)
    assert "12_0 12_1" in (cluster / "asked").read_text()
