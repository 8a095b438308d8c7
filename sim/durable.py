"""Files that are replaced as a whole: readers and crashes see the old content or the new."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from isoflop.models.errors import UserError


@contextlib.contextmanager
def scratch(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file beside `path`, open for writing, which is gone after the body.

    Nobody can know its name beforehand, so a link that was planted in the folder is not followed.
    """
    name = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    handle = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    file = os.fdopen(handle, "wb")
    try:
        yield name, file
        file.close()
    finally:
        for undo in (file.close, name.unlink):
            with contextlib.suppress(OSError):  # renamed by now, or the first error is to be told
                undo()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the body ends well, and vanishes otherwise."""
    with scratch(path) as (name, file):
        yield file
        file.flush()
        os.fsync(file.fileno())
        os.replace(name, path)
    if os.name == "posix":  # the rename itself is durable once the directory is
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def write(path: Path, content: bytes) -> None:
    """Replace a file by these bytes."""
    with replacing(path) as file:
        file.write(content)


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {why(error)}")


def why(error: OSError) -> str:
    """The system's reason, with the remedy of a full disk."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full; what was finished is kept; free some space and run again"
    return error.strerror or str(error)
