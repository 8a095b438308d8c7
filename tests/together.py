"""A grid of one family, trained by all the processes that ISOFLOP_PROCESS and its kin tell of, with
four simulated devices each; or by this one, on one device: python together.py ROOT FAMILY [SIGNAL]

The first prints {key: loss}. With a signal, the second process gets it after its first steps.
"""

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    import quick

    devices = 4 if "ISOFLOP_PROCESS" in os.environ else 1
    os.environ["XLA_FLAGS"] = quick.devices(devices)

from eight import BATCH, BLOCKS, LENGTH, WIDTH

from isoflop.models.lm import ModelConfig
from isoflop.sim.data import ZipfFacts
from isoflop.sim.grid.grid import execute
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import Store
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train import checkpoints, hosts, loop
from isoflop.sim.train.preemption import Preempted
from isoflop.sim.train.sharding import ONE_DEVICE, Layout

FAMILIES = {
    "dense": Layout(data=2, fsdp=2, tensor=2),
    "moe": Layout(fsdp=4, expert=2),
    "mamba": Layout(data=2, fsdp=2, tensor=2),
    "delta": Layout(data=2, fsdp=2, tensor=2),
}


def cells(family: str) -> list[Cell]:
    data = ZipfFacts(facts=20, symbols=8, alpha=0.5)
    model = ModelConfig(d_model=WIDTH, vocab_size=data.vocab_size, blocks=(BLOCKS[family],))
    return [
        Cell(
            run=Run(
                model=model,
                data=data,
                optim=AdamW(lr=0.01, warmup_steps=1),
                budget=Budget(steps=steps, batch=BATCH, seq_len=LENGTH, eval_tokens=512),
                seed=seed,
            )
        )
        for steps in (6, 10)
        for seed in (0, 1)
    ]


def second_dies_once(runs, work, emit, wanted):
    """The trainer on two devices, of two processes; the second is killed at its first steps."""
    loop.DISPATCH, checkpoints.CHECKPOINT_SECONDS = 3, -1.0
    died = work.parent / "died"

    def struck(event):
        if getattr(event, "step", 0) >= 3 and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    heard = emit if hosts.first() else struck
    yield from loop.train(runs, work, heard, wanted, layout=Layout(fsdp=2))


def main(root: Path, family: str, number: int = 0) -> int:
    together = "ISOFLOP_PROCESS" in os.environ
    if together:
        hosts.join("env")
    loop.DISPATCH = 3
    checkpoints.CHECKPOINT_SECONDS = -1.0
    trainer = partial(loop.train, layout=FAMILIES[family] if together else ONE_DEVICE)
    if number and not hosts.first():
        advance = loop._advance

        def struck(job, *args):
            os.kill(os.getpid(), number)
            return advance(job, *args)

        loop._advance = struck
    try:
        if not hosts.first():
            hosts.follow(trainer)
            return 0
        grid = cells(family)
        with hosts.together():
            execute(grid, root, trainer)
    except Preempted as error:
        return 128 + error.signal
    found = (Store(root).load(cell.run.key) for cell in grid)
    print(json.dumps({record.key: [record.loss, *dict(record.curve).values()] for record in found}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])))
