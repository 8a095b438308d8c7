"""Training what students have bought, and at the end the target: ordinary grids of ordinary runs.

Any number of workers may share a class's folder, as they share a runs directory. They take turns:
one run of each student, the oldest, so that nobody's many runs keep the others waiting.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from isoflop.models.errors import UserError
from isoflop.sim.classroom import scoring
from isoflop.sim.classroom.entries import Predicted, Purchase
from isoflop.sim.classroom.ledger import Classroom, stopped
from isoflop.sim.durable import Place
from isoflop.sim.grid.estimate import plan
from isoflop.sim.grid.executors.base import Executor
from isoflop.sim.grid.grid import HERE, OnEvent, Recorded, Result, Trainer, execute
from isoflop.sim.records.store import Record
from isoflop.sim.spec import Cell, Run
from isoflop.sim.train.health import TimeLimit

LEAST_SECONDS = 1.0  # that are reserved by default; estimates of less are mostly noise
SLACK = 2.0  # × the estimate, likewise


def limit(room: Classroom, cell: Cell, seconds: float | None = None) -> float | None:
    """The seconds that a run may take: as asked, or twice what is estimated from finished runs of
    the class, or before there are any from a stated guess; None in a class of FLOPs.

    Raises UserError as `plan`, and where finished runs say that `seconds` are far too few.
    """
    if room.rules.unit == "flops":
        if seconds is not None:
            raise UserError("this class counts FLOPs, which are exact; leave out --seconds")
        return None
    new = cell.run.model_copy(update={"version": cell.run.version + 1})  # which nobody has trained
    (planned,) = plan([cell.model_copy(update={"run": new})], room.store).rows
    if seconds is None:
        return max(LEAST_SECONDS, round(SLACK * planned.seconds, 1))
    measured = any(True for _ in room.store.root.glob("*/result.json"))
    if measured and planned.seconds > SLACK * seconds:
        raise UserError(
            f"this run would take about {planned.seconds:.3g} s, and may take {seconds:g}; give it "
            "more --seconds, or make it smaller or shorter"
        )
    return seconds


def turn(room: Classroom) -> dict[str, Purchase]:
    """The next run of every student who waits, by name. Runs that would share a trunk are of
    different turns, so that each is trained, timed and limited alone.
    """
    found: dict[str, Purchase] = {}
    trunks: dict[str, str] = {}
    for name in room.students:
        for purchase in room.settle(name).waiting:
            trunk, key = purchase.submitted.cell.run.trunk, purchase.key
            if trunks.setdefault(trunk, key) == key:
                found[name] = purchase
                break
    return found


def train(
    room: Classroom,
    trainer: Trainer,
    executor: Executor = HERE,
    on_event: OnEvent = lambda event: None,
    on_turn: Callable[[Mapping[str, Purchase]], None] = lambda turn: None,
) -> int:
    """Train until nobody waits; returns how many purchases came to an end. Raises as `execute`."""
    done = 0
    while waiting := turn(room):
        on_turn(waiting)
        limits = _limits(room) if room.rules.unit == "seconds" else {}

        def settling(event: Any, waiting: Mapping[str, Purchase] = waiting) -> None:
            if isinstance(event, Recorded):
                for name, one in waiting.items():
                    if one.key == event.record.key:
                        room.settle(name)
            on_event(event)

        cells = {one.key: one.submitted.cell for one in waiting.values()}
        work = functools.partial(within, trainer, limits) if limits else trainer
        execute(cells.values(), room.store.root, work, executor=executor, on_event=settling)
        done += sum(_ended(room, name, one) for name, one in waiting.items())
    return done


def _limits(room: Classroom) -> dict[str, float]:
    """The most seconds that anybody who waits has reserved for a run, by its key."""
    found: dict[str, float] = {}
    for name in room.students:
        for one in room.account(name).waiting:
            found[one.key] = max(found.get(one.key, 0.0), float(one.submitted.reserved))
    return found


def _ended(room: Classroom, name: str, one: Purchase) -> bool:
    return all(other.number != one.number for other in room.settle(name).waiting)


def within(
    trainer: Callable[..., Iterator[Result]],
    limits: Mapping[str, float],
    runs: Sequence[Run],
    work: Place,
    emit: Callable[[Any], None],
    wanted: Collection[str],
) -> Iterator[Result]:
    """Train a run for no more seconds than were reserved for it."""
    limit = min((limits.get(key, math.inf) for key in wanted), default=math.inf)
    try:
        yield from trainer(runs, work, emit, wanted, time_limit=limit)
    except TimeLimit:
        raise UserError(stopped(limit)) from None


def predictions(room: Classroom) -> dict[str, Predicted]:
    """The last of every student who handed one in."""
    found = {name: room.account(name).prediction for name in room.students}
    return {name: one for name, one in found.items() if one is not None}


def score(
    room: Classroom,
    trainer: Trainer,
    executor: Executor = HERE,
    on_event: OnEvent = lambda event: None,
) -> scoring.Board:
    """Train every design that was handed in at the target, the best of them with fresh seeds, and
    rank the students. Raises UserError before the class is closed, without a prediction, where a
    run failed, or where no design reached a loss.
    """
    if not room.closed:
        raise UserError(f"the class takes predictions still; first isoflop class close {room.root}")
    handed = predictions(room)
    if not handed:
        raise UserError("nobody handed in a prediction, so there is nothing to score")
    designs = {one.cell.run.key: one.cell for one in handed.values()}
    execute(designs.values(), room.store.root, trainer, executor=executor, on_event=on_event)
    top = scoring.best(handed, _records(room, designs))
    again: Sequence[Cell] = scoring.fresh(top, room.rules.fresh) if top else ()
    execute(again, room.store.root, trainer, executor=executor, on_event=on_event)
    found = board(room)
    if found is None:
        failed = [one.reason for one in _records(room, designs, final=False).values()]
        raise UserError(
            "no leaderboard can be made: "
            + (f"a run failed ({failed[0]})" if any(failed) else "no design reached a loss")
            + "; the same command tries again"
        )
    return found


def board(room: Classroom) -> scoring.Board | None:
    """The leaderboard from what is trained; None before `score` has ended."""
    if not room.closed:
        return None
    handed = predictions(room)
    records = _records(room, {one.cell.run.key for one in handed.values()})
    if (top := scoring.best(handed, records)) is None:
        return None
    records |= _records(room, {cell.run.key for cell in scoring.fresh(top, room.rules.fresh)})
    return scoring.board(handed, records, room.rules.level, room.rules.fresh)


def _records(room: Classroom, keys: Collection[str], final: bool = True) -> dict[str, Record]:
    found = {key: room.store.load(key) for key in keys}
    return {key: one for key, one in found.items() if one is not None and (one.final or not final)}
