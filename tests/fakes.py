"""Small grids and trainers that train nothing; importable by spawned processes."""

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.models.errors import UserError
from isoflop.models.lm import Block, ModelConfig
from isoflop.models.mixers.attention import Attention
from isoflop.models.mixers.mlp import SwiGLU
from isoflop.sim.data import ZipfFacts
from isoflop.sim.grid.grid import product
from isoflop.sim.optim import AdamW
from isoflop.sim.records.metrics import Metric
from isoflop.sim.records.provenance import sources
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Budget, Cell, Run
from isoflop.sim.train import preemption


@dataclass(frozen=True)
class Event:
    """The fields of isoflop.sim.train.loop.Event, without what isoflop.sim.train.loop imports."""

    job: str
    step: int
    steps: int
    loss: float
    tokens_per_second: float
    compiling: bool = False


def run(width=8, steps=100, seed=0, **changes) -> Run:
    block = Block(mixer=Attention(n_heads=2), channel=SwiGLU(d_ff=2 * width))
    fields = {
        "model": ModelConfig(d_model=width, vocab_size=512, blocks=(block,)),
        "data": ZipfFacts(facts=100, symbols=16, alpha=0.5),
        "optim": AdamW(lr=1e-3, warmup_steps=10),
        "budget": Budget(steps=steps, batch=2, seq_len=16),
        "seed": seed,
    }
    return Run(**fields | changes)


def cells(width=(8, 16), steps=(50, 100), seed=(0, 1), family="dense") -> list[Cell]:
    return [
        Cell(labels={"family": family} | dials, run=run(**dials))
        for dials in product(width=width, steps=steps, seed=seed)
    ]


def record(run: Run, loss: float = 2.5, **fields) -> Record:
    known = {"tokens": run.budget.tokens, "sources": sources(run)}
    known["metrics"] = {"loss": Metric(value=loss)}
    return Record(key=run.key, run=run, status="ok", **known | fields)


def train(runs, work: Path, emit, wanted):
    """Losses that tell which runs were trained together, and in which order."""
    together = hashlib.sha256("".join(run.key for run in runs).encode()).digest()
    for i, one in enumerate(runs):
        emit(Event(one.trunk, i + 1, len(runs), 3.0, 1e4))
        if one.key in wanted:
            loss = 1 + together[0] / 256 + int(one.key[:4], 16) / 2**24
            yield record(one, loss), {"w": np.full(3, loss, np.float32)}


def unasked(runs, work, emit, wanted):
    """Trains also what it was not asked for, and calls it worse."""
    for record, weights in train(runs, work, emit, {run.key for run in runs}):
        worse = {} if record.key in wanted else {"metrics": {"loss": Metric(value=9.0)}}
        yield record.model_copy(update=worse), weights


def slowly(runs, work, emit, wanted):
    for result in train(runs, work, emit, wanted):
        time.sleep(0.3)
        yield result


def never(runs, work, emit, wanted):
    raise AssertionError("this grid was finished, and is trained again")
    yield


def breaks_at_16(runs, work, emit, wanted):
    """One branch lands, then an exception; other widths train."""
    for i, result in enumerate(train(runs, work, emit, wanted)):
        if runs[0].model.d_model == 16 and i == 1:
            raise ZeroDivisionError("a bug\nwith a long story")
        yield result


def mistaken_at_16(runs, work, emit, wanted):
    if runs[0].model.d_model == 16:
        raise UserError("width=16 is unlucky; use 8")
    yield from train(runs, work, emit, wanted)


def dies_after_one(runs, work, emit, wanted):
    yield next(iter(train(runs, work, emit, wanted)))
    os.kill(os.getpid(), signal.SIGKILL)


def dies_at_16(runs, work, emit, wanted):
    if runs[0].model.d_model == 16:
        os.kill(os.getpid(), signal.SIGKILL)
    yield from train(runs, work, emit, wanted)


def interrupted(runs, work, emit, wanted):
    """As by Ctrl-C, after the first run."""
    yield next(iter(train(runs, work, emit, wanted)))
    raise KeyboardInterrupt


def preemptible(runs, work, emit, wanted):
    """Trains until a signal comes, and then writes where it stands."""
    while not preemption.asked():
        emit(Event(runs[0].trunk, 1, 2, 3.0, 1.0))
        time.sleep(0.02)
    work.mkdir(parents=True)
    (work / "state").write_text("saved")
    raise preemption.Preempted(preemption.asked())
    yield
