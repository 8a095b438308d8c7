"""State tracking: what a sequence of moves has made of a state, which a counter or a table follows.

The answer stands beside the inputs as a label (`Batch.labels`), after each of them or after the
last alone, so that no answer is ever an input.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, model_validator

from isoflop.sim.data.source import Batch
from isoflop.sim.data.tasks.base import LENGTH_MAX, VOCAB_MAX, Task, labelled


class StateTask(Task):
    """`asked`: after every input, or after the last alone, which is harder to learn."""

    asked: Literal["every", "last"] = "every"

    def size(self, length: int) -> int:
        return length + 1

    def _labelled(
        self,
        inputs: Int[np.ndarray, "n t"],
        states: Int[np.ndarray, "n t"],
        length: Int[np.ndarray, "n"],
    ) -> Batch:
        """The examples without what is after their ends."""
        place = np.arange(inputs.shape[1])
        inside = place < length[:, None]
        asked = inside if self.asked == "every" else place == length[:, None] - 1
        return labelled(inputs * inside, states * inside, asked)


class Counting(StateTask):
    """The sum of `length` digits modulo `modulus`."""

    modulus: int = Field(ge=2, le=VOCAB_MAX)
    length: int = Field(40, ge=1, le=LENGTH_MAX)

    @property
    def vocab_size(self) -> int:
        return self.modulus

    @property
    def answers(self) -> range:
        return range(self.modulus)

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        digits = rng.integers(self.modulus, size=(len(length), self.length))
        return self._labelled(digits, digits.cumsum(axis=1) % self.modulus, length)


class ModularCounting(Counting):
    """The sum of `length` digits modulo `modulus`: a cyclic group's word problem.

    Grazzi et al. 2024 (2411.12537, section 5.1: modular arithmetic without brackets, of additions
    alone). Dials: modulus, length, asked. Chance 1/modulus.
    """

    kind: Literal["modular_counting"] = "modular_counting"
    modulus: int = Field(3, ge=2, le=VOCAB_MAX)


class Parity(Counting):
    """Whether the ones among `length` bits are odd in number.

    Grazzi et al. 2024 (2411.12537, section 5.1), who train on lengths 3 to 40 and test on 40 to
    256: eigenvalues in [0, 1] cannot follow it. Dials: length, asked. Chance 1/2.
    """

    kind: Literal["parity"] = "parity"
    modulus: Literal[2] = 2


Group = Literal["S3", "S4", "S5", "A4", "A5"]


class WordProblem(StateTask):
    """The product of `length` permutations of a group: S5 and A5 are not solvable, S3 is.

    Merrill et al. 2024 (2404.08819, section 5): one layer of fixed precision cannot follow S5 and
    A5 at any length. Tokens are all of the group's elements, g₁·g₂ means g₂ after g₁. With `moved`,
    all permutations but the first move at most so many points, as in Grazzi et al. 2024
    (2411.12537, section 5.2: swaps alone are 2). Dials: group, length, moved, asked. Chance one in
    the group's order.
    """

    kind: Literal["word_problem"] = "word_problem"
    group: Group = "S5"
    length: int = Field(16, ge=1, le=LENGTH_MAX)
    moved: int | None = Field(None, ge=2, le=5)

    @model_validator(mode="after")
    def _has_moves(self) -> WordProblem:
        points, least = int(self.group[1]), 3 if self.group[0] == "A" else 2
        if self.moved is not None and not least <= self.moved <= points:
            raise ValueError(
                f"moved={self.moved} must be from {least} to {points}, the points that a "
                f"permutation of {self.group} other than the identity may move; change it"
            )
        return self

    @property
    def vocab_size(self) -> int:
        return len(elements(self.group))

    @property
    def answers(self) -> range:
        return range(self.vocab_size)

    def draw(self, rng: np.random.Generator, length: Int[np.ndarray, "n"]) -> Batch:
        group, times = elements(self.group), products(self.group)
        few = (group != np.arange(group.shape[1])).sum(axis=1) <= (self.moved or group.shape[1])
        moves = rng.choice(np.flatnonzero(few), size=(self.length, len(length)))
        moves[0] = rng.integers(len(group), size=len(length))  # so that every state is as likely
        states = moves.copy()
        for t in range(1, self.length):
            states[t] = times[states[t - 1], moves[t]]
        return self._labelled(moves.T, states.T, length)


@cache
def elements(group: str) -> Int[np.ndarray, "g points"]:
    """Its permutations in lexicographic order, the identity first."""
    every = np.array(list(itertools.permutations(range(int(group[1])))))
    if group[0] == "S":
        return every
    later, earlier = np.triu_indices(every.shape[1], 1)
    return every[(every[:, later] > every[:, earlier]).sum(axis=1) % 2 == 0]


@cache
def products(group: str) -> Int[np.ndarray, "g g"]:
    """The number of b after a, at [a, b]."""
    found = elements(group)
    number = {tuple(one): i for i, one in enumerate(found.tolist())}
    return np.array([[number[tuple(b[a])] for b in found] for a in found])
