"""`isoflop work`: one of any number of equal workers, started by whatever starts processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.experiments.cli.flags import RunFlags, Usage, once, parse
from isoflop.experiments.cli.listing import named
from isoflop.experiments.cli.run import command_again, loaded, train

RETRY_SECONDS = 10.0  # before what failed is tried again


@dataclass(frozen=True)
class WorkFlags:
    runs: Path = Path("runs")
    """The runs directory that all workers share."""
    workers: int = 1
    """Jobs at once of this worker, each with its share of the cores."""
    retries: int = 2
    """How often a run that failed is tried again, by all workers together."""
    layout: str = RunFlags.layout
    """How each job lies on this machine's devices, as in isoflop run."""
    quiet: bool = False
    """Print no progress."""


def work(args: Sequence[str]) -> int:
    """Train what a grid lacks beside other workers, wherever they run, until it is complete.

    Each worker walks the list of jobs, leases one that nobody trains, and goes on to the next; a
    lease that lapses is taken over, and what fails is tried again. It ends when every run has its
    record: with exit code 0, or 1 where some failed for good.
    """
    experiment, rest = named("work", work.__doc__, args, WorkFlags)
    if not experiment.trains:
        raise Usage(f"{experiment.name} measures in one process; use isoflop run {experiment.word}")
    module = loaded(experiment)
    words = f"work {experiment.word}"
    flags, cells = parse(words, work.__doc__, rest, WorkFlags, once(module, "cells"))
    if flags.retries < 0:
        raise Usage(f"--retries {flags.retries} must be at least 0")
    from isoflop.sim.grid.executors.local import Apart
    from isoflop.sim.grid.grid import Wanted
    from isoflop.sim.records.store import Store

    told = RunFlags(runs=flags.runs, layout=flags.layout, quiet=flags.quiet)
    wanted, store = Wanted(tries=flags.retries + 1), Store(flags.runs)
    runs = {cell.run.key: cell.run for cell in cells}.values()
    again = command_again(experiment, module, rest)
    while True:
        code = train(told, Apart(flags.workers), cells, experiment, again, wanted.tries)
        if code == 2 or not wanted.of(store, runs):
            break
        time.sleep(RETRY_SECONDS)
    return code if code == 2 else int(bool(Wanted().of(store, runs)))
