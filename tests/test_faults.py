"""Whatever is killed and whenever, every run of a grid exists once, with the bits it always has."""

import json
import random
import signal

import faults
import pytest

from isoflop.sim.grid import garbage
from isoflop.sim.records.store import Store


def show(kills, grid):
    """The kills and the losses, for `pytest -s`."""
    for kill in kills:
        print("grid {grid}: kill -9 of a {target} in phase {phase}, {count}".format(**kill))
    for key, (status, loss, *_) in grid.items():
        print(key, status, loss)


def undisturbed(folder, kind):
    host = faults.Host("host-a")
    (folder / "whole").mkdir(parents=True)
    host.start(folder / "whole" / "runs", kind, None, folder / "cache")
    assert host.process.wait(900) == 0
    return faults.left(folder / "whole" / "runs", kind)


def check(folder, kind, kills, whole, monkeypatch):
    monkeypatch.setattr(garbage, "OLD_SECONDS", -1.0)
    for number in {kill["grid"] for kill in kills}:
        root = folder / f"runs{number}"
        assert faults.left(root, kind) == whole
        assert len(list(root.glob("*/result.json"))) == len(whole) == 12
        assert not list(root.glob("leases/*"))
        found = [item.path for item in garbage.find(root, pytest.fail)]
        for orphan in faults.orphans(root, kind):
            path = root / orphan
            assert any(path == item or item in path.parents for item in found), orphan


@pytest.mark.parametrize(
    "phases",
    [("step",), pytest.param(("lease", "step", "record"), marks=pytest.mark.slow)],
    ids=["one", "three"],
)
def test_a_kill_in_each_phase_leaves_a_grid_as_an_undisturbed_one(tmp_path, monkeypatch, phases):
    """Of workers, parents and hosts, while they pretend to train."""
    whole = undisturbed(tmp_path, "pretended")
    kills = faults.harness(tmp_path, "pretended", 3, len(phases), phases, ["host-a"])
    show(kills, whole)
    assert len(kills) >= len(phases)
    check(tmp_path, "pretended", kills, whole, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ten_kills_in_every_phase_of_training_change_no_bit(tmp_path, seed, monkeypatch):
    """Sixty in all, of them twelve of readers while they write the index: `make faults`."""
    whole = undisturbed(tmp_path, "trained")
    kills = faults.harness(tmp_path, "trained", seed, 8)
    check(tmp_path, "trained", kills, whole, monkeypatch)
    root = tmp_path / f"runs{kills[-1]['grid']}"
    readers = kill_readers(root, random.Random(seed))
    show(kills + readers, whole)
    assert len(kills) >= 8
    assert len(readers) == 2


def kill_readers(root, rng):
    """At some row of a new index, and of one that is brought up to date; then it is right."""
    killed = []
    for i, most in enumerate((12, 4)):
        marker = root.parent / f"reader{i}"
        fault = faults.Fault("index", "worker", rng.randint(1, most), 0.0, str(marker))
        reader = faults.Host("host-a")
        reader.start(root, "index", fault, root.parent / "cache")
        assert reader.process.wait(300) == -signal.SIGKILL
        killed.append(json.loads(marker.read_text()) | {"target": "reader", "grid": "of these"})
    log = root.parent / "host-a.log"
    log.write_text("")
    reader.start(root, "index", None, root.parent / "cache")
    assert reader.process.wait(300) == 0
    told = [Store(root).load(path.parent.name) for path in root.glob("*/result.json")]
    assert json.loads(log.read_text().splitlines()[-1]) == sorted(
        [record.key, record.status, record.loss] for record in told
    )
    return killed
