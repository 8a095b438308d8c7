"""Which code trained a run: a digest of every module that its numbers depend on.

A run's key names what was asked for, and never changes; the code that answered may. A record
therefore keeps these digests: of the modules of the run's mixers, data and optimiser with all that
they import here, and of the training itself. Comments, docstrings and layout do not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from isoflop.models.base import Config, Tagged
from isoflop.sim import userfile
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Run

TRAINING = ("isoflop.sim.train.loop", "isoflop.sim.train.program", "isoflop.sim.train.sharding")
OURS = ("isoflop",)
EXPERIMENT = ("cells", "measure", "draw")  # functions of a user's file that train nothing


def sources(run: Run) -> dict[str, str]:
    """Module → digest of its code as it lies on the disk now."""
    used = {type(value).__module__ for value in _tagged(run)}
    return _digests(frozenset({type(run.model).__module__, *used}))


def _tagged(value: Any) -> Iterator[Tagged]:
    """Every choice of a class in a spec: mixers, data, optimiser, schedule."""
    if isinstance(value, tuple):
        for item in value:
            yield from _tagged(item)
    elif isinstance(value, Config):
        if isinstance(value, Tagged):
            yield value
        for name in type(value).model_fields:
            yield from _tagged(getattr(value, name))


def changed(record: Record) -> tuple[str, ...]:
    """The modules whose code is no longer that which trained this record.

    None where the record does not say, as those that were made before it was asked.
    """
    if not record.sources:
        return ()
    now = sources(record.run)
    names = sorted(now.keys() | record.sources.keys())
    return tuple(name for name in names if now.get(name) != record.sources.get(name))


def code_changes(records: Iterable[Record]) -> dict[str, tuple[str, ...]]:
    """Run → the modules whose code has changed since it was trained, where any has."""
    found = {record.key: changed(record) for record in records}
    return {key: modules for key, modules in found.items() if modules}


@cache
def _digests(used: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = list(used)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name], imported = _module(name)
            waiting += imported
    for name in TRAINING:  # but not all that these import: records, counts and displays
        found[name], imported = _module(name)
    return {name: found[name] for name in sorted(found) if found[name]}


@cache
def _module(name: str) -> tuple[str, tuple[str, ...]]:
    """A module's digest, empty where it has no source, and the modules that it imports: of this
    package, of the user's own files, of its own package.
    """
    path = _path(name)
    if path is None:
        return "", ()
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    imported = tuple(dict.fromkeys(_imported(tree, package)))
    if userfile.own(str(path)):  # of whose experiment only the specs that it makes count
        tree.body = [node for node in tree.body if getattr(node, "name", "") not in EXPERIMENT]
    code = ast.unparse(_without_docstrings(tree))
    return hashlib.sha256(code.encode()).hexdigest()[:12], imported


def _path(name: str) -> Path | None:
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # of a package that is a module
            spec = None
        file = spec.origin if spec is not None else None
    path = Path(file) if file else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    counts = partial(_counts, package=package.split(".")[0])
    for node in ast.walk(tree):
        names: Iterable[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = importlib.util.resolve_name("." * node.level + module, package)
            inside = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if counts(name) else module for name in inside]
        yield from filter(counts, names)


def _counts(name: str, package: str) -> bool:
    """Whether a module of that name is of this package, of `package` or of the user's files."""
    path = None if name.split(".")[0] in sys.builtin_module_names else _path(name)
    return path is not None and (name.split(".")[0] in (*OURS, package) or userfile.own(str(path)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    node.body[0] = ast.Pass()
    return tree
