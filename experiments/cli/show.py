"""`isoflop figures`, `report` and `records`: what an experiment's records show."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop import experiments
from isoflop.experiments.cli.flags import (
    HELP,
    FigureFlags,
    RecordFlags,
    ShowFlags,
    Usage,
    deferred,
    once,
    parse,
)
from isoflop.experiments.cli.listing import measured, named, runs_directory
from isoflop.experiments.cli.text import labelled, print_json, table
from isoflop.models.errors import shortened

if TYPE_CHECKING:
    from isoflop.experiments import Experiment
    from isoflop.sim.records.store import Row


def figures(args: Sequence[str]) -> int:
    """Draw an experiment's figures from its records: SVG, PNG, and the numbers as JSON."""
    experiment, flags, rows = _records("figures", figures.__doc__, args, FigureFlags)
    if flags.metric != "loss":
        return _standard(experiment.name, flags, rows)
    draw = _drawing(experiment)
    try:
        written = draw(rows, flags.out / experiment.name)
    except KeyError as error:
        if any(error.args[0] in getattr(row, "labels", row) for row in rows):
            raise  # a bug: rows that another experiment left have no such label
        raise Usage(
            f"{flags.records or flags.runs} lacks {error}, which figures of {experiment.name} are "
            "drawn by; name the records of that experiment"
        ) from None
    if not written and rows:
        needs = (draw.__doc__ or "").partition("\n")[0]
        raise Usage(f"the {len(rows)} runs of {experiment.name} make no figure. {needs}")
    if not written:
        raise Usage(_none(experiment, flags))
    _print_paths(written, flags.json)
    return 0


def _drawing(experiment: Experiment) -> Callable[[list, Path], list[Path]]:
    """Its own figures, else those that any grid has."""
    module = experiment.load()
    if hasattr(module, "draw"):
        return module.draw
    package, _, name = module.__name__.rpartition(".")
    if package == experiments.__name__ and importlib.util.find_spec(f"isoflop.figures.{name}"):
        return importlib.import_module(f"isoflop.figures.{name}").draw
    if not experiment.trains:
        raise Usage(
            f"{experiment.name} measures a table and has no figures; define draw(rows, out) in "
            "its file, which returns the paths that it wrote"
        )
    return importlib.import_module("isoflop.figures.standard").draw


def _none(experiment: Experiment, flags: ShowFlags) -> str:
    return (
        f"{experiment.name} has no finished runs in {flags.records or flags.runs}; first: isoflop "
        f"run {experiment.word}"
    )


def _standard(name: str, flags: FigureFlags, rows: Sequence[Any]) -> int:
    """The figures that every experiment has, of any metric of its runs."""
    from isoflop.figures.standard import draw
    from isoflop.sim.records.store import Row

    runs = [row for row in rows if isinstance(row, Row)]
    known = sorted({metric for row in runs for metric in row.record.metrics})
    if flags.metric not in known:
        told = f"they have {', '.join(known)}" if known else f"first: isoflop run {name}"
        raise Usage(f"the runs of {name} have no metric {flags.metric!r}; {told}")
    written = draw(runs, flags.out / name / flags.metric, flags.metric)
    if not written:
        raise Usage(f"no run of {name} has {flags.metric} above 0 to be drawn; see isoflop records")
    _print_paths(written, flags.json)
    return 0


def report(args: Sequence[str]) -> int:
    """Write an experiment's report: one interactive page that needs no network."""
    experiment, flags, rows = _records("report", report.__doc__, args)
    name = experiment.name
    from isoflop.sim.records.store import Row, measured_of, read_context

    if not rows:
        raise Usage(_none(experiment, flags))
    if not isinstance(rows[0], Row):
        raise Usage(
            f"{name} measures and trains no runs to report on; see isoflop figures "
            f"{experiment.word}"
        )
    from isoflop.figures.report.page import build

    context = measured(flags.runs, "context")
    page = build(
        name,
        rows,
        flags.out / name,
        question=experiment.question,
        context=measured_of(rows, read_context(context)) if context.exists() else None,
        compressors=_baseline_compressors(rows),
    )
    _print_paths([page], flags.json)
    return 0


def records(args: Sequence[str]) -> int:
    """Write an experiment's records as a table: NAME.csv, and NAME.jsonl with everything.

    Without NAME, list every record of the runs directory. --where chooses among them, as in
    --where "width >= 64 and family == 'dense'", and an --out that ends in .csv, .jsonl or .parquet
    is the table's file.
    """
    from isoflop.sim.records.where import chosen
    from isoflop.sim.records.writers import write_csv, write_flat

    if args and args[0].startswith("-") and args[0] not in HELP:
        (flags,) = parse("records", records.__doc__, args, RecordFlags)
        return _every(flags)
    experiment, flags, rows = _records("records", records.__doc__, args, RecordFlags)
    name = experiment.name
    from isoflop.sim.records.store import Row, flatten, write_rows

    if not rows or not isinstance(rows[0], Row):
        raise Usage(_none(experiment, flags))
    if flags.where:
        met = chosen(flags.where, [flatten(row) for row in rows])
        rows = [row for row, yes in zip(rows, met, strict=True) if yes]
    if flags.out.suffix:
        write_flat(flags.out, [flatten(row) for row in rows])
        written = [flags.out]
    else:
        written = [flags.out / name / f"{name}.{suffix}" for suffix in ("csv", "jsonl")]
        write_csv(written[0], rows)
        write_rows(written[1], rows)
    _print_paths(written, flags.json)
    return 0


def _every(flags: RecordFlags) -> int:
    """Every record of the runs directory, from its index."""
    from isoflop.sim.records.index import opened
    from isoflop.sim.records.writers import write_flat

    if flags.records:
        raise Usage("--records is read for one experiment; name it: isoflop records NAME")
    runs = runs_directory(flags.runs)

    def note(text: str) -> None:
        print(f"warning: {text}", file=sys.stderr)

    with opened(runs, note) as index:
        for problem in (problems := index.left_out())[:1]:
            note(f"{len(problems)} records are left out; the first: {problem}")
        if flags.out.suffix:
            write_flat(flags.out, list(index.rows(flags.where)))
            _print_paths([flags.out], flags.json)
        elif flags.json:
            print_json(index.listing(flags.where))
        else:
            print(table([_line(row) for row in index.listing(flags.where)], ("key", "run", "why")))
    return 0


def _line(row: dict[str, Any]) -> dict[str, str]:
    at = datetime.fromtimestamp(row["recorded_ns"] / 1e9)
    return {
        "key": row["key"],
        "run": labelled(row["labels"]),
        "status": row["status"],
        "loss": "" if row["loss"] is None else f"{row['loss']:.4f}",
        "seconds": f"{row['seconds']:.1f}",
        "recorded": f"{at:%Y-%m-%d %H:%M}",
        "why": shortened(row["reason"], 80),
    }


def _records(
    verb: str, doc: str | None, args: Sequence[str], show: type[ShowFlags] = ShowFlags
) -> tuple[Experiment, Any, list]:
    """The experiment's rows, or the table that it measured, in the runs directory."""
    from isoflop.sim.records.store import (
        Store,
        join_step_seconds,
        read_rows,
        read_steps,
        read_table,
    )

    experiment, rest = named(verb, doc, args, show)
    module = experiment.load()
    options = deferred(once(module, "cells" if experiment.trains else "measure"))
    flags, cells = parse(f"{verb} {experiment.word}", doc, rest, show, options)
    if not experiment.trains:
        path = flags.records or measured(flags.runs, experiment.name)
        return experiment, flags, read_table(path)
    if flags.records is not None:  # of which no cell is asked, nor its data
        return experiment, flags, list(read_rows(flags.records))
    store, grid = Store(flags.runs), cells()
    rows, steps = store.rows(grid), measured(flags.runs, "bench")
    others = {one.key for one in store.all()[0] if one.final} - {cell.run.key for cell in grid}
    if others:
        said = (
            f"{len(others)} runs in {flags.runs} are left out: they are of other options than "
            f"these, or of other experiments; repeat the options of `isoflop run {experiment.word}`"
        )
        if not rows:
            raise Usage(f"{experiment.word} has no finished runs of these options, and {said}")
        print(f"warning: {said}", file=sys.stderr)
    return experiment, flags, join_step_seconds(rows, read_steps(steps)) if steps.exists() else rows


def _baseline_compressors(rows: Sequence[Row]) -> dict[str, float] | None:
    """Compressors' bits per byte on the held-out text; None where the data are not text."""
    from isoflop.models.errors import UserError
    from isoflop.sim.data import compressed_bits_per_byte

    try:
        source = rows[0].record.run.data.open()
    except UserError as error:  # the losses are there, the text need not be
        print(f"warning: no other compressor is measured: {error}", file=sys.stderr)
        return None
    return None if source.bytes_per_token is None else compressed_bits_per_byte(source)


def _print_paths(paths: Sequence[Path], as_json: bool) -> None:
    if as_json:
        print_json([str(path) for path in paths])
    else:
        print("\n".join(map(str, paths)))
