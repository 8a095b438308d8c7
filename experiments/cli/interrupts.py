"""Ctrl-C: the end at once while nothing is at stake, an exception that is not lost while training.

A KeyboardInterrupt that is raised inside an import, a callback or a destructor may be swallowed by
the library whose it is; then the command would go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

EXIT_CODE = 130
GOES_ON = "the same command goes on from what is finished"
STOPPED = f"stopped; {GOES_ON}"


def end_at_once() -> None:
    """From now on SIGINT ends this process, wherever it is."""
    signal.signal(signal.SIGINT, _end)


def _end(*_: Any) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{STOPPED}\n".encode())
    os._exit(EXIT_CODE)


@contextlib.contextmanager
def raised_until_caught() -> Iterator[Callable[[Any], None]]:
    """SIGINT raises KeyboardInterrupt, and so does every later call of what is yielded."""
    if threading.current_thread() is not threading.main_thread():  # only that one handles signals
        yield lambda message: None
        return
    seen: list[bool] = []

    def interrupt(*_: Any) -> NoReturn:
        seen.append(True)
        raise KeyboardInterrupt

    def check(message: Any) -> None:
        if seen:
            raise KeyboardInterrupt

    def quiet(lost: Any) -> None:  # a destructor's or a callback's: raised again at the next call
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            hook(lost)

    before, hook = signal.signal(signal.SIGINT, interrupt), sys.unraisablehook
    sys.unraisablehook = quiet
    try:
        yield check
        check(None)
    finally:
        sys.unraisablehook = hook
        signal.signal(signal.SIGINT, before)
