"""The type checker of the tests: beartype, with int accepted for float as PEP 484 has it.

jaxtyping's decorator binds the arguments of every call to compare their shapes; where a function
has types and no shapes, which is most of them, beartype alone checks the same in a twentieth of the
time.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from types import FunctionType
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
with_shapes = jaxtyping.jaxtyped


def jaxtyped(*, typechecker: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What jaxtyping's import hook decorates functions and classes with."""
    full = with_shapes(typechecker=typechecker)

    def decorate(what: Any) -> Any:
        if isinstance(what, FunctionType) and _is_plain(what):
            return typechecker(what)
        if is_dataclass(what) and _is_plain(vars(what).get("__init__")):
            what.__init__ = typechecker(what.__init__)  # type: ignore[misc]
            return what
        return full(what)

    return decorate


def _is_plain(function: Any) -> bool:
    """Whether it is a function whose annotations can be read and have no shapes."""
    try:
        return bool(function) and "jaxtyping" not in repr(get_type_hints(function))
    except NameError:  # of an import for type checkers alone
        return False
