"""How long a step takes: the roofline's parts, and a few coefficients that measurements gave.

    step = Σ c · (dense weights, experts, states: their bytes / bandwidth; their FLOPs / peak)
         + c · bytes over links / their rate + c · (messages, layers, routed layers, split experts)
         + e_0 + e_1 · sequences                                        e: of the engine

With c = 1 and nothing else each term is one of the bare roofline's; that the terms add up, and not
their maxima, is what measurements say (order 1 of Hölder means between 1 and 8 fitted best). Where
prompts of P tokens come in beside B sequences that get A tokens each, a step has P/(T·A)·B pieces
of T = min(P, budget) tokens on average, so

    TPOT = step(B) + c · B·P/(A·T) · (step(B and a piece) − step(B))
    TTFT = t_0 + (t_1 + t_2·C)·prefill + t_3·TPOT + t_4·A·TPOT/C + queue          t: of the engine

with `prefill` a step of the prompt alone, B = C·A·TPOT / (TTFT + A·TPOT) (Little's law), and
`queue` what those wait for whom the memory has no room. Calibrated by calibrate.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from isoflop.sim.cost.serving.deployment import Speculation
from isoflop.sim.cost.serving.work import Replica, Step

TURNS = 5  # of times and the number that runs, until they agree
BUDGET = 8192  # tokens of prompts in a step: vLLM's max_num_batched_tokens on large chips
COUNTED = ("messages", "layers", "routed_layers", "split_layers")  # µs each
PARTS = {  # coefficient → what it is a part of
    "dense_bytes": "memory", "expert_bytes": "memory", "state_bytes": "memory",
    "dense_flops": "compute", "expert_flops": "compute", "context_flops": "compute",
    "link_bytes": "links", **dict.fromkeys(COUNTED, "overhead"),
}  # fmt: skip
SHARED = (*PARTS, "pieces")
ENGINE = (
    "step",
    "sequence",
    "ttft",
    "ttft_prefill",
    "ttft_queue",
    "ttft_steps",
    "ttft_slot",
)


def features(replica: Replica, step: Step) -> dict[str, Any]:
    """Seconds of the bare roofline, or counts, by the names in SHARED; and the sequences."""
    on = replica.on
    chip, routed = on.device, sum(replica.sparse.values())
    peak, bandwidth = chip.peak(on.multiplied), chip.bytes_per_second
    return {
        "dense_bytes": step.dense_bytes / bandwidth,
        "expert_bytes": step.expert_bytes / bandwidth,
        "state_bytes": step.state_bytes / bandwidth,
        "dense_flops": step.dense_flops / peak,
        "expert_flops": step.expert_flops / peak,
        "context_flops": step.context_flops / chip.flops_per_second,
        "link_bytes": step.link_bytes / (chip.link_bytes_per_second or 1.0),
        "messages": step.messages,
        "layers": replica.layers,
        "routed_layers": routed,
        "split_layers": routed * (on.expert > 1),
        "sequences": step.sequences,
    }


def seconds(found: Mapping[str, Any], shared: Mapping[str, Any], engine: Mapping[str, Any]) -> Any:
    """Of one step with these features."""
    return sum(_shares(found, shared, engine).values())


def bound(found: Mapping[str, Any], shared: Mapping[str, Any], engine: Mapping[str, Any]) -> str:
    """What takes most of a step: memory, compute, links or overhead."""
    told: dict[str, float] = defaultdict(float)
    for name, share in _shares(found, shared, engine).items():
        told[PARTS.get(name, "overhead")] += float(share)
    return max(told, key=lambda part: told[part])


def _shares(
    found: Mapping[str, Any], shared: Mapping[str, Any], engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Seconds of a step by what takes them."""
    unit = dict.fromkeys(COUNTED, 1e-6)
    taken = {name: unit.get(name, 1.0) * shared[name] * found[name] for name in PARTS}
    own = 1e-3 * engine["step"] + 1e-6 * engine["sequence"] * found["sequences"]
    return taken | {"engine": own}


@dataclass(frozen=True)
class Load:
    """Users of a replica at once, numbers or arrays of one shape."""

    prompt: Any  # tokens that are read
    context: Any  # tokens before the answer: the cached ones too
    answer: Any
    users: Any
    room: Any  # sequences for which the memory has room

    @property
    def piece(self) -> Any:
        """Tokens of prompts in a step that has some."""
        return np.minimum(self.prompt, float(BUDGET))

    @property
    def most(self) -> Any:
        """Sequences that can run."""
        return np.minimum(self.users, self.room)

    def running(self, ttft: Any, tpot: Any) -> Any:
        """Sequences that run where each user waits `ttft` and then gets its tokens (Little)."""
        answering = self.answer * tpot
        return np.minimum(self.most, self.users * answering / (ttft + answering))


Parts = Mapping[str, Mapping[str, Any]]  # step → its features


def parts(replica: Replica, load: Load, running: Any) -> Parts:
    """Features of the steps that a load consists of, with so many sequences running."""
    spoken = replica.on.speculation
    width = 1 if spoken is None else spoken.tokens + 1
    context, before = load.context + load.answer / 2, load.context - load.prompt
    steps = {
        "prompt": replica.step(0.0 * load.prompt, 1.0, load.prompt, before, 1.0),
        "plain": replica.step(running, context, width=width),
        "mixed": replica.step(running, context, load.piece, before, 1.0, width),
    }
    found = {name: features(replica, step) for name, step in steps.items()}
    if replica.draft is not None:
        found["draft"] = features(replica.draft, replica.draft.step(running, context))
    return found


def closed(
    found: Parts,
    load: Load,
    running: Any,
    shared: Mapping[str, Any],
    engine: Mapping[str, Any],
    spoken: Speculation | None = None,
) -> tuple[Any, Any]:
    """(TTFT, TPOT) in seconds: the module's equations at so many sequences running."""
    prompt, plain, mixed = (
        seconds(found[name], shared, engine) for name in ("prompt", "plain", "mixed")
    )
    pieces = running * load.prompt / (load.answer * load.piece)
    tpot = plain + shared["pieces"] * pieces * (mixed - plain)
    if spoken is not None:
        drafts = spoken.tokens * seconds(found["draft"], shared, engine) if "draft" in found else 0
        tpot = (tpot + drafts) / spoken.per_turn
    queue = (load.users - load.most) / load.most * load.answer * tpot
    ttft = (
        1e-3 * engine["ttft"]
        + (engine["ttft_prefill"] + engine["ttft_queue"] * load.most) * prompt
        + engine["ttft_steps"] * tpot
        + engine["ttft_slot"] * load.answer * tpot / load.users
        + queue
    )
    return ttft, tpot


def times(
    replica: Replica, load: Load, shared: Mapping[str, Any], engine: Mapping[str, Any]
) -> tuple[Any, Any]:
    """(TTFT, TPOT) with as many sequences running as these times imply."""
    spoken = replica.on.speculation
    return settled(partial(parts, replica, load), load, shared, engine, spoken)


def settled(
    parts_of: Callable[[Any], Parts],
    load: Load,
    shared: Mapping[str, Any],
    engine: Mapping[str, Any],
    spoken: Speculation | None = None,
) -> tuple[Any, Any]:
    """The same, of the steps' features by how many sequences run."""
    running = load.most + 0.0 * load.answer
    for _ in range(TURNS):
        ttft, tpot = closed(parts_of(running), load, running, shared, engine, spoken)
        running = load.running(ttft, tpot)
    return ttft, tpot
