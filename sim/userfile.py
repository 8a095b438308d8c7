"""A file of the user's own, anywhere, as a module under one name in every process.

Its mixers, sources and optimisers are found by their `kind` like those of this package, since the
class has only to exist. A job that is sent to another process takes the files along
(sim/grid/grid.py), and an error in one is told with its file and line.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from isoflop.models.errors import UserError

_modules: dict[Path, ModuleType | None] = {}  # None: it could not be imported


def load(path: Path) -> ModuleType:
    """The file's module, imported once. As for a script, its own folder is looked in for what it
    imports. Raises UserError where there is no such file, and whatever the file raises.
    """
    path = path.expanduser().resolve()
    if module := _modules.get(path):
        return module
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} must be a Python file, ending in .py")
    # the same in every process, and the name of nothing that is installed
    name = "own_" + re.sub(r"\W", "_", path.stem)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    module = importlib.util.module_from_spec(spec)
    _modules[path] = None
    sys.modules[name] = module  # before it runs: pickle and dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _modules[path] = module
    return module


def load_all(paths: Iterable[Path]) -> None:
    """Import the files, as another process has."""
    for path in paths:
        load(path)


class Loaded:
    """This process's files; unpickled in another, it imports them there."""

    def __reduce__(self) -> tuple:
        return load_all, (tuple(path for path, module in _modules.items() if module),)


def own(file: str | None) -> bool:
    """Whether a source file is one of them, or beside one and not of an installed package."""
    if file is None:
        return False
    path = Path(file).absolute()
    if any(path.is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix)):
        return False
    return any(
        path.is_relative_to(known.parent)
        and not any(
            part.startswith(".") or part == "site-packages"
            for part in path.relative_to(known.parent).parts
        )
        for known in _modules
    )


def place(error: BaseException) -> str:
    """Where in the user's files an exception arose, as `file:line, "code"`; empty if in none."""
    if isinstance(error, SyntaxError) and own(error.filename):
        return f"{_short(str(error.filename))}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if own(frame.filename)]
    if not mine:
        return ""
    said = f'{_short(mine[-1].filename)}:{mine[-1].lineno}, "{mine[-1].line}"'
    if mine[-1] is not frames[-1]:
        said += f" (raised in {frames[-1].filename}:{frames[-1].lineno})"
    return said


def _short(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
