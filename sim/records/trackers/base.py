"""What a tracker is shown of a record, and the one callback that shows it.

A tracker is a copy for people's eyes: written once a run has its record, from that record alone,
and read by nothing here. One that fails is told and left aside; the grid goes on. Which runs it has
is written beside it (runs/trackers/NAME.txt), so that one that is asked for late gets them all.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from isoflop.models.errors import UserError
from isoflop.sim.durable import Place, remote
from isoflop.sim.records.readers import dotted
from isoflop.sim.records.store import Row

PROJECT = "isoflop"


@runtime_checkable
class Tracker(Protocol):
    """Made with a folder of its own; UserError where its package is not installed."""

    def log(self, shown: Shown) -> None:
        """Mirror one run."""


@dataclass(frozen=True)
class Shown:
    """A record as trackers have runs."""

    key: str
    name: str
    options: dict[str, str | int | float | bool]
    curve: tuple[tuple[int, float], ...]  # (step, training loss)
    steps: int
    results: dict[str, float]
    status: str  # ok, diverged, failed

    @classmethod
    def of(cls, row: Row) -> Shown:
        record = row.record
        spec = record.run.model_dump(mode="json", exclude={"model": {"blocks"}})
        options = {k: v for k, v in dotted(spec) if isinstance(v, str | int | float)}
        numbers = {
            **{name: metric.value for name, metric in record.metrics.items()},
            **{f"params.{name}": float(count) for name, count in record.params.items()},
            **{f"flops.{name}": float(count) for name, count in record.flops.items()},
            **{"tokens": float(record.tokens), "seconds": record.seconds},
        }
        labels = [f"{name} {value}" for name, value in row.labels.items()]
        return cls(
            key=record.key,
            name=", ".join(labels) or record.key,
            options=options | dict(row.labels) | {"status": record.status, "reason": record.reason},
            curve=record.curve,
            steps=record.run.budget.steps,
            results=numbers,
            status=record.status,
        )


def names() -> list[str]:
    """The trackers that are there."""
    package = importlib.import_module(__package__)
    return [item.name for item in pkgutil.iter_modules(package.__path__) if item.name != "base"]


def find(name: str) -> Callable[[Path], Tracker]:
    return importlib.import_module(f"{__package__}.{name}").Mirror


@dataclass
class Mirrors:
    """The callback: `show` of each new record. `note` is told which tracker fails, and why."""

    root: Place
    trackers: dict[str, Tracker]
    note: Callable[[str], None]
    has: dict[str, set[str]] = field(default_factory=dict)

    def catch_up(self, rows: Iterable[Row]) -> None:
        """Show the final records that a tracker has not."""
        for row in rows:
            if row.record.final:
                self.show(row, again=False)

    def show(self, row: Row, again: bool = True) -> None:
        """One record to every tracker; `again` where it may have an earlier one of the run."""
        for name, tracker in list(self.trackers.items()):
            if not again and row.record.key in self.has[name]:
                continue
            try:
                with contextlib.redirect_stdout(sys.stderr):  # which trackers greet us on
                    tracker.log(Shown.of(row))
                with _list(self.root, name).open("a", encoding="utf-8") as file:
                    file.write(f"{row.record.key}\n")
            except Exception as error:  # whatever a tracker raises is not the grid's
                del self.trackers[name]
                self.note(f"{name} is no longer written: {type(error).__name__}: {error}")


def mirrors(root: Place, asked: Sequence[str], note: Callable[[str], None]) -> Mirrors:
    """The trackers by name. UserError for one whose package is missing, and on an object store."""
    if asked and remote(root):
        raise UserError(f"trackers are written beside a runs directory of this machine, not {root}")
    made: Mapping[str, Tracker] = {name: find(name)(root / "trackers" / name) for name in asked}
    has = {name: set(_keys(_list(root, name))) for name in asked}
    return Mirrors(root, dict(made), note, has)


def _list(root: Place, name: str) -> Path:
    path = Path(root) / "trackers" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _keys(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split() if path.exists() else []
