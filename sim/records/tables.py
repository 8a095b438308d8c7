"""Columns of anybody's runs into numbers and labels, and every row left out with its reason.

A row that cannot be used is dropped and said, never repaired. Labels are the same where only the
space around them differs, and are printable whatever the file holds. Files are read by
`sim.records.readers`.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError, listed, printable, quoted

Columns = Mapping[str, Sequence[Any] | NDArray[Any]]

# Statuses of a run whose loss is a result, whatever their case; no other has one. An empty cell
# says nothing against its run.
FINISHED = ("ok", "finished", "done", "completed", "complete", "success", "succeeded")
FAILED = ("diverged", "failed")  # of run records: reasons by themselves
KNOWN = {  # what a column is called that nobody named: in anybody's table, in isoflop's records
    "n": ("N", "params.active"),
    "d": ("D", "tokens"),
    "arch": ("arch", "family"),
    "flops": ("flops", "flops.executed"),
}
# No parameters, tokens, FLOPs, seconds, dollars or losses lie outside; within, products of a few
# of them are finite.
LEAST, MOST = 1e-40, 1e40
LABEL_LENGTH = 200
MISFIT = " cells, headers"  # of a CSV row that its header does not fit; no header begins so


@dataclass(frozen=True)
class Dropped:
    """A row that was left out: its number, counted from 1 without the header, and why."""

    row: int
    rule: str
    value: str = ""  # what broke the rule, shortened

    @property
    def reason(self) -> str:
        return f"{self.rule}: {self.value}" if self.value else self.rule

    def json(self) -> dict[str, Any]:
        return {"row": self.row, "reason": self.reason}


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


def resolve_column(columns: Columns, what: str, told: str | None) -> str:
    """The name of a column: as told, else the first of those known that the table has."""
    names = KNOWN[what] if told is None else (told,)
    return next((name for name in names if name in columns), names[0])


def rises(metric: str) -> bool:
    """Whether more of it is better: laws and figures are of what falls with scale, for which the
    complement stands: of `accuracy`, or `kjv.accuracy`, the error rate.
    """
    return metric.rpartition(".")[2] == "accuracy"


def falling(columns: Columns, name: str) -> tuple[Columns, str]:
    """The columns with what falls with scale in place of column `name`, and what that is called."""
    if not rises(name) or name not in columns:
        return columns, name
    shown = f"1 - {name}"
    rest = {key: column for key, column in columns.items() if key != name}
    return rest | {shown: [_complement(cell) for cell in columns[name]]}, shown


def _complement(cell: Any) -> Any:
    """One minus a number; what is none stays, to be dropped with its reason."""
    try:
        return 1.0 - float(cell)
    except (TypeError, ValueError, OverflowError):
        return cell


def require(columns: Columns, names: Sequence[str]) -> None:
    """Refuse a table that lacks a column, with the columns that are there."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise UserError(
            f"column {listed(missing)} must be in the table, which has "
            f"{listed([name for name in columns if name != MISFIT])}; name the right one"
        )


def clean(
    columns: Columns, numeric: Mapping[str, str], labels: Mapping[str, str] | None = None
) -> Table:
    """Check every row and keep the usable ones.

    `numeric` and `labels` map the names used here to the file's (`{"loss": "val_loss"}`). A
    number must be there, be finite and be above zero: parameters, tokens, FLOPs, seconds and
    losses all are. Two rows equal in every column of the table are one run, counted once. Rows
    whose column `status`, in any case, has another word than those of a finished run are left out
    by that rule.
    """
    labels = labels or {}
    require(columns, [*numeric.values(), *labels.values()])
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"columns must be equally long, and are {quoted(lengths, 200)}")
    kept: dict[str, list[Any]] = {name: [] for name in (*numeric, *labels)}
    dropped: list[Dropped] = []
    seen: dict[tuple[str, ...], int] = {}
    for i in range(next(iter(lengths.values()), 0)):
        cells: dict[str, Any] = {name: column[i] for name, column in columns.items()}
        try:
            _check_row(cells)
            row: dict[str, Any] = {
                k: number(cells[source], source) for k, source in numeric.items()
            }
            row |= {name: label(cells[source], source) for name, source in labels.items()}
            key = tuple(map(str, cells.values()))
            if key in seen:
                raise BadCell("the run", "is given before", f"row {seen[key]}")
        except BadCell as bad:
            dropped.append(Dropped(i + 1, *bad.why))
            continue
        seen[key] = i + 1
        for name, value in row.items():
            kept[name].append(value)
    out: dict[str, NDArray[Any]] = {name: np.array(kept[name], dtype=float) for name in numeric}
    out |= {name: np.array(kept[name], dtype=object) for name in labels}
    return Table(out, tuple(dropped))


class BadCell(UserError):
    """Why a row is left out: the rule, with what broke it at its head, and the value."""

    def __init__(self, what: str, rule: str, value: str = "") -> None:
        self.why = f"{quoted(what)[1:-1]} {rule}", value
        super().__init__(": ".join(filter(None, self.why)))


def _check_row(cells: Mapping[str, Any]) -> None:
    for name, cell in cells.items():
        if name.lower() == "status":
            _check_status(cell, name)
    if cells.get(MISFIT) is not None:
        have, need = cells[MISFIT]
        raise BadCell(f"{have} cells", f"under {need} headers")


def _check_status(cell: Any, name: str) -> None:
    if cell is None or cell != cell:
        return
    status = str(cell).strip().lower()
    if status in FAILED:
        raise BadCell("the run", status)
    if status and status not in FINISHED:
        told = f"is none of a finished run ({', '.join(FINISHED)})"
        raise BadCell(name, told, quoted(cell))


def number(cell: Any, name: str) -> float:
    """A cell as a number that can be a size, a cost or a loss. BadCell if it is none."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise BadCell(name, "is empty")
    if isinstance(cell, bool | np.bool_) or not isinstance(cell, str | Real | Decimal):
        raise BadCell(name, "is not a number", quoted(cell))
    try:
        value = float(cell)
    except OverflowError:  # an integer beyond any float
        value = math.inf
    except ValueError:
        raise BadCell(name, "is not a number", quoted(cell)) from None
    if not math.isfinite(value):
        raise BadCell(name, "is not finite", str(value))
    if value <= 0:
        raise BadCell(name, "is not above zero", f"{value:g}")
    if not LEAST <= value <= MOST:
        raise BadCell(name, f"is not within {LEAST:g} to {MOST:g}", f"{value:g}")
    return value


def label(cell: Any, name: str) -> str:
    """A cell as a printable name, without the space around it. BadCell if it is none."""
    if cell is None or cell != cell or str(cell).strip() == "":
        raise BadCell(name, "is empty")
    if not isinstance(cell, str | Real | np.bool_):
        raise BadCell(name, "is not a name", quoted(cell))
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)  # 1 and 1.0 are one number of JSON
    text = printable(unicodedata.normalize("NFC", str(cell)).strip())
    if len(text) > LABEL_LENGTH:
        raise BadCell(name, f"is longer than {LABEL_LENGTH} characters", quoted(text))
    return text


def groups(
    columns: Columns, name: str
) -> tuple[dict[str, list[int]], tuple[Dropped, ...]]:  # fmt: skip
    """Row indices by label, in the file's order, and the rows without one."""
    require(columns, [name])
    found: dict[str, list[int]] = {}
    dropped = []
    for i, cell in enumerate(columns[name]):
        try:
            found.setdefault(label(cell, name), []).append(i)
        except BadCell as bad:
            dropped.append(Dropped(i + 1, *bad.why))
    return found, tuple(dropped)


def describe(dropped: Sequence[Dropped], limit: int = 3) -> str:
    """The rules in one line, each with its count and the first few rows that broke it."""
    by_rule: dict[str, list[Dropped]] = {}
    for item in dropped:
        by_rule.setdefault(item.rule, []).append(item)
    parts = []
    for rule, items in by_rule.items():
        shown = [f"row {x.row}" + (f": {x.value}" if x.value else "") for x in items[:limit]]
        parts.append(f"{len(items)} × {rule} ({', '.join(shown)}{', …' * (len(items) > limit)})")
    return "; ".join(parts) or "none"
