"""The `isoflop` command: one verb of the table (verbs.py), its exit code, and how mistakes read.

Nothing that brings JAX is imported before it is needed, so that help and lists are immediate.
A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Sequence

from isoflop import experiments
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import HELP, Usage
from isoflop.experiments.cli.text import complain, table
from isoflop.experiments.cli.verbs import VERBS
from isoflop.sim.train.preemption import Preempted


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        if not args or args[0] in HELP:
            print(_help())
            return 0
        if args[0] == "--version":
            print(f"isoflop {importlib.metadata.version('isoflop')}")
            return 0
        experiments.pick(args[0], VERBS, "command")
        code = VERBS[args[0]](args[0], args[1:])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(interrupts.STOPPED, file=sys.stderr)
        return interrupts.EXIT_CODE
    except Preempted as error:
        print(f"{error}; {interrupts.GOES_ON}", file=sys.stderr)
        return 128 + error.signal
    except BrokenPipeError:  # the reader of our output has gone, as in `isoflop list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if told := _told(error):
            return complain(told)
        raise


def _told(error: Exception) -> str:
    """A mistake of the user's, in words; nothing for a bug of ours."""
    if isinstance(error, Usage | experiments.Unknown):
        return str(error)
    from pydantic import ValidationError

    from isoflop.models.errors import UserError, is_out_of_memory, shortened
    from isoflop.sim import userfile
    from isoflop.sim.records.store import brief

    where = userfile.place(error)
    match error:
        case OSError(errno=int()):  # of any file that a command reads or writes
            said = (
                f"cannot read or write {error.filename or 'a file'}: {error.strerror}; check the "
                "path, its permissions and the room on its disk"
            )
        case ValidationError():
            said = brief(error)
        case UserError():
            said = str(error)
        case _ if is_out_of_memory(error):
            first, *_ = str(error).splitlines() or ["of this machine"]
            said = (
                f"out of memory ({shortened(first, 200)}); take fewer tokens, shorter sequences or "
                "a smaller batch"
            )
        case _ if where:
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        case _:
            return ""
    return f"{where}: {said}" if where else said


def _help() -> str:
    rows = [{"": f"  {name}", " ": verb.help} for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: isoflop COMMAND [NAME] [OPTIONS]",
            "",
            "How does this architecture scale? Measured, with honest intervals, at small scale.",
            table(rows, left=("", " ")),
            "",
            "isoflop COMMAND NAME --help shows the options of both; isoflop --version.",
            "",
            "Exit codes: 0, all is done; 1, some runs failed, or a bug, with its traceback; 2, a",
            "mistake that one line tells how to fix; 130, Ctrl-C; 143, SIGTERM, and 138, SIGUSR1,",
            "once what was being trained is saved. The same command goes on from what is finished.",
        ]
    )
