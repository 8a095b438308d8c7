"""What lies in a runs directory and no run needs any more, each with the reason.

    checkpoints of a finished job    every run of the job has its final record
    checkpoints of no job            jobs/TRUNK has no job.json that says what they are of
    a stale lease                    not renewed for EXPIRY_SECONDS while it was watched
    a file that a killed writer left .NAME.tmp, untouched for an hour
    weights without a record         runs/KEY without result.json, untouched for an hour

A record is never among them, nor what a live process works on: its lease says so.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.grid import leases
from isoflop.sim.grid.grid import read_arrangement
from isoflop.sim.records.store import Store

OLD_SECONDS = 3600.0  # nobody writes one file for so long
TEMPORARY = re.compile(r"\..*\.tmp$|.*\.orbax-checkpoint-tmp.*")  # sim/durable.py, Orbax
KEY = re.compile(r"[0-9a-f]{16}$")


@dataclass(frozen=True)
class Garbage:
    path: Path
    why: str
    size: int  # bytes
    lease: Path | None = None  # of its job: it is removed while that is as it was, and no other's
    seen: leases.Lease | None = None

    @property
    def plain(self) -> dict[str, Any]:
        return {"path": str(self.path), "why": self.why, "bytes": self.size}


def find(root: Path, note: Callable[[str], None]) -> list[Garbage]:
    """Everything of the kinds above. It takes EXPIRY_SECONDS where there are leases, which are
    watched for so long; `note` is told of records that cannot be read.
    """
    held = [path for path in (root / "leases").glob("*") if not path.name.startswith(".")]
    seen = {path: leases.read(path) for path in held}
    if seen:
        note(f"{len(seen)} leases are watched for {leases.EXPIRY_SECONDS:g} s")
        time.sleep(leases.EXPIRY_SECONDS)
    stale = {path for path, lease in seen.items() if leases.read(path) == lease}
    found = [Garbage(path, "a stale lease", _size(path), path, seen[path]) for path in stale]
    found += _jobs(root, {path.name for path in seen.keys() - stale}, note)
    found += _runs(root)
    found += [
        _item(path, "a file that a killed writer left")
        for path in _temporary(root)
        if _age(path) > OLD_SECONDS
    ]
    return sorted(found, key=lambda item: str(item.path))


def remove(item: Garbage) -> bool:
    """Remove it, unless its job was begun again in the meantime; whether it is gone."""
    if item.lease is not None and leases.read(item.lease) not in (item.seen, None):
        return False
    if item.path.is_dir():
        shutil.rmtree(item.path, ignore_errors=True)
    else:
        item.path.unlink(missing_ok=True)
    return not item.path.exists()


def _jobs(root: Path, live: set[str], note: Callable[[str], None]) -> Iterator[Garbage]:
    store = Store(root)
    for folder in (root / "jobs").glob("*"):
        work = folder / "work"
        if folder.name in live or not work.is_dir():
            continue
        lease = root / "leases" / folder.name
        if not (folder / "job.json").exists():
            yield _item(work, "checkpoints of no job", lease)
            continue
        try:
            runs = read_arrangement(folder / "job.json")
            done = all(store.done(run.key) for run in runs)
        except UserError as error:
            note(str(error))
            continue
        if done:
            yield _item(work, "checkpoints of a finished job", lease)


def _runs(root: Path) -> Iterator[Garbage]:
    for folder in root.iterdir():
        if not (KEY.match(folder.name) and folder.is_dir()) or (folder / "result.json").exists():
            continue
        weights = folder / "model.safetensors"
        if weights.exists() and _age(weights) > OLD_SECONDS:
            yield _item(weights, "weights without a record")


def _temporary(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        for name in (*files, *folders):
            if TEMPORARY.match(name):
                yield Path(folder, name)
        folders[:] = [name for name in folders if not TEMPORARY.match(name)]


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _item(path: Path, why: str, lease: Path | None = None) -> Garbage:
    return Garbage(path, why, _size(path), lease, leases.read(lease) if lease else None)


def _size(path: Path) -> int:
    files = [path, *path.rglob("*")] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
