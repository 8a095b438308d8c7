"""Quantise: weights, and what is kept between decoded tokens, in fewer bits.

Weights are rounded to nearest in groups along the axis that their matmul sums over; or, with
`method="gptq"`, one input channel after another, each one's rounding error spread over those that
are still to come so that the layer's output on calibration text moves least (Frantar et al. 2022,
2210.17323, algorithm 1, in the order of the channels). Norms, biases, decays and other vectors stay
fp32: they are few. States are rounded after every decoded token, as a server that stores them would
have them.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from pydantic import PositiveInt, model_validator

from isoflop.models.base import Sizes
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig
from isoflop.sim.treatments.base import Leaf, Logits, Params, Subject, Treatment, parallel
from isoflop.sim.treatments.formats import BITS, SCALE_BITS, Format, groups_of, through
from isoflop.sim.treatments.matmuls import Matmul, second_moments, visiting

GROUP = 32


class Weights(Treatment, Sizes):
    """Matrices, embedding and head in a format.

    `gptq` is for integers. The embedding is rounded to nearest all the same, and so is a weight
    that is multiplied inside a loop over time, as an LSTM's recurrent one.
    """

    kind: Literal["weights"] = "weights"
    format: Format
    group: PositiveInt = GROUP  # weights that share a scale, along the axis that is summed over
    method: Literal["nearest", "gptq"] = "nearest"
    calibration: PositiveInt = 32  # sequences of the training split that `gptq` reads

    @model_validator(mode="after")
    def _gptq_has_integers(self) -> Weights:
        if self.method == "gptq" and not self.format.startswith("int"):
            raise ValueError(f"gptq is for int8, int4, int3 and int2, and format is {self.format}")
        return self

    def apply(self, subject: Subject) -> Subject:
        if self.format == "fp32":
            return subject
        moments = moments_of(subject, self.calibration) if self.method == "gptq" else {}

        def change(leaf: Leaf) -> Any:
            value = leaf.value
            if leaf.sums is None:
                return value
            if leaf.path in moments and not leaf.embedded:
                return _over_experts(
                    lambda w, h: with_feedback(w, h, self.format, self.group),
                    value, moments[leaf.path],
                )  # fmt: skip
            return through(value, self.format, leaf.sums, self.group)

        stored = {
            leaf.path: (self.format, groups_of(leaf.variable.shape, leaf.sums, self.group))
            for leaf in subject.leaves
            if leaf.sums is not None
        }
        return subject.rewrite(change).to(formats={**subject.formats, **stored})


class Activations(Treatment, Sizes):
    """What every weight matrix is multiplied with, in a format, each token with its own scales."""

    kind: Literal["activations"] = "activations"
    format: Format
    group: PositiveInt = GROUP  # channels of a token that share a scale

    def apply(self, subject: Subject) -> Subject:
        if self.format == "fp32":
            return subject
        return subject.to(logits=_with_activations(subject.logits, self.format, self.group))


@cache
def _with_activations(logits: Logits, format: Format, group: int) -> Logits:
    def rounded(matmul: Matmul) -> Any:
        return through(matmul.x, format, matmul.axes[0], group)

    def found(model: ModelConfig, params: Params, tokens: Int[Array, "b t"]) -> Any:
        return visiting(partial(logits, model), rounded)(params, tokens)

    return found


def moments_of(subject: Subject, sequences: int) -> dict[str, Float[np.ndarray, "e i i"]]:
    """Σ x xᵀ / n of what each weight multiplies on training text, by path."""
    budget = subject.run.budget
    drawn = subject.run.data.open().batch(0, subject.run.seed, sequences, budget.seq_len)
    found = second_moments(
        partial(subject.logits, subject.model), subject.params, jnp.asarray(drawn.tokens[:, :-1])
    )
    return {leaf.path: found[i] for i, leaf in enumerate(subject.leaves) if i in found}


def _over_experts(change: Any, weights: Array, moments: Float[np.ndarray, "e i i"]) -> Array:
    """`change(weights, moments)` of each expert's matrix, or of the one there is."""
    stacked = np.asarray(weights, np.float64).reshape(-1, *weights.shape[-2:])
    shared = np.broadcast_to(moments, (len(stacked), *moments.shape[1:]))
    changed = [change(w, h) for w, h in zip(stacked, shared, strict=True)]
    return jnp.asarray(np.stack(changed).reshape(weights.shape), weights.dtype)


def with_feedback(
    weights: Float[np.ndarray, "i o"],
    moments: Float[np.ndarray, "i i"],
    format: Format,
    group: int,
    damping: float = 0.01,
) -> Float[np.ndarray, "i o"]:
    """GPTQ: a channel's rounding error goes into those after it, by the rows of the Cholesky factor
    U of H⁻¹ = UᵀU, with H the moments and `damping` of their mean on the diagonal.
    """
    w, h = weights.copy(), moments.copy()
    silent = np.diag(h) == 0
    h[silent, silent] = 1.0
    h += damping * np.mean(np.diag(h)) * np.eye(len(h))
    factor = np.linalg.cholesky(np.linalg.inv(h)).T
    top = 2 ** (BITS[format] - 1) - 1
    scale = np.ones(w.shape[1])
    for i in range(len(w)):
        if i % group == 0:
            most = np.abs(w[i : i + group]).max(0)
            scale = np.where(most > 0, most / (top + 0.5), 1.0)
        kept = np.clip(np.round(w[i] / scale), -top - 1, top) * scale
        error = (w[i] - kept) / factor[i, i]
        w[i] = kept
        w[i + 1 :] -= np.outer(factor[i, i + 1 :], error)
    return w


class States(Treatment, Sizes):
    """KV caches, recurrent states and the inputs that convolutions keep, in a format. Groups lie
    along the last axis of each array; counters stay as they are.
    """

    kind: Literal["states"] = "states"
    format: Format
    group: PositiveInt = GROUP

    def apply(self, subject: Subject) -> Subject:
        if self.format == "fp32":
            return subject
        shapes = jax.eval_shape(lambda: _state(subject.model, subject.run.budget.seq_len))
        arrays = [x for x in jax.tree.leaves(shapes) if jnp.issubdtype(x.dtype, jnp.floating)]
        scales = SCALE_BITS * (self.format != "bf16")
        bits = sum(
            x.size * BITS[self.format] + scales * groups_of(x.shape, -1, self.group) for x in arrays
        ) / max(1, sum(x.size for x in arrays))
        if subject.logits is not parallel:
            raise UserError(
                "states must be treated first, since they decide how a model predicts; give States "
                "before the treatments of what it computes"
            )
        return subject.to(logits=_by_step(self.format, self.group), state_bits=bits)


@cache
def _by_step(format: Format, group: int) -> Logits:
    """Logits by decoding, the state in a format between tokens."""

    def logits(model: ModelConfig, params: Params, tokens: Int[Array, "b t"]) -> Any:
        lm = nnx.merge(nnx.split(model.abstract())[0], params)

        def token(state: Any, tokens: Int[Array, " b"]) -> tuple[Any, Any]:
            state, found = lm.step(state, tokens)
            return jax.tree.map(kept, state), found

        def kept(x: Array) -> Array:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return x
            return through(x, format, -1, group, fixed_points=True)

        state = lm.init_state(len(tokens), tokens.shape[1])
        return jnp.moveaxis(jax.lax.scan(token, state, tokens.T)[1], 0, 1)

    return logits


def _state(model: ModelConfig, context: int) -> Any:
    return model.abstract().init_state(1, context)
