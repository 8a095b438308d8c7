"""Neighbours: what followed in a store of text where the model's hidden state was most like now's.

The store has a key and a value for each token of its text: the normed activations that the head
reads, and the token that followed. A prediction is (kNN-LM: Khandelwal et al. 2020, 1911.00172,
eq. 2 and 3)

    p(w) = λ·p_near(w) + (1 − λ)·p_model(w),   p_near(w) ∝ Σ over the k nearest with value w of
                                                            exp(−d²/T)

with d the Euclidean distance. The paper's keys are the inputs of the last layer's MLP; the head's
are what every mixer has. The search is exact, by brute force in chunks. λ and T that are not given
are those of least loss on a second held-out split; at λ = 0 the model is the plain one.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from isoflop.models.base import Sizes
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import AnyData, Batch
from isoflop.sim.treatments.base import (
    Logits,
    Params,
    Subject,
    Treatment,
    by_parts,
    parallel,
)
from isoflop.sim.treatments.splits import GRAM, Shelf, second

CHUNK, LEAST = 4096, 256  # keys that are compared at once; a multiple of the latter for few keys
SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TEMPERATURES = tuple(2.0**i for i in range(-2, 7))


class Store(NamedTuple):
    """Keys in chunks, the last filled up; a pytree, as it is an argument of compiled programs."""

    keys: Float[Any, "n c d"]
    squares: Float[Any, "n c"]  # of the keys' lengths
    values: Int[Any, " m"]
    count: Any  # of keys
    share: Any = 0.0  # λ
    temperature: Any = 1.0
    radius: Any = np.inf


class Neighbours(Treatment, Sizes):
    """kNN-LM over a store of training text, without what nearly copies held-out text.

    Targets of weight 0 are not stored. Where no neighbour is within `radius`, the model's own
    prediction stands.
    """

    kind: Literal["neighbours"] = "neighbours"
    store: PositiveInt  # tokens, each a key and a value
    share: float | None = Field(None, ge=0, le=1)  # λ; None: the best on a second held-out split
    temperature: PositiveFloat | None = None  # T; None: likewise
    nearest: PositiveInt = 32  # k
    radius: PositiveFloat | None = None  # a neighbour's largest distance; None: any
    data: AnyData | None = None  # of the store; None: the run's own
    first: NonNegativeInt = 0  # batch of that text, as the run reads it
    purge: PositiveInt | None = GRAM  # tokens in a row that none of it shares with held-out text
    shuffled: bool = False  # a control: values in random order

    def apply(self, subject: Subject) -> Subject:
        if self.share == 0:
            return subject
        if subject.logits is not parallel:
            raise UserError(
                "neighbours are found by the parallel form's activations; give them before passages"
                " and cascade, and without states and activations"
            )
        store, read = self._filled(subject)
        share, temperature = self.share, self.temperature
        if share is None or temperature is None:
            share, temperature = self._best(subject, store)
        chosen = {**subject.chosen, "share": share, "temperature": temperature}
        if share == 0:
            return subject.to(chosen=chosen)
        model, count = subject.model, int(store.count)
        bytes_ = 4 * count * (model.d_model + 2)  # keys, their squares, values
        search = search_flops(count, model.d_model, self.nearest, model.vocab_size)
        return subject.reading(
            _mixed(self.nearest),
            store._replace(share=np.float32(share), temperature=np.float32(temperature)),
            chosen=chosen,
            extra=subject.costing(
                train_flops=model.cost(subject.run.budget.seq_len, read).flops,
                step_flops=search,
                read_bytes=bytes_,
                store_bytes=bytes_,
            ),
        )

    def _filled(self, subject: Subject) -> tuple[Store, int]:
        """The store, and how many sequences were read for it."""
        shelf = Shelf(
            subject.run, self.data, self.first, self.purge, self.store, f"store={self.store}"
        )
        keys: list[np.ndarray] = []
        values: list[np.ndarray] = []
        have = read = 0
        while have < self.store:
            batch, allowed = shelf.draw()
            kept = allowed[:, 1:]
            if batch.weights is not None:
                kept = kept & (batch.weights > 0)
            hidden = np.asarray(_hidden(subject.model, subject.params, batch.tokens[:, :-1]))
            keys.append(hidden[kept][: self.store - have])
            values.append(batch.targets[kept][: self.store - have])
            have, read = have + len(values[-1]), read + len(kept)
        after = np.concatenate(values)
        if self.shuffled:
            after = np.random.default_rng(subject.run.seed).permutation(after)
        radius = np.inf if self.radius is None else self.radius
        return stored(np.concatenate(keys), after)._replace(radius=np.float32(radius)), read

    def _best(self, subject: Subject, store: Store) -> tuple[float, float]:
        """λ and T of least loss on a second held-out split, the other as it is given."""
        batch = second(subject.run)
        own, far, same = by_parts(
            subject.run, batch,
            lambda part: _found(subject.model, self.nearest, subject.params, store, part),
        )  # fmt: skip
        weights = np.ones_like(own) if batch.weights is None else batch.weights
        some = np.isfinite(far).any(-1)
        tried = []
        for heat in TEMPERATURES if self.temperature is None else (self.temperature,):
            near = _weights(np, far, heat)
            p = (near * same).sum(-1)
            for share in SHARES if self.share is None else (self.share,):
                mixed = np.where(some, share, 0.0)
                nats = -np.log(np.maximum((1 - mixed) * np.exp(own) + mixed * p, 1e-300))
                tried.append((float((weights * nats).sum()), share, heat))
        return min(tried)[1:]


def stored(keys: Float[np.ndarray, "m d"], values: Int[np.ndarray, " m"]) -> Store:
    """A store of these."""
    chunk = min(CHUNK, -(-len(keys) // LEAST) * LEAST)
    spare = -len(keys) % chunk
    chunks = np.pad(keys, [(0, spare), (0, 0)]).reshape(-1, chunk, keys.shape[1])
    after = np.pad(values, (0, spare)).astype(np.int32)
    return Store(chunks, (chunks**2).sum(-1), after, np.int32(len(keys)))


def nearest(
    store: Store, queries: Float[Array, "q d"], k: int
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """Squared distances of the k nearest keys and their values: exact, and infinite where there are
    fewer within the radius. Keys are compared by |q|² − 2·q·x + |x|², whose rounding the distances
    of those that are found are free of.
    """
    parts, chunk, d = store.keys.shape
    square = (queries**2).sum(-1)[:, None]

    def turn(best: Any, part: Any) -> tuple[Any, None]:
        number, keys, squares = part
        first = number * chunk
        apart = square - 2 * queries @ keys.T + squares[None]
        apart = jnp.where((first + jnp.arange(chunk) < store.count)[None], apart, jnp.inf)
        least, place = jax.lax.top_k(-jnp.concatenate([best[0], apart], 1), k)
        before = jnp.take_along_axis(best[1], jnp.minimum(place, k - 1), 1)
        return (-least, jnp.where(place < k, before, first + place - k)), None

    none = (jnp.full((len(queries), k), jnp.inf), jnp.zeros((len(queries), k), jnp.int32))
    (far, where), _ = jax.lax.scan(turn, none, (jnp.arange(parts), store.keys, store.squares))
    apart = ((queries[:, None] - jnp.asarray(store.keys).reshape(-1, d)[where]) ** 2).sum(-1)
    inside = jnp.isfinite(far) & (apart <= store.radius**2)
    return jnp.where(inside, apart, jnp.inf), jnp.asarray(store.values)[where]


def search_flops(count: int, d_model: int, k: int, vocab_size: int) -> int:
    """Of one token: a product with every key and two operations for each distance; exact distances
    of the k nearest, and a softmax over them; and the mixture, for each word.
    """
    search = count * (2 * d_model + 2) + 3 * d_model * (k + 1)
    return search + 6 * k + 12 * vocab_size + 4


def _weights(xp: Any, far: Any, temperature: Any) -> Any:
    """exp(−d²/T), normalised over the neighbours there are; all 0 where there are none."""
    some = xp.isfinite(far).any(-1, keepdims=True)
    least = xp.where(some, far.min(-1, keepdims=True), 0.0)
    near = xp.exp(-xp.where(xp.isfinite(far), far - least, xp.inf) / temperature)
    return near / xp.maximum(near.sum(-1, keepdims=True), 1e-30)


@partial(jax.jit, static_argnums=0)
def _hidden(model: ModelConfig, params: Params, tokens: Int[Array, "b t"]) -> Any:
    return nnx.merge(nnx.split(model.abstract())[0], params).hidden(tokens)[0]


@cache
def _mixed(k: int) -> Logits:
    def logits(model: ModelConfig, reads: Any, tokens: Int[Array, "b t"]) -> Any:
        """Log-probabilities, whose softmax is themselves."""
        params, store = reads
        lm = nnx.merge(nnx.split(model.abstract())[0], params)
        hidden = lm.hidden(tokens)[0]
        own = jax.nn.log_softmax(lm.logits(hidden), -1)
        far, after = nearest(store, hidden.reshape(-1, hidden.shape[-1]), k)
        near = _weights(jnp, far, store.temperature)
        rows = jnp.arange(len(near))[:, None]
        p = jnp.zeros((len(near), own.shape[-1])).at[rows, after].add(near).reshape(own.shape)
        some = jnp.isfinite(far).any(-1).reshape(*tokens.shape, 1)
        both = jnp.logaddexp(own + jnp.log1p(-store.share), jnp.log(p) + jnp.log(store.share))
        return jnp.where(some, both, own)

    return logits


@partial(jax.jit, static_argnums=(0, 1))
def _found(model: ModelConfig, k: int, params: Params, store: Store, batch: Batch) -> Any:
    """Of each target: the model's log-probability, the neighbours' squared distances, and whether
    their value is the target.
    """
    lm = nnx.merge(nnx.split(model.abstract())[0], params)
    hidden = lm.hidden(batch.tokens[:, :-1])[0]
    own = jax.nn.log_softmax(lm.logits(hidden), -1)
    far, after = nearest(store, hidden.reshape(-1, hidden.shape[-1]), k)
    picked = jnp.take_along_axis(own, batch.targets[..., None], -1)[..., 0]
    far, after = (x.reshape(*picked.shape, k) for x in (far, after))
    return picked, far, after == batch.targets[..., None]
