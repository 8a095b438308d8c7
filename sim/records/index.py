"""An index of a runs directory: what its records say, in a SQLite file that answers at once.

The records are the truth, and this a copy that can be made again at any time: from each record that
is new or whose file has another time or size than when it was read. It lies in the user's cache, on
this machine's own disk and under this machine's name, since SQLite's write-ahead log is for the
processes of one machine; a directory that others share, or that cannot be written, or an object
store's, has one as well, named after its path or its URL.
An index of another version, or one that is damaged, is made afresh, and that is said.

    runs      a record's columns, as `isoflop records` writes them; those that are asked for most
              are columns here, too; its file's time and size say whether it was read as it is now
    labels    what the grids of sim/records/grids.py call their runs
"""

from __future__ import annotations

import contextlib
import functools
import json
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic_core

from isoflop.models.errors import UserError
from isoflop.sim.data import cache
from isoflop.sim.durable import Place, Stamp, contents_of, named, remote
from isoflop.sim.records import grids
from isoflop.sim.records.store import Store, columns, upgraded
from isoflop.sim.records.where import Sql, condition, path
from isoflop.sim.spec import Run

VERSION = 2  # of the tables below; raised with them
RECORD = "result.json"  # of a run, in its folder
BATCH = 2000  # records read between two writes
COLUMNS = ("key", "trunk", "status", "reason", "loss", "seconds", "recorded_ns")  # most asked for
NOT_ITS_FAULT = {  # errors of SQLite that a new file would have as well
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM),
}
TABLES = """
CREATE TABLE runs(
    key TEXT PRIMARY KEY, time_ns INTEGER, size INTEGER, tag TEXT, problem TEXT,
    trunk TEXT, status TEXT, reason TEXT, loss REAL, seconds REAL, columns TEXT
) WITHOUT ROWID;
CREATE TABLE labels(grid TEXT, key TEXT, labels TEXT, PRIMARY KEY(grid, key)) WITHOUT ROWID;
CREATE TABLE names(name TEXT PRIMARY KEY, label INTEGER) WITHOUT ROWID;
CREATE TABLE grids(file TEXT PRIMARY KEY, time_ns INTEGER) WITHOUT ROWID;
"""


@dataclass
class Index:
    """The index of one runs directory, as it is on the disk now. Made by `opened`."""

    root: Place
    note: Callable[[str], None]  # is told, in words, what was made afresh
    database: sqlite3.Connection

    def refresh(self) -> None:
        """Read what is new, changed or gone since the last time."""
        known = {
            key: Stamp(*stamp)
            for key, *stamp in self._all("SELECT key, time_ns, size, tag FROM runs")
        }
        found = dict(named(self.root, RECORD))
        gone = [(key,) for key in known.keys() - found.keys()]
        new = sorted(key for key, stamp in found.items() if known.get(key) != stamp)
        self._write("DELETE FROM runs WHERE key = ?", gone)
        for first in range(0, len(new), BATCH):
            rows, names = [], set[str]()
            some = new[first : first + BATCH]
            texts = contents_of([self.root / key / RECORD for key in some])
            for key, text in zip(some, texts, strict=True):
                row, own = _read(self.root, key, found[key], text)
                rows.append(row)
                names |= own
            self._write(f"INSERT OR REPLACE INTO runs VALUES({', '.join('?' * 11)})", rows)
            self._write("INSERT OR IGNORE INTO names VALUES(?, 0)", [(name,) for name in names])
        self._refresh_grids()

    def _refresh_grids(self) -> None:
        known = dict(self._all("SELECT file, time_ns FROM grids"))
        there = {path.stem: (path, time_ns) for path, time_ns in grids.begun(self.root).items()}
        for file in known.keys() - there.keys():
            self._write("DELETE FROM labels WHERE grid = ?", [(file,)])
            self._write("DELETE FROM grids WHERE file = ?", [(file,)])
        for file, (source, time_ns) in there.items():
            if known.get(file) == time_ns:
                continue
            try:
                runs = grids.load(source).runs
            except UserError as error:
                self.note(str(error))
                continue
            rows = [(file, run.key, json.dumps(run.labels)) for run in runs]
            names = {(name,) for run in runs for name in run.labels}
            self._write("INSERT OR REPLACE INTO labels VALUES(?, ?, ?)", rows)
            self._write("INSERT OR REPLACE INTO names VALUES(?, 1)", sorted(names))
            self._write("INSERT OR REPLACE INTO grids VALUES(?, ?)", [(file, time_ns)])

    def rows(self, where: str = "", grid: str = "") -> Iterator[dict[str, Any]]:
        """Labels and columns of every run that meets the condition, ordered by key; of one grid's
        runs, with its labels, where its file is named. UserError as `condition` raises.
        """
        sql, values = self._selected("coalesce(labels.labels, '{}'), runs.columns", where, grid)
        for labels, text in self.database.execute(f"{sql} ORDER BY runs.key", values):
            yield json.loads(labels) | json.loads(text)

    def listing(self, where: str = "", grid: str = "") -> list[dict[str, Any]]:
        """The same runs by the columns that are asked for most."""
        chosen = "coalesce(labels.labels, '{}'), runs.key, trunk, status, reason, loss, seconds"
        sql, values = self._selected(f"{chosen}, runs.time_ns", where, grid)
        return [
            {"labels": json.loads(labels), **dict(zip(COLUMNS, cells, strict=True))}
            for labels, *cells in self.database.execute(f"{sql} ORDER BY runs.key", values)
        ]

    def left_out(self) -> list[str]:
        """Why records are in no table."""
        return [why for (why,) in self._all("SELECT problem FROM runs WHERE problem != ''")]

    def _selected(self, what: str, where: str, grid: str) -> Sql:
        # without a grid, a run's labels are those of the latest that has it
        labels = (
            "(SELECT key, labels FROM labels WHERE grid = ?)"
            if grid
            else "(SELECT key, labels, max(grids.time_ns) FROM labels "
            "JOIN grids ON grids.file = labels.grid GROUP BY key)"
        )
        sql = (
            f"SELECT {what} FROM runs {'' if grid else 'LEFT '}JOIN {labels} AS labels "
            "ON labels.key = runs.key WHERE runs.problem = ''"
        )
        values: list[Any] = [grid] if grid else []
        if where:
            is_label = dict(self._all("SELECT name, label FROM names"))
            met, more = condition(where, functools.partial(_column, is_label), is_label)
            sql, values = f"{sql} AND {met}", [*values, *more]
        return sql, values

    def _all(self, sql: str) -> list[Any]:
        return self.database.execute(sql).fetchall()

    def _write(self, sql: str, rows: Iterable[tuple]) -> None:
        """In one transaction: another process reads all of it or nothing."""
        with self.database:
            self.database.executemany(sql, rows)


@contextlib.contextmanager
def opened(root: Place, note: Callable[[str], None]) -> Iterator[Index]:
    """The index of a runs directory, made or brought up to date. `note` is told what was wrong with
    the one that was there, or why this one is in memory only.
    """
    file = place(root)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        index = _fresh(root, file, note)
    except (OSError, sqlite3.Error) as error:
        note(f"the index {file} cannot be written ({error}); this one is made in memory")
        index = Index(root, note, sqlite3.connect(":memory:"))
        index.database.executescript(TABLES)
        index.refresh()
    with contextlib.closing(index.database):
        yield index


def place(root: Place) -> Path:
    """Where the index of a runs directory is, on this machine."""
    where = root if remote(root) else root.absolute()
    name = cache.name(socket.gethostname(), str(where))
    return cache.folder() / "index" / f"{name}.sqlite"


def _fresh(root: Place, file: Path, note: Callable[[str], None]) -> Index:
    for last in (False, True):
        database = sqlite3.connect(file, timeout=60)  # while another process writes
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if version != VERSION and tables:
                raise sqlite3.DatabaseError(f"version {version}, not {VERSION}")
            if not tables:
                database.execute("PRAGMA journal_mode = WAL")
                database.executescript(
                    f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"
                )
            index = Index(root, note, database)
            index.refresh()
            return index
        except UserError:  # of the runs directory
            database.close()
            raise
        except (sqlite3.DatabaseError, ValueError) as error:
            database.close()
            if last or getattr(error, "sqlite_errorcode", None) in NOT_ITS_FAULT:
                raise
            note(f"the index {file} was of no use ({error}) and is made afresh from the records")
            for end in ("", "-wal", "-shm"):
                Path(f"{file}{end}").unlink(missing_ok=True)
    raise AssertionError


def _read(root: Place, key: str, stamp: Stamp, text: bytes | None) -> tuple[tuple, set[str]]:
    """A record's row and the names of its columns."""
    try:
        values = upgraded(pydantic_core.from_json(text or b""))
        if values["key"] != key:
            raise ValueError
        flat = columns({}, values, _trunk(values["run"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return (key, *stamp, _problem(root, key), *[None] * 6), set()
    own = [flat["run"], flat["status"], flat["reason"], flat.get("loss"), flat["seconds"]]
    return (key, *stamp, "", *own, json.dumps(flat)), set(flat)


def _problem(root: Place, key: str) -> str:
    """What is wrong with a record, in the words of whoever reads it for its run."""
    try:
        Store(root).load(key)
    except (UserError, OSError) as error:
        return str(error)
    return f"{root / key / RECORD} was replaced while it was read"


_trunks: dict[str, str] = {}  # by all that they depend on: a spec is validated once for each


def _trunk(run: dict[str, Any]) -> str:
    """Of a spec in JSON. Runs of one trunk share all but their seeds and steps."""
    budget = {name: value for name, value in run["budget"].items() if name != "steps"}
    rest = {name: value for name, value in run.items() if name not in ("seed", "budget")}
    shared = json.dumps([rest, budget])
    if shared not in _trunks:
        _trunks[shared] = Run.model_validate_json(json.dumps(run)).trunk
    return _trunks[shared]


def _column(is_label: dict[str, int], name: str) -> Sql:
    """A column's SQL: one of its own, else one of its labels, else one of the record's."""
    if name in ("key", "status", "reason", "loss", "seconds"):
        return f"runs.{name}", []
    cell = path(name)
    if is_label[name]:
        either = "coalesce(json_extract(labels.labels, ?), json_extract(runs.columns, ?))"
        return either, [cell, cell]
    return "json_extract(runs.columns, ?)", [cell]
