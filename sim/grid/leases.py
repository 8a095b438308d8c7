"""A lease says that one process trains a job, so that several may share a runs directory.

A lease is a file that appears whole: it is written beside its place and linked there, which fails
where there is one. It holds its owner's token, and the owner renews it by touching it every
RENEW_SECONDS. Who sees it unrenewed for EXPIRY_SECONDS takes it over: only the watcher's own clock
is asked, no clock of another machine, no host's name and no process id, so a crash, a restarted
container and a stray file are all alike. An owner that slept through its expiry finds its token
gone and stops.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.models.errors import UserError
from isoflop.sim.durable import scratch

RENEW_SECONDS = 3.0
EXPIRY_SECONDS = 30.0
TEXT_MAX = 4096  # bytes of a lease that are read, whatever lies there
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Lease:
    """What a lease's file says: whose it is, and when it was renewed by its file system's clock."""

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


def read(path: Path) -> Lease | None:
    """The lease at `path`, whatever bytes it has; None where there is none.

    Raises UserError for a folder.
    """
    try:  # opened afresh, so that a network file system asks its server; a pipe does not block
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return None
    try:
        text = os.read(file, TEXT_MAX).decode("utf-8", "backslashreplace")
        renewed_ns = os.fstat(file).st_mtime_ns
    except IsADirectoryError:
        raise UserError(
            f"{path} must be a file, and is a folder; remove it and run again"
        ) from None
    finally:
        os.close(file)
    token, _, owner = text.partition("\n")
    owner = owner.strip()
    known = owner if owner and owner.isprintable() else "an unknown owner"
    return Lease(token, known[:100], renewed_ns)


def acquire(path: Path, token: str) -> Lease | None:
    """Take the lease unless another has it, which is returned. Whoever has the token has the lease.

    Raises OSError where the directory forbids it or has no room.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    content = f"{token}\nprocess {os.getpid()} on {socket.gethostname()}\n".encode()
    while True:
        try:
            _appear(path, content)
        except FileExistsError:
            found = read(path)
            if found is None:
                continue  # released between the two calls
            return None if found.token == token else found
        return None


def renew(path: Path, token: str) -> bool:
    """Tell those who wait that the owner lives. False if the lease is no longer this token's."""
    found = read(path)
    if found is None or found.token != token:
        return False
    with contextlib.suppress(FileNotFoundError):
        os.utime(path)
    return True


def release(path: Path, token: str) -> None:
    """Give the lease back, if it is this token's."""
    found = read(path)
    if found is not None and found.token == token:
        path.unlink(missing_ok=True)


@dataclass
class Watch:
    """Tells expired leases from live ones by looking at them again and again."""

    seen: dict[Path, tuple[Lease, float]] = field(default_factory=dict)

    def expired(self, path: Path) -> bool:
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
def hold(path: Path, token: str) -> Iterator[Holding]:
    """Acquire, renew while the body runs, release."""
    lease = Holding(acquire(path, token))
    if lease.other is not None:
        yield lease
        return
    done = threading.Event()

    def heartbeat() -> None:
        while not done.wait(RENEW_SECONDS):
            with contextlib.suppress(OSError):  # a server that is away for a while
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


def _appear(path: Path, content: bytes) -> None:
    """Make a file at once with its content. Raises FileExistsError where there is one."""
    with scratch(path) as (name, file):
        file.write(content)
        file.flush()
        try:
            os.link(name, path)
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    # a file system without links: killed before it writes, it leaves a lease that expires
    with open(path, "xb") as file:
        file.write(content)


def _remove(path: Path, expired: Lease) -> None:
    """Remove an expired lease by renaming it, which only one of several processes can do, and put
    it back if it was renewed or taken over in this instant.
    """
    with scratch(path) as (grave, _):
        try:
            os.replace(path, grave)
        except FileNotFoundError:
            return
        if read(grave) != expired:
            with contextlib.suppress(FileExistsError):
                os.link(grave, path)
