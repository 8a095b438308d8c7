"""Rotary positions (Su et al. 2021, 2104.09864), halves rotated as Llama does, and their scalings.

Channel pair p of P turns by position · base^(−p/P); relative offsets alone enter q · k. A scaling
slows the turning so that longer contexts stay within the angles seen in training.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from isoflop.models.base import Sizes, Tagged
from isoflop.models.errors import UserError
from isoflop.models.kernels.xla_cpu import broadcast_to_batch

Turns = Float[np.ndarray, " p"]  # radians per token of each channel pair


class LinearScaling(Tagged, Sizes):
    """Every pair turns `factor` times slower (Chen et al. 2023, 2306.15595)."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat

    def scale(self, turns: Turns) -> Turns:
        return turns / self.factor


class Llama3Scaling(Tagged, Sizes):
    """Pairs that turn fewer than `low` times in `original` tokens are slowed by `factor`, those
    above `high` times not at all, and those between in proportion (Llama 3.1's released code).
    """

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low: PositiveFloat
    high: PositiveFloat
    original: PositiveInt  # context length before scaling

    @model_validator(mode="after")
    def _ordered(self) -> Llama3Scaling:
        if not self.low < self.high:
            raise UserError(f"low={self.low} must be below high={self.high}; swap them")
        return self

    def scale(self, turns: Turns) -> Turns:
        whole = self.original * turns / (2 * math.pi)
        kept = np.clip((whole - self.low) / (self.high - self.low), 0, 1)
        return kept * turns + (1 - kept) * turns / self.factor


RopeScaling = Annotated[LinearScaling | Llama3Scaling, Field(discriminator="kind")]


def check_dims(dims: int, size: int) -> None:
    """UserError unless `dims` of a head's `size` channels can turn in pairs."""
    if dims % 2 or dims > size:
        raise UserError(
            f"rotary positions need an even number of a head's {size} channels, got {dims}; change "
            "the size of heads, or set rope_base to None"
        )


def frequencies(dims: int, base: float, scaling: LinearScaling | Llama3Scaling | None) -> Turns:
    """Radians per token of the `dims` / 2 channel pairs."""
    half = dims // 2
    turns = base ** (-np.arange(half) / half)
    return turns if scaling is None else scaling.scale(turns)


def rope_flops(dims: int, heads: int, known: bool) -> int:
    """Elementwise FLOPs of one token's queries and keys, `heads` in all, of which `dims` channels
    turn: two products and a sum each; and once for queries and once for keys the angles and their
    sines, unless positions are `known` when the program is made.
    """
    return 3 * dims * (heads + (not known))


def rope(
    x: Float[Array, "b h t k"],
    positions: Int[Array, "*segments t"] | Int[np.ndarray, " t"],
    turns: Turns,
) -> Float[Array, "b h t k"]:
    """The first 2·P channels turned by their positions; angles in fp32, the rest as it is.

    Positions of numpy are known when the program is made, and so are their sines: a CPU would
    compute those again for every sequence and head.
    """
    xp: Any = np if isinstance(positions, np.ndarray) else jnp
    radians = np.expand_dims(turns.astype(np.float32), tuple(range(positions.ndim)))
    angles = positions[..., None].astype(np.float32) * radians
    cos, sin = broadcast_to_batch(xp.cos(angles), x), broadcast_to_batch(xp.sin(angles), x)
    half = len(turns)
    x1, x2, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest]
    return jnp.concatenate(turned, -1).astype(x.dtype)
