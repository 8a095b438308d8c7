"""The contract of an optimiser: a schedule, a peak rate for every parameter, and a direction.

    p ← p − schedule(step) · rate(p) · direction(gradient, p)

Rates are arguments of the compiled program, so that a sweep of them compiles once; what the
direction depends on is compiled in.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from isoflop.models.base import Embedding, LoadBalancingBias, Matrix, Sizes, Tagged
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig

Params = Any  # nnx.State: a pytree whose nodes are Variables
Holds = Callable[[tuple[str, ...], nnx.Variable], bool]  # of a parameter's path and itself

DECAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of the progress 0…1 through the decay
    "sqrt": lambda progress: 1.0 - np.sqrt(progress),  # Hägele et al. 2024, 2405.18392, §3.2
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + np.cos(np.pi * progress)),
}


class Optim(Tagged, Sizes):
    """What all optimisers share: rates by the kind of parameter, schedule, clipping, decay.

    Embeddings, and vectors (norms, biases, gates, A and Δ parameters), have rates that do not
    depend on the width; how `lr`, the rate of matrices, does is the optimiser's own.

    The schedule is a linear warm-up, a constant rate, and a decay over the last `cooldown` of the
    steps. The default is WSD (Hägele et al. 2024, 2405.18392). `cooldown=1, decay="cosine"` is the
    cosine that starts after the warm-up, `cooldown=0` a constant rate.

    With `base_depth`, CompleteP transfers rates over depth (Dey et al. 2025, 2505.01618, table 1).
    With m = depth / base_depth, residual branches are scaled by m^−α (`ModelConfig.branch_scale`,
    which `deepen` sets), rates inside blocks by m^(α−1), and Adam's eps there by m^−α.
    """

    lr: PositiveFloat
    base_width: PositiveInt = 64
    embedding_lr: PositiveFloat = 0.01
    vector_lr: PositiveFloat = 0.003
    steered_lr: PositiveFloat = 0.001  # of biases that balance experts (2408.15664, §4.1)
    warmup_steps: NonNegativeInt = 50
    cooldown: float = Field(0.2, ge=0, le=1)  # share of a run's steps over which the rate falls
    decay: Literal["sqrt", "linear", "cosine"] = "sqrt"
    final: float = Field(0.0, ge=0, lt=1)  # the rate at the end, as a share of the peak
    weight_decay: NonNegativeFloat = 0.1  # decoupled, of matrices only
    clip: PositiveFloat = 1.0  # of the global gradient norm
    base_depth: PositiveInt | None = None  # the depth, in blocks, at which the rates are tuned
    depth_power: float = Field(1.0, ge=0.5, le=1)  # CompleteP's α

    rate_fields: ClassVar[tuple[str, ...]] = ("lr", "embedding_lr", "vector_lr", "steered_lr")

    @property
    def compiled(self) -> Optim:
        """What a program is compiled for; rates and schedule, its arguments, are set equal."""
        argument = {name: 1.0 for name in self.rate_fields} | {"base_width": 1, "warmup_steps": 0}
        return self.model_copy(update=argument | {"cooldown": 1.0, "decay": "sqrt", "final": 0.0})

    def branch_step(self, steps: int) -> int:
        """The step at which a run of `steps` leaves the trunk that is the same for all lengths."""
        if self.cooldown == 1:
            return min(self.warmup_steps, steps)
        return steps - round(self.cooldown * steps)

    def schedule(self, steps: int, start: int, stop: int) -> Float[np.ndarray, " s"]:
        """The factor on every rate at steps start…stop−1 of a run of `steps`.

        Before `branch_step(steps)` it does not depend on `steps`. A decay without `final` ends
        above zero at the last step.
        """
        step = np.arange(start, stop, dtype=np.float64)
        warm = np.minimum(1.0, (step + 1) / max(self.warmup_steps, 1))
        branch = self.branch_step(steps)
        progress = np.clip((step - branch + 1) / (max(steps - branch, 1) + 1), 0.0, 1.0)
        shape = DECAYS[self.decay](progress)
        return (warm * (self.final + (1.0 - self.final) * shape)).astype(np.float32)

    def depth_ratio(self, model: ModelConfig) -> float:
        """CompleteP's m: depth over base depth, 1 without a base depth."""
        return 1.0 if self.base_depth is None else len(model.blocks) / self.base_depth

    def deepen(self, model: ModelConfig) -> ModelConfig:
        """The model with its residual branches scaled by m^−α, as these rates assume."""
        scale = self.depth_ratio(model) ** -self.depth_power
        return model.model_copy(update={"branch_scale": scale})

    def check(self, model: ModelConfig) -> None:
        """Raise UserError if the model's residual branches are not those of `base_depth`."""
        if self.base_depth is None:
            return
        wanted = self.deepen(model).branch_scale
        if abs(model.branch_scale / wanted - 1.0) > 1e-9:
            raise UserError(
                f"base_depth={self.base_depth} scales residual branches of {len(model.blocks)} "
                f"blocks by {wanted:.9g}, and the model's branch_scale is "
                f"{model.branch_scale:.9g}; use optim.deepen(model)"
            )

    def rates(self, model: ModelConfig, params: Params) -> Params:
        """The peak rate of every parameter, a fp32 scalar for each leaf of `params`."""
        deeper = self.depth_ratio(model) ** (self.depth_power - 1.0)

        def rate(path: tuple[str, ...], variable: nnx.Variable) -> float:
            if isinstance(variable, LoadBalancingBias):
                return self.steered_lr
            if isinstance(variable, Embedding):
                return self.embedding_lr
            plain = isinstance(variable, Matrix)
            own = self.matrix_rate(path, model.d_model) if plain else self.vector_lr
            return own * deeper if inside_block(path) else own

        return by_parameter(lambda *at: jnp.float32(rate(*at)), params)

    def direction(self, model: ModelConfig, params: Params) -> optax.GradientTransformation:
        """The update before it is scaled by the rate: clip, the optimiser's own direction, decay.

        A `LoadBalancingBias` takes the sign of its gradient instead, and is in no clipped norm.
        """
        where = partial(by_parameter, params=params)
        own = optax.chain(
            optax.clip_by_global_norm(self.clip),
            self.own_direction(model, params),
            optax.add_decayed_weights(
                self.weight_decay, mask=where(lambda path, v: isinstance(v, Matrix))
            ),
        )
        return optax.chain(
            optax.masked(own, where(lambda path, v: not isinstance(v, LoadBalancingBias))),
            optax.masked(
                optax.scale_by_sign(), where(lambda path, v: isinstance(v, LoadBalancingBias))
            ),
        )

    def matmul_flops(self, model: ModelConfig) -> int:
        """FLOPs of the matmuls of one update: part of a run's `executed`, `matmul` and `causal`.

        An update's elementwise work is no part of any convention.
        """
        return 0

    @abstractmethod
    def matrix_rate(self, path: tuple[str, ...], d_model: int) -> float:
        """The peak rate of the matrix at `path` of a model of width `d_model`."""

    @abstractmethod
    def own_direction(self, model: ModelConfig, params: Params) -> optax.GradientTransformation:
        """From the clipped gradient to a direction of the size that the rates are meant for."""


def adam(
    b1: float, b2: float, eps: float, optim: Optim, model: ModelConfig, params: Params
) -> optax.GradientTransformation:
    """Adam's direction (Kingma & Ba 2015, 1412.6980), with CompleteP's eps inside blocks."""
    deep = eps * optim.depth_ratio(model) ** -optim.depth_power
    if deep == eps:
        return optax.scale_by_adam(b1, b2, eps)
    where = partial(by_parameter, params=params)
    return optax.chain(
        optax.masked(optax.scale_by_adam(b1, b2, deep), where(lambda p, v: inside_block(p))),
        optax.masked(optax.scale_by_adam(b1, b2, eps), where(lambda p, v: not inside_block(p))),
    )


def inside_block(path: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to a layer, and not to the embedding, last norm or head."""
    return path[0] == "blocks"


def by_parameter(value: Callable[[tuple[str, ...], nnx.Variable], Any], params: Params) -> Params:
    """A tree shaped like `params` with `value(path, variable)` at every parameter."""

    def at(path: Any, variable: nnx.Variable) -> nnx.Variable:
        return variable.replace(value(tuple(str(key.key) for key in path), variable))

    return jax.tree_util.tree_map_with_path(
        at, params, is_leaf=lambda node: isinstance(node, nnx.Variable)
    )


def apply(params: Params, update: Params, rates: Params, factor: Float[Array, ""]) -> Params:
    """params − factor · rate · update, leaf by leaf."""
    return jax.tree.map(lambda p, u, r: p - factor * r * u, params, update, rates)
