"""Files of anybody's runs into columns: CSV, JSON, JSON lines and Parquet become the same thing.

A table is a dict of equally long columns, cells as they stand. Nested JSON objects flatten with
dots (`flops.executed`); JSON lines of isoflop's own records become the columns of their CSV, and
lists of runs as CS336 has them (cs336.py) get the columns that a fit asks for. A file that cannot
be read, or that says two things under one name, is a `UserError`; what its cells say is for
`sim.records.tables` to judge.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError, quoted
from isoflop.sim.jsonlines import json_object, json_value, once, too_deep
from isoflop.sim.records import cs336
from isoflop.sim.records.tables import MISFIT

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how a cell begins that a spreadsheet would compute


def read(path: Path) -> dict[str, list[Any]]:
    """The columns of a .csv, .json, .jsonl or .parquet file, cells as they stand."""
    path = Path(path)
    readers = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path.name} has the suffix {path.suffix or '(none)'!r}, and runs are read from "
            f"{', '.join(readers)}; convert the file"
        )
    if not path.is_file():
        raise UserError(f"{path} must be a file of runs, and there is none; check the path")
    try:
        rows = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} must be text in UTF-8: {error}; convert the file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise UserError(f"{path.name} must hold at least one run, and holds no cells; check it")
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [cells for cells in csv.reader(file, strict=True) if cells]
    except csv.Error as error:
        raise UserError(f"{path.name} must be CSV: {error}; write it again") from None
    if len(lines) < 2:
        raise UserError(f"{path.name} must hold a header and at least one run; check it")
    header = [uncomputed(x).strip() or f"(column {i})" for i, x in enumerate(lines[0], 1)]
    names = list(once(((name, None) for name in header), f"{path.name}: the header"))
    return [_fitted(names, [uncomputed(cell) for cell in cells]) for cells in lines[1:]]


def _fitted(names: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """A row by its header. One that does not fit says so: which cell is whose is not known."""
    row: dict[str, Any] = dict(zip(names, cells, strict=False))
    return row if len(cells) == len(names) else row | {MISFIT: (len(cells), len(names))}


def computed(cell: Any) -> Any:
    """A CSV cell that no spreadsheet takes for a formula: text that begins like one gets a quote
    before it (OWASP, "CSV injection"), and so does text that begins with quotes before such.
    """
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def uncomputed(cell: str) -> str:
    """The inverse of `computed`."""
    return cell[1:] if cell.startswith("'") and FORMULA.match(cell) else cell


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    # read_text makes every end of a line a \n; other separators may stand inside JSON's strings
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        place = f"{path.name} line {number}"
        if not line.strip():
            continue
        value = json_object(line, place)
        try:
            rows.append(once(dotted(value), place))
        except RecursionError:
            raise too_deep(place) from None
        whole.append(value)
    if whole and whole[0].keys() == {"labels", "record"}:
        from isoflop.sim.records.store import (  # with JAX behind it, which no other table needs
            flatten,
            read_rows,
        )

        return [dict(flatten(row)) for row in read_rows(path)]
    return rows


def _json(path: Path) -> list[dict[str, Any]]:
    """A list of objects, one a run."""
    value = json_value(path.read_text(encoding="utf-8-sig"), path.name, "JSON")
    if (known := cs336.cells(value)) is not None:
        return known
    if not isinstance(value, list) or not all(isinstance(run, dict) for run in value):
        raise UserError(
            f"{path.name} must be a list of objects, one a run, or one of CS336's lists; rewrite it"
        )
    return [once(dotted(run), f"{path.name} run {i}") for i, run in enumerate(value, 1)]


def dotted(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested objects, names joined by dots."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from dotted(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, inner


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
        names = list(once(((name, None) for name in table.column_names), path.name))
        rows = table.rename_columns(names).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path.name} must be a Parquet file: {quoted(error, 200)}") from None
    return [once(dotted(row), f"{path.name} row {i}") for i, row in enumerate(rows, 1)]


def finite(value: Any) -> Any:
    """The same, ready for JSON: NaN and infinities, which it has not, are null."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
