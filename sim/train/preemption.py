"""SIGTERM and SIGUSR1: what Slurm, Kubernetes and spot markets send before a machine is taken away.

While a job trains, they ask the loop to save where it stands and to stop after the steps that are
being computed. Its command then ends with exit code 128 + the signal, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
_asked: list[int] = []


class Preempted(Exception):
    """The training was asked to end, and has saved where it stands."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.signal).name}"


def asked() -> int:
    """The signal that asks the training to end; 0 if none came."""
    return _asked[0] if _asked else 0


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Signals that come during the body are kept for `asked`. One that came too late for that
    raises Preempted when the body has ended.
    """
    with _handled(lambda number, frame: _asked.append(number)):
        try:
            yield
            if number := asked():
                raise Preempted(number)
        finally:
            _asked.clear()


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Signals that come during the body raise Preempted in it: for whoever waits for workers."""

    def stop(number: int, frame: object) -> None:
        raise Preempted(number)

    with _handled(stop):
        yield


@contextlib.contextmanager
def _handled(handler) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # only that one has handlers
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
