"""Tables of runs into files: CSV, JSON lines and Parquet, each replaced as a whole."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.durable import unwritable, write
from isoflop.sim.records.readers import computed, finite
from isoflop.sim.records.store import Row, flatten

Rows = Sequence[Mapping[str, Any]]


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """A flat table for spreadsheets: labels, then numbers; the spec and the curve stay in JSON."""
    write_flat(path, [flatten(row) for row in rows])


def write_flat(path: Path, rows: Rows) -> None:
    """Rows of columns, as the file's suffix says: .csv, .jsonl or .parquet. UserError for any other
    and for a file that cannot be written.
    """
    if path.suffix not in WRITERS:
        raise UserError(f"{path} must end in one of {', '.join(WRITERS)}; rename it")
    content = WRITERS[path.suffix](rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
    except OSError as error:
        raise unwritable(path, error) from error


def _names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _csv(rows: Rows) -> bytes:
    """Text that a spreadsheet would compute is written as `sim.records.readers.computed` says."""
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, [computed(name) for name in _names(rows)])
    table.writeheader()
    table.writerows(
        {computed(name): computed(value) for name, value in row.items()} for row in rows
    )
    return text.getvalue().encode()


def _jsonl(rows: Rows) -> bytes:
    lines = (json.dumps(finite(dict(row)), allow_nan=False) for row in rows)
    return "".join(f"{line}\n" for line in lines).encode()


def _parquet(rows: Rows) -> bytes:
    import pyarrow
    import pyarrow.parquet

    columns = {name: _array([row.get(name) for row in rows]) for name in _names(rows)}
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _array(cells: Sequence[Any]) -> Any:
    """A column of one type: where cells are of several, or integers too long, floats; else text."""
    import pyarrow

    kinds: list[Callable[[Any], Any]] = [lambda cell: cell, float, str]
    for kind in kinds:
        try:
            return pyarrow.array([None if cell is None else kind(cell) for cell in cells])
        except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
            continue
    raise AssertionError("text is always a column")


WRITERS: dict[str, Callable[[Rows], bytes]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
