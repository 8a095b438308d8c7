"""What fits: weights and states on each chip, and how many sequences at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from isoflop.models.errors import UserError
from isoflop.sim.cost.serving.deployment import Workload
from isoflop.sim.cost.serving.work import Replica

USABLE = 0.9  # of a chip's memory; the rest is for activations: vLLM's gpu_memory_utilization
SLOTS = 1024  # sequences at once of one data group: vLLM's max_num_seqs on large chips


@dataclass(frozen=True)
class Memory:
    """What a replica's memory holds: bytes over all its chips, copies counted."""

    weights: float
    per_sequence: float  # of states, at the workload's longest
    per_token: float  # that the last token of a context adds
    left: float  # for states, beside the weights
    capacity: float  # of the chips
    total: float  # used: weights and the states of the sequences that run
    largest_batch: int  # sequences whose states fit, each at its longest


def weights_on_a_chip(replica: Replica) -> float:
    """Bytes of weights on each chip: experts are split over all, the rest over `tensor`."""
    on = replica.on
    dense = (replica.resident - replica.expert_params) / on.tensor
    own = (dense + replica.expert_params / on.count) * on.weight_bytes
    return own + (weights_on_a_chip(replica.draft) if replica.draft else 0.0)


def states_on_a_chip(replica: Replica, context: float) -> float:
    """Bytes of one sequence's states on each chip of its data group."""
    own = float(replica.state(context))
    return own + (states_on_a_chip(replica.draft, context) if replica.draft else 0.0)


def left_on_a_chip(replica: Replica) -> float:
    """Bytes for states on each chip."""
    return max(0.0, USABLE * replica.on.device.memory_bytes - weights_on_a_chip(replica))


def room(replica: Replica, context: float) -> float:
    """Sequences whose states fit at a context, over all data groups, at most SLOTS in each."""
    on = replica.on
    return on.data * min(SLOTS, left_on_a_chip(replica) / states_on_a_chip(replica, context))


def memory(replica: Replica, workload: Workload, running: float) -> Memory:
    """What the replica holds with so many sequences running. UserError for what does not fit."""
    on, context = replica.on, workload.prompt + workload.answer
    weights, usable = weights_on_a_chip(replica), USABLE * on.device.memory_bytes
    chips = f"{on.device.name}, {USABLE:.0%} of {on.device.memory_bytes / 1e9:.4g} GB"
    if weights > usable:
        raise UserError(
            f"{on.name} needs {weights / 1e9:.4g} GB of {on.weights} weights on each of "
            f"{on.count} chips ({chips}) and lacks {(weights - usable) / 1e9:.3g} GB: use more "
            "chips or a smaller format"
        )
    longest, left = states_on_a_chip(replica, context), usable - weights
    if longest > left:
        raise UserError(
            f"{on.name} needs {longest / 1e9:.4g} GB for the states of one sequence of {context} "
            f"tokens beside its weights on each chip ({chips}) and lacks "
            f"{(longest - left) / 1e9:.3g} GB: use more chips, or a smaller format or context"
        )
    mean = states_on_a_chip(replica, workload.prompt + workload.answer / 2)
    return Memory(
        weights=on.count * weights,
        per_sequence=on.tensor * longest,
        per_token=on.tensor * (longest - states_on_a_chip(replica, context - 1)),
        left=on.count * left,
        capacity=on.count * on.device.memory_bytes,
        total=on.count * weights + running * on.tensor * mean,
        largest_batch=math.floor(room(replica, context) / on.data) * on.data,
    )
