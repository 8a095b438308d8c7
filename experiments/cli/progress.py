"""What is happening, for whoever waits: a live display in a terminal, else a line per run."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from isoflop.experiments.cli.text import console, duration, labelled, si
from isoflop.models.errors import printable
from isoflop.sim.grid.executors.base import Queued
from isoflop.sim.grid.grid import Ended, Leased, Recorded, Retried, Stalled, Started
from isoflop.sim.records.store import Record
from isoflop.sim.train.loop import Note

if TYPE_CHECKING:
    from isoflop.sim.grid.estimate import Plan
    from isoflop.sim.spec import Cell

SHOWN_FAILURES = 3


@dataclass
class _Running:
    began: float
    event: Any = None


@dataclass
class Progress:
    """A context manager whose `on_event` takes the events of `sim.grid.grid.execute`.

    The time left is the planned seconds left over the planned seconds done per second of clock.
    """

    cells: Iterable[Cell]
    plan: Plan
    stream: Any  # a text file; a terminal has a live display
    quiet: bool = False
    running: dict[str, _Running] = field(default_factory=dict)
    recorded: dict[str, Record] = field(default_factory=dict)
    leased: dict[str, str] = field(default_factory=dict)  # trunk → who else trains it
    queued: set[str] = field(default_factory=set)  # trunks that a scheduler has

    def __post_init__(self) -> None:
        self.labels = {
            cell.run.key: labelled(
                {**cell.labels, "steps": cell.run.budget.steps, "seed": cell.run.seed}
            )
            for cell in self.cells
        }
        self.titles = _titles(self.cells)
        self.seconds = {row.key: row.seconds for row in self.plan.rows}
        self.finished = sum(row.finished for row in self.plan.rows)
        self.began = time.monotonic()
        screen = console(self.stream)
        live = screen.is_terminal and not self.quiet
        self.live = (
            Live(console=screen, get_renderable=self.render, refresh_per_second=4, transient=True)
            if live
            else None
        )

    def __enter__(self) -> Progress:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()

    def on_event(self, event: Any) -> None:
        match event:
            case Queued(job, _):
                self.queued.add(job.trunk)
            case Started(trunk):
                self.queued.discard(trunk)
                self.running[trunk] = _Running(time.monotonic())
                self.leased.pop(trunk, None)
            case Recorded(_, record):
                self.recorded[record.key] = record
                self._line(self._result(record))
            case Ended(trunk):
                self.running.pop(trunk, None)
                self.leased.pop(trunk, None)
            case Leased(trunk, owner):
                self.running.pop(trunk, None)
                self.leased[trunk] = owner
                self._line(f"{self.titles[trunk]}: leased by {owner}; left for later")
            case Retried(trunk, reason):
                self.running.pop(trunk, None)
                self._warn(f"{self.titles[trunk]}: {reason}; tried again later")
            case Stalled(trunk, seconds):
                self._warn(f"{self.titles[trunk]}: no progress for {duration(seconds)}")
            case Note(trunk, text):
                self._warn(f"{self.titles[trunk]}: {text}")
            case _:
                if event.job in self.running:
                    self.running[event.job].event = event

    def _line(self, text: str) -> None:
        if self.quiet or self.live:
            return
        print(text, file=self.stream, flush=True)

    def _warn(self, text: str) -> None:
        """A warning is no progress: it is said when quiet too, and above a live display."""
        if self.live:
            self.live.console.print(f"warning: {text}", markup=False, highlight=False)
        else:
            print(f"warning: {text}", file=self.stream, flush=True)

    def _result(self, record: Record) -> str:
        count = f"[{self.finished + len(self.recorded)}/{len(self.plan.rows)}]"
        loss = "" if record.loss is None else f" loss {record.loss:.4f}"
        reason = f": {printable(record.reason)}" if record.reason else ""
        took = f" in {duration(record.seconds)}" if record.seconds else ""
        return f"{count} {self.labels[record.key]}: {record.status}{loss}{took}{reason}"

    def render(self) -> Group:
        failures = [record for record in self.recorded.values() if record.status != "ok"]
        done, total = self.finished + len(self.recorded), len(self.plan.rows)
        head = Table.grid(padding=(0, 2))
        counts = f"{done}/{total} runs"
        if failures:
            counts += f", {len(failures)} diverged or failed"
        left = self._left()
        head.add_row(
            ProgressBar(total=max(total, 1), completed=done, width=32),
            counts,
            f"{duration(time.monotonic() - self.began)} so far",
            f"about {duration(left)} left" if left is not None else "",
        )
        body = Table(box=None, padding=(0, 2), pad_edge=False)
        for name in ("running", "step", "loss", "tokens/s"):
            body.add_column(name, justify="left" if name == "running" else "right", style="cyan")
        for trunk, state in self.running.items():
            body.add_row(self.titles[trunk], *_numbers(state))
        if self.queued:
            body.add_row(f"{len(self.queued)} jobs", "queued", "", "")
        for trunk, owner in self.leased.items():
            body.add_row(self.titles[trunk], f"leased by {owner}", "", "")
        told = [Text(self._result(record), "red") for record in failures[-SHOWN_FAILURES:]]
        return Group(head, body, *told)

    def _left(self) -> float | None:
        """Seconds left; None before there is anything to go by."""
        done = sum(self.seconds[key] for key in self.recorded)
        total = sum(self.seconds.values())
        elapsed = time.monotonic() - self.began
        return elapsed * max(total - done, 0) / done if done else None


def _numbers(state: _Running) -> tuple[str, str, str]:
    event = state.event
    if event is None or event.compiling:
        return "compiling", "", ""
    return f"{event.step}/{event.steps}", f"{event.loss:.3f}", si(event.tokens_per_second)


def _titles(cells: Iterable[Cell]) -> dict[str, str]:
    """What a job's cells have in common."""
    common: dict[str, dict[str, Any]] = {}
    for cell in cells:
        known = common.setdefault(cell.run.trunk, dict(cell.labels))
        for name in [name for name, value in known.items() if cell.labels.get(name) != value]:
            del known[name]
    return {trunk: labelled(labels) or trunk for trunk, labels in common.items()}
