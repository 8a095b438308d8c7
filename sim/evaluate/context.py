"""Seconds and bytes against the sequence length: training step, prefill, decoding, state.

Programs are timed in turns (probe.py): ratios between families and lengths hold, seconds are this
machine's. A value is the median of its `turns`, `low` and `high` their range. `slope` is
log₂(value(T) / value(T')) / log₂(T / T') against the next shorter length T', each turn paired with
itself: 1 is linear in T, 2 quadratic, 0 constant. `predicted` is what the model's exact cost takes
at least on this machine, whose rates are measured in the same turns (machine.py), and `ratio` the
value over it. Bytes of programs are those that XLA assigns to arguments, results and temporaries.
Not included: what tokens late in the context gain from it in loss (position.py).
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import Batch
from isoflop.sim.evaluate import machine
from isoflop.sim.evaluate.probe import Probe, Tell, interleave, probe
from isoflop.sim.optim import AdamW
from isoflop.sim.records.store import layers
from isoflop.sim.train.program import Program

TIMED = ("train_step_seconds", "prefill_seconds", "decode_seconds")
WEIGHED = ("train_step_bytes", "prefill_bytes", "decode_bytes")  # programs at their peak
COUNTED = (*WEIGHED, "state_bytes")
QUANTITIES = (*TIMED, *COUNTED)

STEPS = 3  # in one call, as training has many: the first also pays for touching its memory,
LONG = 8192  # which weighs little beside a step of more tokens: one in a call
DECODED = 16  # tokens in one call, so that starting it weighs little beside writing them


def _tokens(model: ModelConfig, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(model.vocab_size, size=shape, dtype=np.int32)


def train_step(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Forward, backward and AdamW on one lane, by the program that trains every run, STEPS in a
    call, or one of more than LONG tokens.

    Its rates are multiplied by 0, so every repeat computes the same; time depends on no rate.
    """
    program = Program(model, AdamW(lr=1e-3))
    state, rates = program.init([0]), program.rates(program.optim)
    steps = STEPS if batch * seq_len <= LONG else 1
    batches = Batch(_tokens(model, steps, 1, batch, seq_len + 1))
    args = rates, np.zeros(steps, np.float32), batches, np.int32(steps)
    return probe(program.advance, state, *args, share=1 / steps)


def prefill(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Read a prompt at once: the logits of its last token, and the decoding state after it, made
    for as many tokens.
    """
    program = Program(model, AdamW(lr=1e-3))

    def read(params, tokens):
        lm = nnx.merge(program.abstract[0], params)
        after, logits = lm.prefill(lm.init_state(batch, seq_len), tokens)
        return params, (logits, after)

    return probe(read, _lane(program), _tokens(model, batch, seq_len))


def decode(model: ModelConfig, seq_len: int, batch: int = 1) -> Probe:
    """Write a token greedily against a state made for `seq_len` tokens, DECODED in a call.

    What the state holds costs nothing: every slot of a cache is read, whatever its position. So
    every call begins where the first did, and none writes past the state. Raises UserError if the
    state cannot take as many tokens.
    """
    check_room(model, seq_len)
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


def check_room(model: ModelConfig, seq_len: int) -> None:
    """Raise UserError if a state made for `seq_len` tokens cannot take those that are timed."""
    most = model.max_tokens(seq_len)
    if most is not None and most < DECODED:
        raise UserError(
            f"decoding is timed {DECODED} tokens at a time, but a state for seq_len={seq_len} "
            f"takes {most}; ask for at least {DECODED}"
        )


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


def measure(
    models: Mapping[str, ModelConfig],
    lengths: Sequence[int],
    quantities: Sequence[str] = QUANTITIES,
    repeats: int = 3,
    batch: int = 1,
    tell: Tell = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows {family, quantity, seq_len, value, low, high, turns, predicted, ratio}, with `slope`
    from the second length on, and the width, depth, kinds of layers and device that they were
    measured at.

    `models` are named by family; `batch` sequences share a training step, a prompt and a token.
    """
    _check(models, lengths, quantities, repeats)
    lengths = sorted(set(lengths))
    probes: dict[tuple[str, str, int], Probe] = {}
    asked = {quantity.rpartition("_")[0] for quantity in quantities if quantity != "state_bytes"}
    todo = [(name, f, t) for name in PROGRAMS if name in asked for f in models for t in lengths]
    for i, (name, family, t) in enumerate(todo):
        tell(f"compiling {i + 1} of {len(todo)}: {family}, {name}, {t} tokens")
        probes[name, family, t] = PROGRAMS[name](models[family], t, batch)
    timed = {key: item for key, item in probes.items() if f"{key[0]}_seconds" in quantities}
    best = machine.probes() if timed else {}
    seconds: dict[Any, tuple[float, ...]] = interleave({**timed, **best}, repeats, tell)
    here = machine.rates({name: min(seconds[name]) for name in best}) if best else None

    def turns(quantity: str, family: str, t: int) -> tuple[float, ...]:
        name, _, unit = quantity.rpartition("_")
        if quantity == "state_bytes":
            return (float(state_bytes(models[family], t)),)
        key = name, family, t
        return seconds[key] if unit == "seconds" else (float(probes[key].memory_bytes),)

    return [
        row
        | _predicted(row, here, model, batch)
        | {"width": model.d_model, "depth": len(model.blocks), "layers": layers(model)}
        | {"batch": batch, "device": device()}
        for quantity in QUANTITIES
        if quantity in quantities
        for family, model in models.items()
        for row in _line(family, quantity, {t: turns(quantity, family, t) for t in lengths})
    ]


def _predicted(
    row: Mapping[str, Any], here: machine.Machine | None, model: ModelConfig, batch: int
) -> dict[str, float]:
    """What the cost of the model takes at least, where any says so, and the measurement over it."""
    quantity = row["quantity"]
    if quantity in WEIGHED or (here is None and quantity in TIMED):
        return {}
    found = machine.predicted(here, model, quantity, row["seq_len"], batch)
    return {"predicted": found, "ratio": row["value"] / found}


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
            "turns": list(values),
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
    if {"decode_seconds", "decode_bytes"} & set(quantities):
        for model in models.values():
            check_room(model, min(lengths))
