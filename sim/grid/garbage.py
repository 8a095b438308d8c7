"""What lies in a runs directory and no run needs any more, each with the reason.

    checkpoints of a finished job    every run of the job has its final record
    checkpoints of no job            jobs/TRUNK has no job.json that says what they are of
    a stale lease                    not renewed for EXPIRY_SECONDS while it was watched
    a file that a killed writer left .NAME.tmp, untouched for an hour
    weights without a record         runs/KEY without result.json, untouched for an hour

A record is never among them, nor what a live process works on: its lease says so.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.durable import Place, Stamp, files, remove_folder
from isoflop.sim.grid import leases
from isoflop.sim.grid.grid import read_arrangement
from isoflop.sim.records.store import Store

OLD_SECONDS = 3600.0  # nobody writes one file for so long
TEMPORARY = re.compile(r"\..*\.tmp$|.*\.orbax-checkpoint-tmp.*")  # sim/durable.py, Orbax
KEY = re.compile(r"[0-9a-f]{16}$")
LEFT = "a file that a killed writer left"

Name = tuple[str, ...]  # the parts of a file's or a folder's, below the runs directory


@dataclass(frozen=True)
class Garbage:
    path: Place
    why: str
    size: int  # bytes
    lease: Place | None = None  # of its job: it is removed while that is as it was, and no other's
    seen: leases.Lease | None = None

    @property
    def plain(self) -> dict[str, Any]:
        return {"path": str(self.path), "why": self.why, "bytes": self.size}


def find(root: Place, note: Callable[[str], None]) -> list[Garbage]:
    """Everything of the kinds above. It takes EXPIRY_SECONDS where there are leases, which are
    watched for so long; `note` is told of records that cannot be read.
    """
    held = [path for path in (root / "leases").glob("*") if not path.name.startswith(".")]
    seen = {path.name: leases.read(path) for path in held}
    if seen:
        note(f"{len(seen)} leases are watched for {leases.EXPIRY_SECONDS:g} s")
        time.sleep(leases.EXPIRY_SECONDS)
    stale = {path.name for path in held if leases.read(path) == seen[path.name]}
    there = dict(files(root))
    old = {name for name, one in there.items() if time.time() - one.time_ns / 1e9 > OLD_SECONDS}
    whys: dict[Name, str] = {("leases", name): "a stale lease" for name in stale}
    whys |= _jobs(root, there, seen.keys() - stale, note)
    whys |= _weights(there, old)
    whys |= _temporary(there, old, whys)
    sizes = _sizes(there, whys)
    found = [Garbage(root.joinpath(*name), whys[name], sizes[name]) for name in sorted(sizes)]
    return [_leased(item, root, seen) for item in found]


def remove(item: Garbage) -> bool:
    """Remove it, unless its job was begun again in the meantime; whether it is gone."""
    if item.lease is not None and leases.read(item.lease) not in (item.seen, None):
        return False
    if item.path.is_dir():
        remove_folder(item.path)
    else:
        item.path.unlink(missing_ok=True)
    return not item.path.exists()


def _jobs(
    root: Place, there: Mapping[Name, Stamp], live: set[str], note: Callable[[str], None]
) -> Iterator[tuple[Name, str]]:
    store = Store(root)
    for work in sorted({name[:3] for name in there if name[::2][:2] == ("jobs", "work")}):
        job = work[:2]
        if job[1] in live:
            continue
        if (*job, "job.json") not in there:
            yield work, "checkpoints of no job"
            continue
        try:
            runs = read_arrangement(root.joinpath(*job, "job.json"))
            done = all(store.done(run.key) for run in runs)
        except UserError as error:
            note(str(error))
            continue
        if done:
            yield work, "checkpoints of a finished job"


def _weights(there: Mapping[Name, Stamp], old: set[Name]) -> Iterator[tuple[Name, str]]:
    for name in old:
        key, *rest = name
        if rest == ["model.safetensors"] and KEY.match(key) and (key, "result.json") not in there:
            yield name, "weights without a record"


def _temporary(
    there: Mapping[Name, Stamp], old: set[Name], named: Mapping[Name, str]
) -> Iterator[tuple[Name, str]]:
    """Files and folders of which nothing is young, and that go with nothing that is named."""
    found = {top for name in old if (top := _top(name)) and not {*_above(top)} & named.keys()}
    for top in found - {_top(name) for name in there.keys() - old}:
        yield top, LEFT


def _top(name: Name) -> Name:
    """What a writer would have renamed, of which this is a part."""
    return next((up for up in _above(name) if TEMPORARY.match(up[-1])), ())


def _above(name: Name) -> Iterator[Name]:
    """Its folders from the first on, and itself."""
    return (name[:i] for i in range(1, len(name) + 1))


def _sizes(there: Mapping[Name, Stamp], whys: Mapping[Name, str]) -> dict[Name, int]:
    sizes = dict.fromkeys(whys, 0)
    for name, one in there.items():
        for up in _above(name):
            if up in sizes:
                sizes[up] += one.size
    return sizes


def _leased(item: Garbage, root: Place, seen: Mapping[str, leases.Lease | None]) -> Garbage:
    """With its job's lease as that was seen first, if it is a job's."""
    if item.why == LEFT:
        return item
    folder, job, *_ = item.path.relative_to(root).parts
    if folder not in ("leases", "jobs"):
        return item
    return replace(item, lease=root / "leases" / job, seen=seen.get(job))
