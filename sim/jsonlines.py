"""A line of JSON as an object: one set of rules for tables of runs and for documents."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from typing import Any

from isoflop.models.errors import UserError, printable, quoted


def json_object(line: str, place: str) -> dict[str, Any]:
    """The object that a line of JSON holds. UserError, naming its place, if it holds anything else,
    names a key twice or is nested too deeply.
    """
    value = json_value(line, place)
    if not isinstance(value, dict):
        raise UserError(f"{place} must be a JSON object, and is {quoted(line)}; correct it")
    return value


def json_value(text: str, place: str, what: str = "a JSON object") -> Any:
    """Any value of JSON, by the same rules; `what` is what it should have been."""
    try:
        pairs = functools.partial(once, place=place)
        return json.loads(text, object_pairs_hook=pairs, parse_int=_integer)
    except json.JSONDecodeError as error:
        raise UserError(f"{place} must be {what}: {error}; correct it") from None
    except RecursionError:
        raise too_deep(place) from None


def too_deep(place: str) -> UserError:
    return UserError(f"{place} is nested too deeply; flatten it")


def _integer(digits: str) -> int | float:
    """Longer ones than Python reads are infinite as a float, and dropped as that."""
    return int(digits) if len(digits) <= 1000 else float(digits)


def once(pairs: Iterable[tuple[str, Any]], place: str) -> dict[str, Any]:
    """The pairs as a dict with printable names. UserError if a name comes twice."""
    out: dict[str, Any] = {}
    for raw, value in pairs:
        name = printable(raw.strip())
        if name in out:
            raise UserError(f"{place} names {quoted(name)} twice, and one must be meant; rename it")
        out[name] = value
    return out
