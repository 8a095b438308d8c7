"""Tokens in a row, by their hashes: what texts have in common, and which texts are most alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, UInt64
from scipy import sparse

ODD = np.uint64(0x9E3779B97F4A7C15)


def shared(
    rows: Int[np.ndarray, "n s"], texts: Sequence[Int[np.ndarray, "_ _"]], gram: int
) -> Bool[np.ndarray, "n s"]:
    """Which tokens lie in `gram` tokens in a row that some text has too."""
    found = np.zeros(rows.shape, bool)
    if rows.shape[1] < gram:
        return found
    known = [marks(text, gram).ravel() for text in texts if text.shape[1] >= gram]
    copied = np.isin(marks(rows, gram), np.concatenate([np.empty(0, np.uint64), *known]))
    for back in range(gram):
        found[:, back : back + copied.shape[1]] |= copied
    return found


def marks(rows: Int[np.ndarray, "n s"], gram: int) -> UInt64[np.ndarray, "n m"]:
    """A hash of every `gram` tokens in a row: a polynomial modulo 2^64, mixed."""
    last = rows.shape[1] - gram + 1
    found = np.zeros((len(rows), last), np.uint64)
    for i in range(gram):
        found = found * ODD + rows[:, i : i + last].astype(np.uint64) + np.uint64(1)
    found = (found ^ (found >> np.uint64(31))) * ODD
    return found ^ (found >> np.uint64(29))


class NGrams:
    """A search among texts of one length, the keys: cosines of the n-grams that a text has, each
    weighing log(keys / keys that have it). Exact, as every key is scored: by a list, for each
    n-gram, of the keys that have it, as a key without any of them has a cosine of 0.
    """

    def __init__(self, keys: Int[np.ndarray, "n s"], gram: int):
        self.gram = gram
        self.known, column = np.unique(marks(keys, gram), return_inverse=True)
        there = self._counts(column.reshape(len(keys), -1))
        self.having = np.bincount(there.indices, minlength=len(self.known))
        self.rarity = np.log(len(keys) / self.having).astype(np.float32)
        weights = there @ sparse.diags(self.rarity)
        length = np.sqrt(np.asarray(weights.multiply(weights).sum(1)).ravel())
        self.lists = (sparse.diags(1 / np.maximum(length, 1e-30)) @ weights).T.tocsr()

    def similarity(self, texts: Int[np.ndarray, "q s"]) -> Float[np.ndarray, "q n"]:
        """To every key, in float32: the cosine times the text's own length, which ranks alike."""
        return (self._asked(texts) @ sparse.diags(self.rarity) @ self.lists).toarray()

    def flops(self, texts: Int[np.ndarray, "q s"]) -> int:
        """That `similarity` executes: a product and a sum for each key of each n-gram's list."""
        return 2 * int(self.having[self._asked(texts).indices].sum())

    def _asked(self, texts: Int[np.ndarray, "q s"]) -> sparse.csr_array:
        found = marks(texts, self.gram)
        column = np.minimum(np.searchsorted(self.known, found), len(self.known) - 1)
        return self._counts(column, self.known[column] == found)

    def _counts(
        self, column: Int[np.ndarray, "q m"], known: Bool[np.ndarray, "q m"] | None = None
    ) -> sparse.csr_array:
        """1 where a text has an n-gram."""
        rows = np.repeat(np.arange(len(column)), column.shape[1])
        flat = column.ravel()
        if known is not None:
            rows, flat = rows[known.ravel()], flat[known.ravel()]
        shape = (len(column), len(self.known))
        there = sparse.csr_array((np.ones(len(flat), np.float32), (rows, flat)), shape=shape)
        there.sum_duplicates()
        there.data[:] = 1
        return there
