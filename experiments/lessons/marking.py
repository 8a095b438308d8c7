"""Marking an exercise: each answer beside the truth, and what to look at where it is wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.models.errors import UserError, listed, quoted
from isoflop.sim.records.tables import MOST

Answer = float | bool | str
Folder = Path | None  # of records: a class's own; None: as the lessons find them


@dataclass(frozen=True)
class Question:
    """One answer of an exercise; a number is right within the share `within` of the truth."""

    name: str
    asked: str
    truth: Callable[[Folder], Answer]
    hint: str
    within: float = 0.02
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Marked:
    """An answer beside the truth; `off` says in which direction it is wrong, and is empty where it
    is right.
    """

    name: str
    off: str
    hint: str


def grade(
    asked: Sequence[Question], answers: Mapping[str, Any], folder: Folder = None
) -> list[Marked]:
    """Every answer of an exercise, marked. Raises UserError for one that is missing, that nobody
    asked for, or of another kind than was asked for.
    """
    for which, names in (
        ("lacks", [q.name for q in asked if q.name not in answers]),
        ("has beyond them", [name for name in answers if name not in {q.name for q in asked}]),
    ):
        if names:
            raise UserError(
                f"the answer must have {listed([q.name for q in asked])} and {which} "
                f"{listed(names)}; write it as {form(asked)}"
            )
    found = []
    for question in asked:
        truth = question.truth(folder)
        if isinstance(truth, float) and not math.isfinite(truth):
            raise UserError(f"these records do not tell {question.name}; name others, or leave out "
                            "--records")  # fmt: skip
        _check_kind(question, answers[question.name], truth)
        found.append(Marked(question.name, _off(question, answers[question.name], truth),
                            question.hint))  # fmt: skip
    return found


def _check_kind(question: Question, answer: Any, truth: Answer) -> None:
    number = isinstance(answer, int | float) and not isinstance(answer, bool)
    if isinstance(truth, bool):
        fits, kind = isinstance(answer, bool), "true or false"
    elif isinstance(truth, str):
        fits, kind = answer in question.choices, f"one of {listed(question.choices)}"
    else:
        fits, kind = number and abs(answer) < MOST, "a finite number"
    if not fits:
        raise UserError(f"{question.name} must be {kind}, and is {quoted(answer)}; correct it")


def _off(question: Question, answer: Any, truth: Answer) -> str:
    if isinstance(truth, bool | str):
        return "" if answer == truth else "not so"
    if abs(answer - truth) <= question.within * abs(truth):
        return ""
    return f"too {'large' if answer > truth else 'small'} by more than {100 * question.within:g} %"


def form(asked: Sequence[Question]) -> str:
    """The shape of an answer, as JSON."""
    return json.dumps({q.name: "…" if q.choices else None for q in asked},
                      ensure_ascii=False)  # fmt: skip


def told(asked: Sequence[Question]) -> str:
    """The questions, and the form of their answer, for a reader."""
    lines = [
        f"{q.name}: {q.asked}" + (f" ({', '.join(q.choices)})" if q.choices else "") for q in asked
    ]
    return "\n".join([*lines, "", f"answer.json: {form(asked)}"])
