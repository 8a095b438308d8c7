"""Files that are made once and kept in the user's cache: whole and verified, or made again.

A file ends in the SHA-256 of what comes before, so a truncated or damaged one is known. It is
written beside its place, flushed to the disk and renamed, so several processes may make the same
file at once: the last one wins with equal bytes, and readers of the first keep what they mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import platformdirs

from isoflop.models.errors import UserError
from isoflop.sim import durable

DIGEST_BYTES = 32


def folder() -> Path:
    """$ISOFLOP_CACHE, or the platform's cache directory for this user."""
    return Path(os.environ.get("ISOFLOP_CACHE") or platformdirs.user_cache_dir("isoflop"))


def compilation() -> dict[str, str]:
    """Environment variables by which JAX keeps every compiled program in the cache folder."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(folder() / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


# Programs have many small matmuls: trying Triton kernels for each takes most of compiling on a GPU
# (65 s against 5 for one training step on an H100) and gains nothing over cuBLAS (LOG.md).
FAST_COMPILING = {"XLA_FLAGS": "--xla_gpu_enable_triton_gemm=false"}


def name(stem: str, *parts: str) -> str:
    """A file name for what `parts` describe."""
    return f"{stem}-{hashlib.sha256(repr(parts).encode()).hexdigest()[:16]}"


def entry(
    name: str, make: Callable[[], Iterable[bytes]], digest: str | None = None
) -> tuple[np.ndarray, str]:
    """The bytes that `make` yields, as a read-only uint8 memory map, and their SHA-256 in hex.

    They are made only if the cache has no intact file of that name, or, where `digest` is given,
    none with that digest. Raises UserError if the cache cannot be written or reads back damaged.
    """
    path = folder() / name
    found = _read(path)
    if found is None or digest not in (None, found[1]):
        _write(path, make())
        found = _read(path)
    if found is None or digest not in (None, found[1]):
        raise UserError(
            f"the cache must return what was written, but {path} reads back damaged; "
            "set ISOFLOP_CACHE to a directory on a sound disk"
        )
    return found


def _read(path: Path) -> tuple[np.ndarray, str] | None:
    if not path.is_file() or path.stat().st_size < DIGEST_BYTES:
        return None
    stored = np.asarray(np.memmap(path, np.uint8, mode="r"))
    payload, digest = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:].tobytes()
    return (payload, digest.hex()) if hashlib.sha256(payload.data).digest() == digest else None


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    digest = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        with _writable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(durable.replacing(path))
        for chunk in chunks:  # whose own errors are not the cache's
            digest.update(chunk)
            with _writable(path):
                file.write(chunk)
        with _writable(path):
            file.write(digest.digest())
            stack.close()


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache must be writable, but {path} is not ({error.strerror}); "
            "set ISOFLOP_CACHE to a directory with room"
        ) from error
