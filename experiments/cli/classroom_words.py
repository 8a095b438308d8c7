"""A class in words and as JSON: what the command and the page share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.experiments.cli.flags import Usage
from isoflop.experiments.cli.text import labelled, table

if TYPE_CHECKING:
    from isoflop.sim.classroom.entries import Account, Predicted, Purchase
    from isoflop.sim.classroom.ledger import Classroom
    from isoflop.sim.classroom.rules import Design, Rules
    from isoflop.sim.classroom.scoring import Board
    from isoflop.sim.spec import Cell


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
    return (
        f"the best design, {labelled(board.best.labels)}, reaches {board.loss:.4f}{se} nats per "
        f"token at the target; {board.held} of {len(board.standings)} intervals hold that, and of "
        f"honest ones {board.level:.0%} would"
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


def plain(room: Classroom, purchase: Purchase) -> dict[str, Any]:
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


def line(room: Classroom, purchase: Purchase) -> dict[str, str]:
    """A purchase as it is shown."""
    told = plain(room, purchase)
    return {
        "run": described(purchase.submitted.cell),
        "loss": "" if told["loss"] is None else f"{told['loss']:.4f}",
        room.rules.unit: f"{purchase.cost:.4g}",
        "status": ": ".join(filter(None, (told["status"], told["reason"]))),
    }


def summary(account: Account) -> dict[str, Any]:
    """An account as JSON, without what was bought."""
    return {
        "student": account.name,
        "left": account.left,
        "spent": account.spent,
        "reserved": account.reserved,
        "runs": len(account.purchases),
        "waiting": len([*account.waiting]),
        "predicted": account.prediction is not None,
    }


def whole(room: Classroom, account: Account) -> dict[str, Any]:
    """An account as JSON, with every run and the prediction."""
    handed = account.prediction
    told = handed and {name: getattr(handed, name) for name in ("loss", "low", "high")}
    return summary(account) | {
        "budget": account.budget,
        "runs": [plain(room, one) for one in account.purchases],
        "prediction": handed and {**handed.cell.labels, **(told or {})},
    }


def accounts(found: Sequence[Account]) -> str:
    """A line for each student."""
    numbers = ("left", "spent", "reserved")
    rows = [summary(one) for one in found]
    rows = [row | {name: f"{row[name]:.4g}" for name in numbers} for row in rows]
    return table([row | {"predicted": "yes" if row["predicted"] else "no"} for row in rows],
                 left=("student",))  # fmt: skip


def statement(room: Classroom, account: Account) -> str:
    """One student's account: what is left, the runs, the prediction."""
    told = [
        f"{account.name}: {room.amount(account.left)} of {room.amount(account.budget)} left, "
        f"{room.amount(account.reserved)} reserved"
    ]
    if account.purchases:
        rows = [line(room, one) for one in account.purchases]
        told.append(table(rows, left=("run", "status")))
    if account.prediction is not None:
        told.append(f"prediction: {predicted(account.prediction)}")
    return "\n".join(told)


def predicted(handed: Predicted) -> str:
    from isoflop.sim.classroom.rules import parameters

    return (
        f"{described(handed.cell)}, {parameters(handed.cell.run):,} parameters; loss "
        f"{handed.loss:.4f} in [{handed.low:.4f}, {handed.high:.4f}]"
    )
