"""Matrix-multiply FLOPs of any function, read from its jaxpr, and the named conventions of a run.

XLA's own `cost_analysis` counts a scan's body once and sees no custom calls, so it is no oracle.
Here a scan's body counts `length` times, and what cannot be counted is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from models.base import MixerConfig
from models.errors import UserError
from models.lm import ModelConfig
from sim.spec import Run

CONVENTIONS = {
    "executed": "3 × (matrix products + elementwise work of gates, scans, convolutions, softmax) "
    "of the forward pass as the code runs it; what the backward pass recomputes to save memory is "
    "left out",
    "matmul": "3 × matrix products of the forward pass as the code runs it",
    "causal": "3 × the same work done token by token: attention pays for the keys it sees, "
    "recurrences for one state update",
    "6ND": "6 × all parameters × tokens",
    "6ND_non_embedding": "6 × parameters without embedding and head × tokens",
    "6ND_active": "6 × parameters one token touches, without embedding and head, × tokens",
}


def matmul_flops(function: Callable, *args: Any, **kwargs: Any) -> int:
    """2·m·n·k of every dot product and convolution that `function(*args)` executes.

    Arguments may be arrays or `jax.ShapeDtypeStruct`s; nothing is computed. Raises UserError for
    a loop whose trip count the jaxpr does not hold.
    """
    return count_jaxpr(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def count_jaxpr(jaxpr: Jaxpr) -> int:
    return sum(_count(eqn) for eqn in jaxpr.eqns)


def _count(eqn: Any) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        return _dot(eqn)
    if name == "conv_general_dilated":
        return _conv(eqn)
    if name == "ragged_dot_general" or name == "ragged_dot":
        lhs, rhs = (v.aval.shape for v in eqn.invars[:2])
        return 2 * math.prod(lhs) * rhs[-1]
    if name == "scan":
        return params["length"] * count_jaxpr(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(count_jaxpr(branch.jaxpr) for branch in params["branches"])
    inner = sum(count_jaxpr(jaxpr) for jaxpr in _inner(params))
    if name == "while" and inner:
        raise UserError(
            "a while loop's trip count is not in its jaxpr, so its FLOPs cannot be counted; "
            "use jax.lax.scan"
        )
    return inner


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Jaxprs inside an equation: of jit, remat, custom derivatives, and the like."""
    for name, value in params.items():
        if name.endswith("jaxpr_thunk") or name in {"fwd", "bwd"}:
            continue  # derivative rules, not executed here
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(eqn: Any) -> int:
    (lhs_contract, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[d] for d in lhs_contract)


def _conv(eqn: Any) -> int:
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    taps = math.prod(kernel[d] for d in numbers.rhs_spec[2:])
    return 2 * math.prod(eqn.outvars[0].aval.shape) * taps * kernel[numbers.rhs_spec[1]]


@lru_cache
def causal_flops(model: ModelConfig, seq_len: int) -> int:
    """FLOPs of one sequence decoded token by token, each against just the context it has."""
    d = model.d_model
    total = 2 * d * model.vocab_size * seq_len
    for block in model.blocks:
        if block.mixer is not None:
            total += _decoded_flops(block.mixer, d, seq_len)
        if block.channel is not None:
            total += block.channel.cost(d, 1).flops * seq_len
    return total


@lru_cache
def _decoded_flops(mixer: MixerConfig, d_model: int, seq_len: int) -> int:
    """Σ over contexts 1 … seq_len of a step's FLOPs, which are concave in the context."""

    def step(context: int) -> int:
        return mixer.step_cost(d_model, context).flops

    def total(first: int, last: int) -> int:
        low, high, middle = step(first), step(last), (first + last) // 2
        chord = (step(middle) - low) * (last - first) == (high - low) * (middle - first)
        if chord and (first < middle or last - first < 2):  # met inside, so it is the function
            return (last - first + 1) * (low + high) // 2
        return total(first, middle) + total(middle + 1, last)

    return total(1, seq_len)


def param_counts(model: ModelConfig) -> dict[str, int]:
    """Parameters as the field counts them; `active` ones are those that one token touches."""
    cost = model.cost(1)
    outside = model.embedding_params
    return {
        "total": cost.params,
        "active": cost.active_params,
        "non_embedding": cost.params - outside,
        "active_non_embedding": cost.active_params - outside,
    }


def step_flops(model: ModelConfig, seq_len: int, batch: int) -> dict[str, int]:
    """What one training step takes under each of CONVENTIONS."""
    counts, cost, tokens = param_counts(model), model.cost(seq_len, batch), batch * seq_len
    return {
        "executed": 3 * cost.flops,
        "matmul": 3 * cost.matmul_flops,
        "causal": 3 * causal_flops(model, seq_len) * batch,
        "6ND": 6 * counts["total"] * tokens,
        "6ND_non_embedding": 6 * counts["non_embedding"] * tokens,
        "6ND_active": 6 * counts["active_non_embedding"] * tokens,
    }


def training_flops(run: Run) -> dict[str, int]:
    """What the whole run takes under each of CONVENTIONS."""
    step = step_flops(run.model, run.budget.seq_len, run.budget.batch)
    return {name: flops * run.budget.steps for name, flops in step.items()}
