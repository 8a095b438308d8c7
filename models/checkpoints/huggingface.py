"""Hugging Face checkpoints, in and out: a folder with config.json and safetensors, whole or in
shards.

Tensors are read one at a time, after all names and shapes have been checked; weights become fp32.
Nothing is unpickled: a folder with only `.bin` or `.pth` files is refused.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from isoflop.models.checkpoints.fields import escaped, shown
from isoflop.models.checkpoints.formats import LAYOUTS
from isoflop.models.checkpoints.tensors import INDEX, WEIGHTS, Tensors, read_json
from isoflop.models.checkpoints.translation import Layout
from isoflop.models.errors import UserError
from isoflop.models.lm import ModelConfig

SHARD_BYTES = 5_000_000_000
LOADED = {".json", ".safetensors", ".bin", ".pth", ".pt", ".model", ".txt", ".jinja"}
REDUNDANT = re.compile(r"rotary_emb\.inv_freq$|^mtp\.")  # old buffers; heads for later tokens


def read(folder: Path) -> ModelConfig:
    """The model that a checkpoint holds, by its config.json alone."""
    layout, config = _layout(folder)
    return layout.read(config)


def trained_context(folder: Path) -> int | None:
    """Tokens that config.json says the model was trained on at once."""
    layout, config = _layout(folder)
    return layout.schema.of(layout.model_type, layout.own(config)).max_position_embeddings


def load(folder: Path) -> tuple[ModelConfig, Any]:
    """The model of a checkpoint and its parameters, as `nnx.split` gives them."""
    layout, config = _layout(folder)
    tensors = Tensors(folder)
    model = layout.read(config, most_layers=len(tensors.files))
    claimed, held = model.cost(1).params, tensors.elements
    if claimed > 2 * held:
        raise UserError(
            f"{folder}: config.json describes a model of {claimed} parameters, and the weights "
            f"hold {held}; compare its config.json with its weights"
        )
    params = nnx.state(model.abstract())
    return model, _filled(params, dict(_translated(layout, model, params, tensors)))


def save(
    folder: Path,
    model: ModelConfig,
    weights: Mapping[str, np.ndarray],
    model_type: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    context: int | None = None,
) -> list[Path]:
    """Write a model under our parameter names as a checkpoint; the paths written.

    Without a `model_type`, the first layout that has a place for everything in the model.
    `context` is the number of tokens that it was trained on at once. Raises UserError where the
    folder holds files that a loader could take for this checkpoint's.
    """
    check_free(folder)
    layout, config = fitting(model, model_type)
    if context is not None:
        config["max_position_embeddings"] = context
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
        shutil.copymode(written[0], folder / file)  # it writes what its owner alone may read
        written.append(folder / file)
    return written


def check_free(folder: Path) -> None:
    """Raise UserError if the folder holds a checkpoint's files: an index, shards or a tokenizer
    that an older one left would be loaded with the new one's.
    """
    found = sorted(p.name for p in folder.glob("*") if p.suffix in LOADED)
    if found:
        some = ", ".join(map(escaped, found[:5])) + (", …" if len(found) > 5 else "")
        raise UserError(
            f"{folder} must hold no file of another checkpoint, and has {some}; choose a new "
            "folder, or remove them"
        )


def names(params: Any) -> dict[str, Any]:
    """Dotted name → parameter, e.g. `blocks.0.mixer.q.kernel`."""
    return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}


def from_names(model: ModelConfig, arrays: Mapping[str, Any]) -> Any:
    """The parameters of a model from all of its dotted names."""
    return _filled(nnx.state(model.abstract()), arrays)


def _filled(params: Any, arrays: Mapping[str, Any]) -> Any:
    """`params` with the values of all dotted names."""
    flat = [
        (path, leaf.replace(arrays[".".join(map(str, path))]))
        for path, leaf in nnx.to_flat_state(params)
    ]
    return nnx.from_flat_state(flat)


def _layout(folder: Path) -> tuple[Layout, dict[str, Any]]:
    """What a folder's config.json says, and the table that reads it."""
    config = read_json(folder / "config.json")
    name = config.get("model_type")
    if not isinstance(name, str) or name not in LAYOUTS:
        raise UserError(
            f"{folder}: model_type={shown(name)} is not supported; use one of {', '.join(LAYOUTS)}"
        )
    return LAYOUTS[name], config


def _translated(
    layout: Layout, model: ModelConfig, params: Any, tensors: Tensors
) -> Iterator[tuple[str, np.ndarray]]:
    """Our names and arrays, once every published tensor is known to be there as it must."""
    shapes = {name: leaf.shape for name, leaf in names(params).items()}
    links = layout.links(model, shapes)
    want: dict[str, tuple[int, ...]] = {}
    for link in links:
        want |= link.published_shapes([shapes[name] for name in link.ours])
    extra = {name for name in tensors.files if not REDUNDANT.search(name)} - set(want)
    head = layout.tensors["head.kernel"].theirs
    if model.tie_embeddings and head in extra:
        extra.remove(head)
        _check_copy(tensors, head, layout.tensors["embed"].theirs)
    for problem, found in (("lacks", set(want) - set(tensors.files)), ("has unexpected", extra)):
        if found:
            some = ", ".join(map(escaped, sorted(found)[:5])) + (", …" if len(found) > 5 else "")
            raise UserError(
                f"{tensors.folder} {problem} {len(found)} tensors of a {layout.model_type} model: "
                f"{some}; compare its config.json with its weights"
            )
    for name, shape in want.items():
        tensors.check_dtype(name)
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


def _check_copy(tensors: Tensors, head: str, embed: str) -> None:
    """UserError unless a head that config.json ties to the embedding holds the same numbers."""
    if embed not in tensors.files:
        return  # told as missing
    for name in (head, embed):
        tensors.check_dtype(name)
    same = tensors.shape(head) == tensors.shape(embed)
    if not (same and np.array_equal(tensors.read(head), tensors.read(embed))):
        raise UserError(
            f"{tensors.folder}: config.json says tie_word_embeddings=true and {head} differs from "
            f"{embed}; set it to false to use that head, or remove the tensor to use the embedding"
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


def _bytes(shard: Mapping[str, np.ndarray]) -> int:
    return sum(array.nbytes for array in shard.values())


def _write_json(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content, indent=2, default=lambda value: value.model_dump()) + "\n")
    return path
