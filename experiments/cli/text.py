"""Plain-text tables and numbers for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.models.errors import UserError, printable, shortened

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from isoflop.sim.grid.estimate import Plan, Planned


def console(stream: Any = None) -> Console:
    """Where rich prints what data say: as it stands, markup and emoji codes being names too."""
    from rich.console import Console

    return Console(file=stream, markup=False, emoji=False, highlight=False)


def grid(title: str, *columns: str) -> Table:
    """A table for `console` that wraps long names and never cuts them."""
    from rich.table import Table

    out = Table(title=title)
    for name in columns:
        out.add_column(name, overflow="fold")
    return out


def check_output(path: Path | None, option: str) -> None:
    """UserError if a file could not be written at `path`, before anything is computed for it."""
    if path is None:
        return
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        why = (
            "it is a folder"
            if path.is_dir()
            else f"{folder} is no folder"
            if not folder.is_dir()
            else ""
            if os.access(path if path.exists() else folder, os.W_OK)
            else "its permissions forbid it"
        )
    except OSError as error:
        why = error.strerror or str(error)
    if why:
        raise UserError(f"{option} {path} cannot be written: {why}; name another file")


def write_json(path: Path, value: Any) -> None:
    """A command's result in a file. UserError if that cannot be written."""
    from isoflop.sim.records.readers import finite

    text = json.dumps(finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(
            f"--json {path} cannot be written: {error.strerror or error}; name another file"
        ) from None


def table(rows: Sequence[Mapping[str, Any]], left: Iterable[str] = ()) -> str:
    """Aligned columns under their names, those in `left` to the left and the rest to the right."""
    if not rows:
        return "(empty)"
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[printable(str(row.get(name, ""))) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lefts = set(left)

    def line(values: Sequence[str]) -> str:
        padded = (
            value.ljust(width) if name in lefts else value.rjust(width)
            for name, value, width in zip(columns, values, widths, strict=True)
        )
        return "  ".join(padded).rstrip()

    return "\n".join(map(line, [columns, *cells]))


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))


def complain(text: str) -> int:
    """A mistake in one line on stderr; returns its exit code."""
    print(f"error: {shortened(printable(' '.join(text.split())), 2000)}", file=sys.stderr)
    return 2


def visible(text: str) -> str:
    """Text of anyone's for a terminal: lines stay, what would move the cursor is written out."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def si(value: int | float) -> str:
    """Three digits and a metric prefix: 12.3M."""
    for size, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}"
    return f"{value:.3g}"


def duration(seconds: int | float) -> str:
    """The two leading units: 45 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, less_size, less in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // less_size} {less}"
    return f"{whole} s"


def labelled(labels: Mapping[str, Any]) -> str:
    """`family=dense width=64` as `dense, width 64`: words stand alone, numbers keep their names."""
    return ", ".join(
        printable(value) if isinstance(value, str) else f"{printable(name)} {value:g}"
        for name, value in labels.items()
    )


def budget_table(plan: Plan, workers: int) -> str:
    """The plan of a grid: the totals, the warnings, and a line for the seeds of each cell."""
    cells: dict[str, list[Planned]] = {}
    for row in plan.rows:
        cells.setdefault(row.cell, []).append(row)
    finished = sum(row.finished for row in plan.rows)
    by = f" by {workers} workers" if workers > 1 else ""
    total = (
        f"{len(plan.rows)} runs, {finished} of them finished; {plan.jobs} jobs to train: "
        f"{si(plan.flops)} FLOPs in all, about {duration(plan.seconds)}{by}, of it "
        f"{duration(plan.compile_seconds)} to compile what no cache has ({plan.basis}), "
        f"{si(plan.disk_bytes)}B on disk, {si(plan.peak_bytes)}B at the peak"
    )
    warnings = [f"warning: {warning}" for warning in plan.warnings]
    rows = [_budget_row(seeds) for seeds in cells.values()]
    return "\n".join([total, *warnings, "", table(rows, left=("run",))])


def _budget_row(seeds: Sequence[Planned]) -> dict[str, Any]:
    """Runs that differ in their seed, in one line: sizes of one, FLOPs, time and disk of all."""
    one, left = seeds[0], [row for row in seeds if not row.finished]
    some = f" ({len(seeds) - len(left)} finished)" if len(left) < len(seeds) else ""
    return {
        "run": labelled(one.labels),
        "params": si(one.params),
        "active": si(one.active_params),
        "non-emb.": si(one.non_embedding_params),
        "steps": one.steps,
        "tokens": si(one.tokens),
        "epochs": "" if one.epochs is None else f"{one.epochs:.2g}",
        "seeds": len(seeds),
        "FLOPs": si(sum(row.flops for row in seeds)),
        "time": duration(sum(row.seconds for row in left)) + some if left else "finished",
        "disk": f"{si(sum(row.disk_bytes for row in left))}B" if left else "",
    }


def tell(text: str) -> None:
    """Show what is happening on one line of the terminal; nothing where there is none."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
