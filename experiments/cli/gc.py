"""`isoflop gc`: what a runs directory no longer needs."""

from __future__ import annotations

import sys
from pathlib import Path

from isoflop.experiments.cli.listing import runs_directory
from isoflop.experiments.cli.text import print_json, si, table


def gc(runs: Path = Path("runs"), delete: bool = False, json: bool = False) -> None:
    """Name what no run needs any more: checkpoints of finished jobs, stale leases, files of writers
    that were killed, weights without a record. Records are never touched.

    Args:
        runs: the runs directory.
        delete: remove what is named; without it nothing is.
        json: print JSON instead of a table.
    """
    from isoflop.sim.grid.garbage import find, remove

    there = runs_directory(runs)
    found = find(there, lambda text: print(f"warning: {text}", file=sys.stderr))
    kept = [item for item in found if delete and not remove(item)]
    if json:
        print_json([item.plain | {"removed": delete and item not in kept} for item in found])
        return
    rows = [{"what": item.why, "bytes": f"{si(item.size)}B", "where": item.path} for item in found]
    total = f"{len(found)} things, {si(sum(item.size for item in found))}B"
    if not found:
        print(f"{there} has nothing to remove")
    else:
        print(table(rows, left=("what", "where")))
        print(f"\n{total}" + (" removed" if delete else "; --delete removes them"))
    if kept:
        print(
            f"warning: {len(kept)} of them are in use again, or may not be removed, and were kept",
            file=sys.stderr,
        )
