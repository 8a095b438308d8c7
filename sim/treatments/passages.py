"""Passages: retrieved text in the context, before the sequence's own.

After every `stride` tokens the last `stride` of them are looked up in a store of passages, each of
2·`stride` tokens in a row: the one whose first half shares most of their n-grams is put before the
sequence's own latest tokens, as many as leave the training length in all, and the next `stride`
tokens are predicted from both (in-context retrieval: Ram et al. 2023, 2302.00083, §3; a passage and
what follows it: Borgeaud et al. 2022, 2112.04426, §2.2). A token is predicted from a passage that
was chosen by earlier tokens alone. Nothing is trained, so any mixer can be treated, and what is
read anew is charged.

n-grams are hashed to `features` places, which weigh log(passages / passages that have it); the
search is by brute force over cosines.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt

from isoflop.models.base import Sizes
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import AnyData
from isoflop.sim.treatments.base import Logits, Subject, Treatment
from isoflop.sim.treatments.splits import GRAM, Shelf


class Passage(NamedTuple):
    """The store, a pytree."""

    keys: Float[Any, "n f"]  # of unit length
    rarity: Float[Any, " f"]
    text: Int[Any, "n s"]


class Passages(Treatment, Sizes):
    """The most similar passage of a store before the latest tokens of the context."""

    kind: Literal["passages"] = "passages"
    store: PositiveInt  # passages
    stride: PositiveInt = 32  # tokens from one search to the next, and half of a passage
    gram: PositiveInt = 4  # tokens in a row that are one feature
    features: int = Field(1024, ge=2, le=2**20)
    data: AnyData | None = None  # of the store; None: the run's own
    first: NonNegativeInt = 0  # batch of that text, as the run reads it
    purge: PositiveInt | None = GRAM  # tokens in a row that none of it shares with held-out text
    shuffled: bool = False  # a control: another passage than the one that was found

    def apply(self, subject: Subject) -> Subject:
        budget = subject.run.budget
        if budget.seq_len < 3 * self.stride or self.stride < self.gram:
            raise UserError(
                f"stride={self.stride} must be at least gram={self.gram} and at most a third of "
                f"the training length, {budget.seq_len // 3}: a passage takes two thirds then"
            )
        store = self._filled(subject)
        keys = store.keys.shape[0] * store.keys.shape[1]
        model, length, stride = subject.model, budget.seq_len, self.stride
        again = sum(
            model.cost(_own(begin, length, stride) + 2 * stride).flops
            for begin in range(stride, length, stride)
        )
        looks = len(range(stride, length, stride)) / length  # searches for each token
        return subject.reading(
            _with_passages(subject.logits, length, stride, self.gram),
            store,
            extra=subject.costing(
                step_flops=round(again / length + 2 * looks * keys),
                read_bytes=looks * 4 * keys,
                store_bytes=4 * (keys + store.text.size + self.features),
            ),
        )

    def _filled(self, subject: Subject) -> Passage:
        shelf = Shelf(
            subject.run, self.data, self.first, self.purge, self.store * self.stride,
            f"store={self.store}",
        )  # fmt: skip
        found: list[np.ndarray] = []
        have = 0
        while have < self.store:
            batch, allowed = shelf.draw()
            starts = range(0, batch.tokens.shape[1] - 2 * self.stride + 1, self.stride)
            for rows, kept in zip(batch.tokens, allowed, strict=True):
                cut = [slice(i, i + 2 * self.stride) for i in starts]
                some = [rows[at] for at in cut if kept[at].all()]
                found += some
                have += len(some)
        text = np.stack(found[: self.store])
        counts = [
            np.asarray(_counts(text[i : i + 512, : self.stride], self.gram, self.features))
            for i in range(0, len(text), 512)
        ]
        there = np.concatenate(counts)
        rarity = np.log(len(there) / np.maximum((there > 0).sum(0), 1)).astype(np.float32)
        keys = np.asarray(_unit(jnp.asarray(there) * rarity[None]))
        if self.shuffled:
            text = np.random.default_rng(subject.run.seed).permutation(text)
        return Passage(keys, rarity, text)


def _own(begin: int, length: int, stride: int) -> int:
    """Tokens of its own that are read before the one at `begin`, which a passage stands before."""
    return min(begin, length - 3 * stride)


@partial(jax.jit, static_argnums=(1, 2))
def _counts(tokens: Int[Array, "b s"], gram: int, features: int) -> Float[Array, "b f"]:
    """Whether each n-gram is there, by its hash."""
    last = tokens.shape[1] - gram + 1
    code = jnp.zeros((len(tokens), last), jnp.uint32)
    for i in range(gram):
        code = code * jnp.uint32(0x9E3779B1) + tokens[:, i : i + last].astype(jnp.uint32) + 1
    code = (code ^ (code >> 15)) * jnp.uint32(0x85EBCA77)
    place = ((code ^ (code >> 13)) % features).astype(jnp.int32)
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), features)).at[rows, place].set(1.0)


def _unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    return x / jnp.maximum(jnp.sqrt((x**2).sum(-1, keepdims=True)), 1e-30)


@cache
def _with_passages(inner: Logits, length: int, stride: int, gram: int) -> Logits:
    def logits(model: ModelConfig, reads: Any, tokens: Int[Array, "b t"]) -> Any:
        within, store = reads
        found = [inner(model, within, tokens[:, :stride])]
        for begin in range(stride, tokens.shape[1], stride):
            end = min(begin + stride, tokens.shape[1])
            counts = _counts(tokens[:, begin - stride + 1 : begin + 1], gram, len(store.rarity))
            like = _unit(counts * store.rarity[None]) @ store.keys.T
            passage = store.text[jnp.argmax(like, -1)]
            own = tokens[:, begin - _own(begin, length, stride) : end]
            seen = jnp.concatenate([passage, own], 1)
            found.append(inner(model, within, seen)[:, begin - end :])
        return jnp.concatenate(found, 1)

    return logits
