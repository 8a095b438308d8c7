"""`isoflop check`: mark the exercise of a lesson."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from isoflop import experiments
from isoflop.experiments.cli.flags import HELP, Usage, parse
from isoflop.models.errors import UserError
from isoflop.sim.jsonlines import json_object

LESSONS = tuple(f"lesson{i}" for i in range(1, 9))


def check(args: Sequence[str]) -> int:
    """Mark the exercise of a lesson: what is right, what is off and what to look at again.

    Without a file, print its questions and the form of an answer. Exit codes: 0, all is right; 1,
    something is wrong; 2, the answer cannot be read.
    """
    about = f"{inspect.getdoc(check)}\n\nLESSON is one of {', '.join(LESSONS)}."
    if args and args[0] not in HELP and not args[0].startswith("-"):
        experiments.pick(args[0], LESSONS, "lesson")
    lesson, file, records = parse("check", about, args, _flags)[0]
    from isoflop.experiments.lessons.exercises import EXERCISES
    from isoflop.experiments.lessons.marking import grade, told

    asked = EXERCISES[lesson]
    if file is None:
        print(told(asked))
        return 0
    if records is not None and not records.is_dir():
        raise Usage(f"there is no folder {records}; name one that holds NAME.jsonl")
    marked = grade(asked, _read(file), records)
    for one in marked:
        print(f"wrong: {one.name} is {one.off}" if one.off else f"right: {one.name}")
        if one.off:
            print(f"  look again: {one.hint}")
    wrong = sum(bool(one.off) for one in marked)
    print(f"{len(marked) - wrong} of {len(marked)} right")
    return int(wrong > 0)


def _flags(
    lesson: Annotated[str, tyro.conf.Positional],
    file: Annotated[Path | None, tyro.conf.Positional] = None,
    records: Path | None = None,
) -> tuple[str, Path | None, Path | None]:
    """What is marked.

    Args:
        lesson: lesson1 to lesson8.
        file: your answer, a JSON object; without it the questions are printed.
        records: a folder of your own records that the answer is of, as runs/lessons after lessons
            1 and 2 with your corpus; without it those that the lessons read.
    """
    return lesson, file, records


def _read(file: Path) -> dict:
    if not file.is_file():
        raise UserError(f"there is no file {file}; write your answer there, as JSON")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} must be text in UTF-8: {error}; write it again") from None
    return json_object(text, str(file))
