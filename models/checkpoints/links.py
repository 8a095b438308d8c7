"""Published tensors ↔ our parameters: a layout that is read in both directions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange


@dataclass(frozen=True)
class Tensor:
    """Published tensors ↔ ours: each published one is laid out by `outer`, all are joined on their
    first axis, and what belongs to each of ours is laid out by `inner`. Patterns are einops',
    read backwards on export; `{e}` in the name stands for one tensor of each expert.
    """

    theirs: str  # several, separated by spaces, if all are of one shape
    outer: str = ""
    inner: str = ""
    shift: float = 0.0  # ours − theirs: 1 where a norm's scale is stored as its distance from 1

    def named(self, theirs: str) -> Tensor:
        """The same for another published name."""
        return replace(self, theirs=theirs)


@dataclass(frozen=True)
class Link:
    """One `Tensor` of one layer, with all names and sizes filled in."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    tensor: Tensor
    axes: Mapping[str, int]

    def read(self, theirs: Sequence[Any], shapes: Sequence[tuple[int, ...]]) -> list[Any]:
        """Our arrays, of these shapes, from the published ones."""
        tensor = self.tensor
        pieces = [self._lay(x, tensor.outer) for x in theirs]
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        sizes = [self._shapes(tensor.inner, shape)[0] for shape in shapes[:-1]]
        parts = np.split(whole, np.cumsum(sizes)) if sizes else [whole]
        return [self._lay(_moved(part, tensor.shift), tensor.inner) for part in parts]

    def write(self, ours: Sequence[Any], xp: ModuleType = np) -> list[Any]:
        """The published arrays from ours; `xp` is numpy or jax.numpy."""
        tensor = self.tensor
        parts = [self._lay(_moved(x, -tensor.shift), tensor.inner, True) for x in ours]
        whole = parts[0] if len(parts) == 1 else xp.concatenate(parts)
        pieces = xp.split(whole, len(self.theirs)) if len(self.theirs) > 1 else [whole]
        return [self._lay(piece, tensor.outer, True) for piece in pieces]

    def published_shapes(self, ours: Sequence[tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes that the published tensors must have, by name, from those of ours."""
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ours]
        out = jax.eval_shape(lambda *ours: self.write(ours, jnp), *arrays)
        return {name: x.shape for name, x in zip(self.theirs, out, strict=True)}

    def _shapes(self, inner: str, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one of ours before `inner` laid it out."""
        array = jax.ShapeDtypeStruct(ours, jnp.float32)
        return jax.eval_shape(lambda x: self._lay(x, inner, True), array).shape

    def _lay(self, x: Any, pattern: str, backwards: bool = False) -> Any:
        if not pattern:
            return x
        if backwards:
            pattern = " -> ".join(reversed(pattern.split(" -> ")))
        known = {
            axis: self.axes[axis] for axis in re.findall(r"[a-z]", pattern) if axis in self.axes
        }
        return rearrange(x, pattern, **known)


def _moved(x: Any, shift: float) -> Any:
    return x + np.float32(shift) if shift else x
