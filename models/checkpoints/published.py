"""Published models by name: the fields of their config.json that size them, with their source.

Facts only, no weights: `published("llama-3.1-8b")` is a ModelConfig whose parameters are the
published ones exactly. Any other model is served from its own config.json (`named`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from isoflop.models.checkpoints import shapes
from isoflop.models.checkpoints.shapes import Shape
from isoflop.models.errors import UserError, quoted
from isoflop.models.lm import ModelConfig


@dataclass(frozen=True)
class Facts:
    """What is known of a published model."""

    repo: str
    params: int  # all, exactly
    source: str
    config: Mapping[str, Any]


@cache
def facts() -> dict[str, Facts]:
    """The committed table, by name."""
    file = resources.files(__package__) / "published.json"
    return {name: Facts(**row) for name, row in json.loads(file.read_text()).items()}


@cache
def shape(name: str) -> Shape:
    """The blocks of a published model. Raises UserError for a name that is not in the table."""
    known = facts()
    if name.lower() not in known:
        raise UserError(
            f"there is no published model {quoted(name)}; use one of {', '.join(known)}, or the "
            "path of a config.json"
        )
    return shapes.of(dict(known[name.lower()].config))


def published(name: str) -> ModelConfig:
    """The model of that name. Raises UserError for a name that is not in the table."""
    return shape(name).model


def named(model: str) -> Shape:
    """A published model's name, or the path of a config.json or of a folder that has one."""
    path = Path(model)
    if model.lower() not in facts() and (path.suffix == ".json" or path.exists()):
        return shapes.of_file(path)
    return shape(model)
