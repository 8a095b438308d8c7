"""Jobs on this machine: one after another in this process, or on N spawned processes.

Each spawned process gets its share of the cores before it imports anything, because numerical
libraries size their thread pools once. It imports no JAX by itself: that is the jobs' business.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.grid.executors.base import OnEvent, Work, WorkerDied
from isoflop.sim.train.preemption import Preempted

GRACE_SECONDS = 20.0  # for workers to save where they stand, once the machine is to be given back


@dataclass(frozen=True)
class Local:
    """One worker is this process; more are spawned, and share its cores."""

    workers: int = 1
    """Processes that train side by side, each with its share of the cores."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"workers={self.workers} must be at least 1")

    def run(self, jobs: Sequence[Any], work: Work, on_event: OnEvent) -> None:
        """As the contract says; a job in this process that ends it ends the grid."""
        if self.workers == 1:
            for job in jobs:
                work(job, on_event)
        else:
            spawn(jobs, work, on_event, self.workers)


@dataclass(frozen=True)
class Apart(Local):
    """Every job in a spawned process, even with one worker, so that one that dies takes nothing
    along.
    """

    def run(self, jobs: Sequence[Any], work: Work, on_event: OnEvent) -> None:
        spawn(jobs, work, on_event, self.workers)


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    pipe: Connection
    share: set[int]
    job: Any


def spawn(jobs: Sequence[Any], work: Work, on_event: OnEvent, workers: int) -> None:
    """Run `work(job, emit)` for each job, in order, on `workers` processes.

    `on_event` is called here, in the calling process, and a new process follows one that died. The
    share of cores depends on `workers` alone, not on how many jobs are left, so that an interrupted
    grid goes on with as many threads as it began with.
    """
    todo = deque(jobs)
    crew: list[_Worker] = []
    try:
        for share in _shares(workers)[: len(jobs)]:
            crew.append(_hire(work, share, workers, todo.popleft()))
        while crew:
            ready = wait([worker.pipe for worker in crew])
            for worker in [worker for worker in crew if worker.pipe in ready]:
                try:
                    kind, message = worker.pipe.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    crew.remove(worker)
                    on_event(WorkerDied(worker.job, _death(worker.process.exitcode)))
                    if todo:
                        crew.append(_hire(work, worker.share, workers, todo.popleft()))
                    continue
                if kind == "event":
                    on_event(message)
                elif kind == "raise":
                    raise message
                elif todo:
                    worker.job = todo.popleft()
                    worker.pipe.send(worker.job)
                else:
                    worker.pipe.send(None)
                    worker.process.join()
                    crew.remove(worker)
    except Preempted:
        for worker in crew:
            worker.process.terminate()  # which it understands, too
        until = time.monotonic() + GRACE_SECONDS
        for worker in crew:
            worker.process.join(max(0.0, until - time.monotonic()))
        raise
    finally:
        for worker in crew:
            worker.process.kill()
        for worker in crew:
            worker.process.join()


def _hire(work: Work, share: set[int], workers: int, job: Any) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, work, workers), daemon=True)
    with _on(share), _without_interrupts():  # a child inherits its parent's cores and signal mask
        process.start()
    there.close()
    with contextlib.suppress(BrokenPipeError):  # a process that died at once is found dead later
        here.send(job)
    return _Worker(process, here, share, job)


def _serve(pipe: Connection, work: Work, workers: int) -> None:
    """A spawned process: jobs in, messages out, until there are no more."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    # JAX takes .75 of a GPU's memory by default, which N processes have to share
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.75 / workers:.3f}")
    try:
        while (job := pipe.recv()) is not None:
            work(job, lambda message: pipe.send(("event", message)))
            pipe.send(("done", None))
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(("raise", error))


def _follow_parent() -> None:
    """Die with the parent, even when it is killed: two generations must not train side by side."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (the system does so when memory runs out)" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exitcode}"


def _shares(workers: int) -> list[set[int]]:
    """The cores of each worker; empty sets where the system cannot pin processes (macOS)."""
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    if workers >= len(cores):
        return [{cores[i % len(cores)]} for i in range(workers)]
    each = len(cores) // workers
    return [set(cores[i * each : (i + 1) * each]) for i in range(workers)]


@contextlib.contextmanager
def _on(share: set[int]) -> Iterator[None]:
    if not share:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal, and is the parent's alone to handle: children
    that start now never see it, from their first instruction on.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "pthread_sigmask"):  # Windows has none
        yield
        return
    resource_tracker.ensure_running()  # whose own start, at the first child's, would undo the mask
    late: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda *_: late.append(1))  # other threads take signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which a child inherits
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if late and callable(handler):
            handler(signal.SIGINT, None)
