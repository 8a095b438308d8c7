"""The launch templates say what their systems and this command understand; the shell's one runs."""

import os
import shlex
import subprocess
import sys
import time

import fakes
import pytest
import yaml
from test_documents import LAUNCH, Parsed, parse_alone  # noqa: F401

from isoflop.experiments.cli.main import main
from isoflop.sim.records.store import Store


def understood(command):
    assert command[0] == "isoflop"
    with pytest.raises(Parsed):
        main(command[1:])


def test_kubernetes_has_an_indexed_job_whose_command_is_understood(parse_alone):  # noqa: F811
    """By the fields of batch/v1 Job, and what these ask of each other."""
    job = yaml.safe_load((LAUNCH / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec.keys() <= {
        *("completions", "parallelism", "completionMode", "backoffLimitPerIndex"),
        *("podFailurePolicy", "template"),
    }
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    for rule in spec["podFailurePolicy"]["rules"]:
        assert rule["action"] in {"Ignore", "FailJob", "FailIndex", "Count"}
    (container,) = pod["containers"]
    understood(container["command"])
    (volume,), (mount,) = pod["volumes"], container["volumeMounts"]
    assert mount["name"] == volume["name"]
    runs = container["command"][container["command"].index("--runs") + 1]
    assert runs.startswith(mount["mountPath"])


def test_skypilot_has_a_task_whose_command_is_understood(parse_alone):  # noqa: F811
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert task.keys() <= {"name", "num_nodes", "resources", "setup", "run"}
    assert task["resources"].keys() <= {"cpus", "use_spot", "accelerators"}
    understood(shlex.split(task["run"]))


def test_slurm_has_an_array_whose_command_is_understood(parse_alone):  # noqa: F811
    lines = (LAUNCH / "workers.sbatch").read_text().splitlines()
    options = dict(line.split("--")[1].partition("=")[::2] for line in lines if "#SBATCH" in line)
    assert options.keys() >= {"array", "signal", "requeue"}
    (command,) = [line for line in lines if line.startswith("srun ")]
    understood(shlex.split(command.partition("||")[0])[1:])


TOY = """
import fakes


def cells():
    return fakes.cells(width=range(4, 44, 4), steps=(50,))
"""
ISOFLOP = """#!{python}
import sys

sys.path[:] = {path}
import fakes
from isoflop.sim.grid import grid, leases
from isoflop.sim.train import loop

loop.train = fakes.slowly
grid.POLL_SECONDS = 0.1
if __name__ == "__main__":
    from isoflop.experiments.cli.main import main

    raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture
def isoflop(tmp_path, monkeypatch):
    """The command, with a trainer that only waits, and a grid of twenty runs for it."""
    (tmp_path / "toy.py").write_text(TOY)
    program = tmp_path / "isoflop"
    program.write_text(ISOFLOP.format(python=sys.executable, path=sys.path))
    program.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    monkeypatch.chdir(tmp_path)
    return program


def trained(text):
    """How many runs a process says that it trained."""
    counts = [line.split() for line in text.splitlines() if " runs trained" in line]
    return sum(int(words[0]) for words in counts)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="runs shell scripts")
def test_a_worker_on_each_of_ten_hosts_and_the_grid_is_complete(isoflop, tmp_path):
    """ssh is a shell of this machine; two hosts of the ten have a word with a quote in it."""
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\necho "$1" >>hosts\nexec sh -c "$2"\n')
    ssh.chmod(0o755)
    hosts = " ".join(f"host{i}" for i in range(10))
    env = os.environ | {"SSH": str(ssh), "ISOFLOP": str(isoflop), "LOGS": str(tmp_path / "logs")}
    env["PATH"] = os.pathsep.join(p for p in env["PATH"].split(os.pathsep) if "screen" not in p)
    script = [LAUNCH / "hosts.sh", hosts, tmp_path / "runs", "toy.py"]
    subprocess.run(list(map(str, script)), env=env, check=True, timeout=60)
    assert (tmp_path / "hosts").read_text().split() == hosts.split()
    logs = [tmp_path / "logs" / f"{host}.log" for host in hosts.split()]
    until = time.monotonic() + 400
    while not all(log.exists() and " runs trained" in log.read_text() for log in logs):
        assert time.monotonic() < until, [log.read_text() for log in logs if log.exists()]
        time.sleep(0.5)
    assert sum(trained(log.read_text()) for log in logs) == 20
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 20


@pytest.mark.slow
def test_two_parents_and_four_workers_do_nothing_twice_and_leave_nothing_out(isoflop, tmp_path):
    runs = ["toy.py", "--runs", str(tmp_path / "runs"), "--quiet"]
    commands = [["run", *runs]] * 2 + [["work", *runs]] * 4
    processes = [
        subprocess.Popen(
            [sys.executable, str(isoflop), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for words in commands
    ]  # fmt: skip
    told = [process.communicate(timeout=400) for process in processes]
    assert [process.returncode for process in processes] == [0] * 6, told
    assert sum(trained(out) for out, _ in told) == 20
    grid = fakes.cells(width=range(4, 44, 4), steps=(50,))
    assert all(Store(tmp_path / "runs").done(cell.run.key) for cell in grid)
    assert not list((tmp_path / "runs" / "leases").glob("*"))
