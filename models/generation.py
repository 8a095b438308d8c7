"""Writing after prompts: all read at once, then a token of each at a time, chosen from its logits.

A temperature divides logits. `top_k` keeps the k likeliest tokens (Fan et al. 2018, 1805.04833,
§5.4), and `top_p` of those the fewest whose probabilities, renormalised, reach p (Holtzman et al.
2019, 1904.09751, §3.1). A row's choices depend on the seed, its place in the batch and its own
logits, so neither on the rows beside it nor on how much is written after.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isoflop.models.errors import UserError

COLDEST = 1e-30  # below it logits over the temperature leave fp32


class Sampling(NamedTuple):
    """How a token is chosen. What is None is no part of the compiled program; numbers are inputs
    of it, so that other ones compile nothing anew.
    """

    temperature: float | None = None  # None: the likeliest token
    top_k: int | None = None  # None: all tokens
    top_p: float | None = None  # None: all tokens
    stop: tuple[int, ...] = ()  # tokens that end a text

    def check(self, vocab_size: int) -> None:
        """Raise UserError for what no text can be sampled by."""
        heat, k, p = self.temperature, self.top_k, self.top_p
        if heat is not None and not COLDEST <= heat <= 1 / COLDEST:
            raise UserError(
                f"temperature={heat} must be a finite number above 0, from {COLDEST:g} to "
                f"{1 / COLDEST:g}, or 0 for greedy"
            )
        if heat is None and (k is not None or p is not None):
            name = "top_k" if k is not None else "top_p"
            raise UserError(
                f"{name} needs a temperature above 0; at 0 the likeliest token is taken"
            )
        if k is not None and k < 1:
            raise UserError(f"top_k={k} must be at least 1; leave it out for all tokens")
        if p is not None and not 0 < p <= 1:
            raise UserError(f"top_p={p} must be above 0 and at most 1; leave it out for all tokens")
        for token in self.stop:
            if not 0 <= token < vocab_size:
                raise UserError(
                    f"the stop token {token} is none of the vocabulary, 0 to {vocab_size - 1}; "
                    "name one of those"
                )


class Written(NamedTuple):
    """What was written in each row."""

    tokens: Int[Array, "b n"]  # those after the first lengths[i] mean nothing
    lengths: Int[Array, " b"]  # up to a stop token, which is not counted
    finite: Bool[Array, " b"]  # whether all logits that tokens were chosen from were


def choose(sampling: Sampling, key: Array, logits: Float[Array, " w"]) -> Int[Array, ""]:
    """A token by its logits."""
    if sampling.temperature is None:
        return jnp.argmax(logits).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return jax.random.categorical(key, logits).astype(jnp.int32)
    order = jnp.argsort(-logits)
    ranked = logits[order]
    if sampling.top_k is not None:
        ranked = jnp.where(jnp.arange(len(ranked)) < sampling.top_k, ranked, -jnp.inf)
    if sampling.top_p is not None:
        shares = jax.nn.softmax(ranked)
        likelier = jnp.cumsum(shares) - shares
        ranked = jnp.where(likelier < sampling.top_p, ranked, -jnp.inf)
    return order[jax.random.categorical(key, ranked)].astype(jnp.int32)


@partial(jax.jit, static_argnums=(0, 5))
def generate(
    graph: Any,
    params: Any,
    state: Any,
    tokens: Int[Array, "b t"],
    lengths: Int[Array, " b"] | None,
    count: int,
    sampling: Sampling,
    key: Array,
) -> Written:
    """At most `count` tokens after each prompt by a model of `nnx.split`, from a state that has
    room for the prompts and count − 1 tokens more.
    """
    lm = nnx.merge(graph, params)
    keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(tokens)))
    stop = jnp.asarray(sampling.stop, jnp.int32)

    def chosen(i, logits, going, finite):
        """The i-th token of each row, whether it and all before are text, and all were finite."""
        here = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        token = jax.vmap(partial(choose, sampling))(here, logits)
        finite = finite & (jnp.isfinite(logits).all(-1) | ~going)
        return token, going & ~jnp.isin(token, stop), finite

    def step(carry, i):
        state, (token, going, finite) = carry
        state, logits = lm.step(state, token)
        after = chosen(i, logits, going, finite)
        return (state, after), after[:2]

    state, logits = lm.prefill(state, tokens, lengths)
    yes = jnp.ones(len(tokens), bool)
    first = chosen(0, logits, yes, yes)
    (_, last), (rest, going) = jax.lax.scan(step, (state, first), jnp.arange(1, count))
    written = jnp.concatenate([first[0][:, None], rest.T], axis=1)
    return Written(written, first[1].astype(jnp.int32) + going.sum(0), last[2])
