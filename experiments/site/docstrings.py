"""Docstrings are written as Markdown is: code in backquotes, formulas and examples indented, and
`Args:` as a list of names. Sphinx reads reStructuredText, in which a lone `N*` or `|w|` begins
something; this makes the one of the other. A page for each package lists what is public in it.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

ROOMS = ("isoflop.models", "isoflop.sim")
ARGUMENT = re.compile(r"^(\w+): (.*)$")


def restructured(lines: Sequence[str]) -> list[str]:
    """A docstring's lines, as reStructuredText."""
    out: list[str] = []
    for block in _blocks(lines):
        first, rest = block[0], block[1:]
        if first.startswith("    "):
            out += ["::", "", *block, ""]
        elif first.strip() == "Args:":
            out += [*(f":param {name}: {_inline(told)}" for name, told in _arguments(rest)), ""]
        elif first.startswith("- "):
            out += [*(f"- {_inline(item)}" for item in _items(block)), ""]
        else:
            flat = [line for line in block if not line.startswith("    ")]
            out += [_inline(" ".join(flat)), ""]
            if code := [line for line in block if line.startswith("    ")]:
                out += ["::", "", *code, ""]
    return out


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """What empty lines divide; indented blocks in a row are one."""
    parts = [
        list(part) for filled, part in groupby(lines, lambda line: bool(line.strip())) if filled
    ]
    for indented, group in groupby(parts, lambda part: part[0].startswith("    ")):
        several = list(group)
        if indented:
            yield "\n\n".join("\n".join(part) for part in several).split("\n")
        else:
            yield from several


def _arguments(lines: Sequence[str]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in lines:
        match = ARGUMENT.match(line.strip())
        if match and len(line) - len(line.lstrip()) <= 4:
            found.append((match[1], match[2]))
        elif found:
            found[-1] = found[-1][0], f"{found[-1][1]} {line.strip()}"
    return found


def _items(lines: Sequence[str]) -> list[str]:
    found: list[str] = []
    for line in lines:
        if line.startswith("- "):
            found.append(line[2:])
        else:
            found[-1] += f" {line.strip()}"
    return found


def _inline(text: str) -> str:
    """Code in backquotes is literal, and nothing else means anything."""
    out = ""
    for i, part in enumerate(re.split(r"(`` .+? ``|`[^`]+`)", text)):
        literal = i % 2 == 1
        code = part[3:-3] if part.startswith("`` ") else part[1:-1]
        told = f"``{code}``" if literal else re.sub(r"([\\*_|`])", r"\\\1", part)
        near = out[-1:] if literal else told[:1]
        out += ("\\ " if out and near.isalnum() else "") + told
    return out


def packages() -> dict[str, list[str]]:
    """By package, itself and its modules."""
    found: dict[str, list[str]] = {"isoflop": ["isoflop"]}
    for room in ROOMS:
        found[room] = [room]
        path = importlib.import_module(room).__path__
        for module in pkgutil.walk_packages(path, f"{room}."):
            if not module.name.rpartition(".")[2].startswith("_"):
                own = module.name if module.ispkg else module.name.rpartition(".")[0]
                found.setdefault(own, [own] if module.ispkg else []).append(module.name)
    return {name: sorted(set(modules)) for name, modules in found.items()}


def write_pages(folder: Path) -> None:
    """A page for each package; what is the same stays untouched, so that it is not built again."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{name}.rst": _page(name, modules) for name, modules in packages().items()}
    for path in folder.glob("*.rst"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _page(name: str, modules: Sequence[str]) -> str:
    lines = [name, "=" * len(name), ""]
    for module in modules:
        if module != name:
            lines += [module, "-" * len(module), ""]
        lines += [f".. automodule:: {module}", "   :members:", "   :ignore-module-all:", ""]
    return "\n".join(lines)


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's event autodoc-process-docstring. A dataclass without words of its own has none."""
    generated = what == "class" and lines and lines[0].startswith(f"{name.rpartition('.')[2]}(")
    lines[:] = [] if generated else restructured(lines)


def signature(
    app: Any, what: str, name: str, obj: Any, options: Any, words: str, returned: str
) -> tuple[str, str] | None:
    """Sphinx's event autodoc-process-signature. A default that is made anew each time has no text
    that Sphinx can read.
    """
    return (words.replace("<factory>", "..."), returned) if words else None
