"""Two processes with four devices each train what one device trains, as one machine."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import together
from sources import refusal

from isoflop.sim.train import hosts

SCRIPT = Path(together.__file__)


def trained(root, family, processes=1, number=0):
    """Exit codes, and the JSON that the first printed; Gloo prints there too."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    told = {"ISOFLOP_COORDINATOR": address, "ISOFLOP_PROCESSES": str(processes)}
    crew = [
        subprocess.Popen(
            [sys.executable, SCRIPT, root, family, *([str(number)] if number else [])],
            env=env | (told | {"ISOFLOP_PROCESS": str(i)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        said = [one.communicate(timeout=400)[0] for one in crew]
    finally:
        for one in crew:
            one.kill()
    lines = [line for line in said[0].splitlines() if line.startswith("{")]
    return [one.returncode for one in crew], "".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize("family", together.FAMILIES)
def test_losses_of_two_processes_with_four_devices_equal_those_of_one_device(tmp_path, family):
    codes, said = trained(tmp_path / "two", family, 2)
    assert codes == [0, 0]
    two, one = json.loads(said), json.loads(trained(tmp_path / "one", family)[1])
    assert two.keys() == one.keys()
    assert len(two) == 4
    for key, losses in one.items():
        assert len(losses) == 1 + (6 if len(losses) == 7 else 10)
        np.testing.assert_allclose(two[key], losses, rtol=1e-5)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_saves_and_ends_both_and_they_go_on(tmp_path):
    codes, _ = trained(tmp_path / "cut", "dense", 2, signal.SIGTERM)
    assert codes == [143, 143]
    assert list(tmp_path.glob("cut/jobs/*/work/*.trunk.3/checkpoint.json"))
    assert not list(tmp_path.glob("cut/leases/*"))
    codes, said = trained(tmp_path / "cut", "dense", 2)
    assert codes == [0, 0]
    assert json.loads(said) == json.loads(trained(tmp_path / "whole", "dense", 2)[1])


@pytest.mark.parametrize(
    ("way", "env", "said"),
    [
        ("mpi", {}, "--hosts mpi must be one of env, slurm"),
        ("env", {}, "needs ISOFLOP_COORDINATOR=host:port"),
        ("env", dict(zip(hosts.VARIABLES, ("a:1", "2", "2"), strict=True)), "counted from 0"),
        ("slurm", {}, "SLURM_NTASKS is not set"),
    ],
)
def test_what_does_not_tell_of_other_processes_is_refused_in_one_line(monkeypatch, way, env, said):
    for name, value in (dict.fromkeys(hosts.VARIABLES, "") | env | {"SLURM_NTASKS": ""}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NPROCS", raising=False)
    assert said in refusal(hosts.join, way)
