"""A grid of two small jobs that train in earnest, and the command that trains it in two processes.

python real.py ROOT [STEP]    with a checkpoint at every dispatch; kill -9 itself at that step
"""

import os
import signal
import sys
import time
from pathlib import Path

from isoflop.models.families import zoo
from isoflop.sim.data import ZipfFacts
from isoflop.sim.grid import grid, leases
from isoflop.sim.grid.executors.local import Local
from isoflop.sim.optim import AdamW
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train import checkpoints
from isoflop.sim.train import loop as train

STEPS = (30, 60)


def cells(widths=(16, 32)) -> list[Cell]:
    data = ZipfFacts(facts=100, symbols=16, alpha=0.5)
    return [
        Cell(
            labels={"width": width, "steps": steps, "seed": seed},
            run=Run(
                model=zoo.dense(width, 1, data.vocab_size),
                data=data,
                optim=AdamW(lr=0.01, warmup_steps=5),
                budget=Budget(steps=steps, batch=2, seq_len=16, eval_tokens=256),
                seed=seed,
            ),
        )
        for width in widths
        for steps in STEPS
        for seed in (0, 1)
    ]


def often(*args, **kwargs):
    """The trainer, which saves after every few steps."""
    checkpoints.CHECKPOINT_SECONDS, train.DISPATCH = -1.0, 4
    return train.train(*args, **kwargs)


def together(runs, work, emit, wanted):
    """The trainer, whose two jobs begin together and say a word every third of a second."""
    (work.parent / "begun").touch()
    until = time.monotonic() + 120
    while len(list(work.parents[1].glob("*/begun"))) < 2 and time.monotonic() < until:
        time.sleep(0.1)

    def later(event) -> None:
        time.sleep(0.3)
        emit(event)

    return often(runs, work, later, wanted)


def together_but_24_dies(runs, work, emit, wanted):
    """The same, and a job of that width dies by kill -9 as it begins."""
    if runs[0].model.d_model == 24:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from together(runs, work, emit, wanted)


def main(root: Path, fatal: int | None = None) -> None:
    leases.EXPIRY_SECONDS, leases.RENEW_SECONDS, grid.POLL_SECONDS = 3.0, 0.2, 0.1

    def on_event(message) -> None:
        step = getattr(message, "step", 0)
        if step:
            print(message.job, step, flush=True)
        if fatal is not None and step >= fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    grid.execute(cells(), root, often, executor=Local(workers=2), on_event=on_event)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
