"""What one step of an engine asks of each chip: FLOPs, bytes of weights and of states, links.

A step decodes one token of each running sequence and reads a piece of a prompt beside them
(chunked prefill, 2308.16369). Everything is from the mixers' and channel mixers' own arithmetic:
FLOPs of a token from `step_cost`, of a prompt their sum over its contexts (the convention
`causal`); states from `state_size`, where what grows with the context is a cache, read each step,
and the rest a recurrent state in fp32, read and written; weights once a step, of experts those that
the step's tokens touch in expectation. Costs are linear in the context between the lengths of
windows, so they are kept as knots and exact between them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.models.base import ChannelConfig, MixerConfig
from isoflop.sim.cost.serving.deployment import Deployment

Floats = NDArray[np.float64]

RECURRENT_BYTES = 4.0  # of an element of a recurrent state
SUMMED_BYTES = 2.0  # of an activation that chips add up
# numbers of tokens between which the experts that they touch are interpolated
TOUCHING = np.unique(np.append(np.arange(65.0), np.geomspace(64, 1e7, 120).round()))


@dataclass(frozen=True)
class Step:
    """Of one chip, in one step; numbers or arrays of one shape."""

    dense_flops: Any  # of weights, in the format that they are multiplied in
    expert_flops: Any  # of routed and shared experts and routers, the same
    context_flops: Any  # of queries, keys, values and states, in bf16
    dense_bytes: Any  # of weights
    expert_bytes: Any
    state_bytes: Any
    link_bytes: Any
    messages: Any  # sums over chips, one after the other
    sequences: Any  # of a data group that get a token


class Replica:
    """A deployment's arithmetic, ready for many steps."""

    def __init__(self, on: Deployment, longest: int):
        self.on = on
        model = on.model
        self.mixers = Counter(b.mixer for b in model.blocks if b.mixer is not None)
        self.channels = Counter(b.channel for b in model.blocks if b.channel is not None)
        windows = (getattr(mixer, "window", None) for mixer in self.mixers)
        inside = {w for w in windows if w is not None and w < longest}
        self.knots = np.array(sorted({0, 1, *inside, max(2, longest)}), float)
        cost = {m: self._mixer(m) for m in self.mixers}
        d = model.d_model
        self.layers = len(model.blocks)
        self.base_flops = sum(n * cost[m][0] for m, n in self.mixers.items())
        none = np.zeros(len(self.knots))
        self.context_flops = sum((n * cost[m][1] for m, n in self.mixers.items()), none)
        self.growing = sum((n * cost[m][2] for m, n in self.mixers.items()), none)  # of one chip
        self.fixed = sum(n * cost[m][3] for m, n in self.mixers.items())
        self.dense = {c: n for c, n in self.channels.items() if not routed(c)}
        self.sparse = {c: n for c, n in self.channels.items() if routed(c)}
        self.dense_flops = sum(n * c.cost(d, 1).flops for c, n in self.dense.items())
        self.sparse_flops = sum(n * c.cost(d, 1).flops for c, n in self.sparse.items())
        head = model.vocab_size * d
        self.head_flops = 2 * head
        every = model.cost(1).params
        self.expert_params = sum(n * c.cost(d, 1).params for c, n in self.sparse.items())
        table = 0 if model.tie_embeddings else head
        self.read_params = every - self.expert_params - table  # each step, outside of experts
        self.resident = every + on.extra_params
        spoken = on.speculation
        self.draft: Replica | None = None
        if spoken is not None and spoken.draft is not None:
            own = replace(on, model=spoken.draft, speculation=None, extra_params=0)
            self.draft = Replica(own, longest)
        touched = np.array([self._touched(int(t)) for t in TOUCHING])
        self.touched_bytes = touched / on.count * on.weight_bytes  # on one chip

    def _mixer(self, mixer: MixerConfig) -> tuple[float, Floats, Floats, float]:
        """(FLOPs of a token without context, those of its context at the knots, bytes of its cache
        on one chip at the knots, bytes of its recurrent state on one chip).
        """
        d, on = self.on.model.d_model, self.on
        flops = np.array([mixer.step_cost(d, int(k)).flops if k else 0 for k in self.knots], float)
        flops[0] = 2 * flops[1] - mixer.step_cost(d, 2).flops  # what a first token lacks: none
        sizes = np.array([mixer.state_size(d, int(k)) for k in self.knots], float)
        parts = min(on.tensor, mixer.state_parts or on.tensor)
        growing = (sizes - sizes[0]) * on.cache_bytes / parts
        return (
            flops[0],
            flops - flops[0],
            growing,
            sizes[0] * RECURRENT_BYTES / on.tensor,
        )

    def state(self, context: Any) -> Any:
        """Bytes of one sequence's states on each chip that has them."""
        return np.interp(context, self.knots, self.growing) + self.fixed

    def _touched(self, tokens: int) -> float:
        """Weights of experts, shared ones and routers that so many tokens read, over all chips."""
        d = self.on.model.d_model
        return sum(n * c.touched_params(d, tokens) for c, n in self.sparse.items()) * (tokens > 0)

    def step(self, batch: Any, context: Any, tokens: Any = 0.0, done: Any = 0.0,
             prompts: Any = 0.0, width: int = 1) -> Step:  # fmt: skip
        """`batch` sequences get a token at `context` on average, or have `width` of a draft's
        verified; `tokens` of a prompt are read after `done` of it, which ends `prompts` prompts.
        """
        on, d = self.on, self.on.model.d_model
        every = width * batch + tokens
        rank = every / on.data
        dense = rank * (self.base_flops + self.dense_flops) / on.tensor
        dense = dense + (width * batch + prompts) * self.head_flops / on.count
        decoded = width * batch * np.interp(context, self.knots, self.context_flops)
        read = self._sum(done + tokens) - self._sum(done)
        states = batch / on.data * (self.state(context) + self.fixed)
        states = states + (tokens > 0) / on.data * (self.state(done + tokens) + self.fixed)
        links, messages = self._links(rank, every)
        return Step(
            dense_flops=dense,
            expert_flops=every * self.sparse_flops / on.count,
            context_flops=(decoded + read) / on.data / on.tensor,
            dense_bytes=self.read_params / on.tensor * on.weight_bytes + 0 * every,
            expert_bytes=np.interp(every, TOUCHING, self.touched_bytes),
            state_bytes=states,
            link_bytes=links * d * SUMMED_BYTES,
            messages=messages + 0 * every,
            sequences=(batch + prompts) / on.data,
        )

    def _sum(self, tokens: Any) -> Any:
        """Σ of `context_flops` over contexts 1 … tokens: of a piecewise linear function."""
        return _integral(tokens, self.knots, self.context_flops)

    def _links(self, rank: Any, every: Any) -> tuple[Any, float]:
        """(elements that a chip sends, without the width; sums one after the other): a sum over
        chips sends 2 (n − 1) / n of what is summed; routed tokens go there and back.
        """
        on = self.on
        mixers, dense = sum(self.mixers.values()), sum(self.dense.values())
        sparse = sum(self.sparse.values())
        among = 2 * (on.tensor - 1) / on.tensor
        sent = rank * among * (mixers + dense)
        sent = sent + every * 2 * (on.count - 1) / on.count * sparse / on.data
        messages = (mixers + dense) * (on.tensor > 1) + sparse * (on.count > 1) * (
            1 + (on.data > 1 or on.expert > 1)
        )
        return sent, messages


def routed(channel: ChannelConfig) -> bool:
    """Whether a token touches a part of the weights alone."""
    cost = channel.cost(1, 1)
    return cost.active_params < cost.params


def _integral(tokens: Any, knots: Floats, values: Floats) -> Any:
    """Σ_{c=1}^{tokens} of the piecewise linear function through (knots, values)."""
    widths, slopes = np.diff(knots), np.diff(values) / np.diff(knots)
    # Σ over (k, k + w] of v + s·(c − k) = v·w + s·w·(w + 1) / 2
    pieces = values[:-1] * widths + slopes * widths * (widths + 1) / 2
    before = np.concatenate([[0.0], np.cumsum(pieces)])
    i = np.clip(np.searchsorted(knots, tokens, side="right") - 1, 0, len(widths) - 1)
    w = tokens - knots[i]
    return before[i] + values[i] * w + slopes[i] * w * (w + 1) / 2
