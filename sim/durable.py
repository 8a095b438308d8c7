"""Files that appear and are replaced as a whole: who reads sees the old content or the new.

            a path (POSIX, NFS)                     a URL of an object store (gs://, s3://, …)
    write   written beside, synced, renamed over    a PUT, whose object is seen whole or not at all
    create  written beside and linked, which        a PUT on the condition that there is none:
            fails where there is one                If-None-Match: * (S3), generation 0 (GCS)

Of several that `create` one name at once, one succeeds, on either.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from isoflop.models.errors import UserError, quoted

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
if TYPE_CHECKING:  # or what has its methods for an object store: universal-pathlib's UPath
    from pathlib import Path as Place
else:
    Place = Any

URL = re.compile(r"(\w[\w.+-]+):/+(?=[^/])")  # two letters or more: C:/ is a drive


def place(name: str | Place) -> Place:
    """A folder by its path, or by the URL of an object store (`gs://bucket/runs`), which a Path
    spells gs:/bucket/runs. UserError where the store's package is not installed.
    """
    if not isinstance(name, str | PurePath):
        return name  # one of these already
    found = URL.match(str(name))
    if found is None:
        return Path(name)
    try:
        from upath import UPath

        # what other machines write is to be seen at once
        url = f"{found[1]}://{str(name)[found.end() :]}"
        return cast("Place", UPath(url, use_listings_cache=False))
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{quoted(str(name))} cannot be reached ({error}); pip install 'isoflop[cloud]', or "
            "name a folder"
        ) from None


def remote(path: Place) -> bool:
    """Whether it is an object store's."""
    return getattr(path, "protocol", "") not in ("", "file", "local")


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


def write(path: Place, content: bytes) -> None:
    """Replace a file by these bytes."""
    if remote(path):
        fs, name = _object(path)
        fs.pipe_file(name, content)
        return
    with replacing(path) as file:
        file.write(content)


def contents(path: Place) -> bytes:
    """All of a file at one instant: one GET of an object, where reading in parts would be several.

    Raises FileNotFoundError where there is none.
    """
    if remote(path):
        fs, name = _object(path)
        return fs.cat_file(name)
    return path.read_bytes()


def create(path: Place, content: bytes) -> None:
    """Make a file with these bytes. Raises FileExistsError where there is one."""
    if remote(path):
        fs, key = _object(path)
        fs.pipe_file(key, content, mode="create")
        return
    with scratch(path) as (name, file):
        file.write(content)
        file.flush()
        try:
            os.link(name, path)
            return
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
    # a file system without links: killed before it writes, it leaves an empty file
    with open(path, "xb") as file:
        file.write(content)


def remove_folder(path: Place) -> None:
    """What is in it too; errors are let be, since nothing relies on what is removed."""
    if remote(path):
        fs, name = _object(path)
        with contextlib.suppress(OSError):
            fs.rm(name, recursive=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _object(path: Any) -> tuple[Any, str]:
    """Its file system of fsspec, and its name there."""
    return path.fs, path.path


def unwritable(path: Place, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {why(error)}")


def why(error: OSError) -> str:
    """The system's reason, with the remedy of a full disk."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full; what was finished is kept; free some space and run again"
    return error.strerror or str(error)
