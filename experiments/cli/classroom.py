"""`isoflop class`: a budget of compute for a class, by a shared folder or by a page.

A teacher creates a class and hands out its folder, or serves it; students submit runs until the
target is announced, hand in a prediction for it, and are ranked once the class is closed. What is
protected, and what is not, is in sim/classroom/ledger.py.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from isoflop import experiments
from isoflop.experiments.cli import classroom_words as words
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import HELP, Usage
from isoflop.experiments.cli.run import set_up
from isoflop.experiments.cli.text import print_json, table
from isoflop.experiments.cli.verbs import Verb

if TYPE_CHECKING:
    from isoflop.sim.classroom.entries import Purchase
    from isoflop.sim.classroom.ledger import Classroom
    from isoflop.sim.grid.executors.base import Executor

POLL_SECONDS = 2.0  # between looks for new runs
COMMANDS = {
    "create": Verb("classroom", "create", "Make a class in a folder, with its students."),
    "enrol": Verb("classroom", "enrol", "Add students to a class."),
    "submit": Verb("classroom", "submit", "Buy a run, or with --price ask what it takes."),
    "work": Verb("classroom", "work", "Train what students have bought."),
    "status": Verb("classroom", "status", "Tell how a class stands, or one student."),
    "announce": Verb("classroom", "announce", "Tell the target; no run is taken from then on."),
    "predict": Verb("classroom", "predict", "Hand in a design and an interval for the target."),
    "close": Verb("classroom", "close", "Take no more predictions."),
    "score": Verb("classroom", "score", "Train the target and print the leaderboard."),
    "export": Verb("classroom", "export", "Write finished runs as CS336's JSON."),
    "serve": Verb("classroom_server", "serve", "Serve a class as a web page on this machine."),
}


def class_(args: Sequence[str]) -> int:
    """Give a class a budget: students buy runs, predict a larger one, and are scored."""
    if not args or args[0] in HELP:
        rows = [{"": f"  {name}", " ": verb.help} for name, verb in COMMANDS.items()]
        print("usage: isoflop class COMMAND FOLDER [OPTIONS]\n")
        print(f"{class_.__doc__}\n{table(rows, left=('', ' '))}")
        return 0
    experiments.pick(args[0], COMMANDS, "command of isoflop class called")
    return COMMANDS[args[0]](f"class {args[0]}", args[1:])


def create(
    folder: Path,
    budget: float | None = None,
    target: float | None = None,
    unit: Literal["flops", "seconds"] = "flops",
    largest: float | None = None,
    families: tuple[str, ...] = ("dense",),
    students: tuple[str, ...] = (),
    corpus: Literal["kjv", "sympy"] = "kjv",
    data: Path | None = None,
    level: float = 0.9,
    announced: bool = False,
    batch: int = 8,
    seq_len: int = 128,
    eval_tokens: int = 32_768,
    fresh: int = 2,
) -> None:
    """Make a class in a folder, with its students, and print a token for each.

    Args:
        folder: where; on a shared file system, or an object store's URL.
        budget: what each student may spend, in the unit; needed.
        target: executed FLOPs of training whose loss is to be predicted; needed.
        unit: flops, executed and exact, or seconds of training, as measured.
        largest: what one run may take; without it a quarter of the budget.
        families: of the zoo, that students choose from.
        students: names, of a-z, 0-9, - and _; isoflop class enrol adds more.
        corpus: kjv (English) or sympy (Python code).
        data: a .txt or .jsonl of your own instead; a copy goes into the folder.
        level: of the intervals that students hand in.
        announced: tell the target from the beginning, and take runs until the class is closed.
        batch: sequences a step, of every run.
        seq_len: tokens a sequence, of every run.
        eval_tokens: held-out tokens that every run is judged on.
        fresh: seeds with which the best design is trained again; its loss is what intervals are
            scored against. With 0 it is the loss that made it the best, which is low by luck too.
    """
    budget, target = words.needed(budget, "--budget"), words.needed(target, "--target")
    from isoflop.sim.classroom import ledger, teacher
    from isoflop.sim.classroom.rules import Rules, Target, student
    from isoflop.sim.data import Corpus, File

    number = _whole if unit == "flops" else float
    for name in students:
        student(name)
    if len({*students}) < len(students):
        raise Usage("--students must name each student once; leave out the repeated ones")
    hidden = Target(flops=_whole(target))
    text = b"" if data is None else data.read_bytes()
    own = None if data is None else File(path=str(data))
    rules = Rules(
        unit=unit,
        budget=number(budget),
        largest=number(budget / 4 if largest is None else largest),
        families=families,
        data=own.model_copy(update={"path": data.name}) if own and data else Corpus(name=corpus),
        batch=batch,
        seq_len=seq_len,
        eval_tokens=eval_tokens,
        level=level,
        fresh=fresh,
        announced=announced,
        commitment=hidden.commitment,
    )
    where = teacher.keep(rules, teacher.Secret(target=hidden))
    try:
        room = ledger.establish(folder, rules, hidden, text)
    except BaseException:
        where.unlink()
        raise
    print(f"{folder} is a class: {room.amount(rules.budget)} for each student")
    if students:
        enrol(folder, students)
    print(f"the target and the tokens are in {where}, which only you can read; keep it")
    print(
        f"next: isoflop class serve {folder}, or share the folder and isoflop class work {folder}"
    )


def enrol(folder: Path, names: tuple[str, ...]) -> None:
    """Add students to a class, and print a token for each, with which they log in on its page.

    Args:
        folder: the class's.
        names: of a-z, 0-9, - and _.
    """
    from isoflop.sim.classroom import ledger, teacher

    room = ledger.load(folder)
    secret = teacher.read(room.rules)
    tokens = {}
    for name in names:
        tokens[name] = room.enrol(name)
        secret = secret.model_copy(update={"tokens": secret.tokens | tokens})
        teacher.keep(room.rules, secret)
    print(table([{"student": n, "token": t} for n, t in tokens.items()], left=("student", "token")))


def submit(
    folder: Path,
    student: str | None = None,
    family: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    seconds: float | None = None,
    price: bool = False,
    now: bool = False,
    json: bool = False,
) -> None:
    """Buy a run: it is reserved now, trained by isoflop class work, and charged what it took. A run
    of yours that is there already costs nothing and is told instead.

    Args:
        folder: the class's.
        student: your name in the class; needed.
        family: one of the class's families; its only one, if it has one.
        width: of the model; needed.
        depth: layers of the model; needed.
        steps: training steps; needed.
        lr: learning rate of matrices at width 64, which falls as 64/width; without it the tuned
            one of the family.
        seed: of the weights and of the order of the data.
        seconds: in a class of seconds, the most that the run may take; it is reserved, and without
            it twice what the run is estimated to take.
        price: only tell what it would take.
        now: train it in this process, with whatever else waits.
        json: print JSON.
    """
    from isoflop.sim.classroom.work import limit

    set_up(trains=True)
    room = words.opened(folder)
    name, made = (
        words.needed(student, "--student"),
        words.design(room.rules, family, width, depth, lr, seed),
    )
    cell = room.rules.cell(made, words.needed(steps, "--steps"))
    most = limit(room, cell, seconds)
    account = room.account(name)
    if price:
        told = room.price(cell, most)
        left = room.amount(account.left)
        print(f"{words.described(cell)}: {room.amount(told)}; {name} has {left} left")
        return
    purchase, new = room.submit(name, cell, most)
    if now and purchase.settled is None:
        from isoflop.sim.grid.grid import HERE

        _train(room, HERE, quiet=json)
        account = room.account(name)
        purchase = next(p for p in account.purchases if p.number == purchase.number)
    if json:
        print_json(words.plain(room, purchase) | {"new": new, "left": room.account(name).left})
        return
    print(f"{words.described(cell)}: {words.outcome(room, purchase, new)}")
    print(f"{room.amount(room.account(name).left)} of {room.amount(account.budget)} are left")


def work(folder: Path, workers: int = 1, watch: bool = False, quiet: bool = False) -> None:
    """Train what students have bought, one run of each in turn. Any number of workers, on any
    hosts, may share the folder.

    Args:
        folder: the class's.
        workers: runs at once, each with its share of the cores.
        watch: wait for more, until Ctrl-C.
        quiet: print no progress.
    """
    set_up(trains=True)
    from isoflop.sim.grid.executors.local import Apart

    room, executor = words.opened(folder), Apart(workers)
    while True:
        done = _train(room, executor, quiet)
        if not watch:
            print(f"{done} runs came to an end; nobody waits")
            return
        time.sleep(POLL_SECONDS)


def status(folder: Path, student: str | None = None, json: bool = False) -> None:
    """Tell how a class stands: who has spent what. Of one student also the runs and the prediction,
    and once the class is scored the leaderboard.

    Args:
        folder: the class's.
        student: only this one, with all runs.
        json: print JSON.
    """
    from isoflop.sim.classroom.work import board

    room = words.opened(folder)
    found, names = board(room), room.students if student is None else [student]
    accounts = [room.settle(name) for name in names]
    if json:
        print_json(
            {
                "phase": words.phase(room),
                "unit": room.rules.unit,
                "students": [
                    words.summary(one) if student is None else words.whole(room, one)
                    for one in accounts
                ],
                "leaderboard": None if found is None else words.ranks(found),
            }
        )
        return
    print(words.phase(room))
    print(words.accounts(accounts) if student is None else words.statement(room, accounts[0]))
    if found is not None:
        print(words.leaderboard(found))


def announce(folder: Path) -> None:
    """Tell the target. No run is taken from then on, and predictions are.

    Args:
        folder: the class's.
    """
    from isoflop.sim.classroom import teacher

    room = words.opened(folder)
    room.announce(teacher.read(room.rules).target)
    print(words.phase(room))


def predict(
    folder: Path,
    student: str | None = None,
    family: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    lr: float | None = None,
    loss: float | None = None,
    low: float | None = None,
    high: float | None = None,
) -> None:
    """Hand in a design for the target, which trains it for as many steps as it pays for, and an
    interval for the loss of the best design of the class. The last one that you hand in counts.

    Args:
        folder: the class's.
        student: your name in the class; needed.
        family: one of the class's families; its only one, if it has one.
        width: of the model; needed.
        depth: layers of the model; needed.
        lr: learning rate of matrices at width 64; without it the tuned one of the family.
        loss: the loss that you expect, nats per token; without it the middle of the interval.
        low: lower end of the interval; needed.
        high: upper end of the interval; needed.
    """
    room = words.opened(folder)
    name, made = (
        words.needed(student, "--student"),
        words.design(room.rules, family, width, depth, lr, 0),
    )
    lower, upper = words.needed(low, "--low"), words.needed(high, "--high")
    middle = (lower + upper) / 2 if loss is None else loss
    print(f"{name}: {words.predicted(room.predict(name, made, middle, lower, upper))}")


def close(folder: Path) -> None:
    """Take no more predictions; isoflop class score comes next.

    Args:
        folder: the class's.
    """
    from isoflop.sim.classroom import teacher

    room = words.opened(folder)
    teacher.read(room.rules)
    room.close()
    print(words.phase(room))


def score(folder: Path, workers: int = 1, json: bool = False, quiet: bool = False) -> None:
    """Train every design that was handed in at the target, the best of them again with fresh seeds,
    and print the leaderboard: by the loss of one's own design, and by the interval score (Winkler
    1972) of one's interval for the loss of the best.

    Args:
        folder: the class's.
        workers: runs at once, each with its share of the cores.
        json: print JSON.
        quiet: print no progress.
    """
    set_up(trains=True)
    from isoflop.sim.classroom import work as training
    from isoflop.sim.grid.executors.local import Apart

    room = words.opened(folder)
    found = _training(lambda trainer, watch: training.score(
        room, trainer, Apart(workers), watch("at the target")
    ), quiet or json)  # fmt: skip
    if json:
        print_json(words.ranks(found))
    else:
        print(words.leaderboard(found))


def export(
    folder: Path,
    out: Path,
    student: str | None = None,
    format: Literal["cs336", "cs336-curves"] = "cs336",
) -> None:
    """Write finished runs as CS336's scaling assignment has them, which isoflop fit reads, too.

    Args:
        folder: the class's.
        out: a .json to write.
        student: only this one's runs.
        format: cs336, a list of runs with d_model, num_layers, …; cs336-curves, parameters,
            compute_budget and final_loss.
    """
    from isoflop.experiments.cli.text import check_output, write_json
    from isoflop.sim.records import cs336

    check_output(out, "OUT")
    room = words.opened(folder)
    names = room.students if student is None else [student]
    bought = [one for name in names for one in room.settle(name).purchases if one.trained]
    cells = {one.key: one.submitted.cell for one in bought}
    rows = room.store.rows(cells.values())
    found = cs336.runs(rows) if format == "cs336" else cs336.curves(rows)
    write_json(out, found)
    print(f"{out} has {sum(row.record.status == 'ok' for row in rows)} runs")


def _whole(value: float) -> int:
    """FLOPs, which are counted one by one."""
    if not math.isfinite(value):
        raise Usage(f"{value} is no number of FLOPs; name one like 1e12")
    return round(value)


def _train(room: Classroom, executor: Executor, quiet: bool) -> int:
    from isoflop.sim.classroom import work as training

    def told(waiting: Mapping[str, Purchase]) -> None:
        if not quiet:
            names = ", ".join(waiting)
            print(f"training a run of {names}", file=sys.stderr)

    if not training.turn(room):
        return 0
    return _training(lambda trainer, watch: training.train(
        room, trainer, executor, watch("trained"), told
    ), quiet)  # fmt: skip


def _training(body: Callable[..., Any], quiet: bool) -> Any:
    """Call `body(trainer, watch)` as `isoflop run` trains: a signal is not lost."""
    from isoflop.sim.grid.grid import Recorded
    from isoflop.sim.train import loop, preemption

    with interrupts.raised_until_caught() as check, preemption.raised():

        def watch(what: str) -> Callable[[Any], None]:
            def on_event(event: Any) -> None:
                check(event)
                if isinstance(event, Recorded) and not quiet:
                    record = event.record
                    said = "diverged" if record.loss is None else f"loss {record.loss:.4f}"
                    said = record.reason if record.status == "failed" else said
                    print(f"{what}: {record.key}: {said}", file=sys.stderr)

            return on_event

        return body(loop.train, watch)
