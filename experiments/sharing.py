"""How much does a grid save over its runs one after another, each in a process of its own?

The smallest ladder of some families and lengths, trained in several ways by `isoflop run`: run by
run in fresh processes that keep no compiled program; as one grid with one and with two workers,
which trains shorter runs as branches of longer ones and compiles what runs share once; and that
grid again elsewhere, with its compiled programs kept. Ways take turns, each with an empty folder of
compiled programs but the last. `share` is the seconds over those of the first way in the same turn.

Command:   isoflop run sharing --json
Duration:  about 10 minutes on 2 cores
Expected:  well below .6 for a grid, most of it by training and compiling what runs share once
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from isoflop.experiments.cli.text import tell
from isoflop.models.errors import UserError
from isoflop.sim.data import cache


def measure(
    families: tuple[str, ...] = ("dense", "moe", "mamba", "linear"),
    steps: tuple[int, ...] = (100, 200, 400),
    repeats: int = 1,
) -> list[dict]:
    """The table.

    Args:
        families: names of the zoo's families.
        steps: training lengths; families × lengths are the runs.
        repeats: turns, after the data and the last way's programs are made.
    """
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be at least 1")
    alone = [((family,), (count,)) for family, count in product(families, steps)]
    grid = [(families, steps)]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ways = {
            "one after another": Way(place, alone, 1),
            "grid, 1 worker": Way(place, grid, 1),
            "grid, 2 workers": Way(place, grid, 2),
            "grid, 2 workers, again": Way(place, grid, 2, kept=True),
        }
        turns: dict[str, list[float]] = {name: [] for name in ways}
        for turn, (name, way) in product(range(repeats), ways.items()):
            tell(f"turn {turn + 1} of {repeats}: {name}")
            turns[name].append(way.seconds())
    tell("")
    first = turns["one after another"]
    return [
        {
            "way": way,
            "runs": len(alone),
            "seconds": statistics.median(seconds),
            "share": statistics.median(a / b for a, b in zip(seconds, first, strict=True)),
        }
        for way, seconds in turns.items()
    ]


@dataclass
class Way:
    """Grids of (families, steps), each trained by a process of its own, one after another."""

    place: Path
    grids: Sequence[tuple[tuple[str, ...], tuple[int, ...]]]
    workers: int
    kept: bool = False  # its compiled programs

    def __post_init__(self) -> None:
        """A cache of its own, with the data that any of them would prepare first."""
        self.cache = Path(tempfile.mkdtemp(dir=self.place))
        self.compiled = self.cache / Path(cache.compilation()["JAX_COMPILATION_CACHE_DIR"]).name
        self._train(self.grids[0], self.cache / "runs")

    def seconds(self) -> float:
        """Of all grids, each in a new process that begins without runs."""
        spent = 0.0
        for grid in self.grids:
            if not self.kept:
                shutil.rmtree(self.compiled, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=self.place) as runs:
                start = time.perf_counter()
                self._train(grid, Path(runs))
                spent += time.perf_counter() - start
        return spent

    def _train(self, grid: tuple[tuple[str, ...], tuple[int, ...]], runs: Path) -> None:
        families, steps = grid
        command = [
            sys.executable,
            "-m",
            "isoflop.experiments",
            "run",
            "ladder",
            "--quiet",
            "--seeds",
            "1",
        ]
        command += ["--families", *families, "--steps", *map(str, steps), "--sizes", "1"]
        command += ["--workers", str(self.workers), "--runs", str(runs)]
        env = os.environ | {"ISOFLOP_CACHE": str(self.cache)}
        if subprocess.run(command, env=env, stdout=subprocess.DEVNULL).returncode:
            raise UserError(f"the runs must train, and failed as above: {' '.join(command[3:])}")
