"""A learnt rule of deferral: how much a large model is predicted to gain at a token.

    gain(t) = −log p_small(next) + log p_large(next) ≈ w · φ(t)

φ are what the small model knows once it has read token t, and their squares and products: the
entropy of its prediction, the lead of the likeliest token over the second, the loss of token t and
the mean loss of all tokens so far, and the logarithm of the place. w is by least squares on text
that is not judged (post-hoc deferral: Jitkrittum et al. 2023, 2307.02764, which predicts whether
the large model is right where the small one is not).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

RIDGE = 1e-6  # of each standardised feature's sum of squares, against features that are alike


def features(logits: Float[Array, "b t w"], tokens: Int[Array, "b t"]) -> Float[Array, "b t f"]:
    """φ of each token, a constant first."""
    log_p = jax.nn.log_softmax(logits, -1)
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    first, second = jnp.moveaxis(jnp.exp(jax.lax.top_k(log_p, 2)[0]), -1, 0)
    read = -jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], -1)[..., 0]
    last = jnp.pad(read, ((0, 0), (1, 0)))  # the first token was not predicted
    place = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None]
    mean = jnp.cumsum(last, -1) / jnp.maximum(place, 1)
    one = jnp.ones_like(entropy)
    known = jnp.stack([one, entropy, first - second, last, mean, one * jnp.log1p(place)], -1)
    some, others = np.triu_indices(known.shape[-1])
    return known[..., some] * known[..., others]


def learnt(
    known: Float[np.ndarray, "n t f"], gains: Float[np.ndarray, "n t"]
) -> tuple[Float[np.ndarray, " f"], float]:
    """w, and the share of the gains' variance that w · φ explains on these tokens."""
    x = known.reshape(-1, known.shape[-1]).astype(np.float64)
    y = gains.ravel().astype(np.float64)
    middle, scale = x.mean(0), x.std(0)
    scale[scale == 0] = np.inf  # the constant
    z = (x - middle) / scale
    w = np.linalg.solve(z.T @ z + RIDGE * len(z) * np.eye(z.shape[1]), z.T @ (y - y.mean())) / scale
    w[0] += y.mean() - middle @ w
    return w, 1 - float(np.var(y - x @ w)) / float(np.var(y))
