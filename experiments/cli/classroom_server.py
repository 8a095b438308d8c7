"""`isoflop class serve`: a class as a page, so that students need neither the folder nor isoflop.

Students log in with the token that the teacher hands out, and see their own runs alone. A session
is a random cookie that scripts and other sites cannot use (HttpOnly, SameSite=Strict); every form
carries the session's own secret; a body is at most 8 kB; paths are compared with a list and never
looked up in a file system; the page has no script, and its Content-Security-Policy allows none.
Sessions are in memory: after a restart students log in again. It speaks plain HTTP: on a network
that is not trusted, put it behind a proxy that speaks TLS.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.experiments.cli import classroom as told
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.flags import Usage
from isoflop.experiments.cli.run import set_up

if TYPE_CHECKING:
    from isoflop.sim.classroom.ledger import Classroom
    from isoflop.sim.classroom.rules import Design

BODY_BYTES = 8192
FIELDS = 20
TEXT = 60  # characters of a field
SESSIONS = 1000  # at once; the oldest ends
SESSION_SECONDS = 12 * 3600.0
QUIET_SECONDS = 15.0  # of a connection, until it is closed
SUBMIT = ("family", "width", "depth", "steps", "lr", "seed", "seconds")
PREDICT = ("family", "width", "depth", "lr", "loss", "low", "high")


def serve(folder: Path, port: int = 8000, host: str = "127.0.0.1", workers: int = 1) -> None:
    """Serve a class as a web page on this machine, and train beside it what students buy.

    Args:
        folder: the class's, which nobody but the teacher need be able to read.
        port: of the page; 0 for any that is free.
        host: the address to listen at: this machine alone, or 0.0.0.0 for the network, whose
            traffic is not encrypted.
        workers: runs at once; 0 to train nothing here.
    """
    if not 0 <= port < 65536 or workers < 0:
        raise Usage(f"--port {port} must be from 0 to 65535, and --workers {workers} at least 0")
    set_up(trains=True)
    room = told.opened(folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        interrupts.raised_until_caught(),
        listening(room, host, port) as server,
        working(folder, workers),
    ):
        print(f"http://{host}:{server.server_address[1]}/", flush=True)
        server.serve_forever()


@contextmanager
def listening(room: Classroom, host: str, port: int) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer((host, port), handler(Site(room)))
    server.daemon_threads = True
    try:
        yield server
    finally:
        server.server_close()


@contextmanager
def working(folder: Path, workers: int) -> Iterator[None]:
    """A worker in a process of its own, which JAX has for itself."""
    if not workers:
        yield
        return
    command = [sys.executable, "-m", "isoflop.experiments", "class", "work", str(folder)]
    worker = subprocess.Popen(
        [*command, "--watch", "--workers", str(workers)], stdin=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        worker.terminate()  # which saves where it stands
        worker.wait()


@dataclass
class Session:
    student: str
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    begun: float = field(default_factory=time.monotonic)
    message: str = ""
    bad: bool = False
    forms: dict[str, dict[str, str]] = field(default_factory=dict)


Form = Mapping[str, str]


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
            return f"{told.described(cell)} takes {room.amount(room.price(cell, most))}"
        purchase, new = room.submit(session.student, cell, most)
        return f"{told.described(cell)}: {told.outcome(room, purchase, new)}"

    def predict(self, session: Session, form: Form) -> str:
        session.forms["predict"] = {name: form.get(name, "") for name in PREDICT}
        filled(form, "family", "width", "depth", "low", "high")
        low, high, loss = (real(form, name) for name in ("low", "high", "loss"))
        middle = (low + high) / 2 if loss is None else loss
        handed = self.room.predict(session.student, self._design(form), middle, low, high)
        return f"handed in: {told.predicted(handed)}"

    def _design(self, form: Form, seed: int = 0) -> Design:
        width, depth, lr = whole(form, "width"), whole(form, "depth"), real(form, "lr")
        return told.design(self.room.rules, form["family"], width, depth, lr, seed)

    def page(self, session: Session | None, nonce: str, message: str = "") -> str:
        """The HTML that a session sees; without one the form to log in."""
        from isoflop.figures.report import classroom as page

        if session is None:
            return page.page(
                {"student": "", "title": "Log in", "nonce": nonce, "message": message, "bad": True}
            )
        said, session.message = session.message, ""
        return page.page(self._values(session) | {"nonce": nonce, "message": said})

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
            "phase": _sentence(told.phase(room)),
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
            "prediction": "" if handed is None else told.predicted(handed),
            "runs": [told.line(room, one) for one in reversed(account.purchases)],
            "waiting": len([*account.waiting]),
            "board": None if found is None else told.standings(found),
            "finding": "" if found is None else _sentence(told.finding(found)),
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


class Refused(Exception):
    """A request that is answered by a status alone."""

    def __init__(self, status: HTTPStatus) -> None:
        self.status = status


def handler(site: Site) -> type[BaseHTTPRequestHandler]:
    actions = {"/submit": site.submit, "/predict": site.predict}

    class Handler(BaseHTTPRequestHandler):
        timeout = QUIET_SECONDS
        server_version, sys_version = "isoflop", ""

        def do_GET(self) -> None:
            if self.path == "/favicon.ico":
                self._send(HTTPStatus.NO_CONTENT)
            elif self.path == "/":
                self._page(site.session(self._cookie()))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            try:
                self._answer(self._form())
            except Refused as refused:
                self.send_error(refused.status)
                self._read_on()

        def _answer(self, form: Form) -> None:
            if self.path == "/login":
                name = site.login(form.get("token", ""))
                if name is None:
                    self._page(None, "nobody has this token; ask your teacher", bad=True)
                    return
                self._back(f"session={name}; HttpOnly; SameSite=Strict; Path=/")
                return
            session = site.session(self._cookie())
            if session is None:
                self._page(None, "log in again", bad=True)
                return
            if not hmac.compare_digest(form.get("csrf", "").encode(), session.csrf.encode()):
                raise Refused(HTTPStatus.FORBIDDEN)
            if self.path == "/logout":
                site.logout(self._cookie())
                self._back("session=; Max-Age=0; HttpOnly; SameSite=Strict; Path=/")
            elif self.path in actions:
                site.act(actions[self.path], session, form)
                self._back()
            else:
                raise Refused(HTTPStatus.NOT_FOUND)

        def _form(self) -> Form:
            """The fields of the body, shortened. Refused unless it is a small form of this page."""
            origin = self.headers.get("Origin")
            if origin is not None and origin.partition("://")[2] != self.headers.get("Host"):
                raise Refused(HTTPStatus.FORBIDDEN)
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal():
                raise Refused(HTTPStatus.LENGTH_REQUIRED)
            if int(length) > BODY_BYTES:
                raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            if self.headers.get_content_type() != "application/x-www-form-urlencoded":
                raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
            body = self.rfile.read(int(length)).decode("utf-8", "replace")
            try:
                pairs = urllib.parse.parse_qsl(body, max_num_fields=FIELDS)
            except ValueError:
                raise Refused(HTTPStatus.BAD_REQUEST) from None
            return {name: value[:TEXT] for name, value in pairs}

        def _read_on(self) -> None:
            """What is still being sent, a while: closed before it is read, the connection would be
            reset, and the answer with it.
            """
            self.wfile.flush()
            self.connection.settimeout(0.2)
            with contextlib.suppress(OSError):
                self.rfile.read(8 * BODY_BYTES)

        def _cookie(self) -> str:
            try:
                found = SimpleCookie(self.headers.get("Cookie", "")).get("session")
            except CookieError:
                return ""
            return "" if found is None else found.value

        def _page(self, session: Session | None, message: str = "", bad: bool = False) -> None:
            nonce = secrets.token_urlsafe(16)
            body = site.page(session, nonce, message).encode()
            self._send(HTTPStatus.FORBIDDEN if bad else HTTPStatus.OK, body, nonce=nonce)

        def _back(self, cookie: str = "") -> None:
            self._send(HTTPStatus.SEE_OTHER, cookie=cookie, location="/")

        def _send(
            self, status: HTTPStatus, body: bytes = b"", nonce: str = "", cookie: str = "",
            location: str = "",
        ) -> None:  # fmt: skip
            self.send_response(status)
            told = {
                "Content-Type": "text/html; charset=utf-8",
                "Content-Length": str(len(body)),
                "Content-Security-Policy": (
                    f"default-src 'none'; style-src 'nonce-{nonce}'; img-src 'self'; "
                    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
                ),
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "same-origin",
                "Cache-Control": "no-store",
                "Set-Cookie": cookie,
                "Location": location,
            }
            for name, value in told.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass  # requests are nobody's news; errors are raised

    return Handler
