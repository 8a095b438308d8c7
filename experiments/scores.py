"""Published scores that are committed with their origin (experiments/published/README.md)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PUBLISHED = Path(__file__).parent / "published"
TASKS = {  # task → its questions and the score of guessing; of each test set's own paper
    "mmlu": (14_042, 0.25),
    "arc_c": (1_172, 0.25),
    "hellaswag": (10_042, 0.25),
    "winograd": (1_267, 0.5),
    "gsm8k": (1_319, 0.0),
    "humaneval": (164, 0.0),
}
ORIGIN = "ryoungj/ObsScaling @ 4d6e1e4"
ROUTED = "lm-sys/RouteLLM @ 0b64fda"


@dataclass(frozen=True)
class Scored:
    """A base model; sizes in parameters and tokens, scores from 0 to 1."""

    model: str
    family: str
    params: float
    tokens: float | None
    date: str  # year and month of its report, as 2302; empty where it has none
    score: dict[str, float]

    def above(self, task: str) -> float:
        """The score above guessing, over that of a perfect one."""
        guess = TASKS[task][1]
        return (self.score[task] - guess) / (1.0 - guess)


@cache
def scores() -> tuple[Scored, ...]:
    """Every model of the table."""
    return tuple(
        Scored(
            row["model"].rpartition("/")[2],
            row["family"],
            float(row["params_b"]) * 1e9,
            float(row["tokens_t"]) * 1e12 if row["tokens_t"] else None,
            row["paper"].partition(".")[0],
            {task: float(row[task]) for task in TASKS if row[task]},
        )
        for row in _rows("benchmark_scores.csv")
    )


def families(task: str, span: float = 1.0, least: float = 0.0) -> dict[str, list[Scored]]:
    """Models with a score on the task, by family and size: families whose largest is at least
    `span` times its smallest, and scores at least `least` above guessing.
    """
    found: dict[str, list[Scored]] = {}
    for model in sorted(scores(), key=lambda m: m.params):
        if task in model.score:
            found.setdefault(model.family, []).append(model)
    return {
        name: group
        for name, group in found.items()
        if group[-1].params >= span * group[0].params and group[-1].above(task) >= least
    }


def routing(task: str = "gsm8k") -> dict[tuple[bool, bool], int]:
    """(small right, large right) → questions of a task, gsm8k or mmlu."""
    found: dict[tuple[bool, bool], int] = {}
    for small, large, count, _ in routed(task):
        found[small, large] = found.get((small, large), 0) + count
    return found


def routed(task: str) -> list[tuple[bool, bool, int, int]]:
    """(small right, large right, questions, rank of their length: longer ones have a higher)."""
    return [
        (row["small_correct"] == "1", row["large_correct"] == "1", int(row["questions"]),
         int(row["length"]))
        for row in _rows(f"routing_{task}.csv")
    ]  # fmt: skip


def _rows(name: str) -> Iterator[dict[str, str]]:
    with (PUBLISHED / name).open(newline="", encoding="utf-8") as file:
        yield from csv.DictReader(file)
