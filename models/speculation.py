"""Speculative decoding: a draft writes γ tokens, the target reads them at once and keeps some.

A drafted token x is kept with probability min(1, p(x)/q(x)), p the target's and q the draft's; the
first that is not is drawn anew from max(0, p − q), normalised, and after γ kept ones another is
drawn from p (Leviathan et al. 2023, 2211.17192, algorithm 1). What is written has the target's own
distribution, whatever the draft. With α = E Σ min(p, q) a reading of the target gives

    (1 − α^(γ+1)) / (1 − α)

tokens, if every drafted token is kept with the same probability (eq. 1).

Rollback: a state that has taken tokens which are not kept cannot be cut back where it is recurrent.
Both models therefore keep the state of before, and read the kept tokens again from there, by a
prefill in which each row has a length of its own: any mixer's state is rolled back so.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isoflop.models.errors import UserError
from isoflop.models.lm import LM, ModelConfig


class Speculated(NamedTuple):
    """What was written in each row, and how."""

    tokens: Int[Array, "b n"]
    calls: Int[Array, " b"]  # readings of the target
    kept: Int[Array, " b"]  # drafted tokens that were kept
    tried: Int[
        Array, " b"
    ]  # drafted tokens that were kept or refused: those after are not looked at
    overlap: Float[Array, " b"]  # Σ over the tried ones of Σ min(p, q): α is its mean


def expected_tokens(alpha: float, gamma: int) -> float:
    """Of one reading of the target."""
    return float(gamma + 1) if alpha == 1 else (1 - alpha ** (gamma + 1)) / (1 - alpha)


def speculate(
    target: LM,
    draft: LM,
    tokens: Int[Array, "b t"],
    count: int,
    gamma: int = 4,
    temperature: float = 1.0,
    seed: int = 0,
) -> Speculated:
    """`count` tokens after each prompt, of the target at a temperature: one compiled program.

    Raises UserError for models of different tokens, and for nothing to read, draft or write.
    """
    if target.config.vocab_size != draft.config.vocab_size:
        raise UserError(
            f"a draft must have its target's {target.config.vocab_size} tokens, and has "
            f"{draft.config.vocab_size}; take another one"
        )
    if count < 1 or gamma < 1 or tokens.shape[1] < 1:
        raise UserError(
            "speculation needs prompts of a token, one to write and gamma of at least 1"
        )
    if not 0 < temperature < float("inf"):
        raise UserError(f"temperature={temperature} must be a finite number above 0")
    graphs, params = zip(nnx.split(target), nnx.split(draft), strict=True)
    return _speculate(
        graphs, params, tokens, count, gamma, jnp.float32(temperature), jax.random.key(seed)
    )


def rollback_bytes(model: ModelConfig, context: int) -> int:
    """What must be kept of a sequence's state to undo tokens: that which does not grow with the
    context, in fp32. Caches of keys and values are cut back where they are.
    """
    each = [block.mixer for block in model.blocks if block.mixer is not None]
    sizes = [[m.state_size(model.d_model, n) for n in (context, context + 1)] for m in each]
    return 4 * sum(now for now, more in sizes if more == now)


@partial(jax.jit, static_argnums=(0, 3, 4))
def _speculate(
    graphs: Any, params: Any, tokens: Int[Array, "b t"], count: int, gamma: int,
    temperature: Float[Array, ""], key: Array,
) -> Speculated:  # fmt: skip
    rows, prompt = tokens.shape
    models = [nnx.merge(graph, one) for graph, one in zip(graphs, params, strict=True)]
    target, draft = models

    def first(lm: LM) -> Any:
        """The state before the prompt's last token."""
        state = lm.init_state(rows, prompt + count + 2 * (gamma + 1))  # rows that are done read on
        return state if prompt == 1 else lm.prefill(state, tokens[:, :-1])[0]

    def turn(carry: Any) -> Any:
        number, states, last, out = carry
        keys = jax.random.split(jax.random.fold_in(key, number), 4)
        going = out.length < count

        def drafted(carry: Any, i: Int[Array, ""]) -> tuple[Any, Any]:
            state, token = carry
            state, logits = draft.step(state, token)
            log_q = jax.nn.log_softmax(logits / temperature, -1)
            here = jax.random.fold_in(keys[0], i)
            token = jax.random.categorical(here, log_q).astype(jnp.int32)
            return (state, token), (token, log_q)

        _, (guess, log_q) = jax.lax.scan(drafted, (states[1], last), jnp.arange(gamma))
        guess, q = guess.T, jnp.exp(jnp.moveaxis(log_q, 0, 1))  # (b, γ), (b, γ, w)
        read = jnp.concatenate([last[:, None], guess], 1)
        logits = target.prefill(states[0], read, every=True)[1]
        p = jax.nn.softmax(logits / temperature, -1)  # (b, γ + 1, w)
        p_of, q_of = (jnp.take_along_axis(x[:, :gamma], guess[..., None], -1)[..., 0]
                      for x in (p, q))  # fmt: skip
        keep = jax.random.uniform(keys[1], (rows, gamma)) * q_of < p_of
        kept = jnp.cumprod(keep.astype(jnp.int32), 1).sum(1)
        new = _after(keys[2], p, jnp.pad(q, [(0, 0), (0, 1), (0, 0)]), kept)
        lengths = jnp.where(going, kept + 1, 0)
        states = [lm.prefill(state, read, lengths)[0]
                  for lm, state in zip(models, states, strict=True)]  # fmt: skip
        tried = jnp.arange(gamma)[None] < jnp.minimum(kept + 1, gamma)[:, None]
        both = (jnp.minimum(p[:, :gamma], q).sum(-1) * tried).sum(1)
        out = out.with_(guess, kept, new, going, tried.sum(1), both)
        return number + 1, states, jnp.where(going, new, last), out

    zeros = jnp.zeros(rows, jnp.int32)
    empty = _Written(
        jnp.zeros((rows, count + gamma + 1), jnp.int32), zeros, zeros, zeros, zeros,
        jnp.zeros(rows),
    )  # fmt: skip
    begin = (jnp.int32(0), [first(lm) for lm in models], tokens[:, -1], empty)
    _, _, _, out = jax.lax.while_loop(lambda c: (c[3].length < count).any(), turn, begin)
    return Speculated(out.tokens[:, :count], out.calls, out.kept, out.tried, out.overlap)


class _Written(NamedTuple):
    tokens: Int[Array, "b n"]
    length: Int[Array, " b"]
    calls: Int[Array, " b"]
    kept: Int[Array, " b"]
    tried: Int[Array, " b"]
    overlap: Float[Array, " b"]

    def with_(
        self, guess: Array, kept: Array, new: Array, going: Bool[Array, " b"], tried: Array,
        both: Array,
    ) -> _Written:  # fmt: skip
        """The kept tokens and the new one, in rows that are going on."""
        place = jnp.arange(guess.shape[1] + 1)[None]
        told = jnp.where(place < kept[:, None], jnp.pad(guess, [(0, 0), (0, 1)]), new[:, None])

        def write(row: Array, told: Array, at: Array, going: Array) -> Array:
            return jnp.where(going, jax.lax.dynamic_update_slice(row, told, (at,)), row)

        return _Written(
            jax.vmap(write)(self.tokens, told, self.length, going),
            *(
                now + jnp.where(going, more, 0)
                for now, more in (
                    (self.length, kept + 1), (self.calls, 1), (self.kept, kept),
                    (self.tried, tried), (self.overlap, both),
                )
            ),
        )  # fmt: skip


def _after(
    key: Array, p: Float[Array, "b g w"], q: Float[Array, "b g w"], kept: Int[Array, " b"]
) -> Int[Array, " b"]:
    """A token of max(0, p − q), normalised, at the first place that is not kept; of p after all of
    them, where q is 0.
    """
    here = kept[:, None, None]
    p_here, q_here = (jnp.take_along_axis(x, here, 1)[:, 0] for x in (p, q))
    left = jnp.maximum(p_here - q_here, 0.0)
    left = jnp.where(left.sum(-1, keepdims=True) > 0, left, p_here)  # p = q but for rounding
    return jax.random.categorical(key, jnp.log(left)).astype(jnp.int32)
