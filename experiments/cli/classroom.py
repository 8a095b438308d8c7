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
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import HELP, Usage
from isoflop.experiments.cli.run import set_up
from isoflop.experiments.cli.text import labelled, print_json, table
from isoflop.experiments.cli.verbs import Verb

if TYPE_CHECKING:
    from isoflop.sim.classroom.entries import Account, Purchase
    from isoflop.sim.classroom.ledger import Classroom
    from isoflop.sim.classroom.rules import Design, Rules
    from isoflop.sim.classroom.scoring import Board
    from isoflop.sim.spec import Cell

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
    budget, target = needed(budget, "--budget"), needed(target, "--target")
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
    room = opened(folder)
    name, made = needed(student, "--student"), design(room.rules, family, width, depth, lr, seed)
    cell = room.rules.cell(made, needed(steps, "--steps"))
    most = limit(room, cell, seconds)
    account = room.account(name)
    if price:
        told = room.price(cell, most)
        left = room.amount(account.left)
        print(f"{described(cell)}: {room.amount(told)}; {name} has {left} left")
        return
    purchase, new = room.submit(name, cell, most)
    if now and purchase.settled is None:
        _train(room, workers=1, quiet=json)
        account = room.account(name)
        purchase = next(p for p in account.purchases if p.number == purchase.number)
    if json:
        print_json(_plain(room, purchase) | {"new": new, "left": room.account(name).left})
        return
    print(f"{described(cell)}: {outcome(room, purchase, new)}")
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
    room = opened(folder)
    while True:
        done = _train(room, workers, quiet)
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

    room = opened(folder)
    names = room.students if student is None else [student]
    accounts = [room.settle(name) for name in names]
    found = board(room)
    if json:
        print_json(
            {
                "phase": phase(room),
                "unit": room.rules.unit,
                "students": [_account(room, a, full=student is not None) for a in accounts],
                "leaderboard": None if found is None else ranks(found),
            }
        )
        return
    print(phase(room))
    if student is None:
        print(table([_line(room, one) for one in accounts], left=("student",)))
    else:
        (account,) = accounts
        print(
            f"{student}: {room.amount(account.left)} of {room.amount(account.budget)} left, "
            f"{room.amount(account.reserved)} reserved"
        )
        if account.purchases:
            rows = [line(room, one) for one in account.purchases]
            print(table(rows, left=("told", "status", "reason")))
        if (handed := account.prediction) is not None:
            print(f"prediction: {predicted(handed)}")
    if found is not None:
        print(leaderboard(found))


def announce(folder: Path) -> None:
    """Tell the target. No run is taken from then on, and predictions are.

    Args:
        folder: the class's.
    """
    from isoflop.sim.classroom import teacher

    room = opened(folder)
    room.announce(teacher.read(room.rules).target)
    print(phase(room))


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
    room = opened(folder)
    name, made = needed(student, "--student"), design(room.rules, family, width, depth, lr, 0)
    lower, upper = needed(low, "--low"), needed(high, "--high")
    middle = (lower + upper) / 2 if loss is None else loss
    print(f"{name}: {predicted(room.predict(name, made, middle, lower, upper))}")


def close(folder: Path) -> None:
    """Take no more predictions; isoflop class score comes next.

    Args:
        folder: the class's.
    """
    from isoflop.sim.classroom import teacher

    room = opened(folder)
    teacher.read(room.rules)
    room.close()
    print(phase(room))


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
    from isoflop.sim.classroom import work as training

    set_up(trains=True)
    room = opened(folder)
    found = _training(lambda trainer, executor, watch: training.score(
        room, trainer, executor, watch(f"the target of {room.root}")
    ), workers, quiet or json)  # fmt: skip
    if json:
        print_json(ranks(found))
    else:
        print(leaderboard(found))


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
    room = opened(folder)
    names = room.students if student is None else [student]
    bought = [one for name in names for one in room.settle(name).purchases if one.trained]
    cells = {one.key: one.submitted.cell for one in bought}
    rows = room.store.rows(cells.values())
    found = cs336.runs(rows) if format == "cs336" else cs336.curves(rows)
    write_json(out, found)
    print(f"{out} has {sum(row.record.status == 'ok' for row in rows)} runs")


# what these and the page share


def opened(folder: Path) -> Classroom:
    from isoflop.sim.classroom import ledger

    return ledger.load(folder)


def needed(value: Any, option: str) -> Any:
    if value is None:
        raise Usage(f"{option} is needed; see --help")
    return value


def design(
    rules: Rules,
    family: str | None,
    width: int | None,
    depth: int | None,
    lr: float | None,
    seed: int,
) -> Design:
    """A design whose family and rate may be left out."""
    from isoflop.experiments import families
    from isoflop.sim.classroom.rules import Design

    width, depth = needed(width, "--width"), needed(depth, "--depth")
    if family is None:
        if len(rules.families) > 1:
            raise Usage(f"--family must be one of {', '.join(rules.families)}; name it")
        (family,) = rules.families
    rate = families.optim(family, width, 50).lr if lr is None else lr
    return Design(family=family, width=width, depth=depth, lr=rate, seed=seed)


def described(cell: Cell) -> str:
    run = cell.run
    seed = f", seed {run.seed}" if run.seed else ""
    return f"{labelled(cell.labels)}, {run.budget.steps} steps, lr {run.optim.lr:g}{seed}"


def phase(room: Classroom) -> str:
    """Where a class stands, in a sentence."""
    target = room.target
    if target is None:
        return "runs are taken; the target is hidden"
    told = f"the target is {target.flops:.4g} FLOPs"
    if room.closed:
        return f"{told}; the class is closed"
    also = "runs and predictions are taken" if room.rules.announced else "predictions are taken"
    return f"{told}; {also}"


def ranks(board: Board) -> dict[str, Any]:
    """A leaderboard as JSON."""
    rows = [
        {
            "student": one.student,
            "design": one.predicted.cell.labels,
            "params": one.params,
            "loss": one.loss,
            "loss_se": one.loss_se,
            "low": one.predicted.low,
            "high": one.predicted.high,
            "holds": one.holds,
            "interval_score": one.score,
            "model_rank": one.model_rank,
            "interval_rank": one.interval_rank,
            "points": one.points,
        }
        for one in board.standings
    ]
    best = {"labels": board.best.labels, "loss": board.loss, "se": board.se}
    return {"best": best, "level": board.level, "held": board.held, "standings": rows}


def finding(board: Board) -> str:
    """What a leaderboard says, in a sentence."""
    se = "" if board.se is None else f" ± {board.se:.4f} over seeds"
    expected = board.level * len(board.standings)
    return (
        f"the best design, {labelled(board.best.labels)}, reaches {board.loss:.4f}{se} nats per "
        f"token at the target; {board.held} of {len(board.standings)} intervals hold it, and "
        f"honest ones would {expected:.3g} times"
    )


def standings(board: Board) -> list[dict[str, Any]]:
    """The lines of a leaderboard, for people."""
    return [
        {
            "student": one.student,
            "points": one.points,
            "design": labelled(one.predicted.cell.labels),
            "loss": "diverged" if one.loss is None else f"{one.loss:.4f}",
            "rank": one.model_rank,
            "interval": f"[{one.predicted.low:.4g}, {one.predicted.high:.4g}]",
            "holds": "yes" if one.holds else "no",
            "score": f"{one.score:.4f}",
            "rank ": one.interval_rank,
        }
        for one in board.standings
    ]


def leaderboard(board: Board) -> str:
    return f"{finding(board)}\n{table(standings(board), left=('student', 'design'))}"


def _whole(value: float) -> int:
    """FLOPs, which are counted one by one."""
    if not math.isfinite(value):
        raise Usage(f"{value} is no number of FLOPs; name one like 1e12")
    return round(value)


def _train(room: Classroom, workers: int, quiet: bool) -> int:
    from isoflop.sim.classroom import work as training

    def told(waiting: Mapping[str, Purchase]) -> None:
        if not quiet:
            names = ", ".join(waiting)
            print(f"training a run of {names}", file=sys.stderr)

    if not training.turn(room):
        return 0
    return _training(lambda trainer, executor, watch: training.train(
        room, trainer, executor, watch("runs"), told
    ), workers, quiet)  # fmt: skip


def _training(body: Callable[..., Any], workers: int, quiet: bool) -> Any:
    """Call `body(trainer, executor, watch)` as `isoflop run` trains: a signal is not lost."""
    from isoflop.sim.grid.executors.local import Local
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

        return body(loop.train, Local(workers), watch)


def outcome(room: Classroom, purchase: Purchase, new: bool) -> str:
    end = purchase.settled
    before = "" if new else "you have this run already; "
    if end is None:
        return f"{before}{room.amount(purchase.cost)} reserved; it waits to be trained"
    if end.status == "failed":
        return f"{before}failed ({end.reason}); {room.amount(end.charge)} charged"
    record = room.store.load(purchase.key)
    loss = "diverged" if record is None or record.loss is None else f"loss {record.loss:.4f}"
    paid = f"{room.amount(end.charge)} charged"
    return f"{before}{loss}; {paid if new else 'nothing is charged'}"


def _plain(room: Classroom, purchase: Purchase) -> dict[str, Any]:
    """A purchase as JSON, with the result once it is charged."""
    end, cell = purchase.settled, purchase.submitted.cell
    record = room.store.load(purchase.key) if purchase.trained else None
    return {
        **cell.labels,
        "steps": cell.run.budget.steps,
        "lr": cell.run.optim.lr,
        "seed": cell.run.seed,
        "key": purchase.key,
        "status": "waiting" if end is None else end.status,
        "reason": "" if end is None else end.reason,
        "reserved": purchase.submitted.reserved,
        "charge": None if end is None else end.charge,
        "loss": None if record is None else record.loss,
        "loss_se": None if record is None else record.loss_se,
    }


def line(room: Classroom, purchase: Purchase) -> dict[str, Any]:
    """A purchase as it is shown."""
    plain = _plain(room, purchase)
    return {
        "told": described(purchase.submitted.cell),
        "status": plain["status"],
        "reason": plain["reason"],
        "loss": "" if plain["loss"] is None else f"{plain['loss']:.4f}",
        "cost": f"{purchase.cost:.4g}",
    }


def _line(room: Classroom, account: Account) -> dict[str, Any]:
    """A line of the teacher's table."""
    return {
        "student": account.name,
        "left": f"{account.left:.4g}",
        "spent": f"{account.spent:.4g}",
        "reserved": f"{account.reserved:.4g}",
        "runs": len(account.purchases),
        "waiting": len([*account.waiting]),
        "predicted": "yes" if account.prediction else "no",
    }


def _account(room: Classroom, account: Account, full: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "student": account.name,
        "budget": account.budget,
        "left": account.left,
        "spent": account.spent,
        "reserved": account.reserved,
        "runs": len(account.purchases),
        "waiting": len([*account.waiting]),
        "predicted": account.prediction is not None,
    }
    if full:
        handed = account.prediction
        told["runs"] = [_plain(room, one) for one in account.purchases]
        told["prediction"] = handed and {
            **handed.cell.labels,
            **{name: getattr(handed, name) for name in ("loss", "low", "high")},
        }
    return told


def predicted(handed: Any) -> str:
    from isoflop.sim.classroom.rules import parameters

    return (
        f"{described(handed.cell)}, {parameters(handed.cell.run):,} parameters; loss "
        f"{handed.loss:.4f} in [{handed.low:.4f}, {handed.high:.4f}]"
    )
