"""Compiled programs that take turns: seconds by the clock that hold on a machine that is not idle.

All programs are compiled first and then timed in turns, A B C A B C …, so that a machine which
slows down for a while slows all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax

Tell = Callable[[str], None]
Key = TypeVar("Key", bound=Hashable)


@runtime_checkable
class Timed(Protocol):
    """What takes turns with others."""

    def seconds(self) -> float: ...


@dataclass
class Probe:
    """A compiled program with its data: `function(state, *args)` gives (next state, result).

    `share` is the part of a call that one unit takes (a step, a prompt, a token). `memory_bytes`
    is what XLA assigned to arguments, results and temporaries, without its code and its threads.
    """

    function: Any
    state: Any
    args: tuple[Any, ...]
    share: float
    compile_seconds: float
    memory_bytes: int

    def seconds(self) -> float:
        """Of one unit, by the clock, until the result is there."""
        start = time.perf_counter()
        self.state, result = self.function(self.state, *self.args)
        jax.block_until_ready(result)
        return (time.perf_counter() - start) * self.share


def probe(function: Callable, state: Any, *args: Any, share: float = 1.0) -> Probe:
    """Compile `function` for these arguments, its state donated."""
    start = time.perf_counter()
    compiled = jax.jit(function, donate_argnums=0).lower(state, *args).compile()
    seconds = time.perf_counter() - start
    return Probe(compiled, state, args, share, seconds, _memory(compiled))


def _memory(compiled: Any) -> int:
    stats = compiled.memory_analysis()
    own = stats.argument_size_in_bytes + stats.temp_size_in_bytes
    return own + stats.output_size_in_bytes - stats.alias_size_in_bytes


def interleave(
    probes: Mapping[Key, Timed], repeats: int, tell: Tell = lambda text: None
) -> dict[Key, tuple[float, ...]]:
    """Seconds of every probe in each of `repeats` turns, after one turn that is not counted."""
    seconds: dict[Key, list[float]] = {key: [] for key in probes}
    for turn in range(repeats + 1):
        for i, (key, item) in enumerate(probes.items()):
            tell(f"turn {turn} of {repeats}: program {i + 1} of {len(probes)}")
            seconds[key].append(item.seconds())
    return {key: tuple(values[1:]) for key, values in seconds.items()}
