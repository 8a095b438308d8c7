"""Eight lessons in scaling: notebooks as plain Python, which a class can run without a network.

    python experiments/lessons/lesson2_isoflop.py       as a script, with the default install alone
    make lessons                                        all of them, as notebooks and as HTML
    isoflop check lesson2 answer.json                   grade an exercise (experiments/cli/check.py)

The lessons are percent scripts (jupytext): a cell begins with `# %%`. What they need beside the
library is here: runs that are trained for a lesson, committed records, and pictures that a notebook
shows. Two settings of the environment make them a class's own: `ISOFLOP_CORPUS` names a text that
lessons 1 and 2 train on, and `ISOFLOP_RECORDS` a folder whose NAME.jsonl, written by `isoflop
records`, stand for the committed ones.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from isoflop.experiments.families import RESULTS
from isoflop.models.errors import UserError
from isoflop.sim.records.store import Row, Store, read_rows, read_table, write_rows

RUNS = Path("runs") / "lessons"
PICTURES = Path("report") / "lessons"


def corpus(default: str = "kjv") -> str:
    """The class's own text, where ISOFLOP_CORPUS names one."""
    return os.environ.get("ISOFLOP_CORPUS") or default


def path(name: str, folder: Path | None = None) -> Path:
    """Where the records of that name are: in `folder`; without one in ISOFLOP_RECORDS, which is
    then said, if they are there, else among the committed.
    """
    if folder is not None:
        return folder / f"{name}.jsonl"
    own, committed = os.environ.get("ISOFLOP_RECORDS"), RESULTS / f"{name}.jsonl"
    if not own:
        return committed
    file = Path(own) / committed.name
    found = file if file.is_file() else committed
    print(f"{name}: {found}")
    return found


def records(name: str, family: str = "") -> list[Row]:
    """Runs of an experiment, or those of one family. UserError where there are none."""
    file = path(name)
    rows = [row for row in read_rows(file) if family in ("", row.labels.get("family"))]
    if not rows:
        raise UserError(f"{file} has no runs of {family or name}; name other records")
    return rows


def table(name: str) -> list[dict[str, Any]]:
    """Rows of an experiment that measures."""
    return read_table(path(name))


def train(name: str, **options: Any) -> list[Row]:
    """The runs of an experiment with these options, by `isoflop run`: in processes of their own,
    and once. They are kept as NAME.jsonl in runs/lessons, for `isoflop check --records`.
    """
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    workers = str(min(2, os.cpu_count() or 1))
    command = ["run", name, "--runs", str(RUNS), "--workers", workers, *flags]
    print("isoflop", *command, flush=True)
    done = subprocess.run([sys.executable, "-m", "isoflop.experiments", *command], check=False)
    if done.returncode:
        raise UserError(f"isoflop run {name} ended with {done.returncode}; its last line says why")
    cells = importlib.import_module(f"isoflop.experiments.{name}").cells(**options)
    rows = Store(RUNS).rows(cells)
    write_rows(RUNS / f"{name}.jsonl", rows)
    return rows


def show(paths: Iterable[Path]) -> None:
    """Pictures: in a notebook as they are, elsewhere where they lie."""
    ipython = sys.modules.get("IPython")
    notebook = ipython is not None and ipython.get_ipython() is not None
    for picture in (found for found in paths if found.suffix == ".png"):
        if ipython is not None and notebook:
            alt = picture.stem.replace("_", " ")
            ipython.display.display(ipython.display.Image(str(picture), alt=alt))
        else:
            print(f"written: {picture}")


def ask(lesson: str) -> None:
    """What the exercise of a lesson asks, and the form of its answer."""
    from isoflop.experiments.lessons.exercises import EXERCISES
    from isoflop.experiments.lessons.marking import told

    print(told(EXERCISES[lesson]))
