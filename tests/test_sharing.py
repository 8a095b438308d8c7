"""Ways to train one grid are timed over the same runs, and their shares are of the first's time."""

from pathlib import Path

import pytest

from isoflop.experiments import sharing
from isoflop.models.errors import UserError


def test_every_way_trains_all_runs_and_only_the_last_keeps_its_programs(monkeypatch):
    clock, trained = [0.0], []

    def train(self: sharing.Way, grid: tuple, runs: Path) -> None:
        trained.append((self, grid, self.compiled.exists()))
        self.compiled.mkdir(exist_ok=True)
        clock[0] += 10 if self.workers == 1 else 4

    monkeypatch.setattr(sharing.Way, "_train", train)
    monkeypatch.setattr(sharing.time, "perf_counter", lambda: clock[0])
    rows = sharing.measure(families=("dense", "mamba"), steps=(5, 10), repeats=2)
    assert [row["seconds"] for row in rows] == [40, 10, 4, 4]
    assert [row["share"] for row in rows] == [1, 0.25, 0.1, 0.1]
    assert {row["runs"] for row in rows} == {4}
    timed = trained[4:]  # after one each that makes the data
    assert len(timed) == 2 * (4 + 1 + 1 + 1)
    for way, _, warm in timed:
        assert warm == way.kept
    alone = [grid for way, grid, _ in timed[:4]]
    assert alone == [((f,), (n,)) for f in ("dense", "mamba") for n in (5, 10)]
    assert timed[4][1] == (("dense", "mamba"), (5, 10))


def test_no_repeats_are_refused():
    with pytest.raises(UserError, match="repeats=0 must be at least 1"):
        sharing.measure(repeats=0)
