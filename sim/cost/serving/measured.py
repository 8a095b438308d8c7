"""Measured serving points: of one deployment, and of many side by side, ready for many fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.sim.cost.serving.clock import Load, Parts, parts, settled
from isoflop.sim.cost.serving.deployment import Deployment
from isoflop.sim.cost.serving.memory import room
from isoflop.sim.cost.serving.work import TOUCHING, Replica

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """Points (n,) of one deployment."""

    on: Deployment
    model: str
    replica: Replica
    load: Load
    ttft: Floats  # seconds
    tpot: Floats

    @property
    def unit(self) -> str:
        """What is held out as a whole."""
        return f"{self.model}, {self.on.device.name}, {self.on.engine}"


def measured(
    on: Deployment, model: str, prompt: Floats, answer: Floats, users: Floats, ttft: Floats,
    tpot: Floats,
) -> Measured:  # fmt: skip
    """Points of a deployment: tokens, users and seconds, (n,) each."""
    replica = Replica(on, int(np.max(prompt + answer)))
    fit = np.array([room(replica, c) for c in prompt + answer / 2])
    load = Load(prompt, prompt, answer, users, np.maximum(fit, 1.0))
    return Measured(on, model, replica, load, ttft, tpot)


@dataclass(frozen=True)
class SideBySide:
    """Points (n,) of deployments, one after the other.

    A step's features are affine in how many sequences run, but for the bytes of experts, which are
    linear between the numbers of tokens in TOUCHING: so the replicas are asked once.
    """

    seen: Floats  # (2, n) log seconds: TTFT, TPOT
    load: Load
    engine: NDArray[Any]  # name of a point's
    whose: NDArray[np.int64]  # the deployment of a point
    experts: Floats  # (deployments, TOUCHING) seconds for the bytes of experts
    names: tuple[tuple[str, ...], tuple[str, ...]]  # of steps and of features
    none: Floats  # (steps, features, n) where nothing runs
    more: Floats  # … what each sequence adds

    def __len__(self) -> int:
        return len(self.whose)

    def take(self, points: NDArray[Any]) -> SideBySide:
        """Some points, or some several times: their numbers, or a mask (n,)."""
        load = Load(*(getattr(self.load, f.name)[points] for f in fields(Load)))
        return replace(
            self, seen=self.seen[:, points], load=load, engine=self.engine[points],
            whose=self.whose[points], none=self.none[..., points], more=self.more[..., points],
        )  # fmt: skip

    def parts(self, running: Floats) -> Parts:
        """Features of the steps with so many sequences running, (n,)."""
        steps, features = self.names
        values = self.none + self.more * running
        experts = features.index("expert_bytes")
        values[steps.index("plain"), experts] = self._experts(running)
        values[steps.index("mixed"), experts] = self._experts(running + self.load.piece)
        return {
            s: dict(zip(features, own, strict=True)) for s, own in zip(steps, values, strict=True)
        }

    def _experts(self, tokens: Floats) -> Floats:
        at = np.clip(np.searchsorted(TOUCHING, tokens, side="right") - 1, 0, len(TOUCHING) - 2)
        low, high = self.experts[self.whose, at], self.experts[self.whose, at + 1]
        return low + (high - low) * (tokens - TOUCHING[at]) / (TOUCHING[at + 1] - TOUCHING[at])

    def times(self, shared: Mapping[str, Any], engine: Mapping[str, Any]) -> tuple[Floats, Floats]:
        """(TTFT, TPOT) in seconds, by coefficients of each point's engine, (n,)."""
        return settled(self.parts, self.load, shared, engine)


def side_by_side(table: Sequence[Measured]) -> SideBySide:
    """All points of a table."""
    counts = [len(m.ttft) for m in table]
    found = [[parts(m.replica, m.load, np.full(n, float(running))) for running in (0, 1)]
             for m, n in zip(table, counts, strict=True)]  # fmt: skip
    steps = tuple(found[0][0])
    features = tuple(found[0][0][steps[0]])
    none, one = np.concatenate(
        [
            [
                [[np.broadcast_to(own[s][name], n) for name in features] for s in steps]
                for own in both
            ]
            for both, n in zip(found, counts, strict=True)
        ],
        axis=-1,
    )
    loads = (np.concatenate([getattr(m.load, f.name) for m in table]) for f in fields(Load))
    seen = [np.concatenate([getattr(m, name) for m in table]) for name in ("ttft", "tpot")]
    return SideBySide(
        seen=np.log(seen),
        load=Load(*loads),
        engine=np.repeat([m.on.engine for m in table], counts),
        whose=np.repeat(np.arange(len(table)), counts),
        experts=np.array([m.replica.touched_bytes / m.on.device.bytes_per_second for m in table]),
        names=(steps, features),
        none=none,
        more=one - none,
    )  # fmt: skip
