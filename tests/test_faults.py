"""Whatever is killed and whenever, every run of a grid exists once, with the bits it always has."""

import faults
import pytest


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


def check(folder, kind, kills, whole):
    struck = {kill["grid"] for kill in kills}
    for number in struck:
        root = folder / f"runs{number}"
        assert faults.left(root, kind) == whole
        assert len(list(root.glob("*/result.json"))) == len(whole) == 12
        assert not list(root.glob("leases/*"))
        for name in faults.orphans(root, kind):
            assert name.endswith(".tmp"), name


def test_kills_in_three_phases_leave_a_grid_as_an_undisturbed_one(tmp_path):
    """Of workers, parents and hosts, while they pretend to train."""
    whole = undisturbed(tmp_path, "pretended")
    kills = faults.harness(tmp_path, "pretended", 3, 3, ("lease", "step", "record"), ["host-a"])
    show(kills, whole)
    assert len(kills) >= 3
    check(tmp_path, "pretended", kills, whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_ten_kills_in_every_phase_of_training_change_no_bit(tmp_path, seed):
    """Sixty in all: `make faults`."""
    whole = undisturbed(tmp_path, "trained")
    kills = faults.harness(tmp_path, "trained", seed, 10)
    show(kills, whole)
    assert len(kills) >= 10
    check(tmp_path, "trained", kills, whole)
