"""One file for each question. A module that defines `cells` or `measure` is an experiment.

    cells(**options) -> list[Cell]      runs to train; runs that two experiments share train once
    measure(**options) -> list[dict]    a table that is measured at once
    draw(rows, out) -> list[Path]       its figures, if figures/standard.py's are not enough

The docstring says the question, the command, the duration and the expected answer. Options with
type hints and defaults become flags of the command line. Nothing is registered: a file is found
by being here, by its path wherever it lies (`isoflop run path/to/mine.py`), or in an installed
package by an entry point of the group `isoflop.experiments`, `name = "package.module"`, whose name
none of those here has. It is read, not imported, until it is run.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

GROUP = "isoflop.experiments"


@dataclass(frozen=True)
class Experiment:
    """What the source of an experiment says about it."""

    name: str  # of its folder of figures and its tables
    doc: str
    trains: bool  # defines cells; otherwise it measures
    source: str  # the module to import, or a path

    @property
    def question(self) -> str:
        """The docstring's first paragraph, in one line."""
        return " ".join(self.doc.split("\n\n")[0].split())

    @property
    def word(self) -> str:
        """What the command line calls it."""
        return self.source if is_path(self.source) else self.name

    def load(self) -> ModuleType:
        """Its module. Raises what the file raises; `sim.userfile.place` says where that was."""
        if is_path(self.source):
            from isoflop.sim import userfile

            return userfile.load(Path(self.source))
        return importlib.import_module(self.source)


def discover() -> dict[str, Experiment]:
    """Every experiment by name, those of installed packages last."""
    found = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        if not module.ispkg:
            file = Path(getattr(module.module_finder, "path", "")) / f"{module.name}.py"
            if item := _read(module.name, f"{__name__}.{module.name}", file):
                found[item.name] = item
    for point in sorted(importlib.metadata.entry_points(group=GROUP)):
        spec = importlib.util.find_spec(point.module)
        origin = spec.origin if spec else None
        if origin and (item := _read(point.name, point.module, Path(origin))):
            found.setdefault(item.name, item)
    return found


def _read(name: str, source: str, file: Path) -> Experiment | None:
    """What a file's syntax says; None if it is no experiment."""
    tree = ast.parse(file.read_bytes(), str(file))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    if not functions & {"cells", "measure"}:
        return None
    return Experiment(name, ast.get_docstring(tree) or "", "cells" in functions, source)


def is_path(word: str) -> bool:
    """Whether an experiment is named by its file."""
    return word.endswith(".py") or "/" in word or os.sep in word


class Unknown(LookupError):
    """A word that means nothing here, told in one line with the nearest one that does."""


def pick(word: str, known: Iterable[str], what: str) -> None:
    """Raise Unknown unless the word is one of those known."""
    words = list(known)
    if word in words:
        return
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    remedy = f"perhaps you meant {near[0]}" if near else f"use one of: {', '.join(words)}"
    raise Unknown(f"there is no {what} {word}; {remedy}")


def find(word: str) -> Experiment:
    """The experiment of that name, or in that file. Raises Unknown if there is none."""
    if not is_path(word):
        known = discover()
        pick(word, known, "experiment")
        return known[word]
    file = Path(word).expanduser()
    if not file.is_file():
        raise Unknown(f"there is no file {word}; `isoflop init {word}` writes one to start from")
    try:
        item = _read(file.stem, word, file)
    except SyntaxError as error:
        text = f', "{error.text.strip()}"' if error.text else ""
        raise Unknown(f"{word}:{error.lineno}{text}: {error.msg}; correct that line") from None
    except ValueError as error:  # not text
        raise Unknown(f"{word} is not a Python file ({error})") from None
    if item is None:
        raise Unknown(
            f"{word} has no function cells(...), which returns the runs to train, nor measure(...)"
        )
    return item
