"""Seconds and bytes against the sequence length: training step, prefill, decoding, state.

All programs are compiled first and then timed in turns, A B C A B C …, so that a machine which
slows down for a while slows all of them: ratios between families and lengths hold, seconds are
this machine's. A value is the median of the turns, `low` and `high` their range. `slope` is
log₂(value(T) / value(T')) / log₂(T / T') against the next shorter length T', each turn paired with
itself: 1 is linear in T, 2 quadratic, 0 constant. Not included: what tokens late in the context
gain from it in loss.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import Batch
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import layers
from isoflop.sim.train.program import Program

TIMED = ("train_step_seconds", "prefill_seconds", "decode_seconds")
COUNTED = ("train_step_bytes", "state_bytes")
QUANTITIES = (*TIMED, *COUNTED)

STEPS = 3  # in one call, as training has many: the first also pays for touching its memory
DECODED = 16  # tokens in one call, so that starting it weighs little beside writing them

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


def _tokens(model: ModelConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)


def train_step(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Forward, backward and AdamW on one lane, by the program that trains every run, STEPS in a
    call.

    Its rates are multiplied by 0, so every repeat computes the same; time depends on no rate.
    """
    program = Program(model, AdamW(lr=1e-3))
    state, rates = program.init([0]), program.rates(program.optim)
    batches = Batch(_tokens(model, STEPS, 1, batch, seq_len + 1))
    args = rates, np.zeros(STEPS, np.float32), batches, np.int32(STEPS)
    return probe(program.advance, state, *args, share=1 / STEPS)


def prefill(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Read a prompt: the parallel form, and the logits of its last token alone.

    The decoding state that a server would keep is computed on the way, not stored.
    """
    program = Program(model, AdamW(lr=1e-3))

    def read(params, tokens):
        lm = nnx.merge(program.abstract[0], params)
        return params, lm.logits(lm.hidden(tokens)[0][:, -1])

    return probe(read, _lane(program), _tokens(model, batch, seq_len))


def decode(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Write a token greedily against a state made for `seq_len` tokens, DECODED in a call.

    What the state holds costs nothing: every slot of a cache is read, whatever its position. So
    every call begins where the first did, and none writes past the state. Raises UserError if the
    state cannot take as many tokens.
    """
    most = model.max_tokens(seq_len)
    if most is not None and most < DECODED:
        raise UserError(
            f"decoding is timed {DECODED} tokens at a time, but a state for seq_len={seq_len} "
            f"takes {most}; ask for at least {DECODED}"
        )
    program = Program(model, AdamW(lr=1e-3))

    def write(carry, first):
        params, cache = carry
        lm = nnx.merge(program.abstract[0], params)

        def step(carry, _):
            cache, tokens = carry
            cache, logits = lm.step(cache, tokens)
            return (cache, jnp.argmax(logits, axis=-1)), None

        (after, last), _ = jax.lax.scan(step, (cache, first), length=DECODED)
        return (params, jax.tree.map(_rewound, cache, after)), last

    params = _lane(program)
    cache = nnx.merge(program.abstract[0], params).init_state(batch, seq_len)
    return probe(write, (params, cache), _tokens(model, batch), share=1 / DECODED)


def _rewound(before: jax.Array, after: jax.Array) -> jax.Array:
    """A state's array, positions as they were."""
    return before if jnp.issubdtype(before.dtype, jnp.integer) else after


PROGRAMS: dict[str, Callable[..., Probe]] = {
    "train_step": train_step,
    "prefill": prefill,
    "decode": decode,
}


def _lane(program: Program) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], program.init([0])[0])


def state_bytes(model: ModelConfig, context: int) -> int:
    """Of the arrays that decode one sequence of `context` tokens, as they are allocated."""
    graph, params = Program(model, AdamW(lr=1e-3)).abstract
    state = jax.eval_shape(lambda params: nnx.merge(graph, params).init_state(1, context), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


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


def measure(
    models: Mapping[str, ModelConfig],
    lengths: Sequence[int],
    quantities: Sequence[str] = QUANTITIES,
    repeats: int = 3,
    batch: int = 1,
    tell: Tell = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows {family, quantity, seq_len, value, low, high}, with `slope` from the second length on,
    and the width, depth, kinds of layers and device that they were measured at.

    `models` are named by family; `batch` sequences share a training step, a prompt and a token.
    """
    _check(models, lengths, quantities, repeats)
    lengths = sorted(set(lengths))
    wanted = [name for name in TIMED if name in quantities]
    if "train_step_bytes" in quantities and "train_step_seconds" not in wanted:
        wanted = ["train_step_seconds", *wanted]  # its program is what is weighed
    todo = [(name, family, t) for name in wanted for family in models for t in lengths]
    probes: dict[tuple[str, str, int], Probe] = {}
    for i, (name, family, t) in enumerate(todo):
        tell(f"compiling {i + 1} of {len(todo)}: {family}, {name}, {t} tokens")
        probes[name, family, t] = PROGRAMS[name.removesuffix("_seconds")](models[family], t, batch)
    timed = {key: item for key, item in probes.items() if key[0] in quantities}
    turns = interleave(timed, repeats, tell)
    for family, model in models.items():
        for t in lengths:
            if "train_step_bytes" in quantities:
                weighed = probes["train_step_seconds", family, t].memory_bytes
                turns["train_step_bytes", family, t] = (float(weighed),)
            if "state_bytes" in quantities:
                turns["state_bytes", family, t] = (float(state_bytes(model, t)),)
    return [
        row | {"width": model.d_model, "depth": len(model.blocks)} | stated
        for name in QUANTITIES
        if name in quantities
        for family, model in models.items()
        for stated in [{"layers": layers(model), "device": device()}]
        for row in _line(family, name, {t: turns[name, family, t] for t in lengths})
    ]


def device() -> str:
    """The kind of device that programs run on; of a CPU also the cores they may use."""
    first = jax.devices()[0]
    cores = f", {len(os.sched_getaffinity(0))} cores" if hasattr(os, "sched_getaffinity") else ""
    return first.device_kind + (cores if first.platform == "cpu" else "")


def _line(
    family: str, quantity: str, turns: Mapping[int, tuple[float, ...]]
) -> Iterator[dict[str, Any]]:
    """The rows of one family and quantity, by increasing length."""
    before: tuple[int, tuple[float, ...]] | None = None
    for t, values in turns.items():
        row: dict[str, Any] = {
            "family": family,
            "quantity": quantity,
            "seq_len": t,
            "value": statistics.median(values),
            "low": min(values),
            "high": max(values),
        }
        if before is not None:
            pairs = zip(before[1], values, strict=True)
            slopes = [power((before[0], early), (t, late)) for early, late in pairs]
            row["slope"] = statistics.median(slopes)
        before = t, values
        yield row


def power(start: tuple[float, float], end: tuple[float, float]) -> float:
    """The power of x by which y grows from (x, y) at the start to those at the end."""
    return math.log(end[1] / start[1]) / math.log(end[0] / start[0])


def _check(
    models: Mapping[str, ModelConfig],
    lengths: Sequence[int],
    quantities: Sequence[str],
    repeats: int,
) -> None:
    if not models or not lengths or not quantities:
        raise UserError("measuring needs at least one family, one length and one quantity")
    if min(lengths) < 1:
        raise UserError(f"lengths must be at least 1 token, got {min(lengths)}")
    if repeats < 1:
        raise UserError(f"repeats={repeats} must be at least 1")
    unknown = sorted(set(quantities) - set(QUANTITIES))
    if unknown:
        raise UserError(f"there is no quantity {unknown[0]}; use one of {', '.join(QUANTITIES)}")
