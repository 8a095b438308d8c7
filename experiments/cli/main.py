"""The `isoflop` command: list, describe, run, figures, report, records, bench, compile; fit,
compare, plan; import, export.

Nothing that brings JAX is imported before it is needed, so that help and lists are immediate.
A user's mistake is one line on stderr and exit code 2; a bug keeps its traceback.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import experiments
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import (
    ListFlags,
    RunFlags,
    ShowFlags,
    Usage,
    later,
    layout,
    parse,
    shard,
)
from isoflop.experiments.cli.text import budget_table, si, table

if TYPE_CHECKING:
    from isoflop.sim.grid.estimate import Plan
    from isoflop.sim.grid.grid import Outcome
    from isoflop.sim.records.store import Row
    from isoflop.sim.spec import Cell
    from isoflop.sim.train.sharding import Layout


SHOWN_MODULES = 5  # of those whose code changed


def list_(args: Sequence[str]) -> int:
    """Name every experiment and its question."""
    (flags,) = parse("list", list_.__doc__, args, ListFlags)
    found = experiments.discover().values()
    if flags.json:
        _print_json([{**asdict(item), "question": item.question} for item in found])
    else:
        rows = [{"experiment": item.name, "question": item.question} for item in found]
        print(table(rows, left=("experiment", "question")))
    return 0


def describe(args: Sequence[str]) -> int:
    """Print an experiment's question, command, duration and expected answer."""
    experiment, rest = _experiment("describe", args, ListFlags)
    (flags,) = parse(f"describe {experiment.name}", describe.__doc__, rest, ListFlags)
    if flags.json:
        _print_json({**asdict(experiment), "question": experiment.question})
    else:
        print(experiment.doc)
    return 0


def run(args: Sequence[str]) -> int:
    """Train what an experiment lacks, or with --dry-run tell what that would take."""
    experiment, rest = _experiment("run", args, RunFlags)
    from isoflop.sim.data import cache

    # measurements of speed compile afresh
    settings = cache.FAST_COMPILING | (cache.compilation() if experiment.trains else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)  # read when JAX is imported, here and in workers
    module = experiment.load()
    options = module.cells if experiment.trains else later(module.measure)
    flags, cells = parse(f"run {experiment.name}", experiment.question, rest, RunFlags, options)
    if not experiment.trains:
        return _measure(experiment.name, flags, cells)
    return _train(flags, cells)


def bench(args: Sequence[str]) -> int:
    """Time training, prefill and decoding beside this machine's matrix products (run bench)."""
    return run(["bench", *args])


def compile_(args: Sequence[str]) -> int:
    """Compile training steps for a TPU that is not there: memory, FLOPs, the largest batch."""
    about = inspect.getdoc(compile_) or ""
    asked = bool(args) and args[0] in HELP
    if not args or (args[0].startswith("-") and not asked):
        raise Usage(
            "name an experiment or a family first, as in isoflop compile dense --topology v5e:4x4"
        )
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # read when JAX is imported: else it seeks TPUs
    from isoflop.experiments.cli.ahead import CompileFlags, command, family

    if asked:
        options = functools.partial(family, "")
        parse("compile EXPERIMENT|FAMILY", about, ["--help"], CompileFlags, options)
    return command(args[0], about, args[1:])


def _train(flags: RunFlags, cells: list[Cell]) -> int:
    from isoflop.sim.grid.estimate import plan
    from isoflop.sim.grid.grid import execute
    from isoflop.sim.records.store import Store

    part, workers = shard(flags.shard), flags.workers
    if workers < 1:
        raise Usage(f"--workers {workers} must be at least 1")
    if not cells:
        raise Usage("these options leave the grid without a run; see --help")
    asked = _laid_out(flags, cells)
    store = Store(flags.runs)
    budget = plan(cells, store, workers=workers, shard=part, retrain_changed=flags.retrain_changed)
    for warning in _about_records(budget, flags):
        print(f"warning: {warning}", file=sys.stderr)
    if flags.dry_run:
        if flags.json:
            _print_json(asdict(budget) | {"flops": budget.flops})
        else:
            print(budget_table(budget, workers))
        return 0
    from isoflop.experiments.cli.progress import Progress
    from isoflop.sim.train.loop import train

    trainer = train if asked is None else functools.partial(train, layout=asked)
    with (
        interrupts.raised_until_caught() as check,
        Progress(cells, budget, sys.stderr, flags.quiet) as progress,
    ):

        def watch(message: Any) -> None:
            check(message)
            progress.watch(message)

        outcome = execute(
            cells,
            flags.runs,
            trainer,
            workers=workers,
            shard=part,
            watch=watch,
            need_bytes=budget.peak_bytes,
            retrain_changed=flags.retrain_changed,
        )
    rows = store.rows(cells)
    if flags.json:
        _print_json([_result(row) for row in rows])
    else:
        unknown = sum(row.record.final and not row.record.sources for row in rows)
        print(_summary(outcome, len(budget.rows), unknown))
        if not flags.quiet:
            from isoflop.figures.report.summary import conclusion

            if found := conclusion(rows):
                print(f"\n{found}")
    return _verdict(outcome)


def _laid_out(flags: RunFlags, cells: list[Cell]) -> Layout | None:
    """The layout asked for, if any, once every run of the grid can have it."""
    if not flags.layout:
        return None
    asked = layout(flags.layout)
    if asked.devices > 1 and flags.workers > 1:
        raise Usage(
            f"--layout {asked} gives every device to one job; leave out --workers {flags.workers}"
        )
    for model, batch in {(cell.run.model, cell.run.budget.batch) for cell in cells}:
        asked.check(model, batch)
    if not flags.dry_run:
        asked.mesh()
    return asked


def _verdict(outcome: Outcome) -> int:
    """The exit code of a grid: 2 where the user can mend it, 1 where a run failed otherwise."""
    failed = [record for record in outcome.trained if record.status == "failed"]
    if outcome.mistakes:
        more = f" ({len(failed)} runs failed so)" if len(failed) > 1 else ""
        return _complain(outcome.mistakes[0] + more)
    if failed:
        _complain(f"{len(failed)} runs failed; the first: {failed[0].reason}")
        return 1
    return 0


def _about_records(budget: Plan, flags: RunFlags) -> Iterator[str]:
    """What is not as it should be among the records that are there."""
    if budget.left_out:
        more = f" and {len(budget.left_out) - 1} more" if budget.left_out[1:] else ""
        yield f"a record of the runs directory{more} is left out: {budget.left_out[0]}"
    if budget.changed and not flags.retrain_changed:
        modules = sorted({name for names in budget.changed.values() for name in names})
        if len(modules) > SHOWN_MODULES:
            modules = [*modules[:SHOWN_MODULES], f"{len(modules) - SHOWN_MODULES} more"]
        yield (
            f"{len(budget.changed)} of {len(budget.rows)} runs were trained by other code than "
            f"today's ({', '.join(modules)} changed since); --retrain-changed trains them again"
        )


def _summary(outcome: Outcome, total: int, unknown: int) -> str:
    said = [f"{outcome.count('ok')} of {total} runs trained"]
    if outcome.finished:
        whose = f" ({unknown} by code that they do not name)" if unknown else ""
        said.append(f"{outcome.finished} finished before{whose}")
    if outcome.elsewhere:
        said.append(f"{outcome.elsewhere} trained by other processes meanwhile")
    said += [f"{n} {word}" for word in ("diverged", "failed") if (n := outcome.count(word))]
    jobs = {record.run.trunk: record for record in outcome.trained}.values()  # their last records
    if compiled := sum(record.compiled + record.cached for record in jobs):
        seconds = sum(record.compile_seconds for record in jobs)
        cached = sum(record.cached for record in jobs)
        said.append(f"{compiled} programs in {seconds:.0f} s, {cached} of them compiled before")
    return ", ".join(said)


def _measure(name: str, flags: RunFlags, measure: Callable[[], list[dict]]) -> int:
    if flags.dry_run:
        raise Usage(f"{name} measures at once and has no budget table; see isoflop describe {name}")
    if flags.layout:
        raise Usage(f"{name} measures on one device; leave out --layout")
    from isoflop.sim.records.store import Store, write_table

    path = _measured(flags.runs, name)
    Store(flags.runs).check(0)
    rows = measure()
    write_table(path, rows)
    if flags.json:
        _print_json(rows)
    elif not flags.quiet:
        print(table([{k: _number(v) for k, v in row.items()} for row in rows]))
    return 0


def figures(args: Sequence[str]) -> int:
    """Draw an experiment's figures from its records: SVG, PNG, and the numbers as JSON."""
    name, flags, rows = _records("figures", figures.__doc__, args)
    if importlib.util.find_spec(f"isoflop.figures.{name}") is None:
        raise Usage(f"{name} has no figures; define draw(rows, out) in figures/{name}.py")
    written = importlib.import_module(f"isoflop.figures.{name}").draw(rows, flags.out / name)
    if not written:
        raise Usage(f"{name} has no finished runs in {flags.runs}; first: isoflop run {name}")
    _print_paths(written, flags.json)
    return 0


def report(args: Sequence[str]) -> int:
    """Write an experiment's report: one interactive page that needs no network."""
    name, flags, rows = _records("report", report.__doc__, args)
    from isoflop.sim.records.store import Row, measured_of, read_context

    if not rows:
        raise Usage(f"{name} has no finished runs in {flags.runs}; first: isoflop run {name}")
    if not isinstance(rows[0], Row):
        raise Usage(f"{name} measures and trains no runs to report on; see isoflop figures {name}")
    from isoflop.figures.report.page import build

    context = _measured(flags.runs, "context")
    page = build(
        name,
        rows,
        flags.out / name,
        question=experiments.find(name).question,
        context=measured_of(rows, read_context(context)) if context.exists() else None,
        company=_company(rows),
    )
    _print_paths([page], flags.json)
    return 0


def records(args: Sequence[str]) -> int:
    """Write an experiment's records as a table: NAME.csv, and NAME.jsonl with everything."""
    name, flags, rows = _records("records", records.__doc__, args)
    from isoflop.sim.records.store import Row, write_csv, write_rows

    if not rows or not isinstance(rows[0], Row):
        raise Usage(f"{name} has no finished runs in {flags.runs}; first: isoflop run {name}")
    flat, whole = (flags.out / name / f"{name}.{suffix}" for suffix in ("csv", "jsonl"))
    write_csv(flat, rows)
    write_rows(whole, rows)
    _print_paths([flat, whole], flags.json)
    return 0


def _records(verb: str, doc: str | None, args: Sequence[str]) -> tuple[str, ShowFlags, list]:
    """The experiment's rows, or the table that it measured, in the runs directory."""
    from isoflop.sim.records.store import Store, read_rows, read_steps, read_table, timed

    experiment, rest = _experiment(verb, args, ShowFlags)
    module = experiment.load()
    options = later(module.cells if experiment.trains else module.measure)
    flags, cells = parse(f"{verb} {experiment.name}", doc, rest, ShowFlags, options)
    if not experiment.trains:
        table = flags.records or _measured(flags.runs, experiment.name)
        return experiment.name, flags, read_table(table)
    if flags.records is not None:  # of which no cell is asked, nor its data
        return experiment.name, flags, list(read_rows(flags.records))
    rows, steps = Store(flags.runs).rows(cells()), _measured(flags.runs, "bench")
    return experiment.name, flags, timed(rows, read_steps(steps)) if steps.exists() else rows


def _company(rows: Sequence[Row]) -> dict[str, float] | None:
    """Compressors' bits per byte on the held-out text; None where the data are not text."""
    from isoflop.models.errors import UserError
    from isoflop.sim.data import compressed_bits_per_byte

    try:
        source = rows[0].record.run.data.open()
    except UserError as error:  # the losses are there, the text need not be
        print(f"warning: no other compressor is measured: {error}", file=sys.stderr)
        return None
    return None if source.bytes_per_token is None else compressed_bits_per_byte(source)


def _function(verb: str, module: str, name: str) -> Callable[[Sequence[str]], int]:
    """A function that prints what it finds, as a command."""

    def call(args: Sequence[str]) -> int:
        function = getattr(importlib.import_module(f"isoflop.experiments.cli.{module}"), name)
        about = (inspect.getdoc(function) or "").split("\n\nArgs:")[0]  # flags show the rest
        (bound,) = parse(verb, about, args, later(function))
        bound()
        return 0

    return call


HELP = {"-h", "--help"}
FUNCTIONS = {  # verb → module, function, and what help says of it before importing either
    "fit": (
        "fit",
        "fit",
        "Fit a law of scale to records, with its interval or the reason why there is none.",
    ),
    "compare": (
        "fit",
        "compare",
        "Tell what one architecture's loss costs another, and where they cross.",
    ),
    "selftest": (
        "selftest",
        "selftest",
        "Compare an architecture with itself: what intervals of such runs are worth.",
    ),
    "plan": (
        "plan",
        "plan",
        "Choose sizes and amounts of data for a compute budget, before training.",
    ),
    "import": (
        "checkpoints",
        "import_",
        "Describe a Hugging Face checkpoint, measure its loss on a text, sample from it.",
    ),
    "export": (
        "checkpoints",
        "export",
        "Write a trained run's weights as a Hugging Face checkpoint.",
    ),
}
VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "list": list_,
    "describe": describe,
    "run": run,
    "figures": figures,
    "report": report,
    "records": records,
    "bench": bench,
    "compile": compile_,
} | {verb: _function(verb, module, name) for verb, (module, name, _) in FUNCTIONS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    args = sys.argv[1:] if argv is None else list(argv)
    try:
        if not args or args[0] in HELP:
            print(_help())
            return 0
        if args[0] == "--version":
            print(f"isoflop {importlib.metadata.version('isoflop')}")
            return 0
        experiments.pick(args[0], VERBS, "command")
        code = VERBS[args[0]](args[1:])
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print(interrupts.STOPPED, file=sys.stderr)
        return interrupts.EXIT_CODE
    except BrokenPipeError:  # the reader of our output has gone, as in `isoflop list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (Usage, experiments.Unknown) as error:
        return _complain(str(error))
    except OSError as error:  # of any file that a command reads or writes
        if error.errno is None:
            raise
        place = error.filename or "a file"
        return _complain(
            f"cannot read or write {place}: {error.strerror}; check the path, its permissions and "
            "the room on its disk"
        )
    except ValueError as error:
        from pydantic import ValidationError

        from isoflop.models.errors import UserError
        from isoflop.sim.records.store import brief

        if isinstance(error, ValidationError):
            return _complain(brief(error))
        if isinstance(error, UserError):
            return _complain(str(error))
        raise


def _complain(text: str) -> int:
    from isoflop.models.errors import printable, shortened

    print(f"error: {shortened(printable(' '.join(text.split())), 2000)}", file=sys.stderr)
    return 2


def _help() -> str:
    rows = [
        {"": f"  {verb}", " ": FUNCTIONS[verb][-1] if verb in FUNCTIONS else inspect.getdoc(call)}
        for verb, call in VERBS.items()
    ]
    return "\n".join(
        [
            "usage: isoflop COMMAND [NAME] [OPTIONS]",
            "",
            "How does this architecture scale? Measured, with honest intervals, at small scale.",
            table(rows, left=("", " ")),
            "",
            "isoflop COMMAND NAME --help shows the options of both; isoflop --version.",
        ]
    )


def _experiment(
    verb: str, args: Sequence[str], flags: Callable[..., Any]
) -> tuple[experiments.Experiment, Sequence[str]]:
    """The experiment named right after the verb, and the arguments that follow."""
    if args and args[0] in HELP:
        names = ", ".join(experiments.discover())
        about = (
            f"{inspect.getdoc(VERBS[verb])}\n\nNAME is one of: {names}. "
            f"isoflop {verb} NAME --help shows its own options too."
        )
        parse(f"{verb} NAME", about, ["--help"], flags)
    if not args or args[0].startswith("-"):
        raise Usage(f"name the experiment first: isoflop {verb} NAME [OPTIONS]; see isoflop list")
    return experiments.find(args[0]), args[1:]


def _measured(runs: Path, name: str) -> Path:
    return runs / "measured" / f"{name}.jsonl"


def _result(row: Row) -> dict[str, Any]:
    return {"labels": row.labels} | row.record.model_dump(mode="json", exclude={"run", "curve"})


def _number(value: Any) -> str:
    return si(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _print_paths(paths: Sequence[Path], as_json: bool) -> None:
    if as_json:
        _print_json([str(path) for path in paths])
    else:
        print("\n".join(map(str, paths)))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False))
