"""The one exception that the command line turns into a single line and exit code 2, and how what
is said of data is written: in characters that show, and not at any length.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import Any


class UserError(ValueError):
    """A mistake of the user's, told in one line: the rule, the values, the remedy."""


def check_multiple(name: str, value: int, of: str, base: int, otherwise: str = "") -> None:
    """Raise UserError unless `value` is a multiple of `base`; `otherwise` ends the remedy."""
    if value % base:
        raise UserError(
            f"{name}={value} must be a multiple of {of}={base}; "
            f"choose {of} that divides it{otherwise}"
        )


def is_out_of_memory(error: Exception) -> bool:
    """Whether the host has no memory for it or, as XLA says it, the device."""
    said = str(error)
    no_room = "RESOURCE_EXHAUSTED" in said or "out of memory" in said.lower()
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and no_room)


def printable(text: str) -> str:
    """The same text, control characters and line separators as their escapes: \\x1b, \\u2028."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int) -> str:
    """At most `most` characters, its middle left out where there are more."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]} … {text[-half:]}"


def quoted(value: Any, most: int = 40) -> str:
    """A value as Python writes it, shortened."""
    return shortened(repr(value[: 2 * most] if isinstance(value, str) else value), most)


def listed(names: Collection[str], most: int = 20) -> str:
    """Names, quoted, the first of them where there are many."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(quoted(name) for name in list(names)[:most]) + more


def need(module: str, extra: str) -> None:
    """UserError, naming the extra that brings it, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{extra} needs the package {module}; pip install 'isoflop[{extra}]'")
