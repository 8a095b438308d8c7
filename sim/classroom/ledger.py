"""A class as a folder that several may write at once, and what nobody can spend twice.

    FOLDER/class.json             the rules
    FOLDER/data/                  the class's text, where it is a file of the teacher's
    FOLDER/students/NAME/         1.json, 2.json, …: the student's log (entries.py)
    FOLDER/students/NAME/token    the SHA-256 of the token that the student logs in with
    FOLDER/runs/                  an ordinary runs directory
    FOLDER/target.json            the target, once it is announced
    FOLDER/closed.json            says that no more predictions are taken

A log is only ever added to, by a file that appears whole and only where there is none (`create` of
sim/durable.py). Who adds to it has read all lines before, and where another process was first its
file is refused, and it reads again: so of two submissions that the budget holds only one of, one is
refused, on any file system or object store that the runs may lie on, without a lock that a killed
process would leave behind. A charge follows from the run's record; whoever looks next writes it.

What is protected is what the file system protects. A student who can write in FOLDER can write
anybody's log, and who can read it can read everybody's results. Where that matters, the folder is
the teacher's alone and students use `isoflop class serve`. The target is in FOLDER only as a
commitment until it is announced, and tokens only as digests.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import math
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from isoflop.models.base import Config
from isoflop.models.errors import UserError, quoted
from isoflop.sim.classroom import rules as rules_of
from isoflop.sim.classroom.entries import (
    ENTRY,
    Account,
    Entry,
    Predicted,
    Purchase,
    Settled,
    Submitted,
)
from isoflop.sim.classroom.rules import Amount, Design, Rules, Target
from isoflop.sim.data.files import File
from isoflop.sim.durable import Place, contents, create, place, unwritable
from isoflop.sim.records.store import Record, Store, brief
from isoflop.sim.spec import Cell

STOPPED = re.compile(r"stopped at its limit of (\S+) s")  # reason of a run without its last seconds


@dataclass(frozen=True)
class Classroom:
    """A class's folder, opened by `load` or made by `establish`."""

    root: Place
    rules: Rules

    @property
    def store(self) -> Store:
        return Store(self.root / "runs")

    @property
    def target(self) -> Target | None:
        """The target, once it is announced. UserError if it is not what was committed to."""
        path = self.root / "target.json"
        if not path.exists():
            return None
        target = _parsed(Target, path)
        if target.commitment != self.rules.commitment:
            raise UserError(
                f"{path} is not the target that the class was founded with; remove it, and the "
                f"teacher restores it with isoflop class announce {self.root}"
            )
        return target

    @property
    def closed(self) -> bool:
        return (self.root / "closed.json").exists()

    # students

    @property
    def students(self) -> list[str]:
        return sorted(path.parent.name for path in self.root.glob("students/*/token"))

    def enrol(self, name: str) -> str:
        """Add a student; returns the token, which is nowhere else. UserError for one who is in."""
        folder = self.root / "students" / rules_of.student(name)
        token = secrets.token_urlsafe(16)
        if not _create(folder / "token", _digest(token)):
            raise UserError(f"student {name} is in the class already; leave the name out")
        return token

    def known_by(self, token: str) -> str | None:
        """The student whose token this is."""
        found = None
        for name in self.students:
            told = contents(self._file(name, "token"))
            if hmac.compare_digest(told, _digest(token)):
                found = name
        return found

    def account(self, name: str) -> Account:
        """A student's log as it is now. UserError for somebody who is not in the class."""
        if not rules_of.NAME.fullmatch(name) or not self._file(name, "token").exists():
            known = ", ".join(self.students) or "nobody yet"
            raise UserError(
                f"there is no student {quoted(name)} in this class, and there is {known}; add one "
                f"with isoflop class enrol {self.root} NAME"
            )
        log: list[Entry] = []
        while (entry := _entry(self._file(name, f"{len(log) + 1}.json"))) is not None:
            log.append(entry)
        return Account(name, self.rules.budget, tuple(log))

    # runs

    def price(self, cell: Cell, seconds: float | None = None) -> Amount:
        """What a run reserves: its exact FLOPs, or in a class of seconds as many as it may take at
        most, which `seconds` says. Whether somebody has trained it changes nothing and is not told.
        """
        if self.rules.unit == "flops":
            return rules_of.flops_of(cell.run)
        if seconds is None or not 0 < seconds < math.inf:
            raise UserError(
                f"a class of seconds needs the seconds that a run may take, above 0, and has "
                f"{seconds}; say so with --seconds"
            )
        return seconds

    def submit(self, name: str, cell: Cell, seconds: float | None = None) -> tuple[Purchase, bool]:
        """Reserve a run: the purchase, and whether it is a new one.

        The student's own run of the same key, waiting or with a result, is returned as it is and
        costs nothing. A run that another student has trained comes to the same end at the same cost
        as if it were trained again, and at once. Raises UserError where the target is announced or
        the budget does not hold the run.
        """
        price, key = self.price(cell, seconds), cell.run.key
        record = self.store.load(key)
        failures = 0 if record is None else record.failures

        def entry(account: Account) -> Submitted | None:
            if account.find(key) is not None:
                return None
            self._check_runs_are_taken()
            if price > self.rules.largest:
                raise UserError(
                    f"a run may take {self.amount(self.rules.largest)} in this class, and this one "
                    f"takes {self.amount(price)}; make it smaller or shorter"
                )
            if price > account.left:
                raise UserError(
                    f"this run takes {self.amount(price)}, and {self.amount(account.left)} of "
                    f"{name}'s budget of {self.amount(account.budget)} are left; make it smaller "
                    "or shorter"
                )
            return Submitted(cell=cell, reserved=price, failures=failures)

        self.settle(name)  # what is paid back may be spent
        account, new = self._append(name, entry)
        own = account.find(key)
        assert own is not None
        return next(one for one in self.settle(name).purchases if one.number == own.number), new

    def settle(self, name: str) -> Account:
        """Charge the student's runs that have their results, and return what failed. Whoever does
        this first does it for all; a run that is charged stays so.
        """
        account = self.account(name)
        for purchase in account.waiting:
            end = _end(purchase, self.store.load(purchase.key), self.rules.unit)
            if end is not None:
                account, _ = self._append(name, functools.partial(_unless_ended, end))
        return account

    # the target

    def announce(self, target: Target) -> None:
        """Tell the target; no run is taken from then on."""
        if target.commitment != self.rules.commitment:
            raise UserError("this is not the target that the class was founded with; use its own")
        _create(self.root / "target.json", target.model_dump_json().encode())

    def predict(self, name: str, design: Design, loss: float, low: float, high: float) -> Predicted:
        """Hand in a design for the target, and an interval for the loss that is reached there.

        The last one counts. Raises UserError before the target is announced, after the class is
        closed, and for a design that the target does not pay for.
        """
        target = self.target
        if target is None:
            raise UserError(
                "the target is not announced yet, and nothing can be predicted for it; spend the "
                "budget meanwhile"
            )
        cell = self.rules.affordable(design.model_copy(update={"seed": 0}), target.flops)
        found = Predicted(cell=cell, loss=loss, low=low, high=high)

        def entry(account: Account) -> Predicted:
            if self.closed:
                raise UserError("the class is closed, and takes no more predictions")
            return found

        self._append(name, entry)
        return found

    def close(self) -> None:
        """Take no more predictions. UserError before the target is announced."""
        if self.target is None:
            raise UserError(
                "the target is not announced, so nobody could predict it; first isoflop class "
                f"announce {self.root}"
            )
        _create(self.root / "closed.json", b"{}")

    def amount(self, value: Amount) -> str:
        """An amount in words."""
        return f"{value:.4g} {'FLOPs' if self.rules.unit == 'flops' else 's'}"

    # files

    def _check_runs_are_taken(self) -> None:
        if self.closed or (self.target is not None and not self.rules.announced):
            said = "the class is closed" if self.closed else "the target is announced"
            raise UserError(
                f"{said}, and no more runs are taken; the runs of before are in isoflop class "
                f"status {self.root}"
            )

    def _file(self, name: str, file: str) -> Place:
        return self.root / "students" / name / file

    def _append(self, name: str, entry: Callable[[Account], Entry | None]) -> tuple[Account, bool]:
        """Add what `entry` makes of the log, if anything: it is asked again, of the longer log,
        whenever another process was first. The log then, and whether something was added.
        """
        while True:
            account = self.account(name)
            line = entry(account)
            if line is None:
                return account, False
            path = self._file(name, f"{len(account.log) + 1}.json")
            if _create(path, line.model_dump_json().encode()):
                return Account(name, account.budget, (*account.log, line)), True


def load(folder: str | Place) -> Classroom:
    """The class of a folder. Raises UserError where there is none."""
    root = place(folder)
    path = root / "class.json"
    if not path.exists():
        raise UserError(
            f"there is no class in {root}; make one with isoflop class create {root}, or name "
            "another folder"
        )
    rules = _parsed(Rules, path)
    if isinstance(rules.data, File):  # which travels with the folder
        where = str(root / "data" / rules.data.path)
        rules = rules.model_copy(update={"data": rules.data.model_copy(update={"path": where})})
    return Classroom(root, rules)


def establish(folder: str | Place, rules: Rules, target: Target, text: bytes = b"") -> Classroom:
    """Make a class in a folder; `text` is the content of the file that its data are, if they are.

    Raises UserError where there is a class, and where the target is within a run's reach.
    """
    if rules.unit == "flops" and target.flops <= rules.largest:
        raise UserError(
            f"the target of {target.flops:.4g} FLOPs must be beyond the largest run, which may "
            f"take {rules.largest:.4g}; raise the target, or lower the largest run"
        )
    root = place(folder)
    if (root / "class.json").exists():
        raise UserError(f"there is a class in {root} already; name another folder")
    if isinstance(rules.data, File):
        _create(root / "data" / rules.data.path, text)
    for part in ("students", "runs"):
        (root / part).mkdir(parents=True, exist_ok=True)
    if rules.announced:
        _create(root / "target.json", target.model_dump_json().encode())
    if not _create(root / "class.json", rules.model_dump_json(indent=1).encode()):
        raise UserError(f"there is a class in {root} already; name another folder")
    return load(folder)


C = TypeVar("C", bound=Config)


def _parsed(kind: type[C], path: Place) -> C:
    try:
        return kind.model_validate_json(contents(path))
    except ValidationError as error:
        raise UserError(f"{path} cannot be read ({brief(error)}); restore it") from None


def _entry(path: Place) -> Entry | None:
    """A line of a log; None where it ends."""
    try:
        return _line(contents(path))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(
            f"{path} is no whole line of a student's log ({brief(error)}); try again, and if it "
            "stays so remove that file"
        ) from None


@functools.lru_cache(10_000)  # a line never changes, and is read whenever one is added
def _line(content: bytes) -> Entry:
    return ENTRY.validate_json(content)


def _create(path: Place, content: bytes) -> bool:
    """Write a file, and whether there was none. UserError where the folder forbids it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        create(path, content)
    except FileExistsError:
        return False
    except OSError as error:
        raise unwritable(path, error) from error
    return True


def _digest(token: str) -> bytes:
    """Of 128 random bits, which nobody guesses: no salt, no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest().encode()


def _taken(record: Record, unit: str) -> Amount:
    """What a run took, with a result. One that diverged is computed no further than its losses are
    numbers, and its curve ends there.
    """
    if unit == "seconds":
        return record.seconds
    steps = record.run.budget.steps
    done = record.curve[-1][0] if record.status == "diverged" and record.curve else steps
    return rules_of.flops_of(record.run) // steps * done


def stopped(seconds: float) -> str:
    """The reason of a run that took longer than its seconds."""
    return f"stopped at its limit of {seconds:.6g} s; buy it with more seconds, or make it shorter"


def _end(purchase: Purchase, record: Record | None, unit: str) -> Settled | None:
    """What a purchase is charged, never more than was reserved; None while that is open.

    One that takes longer than its own seconds has no result, whoever's larger limit it was trained
    under; one that was stopped at another's smaller limit waits for its own.
    """
    submitted, most = purchase.submitted, purchase.submitted.reserved
    if record is None or not (record.final or record.failures > submitted.failures):
        return None
    if record.final and (taken := _taken(record, unit)) <= most:
        return Settled(of=purchase.number, charge=taken, status=record.status, reason=record.reason)
    limit = STOPPED.match(record.reason)
    if limit is not None and float(limit[1]) < most * (1 - 1e-4):
        return None
    late = record.final or limit is not None
    charge, reason = (most, stopped(most)) if late else (0, record.reason)
    return Settled(of=purchase.number, charge=charge, status="failed", reason=reason)


def _unless_ended(end: Settled, account: Account) -> Settled | None:
    known = any(isinstance(line, Settled) and line.of == end.of for line in account.log)
    return None if known else end
