"""Token files (.bin): ids in little-endian order, alone or behind llm.c's header.

alone     as nanoGPT writes them: nothing in the file tells their width, so it must be stated
llm.c     256 int32 (magic number, version, number of ids), then the ids: uint16 for GPT-2's
          vocabulary, uint32 for Llama 3's (llm.c, dev/data/data_common.py)
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from isoflop.models.errors import UserError

Width = Literal["uint8", "uint16", "uint32"]
HEADER_BYTES = 1024
LLM_C: dict[int, tuple[int, Width]] = {20240520: (1, "uint16"), 20240801: (7, "uint32")}
# magic number → version, width


def ids_of(width: Width) -> int:
    """How many different ids this width can hold."""
    return 256 ** np.dtype(width).itemsize


def read_ids(path: str, data: np.ndarray, vocab: int, width: Width | None) -> np.ndarray:
    """The token ids (n,) in a file's bytes `data` (uint8), as a view.

    `width` is what the user states; with None, llm.c's header must. Raises UserError where neither
    gives the width, where they disagree, where the size is no multiple of it, where the ids look
    like wider ones, and where an id is not below `vocab`. `path` is for the messages.
    """
    found = _header(path, data)
    if found is None and width is None:
        raise UserError(
            f"{path} has no header that tells the width of its ids, so it must be stated; "
            f"set dtype='uint16' (as nanoGPT writes), 'uint32' or 'uint8'"
        )
    if found is not None and width not in (None, found):
        raise UserError(f"dtype={width}, but {path} begins with llm.c's header of {found}; drop it")
    dtype = np.dtype(found or width).newbyteorder("<")
    offset = HEADER_BYTES if found else 0
    size = len(data) - offset
    if size % dtype.itemsize:
        raise UserError(
            f"{path} must be ids of {dtype.itemsize} bytes (dtype={dtype.name}), but holds {size} "
            f"bytes, no multiple of that; state another dtype or write it again"
        )
    if not size:
        raise UserError(f"{path} must hold ids, but has a header alone; write some")
    ids = data[offset:].view(dtype)
    if len(ids) > 1 and not ids[1::2].any():
        raise UserError(
            f"every second id of {path} is 0 as dtype={dtype.name}, so they are wider than that; "
            f"state a wider dtype"
        )
    if (largest := int(ids.max())) >= vocab:
        raise UserError(
            f"bin_vocab={vocab} must exceed the id {largest} that {path} holds as "
            f"dtype={dtype.name}; raise it, or state another dtype"
        )
    return ids


def _header(path: str, data: np.ndarray) -> Width | None:
    """The width of ids that llm.c's header states; None where there is no such header."""
    if len(data) < 12 or (words := data[:12].view("<i4").tolist())[0] not in LLM_C:
        return None
    (magic, version, count), (known, width) = words, LLM_C[words[0]]
    if version != known:
        raise UserError(
            f"{path} has llm.c's header {magic} of version {version}, and only version {known} is "
            f"known; write it as that"
        )
    size, whole = len(data), HEADER_BYTES + count * np.dtype(width).itemsize
    if size != whole:
        raise UserError(
            f"{path} has a header of {count} ids of {width}, which take {whole} bytes with it, but "
            f"the file has {size}; copy or write it again"
        )
    return width
