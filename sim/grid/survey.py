"""How a grid stands: from its records, its leases and what its jobs last said of themselves.

A lease is stale that was not renewed for EXPIRY_SECONDS by the clock of its own file system; on an
object store, by its owner's clock and this machine's. The time left is the FLOPs of the runs that
are missing over those that were recorded per second of the last hour. Nothing is written but the
index (sim/records/index.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.sim.durable import Place, contents_of, named, remote
from isoflop.sim.grid import leases
from isoflop.sim.grid.grid import QUEUED
from isoflop.sim.records.grids import Asked
from isoflop.sim.records.index import Index

WINDOW_SECONDS = 3600.0  # of the past that throughput is measured over
TAIL_BYTES = 4096  # of a job's metrics: its last lines


@dataclass(frozen=True)
class Working:
    """A job that is leased, and the last that it said."""

    trunk: str
    owner: str
    silent_seconds: float  # since the lease was renewed
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float = 0.0

    @property
    def stale(self) -> bool:
        return self.silent_seconds > leases.EXPIRY_SECONDS


@dataclass(frozen=True)
class Survey:
    """`asked` is None where no grid was: then the records alone are counted."""

    asked: int | None
    status: dict[str, int]  # of records
    working: tuple[Working, ...]
    queued: dict[str, str]  # trunk → its scheduler's name of it and, of Slurm's, its state
    recent: int  # runs recorded within WINDOW_SECONDS
    flops_per_second: float | None  # of those
    seconds_left: float | None
    slowest: tuple[dict[str, Any], ...]  # as Index.listing has them
    failed: tuple[dict[str, Any], ...]
    left_out: tuple[str, ...]

    @property
    def finished(self) -> int:
        return self.status.get("ok", 0) + self.status.get("diverged", 0)

    @property
    def complete(self) -> bool:
        return self.asked is not None and self.finished >= self.asked


def survey(index: Index, asked: Sequence[Asked] | None, most: int = 5) -> Survey:
    """Of the runs that are `asked`, or of all records that there are. At most `most` runs are named
    as the slowest.
    """
    keys = None if asked is None else {run.key for run in asked}
    rows = [row for row in index.listing() if keys is None or row["key"] in keys]
    labels = {run.key: run.labels for run in asked or ()}
    for row in rows:
        row["labels"] = labels.get(row["key"], row["labels"])
    trunks = None if asked is None else {run.trunk for run in asked}
    working = tuple(_working(index.root, trunks))
    done = {row["key"] for row in rows if row["status"] != "failed"}
    waiting = {run.trunk for run in asked or () if run.key not in done}
    live = {one.trunk for one in working if not one.stale}
    recent, rate = _throughput(rows, {run.key: run.flops for run in asked or ()})
    left = sum(run.flops for run in asked or () if run.key not in done)
    slowest = sorted(rows, key=lambda row: -(row["seconds"] or 0.0))
    return Survey(
        asked=None if keys is None else len(keys),
        status=dict(Counter(row["status"] for row in rows)),
        working=working,
        queued=_queued(index.root, waiting - live),
        recent=recent,
        flops_per_second=rate,
        seconds_left=left / rate if rate and left else None,
        slowest=tuple(row for row in slowest[:most] if row["seconds"]),
        failed=tuple(row for row in rows if row["status"] == "failed"),
        left_out=tuple(index.left_out()),
    )


def _throughput(rows: Sequence[dict], flops: dict[str, int]) -> tuple[int, float | None]:
    """Runs recorded in the last WINDOW_SECONDS, and their FLOPs per second since the first of them
    began, or since then.
    """
    now = time.time()
    fresh = [
        (row["recorded_ns"] / 1e9, row["seconds"] or 0.0, flops.get(row["key"], 0))
        for row in rows
        if row["status"] != "failed" and now - row["recorded_ns"] / 1e9 < WINDOW_SECONDS
    ]
    if not fresh:
        return 0, None
    began = max(now - WINDOW_SECONDS, min(at - took for at, took, _ in fresh))
    return len(fresh), sum(cost for *_, cost in fresh) / max(now - began, 1e-3)


def _working(root: Place, trunks: Collection[str] | None) -> Iterator[Working]:
    now = _file_clock_ns(root)
    for path in sorted((root / "leases").glob("*")):
        if path.name.startswith(".") or (trunks is not None and path.name not in trunks):
            continue
        if lease := leases.read(path):
            silent = max(0.0, (now - lease.renewed_ns) / 1e9)
            yield Working(path.name, lease.owner, silent, **_last_words(root, path.name))


def _file_clock_ns(root: Place) -> int:
    """The time by the runs directory's file system, whose leases are compared with it."""
    if remote(root):
        return time.time_ns()
    probe = root / "leases" / f".clock-{os.getpid()}.tmp"
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    except OSError:  # one that cannot be written
        return time.time_ns()
    finally:
        if probe.exists():
            probe.unlink()


def _last_words(root: Place, trunk: str) -> dict[str, Any]:
    """Of the job's last event that has a step."""
    path = root / "jobs" / trunk / "metrics.jsonl"
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            event = json.loads(line)
            names = ("step", "steps", "loss", "tokens_per_second")
            return {name: event[name] for name in names if name in event or name == "step"}
        except (ValueError, KeyError, TypeError):  # cut short, or of another kind
            continue
    return {}


def _queued(root: Place, trunks: Collection[str]) -> dict[str, str]:
    """What schedulers have; a job of Slurm's that its queue no longer knows is left out."""
    jobs = root / "jobs"
    there = [trunk for trunk, _ in named(jobs, QUEUED) if trunk in trunks]
    texts = contents_of([jobs / trunk / QUEUED for trunk in there])
    told = {
        trunk: text.decode("utf-8", "replace").strip()
        for trunk, text in zip(there, texts, strict=True)
        if text is not None
    }
    slurm = {name: trunk for trunk, where in told.items() if (name := _slurm_name(where))}
    if not slurm:
        return told
    if shutil.which("squeue") is None:
        return told
    from isoflop.sim.grid.executors.slurm import ALIVE, queue

    try:
        states = queue(slurm)
    except (OSError, subprocess.SubprocessError, ValueError):
        return told
    for name, trunk in slurm.items():
        if states.get(name) in ALIVE:
            told[trunk] = f"{told[trunk]} {states[name]}"
        else:
            del told[trunk]
    return told


def _slurm_name(where: str) -> str:
    words = where.split()
    return words[-1] if words[:2] == ["Slurm", "job"] else ""
