"""Reading other people's runs: a file into columns, and every row left out with its reason.

CSV, JSON lines and Parquet become the same thing, a dict of equally long columns. Nested JSON
objects flatten with dots (`flops.executed`); JSON lines of isoflop's own records become the columns
of their CSV. A row that cannot be used is dropped and said, never repaired; a file that cannot be
used at all is a `UserError`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import UserError

Columns = Mapping[str, Sequence[Any] | NDArray[Any]]

FAILED = ("diverged", "failed")  # statuses of a run record whose loss is not a result
KNOWN = {  # what a column is called that nobody named: in anybody's table, in isoflop's records
    "n": ("N", "params.active"),
    "d": ("D", "tokens"),
    "arch": ("arch", "family"),
    "flops": ("flops", "flops.executed"),
}


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: its number, counted from 1 without the header, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class Table:
    """The rows that can be used: numeric columns as float64, labels as strings."""

    columns: dict[str, NDArray[Any]]
    dropped: tuple[Dropped, ...]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def where(self, keep: NDArray[np.bool_]) -> Table:
        return Table({k: v[keep] for k, v in self.columns.items()}, self.dropped)


def read(path: Path) -> dict[str, list[Any]]:
    """The columns of a .csv, .jsonl or .parquet file, cells as they stand."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} must be a file of runs, and there is none; check the path")
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path.name} has the suffix {path.suffix or '(none)'!r}, and runs are read from "
            f"{', '.join(readers)}; convert the file"
        )
    rows = readers[path.suffix.lower()](path)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise UserError(f"{path.name} must hold at least one run, and holds no rows")
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restkey="(beyond the header)"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path.name} must be CSV text in UTF-8: {error}") from None
    return rows


def _jsonl(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path.name} line {number} must be a JSON object: {error}") from None
        if not isinstance(value, dict):
            raise UserError(f"{path.name} line {number} must be a JSON object, and is {line[:40]}")
        rows.append(value)
    if rows and rows[0].keys() == {"labels", "record"}:
        from sim.records import flatten, read_rows  # with JAX behind it, which no other table needs

        return [dict(flatten(row)) for row in read_rows(path)]
    return [dict(dotted(row)) for row in rows]


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
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path.name} must be a Parquet file: {error}") from None
    return [dict(dotted(row)) for row in rows]


def called(columns: Columns, what: str, told: str | None) -> str:
    """The name of a column: as told, else the first of those known that the table has."""
    names = KNOWN[what] if told is None else (told,)
    return next((name for name in names if name in columns), names[0])


def require(columns: Columns, names: Sequence[str]) -> None:
    """Refuse a table that lacks a column, with the columns that are there."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(
            f"column {', '.join(map(repr, missing))} must be in the table, which has "
            f"{', '.join(map(repr, columns))}; name the right one"
        )


def clean(
    columns: Columns, numeric: Mapping[str, str], labels: Mapping[str, str] | None = None
) -> Table:
    """Check every row and keep the usable ones.

    `numeric` and `labels` map the names used here to the file's (`{"loss": "val_loss"}`). A
    number must be there, be finite and be above zero: parameters, tokens, FLOPs, seconds and
    losses all are. Two rows equal in every column of the table are one run, counted once. Rows
    whose column `status` says diverged or failed are left out by that rule.
    """
    labels = labels or {}
    require(columns, [*numeric.values(), *labels.values()])
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"columns must be equally long, and are {lengths}")
    keep: list[int] = []
    numbers: dict[str, list[float]] = {name: [] for name in numeric}
    dropped: list[Dropped] = []
    seen: dict[tuple[str, ...], int] = {}
    for i in range(next(iter(lengths.values()), 0)):
        try:
            status = str(columns["status"][i]) if "status" in columns else ""
            if status in FAILED:
                raise ValueError(f"the run {status}")
            row = {name: _number(columns[source][i], source) for name, source in numeric.items()}
            for source in labels.values():
                if columns[source][i] is None or str(columns[source][i]).strip() == "":
                    raise ValueError(f"{source} is empty")
            key = tuple(str(column[i]) for column in columns.values())
            if key in seen:
                raise ValueError(f"duplicate of row {seen[key]}")
        except ValueError as error:
            dropped.append(Dropped(i + 1, str(error)))
            continue
        seen[key] = i + 1
        keep.append(i)
        for name, value in row.items():
            numbers[name].append(value)
    out: dict[str, NDArray[Any]] = {name: np.array(v, dtype=float) for name, v in numbers.items()}
    for name, source in labels.items():
        out[name] = np.array([str(columns[source][i]) for i in keep], dtype=object)
    return Table(out, tuple(dropped))


def _number(cell: Any, name: str) -> float:
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise ValueError(f"{name} is empty")
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not a number: {str(cell)[:40]!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, not finite")
    if value <= 0:
        raise ValueError(f"{name} is {value:g}, not above zero")
    return value


def describe(dropped: Sequence[Dropped], limit: int = 3) -> str:
    """The reasons in one line, the first few rows of each named."""
    by_reason: dict[str, list[int]] = {}
    for item in dropped:
        by_reason.setdefault(item.reason, []).append(item.row)
    parts = []
    for reason, rows in by_reason.items():
        shown = ", ".join(map(str, rows[:limit])) + (", …" if len(rows) > limit else "")
        parts.append(f"{len(rows)} × {reason} (row {shown})")
    return "; ".join(parts) or "none"
