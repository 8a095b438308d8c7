"""A discrete-event loop of one engine: continuous batching, chunked prompts, preemption.

Each step gives every running sequence a token and reads up to `budget` tokens of prompts, oldest
first (Orca, Yu et al. 2022; Sarathi-Serve, Agrawal et al. 2024, 2403.02310). A prompt is admitted
when `slots` has a place and the memory has room for its states; where growing states fill the
memory, the youngest sequence gives up its states and is read again later (vLLM's recomputation,
Kwon et al. 2023, 2309.06180). Steps in which nothing comes, ends or is read are taken at once, at
their mean context. With one slot and one answered token it is a queue with one server.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.models.errors import UserError

Floats = NDArray[np.float64]

# (sequences, their mean context, tokens of prompts, tokens before those, prompts that end) → s
Clock = Callable[[float, float, float, float, float], float]


@dataclass(frozen=True)
class Engine:
    """What limits a batch."""

    clock: Clock
    state: Callable[[float], float]  # bytes of a sequence's states at a context
    memory: float  # bytes for states
    slots: int  # sequences at once
    budget: int  # tokens of prompts in a step


@dataclass(frozen=True)
class Timeline:
    """Seconds of each request, in the order in which they came."""

    arrived: Floats
    first: Floats  # when its first token was there
    done: Floats
    answers: NDArray[np.int64]
    preempted: int  # times that states were given up
    busy: float  # share of the time in which something ran
    batch: float  # sequences that got a token, mean over steps

    @property
    def ttft(self) -> Floats:
        return self.first - self.arrived

    @property
    def latency(self) -> Floats:
        return self.done - self.arrived

    @property
    def tpot(self) -> Floats:
        """Of requests with more than one token; the others have none."""
        more = self.answers > 1
        return (self.done - self.first)[more] / (self.answers[more] - 1)


@dataclass
class _Request:
    index: int
    prompt: int  # tokens to be read, after a preemption those answered too
    before: int  # tokens in the prefix cache
    answer: int
    read: int = 0
    given: int = 0

    @property
    def context(self) -> int:
        return self.before + self.prompt + self.given


def simulate(
    engine: Engine,
    prompts: NDArray[np.int64],
    answers: NDArray[np.int64],
    arrivals: Floats | None = None,
    users: int | None = None,
    cached: NDArray[np.int64] | None = None,
) -> Timeline:
    """Serve requests that come at `arrivals`, or one after the other from each of `users`.

    `prompts` are tokens to be read, `cached` those before them whose states are there. Raises
    UserError for a request that the memory cannot hold alone.
    """
    count = len(prompts)
    before = np.zeros(count, np.int64) if cached is None else cached
    _check(engine, prompts, answers, before)
    arrived = np.zeros(count) if arrivals is None else np.asarray(arrivals, float)
    first, done = np.zeros(count), np.zeros(count)
    ready = [(float(t), i) for i, t in enumerate(arrived)]
    sent = count
    if users is not None:
        sent = min(users, count)
        ready = ready[:sent]
    heapq.heapify(ready)
    waiting: deque[_Request] = deque()
    reading: deque[_Request] = deque()
    running: list[_Request] = []
    now = used = served = steps = worked = 0.0
    preempted = 0

    while ready or waiting or reading or running:
        if not (waiting or reading or running):
            now = max(now, ready[0][0])
        while ready and ready[0][0] <= now:
            _, i = heapq.heappop(ready)
            waiting.append(_Request(i, int(prompts[i]), int(before[i]), int(answers[i])))
        while waiting and len(running) + len(reading) < engine.slots:
            need = engine.state(waiting[0].before + waiting[0].prompt + 1)
            if used + need > engine.memory and (running or reading):
                break
            used += need
            reading.append(waiting.popleft())

        pieces, left = [], engine.budget
        for request in reading:
            take = min(left, request.prompt - request.read)
            if take <= 0:
                break
            pieces.append((request, take))
            left -= take
        contexts = [request.context for request in running]
        mean = sum(contexts) / len(contexts) if contexts else 1.0
        turns = 1
        if not pieces:  # nothing is read: on to the next change
            turns = min(request.answer - request.given for request in running)
            if ready:
                one = engine.clock(len(running), mean, 0.0, 0.0, 0.0)
                turns = min(turns, max(1, int((ready[0][0] - now) / one) + 1))
            growth = sum(engine.state(c + turns) - engine.state(c) for c in contexts)
            if used + growth > engine.memory:
                turns = 1
        tokens = float(sum(take for _, take in pieces))
        offset = sum((r.before + r.read) * take for r, take in pieces) / tokens if tokens else 0.0
        ending = [r for r, take in pieces if r.read + take == r.prompt]
        each = engine.clock(
            float(len(running)),
            mean + (turns - 1) / 2,
            tokens,
            offset,
            float(len(ending)),
        )
        now += turns * each
        worked += turns * each
        served += turns * (len(running) + len(ending))
        steps += turns

        for request in running:
            used += engine.state(request.context + turns) - engine.state(request.context)
            request.given += turns
        for request, take in pieces:
            request.read += take
        for request in ending:
            reading.remove(request)
            request.given += 1
            if first[request.index] == 0:
                first[request.index] = now
            running.append(request)
        for request in [r for r in running if r.given >= r.answer]:
            running.remove(request)
            used -= engine.state(request.context)
            done[request.index] = now
            if users is not None and sent < count:
                arrived[sent] = now
                heapq.heappush(ready, (now, sent))
                sent += 1
        while used > engine.memory and len(running) > 1:
            victim = running.pop()
            used -= engine.state(victim.context)
            preempted += 1
            again = _Request(
                victim.index, victim.prompt + victim.given, victim.before,
                victim.answer - victim.given,
            )  # fmt: skip
            waiting.appendleft(again)
    span = now - float(arrived.min())
    return Timeline(
        arrived, first, done, np.asarray(answers), preempted, worked / span if span else 1.0,
        served / steps,
    )  # fmt: skip


def _check(
    engine: Engine,
    prompts: NDArray[np.int64],
    answers: NDArray[np.int64],
    before: NDArray,
) -> None:
    longest = int(np.argmax(prompts + answers + before))
    tokens = int((prompts + answers + before)[longest])
    if engine.state(tokens) > engine.memory:
        raise UserError(
            f"a request of {tokens} tokens needs {engine.state(tokens) / 1e9:.3g} GB of state, and "
            f"{engine.memory / 1e9:.3g} GB are left for states; use more chips or a smaller cache "
            "format"
        )
    if not (engine.slots >= 1 and engine.budget >= 1):
        raise UserError(
            f"slots={engine.slots} and budget={engine.budget} must be at least 1; correct them"
        )
