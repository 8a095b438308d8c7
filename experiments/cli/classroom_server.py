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
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.experiments.cli import classroom_words as words
from isoflop.experiments.cli import interrupts
from isoflop.experiments.cli.classroom_site import Form, Session, Site
from isoflop.experiments.cli.flags import Usage
from isoflop.experiments.cli.run import set_up

if TYPE_CHECKING:
    from isoflop.sim.classroom.ledger import Classroom

BODY_BYTES = 8192
FIELDS = 20
TEXT = 60  # characters of a field
QUIET_SECONDS = 15.0  # of a connection, until it is closed


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
    room = words.opened(folder)
    if folder.is_dir() and folder.stat().st_mode & 0o077:
        print(
            f"warning: other accounts of this machine can read {folder}, and in it everybody's "
            f"results; chmod 700 {folder}",
            file=sys.stderr,
        )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with (
        interrupts.raised_until_caught(),
        listening(room, host, port) as server,
        working(folder, workers),
    ):
        print(f"http://{host}:{server.server_address[1]}/", flush=True)
        server.serve_forever()


class Server(ThreadingHTTPServer):
    """A thread for each request, and room for a class that presses a button at once."""

    daemon_threads = True
    request_queue_size = 128


@contextmanager
def listening(room: Classroom, host: str, port: int) -> Iterator[Server]:
    from isoflop.models.errors import UserError

    try:
        server = Server((host, port), handler(Site(room)))
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port} cannot be listened at: {error.strerror}; choose another"
        ) from None
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
            from isoflop.models.errors import UserError

            nonce, status = (
                secrets.token_urlsafe(16),
                HTTPStatus.FORBIDDEN if bad else HTTPStatus.OK,
            )
            try:
                body = site.page(session, nonce, message)
            except UserError as error:  # a log or a record is damaged
                print(f"error: {error}", file=sys.stderr)
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                body = site.page(None, nonce, "this class cannot be read; tell your teacher")
            self._send(status, body.encode(), nonce=nonce)

        def _back(self, cookie: str = "") -> None:
            self._send(HTTPStatus.SEE_OTHER, cookie=cookie, location="/")

        def _send(
            self, status: HTTPStatus, body: bytes = b"", nonce: str = "", cookie: str = "",
            location: str = "",
        ) -> None:  # fmt: skip
            self.send_response(status)
            headers = {
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
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass  # requests are nobody's news; errors are raised

    return Handler
