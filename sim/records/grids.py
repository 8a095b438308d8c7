"""What was asked for: a grid's runs and what its experiment calls them, written when it is begun.

    runs/grids/NAME-DIGEST.jsonl    a line for the command, then one for each run

A record knows neither its labels nor its companions, so a runs directory is read with these files
beside it: how many runs are missing, what they will cost, how a table of runs is grouped. Equal
grids are one file; nothing trains or is compared by them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.durable import Place, files, unwritable, write
from isoflop.sim.jsonlines import json_object

FOLDER = "grids"


@dataclass(frozen=True)
class Asked:
    """A run of a grid."""

    key: str
    trunk: str
    flops: int  # executed, of its whole training
    labels: dict[str, str | int | float]


@dataclass(frozen=True)
class Grid:
    name: str  # of its experiment
    command: str  # the experiment with the options that say which grid
    runs: tuple[Asked, ...]

    @property
    def file(self) -> str:
        """Its file's name, without the suffix: of the experiment and of all its runs."""
        every = json.dumps([asdict(run) for run in self.runs], sort_keys=True)
        digest = hashlib.sha256(every.encode()).hexdigest()[:12]
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)[:80]}-{digest}"


def save(root: Place, grid: Grid) -> None:
    """Write the grid down, unless it is. Raises UserError where that cannot be."""
    path = root / FOLDER / f"{grid.file}.jsonl"
    if path.exists():
        return
    head = {"grid": grid.name, "command": grid.command}
    lines = [json.dumps(line) for line in (head, *map(asdict, grid.runs))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, ("\n".join(lines) + "\n").encode())
    except OSError as error:
        raise unwritable(path, error) from error


def begun(root: Place) -> dict[Place, int]:
    """The file of each grid that was begun in a runs directory, and when (ns): the latest last."""
    found = [(one.time_ns, name) for name, one in files(root / FOLDER) if _is_grid(*name)]
    return {root.joinpath(FOLDER, *name): time_ns for time_ns, name in sorted(found)}


def _is_grid(name: str, *inside: str) -> bool:
    return name.endswith(".jsonl") and not inside


def load(path: Place) -> Grid:
    """UserError, with the remedy, where the file is not a whole grid."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head, *runs = (json_object(line, f"{path}:{i}") for i, line in enumerate(lines, 1))
        return Grid(str(head["grid"]), str(head["command"]), tuple(map(_asked, runs)))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a whole grid ({error}); delete it, and `isoflop run` writes it again"
        ) from None


def _asked(line: dict[str, Any]) -> Asked:
    labels = {
        name: cell for name, cell in line["labels"].items() if isinstance(cell, str | int | float)
    }
    return Asked(str(line["key"]), str(line["trunk"]), int(line["flops"]), labels)
