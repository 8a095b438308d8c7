"""`isoflop status`: how the grids of a runs directory stand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.experiments.cli.flags import HELP, Usage, deferred, once, parse
from isoflop.experiments.cli.listing import named, runs_directory
from isoflop.experiments.cli.text import console, duration, labelled, print_json, si, table
from isoflop.models.errors import printable, shortened

if TYPE_CHECKING:
    from isoflop.sim.durable import Place
    from isoflop.sim.grid.survey import Survey
    from isoflop.sim.records.grids import Asked

Grids = dict[str, "Sequence[Asked] | None"]  # by their commands
SHOWN = 10  # rows of jobs and of failures


@dataclass(frozen=True)
class StatusFlags:
    runs: Path = Path("runs")
    """The runs directory to look at."""
    watch: bool = False
    """Look again every few seconds, until the grid is complete or Ctrl-C."""
    every: float = 2.0
    """Seconds between two looks of --watch."""
    json: bool = False
    """Print JSON instead of text."""


def status(args: Sequence[str]) -> int:
    """Tell how a grid stands: done, running, failed, stale leases, throughput, time left.

    Without NAME, every grid that was begun in the runs directory; with NAME and its options, that.
    """
    if args and args[0] in HELP:
        parse("status [NAME]", status.__doc__, ["--help"], StatusFlags)
    one: Grids = {}
    if not args or args[0].startswith("-"):
        (flags,) = parse("status", status.__doc__, args, StatusFlags)
    else:
        experiment, rest = named("status", status.__doc__, args, StatusFlags)
        if not experiment.trains:
            raise Usage(f"{experiment.name} measures at once and has no runs; see isoflop list")
        module = experiment.load()
        maker = deferred(once(module, "cells"))
        words = f"status {experiment.word}"
        flags, cells = parse(words, status.__doc__, rest, StatusFlags, maker)
        from isoflop.sim.grid.estimate import asked_of

        one = {experiment.word: asked_of(cells())}
    runs = runs_directory(flags.runs)
    if not flags.every > 0:
        raise Usage(f"--every {flags.every:g} must be above 0 seconds")
    from isoflop.sim.records.index import opened

    def note(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    with opened(runs, note) as index:
        from isoflop.sim.grid.survey import survey

        def look() -> dict[str, Survey]:
            index.refresh()
            return {name: survey(index, asked) for name, asked in (one or _begun(runs)).items()}

        if flags.json:
            print_json({name: _plain(one) for name, one in look().items()})
        elif not flags.watch:
            print(_told(look()))
        else:
            _watch(look, flags.every)
    return 0


def _begun(runs: Place) -> Grids:
    """The grids that were begun, by the command that began them; all records where none was."""
    from isoflop.models.errors import UserError
    from isoflop.sim.records import grids

    found: Grids = {}
    for path in grids.begun(runs):
        try:
            grid = grids.load(path)
        except UserError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        found[grid.command] = grid.runs
    return found or {str(runs): None}


def _watch(look: Callable[[], dict[str, Survey]], every: float) -> None:
    """On one place of a terminal; elsewhere, one account after another."""
    from rich.live import Live
    from rich.text import Text

    screen = console()
    with Live(console=screen, auto_refresh=False, transient=screen.is_terminal) as live:
        while True:
            found = look()
            if screen.is_terminal:
                live.update(Text(_told(found)), refresh=True)
            else:
                print(_told(found), end="\n\n", flush=True)
            if all(one.complete for one in found.values()):
                break
            time.sleep(every)
    if screen.is_terminal:
        print(_told(found))


def _told(found: dict[str, Survey]) -> str:
    return "\n\n".join(_account(name, one) for name, one in found.items())


def _account(name: str, one: Survey) -> str:
    total = "" if one.asked is None else f" of {one.asked}"
    counts = [f"{one.finished}{total} runs done"]
    counts += [f"{n} {word}" for word in ("diverged", "failed") if (n := one.status.get(word))]
    live = [job for job in one.working if not job.stale]
    stale = [job for job in one.working if job.stale]
    counts += [f"{len(live)} jobs running"] * bool(live) + [f"{len(one.queued)} queued"] * bool(
        one.queued
    )
    counts += [f"{len(stale)} stale leases"] * bool(stale)
    lines = [f"{printable(name)}: {', '.join(counts)}"]
    if one.recent:
        speed = f", {si(one.flops_per_second)}FLOP/s" if one.flops_per_second else ""
        ahead = f"; about {duration(one.seconds_left)} left" if one.seconds_left and live else ""
        lines.append(f"{one.recent} runs in the last hour{speed}{ahead}")
    if live:
        lines += ["", table([_job(job) for job in live[:SHOWN]], left=("running", "by"))]
        lines += _more(len(live))
    if stale:
        rows = [
            {"stale lease": job.trunk, "of": job.owner, "silent": duration(job.silent_seconds)}
            for job in stale[:SHOWN]
        ]
        lines += ["", table(rows, left=("stale lease", "of")), *_more(len(stale))]
    if one.queued:
        states = sorted(one.queued.items())
        queued = [{"queued": trunk, "as": where} for trunk, where in states[:SHOWN]]
        lines += ["", table(queued, left=("queued", "as")), *_more(len(states))]
    if one.slowest:
        slow = [{"slowest": _title(row), "took": duration(row["seconds"])} for row in one.slowest]
        lines += ["", table(slow, left=("slowest",))]
    if one.failed:
        failures = [
            {"failed": _title(row), "why": shortened(printable(row["reason"]), 160)}
            for row in one.failed[:SHOWN]
        ]
        lines += ["", table(failures, left=("failed", "why")), *_more(len(one.failed))]
    if one.left_out:
        lines += ["", f"{len(one.left_out)} records are left out; the first: {one.left_out[0]}"]
    return "\n".join(lines)


def _more(count: int) -> list[str]:
    return [f"… and {count - SHOWN} more"] if count > SHOWN else []


def _job(job: Any) -> dict[str, str]:
    known = job.steps > 0
    return {
        "running": job.trunk,
        "by": job.owner,
        "step": f"{job.step}/{job.steps}" if known else "",
        "loss": "" if job.loss is None else f"{job.loss:.3f}",
        "tokens/s": si(job.tokens_per_second) if job.tokens_per_second else "",
    }


def _title(row: dict[str, Any]) -> str:
    return labelled(row["labels"]) or row["key"]


def _plain(one: Survey) -> dict[str, Any]:
    from isoflop.sim.records.readers import finite

    return finite(asdict(one) | {"finished": one.finished, "complete": one.complete})
