"""`isoflop run`: train what a grid lacks, or measure a table."""

from __future__ import annotations

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from isoflop.experiments import pick
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import (
    RunFlags,
    Usage,
    deferred,
    executor,
    layout,
    once,
    only,
    parse,
    shard,
)
from isoflop.experiments.cli.listing import measured, named
from isoflop.experiments.cli.text import budget_table, complain, print_json, si, table

if TYPE_CHECKING:
    from types import ModuleType

    from isoflop.experiments import Experiment
    from isoflop.sim.grid.estimate import Plan
    from isoflop.sim.grid.executors.base import Executor
    from isoflop.sim.grid.grid import Outcome, Trainer
    from isoflop.sim.records.store import Row
    from isoflop.sim.spec import Cell
    from isoflop.sim.train.sharding import Layout

SHOWN_MODULES = 5  # of those whose code changed


def run(args: Sequence[str]) -> int:
    """Train what an experiment lacks, or with --dry-run tell what that would take."""
    experiment, rest = named("run", run.__doc__, args, RunFlags, executor(args))
    module = loaded(experiment)
    function = once(module, "cells" if experiment.trains else "measure")
    options = function if experiment.trains else deferred(function)
    command = f"run {experiment.word}"
    if not experiment.trains:
        flags, measure = parse(command, experiment.question, rest, RunFlags, options)
        return _measure(experiment, flags, measure)
    flags, where, cells = parse(
        command, experiment.question, rest, RunFlags, executor(rest), options
    )
    return train(flags, where, cells, experiment, command_again(experiment, module, rest))


def loaded(experiment: Experiment) -> ModuleType:
    """Its module, and JAX with it."""
    set_up(experiment.trains)
    return experiment.load()


def set_up(trains: bool) -> None:
    """What JAX reads as it is imported, here and in workers."""
    from isoflop.sim.data import cache

    # measurements of speed compile afresh
    settings = cache.FAST_COMPILING | (cache.compilation() if trains else {})
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def bench(args: Sequence[str]) -> int:
    """Time training, prefill and decoding beside this machine's matmuls (run bench)."""
    return run(["bench", *args])


def command_again(experiment: Experiment, module: ModuleType, rest: Sequence[str]) -> str:
    """The experiment with those of its options that say which grid, and where."""
    again = only(rest, {"runs", *inspect.signature(module.cells).parameters})
    return shlex.join([experiment.word, *again])


def train(
    flags: RunFlags,
    where: Executor,
    cells: list[Cell],
    experiment: Experiment,
    asked_for: str,
    tries: int | None = None,
) -> int:
    """Train what the cells lack; `asked_for` is the experiment with the options of the grid, and
    runs that failed so often as `tries` are left as they are.
    """
    from isoflop.sim.grid.estimate import asked_of, plan
    from isoflop.sim.grid.grid import Recorded, execute
    from isoflop.sim.records import grids
    from isoflop.sim.records.store import Row, Store
    from isoflop.sim.records.trackers.base import mirrors, names

    part, workers = shard(flags.shard), where.workers
    if not cells:
        raise Usage("these options leave the grid without a run; see --help")
    if flags.time_limit is not None and not flags.time_limit > 0:
        raise Usage(f"--time-limit {flags.time_limit:g} must be above 0 seconds")
    _together(flags, where)
    for name in flags.tracker:
        pick(name, names(), "tracker")
    asked = _laid_out(flags, workers, cells)
    store = Store(flags.runs)
    budget = plan(cells, store, workers=workers, shard=part, retrain_changed=flags.retrain_changed)
    for warning in _about_records(budget, flags):
        print(f"warning: {warning}", file=sys.stderr)
    if flags.dry_run:
        if flags.json:
            print_json(asdict(budget) | {"flops": budget.flops})
        else:
            print(budget_table(budget, workers))
        return 0
    from isoflop.experiments.cli.progress import Progress
    from isoflop.sim.train import hosts, loop, preemption

    options: dict[str, Any] = {} if asked is None else {"layout": asked}
    if flags.time_limit is not None:
        options["time_limit"] = flags.time_limit
    trainer: Trainer = functools.partial(loop.train, **options) if options else loop.train
    if not hosts.first():
        hosts.follow(trainer)
        return 0
    store.check(budget.peak_bytes)
    shown = mirrors(
        store.root, flags.tracker, lambda text: print(f"warning: {text}", file=sys.stderr)
    )
    shown.catch_up(store.rows(cells) if flags.tracker else ())
    labels = {cell.run.key: cell.labels for cell in cells}
    grids.save(store.root, grids.Grid(experiment.name, asked_for, asked_of(cells)))
    with (
        interrupts.raised_until_caught() as check,
        preemption.raised(),
        Progress(cells, budget, sys.stderr, flags.quiet) as progress,
    ):

        def on_event(event: Any) -> None:
            check(event)
            progress.on_event(event)
            if isinstance(event, Recorded):
                shown.show(Row(labels=labels[event.record.key], record=event.record))

        with hosts.together():
            outcome = execute(
                cells,
                flags.runs,
                trainer,
                executor=where,
                shard=part,
                on_event=on_event,
                need_bytes=budget.peak_bytes,
                retrain_changed=flags.retrain_changed,
                tries=tries,
            )
    rows = store.rows(cells)
    if flags.json:
        print_json([_result(row) for row in rows])
    else:
        unknown = sum(row.record.final and not row.record.sources for row in rows)
        print(_summary(outcome, len(budget.rows), unknown))
        if not flags.quiet:
            from isoflop.figures.report.summary import conclusion

            if found := conclusion(rows):
                print(f"\n{found}")
            if any(row.record.final for row in rows):
                print(f"\nnext: isoflop report {asked_for}")
    return _verdict(outcome)


def _together(flags: RunFlags, where: Executor) -> None:
    """Find the other hosts, before anything touches a device, unless Ray is to find them."""
    by_ray = flags.hosts == "ray"
    if by_ray != (getattr(where, "nodes", 1) > 1):
        raise Usage(
            "several nodes of a Ray cluster train one job with --executor ray --nodes 2 --hosts "
            "ray, and not with a part of these options; give all three"
        )
    alone = where.workers == 1 and flags.executor == RunFlags.executor
    if flags.hosts and not (by_ray or alone):
        raise Usage(
            "--hosts gives every host to one job at a time; leave out --workers, --executor"
        )
    if flags.hosts and not flags.layout:
        raise Usage("--hosts needs the --layout of a job on all hosts' devices, as in fsdp=8")
    if flags.hosts and not by_ray and not flags.dry_run:
        from isoflop.sim.train import hosts

        hosts.join(flags.hosts)


def _laid_out(flags: RunFlags, workers: int, cells: list[Cell]) -> Layout | None:
    """The layout asked for, if any, once every run of the grid can have it."""
    if not flags.layout:
        return None
    asked = layout(flags.layout)
    apart = flags.hosts == "ray"  # its devices are elsewhere
    if asked.devices > 1 and workers > 1 and not apart:
        raise Usage(
            f"--layout {asked} gives every device to one job; leave out --workers {workers}"
        )
    for model, batch in {(cell.run.model, cell.run.budget.batch) for cell in cells}:
        asked.check(model, batch)
    if not flags.dry_run and not apart:
        asked.mesh()
    return asked


def _verdict(outcome: Outcome) -> int:
    """The exit code of a grid: 2 where the user can fix it, 1 where a run failed otherwise."""
    failed = [record for record in outcome.trained if record.status == "failed"]
    if outcome.mistakes:
        more = f" ({len(failed)} runs failed so)" if len(failed) > 1 else ""
        return complain(outcome.mistakes[0] + more)
    if failed:
        complain(f"{len(failed)} runs failed; the first: {failed[0].reason}")
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


def _measure(experiment: Experiment, flags: RunFlags, measure: Callable[[], list[dict]]) -> int:
    name = experiment.name
    if flags.dry_run:
        raise Usage(
            f"{name} measures at once and has no budget table; see isoflop describe "
            f"{experiment.word}"
        )
    if flags.layout:
        raise Usage(f"{name} measures on one device; leave out --layout")
    if flags.executor != RunFlags.executor:
        raise Usage(f"{name} measures in this process; leave out --executor {flags.executor}")
    from isoflop.sim.records.store import Store, write_table

    path = measured(flags.runs, name)
    Store(flags.runs).check(0)
    rows = measure()
    write_table(path, rows)
    if flags.json:
        print_json(rows)
    elif not flags.quiet:
        print(table([{k: _number(v) for k, v in row.items()} for row in rows]))
    return 0


def _result(row: Row) -> dict[str, Any]:
    return {"labels": row.labels} | row.record.model_dump(mode="json", exclude={"run", "curve"})


def _number(value: Any) -> str:
    return si(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
