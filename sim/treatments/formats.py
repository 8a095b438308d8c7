"""Number formats of fewer bits, and arrays as they are after a stay in one.

An integer format of b bits keeps, for each group of neighbours along one axis, integers
q = round(x / s) clipped to [−2^(b−1), 2^(b−1) − 1] and one fp32 scale s = max|x| / bound, and gives
back q·s. `bound` is 2^(b−1) − ½, which uses the last integer's whole interval (as qwix 0.1.8 does;
integers and scales are equal to its), or with `fixed_points` 2^(b−1) − 1, so that what was rounded
once is not moved again. Float formats round to nearest even; fp8 is e4m3 with a scale to its 448.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Format = Literal["fp32", "bf16", "fp8", "int8", "int4", "int3", "int2"]
BITS: dict[str, int] = {
    "fp32": 32, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4, "int3": 3, "int2": 2,
}  # fmt: skip
SCALE_BITS = 32
FP8 = jnp.float8_e4m3fn


class Rounded(NamedTuple):
    """An array in a format: `q` as floats in (…, group, member), and a scale for each group."""

    q: Float[Array, "*groups m"]
    scale: Float[Array, "*groups 1"]


def stored_bits(size: int, groups: int, format: Format) -> int:
    """Bits that `size` numbers in so many groups take, scales included."""
    return size * BITS[format] + (SCALE_BITS * groups if _scaled(format) else 0)


def groups_of(shape: tuple[int, ...], axis: int, group: int | None) -> int:
    """Scales that an array of this shape has: one for each `group` along `axis`, the last of which
    may be shorter (None: all of the axis).
    """
    length = shape[axis]
    rest = 1
    for size in shape:
        rest *= size
    return rest // max(length, 1) * -(-length // (group or max(length, 1)))


def rounded(
    x: Float[Array, "..."],
    format: Format,
    axis: int = -1,
    group: int | None = None,
    fixed_points: bool = False,
) -> Rounded:
    """`x` in a format with scales."""
    grouped = _grouped(jnp.moveaxis(x, axis, -1), group)
    most = jnp.abs(grouped).max(-1, keepdims=True)
    if format == "fp8":
        scale = _scale(most, float(jnp.finfo(FP8).max))
        return Rounded((grouped / scale).astype(FP8).astype(jnp.float32), scale)
    top = 2 ** (BITS[format] - 1) - 1
    scale = _scale(most, top + (0.0 if fixed_points else 0.5))
    return Rounded(jnp.clip(jnp.round(grouped / scale), -top - 1, top), scale)


def through(
    x: Float[Array, "..."],
    format: Format,
    axis: int = -1,
    group: int | None = None,
    fixed_points: bool = False,
) -> Float[Array, "..."]:
    """`x` as it is read back from a format: fp32 itself, bit for bit."""
    if format == "fp32":
        return x
    if not _scaled(format):
        return x.astype(jnp.bfloat16).astype(x.dtype)
    q, scale = rounded(x, format, axis, group, fixed_points)
    length = x.shape[axis]
    flat = (q * scale).reshape(*q.shape[:-2], -1)[..., :length]
    return jnp.moveaxis(flat, -1, axis).astype(x.dtype)


def _scaled(format: Format) -> bool:
    return format not in ("fp32", "bf16")


def _scale(most: Any, bound: float) -> Any:
    """max|x| / bound; 1 where that is 0 or its square no number of fp32's, as in qwix."""
    scale = most / bound
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny ** 0.5, 1.0, scale)


def _grouped(x: Any, group: int | None) -> Any:
    """(…, n) as (…, groups, members), zeros where the last group is short."""
    length = x.shape[-1]
    members = min(group or length, length)
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -length % members)])
    return padded.reshape(*x.shape[:-1], -1, members)
