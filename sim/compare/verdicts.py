"""A claim of somebody's, the rule by which records decide it, and the verdict.

The rule is the docstring of the function that applies it, so that what is printed as the rule is
what stood beside the code before its records existed. The function takes the rows of each committed
file that it names and says whether the claim holds in our setting, with the interval that says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.models.errors import UserError
from isoflop.sim.records.store import read_rows, read_table

NOT_RESOLVED, NOT_RUN = "not resolved", "not run"


class Words(NamedTuple):
    """What a kind of claim is said to be when it holds, and when it does not."""

    yes: str
    no: str


LITERATURE = Words("reproduced", "not reproduced")
ACCOUNT = Words("held", "refuted")


@dataclass(frozen=True)
class Finding:
    """What the records say: whether the claim holds (None: they cannot tell), and the result."""

    holds: bool | None
    result: str  # in words, with its interval
    numbers: Mapping[str, Any] = field(default_factory=dict)
    word: str = ""  # instead of the claim's own, as "from published data"


Judge = Callable[..., Finding]


@dataclass(frozen=True)
class Claim:
    """One row of `isoflop verdicts`; `records` are the committed files that it is judged by."""

    name: str
    claim: str
    source: str
    setting: str  # ours
    rule: str
    judge: Judge | None  # None where nothing here can decide it
    records: tuple[str, ...] = ()
    words: Words = LITERATURE
    file: str = ""  # the module that holds it, as "literature"

    def verdict(self, results: Path) -> Verdict:
        """From the files of the folder `results`; "not run" where one of them is missing."""
        if self.judge is None:
            return Verdict(self, "outside a laboratory", self.rule, {})
        missing = [name for name in self.records if not (results / f"{name}.jsonl").is_file()]
        if missing:
            return Verdict(self, NOT_RUN, f"no records of {', '.join(missing)}", {})
        tables = [read(results / f"{name}.jsonl") for name in self.records]
        try:
            found = self.judge(*tables)
        except UserError as error:  # the records are too few for what the rule asks
            found = Finding(None, str(error))
        except LookupError as error:  # … or others than those
            found = Finding(None, f"the records lack what the rule asks for: {error}")
        own = {True: self.words.yes, False: self.words.no, None: NOT_RESOLVED}[found.holds]
        return Verdict(self, found.word or own, found.result, found.numbers)


@dataclass(frozen=True)
class Verdict:
    """A claim, judged."""

    claim: Claim
    word: str
    result: str
    numbers: Mapping[str, Any]

    def json(self) -> dict[str, Any]:
        """Plain values under the names that the table has."""
        claim = self.claim
        told = {name: getattr(claim, name) for name in ("name", "file", "claim", "source")}
        told |= {"setting": claim.setting, "rule": claim.rule, "records": list(claim.records)}
        return told | {"result": self.result, "verdict": self.word, "numbers": dict(self.numbers)}


def claim(
    text: str, *, source: str, setting: str, records: Sequence[str] = (), words: Words = LITERATURE
) -> Callable[[Judge], Claim]:
    """Decorate the function that judges: its name names the claim, its docstring is the rule.

    Raises ValueError where a rule is missing.
    """

    def made(judge: Judge) -> Claim:
        rule = " ".join((inspect.getdoc(judge) or "").split())
        if not rule:
            raise ValueError(f"{judge.__name__} needs its decision rule as a docstring")
        name, file = judge.__name__, judge.__module__.rpartition(".")[2]
        return Claim(name, text, source, setting, rule, judge, tuple(records), words, file)

    return made


def outside(name: str, text: str, *, source: str, why: str, file: str) -> Claim:
    """A claim that no run here can decide, and the reason."""
    return Claim(name, text, source, "none", why, None, file=file)


def read(path: Path) -> list[Any]:
    """Rows of runs, or of a measured table. UserError naming the line that is neither."""
    table = read_table(path)
    return read_rows(path) if table and "record" in table[0] else table


def above(
    low: float | None, high: float | None, threshold: float | tuple[float, float]
) -> bool | None:
    """Whether an interval lies above a threshold, or wholly above another interval; False where it
    lies below. None where they overlap, or where an end that decides is missing.
    """
    floor, ceiling = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    if low is not None and low > ceiling:
        return True
    if high is not None and high < floor:
        return False
    return None


def all_of(answers: Sequence[bool | None]) -> bool | None:
    """True if all are, False if any is not, None where that is open. UserError for no answers."""
    if not answers:
        raise UserError("a verdict needs at least one answer, and its records have none")
    if any(answer is False for answer in answers):
        return False
    return None if any(answer is None for answer in answers) else True


def told(value: float, low: float | None = None, high: float | None = None) -> str:
    """As it stands in a verdict's result: 0.52 [0.48, 0.55]."""
    if low is None or high is None:
        return f"{value:z.2f}"
    return f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"
