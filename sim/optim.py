"""Optim → a pure update: AdamW under WSD, with a learning rate for each kind of parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from models.base import Embedding, Matrix, Steered
from sim.spec import Optim, Run

Params = Any  # nnx.State: a pytree whose nodes are Variables
OptState = Any


def schedule(run: Run, start: int, stop: int) -> Float[np.ndarray, " s"]:
    """The factor on every learning rate at steps start…stop−1 of `run`.

    Linear warm-up to 1, constant, then 1 − √progress over the cooldown (2405.18392, §3.2), which
    ends above zero at the last step. Before `run.branch_step` it does not depend on run.budget.
    """
    step = np.arange(start, stop, dtype=np.float64)
    warm = np.minimum(1.0, (step + 1) / max(run.optim.warmup_steps, 1))
    length = max(run.budget.steps - run.branch_step, 1)
    progress = np.clip((step - run.branch_step + 1) / (length + 1), 0.0, 1.0)
    return (warm * (1 - np.sqrt(progress))).astype(np.float32)


def learning_rates(optim: Optim, d_model: int, params: Params) -> Params:
    """The peak rate of every leaf, by the kind of its Variable, shaped like `params`."""

    def rate(variable: nnx.Variable) -> nnx.Variable:
        if isinstance(variable, Matrix):
            return variable.replace(jnp.float32(optim.lr * optim.base_width / d_model))
        if isinstance(variable, Embedding):
            return variable.replace(jnp.float32(optim.embedding_lr))
        if isinstance(variable, Steered):
            return variable.replace(jnp.float32(optim.steered_lr))
        return variable.replace(jnp.float32(optim.vector_lr))

    return jax.tree.map(rate, params, is_leaf=_is_variable)


def direction(optim: Optim, params: Params) -> optax.GradientTransformation:
    """Clip, Adam, and decoupled weight decay on matrices only; still to be scaled by the rate.

    A steered value takes the sign of its gradient instead, and is in no norm that is clipped.
    """

    def where(holds: Callable[[nnx.Variable], bool]) -> Params:
        return jax.tree.map(lambda v: v.replace(holds(v)), params, is_leaf=_is_variable)

    adam = optax.chain(
        optax.clip_by_global_norm(optim.clip),
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps),
        optax.add_decayed_weights(optim.weight_decay, mask=where(lambda v: isinstance(v, Matrix))),
    )
    return optax.chain(
        optax.masked(adam, where(lambda v: not isinstance(v, Steered))),
        optax.masked(optax.scale_by_sign(), where(lambda v: isinstance(v, Steered))),
    )


def apply(params: Params, update: Params, rates: Params, factor: Float[Array, ""]) -> Params:
    """params − factor · rate · update, leaf by leaf."""
    return jax.tree.map(lambda p, u, r: p - factor * r * u, params, update, rates)


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)
