"""A lease says that one process trains a job, so that several may share a runs directory.

A lease is a file that appears whole and only where there is none (`create` of sim/durable.py, which
says how on file systems and on object stores). It holds its owner's token, and the owner renews it
every RENEW_SECONDS: by touching a file, by writing an object again with another number in it. Who
sees it unrenewed for EXPIRY_SECONDS takes it over. Only the watcher's own monotonic clock is asked,
no clock of another machine, no host's name and no process id; so a crash, a restarted container, a
clock that is set and a stray file are all alike. An owner that slept through its expiry finds its
token gone and stops.

What that guarantees: of several that ask, one has a lease, and a live owner keeps it. On a file
system one watcher takes an expired lease over, since one can rename it away. On an object store two
that do so in the same instant may both begin, and one of them finds its token gone when it renews.
Two holders of one job cost time and never a wrong record: both compute the same bits, and a record
is written as a whole.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from isoflop.models.errors import UserError
from isoflop.sim.durable import Place, contents, create, remote, scratch, write

RENEW_SECONDS = 3.0
EXPIRY_SECONDS = 30.0
TEXT_MAX = 4096  # bytes of a lease that are read, whatever lies there


@dataclass(frozen=True)
class Lease:
    """What a lease's file says: whose it is, and when it was renewed, by the clock of its file
    system or of its owner: to be compared with itself only.
    """

    token: str
    owner: str
    renewed_ns: int


@dataclass
class Holding:
    """A lease for the body of a `with`: `other` is another's in its place, `lost` is set once it
    was taken over.
    """

    other: Lease | None
    lost: threading.Event = field(default_factory=threading.Event)


def read(path: Place) -> Lease | None:
    """The lease at `path`, whatever bytes it has; None where there is none.

    Raises UserError for a folder.
    """
    if remote(path):
        try:
            return _parsed(contents(path)[:TEXT_MAX], None)
        except FileNotFoundError:
            return None
    try:  # opened afresh, so that a network file system asks its server; a pipe does not block
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    try:
        return _parsed(os.read(file, TEXT_MAX), os.fstat(file).st_mtime_ns)
    except IsADirectoryError:
        raise UserError(
            f"{path} must be a file, and is a folder; remove it and run again"
        ) from None
    finally:
        os.close(file)


def _parsed(content: bytes, renewed_ns: int | None) -> Lease:
    text = content.decode("utf-8", "backslashreplace")
    token, owner, number = [*text.split("\n"), "", ""][:3]
    owner = owner.strip()
    known = owner if owner and owner.isprintable() else "an unknown owner"
    if renewed_ns is None:
        renewed_ns = int(number) if number.isdecimal() else 0
    return Lease(token, known[:100], renewed_ns)


def _content(token: str) -> bytes:
    owner = f"process {os.getpid()} on {socket.gethostname()}"
    return f"{token}\n{owner}\n{time.time_ns()}\n".encode()


def acquire(path: Place, token: str) -> Lease | None:
    """Take the lease unless another has it, which is returned. Whoever has the token has the lease.

    Raises OSError where the directory forbids it or has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            create(path, _content(token))
        except FileExistsError:
            found = read(path)
            if found is None:
                continue  # released between the two calls
            return None if found.token == token else found
        return None


def renew(path: Place, token: str) -> bool:
    """Tell those who wait that the owner lives. False if the lease is no longer this token's."""
    found = read(path)
    if found is None or found.token != token:
        return False
    if remote(path):
        write(path, _content(token))
    else:
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
    return True


def release(path: Place, token: str) -> None:
    """Give the lease back, if it is this token's."""
    found = read(path)
    if found is not None and found.token == token:
        path.unlink(missing_ok=True)


@dataclass
class Watch:
    """Tells expired leases from live ones by looking at them again and again."""

    seen: dict[Place, tuple[Lease, float]] = field(default_factory=dict)

    def expired(self, path: Place) -> bool:
        """Whether the lease can be acquired: there is none, or it was not renewed for
        EXPIRY_SECONDS since it was first seen so; then it is removed.
        """
        found = read(path)
        if found is None:
            return True
        last, since = self.seen.get(path, (None, 0.0))
        if found != last:
            self.seen[path] = found, time.monotonic()
            return False
        if time.monotonic() - since < EXPIRY_SECONDS:
            return False
        _remove(path, found)
        return True


@contextlib.contextmanager
def hold(path: Place, token: str) -> Iterator[Holding]:
    """Acquire, renew while the body runs, release."""
    lease = Holding(acquire(path, token))
    if lease.other is not None:
        yield lease
        return
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(RENEW_SECONDS):
            with contextlib.suppress(Exception):  # a server that is away for a while
                if not renew(path, token):
                    lease.lost.set()
                    return

    thread = threading.Thread(target=heartbeat, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        release(path, token)


def _remove(path: Place, expired: Lease) -> None:
    """Remove an expired lease by renaming it, which only one of several processes can do, and put
    it back if it was renewed or taken over in this instant. An object is looked at again instead.
    """
    if remote(path):
        if read(path) == expired:
            path.unlink(missing_ok=True)
        return
    with scratch(path) as (grave, _):
        try:
            os.replace(path, grave)
        except FileNotFoundError:
            return
        if read(grave) != expired:
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
