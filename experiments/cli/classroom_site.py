"""What a class's page does, apart from HTTP: sessions, forms, and what is shown.

A session belongs to one student; who acts is never read from a form.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from isoflop.experiments.cli import classroom_words as words
from isoflop.experiments.cli.flags import Usage

if TYPE_CHECKING:
    from isoflop.sim.classroom.ledger import Classroom
    from isoflop.sim.classroom.rules import Design

SESSIONS = 1000  # at once; the oldest ends
SESSION_SECONDS = 12 * 3600.0
SUBMIT = ("family", "width", "depth", "steps", "lr", "seed", "seconds")
PREDICT = ("family", "width", "depth", "lr", "loss", "low", "high")
Form = Mapping[str, str]


@dataclass
class Session:
    student: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    begun: float = field(default_factory=time.monotonic)
    message: str = ""
    bad: bool = False
    forms: dict[str, dict[str, str]] = field(default_factory=dict)


class Site:
    """A class and who is logged in."""

    def __init__(self, room: Classroom) -> None:
        self.room = room
        self.sessions: dict[str, Session] = {}
        self.lock = threading.Lock()

    def session(self, name: str) -> Session | None:
        with self.lock:
            found = self.sessions.get(name)
            if found is not None and time.monotonic() - found.begun > SESSION_SECONDS:
                del self.sessions[name]
                return None
            return found

    def login(self, token: str) -> str | None:
        """The new session's name; None for a token of nobody's."""
        student = self.room.known_by(token)
        if student is None:
            return None
        name = secrets.token_urlsafe(24)
        with self.lock:
            while len(self.sessions) >= SESSIONS:
                self.sessions.pop(next(iter(self.sessions)))
            self.sessions[name] = Session(student)
        return name

    def logout(self, name: str) -> None:
        with self.lock:
            self.sessions.pop(name, None)

    def act(self, action: Callable[[Session, Form], str], session: Session, form: Form) -> None:
        """Do what a form asks for; what comes of it is shown by the next page."""
        from pydantic import ValidationError

        from isoflop.experiments import Unknown
        from isoflop.models.errors import UserError
        from isoflop.sim.records.store import brief

        try:
            session.message, session.bad = action(session, form), False
        except ValidationError as error:
            session.message, session.bad = brief(error), True
        except (UserError, Usage, Unknown) as error:
            session.message, session.bad = str(error), True

    def submit(self, session: Session, form: Form) -> str:
        from isoflop.sim.classroom.work import limit

        session.forms["submit"] = {name: form.get(name, "") for name in SUBMIT}
        room = self.room
        filled(form, "family", "width", "depth", "steps")
        design = self._design(form, whole(form, "seed") or 0)
        cell = room.rules.cell(design, whole(form, "steps"))
        most = limit(room, cell, real(form, "seconds"))
        if form.get("price"):
            return f"{words.described(cell)} takes {room.amount(room.price(cell, most))}"
        purchase, new = room.submit(session.student, cell, most)
        return f"{words.described(cell)}: {words.outcome(room, purchase, new)}"

    def predict(self, session: Session, form: Form) -> str:
        session.forms["predict"] = {name: form.get(name, "") for name in PREDICT}
        filled(form, "family", "width", "depth", "low", "high")
        low, high, loss = (real(form, name) for name in ("low", "high", "loss"))
        middle = (low + high) / 2 if loss is None else loss
        handed = self.room.predict(session.student, self._design(form), middle, low, high)
        return f"handed in: {words.predicted(handed)}"

    def _design(self, form: Form, seed: int = 0) -> Design:
        width, depth, lr = whole(form, "width"), whole(form, "depth"), real(form, "lr")
        return words.design(self.room.rules, form["family"], width, depth, lr, seed)

    def page(self, session: Session | None, nonce: str, message: str = "") -> str:
        """The HTML that a session sees; without one the form to log in. UserError where the class
        cannot be read.
        """
        from isoflop.figures.report import classroom as page

        if session is None:
            return page.page(
                {"student": "", "title": "Log in", "nonce": nonce, "message": message, "bad": True}
            )
        values = self._values(session)
        said, session.message = session.message, ""
        return page.page(values | {"nonce": nonce, "message": said})

    def _values(self, session: Session) -> dict[str, Any]:
        from isoflop.sim.classroom.work import board

        room, rules = self.room, self.room.rules
        account = room.settle(session.student)
        target, closed, found = room.target, room.closed, board(room)
        handed = account.prediction
        return {
            "student": account.name,
            "title": f"{room.amount(account.left)} left",
            "bad": session.bad,
            "csrf": session.csrf,
            "phase": _sentence(words.phase(room)),
            "unit": rules.unit,
            **{
                n: room.amount(getattr(account, n)) for n in ("left", "spent", "reserved", "budget")
            },
            "share": round(100 * (1 - account.left / account.budget)),
            "families": rules.families,
            "batch": rules.batch,
            "seq_len": rules.seq_len,
            "largest": room.amount(rules.largest),
            "level": f"{rules.level:.0%}",
            "buying": not closed and (target is None or rules.announced),
            "predicting": target is not None and not closed,
            "form": dict.fromkeys(SUBMIT, "") | {"seed": "0"} | session.forms.get("submit", {}),
            "handed": dict.fromkeys(PREDICT, "") | session.forms.get("predict", {}),
            "prediction": "" if handed is None else words.predicted(handed),
            "runs": [words.line(room, one) for one in reversed(account.purchases)],
            "waiting": len([*account.waiting]),
            "board": None if found is None else words.standings(found),
            "finding": "" if found is None else _sentence(words.finding(found)),
        }


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def filled(form: Form, *names: str) -> None:
    for name in names:
        if not form.get(name, "").strip():
            raise Usage(f"{name} is needed; fill it in")


def whole(form: Form, name: str) -> Any:
    """None where the field is empty."""
    return _number(form, name, int, "a whole number")


def real(form: Form, name: str) -> Any:
    """None where the field is empty."""
    return _number(form, name, float, "a number")


def _number(form: Form, name: str, kind: Callable[[str], Any], what: str) -> Any:
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise Usage(f"{name} must be {what}, and is {text!r}; correct it") from None
