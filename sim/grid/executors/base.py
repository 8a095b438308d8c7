"""The contract of an executor, jobs in and events out, and how one is found by its name.

An executor is a dataclass: its fields are its options, and become flags of `isoflop run` beside
`--executor NAME`. It is found by being there: the class `Slurm` in a file `slurm.py` of this
folder, or whatever class an installed package names under the entry point group
`isoflop.executors`. Nothing is registered, and no grid knows more of it than `Executor`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

GROUP = "isoflop.executors"

OnEvent = Callable[[Any], None]
Work = Callable[[Any, OnEvent], None]  # (job, emit); what runs elsewhere is pickled, as jobs are


@dataclass(frozen=True)
class WorkerDied:
    """The process or node that had the job ended without a word; the job may be half done."""

    job: Any
    reason: str


@dataclass(frozen=True)
class Queued:
    """A scheduler has the job, and will begin it when it has room."""

    job: Any
    where: str  # the scheduler's own name of it, as in `Slurm job 12_3`


@runtime_checkable
class Executor(Protocol):
    """Runs jobs somewhere, and tells here what happens there."""

    @property
    def workers(self) -> int:
        """Jobs that run side by side: what a budget in seconds divides by."""

    def run(self, jobs: Sequence[Any], work: Work, on_event: OnEvent) -> None:
        """Run `work(job, emit)` for each job, begun in order, and return once all have ended.

        Whatever a job emits is passed to `on_event`, in the calling thread and, of one job, in
        order; so is WorkerDied, for a job whose worker ended without a word: it takes only that job
        with it; and Queued, for a job that has to wait for its turn elsewhere. An exception that
        `work` or `on_event` lets out ends every worker and is raised here. What the workers need in
        common is a file system with the runs directory.
        """


def names() -> list[str]:
    """The executors that are there."""
    return sorted({*_files(), *_installed()})


def find(name: str) -> Callable[..., Executor]:
    """The executor's class. Raises KeyError where none has the name."""
    if name in _files():
        return getattr(importlib.import_module(f"{__package__}.{name}"), name.title())
    return _installed()[name].load()


def _files() -> list[str]:
    package = importlib.import_module(__package__)
    return [item.name for item in pkgutil.iter_modules(package.__path__) if item.name != "base"]


def _installed() -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}
