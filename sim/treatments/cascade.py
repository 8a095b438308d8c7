"""Cascade: a small model answers, and a large one where the small one is least sure.

By `unit` tokens, the large model predicts the tokens at which the entropy of the small one's
prediction is highest; to do so it has to have read all tokens before, which is charged. By
sequences, the mean entropy over a prompt decides who goes on after it, as one routes queries (Ding
et al. 2024, 2404.14618; Ong et al. 2024, 2406.18665); the large model reads the prompts that it is
given. The threshold is the one that a share of a second held-out split exceeds; on the judged one
the share may differ. `rule="learnt"` asks where most is predicted to be gained, by a regression on
that same split (sim/treatments/deferral.py). `rule="random"` asks without looking, the baseline;
the best choice that knows the answers is in sim/compare/cascades.py.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field, PositiveInt

from isoflop.models.base import Sizes
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.data import Batch
from isoflop.sim.treatments.base import Logits, Subject, Treatment, by_parts, judge
from isoflop.sim.treatments.deferral import features, learnt
from isoflop.sim.treatments.splits import second

Unit = Literal["tokens", "sequences"]
Rule = Literal["entropy", "learnt", "random"]
UNLEARNT = np.zeros(0, np.float32)


class Large(NamedTuple):
    """What is read beside the small model, a pytree."""

    params: Any
    threshold: Any  # of a score, from which on the large model is asked
    weights: Any  # of what is known of a token, by `rule="learnt"`


class Cascade(Treatment, Sizes):
    """A larger run, asked for a share of the tokens or sequences."""

    kind: Literal["cascade"] = "cascade"
    large: str = Field(pattern="^[0-9a-f]{16}$")  # the key of a run beside this one
    share: float = Field(ge=0, le=1)
    unit: Unit = "tokens"
    rule: Rule = "entropy"
    prompt: PositiveInt = 32  # tokens by which a sequence is judged, and which the small one reads

    def apply(self, subject: Subject) -> Subject:
        if self.share == 0:
            return subject
        length = subject.run.budget.seq_len
        if self.unit == "sequences" and self.prompt >= length:
            raise UserError(
                f"prompt={self.prompt} must be shorter than the sequences of {length} tokens"
            )
        large = subject.beside(self.large)
        batch = second(subject.run)
        weights, explained = UNLEARNT, {}
        if self.rule == "learnt":
            weights, explained["explained"] = _learn(subject, large, batch)
        scored = scores(subject, batch, self, weights)
        threshold = threshold_of(scored, self.share)
        asked = scored >= threshold
        model, whole = large.model, large.ledger
        calls, read, saved = self._load(asked, length)
        return subject.reading(
            _either(subject.logits, large.logits, large.model, self.unit, self.rule, self.prompt),
            Large(large.reads, np.float32(threshold), weights),
            chosen={**subject.chosen, "threshold": threshold, "asked": float(asked.mean()),
                    **explained},
            extra=subject.costing(
                train_flops=whole.train_flops,
                step_flops=round(read * model.cost(length).flops / length
                                 - saved * subject.ledger.step_flops),
                read_bytes=calls * whole.read_bytes - saved * subject.ledger.read_bytes,
                resident_bytes=whole.resident_bytes,
                large_calls=calls,
            ),
        )  # fmt: skip

    def _load(self, asked: np.ndarray, length: int) -> tuple[float, float, float]:
        """For each token of a sequence: predictions asked of the large model, tokens that it reads,
        and tokens that the small model need not read.
        """
        if self.unit == "sequences":
            share = float(asked.mean())
            rest = 1 - self.prompt / length
            return share * rest, share, share * rest
        last = np.where(asked.any(-1), length - np.argmax(asked[:, ::-1], -1), 0)
        return float(asked.mean()), float(last.mean()) / length, 0.0


def threshold_of(scored: Float[np.ndarray, "..."], share: float) -> float:
    """The score that a share of them reaches."""
    if share >= 1:
        return -np.inf
    return float(np.quantile(scored, 1 - share, method="higher"))


def scores(
    subject: Subject, batch: Batch, how: Cascade, weights: Float[np.ndarray, " f"] = UNLEARNT
) -> Float[np.ndarray, "..."]:
    """How much a token, or a sequence, asks for the large model: (n, t) or (n,). `weights` are what
    `rule="learnt"` has learnt.
    """
    return by_parts(
        subject.run, batch,
        lambda part: _scored(
            subject.logits, subject.model, how.unit, how.rule, how.prompt, subject.reads, weights,
            part.tokens[:, :-1],
        ),
    )  # fmt: skip


def _learn(small: Subject, large: Subject, batch: Batch) -> tuple[Float[np.ndarray, " f"], float]:
    """Weights of what is known of a token, by what the large model gains on this text."""
    gains = judge(small, batch)[0] - judge(large, batch)[0]
    known = by_parts(
        small.run, batch,
        lambda part: _known(small.logits, small.model, small.reads, part.tokens[:, :-1]),
    )  # fmt: skip
    weights, explained = learnt(known, gains if batch.weights is None else batch.weights * gains)
    return weights.astype(np.float32), explained


@partial(jax.jit, static_argnums=(0, 1))
def _known(
    logits: Logits, model: ModelConfig, reads: Any, tokens: Int[Array, "b t"]
) -> Float[Array, "b t f"]:
    return features(logits(model, reads, tokens), tokens)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _scored(
    logits: Logits, model: ModelConfig, unit: Unit, rule: Rule, prompt: int, reads: Any,
    weights: Float[Array, " f"], tokens: Int[Array, "b t"],
) -> Float[Array, "..."]:  # fmt: skip
    return _score(logits(model, reads, tokens), tokens, unit, rule, prompt, weights)


def _score(
    logits: Float[Array, "b t w"], tokens: Int[Array, "b t"], unit: Unit, rule: Rule, prompt: int,
    weights: Float[Array, " f"],
) -> Float[Array, "..."]:  # fmt: skip
    """Entropy in nats, the gain in nats that is predicted, or a number in [0, 1) that is random and
    the same every time.
    """
    if rule == "random":
        scored = _chance(tokens)
        return scored if unit == "tokens" else scored[:, prompt - 1]
    if rule == "learnt":
        scored = features(logits, tokens) @ weights
    else:
        log_p = jax.nn.log_softmax(logits, -1)
        scored = -(jnp.exp(log_p) * log_p).sum(-1)
    return scored if unit == "tokens" else scored[:, :prompt].mean(-1)


def _chance(tokens: Int[Array, "b t"]) -> Float[Array, "b t"]:
    """From a hash of all tokens until there."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.uint32)[None]
    code = (tokens.astype(jnp.uint32) + 1) * jnp.uint32(0x9E3779B1) + place * jnp.uint32(0x85EBCA77)
    code = jnp.cumsum((code ^ (code >> 15)) * jnp.uint32(0x2C1B3C6D), axis=1)
    code = (code ^ (code >> 13)) * jnp.uint32(0xC2B2AE3D)
    return ((code ^ (code >> 16)) >> 8).astype(jnp.float32) / 2**24


@cache
def _either(
    small: Logits, large: Logits, larger: ModelConfig, unit: Unit, rule: Rule, prompt: int
) -> Logits:
    def logits(model: ModelConfig, reads: Any, tokens: Int[Array, "b t"]) -> Any:
        within, beside = reads
        own = small(model, within, tokens)
        scored = _score(own, tokens, unit, rule, prompt, beside.weights)
        asked = scored >= beside.threshold
        if unit == "sequences":  # from the end of the prompt on
            asked = asked[:, None] & (jnp.arange(tokens.shape[1]) >= prompt)[None]
        return jnp.where(asked[..., None], large(larger, beside.params, tokens), own)

    return logits
