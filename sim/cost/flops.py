"""What a run takes in FLOPs, under each of the conventions that the field counts by."""

from __future__ import annotations

from functools import lru_cache

from isoflop.models.base import MixerConfig
from isoflop.models.lm import ModelConfig
from isoflop.sim.optim import Optim
from isoflop.sim.spec import Run


@lru_cache
def causal_flops(model: ModelConfig, seq_len: int) -> int:
    """FLOPs of one sequence decoded token by token, each against just the context it has."""
    d = model.d_model
    total = model.ends(1).flops * seq_len
    if model.retrieval is not None:
        total += model.read_cost.flops * (seq_len // model.retrieval.chunk)
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
    """The number under each of PARAMETERS."""
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


@lru_cache
def _update_flops(optim: Optim, model: ModelConfig) -> int:
    return optim.matmul_flops(model)


WORK = ("executed", "matmul", "causal")  # know the context and the optimiser; 6ND knows neither


def training_flops(run: Run) -> dict[str, int]:
    """What the whole run takes under each of CONVENTIONS, with the runs that it goes on from."""
    step = step_flops(run.model, run.budget.seq_len, run.budget.batch)
    update = _update_flops(run.optim, run.model)
    step |= {name: step[name] + update for name in WORK}
    before = {} if run.start is None else training_flops(run.start)
    return {name: flops * run.budget.steps + before.get(name, 0) for name, flops in step.items()}


def flops_at(run: Run, seq_len: int) -> dict[str, float]:
    """What the run would take under each of CONVENTIONS, had its tokens come in sequences of
    `seq_len`.
    """
    batch, budget = run.budget.batch, run.budget
    sequences = budget.tokens / (batch * seq_len)
    update = _update_flops(run.optim, run.model) * budget.steps
    return {
        name: flops * sequences + update * (name in WORK)
        for name, flops in step_flops(run.model, seq_len, batch).items()
    }
