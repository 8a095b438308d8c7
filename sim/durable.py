"""Files that appear and are replaced as a whole: who reads sees the old content or the new.

            a path (POSIX, NFS)                     a URL of an object store (gs://, s3://, …)
    write   written beside, synced, renamed over    a PUT, whose object is seen whole or not at all
    create  written beside and linked, which        a PUT on the condition that there is none:
            fails where there is one                If-None-Match: * (S3), generation 0 (GCS)

Of several that `create` one name at once, one succeeds, on either. A store is listed in one call,
however many objects a folder has: its answers come by the thousand.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from isoflop.models.errors import UserError, quoted

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
if TYPE_CHECKING:  # or what has its methods for an object store: universal-pathlib's UPath
    from pathlib import Path as Place
else:
    Place = Any

WRITTEN = ("LastModified", "last_modified", "mtime", "updated", "created")  # times, by store
TAGS = ("ETag", "etag", "generation")  # what a store calls one content of an object
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


class Stamp(NamedTuple):
    """Of a file: when it was written, by the clock of its file system or store, and its size in
    bytes; `tag` is a store's own name of what it holds. Another content has another stamp.
    """

    time_ns: int
    size: int
    tag: str = ""


def files(root: Place) -> Iterator[tuple[tuple[str, ...], Stamp]]:
    """Every file below a folder, by the parts of its name there; none where there is no folder.
    Raises UserError where a store does not answer.
    """
    if remote(root):
        fs, base = _object(root)
        try:
            found = fs.find(base, detail=True)
        except FileNotFoundError:
            return
        except Exception as error:  # whatever its package raises
            raise unreachable(root, error) from error
        for name, info in found.items():
            yield tuple(name[len(base) :].strip("/").split("/")), _stamp(info)
        return
    for folder, _, names in os.walk(root):
        inside = Path(folder).relative_to(root).parts
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                found = os.stat(f"{folder}/{name}", follow_symlinks=False)
                yield (*inside, name), Stamp(found.st_mtime_ns, found.st_size)


def named(root: Place, name: str) -> Iterator[tuple[str, Stamp]]:
    """Of every folder in `root` that has a file of this name, that file's stamp."""
    if remote(root):
        yield from ((parts[0], one) for parts, one in files(root) if parts[1:] == (name,))
        return
    try:
        entries = os.scandir(root)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = os.stat(f"{entry.path}/{name}")
                yield entry.name, Stamp(found.st_mtime_ns, found.st_size)


def _stamp(info: Mapping[str, Any]) -> Stamp:
    when = next((info[name] for name in WRITTEN if info.get(name)), 0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    seconds = when.timestamp() if isinstance(when, datetime) else when
    tag = next((str(info[name]) for name in TAGS if info.get(name)), "")
    return Stamp(int(seconds * 1e9), int(info["size"] or 0), tag)


def contents_of(paths: Sequence[Place]) -> Iterator[bytes | None]:
    """All of each file; None of one that is gone or cannot be read. A store is asked for many at
    once. Raises UserError where it does not answer.
    """
    if paths and remote(paths[0]):
        names = [_object(path)[1] for path in paths]
        found = _object(paths[0])[0].cat(names, on_error="return")
        for path, name in zip(paths, names, strict=True):
            content = found.get(name)
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise unreachable(path, content) from content
            yield content if isinstance(content, bytes) else None
        return
    for path in paths:
        try:
            yield path.read_bytes()
        except OSError:
            yield None


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


def unreachable(path: Place, error: Exception) -> UserError:
    """Of whatever a store's package raises: no network, no credentials, no such bucket."""
    said = " ".join(str(error).split()) or type(error).__name__
    return UserError(
        f"{path} cannot be reached ({said:.300}); check the address, the network and what its "
        "package takes for credentials"
    )


def unwritable(path: Place, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {why(error)}")


def why(error: OSError) -> str:
    """The system's reason, with the remedy of a full disk."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full; what was finished is kept; free some space and run again"
    return error.strerror or str(error)
