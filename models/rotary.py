"""Rotary positions (Su et al. 2021, 2104.09864), halves rotated as Llama does, and their scalings.

Channel pair p of P turns by position · base^(−p/P); relative offsets alone enter q · k. A scaling
slows the turning so that longer contexts stay within the angles seen in training; it needs no
training of its own, though it gains from some. Not included: scalings that change with the length
of the sequence at hand (transformers' `dynamic`), by which cached keys were turned otherwise.
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

    def scale(self, turns: Turns, base: float) -> Turns:
        return turns / self.factor


class NTKScaling(Tagged, Sizes):
    """The base grows by factor^(P/(P−1)): the slowest pair turns `factor` times slower, the fastest
    as before (bloc97 2023, in Peng et al. 2023, 2309.00071, §3.1).
    """

    kind: Literal["ntk"] = "ntk"
    factor: PositiveFloat

    def scale(self, turns: Turns, base: float) -> Turns:
        half = len(turns)
        return turns * self.factor ** (-np.arange(half) / max(half - 1, 1))


class YarnScaling(Tagged, Sizes):
    """Pairs that turn fewer than `slow` times in `original` tokens are slowed by `factor`, those
    above `fast` times not at all, those between by their place; and what turns of a query and of a
    key grows by `amplitude`, scores so by its square (Peng et al. 2023, 2309.00071, §3.2 to 3.4).
    """

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original: PositiveInt  # context length before scaling
    fast: PositiveFloat = 32.0
    slow: PositiveFloat = 1.0
    amplitude: PositiveFloat | None = None  # None: 1 + ln(factor) / 10, for a factor above 1

    @model_validator(mode="after")
    def _ordered(self) -> YarnScaling:
        if not self.slow <= self.fast:
            raise UserError(f"slow={self.slow} must be at most fast={self.fast}; swap them")
        return self

    def scale(self, turns: Turns, base: float) -> Turns:
        half = len(turns)

        def pair(times: float) -> float:
            """That turns so many times, if pairs were continuous."""
            return half * math.log(self.original / (2 * math.pi * times)) / math.log(base)

        first = max(math.floor(pair(self.fast)), 0)
        last = min(math.ceil(pair(self.slow)), 2 * half - 1)
        width = last - first if last != first else 0.001  # as the paper's code has it
        slowed = np.clip((np.arange(half) - first) / width, 0, 1)
        return (1 - slowed) * turns + slowed * turns / self.factor


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

    def scale(self, turns: Turns, base: float) -> Turns:
        whole = self.original * turns / (2 * math.pi)
        kept = np.clip((whole - self.low) / (self.high - self.low), 0, 1)
        return kept * turns + (1 - kept) * turns / self.factor


AnyScaling = LinearScaling | NTKScaling | YarnScaling | Llama3Scaling
RopeScaling = Annotated[AnyScaling, Field(discriminator="kind")]


def check_dims(dims: int, size: int) -> None:
    """UserError unless `dims` of a head's `size` channels can turn in pairs."""
    if dims % 2 or dims > size:
        raise UserError(
            f"rotary positions need an even number of a head's {size} channels, got {dims}; change "
            "the size of heads, or set rope_base to None"
        )


def frequencies(dims: int, base: float, scaling: AnyScaling | None) -> Turns:
    """Radians per token of the `dims` / 2 channel pairs."""
    half = dims // 2
    turns = base ** (-np.arange(half) / half)
    return turns if scaling is None else scaling.scale(turns, base)


def amplitude(scaling: AnyScaling | None) -> float:
    """What multiplies the channels that turn."""
    if not isinstance(scaling, YarnScaling):
        return 1.0
    return scaling.amplitude or 1 + 0.1 * math.log(max(scaling.factor, 1.0))


def rope_flops(dims: int, heads: int, known: bool, amplitude: float = 1.0) -> int:
    """Elementwise FLOPs of one token's queries and keys, `heads` in all, of which `dims` channels
    turn: two products and a sum each; and once for queries and once for keys the angles, their
    sines and the amplitude of these, unless positions are `known` when the program is made.
    """
    angles = 0 if known else 3 * dims + 2 * dims * (amplitude != 1)
    return 3 * dims * heads + angles


def rope(
    x: Float[Array, "b h t k"],
    positions: Int[Array, "*segments t"] | Int[np.ndarray, " t"],
    turns: Turns,
    amplitude: float = 1.0,
) -> Float[Array, "b h t k"]:
    """The first 2·P channels turned by their positions; angles in fp32, the rest as it is.

    Positions of numpy are known when the program is made, and so are their sines: a CPU would
    compute those again for every sequence and head.
    """
    xp: Any = np if isinstance(positions, np.ndarray) else jnp
    radians = np.expand_dims(turns.astype(np.float32), tuple(range(positions.ndim)))
    angles = positions[..., None].astype(np.float32) * radians
    cos, sin = xp.cos(angles), xp.sin(angles)
    if amplitude != 1:
        cos, sin = cos * np.float32(amplitude), sin * np.float32(amplitude)
    cos, sin = broadcast_to_batch(cos, x), broadcast_to_batch(sin, x)
    half = len(turns)
    x1, x2, rest = jnp.split(x.astype(jnp.float32), [half, 2 * half], axis=-1)
    turned = [x1 * cos - x2 * sin, x2 * cos + x1 * sin, rest]
    return jnp.concatenate(turned, -1).astype(x.dtype)
