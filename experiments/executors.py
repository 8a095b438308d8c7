"""What does a job cost beside its training, on each executor?

Command: isoflop run executors --executors local ray slurm
Duration: minutes for each executor on 2 idle cores
Expected: tenths of a second in processes that stay, as local workers and Ray's; seconds on
Slurm, where a job is a process that imports JAX and takes its programs from the cache.

Two jobs train side by side, with one core each; the grid is of tiny runs, compiled before.
"""

import os
import tempfile
import time
from pathlib import Path

from isoflop.models.errors import UserError
from isoflop.models.families import zoo
from isoflop.sim.data import ZipfFacts, cache
from isoflop.sim.grid.executors import base
from isoflop.sim.grid.executors.base import Executor
from isoflop.sim.grid.grid import execute
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train.loop import train

WORKERS = 2


def measure(executors: tuple[str, ...] = ("local",), jobs: int = 200) -> list[dict]:
    """Seconds of the clock for a grid, and what of them each job takes beside its steps.

    Args:
        executors: names of sim/grid/executors.
        jobs: runs of the grid; each is a job.
    """
    os.environ |= cache.compilation()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in executors:
            root = Path(folder) / name
            where = _executor(name, root)
            execute(_cells(WORKERS, seed=1), root / "before", train, executor=where)
            start = time.perf_counter()
            outcome = execute(_cells(jobs), root / "runs", train, executor=where)
            seconds = time.perf_counter() - start
            if outcome.count("ok") + outcome.count("diverged") < jobs:
                raise UserError(f"{name} failed: {[r.reason for r in outcome.trained][-1]}")
            found = Store(root / "runs").all()[0]
            trained = sum(record.seconds for record in found)
            rows.append(
                {
                    "executor": name,
                    "jobs": jobs,
                    "workers": WORKERS,
                    "seconds": round(seconds, 1),
                    "training_seconds": round(trained, 1),
                    "overhead_seconds_per_job": round((WORKERS * seconds - trained) / jobs, 3),
                }
            )
    return rows


def _executor(name: str, root: Path) -> Executor:
    make = base.find(name)
    if name == "local":
        return make(workers=WORKERS)
    if name == "slurm":
        from isoflop.sim.grid.executors.slurm import Options

        return make(Options(array_parallelism=WORKERS, folder=root / "slurm"))
    return make()


def _cells(jobs: int, seed: int = 0) -> list[Cell]:
    """One program; jobs that differ in their rate."""
    data = ZipfFacts(facts=100, symbols=16, alpha=0.5)
    return [
        Cell(
            labels={"job": i},
            run=Run(
                model=zoo.dense(16, 1, data.vocab_size),
                data=data,
                optim=AdamW(lr=0.001 * (1 + i / jobs), warmup_steps=5),
                budget=Budget(steps=50, batch=2, seq_len=16, eval_tokens=256),
                seed=seed,
            ),
        )
        for i in range(jobs)
    ]
