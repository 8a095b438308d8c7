"""`isoflop list`, `describe` and `init`: what experiments there are, and one to start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import experiments
from isoflop.experiments.cli.flags import HELP, ListFlags, Usage, parse
from isoflop.experiments.cli.text import print_json, table

if TYPE_CHECKING:
    from isoflop.sim.durable import Place


def list_(json: bool = False) -> None:
    """Name every experiment and its question.

    Args:
        json: print JSON instead of a table.
    """
    found = experiments.discover().values()
    if json:
        print_json([{**asdict(item), "question": item.question} for item in found])
    else:
        rows = [{"experiment": item.name, "question": item.question} for item in found]
        print(table(rows, left=("experiment", "question")))


def describe(args: Sequence[str]) -> int:
    """Print an experiment's question, command, duration and expected answer."""
    experiment, rest = named("describe", describe.__doc__, args, ListFlags)
    (flags,) = parse(f"describe {experiment.word}", describe.__doc__, rest, ListFlags)
    if flags.json:
        print_json({**asdict(experiment), "question": experiment.question})
    else:
        print(experiment.doc)
    return 0


def init(file: Path) -> None:
    """Write a small experiment that works, with comments that teach, to make your own of.

    Args:
        file: where, as in mine.py; a file that is there is left alone.
    """
    if file.suffix != ".py":
        raise Usage(f"{file} must end in .py, as in isoflop init mine.py")
    text = files(__package__).joinpath("starter.py").read_text(encoding="utf-8")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text.replace("THIS_FILE", str(file)))
    except FileExistsError:
        raise Usage(f"{file} is there already, and is left as it is; name another file") from None
    print(f"{file} is written; next: isoflop run {file} --dry-run")


def named(
    verb: str, about: str | None, args: Sequence[str], *flags: Callable[..., Any]
) -> tuple[experiments.Experiment, Sequence[str]]:
    """The experiment named right after the verb, and the arguments that follow."""
    if args and args[0] in HELP:
        names = ", ".join(experiments.discover())
        about = (
            f"{about}\n\nNAME is a file of yours, or one of: {names}. "
            f"isoflop {verb} NAME --help shows its own options too."
        )
        parse(f"{verb} NAME", about, ["--help"], *flags)
    if not args or args[0].startswith("-"):
        raise Usage(f"name the experiment first: isoflop {verb} NAME [OPTIONS]; see isoflop list")
    return experiments.find(args[0]), args[1:]


def runs_directory(runs: Path) -> Place:
    """One that is there, or an object store's folder. Usage if there is none."""
    from isoflop.sim.durable import place, unreachable

    there = place(runs)
    try:
        there.stat()  # is_dir tells of no error
        found = there.is_dir()
    except (FileNotFoundError, NotADirectoryError):
        found = False
    except Exception as error:  # whatever a store's package raises
        raise unreachable(there, error) from None
    if not found:
        raise Usage(f"there is no runs directory {there}; name another with --runs")
    return there


def measured(runs: Path, name: str) -> Path:
    """Where the table that an experiment measures is kept."""
    return runs / "measured" / f"{name}.jsonl"
