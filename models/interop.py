"""Hugging Face checkpoints, in and out: a folder with config.json and safetensors, whole or in
shards.

Tensors are read one at a time, after all names and shapes have been checked; weights become fp32.
Nothing is unpickled: a folder with only `.bin` or `.pth` files is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from models.base import Init
from models.errors import UserError
from models.layouts import LAYOUTS
from models.lm import ModelConfig
from models.translation import Layout

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
REDUNDANT = re.compile(r"rotary_emb\.inv_freq$|^mtp\.")  # old buffers; heads for later tokens


def read(folder: Path) -> ModelConfig:
    """The model that a checkpoint holds, by its config.json alone."""
    layout, config = _layout(folder)
    return layout.read(config)


def load(folder: Path) -> tuple[ModelConfig, Any]:
    """The model of a checkpoint and its parameters, as `nnx.split` gives them."""
    layout, config = _layout(folder)
    model = layout.read(config)
    return model, from_names(model, dict(_translated(layout, model, Tensors(folder))))


def save(
    folder: Path,
    model: ModelConfig,
    weights: Mapping[str, np.ndarray],
    model_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write a model under our parameter names as a checkpoint; the paths written.

    Without a `model_type`, the first layout that has a place for everything in the model.
    """
    layout, config = fitting(model, model_type)
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    for link in layout.links(model, {name: array.shape for name, array in weights.items()}):
        arrays = link.write([np.asarray(weights[name], np.float32) for name in link.ours])
        for name, array in zip(link.theirs, arrays, strict=True):
            if shards[-1] and _bytes(shards[-1]) + array.nbytes > shard_bytes:
                shards.append({})
            shards[-1][name] = np.ascontiguousarray(array)
    written = [_write_json(folder / "config.json", config)]
    files = [WEIGHTS]
    if len(shards) > 1:
        count = len(shards)
        files = [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
        places = {name: f for f, shard in zip(files, shards, strict=True) for name in shard}
        total = {"total_size": sum(map(_bytes, shards))}
        index = {"metadata": total, "weight_map": places}
        written.append(_write_json(folder / INDEX, index))
    for file, shard in zip(files, shards, strict=True):
        safetensors.numpy.save_file(shard, folder / file, metadata={"format": "pt"})
        written.append(folder / file)
    return written


def names(params: Any) -> dict[str, Any]:
    """Dotted name → parameter, e.g. `blocks.0.mixer.q.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}


def from_names(model: ModelConfig, arrays: Mapping[str, Any]) -> Any:
    """The parameters of a model from all of its dotted names."""
    params = _abstract(model)
    flat = [
        (path, leaf.replace(arrays[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.from_flat_state(flat)


class Tensors:
    """The tensors of a folder by name, read when asked for."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._open: dict[str, Any] = {}

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor → file."""
        if (self.folder / INDEX).exists():
            places = _json(self.folder / INDEX).get("weight_map", {})
            return {name: Path(file).name for name, file in places.items()}
        if (self.folder / WEIGHTS).exists():
            return dict.fromkeys(self._file(WEIGHTS).keys(), WEIGHTS)
        pickled = sorted(
            p.name for p in self.folder.glob("*") if p.suffix in {".bin", ".pth", ".pt"}
        )
        if pickled:
            raise UserError(
                f"{self.folder} has its weights only as a pickle ({pickled[0]}), which could run "
                "any code and is never read; save it as safetensors first"
            )
        raise UserError(f"{self.folder} has no {WEIGHTS} and no {INDEX}; choose another folder")

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def read(self, name: str) -> np.ndarray:
        return self._slice(name)[...].astype(np.float32)

    def _slice(self, name: str) -> Any:
        file = self._file(self.files[name])
        try:
            return file.get_slice(name)
        except safetensors.SafetensorError:
            raise UserError(
                f"{self.folder / self.files[name]} lacks {name}, which {INDEX} places there; "
                "copy that file again"
            ) from None

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            try:
                self._open[name] = safetensors.safe_open(path, framework="numpy").__enter__()
            except (OSError, safetensors.SafetensorError) as error:
                raise UserError(f"cannot read {path}: {error}; copy that file again") from None
        return self._open[name]


def _layout(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """What a folder's config.json says, and the table that reads it."""
    config = _json(folder / "config.json")
    name = config.get("model_type")
    if name not in LAYOUTS:
        raise UserError(
            f"{folder}: model_type={name!r} is not supported; use one of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[name], config


def _translated(
    layout: Layout, model: ModelConfig, tensors: Tensors
) -> Iterator[tuple[str, np.ndarray]]:
    """Our names and arrays, once every published tensor is known to be there as it must."""
    shapes = {name: leaf.shape for name, leaf in names(_abstract(model)).items()}
    links = layout.links(model, shapes)
    want: dict[str, tuple[int, ...]] = {}
    for link in links:
        want |= link.published_shapes([shapes[name] for name in link.ours])
    extra = {name for name in tensors.files if not REDUNDANT.search(name)} - set(want)
    if model.tie_embeddings:
        extra -= {tensor.theirs for name, tensor in layout.tensors.items() if "head" in name}
    for problem, found in (("lacks", set(want) - set(tensors.files)), ("has unexpected", extra)):
        if found:
            shown = ", ".join(sorted(found)[:5]) + (", …" if len(found) > 5 else "")
            raise UserError(
                f"{tensors.folder} {problem} {len(found)} tensors of a {layout.model_type} model: "
                f"{shown}; compare its config.json with its weights"
            )
    for name, shape in want.items():
        if tensors.shape(name) != shape:
            raise UserError(
                f"{tensors.folder}: {name} has shape {tensors.shape(name)} and config.json says "
                f"{shape}; compare its config.json with its weights"
            )
    for link in links:
        ours = [shapes[name] for name in link.ours]
        yield from zip(
            link.ours, link.read([tensors.read(name) for name in link.theirs], ours), strict=True
        )


def fitting(model: ModelConfig, model_type: str | None = None) -> tuple[Layout, dict[str, Any]]:
    """The layout with a place for all of a model, and its config.json; UserError without one."""
    if model_type is not None and model_type not in LAYOUTS:
        raise UserError(f"there is no layout {model_type!r}; use one of {', '.join(LAYOUTS)}")
    reasons = []
    for layout in LAYOUTS.values() if model_type is None else [LAYOUTS[model_type]]:
        try:
            return layout, layout.write(model)
        except UserError as error:
            reasons.append(str(error))
    if model_type is not None:
        raise UserError(reasons[0])
    raise UserError(f"no published layout has a place for this model: {'; '.join(reasons)}")


def _abstract(model: ModelConfig) -> Any:
    return nnx.state(nnx.eval_shape(lambda: model.build(init=Init(None))))


def _bytes(shard: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in shard.values())


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes(), object_hook=_float)
    except OSError:
        raise UserError(f"there is no {path}; choose the folder of a checkpoint") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); copy that file again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object; copy that file again")
    return found


def _float(value: dict[str, Any]) -> Any:
    """The float that transformers writes as an object, since JSON has no infinity."""
    return float(value["__float__"]) if set(value) == {"__float__"} else value


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2, default=lambda value: value.model_dump()) + "\n")
    return path
